"""What a refresh cost, how old the rows are, and whether staleness changed the rewards.

Pure functions over arrays. The first two describe a step; `agreement` is for an audit, in which the same
rollouts are rewarded on the served rows and on freshly encoded ones.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

SAME_REWARD = 1e-6
"""Rewards and advantages closer than this are equal: the two come from different matrix products."""


@dataclass(frozen=True)
class Refreshed:
    """What one refresh did.

    Attributes:
        rows: `[n]` int64, encoded at this step.
        drift: `[n]` fp32, 1 - cosine of old and new vector; NaN where a row was encoded for the first time.
        n_moved: rows that got another vector without being encoded.
        seconds: of the whole refresh, up to the last row in the index.
        n_cut: rows that the rule asked for and the budget left out.
    """

    rows: np.ndarray
    drift: np.ndarray
    n_moved: int
    seconds: float
    n_cut: int


def drift(old: ArrayLike, new: ArrayLike) -> np.ndarray:
    """1 - cosine of rows `[n, D]`, `[n]` fp32; NaN where an old row is zero, since it was never encoded."""
    old, new = np.asarray(old, dtype=np.float64), np.asarray(new, dtype=np.float64)
    norms = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (1 - (old * new).sum(1) / norms).astype(np.float32)


def step_record(counts: np.ndarray, refreshed: Refreshed) -> dict[str, float]:
    """The ledger's line of a step, after its refresh.

    Args:
        counts: documents by age, as `age_counts` gives them.
        refreshed: what the refresh did.

    Returns:
        `documents_encoded, share_of_corpus, documents_moved, documents_over_budget, seconds`, in steps
        `age_mean, age_p99, age_largest`, and `drift_mean, drift_p99, drift_largest`, which are left out where
        no row was encoded again.
    """
    record = {
        "documents_encoded": float(len(refreshed.rows)),
        "share_of_corpus": len(refreshed.rows) / int(counts.sum()),
        "documents_moved": float(refreshed.n_moved),
        "documents_over_budget": float(refreshed.n_cut),
        "seconds": refreshed.seconds,
    } | age_record(counts)
    known = refreshed.drift[~np.isnan(refreshed.drift)]
    if len(known):
        record |= {
            "drift_mean": float(known.mean()),
            "drift_p99": float(np.quantile(known, 0.99)),
            "drift_largest": float(known.max()),
        }
    return record


def age_counts(encoded_at: np.ndarray, step: int) -> np.ndarray:
    """Documents by age in steps, `[largest age + 1]` int64; those of several shards can be added.

    Raises:
        ValueError: If a row was encoded after `step`.
    """
    if len(encoded_at) and encoded_at.max() > step:
        raise ValueError(f"a row was encoded at step {encoded_at.max()}, which is after step {step}")
    return np.bincount(step - encoded_at)


def total_counts(parts: list[np.ndarray]) -> np.ndarray:
    """The sum of the counts of several ranks, which may end at different ages."""
    total = np.zeros(max(map(len, parts)), np.int64)
    for part in parts:
        total[: len(part)] += part
    return total


def age_record(counts: np.ndarray) -> dict[str, float]:
    """Mean, 99th percentile (the smallest age that 99 % of the rows do not exceed) and largest age, in steps.

    Counts per age instead of sorting, since ages are few and rows are many.

    Args:
        counts: documents by age.
    """
    total, ages = int(counts.sum()), np.arange(len(counts))
    return {
        "age_mean": float((counts * ages).sum() / total),
        "age_p99": float(np.searchsorted(np.cumsum(counts), 0.99 * total)),
        "age_largest": float(np.flatnonzero(counts)[-1]),
    }


def agreement(served: ArrayLike, fresh: ArrayLike, tolerance: float = SAME_REWARD) -> dict[str, float]:
    """How well rewards on the served rows agree with those on freshly encoded rows.

    Args:
        served: rewards `[B, G]`.
        fresh: rewards `[B, G]` of the same rollouts.
        tolerance: two rewards, and an advantage and zero, are equal within it.

    Returns:
        `identical_rewards`, share of rollouts; `mean_abs_difference`; `mean_difference`, served less fresh,
        above 0 where stale rivals flatter fresh positives; `kendall_tau`, tau-b within groups,
        averaged over the `groups_compared` in which both have spread, and left out where there is none;
        `advantage_sign_agreement`, share of rollouts whose advantage (the reward less the group's mean) is on
        the same side of zero, zero being a side of its own.

    Raises:
        ValueError: If shapes differ, a group has fewer than two rollouts, or a reward is not finite.
    """
    served, fresh = np.asarray(served, dtype=np.float64), np.asarray(fresh, dtype=np.float64)
    if served.shape != fresh.shape or served.ndim != 2 or served.shape[1] < 2 or not len(served):
        raise ValueError(f"rewards must be [B, G] with G > 1 twice, got {served.shape} and {fresh.shape}")
    if not (np.isfinite(served).all() and np.isfinite(fresh).all()):
        raise ValueError("rewards must be finite")
    difference = served - fresh
    tau = kendall_tau(served, fresh, tolerance)
    is_compared = ~np.isnan(tau)
    record = {
        "identical_rewards": float((np.abs(difference) <= tolerance).mean()),
        "mean_abs_difference": float(np.abs(difference).mean()),
        "mean_difference": float(difference.mean()),
        "groups_compared": float(is_compared.sum()),
        "advantage_sign_agreement": float((_side(served, tolerance) == _side(fresh, tolerance)).mean()),
    }
    return record | ({"kendall_tau": float(tau[is_compared].mean())} if is_compared.any() else {})


def kendall_tau(one: ArrayLike, other: ArrayLike, tolerance: float = 0.0) -> np.ndarray:
    """Kendall's tau-b (Kendall 1945) of each row.

    Args:
        one: `[B, G]`.
        other: `[B, G]`.
        tolerance: values closer than this are tied.

    Returns:
        `[B]` float64; NaN where all of either row are tied.
    """
    first, second = _order(one, tolerance), _order(other, tolerance)  # [B, G, G]
    with np.errstate(invalid="ignore"):
        scale = np.sqrt((first**2).sum((1, 2)) * (second**2).sum((1, 2)))
        return (first * second).sum((1, 2)) / scale


def _order(values: ArrayLike, tolerance: float) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return _sign(values[:, :, None] - values[:, None, :], tolerance)


def _side(rewards: np.ndarray, tolerance: float) -> np.ndarray:
    return _sign(rewards - rewards.mean(1, keepdims=True), tolerance)


def _sign(values: np.ndarray, tolerance: float) -> np.ndarray:
    return np.where(np.abs(values) <= tolerance, 0.0, np.sign(values))
