"""What an audit needs beside the served rows: all rows encoded anew, and those that its step overwrote.

Both are in files without a name on the disk of the rows, not in memory, and gone when they are closed.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from search_r3.distributed import Ranks
from search_r3.index.rows.cache import StoreError
from search_r3.index.rows.files import CHUNK, reserve, write_all
from search_r3.index.rows.live import LiveStore
from search_r3.index.rules.base import AuditedRows


def unnamed_file(folder: Path, **options: object) -> tempfile._TemporaryFileWrapper:
    """A file beside the rows that has no name.

    Raises:
        StoreError: If no file can be made there.
    """
    try:
        return tempfile.TemporaryFile(dir=folder, **options)
    except OSError as error:
        raise StoreError(
            f"{folder}: an audit needs a file there, which could not be made ({error}); make room or set "
            "refresh.audit_every_n_steps=0"
        ) from error


class Overwritten:
    """Vectors that a step overwrites, for its audit.

    Args:
        step: when they are overwritten.
        folder: on a disk with room for them.
        shape: `[n, D]` of the rows.

    Raises:
        StoreError: If no file can be made there.
    """

    def __init__(self, step: int, folder: Path, shape: tuple[int, int]) -> None:
        self.step = step
        # Without a buffer: a full disk is met by `add`, and not again by `close`.
        self._file = unnamed_file(folder, buffering=0)
        self._places = np.full(shape[0], -1)  # in the file, by row
        self._encoded_at = np.empty(shape[0], np.int64)  # by row; of those in the file
        self._n, self._width = 0, shape[1]

    def add(self, rows: np.ndarray, vectors: np.ndarray, encoded_at: np.ndarray) -> None:
        """Keeps vectors `[n, D]` and steps `[n]` of rows `[n]`, which are about to be overwritten."""
        content = np.asarray(vectors, dtype=np.float32).tobytes()
        write_all(self._file.fileno(), content, self._n * self._width * 4)
        self._places[rows] = self._n + np.arange(len(rows))
        self._encoded_at[rows] = encoded_at
        self._n += len(rows)

    def put_into(self, rows: np.ndarray, encoded_at: np.ndarray, start: int) -> None:
        """Replaces those that were overwritten in a copy of the rows and their steps from `start` on."""
        part = slice(start, start + len(rows))
        places = self._places[part]
        is_there = places >= 0
        if is_there.any():
            old = np.memmap(self._file, np.float32, "r", shape=(self._n, self._width))
            rows[is_there] = old[places[is_there]]
            encoded_at[is_there] = self._encoded_at[part][is_there]

    def close(self) -> None:
        self._file.close()


def copied(store: LiveStore, file: tempfile._TemporaryFileWrapper, ranks: Ranks) -> np.memmap:
    """A writable copy `[n, D]` of this rank's rows in a file; collective.

    Raises:
        StoreError: If a disk has no room for it, on every rank.
    """
    error, n_bytes = None, store.rows.nbytes
    try:
        reserve(file.fileno(), n_bytes)  # a full disk kills writers of a map
    except OSError as failed:
        error = StoreError(
            f"{store.folder}: an audit needs {n_bytes / 2**20:.0f} MiB more ({failed}); make room or set "
            "refresh.audit_every_n_steps=0"
        )
    ranks.agree(error)
    copy = np.memmap(file, np.float32, "r+", shape=store.rows.shape)
    for start in range(0, len(copy), CHUNK):
        copy[start : start + CHUNK] = store.rows[start : start + CHUNK]
    return copy


def compared(
    store: LiveStore, step: int, fresh: np.ndarray, overwritten: Overwritten | None
) -> Iterator[AuditedRows]:
    """This rank's rows as they were served before a step, beside all of them encoded anew, part by part.

    Args:
        store: as served after the step's refresh.
        step: of the audit.
        fresh: `[n, D]` all rows encoded anew.
        overwritten: what was overwritten; it counts if it is of this step.
    """
    for start in range(0, len(fresh), CHUNK):
        part = slice(start, start + CHUNK)
        before, encoded_at = store.rows[part].copy(), store.encoded_at[part].copy()
        if overwritten is not None and overwritten.step == step:
            overwritten.put_into(before, encoded_at, start)
        yield AuditedRows(start, before, encoded_at, fresh[part], store.encoded_at[part] == step)
