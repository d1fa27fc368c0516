"""The rollback journals of live rows: what a checkpoint held before it was overwritten.

A journal begins with the digest of its checkpoint, by which one of another run, or of a part of the run that
was undone, is known. Its entries are rows with their old ages and vectors, each with a CRC-32.
"""

import logging
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from search_r3.files import sync
from search_r3.index.rows.ages import aged
from search_r3.index.rows.cache import StoreError
from search_r3.index.rows.files import CHUNK, write_all, write_rows

HEAD = struct.Struct("<8s32s")  # magic, digest of the checkpoint
HEAD_MAGIC = b"SR3LIVE1"
ENTRY = struct.Struct("<4sII")  # magic, rows, CRC-32 of what follows
ENTRY_MAGIC = b"UNDO"
log = logging.getLogger(__name__)


class Journal:
    """What a checkpoint held before it was overwritten, up to the next one; open for appending.

    Attributes:
        number: of the checkpoint.
        is_kept: `[N]` bool, True where the row's old value was appended since this journal was opened.
    """

    def __init__(self, folder: Path, number: int, n_rows: int) -> None:
        """Opens one that is there."""
        self.number = number
        self.is_kept = np.zeros(n_rows, dtype=bool)
        self._file = os.open(folder / journal_name(number), os.O_RDWR | os.O_APPEND)

    @property
    def is_empty(self) -> bool:
        """Whether no row was overwritten since the checkpoint."""
        return os.fstat(self._file).st_size <= HEAD.size

    def keep(self, rows: np.ndarray, vectors: np.ndarray, encoded_at: np.ndarray) -> None:
        """Appends rows that it does not hold yet, an entry per chunk, and waits until they are on disk.

        Args:
            rows: `[n]` that are to be overwritten, ascending.
            vectors: `[N, D]` of all rows as they are.
            encoded_at: `[N]` of all rows.

        Raises:
            OSError: If the disk fails; the journal is as it was.
        """
        rows = rows[~self.is_kept[rows]]
        if len(rows) == 0:
            return
        whole = os.fstat(self._file).st_size
        try:
            for start in range(0, len(rows), CHUNK):
                part = rows[start : start + CHUNK]
                payload = part.astype("<i8").tobytes() + encoded_at[part].tobytes() + vectors[part].tobytes()
                write_all(self._file, ENTRY.pack(ENTRY_MAGIC, len(part), zlib.crc32(payload)) + payload)
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, whole)
            raise
        self.is_kept[rows] = True

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def journal_name(number: int) -> str:
    """The file of a checkpoint's journal."""
    return f"journal-{number:06d}.bin"


def journals(folder: Path) -> list[int]:
    """Numbers of the checkpoints that a folder has a journal of, ascending."""
    found = (re.fullmatch(r"journal-(\d+)\.bin", file.name) for file in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def create_journal(folder: Path, number: int, digest: bytes) -> None:
    """Writes an empty one to the disk.

    Args:
        folder: of the store.
        number: of the checkpoint, which has none yet.
        digest: of the checkpoint's ages and checksums.
    """
    file = os.open(folder / journal_name(number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_all(file, HEAD.pack(HEAD_MAGIC, digest))
        os.fsync(file)
    finally:
        os.close(file)
    sync(folder)


def refuse_unreachable(folder: Path, number: int, digest: str) -> None:
    """Raises where the journals do not lead back to this very checkpoint."""
    numbers = journals(folder)
    if not numbers or not set(range(number, numbers[-1] + 1)) <= set(numbers):
        raise StoreError(
            f"{folder}: cannot go back to checkpoint {number}, it keeps {numbers}; "
            "resume from the run's last checkpoint"
        )
    with (folder / journal_name(number)).open("rb") as stream:
        head = stream.read(HEAD.size)
    if head != HEAD.pack(HEAD_MAGIC, bytes.fromhex(digest)):
        raise StoreError(
            f"{folder}: checkpoint {number} was written by another run, or by a part of this run that was "
            "undone; resume from the run's last checkpoint"
        )


def undo(folder: Path, width: int, number: int) -> None:
    """Writes back what the journals from the newest to `number` kept; doing it twice changes nothing."""
    row_file, age_file = (os.open(folder / name, os.O_RDWR) for name in ("rows.f32", "ages.bin"))
    n_restored = 0
    try:
        for journal in sorted((known for known in journals(folder) if known >= number), reverse=True):
            for rows, ages, vectors in _entries(folder / journal_name(journal), width):
                write_rows(row_file, rows, vectors)
                write_rows(age_file, rows, aged(vectors, ages))
                n_restored += len(rows)
        os.fsync(row_file)
        os.fsync(age_file)
    except OSError as error:
        raise StoreError(
            f"{folder}: rows could not be restored ({error}); free the disk and resume"
        ) from error
    finally:
        os.close(row_file)
        os.close(age_file)
    if n_restored:
        log.info("%s: %d rows went back to checkpoint %d", folder, n_restored, number)


def _entries(journal: Path, width: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, ages and vectors of a journal; ends at the first entry that is not whole.

    Only the last one can be so, since an entry is on disk before its rows are overwritten; were an earlier
    one damaged, the digest of the checkpoint would not be met.
    """
    with journal.open("rb") as stream:
        stream.seek(HEAD.size)
        while len(head := stream.read(ENTRY.size)) == ENTRY.size:
            magic, n, checksum = ENTRY.unpack(head)
            payload = stream.read(n * (16 + width * 4)) if magic == ENTRY_MAGIC else b""
            if len(payload) != n * (16 + width * 4) or zlib.crc32(payload) != checksum or n == 0:
                return
            rows, ages = np.frombuffer(payload, "<i8", 2 * n).reshape(2, n)
            yield rows, ages, np.frombuffer(payload, "<f4", offset=16 * n).reshape(n, width)


def forget_older(folder: Path, number: int) -> None:
    """Drops the journals of earlier checkpoints, the oldest first: what a kill leaves is without a gap."""
    for old in journals(folder):
        if old < number:
            os.unlink(folder / journal_name(old))


def forget_undone(folder: Path, number: int) -> None:
    """Drops the journals that were undone, the newest first: what a kill leaves still leads to `number`."""
    for journal in reversed(journals(folder)):
        if journal > number:
            os.unlink(folder / journal_name(journal))
    os.truncate(folder / journal_name(number), HEAD.size)
    sync(folder)
