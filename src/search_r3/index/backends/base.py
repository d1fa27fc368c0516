"""What every backend of the index offers, and the exact one over a run's live rows.

A backend only supplies candidates: it reads the store's rows, which have been written before it is told
which of them changed, so that it cannot disagree with them for longer than one call. Scores are inner
products in float64 of the rows as stored, rounded to fp32, ties in row order, however many rows tie; two
backends that find the same documents give the same result bit for bit. A result does not depend on the order
of past updates, but for what the approximate backends say of themselves.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from search_r3.index.backends.flat import FlatIndex, exact_scores
from search_r3.index.rows.cache import StoreError
from search_r3.records import clipped, read_json


class Index(Protocol):
    """Search over `[N, D]` rows that somebody else owns and changes.

    A backend is made from those rows, and from a folder that it saved itself to, where there is one:
    `Backend(embeddings, saved=folder, ...)`.
    """

    embeddings: np.ndarray

    def __len__(self) -> int:
        """`N`."""
        ...

    def search(self, queries: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores `[Q, K]` fp32 and rows `[Q, K]` int64, `K = min(k, N)`, best first, ties in row order.

        The scores are those of `flat.exact_scores`, so that those of several shards can be merged.
        """
        ...

    def update(self, rows: ArrayLike) -> None:
        """Takes notice that rows `[n]` of `embeddings` have changed; a row may be named again."""
        ...

    def save(self, folder: str | Path) -> None:
        """Writes what cannot be made again from the rows, whole or not at all."""
        ...


MakeIndex = Callable[..., Index]
"""`(embeddings, saved=None)` to an index: what a file in conf/index configures."""


class InPlaceIndex(FlatIndex):
    """Exact search over live rows: there is nothing to update, and nothing to save.

    Args:
        embeddings: `[N, D]` fp32, such as the memory map of a live store.
        saved: taken like every backend does, and not needed.
    """

    def __init__(self, embeddings: np.ndarray, saved: str | Path | None = None) -> None:
        super().__init__(embeddings)

    def update(self, rows: ArrayLike) -> None:
        """Checks the row numbers.

        Raises:
            ValueError: If a row is unknown.
        """
        changed_rows(rows, len(self))

    def save(self, folder: str | Path) -> None:
        """Writes nothing."""


def changed_rows(rows: ArrayLike, n_rows: int) -> np.ndarray:
    """The different ones of `rows`, ascending, `[n]` int64.

    Raises:
        ValueError: If one is not within 0 and `n_rows - 1`, or they are not integers.
    """
    result = np.asarray(rows)
    if result.ndim != 1 or (result.size and result.dtype.kind not in "iu"):
        raise ValueError(f"rows must be [n] integers, got {result.dtype} {result.shape}")
    result = np.unique(result.astype(np.int64))
    if len(result) and not 0 <= result[0] <= result[-1] < n_rows:
        raise ValueError(f"rows must be within 0 and {n_rows - 1}, got {result[0]} to {result[-1]}")
    return result


def best_candidates(
    embeddings: np.ndarray, queries: np.ndarray, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best of each query's candidates, scored by the rows as they are.

    Args:
        embeddings: `[N, D]` fp32.
        queries: `[Q, D]` fp32.
        candidates: `[Q, C]` different rows with `C >= k`.
        k: to keep.

    Returns:
        Scores `[Q, k]` fp32 and rows `[Q, k]` int64, best first, ties in row order.
    """
    scores = exact_scores(embeddings, queries, candidates)
    order = np.lexsort((candidates, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(candidates, order, 1)


@contextlib.contextmanager
def saved_whole(folder: str | Path, facts: Mapping[str, object]) -> Iterator[Path]:
    """Gives an empty folder to write to; on leaving, facts are added and it takes the place of `folder`."""
    folder = Path(folder)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    (part / "facts.json").write_text(json.dumps(dict(facts)), encoding="utf-8")
    _replace_folder(part, folder)


def save_whole(folder: str | Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, object]) -> None:
    """Writes arrays and facts as one folder, which is replaced whole."""
    with saved_whole(folder, facts) as part:
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array, allow_pickle=False)


def _replace_folder(part: Path, folder: Path) -> None:
    """Moves a finished folder to its place; an earlier one is dropped.

    A folder cannot be replaced in one move. A kill between the two leaves none under the name, and
    `load_saved` puts the earlier one back, which was set aside.
    """
    aside = _set_aside(folder)
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
    os.replace(part, folder)
    shutil.rmtree(aside, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def load_saved(folder: str | Path, facts: Mapping[str, object]) -> dict[str, np.ndarray]:
    """Arrays of a saved folder by name.

    Raises:
        StoreError: If the folder is missing or unreadable, or was saved with other facts.
    """
    folder = Path(folder)
    if not folder.exists() and _set_aside(folder).exists():  # see _replace_folder
        os.replace(_set_aside(folder), folder)
    try:
        found = read_json(folder / "facts.json")
        arrays = {file.stem: np.load(file, allow_pickle=False) for file in folder.glob("*.npy")}
    except Exception as error:  # numpy reads a header as Python, whose errors are of many kinds
        said = clipped(error) or type(error).__name__
        raise StoreError(f"{folder}: no saved index can be read there ({said})") from error
    differing = sorted(name for name in facts if found.get(name) != facts[name])
    if differing:
        said = ", ".join(f"{name} {found.get(name)!r} instead of {facts[name]!r}" for name in differing)
        raise StoreError(f"{folder}: the index was saved with {said}; keep the setting, or build it anew")
    return arrays
