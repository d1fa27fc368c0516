"""Rows that are counted and told in one line."""

import logging
from pathlib import Path

from search_r3.records import shown

_LOG = logging.getLogger(__name__)


class Count:
    """How many rows of a file have some property, and the first of them."""

    def __init__(self) -> None:
        self.n, self.first = 0, ""

    def add(self, name: str, has_it: bool = True) -> None:
        if has_it:
            self.n, self.first = self.n + 1, self.first if self.n else name

    def tell(self, path: Path, total: int, what: str, outcome: str = "they are kept") -> None:
        """One line where there is any such row."""
        if self.n:
            _LOG.warning(
                "%s: %d of %d %s (the first: %s); %s",
                path, self.n, total, what, shown(self.first), outcome,
            )  # fmt: skip
