"""An attack, what came of it, and the workshop in which all of them are made ready."""

import contextlib
import random
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_r3.cli.run_status import state_of
from tests.faults import tiny
from tests.faults.commands import Ended, counted, ended
from tests.faults.moments import DISK, Moment
from tests.faults.results import differences

OUTCOMES = ("equal", "refused", "differs", "lost", "untold", "hangs", "left over", "failed", "skipped")
"""What may come of an attack: the result is that of an undisturbed run, to the bit; the command refused in
one clear line. Or a promise is broken: another result with exit 0, work that cannot go on, an end without a
clear line, no end, files or processes that stay. Or the attack itself fails, or cannot be made here."""

KEPT = ("equal", "refused", "skipped")
"""Outcomes that break no promise. A killed run that is refused has the outcome `lost`."""

MOST_LINES, LONGEST_LINE = 9, 1000
"""Of what is told of one fault."""


@dataclass(frozen=True)
class Verdict:
    """What came of an attack.

    Attributes:
        outcome: one of `OUTCOMES`.
        told: what was done and seen, in one line.
    """

    outcome: str
    told: str = ""


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        name: kind, subject and number, as `kill/sft/3`; with the seed it says all there is to draw.
        run: makes it; is given what it draws by.
    """

    name: str
    run: Callable[[random.Random], Verdict]

    @property
    def row(self) -> str:
        """The row of the table that it counts in."""
        return "/".join(self.name.split("/")[:2])

    def verdict(self, seed: int) -> Verdict:
        """Makes the attack."""
        return self.run(random.Random(f"{seed}/{self.name}"))


@dataclass(frozen=True)
class Reference:
    """An undisturbed run.

    Attributes:
        subject: what ran.
        place: where.
        result: what came out.
        counts: events by part, see `moments`.
        seconds: that it took.
    """

    subject: tiny.Subject
    place: Path
    result: Mapping[str, object]
    counts: Counter[str]
    seconds: float


class Workshop:
    """Places of attacks, and undisturbed runs, each made when it is first asked for and then shared."""

    def __init__(self, folder: Path, keeps: bool = False) -> None:
        """Takes a folder of its own; `keeps` leaves the places of attacks."""
        self.folder, self.keeps = folder, keeps
        self._lock, self._locks, self._made = threading.Lock(), {}, {}
        self._number = 0

    def made(self, name: str, make: Callable[[], object]) -> object:
        """What a function gives, called once."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._made:
                self._made[name] = make()
            return self._made[name]

    @property
    def given(self) -> tiny.Given:
        """What the subjects start from."""
        return self.made("given", lambda: tiny.write_given(self.folder / "given"))

    def subject(self, name: str) -> tiny.Subject:
        """One of all."""
        given = self.given
        found = [*tiny.trainings(given), *tiny.two_ranks(given), tiny.evaluation(given)]
        found += [tiny.caching(given), tiny.mining(given), tiny.search(given)]
        return next(subject for subject in found if subject.name == name)

    def reference(self, name: str) -> Reference:
        """The undisturbed run of a subject.

        Raises:
            RuntimeError: If it fails, which no attack can be compared with.
        """
        return self.made(f"reference-{name}", lambda: self._undisturbed(name))

    def _undisturbed(self, name: str) -> Reference:
        subject, place = self.subject(name), self.folder / f"reference-{name}"
        (place / DISK).mkdir(parents=True)
        done = ended(subject.command(place), events=place / "events")
        if done.code != 0:
            raise RuntimeError(f"{name} fails undisturbed: {done.output[-2000:]}")
        return Reference(subject, place, subject.result(place), counted(place / "events"), done.seconds)

    def interrupted(self, name: str) -> Path:
        """A place in which a subject was killed in its last third; to be copied."""

        def kill() -> Path:
            reference, place = self.reference(name), self.folder / f"interrupted-{name}"
            (place / DISK).mkdir(parents=True)
            last = Moment("SIGKILL", "step", int(0.8 * reference.counts["step"]))
            done = ended(reference.subject.command(place), last)
            if done.code != -9:
                raise RuntimeError(f"{name} was not killed: {done.code} {done.output[-2000:]}")
            return place

        return self.made(f"interrupted-{name}", kill)

    @contextlib.contextmanager
    def place(self, source: Path | None = None) -> Iterator[Path]:
        """A folder for one attack, empty or a copy."""
        with self._lock:
            self._number += 1
            place = self.folder / f"attack-{self._number}"
        if source is None:
            (place / DISK).mkdir(parents=True)
        else:
            tiny.copied(source, place)
        try:
            yield place
        finally:
            if not self.keeps:
                shutil.rmtree(place, ignore_errors=True)


