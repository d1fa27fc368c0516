"""Whether an RL run has collapsed: its text has become one text, or none, or its rewards tell nothing apart.

The way to watch for: where the reasoning hurts, GRPO raises the reward by unlearning it, and what is left is
the direct mode by another name. The reward alone does not show that; length does. All limits are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Vitals:
    """Means over the rollouts of one step, over all ranks.

    Attributes:
        entropy: of the policy at the sampled tokens, in nats per token.
        n_tokens: written tokens per rollout, the embed token not counted.
        flat_share: share of groups whose rollouts all earned the same, in [0, 1].
    """

    entropy: float
    n_tokens: float
    flat_share: float

    def __post_init__(self) -> None:
        for name in ("entropy", "n_tokens", "flat_share"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if self.flat_share > 1:
            raise ValueError(f"flat_share must be a share in [0, 1], got {self.flat_share}")


@dataclass(frozen=True)
class CollapseLimits:
    """What counts as collapsed. The value that turns a check off is in brackets.

    Attributes:
        window: steps that are averaged, at the start of the run and now; no verdict before two windows.
        min_entropy: nats per token (0). A solved task may have low entropy too: set it below what it needs.
        min_length_share: of the length at the start of the run (0).
        max_flat_share: of groups without spread (1).
    """

    window: int = 5
    min_entropy: float = 0.01
    min_length_share: float = 0.25
    max_flat_share: float = 0.95

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1 step, got {self.window}")
        if not self.min_entropy >= 0:
            raise ValueError(f"min_entropy must be 0 (off) or more, got {self.min_entropy}")
        for name in ("min_length_share", "max_flat_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


def collapse(history: Sequence[Vitals], limits: CollapseLimits) -> str | None:
    """Why the run should stop, or None while it lives.

    The last `window` steps are compared with the first, so that no single step stops a run.

    Args:
        history: of the run, in the order of steps; of a long one the first and the last `window` steps are
            enough, if they are not the same.
        limits: see there.

    Returns:
        A sentence with the numbers, their limit and what to try; None before there are two windows.

    >>> start, now = Vitals(1.2, 22.0, 0.1), Vitals(0.9, 2.0, 0.1)
    >>> print(collapse([start, now], CollapseLimits(window=1)))
    reasoning shrank from 22.0 to 2.0 tokens per rollout (limit: 25% of the start): the policy ...
    """
    if len(history) < 2 * limits.window:
        return None
    first, last = history[: limits.window], history[-limits.window :]
    start_tokens, n_tokens = (_mean(part, "n_tokens") for part in (first, last))
    if n_tokens < limits.min_length_share * start_tokens:
        return (
            f"reasoning shrank from {start_tokens:.1f} to {n_tokens:.1f} tokens per rollout (limit: "
            f"{limits.min_length_share:.0%} of the start): the policy is unlearning it. Train the reasoning "
            "longer before RL, raise the KL weight, or lower the learning rate"
        )
    entropy = _mean(last, "entropy")
    if entropy < limits.min_entropy:
        return (
            f"entropy fell from {_mean(first, 'entropy'):.3g} to {entropy:.3g} nats per token (limit: "
            f"{limits.min_entropy:g}): all rollouts of a query are nearly one text. Raise the upper clip "
            "bound, the temperature or the KL weight, or lower the learning rate"
        )
    flat_share = _mean(last, "flat_share")
    if flat_share > limits.max_flat_share:
        return (
            f"{flat_share:.0%} of the groups have no spread in the last {limits.window} steps (limit: "
            f"{limits.max_flat_share:.0%}): rollouts of one query all earn the same, so nothing is learnt. "
            "Take reward=margin_dcg, a higher temperature, more rollouts per query, or harder queries"
        )
    return None


def _mean(steps: Sequence[Vitals], name: str) -> float:
    return sum(getattr(step, name) for step in steps) / len(steps)
