"""Results as people read them: a table, and a chart with intervals."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search_r3.evaluation.beir_collections import cqadupstack_rows
from search_r3.evaluation.colours import COLOURS
from search_r3.evaluation.modes import MODES
from search_r3.records import plain

WIDTH = 160  # of a table: the names of models and modes are whole, wherever it is printed

WIDEST = 100  # inches of a chart; matplotlib refuses more than 2^16 pixels


def print_table(rows: Sequence[Mapping]) -> None:
    """One line per benchmark, mode and model, with the interval and the price of a query.

    Models go by the last part of their folder that tells them apart, as "sft" and "rl". Where a collection
    lacks documents or queries that its judgements name, a column counts these judgements; where the model
    reads only the beginning of some queries or documents, a column counts those; where a mode chooses which
    queries reason, a column has their share. The mean of CQADupStack's twelve parts is a row at the end.
    """
    rows = [*rows, *cqadupstack_rows(rows)]
    names = short_names(rows)
    columns = {
        "benchmark": [row["benchmark"] for row in rows],
        "model": [names.get(row["model"], "") for row in rows],
        "mode": mode_labels(rows),
        "queries": [str(row["n_queries"]) for row in rows],
        "documents": [str(row["n_docs"]) for row in rows],
        "missing": [_missing(row) for row in rows],
        "cut q/d": [_cut(row) for row in rows],
        "nDCG@10": [f"{row['metrics']['ndcg@10']:.3f}" for row in rows],
        "interval": [
            "{:.3f}-{:.3f}".format(*row["ci95"]["ndcg@10"]) if "ci95" in row else "" for row in rows
        ],
        "recall@100": [f"{row['metrics']['recall@100']:.3f}" for row in rows],
        "reasoned": [_reasoned(row) for row in rows],
        "no token": [str(row["missing_embed_token"]) for row in rows],
        "ms/query": [f"{1000 * row['seconds_per_query']:.2f}" for row in rows],
        "tokens": [f"{row['tokens_per_query']:.1f}" for row in rows],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    table = Table(title="nDCG@10 with 95 % bootstrap interval over queries")
    for name in shown:
        table.add_column(name, justify="left" if name in ("benchmark", "model", "mode") else "right")
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*map(_text, cells))
    Console(width=WIDTH).print(table)


def _text(cell: str) -> str:
    """A cell in which nothing is markup, and nothing is obeyed by a terminal."""
    return escape(plain(cell))


def _missing(row: Mapping) -> str:
    """How many judgements are of documents, and of queries, that the collection lacks; empty for none."""
    documents, queries = (row.get(f"judged_{what}_missing", 0) for what in ("documents", "queries"))
    if not queries:
        return str(documents or "")
    return f"{documents}, {queries} of queries"


def _cut(row: Mapping) -> str:
    """How many queries and documents were cut, as 9/1637; empty for none, and for a row that does not say."""
    counts = {what: row.get(f"{what}_cut") for what in ("queries", "documents")}
    return "/".join(str(n or 0) for n in counts.values()) if any(counts.values()) else ""


def _reasoned(row: Mapping) -> str:
    """Which share of the queries reasoned, of a mode that chooses; else empty."""
    return f"{100 * row['reasoned_share']:.0f} %" if "reasoned_share" in row else ""


def mode_label(row: Mapping) -> str:
    """The mode; where another evaluation had its folder, with the hash that tells the two apart there."""
    return Path(row["folder"]).name if row.get("folder") else row["mode"]


def mode_labels(rows: Sequence[Mapping], called: Callable[[Mapping], str] = mode_label) -> list[str]:
    """What each row is called, with the folder of its evaluation where another row is called alike.

    Two evaluations of one model under two settings, or of BM25, in one table are `auto (first)` and
    `auto (second)`, by the shortest endings of their folders.
    """
    keys = [(row["benchmark"], row.get("model"), called(row)) for row in rows]
    times = Counter(keys)
    sources = [_source(row) if times[key] > 1 else () for row, key in zip(rows, keys, strict=True)]
    several = list(dict.fromkeys(filter(None, sources)))
    names = dict(zip(several, _endings(several), strict=True))
    return [
        f"{label} ({names[source]})" if source in names else label
        for (_, _, label), source in zip(keys, sources, strict=True)
    ]


def _source(row: Mapping) -> tuple[str, ...]:
    """The parts of the folder of a row's evaluation, in which benchmark and mode have theirs."""
    parts = Path(row.get("folder") or "").parts
    return parts[: -(row["benchmark"].count("/") + 2)]


