"""The folder of one run: what was asked, what happened, and what produced the numbers.

    <run>/config.yaml       the resolved configuration; `resume=<run>` reads it back
    <run>/provenance.json   command, commit, seed, Python and packages
    <run>/status.json       state, error, started, finished, host
    <run>/lock              held by the process that works in the folder
    <run>/<command>.log     everything that was logged, and the traceback of a failure
    <run>/metrics.json      the rows of the results table

What an earlier call left under one of these names and a later one replaces is kept as `<name>_before_<n>`.
A file is replaced whole or not at all, so that a run killed while writing leaves the earlier version.
"""

import contextlib
import errno
import importlib.metadata
import logging
import os
import platform
import shlex
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from search_r3 import records
from search_r3.cli.run_lock import LOCK, held, is_held
from search_r3.errors import UsageError, memory_text
from search_r3.files import json_text, os_error_text, write_json
from search_r3.folders import make_folder
from search_r3.shipped import IS_CHECKOUT, ROOT

log = logging.getLogger(__name__)
SOURCES = ("src", "conf", "pyproject.toml", "requirements.lock")
PACKAGES = (
    "torch",
    "pytorch-lightning",
    "transformers",
    "tokenizers",
    "peft",
    "faiss-cpu",
    "bm25s",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "numpy",
)
ROW_KEYS = ("benchmark", "mode", "model", "n_queries", "n_docs", "metrics")
JOBS = "jobs.json"
"""In the folder of a sweep: per job, the settings that tell it from the others."""
STATES = ("running", "finished", "failed", "interrupted", "pruned", "skipped")


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep (`--multirun`) or of a search (`src.tune`)."""
    return any((folder / name).is_file() for name in ("multirun.yaml", "search.json"))


class Interrupted(BaseException):
    """The user or the scheduler stopped the run; it can be resumed. Told and recorded."""


class Failed(Exception):
    """A job failed; its message is that of its cause. Told on the console and recorded in its folder."""


def log_written(*paths: Path) -> None:
    """Says of files and folders that they were written; one that is not there is left out."""
    for path in paths:
        if path.exists():
            log.info("wrote %s", path)


def read_json(path: Path, remedy: str = "repair it, or move it away") -> dict:
    """A JSON file whose content is an object, or an empty dict where there is no file.

    Raises:
        RecordError: If the file is damaged or something else.
    """
    return records.read_json(path, remedy) if os.path.lexists(path) else {}


def read_status(folder: Path) -> dict:
    """`status.json` of a run; an empty dict where there is none.

    Raises:
        RecordError: If it is damaged, or its state is none of `STATES`.
    """
    path = folder / "status.json"
    remedy = f"the run can go on without it: rm {shlex.quote(str(path))}"
    status = read_json(path, remedy)
    if status:
        records.checked(path, status, "state", STATES.__contains__, f"one of {', '.join(STATES)}", remedy)
        for key in ("error", "started", "finished", "host"):
            if not isinstance(status.get(key), (str, type(None))):
                shown = records.shown(status[key])
                raise records.RecordError(path, f"{key} must be a text, got {shown}", remedy)
    return status


def commit() -> str:
    """Commit of this checkout, with `-dirty` where a source, a config or the lock differs from it.

    An installed wheel says its version instead.
    """
    if not IS_CHECKOUT:
        return f"search-r3 {importlib.metadata.version('search-r3')}"

    def git(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        except FileNotFoundError:
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    if head is None:
        return "unknown"
    return f"{head}-dirty" if git("status", "--porcelain", "--", *SOURCES) else head


def provenance(command: str | None = None, seed: int | None = None) -> dict:
    """What makes a number reproducible: the first keys of metrics.json.

    Args:
        command: as the user typed it; this process's command line where None.
        seed: of the run; None where it has none.
    """
    return {
        "command": command or command_line(),
        "commit": commit(),
        "seed": seed,
        "python": platform.python_version(),
        "packages": versions_of(PACKAGES),
    }


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The version of each of some packages that is installed."""
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def command_line() -> str:
    """This process's command, quoted for a shell."""
    return shlex.join([*program(), *sys.argv[1:]])


