"""What a step asks of the index on all ranks: checked, with candidates where the rule reads them."""

from collections.abc import Callable

import numpy as np

from search_r3.index.rows.checks import checked_queries
from search_r3.index.rules.base import StepQueries
from search_r3.index.shard import StoreShard
from search_r3.index.top_k import without_excluded

Search = Callable[[np.ndarray, int, np.ndarray | None], tuple[np.ndarray, np.ndarray]]
"""`LiveIndex.search`."""


def asked_by_all(own: StepQueries, shard: StoreShard, n_candidates: int, search: Search) -> StepQueries:
    """The queries of all ranks; collective.

    Args:
        own: of this rank.
        shard: this rank's rows.
        n_candidates: documents per query that the rule wants retrieved; with 0 none are handed on.
        search: finds them where `own` does not give them.

    Returns:
        None of the candidates is one that its query excludes.

    Raises:
        ValueError: If a positive, a candidate or what is excluded is no row of the corpus, or a query is not
            finite or of another width.
    """
    vectors = checked_queries(own.vectors, shard.store.width, 1)
    for name in ("positives", "candidates", "excluded"):
        value = getattr(own, name)
        if value is not None and value.size and not -1 <= value.min() <= value.max() < shard.n_documents:
            raise ValueError(
                f"{name} must be rows of a corpus of {shard.n_documents} documents, got {value.min()} to "
                f"{value.max()}"
            )
    candidates = own.candidates
    if n_candidates == 0:
        candidates = np.empty((len(vectors), 0), np.int64)
    elif candidates is None:
        candidates = search(vectors, n_candidates, own.excluded)[1]
    else:
        width = candidates.shape[1]
        candidates = without_excluded(np.zeros(candidates.shape), candidates, own.excluded, width)[1]
    return StepQueries(vectors, own.positives, candidates, own.excluded).joined(shard.ranks)
