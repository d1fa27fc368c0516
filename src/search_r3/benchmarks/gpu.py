"""How fast is a GPU at this? `python -m src.benchmarks.gpu`: a stage's parts on random weights.

A model of Qwen2.5-1.5B's sizes is made on the device, so nothing is downloaded, and run on made-up texts.
Each part stands beside a limit that the same device reached: operations per second in a large bf16 product,
or bytes per second of a large copy. A part that fails, for want of memory say, leaves its error in its row
and the next one runs; the exit code is then 1. The file is written behind every row.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from search_r3.benchmarks import gpu_parts as parts
from search_r3.benchmarks.timing import check_counts
from search_r3.cli.last_resort import EXIT_FAILED, Parser, described, run_command
from search_r3.cli.provenance import provenance
from search_r3.errors import UsageError
from search_r3.files import write_json
from search_r3.folders import make_folder
from search_r3.shipped import ROOT

ROWS = ("encode", "sft", "decode", "grpo")
COUNTS = ("documents", "chunk", "queries", "few_queries", "group", "tokens", "grpo_queries", "token_budget")

Try = tuple[str, str, Callable[[parts.Limits | None], dict]]
"""A row's kind, what is particular to it, and what measures it, given the limits."""


class Table:
    """The rows so far, printed and written as they come.

    Args:
        facts: of the whole table.
        output: a JSON file, or None.
    """

    def __init__(self, facts: dict, output: Path | None) -> None:
        self.facts, self.output, self.rows = facts, output, []

    def add(self, name: str, what: str, measure: Callable[[], dict]) -> dict | None:
        """Measures a row and keeps what it gave, or its error; None where it failed."""
        started = time.perf_counter()
        try:
            found = _rounded(measure())
        except Exception as error:  # what is left of the table is worth more than one row
            found = {"error": described(error).replace(str(ROOT), ".")}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        took = {"with_warm_up_s": round(time.perf_counter() - started, 3)}
        self.rows.append({"row": name, "what": what, **found, **took})
        print(_line(self.rows[-1]), flush=True)
        if self.output:
            write_json(self.output, {**self.facts, "rows": self.rows})
        return None if "error" in found else found


def _rounded(values: dict) -> dict:
    """Four significant digits are more than a timing has."""
    return {
        name: _rounded(value)
        if isinstance(value, dict)
        else float(f"{value:.4g}")
        if isinstance(value, float)
        else value
        for name, value in values.items()
    }


