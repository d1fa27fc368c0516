"""Vectors of a corpus as files that other tools search: FAISS and Parquet.

Rows are read and written in blocks, so that what is larger than memory can be written from its cache.
A file appears under its name once it is whole.
"""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from search_r3.files import sync, write_text

BLOCK_ROWS = 16384
"""Rows that are in memory at once."""

FACTS = "search_r3"
"""Key of a Parquet file's metadata: a JSON object of what the vectors are of."""


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A place to write to that takes the place of `path` on leaving; nothing is left of what failed.

    It is of this process alone: a worker that was given up may still write what another has taken over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{socket.gethostname()[:64]}.{os.getpid()}.part")
    try:
        yield part
        sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _blocks(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """First row and fp32 rows `[n, D]` of each block."""
    for start in range(0, len(rows), BLOCK_ROWS):
        yield start, np.ascontiguousarray(rows[start : start + BLOCK_ROWS], dtype=np.float32)


def write_faiss(path: Path, rows: np.ndarray, ids: Sequence[str], facts: Mapping[str, object]) -> list[str]:
    """An `IndexFlatIP` of the rows, and `<path>.ids.jsonl` with the document id of each, a JSON text a line.

    What FAISS calls an id is the place of a line in that file. The index is written row by row behind the
    header of FAISS, which itself would hold all rows in memory, and is read by FAISS before it gets its name.

    Args:
        path: of the index.
        rows: `[N, D]`, unit norm; a memory map is read in blocks.
        ids: `[N]`.
        facts: what the vectors are of, into `<path>.json`.

    Returns:
        Lines that say what was written.

    Raises:
        RuntimeError: If FAISS reads something else than was written.
    """
    with _whole(path) as part:
        with part.open("wb") as file:
            file.write(_flat_header(*rows.shape))
            for _, block in _blocks(rows):
                file.write(block.tobytes())
        _check_faiss(part, rows)
    names, about = path.with_name(f"{path.name}.ids.jsonl"), path.with_name(f"{path.name}.json")
    with _whole(names) as part, part.open("w", encoding="utf-8") as file:
        for name in ids:
            file.write(json.dumps(name) + "\n")
    write_text(about, json.dumps(dict(facts), indent=2) + "\n")
    n_rows, width = rows.shape
    return [
        f"{path}: IndexFlatIP of {n_rows:,} vectors of {width} numbers; the inner product is the cosine",
        f"{names}: the document of each row, from 0",
        f"{about}: what the vectors are of",
    ]


def _flat_header(n_rows: int, width: int) -> bytes:
    """What FAISS writes before the numbers of an `IndexFlatIP` (faiss/impl/index_write.cpp)."""
    inner_product, is_trained, unused = 0, True, 1 << 20
    return struct.pack(
        "<4siqqq?iQ", b"IxFI", width, n_rows, unused, unused, is_trained, inner_product, n_rows * width
    )


def _check_faiss(path: Path, rows: np.ndarray) -> None:
    """Compares the first and the last row as FAISS reads them; the file stays on the disk meanwhile."""
    import faiss

    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    is_same = (index.ntotal, index.d) == rows.shape and all(
        np.array_equal(index.reconstruct(row), np.asarray(rows[row])) for row in (0, len(rows) - 1)
    )
    if not is_same or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise RuntimeError(f"{path}: this version of FAISS ({faiss.__version__}) reads another index from it")


def write_parquet(path: Path, rows: np.ndarray, ids: Sequence[str], facts: Mapping[str, object]) -> list[str]:
    """A table of `_id` (text) and `vector` (a list of `D` fp32 numbers), a row group per block.

    Its pages carry checksums. Vectors are not compressed: their bits are as good as random.

    Args:
        path: of the file.
        rows: `[N, D]`, unit norm; a memory map is read in blocks.
        ids: `[N]`.
        facts: what the vectors are of, into the file's metadata under `FACTS`.

    Returns:
        Lines that say what was written.
    """
    import pyarrow
    from pyarrow import parquet

    n_rows, width = rows.shape
    kinds = {"_id": pyarrow.string(), "vector": pyarrow.list_(pyarrow.float32(), width)}
    schema = pyarrow.schema(kinds, metadata={FACTS: json.dumps(dict(facts))})
    compression = {"_id": "zstd", "vector.list.element": "none"}
    how = {"compression": compression, "use_dictionary": False, "write_page_checksum": True}
    with _whole(path) as part, parquet.ParquetWriter(part, schema, **how) as writer:
        for start, block in _blocks(rows):
            names = pyarrow.array([str(name) for name in ids[start : start + len(block)]], kinds["_id"])
            vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(block.ravel()), width)
            writer.write_table(pyarrow.table([names, vectors], schema=schema))
    return [
        f"{path}: {n_rows:,} rows of _id and vector, {width} fp32 numbers; the inner product is the cosine"
    ]
