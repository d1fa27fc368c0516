"""Kills at drawn moments, one or a chain of three, and then the command once more."""

import random
from collections.abc import Iterator, Sequence
from functools import partial

from tests.faults.attack import Attack, Verdict, Workshop, compared, interruption
from tests.faults.commands import ended
from tests.faults.moments import CLOCK, drawn

TRAINING = (
    "validation", "save", "model", "records", CLOCK, "save", "validation", "index", "step", CLOCK,
)  # fmt: skip
SUBJECTS = {
    "sft": (("sft", "sft-lora"), TRAINING),
    "rl": (("rl", "rl-apart"), TRAINING),
    "pretrain": (("pretrain",), ("save", "model", "records", CLOCK, "step")),
    "evaluate": (("evaluate",), ("records", "index", CLOCK)),
    "cache": (("cache",), ("index", "index", CLOCK)),
    "mining": (("mining", "negatives"), ("index", "records", CLOCK)),
}
"""By row of the table: the variants that are drawn from, and the parts of a run that kills fall in."""

CHAIN = 3
SIGNALS = ("SIGKILL", "SIGTERM")


def attacks(workshop: Workshop, n: int, only: Sequence[str]) -> Iterator[Attack]:
    """`n` for each subject; half of them by each signal, every fourth one a chain."""
    for name in SUBJECTS:
        for number in range(n):
            yield Attack(f"kill/{name}/{number}", partial(_killed, workshop, name, number))


def _killed(workshop: Workshop, name: str, number: int, rng: random.Random) -> Verdict:
    variants, parts = SUBJECTS[name]
    reference = workshop.reference(rng.choice(variants))
    subject, story = reference.subject, [reference.subject.name]
    with workshop.place() as place:
        for link in range(CHAIN if number % 4 == 3 else 1):
            part = parts[(number // 2 + link) % len(parts)]
            act = SIGNALS[(number + link) % 2]
            moment = drawn(rng, act, part, reference.counts, reference.seconds)
            done = ended(subject.again(place, number + link), moment)
            story.append(f"{moment}: {done.code}")
            if (wrong := interruption(done)) is not None:
                return Verdict("hangs" if done.code is None else "untold", f"{'; '.join(story)}: {wrong}")
            if done.code == 0:
                break
        done = ended(subject.again(place, number))
        if done.code == 2 and "is finished" in done.stderr:
            done = ended(subject.command(place))
        return compared(reference, place, done, "; ".join(story))
