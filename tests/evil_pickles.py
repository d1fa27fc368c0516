"""A pickle that leaves a mark in the working directory where anything unpickles it."""

from pathlib import Path

MARK = "ran"


class Evil:
    """Unpickled, it leaves the mark."""

    def __reduce__(self):
        return (Path.touch, (Path(MARK),))
