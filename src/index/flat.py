"""Exact search by inner product over rows that stay where they are: an array, or a file mapped into memory.

Which of two documents comes first must not depend on how a matrix product was cut into blocks. A fp32
product differs by about 1e-7 between a block's edge and its middle, so that even two copies of one document
can get different scores. Neighbours in a ranking that are closer than `TIE` are therefore scored again in
float64, one by one; what is equal then is a tie, and ties are in row order.
"""

import faiss
import numpy as np
from numpy.typing import ArrayLike

TIE = 1e-6
"""Scores of unit vectors closer than this are not told apart by a fp32 product."""

SLACK = 16
"""Documents fetched beyond the cut-off, so that ties at the cut-off are resolved as any others."""


class FlatIndex:
    """Searches embeddings in place; no second copy of them is made.

    Args:
        embeddings: `[N, D]` fp32, C-contiguous, unit norm; a NumPy array or memory map.

    Raises:
        ValueError: If the embeddings have another shape, type or layout, since serving them would copy them,
            or if one is not finite, since it would silently never be found.
    """

    def __init__(self, embeddings: np.ndarray) -> None:
        if embeddings.ndim != 2 or len(embeddings) == 0:
            raise ValueError(f"embeddings must be [N, D] with N > 0, got shape {tuple(embeddings.shape)}")
        if embeddings.dtype != np.float32 or not embeddings.flags.c_contiguous:
            raise ValueError(
                f"embeddings must be C-contiguous float32 to be searched in place, got {embeddings.dtype}"
                f"{'' if embeddings.flags.c_contiguous else ', not contiguous'}"
            )
        for start in range(0, len(embeddings), 1 << 16):
            is_finite = np.isfinite(embeddings[start : start + (1 << 16)]).all(1)
            if not is_finite.all():
                row = start + int((~is_finite).argmax())
                raise ValueError(f"embeddings must be finite: row {row} is not")
        self.embeddings = embeddings

    def __len__(self) -> int:
        return len(self.embeddings)

    def search(self, queries: ArrayLike, k: int, chunk_size: int = 1024) -> tuple[np.ndarray, np.ndarray]:
        """The best documents of every query; ask for one more where a query's own document is removed later.

        Args:
            queries: `[Q, D]` fp32, unit norm.
            k: documents per query; where it exceeds `N`, all documents are returned.
            chunk_size: queries searched at once.

        Returns:
            Scores `[Q, K]` fp32 and rows `[Q, K]` int64 with `K = min(k, N)`, best first, ties in row order.

        Raises:
            ValueError: If widths differ, `k` is not positive, or a query is not finite.
        """
        vectors = np.ascontiguousarray(queries, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"queries must be [Q, {self.embeddings.shape[1]}] like the documents, got {vectors.shape}"
            )
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not np.isfinite(vectors).all():
            number = int((~np.isfinite(vectors).all(1)).argmax())
            raise ValueError(f"queries must be finite: query {number} is not")
        k = min(k, len(self))
        scores = np.empty((len(vectors), k), dtype=np.float32)
        rows = np.empty((len(vectors), k), dtype=np.int64)
        for start in range(0, len(vectors), chunk_size):
            chunk = slice(start, start + chunk_size)
            scores[chunk], rows[chunk] = self._search(vectors[chunk], k)
        return scores, rows

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        n_fetched = min(k + SLACK, len(self))
        scores, rows = faiss.knn(queries, self.embeddings, n_fetched, faiss.METRIC_INNER_PRODUCT)
        is_close = scores[:, :-1] - scores[:, 1:] <= TIE
        for number in np.flatnonzero(is_close.any(1)):
            self._rescore(queries[number], scores[number], rows[number], is_close[number])
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def _rescore(self, query: np.ndarray, scores: np.ndarray, rows: np.ndarray, is_close: np.ndarray) -> None:
        """Replaces, in place, the scores `[K]` that are close to a neighbour's."""
        places = np.flatnonzero(np.append(is_close, False) | np.insert(is_close, 0, False))
        documents = self.embeddings[rows[places]].astype(np.float64)
        # A sum of products, not a matrix product: a row's result does not depend on the rows beside it.
        scores[places] = (documents * query.astype(np.float64)).sum(1)
