"""Which rows are encoded anew at a step: the rules, and the settings that all of them share.

A rule sees plain arrays and knows no model. It proposes rows with a priority; `LiveIndex` leaves out those
already encoded at this step, cuts to the budget, has them encoded and written. Whatever the rule, the rows of
the current positives are fresh, and `background` rows of a seeded order are encoded at every step: that
bounds the age of every row, and how far they move says how stale the oldest rows are.

A new rule is a class with `propose`, here or anywhere, and a file in conf/refresh.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from search_r3.distributed import Ranks

CHUNK = 1 << 14
"""Rows that a rule looks at, or moves, at once."""


@dataclass(frozen=True)
class StepQueries:
    """What a step asks of the index; `Q` is queries times rollouts. Rows are rows of the corpus.

    Attributes:
        vectors: `[Q, D]` fp32, unit norm.
        positives: `[Q, P]` int64, -1 where a query has fewer than `P`.
        candidates: `[Q, K]` int64, the documents retrieved, best first; None lets `LiveIndex` search, if the
            rule reads them. Given on all ranks or on none. A rule sees those that a query is ranked against,
            and -1 behind them where there are fewer.
        excluded: `[Q, E]` int64, documents that a query is not ranked against, -1 where it has fewer; None
            for none. Given on all ranks or on none.

    They may be given as anything that NumPy reads, such as a tensor on the CPU.

    Raises:
        ValueError: If shapes or types do not fit.
    """

    vectors: np.ndarray
    positives: np.ndarray
    candidates: np.ndarray | None = None
    excluded: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("vectors", "positives", "candidates", "excluded"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name)))
        if self.vectors.ndim != 2:
            raise ValueError(f"vectors must be [Q, D], got {self.vectors.shape}")
        for name in ("positives", "candidates", "excluded"):
            value = getattr(self, name)
            if value is None:
                continue
            if value.ndim != 2 or len(value) != len(self.vectors) or value.dtype.kind not in "iu":
                raise ValueError(
                    f"{name} must be [{len(self.vectors)}, ...] integers, got {value.dtype} {value.shape}"
                )

    def joined(self, ranks: Ranks) -> Self:
        """Those of all ranks, where candidates are given; collective.

        Rows are as wide as the widest, -1 where there were fewer columns.
        """
        rows = (self.positives, self.candidates, self.excluded)
        wide = [None if each is None else ranks.joined(_widened(each, ranks)) for each in rows]
        return type(self)(ranks.joined(self.vectors), *wide)

    @property
    def not_wrong(self) -> np.ndarray:
        """`[Q, P + E]` rows that are no wrong documents of the query."""
        return self.positives if self.excluded is None else np.concatenate([self.positives, self.excluded], 1)


def _widened(rows: np.ndarray, ranks: Ranks) -> np.ndarray:
    width = int(ranks.max(rows.shape[1]))
    result = np.full((len(rows), width), -1, np.int64)
    result[:, : rows.shape[1]] = rows
    return result


@dataclass(frozen=True)
class View:
    """What a rule may read, after the positives and the background were encoded.

    Attributes:
        step: the current one.
        rows: `[n, D]` this rank's rows as served.
        encoded_at: `[n]` the step each was encoded at.
        first_row: the corpus row of the first of them.
        n_documents: `N`.
        queries: of all ranks.
        search: the best documents in the whole corpus of this rank's vectors `[q, D]`; collective.
        ranks: who holds what.
    """

    step: int
    rows: np.ndarray
    encoded_at: np.ndarray
    first_row: int
    n_documents: int
    queries: StepQueries
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
    ranks: Ranks

    def is_held(self, rows: np.ndarray) -> np.ndarray:
        """`[n]` bool, True where this rank holds the corpus row."""
        return (rows >= self.first_row) & (rows < self.first_row + len(self.rows))

    def held(self, rows: np.ndarray) -> np.ndarray:
        """Places in `self.rows` of those of some corpus rows that this rank holds, in their order."""
        return rows[self.is_held(rows)] - self.first_row


@dataclass(frozen=True)
class Moved:
    """Those of the background's rows that this rank holds, and what encoding them at a step has done.

    Attributes:
        step: the current one.
        encoded_at: `[n]` the step each had been encoded at before.
        old: `[n, D]` before.
        new: `[n, D]` now.
        ranks: who holds the others.
    """

    step: int
    encoded_at: np.ndarray
    old: np.ndarray
    new: np.ndarray
    ranks: Ranks


@dataclass(frozen=True)
class Proposal:
    """Rows that a rule wants encoded; a row may be named twice, and one that another rank holds is ignored.

    Attributes:
        rows: `[n]` int64, rows of the corpus.
        priority: `[n]`; the lowest are encoded where the budget does not reach.
    """

    rows: np.ndarray
    priority: np.ndarray


NOTHING = Proposal(np.empty(0, np.int64), np.empty(0))


class Rule:
    """What `LiveIndex` calls: at every step `follow`, and `observe` with every chunk of encoded rows;
    `propose` and `finish` at those when the rule is due.

    Attributes:
        n_candidates: documents that it wants retrieved for every query.
        is_observing: whether old and new vectors are to be handed to `observe`.
        is_calibrated: False where an audit is needed before the rule can do better than encode everything.
        wants_audits: whether `learn` is to be called at an audit.
    """

    n_candidates: int = 0
    is_observing: bool = False
    is_calibrated: bool = True
    wants_audits: bool = False

    def reward_reads(self, best_wrong: bool, cut_off: int | None) -> None:
        """What the reward depends on, said before the first step; a rule that is not told assumes everything.

        Args:
            best_wrong: whether on the best wrong score.
            cut_off: rank beyond which a positive earns 0 whatever its rank and margin are; None for none.
        """

    def start(self, view: View) -> None:
        """Called once, when the rows of a new run are there."""

    def follow(self, moved: Moved) -> None:
        """The background was encoded: a random sample of how far the corpus has drifted; collective."""

    def propose(self, view: View) -> Proposal:
        """Rows to encode."""
        raise NotImplementedError

    def observe(self, step: int, rows: np.ndarray, old: np.ndarray, new: np.ndarray) -> None:
        """Rows `[n]` of all ranks that were just encoded, and their vectors `[n, D]` before and after."""

    def finish(self, view: View) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """After the last row was encoded: places in `view.rows` and vectors to serve there, not encoded."""
        yield from ()

    def learn(self, audit: "Audit") -> dict[str, float]:
        """What an audit says; entries for the ledger."""
        return {}

    def record(self) -> dict[str, float]:
        """Entries for the ledger's line of the step."""
        return {}

    def state_dict(self) -> dict:
        """What a later step depends on, as JSON."""
        return {}

    def load_state_dict(self, state: Mapping) -> None:
        """Takes over what `state_dict` gave."""

    def save(self, folder: Path) -> None:
        """Writes what is too large for `state_dict`, whole or not at all."""

    def load(self, folder: Path, view: View) -> None:
        """Takes over what `save` wrote."""


