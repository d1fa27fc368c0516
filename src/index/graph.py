"""Search in a navigable small-world graph (HNSW, arXiv:1603.09320) by hnswlib, an optional package.

hnswlib takes a new vector under an old number and relinks its neighbourhood. Updating a tenth of a graph
costs about as much as building it: the graph is for serving and for comparison, the flat index for training.
"""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike

from src.index.base import best_candidates, changed_rows, load_saved, saved_whole
from src.index.checks import checked_queries, finite_chunks
from src.index.flat import SLACK


class GraphIndex:
    """Approximate search; the recall grows with `ef_search`.

    Args:
        embeddings: `[N, D]` fp32, unit norm; read again whenever a row changes.
        saved: a folder that `save` wrote, whose graph is taken; rows that changed since must be named to
            `update`.
        n_links: edges per node (M).
        ef_construction: breadth of the search while linking.
        ef_search: breadth of the search for a query; raised to the number of documents asked for.
        seed: of the levels.

    Raises:
        ModuleNotFoundError: If hnswlib is not installed.
        StoreError: If the saved folder does not fit.
        ValueError: If a row is not finite.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        saved: str | Path | None = None,
        n_links: int = 32,
        ef_construction: int = 200,
        ef_search: int = 128,
        seed: int = 0,
    ) -> None:
        self.embeddings = embeddings
        self.n_links, self.ef_construction, self.ef_search, self.seed = (
            n_links,
            ef_construction,
            ef_search,
            seed,
        )
        self._graph = _hnswlib().Index(space="ip", dim=embeddings.shape[1])
        self._graph.set_num_threads(1)  # links, and with them results, depend on the order of insertion
        if saved is None:
            self._graph.init_index(
                max_elements=len(embeddings), M=n_links, ef_construction=ef_construction, random_seed=seed
            )
            self.update(np.arange(len(embeddings)))
        else:
            load_saved(saved, self._facts())
            self._graph.load_index(str(Path(saved) / "graph.bin"), max_elements=len(embeddings))

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
        self._graph.set_ef(min(max(self.ef_search, n_fetched), len(self)))
        candidates = np.empty((len(vectors), n_fetched), dtype=np.int64)
        for number, query in enumerate(vectors):
            candidates[number] = self._found(query, n_fetched)
        return best_candidates(self.embeddings, vectors, candidates, k)

    def update(self, rows: ArrayLike) -> None:
        """Relinks changed rows.

        Raises:
            ValueError: If a row is unknown, or its vector is not finite.
        """
        for part, vectors in finite_chunks(self.embeddings, changed_rows(rows, len(self))):
            self._graph.add_items(vectors, part, num_threads=1)

    def save(self, folder: str | Path) -> None:
        """Writes the graph, its copy of the vectors included."""
        with saved_whole(folder, self._facts()) as part:
            self._graph.save_index(str(part / "graph.bin"))

    def _facts(self) -> dict[str, int | str]:
        n_rows, width = self.embeddings.shape
        return {
            "backend": "graph",
            "n_rows": n_rows,
            "width": width,
            "n_links": self.n_links,
            "seed": self.seed,
        }

    def _found(self, query: np.ndarray, n: int) -> np.ndarray:
        try:
            return self._graph.knn_query(query, n, num_threads=1)[0][0].astype(np.int64)
        except RuntimeError:
            # Fewer than n nodes can be reached: the graph has come apart, or n is close to N. Exact instead.
            scores = self.embeddings @ query
            return np.argpartition(-scores, n - 1)[:n]


def _hnswlib() -> ModuleType:
    try:
        return importlib.import_module("hnswlib")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "index=graph needs the package hnswlib, which is not installed: pip install hnswlib, "
            "or choose index=flat"
        ) from error
