"""What does padding cost? `python -m src.benchmarks.padding <BEIR folder>`: rows of SFT dealt in two ways.

The first queries and documents of a collection are run forward and backward as a step of SFT does, in
alternation in as few forwards as the token budget allows, and in as many as save more padding than they cost
(`search_r3.models.batching`). Embeddings and gradients of both are compared first.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from search_r3.benchmarks.prefix import NANO, SMOLLM2, Work, plain_base, tokens_run
from search_r3.benchmarks.timing import check_counts, seconds_of, spread, write_rows
from search_r3.cli.last_resort import Parser, run_command
from search_r3.data.beir.documents import load_corpus, load_queries
from search_r3.data.beir.layout import file_in
from search_r3.errors import UsageError
from search_r3.models.checksums import DESCRIPTION_FILE
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder.loading import load_embedder
from search_r3.progress import Progress
from search_r3.stages.sft.rows import Chunk, TokenRow

WAYS = ("budget", "padding")
"""How rows are dealt: by the token budget alone, or by what their padding costs as well."""


def chunk_of(embedder: ReasoningEmbedder, folder: Path, n_queries: int) -> Chunk:
    """The first queries of a collection and five times as many of its documents, embedded directly."""
    queries = list(load_queries(file_in(folder, "queries.jsonl")).values())[:n_queries]
    corpus = load_corpus(file_in(folder, "corpus.jsonl")).texts
    documents = [corpus[row] for row in range(min(5 * n_queries, len(corpus)))]
    encoder = embedder.encoder
    return Chunk(
        tuple(TokenRow.ending(ids, len(ids)) for ids in encoder.documents(documents)),
        tuple(TokenRow.ending(ids, len(ids) - 1) for ids in encoder.queries(queries)),
    )


def opened(folder: Path) -> ReasoningEmbedder:
    """A trained folder, or a plain one with the prompts of `model=smollm2_135m`."""
    return load_embedder(folder) if (folder / DESCRIPTION_FILE).is_file() else plain_base(folder)


def largest_difference(work: Work) -> float:
    """Between both ways, of any coordinate of any embedding; in fp32."""
    found = []
    for way in WAYS:
        work.embedder.splits_batches = way == "padding"
        with torch.no_grad():
            found.append(work.module.forward_chunk(work.chunk, work.counts).embeddings)
    return float((found[0] - found[1]).abs().max())


def compare(name: str, work: Work, rounds: int, bar: Progress) -> dict:
    """Tokens per second that are no padding, their ratio by round, and the share of the machine's limit."""
    n_tokens = sum(len(row.ids) for row in work.chunk.embedded)
    difference = largest_difference(work)
    n_run = {}
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    shares: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS:
        work.embedder.splits_batches = way == "padding"
        n_run[way] = tokens_run(work, work.train)
    for _ in range(rounds):
        limit = work.product()
        for way in WAYS:
            work.embedder.splits_batches = way == "padding"
            speeds[way].append(n_tokens / seconds_of(work.train))
            shares[way].append(6 * work.n_weights * speeds[way][-1] / limit)
            bar.update(1)
    ratios = [padding / budget for budget, padding in zip(*speeds.values(), strict=True)]
    return {
        "model": name,
        "precision": work.precision,
        "rows": len(work.chunk.embedded),
        "tokens": n_tokens,
        "tokens_run": n_run,
        "largest_difference": difference,
        **{f"{way}_tokens_per_s": spread(speeds[way]) for way in WAYS},
        **{f"{way}_share_of_limit": spread(shares[way]) for way in WAYS},
        "padding_over_budget": spread(ratios),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Times both ways, prints a line per model and writes the rows where that is asked for."""
    parser = Parser(prog="python -m src.benchmarks.padding", description=__doc__)
    parser.add_argument("folder", type=Path, help="a collection in BEIR layout")
    parser.add_argument("--model", type=Path, nargs="+", default=[NANO, SMOLLM2], help="model folders")
    parser.add_argument("--queries", type=int, default=16, help="and five times as many documents")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each way")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast")
    parser.add_argument("--output", type=Path, help="a JSON file of the rows")
    arguments = parser.parse_args(argv)
    check_counts(arguments, "queries", "rounds")
    for folder in arguments.model:
        if not folder.is_dir():
            raise UsageError(f"--model={folder}: no such folder; `make base` writes {SMOLLM2.name}")
    write_rows(arguments.output, lambda: _rows(arguments))
    return 0


def _rows(arguments: argparse.Namespace) -> list[dict]:
    found = []
    with Progress(2 * len(arguments.model) * arguments.rounds, "padding", "timings") as bar:
        for folder in arguments.model:
            embedder = opened(folder)
            chunk = chunk_of(embedder, arguments.folder, arguments.queries)
            row = compare(str(folder), Work(embedder, chunk, arguments.precision), arguments.rounds, bar)
            found.append(row)
            print(_line(row))
    return found


def _line(row: dict) -> str:
    ratio = row["padding_over_budget"]
    budget, padding = (
        [row[f"{way}_{what}"]["median"] for what in ("tokens_per_s", "share_of_limit")] for way in WAYS
    )
    return (
        f"{row['model']}, {row['precision']}, by budget and by padding: {row['tokens']:,} tokens are "
        f"{row['tokens_run']['budget']:,} and {row['tokens_run']['padding']:,} with padding; "
        f"{budget[0]:,.0f} and {padding[0]:,.0f} tokens per second; "
        f"ratio {ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f}); "
        f"{budget[1]:.0%} and {padding[1]:.0%} of the limit"
    )


if __name__ == "__main__":
    run_command(main)
