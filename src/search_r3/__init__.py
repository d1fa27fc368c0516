"""Search-R3: a language model that reasons about a query and emits its embedding."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search_r3.api import SearchR3

__all__ = ["SearchR3"]

# Read once, when torch loads OpenMP: a thread that waits then sleeps. Two spinning threads on a machine on
# which something else runs made a step up to eight times slower. A value that the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> object:
    """What a user imports from here is loaded when it is asked for: a refused command needs no torch."""
    if name == "SearchR3":
        from search_r3.api import SearchR3

        return SearchR3
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
