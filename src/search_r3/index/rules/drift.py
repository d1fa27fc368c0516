"""A linear map, fitted on the rows just encoded, moves the rows that were not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from search_r3.index.rules.base import CHUNK, Proposal, Rule, View


class Drift(Rule):
    """Moves the stale rows by a linear map that is fitted on the rows just encoded.

    A random sample is encoded at every step, and `W = argmin |X W - Y|^2 + ridge * n * |W - I|^2` takes the
    vectors as served to the fresh ones; then every row that was not encoded at this step becomes `x W`, with
    its norm and its age kept. All of them are moved at every such step, so that rows of different ages have
    drifted alike since. The map of one half of the sample is tried on the other, both ways: that chooses the
    ridge, and rows are moved only where it brings them nearer. The cost is a product `[N, D] x [D, D]`, and
    every row is written.

    Args:
        n_sampled: random documents encoded at a step, besides positives and background.
        ridges: pulls towards leaving the rows as they are, per row of the sample, to choose from.
        seed: of the sample.

    Raises:
        ValueError: If a number is out of range.
    """

    is_observing = True

    def __init__(
        self, n_sampled: int = 256, ridges: Sequence[float] = (1e-3, 1e-2, 1e-1), seed: int = 0
    ) -> None:
        if n_sampled < 2 or not ridges or not min(ridges) > 0:
            raise ValueError(f"n_sampled must be at least 2 and ridges above 0, got {n_sampled}, {ridges}")
        self.n_sampled, self.ridges, self.seed = n_sampled, tuple(ridges), seed
        self._halves: list[_Moments | None] = [None, None]
        self._step = -1  # of the pairs in them
        self._gain = 0.0

    def propose(self, view: View) -> Proposal:
        random = np.random.default_rng((self.seed, view.step))
        n = min(self.n_sampled, view.n_documents)
        rows = random.choice(view.n_documents, n, replace=False, shuffle=False)
        return Proposal(rows, np.zeros(n))

    def observe(self, step: int, rows: np.ndarray, old: np.ndarray, new: np.ndarray) -> None:
        if step != self._step:  # pairs of a step at which the rule was not due had drifted for less long
            self._halves, self._step = [None, None], step
        is_known = (old != 0).any(1)  # a row never encoded has not drifted
        old, new = old[is_known].astype(np.float64), new[is_known].astype(np.float64)
        for half in (0, 1):
            chosen = rows[is_known] % 2 == half
            if chosen.any():
                more = _Moments.of(old[chosen], new[chosen])
                self._halves[half] = more if self._halves[half] is None else self._halves[half] + more

    def finish(self, view: View) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        halves, self._halves = self._halves, [None, None]
        self._gain = 0.0
        if halves[0] is None or halves[1] is None:
            return
        before = sum(half.error(np.eye(view.rows.shape[1])) for half in halves)
        after, ridge = min(
            (sum(one.error(other.fitted(ridge)) for one, other in (halves, halves[::-1])), ridge)
            for ridge in self.ridges
        )
        if not after < before:
            return
        self._gain = 1 - after / before
        mapping = (halves[0] + halves[1]).fitted(ridge).astype(np.float32)
        for start in range(0, len(view.rows), CHUNK):
            places = start + np.flatnonzero(view.encoded_at[start : start + CHUNK] != view.step)
            vectors = view.rows[places]
            moved = vectors @ mapping
            norms = np.linalg.norm(moved, axis=1, keepdims=True)
            scale = np.linalg.norm(vectors, axis=1, keepdims=True) / np.where(norms > 0, norms, 1)
            yield places, moved * scale

    def record(self) -> dict[str, float]:
        """Share of the squared distance to the fresh vectors that the map removes on rows not fitted."""
        return {"map_gain": self._gain}


@dataclass(frozen=True)
class _Moments:
    """Sums over pairs of an old and a new vector: `X'X` and `X'Y` `[D, D]`, `|Y|^2`, and how many."""

    xx: np.ndarray
    xy: np.ndarray
    yy: float
    n: int

    @classmethod
    def of(cls, old: np.ndarray, new: np.ndarray) -> "_Moments":
        """Of old and new vectors `[n, D]`, row by row."""
        return cls(old.T @ old, old.T @ new, float((new**2).sum()), len(old))

    def __add__(self, other: "_Moments") -> "_Moments":
        return _Moments(self.xx + other.xx, self.xy + other.xy, self.yy + other.yy, self.n + other.n)

    def fitted(self, ridge: float) -> np.ndarray:
        """The map `W` `[D, D]` of least `|X W - Y|^2`, drawn to the identity by `ridge` per pair."""
        pull = ridge * self.n * np.eye(len(self.xx))
        return np.linalg.solve(self.xx + pull, self.xy + pull)

    def error(self, mapping: np.ndarray) -> float:
        """`|X W - Y|^2`."""
        return float(((self.xx @ mapping) * mapping).sum() - 2 * (self.xy * mapping).sum() + self.yy)
