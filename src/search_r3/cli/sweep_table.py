"""The table that ends a sweep: one line per job, read from the job folders."""

from collections.abc import Sequence
from pathlib import Path

from search_r3.cli.curves import read_panels
from search_r3.cli.run_folder import JOBS
from search_r3.cli.run_status import read_status, seconds_taken, state_of
from search_r3.evaluation.metrics import HEADLINE
from search_r3.records import RecordError, checked, read_json_if_there


def sweep_table(
    sweep: Path, jobs: Sequence[Sequence[str]], numbers: Sequence[int] | None = None
) -> tuple[str, bool]:
    """State, time, result and error of each job.

    Args:
        sweep: folder with one folder per job, named by its number.
        jobs: per job, the settings that tell it from the others.
        numbers: of the jobs; None where they are 0, 1, 2 and so on.

    Returns:
        The table as text, and whether every job finished.
    """
    rows = [["job", "settings", "state", "seconds", HEADLINE, "last loss", "last reward", "error"]]
    states = []
    for number, settings in zip(range(len(jobs)) if numbers is None else numbers, jobs, strict=True):
        folder = sweep / str(number)
        try:
            status, results = read_status(folder), _results(folder)
            last = _last(folder)
            states.append(state_of(folder) or "not started")
        except RecordError as error:
            status, results, last = {"error": str(error)}, "", ["", ""]
            states.append("not readable")
        error = (status.get("error") or "").splitlines() or [""]
        told = [str(number), " ".join(settings), states[-1], _seconds(status)]
        rows.append([*told, results, *last, error[0][:80]])
    return aligned(rows), all(state == "finished" for state in states)


def print_sweep(folder: Path) -> None:
    """Prints the table of a sweep or a search, of its jobs as they are now: some may have gone on since."""
    print(f"{folder}:\n{table_of_jobs(folder)[0]}")


def table_of_jobs(folder: Path) -> tuple[str, bool]:
    """The table of a sweep or a search, and whether every job of it finished.

    Raises:
        RecordError: If the record of its jobs is damaged.
    """
    file = folder / JOBS
    record = read_json_if_there(file, "without it the jobs that began are shown: move it away")
    if record:
        checked(file, record, "jobs", _is_lists_of_text, "a list of lists of text")
        return sweep_table(folder, record["jobs"])
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    origins = [read_json_if_there(folder / str(number) / "provenance.json") for number in numbers]
    overrides = [list(map(str, origin.get("overrides", []))) for origin in origins]
    return sweep_table(folder, overrides, numbers)


def _is_lists_of_text(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, list) and all(isinstance(text, str) for text in each) for each in value
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns of equal width; the first row is the heading, and empty columns are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _seconds(status: dict) -> str:
    seconds = seconds_taken(status)
    return "" if seconds is None else f"{seconds:.0f}"


def _last(folder: Path) -> list[str]:
    """Last loss and reward that a training run logged: its score where it validates nothing."""
    panels = read_panels(folder / "csv" / "metrics.csv")
    curves = [
        panels.get(title, {}).get(name) for title, name in (("loss terms", "loss"), ("reward", "reward"))
    ]
    return ["" if curve is None else f"{curve[1][-1]:.4g}" for curve in curves]


def _results(folder: Path) -> str:
    file = folder / "metrics.json"
    rows = read_json_if_there(file).get("rows", [])
    try:
        measured = [row for row in rows if HEADLINE in row["metrics"]]
        return " ".join(f"{row['mode']} {row['metrics'][HEADLINE]:.4f}" for row in measured)
    except (TypeError, KeyError, ValueError) as error:
        raise RecordError(file, f"has a row that is none ({error!r})") from None
