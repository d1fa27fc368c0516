"""What the band of the rule `certified` should have been, from an audit.

A document that drift has carried across a positive's score lies, as it is served, in a band of some width
around that score. Counted by width, these documents say what any band would have given.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from search_r3.distributed import Ranks
from search_r3.index.backends.flat import TIE
from search_r3.index.rules.base import Audit, View
from search_r3.index.rules.forecast import Forecast, wrong_scores

EDGES = np.concatenate([[0.0], np.geomspace(1e-6, 4.0, 255)])
"""Bands that are told apart: a number is rounded up to the next, by 6 % at most."""

SCORES = 1 << 18
"""Scores `[Q, chunk]` held at once: 1 MiB, so that they stay in the processor's cache from pass to pass."""


def distances(served: np.ndarray, expected: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """How far documents are from the other side of a limit than that on which they are served.

    Args:
        served: `[...]` scores as served.
        expected: `[...]` as they are expected by now.
        limits: of a shape that broadcasts; infinite ones are never near.

    Returns:
        `[...]`, negative where the other side is expected.
    """
    ahead = expected - limits
    return np.where(served >= limits, ahead, -ahead)


def positive_limits(view: View) -> np.ndarray:
    """Scores `[Q, P]` at which a wrong document counts as above the positive; inf where there is none."""
    positives = view.queries.positives
    places = positives - view.first_row
    query, column = np.nonzero((places >= 0) & (places < len(view.rows)) & (positives >= 0))
    scores = np.zeros(positives.shape)
    rows = view.rows[places[query, column]].astype(np.float64)
    scores[query, column] = (rows * view.queries.vectors[query].astype(np.float64)).sum(1)
    return np.where(positives >= 0, view.ranks.sum(scores) - TIE, np.inf)


@dataclass
class Tally:
    """Counts of an audit: wrong documents by query, positive and band.

    Attributes:
        up: `[Q, P, E]` carried above the limit by drift, by the distance that they were served at below it.
        down: `[Q, P, E]` carried below it.
        above: `[Q, P]` above it when encoded anew.
        surplus: `[Q, P]` above it as served after the refresh, less `above`.
        expected, after, fresh: `[Q]` best wrong score as expected before the refresh, as served after it, and
            encoded anew.
        level_of_best: `[Q]` what the best when encoded anew was served or expected at before, the higher.
    """

    up: np.ndarray
    down: np.ndarray
    above: np.ndarray
    surplus: np.ndarray
    expected: np.ndarray
    after: np.ndarray
    fresh: np.ndarray
    level_of_best: np.ndarray

    @classmethod
    def zeros(cls, shape: tuple[int, int]) -> "Tally":
        bins = [np.zeros((*shape, len(EDGES)), np.int64) for _ in range(2)]
        counts = [np.zeros(shape, np.int64) for _ in range(2)]
        return cls(*bins, *counts, *(np.full(shape[0], -np.inf, np.float32) for _ in range(4)))

    def add(
        self,
        before: np.ndarray,
        expected: np.ndarray,
        fresh: np.ndarray,
        is_new: np.ndarray,
        limits: np.ndarray,
    ) -> None:
        """Scores `[Q, n]` of some documents, and which of them `[n]` were encoded at this step."""
        after = np.where(is_new, fresh, before)
        best = fresh.argmax(1)
        queries = np.arange(len(fresh))
        is_better = fresh[queries, best] > self.fresh
        level = np.maximum(before[queries, best], expected[queries, best])
        self.level_of_best = np.where(is_better, level, self.level_of_best)
        self.fresh = np.where(is_better, fresh[queries, best], self.fresh)
        self.expected = np.maximum(self.expected, expected.max(1))
        self.after = np.maximum(self.after, after.max(1))
        for column in range(limits.shape[1]):
            limit = limits[:, column, None]
            is_above = fresh >= limit
            self.above[:, column] += is_above.sum(1)
            self.surplus[:, column] += (after >= limit).sum(1) - is_above.sum(1)
            query, document = np.nonzero((before >= limit) != is_above)
            changed = [scores[query, document] for scores in (before, expected)]
            distance = distances(*changed, limits[query, column])
            edge = np.minimum(np.searchsorted(EDGES, distance), len(EDGES) - 1)
            for counts, side in ((self.up, is_above), (self.down, ~is_above)):
                chosen = side[query, document]
                np.add.at(counts, (query[chosen], column, edge[chosen]), 1)

    def merged(self, ranks: Ranks) -> "Tally":
        """That of the whole corpus."""
        counts = [ranks.sum(part) for part in (self.up, self.down, self.above, self.surplus)]
        bests = [ranks.max(part) for part in (self.expected, self.after)]
        fresh, of_best = ranks.gather(self.fresh[None]), ranks.gather(self.level_of_best[None])
        fresh, of_best = np.concatenate(fresh), np.concatenate(of_best)  # [ranks, Q]
        first = fresh.argmax(0)[None]
        chosen = [np.take_along_axis(part, first, 0)[0] for part in (fresh, of_best)]
        return Tally(*counts, *bests, *chosen)


def needed_bands(
    audit: Audit, forecast: Forecast, cut_off: int | None, reads_best_wrong: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What the band should have been, and what came of the one that was.

    Args:
        audit: all rows, as served before the refresh and encoded anew.
        forecast: of the same queries.
        cut_off: rank beyond which the reward is 0, or None.
        reads_best_wrong: whether the reward reads the best wrong score.

    Returns:
        `[Q]` the smallest of `EDGES` from which on encoding the rows in the band gives the rank of every
        positive (all ranks beyond the cut-off being one) and the best wrong score of the fresh corpus; and
        `[Q]` bool, whether the rows served after the refresh gave these.
    """
    view = audit.view
    limits = positive_limits(view)
    tally = Tally.zeros(limits.shape)
    for rows in audit.chunks():
        for start, stop in parts(len(rows.before), len(limits)):
            first = view.first_row + rows.start + start
            before, expected = forecast.scores(rows.before[start:stop], first, rows.encoded_at[start:stop])
            fresh = wrong_scores(rows.fresh[start:stop], first, view.queries)
            tally.add(before, expected, fresh, rows.is_new[start:stop], limits)
    tally = tally.merged(view.ranks)
    cap = view.n_documents if cut_off is None else cut_off

    # [Q, P, E]: wrong documents above the positive once a band is encoded; outside it the served side counts.
    beyond = [counts.sum(2, keepdims=True) - np.cumsum(counts, 2) for counts in (tally.up, tally.down)]
    counted = tally.above[:, :, None] + beyond[1] - beyond[0]
    is_right = np.minimum(counted, cap) == np.minimum(tally.above, cap)[:, :, None]
    edge = np.where(is_right, 0, np.arange(1, len(EDGES) + 1)).max(2)  # [Q, P]; the last edge is always right
    numbers = EDGES[np.minimum(edge, len(EDGES) - 1)].max(1)
    after = np.minimum(tally.above + tally.surplus, cap)
    is_exact = (after == np.minimum(tally.above, cap)).all(1)
    if reads_best_wrong:
        is_read = ((tally.above < cap) & np.isfinite(limits)).any(1)
        lag = tally.expected - np.minimum(tally.fresh, tally.level_of_best)
        numbers = np.where(is_read, np.maximum(numbers, np.maximum(lag, 0)), numbers)
        is_exact &= ~is_read | (np.abs(tally.after - tally.fresh) <= TIE)
    return numbers, is_exact


def parts(n_rows: int, n_queries: int) -> Iterator[tuple[int, int]]:
    size = min(8192, max(256, SCORES // max(n_queries, 1)))  # fewer rows make a slow product
    for start in range(0, n_rows, size):
        yield start, min(start + size, n_rows)
