"""What is logged of a step: seconds by part, means over rollouts, and whether the run has collapsed."""

import contextlib
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from search_r3.distributed import mean_over_ranks, reduced
from search_r3.objectives.collapse import CollapseLimits, Vitals, collapse
from search_r3.stages.rl.environment import Outcome
from search_r3.stages.rl.rollouts import Rollouts


class Seconds:
    """Wall-clock seconds of the parts of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.by_part: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds what is done within to a part, up to when the device has done it."""
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.by_part[name] = self.by_part.get(name, 0.0) + time.perf_counter() - started


def step_means(rollouts: Rollouts, outcome: Outcome, has_spread: Tensor) -> dict[str, float]:
    """Means over the rollouts or groups of all ranks; collective.

    Args:
        rollouts: of this rank.
        outcome: what they earned.
        has_spread: `[B]` bool, False where a group's rollouts all earned the same.
    """
    rewards, n_groups = outcome.rewards.total, len(rollouts.query_ids)
    sums = {
        "reward": rewards.mean(1).sum(),
        "reward_ranking": outcome.rewards.ranking.mean(1).sum(),
        "reward_spread": rewards.std(1).sum(),
        "reward_best": rewards.amax(1).sum(),
        "groups_without_spread": (~has_spread).sum(),
        "n_tokens": rollouts.n_tokens.float().mean(1).sum(),
        "missing_embed_token": (~rollouts.has_embed_token).float().mean(1).sum(),
        "rank_first": outcome.ranking.best_rank.eq(1).float().mean(1).sum(),
    }
    if outcome.rank_agreement is not None:
        sums["rank_agreement"] = rewards.new_tensor(outcome.rank_agreement * n_groups)
    packed = torch.stack([*(value.float() for value in sums.values()), rewards.new_tensor(n_groups)])
    *totals, count = reduced(packed).tolist()
    return {name: total / count for name, total in zip(sums, totals, strict=True)}


class CollapseWatch:
    """Keeps the vitals of a run, and says when it has collapsed; the same on all ranks.

    Args:
        limits: what counts as collapsed.

    Attributes:
        history: the first and the last steps of the run, a window of each.
    """

    def __init__(self, limits: CollapseLimits) -> None:
        self.limits = limits
        self.history: list[Vitals] = []

    def see(self, metrics: Mapping[str, float | Tensor], device: torch.device) -> str | None:
        """Takes a step's metrics; why the run should stop, or None. Collective."""
        entropy = torch.as_tensor(metrics.get("entropy", 0.0), device=device).float()
        if "entropy" not in metrics:  # a step without any spread measures none: the last one stands
            entropy = entropy + (self.history[-1].entropy if self.history else 1.0)
        entropy = float(mean_over_ranks(entropy))
        self.history.append(Vitals(max(entropy, 0.0), metrics["n_tokens"], metrics["groups_without_spread"]))
        window = self.limits.window
        if len(self.history) > 2 * window:
            self.history = self.history[:window] + self.history[-window:]
        return collapse(self.history, self.limits)

    def state(self) -> list[list[float]]:
        """What a checkpoint keeps of it."""
        return [[each.entropy, each.n_tokens, each.flat_share] for each in self.history]

    def restore(self, state: list[list[float]]) -> None:
        """Takes what a checkpoint kept."""
        self.history = [Vitals(*each) for each in state]
