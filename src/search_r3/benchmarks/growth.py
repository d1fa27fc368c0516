"""How does cost grow? `python -m src.benchmarks.growth --output <folder>`: parts of a step at growing sizes.

Documents (search, exact ranks, ledger, refresh, checkpoint), group size (sampling, exact ranks), batch (the
contrastive losses), length (embedding) and processes; and the backends of the index side by side. Each part
is timed alone, and an exponent is fitted to the seconds of the processor that it takes, so that what else
the machine does is not in it: 1 is linear. Of several processes the busiest counts. The folder gets
metrics.json, metrics.png and the printed tables as tables.md.
"""

import argparse
import dataclasses
import math
import multiprocessing
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from search_r3.benchmarks.timing import check_counts
from search_r3.cli.last_resort import Parser, run_command
from search_r3.cli.provenance import provenance
from search_r3.cli.run_log import log_written
from search_r3.errors import UsageError
from search_r3.evaluation.colours import COLOURS
from search_r3.files import write_json, write_text
from search_r3.folders import make_folder
from search_r3.markdown import table
from search_r3.models.checksums import DESCRIPTION_FILE
from search_r3.progress import Progress
from search_r3.shipped import ROOT

MODEL = ROOT / "experiments" / "nano_demo" / "model"
AXES = ("documents", "group", "batch", "length", "ranks")
SIZES: Mapping[str, Sequence[int]] = {
    "documents": (1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000),
    "group": (2, 4, 8, 16, 32),
    "batch": (32, 128, 512, 2048, 4096),
    "length": (32, 64, 128, 256, 512, 1024),
    "ranks": (1, 2),
}
MUST: Mapping[str, float] = {"contrastive losses": 2.0}
"""Exponents that a part cannot go below: every query is compared with every document of its batch. Attention
compares every token with those before it, but is the smaller part of a forward up to 1,024 tokens, so that 1
is what embedding is held to; so is everything else."""
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
"""Quantiles of Student's t for an interval of 95 %, by degrees of freedom."""
SHORTEST_S = 1e-4
"""Below it a call's overhead is timed and no part: such sizes are left out of a fit."""


def fitted(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, float | None]:
    """The exponent of a power law, by least squares on logarithms.

    Returns:
        `exponent`; `low` and `high` of its interval of 95 %, None for fewer than three sizes; and `last`, the
        exponent between the last two sizes, which is what it grows by where fixed costs no longer count.

    >>> fitted([1, 10, 100], [2.0, 20.0, 200.0])["exponent"]
    1.0
    """
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in seconds]
    n, (slope, at_0) = len(x), statistics.linear_regression(x, y)
    found: dict[str, float | None] = {"exponent": round(slope, 3), "low": None, "high": None}
    if n > 2:
        squares = sum((b - at_0 - slope * a) ** 2 for a, b in zip(x, y, strict=True))
        half = STUDENT.get(n - 2, 2.0) * math.sqrt(squares / (n - 2) / (n - 1) / statistics.variance(x))
        found |= {"low": round(slope - half, 3), "high": round(slope + half, 3)}
    return found | {"last": round((y[-1] - y[-2]) / (x[-1] - x[-2]), 3)}


