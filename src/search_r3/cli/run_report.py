"""What `src.report` says of the folder of a training run: its state, its validation rows, its curves."""

import re
from collections.abc import Mapping
from pathlib import Path

from search_r3.cli.command_line import resume_command
from search_r3.cli.curves import FILE, drawn_curves, read_panels
from search_r3.cli.run_status import read_status, seconds_taken, state_of
from search_r3.cli.sweep_table import aligned
from search_r3.evaluation.metrics import METRICS
from search_r3.evaluation.results import checked_row
from search_r3.records import RecordError, read_json_if_there


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a training run, finished or not."""
    file = folder / "config.yaml"
    if not (folder / "status.json").is_file() or not file.is_file():
        return False
    return re.search(r"^stage:", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE) is not None


def measured_rows(folder: Path) -> list[dict]:
    """The rows of a run's metrics.json; none where it has not written one.

    Raises:
        RecordError: If the file or a row is damaged.
    """
    file = folder / "metrics.json"
    rows = read_json_if_there(file).get("rows", [])
    if not isinstance(rows, list):
        raise RecordError(file, "rows must be a list")
    return [checked_row(row, file, f"rows[{number}]") for number, row in enumerate(rows)]


def print_run(folder: Path) -> None:
    """Prints what a run has come to and draws its curves.

    Raises:
        RecordError: If a record of it is damaged.
    """
    status, results = read_status(folder), read_json_if_there(folder / "metrics.json")
    state = state_of(folder)
    print(f"{folder}: {state}{_time(status)}{_error(status)}")
    if results.get("command"):
        print(f"  {results['command']}  (commit {results.get('commit')}, seed {results.get('seed')})")
    rows = measured_rows(folder)
    measured = [row for row in rows if any(name in row["metrics"] for name in METRICS)]
    panels = read_panels(folder / "csv" / "metrics.csv")
    if measured:
        print("\n" + _table(measured))
    elif validation := panels.get("nDCG@10, validation"):
        rows_so_far = [
            [mode, str(steps[-1]), f"{values[-1]:.3f}"] for mode, (steps, values) in validation.items()
        ]
        print("\n" + aligned([["mode", "step", "ndcg@10"], *rows_so_far]))
    else:
        print("  no validation so far")
    for title in ("loss terms", "reward"):
        last = [f"{name} {values[-1]:.4g}" for name, (_, values) in panels.get(title, {}).items()]
        if last:
            steps = next(iter(panels[title].values()))[0]
            print(f"\n{title} at step {steps[-1]}: {', '.join(last)}")
    if (folder / "model").is_dir():
        print(f"\nmodel: {folder / 'model'}")
    if state in ("interrupted", "failed"):
        print(f"\nto go on: {resume_command(folder)}")
    picture = drawn_curves(folder)
    print(f"curves: {picture}" if picture else f"no {FILE}: nothing has been logged yet")


def _table(rows: list[Mapping]) -> str:
    lines = [["validation on", "mode", "queries", "documents", *METRICS]]
    for row in rows:
        values = [f"{row['metrics'][name]:.3f}" if name in row["metrics"] else "" for name in METRICS]
        lines.append([row["benchmark"], row["mode"], str(row["n_queries"]), str(row["n_docs"]), *values])
    return aligned(lines)


def _time(status: Mapping) -> str:
    seconds = seconds_taken(status)
    return "" if seconds is None else f" after {seconds / 60:.0f} min"


def _error(status: Mapping) -> str:
    return f" ({status['error'].splitlines()[0]})" if status.get("error") else ""
