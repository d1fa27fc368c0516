"""Which of the rows that a rule proposes are encoded: those that are stale, as far as the budget reaches."""

import numpy as np

from search_r3.index.rules.base import Proposal
from search_r3.index.shard import StoreShard


def within_budget(
    proposal: Proposal, shard: StoreShard, step: int, budget: int | None
) -> tuple[np.ndarray, int]:
    """The rows to encode; collective.

    Args:
        proposal: of this rank; rows of other ranks are ignored.
        shard: this rank's rows.
        step: at which a row must have been encoded to be fresh already.
        budget: rows of all ranks together; None has no bound.

    Returns:
        Rows `[n]` of all ranks, ascending, those of the lowest priority where the budget does not reach all;
        and how many it leaves out.
    """
    rows, priority = _unique(proposal)
    is_held = shard.is_held(rows)
    rows, priority = rows[is_held], priority[is_held]
    is_stale = shard.store.encoded_at[rows - shard.first_row] != step
    rows, priority = rows[is_stale], priority[is_stale]
    n_wanted = int(shard.ranks.sum(len(rows)))
    kept = _first(priority, budget)
    rows, priority = shard.ranks.joined(rows[kept]), shard.ranks.joined(priority[kept])
    rows = rows[_first(priority, budget)]
    return rows, n_wanted - len(rows)


def _unique(proposal: Proposal) -> tuple[np.ndarray, np.ndarray]:
    """Different rows, ascending, each with its lowest priority."""
    rows, priority = proposal.rows, np.asarray(proposal.priority)
    if (rows[1:] > rows[:-1]).all():
        return rows, priority
    order = np.lexsort((priority, rows))
    rows, priority = rows[order], priority[order]
    is_first = np.append(True, rows[1:] != rows[:-1])
    return rows[is_first], priority[is_first]


def _first(priority: np.ndarray, n: int | None) -> np.ndarray:
    """Places `[min(n, len)]`, ascending, of the lowest values; of equal ones the first."""
    if n is None or len(priority) <= n:
        return np.arange(len(priority))
    if n == 0:
        return np.empty(0, np.int64)
    limit = np.partition(priority, n - 1)[n - 1]
    below = np.flatnonzero(priority < limit)
    return np.union1d(below, np.flatnonzero(priority == limit)[: n - len(below)])
