"""Nothing is encoded again: what the index was built with stays."""

from search_r3.index.rules.base import NOTHING, Proposal, Rule, View


class Frozen(Rule):
    """Nothing beyond the positives: the bound that every rule is compared with."""

    def propose(self, view: View) -> Proposal:
        return NOTHING
