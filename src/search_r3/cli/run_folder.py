"""The folder of one run: what was asked, what happened, and what produced the numbers.

    <run>/config.yaml       the resolved configuration; `resume=<run>` reads it back
    <run>/provenance.json   command, commit, seed, Python and packages; see `provenance`
    <run>/status.json       state, error, started, finished, host; see `run_status`
    <run>/lock              held by the process that works in the folder; see `run_lock`
    <run>/<command>.log     everything that was logged, and the traceback of a failure; see `run_log`
    <run>/metrics.json      the rows of the results table; see `provenance`

What an earlier call left under one of these names and a later one replaces is kept as `<name>_before_<n>`.
A file is replaced whole or not at all, so that a run killed while writing leaves the earlier version.
"""

import contextlib
import logging
import traceback
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from search_r3 import records
from search_r3.cli.run_log import logged
from search_r3.cli.run_status import LastWord, write_status
from search_r3.errors import UsageError, memory_text
from search_r3.files import os_error_text
from search_r3.folders import make_folder

log = logging.getLogger(__name__)
JOBS = "jobs.json"
"""In the folder of a sweep: per job, the settings that tell it from the others."""


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep (`--multirun`) or of a search (`src.tune`)."""
    return any((folder / name).is_file() for name in ("multirun.yaml", "search.json"))


def new_folder(label: str, root: Path = Path("outputs"), made_at: datetime | None = None) -> Path:
    """Makes `<root>/<date>/<time>_<label>`; runs of one second get `_2`, `_3`, ..."""
    now = made_at or datetime.now()
    base = root / f"{now:%Y-%m-%d}" / (f"{now:%H-%M-%S}_{label}" if label else f"{now:%H-%M-%S}")
    make_folder(base.parent)
    number, folder = 1, base
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = base.with_name(f"{base.name}_{number}")


class Interrupted(BaseException):
    """The user or the scheduler stopped the run; it can be resumed. Told and recorded."""


class Failed(Exception):
    """A job failed; its message is that of its cause. Told on the console and recorded in its folder."""


@contextlib.contextmanager
def recorded(folder: Path, log_name: str, go_on: str = "") -> Iterator[None]:
    """Runs a job with its log and its status in `folder`.

    A failure's traceback is written to the log, its last line to the console and to status.json.

    Args:
        folder: of the run.
        log_name: file in it.
        go_on: the command that goes on with the job after an interruption, which its last line then says.

    Raises:
        Interrupted: Where the job was stopped: Ctrl-C, SIGTERM, or Lightning's exit after either.
        Failed: From whatever else the job raised.
    """
    log_file = folder / log_name
    with logged(log_file):
        end = LastWord(folder)
        write_status(folder, "running")
        try:
            yield
        except BaseException as error:
            if _is_interruption(error):
                log.info("interrupted; %s", f"to go on: {go_on}" if go_on else folder)
                end.write("interrupted")
                raise Interrupted(str(folder)) from error
            log.error("%s", traceback.format_exc(), extra={"file_only": True})
            message = failure_text(error, folder)
            log.error("error: %s\ntraceback: %s", message, log_file)
            end.write("failed", message)
            raise Failed(message) from error
        else:
            end.write("finished")


def failure_text(error: BaseException, folder: Path) -> str:
    """What a job failed of, in a line: the kind where it is not said by the words."""
    if isinstance(error, OSError) and error.strerror:
        return os_error_text(error, folder)
    if (lacking := memory_text(error)) is not None:
        return lacking
    words = records.clipped(error, records.LONGEST_MESSAGE)
    if isinstance(error, UsageError):
        return words
    return f"{type(error).__name__}: {words}" if words else f"{type(error).__name__}, without a word"


def _is_interruption(error: BaseException) -> bool:
    """Lightning answers Ctrl-C by an exit with a number; an exit with words is a failure."""
    if isinstance(error, SystemExit):
        return error.code is None or isinstance(error.code, int)
    return isinstance(error, (KeyboardInterrupt, Interrupted))
