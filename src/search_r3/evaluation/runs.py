"""What several runs of one experiment say together: seeds, thread counts, processors.

A single run says little about how far the next one comes: rounding alone can decide that. So runs are
resampled as well as queries (the pigeonhole bootstrap of Owen 2007): both of them are a sample of what could
have been, and the interval is that of such means over new runs and new queries of the same kind. Where every
run has queries of its own it is a little too wide, never too narrow.
"""

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search_r3.files import json_sha256

log = logging.getLogger(__name__)

N_RESAMPLES = 5000
"""Samples of runs and of queries, with replacement."""
BASELINE = "bm25"
"""The label by whose scores collections of the same ids are told apart."""
BEST = "reasoning"
"""The mode that the others are compared with."""

Scores = Mapping[Hashable, float]
"""A metric by query; two runs that have a key in common asked the same query."""


@dataclass(frozen=True)
class OverRuns:
    """A mean over runs, each the mean over its queries.

    Attributes:
        mean: of the runs' means.
        lowest: of the runs' means.
        highest: of the runs' means.
        ci95: bootstrapped over runs and queries; with one run, over its queries alone.
        n_runs: how many there are.
    """

    mean: float
    lowest: float
    highest: float
    ci95: tuple[float, float]
    n_runs: int


def over_runs(runs: Sequence[Scores]) -> OverRuns:
    """Mean, range and interval over runs and queries.

    Args:
        runs: of each run a value by query; runs may have asked the same queries, others, or some of both.

    Raises:
        ValueError: If there is no run, or a run has no query.
    """
    if not runs or not all(runs):
        raise ValueError("every run needs at least one query, and there must be a run")
    keys = list(dict.fromkeys(key for run in runs for key in run))
    values = np.array([[run.get(key, np.nan) for key in keys] for run in runs])  # [R, Q]
    asked = ~np.isnan(values)
    values = np.where(asked, values, 0.0)
    means = values.sum(1) / asked.sum(1)
    random = np.random.default_rng(0)
    blocks = _blocks(asked)
    samples = np.empty(N_RESAMPLES)
    for number in range(N_RESAMPLES):
        weights = np.zeros(len(keys))
        for block in blocks:
            weights[block] = random.multinomial(len(block), np.full(len(block), 1 / len(block)))
        by_run = (values @ weights) / np.maximum(asked @ weights, 1)
        samples[number] = by_run[random.integers(0, len(runs), len(runs))].mean()
    low, high = np.quantile(samples, [0.025, 0.975])
    return OverRuns(
        float(means.mean()), float(means.min()), float(means.max()), (float(low), float(high)), len(runs)
    )


def _blocks(asked: np.ndarray) -> list[np.ndarray]:
    """Places of the queries that the same runs have asked; each block is resampled within itself."""
    patterns: dict[bytes, list[int]] = {}
    for place, column in enumerate(asked.T):
        patterns.setdefault(column.tobytes(), []).append(place)
    return [np.array(places) for places in patterns.values()]


def query_keys(scores: Scores, baseline: Scores | None) -> dict[Hashable, tuple]:
    """What tells a query apart from one of another run that has the same id: its collection.

    Two runs have the same collection where ids and, if there is one, the scores of a baseline that learns
    nothing agree. Worlds that are generated from different seeds have the same ids.

    Returns:
        A key by query id.
    """
    ids = sorted(map(str, scores))
    found = None if baseline is None else [round(baseline[key], 9) for key in sorted(baseline, key=str)]
    collection = json_sha256([ids, found])
    return {key: (collection, key) for key in scores}


def rows_over_runs(runs: Sequence[Mapping[tuple[str, str], Scores]]) -> list[dict]:
    """A row for each benchmark and label that all runs have, and its difference to the best one.

    Args:
        runs: of each run, scores by query id, by (benchmark, label); a label is a mode, with the model's name
            in front where a run has several. The last label whose mode is `BEST` is what others are compared
            with.

    Returns:
        Dictionaries with `benchmark, label, mean, lowest, highest, ci95, n_runs`, and where it is not the
        best one `best` and `difference`, the same of the best less this. A row on other queries than the best
        one's, as with another `limit`, has no difference, with a warning.

    Raises:
        ValueError: If the runs have no benchmark and label in common.
    """
    common = [place for place in runs[0] if all(place in run for run in runs)]
    if not common:
        raise ValueError("the runs have no benchmark and mode in common")
    rows = []
    for benchmark, label in common:
        keyed = [_keyed(run, benchmark, label) for run in runs]
        row = {"benchmark": benchmark, "label": label, **vars(over_runs(keyed))}
        others = [other for place, other in common if place == benchmark and other.split(" ")[-1] == BEST]
        if others and others[-1] != label:
            ours = [_keyed(run, benchmark, others[-1]) for run in runs]
            apart = [
                {key: mine[key] - theirs[key] for key in mine if key in theirs}
                for mine, theirs in zip(ours, keyed, strict=True)
            ]
            if all(apart):
                row |= {"best": others[-1], "difference": vars(over_runs(apart))}
            else:
                log.warning(
                    "%s: %s is not compared with %s, which has other queries or documents in run %d",
                    benchmark, others[-1], label, 1 + apart.index({}),
                )  # fmt: skip
        rows.append(row)
    return rows


def _keyed(run: Mapping[tuple[str, str], Scores], benchmark: str, label: str) -> dict[Hashable, float]:
    scores = run[benchmark, label]
    keys = query_keys(scores, run.get((benchmark, BASELINE)))
    return {keys[query]: value for query, value in scores.items()}
