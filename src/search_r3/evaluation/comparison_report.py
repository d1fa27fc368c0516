"""What a comparison found, for people: a table in the terminal, and a page in Markdown."""

import re
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from search_r3.evaluation.metrics import HEADLINE
from search_r3.evaluation.report import WIDTH
from search_r3.markdown import table
from search_r3.records import plain

COLUMNS = ("A", "B", "B less A", "95 % interval", "p", "p (Holm)", "wins/ties/losses")
IN_TERMINAL = 3
"""Queries of each kind that the terminal shows where several rows are compared; the page has all."""
_LONGEST = 240
_MARKS = re.compile(r"([\\`*_{}\[\]<>|#~&!])")


def _name(metric: str) -> str:
    return metric.replace("ndcg", "nDCG")


def _cells(values: Mapping) -> tuple[str, ...]:
    low, high = values["ci95"]
    return (
        f"{values['a']:.3f}",
        f"{values['b']:.3f}",
        f"{values['difference']:+.3f}",
        f"{low:+.3f} to {high:+.3f}",
        f"{values['p']:.4f}",
        f"{values['p_holm']:.4f}",
        f"{values['wins']}/{values['ties']}/{values['losses']}",
    )


def _modes(row: Mapping) -> str:
    """`direct`, or `direct, reasoning` where A and B are of different modes."""
    return ", ".join(dict.fromkeys((row["a"]["label"], row["b"]["label"])))


def table_rows(found: Mapping, metric: str) -> list[tuple[str, ...]]:
    """Benchmark, modes, number of queries and `COLUMNS`; then the overall rows where they join several."""
    rows = [
        (row["benchmark"], _modes(row), str(row["n_queries"]), *_cells(row["metrics"][metric]))
        for row in found["rows"]
        if metric in row["metrics"]
    ]
    return rows + [
        (f"all {len(row['benchmarks'])}", _modes(row), str(row["n_queries"]), *_cells(row["metrics"][metric]))
        for row in found["overall"]
        if len(row["benchmarks"]) > 1 and metric in row["metrics"]
    ]


def _plain(text: str, longest: int | None = None) -> str:
    """A text in one line, cut to so many characters, without those that a terminal obeys."""
    line = plain(text)
    return line if longest is None or len(line) <= longest else f"{line[: longest - 1]}…"


def print_comparison(found: Mapping) -> None:
    """The headline's table, then the queries that gained and lost most."""
    console = Console(width=WIDTH, highlight=False)
    metric = headline(found)
    for side in ("a", "b"):
        console.print(Text(f"{side.upper()}  {_plain(found[side])}"))
    table = Table(title=f"{_name(metric)} of B less that of A, on the same queries")
    for name in ("benchmark", "mode"):
        table.add_column(name, overflow="fold")
    for name in ("queries", *COLUMNS):
        table.add_column(name, justify="right")
    for row in table_rows(found, metric):
        table.add_row(*(Text(_plain(cell)) for cell in row))
    console.print(table)
    n_shown = None if len(found["rows"]) == 1 else IN_TERMINAL
    for row in found["rows"]:
        for kind in ("gained", "lost"):
            _print_moved(console, row, kind, row[kind][:n_shown])


def _print_moved(console: Console, row: Mapping, kind: str, queries: Sequence[Mapping]) -> None:
    if not queries:
        return
    console.print(Text(_plain(f"{row['benchmark']}, {_modes(row)}: {kind} most"), style="bold"))
    for query in queries:
        text = Text(f"  {query['a']:.3f} → {query['b']:.3f}  ")
        text.append(_plain(query["query_id"], 40), style="bold")
        text.append(f"  {_plain(query['query'] or '', 90)}")
        console.print(text, no_wrap=True, overflow="ellipsis")
        for side in ("a", "b"):
            if query[f"reasoning_{side}"] is not None:
                said = _plain(query[f"reasoning_{side}"], 110)
                console.print(
                    Text(f"      {side.upper()} wrote: {said}", style="dim"),
                    no_wrap=True,
                    overflow="ellipsis",
                )


def headline(found: Mapping) -> str:
    """The metric that queries are listed by."""
    names = list(found["rows"][0]["metrics"])
    return HEADLINE if HEADLINE in names else names[0]


def _escaped(text: str, longest: int | None = None) -> str:
    return _MARKS.sub(r"\\\1", _plain(text, longest))


def markdown(found: Mapping) -> str:
    """The whole comparison as a page: a table per metric, then the queries of each row."""
    lines = ["# B compared with A", ""]
    lines += [f"- {side.upper()}: {_escaped(found[side])}" for side in ("a", "b")]
    lines += ["", f"Made by `{found['command'].replace('`', '')}`.", ""]
    lines += [
        "Differences are B less A on the same queries. p: paired randomisation test, two-sided, "
        f"{found['n_resamples']:,} sign flips, seed {found['seed']}. p (Holm): corrected for the number "
        "of rows. Interval: 95 % bootstrap over queries. In a row of all benchmarks each weighs the same.",
        "",
    ]
    for metric in dict.fromkeys(name for row in found["rows"] for name in row["metrics"]):
        header = ("benchmark", "mode", *(f">{name}" for name in ("queries", *COLUMNS)))
        rows = [list(map(_escaped, row)) for row in table_rows(found, metric)]
        lines += [f"## {_name(metric)}", "", table(header, rows), ""]
    for row in found["rows"]:
        for kind in ("gained", "lost"):
            lines += _section(row, kind)
    return "\n".join(lines)


def _section(row: Mapping, kind: str) -> list[str]:
    title = f"{row['benchmark']}, {_modes(row)}: queries that {kind} most"
    lines = [f"## {_escaped(title)}", ""]
    if not row[kind]:
        return [*lines, "None.", ""]
    for query in row[kind]:
        name, text = _escaped(query["query_id"]), _escaped(query["query"] or "", 2 * _LONGEST)
        lines.append(f"- **{name}** {query['a']:.3f} → {query['b']:.3f} {text}".rstrip())
        for side in ("a", "b"):
            if query[f"reasoning_{side}"] is not None:
                lines.append(
                    f"  - {side.upper()} wrote: {_escaped(query[f'reasoning_{side}'], 4 * _LONGEST)}"
                )
    return [*lines, ""]