@dataclass(frozen=True)
class Audit:
    """A comparison of the rows as served with all rows encoded anew; see `LiveIndex.audit`.

    Attributes:
        view: of the step.
        chunks: of this rank's rows, one part after the other.
    """

    view: View
    chunks: Callable[[], Iterator["AuditedRows"]]


@dataclass(frozen=True)
class AuditedRows:
    """A part of a rank's rows at an audit.

    Attributes:
        start: place of the first in `View.rows`.
        before: `[n, D]` before this step's refresh, but for the positives.
        encoded_at: `[n]` the step that those were encoded at.
        fresh: `[n, D]` encoded anew.
        is_new: `[n]` bool, True where the row was encoded at this step.
    """

    start: int
    before: np.ndarray
    encoded_at: np.ndarray
    fresh: np.ndarray
    is_new: np.ndarray


@dataclass(frozen=True)
class Refresh:
    """A rule, and how much of it: what a file in conf/refresh configures.

    Attributes:
        rule: proposes rows.
        budget: documents encoded per step; None has no bound. A mapping from steps to budgets holds each
            from its step on, such as `{0: 400, 100: 50}`; before the first of them there is no bound. The
            positives and the background come first and are never cut.
        every_n_steps: the rule is asked at multiples of it; positives and background are encoded at all
            steps.
        background: share of the corpus encoded at every step whatever the rule. No row becomes older than
            `1 / background` steps; 0 has no bound.
        audit_every_n_steps: how often the rewards are compared with those of a full re-encode; 0 for never.
        seed: of the background's order.

    Raises:
        ValueError: If a number is out of range.
    """

    rule: Rule
    budget: int | Mapping[int, int | None] | None = None
    every_n_steps: int = 1
    background: float = 0.0
    audit_every_n_steps: int = 0
    seed: int = 0
    _orders: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.every_n_steps < 1 or self.audit_every_n_steps < 0:
            raise ValueError(
                "every_n_steps must be at least 1 and audit_every_n_steps not negative, "
                f"got {self.every_n_steps} and {self.audit_every_n_steps}"
            )
        if not 0 <= self.background <= 1:
            raise ValueError(f"background is a share of the corpus, 0 to 1, got {self.background}")
        for step, budget in self._budgets.items():
            if step < 0 or (budget is not None and (budget < 0 or budget != int(budget))):
                raise ValueError(
                    "budget is a number of documents, null, or {step: number or null} with steps from 0, "
                    f"got {self.budget}"
                )
        if self.rule.wants_audits and not self.audit_every_n_steps:
            raise ValueError("this rule learns from audits: audit_every_n_steps must be at least 1, got 0")

    @cached_property
    def _budgets(self) -> dict[int, int | None]:
        if isinstance(self.budget, Mapping):
            steps = [step for step in self.budget if not str(step).isdecimal()]
            if steps:
                raise ValueError(f"budget has {steps[0]!r} for a step; write it as {{0: 400, 100: 50}}")
            return {int(step): budget for step, budget in self.budget.items()}
        return {0: self.budget}

    def budget_at(self, step: int) -> int | None:
        """Documents that may be encoded at a step; None has no bound."""
        begun = [start for start in self._budgets if start <= step]
        return self._budgets[max(begun)] if begun else None

    def is_due(self, step: int) -> bool:
        """Whether the rule is asked."""
        return step % self.every_n_steps == 0

    def is_audit_step(self, step: int) -> bool:
        """Whether the step is audited: by schedule, and until a rule that needs audits is calibrated.

        At step 0 the model is the one the rows are from, and there is nothing to learn.
        """
        if not self.audit_every_n_steps or step == 0:
            return False
        return step % self.audit_every_n_steps == 0 or not self.rule.is_calibrated

    def background_rows(self, step: int, n_documents: int) -> np.ndarray:
        """The next rows of an order that is drawn once and gone through again and again, `[n]` int64."""
        n = math.ceil(self.background * n_documents)
        if n == 0:
            return np.empty(0, np.int64)
        if n_documents not in self._orders:
            self._orders[n_documents] = np.random.default_rng(self.seed).permutation(n_documents)
        return self._orders[n_documents][(step * n + np.arange(n)) % n_documents]
