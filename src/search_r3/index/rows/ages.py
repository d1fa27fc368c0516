"""When each live row was encoded, and its checksum: what `ages.bin` holds."""

import hashlib
import zlib

import numpy as np

AGE = np.dtype([("encoded_at", "<i8"), ("checksum", "<u4"), ("unused", "<u4")])
"""Of a row: the step it was encoded at, and the CRC-32 of that step and its vector."""


def digest_of(ages: np.ndarray) -> bytes:
    """SHA-256 of the ages and checksums `[N]` of all rows: what a checkpoint is known by."""
    return hashlib.sha256(memoryview(ages).cast("B")).digest()


def aged(vectors: np.ndarray, ages: np.ndarray) -> np.ndarray:
    """What `ages.bin` says of rows `[n, D]` encoded at `ages [n]`."""
    result = np.zeros(len(vectors), dtype=AGE)
    result["encoded_at"] = ages
    starts = (np.asarray(ages, dtype=np.int64) & 0xFFFFFFFF).tolist()
    result["checksum"] = [
        zlib.crc32(row, start) for row, start in zip(np.asarray(vectors), starts, strict=True)
    ]
    return result
