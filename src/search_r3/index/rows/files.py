"""Writing where a disk may be full: not through a map, which would kill the process, and never in part."""

import contextlib
import itertools
import mmap
import os

import numpy as np

CHUNK = 1 << 14
"""Rows copied, verified or restored at once."""


def reserve(file: int, size: int) -> None:
    """Makes an open file `size` bytes long, with their place on the disk where the system can give it."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def write_all(file: int, content: bytes | memoryview, offset: int | None = None) -> None:
    """Writes all bytes; the system may take fewer at a time, as it does on a disk that is nearly full."""
    view = memoryview(content)
    while len(view):
        written = os.write(file, view) if offset is None else os.pwrite(file, view, offset)
        offset = None if offset is None else offset + written
        view = view[written:]


def give_back(rows: np.ndarray) -> None:
    """Lets go of the pages that were read of a file which rows are mapped from, so that they do not add up.

    What is read again comes from the system's cache. Rows that are not mapped, or may be written, stay.
    """
    mapped = getattr(rows, "_mmap", None)
    if mapped is not None and rows.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError, ValueError):
            mapped.madvise(mmap.MADV_DONTNEED)


def write_rows(file: int, rows: np.ndarray, values: np.ndarray) -> None:
    """Writes the values `[n, ...]` of ascending rows, those that are neighbours in one call."""
    if len(rows) and (np.diff(rows) <= 0).any():
        raise ValueError("rows must ascend")
    edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    for start, stop in itertools.pairwise(edges):
        part = memoryview(values[start:stop]).cast("B")
        write_all(file, part, int(rows[start]) * (len(part) // (stop - start)))
