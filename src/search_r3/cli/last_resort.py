"""The end of every command: what went wrong is one line on standard error and an exit code that is not 0.

A job that has a run folder tells and records its own failure (`run_folder.recorded`). Everything else ends
here, whatever it is and wherever it was raised: a configuration that does not compose, a folder that cannot
be made, a closed pipe, Ctrl-C before the job began. A refusal ends with 2, an interruption with 130,
all else with 1.
"""

import argparse
import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from search_r3.cli.run_folder import Failed, Interrupted
from search_r3.errors import UsageError, memory_text
from search_r3.files import os_error_text
from search_r3.records import LONGEST_MESSAGE, clipped
from search_r3.shipped import IS_CHECKOUT, ROOT, as_called

EXIT_FAILED, EXIT_REFUSED, EXIT_INTERRUPTED = 1, 2, 130


def run_command(main: Callable[[], int]) -> NoReturn:
    """Calls a command and ends the process with its exit code, or with a line that says why there is none."""
    _print_everything()
    try:
        code = main()
        sys.stdout.flush()  # a closed pipe or a full disk is met here, where it can be told
    except BaseException as error:
        code = told(error)
        _drop_output()
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the job has ended, and how is decided
    sys.exit(code)


def told(error: BaseException) -> int:
    """Prints what was raised, unless that was done already, and returns the exit code for it."""
    if isinstance(error, Failed):
        return EXIT_FAILED
    if isinstance(error, Interrupted):
        return EXIT_INTERRUPTED
    if isinstance(error, SystemExit):
        return _told_exit(error)
    _print(f"error: {described(error)}")
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_REFUSED if isinstance(error, UsageError) else EXIT_FAILED


def _told_exit(error: SystemExit) -> int:
    if error.code is None or error.code == 0:
        return 0
    if isinstance(error.code, int):
        _print(f"error: ended with exit code {error.code}")
        return error.code
    _print(f"error: {_one_line(error.code)}")
    return EXIT_FAILED


def described(error: BaseException) -> str:
    """What was raised, in one line: its own words where they are for users, else with its kind and place."""
    if isinstance(error, UsageError):
        return _one_line(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, BrokenPipeError):
        return "standard output was closed before everything was written"
    if isinstance(error, OSError) and error.strerror:
        return os_error_text(error)
    if (lacking := memory_text(error)) is not None:
        return lacking
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if _is_ours(frame.filename)), None)
    where = f" ({Path(place.filename).relative_to(ROOT)}:{place.lineno})" if place else ""
    message = _one_line(error)
    return f"{type(error).__name__}{': ' if message else ''}{message}{where}"


def _is_ours(file: str) -> bool:
    """Whether a frame is of this checkout, or of the installed package."""
    is_library = IS_CHECKOUT and Path(file).is_relative_to(sys.prefix)
    return Path(file).is_relative_to(ROOT) and not is_library


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are those of all commands: one line, exit code 2."""

    def format_help(self) -> str:
        """The help, whose commands are those that there are here."""
        return as_called(super().format_help())

    def error(self, message: str) -> NoReturn:
        """Refuses.

        Raises:
            UsageError: Always.
        """
        raise UsageError(message)


def _one_line(message: object) -> str:
    return clipped(as_called(str(message)), LONGEST_MESSAGE)


def _print(line: str) -> None:
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    text = line if rank == "0" else line.replace("error: ", f"error: rank {rank}: ", 1)
    try:
        print(text, file=sys.stderr or sys.stdout, flush=True)
    except (OSError, ValueError, UnicodeError, AttributeError):
        return  # nobody can be told


def _print_everything() -> None:
    """Where the terminal's encoding lacks a character (Latin-1, ASCII), its escape is printed.

    A table with an arrow in it would otherwise end a command whose work is done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Empties standard output, or the interpreter would fail at it once more while it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
