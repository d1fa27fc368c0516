"""The environment of the RL stage: query embeddings in, ranks and rewards out.

The rank of a positive is counted over the rows of the whole corpus: wrong documents that score above it, and
those within `TIE` below it, which count against it. Nothing but rows is needed, so every index backend gets
the same ranks. Rows and queries are read in blocks; no tensor is larger than a block of either side.

A fp32 matrix product gives scores that differ with the way it is cut into blocks, and so with the number of
ranks: by 1e-7 as a rule, by 5e-7 among a million pairs of vectors whose cosine is 0.9. Where that could
decide, the score is computed again in float64.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from src.index.flat import TIE
from src.index.ledger import SAME_REWARD
from src.objectives.rewards import Ranking, Reward, Rewards

DOUBT = 1e-7
"""Times the square root of `D`: a fp32 score this near to the limit is computed again. That is six standard
deviations of the rounding of `D` products that are added one by one up to 1 (2^-24 / sqrt(12) each)."""


class EnvironmentDataError(ValueError):
    """Queries, judgements and corpus that no reward can be computed from; the message says which and why."""


@dataclass(frozen=True)
class Positives:
    """The relevant documents of `B` queries.

    Attributes:
        rows: `[B, P]` long, rows in the corpus; -1 where a query has fewer than `P`.
        grades: `[B, P]` fp32, above 0; 0 where there is no row.
    """

    rows: Tensor
    grades: Tensor


@dataclass(frozen=True)
class Shard:
    """The rows of the corpus that this process holds.

    Attributes:
        rows: `[n, D]` fp32, unit norm; a NumPy array, a memory map or a tensor. Read block by block.
        first_row: the corpus row of the first of them.
        n_documents: `N`, the rows of all ranks together, each of which holds a part, maybe an empty one. None
            where `rows` is the whole corpus: nothing is then asked of other ranks.
    """

    rows: np.ndarray | Tensor
    first_row: int = 0
    n_documents: int | None = None

    @property
    def is_part(self) -> bool:
        return self.n_documents is not None

    @property
    def size(self) -> int:
        """Rows of the whole corpus."""
        return len(self.rows) if self.n_documents is None else self.n_documents


@dataclass(frozen=True)
class Blocks:
    """How much is in memory at once: `rows` x D of the corpus, and `rows` x `queries` scores."""

    rows: int = 8192
    queries: int = 512

    def __post_init__(self) -> None:
        if self.rows < 1 or self.queries < 1:
            raise ValueError(f"blocks need at least one row and one query, got {self.rows}, {self.queries}")


@dataclass(frozen=True)
class Retrieved:
    """What an index found for every rollout.

    Attributes:
        scores: `[B, G, K]`, best first.
        rows: `[B, G, K]` long, rows in the corpus.
    """

    scores: Tensor
    rows: Tensor


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

    Raises:
        EnvironmentDataError: If a query has no positive, its qrels name a document that the corpus does not
            have, or no wrong document is left, so that every rollout would earn the same.
    """

    def __init__(
        self, qrels: Mapping[str, Mapping[str, float]], row_of: Mapping[str, int], n_documents: int
    ) -> None:
        self.n_documents = n_documents
        self._positives = {
            query: _positives_of(query, grades, row_of, n_documents) for query, grades in qrels.items()
        }

    def __len__(self) -> int:
        return len(self._positives)

    def of(self, query_ids: Sequence[str], device: torch.device | str = "cpu") -> Positives:
        """The positives of a batch.

        Raises:
            EnvironmentDataError: If a query is not in the qrels.
        """
        unknown = [query for query in query_ids if query not in self._positives]
        if unknown:
            raise EnvironmentDataError(f"query {unknown[0]!r} is not in the qrels, so it has no positive")
        found = [self._positives[query] for query in query_ids]
        width = max((len(rows) for rows, _ in found), default=1)
        rows = torch.full((len(found), width), -1, dtype=torch.long)
        grades = torch.zeros(len(found), width)
        for number, (positive_rows, positive_grades) in enumerate(found):
            rows[number, : len(positive_rows)] = torch.tensor(positive_rows)
            grades[number, : len(positive_grades)] = torch.tensor(positive_grades)
        return Positives(rows.to(device), grades.to(device))


