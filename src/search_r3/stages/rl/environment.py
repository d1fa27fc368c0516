"""The environment of the RL stage: query embeddings in, ranks and rewards out.

The rank of a positive is counted over the rows of the whole corpus: wrong documents that score above it, and
those within `TIE` below it, which count against it. Nothing but rows is needed, so every index backend gets
the same ranks. Rows and queries are read in blocks; no tensor is larger than a block of either side.

A fp32 matrix product gives scores that differ with the way it is cut into blocks, and so with the number of
ranks: by 1e-7 as a rule, by 5e-7 among a million pairs of vectors whose cosine is 0.9. Where that could
decide, the score is computed again in float64.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from search_r3.errors import UsageError
from search_r3.index.exact_rank import Blocks, Positives, Retrieved, Shard, exact_ranking, topk_ranking
from search_r3.index.ledger import SAME_REWARD
from search_r3.objectives.ranking import Ranking
from search_r3.objectives.rewards import Reward, Rewards


class EnvironmentDataError(UsageError, ValueError):
    """Queries, judgements and corpus that no reward can be computed from; the message says which and why."""


@dataclass(frozen=True)
class Outcome:
    """What the environment says about `B` groups.

    Attributes:
        ranking: ranks and scores, of rollouts without an embed token too.
        rewards: `[B, G]` and its parts.
        rank_agreement: share of rollouts whose reward is the same (to 1e-6) by exact and by top-K rank; None
            where only one of the two was computed.
    """

    ranking: Ranking
    rewards: Rewards
    rank_agreement: float | None = None


class Judgements:
    """The positives of every training query, as rows of the corpus; built once, before anything is spent.

    Args:
        qrels: grade by query id and document id; a grade above 0 makes a positive.
        row_of: row by document id, as `Corpus.row_of`.
        n_documents: `N`.
        excluded: by query id, documents that it is not ranked against; one that the corpus does not have is
            left out, since it is never met.

    Raises:
        EnvironmentDataError: If a query has no positive, its qrels name a document that the corpus does not
            have, a positive is excluded, or no wrong document is left, so that every rollout would earn the
            same.
    """

    def __init__(
        self,
        qrels: Mapping[str, Mapping[str, float]],
        row_of: Mapping[str, int],
        n_documents: int,
        excluded: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self.n_documents = n_documents
        self._excluded = {
            query: sorted({row_of[document] for document in documents if document in row_of})
            for query, documents in (excluded or {}).items()
        }
        self._positives = {
            query: _positives_of(query, grades, row_of, n_documents, self._excluded.get(query, ()))
            for query, grades in qrels.items()
        }

    def __len__(self) -> int:
        return len(self._positives)

    def of(self, query_ids: Sequence[str], device: torch.device | str = "cpu") -> Positives:
        """The positives of a batch, and what its queries are not ranked against.

        Raises:
            EnvironmentDataError: If a query is not in the qrels.
        """
        unknown = [query for query in query_ids if query not in self._positives]
        if unknown:
            raise EnvironmentDataError(f"query {unknown[0]!r} is not in the qrels, so it has no positive")
        found = [self._positives[query] for query in query_ids]
        rows = _filled([rows for rows, _ in found], torch.long, -1, least=1)
        grades = _filled([grades for _, grades in found], torch.float, 0, least=1)
        excluded = _filled([self._excluded.get(query, ()) for query in query_ids], torch.long, -1)
        return Positives(rows.to(device), grades.to(device), excluded.to(device))


def _filled(rows: Sequence[Sequence], dtype: torch.dtype, value: int, least: int = 0) -> Tensor:
    """Rows of different lengths as one tensor, filled up; of no rows, it is `least` wide."""
    width = max(map(len, rows), default=least)
    filled = [[*row, *[value] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=dtype).reshape(len(rows), width)


def _positives_of(
    query: str,
    grades: Mapping[str, float],
    row_of: Mapping[str, int],
    n_documents: int,
    excluded: Sequence[int],
) -> tuple[list[int], list[float]]:
    relevant = {document: grade for document, grade in grades.items() if grade > 0}
    if not relevant:
        raise EnvironmentDataError(
            f"query {query!r} has no positive: no grade above 0 in the qrels; leave the query out"
        )
    unknown = [document for document in grades if document not in row_of]
    if unknown:
        raise EnvironmentDataError(
            f"the qrels of query {query!r} name document {unknown[0]!r}, which is not in the corpus"
            f"{f', and {len(unknown) - 1} more' if len(unknown) > 1 else ''}; "
            "use the qrels and the corpus of one collection"
        )
    rows = [row_of[document] for document in relevant]
    if both := set(rows).intersection(excluded):
        document = next(name for name in relevant if row_of[name] in both)
        raise EnvironmentDataError(
            f"document {document!r} is relevant to query {query!r} and excluded from its ranking; it must be "
            "one of the two"
        )
    if len(rows) + len(excluded) >= n_documents:
        what = "one document" if n_documents == 1 else f"{n_documents} documents, all relevant"
        what += " or excluded" if excluded else ""
        raise EnvironmentDataError(
            f"the corpus has {what} to query {query!r}: every rollout would earn the same and nothing could "
            "be learnt; add documents that are not relevant"
        )
    return rows, [float(grade) for grade in relevant.values()]


class Environment:
    """Scores groups of rollouts against one frozen view of the corpus.

    The view is the caller's business: all rollouts of a step must be scored against the same rows, positives
    included, so that a better reward comes from a better query and not from a fresher row. Refresh first,
    then score everything.

    Args:
        judgements: of all training queries.
        reward: from a ranking to what is earned.
        rank: `exact` counts over the whole corpus; `topk` trusts what the index retrieved, and a positive
            that is not in it earns 0 for its rank. For corpora where counting is too slow.
        agreement_every_n_steps: how often both ranks are computed and compared, 0 for never. Needs what the
            index retrieved.
        blocks: bounds of memory.

    Raises:
        ValueError: If `rank` is neither of the two or the number of steps is negative.
    """

    def __init__(
        self,
        judgements: Judgements,
        reward: Reward,
        rank: Literal["exact", "topk"] = "exact",
        agreement_every_n_steps: int = 0,
        blocks: Blocks | None = None,
    ) -> None:
        if rank not in ("exact", "topk"):
            raise ValueError(f"rank must be exact or topk, got {rank!r}")
        if agreement_every_n_steps < 0:
            raise ValueError(f"agreement_every_n_steps must not be negative, got {agreement_every_n_steps}")
        self.judgements = judgements
        self.reward = reward
        self.rank = rank
        self.agreement_every_n_steps = agreement_every_n_steps
        self.blocks = blocks or Blocks()

    def _is_compared(self, step: int) -> bool:
        every = self.agreement_every_n_steps
        return every > 0 and step % every == 0

    def needs_retrieved(self, step: int) -> bool:
        """Whether the rollouts of a step are scored by what the index retrieved."""
        return self.rank == "topk" or self._is_compared(step)

    def score(
        self,
        query_ids: Sequence[str],
        queries: Tensor,
        has_embed_token: Tensor,
        shard: Shard,
        step: int = 0,
        retrieved: Retrieved | None = None,
    ) -> Outcome:
        """Ranks and rewards of `B` groups; collective where the shard is a part of the corpus.

        Args:
            query_ids: `B` ids; a rank may have none.
            queries: `[B, G, D]` embeddings, unit norm.
            has_embed_token: `[B, G]` bool, True where the model wrote the token itself.
            shard: the frozen rows of this step.
            step: decides whether the agreement of the two ranks is computed.
            retrieved: needed by `rank="topk"` and by the agreement.

        Raises:
            ValueError: If `retrieved` is missing where it is needed, or the corpus is not the one judged.
        """
        if shard.size != self.judgements.n_documents:
            raise ValueError(
                f"the rows are of {shard.size} documents, the judgements of {self.judgements.n_documents}"
            )
        is_compared = self._is_compared(step)
        if retrieved is None and self.needs_retrieved(step):
            raise ValueError("rank=topk and the agreement with it need what the index retrieved")
        positives = self.judgements.of(query_ids, queries.device)
        rankings = {}
        if is_compared or self.rank == "exact":
            rankings["exact"] = exact_ranking(queries, positives, shard, self.blocks)
        if is_compared or self.rank == "topk":
            rankings["topk"] = topk_ranking(queries, positives, retrieved, shard, self.blocks)
        rewards = {name: self.reward(ranking, has_embed_token) for name, ranking in rankings.items()}
        agreement = None
        if is_compared and len(query_ids):
            gap = (rewards["exact"].total - rewards["topk"].total).abs()
            agreement = (gap <= SAME_REWARD).float().mean().item()
        return Outcome(rankings[self.rank], rewards[self.rank], agreement)
