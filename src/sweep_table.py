"""The table that ends a sweep: one line per job, read from the job folders."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from src.run_folder import read_json, state_of

MAIN_METRIC = "ndcg@10"


def sweep_table(sweep: Path, jobs: Sequence[Sequence[str]]) -> tuple[str, bool]:
    """State, time, result and error of each job.

    Args:
        sweep: folder with one folder per job, named by its number.
        jobs: per job, the settings that tell it from the others.

    Returns:
        The table as text, and whether every job finished.
    """
    rows = [["job", "settings", "state", "seconds", MAIN_METRIC, "error"]]
    states = []
    for number, settings in enumerate(jobs):
        folder = sweep / str(number)
        status = read_json(folder / "status.json")
        states.append(state_of(folder) or "not started")
        error = (status.get("error") or "").splitlines() or [""]
        rows.append(
            [str(number), " ".join(settings), states[-1], _seconds(status), _results(folder), error[0][:80]]
        )
    return aligned(rows), all(state == "finished" for state in states)


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
    if not status.get("started") or not status.get("finished"):
        return ""
    start, end = (datetime.fromisoformat(status[key]) for key in ("started", "finished"))
    return f"{(end - start).total_seconds():.0f}"


def _results(folder: Path) -> str:
    rows = read_json(folder / "metrics.json").get("rows", [])
    return " ".join(
        f"{row['mode']} {row['metrics'][MAIN_METRIC]:.4f}" for row in rows if MAIN_METRIC in row["metrics"]
    )
