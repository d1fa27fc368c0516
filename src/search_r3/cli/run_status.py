"""How a run stands: `status.json` in its folder, beside the lock of whatever works there."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from search_r3 import records
from search_r3.cli.run_lock import LOCK, held, is_held
from search_r3.errors import UsageError
from search_r3.files import json_text, shell_command, write_json

STATES = ("running", "finished", "failed", "interrupted", "pruned", "skipped")


def read_status(folder: Path) -> dict:
    """`status.json` of a run; an empty dict where there is none.

    Raises:
        RecordError: If it is damaged, or its state is none of `STATES`.
    """
    path = folder / "status.json"
    remedy = f"the run can go on without it: {shell_command('rm', path)}"
    status = records.read_json_if_there(path, remedy)
    if status:
        records.checked(path, status, "state", STATES.__contains__, f"one of {', '.join(STATES)}", remedy)
        for key in ("error", "started", "finished", "host"):
            if not isinstance(status.get(key), (str, type(None))):
                shown = records.shown(status[key])
                raise records.RecordError(path, f"{key} must be a text, got {shown}", remedy)
    return status


def write_status(folder: Path, state: str, error: str | None = None) -> None:
    """Records the state of a run; `started` is kept from an earlier call, `finished` is set by an end.

    Raises:
        ValueError: If the state is none of `STATES`.
    """
    write_json(folder / "status.json", _status(folder, state, error))


def _status(folder: Path, state: str, error: str | None) -> dict[str, object]:
    if state not in STATES:
        raise ValueError(f"state must be one of {', '.join(STATES)}, got {state!r}")
    is_running = state == "running"
    started = _now() if is_running else _started(folder)
    status = {"state": state, "error": error, "started": started, "finished": None if is_running else _now()}
    return status | {"host": socket.gethostname(), "pid": os.getpid()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _started(folder: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, AttributeError, UsageError):
        return read_status(folder).get("started")
    return None


def seconds_taken(status: Mapping) -> float | None:
    """From start to end, by a run's `status.json`; None where it has not ended, or the times do not say."""
    try:
        start, end = (datetime.fromisoformat(status[key]) for key in ("started", "finished"))
        return (end - start).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def state_of(folder: Path) -> str | None:
    """State of the run in a folder; None where there is none.

    A run that says `running` and whose lock is free was killed: `interrupted`. Where it ran on another
    machine and its lock file is there, its lock may not be seen from here: `running`.
    """
    status = read_status(folder)
    if status.get("state") != "running" or is_held(folder) or _may_run_elsewhere(folder, status):
        return status.get("state")
    return "interrupted"


def _may_run_elsewhere(folder: Path, status: Mapping) -> bool:
    return status.get("host") != socket.gethostname() and (folder / LOCK).exists()


@contextlib.contextmanager
def taken(folder: Path) -> Iterator[None]:
    """Keeps every other process out of a run folder; within it, this process may ask again.

    Args:
        folder: exists and can be written to.

    Raises:
        UsageError: If another process works in it, or one of another machine may.
    """
    status = read_status(folder)
    if status.get("state") == "running" and not is_held(folder) and _may_run_elsewhere(folder, status):
        raise UsageError(
            f"{folder}: a run on {str(status.get('host'))[:80]} works in it or was killed there, and from "
            f"{socket.gethostname()} the lock of a shared disk may not be seen. If nothing runs there any "
            f"more: {shell_command('rm', folder / LOCK)}, then the same command again"
        )
    with held(folder):
        yield


class LastWord:
    """How a job ended, on a disk that may be full by then: its place is taken when the job begins."""

    SIZE = 4096

    def __init__(self, folder: Path) -> None:
        self._folder, self._reserve = folder, folder / "status.json.reserve"
        try:
            self._reserve.write_bytes(b" " * self.SIZE)
        except OSError as error:
            error.filename = str(self._reserve)  # errors of `write` have none
            raise

    def write(self, state: str, error: str | None = None) -> None:
        """Writes status.json.

        Raises:
            OSError: If not even that is possible, and the job did not fail.
        """
        try:
            write_status(self._folder, state, error)
        except OSError as failed:
            if failed.errno not in (errno.ENOSPC, errno.EDQUOT):
                if state == "finished":
                    raise
                return  # why the job failed has been told
            self._write_in_place(state, error)
        with contextlib.suppress(OSError):
            self._reserve.unlink(missing_ok=True)

    def _write_in_place(self, state: str, error: str | None) -> None:
        """Over the bytes that were taken, which needs no room; blanks fill them up."""
        while len(text := json_text(_status(self._folder, state, error)).encode()) > self.SIZE:
            error = (error or "")[: len(error or "") // 2]
        with contextlib.suppress(OSError):
            with self._reserve.open("r+b") as file:
                file.write(text.ljust(self.SIZE))
            os.replace(self._reserve, self._folder / "status.json")
