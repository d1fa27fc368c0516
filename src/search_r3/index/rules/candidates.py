"""What was retrieved, and the positives, are encoded again."""

import numpy as np

from search_r3.index.rules.base import Proposal, Rule, View


class Candidates(Rule):
    """The documents that the queries retrieve, the first of each list first (Atlas, arXiv:2208.03299).

    Args:
        k: documents per query.

    Raises:
        ValueError: If `k` is not positive.
    """

    def __init__(self, k: int = 100) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.n_candidates = k

    def propose(self, view: View) -> Proposal:
        found = view.queries.candidates[:, : self.n_candidates]
        return Proposal(found.ravel(), np.broadcast_to(np.arange(found.shape[1]), found.shape).ravel())
