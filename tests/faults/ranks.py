"""Two ranks: all of them killed, the second one alone, or the first one asked to stop."""

import random
from collections.abc import Iterator, Sequence
from functools import partial

from search_r3.cli.run_status import state_of
from tests.faults.attack import Attack, Verdict, Workshop, compared, complaint, interruption
from tests.faults.commands import ended
from tests.faults.moments import drawn
from tests.faults.tiny import RUN

SUBJECTS = ("sft-2", "rl-2")
ACTS = ("kill-second", "kill-all", "SIGTERM", "kill-second")
PARTS = ("save", "validation", "step", "index", "model")


def attacks(workshop: Workshop, n: int, only: Sequence[str]) -> Iterator[Attack]:
    """`n` for each stage; half of them kill the second rank alone."""
    for name in SUBJECTS:
        for number in range(n):
            yield Attack(f"ranks/{name}/{number}", partial(_struck, workshop, name, number))


def _struck(workshop: Workshop, name: str, number: int, rng: random.Random) -> Verdict:
    reference, act = workshop.reference(name), ACTS[number % len(ACTS)]
    moment = drawn(rng, act, PARTS[number % len(PARTS)], reference.counts, reference.seconds)
    with workshop.place() as place:
        done = ended(reference.subject.command(place), moment)
        state = state_of(place / RUN)
        story = f"{name}; {moment}: {done.code}, {state}"
        if done.code is None:
            return Verdict("hangs", story)
        if done.orphans:
            return Verdict("left over", f"{story}; {done.orphans} processes outlive it")
        wrong = complaint(done) if act == "kill-second" and done.code else interruption(done)
        if wrong is not None:
            return Verdict("untold", f"{story}; {wrong}")
        if state not in ("failed", "interrupted", "finished", None):
            return Verdict("untold", f"{story}; the record is not that of an end")
        return compared(reference, place, ended(reference.subject.command(place)), story)
