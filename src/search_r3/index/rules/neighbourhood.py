"""The rule `graph`: the paper's local update of an embedding graph, on a table of neighbours of its own.

The paper (arXiv:2510.07048) says that only the affected region of an embedding graph is refreshed; which
nodes, how many and how is not published. Ours: the region is what the queries retrieved and the positives,
and their neighbours `hops` edges away; a query goes neither to nor through documents that it is not ranked
against. The region is encoded anew; the edges of its rows are searched again, and edges that lead to them are
scored again, dropped, or made, by the row at their other end. Edges between rows outside the region stay as
they are, so that a step costs by the region and not by the corpus, but for one look at the table for edges
that lead into the region. Rows that are encoded at steps at which the rule is not due are looked at together
with the next region.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from search_r3.index.rows.saved import load_saved, save_whole
from search_r3.index.rules.base import CHUNK, Proposal, Rule, StepQueries, View
from search_r3.progress import Progress

ROWS = 1 << 40
"""More than a corpus has: what a query reaches is a pair of its kind and a row, kept as one number."""


class Graph(Rule):
    """Encodes what the queries retrieve and its neighbours; the table needs `12 * M` bytes per document.

    Building the table searches every document once, which a flat index does in `N^2 D`: choose another
    backend beyond a million documents.

    Attributes:
        neighbours: `[n, M]` int64, corpus rows nearest to each row of this rank; other than the row itself.
        scores: `[n, M]` fp32, descending; of the vectors as they were when the edge was last looked at.

    Args:
        k: documents retrieved per query, where the region begins.
        n_neighbours: `M`, edges per row.
        hops: edges from there to the region's end.

    Raises:
        ValueError: If a number is out of range.
    """

    is_observing = True

    def __init__(self, k: int = 10, n_neighbours: int = 8, hops: int = 1) -> None:
        if k < 1 or n_neighbours < 1 or hops < 0:
            raise ValueError(
                f"k and n_neighbours must be at least 1 and hops at least 0, got {k}, {n_neighbours}, {hops}"
            )
        self.n_candidates, self.n_neighbours, self.hops = k, n_neighbours, hops
        self.neighbours = np.empty((0, 0), np.int64)
        self.scores = np.empty((0, 0), np.float32)
        self._touched: list[np.ndarray] = []  # rows encoded since `finish`

    def start(self, view: View) -> None:
        width = min(self.n_neighbours, view.n_documents - 1)
        self.neighbours = np.empty((len(view.rows), width), np.int64)
        self.scores = np.empty((len(view.rows), width), np.float32)
        largest = int(view.ranks.max(len(view.rows)))
        with Progress(largest, "link documents", "documents", view.ranks.rank == 0) as progress:
            for start in range(0, largest, CHUNK):  # as many searches on every rank
                places = np.arange(min(start, len(view.rows)), min(start + CHUNK, len(view.rows)))
                self.neighbours[places], self.scores[places] = self._searched(view, places)
                progress.update(min(CHUNK, largest - start))

    def propose(self, view: View) -> Proposal:
        found = view.queries.candidates[:, : self.n_candidates]
        # Column by column, so that a row that several queries found has the best of its places.
        region, first = np.unique(found.T.ravel(), return_index=True)
        places = first // max(len(found), 1)
        rows, priorities = [region], [places / max(found.shape[1], 1)]
        kind, excluded = _by_what_is_excluded(view.queries)
        begun = np.concatenate([found, view.queries.positives], 1)
        seen = frontier = _different([_pairs(kind, begun)])
        for hop in range(1, self.hops + 1):
            ends = view.ranks.joined(self._linked(view, frontier))
            frontier = np.setdiff1d(ends, np.union1d(seen, excluded))
            seen = np.union1d(seen, frontier)
            rows.append(np.unique(frontier % ROWS))
            priorities.append(np.full(len(rows[-1]), float(hop)))
        return Proposal(np.concatenate(rows), np.concatenate(priorities))

    def observe(self, step: int, rows: np.ndarray, old: np.ndarray, new: np.ndarray) -> None:
        self._touched.append(rows)

    def finish(self, view: View) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        touched, self._touched = _different(self._touched), []
        if len(touched):
            # Ranks hold runs of rows in their order, so that the joined vectors are in the order of the rows.
            self._relink(view, touched, view.ranks.joined(view.rows[view.held(touched)]))
        yield from ()

    def save(self, folder: Path) -> None:
        touched = _different(self._touched)
        arrays = {"neighbours": self.neighbours, "scores": self.scores, "touched": touched}
        save_whole(folder, arrays, self._facts(len(self.neighbours)))

    def load(self, folder: Path, view: View) -> None:
        arrays = load_saved(folder, self._facts(len(view.rows)))
        self.neighbours, self.scores = arrays["neighbours"], arrays["scores"]
        self._touched = [arrays["touched"]] if "touched" in arrays else []  # older checkpoints have none

    def _facts(self, n_rows: int) -> dict[str, int | str]:
        return {"rule": "graph", "n_rows": n_rows, "n_neighbours": self.n_neighbours}

    def _linked(self, view: View, pairs: np.ndarray) -> np.ndarray:
        """The pairs `[m]` that an edge leads to from those of `pairs` `[n]` whose row this rank holds."""
        pairs = pairs[view.is_held(pairs % ROWS)]
        return _different([_pairs(pairs // ROWS, self.neighbours[pairs % ROWS - view.first_row])])

    def _searched(self, view: View, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours and scores `[n, M]` of rows of this rank, by the backend; collective."""
        width = self.neighbours.shape[1]
        scores, found = view.search(view.rows[places], width + 1)
        # The row itself goes; where copies of it have crowded it out, the last one found does.
        is_self = found == (places + view.first_row)[:, None]
        is_self[~is_self.any(1), -1] = True
        shape = (len(places), width)
        return found[~is_self].reshape(shape), scores[~is_self].reshape(shape)

    def _relink(self, view: View, touched: np.ndarray, vectors: np.ndarray) -> None:
        """Edges of and to the touched rows `[t]`, ascending, whose new vectors are `[t, D]`."""
        places = view.held(touched)
        self.neighbours[places], self.scores[places] = self._searched(view, places)
        if self.neighbours.shape[1] == 0:
            return
        owners, columns = self._edges_into(touched, view.n_documents)
        at = np.searchsorted(touched, self.neighbours[owners, columns])
        self.scores[owners, columns] = _products(view.rows[owners], vectors[at])
        # The other way round: a touched row may have become a neighbour of its new neighbours.
        sources = np.repeat(places + view.first_row, self.neighbours.shape[1])
        edges = np.stack([self.neighbours[places].ravel(), sources], 1)
        edges = view.ranks.joined(edges)
        ends, source = edges[view.is_held(edges[:, 0])].T
        into = ends - view.first_row
        scores = _products(view.rows[into], vectors[np.searchsorted(touched, source)])
        self._merge(np.union1d(owners, into), into, source, scores)

    def _edges_into(self, touched: np.ndarray, n_documents: int) -> tuple[np.ndarray, np.ndarray]:
        is_touched = np.zeros(n_documents, dtype=bool)
        is_touched[touched] = True
        found = [
            np.argwhere(is_touched[self.neighbours[start : start + CHUNK]]) + np.array([start, 0])
            for start in range(0, len(self.neighbours), CHUNK)
        ]
        owners, columns = np.concatenate([np.empty((0, 2), np.int64), *found]).T
        return owners, columns

    def _merge(self, changed: np.ndarray, into: np.ndarray, source: np.ndarray, scores: np.ndarray) -> None:
        """Keeps the best edges of the changed rows, out of those they have and `(into, source, scores)`."""
        width = self.neighbours.shape[1]
        owners = np.concatenate([np.repeat(changed, width), into])
        ends = np.concatenate([self.neighbours[changed].ravel(), source])
        values = np.concatenate([self.scores[changed].ravel(), scores])
        order = np.lexsort((ends, owners))
        owners, ends, values = owners[order], ends[order], values[order]
        is_new = np.ones(len(owners), dtype=bool)
        is_new[1:] = (owners[1:] != owners[:-1]) | (ends[1:] != ends[:-1])
        owners, ends, values = owners[is_new], ends[is_new], values[is_new]
        order = np.lexsort((ends, -values, owners))
        owners, ends, values = owners[order], ends[order], values[order]
        place = np.arange(len(owners)) - np.searchsorted(owners, owners)
        is_kept = place < width
        self.neighbours[owners[is_kept], place[is_kept]] = ends[is_kept]
        self.scores[owners[is_kept], place[is_kept]] = values[is_kept]


def _by_what_is_excluded(queries: StepQueries) -> tuple[np.ndarray, np.ndarray]:
    """Queries that exclude the same documents share a number: `[Q]` numbers, and the pairs excluded `[n]`."""
    if queries.excluded is None or not queries.excluded.size:
        return np.zeros(len(queries.vectors), np.int64), np.empty(0, np.int64)
    excluded, kind = np.unique(queries.excluded, axis=0, return_inverse=True)
    return kind.ravel(), _pairs(np.arange(len(excluded)), excluded)


def _pairs(kind: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A number for every kind of query `[Q]` with each of its rows `[Q, n]`, -1 for none."""
    return (kind[:, None] * ROWS + rows)[rows >= 0]


def _different(rows: list[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.empty(0, np.int64), *rows]))


def _products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Inner products `[n]` of rows `[n, D]`, in chunks."""
    result = np.empty(len(one), np.float32)
    for start in range(0, len(one), CHUNK):
        part = slice(start, start + CHUNK)
        result[part] = np.einsum("nd,nd->n", one[part], other[part])
    return result
