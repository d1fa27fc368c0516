"""Search in a navigable small-world graph (HNSW, arXiv:1603.09320) by usearch, which holds a second copy.

usearch takes a new vector under an old number: the node is removed and linked again in its place. Edges that
led to it from its old neighbours stay and now lead elsewhere, so that recall falls slowly with every change.
The graph is therefore built anew once as many rows have changed as it has. Changing a tenth of the rows costs
more than a tenth of a build: the graph is for corpora that are searched much and change little, the flat
index for training.

Which of the documents that tie the graph comes to first depends on its links. So where all that a query
fetched beyond the cut-off tie with it, the query is searched in all rows, as the flat index does. What cannot
be promised: the links depend on the order of past changes, and a document that they do not lead to is not
found, be it a tie or the best. So a graph that was changed step by step may find others than one that is
built from the same rows; one that was saved and loaded finds the same.
"""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from usearch.index import Index as Graph

from search_r3.index.backends.base import best_candidates, changed_rows
from search_r3.index.backends.flat import SLACK, TIE, FlatIndex
from search_r3.index.rows.checks import checked_queries, finite_chunks
from search_r3.index.rows.saved import load_saved, saved_whole

BEFORE = {"backend": "graph"}
"""What the facts of a saved index said before the backend was called hnsw."""

log = logging.getLogger(__name__)


class HNSWIndex:
    """Approximate search; the recall grows with `ef_search`.

    One thread links and searches, since links, and with them results, depend on the order of insertion.

    Args:
        embeddings: `[N, D]` fp32, unit norm; read again whenever a row changes.
        saved: a folder that `save` wrote, whose graph is taken; rows that changed since must be named to
            `update`.
        n_links: edges per node (M).
        ef_construction: breadth of the search while linking.
        ef_search: breadth of the search for a query; raised to the number of documents asked for.
        rebuild_above: changed rows since the last build, as a share of all, above which the graph is built
            anew; a row that changed twice counts twice.

    Raises:
        StoreError: If the saved folder does not fit.
        ValueError: If a row is not finite, or a number is out of range.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        saved: str | Path | None = None,
        n_links: int = 32,
        ef_construction: int = 200,
        ef_search: int = 128,
        rebuild_above: float = 1.0,
    ) -> None:
        if min(n_links, ef_construction, ef_search) < 1 or not rebuild_above > 0:
            raise ValueError(
                "n_links, ef_construction and ef_search must be at least 1 and rebuild_above above 0, got "
                f"{n_links}, {ef_construction}, {ef_search} and {rebuild_above}"
            )
        self.embeddings = embeddings
        self.n_links, self.ef_construction, self.ef_search = n_links, ef_construction, ef_search
        self.rebuild_above = rebuild_above
        self.n_builds = 0
        self._n_changed = 0  # since the last build
        self._graph = self._empty()
        if saved is None:
            self._build()
        else:
            counts = load_saved(saved, self._facts(), BEFORE)["counts"]
            self.n_builds, self._n_changed = counts.tolist()
            self._graph.load(str(Path(saved) / "graph.bin"))

    def __len__(self) -> int:
        return len(self.embeddings)

    def search(self, queries: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best documents of every query, as `Index.search` says.

        Raises:
            ValueError: If widths differ, `k` is not positive, or a query is not finite.
        """
        vectors = checked_queries(queries, self.embeddings.shape[1], k)
        k = min(k, len(self))
        n_fetched = min(k + SLACK, len(self))
        self._graph.expansion_search = max(self.ef_search, n_fetched)
        candidates = np.zeros((len(vectors), n_fetched), dtype=np.int64)
        is_settled = np.zeros(len(vectors), dtype=bool)
        for number, query in enumerate(vectors):
            found = self._graph.search(query, n_fetched, threads=1)
            if len(found) < n_fetched:  # the graph has come apart, or n is close to N
                continue
            candidates[number] = found.keys
            has_gap = found.distances[-1] - found.distances[k - 1] > TIE
            is_settled[number] = has_gap or n_fetched == len(self)
        scores, rows = best_candidates(self.embeddings, vectors, candidates, k)
        if not is_settled.all():
            found = FlatIndex(self.embeddings).search(vectors[~is_settled], k)
            scores[~is_settled], rows[~is_settled] = found
        return scores, rows

    def update(self, rows: ArrayLike) -> None:
        """Links changed rows anew, or all of them where too many have changed since the last build.

        Raises:
            ValueError: If a row is unknown, or its vector is not finite.
        """
        changed = changed_rows(rows, len(self))
        self._n_changed += len(changed)
        if self._n_changed > self.rebuild_above * len(self):
            log.info("the graph of %d documents is built anew: as many have changed", len(self))
            self._build()
            return
        for part, vectors in finite_chunks(self.embeddings, changed):
            self._graph.remove(part.astype(np.uint64), threads=1)
            self._graph.add(part.astype(np.uint64), vectors, threads=1)

    def save(self, folder: str | Path) -> None:
        """Writes the graph, its copy of the vectors included."""
        with saved_whole(folder, self._facts()) as part:
            np.save(part / "counts.npy", np.array([self.n_builds, self._n_changed]), allow_pickle=False)
            self._graph.save(str(part / "graph.bin"))

    def _empty(self) -> Graph:
        return Graph(
            ndim=self.embeddings.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=self.n_links,
            expansion_add=self.ef_construction,
            expansion_search=self.ef_search,
        )

    def _build(self) -> None:
        self._graph, self._n_changed, self.n_builds = self._empty(), 0, self.n_builds + 1
        for part, vectors in finite_chunks(self.embeddings, np.arange(len(self))):
            self._graph.add(part.astype(np.uint64), vectors, threads=1)

    def _facts(self) -> dict[str, int | str]:
        n_rows, width = self.embeddings.shape
        return {"backend": "hnsw", "n_rows": n_rows, "width": width, "n_links": self.n_links}
