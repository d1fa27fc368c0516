"""The rows of one run: they start as a copy of the cache, follow the model, and go back to any checkpoint.

    <folder>/facts.json        key, number of rows, width; written last: a folder without it is no store
    <folder>/rows.f32          `[N, D]` fp32, written with `pwrite`, read through a read-only memory map
    <folder>/ages.bin          per row the step it was encoded at (int64) and a CRC-32 of both, as of the last
                               checkpoint
    <folder>/journal-<c>.bin   what checkpoint `c` held before it was overwritten, up to checkpoint `c + 1`
    <folder>/lock              held as long as the store is open

A checkpoint of a run is two things that cannot be written at one instant: the trainer's file and these rows.
So `state_dict` only starts a new journal; the trainer's file names it; `commit` is called once that file is
on disk, and drops what no checkpoint needs that is older than the one before. Until then, and after a kill at
any moment, the rows can go back to the newer checkpoint as well as to the older one: the journals are undone
from the newest to the one that is asked for. A journal entry is on disk before its row is overwritten. Ages
and checksums are only read where a checkpoint is gone back to, and so they are only written when one is made:
a rule may overwrite every row at every step.

The id of a checkpoint holds a digest of all ages and row checksums, which also heads its journal. A
checkpoint of another run, or of a part of this run that was undone, is refused before a row is written; what
was restored is verified against the digest row by row, so that a damaged file is refused too.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from search_r3.files import removal, sync, take_lock, write_json
from search_r3.index.rows.ages import AGE, aged, digest_of
from search_r3.index.rows.cache import StoreError
from search_r3.index.rows.checks import first_not_finite
from search_r3.index.rows.files import CHUNK, write_rows
from search_r3.index.rows.journal import (
    Journal,
    create_journal,
    forget_older,
    forget_undone,
    journal_name,
    journals,
    refuse_unreachable,
    undo,
)
from search_r3.records import read_json

FORMAT_VERSION = 1
NEVER = -1
"""`encoded_at` of a row that was never encoded."""


class LiveStore:
    """`[N, D]` rows and the step each was encoded at; made by `create` or `open`.

    Attributes:
        folder: where the files are.
        rows: `[N, D]` fp32, a read-only memory map that shows every update at once.
        encoded_at: `[N]` int64, read-only; `NEVER` (-1) for a row that was never encoded.
    """

    def __init__(self, folder: Path, facts: Mapping, lock: int) -> None:
        """Takes over a folder whose files are whole and whose lock is held; use `create` or `open`."""
        self.folder = folder
        self._lock = lock
        self._error: OSError | None = None
        shape = (facts["n_rows"], facts["width"])
        self._row_file = os.open(folder / "rows.f32", os.O_RDWR)
        self._age_file = os.open(folder / "ages.bin", os.O_RDWR)
        # As a plain array: rows of a np.memmap are memmaps, and making one costs more than its checksum.
        self.rows = np.asarray(np.memmap(folder / "rows.f32", dtype="<f4", mode="r", shape=shape))
        self._ages = np.fromfile(folder / "ages.bin", dtype=AGE)
        self.encoded_at = self._ages["encoded_at"]
        self.encoded_at.flags.writeable = False
        self._journal = Journal(folder, max(journals(folder)), shape[0])
        self._committed = self._journal.number

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """`D`."""
        return self.rows.shape[1]

    @classmethod
    def create(
        cls,
        folder: str | Path,
        key: Mapping[str, str],
        source: np.ndarray | tuple[int, int],
        step: int = 0,
        overwrite: bool = False,
    ) -> Self:
        """Makes the store of a new run.

        Args:
            folder: of this store alone.
            key: weights, tokenizer, prompts and corpus that the run started from.
            source: the cache's rows `[N, D]` fp32, copied as encoded at `step`; or `(N, D)`, for rows of
                zeros that were never encoded, so that refreshing every row builds the index.
            step: at which the source's rows were encoded.
            overwrite: whether a store that is already there may be replaced.

        Raises:
            StoreError: If the folder holds a store and `overwrite` is off, if another process has it open, or
                if the disk has no room for `N * D * 4` bytes.
            ValueError: If the source is not fp32 `[N, D]` with `N > 0` and `D > 0`.
        """
        folder = Path(folder)
        shape = tuple(getattr(source, "shape", source))
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"a live store needs [N, D] rows with N > 0 and D > 0, got {shape}")
        if isinstance(source, np.ndarray) and source.dtype != np.float32:
            raise ValueError(f"the rows of a live store are float32, got {source.dtype}")
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
        try:
            if (folder / "facts.json").exists() and not overwrite:
                raise StoreError(
                    f"{folder}: holds the rows of a run; resume that run, or remove them: {removal(folder)}"
                )
            facts = {"format_version": FORMAT_VERSION, "key": dict(key)} | dict(
                zip(("n_rows", "width"), map(int, shape), strict=True)
            )
            try:
                _fill(folder, source, shape, step)
                write_json(folder / "facts.json", facts)
                sync(folder)
            except OSError as error:
                _remove(folder)
                raise StoreError(
                    f"{folder}: no live store of {shape[0]} rows could be made, which takes "
                    f"{shape[0] * (shape[1] * 4 + AGE.itemsize) / 2**20:.0f} MiB ({error}); "
                    "free that much or choose another folder"
                ) from error
            return cls(folder, facts, lock)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def open(cls, folder: str | Path, key: Mapping[str, str], at_checkpoint: Mapping) -> Self:
        """Opens a run's store with exactly the rows and ages of one of its checkpoints.

        Args:
            folder: of the store.
            key: what the run started from, as it was created with.
            at_checkpoint: what `state_dict` returned when the checkpoint was written.

        Raises:
            StoreError: If there is no store, it is of another key, in use, or damaged, or if the checkpoint
                is not one that it can go back to.
        """
        folder = Path(folder)
        if not (folder / "facts.json").is_file():
            raise StoreError(f"{folder}: there is no live store; start the run anew")
        lock = _locked(folder)
        try:
            facts = _checked_facts(folder, key)
            if (facts["n_rows"], facts["width"]) != (at_checkpoint["n_rows"], at_checkpoint["width"]):
                raise StoreError(
                    f"{folder}: holds {facts['n_rows']} rows of width {facts['width']}, the checkpoint has "
                    f"{at_checkpoint['n_rows']} of {at_checkpoint['width']}; resume from the run's own"
                )
            number = at_checkpoint["number"]
            refuse_unreachable(folder, number, at_checkpoint["digest"])
            undo(folder, facts["width"], number)
            store = cls(folder, facts, lock)
            try:
                store._verify(at_checkpoint["digest"])
                forget_undone(folder, number)
            except BaseException:
                store._close_files()
                raise
        except BaseException:
            os.close(lock)
            raise
        store._journal.close()
        store._journal = Journal(folder, number, len(store))
        store._committed = number
        return store

    @property
    def checkpoints(self) -> list[int]:
        """Numbers of the checkpoints that the rows can go back to, ascending."""
        return journals(self.folder)

    def update(self, rows: ArrayLike, vectors: ArrayLike, step: int | np.ndarray) -> None:
        """Overwrites rows; their old vectors and ages are in the journal first.

        Args:
            rows: `[n]` different row numbers.
            vectors: `[n, D]` finite.
            step: at which they were encoded; or `[n]`, where vectors are moved without being encoded and keep
                the age they have.

        Raises:
            ValueError: If a row is unknown or named twice, a vector is not finite, a width differs, or a row
                would become older than it is.
            StoreError: If the disk is full or fails. The rows may then be written in part; every later call
                is refused, and `open` at the last checkpoint restores them.
        """
        rows, vectors, ages = self._checked(rows, vectors, step)
        self._refuse_after_failure()
        if len(rows) == 0:
            return
        order = np.argsort(rows)
        rows, vectors, ages = rows[order], vectors[order], ages[order]
        try:
            self._journal.keep(rows, self.rows, self.encoded_at)
            write_rows(self._row_file, rows, vectors)
        except OSError as error:
            self._error = error
            raise StoreError(
                f"{self.folder}: rows could not be written ({error}); those of the last checkpoint are safe: "
                "make room, then resume the run"
            ) from error
        self._ages["encoded_at"][rows] = ages

    def state_dict(self) -> dict:
        """Starts a new journal and names the rows as they are now; goes into the trainer's checkpoint.

        Returns:
            `number`, `digest`, `n_rows`, `width`; equal to the last one where no row changed since.

        Raises:
            StoreError: If an update failed before, or the disk does now.
        """
        self._refuse_after_failure()
        try:
            self._write_ages(np.flatnonzero(self._journal.is_kept))
            os.fsync(self._row_file)
            os.fsync(self._age_file)
            if not self._journal.is_empty:
                self._begin_journal()
        except OSError as error:
            self._error = error
            raise StoreError(
                f"{self.folder}: no checkpoint of the rows could be made ({error}); make room, then resume"
            ) from error
        n_rows, width = self.rows.shape
        number, digest = self._journal.number, digest_of(self._ages).hex()
        return {"number": number, "digest": digest, "n_rows": n_rows, "width": width}

    def commit(self, state: Mapping) -> None:
        """Says that the trainer's checkpoint with this state is on disk.

        It and the checkpoint committed before it can be gone back to; journals older than that are dropped.

        Raises:
            ValueError: If `state` is not a checkpoint of this store, or older than one already committed.
        """
        number = state["number"]
        newest = self._journal.number
        if not self._committed <= number <= newest:
            raise ValueError(
                f"checkpoint {number} cannot be committed: {self._committed} to {newest} are open"
            )
        if number == self._committed:
            return
        forget_older(self.folder, self._committed)
        self._committed = number

    def close(self) -> None:
        """Gives the lock back; the memory map stays readable."""
        if self._lock >= 0:
            self._close_files()
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _close_files(self) -> None:
        os.close(self._row_file)
        os.close(self._age_file)
        self._journal.close()

    def _begin_journal(self) -> None:
        """Goes on to the journal of the rows as they are now."""
        number = self._journal.number + 1
        create_journal(self.folder, number, digest_of(self._ages))
        self._journal.close()
        self._journal = Journal(self.folder, number, len(self))

    def _refuse_after_failure(self) -> None:
        if self._lock < 0:
            raise StoreError(f"{self.folder}: the store was closed")
        if self._error is not None:
            raise StoreError(
                f"{self.folder}: an earlier write failed ({self._error}); resume from the last checkpoint"
            )

    def _checked(
        self, rows: ArrayLike, vectors: ArrayLike, step: int | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = np.asarray(rows)
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise ValueError(f"rows must be [n] integers, got {rows.dtype} {rows.shape}")
        rows = rows.astype(np.int64)
        if vectors.shape != (len(rows), self.width):
            raise ValueError(
                f"vectors must be [{len(rows)}, {self.width}] for these rows, got {vectors.shape}"
            )
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise ValueError(f"rows must be within 0 and {len(self) - 1}, got {rows.min()} to {rows.max()}")
        if len(np.unique(rows)) != len(rows):
            raise ValueError("a row is named twice in one update, and which vector counts is not said")
        place = first_not_finite(vectors)
        if place is not None:
            raise ValueError(f"the embedding of document row {rows[place]} is not finite")
        ages = np.broadcast_to(np.asarray(step, dtype=np.int64), (len(rows),))
        is_older = ages < self.encoded_at[rows]
        if is_older.any():
            row = rows[is_older.argmax()]
            raise ValueError(
                f"row {row} was encoded at step {self.encoded_at[row]} and cannot go back to step "
                f"{ages[is_older.argmax()]}"
            )
        return rows, vectors, ages

    def _write_ages(self, rows: np.ndarray) -> None:
        """Ages and checksums of ascending rows as they are now."""
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            self._ages[part] = aged(self.rows[part], self._ages["encoded_at"][part])
            write_rows(self._age_file, part, self._ages[part])

    def _verify(self, digest: str) -> None:
        for start in range(0, len(self), CHUNK):
            part = slice(start, start + CHUNK)
            found = aged(self.rows[part], self._ages["encoded_at"][part])["checksum"]
            is_wrong = found != self._ages["checksum"][part]
            if is_wrong.any():
                raise StoreError(
                    f"{self.folder}: row {start + int(is_wrong.argmax())} does not match its checksum, the "
                    f"file is damaged; start the run anew after {removal(self.folder)}"
                )
        if digest_of(self._ages).hex() != digest:
            raise StoreError(
                f"{self.folder}: its ages or journals are damaged, its rows are not those of the checkpoint; "
                f"start the run anew after {removal(self.folder)}"
            )


def _remove(folder: Path) -> None:
    """Removes all but the lock; `facts.json` first, so that what a kill leaves is no store."""
    names = ["facts.json", *(journal_name(number) for number in journals(folder)), "rows.f32", "ages.bin"]
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _locked(folder: Path) -> int:
    """Keeps a second writer out; the system releases the lock of a process that dies."""
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    if not take_lock(file):
        os.close(file)
        raise StoreError(f"{folder}: another process has this run's rows open; wait until it ends")
    return file


def _fill(folder: Path, source: np.ndarray | tuple[int, int], shape: tuple[int, int], step: int) -> None:
    """Writes every byte of the two files, so that no later write of a row can lack room."""
    _remove(folder)
    digest = hashlib.sha256()
    with (folder / "rows.f32").open("wb") as rows, (folder / "ages.bin").open("wb") as ages:
        for start in range(0, shape[0], CHUNK):
            stop = min(start + CHUNK, shape[0])
            is_copy = isinstance(source, np.ndarray)
            part = source[start:stop] if is_copy else np.zeros((stop - start, shape[1]), np.float32)
            part = np.ascontiguousarray(part)
            rows.write(part)
            said = aged(part, np.full(stop - start, step if is_copy else NEVER))
            ages.write(said)
            digest.update(said)
        for file in (rows, ages):
            file.flush()
            os.fsync(file.fileno())
    create_journal(folder, 0, digest.digest())


def _checked_facts(folder: Path, key: Mapping[str, str]) -> dict:
    remedy = f"start the run anew after {removal(folder)}"
    try:
        facts = read_json(folder / "facts.json")
        found, n_rows, width = facts["key"], facts["n_rows"], facts["width"]
        version = facts["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder}: facts.json cannot be read ({error}); {remedy}") from error
    if version != FORMAT_VERSION:
        raise StoreError(f"{folder}: has format {version}, this code reads {FORMAT_VERSION}; {remedy}")
    differing = sorted(name for name in found.keys() | key.keys() if found.get(name) != key.get(name))
    if differing:
        raise StoreError(f"{folder}: was made for another {', '.join(differing)} and is not used; {remedy}")
    for name, size in (("rows.f32", n_rows * width * 4), ("ages.bin", n_rows * AGE.itemsize)):
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            raise StoreError(f"{folder}: {name} should have {size} bytes and has not; {remedy}")
    return facts
