"""The contrastive term of the RL stage: InfoNCE of the rollouts' embeddings, so that the vector learns too.

The paper leaves open whether stage 1's term goes on in stage 2; what it is taken over is ours.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from search_r3.index.exact_rank import Positives, Retrieved
from search_r3.index.served import LiveIndex
from search_r3.objectives.losses import info_nce


@dataclass(frozen=True)
class Pool:
    """The documents of the contrastive term, as served: the same `M` on every rank.

    Attributes:
        rows: `[M]` corpus rows, ascending, each once.
        vectors: `[M, D]` fp32.
    """

    rows: Tensor
    vectors: Tensor

    def negatives_of(self, not_wrong: Tensor) -> Tensor:
        """`[n, M]` bool, False at the rows that are `not_wrong`, `[n, P]`, -1 for none."""
        mask = torch.ones(len(not_wrong), len(self.rows), dtype=torch.bool, device=self.rows.device)
        for column in not_wrong.unbind(1):
            mask &= self.rows != column[:, None]
        return mask


def served_pool(index: LiveIndex, positives: Positives, retrieved: Retrieved, step: int) -> Pool:
    """The positives of the batch and what its rollouts retrieved, of all ranks; each reads a share.

    Only rows of this step's model: against stale ones the loss would be lowered by moving away from what
    the model was, whatever the query. Collective.
    """
    own = torch.cat([positives.rows.flatten(), retrieved.rows.flatten()]).unique()
    rows = np.unique(index.ranks.joined(own[own >= 0].cpu().numpy()))
    share, encoded_at = index.read(np.array_split(rows, index.ranks.size)[index.ranks.rank])
    vectors, encoded_at = index.ranks.joined(share), index.ranks.joined(encoded_at)
    kept = encoded_at == step  # the positives too: the index keeps them fresh
    return Pool(*(torch.from_numpy(each[kept]).to(positives.rows.device) for each in (rows, vectors)))


def contrasted(advantages: Tensor, positives: Positives, pool: Pool | None, which: str) -> Tensor:
    """The weight of each rollout in the contrastive term: 1 or 0.

    0 too where the pool holds no wrong document of the query, and everywhere without a pool.

    Args:
        advantages: `[B, G]`.
        positives: of the `B` queries.
        pool: None where there is no such term.
        which: "all", or "good" for the rollouts that earned at least their group's mean.

    Returns:
        `[B, G]` fp32.
    """
    if pool is None:
        return torch.zeros_like(advantages)
    is_good = advantages >= 0
    is_taken = is_good if which == "good" else torch.ones_like(is_good)
    return (is_taken & pool.negatives_of(positives.not_wrong).any(1, keepdim=True)).float()


def contrastive_loss(
    embeddings: Tensor, not_wrong: Tensor, weights: Tensor, pool: Pool, temperature: float, denominator: float
) -> Tensor:
    """InfoNCE of rollouts against the pool; a query's other positives take no part.

    Args:
        embeddings: `[n, D]`, with gradient.
        not_wrong: `[n, P]` rows of the corpus that are no negatives, the positive first; -1 for none.
        weights: `[n]`, see `contrasted`.
        pool: what they are compared with.
        temperature: above 0.
        denominator: the contrasted rollouts of all ranks, divided by the number of ranks.
    """
    positive = torch.searchsorted(pool.rows, not_wrong[:, 0].contiguous())
    mask = pool.negatives_of(not_wrong)
    return info_nce(
        embeddings,
        pool.vectors,
        positive,
        mask,
        temperature,
        weights=weights,
        denominator=denominator,
    )
