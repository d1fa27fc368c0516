"""Cells and rows of the documents' tables out of the metrics.json files beside them.

A file is named by its path within `experiments/`. Nothing here knows which table stands where; that is
`experiments/tables.py`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from search_r3.markdown import table

EXPERIMENTS = Path(__file__).resolve().parent
METRIC = "ndcg@10"
Row = Mapping[str, object]

LABELS = {
    "bm25": "BM25",
    "experiments/nano_base base-direct": "untrained base, direct",
    "sft direct": "SFT direct",
    "sft reasoning": "SFT reasoning",
    "sft base-reasoning": "the base writes, SFT embeds",
    "sft shuffled-reasoning": "SFT, another query's reasoning",
    "rl direct": "RL direct",
    "rl reasoning": "RL reasoning",
    "rl base-reasoning": "SFT writes, RL embeds",
    "rl shuffled-reasoning": "RL, another query's reasoning",
}
"""What `python -m src.report --runs` calls a row, and what a reader does."""


@cache
def content(file: str) -> dict:
    """What a JSON file within `experiments/` holds."""
    return json.loads((EXPERIMENTS / file).read_text(encoding="utf-8"))


def commit(file: str) -> str:
    """The commit that a metrics.json was made at, as a document shows it."""
    return f"`{content(file)['commit'][:7]}`"


def rows(file: str, **wanted: object) -> list[dict]:
    """The rows of a metrics.json that have these values; a row's `model` has to end with the one wanted."""

    def fits(row: Row) -> bool:
        return all(
            str(row[key]).endswith(str(value)) if key == "model" else row[key] == value
            for key, value in wanted.items()
        )

    return [row for row in content(file)["rows"] if fits(row)]


def row(file: str, **wanted: object) -> dict:
    """The one row of a metrics.json that has these values.

    Raises:
        ValueError: If no row has them, or several do.
    """
    found = rows(file, **wanted)
    if len(found) != 1:
        raise ValueError(f"experiments/{file}: {len(found)} rows have {wanted}; name one row")
    return found[0]


# ---- cells


def number(value: float) -> str:
    """As 0.604."""
    return f"{value:.3f}"


def span(bounds: Sequence[float], form: str = ".3f") -> str:
    """As 0.590-0.619, or +0.001 to +0.005 where the form has a sign."""
    between = " to " if "+" in form else "-"
    return between.join(format(bound, form) for bound in bounds)


def score(found: Row) -> str:
    """nDCG@10 of an evaluation with its interval, as 0.604 (0.590-0.619)."""
    return f"{number(found['metrics'][METRIC])} ({span(found['ci95'][METRIC])})"


def words(found: Row) -> str:
    """Words that a query's reasoning has on average: its tokens without the embed token."""
    return f"{found['tokens_per_query'] - 1:.1f}"


def cut_off(found: Row) -> str:
    """Queries whose reasoning did not end with the embed token."""
    return f"{found['missing_embed_token']:,}"


def thousands(value: float) -> str:
    """As 20,000."""
    return f"{value:,.0f}"


# ---- tables that several experiments share


def over_runs(file: str) -> str:
    """What `python -m src.report --runs` wrote: a line for each row, over runs and queries."""
    found = content(file)["rows"]
    best = LABELS[next(line["best"] for line in found if "best" in line)]
    return table(
        ("nDCG@10", ">mean", ">range of runs", ">95 % interval", f">{best} less this"),
        [
            (
                LABELS.get(line["label"], line["label"]),
                number(line["mean"]),
                span((line["lowest"], line["highest"])),
                span(line["ci95"]),
                _difference(line.get("difference")),
            )
            for line in found
        ],
    )


def _difference(found: Row | None) -> str:
    return "" if found is None else f"{found['mean']:+.3f} ({span(found['ci95'], '+.3f')})"


def by_mode(
    first: str,
    columns: Mapping[str, Callable[[str], str]],
    files: Mapping[str, str],
) -> str:
    """A line for each file: what stands in it under each column.

    Args:
        first: the heading over the names of the lines.
        columns: what a cell says of a file, by heading.
        files: by the name of the line.
    """
    lines = [(name, *(cell(file) for cell in columns.values())) for name, file in files.items()]
    return table((first, *(f">{heading}" for heading in columns)), lines)


def cell(show: Callable[[Row], str] = score, **wanted: object) -> Callable[[str], str]:
    """A column of `by_mode`: one figure of the one row that has these values; blank where no row has."""

    def told(file: str) -> str:
        return show(row(file, **wanted)) if rows(file, **wanted) else ""

    return told
