"""Search in the lists of the nearest centroids (inverted file), updated in place; faiss holds a second copy.

When a row changes, it moves to the list of the centroid that is nearest to its new vector. The centroids
stay where training put them, and that is what drift spoils: rows crowd into few lists, or lie far from any
centroid, and the probed lists no longer hold the best documents. So the share of rows that have left the
list they were in at training is watched, and above a limit the index says so or trains anew. Both ends of
that share are cheap to know: the list of every row is one array.

A list keeps its rows in the order in which they came, and of rows that tie faiss fetches the first. So where
a run of ties reaches beyond what was fetched, all of it is fetched, and row order decides. What remains:
faiss looks for the nearest centroid of few rows in another way than of many, so that a row within about 1e-7
of the border of two lists may be in either.
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from search_r3.index.backends.base import best_candidates, changed_rows
from search_r3.index.backends.flat import SLACK, TIE
from search_r3.index.backends.library import add_to_lists, faiss, make_room
from search_r3.index.rows.checks import checked_queries, finite_chunks, finite_rows
from search_r3.index.rows.saved import load_saved, save_whole

ROWS_PER_CENTROID = 39
"""Below so many training rows per centroid faiss finds k-means unreliable."""

log = logging.getLogger(__name__)


class IVFIndex:
    """Approximate search; the recall depends on `n_probe / n_lists` and is 1 where all lists are probed.

    Args:
        embeddings: `[N, D]` fp32, unit norm; read again whenever a row changes.
        saved: a folder that `save` wrote: the centroids are taken from there instead of being trained.
        n_lists: number of centroids; None takes `4 * sqrt(N)`, at most one per 39 rows.
        n_probe: lists searched per query.
        retrain_above: share of rows that may leave the list they were in at training.
        when_drifted: "retrain" trains anew above that share, "warn" says so in the log, once.
        seed: of the training.

    Raises:
        ValueError: If a number is out of range.
        StoreError: If the saved folder does not fit.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        saved: str | Path | None = None,
        n_lists: int | None = None,
        n_probe: int = 32,
        retrain_above: float = 0.3,
        when_drifted: Literal["retrain", "warn"] = "retrain",
        seed: int = 0,
    ) -> None:
        if not 0 < retrain_above <= 1:
            raise ValueError(f"retrain_above must be within 0 and 1, got {retrain_above}")
        if n_probe < 1:
            raise ValueError(f"n_probe must be at least 1, got {n_probe}")
        self.check(*embeddings.shape, n_lists, when_drifted)
        self.embeddings = embeddings
        automatic = max(1, min(int(4 * len(embeddings) ** 0.5), len(embeddings) // ROWS_PER_CENTROID))
        self.n_lists = n_lists or automatic
        self.n_probe = min(n_probe, self.n_lists)
        self.retrain_above, self.when_drifted, self.seed = retrain_above, when_drifted, seed
        self.n_trainings = 0
        self._has_warned = False
        if saved is None:
            self.retrain()
        else:
            arrays = load_saved(saved, self._facts())
            self.n_trainings = int(arrays["n_trainings"])
            self._fill(arrays["centroids"])
            self._trained_lists = arrays["trained_lists"]

    @classmethod
    def check(
        cls, n_rows: int, width: int, n_lists: int | None = None, when_drifted: str = "retrain", **_: object
    ) -> None:
        """Refuses more lists than there are rows, and what no drift can be answered with.

        Raises:
            ValueError: With the key; see `check_settings`.
        """
        if when_drifted not in ("retrain", "warn"):
            raise ValueError(f'index.when_drifted must be "retrain" or "warn", got {when_drifted!r}')
        if n_lists is not None and not 1 <= n_lists <= n_rows:
            raise ValueError(
                f"index.n_lists must be from 1 to the {n_rows} documents that a process has, got {n_lists}; "
                "null chooses it"
            )

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def moved_share(self) -> float:
        """Share of rows in another list than at the last training."""
        return float((self._lists != self._trained_lists).mean())

    def search(self, queries: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best documents of every query, as `Index.search` says.

        A query whose probed lists hold fewer than `k` documents is searched in all lists, so that no place of
        the result is empty.

        Raises:
            ValueError: If widths differ, `k` is not positive, or a query is not finite.
        """
        vectors = checked_queries(queries, self.embeddings.shape[1], k)
        k = min(k, len(self))
        n_fetched = min(k + SLACK, len(self))
        products, candidates = self._fetched(vectors, n_fetched, self.n_probe)
        is_short = (candidates < 0).any(1)
        if is_short.any():
            found = self._fetched(vectors[is_short], n_fetched, self.n_lists)
            products[is_short], candidates[is_short] = found
        scores, rows = best_candidates(self.embeddings, vectors, candidates, k)
        if n_fetched < len(self):  # else there is nothing beyond what was fetched
            cut = products[:, k - 1]
            for number in np.flatnonzero(cut - products[:, -1] <= TIE):
                asked = vectors[[number]]
                n_probe = self.n_lists if is_short[number] else self.n_probe
                tied = self._above(asked, cut[number] - TIE, n_probe)
                scores[number], rows[number] = best_candidates(self.embeddings, asked, tied[None], k)
        return scores, rows

    def update(self, rows: ArrayLike) -> None:
        """Moves changed rows to the list they now belong to; may train anew.

        Raises:
            ValueError: If a row is unknown, or its vector is not finite.
        """
        changed = changed_rows(rows, len(self))
        for part, vectors in finite_chunks(self.embeddings, changed):
            self._index.update_vectors(part, vectors)
            self._lists[part] = self._nearest(vectors)
        if len(changed) and self.moved_share > self.retrain_above:
            self._mend()

    def retrain(self) -> None:
        """Trains the centroids on the rows as they are, and puts every row into its list."""
        size, width = self.embeddings.shape
        clustering = faiss.Kmeans(
            width, self.n_lists, seed=self.seed, spherical=True, min_points_per_centroid=1, nredo=1
        )
        n_sampled = min(size, 256 * self.n_lists)
        rng = np.random.default_rng((self.seed, self.n_trainings))
        sampled = np.sort(rng.choice(size, n_sampled, replace=False, shuffle=False))
        clustering.train(finite_rows(self.embeddings, sampled))
        self.n_trainings += 1
        self._fill(clustering.centroids)
        self._trained_lists = self._lists.copy()
        self._has_warned = False

    def save(self, folder: str | Path) -> None:
        """Writes the centroids and the lists at training; the lists now follow from the rows."""
        arrays = {
            "centroids": self._centroids,
            "trained_lists": self._trained_lists,
            "n_trainings": np.int64(self.n_trainings),
        }
        save_whole(folder, arrays, self._facts())

    def _facts(self) -> dict[str, int]:
        n_rows, width = self.embeddings.shape
        return {
            "backend": "ivf",
            "n_rows": n_rows,
            "width": width,
            "n_lists": self.n_lists,
            "seed": self.seed,
        }

    def _fill(self, centroids: np.ndarray) -> None:
        width = self.embeddings.shape[1]
        self._centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self._quantizer = faiss.IndexFlatIP(width)
        self._quantizer.add(self._centroids)
        self._index = faiss.IndexIVFFlat(self._quantizer, width, self.n_lists, faiss.METRIC_INNER_PRODUCT)
        self._index.is_trained = True
        rows = np.arange(len(self))
        nearest = [self._nearest(vectors) for _, vectors in finite_chunks(self.embeddings, rows)]
        self._lists = np.concatenate(nearest).astype(np.int32)
        make_room(self._index, self._lists)
        self._index.set_direct_map_type(faiss.DirectMap.Array)
        for part, vectors in finite_chunks(self.embeddings, rows):
            add_to_lists(self._index, vectors, self._lists[part])

    def _nearest(self, vectors: np.ndarray) -> np.ndarray:
        return self._quantizer.search(vectors, 1)[1][:, 0]

    def _fetched(self, queries: np.ndarray, n: int, n_probe: int) -> tuple[np.ndarray, np.ndarray]:
        """fp32 products and rows `[Q, n]`, best first; row -1 where the probed lists hold fewer."""
        self._index.nprobe = n_probe
        return self._index.search(queries, n)

    def _above(self, query: np.ndarray, limit: float, n_probe: int) -> np.ndarray:
        """All rows `[n]` of the probed lists whose product with a query `[1, D]` is above a limit."""
        self._index.nprobe = n_probe
        return self._index.range_search(query, limit)[2]

    def _mend(self) -> None:
        said = f"ivf: {self.moved_share:.0%} of the rows have left the list they were in at training"
        if self.when_drifted == "retrain":
            self.retrain()
            log.info("%s; the lists are trained anew (training %d)", said, self.n_trainings)
        elif not self._has_warned:
            self._has_warned = True
            log.warning("%s, recall may be low; index.when_drifted=retrain mends that", said)
