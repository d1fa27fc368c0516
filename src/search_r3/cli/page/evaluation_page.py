"""The part of a page that evaluations have: rows with intervals, price, differences, queries."""

from collections.abc import Mapping, Sequence

from search_r3.cli.page.charts import FAR_BELOW, Point, interval, scatter
from search_r3.cli.page.markup import Content, Markup, element, joined, section
from search_r3.cli.page.queries import query_parts
from search_r3.cli.page.scales import Scale, scale_of
from search_r3.cli.page.tables import Cell, facts, table
from search_r3.evaluation.beir_collections import cqadupstack_rows
from search_r3.evaluation.modes import MODES
from search_r3.evaluation.report import mode_label, mode_labels, model_names, short_names
from search_r3.evaluation.significance import holm

_COLOURS = {
    "grey": "s6",
    "blue": "s0",
    "vermilion": "s1",
    "green": "s2",
    "orange": "s3",
    "purple": "s4",
    "sky": "s5",
}


def evaluation_parts(
    rows: Sequence[Mapping],
    scores: Sequence[Mapping[str, float] | None],
    differences: Sequence[Mapping],
    sources: Mapping[str, Mapping],
    level: int = 2,
) -> Markup:
    """Tables, the picture of quality against price, differences, and the queries of each benchmark.

    Args:
        rows: of evaluations, with `folder` as seen from the working folder.
        scores: nDCG@10 by query id of each row; None where that is not known.
        differences: what `paired_differences` found.
        sources: command, commit and seed by the file that rows come from.
        level: of the headings.
    """
    names = short_names(rows) if model_names(rows) else {}
    folders = [row["folder"] for row in rows]
    labels = dict(zip(folders, mode_labels(rows, label_of), strict=True))
    shown = [*rows, *cqadupstack_rows(rows)]
    return joined(
        _facts(sources),
        section("Results", _results(shown, names, labels), note=_NOTE, level=level),
        section("Quality against price", _prices(rows, names, labels), level=level),
        section("Differences", _differences(differences, names, labels), note=_DIFFERENCES, level=level),
        query_parts(rows, scores, names or short_names(rows), labels, level),
    )


_NOTE = (
    "nDCG@10 with its 95 % bootstrap interval over queries, which the bars show on one axis per benchmark. "
    "Written are the tokens that the model emits for a query, read those of the prompt, the query and given "
    "texts."
)
_DIFFERENCES = (
    "The last model's reasoning less each other row, on the same queries: 95 % bootstrap interval over "
    "queries, p of a two-sided paired randomisation test, and p corrected by Holm for the number of rows."
)


def _facts(sources: Mapping[str, Mapping]) -> Markup:
    return joined(
        facts(
            [
                ("command", element("code", str(source.get("command")))),
                ("rows", file),
                ("commit", element("code", str(source.get("commit")))),
                ("seed", None if source.get("seed") is None else str(source["seed"])),
                ("Python", source.get("python")),
            ]
        )
        for file, source in sources.items()
    )


def mode_class(row: Mapping) -> str:
    """The class that colours a row by its mode."""
    mode = MODES.get(row["mode"])
    return _COLOURS.get(mode.colour, "s7") if mode else "s7"


_TOLD = {"n": "of {}", "threshold": "below {}", "limit": "up to {}"}
"""Settings of modes that a row's name has: texts, a margin of cosine, tokens."""


def label_of(row: Mapping) -> str:
    """The mode, with the settings that make it dearer or cheaper; else as in the tables of the terminal."""
    settings = row.get("mode_settings", {})
    told = [_TOLD[name].format(value) for name, value in settings.items() if name in _TOLD]
    return " ".join([row["mode"], *told]) if told else mode_label(row)


def _results(rows: Sequence[Mapping], names: Mapping[str, str], labels: Mapping[str, str]) -> Markup | None:
    scales = _scales(rows)
    cells = [
        _result(row, names, labels.get(row.get("folder")) or label_of(row), scales[row["benchmark"]])
        for row in rows  # a mean over collections has no folder
    ]
    return table(_COLUMNS, cells, "results", numbers=[name for name in _COLUMNS if name not in _TEXTS])