def fits(rows: Sequence[Mapping]) -> list[dict]:
    """The exponent of every part that was measured at two sizes or more, and whether it grows too fast.

    It does where it is steeper than it must be, by more than a tenth, both over all sizes, its interval
    included, and between the last two; two sizes alone decide nothing.
    """
    found = []
    for axis, part in dict.fromkeys((row["axis"], row["part"]) for row in rows):
        own = [row for row in rows if (row["axis"], row["part"]) == (axis, part)]
        own = [row for row in own if row["cpu_s"] >= SHORTEST_S]
        if len(own) < 2:
            continue
        fit = fitted([row["size"] for row in own], [row["cpu_s"] for row in own])
        must = -1.0 if axis == "ranks" else MUST.get(part, 1.0)
        too_fast = fit["low"] is not None and fit["low"] > must + 0.1 and fit["last"] > must + 0.1
        found.append({"axis": axis, "part": part, "must": must, **fit, "too_fast": too_fast})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and writes metrics.json, metrics.png and tables.md to the folder."""
    parser = Parser(prog="python -m src.benchmarks.growth", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of metrics.json and the picture")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="which sizes grow")
    for flag in ("--documents", "--group", "--batch", "--length", "--ranks"):
        sizes = list(SIZES[flag.removeprefix("--")])
        parser.add_argument(flag, type=int, nargs="+", default=sizes, help="sizes, growing")
    parser.add_argument("--backends", type=int, default=30_000, help="documents of the table; 0 for no table")
    parser.add_argument(
        "--rounds", type=int, default=3, help="timings of each part, of which the median counts"
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="trained folder, for rollouts and lengths")
    arguments = parser.parse_args(argv)
    check_counts(arguments, "rounds")
    _check(arguments)
    make_folder(arguments.output, "--output")
    _measure(arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    least = {"documents": 100, "group": 1, "batch": 2, "length": 2, "ranks": 1}
    for axis in AXES:
        sizes = getattr(arguments, axis)
        if sizes != sorted(set(sizes)) or sizes[0] < least[axis]:
            raise UsageError(f"--{axis} must be growing sizes from {least[axis]} on, got {sizes}")
    if arguments.backends and arguments.backends < 10_000:
        raise UsageError(f"--backends must be 0 or at least 10000 documents, got {arguments.backends}")
    needs_model = {"group", "length"} & set(arguments.axes)
    if needs_model and not (arguments.model / DESCRIPTION_FILE).is_file():
        raise UsageError(f"--model={arguments.model}: no trained model folder (it has no {DESCRIPTION_FILE})")


def _measure(arguments: argparse.Namespace) -> None:
    import torch

    from search_r3.benchmarks.peers import machine

    about = machine.described() | {"load_before": machine.load(), "threads": torch.get_num_threads()}
    rows, backends = [], []
    with Progress(len(arguments.axes) + bool(arguments.backends), "growth", "axes") as bar:
        for axis in arguments.axes:
            for measured in _axis(axis, arguments):
                rows.append(dataclasses.asdict(measured))
                seconds = f"{measured.cpu_s:10.4f} s of {measured.seconds:.4f}"
                print(f"{axis:10}{measured.size:>9,} {measured.part:24}{seconds}", flush=True)
            bar.update(1)
        if arguments.backends:
            backends = _backends(arguments.backends)
            bar.update(1)
    found = fits(rows)
    content = provenance() | {"machine": about, "rows": rows, "fits": found, "backends": backends}
    write_json(arguments.output / "metrics.json", content)
    tables = written(found, rows, backends)
    write_text(arguments.output / "tables.md", tables)
    print(tables)
    log_written(arguments.output / "metrics.json")
    if rows:
        log_written(write_picture(rows, found, arguments.output / "metrics.png", about))


def _axis(axis: str, arguments: argparse.Namespace) -> Iterator:
    from search_r3.benchmarks import growth_parts as parts

    sizes, rounds = getattr(arguments, axis), arguments.rounds
    if axis == "documents":
        return parts.documents(sizes, rounds)
    if axis == "batch":
        return parts.batches(sizes, rounds)
    if axis == "ranks":
        return parts.ranks(sizes, min(arguments.documents[-1], 100_000), rounds)
    from transformers.utils import logging as transformers_logging

    from search_r3.models.folder.loading import load_embedder

    transformers_logging.disable_progress_bar()
    embedder = load_embedder(arguments.model)
    return (parts.groups if axis == "group" else parts.lengths)(sizes, rounds, embedder)


def _backends(n_documents: int) -> list[dict]:
    """The table of backends, each in a process of its own, so that memory is its own too."""
    from search_r3.benchmarks import growth_parts as parts

    found = []
    for name in parts.BACKENDS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found.append(pool.submit(parts.backend, name, n_documents).result())
        print(
            {key: round(value, 4) if isinstance(value, float) else value for key, value in found[-1].items()}
        )
    return found


def written(found: Sequence[Mapping], rows: Sequence[Mapping], backends: Sequence[Mapping]) -> str:
    """The tables, in Markdown."""
    heads = ("axis", "part", ">exponent", ">interval", ">last two", ">must", ">at the largest", ">MiB")
    cells = []
    for fit in found:
        last = [row for row in rows if (row["axis"], row["part"]) == (fit["axis"], fit["part"])][-1]
        interval = "" if fit["low"] is None else f"{fit['low']:.2f} to {fit['high']:.2f}"
        mark = ", too fast" if fit["too_fast"] else ""
        largest = f"{last['cpu_s']:.3g} s at {last['size']:,}"
        exponents = (f"{fit['exponent']:.2f}{mark}", interval, f"{fit['last']:.2f}", f"{fit['must']:g}")
        cells.append((fit["axis"], fit["part"], *exponents, largest, f"{last['memory_kib'] / 1024:,.0f}"))
    lines = [table(heads, cells)]
    if backends:
        heads = (
            "backend",
            ">recall@10",
            ">bytes a row",
            ">building, s",
            ">changing 1 %, s",
            ">128 queries, s",
        )
        names = ("build_s", "update_1_percent_s", "search_128_s")
        cells = [
            (
                row["backend"],
                f"{row['recall@10']:.3f}",
                f"{row['bytes_per_row']:,.0f}",
                *(f"{row[name]:.3g}" for name in names),
            )
            for row in backends
        ]
        lines += ["", table(heads, cells)]
    return "\n".join(lines) + "\n"


def write_picture(
    rows: Sequence[Mapping], found: Sequence[Mapping], path: Path, about: Mapping[str, object]
) -> Path:
    """Seconds against size, on logarithmic axes, one panel per axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    width = 3.4 * len(axes)
    figure, panels = plt.subplots(1, len(axes), figsize=(width, 3.6), layout="constrained", squeeze=False)
    exponents = {(fit["axis"], fit["part"]): fit["exponent"] for fit in found}
    for panel, axis in zip(panels[0], axes, strict=True):
        names = dict.fromkeys(row["part"] for row in rows if row["axis"] == axis)
        for part, colour in zip(names, COLOURS.values(), strict=False):
            own = [row for row in rows if (row["axis"], row["part"]) == (axis, part)]
            exponent = exponents.get((axis, part))
            label = part if exponent is None else f"{part}: {exponent:.2f}"
            values = [[row[name] for row in own] for name in ("size", "cpu_s")]
            panel.plot(*values, marker="o", markersize=3, color=colour, label=label)
        panel.set(xscale="log", yscale="log", xlabel=axis)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=7)
    panels[0][0].set_ylabel("seconds of the processor")
    figure.suptitle(f"{about['cpu']}, {about['threads']} of {about['cores']} threads", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


if __name__ == "__main__":
    run_command(main)
