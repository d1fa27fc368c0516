"""The drift of a real run, recorded and replayed: what a refresh rule does on more rows than can be encoded.

`RecordedFull` is the rule `full` that also writes, at every step, the vectors of all documents and what the
rollouts asked. `Recording` reads that back. `Replay` serves it as a larger corpus:

    vector of row i at step t = unit(recorded vector of document source(i) at step t + offset(i))

The first `N0` rows are the recorded documents themselves, without offset, so that every positive is there.
Every other row is a copy of a document drawn with replacement and moved by an isotropic offset that stays the
same over the steps: its drift at each step is that of its document. A document that is relevant to a recorded
query is never copied, since a copy of the answer would be a second answer that counts as wrong.

What this cannot show: the drifts of two copies of one document are equal, so that drift is as diverse as that
of `N0` documents and no more; and queries are those of the smaller corpus, which were rewarded for standing
out among `N0` documents and not among `N`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from search_r3.errors import UsageError
from search_r3.files import write_json
from search_r3.index.rules.base import StepQueries, View
from search_r3.index.rules.full import Full
from search_r3.records import read_json_if_there

OFFSETS = 4096
"""Offsets kept; that of a row is the sum of two of them, so that there are 16 million."""

CHUNK = 1 << 14
"""Rows made at once."""

SAMPLED = 512
"""Documents whose nearest other one is looked for."""


class RecordingError(UsageError, ValueError):
    """A folder that holds no drift that can be replayed; the message names it and what to do."""


class RecordedFull(Full):
    """Encodes every document at every step, and keeps what they were at each of them.

    A file of `N * D * 4` bytes a step and a small one of the queries; a step that is run again replaces both.

    Args:
        folder: to write to.
        group_size: `G`; the queries of a step are `B * G` rollouts, group after group.
    """

    def __init__(self, folder: str | Path, group_size: int) -> None:
        self.folder, self.group_size = Path(folder), group_size

    def finish(self, view: View) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if view.ranks.size > 1:
            raise RecordingError(f"drift is recorded by one process, and there are {view.ranks.size} ranks")
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {"n_rows": len(view.rows), "width": view.rows.shape[1], "group_size": self.group_size}
        write_json(self.folder / "facts.json", facts)
        np.savez(
            _file(self.folder, "queries", view.step, "npz"),
            vectors=view.queries.vectors, positives=view.queries.positives,
        )  # fmt: skip
        np.save(_file(self.folder, "rows", view.step, "npy"), view.rows)
        yield from ()


def _file(folder: Path, what: str, step: int, ending: str) -> Path:
    return folder / f"{what}-{step:06d}.{ending}"


class Recording:
    """What `RecordedFull` wrote.

    Attributes:
        folder: with the files.
        n_rows: `N0`.
        width: `D`.
        group_size: `G`.
        steps: recorded, ascending, without a gap.

    Args:
        folder: as above.

    Raises:
        RecordingError: If there is no recording, it has one step only, or a step is missing or not whole.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        facts = read_json_if_there(self.folder / "facts.json")
        remedy = "`python -m src.benchmarks.refresh` records one under the rule full"
        if not {"n_rows", "width", "group_size"} <= facts.keys():
            raise RecordingError(f"{self.folder}: there is no recorded drift; {remedy}")
        self.n_rows, self.width, self.group_size = (facts[name] for name in ("n_rows", "width", "group_size"))
        self.steps = sorted(int(path.stem.rpartition("-")[2]) for path in self.folder.glob("rows-*.npy"))
        if len(self.steps) < 2 or self.steps != list(range(self.steps[0], self.steps[-1] + 1)):
            raise RecordingError(f"{self.folder}: steps {self.steps} are recorded, with gaps; {remedy}")
        for step in self.steps:
            if self.rows(step).shape != (self.n_rows, self.width) or not self._queries_file(step).is_file():
                raise RecordingError(f"{self.folder}: step {step} is not whole; {remedy}")

    def rows(self, step: int) -> np.ndarray:
        """`[N0, D]` fp32, all documents as the model of a step encodes them; a memory map."""
        return np.load(_file(self.folder, "rows", step, "npy"), mmap_mode="r")

    def queries(self, step: int) -> StepQueries:
        """The rollouts of a step, `B * G` of them."""
        with np.load(self._queries_file(step)) as arrays:
            return StepQueries(arrays["vectors"], arrays["positives"])

    def _queries_file(self, step: int) -> Path:
        return _file(self.folder, "queries", step, "npz")

    @cached_property
    def positives(self) -> np.ndarray:
        """Rows of all documents that are relevant to a recorded query, ascending."""
        found = np.unique(np.concatenate([self.queries(step).positives.ravel() for step in self.steps]))
        return found[found >= 0]

    def neighbour_distance(self) -> float:
        """Median distance of a document to the nearest other one, over `SAMPLED`, at the first step."""
        rows = self.rows(self.steps[0])
        chosen = np.random.default_rng(0).permutation(self.n_rows)[:SAMPLED]
        best = np.full(len(chosen), -np.inf)
        for start in range(0, self.n_rows, CHUNK):
            scores = rows[chosen] @ np.asarray(rows[start : start + CHUNK]).T
            own = (chosen >= start) & (chosen < start + CHUNK)
            scores[np.flatnonzero(own), chosen[own] - start] = -np.inf
            best = np.maximum(best, scores.max(1))
        return float(np.median(np.sqrt(np.maximum(2 - 2 * best, 0))))


