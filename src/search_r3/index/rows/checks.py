"""What every part of the index asks of the vectors it is given."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike


def first_not_finite(vectors: np.ndarray) -> int | None:
    """Place of the first of `[n, D]` vectors that holds NaN or an infinity; None where all are finite."""
    is_finite = np.isfinite(vectors).all(1)
    return None if is_finite.all() else int((~is_finite).argmax())


def finite_rows(embeddings: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows of `[N, D]` as contiguous fp32.

    Raises:
        ValueError: If one is not finite.
    """
    vectors = np.ascontiguousarray(embeddings[rows], dtype=np.float32)
    place = first_not_finite(vectors)
    if place is not None:
        raise ValueError(f"embeddings must be finite: row {rows[place]} is not")
    return vectors


def finite_chunks(
    embeddings: np.ndarray, rows: np.ndarray, size: int = 1 << 16
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows `[n]` in parts, each with its vectors `[n, D]` as `finite_rows` gives them."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield part, finite_rows(embeddings, part)


def checked_queries(queries: ArrayLike, width: int, k: int) -> np.ndarray:
    """Queries `[Q, D]` as contiguous fp32.

    Raises:
        ValueError: If the width differs, `k` is not positive, or a query is not finite.
    """
    vectors = np.ascontiguousarray(queries, dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise ValueError(f"queries must be [Q, {width}] like the documents, got {vectors.shape}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    place = first_not_finite(vectors)
    if place is not None:
        raise ValueError(f"queries must be finite: query {place} is not")
    return vectors
