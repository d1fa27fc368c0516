"""Where the positives of queries stand among all documents: what rewards are computed from."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranking:
    """Where the positives of `B` queries stand for each of `G` rollouts, among the wrong documents.

    Attributes:
        rank: `[B, G, P]` long, 1 and above: wrong documents that score as high as the positive or higher,
            plus one. `last_rank + 1` where a positive was not retrieved and its rank is not known. What
            stands where there is no positive does not matter.
        scores: `[B, G, P]` cosines of the positives.
        best_wrong: `[B, G]` the highest cosine of a wrong document.
        grades: `[B, P]` relevance of each positive, above 0; 0 where a query has fewer than `P` positives.
        last_rank: `[B]` long, the worst rank there is: the number of wrong documents plus one.

    Raises:
        ValueError: If shapes do not fit, a query has no positive, a rank is below 1, or a query has no wrong
            document, so that every rollout would earn the same.
    """

    rank: Tensor
    scores: Tensor
    best_wrong: Tensor
    grades: Tensor
    last_rank: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.rank.shape)
        if len(shape) != 3 or tuple(self.scores.shape) != shape:
            raise ValueError(
                f"rank and scores must both be [B, G, P], got {shape}, {tuple(self.scores.shape)}"
            )
        if tuple(self.best_wrong.shape) != shape[:2]:
            raise ValueError(f"best_wrong must be {list(shape[:2])}, got {tuple(self.best_wrong.shape)}")
        if tuple(self.grades.shape) != (shape[0], shape[2]) or tuple(self.last_rank.shape) != shape[:1]:
            raise ValueError(
                f"grades must be {[shape[0], shape[2]]} and last_rank {[shape[0]]}, "
                f"got {tuple(self.grades.shape)} and {tuple(self.last_rank.shape)}"
            )
        if (self.grades < 0).any() or not (self.grades > 0).any(1).all():
            raise ValueError(
                "grades must not be negative, and every query needs a positive (a grade above 0)"
            )
        if (self.last_rank < 2).any():
            raise ValueError("every query needs a wrong document, otherwise all its rollouts earn the same")
        if (self.rank[self.has_positive] < 1).any():
            raise ValueError("ranks start at 1")

    @property
    def has_positive(self) -> Tensor:
        """`[B, G, P]` bool, True where there is a positive."""
        return (self.grades > 0)[:, None].expand(self.rank.shape)

    @property
    def best_rank(self) -> Tensor:
        """`[B, G]` rank of the best positive."""
        return self.rank.masked_fill(~self.has_positive, torch.iinfo(torch.long).max).amin(-1)

    def mean_over_positives(self, values: Tensor) -> Tensor:
        """`[B, G]` float64: the mean of `[B, G, P]` over each query's positives, weighted by grade."""
        return (values.double().masked_fill(~self.has_positive, 0.0) * self.shares[:, None]).sum(-1)

    @property
    def shares(self) -> Tensor:
        """`[B, P]` float64: the grades, divided by their sum."""
        grades = self.grades.double()
        return grades / grades.sum(-1, keepdim=True)
