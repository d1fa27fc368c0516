"""What is attacked: small runs of every kind of command, each with all that makes it a real one.

A model of two layers and a trained tokenizer, twenty rows, a BEIR folder. A subject is a command that may be
given again until it has come to its end, and says what the result is, to the bit. Saves and validations fall
on the same steps in one variant of a stage, and on other ones in the other.
"""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from transformers.utils import logging as transformers_logging

from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder import save_embedder
from search_r3.models.nano import create_nano
from search_r3.models.prompts import Lengths, Prompts
from tests.faults import results
from tests.faults.commands import Command
from tests.faults.moments import DISK

TEXTS = (
    "Return the sum of two integers.\ndef add_numbers(first, second):\n    return first + second",
    "Parse the header line of a file.\ndef parseHeader(line):\n    return line.split(':')",
    "Open a socket and connect to a host.\ndef connect(host, port):\n    return create_connection(host)",
    "Sort the rows by a column.\ndef sort_rows(table, column):\n    return sorted(table, key=column)",
    "Write text to a file and close it.\ndef write_text(path, text):\n    open(path).write(text)",
)
N_ROWS, N_STEPS = 20, 6


@dataclass(frozen=True)
class Subject:
    """A kind of command.

    Attributes:
        name: of it.
        command: in a place; given again, it goes on.
        result: of a place: a digest, or a content to compare, by name of the part; it is in `RUN`.
        goes_on: whether `python -m src.train resume=<folder>` is another way to go on.
    """

    name: str
    command: Callable[[Path], Command]
    result: Callable[[Path], dict[str, object]]
    goes_on: bool = True

    def again(self, place: Path, number: int = 0) -> Command:
        """One of the ways to go on."""
        config = place / RUN / "config.yaml"
        if self.goes_on and number % 2 and config.is_file():
            return Command("src.train", (f"resume={RUN}",), place)
        return self.command(place)


@dataclass(frozen=True)
class Given:
    """What the subjects start from.

    Attributes:
        model: a model folder whose rollouts write the embed token.
        rows: training rows with hard negatives.
        beir: folder of one collection, `tiny`.
        site: folder of an installed distribution, `smallpack`, for mining.
    """

    model: Path
    rows: Path
    beir: Path
    site: Path


def write_given(folder: Path) -> Given:
    """Makes everything that the subjects start from."""
    transformers_logging.disable_progress_bar()
    given = Given(folder / "model", folder / "rows.jsonl", folder / "beir", folder / "site")
    folder.mkdir(parents=True, exist_ok=True)
    _write_model(given.model)
    rows = []
    for number in range(N_ROWS):
        query, code = TEXTS[number % len(TEXTS)].split("\n", 1)
        wrong = [f"def wrong_{number}(): pass"]
        row = {"query": f"{query} {number}", "positive": f"{code} # {number}", "hard_negatives": wrong}
        rows.append(row | {"reasoning": code.split("(")[0]} if number % 2 else row)
    _write_lines(given.rows, rows)
    _write_collection(given.beir / "tiny")
    _write_distribution(given.site)
    return given


def _write_model(folder: Path) -> None:
    import torch

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    model, tokenizer = create_nano(list(TEXTS) * 3, vocab_size=400, **sizes, **heads, seed=4)
    prompts, lengths = Prompts("direct", "reason", "document", lead_in="", closing=""), Lengths(24, 48, 6)
    embedder = ReasoningEmbedder(model, tokenizer, prompts, lengths, is_trained=False)
    with torch.no_grad():  # so that rollouts write it
        embedder.causal_lm.get_output_embeddings().weight[embedder.embed_token_id] *= 20.0
    save_embedder(embedder, folder, {"command": "test"}, is_trained=True)


