"""Runs a command of the project in a forked process, with something that happens to it, and to its end.

The process is the leader of a group, so that what it leaves behind is found and ended.
"""

import contextlib
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.command import ENVIRONMENT, become, begun
from tests.faults.moments import Moment, watch

LIMIT_S = 300.0
"""How long a command may take, some seconds on a quiet machine; beyond it, it hangs."""
GONE_S = 20.0
"""How long what a command has started may outlive it."""


@dataclass(frozen=True)
class Command:
    """`python -m <module> <arguments>` in a folder.

    Attributes:
        module: as `src.train`.
        arguments: of the command line.
        place: the working folder; what the command writes lies below it.
        environment: beside that of the tests.
    """

    module: str
    arguments: tuple[str, ...]
    place: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def with_(self, *arguments: str, **environment: str) -> "Command":
        """The command with more arguments, or more of an environment."""
        given = {**self.environment, **environment}
        return Command(self.module, (*self.arguments, *arguments), self.place, given)


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code, negative for a signal; None where it was stopped at the limit.
        stdout: what it printed.
        stderr: what it told.
        seconds: from fork to end.
        orphans: processes of its group that outlived it by `GONE_S`, and were ended.
    """

    code: int | None
    stdout: str
    stderr: str
    seconds: float
    orphans: int

    @property
    def output(self) -> str:
        """All of both."""
        return self.stdout + self.stderr


class Running:
    """A command that was started."""

    def __init__(self, command: Command, moment: Moment | None = None, events: Path | None = None) -> None:
        self.started = time.monotonic()
        talk = command.place / ".talk"
        talk.mkdir(parents=True, exist_ok=True)
        self.files = [talk / f"{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        self.process = begun(self.files, _work, command, moment, events)

    def ended(self, limit_s: float = LIMIT_S) -> Ended:
        """Waits for the end."""
        self.process.join(max(0.0, self.started + limit_s - time.monotonic()))
        code = self.process.exitcode
        seconds = time.monotonic() - self.started
        deadline = time.monotonic() + (GONE_S if code is not None else 0.0)
        while (left := in_group(self.process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.join()
        texts = (file.read_text(errors="replace") if file.is_file() else "" for file in self.files)
        return Ended(code, *texts, seconds, len(left) if code is not None else 0)


def ended(command: Command, moment: Moment | None = None, events: Path | None = None) -> Ended:
    """Runs a command to its end, which a moment may bring."""
    return Running(command, moment, events).ended()


def wait_until(holds: Callable[[], bool], running: Running) -> bool:
    """Waits until something holds; False where the command ends before, or the limit is over."""
    while not holds():
        if running.process.exitcode is not None or time.monotonic() > running.started + LIMIT_S:
            return False
        time.sleep(0.02)
    return True


def counted(events: Path) -> Counter[str]:
    """Events by part, of a file that `watch` has written."""
    return Counter(line.partition(" ")[0] for line in events.read_text().splitlines())


def in_group(group: int | None) -> list[psutil.Process]:
    """Live processes of a group."""
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _work(command: Command, moment: Moment | None, events: Path | None) -> None:
    """The forked process."""
    os.setsid()  # now, as the moment may be before all else
    os.setsid = lambda: None
    tempfile.tempdir = None  # what the server found
    watch(command.place, moment, events)
    become(command.module, list(command.arguments), command.place, ENVIRONMENT | command.environment)
