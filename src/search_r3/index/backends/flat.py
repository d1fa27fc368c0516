"""Exact search by inner product over rows that stay where they are: an array, or a file mapped into memory.

Which of two documents comes first must not depend on how a matrix product was cut into blocks. A fp32
product differs by about 1e-7 between a block's edge and its middle, so that even two copies of one document
can get different scores. It therefore only says which documents are fetched, and those are scored again in
float64, one by one. What is equal then, as fp32, is a tie, and ties stand in the order that the index was
given. This holds at the cut-off too, however long the run of ties that it falls into.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from search_r3.index.backends.base import changed_rows, exact_scores
from search_r3.index.rows.checks import checked_queries, first_not_finite
from search_r3.index.rows.files import give_back

TIE = 1e-6
"""Scores of unit vectors closer than this are not told apart by a fp32 product. A search fetches them all; a
wrong document that scores this much below a positive, or less, counts as above it."""

SLACK = 16
"""Documents fetched beyond the cut-off, so that few ties there need no second pass over the documents."""

SCAN_ROWS = 4096
"""Documents scored at once."""


class FlatIndex:
    """Searches embeddings in place; no second copy of them is made.

    Args:
        embeddings: `[N, D]` fp32, C-contiguous, unit norm; a NumPy array or memory map.
        order: `[N]` integers, unique; of equally scored documents the one with the lower number comes first.
            Row order where None.

    Raises:
        ValueError: If the embeddings have another shape, type or layout, since serving them would copy them,
            if one is not finite, since it would silently never be found, or if `order` has another length.
    """

    def __init__(self, embeddings: np.ndarray, order: np.ndarray | None = None) -> None:
        if embeddings.ndim != 2 or len(embeddings) == 0:
            raise ValueError(f"embeddings must be [N, D] with N > 0, got shape {tuple(embeddings.shape)}")
        if embeddings.dtype != np.float32 or not embeddings.flags.c_contiguous:
            raise ValueError(
                f"embeddings must be C-contiguous float32 to be searched in place, got {embeddings.dtype}"
                f"{'' if embeddings.flags.c_contiguous else ', not contiguous'}"
            )
        for start in range(0, len(embeddings), 1 << 16):
            place = first_not_finite(embeddings[start : start + (1 << 16)])
            give_back(embeddings)
            if place is not None:
                raise ValueError(f"embeddings must be finite: row {start + place} is not")
        if order is not None and np.shape(order) != (len(embeddings),):
            raise ValueError(f"order must be [{len(embeddings)}] like the documents, got {np.shape(order)}")
        self.embeddings = embeddings
        self.order = order

    def __len__(self) -> int:
        return len(self.embeddings)

    def search(self, queries: ArrayLike, k: int, chunk_size: int = 1024) -> tuple[np.ndarray, np.ndarray]:
        """The best documents of every query; ask for one more where a query's own document is removed later.

        Args:
            queries: `[Q, D]` fp32, unit norm.
            k: documents per query; where it exceeds `N`, all documents are returned.
            chunk_size: queries searched at once.

        Returns:
            Scores `[Q, K]` fp32, of `exact_scores`, and rows `[Q, K]` int64 with `K = min(k, N)`, best first,
            ties in `order`.

        Raises:
            ValueError: If widths differ, `k` is not positive, or a query is not finite.
        """
        vectors = checked_queries(queries, self.embeddings.shape[1], k)
        k = min(k, len(self))
        scores = np.empty((len(vectors), k), dtype=np.float32)
        rows = np.empty((len(vectors), k), dtype=np.int64)
        for start in range(0, len(vectors), chunk_size):
            chunk = slice(start, start + chunk_size)
            scores[chunk], rows[chunk] = self._search(vectors[chunk], k)
            give_back(self.embeddings)
        return scores, rows

    def ranks(self, queries: ArrayLike, rows: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Where given documents stand for every query in what `search` of all documents would return.

        Args:
            queries: `[Q, D]` fp32, unit norm.
            rows: `[C]` row numbers.

        Returns:
            Ranks `[Q, C]` int64, from 1, and scores `[Q, C]` fp32.

        Raises:
            ValueError: If widths differ, a query is not finite, or a row is unknown.
        """
        vectors = checked_queries(queries, self.embeddings.shape[1], 1)
        asked = np.asarray(rows, dtype=np.int64)
        if len(asked) and not 0 <= asked.min() <= asked.max() < len(self):
            raise ValueError(f"rows must be within 0 and {len(self) - 1}, got {asked.min()} to {asked.max()}")
        own = exact_scores(self.embeddings, vectors, np.tile(asked, (len(vectors), 1)))  # [Q, C]
        n_before = np.zeros(own.shape, dtype=np.int64)
        for start in range(0, len(self), SCAN_ROWS):
            products = vectors @ self.embeddings[start : start + SCAN_ROWS].T  # [Q, SCAN_ROWS]
            give_back(self.embeddings)
            for column, row in enumerate(asked):
                apart = products - own[:, column, None]
                n_before[:, column] += (apart > TIE).sum(1)
                is_near = np.abs(apart) <= TIE
                for number in np.flatnonzero(is_near.any(1)):
                    found = start + np.flatnonzero(is_near[number])
                    values = exact_scores(self.embeddings, vectors[number, None], found[None])[0]
                    is_tie = values == own[number, column]
                    is_before = (values > own[number, column]) | (is_tie & self._precedes(found, row))
                    n_before[number, column] += is_before.sum()
        return n_before + 1, own

    def _precedes(self, rows: np.ndarray, row: int) -> np.ndarray:
        """`[n]` bool, True where a row comes before `row` if their scores are equal."""
        return rows < row if self.order is None else self.order[rows] < self.order[row]

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        n_fetched = min(k + SLACK, len(self))
        products, rows = self._nearest(queries, n_fetched)
        scores, rows = self._sorted(exact_scores(self.embeddings, queries, rows), rows, k)
        cut = products[:, k - 1]
        is_undecided = cut - products[:, -1] <= TIE  # what was not fetched may tie with what was
        if n_fetched < len(self) and is_undecided.any():
            scores[is_undecided], rows[is_undecided] = self._scan(queries[is_undecided], cut[is_undecided], k)
        return scores, rows

    def _nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best `k` by fp32 products, best first; `[Q, k]` scores and rows.

        Blocks by torch and not `faiss.knn`, which takes four to six times as long with the BLAS that its
        wheels bring (experiments/README.md).
        """
        asked = torch.from_numpy(queries)
        scores, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for start in range(0, len(self), SCAN_ROWS):
            block = torch.from_numpy(np.array(self.embeddings[start : start + SCAN_ROWS]))
            give_back(self.embeddings)
            best, found = (asked @ block.T).topk(min(k, len(block)), sorted=False)
            scores, rows = torch.cat([scores, best], 1), torch.cat([rows, start + found], 1)
            scores, kept = scores.topk(min(k, scores.shape[1]))
            rows = rows.gather(1, kept)
        return scores.numpy(), rows.numpy()

    def _scan(self, queries: np.ndarray, cut: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best `k` documents by one pass over all; memory is that of a block, whatever ties.

        Args:
            queries: `[Q, D]`.
            cut: `[Q]` product of the document at the cut-off; one that is lower by more than `TIE` is out.
            k: documents per query.
        """
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows = np.zeros((len(queries), k), dtype=np.int64)
        for start in range(0, len(self), SCAN_ROWS):
            products = queries @ self.embeddings[start : start + SCAN_ROWS].T  # [Q, SCAN_ROWS]
            give_back(self.embeddings)
            is_candidate = products >= (cut - TIE)[:, None]
            for number in np.flatnonzero(is_candidate.any(1)):
                found = start + np.flatnonzero(is_candidate[number])
                values = exact_scores(self.embeddings, queries[number, None], found[None])[0]
                values = np.concatenate([scores[number], values])
                found = np.concatenate([rows[number], found])
                scores[number], rows[number] = self._sorted(values, found, k)
        return scores, rows

    def _sorted(self, scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best `k` along the last axis, ties in `order`."""
        places = rows if self.order is None else self.order[rows]
        best = np.lexsort((places, -scores), axis=-1)[..., :k]
        return np.take_along_axis(scores, best, -1), np.take_along_axis(rows, best, -1)


class InPlaceIndex(FlatIndex):
    """Exact search over live rows: there is nothing to update, and nothing to save.

    Args:
        embeddings: `[N, D]` fp32, such as the memory map of a live store.
        saved: taken like every backend does, and not needed.
    """

    def __init__(self, embeddings: np.ndarray, saved: str | Path | None = None) -> None:
        super().__init__(embeddings)

    def update(self, rows: ArrayLike) -> None:
        """Checks the row numbers.

        Raises:
            ValueError: If a row is unknown.
        """
        changed_rows(rows, len(self))

    def save(self, folder: str | Path) -> None:
        """Writes nothing."""
