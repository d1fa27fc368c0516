"""Two rankings of the same queries, compared query by query: is B better than A, by how much, and where.

A difference is always B less A. Its p-value is that of a paired randomisation test, its interval a bootstrap
over queries; p-values are corrected for the number of benchmarks and modes that are compared (Holm).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from search_r3.evaluation.metrics import HEADLINE
from search_r3.evaluation.significance import holm, paired_p_value, stratified_interval

SHOWN = 10
"""Queries that are listed of those that gained, and of those that lost."""
EQUAL = 1e-9
"""Scores of a query that are no further apart are equal: they are sums of the same terms."""


@dataclass(frozen=True)
class Side:
    """A ranking of one benchmark: a row of an evaluation, or a run.

    Attributes:
        benchmark: its name.
        label: the mode, or what else tells rankings of the benchmark apart.
        scores: value by query id, by metric.
        facts: of where it comes from, as `model` and `folder`.
        queries: text by query id, where known.
        reasonings: what was written, by query id, where it was.
    """

    benchmark: str
    label: str
    scores: Mapping[str, Mapping[str, float]]
    facts: Mapping[str, str | None] = field(default_factory=dict)
    queries: Mapping[str, str] = field(default_factory=dict)
    reasonings: Mapping[str, str] = field(default_factory=dict)


Pair = tuple[Side, Side]


def compared(pairs: Sequence[Pair], n_resamples: int = 5000, seed: int = 0) -> dict:
    """What `src.compare` tells of pairs of rankings.

    Args:
        pairs: A and B of a benchmark each.
        n_resamples: of each test and interval.
        seed: of each.

    Returns:
        `rows`, one per pair: `benchmark, a, b, n_queries, metrics, gained, lost`; and `overall`, one for each
        two labels: `a, b, benchmarks, n_queries, metrics`, every benchmark weighing the same. A value of
        `metrics` has the means `a` and `b`, their `difference` (B less A), `ci95`, `p`, `p_holm`, and the
        number of queries that B `wins`, `ties` and `losses`. `p_holm` is over the rows, or over the overall
        ones, of that metric.

    Raises:
        ValueError: If the two of a pair have different queries, or no metric in common.
    """
    rows, labels = [], {}
    for first, second in pairs:
        _check(first, second)
        labels.setdefault((first.label, second.label), []).append((first, second))
        rows.append(
            {
                "benchmark": first.benchmark,
                "a": {"label": first.label, **first.facts},
                "b": {"label": second.label, **second.facts},
                **_measured([(first, second)], n_resamples, seed),
                **_moved(first, second),
            }
        )
    overall = [
        {
            "a": {"label": one},
            "b": {"label": other},
            "benchmarks": [first.benchmark for first, _ in its],
            **_measured(its, n_resamples, seed),
        }
        for (one, other), its in labels.items()
    ]
    return {"rows": _corrected(rows), "overall": _corrected(overall)}


def _check(first: Side, second: Side) -> None:
    if not _metrics(first, second):
        raise ValueError(f"{first.benchmark}: {first.label} and {second.label} have no metric in common")
    for metric in _metrics(first, second):
        one, other = first.scores[metric].keys(), second.scores[metric].keys()
        if one != other:
            example = min(one ^ other)
            raise ValueError(
                f"{first.benchmark}: A ({first.label}) has {len(one)} queries and B ({second.label}) "
                f"{len(other)}, and query {example!r} is in one of them only; evaluate both on the "
                "same queries"
            )


def _metrics(first: Side, second: Side) -> list[str]:
    return [metric for metric in first.scores if metric in second.scores]


def _measured(pairs: Sequence[Pair], n_resamples: int, seed: int) -> dict:
    """Number of queries, and metrics that all pairs have; the mean of the pairs' means."""
    names = [name for name in _metrics(*pairs[0]) if all(name in _metrics(*pair) for pair in pairs)]
    n_queries = sum(len(first.scores[names[0]]) for first, _ in pairs)
    return {
        "n_queries": n_queries,
        "metrics": {name: _difference(pairs, name, n_resamples, seed) for name in names},
    }


def _difference(pairs: Sequence[Pair], metric: str, n_resamples: int, seed: int) -> dict:
    a, b, weights = [], [], []
    n_queries = sum(len(first.scores[metric]) for first, _ in pairs)
    for first, second in pairs:
        names = sorted(first.scores[metric])
        a.append(np.array([first.scores[metric][name] for name in names]))
        b.append(np.array([second.scores[metric][name] for name in names]))
        # Their mean is 1, so that the mean over all queries is the mean of the benchmarks' means.
        weights.append(np.full(len(names), n_queries / (len(pairs) * len(names))))
    weight = np.concatenate(weights)
    apart = [after - before for before, after in zip(a, b, strict=True)]
    every = np.concatenate(apart)
    return {
        "a": float(np.mean([values.mean() for values in a])),
        "b": float(np.mean([values.mean() for values in b])),
        "difference": float(np.mean([values.mean() for values in apart])),
        "ci95": list(stratified_interval(apart, n_resamples=n_resamples, seed=seed)),
        "p": paired_p_value(weight * np.concatenate(b), weight * np.concatenate(a), n_resamples, seed),
        "wins": int((every > EQUAL).sum()),
        "ties": int((abs(every) <= EQUAL).sum()),
        "losses": int((every < -EQUAL).sum()),
    }


def _corrected(rows: Sequence[dict]) -> list[dict]:
    """The rows with `p_holm` in each metric."""
    found: dict[str, dict[int, float]] = {}
    for number, row in enumerate(rows):
        for name, values in row["metrics"].items():
            found.setdefault(name, {})[number] = values["p"]
    for name, its in found.items():
        found[name] = dict(zip(its, holm(list(its.values())), strict=True))
    return [
        {
            **row,
            "metrics": {
                name: {**values, "p_holm": found[name][number]} for name, values in row["metrics"].items()
            },
        }
        for number, row in enumerate(rows)
    ]


def _moved(first: Side, second: Side) -> dict[str, list[dict]]:
    """The queries that gained and that lost most in the headline metric, at most `SHOWN` of each."""
    metric = HEADLINE if HEADLINE in _metrics(first, second) else _metrics(first, second)[0]
    a, b = first.scores[metric], second.scores[metric]
    by_gain = sorted(a, key=lambda name: (a[name] - b[name], name))
    by_loss = sorted(a, key=lambda name: (b[name] - a[name], name))
    texts = {**second.queries, **first.queries}

    def told(name: str) -> dict:
        return {
            "query_id": name,
            "query": texts.get(name),
            "a": a[name],
            "b": b[name],
            "reasoning_a": first.reasonings.get(name),
            "reasoning_b": second.reasonings.get(name),
        }

    return {
        "gained": [told(name) for name in by_gain[:SHOWN] if b[name] - a[name] > EQUAL],
        "lost": [told(name) for name in by_loss[:SHOWN] if a[name] - b[name] > EQUAL],
    }
