"""Rankings fused: by their ranks, where scores cannot be compared, or by their embeddings, where they can."""

from collections.abc import Mapping, Sequence
from math import fsum

import numpy as np

from search_r3.evaluation.metrics import ranked


def reciprocal_ranks(
    rankings: Sequence[Mapping[str, float]], constant: float, own: str | None = None
) -> dict[str, float]:
    """Reciprocal rank fusion: `sum over rankings of 1 / (k + rank)`.

    The formula is that of Cormack, Clarke and Buettcher (SIGIR 2009). Ranks begin at 1, and a document that a
    ranking lacks gets nothing from it. The paper fuses rankings of 1,000 documents, we those that the
    evaluation keeps.

    Args:
        rankings: scores by document id; equal ones are ranked as everywhere, by id, descending.
        constant: the `k` of the formula, 60 in the paper. The larger, the less the first ranks stand out.
        own: a document that takes no rank, since it is taken out of the ranking later; it gets 0.

    Returns:
        Fused scores by document id.

    >>> reciprocal_ranks([{"a": 2.0, "b": 1.0}, {"b": 9.0}], constant=1)
    {'a': 0.5, 'b': 0.8333333333333333}
    """
    parts: dict[str, list[float]] = {}
    for scores in rankings:
        others = (document for document in ranked(scores) if document != own)
        for rank, document in enumerate(others, start=1):
            parts.setdefault(document, []).append(1.0 / (constant + rank))
    fused = {document: fsum(each) for document, each in parts.items()}
    return fused | ({own: 0.0} if any(own in scores for scores in rankings) else {})


def mean_directions(vectors: np.ndarray, weights: Sequence[float] | None = None) -> np.ndarray:
    """The direction of the sum of a query's embeddings: a document's cosine with it ranks as its mean cosine.

    Args:
        vectors: `[Q, G, D]`, unit norm.
        weights: `G` numbers, of a weighted mean; None for equal ones.

    Returns:
        `[Q, D]` fp32, unit norm.
    """
    sums = np.average(vectors.astype(np.float64), axis=1, weights=weights)
    return (sums / np.linalg.norm(sums, axis=-1, keepdims=True)).astype(np.float32)


def margins(run: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """How far the first document of a ranking is above the second; infinite where there is no second one.

    >>> margins({"q": {"a": 0.25, "b": 0.75}})
    {'q': 0.5}
    """
    found = {}
    for query, scores in run.items():
        best = sorted(scores.values(), reverse=True)[:2]
        found[query] = best[0] - best[1] if len(best) == 2 else float("inf")
    return found
