"""Vectors of a corpus in Parquet files that `src.encode` or `src.export` wrote, read in row order.

    <folder>/rows-00000000000-00000004096.parquet    `_id` and `vector` of rows 0 to 4,095, and facts
    <folder>/rows-00000004096-00000008192.parquet    the next ones

Each file says what it is of: weights, prompts, dtype, corpus, and which rows. One file of `src.export` is all
rows. A file is read only where all of that is what is asked for, and its pages match their checksums.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_r3.errors import UsageError
from search_r3.index.exports import BLOCK_ROWS, FACTS
from search_r3.index.rows.cache import DIFFERENCES, Block, checked_rows
from search_r3.records import clipped, shown

ENDING = ".parquet"
REMEDY = "remove it, and give the command that wrote it again"


class EncodedError(UsageError):
    """Vectors in files that cannot be used; the message names the file or folder and what to do."""


@dataclass(frozen=True)
class EncodedFile:
    """One file of vectors.

    Attributes:
        path: of it.
        start: its first row in the corpus.
        stop: the row behind its last one.
        width: `D`.
        facts: what the vectors are of.
    """

    path: Path
    start: int
    stop: int
    width: int
    facts: Mapping[str, object]

    @property
    def cut(self) -> int | None:
        """How many of its texts the model read a part of; None where the file does not say."""
        count = self.facts.get("cut")
        return count if isinstance(count, int) else None

    def blocks(self, ids: Sequence[str], start: int) -> Iterator[Block]:
        """Its rows from row `start` of the corpus on.

        Args:
            ids: of the whole corpus, which those of the file are compared with.
            start: in `[self.start, self.stop)`.

        Raises:
            EncodedError: If the file is damaged, or holds other ids.
        """
        from pyarrow import ArrowException, parquet

        row = self.start
        try:
            with parquet.ParquetFile(self.path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(BLOCK_ROWS, columns=["_id", "vector"]):
                    n_before = max(start - row, 0)
                    row += len(batch)
                    if row <= start:
                        continue
                    names = batch.column("_id").slice(n_before).to_pylist()
                    first = row - len(names)
                    self._check_ids(names, ids, first)
                    flat = batch.column("vector").slice(n_before).flatten()
                    vectors = flat.to_numpy(zero_copy_only=False).reshape(len(names), self.width)
                    n_cut = self.cut if first == self.start or self.cut is None else 0
                    yield checked_rows(vectors, first, row), n_cut
        except (ArrowException, OSError, ValueError) as error:
            raise EncodedError(f"{self.path}: damaged ({clipped(error)}); {REMEDY}") from error

    def _check_ids(self, names: Sequence[str], ids: Sequence[str], first: int) -> None:
        for place, name in enumerate(names, first):
            if name != ids[place]:
                raise EncodedError(
                    f"{self.path}: row {place - self.start} is of document {shown(name)}, and the corpus has "
                    f"{shown(ids[place])} there; encode again into another folder"
                )


def encoded_file(path: Path) -> EncodedFile:
    """What a file of vectors says of itself; none of its vectors is read.

    Raises:
        EncodedError: If it is none, or damaged.
    """
    from pyarrow import ArrowException, parquet

    try:
        schema, n_rows = parquet.read_schema(path), parquet.read_metadata(path).num_rows
    except (ArrowException, OSError) as error:
        raise EncodedError(f"{path}: no whole Parquet file ({clipped(error)}); {REMEDY}") from error
    try:
        facts = json.loads((schema.metadata or {})[FACTS.encode()])
        start = facts.get("start", 0)
        width = schema.field("vector").type.list_size
        is_ours = start >= 0 and schema.field("_id") is not None and "corpus" in facts
    except (ValueError, KeyError, AttributeError, TypeError):
        is_ours = False
    if not is_ours:
        raise EncodedError(f"{path}: holds no vectors that src.encode or src.export wrote; name theirs")
    return EncodedFile(path, start, start + n_rows, width, facts)


def files_of(place: Path, key: Mapping[str, str]) -> list[EncodedFile]:
    """The files at a place in row order, all of them of a key.

    Args:
        place: a folder of such files, or one of them.
        key: what the vectors must depend on, the corpus included.

    Raises:
        EncodedError: If one is damaged, or of another key, or two hold the same rows.
    """
    paths = sorted(place.glob(f"*{ENDING}")) if place.is_dir() else [place]
    found = sorted((encoded_file(path) for path in paths), key=lambda file: file.start)
    for file in found:
        _check_key(file, place, key)
    for one, other in itertools.pairwise(found):
        if other.start < one.stop:
            raise EncodedError(f"{other.path}: holds rows that {one.path} has too; remove one of them")
    return found


def _check_key(file: EncodedFile, place: Path, key: Mapping[str, str]) -> None:
    said = {name: file.facts.get(name) for name in key}
    strange = {name: file.facts[name] for name in ("config", "read_state") if name in file.facts}
    differing = [name for name in {**key, **strange} if key.get(name) != (said | strange).get(name)]
    if not differing:
        return
    why = " and ".join(
        f"{DIFFERENCES.get(name, f'another {name}')} ({_short(file.facts.get(name))} there, "
        f"{_short(key.get(name))} asked for)"
        for name in differing
    )
    raise EncodedError(f"{place}: its vectors were made with {why}; name another folder, or encode again")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 16 else text[:8]


def gaps(files: Sequence[EncodedFile], n_rows: int) -> list[tuple[int, int]]:
    """First row and end of each run of rows that no file holds.

    >>> gaps([], 3)
    [(0, 3)]
    """
    edges = [0, *(edge for file in files for edge in (file.start, file.stop)), n_rows]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def whole(place: Path, key: Mapping[str, str], ids: Sequence[str]) -> list[EncodedFile]:
    """The files at a place, which hold every row of a corpus.

    Raises:
        EncodedError: As `files_of`; if there are none, rows are missing, or widths differ.
    """
    files, n_rows = files_of(place, key), len(ids)
    if not files:
        raise EncodedError(f"{place}: there are no vectors in it; src.encode with output={place} makes them")
    if missing := gaps(files, n_rows):
        n_missing = sum(stop - start for start, stop in missing)
        raise EncodedError(
            f"{place}: {n_missing:,} of {n_rows:,} rows are not encoded yet, from row {missing[0][0]} on; "
            "the command that began it goes on"
        )
    if files[-1].stop != n_rows or len({file.width for file in files}) > 1:
        raise EncodedError(
            f"{files[-1].path}: does not fit the other files; encode again into another folder"
        )
    return files


def blocks_from(files: Sequence[EncodedFile], ids: Sequence[str], start: int) -> Iterator[Block]:
    """The rows from row `start` on, a block at a time."""
    for file in files:
        if file.stop > start:
            yield from file.blocks(ids, max(start, file.start))
