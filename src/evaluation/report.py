"""Results as people read them: a table, and a chart with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = {
    "bm25": "#999999",
    "base-direct": "#CC79A7",
    "direct": "#0072B2",
    "reasoning": "#D55E00",
    "base-reasoning": "#E69F00",
    "shuffled-reasoning": "#56B4E9",
}


def print_table(rows: Sequence[Mapping]) -> None:
    """One line per benchmark and mode, with the interval and the price of a query."""
    table = Table(title="nDCG@10 with 95 % bootstrap interval over queries")
    for name, side in (("benchmark", "left"), ("mode", "left"), ("queries", "right"), ("documents", "right")):
        table.add_column(name, justify=side)
    for name in ("nDCG@10", "interval", "recall@100", "no token", "ms/query", "tokens"):
        table.add_column(name, justify="right")
    for row in rows:
        low, high = row["ci95"]["ndcg@10"]
        table.add_row(
            row["benchmark"],
            row["mode"],
            str(row["n_queries"]),
            str(row["n_docs"]),
            f"{row['metrics']['ndcg@10']:.3f}",
            f"{low:.3f}-{high:.3f}",
            f"{row['metrics']['recall@100']:.3f}",
            str(row["missing_embed_token"]),
            f"{1000 * row['seconds_per_query']:.2f}",
            f"{row['tokens_per_query']:.1f}",
        )
    Console(width=120).print(table)


def write_chart(rows: Sequence[Mapping], path: Path) -> Path:
    """A bar per benchmark and mode with its interval, as PNG.

    Returns:
        The file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    benchmarks = list(dict.fromkeys(row["benchmark"] for row in rows))
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    width = 0.8 / len(modes)
    figure, axes = plt.subplots(figsize=(2.2 + 1.8 * len(benchmarks), 3.6), layout="constrained")
    for place, mode in enumerate(modes):
        chosen = [row for row in rows if row["mode"] == mode]
        at = [benchmarks.index(row["benchmark"]) + (place - (len(modes) - 1) / 2) * width for row in chosen]
        values = [row["metrics"]["ndcg@10"] for row in chosen]
        bounds = [row["ci95"]["ndcg@10"] for row in chosen]
        errors = [
            [max(value - low, 0) for value, (low, _) in zip(values, bounds, strict=True)],
            [max(high - value, 0) for value, (_, high) in zip(values, bounds, strict=True)],
        ]
        bars = axes.bar(
            at, values, width * 0.92, yerr=errors, capsize=3, label=mode, color=_COLOURS.get(mode)
        )
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xticks(range(len(benchmarks)), benchmarks)
    axes.set_ylabel("nDCG@10")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
