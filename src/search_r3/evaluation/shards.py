"""A corpus in shards, each encoded by whoever takes it and written as one file of vectors.

A shard has all that a worker needs besides the model: ids, and texts that stay in the corpus file where that
is large. What a shard's vectors are does not depend on who encodes it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from search_r3.data.jsonl import LazyTexts
from search_r3.data.types import Corpus
from search_r3.evaluation.ranking import CHUNK
from search_r3.index.encoded import ENDING
from search_r3.index.exports import write_parquet
from search_r3.index.rows.cache import checked_rows
from search_r3.models.interface import Embedder


@dataclass(frozen=True)
class Shard:
    """Neighbouring documents of a corpus.

    Attributes:
        start: row of the first one.
        ids: `n` ids.
        texts: `n` texts; of a large corpus they are read from its file, by row.
    """

    start: int
    ids: Sequence[str]
    texts: Sequence[str]

    @property
    def stop(self) -> int:
        """The row behind the last one."""
        return self.start + len(self.ids)

    @property
    def file_name(self) -> str:
        """Of its vectors."""
        return f"rows-{self.start:011d}-{self.stop:011d}{ENDING}"


def shards_of(corpus: Corpus, gaps: Iterable[tuple[int, int]], n_rows: int) -> Iterator[Shard]:
    """The documents of some runs of rows, at most `n_rows` in a shard; made one after the other."""
    for first, end in gaps:
        for start in range(first, end, n_rows):
            rows = start, min(start + n_rows, end)
            texts = corpus.texts
            part = texts.part(*rows) if isinstance(texts, LazyTexts) else texts[slice(*rows)]
            yield Shard(start, corpus.ids[slice(*rows)], part)


def write_shard(
    embedder: Embedder,
    shard: Shard,
    folder: Path,
    facts: Mapping[str, object],
    heard: Callable[[int], None] = lambda n: None,
) -> None:
    """Encodes a shard and writes its file, whole or not at all.

    In memory are the vectors of the shard and the texts of `CHUNK` documents, which are encoded together, as
    for the cache of embeddings.

    Args:
        embedder: the model.
        shard: what is encoded.
        folder: of the files.
        facts: what the vectors are of, into the file; the shard adds its rows.
        heard: is told of each number of documents when they are encoded.

    Raises:
        ValueError: If a vector is not finite.
    """
    parts, n_cut = [], 0
    for first in range(0, len(shard.ids), CHUNK):
        texts = list(shard.texts[first : first + CHUNK])
        row = shard.start + first
        vectors, n_cut_here = embedder.embed_documents_and_count(texts)
        parts.append(checked_rows(vectors, row, row + len(texts)))
        n_cut += n_cut_here
        heard(len(texts))
    its = {**facts, "start": shard.start, "stop": shard.stop, "cut": n_cut}
    write_parquet(folder / shard.file_name, np.concatenate(parts), shard.ids, its)
