"""What a rollout earns for the ranking that its embedding achieves in the whole corpus.

Reported of the paper (arXiv:2510.07048) is a scaled DCG of the positive's rank by cosine, and that the reward
holds a continuous similarity; cut-off, scale, similarity weight and the price of a missing embed token are
not published. Ours are: the discount `1 / log2(rank + 1)`, the mean over several positives, every number in
conf/reward, and `margin_dcg` with its slower discount and its margins, which is not in the paper.

A rank counts wrong documents only: a query's other positives never stand in the way of one. With several
positives the parts are therefore averaged by grade, not divided by an ideal DCG: all of them above all wrong
documents earn 1, and raising one of them never costs. With one positive this is nDCG.

All rewards of a ranking are in [0, 1] (`scaled_dcg`: in [0, scale]), 0 is what a rank beyond the cut-off
earns, and a better rank of any positive never earns less, whatever the margins; ranks beyond the cut-off all
count as one. Everything is computed in float64 and rounded once, which keeps the order: a fp32 reward near 1
has steps of 1e-7.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from search_r3.objectives.ranking import Ranking
from search_r3.objectives.reads import RankReward, Reads, held, name_of, reads, reads_of
from search_r3.objectives.signatures import refuse_other_arguments

LINEAR_RANKS = 1000
"""Ranks over which the linear part of `margin_dcg` falls to 0, if there are that many."""


def discount(rank: Tensor) -> Tensor:
    """`1 / log2(rank + 1)`, fp32: 1 at rank 1, 0.5 at rank 3.

    >>> discount(torch.tensor([1, 3, 7]))
    tensor([1.0000, 0.5000, 0.3333])
    """
    return _discount(rank).float()


@reads(best_wrong=False, cut_off="k")
def dcg(ranking: Ranking, k: int | None = None) -> Tensor:
    """The discount at each positive's rank, 0 beyond rank `k`; with one positive this is nDCG@k.

    Args:
        ranking: of `B` queries.
        k: cut-off, or None for the whole corpus.

    Returns:
        `[B, G]` fp32 in [0, 1].
    """
    values = _discount(ranking.rank).masked_fill(~_is_counted(ranking, k), 0.0)
    return ranking.mean_over_positives(values).float()


@reads(best_wrong=False, cut_off="k")
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
    lowest = _discount(end)[:, None, None]
    values = ((_discount(ranking.rank) - lowest) / (1.0 - lowest)).clamp(min=0.0)
    values = values.masked_fill(~_is_counted(ranking, k), 0.0)
    return (scale * ranking.mean_over_positives(values)).float()


@reads(best_wrong=True, cut_off="k")
def margin_dcg(
    ranking: Ranking,
    k: int | None = None,
    tau: float = 0.05,
    margin_weight: float = 0.005,
    linear_share: float = 0.2,
) -> Tensor:
    """DCG less up to `margin_weight` for a narrow margin to the best wrong document, never a rank; ours.

        worth(rank) = (1 - linear_share) * discount(rank) + linear_share * max(0, 1 - (rank - 1) / end)
        end         = min(k, last rank, 1000)
        place       = (1 + sign(margin) * log(1 + |margin| / tau) / log(1 + 2 / tau)) / 2,  from 0 to 1
        room        = min(margin_weight, least of share * (worth(rank) - worth(rank + 1)))
        reward      = mean(worth(rank)) - room * (1 - mean(place))

    Means and shares are by grade; the least is over a query's positives within the cut-off. Beyond the
    cut-off a positive is worth 0 and has no place.

    - *A rank outweighs all margins.* One positive a rank better, the others at theirs, gains at least its
      share of a step of `worth`, and all margins together move the reward by at most `room`, which is no
      larger. So whatever happens to the margins, a better rank never earns less, and a better margin at the
      same ranks never does. All ranks beyond the cut-off are one rank here.
    - *Rollouts of one rank seldom tie.* The logarithm tells margins of -0.52 and -0.50 apart, where a sigmoid
      has long been flat. Without the linear part the step below rank 1,000 is 1.4e-5, and the share of one
      of six positives in it a few dozen times what fp32 tells apart near 1; with it the step is 2.1e-4.
    - *Margins alone earn little.* `margin_weight` is what the largest difference of margins is worth, one of
      4 in cosine; rank 1 against rank 2 is worth 0.30. `std_floor` of `grpo` belongs to it.
    - The last rank of the corpus has place 0 whatever the margin: an encoder that gives every document one
      vector has margin 0, which must not be worth more than the margin of an honest last place.

    Args:
        ranking: of `B` queries.
        k: cut-off, or None for the whole corpus; a rank beyond it earns 0.
        tau: in cosine; smaller margins count in proportion, larger ones by their logarithm.
        margin_weight: what the best margin is worth above the worst, in [0, 1].
        linear_share: of the part that falls by the same amount from rank to rank, to 0 behind `end`, in
            [0, 1].

    Returns:
        `[B, G]` fp32 in [0, 1].

    Raises:
        ValueError: If a number is out of its range.
    """
    if not tau > 0.0:
        raise ValueError(f"tau must be above 0, got {tau}")
    if not (0.0 <= margin_weight <= 1.0 and 0.0 <= linear_share <= 1.0):
        raise ValueError(
            f"margin_weight and linear_share must lie in [0, 1], got {margin_weight} and {linear_share}"
        )
    is_counted = _is_counted(ranking, k) & ranking.has_positive  # [B, G, P]
    end = ranking.last_rank.clamp(max=min(k or LINEAR_RANKS, LINEAR_RANKS))[:, None, None]
    worth = _worth(ranking.rank, end, linear_share).masked_fill(~is_counted, 0.0)
    steps = ranking.shares[:, None] * (worth - _worth(ranking.rank + 1, end, linear_share))
    room = steps.masked_fill(~is_counted, margin_weight).amin(-1).clamp(max=margin_weight)  # [B, G]
    room = room.masked_fill(~is_counted.any(-1), 0.0)

    place = _place(ranking, tau).masked_fill(~is_counted, 0.0)
    return (ranking.mean_over_positives(worth) - room * (1.0 - ranking.mean_over_positives(place))).float()


def _place(ranking: Ranking, tau: float) -> Tensor:
    """Where the margin to the best wrong document lies, `[B, G, P]` from 0 to 1; 0 at the last rank."""
    margin = ranking.scores.double() - ranking.best_wrong.double()[:, :, None]
    place = (1.0 + margin.sign() * torch.log1p(margin.abs() / tau) / math.log1p(2.0 / tau)) / 2.0
    is_last = ranking.rank >= ranking.last_rank[:, None, None]
    return place.clamp(0.0, 1.0).masked_fill(is_last, 0.0)


def similarity(ranking: Ranking) -> Tensor:
    """`[B, G]` fp32 in [0, 1]: the mean of `(1 + cosine) / 2` over the positives, weighted by grade."""
    return ranking.mean_over_positives((1.0 + ranking.scores.double().clamp(-1.0, 1.0)) / 2.0).float()


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
        ValueError: If a weight is negative or the floor is above 0, so that a missing token could pay, or the
            function does not take a ranking and what it was given with it.
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
        refuse_other_arguments(self.ranking, "reward.ranking", ["ranking"])

    @property
    def reads(self) -> Reads:
        """What the rewards depend on, besides what is always fresh: the positives' own scores."""
        if type(self).__call__ is not Reward.__call__:  # a subclass may do anything
            return Reads()
        return reads_of(self.ranking)

    def __call__(self, ranking: Ranking, has_embed_token: Tensor) -> Rewards:
        """Rewards of `B` groups.

        Args:
            ranking: of all rollouts, those without the token included.
            has_embed_token: `[B, G]` bool, True where the model wrote the token itself.

        Raises:
            ValueError: If `has_embed_token` has another shape, a reward is not finite, or the function gives
                another shape or reads what it declares not to.
        """
        if has_embed_token.shape != ranking.best_wrong.shape:
            raise ValueError(
                f"has_embed_token must be {list(ranking.best_wrong.shape)}, got {list(has_embed_token.shape)}"
            )
        ranked, similar = held(self.ranking, ranking), similarity(ranking)
        content = ranked + self.similarity_weight * similar
        without = content if self.floor is None else torch.full_like(content, self.floor)
        total = torch.where(has_embed_token, content + self.format_weight, without)
        if not torch.isfinite(total).all():
            is_given = torch.isfinite(similar).all() and torch.isfinite(ranking.best_wrong).all()
            why = f"{name_of(self.ranking)} makes it so" if is_given else "the scores of the ranking are not"
            raise ValueError(f"a reward is not finite: {why}")
        return Rewards(total, ranked, similar, has_embed_token)


def _discount(rank: Tensor) -> Tensor:
    """`discount` in float64."""
    return 1.0 / torch.log2(rank.double() + 1.0)


def _worth(rank: Tensor, end: Tensor, linear_share: float) -> Tensor:
    """What a rank is worth to `margin_dcg`, float64: 1 at rank 1, and every step down costs."""
    linear = (1.0 - (rank.double() - 1.0) / end).clamp(min=0.0)
    return (1.0 - linear_share) * _discount(rank) + linear_share * linear


def _is_counted(ranking: Ranking, k: int | None) -> Tensor:
    """`[B, G, P]` bool, False at ranks beyond the cut-off and where the rank is not known."""
    if k is None:
        return ranking.rank <= ranking.last_rank[:, None, None]
    if k < 1:
        raise ValueError(f"k must be at least 1 or null, got {k}")
    return ranking.rank <= ranking.last_rank.clamp(max=k)[:, None, None]
