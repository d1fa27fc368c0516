"""What the cases of a benchmark say: rows of metrics.json, a Markdown table and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from search_r3.benchmarks.peers.alone import START_AIM_S, memory_row
from search_r3.benchmarks.peers.cases import SIDES, STEPS, Case, aim_of
from search_r3.benchmarks.peers.names import ROWS
from search_r3.evaluation.colours import COLOURS

HEADER = ("what", "model", "threads", "busy", "ours", "peer", "against", "ratio", "aim", "limit", "equal")
_PEERS = {"sft": "sentence-transformers", "grpo": "trl"}


def rows_of(found: Mapping[Case, Mapping]) -> list[dict]:
    """A row per comparison, in the order of the cases.

    Args:
        found: what each case gave.
    """
    rows: list[dict] = []
    for case, result in found.items():
        facts = {"model": case.model, "threads": case.threads, "busy": case.busy, "aim": aim_of(case)}
        if case.row == "startup":
            rows += [
                {"name": f"startup {each['what']}", **facts, "aim": START_AIM_S, **each}
                for each in result["rows"]
            ]
        elif case.row == "memory":
            rows += _memory(case, found, facts)
        else:
            rows.append({"name": case.row, **facts, **result})
    return rows


def _memory(case: Case, found: Mapping[Case, Mapping], facts: Mapping) -> list[dict]:
    """The row of a step where this case is its second side and both were measured."""
    step, side = case.part.split()
    ours, theirs = (Case(case.row, case.model, case.threads, case.busy, f"{step} {each}") for each in SIDES)
    if side != SIDES[1] or ours not in found or step not in STEPS:
        return []
    return [{"name": f"memory {step}", **facts, **memory_row(found[ours], found[theirs], _PEERS[step])}]


def markdown(rows: Sequence[Mapping]) -> str:
    """The rows as a table; a ratio above 1 says that ours takes less."""
    lines = [f"| {' | '.join(HEADER)} |", f"|{' --- |' * len(HEADER)}"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def cells(row: Mapping) -> list[str]:
    """A row's cells under `HEADER`."""
    name, _, rest = row["name"].partition(" ")
    what = f"{ROWS[name]}{f': {rest}' if rest else ''} ({row['unit']})"
    low_high = row.get("spread")
    ratio = f"{row['ratio']:.2f} ({low_high[0]:.2f}-{low_high[1]:.2f})" if low_high else ""
    shares = row.get("share_of_limit")
    limit = f"{shares['ours']['median']:.0%}, {shares['peer']['median']:.0%}" if shares else ""
    aim = "" if row["aim"] is None else f"{row['aim']:g}{'' if low_high else ' s'}"
    peer = figure(row["peer"]["median"]) if "peer" in row else ""
    against = row.get("peer_name", "")
    setting = row.get("peer_setting")
    return [
        what, row["model"], str(row["threads"]), str(row["busy"]), figure(row["ours"]["median"]), peer,
        f"{against} ({setting})" if setting else against, ratio, aim, limit, equal(row),
    ]  # fmt: skip


def figure(value: float) -> str:
    """With three digits or more, as 0.31, 12.3 and 1,234."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def equal(row: Mapping) -> str:
    """What was held equal, and how far apart it was."""
    return "; ".join(f"{each['what']} {each['difference']:.1g}" for each in row["equal"])


def label(row: Mapping) -> str:
    """Of a row in the picture."""
    words = [
        row["name"],
        row["model"],
        f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}",
        f"beside {row['busy']}" if row["busy"] else "",
    ]
    return ", ".join(filter(None, words))


def picture(rows: Sequence[Mapping], path: Path) -> Path:
    """Ratios with their spread as points, and their aims as strokes; left of 1 the peer is ahead."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    compared = [row for row in rows if "spread" in row][::-1]
    figure_, axes = plt.subplots(figsize=(8, 1 + 0.28 * max(len(compared), 1)))
    for place, row in enumerate(compared):
        low, high = row["spread"]
        colour = COLOURS["blue" if row["ratio"] >= 1 else "orange"]
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(row["ratio"], place, "o", color=colour)
        if row["aim"] is not None:
            axes.plot(row["aim"], place, "|", color="black", markersize=10)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    for axis_format in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_format("{x:g}")
    axes.set_yticks(range(len(compared)), [label(row) for row in compared], fontsize=7)
    axes.set_xlabel("times what ours takes, the peer takes (a stroke is the aim)")
    figure_.tight_layout()
    figure_.savefig(path, dpi=120)
    plt.close(figure_)
    return path
