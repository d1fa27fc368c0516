"""Near-duplicates of source code by MinHash and locality-sensitive hashing, verified by exact Jaccard
similarity.

A document is its set of bigrams of identifier-split, lower-case words; layout, punctuation and case do not
count. Candidates share one of `BANDS` hash bands (Broder 1997; Leskovec et al., Mining of Massive Datasets,
section 3.4): a pair of similarity 0.8 is missed with probability (1 - 0.8**5)**20 = 0.04 %. Nothing is
compared all against all.
"""

import re
import zlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from search_r3.data.cold_start import identifier_words

BANDS, ROWS = 20, 5
_NUMBER = re.compile(r"\d+")
_GENERATOR = np.random.Generator(np.random.PCG64(20250710))
_MULTIPLIERS = _GENERATOR.integers(1, 2**63, size=(BANDS * ROWS, 1), dtype=np.uint64) | np.uint64(1)
_ADDENDS = _GENERATOR.integers(0, 2**63, size=(BANDS * ROWS, 1), dtype=np.uint64)
_MIX = _GENERATOR.integers(1, 2**63, size=(1, ROWS), dtype=np.uint64) | np.uint64(1)


@lru_cache(maxsize=200_000)
def _word_hash(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))


def shingles(text: str) -> np.ndarray:
    """Hashes of the word bigrams of a text.

    Returns:
        `[S]` uint32, sorted, without repeats; at least one, for a text of one word or none.
    """
    words = identifier_words(text) + _NUMBER.findall(text)
    hashes = np.fromiter((_word_hash(word) for word in words), np.uint64, len(words))
    if len(hashes) < 2:
        return hashes.astype(np.uint32) if len(hashes) else np.zeros(1, np.uint32)
    mixed = (hashes[:-1] * np.uint64(0x9E3779B97F4A7C15)) ^ (hashes[1:] * np.uint64(0xC2B2AE3D27D4EB4F))
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def bands(hashes: np.ndarray) -> np.ndarray:
    """Band keys of a set of shingles; two sets that share a key are compared.

    Args:
        hashes: `[S]` uint32.

    Returns:
        `[BANDS]` uint64.
    """
    wide = hashes.astype(np.uint64)
    smallest = np.concatenate(
        [((wide * a + b) >> np.uint64(32)).min(axis=1) for a, b in _halves()]
    )  # [BANDS * ROWS]
    keys = (smallest.reshape(BANDS, ROWS) * _MIX).sum(axis=1, dtype=np.uint64)
    return keys * np.uint64(2 * BANDS + 1) + np.arange(BANDS, dtype=np.uint64)


def _halves() -> Iterable[tuple[np.ndarray, np.ndarray]]:
    # in slices, so that the product of a very long document stays in cache
    for start in range(0, BANDS * ROWS, 25):
        yield _MULTIPLIERS[start : start + 25], _ADDENDS[start : start + 25]


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Size of the intersection over size of the union of two sorted sets."""
    common = np.intersect1d(left, right, assume_unique=True).size
    return common / (left.size + right.size - common)


class NearDuplicates:
    """Documents that were kept; each new one is compared with those that share a band.

    Args:
        threshold: Jaccard similarity from which two documents count as near-duplicates.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        self.threshold = threshold
        self._shingles: list[np.ndarray] = []
        self._buckets: dict[int, list[int]] = {}

    def add(self, hashes: np.ndarray, keys: np.ndarray) -> int | None:
        """Keeps a document unless it is a near-duplicate of a kept one.

        Args:
            hashes: its `shingles`, `[S]`.
            keys: its `bands`, `[BANDS]`.

        Returns:
            None if it was kept, else the number (in order of keeping) of the one that it repeats.
        """
        candidates: set[int] = set()
        buckets = [self._buckets.get(key) for key in keys.tolist()]
        for bucket in buckets:
            if bucket:
                candidates.update(bucket)
        for candidate in sorted(candidates):
            other = self._shingles[candidate]
            sizes_allow = min(hashes.size, other.size) >= self.threshold * max(hashes.size, other.size)
            if sizes_allow and jaccard(hashes, other) >= self.threshold:
                return candidate
        number = len(self._shingles)
        self._shingles.append(hashes)
        for key in keys.tolist():
            self._buckets.setdefault(key, []).append(number)
        return None