def program() -> list[str]:
    """What this process's command begins with: how Python was given the module, or the script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["python", "-m", spec.name.removesuffix(".__main__")] if spec else ["python", sys.argv[0]]


def resume_command(folder: Path, keys: Sequence[str] = ()) -> str:
    """The command that goes on with the training run in a folder.

    Args:
        folder: of the run.
        keys: further ones, as `trust=[my_rules]`. Where this process was given `--config-dir`, so is that.
    """
    begin = program()
    if sys.argv[1:2] == ["train"]:
        begin.append("train")  # of the console script
    elif not begin[-1].endswith(".train"):  # a search, whose trials are runs
        begin = ["python", "-m", "src.train" if IS_CHECKOUT else "search_r3.train"]
    configs: list[str] = []
    for place, argument in enumerate(sys.argv):
        if argument in ("--config-dir", "-cd"):
            configs += sys.argv[place : place + 2]
        elif argument.startswith("--config-dir="):
            configs.append(argument)
    return shlex.join([*begin, *configs, f"resume={folder}", *keys])


def write_metrics(
    path: Path, rows: Sequence[Mapping], origin: Mapping, training: Mapping | None = None
) -> None:
    """Writes metrics.json.

    Args:
        path: the file.
        rows: one per benchmark and mode; `benchmark, mode, model, n_queries, n_docs, metrics` are required.
        origin: what `provenance` returned.
        training: facts about a training run that belong to no row, under a key of this name.

    Raises:
        ValueError: If a row misses a key, or a number is NaN or infinite.
    """
    for row in rows:
        missing = [key for key in ROW_KEYS if key not in row]
        if missing:
            raise ValueError(f"a row of {path} misses {', '.join(missing)}: {dict(row)}")
    keys = ("command", "commit", "seed", "python", "packages")
    content = {key: origin[key] for key in keys} | {"rows": [dict(row) for row in rows]}
    write_json(path, content | ({"training": dict(training)} if training else {}))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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
        lock = shlex.quote(str(folder / LOCK))
        raise UsageError(
            f"{folder}: a run on {str(status.get('host'))[:80]} works in it or was killed there, and from "
            f"{socket.gethostname()} the lock of a shared disk may not be seen. If nothing runs there any "
            f"more: rm {lock}, then the same command again"
        )
    with held(folder):
        yield


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


def _is_for_console(record: logging.LogRecord) -> bool:
    """Our own lines, and what other packages find worth a warning; Python's warnings are for the file."""
    if record.name == "py.warnings" or getattr(record, "file_only", False):
        return False
    return record.name.partition(".")[0] in ("search_r3", "__main__") or record.levelno >= logging.WARNING


class _LogFile(logging.FileHandler):
    """A log file that says once that it cannot be written, and lets the job go on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.is_failing = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        if not self.is_failing:
            self.is_failing = True
            reason = error.strerror or error
            with contextlib.suppress(OSError, ValueError):
                print(f"{self.baseFilename}: the log cannot be written ({reason})", file=sys.stderr)

    def close(self) -> None:
        try:
            super().close()
        except OSError:  # what was not written yet has no room either
            self.stream = None
            super().close()


@contextlib.contextmanager
def logged(path: Path, is_main: bool = True) -> Iterator[None]:
    """Sends the log to a file in full and to the console in short; warnings go to the file only."""
    root, level = logging.getLogger(), logging.getLogger().level
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _LogFile(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console = logging.StreamHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    console.addFilter(_is_for_console)
    console.name = "search_r3.console"
    is_nested = any(handler.name == console.name for handler in root.handlers)
    handlers = [file, console] if is_main and not is_nested else [file]
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


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
        end = _LastWord(folder)
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


class _LastWord:
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


def _is_interruption(error: BaseException) -> bool:
    """Lightning answers Ctrl-C by an exit with a number; an exit with words is a failure."""
    if isinstance(error, SystemExit):
        return error.code is None or isinstance(error.code, int)
    return isinstance(error, (KeyboardInterrupt, Interrupted))
