"""What a folder that `make base` wrote reads and writes: `python -m src.benchmarks.base_parity`.

Token ids of 1,000 texts of four kinds are compared with those of a reference that shares no code with the
folder: the vocabulary and the merges of the GGUF file under the original's pre-tokenizer, and beside it what
transformers makes of the file. Then five prompts are answered greedily.
"""

import inspect
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from search_r3.cli.last_resort import Parser, run_command
from search_r3.cli.model_choice import MADE_BY_BASE
from search_r3.cli.provenance import provenance
from search_r3.errors import UsageError
from search_r3.files import write_json

N_TEXTS, MAX_CHARACTERS = 250, 600  # of each kind
MAX_TOKENS = 60  # of an answer
SEED = 1
QUESTIONS = (
    "What is the capital of France?",
    "Why does the moon appear to change its shape during a month?",
    "Name three animals that lay eggs.",
    "What happens to water when it is heated to 100 degrees Celsius?",
    "Write a Python function that adds two numbers.",
)


def texts_by_kind() -> dict[str, list[str]]:
    """`N_TEXTS` texts of prose, code, lists and numbers, out of the standard library and a seeded draw."""
    draw = random.Random(SEED)
    sources = _library_sources()
    prose = [text for text, _ in sources if text]
    code = [code for _, code in sources]
    draw.shuffle(prose)
    draw.shuffle(code)
    words = [word for text in prose[:200] for word in text.split() if word.isalpha()]
    return {
        "prose": [text[:MAX_CHARACTERS] for text in prose[:N_TEXTS]],
        "code": [text[:MAX_CHARACTERS] for text in code[:N_TEXTS]],
        "lists": [_list(draw, words) for _ in range(N_TEXTS)],
        "numbers": [_numbers(draw, words) for _ in range(N_TEXTS)],
    }


def _library_sources() -> list[tuple[str, str]]:
    """(docstring, source) of functions and classes of a few modules, in a fixed order."""
    import argparse
    import collections
    import datetime
    import decimal
    import email.message
    import fractions
    import ipaddress
    import logging
    import pathlib
    import statistics
    import tarfile
    import textwrap
    import typing
    import zipfile

    modules = (
        argparse, collections, datetime, decimal, email.message, fractions, ipaddress, logging, pathlib,
        statistics, tarfile, textwrap, typing, zipfile,
    )  # fmt: skip
    found = []
    for module in modules:
        members = [value for _, value in sorted(vars(module).items())]
        for owner in (module, *filter(inspect.isclass, members)):
            for _, value in sorted(vars(owner).items()):
                try:
                    found.append((inspect.getdoc(value) or "", inspect.getsource(value)))
                except (TypeError, OSError):
                    continue
    return list(dict.fromkeys(found))


def _list(draw: random.Random, words: list[str]) -> str:
    """Lines of a numbered, dashed or indented list, or of a table."""
    mark = draw.choice(("{n}. ", "- ", "  * ", "\t{n})  ", "{n}\t"))
    lines = [
        mark.format(n=n) + " ".join(draw.choices(words, k=draw.randint(1, 6))) + f"  {draw.randint(0, 5000)}"
        for n in range(draw.randint(8, 12))
    ]
    return draw.choice(("\n", "\n\n", "\r\n")).join(lines)


def _numbers(draw: random.Random, words: list[str]) -> str:
    """Numbers of many forms with runs of blanks before them."""
    forms: tuple[Callable[[], str], ...] = (
        lambda: str(draw.randint(0, 10**6)),
        lambda: f"{draw.uniform(-1e4, 1e4):.3f}",
        lambda: f"{draw.randint(0, 10**9):,}",
        lambda: f"{draw.uniform(0, 1):.2e}",
        lambda: f"{draw.randint(1, 12)}/{draw.randint(1, 31)}/{draw.randint(1900, 2030)}",
        lambda: f"{draw.randint(0, 100)}%",
        lambda: f"0x{draw.randint(0, 1 << 30):x}",
        lambda: draw.choice(words),
        lambda: draw.choice("½²٣Ⅷ④"),
    )
    gaps = (" ", "  ", "   ", "\n", ",", ", ", "\t")
    return "".join(draw.choice(gaps) + draw.choice(forms)() for _ in range(draw.randint(10, 40)))


def reference_tokenizer(file: Path) -> Tokenizer:
    """Vocabulary and merges of a SmolLM2 file under the pre-tokenizer of its original, and nothing else."""
    from gguf import GGUFReader

    fields = GGUFReader(str(file)).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def compared(texts: Mapping[str, list[str]], folder: Path, file: Path) -> dict[str, dict[str, int]]:
    """Texts whose token ids differ from the reference, by kind: of the folder, and of transformers."""
    reference = reference_tokenizer(file)
    tokenizers = {
        "folder": AutoTokenizer.from_pretrained(str(folder), local_files_only=True),
        "transformers": AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name),
    }
    differ = {}
    for kind, some in texts.items():
        expected = [encoding.ids for encoding in reference.encode_batch(some, add_special_tokens=False)]
        counts = {"texts": len(some), "tokens": sum(map(len, expected))}
        for name, tokenizer in tokenizers.items():
            found = tokenizer(some, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            counts[f"differ_in_{name}"] = sum(
                one != other for one, other in zip(found, expected, strict=True)
            )
        differ[kind] = counts
    return differ


@torch.no_grad()
def answers(folder: Path) -> dict[str, str]:
    """Greedy answers under the chat template of the folder."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True).eval()
    said = {}
    for question in QUESTIONS:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(chat, add_special_tokens=False, return_tensors="pt")["input_ids"]
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        said[question] = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    return said


def main(argv: Sequence[str] | None = None) -> int:
    """Compares, answers, and writes both down.

    Raises:
        UsageError: If the folder or the file is not there.
    """
    parser = Parser(prog="python -m src.benchmarks.base_parity", description=__doc__)
    parser.add_argument("--folder", type=Path, default=MADE_BY_BASE, help=f"{MADE_BY_BASE} by default")
    parser.add_argument("--file", type=Path, help="the GGUF file; the one beside the folder by default")
    parser.add_argument("--output", type=Path, default=Path("outputs") / "base_parity.json")
    arguments = parser.parse_args(argv)
    file = arguments.file or next(iter(sorted(arguments.folder.parent.glob("*.gguf"))), None)
    if not arguments.folder.is_dir() or file is None or not file.is_file():
        raise UsageError(f"{arguments.folder} and the GGUF file beside it are needed: make base")
    tokens = compared(texts_by_kind(), arguments.folder, file)
    for kind, counts in tokens.items():
        print(kind, json.dumps(counts), flush=True)
    said = answers(arguments.folder)
    for question, answer in said.items():
        print(f"{question}\n    {answer}", flush=True)
    facts = json.loads((arguments.folder / "base.json").read_text(encoding="utf-8"))
    write_json(arguments.output, {**provenance(seed=SEED), "base": facts, "tokens": tokens, "answers": said})
    return 0


if __name__ == "__main__":
    run_command(main)
