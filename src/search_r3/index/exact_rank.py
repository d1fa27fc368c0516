"""The exact rank of every positive among all rows, counted in blocks, over all ranks."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from search_r3.distributed import gather_rows, own_place, reduced
from search_r3.index.backends.flat import TIE
from search_r3.objectives.ranking import Ranking

DOUBT = 1e-7
"""Times the square root of `D`: a fp32 score this near to the limit is computed again. That is six standard
deviations of the rounding of `D` products that are added one by one up to 1 (2^-24 / sqrt(12) each)."""


@dataclass(frozen=True)
class Positives:
    """The relevant documents of `B` queries.

    Attributes:
        rows: `[B, P]` long, rows in the corpus; -1 where a query has fewer than `P`.
        grades: `[B, P]` fp32, above 0; 0 where there is no row.
        excluded: `[B, E]` long, rows that the query is not ranked against, none of them a positive; -1 where
            it has fewer than `E`. None for none at all.
    """

    rows: Tensor
    grades: Tensor
    excluded: Tensor | None = None

    @property
    def not_wrong(self) -> Tensor:
        """`[B, P + E]` rows that are no wrong documents of the query, the positives first."""
        return self.rows if self.excluded is None else torch.cat([self.rows, self.excluded], 1)


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
        """Whether other ranks are asked for their rows too."""
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
        rows: `[B, G, K]` long, rows in the corpus; -1, and a score of -inf, where there are fewer.
    """

    scores: Tensor
    rows: Tensor


@torch.no_grad()
def exact_ranking(
    queries: Tensor,
    positives: Positives,
    shard: Shard,
    blocks: Blocks | None = None,
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
    asked, own = _all_ranks(_asked(queries, positives), shard)
    with _full_precision(queries.device):
        scores = _positive_scores(asked, shard, blocks)
        n_above, best_wrong = _count(asked, scores, shard, blocks)
    n_above = _reduced(n_above, "sum", shard)
    best_wrong = _reduced(best_wrong, "max", shard)
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
) -> Ranking:
    """The rank of every positive among the retrieved documents; beyond them it is not known.

    Collective as `exact_ranking` is: a positive's score is asked of the rank that holds its row.

    Args:
        queries: `[B, G, D]` fp32, unit norm.
        positives: of the `B` queries.
        retrieved: the top K of each rollout in the whole corpus; K may be the whole corpus.
        shard: rows of the same frozen view.
        blocks: bounds of memory.

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
    asked, own = _all_ranks(_asked(queries, positives), shard)
    with _full_precision(queries.device):
        scores = _positive_scores(asked, shard, blocks or Blocks())[own]
    scores = scores[:, : positives.rows.shape[1]].unflatten(0, (n_groups, n_rollouts))  # [B, G, P]
    is_wrong = retrieved.rows >= 0
    last_rank = _last_rank(positives, shard)
    ranks = []
    for column in positives.not_wrong.unbind(1):
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
    """vectors: `[Q, D]` fp32. rows: `[Q, P]` long, rows of the positives, -1 where there is none. not_wrong:
    `[Q, W]` long, these and the excluded ones, alike."""

    vectors: Tensor
    rows: Tensor
    not_wrong: Tensor


def _asked(queries: Tensor, positives: Positives) -> _Asked:
    rows = (each.repeat_interleave(queries.shape[1], dim=0) for each in (positives.rows, positives.not_wrong))
    return _Asked(queries.detach().float().flatten(0, 1), *rows)  # [B * G, D], [B * G, P], [B * G, W]


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
    if positives.excluded is not None and len(positives.excluded) != len(queries):
        raise ValueError(f"excluded must be [{len(queries)}, E], got {tuple(positives.excluded.shape)}")
    lengths = queries.detach().float().norm(dim=-1)
    is_unit = (lengths - 1.0).abs() < 1e-3  # False for NaN
    if not is_unit.all():
        query, rollout = (~is_unit).nonzero()[0].tolist()
        raise ValueError(
            f"queries must have unit norm: rollout {rollout} of query {query} has "
            f"{lengths[query, rollout]:.4g}"
        )


def _last_rank(positives: Positives, shard: Shard) -> Tensor:
    return shard.size - (positives.not_wrong >= 0).sum(1) + 1


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
    """Some rows as fp32 on a device, to be read only: a slice of fp32 rows on the CPU is no copy."""
    if isinstance(rows, Tensor):
        return rows[which if isinstance(which, slice) else which.to(rows.device)].to(device, torch.float32)
    index = which if isinstance(which, slice) else which.cpu().numpy()
    # of an array that must not be written, as a map of a file, this warns of nothing and copies nothing
    return torch.from_dlpack(np.ascontiguousarray(rows[index], dtype=np.float32)).to(device)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner products `[n]` of the rows of two `[n, D]`, in float64: a row's neighbours do not matter."""
    return (left.double() * right.double()).sum(-1)


