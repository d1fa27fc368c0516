"""Prints the table of one or several metrics.json and draws its chart: `python -m src.report <metrics.json>`.

Where the scores of every query lie beside a file, the last model's reasoning is compared with all else, by a
paired randomisation test. With `--output` the rows of all files and these differences are written as one
file, which says where each part came from.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.command_line import UsageError
from src.evaluation.report import model_names, print_differences, print_table, write_chart
from src.evaluation.significance import paired_differences
from src.last_resort import Parser, run_command
from src.run_folder import make_folder, provenance, write_metrics

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
        if not isinstance(content, dict) or not {"rows", "command", "commit", "seed"} <= content.keys():
            raise ValueError(f"{path}: no metrics.json; `python -m src.evaluate` writes one")
    for key in ("commit", "seed"):
        values = {path: content[key] for path, content in contents.items()}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{path}: {value}" for path, value in values.items())
            raise ValueError(f"the files differ in their {key} ({told}); evaluate all models anew")
    rows = []
    for path, content in contents.items():
        for row in content["rows"]:
            folder = Path(path).parent / row.get("folder", f"{row['benchmark']}/{row['mode']}")
            rows.append(row | {"folder": folder.as_posix()})
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
    return [{**row, "folder": Path(os.path.relpath(row["folder"], place)).as_posix()} for row in rows]


def scores_by_query(file: Path, row: dict, metric: str = "ndcg@10") -> dict[str, float] | None:
    """What a row is the mean of, by query id, from the folder that an evaluation wrote; None without it."""
    path = file.parent / row.get("folder", f"{row['benchmark']}/{row['mode']}") / "per_query.jsonl"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as lines:
        return {line["query_id"]: line[metric] for line in map(json.loads, lines)}


def main() -> int:
    """Reads metrics.json files or folders.

    Raises:
        UsageError: If one is not there, or they are no one experiment's.
    """
    parser = Parser(prog="python -m src.report", description=__doc__)
    parser.add_argument("paths", type=Path, nargs="+", help="a metrics.json, or the folder that holds it")
    parser.add_argument("--output", type=Path, help="write the rows of all files to this metrics.json")
    arguments = parser.parse_args()
    files = [path / "metrics.json" if path.is_dir() else path for path in arguments.paths]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(f"{missing[0]} does not exist; `python -m src.evaluate` writes it")
    contents = {str(file): json.loads(file.read_text(encoding="utf-8")) for file in files}
    try:
        rows, sources = joined(contents)
        scores = [scores_by_query(Path(file), row) for file in contents for row in contents[file]["rows"]]
        differences = paired_differences(rows, scores)
    except ValueError as error:
        raise UsageError(str(error)) from None
    target = arguments.output or files[0]
    if arguments.output:
        make_folder(target.parent, "--output")
        origin = provenance(seed=next(iter(contents.values()))["seed"])
        write_metrics(
            target, relocated(rows, target.parent), origin, {"sources": sources, "differences": differences}
        )
    measured = [row for row in rows if "ci95" in row]
    print_table(measured)
    if differences:
        print_differences(differences, model_names(measured))
    for path, content in contents.items():
        print(f"{content['command']}  (commit {content['commit']}, seed {content['seed']}, {path})")
    print(f"chart: {write_chart(measured, target.with_suffix('.png'))}")
    return 0


if __name__ == "__main__":
    run_command(main)
