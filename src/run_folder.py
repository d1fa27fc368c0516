"""The folder of one run: what was asked, what happened, and what produced the numbers.

    <run>/config.yaml       the resolved configuration; `resume=<run>` reads it back
    <run>/provenance.json   command, commit, seed, Python and packages
    <run>/status.json       state, error, started, finished
    <run>/<command>.log     everything that was logged, and the traceback of a failure
    <run>/metrics.json      the rows of the results table

What an earlier call left under one of these names and a later one replaces is kept as `<name>_before_<n>`.
A file is replaced whole or not at all, so that a run killed while writing leaves the earlier version.
"""

import contextlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import shlex
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from src.command_line import UsageError

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
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
STATES = ("running", "finished", "failed", "interrupted", "pruned", "skipped")


class Interrupted(BaseException):
    """The user or the scheduler stopped the run; it can be resumed. Told and recorded."""


class Failed(Exception):
    """A job failed; its message is that of its cause. Told on the console and recorded in its folder."""


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_json(path: Path, content: object) -> None:
    """Writes JSON whole or not at all.

    Raises:
        ValueError: If the content holds a NaN or an infinity, which JSON cannot say.
    """
    write_text(path, json_text(content))


def keep_earlier(path: Path, content: str | None = None) -> Path | None:
    """Copies a record that will be replaced to `<stem>_before_<n><suffix>` beside it.

    Args:
        path: of the record.
        content: what will replace it; None where that is not known yet.

    Returns:
        Where the earlier one lies now; None where there is none, it is as the new one, or it is kept already.
    """
    if not path.is_file():
        return None
    earlier = path.read_text(encoding="utf-8")
    numbered = (path.with_name(f"{path.stem}_before_{number}{path.suffix}") for number in itertools.count(1))
    kept = list(itertools.takewhile(Path.is_file, numbered))
    if earlier == content or (kept and kept[-1].read_text(encoding="utf-8") == earlier):
        return None
    target = path.with_name(f"{path.stem}_before_{len(kept) + 1}{path.suffix}")
    write_text(target, earlier)
    return target


def log_written(*paths: Path) -> None:
    """Says of files and folders that they were written; one that is not there is left out."""
    for path in paths:
        if path.exists():
            log.info("wrote %s", path)


def json_text(content: object) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> dict:
    """A JSON file, or an empty dict where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def commit() -> str:
    """Commit of this checkout, with `-dirty` where a source, a config or the lock differs from it."""

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
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "command": command or command_line(),
        "commit": commit(),
        "seed": seed,
        "python": platform.python_version(),
        "packages": versions,
    }


def command_line() -> str:
    """This process's command, quoted for a shell."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", spec.name] if spec else ["python", sys.argv[0]]
    return shlex.join([*program, *sys.argv[1:]])


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
    if state not in STATES:
        raise ValueError(f"state must be one of {', '.join(STATES)}, got {state!r}")
    is_running = state == "running"
    started = _now() if is_running else read_json(folder / "status.json").get("started")
    status = {"state": state, "error": error, "started": started, "finished": None if is_running else _now()}
    write_json(folder / "status.json", status | {"host": socket.gethostname(), "pid": os.getpid()})


def state_of(folder: Path) -> str | None:
    """State of the run in a folder; None where there is none.

    A run that says `running` and whose process is gone from this machine was killed: `interrupted`.
    """
    status = read_json(folder / "status.json")
    if status.get("state") == "running" and status.get("host") == socket.gethostname():
        try:
            os.kill(status["pid"], 0)
        except ProcessLookupError:
            return "interrupted"
        except PermissionError:
            pass
        if status["pid"] == os.getpid():
            return "interrupted"
    return status.get("state")


def make_folder(folder: Path, key: str = "output_dir") -> Path:
    """Makes a folder, with its parents, that files can be written to.

    Args:
        folder: may exist.
        key: that the user gave it by.

    Raises:
        UsageError: With the reason, where it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # as long as the paths that are written below it
        with tempfile.NamedTemporaryFile(dir=folder.absolute(), prefix="probe_".ljust(96, "_")):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{key}={folder}: cannot be written to ({reason}); name a folder that can be made"
        ) from None
    return folder


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
    return record.name.partition(".")[0] in ("src", "__main__") or record.levelno >= logging.WARNING


@contextlib.contextmanager
def logged(path: Path, is_main: bool = True) -> Iterator[None]:
    """Sends the log to a file in full and to the console in short; warnings go to the file only."""
    root, level = logging.getLogger(), logging.getLogger().level
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console = logging.StreamHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    console.addFilter(_is_for_console)
    console.name = "src.console"
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
def recorded(folder: Path, log_name: str) -> Iterator[None]:
    """Runs a job with its log and its status in `folder`.

    A failure's traceback is written to the log, its last line to the console and to status.json.

    Raises:
        Interrupted: Where the job was stopped: Ctrl-C, SIGTERM, or Lightning's exit after either.
        Failed: From whatever else the job raised.
    """
    log_file = folder / log_name
    with logged(log_file):
        write_status(folder, "running")
        try:
            yield
        except BaseException as error:
            if _is_interruption(error):
                log.info("interrupted; %s", folder)
                write_status(folder, "interrupted", error=type(error).__name__)
                raise Interrupted(str(folder)) from error
            log.error("%s", traceback.format_exc(), extra={"file_only": True})
            message = f"{type(error).__name__}: {error}"
            log.error("error: %s\ntraceback: %s", message, log_file)
            write_status(folder, "failed", error=message)  # last, as it fails where the disk is full
            raise Failed(message) from error
        else:
            write_status(folder, "finished")


def _is_interruption(error: BaseException) -> bool:
    """Lightning answers Ctrl-C by an exit with a number; an exit with words is a failure."""
    if isinstance(error, SystemExit):
        return error.code is None or isinstance(error.code, int)
    return isinstance(error, (KeyboardInterrupt, Interrupted))