@dataclass(frozen=True)
class Replay:
    """A recording as a corpus of `n_documents` rows, see the head of this file.

    Attributes:
        recording: whose drift it has.
        n_documents: `N`, at least `N0`.
        offset: length of the offset of a copied row, relative to the unit length of its document.
        seed: of sources and offsets.

    Raises:
        RecordingError: If `n_documents` is below `N0`, or every document is relevant to a query.
    """

    recording: Recording
    n_documents: int
    offset: float
    seed: int = 0

    def __post_init__(self) -> None:
        recording = self.recording
        if self.n_documents < recording.n_rows:
            raise RecordingError(
                f"{recording.folder}: {recording.n_rows} documents are recorded; n_documents must be at "
                f"least as many, got {self.n_documents}"
            )
        if len(recording.positives) == recording.n_rows:
            raise RecordingError(f"{recording.folder}: every document is relevant, none is left to be copied")

    @cached_property
    def sources(self) -> np.ndarray:
        """`[N]` int32, the recorded document of every row."""
        rng = np.random.default_rng((self.seed, 0))
        copied = np.setdiff1d(np.arange(self.recording.n_rows), self.recording.positives)
        drawn = copied[rng.integers(len(copied), size=self.n_documents - self.recording.n_rows)]
        return np.concatenate([np.arange(self.recording.n_rows), drawn]).astype(np.int32)

    @cached_property
    def _pool(self) -> np.ndarray:
        """`[OFFSETS, D]` fp32; the sum of two has a length of about `offset`."""
        width = self.recording.width
        drawn = np.random.default_rng((self.seed, 1)).standard_normal((OFFSETS, width), dtype=np.float32)
        return drawn * np.float32(self.offset / np.sqrt(2 * width))

    @cached_property
    def _offsets(self) -> np.ndarray:
        """`[2, N]` int16, the two parts of every row's offset."""
        rng = np.random.default_rng((self.seed, 2))
        return rng.integers(OFFSETS, size=(2, self.n_documents), dtype=np.int16)

    def vectors(self, step: int, rows: np.ndarray) -> np.ndarray:
        """`[n, D]` fp32, unit norm, rows `[n]` as the model of a step would encode them."""
        recorded = self.recording.rows(step)
        result = np.array(recorded[self.sources[rows]])
        is_copy = rows >= self.recording.n_rows
        first, second = self._offsets[:, rows[is_copy]]
        result[is_copy] += self._pool[first] + self._pool[second]
        result[is_copy] /= np.linalg.norm(result[is_copy], axis=1, keepdims=True)
        return result

    def write(self, file: Path, step: int) -> np.ndarray:
        """All rows at a step, written to a file; `[N, D]` fp32, a read-only memory map."""
        shape = (self.n_documents, self.recording.width)
        written = np.lib.format.open_memmap(file, "w+", np.float32, shape)
        for start in range(0, self.n_documents, CHUNK):
            rows = np.arange(start, min(start + CHUNK, self.n_documents))
            written[rows[0] : rows[-1] + 1] = self.vectors(step, rows)
        written.flush()
        del written
        return np.load(file, mmap_mode="r")
