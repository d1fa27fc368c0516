"""The rows of the corpus that this rank holds, and which those are."""

import numpy as np

from search_r3.distributed import Ranks
from search_r3.index.backends.base import MakeIndex, check_settings
from search_r3.index.rows.live import LiveStore


class StoreShard:
    """An open store and its place in the corpus. Rows are rows of the corpus, places are rows of the store.

    Attributes:
        store: this rank's rows.
        ranks: the processes that share the corpus.
        n_documents: `N`, of the whole corpus.
        first_row: the corpus row of the store's first.
    """

    def __init__(self, store: LiveStore, ranks: Ranks, n_documents: int) -> None:
        self.store, self.ranks, self.n_documents = store, ranks, n_documents
        self.first_row = ranks.shard(n_documents).start

    def is_held(self, rows: np.ndarray) -> np.ndarray:
        """`[n]` bool, True where this rank holds the corpus row."""
        return (rows >= self.first_row) & (rows < self.first_row + len(self.store))

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where those of some corpus rows that this rank holds are in its store, in their order."""
        return rows[self.is_held(rows)] - self.first_row

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors `[n, D]` of corpus rows `[n]`, and the step each was encoded at `[n]`; collective.

        Every rank may ask for others, or for none.
        """
        everyones, own = self.ranks.joined_and_own(np.asarray(rows, dtype=np.int64))
        is_held = self.is_held(everyones)
        vectors = np.zeros((len(everyones), self.store.width), np.float32)
        ages = np.zeros(len(everyones), np.int64)
        places = everyones[is_held] - self.first_row
        vectors[is_held], ages[is_held] = self.store.rows[places], self.store.encoded_at[places]
        return self.ranks.sum(vectors)[own], self.ranks.sum(ages)[own]  # each row is held by one rank

    def stale(self, rows: np.ndarray, step: int) -> np.ndarray:
        """Those of some rows that were not encoded at a step, ascending; known to all ranks, collective."""
        places = self.places(np.unique(rows))
        stale = self.store.encoded_at[places] != step
        return self.ranks.joined(self.first_row + places[stale])


def check_size(shape: tuple[int, ...], ranks: Ranks, make_index: MakeIndex) -> None:
    """Refuses a corpus that cannot be dealt or served, before a row of it is encoded.

    Raises:
        ValueError: If the corpus is empty, has fewer documents than there are ranks, or the backend cannot be
            made for it.
    """
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(
            f"an index needs [N, D] rows with N > 0 and D > 0, got {shape}: is the corpus empty?"
        )
    if shape[0] < ranks.size:
        raise ValueError(f"{shape[0]} documents cannot be dealt to {ranks.size} ranks; use fewer")
    check_settings(make_index, shape[0] // ranks.size, shape[1])
