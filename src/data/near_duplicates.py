"""Near-duplicate removal on content: MinHash candidates, exact Jaccard decision (Broder 1997)."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from src.data.reasoning import identifier_words

_BANDS, _ROWS_PER_BAND = 20, 4


def shingles(text: str, size: int = 3) -> np.ndarray:
    """Distinct 64-bit hashes of runs of `size` words; identifiers are split, case is folded."""
    words = identifier_words(text)
    runs = {" ".join(words[start : start + size]) for start in range(max(len(words) - size + 1, 1))}
    digests = b"".join(hashlib.blake2b(run.encode(), digest_size=8).digest() for run in sorted(runs))
    return np.frombuffer(digests, dtype=np.uint64)


def _bands(hashes: np.ndarray, multipliers: np.ndarray, offsets: np.ndarray) -> list[bytes]:
    """One key per band; two texts of Jaccard 0.8 share at least one with probability 0.9999."""
    mixed = hashes[None, :] * multipliers[:, None] + offsets[:, None]  # wraps modulo 2**64
    signature = (mixed >> np.uint64(16)).min(1).reshape(_BANDS, _ROWS_PER_BAND)
    return [bytes([band]) + row.tobytes() for band, row in enumerate(signature)]


def drop_near_duplicates(texts: Sequence[str], threshold: float) -> list[int]:
    """Rows whose Jaccard similarity to every earlier kept row is below `threshold`.

    Args:
        texts: in order of preference; of two near-duplicates the earlier one is kept.
        threshold: on the Jaccard similarity of 3-word shingles, in (0, 1].
    """
    random = np.random.default_rng(0)
    n = _BANDS * _ROWS_PER_BAND
    multipliers = random.integers(1, 2**63, n, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    offsets = random.integers(0, 2**63, n, dtype=np.uint64)
    buckets: dict[bytes, list[int]] = defaultdict(list)
    sets: dict[int, set[int]] = {}
    kept = []
    for row, text in enumerate(tqdm(texts, desc="near-duplicates", unit="text", disable=len(texts) < 10_000)):
        hashes = shingles(text)
        own = set(hashes.tolist())
        keys = _bands(hashes, multipliers, offsets)
        candidates = {other for key in keys for other in buckets[key]}
        if any(len(own & sets[o]) >= threshold * len(own | sets[o]) for o in candidates):
            continue
        for key in keys:
            buckets[key].append(row)
        sets[row] = own
        kept.append(row)
    return kept
