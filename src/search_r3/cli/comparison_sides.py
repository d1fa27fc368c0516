"""What `src.compare` compares, read: rows of two evaluations, or two TREC runs, each checked."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from search_r3.cli.evaluation_report import joined
from search_r3.errors import UsageError
from search_r3.evaluation.comparison import Pair, Side
from search_r3.evaluation.metrics import METRICS, per_query_metrics
from search_r3.evaluation.report import mode_label
from search_r3.evaluation.results import (
    REMEDY,
    ROW_FILE,
    is_one_collection,
    read_row,
    verified_scores,
    verified_texts,
)
from search_r3.evaluation.trec import read_judgements, read_run
from search_r3.records import read_json
from search_r3.shipped import as_called

log = logging.getLogger(__name__)


def evaluation_rows(path: Path) -> list[dict]:
    """Rows of an evaluation, each with its `folder` as seen from the working folder.

    Args:
        path: a `metrics.json`, the folder that holds it, or the folder of one row.

    Raises:
        UsageError: If it is none of these, or damaged.
    """
    if (path / ROW_FILE).is_file():
        return [read_row(path)["row"] | {"folder": path.as_posix()}]
    file = _table_in(path)
    try:
        rows, _ = joined({str(file): read_json(file, REMEDY)})
    except ValueError as error:
        raise UsageError(str(error)) from None
    return [row for row in rows if "ci95" in row]


def _table_in(path: Path) -> Path:
    """The table of an evaluation: a file, or `metrics.json` in a folder.

    Raises:
        UsageError: If it is not there, with what is missing and what would make it.
    """
    if path.is_dir():
        if (path / "metrics.json").is_file():
            return path / "metrics.json"
        modes = ", ".join(sorted(file.parent.name for file in path.glob(f"*/{ROW_FILE}")))
        hint = f"one of its modes ({modes}) or the folder above" if modes else "the output_dir of one"
        raise UsageError(f"{path}: no evaluation, this folder has no metrics.json; give {hint}")
    if not path.exists():
        raise UsageError(
            f"{path}: no such file or folder; give the output_dir of an evaluation, or make it: "
            f"`{as_called('python -m src.evaluate', f'output_dir={path}')} ...`"
        )
    if path.suffix != ".json":
        raise UsageError(
            f"{path}: no metrics.json of an evaluation; two TREC runs are compared with --qrels=<judgements>"
        )
    return path


def evaluation_pairs(
    first: Sequence[Mapping], second: Sequence[Mapping], mode_a: str | None, mode_b: str | None
) -> list[Pair]:
    """Rows of the same benchmark and mode in two evaluations, or of the modes that are named.

    Args:
        first: rows of A.
        second: rows of B.
        mode_a: of A's rows; None for every mode.
        mode_b: of B's rows; None for that of A.

    Raises:
        UsageError: If nothing can be compared, a mode is there twice, or files are damaged or of another
            collection.
    """
    ours, theirs = _by_place(first, mode_a, "A"), _by_place(second, mode_b or mode_a, "B")
    common = [place for place in ours if place in theirs]
    for name, one, other in (("A", ours, theirs), ("B", theirs, ours)):
        if lone := [_place(rows[0]) for place, rows in one.items() if place not in other]:
            log.warning("not compared, since %s alone has them: %s", name, ", ".join(lone))
    if not common:
        raise UsageError(
            f"A and B have no benchmark and mode in common: A has {_listed(first)}; B has {_listed(second)}; "
            "--mode-a and --mode-b compare two modes"
        )
    chosen = [(_only(ours[place], "A"), _only(theirs[place], "B")) for place in common]
    if all(Path(one["folder"]).resolve() == Path(other["folder"]).resolve() for one, other in chosen):
        raise UsageError("A and B are the same rows; compare two of their modes with --mode-a and --mode-b")
    return [_pair(one, other) for one, other in chosen]


def _by_place(rows: Sequence[Mapping], mode: str | None, side: str) -> dict[object, list[Mapping]]:
    """Rows by benchmark and mode; by benchmark those of a label, or else mode, that is asked for."""
    found: dict[object, list[Mapping]] = {}
    for row in rows:
        found.setdefault((row["benchmark"], row["mode"]) if mode is None else row["benchmark"], []).append(
            row
        )
    if mode is None:
        return found
    for benchmark, its in found.items():
        labelled = [row for row in its if mode_label(row) == mode]
        found[benchmark] = labelled or [row for row in its if row["mode"] == mode]
    if not any(found.values()):
        raise UsageError(f"{side} has no row of mode {mode}; it has {_listed(rows)}")
    return {benchmark: its for benchmark, its in found.items() if its}


def _only(rows: Sequence[Mapping], side: str) -> Mapping:
    """The row of a place.

    Raises:
        UsageError: If there are several, as of other weights or settings.
    """
    if len(rows) > 1:
        raise UsageError(
            f"{side} has {len(rows)} rows of {rows[0]['benchmark']} in mode {rows[0]['mode']}: "
            f"{_listed(rows)}; choose one by --mode-{side.lower()}={mode_label(rows[-1])}, or give "
            f"the folder of the row as {side}"
        )
    return rows[0]


def _place(row: Mapping) -> str:
    return f"{row['benchmark']}/{mode_label(row)}"


def _listed(rows: Sequence[Mapping]) -> str:
    return ", ".join(map(_place, rows))


def _pair(first: Mapping, second: Mapping) -> Pair:
    if not is_one_collection(first, second):
        raise UsageError(
            f"{first['benchmark']}: {first['folder']} and {second['folder']} have other documents, queries "
            "or judgements; evaluate both on the same collection"
        )
    return _side(first), _side(second)


def _side(row: Mapping) -> Side:
    folder = Path(row["folder"])
    scores = {metric: verified_scores(folder, row, metric) for metric in METRICS if metric in row["metrics"]}
    queries, reasonings = verified_texts(folder, row)
    facts = {key: row.get(key) for key in ("mode", "model", "folder", "command", "commit")}
    return Side(row["benchmark"], mode_label(row), scores, facts, queries, reasonings)


def run_pair(first: Path, second: Path, qrels: Path) -> Pair:
    """Two TREC runs, scored against one file of judgements as `trec_eval -c` does.

    A judged query that a run does not have counts 0 there; a query that is not judged is left out. Both are
    told.

    Raises:
        UsageError: If a file is missing or damaged, or a run has none of the judged queries.
    """
    grades = read_judgements(qrels)
    if not grades:
        raise UsageError(f"{qrels}: holds no judgements")
    sides = []
    for file in (first, second):
        run = read_run(file, any_ranks=True)
        if not run.keys() & grades.keys():
            raise UsageError(f"{file}: not one of its {len(run)} queries is judged in {qrels}")
        if n_absent := len(grades.keys() - run.keys()):
            log.warning("%s: %d of %d judged queries are not in it and count 0", file, n_absent, len(grades))
        if n_unjudged := len(run.keys() - grades.keys()):
            log.warning("%s: %d queries are not judged and left out", file, n_unjudged)
        values = per_query_metrics(run, grades)
        scores = {metric: {query: found[metric] for query, found in values.items()} for metric in METRICS}
        sides.append(Side(qrels.name, str(file), scores, {"run": str(file)}))
    return sides[0], sides[1]
