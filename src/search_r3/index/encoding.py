"""Rows of the corpus are encoded and written: dealt out evenly to the ranks, and sent to their holder.

For an audit all rows are encoded anew as well, into a file beside the served ones, and what its step
overwrites is kept.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from search_r3.index.audit import Overwritten, copied, unnamed_file
from search_r3.index.ledger import drift
from search_r3.index.rows.cache import StoreError
from search_r3.index.shard import StoreShard
from search_r3.progress import Progress

Encode = Callable[[np.ndarray], ArrayLike]
"""From corpus rows `[n]` to `[n, D]` fp32, unit norm. Every rank calls it equally often, with no rows where
it has nothing to do, since sharded weights can only be used by all ranks at once."""

Observe = Callable[[int, np.ndarray, np.ndarray, np.ndarray], None]
"""Told of a step, rows `[n]` of all ranks, and their vectors `[n, D]` before and after."""

SHOWN_FROM = 10_000
"""Rows from which on an encoding shows its progress."""

_NO_ROWS = (np.empty(0, np.int64), np.empty(0, np.float32))


class RowEncoder:
    """Encodes rows and writes them to their holder's store.

    Args:
        shard: this rank's rows.
        chunk_size: rows per call of `encode`.

    Attributes:
        seconds: that passed within `encode` since somebody set it to 0.
        overwritten: what a step has overwritten, see `keep_overwritten`; None where nothing is kept.
    """

    def __init__(self, shard: StoreShard, chunk_size: int) -> None:
        self.shard, self.chunk_size = shard, chunk_size
        self.seconds = 0.0
        self.overwritten: Overwritten | None = None

    def write(
        self, rows: np.ndarray, step: int, encode: Encode, observe: Observe | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes and writes rows; collective.

        Args:
            rows: `[n]` that all ranks know, ascending.
            step: at which they are encoded.
            encode: by the model as it is now.
            observe: told of every chunk.

        Returns:
            The rows `[n]`, ascending, and the drift of each `[n]`.

        Raises:
            ValueError: If `encode` gives anything but finite unit vectors.
            StoreError: If the disk is full or fails, on every rank.
        """
        ranks = self.shard.ranks
        shares = np.array_split(rows, ranks.size)
        own, error = shares[ranks.rank], None
        found: list[tuple[np.ndarray, np.ndarray]] = []
        with self._progress(len(rows), "encode documents", len(rows)) as progress:
            for start in range(0, max(map(len, shares)), self.chunk_size):
                part = own[start : start + self.chunk_size]
                began = time.perf_counter()
                vectors = self.vectors_of(part, encode)
                self.seconds += time.perf_counter() - began
                everyones, vectors = ranks.joined(part), ranks.joined(vectors)
                rows_held, old, new = self._held(everyones, vectors)
                try:
                    if error is None:
                        self._write(rows_held, old, new, step)
                except StoreError as failed:
                    error = failed  # raised below: the other ranks still wait for this one's vectors
                if observe is not None:
                    observe(step, *map(ranks.joined, (rows_held, old, new)))
                found.append((rows_held, drift(old, new)))
                progress.update(len(everyones))
        ranks.agree(error)
        done, drifts = (np.concatenate(values) for values in zip(_NO_ROWS, *found, strict=True))
        done, drifts = ranks.joined(done), ranks.joined(drifts)
        order = np.argsort(done)
        return done[order], drifts[order]

    def move(self, moved: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Writes other vectors for rows that are not encoded, and keep their age; collective.

        Args:
            moved: places in this rank's store and vectors `[n, D]`, part by part.

        Returns:
            The places of all parts.

        Raises:
            StoreError: If the disk is full or fails, on every rank.
        """
        store, found, error = self.shard.store, [np.empty(0, np.int64)], None
        for places, vectors in moved:
            try:
                if error is None:
                    store.update(places, vectors, store.encoded_at[places])
            except StoreError as failed:
                error = failed  # raised below: what gives the parts may be collective
            found.append(places)
        self.shard.ranks.agree(error)
        return np.concatenate(found)

    def keep_overwritten(self, step: int | None) -> None:
        """Forgets what was overwritten, and from now on keeps what this step overwrites; collective.

        Args:
            step: None keeps nothing.

        Raises:
            StoreError: If no file can be made beside the rows.
        """
        if self.overwritten is not None:
            self.overwritten.close()
        self.overwritten = None
        if step is not None:
            store = self.shard.store
            kept = partial(Overwritten, step, store.folder, store.rows.shape)
            self.overwritten = self.shard.ranks.together(kept)

    @contextlib.contextmanager
    def anew(self, step: int, encode: Encode) -> Iterator[tuple[np.ndarray, int]]:
        """This rank's rows by the model as it is now, and how many all ranks encoded; collective.

        They are in a file without a name, which is gone afterwards; the served rows do not change.

        Args:
            step: at which a row must have been encoded to be fresh already.
            encode: by the model as it is now.

        Yields:
            `[n, D]` fp32, read-only, and the number.

        Raises:
            StoreError: If the disk has no room for `n * D * 4` bytes more.
        """
        store, ranks = self.shard.store, self.shard.ranks
        with ranks.together(lambda: unnamed_file(store.folder)) as file:
            copy = copied(store, file, ranks)
            n_encoded = self._fill(copy, step, encode)
            copy.flush()
            yield np.asarray(np.memmap(file, np.float32, "r", shape=store.rows.shape)), n_encoded

    def _fill(self, fresh: np.ndarray, step: int, encode: Encode) -> int:
        """Encodes what is stale in a copy `[n, D]` of this rank's rows; how many rows all ranks encoded."""
        shard = self.shard
        places = np.flatnonzero(shard.store.encoded_at != step)
        counts = shard.ranks.gather(np.array([len(places)]))
        n_largest, n_all = int(np.max(counts)), int(np.sum(counts))
        with self._progress(n_largest, "audit: encode documents", n_all) as progress:
            for start in range(0, n_largest, self.chunk_size):
                part = places[start : start + self.chunk_size]
                fresh[part] = self.vectors_of(part + shard.first_row, encode)
                progress.update(min(self.chunk_size, n_largest - start))
        return n_all

    def vectors_of(self, rows: np.ndarray, encode: Encode) -> np.ndarray:
        """What `encode` gives for corpus rows `[n]`: `[n, D]` fp32, finite and of unit norm.

        Raises:
            ValueError: If it gives anything else.
        """
        width = self.shard.store.width
        result = np.ascontiguousarray(encode(rows), dtype=np.float32)
        if len(rows) == 0:
            return np.empty((0, width), np.float32)
        if result.shape != (len(rows), width):
            raise ValueError(f"encode must give [{len(rows)}, {width}] for so many rows, got {result.shape}")
        is_unit = np.abs(np.linalg.norm(result.astype(np.float64), axis=1) - 1) < 1e-2  # False for NaN
        if not is_unit.all():
            row = rows[(~is_unit).argmax()]
            raise ValueError(f"the embedding of document row {row} is not finite or not of unit norm")
        return result

    def _progress(self, total: int, what: str, n_rows: int) -> Progress:
        is_shown = self.shard.ranks.rank == 0 and n_rows >= SHOWN_FROM
        return Progress(total, what, "documents", is_shown)

    def _held(self, rows: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those of the rows that this rank holds, and their vectors as served and as given."""
        is_held = self.shard.is_held(rows)
        rows = rows[is_held]
        return rows, self.shard.store.rows[rows - self.shard.first_row], vectors[is_held]

    def _write(self, rows: np.ndarray, old: np.ndarray, new: np.ndarray, step: int) -> None:
        store = self.shard.store
        places = rows - self.shard.first_row
        if self.overwritten is not None:
            try:
                self.overwritten.add(places, old, store.encoded_at[places])
            except OSError as error:
                raise StoreError(f"{store.folder}: an audit needs more room ({error})") from error
        store.update(places, new, step)
