"""Where the log of a run goes: in full to a file of its folder, in short to the console."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)


def log_written(*paths: Path) -> None:
    """Says of files and folders that they were written; one that is not there is left out."""
    for path in paths:
        if path.exists():
            log.info("wrote %s", path)


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