def _positive_scores(asked: _Asked, shard: Shard, blocks: Blocks) -> Tensor:
    """`[Q, P]` float64; 0 where there is no positive."""
    scores = torch.zeros(asked.rows.shape, dtype=torch.float64, device=asked.vectors.device)
    local = asked.rows - shard.first_row
    pairs = ((asked.rows >= 0) & (local >= 0) & (local < len(shard.rows))).nonzero()  # [n, 2]
    for query, place in (part.unbind(1) for part in pairs.split(blocks.rows)):
        documents = _read(shard.rows, local[query, place], asked.vectors.device)
        scores[query, place] = _dot(documents, asked.vectors[query])
    scores = _reduced(scores, "sum", shard)
    if not torch.isfinite(scores).all():
        query, place = (~torch.isfinite(scores)).nonzero()[0].tolist()
        raise ValueError(f"row {int(asked.rows[query, place])} of the corpus is not finite")
    return scores


def _count(asked: _Asked, scores: Tensor, shard: Shard, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Over this shard: wrong documents above each positive `[Q, P]` long, and the best wrong score `[Q]`."""
    device = asked.vectors.device
    n_above = torch.zeros(asked.rows.shape, dtype=torch.long, device=device)
    best = torch.full((len(asked.rows),), float("-inf"), dtype=torch.float64, device=device)
    limits = (scores - TIE).masked_fill(asked.rows < 0, float("inf"))  # nothing reaches what is not asked
    size = min(blocks.rows, len(shard.rows)) * min(blocks.queries, len(asked.rows))
    room = torch.empty(size, device=device)  # one for all blocks: a fresh one costs as much as a comparison
    for start in range(0, len(shard.rows), blocks.rows):
        documents = _read(shard.rows, slice(start, start + blocks.rows), device)  # [R, D]
        local = asked.not_wrong - shard.first_row - start
        is_here = (asked.not_wrong >= 0) & (local >= 0) & (local < len(documents))
        for first in range(0, len(asked.rows), blocks.queries):
            part = slice(first, first + blocks.queries)
            vectors = asked.vectors[part]
            wrong = room[: len(documents) * len(vectors)].view(len(documents), len(vectors))
            torch.mm(documents, vectors.T, out=wrong)  # [R, Qc]: the faster order
            query, place = is_here[part].nonzero(as_tuple=True)
            wrong[local[part][query, place], query] = float("-inf")
            block = _Block(documents, vectors, wrong, _highest(wrong, documents, shard.first_row + start))
            _raise_best(best[part], block)
            for number, reached in enumerate(limits[part].unbind(1)):
                _add_above(n_above[part, number], reached, block, blocks)
    return n_above, best


@dataclass(frozen=True)
class _Block:
    """documents: `[R, D]`. vectors: `[Qc, D]`. wrong: `[R, Qc]` fp32 scores, -inf for what is not wrong.
    highest: `[Qc]`, of each column."""

    documents: Tensor
    vectors: Tensor
    wrong: Tensor
    highest: Tensor

    @property
    def doubt(self) -> float:
        """By how much a fp32 score may err."""
        return DOUBT * self.vectors.shape[1] ** 0.5


def _highest(wrong: Tensor, documents: Tensor, first_row: int) -> Tensor:
    """The highest of `[R, Qc]` scores as `[Qc]`; -inf where a block has no wrong document."""
    highest = wrong.amax(0)
    if (highest.isnan() | highest.isposinf()).any():
        bad = first_row + int((~torch.isfinite(documents).all(1)).nonzero()[0])
        raise ValueError(f"row {bad} of the corpus is not finite")
    return highest


def _raise_best(best: Tensor, block: _Block) -> None:
    """Brings `[Qc]` float64 best scores up to the block's, in place; of most blocks none comes near."""
    may_rise = (block.highest.double() > best - block.doubt) & ~block.highest.isneginf()
    which = may_rise.nonzero()[:, 0]
    if len(which):
        rows = block.wrong.index_select(1, which).argmax(0)
        best[which] = torch.maximum(best[which], _dot(block.documents[rows], block.vectors[which]))


def _add_above(n_above: Tensor, limits: Tensor, block: _Block, blocks: Blocks) -> None:
    """Adds to `[Qc]` how many scores reach the limits `[Qc]`; those in doubt are decided in float64."""
    surely, perhaps = (limits + block.doubt).float(), (limits - block.doubt).float()
    which = (block.highest >= perhaps).nonzero()[:, 0]  # of a trained model these are few
    if not len(which):
        return
    wrong = block.wrong if len(which) == len(limits) else block.wrong.index_select(1, which)
    n_sure, n_perhaps = (_count_true(wrong >= bound[which]) for bound in (surely, perhaps))
    n_above[which] += n_sure
    unsure = (n_perhaps > n_sure).nonzero()[:, 0]
    if len(unsure):
        own, scores = which[unsure], wrong.index_select(1, unsure)
        is_open = (scores >= perhaps[own]) & ~(scores >= surely[own])
        n_above[own] += _n_decided(is_open, limits[own], block.vectors[own], block.documents, blocks)


def _count_true(is_true: Tensor) -> Tensor:
    """`[Qc]` int32 sums of `[R, Qc]`; as bytes they are added three times as fast as truth values."""
    return is_true.view(torch.int8).sum(0, dtype=torch.int32)


def _n_decided(is_open: Tensor, limits: Tensor, vectors: Tensor, documents: Tensor, blocks: Blocks) -> Tensor:
    """`[Qc]` how many of the open ones of `[R, Qc]` scores reach the limits `[Qc]` in float64."""
    pairs = is_open.nonzero()  # [n, 2]
    if 16 * len(pairs) > is_open.numel():  # copies, or a collapsed encoder: one product takes less time
        exact = documents.double() @ vectors.double().T
        return (is_open & (exact >= limits)).sum(0)
    n_above = torch.zeros(len(limits), dtype=torch.long, device=limits.device)
    for row, query in (pair.unbind(1) for pair in pairs.split(blocks.rows)):
        n_above.index_add_(0, query, (_dot(documents[row], vectors[query]) >= limits[query]).long())
    return n_above


def _reduced(values: Tensor, how: Literal["sum", "max"], shard: Shard) -> Tensor:
    """`values` over all ranks that hold a part; as they are where this process holds everything."""
    return reduced(values, how) if shard.is_part else values


def _all_ranks(asked: _Asked, shard: Shard) -> tuple[_Asked, slice]:
    """What all ranks ask, in the order of ranks, and which of it is this rank's."""
    n_asked = len(asked.rows)
    rank, n_ranks = own_place() if shard.is_part else (0, 1)
    if n_ranks == 1:
        _check_parts(len(shard.rows), shard)
        return asked, slice(0, n_asked)
    device = asked.vectors.device
    own = (asked.rows, asked.not_wrong)
    facts = torch.tensor([[n_asked, len(shard.rows), *(rows.shape[1] for rows in own)]], device=device)
    counts, n_rows, *widths = gather_rows(facts, [1] * n_ranks).T.tolist()
    _check_parts(sum(n_rows), shard)
    same = (
        pad(rows, (0, max(width) - rows.shape[1]), value=-1) for rows, width in zip(own, widths, strict=True)
    )
    start = sum(counts[:rank])
    gathered = (gather_rows(values, counts) for values in (asked.vectors, *same))
    return _Asked(*gathered), slice(start, start + n_asked)


def _check_parts(n_rows: int, shard: Shard) -> None:
    if n_rows != shard.size:
        raise ValueError(f"the parts hold {n_rows} rows together, the corpus has {shard.size}")
