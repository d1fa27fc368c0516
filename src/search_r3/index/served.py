"""The index of a run: rows that follow the model, and everything that depends on them.

It ties the live store, the backend, the refresh rule and the ledger together. In a distributed run every rank
holds a shard of the rows in a store of its own; queries are gathered, searched in every shard and merged, and
rows to encode are dealt out evenly and sent to their holder. So all methods are collective: every rank calls
them, in the same order, with its own queries, of which there may be none.

    index = LiveIndex.create(folder, key, cache, backend, refresh)
    line = index.refresh(step, queries, encode)       # before anything of the step is scored
    ... rewards on index.rows ...
    if index.settings.is_audit_step(step):
        line |= index.audit(step, queries, rewards, reward_on, encode)
    state = index.state_dict()                        # goes into the trainer's checkpoint
    index.commit(state)                               # once that is on disk
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from search_r3.index.backends.base import Index, MakeIndex
from search_r3.index.ledger import Refreshed, age_counts, agreement, drift, step_record
from search_r3.index.ranks import Ranks
from search_r3.index.rows.cache import StoreError
from search_r3.index.rows.checks import checked_queries
from search_r3.index.rows.files import reserve, write_all
from search_r3.index.rows.live import NEVER, LiveStore
from search_r3.index.rules.base import Audit, AuditedRows, Moved, Proposal, Refresh, StepQueries, View
from search_r3.progress import Progress

T = TypeVar("T")

Encode = Callable[[np.ndarray], ArrayLike]
"""From corpus rows `[n]` to `[n, D]` fp32, unit norm. Every rank calls it equally often, with no rows where
it has nothing to do, since sharded weights can only be used by all ranks at once."""

SHOWN_FROM = 10_000
"""Rows from which on an encoding shows its progress."""


class _Before:
    """Vectors that a step overwrites, for its audit: in a file without a name, not in memory.

    Args:
        step: when they are overwritten.
        folder: on a disk with room for them.
        shape: `[n, D]` of the rows.
    """

    def __init__(self, step: int, folder: Path, shape: tuple[int, int]) -> None:
        self.step = step
        # Without a buffer: a full disk is met by `add`, and not again by `close`.
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  closed by `close`
        self._places = np.full(shape[0], -1)  # in the file, by row
        self._encoded_at = np.empty(shape[0], np.int64)  # by row; of those in the file
        self._n, self._width = 0, shape[1]

    def add(self, rows: np.ndarray, vectors: np.ndarray, encoded_at: np.ndarray) -> None:
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


class LiveIndex:
    """The rows of a run, served to search and scoring; made by `create` or `restore`.

    Attributes:
        settings: the refresh rule and how much of it.
        ranks: the processes that share the corpus.
        n_documents: `N`, of the whole corpus.
        first_row: the corpus row of this rank's first row.
    """

    def __init__(
        self,
        store: LiveStore,
        make_index: MakeIndex,
        settings: Refresh,
        ranks: Ranks,
        n_documents: int,
        chunk_size: int,
    ) -> None:
        """Takes over an open store; use `create` or `restore`."""
        self.settings, self.ranks, self.n_documents = settings, ranks, n_documents
        self.first_row = ranks.shard(n_documents).start
        self._store, self._make_index, self._chunk_size = store, make_index, chunk_size
        self._index: Index | None = None
        self._before: _Before | None = None
        self._encode_seconds = 0.0  # within `encode`, of this refresh so far

    @classmethod
    def create(
        cls,
        folder: str | Path,
        key: Mapping[str, str],
        source: np.ndarray | tuple[int, int],
        make_index: MakeIndex,
        settings: Refresh,
        ranks: Ranks | None = None,
        chunk_size: int = 1024,
        step: int = 0,
        overwrite: bool = False,
    ) -> Self:
        """Makes the index of a new run; collective.

        Args:
            folder: of the run's rows; every rank has a folder of its own in it.
            key: weights, tokenizer, prompts and corpus that the run starts from.
            source: the cache's rows `[N, D]`, as encoded at `step`; or `(N, D)`, and `build` encodes all.
            make_index: a backend, from conf/index.
            settings: from conf/refresh.
            ranks: the processes that share the corpus; those of the default group where None.
            chunk_size: rows per call of `encode`.
            step: at which the source's rows were encoded.
            overwrite: whether rows that are already there may be replaced.

        Raises:
            StoreError: If the folder holds the rows of a run, is in use, or the disk has no room.
            ValueError: If the corpus is empty, or has fewer documents than there are ranks.
        """
        ranks = ranks or Ranks()
        shape = tuple(getattr(source, "shape", source))
        _check_size(shape, ranks)
        own = ranks.shard(shape[0])
        held = source[own] if isinstance(source, np.ndarray) else (own.stop - own.start, shape[1])
        folder = _shard_folder(folder, ranks)
        store = ranks.together(lambda: LiveStore.create(folder, key, held, step, overwrite))
        for saved in _saved_folders(folder):
            shutil.rmtree(saved)
        index = cls(store, make_index, settings, ranks, shape[0], chunk_size)
        if isinstance(source, np.ndarray):
            index._closed_on_error(lambda: index._begin(step))
        return index

    @classmethod
    def restore(
        cls,
        folder: str | Path,
        key: Mapping[str, str],
        state: Mapping,
        make_index: MakeIndex,
        settings: Refresh,
        ranks: Ranks | None = None,
        chunk_size: int = 1024,
    ) -> Self:
        """Opens a run's index with exactly the rows, ages and rule of one of its checkpoints; collective.

        Args:
            folder: as it was created with, like all that follow.
            key: as above.
            state: what `state_dict` gave when the checkpoint was written.
            make_index: as above.
            settings: as above.
            ranks: as many as wrote the checkpoint.
            chunk_size: as above.

        Raises:
            StoreError: If the rows are missing, damaged, in use or of another run, or the number of ranks is
                another.
        """
        ranks = ranks or Ranks()
        if len(state["shards"]) != ranks.size:
            raise StoreError(
                f"{folder}: the rows were dealt to {len(state['shards'])} ranks, and there are {ranks.size}; "
                "resume with as many as before"
            )
        folder, shard = _shard_folder(folder, ranks), state["shards"][ranks.rank]
        store = ranks.together(lambda: LiveStore.open(folder, key, shard["rows"]))
        saved = _state_folder(folder, shard["rows"]["number"])
        for other in _saved_folders(folder):
            if other.name > saved.name:  # of a part of the run that was undone
                shutil.rmtree(other)
        index = cls(store, make_index, settings, ranks, state["n_documents"], chunk_size)
        index._closed_on_error(lambda: index._resume(saved, state))
        return index

    def __len__(self) -> int:
        """`N`, of the whole corpus."""
        return self.n_documents

    @property
    def rows(self) -> np.ndarray:
        """`[n, D]` fp32, read-only: this rank's rows, from `first_row` on, as they are now."""
        return self._store.rows

    @property
    def encoded_at(self) -> np.ndarray:
        """`[n]` int64, read-only: the step each of this rank's rows was encoded at."""
        return self._store.encoded_at

    def build(self, encode: Encode, step: int = 0) -> None:
        """Encodes every row that never was encoded: building is refreshing all of them; collective."""
        never = self.ranks.joined(self.first_row + np.flatnonzero(self.encoded_at == NEVER))
        self._encode(never, step, encode)
        self._begin(step)

    def search(self, queries: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best documents of the whole corpus for this rank's queries; collective.

        Args:
            queries: `[Q, D]` fp32, unit norm; `Q` may differ between ranks and be 0.
            k: documents per query.

        Returns:
            Scores `[Q, K]` fp32 and corpus rows `[Q, K]` int64, `K = min(k, N)`, best first, ties in row
            order. They do not depend on the number of ranks where the backend is exact.

        Raises:
            ValueError: If widths differ, `k` is not positive, or a query is not finite.
            StoreError: If the index has not been built.
        """
        if self._index is None:
            raise StoreError(f"{self._store.folder}: no row was encoded yet; build the index first")
        vectors = checked_queries(queries, self._store.width, k)
        k = min(k, self.n_documents)
        if self.ranks.size == 1:
            return self._index.search(vectors, k) if len(vectors) else _nothing(k)
        everyones, own = self.ranks.joined_and_own(vectors)
        if len(everyones) == 0:
            return _nothing(k)
        scores, found = self._index.search(everyones, k)
        columns = np.full((len(everyones), k), -np.inf, np.float32), np.full((len(everyones), k), -1)
        for column, values in zip(columns, (scores, found + self.first_row), strict=True):
            column[:, : found.shape[1]] = values
        scores, rows = (
            np.concatenate([part[0, own] for part in self.ranks.gather(column[None])], 1)
            for column in columns
        )
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Some rows of the whole corpus as they are served; collective.

        Args:
            rows: `[n]` corpus rows; every rank may ask for others, or for none.

        Returns:
            `[n, D]` fp32, and `[n]` int64, the step each was encoded at.
        """
        everyones, own = self.ranks.joined_and_own(np.asarray(rows, dtype=np.int64))
        is_held = self._is_held(everyones)
        vectors = np.zeros((len(everyones), self._store.width), np.float32)
        ages = np.zeros(len(everyones), np.int64)
        places = everyones[is_held] - self.first_row
        vectors[is_held], ages[is_held] = self.rows[places], self.encoded_at[places]
        return self.ranks.sum(vectors)[own], self.ranks.sum(ages)[own]  # each row is held by one rank

    def refresh(self, step: int, queries: StepQueries, encode: Encode) -> dict[str, float]:
        """Brings the rows as near to the model as the rule and its budget say; collective.

        Afterwards the rows do not change until the next call, so that all rollouts of a step are scored
        against one view. A row encoded at this step is not encoded again, also not by a second call.

        Args:
            step: optimizer steps so far; does not go back.
            queries: of this rank's rollouts.
            encode: by the model as it is now.

        Returns:
            The ledger's line, the same on every rank but for the seconds: see `ledger.step_record`, the
            `encode_seconds` among its seconds that passed within `encode`, and what the rule adds.

        Raises:
            ValueError: If a positive or candidate is no row of the corpus, or `encode` gives anything but
                finite unit vectors.
            StoreError: If the disk is full or fails, on every rank; the rows of the last checkpoint are safe.
        """
        started, self._encode_seconds = time.perf_counter(), 0.0
        settings, rule = self.settings, self.settings.rule
        asked = self._asked(queries)
        if settings.is_audit_step(step) and rule.wants_audits:
            self._keep_before(None)
        positives = np.unique(asked.positives)
        parts = [self._encode(self._stale(positives[positives >= 0], step), step, encode)]
        if settings.is_audit_step(step) and rule.wants_audits:
            self._keep_before(step)
        background = self._stale(settings.background_rows(step, self.n_documents), step)
        parts.append(self._encode_and_follow(background, step, encode))
        self._tell_index(parts)
        view = self._view(step, asked)
        n_cut = n_moved = 0
        if settings.is_due(step):
            budget = settings.budget_at(step)
            left = None if budget is None else max(budget - sum(len(rows) for rows, _ in parts), 0)
            chosen, n_cut = self._chosen(rule.propose(view), step, left)
            parts.append(self._encode(chosen, step, encode))
            self._tell_index(parts[-1:])
            n_moved = self._moved(view)
        rows, drifts = (np.concatenate(values) for values in zip(*parts, strict=True))
        refreshed = Refreshed(rows, drifts, n_moved, time.perf_counter() - started, n_cut)
        line = step_record(self._age_counts(step), refreshed) | {"encode_seconds": self._encode_seconds}
        return line | rule.record()

    def audit(
        self,
        step: int,
        queries: StepQueries,
        served: ArrayLike,
        reward_on: Callable[[np.ndarray], ArrayLike],
        encode: Encode,
    ) -> dict[str, float]:
        """Compares this step's rewards with those on a corpus encoded anew; collective.

        The rule learns from it. The fresh vectors are in a file without a name, which is gone afterwards; the
        served rows do not change. A row encoded at this step is fresh already.

        Args:
            step: of the `refresh` before.
            queries: of that call.
            served: rewards `[B, G]` of this rank's rollouts on the served rows.
            reward_on: from rows `[n, D]` of this rank's shard to the rewards `[B, G]` of the same rollouts.
            encode: by the model as it was at the refresh.

        Returns:
            The ledger's entries, the same on every rank, under `audit/`: documents encoded, seconds, what
            `ledger.agreement` says over the rollouts of all ranks, and what the rule adds.

        Raises:
            StoreError: If the disk has no room for `n * D * 4` bytes more.
        """
        started = time.perf_counter()
        made = partial(tempfile.TemporaryFile, dir=self._store.folder)
        with self.ranks.together(lambda: self._for_audit(made)) as file:
            n_encoded = self._fresh_file(file, step, encode)
            fresh = np.asarray(np.memmap(file, np.float32, "r", shape=self.rows.shape))
            rewards = [np.asarray(value, dtype=np.float64) for value in (served, reward_on(fresh))]
            record = agreement(*(self.ranks.joined(value) for value in rewards))
            view = self._view(step, self._asked(queries))
            record |= self.settings.rule.learn(Audit(view, lambda: self._compared(step, fresh)))
        self._keep_before(None)
        seconds = time.perf_counter() - started
        record |= {"documents_encoded": float(n_encoded), "seconds": seconds}
        return {f"audit/{name}": value for name, value in record.items()}

    def state_dict(self) -> dict:
        """Names the rows, ages and rule as they are now; goes into the trainer's checkpoint; collective.

        Returns:
            The same on every rank; of plain numbers, texts, lists and dictionaries.

        Raises:
            StoreError: If a write failed before, or does now; on every rank.
        """
        shard = self.ranks.together(self._save)
        return {
            "n_documents": self.n_documents,
            "is_built": self._index is not None,
            "rule": self.settings.rule.state_dict(),
            "shards": self.ranks.gather_objects(shard),
        }

    def commit(self, state: Mapping) -> None:
        """Says that the trainer's checkpoint with this state is on disk: older ones but one are dropped."""
        self._store.commit(state["shards"][self.ranks.rank]["rows"])
        oldest = _state_folder(self._store.folder, self._store.checkpoints[0])
        for saved in _saved_folders(self._store.folder):
            if saved.name < oldest.name:
                shutil.rmtree(saved)

    def close(self) -> None:
        """Gives the rows' lock back."""
        self._keep_before(None)
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, step: int) -> None:
        self._index = self._make_index(self.rows)
        empty = StepQueries(np.empty((0, self._store.width), np.float32), np.empty((0, 0), np.int64))
        self.settings.rule.start(self._view(step, self._asked(empty)))

    def _resume(self, saved: Path, state: Mapping) -> None:
        """Takes over all but the rows from a checkpoint."""
        rule, names = self.settings.rule, state["shards"][self.ranks.rank]["saved"]
        rule.load_state_dict(state["rule"])
        if state["is_built"]:
            folder = saved / "index" if "index" in names else None
            self._index = self.ranks.together(lambda: self._make_index(self.rows, saved=folder))
        if "rule" in names:
            self.ranks.together(lambda: rule.load(saved / "rule", self._view(0, None)))

    def _closed_on_error(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException:
            self.close()
            raise

    def _view(self, step: int, asked: StepQueries | None) -> View:
        return View(
            step=step,
            rows=self.rows,
            encoded_at=self.encoded_at,
            first_row=self.first_row,
            n_documents=self.n_documents,
            queries=asked,
            search=self.search,
            ranks=self.ranks,
        )

    def _asked(self, own: StepQueries) -> StepQueries:
        """The queries of all ranks, with candidates where the rule reads them."""
        n_candidates = self.settings.rule.n_candidates
        vectors = checked_queries(own.vectors, self._store.width, 1)
        for name in ("positives", "candidates"):
            value = getattr(own, name)
            if value is not None and value.size and not -1 <= value.min() <= value.max() < len(self):
                raise ValueError(
                    f"{name} must be rows of a corpus of {len(self)} documents, got {value.min()} to "
                    f"{value.max()}"
                )
        candidates = own.candidates
        if n_candidates == 0:
            candidates = np.empty((len(vectors), 0), np.int64)
        elif candidates is None:
            candidates = self.search(vectors, n_candidates)[1]
        joined = [
            self.ranks.joined(_widened(rows.astype(np.int64), self._widest(rows)))
            for rows in (own.positives, candidates)
        ]
        return StepQueries(self.ranks.joined(vectors), *joined)

    def _widest(self, rows: np.ndarray) -> int:
        return int(self.ranks.max(np.array([rows.shape[1]]))[0])

    def _stale(self, rows: np.ndarray, step: int) -> np.ndarray:
        """Those of some corpus rows that were not encoded at this step, ascending; known to all ranks."""
        rows = np.unique(rows)
        places = rows[self._is_held(rows)] - self.first_row
        return self.ranks.joined(self.first_row + places[self.encoded_at[places] != step])

    def _chosen(self, proposal: Proposal, step: int, budget: int | None) -> tuple[np.ndarray, int]:
        """The rows `[n]` to encode, ascending, and how many the budget leaves out."""
        rows, priority = _unique(proposal)
        is_held = self._is_held(rows)
        rows, priority = rows[is_held], priority[is_held]
        is_stale = self.encoded_at[rows - self.first_row] != step
        rows, priority = rows[is_stale], priority[is_stale]
        n_wanted = int(self.ranks.sum(np.array([len(rows)]))[0])
        kept = _first(priority, budget)
        rows, priority = self.ranks.joined(rows[kept]), self.ranks.joined(priority[kept])
        rows = rows[_first(priority, budget)]
        return rows, n_wanted - len(rows)

    def _encode(self, rows: np.ndarray, step: int, encode: Encode) -> tuple[np.ndarray, np.ndarray]:
        """Encodes and writes rows `[n]` that all ranks know, ascending; gives them and their drift `[n]`."""
        shares = np.array_split(rows, self.ranks.size)
        own, error = shares[self.ranks.rank], None
        is_shown = self.ranks.rank == 0 and len(rows) >= SHOWN_FROM
        found: list[tuple[np.ndarray, np.ndarray]] = []
        with Progress(len(rows), "encode documents", "documents", is_shown) as progress:
            for start in range(0, max(map(len, shares)), self._chunk_size):
                part = own[start : start + self._chunk_size]
                began = time.perf_counter()
                vectors = _checked(encode(part), part, self._store.width)
                self._encode_seconds += time.perf_counter() - began
                everyones, vectors = self.ranks.joined(part), self.ranks.joined(vectors)
                rows_held, old, new = self._held(everyones, vectors)
                try:
                    if error is None:
                        self._write(rows_held, old, new, step)
                except StoreError as failed:
                    error = failed  # raised below: the other ranks still wait for this one's vectors
                if self.settings.rule.is_observing and self._index is not None:  # not while it is built
                    self.settings.rule.observe(step, *map(self.ranks.joined, (rows_held, old, new)))
                found.append((rows_held, drift(old, new)))
                progress.update(len(everyones))
        self.ranks.agree(error)
        done, drifts = (np.concatenate(values) for values in zip(_NO_ROWS, *found, strict=True))
        done, drifts = self.ranks.joined(done), self.ranks.joined(drifts)
        order = np.argsort(done)
        return done[order], drifts[order]

    def _encode_and_follow(
        self, background: np.ndarray, step: int, encode: Encode
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `_encode`; the rule is told how the rows have moved."""
        places = background[self._is_held(background)] - self.first_row
        old, encoded_at = self.rows[places], self.encoded_at[places]
        done = self._encode(background, step, encode)
        self.settings.rule.follow(Moved(step, encoded_at, old, self.rows[places], self.ranks))
        return done

    def _is_held(self, rows: np.ndarray) -> np.ndarray:
        """`[n]` bool, True where this rank holds the corpus row."""
        return (rows >= self.first_row) & (rows < self.first_row + len(self.rows))

    def _held(self, rows: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those of the rows that this rank holds, and their vectors as served and as given."""
        is_held = self._is_held(rows)
        rows = rows[is_held]
        return rows, self.rows[rows - self.first_row], vectors[is_held]

    def _write(self, rows: np.ndarray, old: np.ndarray, new: np.ndarray, step: int) -> None:
        places = rows - self.first_row
        if self._before is not None:
            try:
                self._before.add(places, old, self.encoded_at[places])
            except OSError as error:
                raise StoreError(f"{self._store.folder}: an audit needs more room ({error})") from error
        self._store.update(places, new, step)

    def _tell_index(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> None:
        rows = np.concatenate([rows for rows, _ in parts])
        places = rows[self._is_held(rows)] - self.first_row
        if self._index is not None and len(places):
            self._index.update(places)

    def _moved(self, view: View) -> int:
        moved, error = [], None
        for places, vectors in self.settings.rule.finish(view):
            try:
                if error is None:
                    self._store.update(places, vectors, self.encoded_at[places])
            except StoreError as failed:
                error = failed  # raised below: `finish` may be collective
            moved.append(places)
        self.ranks.agree(error)
        if moved:
            self._index.update(np.concatenate(moved))
        return int(self.ranks.sum(np.array([sum(map(len, moved))]))[0])

    def _age_counts(self, step: int) -> np.ndarray:
        counts = self.ranks.gather(age_counts(self.encoded_at, step))
        total = np.zeros(max(map(len, counts)), np.int64)
        for part in counts:
            total[: len(part)] += part
        return total

    def _keep_before(self, step: int | None) -> None:
        """Starts keeping what this step overwrites, collective; or with None stops and forgets it."""
        if self._before is not None:
            self._before.close()
        self._before = None
        if step is not None:
            made = partial(_Before, step, self._store.folder, self.rows.shape)
            self._before = self.ranks.together(lambda: self._for_audit(made))

    def _for_audit(self, made: Callable[[], T]) -> T:
        """What needs a file beside the rows that has no name.

        Raises:
            StoreError: If no file can be made there.
        """
        try:
            return made()
        except OSError as error:
            raise StoreError(
                f"{self._store.folder}: an audit needs a file there, which could not be made ({error}); make "
                "room or set refresh.audit_every_n_steps=0"
            ) from error

    def _compared(self, step: int, fresh: np.ndarray) -> Iterator[AuditedRows]:
        for start in range(0, len(fresh), 1 << 14):
            part = slice(start, start + (1 << 14))
            before, encoded_at = self.rows[part].copy(), self.encoded_at[part].copy()
            if self._before is not None and self._before.step == step:
                self._before.put_into(before, encoded_at, start)
            yield AuditedRows(start, before, encoded_at, fresh[part], self.encoded_at[part] == step)

    def _fresh_file(self, file: tempfile._TemporaryFileWrapper, step: int, encode: Encode) -> int:
        """Fills a file with this rank's rows by the model as it is; gives how many all ranks encoded."""
        error = None
        try:
            reserve(file.fileno(), self.rows.nbytes)  # a full disk kills writers of a map
        except OSError as failed:
            error = StoreError(
                f"{self._store.folder}: an audit needs {self.rows.nbytes / 2**20:.0f} MiB more ({failed}); "
                "make room or set refresh.audit_every_n_steps=0"
            )
        self.ranks.agree(error)
        fresh = np.memmap(file, np.float32, "r+", shape=self.rows.shape)
        for start in range(0, len(fresh), 1 << 14):
            fresh[start : start + (1 << 14)] = self.rows[start : start + (1 << 14)]
        places = np.flatnonzero(self.encoded_at != step)
        counts = self.ranks.gather(np.array([len(places)]))
        n_largest, n_all = int(np.max(counts)), int(np.sum(counts))
        is_shown = self.ranks.rank == 0 and n_all >= SHOWN_FROM
        with Progress(n_largest, "audit: encode documents", "documents", is_shown) as progress:
            for start in range(0, n_largest, self._chunk_size):
                part = places[start : start + self._chunk_size]
                fresh[part] = _checked(encode(part + self.first_row), part, self._store.width)
                progress.update(min(self._chunk_size, n_largest - start))
        fresh.flush()
        return n_all

    def _save(self) -> dict:
        """The rows' checkpoint, and beside it what backend and rule cannot make again from the rows."""
        rows = self._store.state_dict()
        folder = _state_folder(self._store.folder, rows["number"])
        try:
            if not folder.exists() and self._index is not None:
                part = folder.with_name(f"{folder.name}.part")
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                self._index.save(part / "index")
                self.settings.rule.save(part / "rule")
                os.replace(part, folder)
        except OSError as error:
            raise StoreError(f"{folder}: could not be written ({error}); make room, then resume") from error
        saved = sorted(child.name for child in folder.iterdir()) if folder.exists() else []
        return {"rows": rows, "saved": saved}


_NO_ROWS = (np.empty(0, np.int64), np.empty(0, np.float32))


def _nothing(k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty((0, k), np.float32), np.empty((0, k), np.int64)


def _check_size(shape: tuple[int, ...], ranks: Ranks) -> None:
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(
            f"an index needs [N, D] rows with N > 0 and D > 0, got {shape}: is the corpus empty?"
        )
    if shape[0] < ranks.size:
        raise ValueError(f"{shape[0]} documents cannot be dealt to {ranks.size} ranks; use fewer")


def _checked(vectors: ArrayLike, rows: np.ndarray, width: int) -> np.ndarray:
    """What `encode` gave, `[n, D]` fp32."""
    result = np.ascontiguousarray(vectors, dtype=np.float32)
    if len(rows) == 0:
        return np.empty((0, width), np.float32)
    if result.shape != (len(rows), width):
        raise ValueError(f"encode must give [{len(rows)}, {width}] for so many rows, got {result.shape}")
    is_unit = np.abs(np.linalg.norm(result.astype(np.float64), axis=1) - 1) < 1e-2  # False for NaN
    if not is_unit.all():
        row = rows[(~is_unit).argmax()]
        raise ValueError(f"the embedding of document row {row} is not finite or not of unit norm")
    return result


def _widened(rows: np.ndarray, width: int) -> np.ndarray:
    """`[Q, width]`, -1 where there were fewer columns."""
    result = np.full((len(rows), width), -1, np.int64)
    result[:, : rows.shape[1]] = rows
    return result


def _unique(proposal: Proposal) -> tuple[np.ndarray, np.ndarray]:
    """Different rows, ascending, each with its lowest priority."""
    rows, priority = proposal.rows, np.asarray(proposal.priority)
    if (rows[1:] > rows[:-1]).all():
        return rows, priority
    order = np.lexsort((priority, rows))
    rows, priority = rows[order], priority[order]
    is_first = np.append(True, rows[1:] != rows[:-1])
    return rows[is_first], priority[is_first]


def _first(priority: np.ndarray, n: int | None) -> np.ndarray:
    """Places `[min(n, len)]`, ascending, of the lowest values; of equal ones the first."""
    if n is None or len(priority) <= n:
        return np.arange(len(priority))
    if n == 0:
        return np.empty(0, np.int64)
    limit = np.partition(priority, n - 1)[n - 1]
    below = np.flatnonzero(priority < limit)
    return np.union1d(below, np.flatnonzero(priority == limit)[: n - len(below)])


def _shard_folder(folder: str | Path, ranks: Ranks) -> Path:
    return Path(folder) / f"shard-{ranks.rank}-of-{ranks.size}"


def _state_folder(folder: Path, number: int) -> Path:
    return folder / f"state-{number:06d}"


def _saved_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("state-*") if re.fullmatch(r"state-\d{6,}", p.name) and p.is_dir())
