"""The rows of evaluations, joined out of several files, with what each was measured on by query."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from search_r3.evaluation.metrics import HEADLINE
from search_r3.evaluation.places import seen_from
from search_r3.evaluation.report import model_names, print_runs
from search_r3.evaluation.results import REMEDY, checked_row, collection_of, verified_scores
from search_r3.evaluation.runs import Scores, rows_over_runs
from search_r3.files import write_json
from search_r3.folders import make_folder
from search_r3.records import RecordError, checked

log = logging.getLogger(__name__)


def joined(contents: dict[str, dict]) -> tuple[list[dict], dict]:
    """The rows of several files in their order, and what produced each file.

    Args:
        contents: what the files hold, by path.

    Returns:
        Rows, whose `folder` is seen from the working folder, and the sources. A warning says where the rows
        of one file come from calls that differ.

    Raises:
        ValueError: If two files have different commits or seeds, so that their rows are no one experiment's,
            or no file has a row of an evaluation.
    """
    for path, content in contents.items():
        _check_table(path, content)
    for key in ("commit", "seed"):
        values = {path: content[key] for path, content in contents.items()}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{path}: {value}" for path, value in values.items())
            raise ValueError(f"the files differ in their {key} ({told}); evaluate all models anew")
    rows = []
    for path, content in contents.items():
        for row in content["rows"]:
            rows.append(row | {"folder": folder_of(Path(path), row).as_posix()})
        for key in ("commit", "seed"):
            if len(found := {row.get(key, content[key]) for row in content["rows"]}) > 1:
                log.warning("%s: its rows differ in their %s: %s", path, key, ", ".join(map(str, found)))
    if not any("ci95" in row for row in rows):
        raise ValueError(
            f"{', '.join(contents)}: no row of an evaluation; `python -m src.evaluate` writes them"
        )
    sources = {
        path: {key: content[key] for key in ("command", "commit")} for path, content in contents.items()
    }
    return rows, sources


def relocated(rows: Sequence[Mapping], place: Path) -> list[dict]:
    """Rows whose `folder` is seen from a place, instead of from the working folder."""
    return [{**row, "folder": seen_from(place, row["folder"])} for row in rows]


def _check_table(path: str, content: object) -> None:
    """Refuses what is no metrics.json, and rows of evaluations that cannot be shown.

    Raises:
        ValueError: With the file and the rule.
    """
    if not isinstance(content, dict) or not {"rows", "command", "commit", "seed"} <= content.keys():
        raise ValueError(
            f"{path}: no metrics.json, which has rows, command, commit and seed; give one, or the folder of "
            "an evaluation, a training run or a sweep"
        )
    checked(path, content, "rows", lambda rows: isinstance(rows, list), "a list of rows", REMEDY)
    is_text = lambda value: isinstance(value, (str, int, type(None)))  # noqa: E731
    for key in ("command", "commit", "seed"):
        checked(path, content, key, is_text, "a text or a whole number", REMEDY)
    for number, row in enumerate(content["rows"]):
        checked_row(row, path, f"rows[{number}]")


def folder_of(file: Path, row: Mapping) -> Path:
    """Where an evaluation has written what its row is the mean of."""
    return file.parent / row.get("folder", f"{row['benchmark']}/{row['mode']}")


def scores_by_query(file: Path, row: Mapping) -> dict[str, float] | None:
    """What the nDCG@10 of a row is the mean of, by query id, from the folder that an evaluation wrote.

    Returns:
        None where there is no such folder, as beside a table that was copied without its folders.

    Raises:
        RecordError: If the folder's `per_query.jsonl` is missing, damaged, or not that of the row.
    """
    folder = folder_of(file, row)
    return verified_scores(folder, row, HEADLINE) if os.path.lexists(folder) else None


def known_scores(rows: Sequence[tuple[Path, Mapping]]) -> list[dict[str, float] | None]:
    """The scores of every query for each row; None for rows of no evaluation, and for all of them where not
    one folder lies beside the tables, which is told.

    Args:
        rows: each with the table that it stands in.

    Raises:
        RecordError: If some are there and one is missing, damaged, or not that of its row.
    """
    scores = [scores_by_query(file, row) if "ci95" in row else None for file, row in rows]
    lacking = [
        (file, row)
        for (file, row), found in zip(rows, scores, strict=True)
        if "ci95" in row and found is None
    ]
    if lacking and any(found is not None for found in scores):
        raise RecordError(folder_of(*lacking[0]), "is missing, so its row cannot be compared", REMEDY)
    if lacking:
        names = ", ".join(dict.fromkeys(str(file) for file, _ in lacking))
        print(f"not compared: the folders of the evaluations do not lie beside {names}")
    return scores


def run_scores(file: Path, rows: Sequence[Mapping]) -> dict[tuple[str, str], Scores]:
    """Scores by query of each row of a run, by benchmark and label: the mode, behind the model's name.

    A query is its id and the collection that it was asked in, so that rows on other documents have others.
    A model in the folder of the file is named as it is seen from there, so that it has one name in all runs.

    Raises:
        ValueError: If the scores of a row are not there, or not as they were written.
    """
    names, found = model_names(rows), {}
    for model in names:
        if Path(model).absolute().is_relative_to(file.parent.absolute()):
            names[model] = seen_from(file.parent, model).removesuffix("/model")
    for row in rows:
        scores = scores_by_query(file, row)
        if scores is None:
            raise ValueError(f"{file}: the scores of every query of {row['mode']} are not beside it any more")
        label = " ".join(filter(None, (names.get(row["model"]), row["mode"])))
        collection = collection_of(row | {"folder": folder_of(file, row)})
        found[row["benchmark"], label] = {(collection, query): value for query, value in scores.items()}
    return found


def report_runs(contents: Mapping[str, Mapping], output: Path | None) -> None:
    """Prints, and on request writes, what the runs say together.

    Raises:
        ValueError: If the runs have nothing in common, or the scores of a row are not there.
    """
    for path, content in contents.items():
        _check_table(path, content)
    runs = [
        run_scores(Path(path), [row for row in content["rows"] if "ci95" in row])
        for path, content in contents.items()
    ]
    rows = rows_over_runs(runs)
    print_runs(rows)
    sources = [
        {"file": path} | {key: content[key] for key in ("command", "commit", "seed")}
        for path, content in contents.items()
    ]
    for source in sources:
        print(f"{source['command']}  (commit {source['commit']}, seed {source['seed']}, {source['file']})")
    if output is not None:
        make_folder(output.parent, "--output")
        write_json(output, {"metric": HEADLINE, "rows": rows, "runs": sources})


def check_columns(rows: Sequence[Mapping]) -> None:
    """Refuses a row of an evaluation that has no number for a column of the table."""
    for row in rows:
        wanted = {"metrics": ("ndcg@10", "recall@100"), "ci95": ("ndcg@10",)}
        lacking = [
            f"{node}.{name}" for node, names in wanted.items() for name in names if name not in row[node]
        ]
        columns = ("missing_embed_token", "seconds_per_query", "tokens_per_query")
        lacking += [name for name in columns if name not in row]
        if lacking:
            raise RecordError(row["folder"], f"its row has no {lacking[0]}", REMEDY)
