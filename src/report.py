"""Prints the table of one or several metrics.json and draws its chart: `python -m src.report <metrics.json>`.

Where the scores of every query lie beside a file, the last model's reasoning is compared with all else, by a
paired randomisation test. With `--output` the rows of all files and these differences are written as one
file, which says where each part came from. With `--runs` every file is a run of the same experiment (another
seed, number of threads or processor): printed are mean, range and intervals over runs and queries.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.command_line import UsageError
from src.evaluation.places import seen_from
from src.evaluation.report import model_names, print_differences, print_runs, print_table, write_chart
from src.evaluation.runs import Scores, rows_over_runs
from src.evaluation.significance import paired_differences
from src.last_resort import Parser, run_command
from src.run_folder import make_folder, provenance, write_json, write_metrics

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
    return [{**row, "folder": seen_from(place, row["folder"])} for row in rows]


def scores_by_query(file: Path, row: dict, metric: str = "ndcg@10") -> dict[str, float] | None:
    """What a row is the mean of, by query id, from the folder that an evaluation wrote; None without it."""
    path = file.parent / row.get("folder", f"{row['benchmark']}/{row['mode']}") / "per_query.jsonl"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as lines:
        return {line["query_id"]: line[metric] for line in map(json.loads, lines)}


def run_scores(file: Path, rows: Sequence[Mapping]) -> dict[tuple[str, str], Scores]:
    """Scores by query id of each row of a run, by benchmark and label: the mode, behind the model's name.

    Raises:
        ValueError: If the scores of a row are not there.
    """
    names, found = model_names(rows), {}
    for row in rows:
        scores = scores_by_query(file, row)
        if scores is None:
            raise ValueError(f"{file}: the scores of every query of {row['mode']} are not beside it any more")
        label = " ".join(filter(None, (names.get(row["model"]), row["mode"])))
        found[row["benchmark"], label] = scores
    return found


def report_runs(contents: Mapping[str, Mapping], output: Path | None) -> None:
    """Prints, and on request writes, what the runs say together.

    Raises:
        ValueError: If the runs have nothing in common, or the scores of a row are not there.
    """
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
        write_json(output, {"metric": "ndcg@10", "rows": rows, "runs": sources})


def main() -> int:
    """Reads metrics.json files or folders.

    Raises:
        UsageError: If one is not there, or they are no one experiment's.
    """
    parser = Parser(prog="python -m src.report", description=__doc__)
    parser.add_argument("paths", type=Path, nargs="+", help="a metrics.json, or the folder that holds it")
    parser.add_argument("--output", type=Path, help="write the rows of all files to this metrics.json")
    parser.add_argument("--runs", action="store_true", help="every file is a run of one experiment")
    arguments = parser.parse_args()
    files = [path / "metrics.json" if path.is_dir() else path for path in arguments.paths]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(f"{missing[0]} does not exist; `python -m src.evaluate` writes it")
    contents = {str(file): json.loads(file.read_text(encoding="utf-8")) for file in files}
    if arguments.runs:
        try:
            report_runs(contents, arguments.output)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(str(error)) from None
        return 0
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
