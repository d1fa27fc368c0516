"""Intervals of a mean over queries, by resampling queries (Sakai 2006), and differences of two rankings."""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from search_r3.evaluation.metrics import HEADLINE

log = logging.getLogger(__name__)


def bootstrap_interval(
    values: Sequence[float], n_resamples: int = 5000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of 95 % of the mean.

    Args:
        values: one per query.
        n_resamples: samples of queries with replacement.
        seed: of the resampling.

    Raises:
        ValueError: If there is no value.
    """
    return stratified_interval([values], n_resamples, seed)


def stratified_interval(
    groups: Sequence[Sequence[float]], n_resamples: int = 5000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of 95 % of the mean of the groups' means, each resampled within itself.

    Args:
        groups: of each benchmark a value per query; every benchmark weighs the same.
        n_resamples: samples of queries with replacement.
        seed: of the resampling.

    Raises:
        ValueError: If there is no group, or a group has no value.
    """
    samples = [np.asarray(values, dtype=np.float64) for values in groups]
    if not samples or not all(map(len, samples)):
        raise ValueError("an interval needs at least one query")
    random = np.random.default_rng(seed)
    means = sum(_resampled_means(sample, n_resamples, random) for sample in samples) / len(samples)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _resampled_means(sample: np.ndarray, n_resamples: int, random: np.random.Generator) -> np.ndarray:
    means = np.empty(n_resamples)
    step = max(1, 2_000_000 // len(sample))
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        means[start : start + size] = sample[random.integers(0, len(sample), (size, len(sample)))].mean(1)
    return means


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down method (Holm 1979), in the order given.

    The smallest of `m` is multiplied by `m`, the next by `m - 1` and so on; none may be below one before it,
    and none above 1. Where all those below 0.05 are called differences, the chance that any of them is none
    is at most 0.05, however the tests depend on each other.

    >>> holm([0.5, 0.125, 0.25])
    [0.5, 0.375, 0.5]
    """
    corrected = [0.0] * len(p_values)
    least = 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[number]))
        corrected[number] = least
    return corrected


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
    step = max(1, 1_000_000 // len(differences))
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        signs = random.integers(0, 2, (size, len(differences))) * 2 - 1
        at_least += int((abs((signs * differences).mean(1)) >= observed - 1e-12).sum())
    return (at_least + 1) / (n_resamples + 1)


def paired_differences(
    rows: Sequence[Mapping],
    scores: Sequence[Mapping[str, float] | None],
    is_one_collection: Callable[[Mapping, Mapping], bool] = lambda one, other: True,
) -> list[dict]:
    """The last row of mode `reasoning` of every benchmark, less each other row of that benchmark.

    Args:
        rows: of metrics.json.
        scores: for each row nDCG@10 by query id; None where it is not known, and the row is left out.
        is_one_collection: whether two rows were measured on the same documents and judgements.

    Returns:
        A dictionary per difference: `benchmark, metric, model, mode, less: {model, mode}, difference, ci95`
        (bootstrap over queries) and `p` of the paired randomisation test. A row on other queries, as with
        another `limit`, or on other documents or judgements, is left out with a warning.
    """
    known = [(row, found) for row, found in zip(rows, scores, strict=True) if found is not None]
    last = {row["benchmark"]: (row, found) for row, found in known if row["mode"] == "reasoning"}
    differences = []
    for benchmark, (best, ours) in last.items():
        for row, theirs in known:
            if row["benchmark"] != benchmark or row is best:
                continue
            if ours.keys() != theirs.keys():
                log.warning(
                    "%s: %s is not compared with %s, which has other queries (%d and %d)",
                    benchmark, _place(best), _place(row), len(ours), len(theirs),
                )  # fmt: skip
                continue
            if not is_one_collection(best, row):
                log.warning(
                    "%s: %s is not compared with %s, which has other documents or judgements",
                    benchmark, _place(best), _place(row),
                )  # fmt: skip
                continue
            one, other = ([found[query] for query in sorted(ours)] for found in (ours, theirs))
            apart = np.subtract(one, other)
            differences.append(
                {
                    "benchmark": benchmark,
                    "metric": HEADLINE,
                    "model": best["model"],
                    "mode": best["mode"],
                    "folder": best.get("folder"),
                    "less": {key: row.get(key) for key in ("model", "mode", "folder")},
                    "difference": float(apart.mean()),
                    "ci95": list(bootstrap_interval(apart)),
                    "p": paired_p_value(one, other),
                }
            )
    return differences


def _place(row: Mapping) -> str:
    return row.get("folder") or row["mode"]
