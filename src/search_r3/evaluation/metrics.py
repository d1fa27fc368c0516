"""Ranking metrics as trec_eval computes them.

Scores are fp32, ties are broken by document id, descending. nDCG has a linear, graded gain and takes its
ideal gain from the judgements; recall and average precision divide by all relevant documents, retrieved or
not. A mean is over all judged queries: one that retrieved nothing counts 0.
"""

import math
from array import array
from collections.abc import Mapping

METRICS = ("ndcg@10", "recall@100", "mrr@10", "map@100")
HEADLINE = "ndcg@10"
"""By which runs are compared, and their queries listed."""
LARGEST_CUTOFF = max(int(name.partition("@")[2]) for name in METRICS)
"""A ranking that is cut earlier has no such metrics."""

Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Document ids from best to worst; scores are compared in fp32, equal ones by id, descending."""
    by_id = sorted(scores, reverse=True)
    rounded = dict(zip(by_id, array("f", (scores[document] for document in by_id)), strict=True))
    return sorted(by_id, key=rounded.__getitem__, reverse=True)  # which keeps the order of equal ones


def query_metrics(scores: Mapping[str, float], grades: Mapping[str, int]) -> dict[str, float]:
    """The four metrics of one query.

    Args:
        scores: retrieved documents.
        grades: judged documents; a grade above 0 is relevant.

    >>> query_metrics({"a": 2.0, "b": 1.0}, {"b": 1})["mrr@10"]
    0.5
    """
    ranking = ranked(scores)
    gains = [max(grades.get(document, 0), 0) for document in ranking]
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
    best = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(ideal[:10]))
    hits = [rank for rank, gain in enumerate(gains[:100], start=1) if gain > 0]
    precisions = [found / rank for found, rank in enumerate(hits, start=1)]
    n_relevant = len(ideal)
    if n_relevant == 0:
        return dict.fromkeys(METRICS, 0.0)
    return {
        "ndcg@10": sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains[:10])) / best,
        "recall@100": len(hits) / n_relevant,
        "mrr@10": 1 / hits[0] if hits and hits[0] <= 10 else 0.0,
        "map@100": sum(precisions) / n_relevant,
    }


def per_query_metrics(run: Run, qrels: Qrels) -> dict[str, dict[str, float]]:
    """Metrics of every judged query, in the order of `qrels`; a query without a ranking gets 0."""
    return {query: query_metrics(run.get(query, {}), grades) for query, grades in qrels.items()}


def mean_metrics(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means of what `per_query_metrics` gave, over all its queries."""
    return {name: sum(row[name] for row in rows.values()) / len(rows) for name in METRICS}
