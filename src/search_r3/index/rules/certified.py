"""The rule `certified`: a stated share of the rollouts gets the reward of a freshly encoded corpus.

The reward of a rollout reads the rank of its positives, which are fresh, and the best wrong score. A stale
document changes the rank only if drift has carried its score across the positive's. Most of a score's drift
is common to the corpus and can be foreseen (`forecast`). So a document is encoded if it is served
on one side of the positive's score and expected on the other, or expected within a band around it; and if it
is expected within the band below the best wrong score. Where so many documents are above whatever the drift
that the positive is beyond the reward's cut-off, none is encoded.

How wide is the band? That is calibrated (split conformal prediction). At an audit every rollout gets a
number: the smallest band from which on the reward's inputs are those of the fresh corpus, once everything in
the band of any rollout of the step is encoded: what one asks for serves all. The band used is the quantile of
these numbers over a window, or over its latest quarter where that is larger, since drift may speed up; at a
level a little above the stated one (`aimed_at`). Drift is not exchangeable, so two things follow it. The
numbers are in units of the distance of the background's rows from where they were expected when they were
encoded at that step, which is known before the band is chosen and goes with the speed of drift. And the
quantile is stretched after every audit in which more was missed than stated, and shrunk otherwise: `log
stretch` moves by `rate * (missed - aimed at)`, the quantile tracking of arXiv:2307.16895 on a log scale.
Moving the level instead (arXiv:2106.00170) would ask for an infinite band, and for many re-encodings of
everything, after one bad audit. The rule is ours.

The stated probability is marginal over rollouts, not for each one. It holds for the band: what a budget cuts
off is not covered. So the ledger shows the coverage that was observed, of the rewards' inputs as served, over
the audits of a calibrated rule: before, every row is encoded, and that all of it is covered says nothing.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from search_r3.index.backends.flat import TIE
from search_r3.index.rows.saved import load_saved, save_whole
from search_r3.index.rules.base import NOTHING, Audit, Moved, Proposal, Rule, View
from search_r3.index.rules.forecast import CommonDrift, Forecast
from search_r3.index.rules.needed_bands import (
    finite_columns,
    nearest_decisions,
    needed_bands,
    parts,
    positive_limits,
)

RESERVE = 0.25
"""Standard errors of the observed share that are kept in hand."""

_FACTS = {"rule": "certified"}


class Certified(Rule):
    """Encodes the rows near enough to a decision, see above.

    Until there are enough audited rollouts for the level, the band is infinite and every row is encoded; the
    steps are audited then, which costs nothing more.

    Args:
        miscoverage: share of rollouts that may get another reward than from a fresh corpus.
        window: audited rollouts that the quantile is taken over, the latest.
        rate: of the stretch; 0 turns it off. At 1, an audit that misses a fifth widens the band by 21 %.
        cut_off: rank beyond which the reward is 0, or None for none; in a run the reward tells it.
        reads_best_wrong: whether the reward reads the best wrong score; in a run the reward tells it.
        is_scaled: whether bands follow the spread of the background's drift; without it they are cosines.

    `cut_off` and `reads_best_wrong` are no keys of conf/refresh/certified.yaml: `reward_reads` replaces them.
    The config of an older run has them, and it goes on unless they say that less is read than is.

    Raises:
        ValueError: If a number is out of range.
    """

    wants_audits = True

    def __init__(
        self,
        miscoverage: float = 0.01,
        window: int = 2000,
        rate: float = 1.0,
        cut_off: int | None = None,
        reads_best_wrong: bool = True,
        is_scaled: bool = True,
    ) -> None:
        if not 0 < miscoverage < 1 or rate < 0 or (cut_off is not None and cut_off < 1):
            raise ValueError(
                "miscoverage must be within 0 and 1, rate not negative and cut_off at least 1 or null, "
                f"got {miscoverage}, {rate}, {cut_off}"
            )
        if window < quantile_needs(miscoverage):
            raise ValueError(
                f"window must be at least {quantile_needs(miscoverage)} rollouts for a miscoverage of "
                f"{miscoverage}, got {window}"
            )
        self.miscoverage, self.window, self.rate = miscoverage, window, rate
        self.cut_off, self.reads_best_wrong, self.is_scaled = cut_off, reads_best_wrong, is_scaled
        self._given = cut_off, reads_best_wrong
        self._log_stretch = 0.0
        self._numbers: list[float] = []
        self._together = 1.0
        self._n_audited = self._n_exact = 0
        self._band, self._band_step = math.inf, -1
        self._drift = CommonDrift()

    def reward_reads(self, best_wrong: bool, cut_off: int | None) -> None:
        """Takes over what the reward depends on.

        Raises:
            ValueError: If the rule was made for a reward that reads less.
        """
        given_cut_off, given_best_wrong = self._given
        if best_wrong and not given_best_wrong:
            raise ValueError(
                "refresh.rule.reads_best_wrong is false, and the reward reads the best wrong score: leave "
                "the key out, the rule asks the reward"
            )
        if given_cut_off is not None and (cut_off is None or cut_off > given_cut_off):
            what = "all ranks" if cut_off is None else f"ranks to {cut_off}"
            raise ValueError(
                f"refresh.rule.cut_off is {given_cut_off}, and the reward reads {what}: leave the key out, "
                "the rule asks the reward"
            )
        self.reads_best_wrong, self.cut_off = best_wrong, cut_off

    @property
    def is_calibrated(self) -> bool:
        """Whether there are enough audited rollouts for a finite band."""
        return len(self._numbers) >= quantile_needs(self.miscoverage)

    def follow(self, moved: Moved) -> None:
        self._drift.follow(moved)

    def propose(self, view: View) -> Proposal:
        quantile = math.inf
        if self.is_calibrated:  # no less than the latest audits ask for: drift may speed up
            latest = max(len(self._numbers) // 4, quantile_needs(self.miscoverage))
            quantile = max(self._quantile(self._numbers), self._quantile(self._numbers[-latest:]))
        self._band = quantile * math.exp(self._log_stretch) * self._unit
        self._band_step = view.step
        self._drift.forget_before(-int(view.ranks.max(-view.encoded_at.min())))
        if len(view.queries.vectors) == 0:
            return NOTHING
        band = self._band + TIE  # the scores come from another product than those of the environment
        limits = positive_limits(view)
        forecast = self._drift.forecast(view.queries)
        n_above, best_wrong = self._overview(view, forecast, limits, band)
        is_open = np.isfinite(limits)
        if self.cut_off is not None:
            is_open &= n_above < self.cut_off
        return self._within(view, forecast, np.where(is_open, limits, np.inf), best_wrong, band)

    def learn(self, audit: Audit) -> dict[str, float]:
        """What was needed at an audit.

        Returns:
            `stated_coverage`, `stretch`; and where the rule was calibrated before this audit, `band_coverage`
            of this one, and over all such audits `observed_coverage`, its Wilson interval
            `observed_coverage_low, observed_coverage_high`, and `rollouts_audited`.
        """
        forecast = self._drift.forecast(audit.view.queries)
        numbers, is_exact = needed_bands(audit, forecast, self.cut_off, self.reads_best_wrong)
        if len(numbers) == 0:
            return {}
        band = self._band if self._band_step == audit.view.step else 0.0  # the rule may not have been asked
        missed = float((numbers > band).mean())
        had_band = self.is_calibrated  # before this audit: its band was not the infinite one
        self._numbers = [*self._numbers, *(numbers / self._unit).tolist()][-self.window :]
        self._together = len(numbers) / len(np.unique(audit.view.queries.positives, axis=0))
        if self._band_step == audit.view.step:
            self._log_stretch += self.rate * (missed - self._aim)
        record = {"stated_coverage": 1 - self.miscoverage, "stretch": math.exp(self._log_stretch)}
        if not had_band:
            return record
        self._n_audited += len(numbers)
        self._n_exact += int(is_exact.sum())
        low, high = wilson_interval(self._n_exact, self._n_audited)
        return record | {
            "band_coverage": 1 - missed,
            "observed_coverage": self._n_exact / self._n_audited,
            "observed_coverage_low": low,
            "observed_coverage_high": high,
            "rollouts_audited": float(self._n_audited),
        }

    def record(self) -> dict[str, float]:
        return {"band": self._band}

    def state_dict(self) -> dict:
        return {
            "numbers": self._numbers,
            "log_stretch": self._log_stretch,
            "together": self._together,
            "n_audited": self._n_audited,
            "n_exact": self._n_exact,
        }

    def load_state_dict(self, state: Mapping) -> None:
        self._numbers, self._log_stretch = list(state["numbers"]), state["log_stretch"]
        self._n_audited, self._n_exact = state["n_audited"], state["n_exact"]
        self._together = state.get("together", 1.0)  # a run of before did not count them

    def save(self, folder: Path) -> None:
        save_whole(folder, self._drift.arrays(), _FACTS)

    def load(self, folder: Path, view: View) -> None:
        self._drift.load(load_saved(folder, _FACTS))

    def _quantile(self, numbers: list[float]) -> float:
        """Where the aim asks for more numbers than there are, the largest will do."""
        return min(conformal_quantile(numbers, self._aim), max(numbers))

    @property
    def _aim(self) -> float:
        """The miscoverage aimed at."""
        return aimed_at(self.miscoverage, len(self._numbers) / self._together)

    @property
    def _unit(self) -> float:
        if not self.is_scaled or self._drift.spread is None:
            return 1.0
        return max(self._drift.spread, 1e-6)

    def _overview(
        self, view: View, forecast: Forecast, limits: np.ndarray, band: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Wrong documents that stand above each limit `[Q, P]` whatever the drift, and the best wrong score
        `[Q]` as expected."""
        n_above = np.zeros(limits.shape, np.int64)
        best = np.full(len(limits), -np.inf, np.float32)
        columns = finite_columns(limits)
        for _, served, expected in _scores(view, forecast):
            best = np.maximum(best, expected.max(1))
            lowest = np.minimum(served, expected - band)
            for column, asked in columns:
                n_above[asked, column] += (lowest[asked] >= limits[asked, column, None]).sum(1)
        return view.ranks.sum(n_above), view.ranks.max(best)

    def _within(
        self, view: View, forecast: Forecast, limits: np.ndarray, best_wrong: np.ndarray, band: float
    ) -> Proposal:
        """Rows in the band of a limit `[Q, P]`, or of its query's best wrong score; the nearest first."""
        rows, priorities = [], []
        is_read = np.isfinite(limits).any(1) & self.reads_best_wrong
        watched = np.where(is_read, best_wrong, np.inf)
        for first, served, expected in _scores(view, forecast):
            nearest = nearest_decisions(served, expected, limits, watched)
            found = np.flatnonzero(nearest <= band)
            rows.append(first + found)
            priorities.append(nearest[found])
        return Proposal(
            np.concatenate([NOTHING.rows, *rows]), np.concatenate([NOTHING.priority, *priorities])
        )


