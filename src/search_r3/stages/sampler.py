"""Which rows form which batch, as a pure function of (seed, position).

A batch holds rows of one source. A part of the batches is drawn within clusters, so that its in-batch
negatives are hard. The sampler never ends; epochs happen inside, per source. Resuming needs nothing but the
position, and any number of ranks sees the same global batches.
"""

import hashlib
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np
from torch.utils.data import Sampler

log = logging.getLogger(__name__)

_BLOCK = 4096  # sources are drawn this many batches at a time


class GroupedBatchSampler(Sampler[list[int]]):
    """Batches of row numbers, without end, for `DataLoader(batch_sampler=...)`.

    Every `iter` but the first goes on behind the batches that training has finished, where `n_trained` says
    how many: the workers of a loader may have taken more, which nobody was given.

    Within an epoch of a source every row occurs at most once; the few rows that fill no batch are others in
    the next epoch. The trainer needs `use_distributed_sampler=False`: each rank already gets its own rows.

    Args:
        n_rows: rows of the data set, `n`.
        sources: `[n]`, the data set that a row comes from; one source where None.
        clusters: `[n]`, rows of one cluster are similar; no clusters where None.
        batch_size: rows of a global batch, all ranks together; a smaller source gives batches of all it has,
            which the log says once.
        seed: of everything here.
        weights: how often a batch comes from a source, by name; by number of rows where None.
        same_cluster_share: share of a source's batches that are drawn within clusters. A cluster smaller than
            a batch is joined by others.
        keys: columns of `[n]`; two rows with an equal entry in one of them (the same positive, the same
            query) never meet in a batch. The later one waits for another batch; only where a rank would be
            without a row, it does not.
        rank: of this process.
        world_size: number of processes; each gets every `world_size`-th row of a global batch.

    Attributes:
        only_first: the stream is its first so many batches again and again; None for all.
        n_trained: how many batches training has finished; None where nobody knows.

    Raises:
        ValueError: If a column does not have `n_rows` entries, a source has no weight or fewer different rows
            than there are ranks, or a share or size is out of range.
    """

    def __init__(
        self,
        n_rows: int,
        sources: Sequence[str] | None = None,
        clusters: Sequence[str] | None = None,
        batch_size: int = 64,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
        same_cluster_share: float = 0.0,
        keys: Sequence[Sequence[Hashable]] = (),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        columns = {
            "sources": sources,
            "clusters": clusters,
            **{f"keys[{i}]": key for i, key in enumerate(keys)},
        }
        for name, column in columns.items():
            if column is not None and len(column) != n_rows:
                raise ValueError(f"{name} must have one entry per row, {n_rows}; got {len(column)}")
        if n_rows < 1:
            raise ValueError("there is no row to draw batches from")
        if not 0 <= rank < world_size <= batch_size:
            raise ValueError(
                f"need 0 <= rank < world_size <= batch_size, got {rank}, {world_size} and {batch_size}"
            )
        if not 0.0 <= same_cluster_share <= 1.0:
            raise ValueError(f"same_cluster_share must be in [0, 1], got {same_cluster_share}")
        if same_cluster_share > 0.0 and clusters is None:
            raise ValueError("same_cluster_share is above 0 but the rows have no clusters")
        source_of, self._names = _codes(sources if sources is not None else [""] * n_rows)
        self._rows = [np.flatnonzero(source_of == code) for code in range(len(self._names))]
        self._clusters = None if clusters is None else _codes(clusters)[0]
        self._keys = [_codes(key)[0] for key in keys]
        self._shares = _shares(self._names, self._rows, weights)
        for name, rows, share in zip(self._names, self._rows, self._shares, strict=True):
            if share > 0 and self._n_different(rows) < world_size:
                told = self._told_rows(rows)
                raise ValueError(f"source {name!r} has {told}, fewer than the {world_size} ranks")
        self.batch_size, self.seed, self.same_cluster_share = batch_size, seed, same_cluster_share
        self.rank, self.world_size = rank, world_size
        self.only_first: int | None = None
        self.n_trained: Callable[[], int] | None = None
        self._is_begun = False
        self._told_short: set[int] = set()
        for code in np.flatnonzero(self._shares):
            self._tell_small_source(int(code))
        self.load_state_dict({"position": 0})

    @property
    def position(self) -> int:
        """Batches given out so far. A loader that fetches ahead has taken more than training has seen."""
        return self._position

    def __iter__(self) -> Iterator[list[int]]:
        if self._is_begun and self.n_trained is not None:
            self.load_state_dict({"position": self.n_trained()})
        self._is_begun = True
        while True:
            yield self._next_batch()[self.rank :: self.world_size].tolist()

    def state_dict(self, position: int | None = None) -> dict[str, int | str]:
        """What `load_state_dict` needs to go on.

        Args:
            position: batches that training has finished, such as `trainer.global_step`; all that were given
                out where None, which is too many where the loader fetches ahead (Lightning's always does).
        """
        return {
            "position": self._position if position is None else position,
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Goes to a position.

        Raises:
            ValueError: If the state comes from other rows or settings, whose positions are others.
        """
        if state.get("fingerprint", self.fingerprint) != self.fingerprint:
            raise ValueError(
                "the checkpoint's batches came from other rows, weights, seed or batch size; resume with the "
                "data and settings of the run"
            )
        self._position = int(state["position"])
        self._go_to(self._place)

    @property
    def _place(self) -> int:
        """The position within what is drawn."""
        return self._position if self.only_first is None else self._position % self.only_first

    def _go_to(self, place: int) -> None:
        self._taken = [0] * len(self._names)  # batches by source
        for block in range(place // _BLOCK + 1):
            drawn = self._draw(block)[: place - block * _BLOCK]
            for code, count in enumerate(np.bincount(drawn, minlength=len(self._names))):
                self._taken[code] += int(count)
        self._epochs: dict[int, Iterator[np.ndarray]] = {}
        self._drawn = self._draw(place // _BLOCK)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides which rows are where; ranks do not."""
        digest = hashlib.blake2b(digest_size=16)
        settings = (self.batch_size, self.seed, self.same_cluster_share, self._names, list(self._shares))
        digest.update(repr(settings).encode())
        for column in (*self._rows, *self._keys, *([] if self._clusters is None else [self._clusters])):
            digest.update(len(column).to_bytes(8, "little"))
            digest.update(column.tobytes())
        return digest.hexdigest()

    def _draw(self, block: int) -> np.ndarray:
        """Source of each of the block's batches."""
        return self._generator(0, block).choice(len(self._names), size=_BLOCK, p=self._shares)

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose])

    def _next_batch(self) -> np.ndarray:
        place = self._place
        if place == 0 < self._position:  # once more from the beginning
            self._go_to(0)
        block, offset = divmod(place, _BLOCK)
        if offset == 0:
            self._drawn = self._draw(block)
        code = int(self._drawn[offset])
        epoch, number = divmod(self._taken[code], self._batches_per_epoch(code))
        if number == 0 or code not in self._epochs:
            self._epochs[code] = self._epoch(code, epoch)
            for _ in range(number):  # a resumed run walks to its place in the epoch
                next(self._epochs[code])
        batch = next(self._epochs[code])
        self._taken[code] += 1
        self._position += 1
        self._tell_short_batch(code, len(batch))
        return batch

    def _tell_small_source(self, code: int) -> None:
        """Says of a source that can never fill a batch how large its batches are, and why."""
        rows = self._rows[code]
        n_keys = self._n_different(rows)
        if n_keys >= self.batch_size:
            return
        self._told_short.add(code)
        once = "" if n_keys == len(rows) else ", which meet once in a batch"
        self._log(
            f"batches of {self._named(code)} hold at most {n_keys} of stage.datamodule.batch_size="
            f"{self.batch_size} rows, for there are {self._told_rows(rows)}{once}"
            + ("; a batch of one has no other document to be told from" if n_keys == 1 else "")
            + f". Give more data, or set stage.datamodule.batch_size={n_keys} to say so"
        )

    def _n_different(self, rows: np.ndarray) -> int:
        """How many of some rows can meet in a batch, at most."""
        return min((len(np.unique(key[rows])) for key in self._keys), default=len(rows))

    def _told_rows(self, rows: np.ndarray) -> str:
        n_keys = self._n_different(rows)
        also = "" if n_keys == len(rows) else f" with {n_keys} different positives or queries"
        return f"{len(rows)} rows{also}"

    def _tell_short_batch(self, code: int, n_rows: int) -> None:
        """Says once per source that a batch is short although the source has rows enough."""
        if n_rows < self.batch_size and code not in self._told_short:
            self._told_short.add(code)
            self._log(
                f"a batch of {self._named(code)} holds {n_rows} of stage.datamodule.batch_size="
                f"{self.batch_size} rows, and later ones may too: the others have a positive or a query that "
                "it holds already. Set stage.datamodule.batch_size lower for equal batches"
            )

    def _named(self, code: int) -> str:
        return f"source {self._names[code]!r}" if self._names[code] else "the training rows"

    def _log(self, line: str) -> None:
        if self.rank == 0:
            log.info("%s", line)

    def _batches_per_epoch(self, code: int) -> int:
        n_rows = len(self._rows[code])
        n_spare = min(self.batch_size, n_rows // 10) if self._keys else 0  # to fill the gaps that keys leave
        return max(1, (n_rows - n_spare) // self.batch_size)

    def _epoch(self, code: int, epoch: int) -> Iterator[np.ndarray]:
        """Batches of one epoch of a source."""
        generator = self._generator(1, code, epoch)
        planned, spare = self._plan(code, generator)
        for number in generator.permutation(len(planned)):
            batch, spare = self._separate(np.concatenate([planned[number], spare]), len(planned[number]))
            n_missing = max(self.world_size - len(batch), 0)
            batch, spare = np.concatenate([batch, spare[:n_missing]]), spare[n_missing:]
            yield batch

    def _plan(self, code: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows by batch `[n_batches, batch_size]`, those within clusters first; and the rows left over."""
        rows = generator.permutation(self._rows[code])
        n_batches, size = self._batches_per_epoch(code), min(self.batch_size, len(rows))
        n_within = round(self.same_cluster_share * n_batches)
        if n_within > 0:
            grouped = self._by_cluster(rows, size, generator)
            candidates = grouped[: len(grouped) // size * size].reshape(-1, size)
            chosen = generator.permutation(len(candidates))
            within = candidates[chosen[:n_within]].reshape(-1)
            rest = [candidates[chosen[n_within:]].reshape(-1), grouped[candidates.size :]]
            rows = np.concatenate([within, generator.permutation(np.concatenate(rest))])
        return rows[: n_batches * size].reshape(n_batches, size), rows[n_batches * size :]

    def _by_cluster(self, rows: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
        """Rows ordered so that a run of `size` is of one cluster where the cluster has that many."""
        _, cluster = np.unique(self._clusters[rows], return_inverse=True)
        counts = np.bincount(cluster)
        cluster = generator.permutation(len(counts))[cluster]  # clusters in random order
        counts = np.bincount(cluster)
        order = np.argsort(cluster, kind="stable")
        rows, cluster = rows[order], cluster[order]
        place = np.arange(len(rows)) - (np.cumsum(counts) - counts)[cluster]  # of a row within its cluster
        is_whole = place < counts[cluster] // size * size
        return np.concatenate([rows[is_whole], rows[~is_whole]])

    def _separate(self, rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `size` rows whose keys all differ, and the others in their order."""
        if not self._keys:
            return rows[:size], rows[size:]
        chosen: list[int] = []
        seen: list[set[int]] = [set() for _ in self._keys]
        for place, row in enumerate(rows):
            if len(chosen) == size:
                break
            values = [int(key[row]) for key in self._keys]
            if all(value not in met for value, met in zip(values, seen, strict=True)):
                chosen.append(place)
                for value, met in zip(values, seen, strict=True):
                    met.add(value)
        is_chosen = np.zeros(len(rows), dtype=bool)
        is_chosen[chosen] = True
        return rows[is_chosen], rows[~is_chosen]


def _codes(column: Sequence[Hashable]) -> tuple[np.ndarray, list[Hashable]]:
    """A number for each entry, in order of first occurrence, and the distinct entries."""
    numbers: dict[Hashable, int] = {}
    codes = np.fromiter((numbers.setdefault(entry, len(numbers)) for entry in column), np.int64, len(column))
    return codes, list(numbers)


def _shares(
    names: Sequence[Hashable], rows: Sequence[np.ndarray], weights: Mapping[str, float] | None
) -> np.ndarray:
    """Probability of each source."""
    if weights is None:
        sizes = np.array([len(part) for part in rows], dtype=float)
    else:
        missing = [name for name in names if name not in weights]
        if missing:
            raise ValueError(f"weights has no entry for source {missing[0]!r}; it has {sorted(weights)}")
        sizes = np.array([weights[name] for name in names], dtype=float)
        if (sizes < 0).any() or sizes.sum() <= 0:
            raise ValueError(f"weights must not be negative and not all 0, got {dict(weights)}")
    return sizes / sizes.sum()
