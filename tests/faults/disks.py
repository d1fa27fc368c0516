"""A disk that is full from a drawn moment on, one that is read-only, and a TMPDIR without room.

The command writes to a small file system in memory, which only root can make.
"""

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.faults.attack import (
    Attack,
    Verdict,
    Workshop,
    compared,
    complaint,
    first_error,
    is_over,
)
from tests.faults.commands import ended
from tests.faults.moments import CLOCK, DISK, drawn
from tests.faults.tiny import RUN

FULL = ("sft", "rl", "pretrain", "evaluate")
PARTS = ("save", "records", "model", "index", CLOCK)
READ_ONLY = ("sft", "rl", "evaluate")
TEMPORARY = ("sft", "rl", "pretrain", "evaluate", "mining")


def attacks(workshop: Workshop, n: int, only: Sequence[str]) -> Iterator[Attack]:
    """`n` full disks for each subject; one read-only disk, and one small TMPDIR, for each."""
    for name in FULL:
        for number in range(n):
            yield Attack(f"full/{name}/{number}", partial(_full, workshop, name, number))
    for name in READ_ONLY:
        yield Attack(f"read-only/{name}", partial(_read_only, workshop, name))
    for name in TEMPORARY:
        yield Attack(f"tmpdir/{name}", partial(_without_tmpdir, workshop, name))


def why_not() -> str | None:
    """Why no file system can be mounted here; None where one can."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    return None


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own in a folder, which is empty.

    Raises:
        OSError: If the system refuses, as in many containers.
    """
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        raise OSError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _remounted(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def _skipping(attack):
    """Says why, where the file system cannot be made."""

    def made(*arguments: object) -> Verdict:
        if (reason := why_not()) is not None:
            return Verdict("skipped", reason)
        try:
            return attack(*arguments)
        except OSError as error:
            return Verdict("skipped", f"no file system could be mounted: {error}")

    return made


@_skipping
def _full(workshop: Workshop, name: str, number: int, rng: random.Random) -> Verdict:
    reference = workshop.reference(name)
    moment = drawn(rng, "fill", PARTS[number % len(PARTS)], reference.counts, reference.seconds)
    with workshop.place() as place, mounted(place / DISK, "48m"):
        done = ended(reference.subject.command(place), moment)
        story = f"{name}; {moment}: {done.code}"
        (place / DISK / "filler").unlink(missing_ok=True)
        if done.code is None:
            return Verdict("hangs", story)
        if done.code != 0:
            wrong = complaint(done, f"{DISK}/") or _advice(done)
            if wrong is not None:
                return Verdict("untold", f"{story}; {wrong}")
            if not is_over(place / RUN):
                return Verdict("untold", f"{story}; the record says that it runs")
        return compared(reference, place, ended(reference.subject.command(place)), story)


def _advice(done) -> str | None:
    line = first_error(done)
    has = any(word in line for word in ("room", "space", "free", "another", "Make", "make"))
    return None if has else f"no remedy in: {line}"


@_skipping
def _read_only(workshop: Workshop, name: str, rng: random.Random) -> Verdict:
    reference = workshop.reference(name)
    with workshop.place() as place, mounted(place / DISK, "48m"):
        first = drawn(rng, "SIGKILL", "records", reference.counts, reference.seconds)
        done = ended(reference.subject.command(place), first)
        _remounted(place / DISK, "ro")
        done = ended(reference.subject.command(place))
        story = f"{name}; {first}, then read-only: {done.code}"
        wrong = complaint(done, f"{DISK}/") if done.code else None
        if wrong is not None:
            return Verdict("hangs" if done.code is None else "untold", f"{story}; {wrong}")
        _remounted(place / DISK, "rw")
        return compared(reference, place, ended(reference.subject.command(place)), story)


@_skipping
def _without_tmpdir(workshop: Workshop, name: str, rng: random.Random) -> Verdict:
    reference = workshop.reference(name)
    with workshop.place() as place, mounted(place / "tmp", "64k"):
        done = ended(reference.subject.command(place).with_(TMPDIR=str(place / "tmp")))
        left = [path.name for path in (place / "tmp").iterdir()]
        verdict = compared(reference, place, done, f"{name}; TMPDIR of 64 KiB")
        return Verdict("left over", f"{name}: {left[:3]} in TMPDIR") if left and not done.code else verdict