def _write_lines(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_collection(folder: Path) -> None:
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": f"d{n}", "title": "", "text": text.split("\n", 1)[1]} for n, text in enumerate(TEXTS)
    ]
    documents += [{"_id": f"e{n}", "title": "", "text": f"def other_{n}(x): return x"} for n in range(20)]
    _write_lines(folder / "corpus.jsonl", documents)
    queries = [{"_id": f"q{n}", "text": text.split("\n")[0]} for n, text in enumerate(TEXTS)]
    _write_lines(folder / "queries.jsonl", queries)
    qrels = "".join(f"q{n}\td{n}\t1\n" for n in range(len(TEXTS)))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)


def _write_distribution(site: Path) -> None:
    """`smallpack` 1.2, as a wheel installer leaves it."""
    info = site / "smallpack-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smallpack\nVersion: 1.2\n")
    names, rng = [], random.Random(0)
    for number in range(60):
        file = site / "smallpack" / f"m{number}.py"
        file.parent.mkdir(exist_ok=True)
        words = ["".join(rng.choices("abcdefghij", k=7)) for _ in range(12)]
        body = "".join(f"    {left} = {right}(row, {number})\n" for left, right in pairwise(words))
        told = f'    """Count the rows of ledger number {number}."""\n'
        file.write_text(f"def count_rows_{number}(row: int) -> list:\n{told}{body}    return {words[-1]}\n")
        names.append(f"smallpack/m{number}.py")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))


# ---- the subjects


RUN, CACHE = f"{DISK}/run", f"{DISK}/cache"
"""Seen from the place, so that a copy of it goes on there."""
FOLDERS = (f"output_dir={RUN}", "if_exists=resume")


def _training(given: Given, stage: str, *arguments: str, miner: bool = False) -> Callable[[Path], Command]:
    common = (
        f"stage={stage}",
        "strategy.precision=32-true",
        "data=triples",
        f'data.files=["{given.rows}"]',
        "data.columns.reasoning=reasoning",
        "data.validation_share=0.2",
        f"model.path={given.model}",
        f"stage.trainer.max_steps={N_STEPS}",
        "stage.trainer.log_every_n_steps=1",
    )
    first = ("experiment=sft_hard_negatives",) if miner else ()
    return lambda place: Command("src.train", (*first, *common, *arguments, *FOLDERS), place)


def _validated(every: int, save_every: int, size: int) -> tuple[str, ...]:
    return (
        f"stage.trainer.val_check_interval={every}",
        f"stage.callbacks.checkpoint.save_every_n_steps={save_every}",
        f"stage.datamodule.batch_size={size}",
        "stage.datamodule.validation_queries=3",
        "stage.datamodule.validation_documents=8",
    )


SFT = ("stage.module.optimization.learning_rate=0.002",)
RL = (
    "stage.trainer.limit_val_batches=1",
    "stage.datamodule.encode_batch=6",
    "stage.module.rollouts.group_size=3",
    "stage.module.completions.every_n_steps=1",
    "stage.module.optimization.learning_rate=0.002",
    "refresh.budget=5",
    "refresh.background=0.1",
    "refresh.audit_every_n_steps=2",
)


def trainings(given: Given) -> list[Subject]:
    """Stages, with saves that fall on validations and saves that do not."""

    def rl(every: int, *more: str) -> Callable[[Path], Command]:
        command = _training(given, "rl", *_validated(every, 2, 3), *RL, *more)
        return lambda place: command(place).with_(f"stage.datamodule.cache_dir={CACHE}")

    def train(name: str, command: Callable[[Path], Command]) -> Subject:
        return Subject(name, command, results.of_training)

    lora = ("model=nano_lora", *_validated(3, 2, 6), *SFT)
    mined = (*_validated(2, 2, 6), *SFT, "stage.datamodule.hard_negatives=2")
    plain = ("stage.callbacks.checkpoint.save_every_n_steps=2", "stage.datamodule.batch_size=2")
    plain += ("stage.datamodule.sequence_length=32", "model=nano")
    return [
        train("sft", _training(given, "sft", *_validated(2, 2, 6), *SFT)),
        train("sft-lora", _training(given, "sft", *lora)),
        train("rl", rl(2)),
        train("rl-apart", rl(3)),
        train("pretrain", _training(given, "pretrain", *plain)),
        train("negatives", _training(given, "sft", *mined, miner=True)),
    ]


