"""What a reward function reads of a ranking: declared by the function, which is held to it.

That decides which documents must be encoded anew for a reward to be that of a fresh corpus.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from search_r3.objectives.ranking import Ranking

RankReward = Callable[[Ranking], Tensor]
"""From a ranking to `[B, G]` fp32; `dcg`, `scaled_dcg` and `margin_dcg` are such functions.

It may say what it reads with `reads`; one that does not is taken to read everything.
"""


@dataclass(frozen=True)
class Reads:
    """What of a ranking a reward depends on.

    Attributes:
        best_wrong: whether on the best wrong score.
        cut_off: a rank beyond which a positive earns 0 whatever its rank and margin are; None for none.
    """

    best_wrong: bool = True
    cut_off: int | None = None


def reads(best_wrong: bool, cut_off: str | None = None) -> Callable[[RankReward], RankReward]:
    """Declares what a reward function reads; `Reward` holds it to that.

    Args:
        best_wrong: whether it reads the best wrong score.
        cut_off: the name of its argument that is the cut-off, if it has one.
    """

    def declare(function: RankReward) -> RankReward:
        function.reads_best_wrong, function.cut_off_argument = best_wrong, cut_off
        return function

    return declare


def reads_of(function: RankReward) -> Reads:
    """What a function declares, and everything where it does not; arguments bound by `partial` are known."""
    bare = _bare(function)
    argument = getattr(bare, "cut_off_argument", None)
    cut_off = None if argument is None else inspect.signature(function).parameters[argument].default
    return Reads(getattr(bare, "reads_best_wrong", True), cut_off)


def held(function: RankReward, ranking: Ranking) -> Tensor:
    """`[B, G]` fp32: what a function says of a ranking, shown nothing of it that it declares not to read.

    Raises:
        ValueError: If it reads that, rewards a rollout beyond its cut-off, or gives another shape.
    """
    declared, shown = reads_of(function), ranking
    if declared.cut_off is not None:
        unknown = ranking.last_rank[:, None, None] + 1
        is_beyond = ranking.rank > declared.cut_off
        shown = replace(shown, rank=torch.where(is_beyond, unknown, ranking.rank))
    if not declared.best_wrong:
        shown = _WithoutBestWrong(shown.rank, shown.scores, None, shown.grades, shown.last_rank)
    ranked = _per_rollout(function, function(shown), ranking.best_wrong.shape)
    if declared.cut_off is not None:
        has_none = (is_beyond | ~ranking.has_positive).all(-1)
        if (ranked[has_none] != 0).any():
            raise ValueError(
                f"the reward function {name_of(function)} declares the cut-off {declared.cut_off} and "
                "rewards a rollout with no positive within it: return 0 there, or declare no cut-off"
            )
    return ranked


class _WithoutBestWrong(Ranking):
    """A ranking that was checked, for a function that declares not to read the best wrong score."""

    def __post_init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> object:
        if name == "best_wrong":
            raise ValueError(
                "a reward function declares not to read the best wrong score and reads it: "
                "declare it with @reads(best_wrong=True), or remove the declaration"
            )
        return super().__getattribute__(name)


def _per_rollout(function: RankReward, value: object, shape: torch.Size) -> Tensor:
    """What a function gave, in fp32; any other shape than `[B, G]` would be spread over other rollouts."""
    if not isinstance(value, Tensor) or value.shape != shape:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"the reward function {name_of(function)} must give a reward per rollout, {list(shape)}, "
            f"got {found}; ranking.mean_over_positives(values) takes the mean over a query's positives"
        )
    return value.float()


def _bare(function: RankReward) -> RankReward:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def name_of(function: RankReward) -> str:
    """As a message calls it."""
    bare = _bare(function)
    return getattr(bare, "__name__", type(bare).__name__)