def is_among(name: str, only: Sequence[str]) -> bool:
    """Whether a name, or a part of it from its beginning, is asked for, or is the beginning of one that is.

    >>> is_among("kill/sft", ["kill"]), is_among("kill/sft", ["kill/sft/3"]), is_among("kill/sft", ["kill/s"])
    (True, True, False)
    """
    return any(f"{name}/".startswith(f"{one}/") or f"{one}/".startswith(f"{name}/") for one in only)


# ---- judging


def complaint(done: Ended, named: str | None = None) -> str | None:
    """What is wrong with how a failure was told; None where it is one clear line.

    Args:
        done: a command that did not end with 0.
        named: a word that it must hold, as the name of a file.
    """
    if done.code is None:
        return "no end"
    lines = done.stderr.splitlines()
    begins = [number for number, line in enumerate(lines) if re.match("error: |Traceback|--- Logging", line)]
    told = lines[begins[0] :] if begins else []
    errors = [line for line in told if line.startswith("error: ")]
    if "Traceback (most recent call last)" in done.output:
        return f"a traceback on the console, exit code {done.code}"
    if done.code < 0:
        return f"ended by signal {-done.code}"
    if not errors:
        return f"exit code {done.code} without a line"
    if len(errors) > 2 or len(told) > MOST_LINES:
        return f"{len(told)} lines, {len(errors)} of them errors"
    if max(map(len, told)) > LONGEST_LINE:
        return f"a line of {max(map(len, told))} characters"
    if named is not None and named not in done.output:
        return f"{named} is not named: {errors[0][:200]}"
    return None


def first_error(done: Ended) -> str:
    """The line that says what went wrong."""
    lines = done.stderr.splitlines()
    return next((line for line in lines if line.startswith("error: ")), f"exit code {done.code}")[:300]


def compared(reference: Reference, place: Path, done: Ended, story: str) -> Verdict:
    """The verdict on a run that must have come to the result of an undisturbed one."""
    if done.code is None:
        return Verdict("hangs", story)
    if done.code != 0:
        how = complaint(done)
        return Verdict("lost" if how is None else "untold", f"{story}; {how or first_error(done)}")
    if done.orphans:
        return Verdict("left over", f"{story}; {done.orphans} processes outlive it")
    found = differences(reference.subject.result(place), reference.result)
    if not found:
        return Verdict("equal", story)
    is_litter = all(name.startswith("left over") for name in found)
    return Verdict("left over" if is_litter else "differs", f"{story}; {', '.join(found)}")


def interruption(done: Ended) -> str | None:
    """What is wrong with how a command ended that was sent a signal; None where nothing is."""
    if done.code is None:
        return "hangs"
    if done.orphans:
        return f"{done.orphans} processes outlive it"
    if done.code != -9 and "Traceback (most recent call last)" in done.output:  # of workers it may be
        return f"a traceback on the console, exit code {done.code}"
    return None if done.code in (-9, -15, 0, 130) else f"exit code {done.code}: {first_error(done)}"


def is_over(folder: Path) -> bool:
    """Whether the record of a run folder, if there is one, says that it does not run."""
    return state_of(folder) != "running"
