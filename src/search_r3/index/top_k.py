"""The best documents of the whole corpus, from the best of every rank's rows."""

import numpy as np

from search_r3.index.backends.base import Index
from search_r3.index.shard import StoreShard


def search_shards(
    index: Index, shard: StoreShard, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Searches every shard for the queries of all ranks and merges what is found; collective.

    Args:
        index: over this rank's rows.
        shard: which rows those are.
        queries: `[Q, D]` fp32 of this rank; `Q` may differ between ranks and be 0.
        k: documents per query, at most as many as the corpus has.

    Returns:
        Of this rank's queries: scores `[Q, K]` fp32 and corpus rows `[Q, K]` int64, best first, ties in row
        order.
    """
    if shard.ranks.size == 1:
        return index.search(queries, k) if len(queries) else _nothing(k)
    everyones, own = shard.ranks.joined_and_own(queries)
    if len(everyones) == 0:
        return _nothing(k)
    scores, found = index.search(everyones, k)
    columns = np.full((len(everyones), k), -np.inf, np.float32), np.full((len(everyones), k), -1)
    for column, values in zip(columns, (scores, found + shard.first_row), strict=True):
        column[:, : found.shape[1]] = values
    scores, rows = (
        np.concatenate([part[0, own] for part in shard.ranks.gather(column[None])], 1) for column in columns
    )
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def without_excluded(
    scores: np.ndarray, rows: np.ndarray, excluded: np.ndarray | None, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first `k` documents of every query that it is ranked against.

    Args:
        scores, rows: `[Q, W]`, best first; `k` and as many as a query excludes, or the whole corpus.
        excluded: `[Q, E]`, rows that a query is not ranked against, -1 where it has fewer; None for none.
        k: documents per query.

    Returns:
        Scores and rows `[Q, min(k, W)]`; -inf and -1 where a list has no more.
    """
    if excluded is not None and excluded.size and rows.size:
        is_out = np.zeros(rows.shape, dtype=bool)
        for column in excluded.T:
            is_out |= rows == column[:, None]
        order = np.argsort(is_out, axis=1, kind="stable")  # what stays, in its order
        scores, rows = np.where(is_out, -np.inf, scores), np.where(is_out, -1, rows)
        scores, rows = (np.take_along_axis(values, order, 1) for values in (scores, rows))
    return scores[:, :k], rows[:, :k]


def _nothing(k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