def two_ranks(given: Given) -> list[Subject]:
    """SFT and RL on two processes."""
    found = {subject.name: subject for subject in trainings(given)}
    return [Subject(f"{name}-2", _on_two(found[name].command), results.of_training) for name in ("sft", "rl")]


def _on_two(command: Callable[[Path], Command]) -> Callable[[Path], Command]:
    def on_two(place: Path) -> Command:
        given = command(place)
        arguments = [text for text in given.arguments if not text.startswith("strategy")]
        arguments = [text.replace("batch_size=3", "batch_size=4") for text in arguments]
        return Command(given.module, (*arguments, "strategy=ddp_cpu"), place)

    return on_two


def evaluation(given: Given, model: Path | None = None) -> Subject:
    """Three modes of a collection."""

    def command(place: Path) -> Command:
        arguments = (
            f"model.path={model or given.model}",
            "benchmarks=[tiny]",
            f"beir_dir={given.beir}",
            "modes=[bm25,direct,reasoning]",
            f"output_dir={RUN}",
            f"cache_dir={CACHE}",
        )
        return Command("src.evaluate", arguments, place)

    return Subject("evaluate", command, results.of_evaluation, goes_on=False)


def caching(given: Given) -> Subject:
    """The first step of RL over more documents, of which the cache is encoded two at a time."""
    base = next(subject for subject in trainings(given) if subject.name == "rl")

    def command(place: Path) -> Command:
        more = ("stage.datamodule.encode_batch=1", "stage.trainer.max_steps=1")
        return base.command(place).with_(*more)

    return Subject("cache", command, results.of_training_and_cache)


def mining(given: Given) -> Subject:
    """One step of pretraining on what is mined from an installed distribution."""

    def command(place: Path) -> Command:
        arguments = (
            "stage=pretrain",
            "strategy.precision=32-true",
            "model=nano",
            f"model.path={given.model}",
            "data=pydocs",
            'data.packages=["smallpack==1.2"]',
            f"data.cache_dir={DISK}/pydocs",
            "data.include_stdlib=false",
            "data.min_test=1",
            "data.test_share=0.3",
            "data.validation_share=0.2",
            "data.workers=1",
            "stage.trainer.max_steps=1",
            "stage.datamodule.batch_size=2",
            "stage.datamodule.sequence_length=32",
            *FOLDERS,
        )
        shutil.copytree(given.site, place, dirs_exist_ok=True)  # Python looks in the working folder
        return Command("src.train", arguments, place)

    return Subject("mining", command, results.of_training_and_mined)


def search(given: Given) -> Subject:
    """Three trials of SFT."""

    def command(place: Path) -> Command:
        space = place / "space.yaml"
        if not space.exists():
            space.write_text(
                "stage.module.optimization.learning_rate: {low: 1.0e-3, high: 1.0e-2, log: true}\n"
            )
        of_training = _training(given, "sft", *_validated(2, 2, 6))(place)
        own = [text for text in of_training.arguments if not text.startswith(("output_dir", "if_exists"))]
        more = ("space=space.yaml", f"study={RUN}/study.db", "n_trials=2")
        return Command("src.tune", (*own, *more, "stage.trainer.max_steps=2"), place)

    return Subject("tune", command, results.of_search, goes_on=False)


def report(place: Path) -> Command:
    """The table of an evaluation, with its rows and differences as a file."""
    return Command("src.report", (RUN, "--output", "report/metrics.json"), place)


def copied(source: Path, target: Path) -> Path:
    """A place as another one is, without what was printed in it."""
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns(".talk"), symlinks=True)
