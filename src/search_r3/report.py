"""Prints the table of one or several metrics.json and draws its chart: `python -m src.report <metrics.json>`.

The last model's reasoning is compared with all else, query by query, by a paired randomisation test. The
scores of every query lie in the folders of the evaluations; one that is missing, damaged or not that of its
row is an error. Of a file that was copied without these folders the table alone is printed, and this is said.

Of the folder of a training run, its state, validation rows and curves are shown: `src.report <run folder>`.

With `--output` the rows of all files and these differences are written as one file, which says where each
part came from. With `--runs` every file is a run of the same experiment (another seed, number of threads or
processor): printed are mean, range and intervals over runs and queries.
"""

from collections.abc import Sequence
from pathlib import Path

from search_r3.cli.evaluation_report import check_columns, joined, known_scores, relocated, report_runs
from search_r3.cli.last_resort import Parser, run_command
from search_r3.cli.run_folder import make_folder, provenance, write_metrics
from search_r3.cli.run_report import is_run, print_run
from search_r3.errors import UsageError
from search_r3.evaluation.report import model_names, print_differences, print_table, short_names, write_chart
from search_r3.evaluation.results import REMEDY
from search_r3.evaluation.significance import paired_differences
from search_r3.records import read_json


def main(argv: Sequence[str] | None = None) -> int:
    """Reads metrics.json files or folders.

    Raises:
        UsageError: If one is not there, or they are no one experiment's.
    """
    parser = Parser(prog="python -m src.report", description=__doc__)
    parser.add_argument(
        "paths", type=Path, nargs="+", help="a metrics.json, the folder that holds it, or training runs"
    )
    parser.add_argument("--output", type=Path, help="write the rows of all files to this metrics.json")
    parser.add_argument("--runs", action="store_true", help="every file is a run of one experiment")
    arguments = parser.parse_args(argv)
    if all(map(is_run, arguments.paths)) and not (arguments.output or arguments.runs):
        for folder in arguments.paths:
            print_run(folder)
        return 0
    files = [path / "metrics.json" if path.is_dir() else path for path in arguments.paths]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UsageError(f"{missing[0]} does not exist; `python -m src.evaluate` writes it")
    contents = {str(file): read_json(file, REMEDY) for file in files}
    if arguments.runs:
        try:
            report_runs(contents, arguments.output)
        except ValueError as error:
            raise UsageError(str(error)) from None
        return 0
    try:
        rows, sources = joined(contents)
        scores = known_scores([(Path(file), row) for file in contents for row in contents[file]["rows"]])
        differences = paired_differences(rows, scores)
    except ValueError as error:
        raise UsageError(str(error)) from None
    target = arguments.output or files[0]
    if arguments.output:
        make_folder(target.parent, "--output")
    measured = [row for row in rows if "ci95" in row]
    check_columns(measured)
    if arguments.output:
        origin = provenance(seed=next(iter(contents.values()))["seed"])
        write_metrics(
            target, relocated(rows, target.parent), origin, {"sources": sources, "differences": differences}
        )
    print_table(measured)
    if differences:
        print_differences(differences, short_names(measured) if model_names(measured) else {})
    for path, content in contents.items():
        print(f"{content['command']}  (commit {content['commit']}, seed {content['seed']}, {path})")
    print(f"chart: {write_chart(measured, target.with_suffix('.png'))}")
    return 0


def command(argv: Sequence[str] | None = None) -> None:
    """Runs the command and ends the process; `argv` is what follows its name, else the process's own."""
    run_command(lambda: main(argv))


if __name__ == "__main__":
    command()
