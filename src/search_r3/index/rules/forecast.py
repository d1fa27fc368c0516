"""Where stale documents stand by now, as far as a sample of them tells.

A step moves all documents of a corpus more alike than not: one displacement, common to all of them, is most
of what their scores change by. The rows of the background are encoded at every step and are a random sample,
so their mean displacement says what it is. `CommonDrift` adds it up, and `Forecast` moves the scores of every
row by what has passed since that row was encoded. It costs an addition per score, and no row is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from search_r3.index.rows.live import NEVER
from search_r3.index.rules.base import Moved, StepQueries


class CommonDrift:
    """The path of the corpus as a whole.

    A row encoded at step `s` and again at `t` is one reading of the displacement from `s` to `t`, so with it
    `path[t] = mean over the rows of (path[s] + new - old)`.

    Attributes:
        steps: `[S]` int64, ascending, at which the path is known.
        path: `[S, D]` float64, from where it begins; its first place stands for all steps before the second.
        spread: root mean square distance of the rows from where the path says they are, at the last reading;
            None before the first.
    """

    def __init__(self) -> None:
        self.steps = np.array([NEVER])
        self.path = np.zeros((1, 0))
        self.spread: float | None = None

    def follow(self, moved: Moved) -> None:
        """Goes on to a step; where no row was encoded anew the path is not known better than before."""
        width = moved.new.shape[1]
        if self.path.shape[1] == 0:
            self.path = np.zeros((1, width))
        known = moved.encoded_at != NEVER
        start = self.path[self.places(moved.encoded_at[known])]
        displaced = start + moved.new[known].astype(np.float64) - moved.old[known]
        *total, n = moved.ranks.sum(np.append(displaced.sum(0), len(displaced)))
        if n == 0:
            return
        here = np.array(total) / n
        squares = moved.ranks.sum(((displaced - here) ** 2).sum())
        self.spread = float(np.sqrt(squares / n))
        is_earlier = self.steps < moved.step
        self.steps = np.append(self.steps[is_earlier], moved.step)
        self.path = np.concatenate([self.path[is_earlier], here[None]])

    def forget_before(self, oldest: int) -> None:
        """Drops what no row is as old as."""
        first = int(self.places(np.array([oldest]))[0])
        self.steps, self.path = self.steps[first:], self.path[first:]

    def places(self, encoded_at: np.ndarray) -> np.ndarray:
        """`[n]` places in the path of rows that were encoded at some steps."""
        return np.maximum(np.searchsorted(self.steps, encoded_at, side="right") - 1, 0)

    def forecast(self, queries: StepQueries) -> "Forecast":
        """The scores of some queries by now."""
        ahead = (self.path[-1] - self.path).astype(np.float32)  # [S, D]
        return Forecast(queries, self, queries.vectors @ ahead.T if ahead.any() else None)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `load` takes."""
        spread = np.array([] if self.spread is None else [self.spread])
        return {"steps": self.steps, "path": self.path, "spread": spread}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes over what `arrays` gave."""
        self.steps, self.path = arrays["steps"], arrays["path"]
        self.spread = float(arrays["spread"][0]) if len(arrays["spread"]) else None


@dataclass(frozen=True)
class Forecast:
    """Scores of a step's queries.

    Attributes:
        queries: `Q` of them.
        drift: the path.
        offsets: `[Q, S]` by which a row's score has changed since each place of the path; None: by nothing.
    """

    queries: StepQueries
    drift: CommonDrift
    offsets: np.ndarray | None

    def scores(
        self, rows: np.ndarray, first_row: int, encoded_at: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores `[Q, n]` fp32 of corpus rows `[n, D]` from `first_row` on, as served and as expected by now.

        Both are -inf for what is no wrong document of the query.
        """
        served = wrong_scores(rows, first_row, self.queries)
        if self.offsets is None:
            return served, served
        places = self.drift.places(encoded_at)
        usual = np.bincount(places).argmax()  # adding one column to all and mending the others is faster
        expected = served + self.offsets[:, [usual]]
        others = np.flatnonzero(places != usual)
        expected[:, others] = served[:, others] + self.offsets[:, places[others]]
        return served, expected


def wrong_scores(rows: np.ndarray, first_row: int, queries: StepQueries) -> np.ndarray:
    """Scores `[Q, n]` fp32 of corpus rows from `first_row` on; -inf for what is not wrong."""
    scores = queries.vectors @ rows.T
    places = queries.not_wrong - first_row
    query, column = np.nonzero((places >= 0) & (places < len(rows)))
    scores[query, places[query, column]] = -np.inf
    return scores
