"""Two commands on one folder at once, and runs whose record names another host or a process that lives."""

import json
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.faults.attack import Attack, Reference, Verdict, Workshop, compared, complaint, first_error
from tests.faults.commands import Command, Running, ended, wait_until
from tests.faults.moments import Moment
from tests.faults.tiny import RUN

SUBJECTS = ("sft", "rl", "evaluate", "tune")
PARTS = ("step", "save", "records", "validation", "model")
RECORDS = ("sft", "rl")


def attacks(workshop: Workshop, n: int, only: Sequence[str]) -> Iterator[Attack]:
    """`n` pairs for each subject, and as many records that are not those of this process."""
    for name in SUBJECTS:
        for number in range(n):
            yield Attack(f"starters/{name}/{number}", partial(_two, workshop, name, number))
    for name in RECORDS:
        for number in range(n):
            yield Attack(f"records/{name}/{number}", partial(_other_record, workshop, name, number))


def _two(workshop: Workshop, name: str, number: int, rng: random.Random) -> Verdict:
    """By turns: the first one is held at a moment while the second comes, or both start at one time; in a
    new folder, or (of trainings) in that of a killed run."""
    reference, subject = workshop.reference(name), workshop.subject(name)
    resumes = subject.goes_on and number % 4 >= 2
    with workshop.place(workshop.interrupted(name) if resumes else None) as place:
        commands = [subject.command(place)] * 2
        if resumes:
            commands[1] = Command("src.train", (f"resume={RUN}",), place)
            commands = commands[::-1] if rng.random() < 0.5 else commands
        if number % 2 == 0:
            return _held(reference, place, commands, rng)
        return _at_once(reference, place, commands, rng)


def _held(reference: Reference, place: Path, commands: list[Command], rng: random.Random) -> Verdict:
    """The first one is held where it certainly works in the folder: not at its beginning nor at its end."""
    part = rng.choice([part for part in PARTS if reference.counts.get(part)])
    number = rng.randint(reference.counts[part] // 2, int(0.8 * reference.counts[part]))
    moment = Moment("hold", part, number)
    first = Running(commands[0], moment)
    held = place / "held"
    if not wait_until(held.exists, first):
        return Verdict("equal", f"{moment} was not reached: {first.ended().code}")
    second = ended(commands[1])
    held.unlink()
    done = first.ended()
    story = f"{moment}: {done.code}; the second: {second.code}"
    if second.code is None or done.code is None:
        return Verdict("hangs", story)
    if second.code == 0:
        return Verdict("differs", f"{story}; both ran")
    wrong = complaint(second) or _unnamed(second)
    if wrong is not None:
        return Verdict("untold", f"{story}; {wrong}")
    return compared(reference, place, done, f"{story}; {first_error(second)}")


def _at_once(reference: Reference, place: Path, commands: list[Command], rng: random.Random) -> Verdict:
    wait = rng.choice((0.0, rng.uniform(0.0, 0.5 * reference.seconds)))
    running = [Running(commands[0])]
    time.sleep(wait)
    running.append(Running(commands[1]))
    done = [each.ended() for each in running]
    codes = [each.code for each in done]
    story = f"second after {wait:.2f} s: {codes}"
    if None in codes:
        return Verdict("hangs", story)
    if 0 not in codes:
        return Verdict("lost", f"{story}; {first_error(done[0])}; {first_error(done[1])}")
    if all(f"wrote {RUN}/model" in each.output for each in done):
        return Verdict("differs", f"{story}; both trained")  # where both end well, one came after the other
    refused = next((each for each in done if each.code != 0), None)
    wrong = None if refused is None else complaint(refused) or _unnamed(refused)
    if wrong is not None:
        return Verdict("untold", f"{story}; {wrong}")
    return compared(reference, place, next(each for each in done if each.code == 0), story)


def _unnamed(done) -> str | None:
    line = first_error(done)
    return None if "running" in line or "process" in line else f"does not say what runs: {line}"


def _other_record(workshop: Workshop, name: str, number: int, rng: random.Random) -> Verdict:
    """A killed run whose record says that it runs: on another host, or as a process that lives.

    From another host no lock may be seen, so a refusal that says what to remove is allowed.
    """
    reference = workshop.reference(name)
    with workshop.place(workshop.interrupted(name)) as place:
        file = place / RUN / "status.json"
        change = {"host": "another-host"} if number % 2 == 0 else {"pid": os.getpid()}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"state": "running"} | change))
        story = f"the record says {change}"
        done = ended(reference.subject.again(place, number // 2))
        if "host" in change and (remedy := re.search(r"rm (\S+/lock)", first_error(done))):
            story += "; the lock is removed, as the refusal says"
            (place / remedy[1]).unlink()
            done = ended(reference.subject.again(place, number // 2))
        return compared(reference, place, done, story)