def _endings(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The shortest endings, of as many parts each, that tell paths apart; whole paths where none does."""
    for length in range(1, max(map(len, paths), default=0) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return ["/".join(path) for path in paths]


def print_differences(differences: Sequence[Mapping], names: Mapping[str, str]) -> None:
    """What `paired_differences` found, a line each; `names` are those of `model_names`."""
    table = Table(title="nDCG@10 of what is written last, less that of the others, on the same queries")
    for column in ("benchmark", "this", "less"):
        table.add_column(column)
    for column in ("difference", "95 % interval", "p"):
        table.add_column(column, justify="right")
    compared = {_identity(one): one for each in differences for one in _sides(each)}
    labels = dict(zip(compared, mode_labels(list(compared.values())), strict=True))
    for each in differences:
        low, high = each["ci95"]
        ours, theirs = (
            _text(" ".join(filter(None, (names.get(one["model"]), labels[_identity(one)]))))
            for one in _sides(each)
        )
        interval = f"{low:+.3f} to {high:+.3f}"
        table.add_row(
            _text(each["benchmark"]),
            ours,
            theirs,
            f"{each['difference']:+.3f}",
            interval,
            f"{each['p']:.4f}",
        )
    Console(width=WIDTH).print(table)


def _sides(difference: Mapping) -> tuple[Mapping, Mapping]:
    return difference, {**difference["less"], "benchmark": difference["benchmark"]}


def _identity(row: Mapping) -> tuple:
    return tuple(row.get(key) for key in ("benchmark", "model", "mode", "folder"))


def print_runs(rows: Sequence[Mapping]) -> None:
    """What `rows_over_runs` found, a line each."""
    table = Table(title=f"nDCG@10, mean of {rows[0]['n_runs']} runs, 95 % interval over runs and queries")
    for column in ("benchmark", "mode"):
        table.add_column(column)
    for column in ("mean", "range of runs", "interval", "best less this"):
        table.add_column(column, justify="right")
    for row in rows:
        apart = row.get("difference")
        less = "" if apart is None else f"{apart['mean']:+.3f} ({_span(apart['ci95'], '+.3f')})"
        table.add_row(
            _text(row["benchmark"]),
            _text(row["label"]),
            f"{row['mean']:.3f}",
            _span((row["lowest"], row["highest"])),
            _span(row["ci95"]),
            less,
        )
    Console(width=WIDTH).print(table)


def _span(bounds: Sequence[float], form: str = ".3f") -> str:
    return f"{bounds[0]:{form}} to {bounds[1]:{form}}"


def model_names(rows: Sequence[Mapping]) -> dict[str, str]:
    """Short names of the models by their folder: what is left without the path's common beginning and end.

    Empty where benchmark and mode tell all rows apart; BM25 has no folder. `runs/sft/model` and
    `runs/rl/model` are "sft" and "rl".
    """
    if len({(row["benchmark"], row["mode"]) for row in rows}) == len(rows):
        return {}
    folders = list(dict.fromkeys(row["model"] for row in rows if row.get("weights_sha256") is not None))
    if len(folders) < 2:
        return {}
    parts = [Path(folder).parts for folder in folders]
    shortest = min(map(len, parts))
    start = next((i for i in range(shortest) if len({part[i] for part in parts}) > 1), shortest - 1)
    ends = range(1, shortest - start)
    end = next((i for i in ends if len({part[-i] for part in parts}) > 1), shortest - start) - 1
    return {
        folder: "/".join(part[start : len(part) - end]) for folder, part in zip(folders, parts, strict=True)
    }


def _colour(row: Mapping) -> str | None:
    """The colour of a row's mode; of one that is not shipped, the row has it."""
    name = MODES[row["mode"]].colour if row["mode"] in MODES else row.get("colour")
    return COLOURS.get(name, name)


def short_names(rows: Sequence[Mapping]) -> dict[str, str]:
    """The shortest endings of the models' folders that tell them apart; `runs/sft/model` is "sft"."""
    folders = list(dict.fromkeys(row["model"] for row in rows if row.get("weights_sha256") is not None))
    parts = [Path(folder).parts for folder in folders]
    parts = [part[:-1] if part[-1:] == ("model",) and len(part) > 1 else part for part in parts]
    names = _endings(parts)
    return dict(zip(folders, names if len(set(names)) == len(names) else folders, strict=True))


def write_chart(rows: Sequence[Mapping], path: Path) -> Path:
    """A bar per benchmark, mode and model with its interval, as PNG.

    Returns:
        The file.

    Raises:
        ValueError: If there is no row.
    """
    if not rows:
        raise ValueError("there is no row to draw")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    benchmarks = list(dict.fromkeys(row["benchmark"] for row in rows))
    names = short_names(rows) if model_names(rows) else {}
    modes = zip(rows, mode_labels(rows), strict=True)
    labels = [" ".join(filter(None, (names.get(row["model"]), mode))) for row, mode in modes]
    series = list(dict.fromkeys(labels))
    width = 0.8 / len(series)
    inches = min(max(8.0, 3.2 + max(1.8, 0.5 * len(series)) * len(benchmarks)), WIDEST)
    figure, axes = plt.subplots(figsize=(inches, 4.0), layout="constrained")
    hatches = dict(zip(names.values(), ("//", "", "..", "xx"), strict=False))
    for place, label in enumerate(series):
        chosen = [row for row, its in zip(rows, labels, strict=True) if its == label]
        at = [benchmarks.index(row["benchmark"]) + (place - (len(series) - 1) / 2) * width for row in chosen]
        values = [row["metrics"]["ndcg@10"] for row in chosen]
        bounds = [row["ci95"]["ndcg@10"] for row in chosen]
        errors = [
            [max(value - low, 0) for value, (low, _) in zip(values, bounds, strict=True)],
            [max(high - value, 0) for value, (_, high) in zip(values, bounds, strict=True)],
        ]
        style = {
            "color": _colour(chosen[0]),
            "hatch": hatches.get(names.get(chosen[0]["model"], ""), ""),
        }
        bars = axes.bar(at, values, width * 0.92, yerr=errors, capsize=3, label=str(place), **style)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.set_xticks(range(len(benchmarks)), benchmarks, parse_math=False)  # a name with $ is no formula
    axes.set_ylabel("nDCG@10")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(frameon=False, fontsize=9, loc="outside right upper")
    for text, label in zip(legend.get_texts(), series, strict=True):
        text.set(text=label, parse_math=False)  # only now: a legend leaves out series called _ and more
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
