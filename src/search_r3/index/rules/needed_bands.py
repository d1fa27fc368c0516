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
"""Bands that are told apart: a number is rounded up to the next, from 1e-6 on by 6.2 % at most."""

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
    query, column = np.nonzero(view.is_held(positives))
    scores = np.zeros(positives.shape)
    rows = view.rows[positives[query, column] - view.first_row].astype(np.float64)
    scores[query, column] = (rows * view.queries.vectors[query].astype(np.float64)).sum(1)
    return np.where(positives >= 0, view.ranks.sum(scores) - TIE, np.inf)


def finite_columns(limits: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The columns `[Q, P]` that hold a finite limit, and of which queries: most have one positive."""
    columns = ((column, np.flatnonzero(np.isfinite(limits[:, column]))) for column in range(limits.shape[1]))
    return [(column, asked) for column, asked in columns if len(asked)]


def nearest_decisions(
    served: np.ndarray, expected: np.ndarray, limits: np.ndarray, best_wrong: np.ndarray
) -> np.ndarray:
    """How far documents are from changing what any of the queries reads.

    Args:
        served, expected: `[Q, n]` scores.
        limits: `[Q, P]`, infinite where none is read.
        best_wrong: `[Q]` as expected, infinite where it is not read.

    Returns:
        `[n]`: the band from which on the rule encodes the document.
    """
    read = np.flatnonzero(np.isfinite(best_wrong))
    ahead = np.maximum(served[read], expected[read])
    nearest = (best_wrong[read, None] - ahead).min(0, initial=np.inf)
    for column, asked in finite_columns(limits):
        apart = distances(served[asked], expected[asked], limits[asked, column, None])
        nearest = np.minimum(nearest, apart.min(0))
    return nearest


@dataclass(frozen=True)
class Decisions:
    """What the rewards of an audited step turn on, whatever the band.

    Attributes:
        limits: `[Q, P]` of the positives, inf where there is none.
        is_open: `[Q, P]` whether the rule looks at a limit under every band: too few documents are above it,
            as served and as expected, to put the positive beyond the cut-off.
        expected, fresh: `[Q]` best wrong score as expected before the refresh, and encoded anew.
        reads_best_wrong: whether the reward reads that.
    """

    limits: np.ndarray
    is_open: np.ndarray
    expected: np.ndarray
    fresh: np.ndarray
    reads_best_wrong: bool

    @classmethod
    def of(cls, audit: Audit, forecast: Forecast, cap: int, reads_best_wrong: bool) -> "Decisions":
        """Those of an audit, by one pass over its rows; collective."""
        view, limits = audit.view, positive_limits(audit.view)
        n_above = np.zeros(limits.shape, np.int64)
        bests = np.full((2, len(limits)), -np.inf, np.float32)
        for before, expected, fresh, _ in _scored(audit, forecast):
            bests = np.maximum(bests, [expected.max(1), fresh.max(1)])
            lowest = np.minimum(before, expected)
            for column, asked in finite_columns(limits):
                n_above[asked, column] += (lowest[asked] >= limits[asked, column, None]).sum(1)
        is_open = np.isfinite(limits) & (view.ranks.sum(n_above) < cap)
        return cls(limits, is_open, *(view.ranks.max(best) for best in bests), reads_best_wrong)

    @property
    def best_wrong(self) -> np.ndarray:
        """`[Q]` as expected, inf where no band makes the rule look at it."""
        return np.where(self.is_open.any(1) & self.reads_best_wrong, self.expected, np.inf)


@dataclass
class Tally:
    """Counts of an audit: wrong documents by query, positive and band.

    Attributes:
        up: `[Q, P, E]` carried above the limit by drift, by the band from which on the rule encodes them.
        down: `[Q, P, E]` carried below it.
        above: `[Q, P]` above it when encoded anew.
        surplus: `[Q, P]` above it as served after the refresh, less `above`.
        after: `[Q]` best wrong score as served after the refresh.
        reach: `[Q]` less the band from which on a document has the best wrong score of the fresh corpus.
        over: `[Q]` the band from which on none is served with a higher one.
    """

    up: np.ndarray
    down: np.ndarray
    above: np.ndarray
    surplus: np.ndarray
    after: np.ndarray
    reach: np.ndarray
    over: np.ndarray

    @classmethod
    def zeros(cls, shape: tuple[int, int]) -> "Tally":
        """A tally of nothing, for `[Q, P]` limits."""
        bins = [np.zeros((*shape, len(EDGES)), np.int64) for _ in range(2)]
        counts = [np.zeros(shape, np.int64) for _ in range(2)]
        return cls(*bins, *counts, *(np.full(shape[0], -np.inf) for _ in range(3)))

    def add(
        self,
        before: np.ndarray,
        expected: np.ndarray,
        fresh: np.ndarray,
        is_new: np.ndarray,
        decisions: Decisions,
    ) -> None:
        """Scores `[Q, n]` of some documents, and which of them `[n]` were encoded at this step."""
        limits = decisions.limits
        after = np.where(is_new, fresh, before)
        self.after = np.maximum(self.after, after.max(1))
        watched = np.where(decisions.is_open, limits, np.inf)
        nearest = nearest_decisions(before, expected, watched, decisions.best_wrong)
        for column in range(limits.shape[1]):
            limit = limits[:, column, None]
            is_above = fresh >= limit
            self.above[:, column] += is_above.sum(1)
            self.surplus[:, column] += (after >= limit).sum(1) - is_above.sum(1)
            query, document = np.nonzero((before >= limit) != is_above)
            changed = [scores[query, document] for scores in (before, expected)]
            distance = distances(*changed, limits[query, column])
            shared = np.where(decisions.is_open[query, column], nearest[document], np.inf)
            edge = _edges(np.minimum(distance, shared))
            for counts, side in ((self.up, is_above), (self.down, ~is_above)):
                chosen = side[query, document]
                np.add.at(counts, (query[chosen], column, edge[chosen]), 1)
        if decisions.reads_best_wrong:
            self._add_best(before, expected, fresh, nearest, decisions)

    def _add_best(
        self,
        before: np.ndarray,
        expected: np.ndarray,
        fresh: np.ndarray,
        nearest: np.ndarray,
        decisions: Decisions,
    ) -> None:
        best = decisions.fresh[:, None]
        is_over, is_best = before > best + TIE, fresh >= best - TIE
        query, document = np.nonzero(is_over | is_best)
        ahead = np.maximum(before, expected)[query, document]
        shared = np.where(decisions.is_open.any(1)[query], nearest[document], np.inf)
        needed = np.maximum(np.minimum(decisions.expected[query] - ahead, shared), 0.0)
        chosen = is_over[query, document]
        np.maximum.at(self.over, query[chosen], needed[chosen])
        chosen = is_best[query, document]
        is_served = np.abs(before - best)[query, document] <= TIE
        np.maximum.at(self.reach, query[chosen], -np.where(is_served, 0.0, needed)[chosen])

    def merged(self, ranks: Ranks) -> "Tally":
        """That of the whole corpus."""
        counts = [ranks.sum(part) for part in (self.up, self.down, self.above, self.surplus)]
        return Tally(*counts, *(ranks.max(part) for part in (self.after, self.reach, self.over)))


def needed_bands(
    audit: Audit, forecast: Forecast, cut_off: int | None, reads_best_wrong: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What the band should have been, and what came of the one that was.

    A document in the band of one rollout is encoded for all of them. So what is asked is the band of the step
    and not of the rollout alone, which needs a wider one.

    Args:
        audit: all rows, as served before the refresh and encoded anew.
        forecast: of the same queries.
        cut_off: rank beyond which the reward is 0, or None.
        reads_best_wrong: whether the reward reads the best wrong score.

    Returns:
        `[Q]` the smallest of `EDGES` from which on encoding the rows in the band of any rollout gives this
        one the rank of every positive (all ranks beyond the cut-off being one) and the best wrong score of
        the fresh corpus; larger where the rule may not look at a positive under some band. And `[Q]` bool,
        whether the rows served after the refresh gave these.
    """
    view = audit.view
    cap = view.n_documents if cut_off is None else cut_off
    decisions = Decisions.of(audit, forecast, cap, reads_best_wrong)
    tally = Tally.zeros(decisions.limits.shape)
    for before, expected, fresh, is_new in _scored(audit, forecast):
        tally.add(before, expected, fresh, is_new, decisions)
    tally = tally.merged(view.ranks)

    # [Q, P, E]: wrong documents above the positive once a band is encoded; outside it the served side counts.
    beyond = [counts.sum(2, keepdims=True) - np.cumsum(counts, 2) for counts in (tally.up, tally.down)]
    counted = tally.above[:, :, None] + beyond[1] - beyond[0]
    is_right = np.minimum(counted, cap) == np.minimum(tally.above, cap)[:, :, None]
    edge = np.where(is_right, 0, np.arange(1, len(EDGES) + 1)).max(2)  # [Q, P]; the last edge is always right
    numbers = EDGES[np.minimum(edge, len(EDGES) - 1)].max(1)
    after = np.minimum(tally.above + tally.surplus, cap)
    is_exact = (after == np.minimum(tally.above, cap)).all(1)
    if reads_best_wrong:
        is_read = ((tally.above < cap) & np.isfinite(decisions.limits)).any(1)
        needed = EDGES[_edges(np.maximum(tally.over, -tally.reach))]
        numbers = np.where(is_read, np.maximum(numbers, needed), numbers)
        is_exact &= ~is_read | (np.abs(tally.after - decisions.fresh) <= TIE)
    return numbers, is_exact


def _scored(
    audit: Audit, forecast: Forecast
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Scores `[Q, n]` before, as expected and fresh, and which `[n]` are new, part by part."""
    view = audit.view
    for rows in audit.chunks():
        for start, stop in parts(len(rows.before), len(view.queries.vectors)):
            first = view.first_row + rows.start + start
            before, expected = forecast.scores(rows.before[start:stop], first, rows.encoded_at[start:stop])
            fresh = wrong_scores(rows.fresh[start:stop], first, view.queries)
            yield before, expected, fresh, rows.is_new[start:stop]


def _edges(distance: np.ndarray) -> np.ndarray:
    """Places in `EDGES` of the next band."""
    return np.minimum(np.searchsorted(EDGES, distance), len(EDGES) - 1)


def parts(n_rows: int, n_queries: int) -> Iterator[tuple[int, int]]:
    """First row and end of each part, of rows whose scores `[Q, n]` are about `SCORES` at most."""
    size = min(8192, max(256, SCORES // max(n_queries, 1)))  # fewer rows make a slow product
    for start in range(0, n_rows, size):
        yield start, min(start + size, n_rows)
