"""What happens to a process at one moment, and which moments a command has.

A moment is told by what the process does, so that it is the same on a fast and on a slow machine. Counted
are the hooks that Lightning calls and what Python does to files (its audit events: opened for writing,
renamed, removed, made, truncated), each by the part of the run that it belongs to. Nothing of `src` is named:
code that is written anew has other moments and the same parts. A delay leads into what lies between two
events, such as the bytes of a file or a forward of the model.
"""

import contextlib
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

PARTS = ("step", "validation", "save", "model", "index", "records")
"""Of a run: what Lightning does in a step, what it does in a validation; files of checkpoints, of the model
folder, of the index or a cache, and all others."""

DISK = "disk"
"""The folder of a place in which a command writes; a small file system where its room is what is tried."""

CLOCK = "clock"
"""The part of a moment that is told by the seconds since the process began."""

LONGEST_DELAY_S = 0.05
_FILES = {
    "save": re.compile(r"(^|/)checkpoints(/|$)"),
    "model": re.compile(r"(^|/)model(\.[\w.]+)?(/|$)"),
    "index": re.compile(r"(^|/)(index|cache|\.cache|pydocs)(/|$)"),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Moment:
    """When and what.

    Attributes:
        act: a name in `ACTS`.
        part: one of `PARTS`, or `CLOCK`.
        number: which event of that part, from 1.
        delay_s: how long after it; with `CLOCK` since the process began.
    """

    act: str
    part: str
    number: int = 1
    delay_s: float = 0.0

    def __str__(self) -> str:
        if self.part == CLOCK:
            return f"{self.act} after {self.delay_s:.3f} s"
        delay = f" and {1e3 * self.delay_s:.0f} ms" if self.delay_s else ""
        return f"{self.act} at {self.part} {self.number}{delay}"


def drawn(rng: random.Random, act: str, part: str, counts: Mapping[str, int], seconds: float) -> Moment:
    """A moment of a part of an undisturbed run.

    Args:
        rng: what it is drawn by.
        act: a name in `ACTS`.
        part: wanted; the clock is taken where the run has no event of it.
        counts: events of the run by part.
        seconds: that the run took.
    """
    if part == CLOCK or not counts.get(part):
        return Moment(act, CLOCK, delay_s=rng.uniform(0.0, seconds))
    delay = rng.choice((0.0, rng.uniform(0.0, LONGEST_DELAY_S)))
    return Moment(act, part, rng.randint(1, counts[part]), delay)


# ---- in the process


def watch(root: Path, moment: Moment | None, events: Path | None) -> None:
    """Begins to count in this process.

    Args:
        root: files below it count.
        moment: what happens when; None where nothing does.
        events: file that a line is added to for every event, its part first.
    """
    watcher = _Watcher(root.resolve(), moment, events)
    if moment is not None and moment.part == CLOCK:
        watcher.strike()
    sys.addaudithook(watcher.audit)
    from pytorch_lightning.trainer import call

    plain = call._call_callback_hooks

    def hooked(trainer: object, name: str, *arguments: object, **options: object) -> object:
        with watcher.hook(name):
            return plain(trainer, name, *arguments, **options)

    call._call_callback_hooks = hooked


class _Watcher:
    def __init__(self, root: Path, moment: Moment | None, events: Path | None) -> None:
        self.root, self.moment = f"{root}/", moment
        self.counts: Counter[str] = Counter()
        self.is_validating = False
        self.busy = threading.local()
        self.events = None if events is None else os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def audit(self, event: str, arguments: tuple) -> None:
        """Takes a note of what Python does to a file."""
        if getattr(self.busy, "now", False) or event not in _PATHS_OF:
            return
        self.busy.now = True
        try:
            for path in _PATHS_OF[event](*arguments):
                if path.startswith(self.root):
                    self.count(_part_of(path.removeprefix(self.root)), f"{event} {path}")
                    return
        finally:
            self.busy.now = False

    @contextlib.contextmanager
    def hook(self, name: str) -> Iterator[None]:
        """Takes a note of a call of Lightning's callbacks."""
        if name == "on_validation_start":
            self.is_validating = True
        self.count("validation" if self.is_validating else "step", name)
        yield
        if name == "on_validation_end":
            self.count("validation", "after on_validation_end")
            self.is_validating = False

    def count(self, part: str, text: str) -> None:
        """One event more."""
        self.counts[part] += 1
        if self.events is not None:
            os.write(self.events, f"{part} {text}\n".encode())
        moment = self.moment
        if moment is not None and (moment.part, moment.number) == (part, self.counts[part]):
            self.strike()

    def strike(self) -> None:
        """Does what the moment says, now or after its delay."""
        act = ACTS[self.moment.act]
        if self.moment.delay_s == 0:
            act(Path(self.root))
            return
        timer = threading.Timer(self.moment.delay_s, act, (Path(self.root),))
        timer.daemon = True
        timer.start()


def _part_of(path: str) -> str:
    return next((part for part, pattern in _FILES.items() if pattern.search(path)), "records")


def _absolute(path: object, folder: int = -1) -> str:
    if not isinstance(path, str | bytes | os.PathLike):
        return ""
    path = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0 and not os.path.isabs(path):
        with contextlib.suppress(OSError):
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return os.path.abspath(path)


_PATHS_OF: dict[str, Callable[..., list[str]]] = {
    "open": lambda path, mode, flags: [_absolute(path)] if flags & _WRITES else [],
    "os.rename": lambda old, new, old_in=-1, new_in=-1: [_absolute(new, new_in), _absolute(old, old_in)],
    "os.remove": lambda path, folder=-1: [_absolute(path, folder)],
    "os.rmdir": lambda path, folder=-1: [_absolute(path, folder)],
    "os.mkdir": lambda path, mode=0, folder=-1: [_absolute(path, folder)],
    "os.truncate": lambda path, length: [_absolute(path)],
}


# ---- what happens


def _signal(number: int) -> Callable[[Path], None]:
    return lambda root: os.kill(os.getpid(), number)


def _kill_all(root: Path) -> None:
    os.killpg(0, signal.SIGKILL)


def _kill_the_second(root: Path) -> None:
    """Kills the rank that this one has started; nothing where there is none yet, or none any more."""
    for child in psutil.Process().children():
        if "src.train" in " ".join(child.cmdline()):
            child.kill()


def fill(root: Path) -> None:
    """Leaves no byte on the disk of a place."""
    with (root / DISK / "filler").open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def _hold(root: Path) -> None:
    """Waits until somebody removes the file that says so."""
    held = root / "held"
    held.touch()
    while held.exists():
        time.sleep(0.01)


ACTS: dict[str, Callable[[Path], None]] = {
    "SIGKILL": _signal(signal.SIGKILL),
    "SIGTERM": _signal(signal.SIGTERM),
    "kill-all": _kill_all,
    "kill-second": _kill_the_second,
    "fill": fill,
    "hold": _hold,
}
