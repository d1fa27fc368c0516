"""Every row is encoded again, every few steps."""

import numpy as np

from search_r3.index.rules.base import Proposal, Rule, View


class Full(Rule):
    """All rows, the oldest first: with a budget, a walk through the corpus."""

    def propose(self, view: View) -> Proposal:
        rows = np.arange(view.first_row, view.first_row + len(view.rows))
        return Proposal(rows, view.encoded_at)