def tries(arguments: argparse.Namespace, bench: parts.Bench) -> Iterator[Try]:
    """What is measured, the shortest first."""
    if "encode" in arguments.rows:
        for budget in arguments.encode_budgets:
            encode = partial(parts.encode, bench, token_budget=budget, n_documents=arguments.documents)
            yield "encode", f"forwards of {budget:,} tokens", lambda limits, run=encode: run(limits=limits)
    if "sft" in arguments.rows:
        for what, keys in (
            ("LoRA", {}),
            ("LoRA, activations recomputed", {"is_checkpointed": True}),
            ("full tuning, fp32 weights", {"is_full": True}),
        ):
            yield "sft", what, partial(parts.sft, bench, n_rows=arguments.chunk, **keys)
    if "decode" in arguments.rows:
        for n_queries in dict.fromkeys((arguments.few_queries, arguments.queries)):
            what = f"{n_queries} queries x {bench.group_size} x {bench.n_tokens} tokens"
            for how, graphs in (("launched step by step", False), ("CUDA graphs", True)):
                decode = partial(parts.decode, bench, n_queries=n_queries, graphs=graphs)
                yield "decode", f"{what}, {how}", decode
    if "grpo" in arguments.rows:
        grpo, budget = parts.Grpo(bench, arguments.grpo_queries), arguments.token_budget
        for what, is_checkpointed, its in (
            (f"activations recomputed, forwards of {budget:,} tokens", True, budget),
            ("activations kept, a group per forward", False, 1),
            (f"activations kept, forwards of {budget:,} tokens", False, budget),
        ):
            yield "grpo", what, lambda _, c=is_checkpointed, b=its: grpo.step(c, b)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a line per row, and writes them where that is asked for; 1 where a row failed."""
    arguments = _parsed(argv)
    device = torch.device(arguments.device)
    if arguments.output:
        make_folder(arguments.output.parent, "--output")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device=cuda: torch finds no CUDA device here; --device=cpu runs without one")
    shape = parts.SHAPES[arguments.shape]
    bench = parts.Bench(shape, device, arguments.token_budget, arguments.tokens, arguments.group)
    table = Table(_facts(arguments, device), arguments.output)
    found = table.add("limits", "bf16 product, copy", lambda: vars(parts.measured_limits(device)))
    limits = parts.Limits(**found) if found else None
    for name, what, measure in tries(arguments, bench):
        table.add(name, what, partial(measure, limits))
    if arguments.output:
        print(json.dumps({"wrote": str(arguments.output)}))
    failed = [f"{row['row']} ({row['what']})" for row in table.rows if "error" in row]
    if failed:
        print(f"error: {len(failed)} of {len(table.rows)} rows failed: {'; '.join(failed)}", file=sys.stderr)
    return EXIT_FAILED if failed else 0


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m src.benchmarks.gpu", description=__doc__)
    parser.add_argument("--shape", choices=list(parts.SHAPES), default="qwen2_5_1_5b", help="of the model")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="what is measured")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--documents", type=int, default=2048, help="that are encoded")
    parser.add_argument(
        "--encode-budgets", type=int, nargs="+", default=[16_384, 65_536], help="tokens of a forward"
    )
    parser.add_argument("--chunk", type=int, default=32, help="documents of a chunk of SFT, and queries")
    parser.add_argument("--queries", type=int, default=64, help="of the larger batch of decoding")
    parser.add_argument("--few-queries", type=int, default=8, help="of the smaller one")
    parser.add_argument("--group", type=int, default=8, help="rollouts of a query")
    parser.add_argument("--tokens", type=int, default=512, help="of a rollout")
    parser.add_argument("--grpo-queries", type=int, default=8, help="of a step of GRPO")
    parser.add_argument("--token-budget", type=int, default=16_384, help="tokens of a forward of training")
    parser.add_argument("--output", type=Path, help="a JSON file of the rows")
    arguments = parser.parse_args(argv)
    check_counts(arguments, *COUNTS)
    if min(arguments.encode_budgets) < 1:
        raise UsageError(f"--encode-budgets must be at least 1, got {min(arguments.encode_budgets)}")
    if arguments.group < 2 and "grpo" in arguments.rows:
        raise UsageError(f"--group must be at least 2 for the row grpo, got {arguments.group}")
    return arguments


def _facts(arguments: argparse.Namespace, device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    facts = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}
    facts |= {"threads": torch.get_num_threads(), "shape": arguments.shape}
    return {**provenance(), **facts, "sizes": vars(parts.SHAPES[arguments.shape])}


def _line(row: dict) -> str:
    begin = f"{row['row']}, {row['what']}: "
    if "error" in row:
        return f"{begin}failed: {row['error']}"
    if row["row"] == "limits":
        return f"{begin}{row['flops'] / 1e12:,.3g} T operations and {row['bytes'] / 1e9:,.3g} GB per second"
    if row["row"] == "grpo":
        its = row["arithmetic"]
        said = f"sampling {row['sampling_s']:.2f} s, {row['sampling_tokens_per_s']:,.0f} tokens per second"
        said += f"{_gb(row['sampling_peak_gb'], its['sampling'])}; learning {row['learning_s']:.2f} s"
        return begin + said + _gb(row["peak_gb"], its["learning"])
    said = f"{row['tokens_per_s']:,.0f} tokens per second"
    if row["row"] == "encode":
        said = f"{row['documents_per_s']:,.0f} documents and " + said
    share = row["share_of_limit"]
    return begin + said + ("" if share is None else f", {share:.1%} of the limit") + _gb(row["peak_gb"])


def _gb(peak: float | None, by_arithmetic: float | None = None) -> str:
    if peak is None:
        return ""
    return f", {peak:.1f} GB" + ("" if by_arithmetic is None else f" ({by_arithmetic:.1f} by arithmetic)")


if __name__ == "__main__":
    run_command(main)
