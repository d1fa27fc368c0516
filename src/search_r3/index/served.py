"""The index of a run: rows that follow the model, and everything that depends on them.

It ties the live store, the backend, the refresh rule and the ledger together. What it does with them is in
the files beside it: `asked`, `encoding`, `budget`, `top_k`, `audit`, `saved_state`. In a distributed run
every rank holds a shard of the rows in a store of its own; queries are gathered, searched in every shard and
merged, and rows to encode are dealt out evenly and sent to their holder. So all methods are collective: every
rank calls them, in the same order, with its own queries, of which there may be none.

    index = LiveIndex.create(folder, key, cache, backend, refresh)
    line = index.refresh(step, queries, encode)       # before anything of the step is scored
    ... rewards on index.rows ...
    if index.settings.is_audit_step(step):
        line |= index.audit(step, queries, rewards, reward_on, encode)
    state = index.state_dict()                        # goes into the trainer's checkpoint
    index.commit(state)                               # once that is on disk
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from search_r3.distributed import Ranks
from search_r3.index.asked import asked_by_all
from search_r3.index.audit import compared
from search_r3.index.backends.base import Index, MakeIndex
from search_r3.index.budget import within_budget
from search_r3.index.encoding import Encode, RowEncoder
from search_r3.index.ledger import Refreshed, age_counts, agreement, step_record, total_counts
from search_r3.index.rows.cache import StoreError
from search_r3.index.rows.checks import checked_queries
from search_r3.index.rows.live import NEVER, LiveStore
from search_r3.index.rules.base import Audit, Moved, Refresh, StepQueries, View
from search_r3.index.saved_state import forget_states, save_state, shard_folder, state_folder
from search_r3.index.shard import StoreShard, check_size
from search_r3.index.top_k import search_shards, without_excluded


class LiveIndex:
    """The rows of a run, served to search and scoring; made by `create` or `restore`.

    Attributes:
        settings: the refresh rule and how much of it.
        ranks: the processes that share the corpus.
        n_documents: `N`, of the whole corpus.
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
        self._store, self._make_index = store, make_index
        self._shard = StoreShard(store, ranks, n_documents)
        self._encoder = RowEncoder(self._shard, chunk_size)
        self._index: Index | None = None

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
            ValueError: As `check_size` says.
        """
        ranks = ranks or Ranks()
        shape = tuple(getattr(source, "shape", source))
        check_size(shape, ranks, make_index)
        own = ranks.shard(shape[0])
        held = source[own] if isinstance(source, np.ndarray) else (own.stop - own.start, shape[1])
        folder = shard_folder(folder, ranks)
        store = ranks.together(lambda: LiveStore.create(folder, key, held, step, overwrite))
        forget_states(folder, last=-1)
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
        folder, shard = shard_folder(folder, ranks), state["shards"][ranks.rank]
        store = ranks.together(lambda: LiveStore.open(folder, key, shard["rows"]))
        number = shard["rows"]["number"]
        forget_states(folder, last=number)  # later ones are of a part of the run that was undone
        index = cls(store, make_index, settings, ranks, state["n_documents"], chunk_size)
        index._closed_on_error(lambda: index._resume(state_folder(folder, number), state))
        return index

    def __len__(self) -> int:
        """`N`, of the whole corpus."""
        return self.n_documents

    @property
    def first_row(self) -> int:
        """The corpus row of this rank's first row."""
        return self._shard.first_row

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

    def search(
        self, queries: ArrayLike, k: int, excluded: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best documents of the whole corpus for this rank's queries; collective.

        Args:
            queries: `[Q, D]` fp32, unit norm; `Q` may differ between ranks and be 0.
            k: documents per query.
            excluded: `[Q, E]` int64, rows that are not to be found for a query, -1 where it has fewer; they
                take no place of the `k`. Given on all ranks or on none.

        Returns:
            Scores `[Q, K]` fp32 and corpus rows `[Q, K]` int64, `K = min(k, N)`, best first, ties in row
            order; -inf and -1 where a query excludes so many that there are fewer. They do not depend on the
            number of ranks where the backend is exact.

        Raises:
            ValueError: If widths differ, `k` is not positive, or a query is not finite.
            StoreError: If the index has not been built.
        """
        if self._index is None:
            raise StoreError(f"{self._store.folder}: no row was encoded yet; build the index first")
        vectors = checked_queries(queries, self._store.width, k)
        wanted = k if excluded is None else k + int(self.ranks.max(excluded.shape[1]))
        found = search_shards(self._index, self._shard, vectors, min(wanted, self.n_documents))
        return without_excluded(*found, excluded, k)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Some rows of the whole corpus as they are served; collective.

        Args:
            rows: `[n]` corpus rows; every rank may ask for others, or for none.

        Returns:
            `[n, D]` fp32, and `[n]` int64, the step each was encoded at.
        """
        return self._shard.read(rows)

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
        started, self._encoder.seconds = time.perf_counter(), 0.0
        settings, rule = self.settings, self.settings.rule
        asked = self._asked(queries)
        is_audited = settings.is_audit_step(step) and rule.wants_audits
        if is_audited:
            self._encoder.keep_overwritten(None)
        positives = np.unique(asked.positives)
        parts = [self._encode(self._shard.stale(positives[positives >= 0], step), step, encode)]
        if is_audited:
            self._encoder.keep_overwritten(step)
        background = self._shard.stale(settings.background_rows(step, self.n_documents), step)
        parts.append(self._encode_and_follow(background, step, encode))
        self._tell_index(self._shard.places(np.concatenate([rows for rows, _ in parts])))
        view = self._view(step, asked)
        n_cut = n_moved = 0
        if settings.is_due(step):
            budget = settings.budget_at(step)
            left = None if budget is None else max(budget - sum(len(rows) for rows, _ in parts), 0)
            chosen, n_cut = within_budget(rule.propose(view), self._shard, step, left)
            parts.append(self._encode(chosen, step, encode))
            self._tell_index(self._shard.places(parts[-1][0]))
            moved = self._encoder.move(rule.finish(view))
            self._tell_index(moved)
            n_moved = int(self.ranks.sum(len(moved)))
        rows, drifts = (np.concatenate(values) for values in zip(*parts, strict=True))
        refreshed = Refreshed(rows, drifts, n_moved, time.perf_counter() - started, n_cut)
        ages = total_counts(self.ranks.gather(age_counts(self.encoded_at, step)))
        line = step_record(ages, refreshed) | {"encode_seconds": self._encoder.seconds}
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
        with self._encoder.anew(step, encode) as (fresh, n_encoded):
            rewards = [np.asarray(value, dtype=np.float64) for value in (served, reward_on(fresh))]
            record = agreement(*(self.ranks.joined(value) for value in rewards))
            view = self._view(step, self._asked(queries))
            chunks = partial(compared, self._store, step, fresh, self._encoder.overwritten)
            record |= self.settings.rule.learn(Audit(view, chunks))
        self._encoder.keep_overwritten(None)
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
        forget_states(self._store.folder, first=self._store.checkpoints[0])

    def close(self) -> None:
        """Gives the rows' lock back."""
        self._encoder.keep_overwritten(None)
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
        return asked_by_all(own, self._shard, self.settings.rule.n_candidates, self.search)

    def _encode(self, rows: np.ndarray, step: int, encode: Encode) -> tuple[np.ndarray, np.ndarray]:
        """Encodes and writes rows `[n]` that all ranks know, ascending; gives them and their drift `[n]`."""
        rule = self.settings.rule
        is_observed = rule.is_observing and self._index is not None  # not while it is built
        return self._encoder.write(rows, step, encode, rule.observe if is_observed else None)

    def _encode_and_follow(
        self, background: np.ndarray, step: int, encode: Encode
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `_encode`; the rule is told how the rows have moved."""
        places = self._shard.places(background)
        old, encoded_at = self.rows[places], self.encoded_at[places]
        done = self._encode(background, step, encode)
        self.settings.rule.follow(Moved(step, encoded_at, old, self.rows[places], self.ranks))
        return done

    def _tell_index(self, places: np.ndarray) -> None:
        """Tells the backend which of this rank's rows have other vectors now."""
        if self._index is not None and len(places):
            self._index.update(places)

    def _save(self) -> dict:
        """The rows' checkpoint, and beside it what backend and rule cannot make again from the rows."""
        rows = self._store.state_dict()
        saved = save_state(self._store.folder, rows["number"], self._index, self.settings.rule)
        return {"rows": rows, "saved": saved}