def _positives_of(
    query: str, grades: Mapping[str, float], row_of: Mapping[str, int], n_documents: int
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
    if len(relevant) >= n_documents:
        what = "one document" if n_documents == 1 else f"{n_documents} documents, all relevant"
        raise EnvironmentDataError(
            f"the corpus has {what} to query {query!r}: every rollout would earn the same and nothing could "
            "be learnt; add documents that are not relevant"
        )
    return [row_of[document] for document in relevant], [float(grade) for grade in relevant.values()]


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

    def score(
        self,
        query_ids: Sequence[str],
        queries: Tensor,
        has_embed_token: Tensor,
        shard: Shard,
        step: int = 0,
        retrieved: Retrieved | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> Outcome:
        """Ranks and rewards of `B` groups; collective where the shard is a part of the corpus.

        Args:
            query_ids: `B` ids; a rank may have none.
            queries: `[B, G, D]` embeddings, unit norm.
            has_embed_token: `[B, G]` bool, True where the model wrote the token itself.
            shard: the frozen rows of this step.
            step: decides whether the agreement of the two ranks is computed.
            retrieved: needed by `rank="topk"` and by the agreement.
            group: the ranks that hold the other parts; the default group where None.

        Raises:
            ValueError: If `retrieved` is missing where it is needed, or the corpus is not the one judged.
        """
        if shard.size != self.judgements.n_documents:
            raise ValueError(
                f"the rows are of {shard.size} documents, the judgements of {self.judgements.n_documents}"
            )
        is_compared = self.agreement_every_n_steps > 0 and step % self.agreement_every_n_steps == 0
        if retrieved is None and (is_compared or self.rank == "topk"):
            raise ValueError("rank=topk and the agreement with it need what the index retrieved")
        positives = self.judgements.of(query_ids, queries.device)
        rankings = {}
        if is_compared or self.rank == "exact":
            rankings["exact"] = exact_ranking(queries, positives, shard, self.blocks, group)
        if is_compared or self.rank == "topk":
            rankings["topk"] = topk_ranking(queries, positives, retrieved, shard, self.blocks, group)
        rewards = {name: self.reward(ranking, has_embed_token) for name, ranking in rankings.items()}
        agreement = None
        if is_compared and len(query_ids):
            gap = (rewards["exact"].total - rewards["topk"].total).abs()
            agreement = (gap <= SAME_REWARD).float().mean().item()
        return Outcome(rankings[self.rank], rewards[self.rank], agreement)


@torch.no_grad()
def exact_ranking(
    queries: Tensor,
    positives: Positives,
    shard: Shard,
    blocks: Blocks | None = None,
    group: dist.ProcessGroup | None = None,
) -> Ranking:
    """The rank of every positive in the whole corpus, by count.

    Where the shard is a part of the corpus the call is collective: the queries of all ranks are gathered,
    counted against every rank's rows, and each rank gets its own back. Memory is bounded by the blocks, by
    the gathered queries and their positives.

    Args:
        queries: `[B, G, D]` fp32, unit norm; `B` may differ between ranks and be 0. Rows are brought to their
            device.
        positives: of the `B` queries.
        shard: rows of one frozen view.
        blocks: bounds of memory.
        group: the ranks that hold the parts; the default group where None. Not used for a whole corpus.

    Returns:
        A ranking whose ranks are the same for any blocks and number of ranks; `best_wrong` too, but for wrong
        documents closer than 1e-7 to each other.

    Raises:
        ValueError: If shapes do not fit, a query is not of unit norm, a row is not finite, or the parts are
            not a partition of the corpus.
    """
    blocks = blocks or Blocks()
    _check(queries, positives, shard)
    shape, width = queries.shape[:2], positives.rows.shape[1]
    asked, own = _all_ranks(_asked(queries, positives), shard, group)
    with _full_precision(queries.device):
        scores = _positive_scores(asked, shard, blocks, group)
        n_above, best_wrong = _count(asked, scores, shard, blocks)
    n_above = _reduced(n_above, dist.ReduceOp.SUM, shard, group)
    best_wrong = _reduced(best_wrong, dist.ReduceOp.MAX, shard, group)
    return Ranking(
        rank=1 + n_above[own, :width].unflatten(0, shape),  # [B, G, P]; other ranks may have a larger P
        scores=scores[own, :width].float().unflatten(0, shape),
        best_wrong=best_wrong[own].float().unflatten(0, shape),
        grades=positives.grades,
        last_rank=_last_rank(positives, shard),
    )


@torch.no_grad()
def topk_ranking(
    queries: Tensor,
    positives: Positives,
    retrieved: Retrieved,
    shard: Shard,
    blocks: Blocks | None = None,
    group: dist.ProcessGroup | None = None,
) -> Ranking:
    """The rank of every positive among the retrieved documents; beyond them it is not known.

    Collective as `exact_ranking` is: a positive's score is asked of the rank that holds its row.

    Args:
        queries: `[B, G, D]` fp32, unit norm.
        positives: of the `B` queries.
        retrieved: the top K of each rollout in the whole corpus; K may be the whole corpus.
        shard: rows of the same frozen view.
        blocks: bounds of memory.
        group: the ranks that hold the parts.

    Returns:
        A ranking in which a positive that was not retrieved has rank `last_rank + 1`. Where no wrong document
        was retrieved, `best_wrong` is the lowest retrieved score, which the best wrong one cannot exceed.
    """
    _check(queries, positives, shard)
    n_groups, n_rollouts, _ = queries.shape
    if retrieved.rows.shape != retrieved.scores.shape or retrieved.rows.shape[:2] != queries.shape[:2]:
        raise ValueError(
            f"retrieved scores and rows must be [{n_groups}, {n_rollouts}, K], got "
            f"{tuple(retrieved.scores.shape)} and {tuple(retrieved.rows.shape)}"
        )
    asked, own = _all_ranks(_asked(queries, positives), shard, group)
    with _full_precision(queries.device):
        scores = _positive_scores(asked, shard, blocks or Blocks(), group)[own]
    scores = scores[:, : positives.rows.shape[1]].unflatten(0, (n_groups, n_rollouts))  # [B, G, P]
    is_wrong = torch.ones_like(retrieved.rows, dtype=torch.bool)
    last_rank = _last_rank(positives, shard)
    ranks = []
    for column in positives.rows.unbind(1):
        is_wrong &= retrieved.rows != column[:, None, None]
    for number, column in enumerate(positives.rows.unbind(1)):
        is_above = is_wrong & (retrieved.scores.double() >= scores[:, :, number, None] - TIE)
        is_found = (retrieved.rows == column[:, None, None]).any(-1)
        ranks.append(torch.where(is_found, 1 + is_above.sum(-1), 1 + last_rank[:, None]))
    best_wrong = retrieved.scores.masked_fill(~is_wrong, float("-inf")).amax(-1)
    best_wrong = torch.where(is_wrong.any(-1), best_wrong, retrieved.scores.amin(-1))
    return Ranking(torch.stack(ranks, -1), scores.float(), best_wrong.float(), positives.grades, last_rank)


# Below, `Q` is B * G, on all ranks together where the corpus is in parts.


@dataclass(frozen=True)
class _Asked:
    """vectors: `[Q, D]` fp32. rows: `[Q, P]` long, rows of the positives, -1 where there is none."""

    vectors: Tensor
    rows: Tensor


def _asked(queries: Tensor, positives: Positives) -> _Asked:
    rows = positives.rows.repeat_interleave(queries.shape[1], dim=0)  # [B * G, P]
    return _Asked(queries.detach().float().flatten(0, 1), rows)


def _check(queries: Tensor, positives: Positives, shard: Shard) -> None:
    if queries.ndim != 3 or shard.rows.ndim != 2 or queries.shape[2] != shard.rows.shape[1]:
        raise ValueError(
            f"queries must be [B, G, D] and rows [n, D], got {tuple(queries.shape)} and "
            f"{tuple(shard.rows.shape)}"
        )
    if positives.rows.shape != positives.grades.shape or len(positives.rows) != len(queries):
        raise ValueError(
            f"positives must be [{len(queries)}, P], got {tuple(positives.rows.shape)} and "
            f"{tuple(positives.grades.shape)}"
        )
    if not torch.equal(positives.rows >= 0, positives.grades > 0):
        raise ValueError("positives must have a row where, and only where, they have a grade above 0")
    if (positives.rows >= shard.size).any():
        raise ValueError(f"a positive is row {int(positives.rows.max())} of {shard.size} documents")
    lengths = queries.detach().float().norm(dim=-1)
    is_unit = (lengths - 1.0).abs() < 1e-3  # False for NaN
    if not is_unit.all():
        query, rollout = (~is_unit).nonzero()[0].tolist()
        raise ValueError(
            f"queries must have unit norm: rollout {rollout} of query {query} has "
            f"{lengths[query, rollout]:.4g}"
        )


def _last_rank(positives: Positives, shard: Shard) -> Tensor:
    return shard.size - (positives.rows >= 0).sum(1) + 1


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Products in fp32 throughout: TF32 errs by 1e-4, a hundred times a tie."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _read(rows: np.ndarray | Tensor, which: slice | Tensor, device: torch.device) -> Tensor:
    """Some rows as fp32 on a device; a copy where they come from a file."""
    if isinstance(rows, Tensor):
        return rows[which if isinstance(which, slice) else which.to(rows.device)].to(device, torch.float32)
    index = which if isinstance(which, slice) else which.cpu().numpy()
    return torch.from_numpy(np.array(rows[index], dtype=np.float32)).to(device)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner products `[n]` of the rows of two `[n, D]`, in float64: a row's neighbours do not matter."""
    return (left.double() * right.double()).sum(-1)


def _positive_scores(asked: _Asked, shard: Shard, blocks: Blocks, group: dist.ProcessGroup | None) -> Tensor:
    """`[Q, P]` float64; 0 where there is no positive."""
    scores = torch.zeros(asked.rows.shape, dtype=torch.float64, device=asked.vectors.device)
    local = asked.rows - shard.first_row
    pairs = ((asked.rows >= 0) & (local >= 0) & (local < len(shard.rows))).nonzero()  # [n, 2]
    for query, place in (part.unbind(1) for part in pairs.split(blocks.rows)):
        documents = _read(shard.rows, local[query, place], asked.vectors.device)
        scores[query, place] = _dot(documents, asked.vectors[query])
    scores = _reduced(scores, dist.ReduceOp.SUM, shard, group)
    if not torch.isfinite(scores).all():
        query, place = (~torch.isfinite(scores)).nonzero()[0].tolist()
        raise ValueError(f"row {int(asked.rows[query, place])} of the corpus is not finite")
    return scores


def _count(asked: _Asked, scores: Tensor, shard: Shard, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Over this shard: wrong documents above each positive `[Q, P]` long, and the best wrong score `[Q]`."""
    device = asked.vectors.device
    n_above = torch.zeros(asked.rows.shape, dtype=torch.long, device=device)
    best = torch.full((len(asked.rows),), float("-inf"), dtype=torch.float64, device=device)
    limits = scores - TIE
    for start in range(0, len(shard.rows), blocks.rows):
        documents = _read(shard.rows, slice(start, start + blocks.rows), device)  # [R, D]
        local = asked.rows - shard.first_row - start
        is_here = (asked.rows >= 0) & (local >= 0) & (local < len(documents))
        for first in range(0, len(asked.rows), blocks.queries):
            part = slice(first, first + blocks.queries)
            vectors = asked.vectors[part]
            wrong = vectors @ documents.T  # [Qc, R]
            query, place = is_here[part].nonzero(as_tuple=True)
            wrong[query, local[part][query, place]] = float("-inf")  # a positive is never a wrong document
            best[part] = torch.maximum(best[part], _best(wrong, vectors, documents, shard.first_row + start))
            for number in range(asked.rows.shape[1]):
                chosen = (asked.rows[part, number] >= 0).nonzero()[:, 0]
                if len(chosen):
                    rows = (wrong, vectors, limits[part, number])
                    if len(chosen) < len(wrong):
                        rows = tuple(tensor[chosen] for tensor in rows)
                    n_above[first + chosen, number] += _n_above(*rows, documents, blocks)
    return n_above, best


def _best(wrong: Tensor, vectors: Tensor, documents: Tensor, first_row: int) -> Tensor:
    """The highest of `[Qc, R]` scores as `[Qc]` float64; -inf where a block has no wrong document."""
    values, rows = wrong.max(1)
    is_bad = values.isnan() | values.isposinf()
    if is_bad.any():
        bad = first_row + int((~torch.isfinite(documents).all(1)).nonzero()[0])
        raise ValueError(f"row {bad} of the corpus is not finite")
    return torch.where(values.isneginf(), values.double(), _dot(documents[rows], vectors))


def _n_above(wrong: Tensor, vectors: Tensor, limits: Tensor, documents: Tensor, blocks: Blocks) -> Tensor:
    """`[Qc]` how many of `[Qc, R]` scores reach the limits `[Qc]`; those in doubt are decided in float64."""
    doubt = DOUBT * vectors.shape[1] ** 0.5
    is_sure = wrong >= (limits + doubt).float()[:, None]
    n_above = is_sure.sum(1)
    in_doubt = (wrong >= (limits - doubt).float()[:, None]) & ~is_sure
    pairs = in_doubt.nonzero()  # [n, 2]
    if 16 * len(pairs) > in_doubt.numel():  # copies, or a collapsed encoder: one product takes less time
        exact = vectors.double() @ documents.double().T
        return n_above + (in_doubt & (exact >= limits[:, None])).sum(1)
    for query, row in (pair.unbind(1) for pair in pairs.split(blocks.rows)):
        is_above = _dot(documents[row], vectors[query]) >= limits[query]
        n_above.index_add_(0, query, is_above.long())
    return n_above


def _is_alone(shard: Shard, group: dist.ProcessGroup | None) -> bool:
    is_running = dist.is_available() and dist.is_initialized()
    return not shard.is_part or not is_running or dist.get_world_size(group) == 1


def _reduced(
    values: Tensor, operation: dist.ReduceOp, shard: Shard, group: dist.ProcessGroup | None
) -> Tensor:
    """`values` over all ranks that hold a part; as they are where this process holds everything."""
    if not _is_alone(shard, group):
        dist.all_reduce(values, operation, group=group)
    return values


def _all_ranks(asked: _Asked, shard: Shard, group: dist.ProcessGroup | None) -> tuple[_Asked, slice]:
    """What all ranks ask, in the order of ranks, and which of it is this rank's."""
    n_asked, width = asked.rows.shape
    if _is_alone(shard, group):
        _check_parts(len(shard.rows), shard)
        return asked, slice(0, n_asked)
    device = asked.vectors.device
    facts = torch.tensor([n_asked, width, len(shard.rows)], device=device)
    all_facts = [torch.zeros_like(facts) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_facts, facts, group=group)
    counts, widths, n_rows = torch.stack(all_facts).T.tolist()
    _check_parts(sum(n_rows), shard)
    rows = torch.full((n_asked, max(widths)), -1, dtype=torch.long, device=device)
    rows[:, :width] = asked.rows
    start = sum(counts[: dist.get_rank(group)])
    gathered = (_gathered(values, counts, group) for values in (asked.vectors, rows))
    return _Asked(*gathered), slice(start, start + n_asked)


def _check_parts(n_rows: int, shard: Shard) -> None:
    if n_rows != shard.size:
        raise ValueError(f"the parts hold {n_rows} rows together, the corpus has {shard.size}")


def _gathered(values: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    """`[sum of counts, ...]` from every rank's `[count, ...]`."""
    own = values.new_zeros(max(counts), *values.shape[1:])  # collectives need one size for all ranks
    own[: len(values)] = values
    parts = [torch.empty_like(own) for _ in counts]
    dist.all_gather(parts, own, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
