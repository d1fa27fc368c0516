"""What does a shared prompt save? `python -m src.benchmarks.prefix`: encoding and SFT, shared against whole.

Texts of a dozen tokens are encoded, and run forward and backward as a step of SFT does, in alternation with
the prompt run once and with every text whole. A round's ratio is of two timings side by side, so that other
work on the machine slows both. Beside it stands the share of what this machine reached in the same round in a
product of matrices of the model's own sizes.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import hydra
import torch
from omegaconf import OmegaConf

from search_r3.benchmarks.timing import check_counts, device_seconds, seconds_of, spread, write_rows
from search_r3.cli.last_resort import Parser, run_command
from search_r3.errors import UsageError
from search_r3.models.embedder import SAVED_FROM, SHARED_FROM, ReasoningEmbedder
from search_r3.models.prompts import Prompts
from search_r3.progress import Progress
from search_r3.shipped import CONF, ROOT
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.sft.forward import TokenCounts
from search_r3.stages.sft.module import SFTModule
from search_r3.stages.sft.rows import Chunk, TokenRow
from search_r3.stages.sft.settings import SelfWritten, SFTLosses

NANO = ROOT / "experiments" / "nano_base" / "model"
SMOLLM2 = ROOT / "outputs" / "bases" / "smollm2_135m"
WORDS = "Represent the lines below so that a search for what they do will find them."
OWN_TOKENS = (6, 19)
"""Fewest and one more than most tokens of a text; the facts of EntailmentBank have a dozen."""

_FORWARD, _BACKWARD = 2, 4
"""Floating-point operations per weight and token."""


def embedders(base: Path | None) -> Iterator[tuple[str, ReasoningEmbedder]]:
    """The shipped base with its own short prompts and with long ones, and `base` where it is a folder."""
    from search_r3.models.folder.loading import load_embedder

    nano = load_embedder(NANO)
    yield "nano_base", nano
    prompts = Prompts(WORDS, WORDS, WORDS, lead_in="", closing="")
    yield (
        "nano_base, long prompts",
        ReasoningEmbedder(nano.model, nano.tokenizer, prompts, nano.encoder.lengths, 2048),
    )
    if base is not None and base.is_dir():
        yield base.name, plain_base(base)


def plain_base(folder: Path) -> ReasoningEmbedder:
    """A plain folder with the prompts of `model=smollm2_135m`."""
    choice = OmegaConf.load(CONF / "model" / "smollm2_135m.yaml")
    choice.name = str(folder)
    return hydra.utils.instantiate(choice, texts=())


def chunk_of(embedder: ReasoningEmbedder, n_texts: int) -> Chunk:
    """As many documents as direct queries, of random tokens."""
    generator = torch.Generator().manual_seed(0)
    encoder = embedder.encoder

    def texts() -> Iterator[list[int]]:
        for n in torch.randint(*OWN_TOKENS, (n_texts,), generator=generator).tolist():
            yield torch.randint(10, 1000, (n,), generator=generator).tolist()

    documents = [encoder.document.wrap(ids) for ids in texts()]
    queries = [encoder.direct.wrap(ids) for ids in texts()]
    return Chunk(
        tuple(TokenRow.ending(ids, len(ids)) for ids in documents),
        tuple(TokenRow.ending(ids, len(ids) - 1) for ids in queries),
    )


class Work:
    """What is timed: encoding, and forward and backward of SFT, of one model.

    Args:
        embedder: is timed, not changed.
        chunk: its documents, and its queries beside them.
        precision: "fp32" or "bf16", which is autocast.
    """

    def __init__(self, embedder: ReasoningEmbedder, chunk: Chunk, precision: str) -> None:
        self.embedder, self.chunk, self.precision = embedder, chunk, precision
        weights = {"sft": 1.0, "kl": 0.0, "info_nce": 1.0, "triplet": 0.0, "reasoned": 1.0}
        losses = SFTLosses(**weights, temperature=0.05, margin=0.1, false_negative_margin=0.1)
        self.module = SFTModule(
            embedder, OptimizationSettings(1e-3), losses, SelfWritten(0, 0.0, 1.0), None, seed=0
        )
        self.counts = TokenCounts.of(self.chunk.supervised, embedder.device)
        self.documents = [row.ids for row in self.chunk.documents]
        self.n_weights = sum(p.numel() for p in embedder.decoder.parameters() if p.ndim == 2)
        self.n_weights -= embedder.causal_lm.get_input_embeddings().weight.numel()

    def encode(self, is_shared: bool) -> None:
        """Vectors of all documents."""
        self._share(is_shared)
        with self._autocast():
            self.embedder.embed_ids(self.documents)

    def train(self, is_shared: bool = False) -> None:
        """Forward and backward of all documents and queries."""
        self._share(is_shared)
        with self._autocast():
            output = self.module.forward_chunk(self.chunk, self.counts)
        (output.extra_loss + output.embeddings[:, 0].sum()).backward()
        self.module.zero_grad()

    def product(self) -> float:
        """Floating-point operations per second of a product as large as those of a forward."""
        config = self.embedder.causal_lm.config.get_text_config()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        device = self.embedder.device
        left = torch.randn(self.embedder.token_budget, config.hidden_size, dtype=dtype, device=device)
        right = torch.randn(config.hidden_size, config.intermediate_size, dtype=dtype, device=device)
        seconds = device_seconds(device, lambda: left @ right, n_times=5) / 5
        return 2 * left.numel() * right.shape[1] / seconds

    def _share(self, is_shared: bool) -> None:
        self.embedder.shared_from = SHARED_FROM if is_shared else 10**9
        self.embedder.saved_from = SAVED_FROM
        self.module.shares_prompts = is_shared

    def _autocast(self) -> contextlib.AbstractContextManager:
        kind = self.embedder.device.type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def tokens_run(work: Work, run: Callable[[], None]) -> int:
    """Tokens that the decoder runs, padding included; runs it once, which allocates as well."""
    seen: list[int] = []
    hook = work.embedder.decoder.register_forward_pre_hook(
        lambda decoder, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    run()
    hook.remove()
    return sum(seen)


def compare(name: str, work: Work, rounds: int, bar: Progress) -> list[dict]:
    """A row for encoding and one for SFT: texts per second, their ratio by round, share of the limit."""
    rows = []
    for kind, run, n_texts, operations in (
        ("encoding", work.encode, len(work.documents), _FORWARD),
        ("sft", work.train, len(work.chunk.embedded), _FORWARD + _BACKWARD),
    ):
        n_run = {is_shared: tokens_run(work, partial(run, is_shared)) for is_shared in (False, True)}
        speeds: dict[bool, list[float]] = {False: [], True: []}
        shares: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):
            limit = work.product()
            for is_shared in (False, True):
                seconds = seconds_of(partial(run, is_shared))
                speeds[is_shared].append(n_texts / seconds)
                shares[is_shared].append(operations * work.n_weights * n_run[is_shared] / seconds / limit)
                bar.update(1)
        ratios = [shared / whole for whole, shared in zip(*speeds.values(), strict=True)]
        rows.append(
            {
                "model": name,
                "what": kind,
                "precision": work.precision,
                "prompt_tokens": len(work.embedder.encoder.document.prefix),
                "texts": n_texts,
                "tokens_run": {"whole": n_run[False], "shared": n_run[True]},
                "whole_texts_per_s": spread(speeds[False]),
                "shared_texts_per_s": spread(speeds[True]),
                "shared_over_whole": spread(ratios),
                "whole_share_of_limit": spread(shares[False]),
                "shared_share_of_limit": spread(shares[True]),
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Times both ways, prints a line per row and writes the rows where that is asked for."""
    parser = Parser(prog="python -m src.benchmarks.prefix", description=__doc__)
    parser.add_argument("--texts", type=int, default=128, help="documents, and as many queries")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each way")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast")
    parser.add_argument("--base", type=Path, default=SMOLLM2, help="SmolLM2's folder; left out if not there")
    parser.add_argument("--output", type=Path, help="a JSON file of the rows")
    arguments = parser.parse_args(argv)
    check_counts(arguments, "texts", "rounds")
    if arguments.base != SMOLLM2 and not arguments.base.is_dir():
        raise UsageError(f"--base={arguments.base}: no such folder; `make base` writes one")
    write_rows(arguments.output, lambda: _rows(arguments))
    return 0


def _rows(arguments: argparse.Namespace) -> list[dict]:
    found = []
    with Progress(3 * 4 * arguments.rounds, "prefix", "timings") as bar:
        for name, embedder in embedders(arguments.base):
            work = Work(embedder, chunk_of(embedder, arguments.texts), arguments.precision)
            for row in compare(name, work, arguments.rounds, bar):
                found.append(row)
                print(_line(row))
    return found


def _line(row: dict) -> str:
    names = ("shared_over_whole", "whole_share_of_limit", "shared_share_of_limit")
    ratio, whole, shared = (row[name] for name in names)
    return (
        f"{row['model']}, {row['what']}, {row['precision']}, prompts of {row['prompt_tokens']} tokens: "
        f"{row['whole_texts_per_s']['median']:,.0f} texts per second whole, "
        f"{row['shared_texts_per_s']['median']:,.0f} shared; ratio {ratio['median']:.2f} "
        f"({ratio['lowest']:.2f} to {ratio['highest']:.2f}); "
        f"{whole['median']:.0%} and {shared['median']:.0%} of the limit"
    )


if __name__ == "__main__":
    run_command(main)
