"""One comparison: both sides give the same, then they are timed in alternation.

Times of both sides lie side by side in a round, so that other work on the machine slows both; a ratio is of
one round, and the row's is their median. A ratio above 1 says that ours took less, of seconds or of bytes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from search_r3.benchmarks.timing import seconds_of, spread

FEWEST_ROUNDS = 2


@dataclass(frozen=True)
class Equal:
    """What both sides were held to before they were timed.

    Attributes:
        what: was compared, such as "embeddings".
        difference: the largest that was found.
        limit: that it may have.
    """

    what: str
    difference: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.limit  # False for NaN


def gradient_of(model: nn.Module) -> dict[str, Tensor]:
    """What a backward has left, by the name of the weight."""
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def gradient_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The length of the difference of two gradients by that of theirs.

    Raises:
        ValueError: If only one side has a gradient of a weight, or neither has any.
    """
    if set(ours) != set(theirs) or not ours:
        raise ValueError(f"only one side has a gradient of {sorted(set(ours) ^ set(theirs))[:3]}")
    difference = torch.stack([(ours[name] - theirs[name]).norm() for name in ours]).norm()
    return float(difference / torch.stack([each.norm() for each in theirs.values()]).norm())


@dataclass(frozen=True)
class Cost:
    """The least that a call must do, padding and what is done twice left out.

    Attributes:
        flops: floating-point operations of products with weights, or with rows; attention is left out.
        bytes: of weights, keys and values, or rows that must be read at least once.
    """

    flops: float = 0.0
    bytes: float = 0.0

    def share_of_limit(self, seconds: float, limits: Mapping[str, float]) -> float:
        """What part of `seconds` the machine would need at its measured speed; the tighter limit counts."""
        least = max(self.flops / limits["flops_per_s"], self.bytes / limits["bytes_per_s"])
        return least / seconds


@dataclass(frozen=True)
class Comparison:
    """Two ways to do one thing.

    Attributes:
        unit: what is counted, such as "documents per second"; the figures are `amount` by the seconds of a
            call, or, where `is_latency`, milliseconds by `amount`.
        amount: of a call.
        peer: name and version of the other side.
        ours: does it once.
        theirs: by name of a setting, does it once; the fastest of them after a warm-up is compared.
        equal: what was held equal; at least one.
        cost: of a call.
        is_latency: whether less is better.
    """

    unit: str
    amount: float
    peer: str
    ours: Callable[[], object]
    theirs: Mapping[str, Callable[[], object]]
    equal: Sequence[Equal]
    cost: Cost = Cost()
    is_latency: bool = False

    def figure(self, seconds: float) -> float:
        """What is reported of a call."""
        return 1000 * seconds / self.amount if self.is_latency else self.amount / seconds


def fastest(ways: Mapping[str, Callable[[], object]]) -> tuple[str, Callable[[], object]]:
    """The way that takes least, each timed once behind a call that allocates; a single one is only called."""
    seconds = {}
    for name, run in ways.items():
        run()
        seconds[name] = seconds_of(run) if len(ways) > 1 else 0.0
    name = min(seconds, key=seconds.__getitem__)
    return name, ways[name]


def alternated(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    max_seconds: float,
) -> tuple[list[float], list[float]]:
    """Seconds of both sides, ours first in a round and last in the next.

    Args:
        ours: has been warmed up.
        theirs: likewise.
        rounds: at most.
        max_seconds: no round begins behind them, but two are always run.
    """
    found: dict[Callable, list[float]] = {ours: [], theirs: []}
    started = time.perf_counter()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.perf_counter() - started > max_seconds:
            break
        for side in (ours, theirs) if number % 2 == 0 else (theirs, ours):
            found[side].append(seconds_of(side))
    return found[ours], found[theirs]


def measured(
    comparison: Comparison,
    rounds: int,
    max_seconds: float,
    limits: Mapping[str, float],
) -> dict:
    """The row of a comparison.

    Raises:
        ValueError: If the two sides do not give the same: their times would mean nothing.
    """
    different = [each for each in comparison.equal if not each.holds]
    if different or not comparison.equal:
        told = ", ".join(f"{each.what} by {each.difference:.3g} (limit {each.limit:g})" for each in different)
        raise ValueError(f"{comparison.peer}: not timed, since the two differ: {told or 'nothing compared'}")
    comparison.ours()
    setting, theirs = fastest(comparison.theirs)
    ours_s, theirs_s = alternated(comparison.ours, theirs, rounds, max_seconds)
    shares = {
        side: spread([comparison.cost.share_of_limit(each, limits) for each in seconds])
        for side, seconds in (("ours", ours_s), ("peer", theirs_s))
    }
    return {
        "unit": comparison.unit,
        "peer_name": comparison.peer,
        "peer_setting": setting,
        "ours": spread([comparison.figure(each) for each in ours_s]),
        "peer": spread([comparison.figure(each) for each in theirs_s]),
        **ratios_of(ours_s, theirs_s),
        "equal": [asdict(each) for each in comparison.equal],
        "seconds": {"ours": ours_s, "peer": theirs_s},
        "cost": asdict(comparison.cost),
        "share_of_limit": shares if comparison.cost != Cost() else None,
    }


def ratios_of(ours: Sequence[float], theirs: Sequence[float]) -> dict:
    """`ratio`, the median over rounds of theirs by ours, and `spread`, its lowest and highest round."""
    found = spread([their / our for our, their in zip(ours, theirs, strict=True)])
    return {"ratio": found["median"], "spread": [found["lowest"], found["highest"]], "rounds": len(ours)}
