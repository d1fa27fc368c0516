"""Intervals of a mean over queries, by resampling queries (Sakai 2006)."""

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, n_resamples: int = 5000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: one per query.
        level: of confidence.
        n_resamples: samples of queries with replacement.
        seed: of the resampling.

    Raises:
        ValueError: If there is no value.
    """
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 0:
        raise ValueError("an interval needs at least one query")
    random = np.random.default_rng(seed)
    means = np.empty(n_resamples)
    step = max(1, 2_000_000 // len(sample))
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        means[start : start + size] = sample[random.integers(0, len(sample), (size, len(sample)))].mean(1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_p_value(
    first: Sequence[float], second: Sequence[float], n_resamples: int = 5000, seed: int = 0
) -> float:
    """Two-sided p-value of the mean difference under random sign flips of the per-query differences.

    Raises:
        ValueError: If the two do not have one value per query each.
    """
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(f"two equally long lists are needed, got {len(first)} and {len(second)} values")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    random = np.random.default_rng(seed)
    observed = abs(differences.mean())
    at_least = 0
    for _ in range(n_resamples):
        signs = random.integers(0, 2, len(differences)) * 2 - 1
        at_least += abs((signs * differences).mean()) >= observed - 1e-12
    return (at_least + 1) / (n_resamples + 1)
