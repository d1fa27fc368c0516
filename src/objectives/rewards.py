"""What a rollout earns for the ranking that its embedding achieves in the whole corpus.

Reported of the paper (arXiv:2510.07048) is a scaled DCG of the positive's rank by cosine, and that the reward
holds a continuous similarity; cut-off, scale, similarity weight and the price of a missing embed token are
not published. Ours are: the discount `1 / log2(rank + 1)`, the mean over several positives, every number in
conf/reward, and `margin_dcg`, which is not in the paper.

A rank counts wrong documents only: a query's other positives never stand in the way of one. With several
positives the parts are therefore averaged by grade, not divided by an ideal DCG: all of them above all wrong
documents earn 1, and raising one of them never costs. With one positive this is nDCG.

All rewards of a ranking are in [0, 1] (`scaled_dcg`: in [0, scale]), 0 is what a rank beyond the cut-off
earns, and a better rank never earns less.
"""

from collections.abc import Callable
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

    def mean_over_positives(self, values: Tensor) -> Tensor:
        """`[B, G]`: the mean of `[B, G, P]` over each query's positives, weighted by grade."""
        share = self.grades.float() / self.grades.float().sum(-1, keepdim=True)  # [B, P]
        return (values.masked_fill(~self.has_positive, 0.0) * share[:, None]).sum(-1)


RankReward = Callable[[Ranking], Tensor]
"""From a ranking to `[B, G]` fp32; `dcg`, `scaled_dcg` and `margin_dcg` are such functions."""


def discount(rank: Tensor) -> Tensor:
    """`1 / log2(rank + 1)`, fp32: 1 at rank 1, 0.5 at rank 3.

    >>> discount(torch.tensor([1, 3, 7]))
    tensor([1.0000, 0.5000, 0.3333])
    """
    return 1.0 / torch.log2(rank.float() + 1.0)


def dcg(ranking: Ranking, k: int | None = None) -> Tensor:
    """The discount at each positive's rank, 0 beyond rank `k`; with one positive this is nDCG@k.

    Args:
        ranking: of `B` queries.
        k: cut-off, or None for the whole corpus.

    Returns:
        `[B, G]` fp32 in [0, 1].
    """
    values = discount(ranking.rank)
    return ranking.mean_over_positives(values.masked_fill(~_is_counted(ranking, k), 0.0))


def scaled_dcg(ranking: Ranking, k: int | None = None, scale: float = 1.0) -> Tensor:
    """The discount, moved and stretched so that rank 1 earns `scale` and the first rank beyond `k` earns 0.

    The paper's reward as far as it is known; that the scale is linear between these two ends is ours.

        scale * (discount(rank) - discount(end)) / (1 - discount(end)),  end = min(k + 1, last rank)

    Args:
        ranking: of `B` queries.
        k: cut-off, or None: the last rank of the corpus is then the one that earns 0.
        scale: what rank 1 earns, above 0.

    Returns:
        `[B, G]` fp32 in [0, scale].

    Raises:
        ValueError: If `scale` is not positive.
    """
    if not scale > 0.0:
        raise ValueError(f"scale must be above 0, got {scale}")
    end = ranking.last_rank if k is None else ranking.last_rank.clamp(max=k + 1)
    lowest = discount(end)[:, None, None]
    values = ((discount(ranking.rank) - lowest) / (1.0 - lowest)).clamp(min=0.0)
    return scale * ranking.mean_over_positives(values.masked_fill(~_is_counted(ranking, k), 0.0))


