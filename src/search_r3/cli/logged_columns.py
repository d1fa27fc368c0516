"""The columns of a run's metrics.csv, read in one pass and thinned, so that a long run costs no more memory.

A run writes this file while it goes on, so its last line may be cut: where it has no end, its last field is
left out. Any other line that is not as the heading says is damage, and is named.
"""

import csv
from array import array
from collections.abc import Callable, Container, Iterator
from pathlib import Path

import numpy as np

from search_r3.data.jsonl import DataError, decode_line, open_lines, raw_lines
from search_r3.records import RecordError, shown

MOST_POINTS = 1000
"""Points of a thinned column; a column of fewer is whole."""
_BLOCK = 1 << 14
"""Values that are kept before they are thinned."""
REMEDY = "put back the file that the run wrote, or move it away"


class Column:
    """The finite values of a column, in their order.

    More than `MOST_POINTS` are thinned: of equally many steps the smallest value and the largest stay, so
    that a peak is never lost, and so do the first and the last.

    Args:
        is_whole: whether all values are kept for `by_step`; `points` are thinned all the same.

    Attributes:
        n: values in the file, all of them counted.
        n_not_finite: NaN and infinities, which are in none of the others.
    """

    def __init__(self, is_whole: bool = False) -> None:
        self.n = self.n_not_finite = 0
        self.is_whole = is_whole
        self._steps, self._values = array("q"), array("d")

    def add(self, step: int, value: float) -> None:
        """Adds the value of a later line."""
        self.n += 1
        self._steps.append(step)
        self._values.append(value)
        if len(self._values) >= _BLOCK and not self.is_whole:
            self._keep(*self._thinned())

    def _keep(self, steps: np.ndarray, values: np.ndarray) -> None:
        self._steps, self._values = array("q", steps.tolist()), array("d", values.tolist())

    def _thinned(self) -> tuple[np.ndarray, np.ndarray]:
        steps, values = self._finite()
        if len(values) > MOST_POINTS:
            kept = _extremes(steps, values, MOST_POINTS // 2 - 1)
            return steps[kept], values[kept]
        return steps, values

    def _finite(self) -> tuple[np.ndarray, np.ndarray]:
        steps, values = np.array(self._steps), np.array(self._values)
        is_finite = np.isfinite(values)
        if not is_finite.all():
            self.n_not_finite += int(len(values) - is_finite.sum())
            steps, values = steps[is_finite], values[is_finite]
            self._keep(steps, values)
        return steps, values

    @property
    def points(self) -> list[tuple[int, float]]:
        """Steps and values, at most `MOST_POINTS`."""
        steps, values = self._thinned()
        return list(zip(steps.tolist(), values.tolist(), strict=True))

    @property
    def by_step(self) -> dict[int, float]:
        """The value of each step, of those that were kept."""
        steps, values = self._finite()
        return dict(zip(steps.tolist(), values.tolist(), strict=True))


def _extremes(steps: np.ndarray, values: np.ndarray, n_buckets: int) -> np.ndarray:
    """Places of the first and last value, and of the lowest and highest of each bucket of equal width."""
    span = max(int(steps.max() - steps.min()), 1)
    bucket = np.minimum((steps - steps.min()) * n_buckets // span, n_buckets - 1)
    order = np.lexsort((values, bucket))  # by value within each bucket
    edges = np.flatnonzero(np.diff(bucket[order]))
    lowest, highest = order[np.append(0, edges + 1)], order[np.append(edges, len(order) - 1)]
    return np.unique(np.concatenate(([0, len(values) - 1], lowest, highest)))


def read_columns(
    file: Path, is_wanted: Callable[[str], bool] = lambda name: True, whole: Container[str] = ()
) -> dict[str, Column]:
    """The columns of a metrics.csv by name, in the order of the file; empty where there is no file.

    Args:
        file: with a heading that has `step`.
        is_wanted: whether a column is read; `step` and `epoch` never are.
        whole: columns of which every value is kept.

    Returns:
        Those with at least one value, finite or not.

    Raises:
        RecordError: With the line, if the file is damaged.
    """
    if not file.is_file():
        return {}
    lines = _rows(file)
    heading, _ = next(lines, ([], True))
    if not heading:
        return {}
    if "step" not in heading:
        raise RecordError(file, "line 1: the heading has no column step", REMEDY)
    at = heading.index("step")
    found = {
        name: Column(name in whole) for name in heading if name not in ("step", "epoch") and is_wanted(name)
    }
    columns = [(place, found[name].add) for place, name in enumerate(heading) if name in found]
    for number, (cells, is_whole) in enumerate(lines, start=2):
        if is_whole and len(cells) != len(heading):
            rule = f"line {number}: has {len(cells)} fields, the heading has {len(heading)}"
            raise RecordError(file, rule, REMEDY)
        if len(cells) <= at:
            continue  # cut before its step
        step = _step(cells[at], file, number)
        place, text = 0, ""
        try:
            for place, add in columns:
                if place < len(cells) and (text := cells[place]):
                    add(step, float(text))
        except ValueError:
            raise _no_number(text, "a number", file, number, heading[place]) from None
    return {name: column for name, column in found.items() if column.n}


def _rows(file: Path) -> Iterator[tuple[list[str], bool]]:
    """Fields of each line, and whether it is whole; of one without an end, its last field is left out."""
    try:
        with open_lines(file) as stream:
            for number, raw in raw_lines(stream, file):
                is_whole = raw.endswith(b"\n")
                text = decode_line(raw, file, number)
                cells = next(csv.reader([text]), [])
                yield (cells, True) if is_whole or number == 1 else (cells[:-1], False)
    except DataError as error:
        raise RecordError(file, error.problem, REMEDY) from None
    except csv.Error as error:
        raise RecordError(file, f"line {number}: is no CSV ({error})", REMEDY) from None


def _step(text: str, file: Path, line: int) -> int:
    try:
        return int(text)
    except ValueError:
        raise _no_number(text, "a whole number", file, line, "step") from None


def _no_number(text: str, what: str, file: Path, line: int, name: str) -> RecordError:
    return RecordError(file, f"line {line}: {shown(name)} must be {what}, got {shown(text)}", REMEDY)