_COLUMNS = (
    "benchmark", "model", "mode", "nDCG@10", "interval", "95 %", "recall@100", "MRR@10", "MAP@100", "queries",
    "documents", "no token", "queries cut", "documents cut", "judged, missing", "reasoned", "ms/query",
    "written", "read",
)  # fmt: skip
_TEXTS = ("benchmark", "model", "mode", "95 %")


def _result(row: Mapping, names: Mapping[str, str], label: str, scale: Scale) -> list[Content | Cell]:
    metrics, value = row["metrics"], row["metrics"].get("ndcg@10")
    low, high = row.get("ci95", {}).get("ndcg@10", (None, None))
    has_interval = value is not None and low is not None
    bar = interval(value, low, high, scale, mode_class(row)) if has_interval else ""
    seconds = row.get("seconds_per_query")
    return [
        row["benchmark"],
        names.get(row["model"], ""),
        label,
        _decimal(value),
        Cell(bar, low),
        f"{low:.3f} to {high:.3f}" if has_interval else "",
        *(_decimal(metrics.get(name)) for name in ("recall@100", "mrr@10", "map@100")),
        str(row["n_queries"]),
        str(row["n_docs"]),
        *(_count(row.get(name)) for name in ("missing_embed_token", "queries_cut", "documents_cut")),
        _count(row.get("judged_documents_missing", 0) + row.get("judged_queries_missing", 0)),
        _decimal(row.get("reasoned_share"), 2),
        "" if seconds is None else f"{1000 * seconds:.2f}",
        *(_decimal(row.get(name), 1) for name in ("tokens_per_query", "tokens_read_per_query")),
    ]


def _decimal(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _count(value: int | None) -> str:
    return str(value) if value else ""


def _scales(rows: Sequence[Mapping]) -> dict[str, Scale]:
    """An axis for the intervals of each benchmark; one far below the best stands at its begin."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for row in rows:
        ends = row.get("ci95", {}).get("ndcg@10", ())
        found.setdefault(row["benchmark"], []).append((row["metrics"].get("ndcg@10", 0.0), *ends))
    scales = {}
    for benchmark, its in found.items():
        best = max(value for value, *_ in its)
        scales[benchmark] = scale_of([end for ends in its if ends[0] >= FAR_BELOW * best for end in ends])
    return scales


def _prices(rows: Sequence[Mapping], names: Mapping[str, str], labels: Mapping[str, str]) -> Markup | None:
    """nDCG@10 against written tokens, a picture per benchmark that has rows of more than one price."""
    pictures = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        chosen = [row for row in rows if row["benchmark"] == benchmark and "tokens_per_query" in row]
        chosen = [row for row in chosen if "ndcg@10" in row["metrics"] and "ndcg@10" in row.get("ci95", {})]
        if len({row["tokens_per_query"] for row in chosen}) > 1:
            pictures.append(scatter(benchmark, [_point(row, names, labels) for row in chosen], *_AXES))
    return joined(pictures) or None


_AXES = ("tokens written per query", "nDCG@10")


def _point(row: Mapping, names: Mapping[str, str], labels: Mapping[str, str]) -> Point:
    low, high = row["ci95"]["ndcg@10"]
    name = " ".join(filter(None, (names.get(row["model"]), labels[row["folder"]])))
    return Point(name, row["tokens_per_query"], row["metrics"]["ndcg@10"], low, high, mode_class(row))


def _differences(
    differences: Sequence[Mapping], names: Mapping[str, str], labels: Mapping[str, str]
) -> Markup | None:
    corrected = holm([each["p"] for each in differences])
    rows = []
    for each, its in zip(differences, corrected, strict=True):
        ours, theirs = (
            " ".join(filter(None, (names.get(one["model"]), labels[one["folder"]])))
            for one in (each, each["less"])
        )
        low, high = each["ci95"]
        rows.append(
            [each["benchmark"], ours, theirs, f"{each['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}",
             f"{each['p']:.4f}", f"{its:.4f}"]
        )  # fmt: skip
    columns = ("benchmark", "this", "less", "difference", "95 %", "p", "p (Holm)")
    return table(columns, rows, "differences", numbers=("difference", "p", "p (Holm)"))
