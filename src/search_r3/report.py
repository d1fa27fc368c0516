"""Prints the table of one or several metrics.json and draws its chart: `python -m src.report <metrics.json>`.

With `--html` all that is given (training runs, sweeps, searches, evaluations) is written as one page that
needs no other file: curves, tables with intervals, queries and rollouts with what was written about them.

The last model's reasoning is compared with all else, query by query, by a paired randomisation test. The
scores of every query lie in the folders of the evaluations; one that is missing, damaged or not that of its
row is an error. Of a file that was copied without these folders the table alone is printed, and this is said.

Of the folder of a training run, its state, validation rows and curves are shown: `src.report <run folder>`.

With `--output` the rows of all files and these differences are written as one file, which says where each
part came from. With `--runs` every file is a run of the same experiment (another seed, number of threads or
processor): printed are mean, range and intervals over runs and queries.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from search_r3.cli.evaluation_report import check_columns, joined, known_scores, relocated, report_runs
from search_r3.cli.last_resort import Parser, run_command
from search_r3.cli.page.whole_page import Evaluations, write_page
from search_r3.cli.provenance import provenance, write_metrics
from search_r3.cli.run_folder import is_sweep
from search_r3.cli.run_report import is_run, print_run
from search_r3.cli.sweep_table import print_sweep
from search_r3.errors import UsageError
from search_r3.evaluation.report import model_names, print_differences, print_table, short_names, write_chart
from search_r3.evaluation.results import REMEDY, is_one_collection
from search_r3.evaluation.significance import paired_differences
from search_r3.folders import make_folder
from search_r3.records import read_json

DEFAULT_PAGE = Path()
"""Of `--html` without a name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Reads metrics.json files or folders.

    Raises:
        UsageError: If one is not there, or they are no one experiment's.
    """
    parser = Parser(prog="python -m src.report", description=__doc__)
    parser.add_argument(
        "paths", type=Path, nargs="*", help="a metrics.json, the folder that holds it, training runs, sweeps"
    )
    parser.add_argument("--output", type=Path, help="write the rows of all files to this metrics.json")
    parser.add_argument("--runs", action="store_true", help="every file is a run of one experiment")
    parser.add_argument(
        "--html", type=Path, nargs="?", const=DEFAULT_PAGE, metavar="FILE",
        help="write a page; without a name report.html in the first folder",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if not arguments.paths:
        took = arguments.html not in (None, DEFAULT_PAGE)  # a folder that follows --html is read as its file
        raise UsageError(
            f"--html {arguments.html}: no folder is left to report; put --html behind all folders"
            if took
            else "name what to report: a metrics.json, the folder that holds it, training runs, sweeps"
        )
    page = _page_file(arguments)
    if arguments.output and (arguments.output.suffix != ".json" or arguments.output.is_dir()):
        raise UsageError(f"--output {arguments.output}: a file that ends in .json is needed")
    if arguments.runs:
        return _over_runs(arguments)
    sweeps = [path for path in arguments.paths if is_sweep(path)]  # the folder of a search reads like a run's
    runs = [path for path in arguments.paths if path not in sweeps and is_run(path)]
    tables = [path for path in arguments.paths if path not in runs and path not in sweeps]
    if arguments.output and not tables:
        raise UsageError("--output writes the rows of evaluations, and none was given")
    for folder in runs:
        print_run(folder)
    for folder in sweeps:
        print_sweep(folder)
    evaluations = _evaluations(tables, arguments.output) if tables else None
    if page is not None:
        print(f"page: {write_page(page, runs, sweeps, evaluations)}")
    return 0


def _page_file(arguments) -> Path | None:
    """Where the page is written; None where none is asked for.

    Raises:
        UsageError: If that is no place for it.
    """
    page, first = arguments.html, arguments.paths[0]
    if page is None:
        return None
    if arguments.runs:
        raise UsageError("--html shows runs and evaluations each; --runs means their mean. Give one of them")
    if page == DEFAULT_PAGE:
        return (first if first.is_dir() else first.parent) / "report.html"
    if page.is_dir():
        raise UsageError(f"--html {page}: is a folder; name the file, or put --html behind all folders")
    if page.suffix not in (".html", ".htm"):  # what follows --html is read as its file, and would be lost
        raise UsageError(f"--html {page}: a file that ends in .html is needed; put --html behind all paths")
    make_folder(page.absolute().parent, "--html")
    return page


def _contents(paths: Sequence[Path]) -> dict[str, dict]:
    """What the metrics.json of evaluations hold, by file.

    Raises:
        UsageError: If one is missing.
    """
    files = [path / "metrics.json" if path.is_dir() else path for path in paths]
    for file in files:
        if not file.is_file():
            raise UsageError(_what_is_missing(file))
        if _is_study(file):
            raise UsageError(f"{file} is the study of a search; its trials lie in {file.with_suffix('')}")
    return {str(file): read_json(file, REMEDY) for file in files}


def _has_table(folder: Path) -> bool:
    return (folder / "metrics.json").is_file()


def _is_study(file: Path) -> bool:
    """Whether a file is the database of a search, whose trials lie in a folder beside it."""
    with file.open("rb") as opened:
        return opened.read(15) == b"SQLite format 3"


def _what_is_missing(file: Path) -> str:
    """Why a path that was given is nothing to report."""
    if file.parent.is_dir() and file.name == "metrics.json":
        told = (
            f"{file} does not exist; `python -m src.evaluate` writes it. The folder is no training run "
            "and no sweep either"
        )
        below = (each for each in file.parent.iterdir() if is_run(each) or is_sweep(each) or _has_table(each))
        names = [str(each) for each in islice(sorted(below), 4)]
        return (
            f"{told}; in it lie {', '.join(names[:3])}{' and others' if names[3:] else ''}" if names else told
        )
    return f"{file}: no such file or folder"


def _over_runs(arguments) -> int:
    try:
        report_runs(_contents(arguments.paths), arguments.output)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return 0


def _evaluations(paths: Sequence[Path], output: Path | None) -> Evaluations:
    """Prints the rows of evaluations and how they differ, draws them, and writes both where that is asked."""
    contents = _contents(paths)
    try:
        rows, sources = joined(contents)
        scores = known_scores([(Path(file), row) for file in contents for row in contents[file]["rows"]])
        differences = paired_differences(rows, scores, is_one_collection)
    except ValueError as error:
        raise UsageError(str(error)) from None
    target = output or Path(next(iter(contents)))
    if output:
        make_folder(target.parent, "--output")
    measured = [row for row in rows if "ci95" in row]
    check_columns(measured)
    if output:
        origin = provenance(seed=next(iter(contents.values()))["seed"])
        write_metrics(
            target, relocated(rows, target.parent), origin, {"sources": sources, "differences": differences}
        )
    print_table(measured)
    if differences:
        print_differences(differences, short_names(measured) if model_names(measured) else {})
    for path, content in contents.items():
        print(f"{content['command']}  (commit {content['commit']}, seed {content['seed']}, {path})")
    # of several, not in the place of the first one's own picture
    picture = target.with_suffix(".png") if output or len(contents) == 1 else target.with_name("report.png")
    print(f"chart: {write_chart(measured, picture)}")
    known = [found for row, found in zip(rows, scores, strict=True) if "ci95" in row]
    return Evaluations(measured, known, differences, contents)


if __name__ == "__main__":
    run_command(main)