def margin_dcg(ranking: Ranking, k: int | None = None, tau: float = 0.05) -> Tensor:
    """DCG that the margin to the best wrong document moves inside its rank's interval; ours.

        discount(rank + 1) + (discount(rank) - discount(rank + 1)) * sigmoid(margin / tau)

    Rollouts of one rank seldom tie, and no margin is worth a rank. The last rank of the corpus earns the
    lower end of its interval whatever the margin: an encoder that gives every document one vector has margin
    0, which must not be worth more than the margin of an honest last place.

    Args:
        ranking: of `B` queries.
        k: cut-off, or None for the whole corpus; a rank beyond it earns 0.
        tau: the margin, in cosine, at which the sigmoid is at 0.73.

    Returns:
        `[B, G]` fp32 in [0, 1].

    Raises:
        ValueError: If `tau` is not positive.
    """
    if not tau > 0.0:
        raise ValueError(f"tau must be above 0, got {tau}")
    margin = ranking.scores.float() - ranking.best_wrong.float()[:, :, None]  # [B, G, P]
    place = torch.sigmoid(margin / tau)
    place = place.masked_fill(ranking.rank >= ranking.last_rank[:, None, None], 0.0)
    lower = discount(ranking.rank + 1)
    values = lower + (discount(ranking.rank) - lower) * place
    return ranking.mean_over_positives(values.masked_fill(~_is_counted(ranking, k), 0.0))


def similarity(ranking: Ranking) -> Tensor:
    """`[B, G]` fp32 in [0, 1]: the mean of `(1 + cosine) / 2` over the positives, weighted by grade."""
    return ranking.mean_over_positives((1.0 + ranking.scores.float().clamp(-1.0, 1.0)) / 2.0)


@dataclass(frozen=True)
class Rewards:
    """What `[B, G]` rollouts earned, and for what.

    Attributes:
        total: `[B, G]` fp32, what the advantages are computed from.
        ranking: `[B, G]` the part for the rank, before the floor.
        similarity: `[B, G]` the similarity, unweighted; not part of `total` where its weight is 0.
        has_embed_token: `[B, G]` bool; where False, `total` has no format weight, and is the floor if there
            is one.
    """

    total: Tensor
    ranking: Tensor
    similarity: Tensor
    has_embed_token: Tensor


@dataclass(frozen=True)
class Reward:
    """`ranking + similarity_weight * similarity + format_weight`; without an embed token, the floor.

    Attributes:
        ranking: what a rank earns.
        similarity_weight: of the cosine itself. Off in our configs: it pays for a collapsed encoder too.
        format_weight: what writing the embed token earns by itself.
        floor: what a rollout that did not write it earns instead of everything else, at most 0; None leaves
            it all but `format_weight`, so that where many are cut off the rank still tells them apart.

    Raises:
        ValueError: If a weight is negative or the floor is above 0, so that a missing token could pay.
    """

    ranking: RankReward
    similarity_weight: float = 0.0
    format_weight: float = 0.1
    floor: float | None = 0.0

    def __post_init__(self) -> None:
        if self.similarity_weight < 0.0 or self.format_weight < 0.0:
            raise ValueError(
                "similarity_weight and format_weight must not be negative, "
                f"got {self.similarity_weight} and {self.format_weight}"
            )
        if self.floor is not None and self.floor > 0.0:
            raise ValueError(f"floor must be at most 0, the least a ranking earns, got {self.floor}")

    def __call__(self, ranking: Ranking, has_embed_token: Tensor) -> Rewards:
        """Rewards of `B` groups.

        Args:
            ranking: of all rollouts, those without the token included.
            has_embed_token: `[B, G]` bool, True where the model wrote the token itself.

        Raises:
            ValueError: If `has_embed_token` has another shape or a reward is not finite.
        """
        if has_embed_token.shape != ranking.best_wrong.shape:
            raise ValueError(
                f"has_embed_token must be {list(ranking.best_wrong.shape)}, got {list(has_embed_token.shape)}"
            )
        ranked, similar = self.ranking(ranking), similarity(ranking)
        content = ranked + self.similarity_weight * similar
        without = content if self.floor is None else torch.full_like(content, self.floor)
        total = torch.where(has_embed_token, content + self.format_weight, without)
        if not torch.isfinite(total).all():
            raise ValueError("a reward is not finite: the scores of the ranking are not")
        return Rewards(total, ranked, similar, has_embed_token)


def _is_counted(ranking: Ranking, k: int | None) -> Tensor:
    """`[B, G, P]` bool, False at ranks beyond the cut-off and where the rank is not known."""
    if k is None:
        return ranking.rank <= ranking.last_rank[:, None, None]
    if k < 1:
        raise ValueError(f"k must be at least 1 or null, got {k}")
    return ranking.rank <= ranking.last_rank.clamp(max=k)[:, None, None]