def conformal_quantile(numbers: list[float], miscoverage: float) -> float:
    """The `ceil((n + 1) (1 - miscoverage))`-th smallest; infinite where there are not that many.

    >>> conformal_quantile([3.0, 1.0, 2.0], 0.25), conformal_quantile([3.0, 1.0, 2.0], 0.2)
    (3.0, inf)
    """
    place = math.ceil((len(numbers) + 1) * (1 - miscoverage) - 1e-9)
    return float(np.partition(numbers, place - 1)[place - 1]) if place <= len(numbers) else math.inf


def aimed_at(miscoverage: float, n_queries: float) -> float:
    """The miscoverage that the band aims at, a little below the stated one.

    Tracking holds a share on average, and what is observed over some queries, whose rollouts are right and
    wrong together, differs from it by a standard error. `RESERVE` of one is kept in hand, at most half.

    >>> aimed_at(0.1, 100)  # sqrt(0.1 * 0.9 / 100) = 0.03
    0.0925
    """
    error = math.sqrt(miscoverage * (1 - miscoverage) / n_queries)
    return round(max(miscoverage - RESERVE * error, miscoverage / 2), 5)


def quantile_needs(miscoverage: float) -> int:
    """How many numbers a finite quantile needs.

    >>> quantile_needs(0.25), quantile_needs(0.01)
    (3, 99)
    """
    return math.ceil(1 / miscoverage - 1e-9) - 1


def wilson_interval(n_hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, as of independent rollouts, which those of a group are not."""
    z = 1.96
    share, spread = n_hits / n, z**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _scores(view: View, forecast: Forecast) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The corpus row of the first of some rows of this rank, their scores `[Q, n]` as served and expected."""
    for start, stop in parts(len(view.rows), len(view.queries.vectors)):
        first = view.first_row + start
        yield first, *forecast.scores(view.rows[start:stop], first, view.encoded_at[start:stop])
