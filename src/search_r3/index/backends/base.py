"""What every backend of the index offers, and what all of them share.

A backend only supplies candidates: it reads the store's rows, which have been written before it is told
which of them changed, so that it cannot disagree with them for longer than one call. Scores are inner
products in float64 of the rows as stored, rounded to fp32, ties in row order, however many rows tie; two
backends that find the same documents give the same result bit for bit. A result does not depend on the order
of past updates, but for what the approximate backends say of themselves.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

GATHERED = 1 << 18
"""Numbers gathered at once when documents are scored one by one: 2 MiB in float64, so that they stay in the
processor's cache; 128 MiB take three times as long."""


class Index(Protocol):
    """Search over `[N, D]` rows that somebody else owns and changes.

    A backend is made from those rows, and from a folder that it saved itself to, where there is one:
    `Backend(embeddings, saved=folder, ...)`.
    """

    embeddings: np.ndarray

    def __len__(self) -> int:
        """`N`."""
        ...

    def search(self, queries: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores `[Q, K]` fp32 and rows `[Q, K]` int64, `K = min(k, N)`, best first, ties in row order.

        The scores are those of `exact_scores`, so that those of several shards can be merged.
        """
        ...

    def update(self, rows: ArrayLike) -> None:
        """Takes notice that rows `[n]` of `embeddings` have changed; a row may be named again."""
        ...

    def save(self, folder: str | Path) -> None:
        """Writes what cannot be made again from the rows, whole or not at all."""
        ...


MakeIndex = Callable[..., Index]
"""`(embeddings, saved=None)` to an index: what a file in conf/index configures."""


def check_settings(make_index: MakeIndex, n_rows: int, width: int) -> None:
    """Lets a backend refuse its settings before any row is encoded, by its `check`, where it has one.

    Args:
        make_index: a class, or a partial call of one, as conf/index gives it.
        n_rows: of the smallest part of the corpus that a process holds.
        width: of the rows.

    Raises:
        ValueError: As the backend's `check(n_rows, width, **settings)` does.
    """
    made = make_index if isinstance(make_index, partial) else partial(make_index)
    check = getattr(made.func, "check", None)
    if check is not None:
        check(n_rows, width, **made.keywords)


def changed_rows(rows: ArrayLike, n_rows: int) -> np.ndarray:
    """The different ones of `rows`, ascending, `[n]` int64.

    Raises:
        ValueError: If one is not within 0 and `n_rows - 1`, or they are not integers.
    """
    result = np.asarray(rows)
    if result.ndim != 1 or (result.size and result.dtype.kind not in "iu"):
        raise ValueError(f"rows must be [n] integers, got {result.dtype} {result.shape}")
    result = np.unique(result.astype(np.int64))
    if len(result) and not 0 <= result[0] <= result[-1] < n_rows:
        raise ValueError(f"rows must be within 0 and {n_rows - 1}, got {result[0]} to {result[-1]}")
    return result


def exact_scores(embeddings: np.ndarray, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Inner products in float64, rounded to fp32: a score does not depend on what else is scored with it.

    Args:
        embeddings: `[N, D]` fp32.
        queries: `[Q, D]` fp32.
        candidates: `[Q, C]` rows of each query.

    Returns:
        `[Q, C]` fp32.
    """
    scores = np.empty(candidates.shape, dtype=np.float32)
    n_pairs = max(1, GATHERED // embeddings.shape[1])
    n_columns = max(1, min(candidates.shape[1], n_pairs))
    n_queries = max(1, n_pairs // n_columns)
    for start in range(0, len(queries), n_queries):
        asked = slice(start, start + n_queries)
        for first in range(0, candidates.shape[1], n_columns):
            part = asked, slice(first, first + n_columns)
            documents = embeddings[candidates[part]].astype(np.float64)  # [q, c, D]
            documents *= queries[asked, None]
            # A sum of products, not a matrix product: that would depend on the rows beside it.
            scores[part] = documents.sum(-1)
    return scores


def best_candidates(
    embeddings: np.ndarray, queries: np.ndarray, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best of each query's candidates, scored by the rows as they are.

    Args:
        embeddings: `[N, D]` fp32.
        queries: `[Q, D]` fp32.
        candidates: `[Q, C]` different rows with `C >= k`.
        k: to keep.

    Returns:
        Scores `[Q, k]` fp32 and rows `[Q, k]` int64, best first, ties in row order.
    """
    scores = exact_scores(embeddings, queries, candidates)
    order = np.lexsort((candidates, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(candidates, order, 1)
