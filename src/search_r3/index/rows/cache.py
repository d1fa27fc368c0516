"""Embeddings of a corpus under one model, encoded once and kept on disk.

    <root>/<hash of the key>/key.json     what the rows depend on, and their number and width
    <root>/<hash of the key>/rows.npy     `[N, D]` fp32, preallocated
    <root>/<hash of the key>/done.jsonl   a line per finished chunk: first row, end, SHA-256, texts cut
    <root>/<hash of the key>/cut.json     texts cut, counted later where the lines do not say
    <root>/<hash of the key>/lock         held while rows are written; who comes second waits

The key names weights, tokenizer, prompts and corpus. Space is taken before the first chunk is written, and a
chunk's bytes are on disk before its line is, so an interrupted encoding goes on behind the last whole line.
A store is never repaired: another key, or bytes that do not match their checksum, are refused with the
folder to remove.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import ArrayLike

from search_r3.errors import UsageError
from search_r3.files import json_sha256, removal, take_lock, write_json
from search_r3.index.rows.checks import first_not_finite
from search_r3.index.rows.files import give_back, reserve, write_all
from search_r3.progress import Progress
from search_r3.records import clipped, read_json

FORMAT_VERSION = 1
WAIT_S = 0.5
"""Between two looks at whether another process has ended."""
log = logging.getLogger(__name__)

DIFFERENCES = {
    "weights": "other weights",
    "prompts": "another tokenizer, prompts or lengths",
    "dtype": "another data type",
}
"""What to call the parts of a key that are not the corpus."""

Embed = Callable[[Sequence[str]], tuple[ArrayLike, int | None]]
"""From texts to `[n, D]` fp32, and how many of them were read in part; None: not counted."""

Block = tuple[np.ndarray, int | None]
"""Rows `[n, D]`, contiguous fp32, and how many of their texts were read in part; None: not counted."""


class StoreError(RuntimeError):
    """Stored embeddings that cannot be used; the message names the folder and what to do."""


def store_folder(root: str | Path, key: Mapping[str, str]) -> Path:
    """Where embeddings under `key` are kept."""
    return Path(root) / json_sha256(dict(key))[:24]


def stored_embeddings(
    root: str | Path,
    key: Mapping[str, str],
    texts: Sequence[str],
    embed: Embed,
    chunk_size: int = 1024,
    progress: bool = True,
) -> np.memmap:
    """Embeddings of all texts; those that are already on disk are not encoded again.

    Memory is that of a chunk, of the texts of a chunk, and of a line of facts per chunk. Of several processes
    that want the same embeddings one encodes them, and the others wait for it.

    Args:
        root: folder of all stores.
        key: what the embeddings depend on, the corpus included.
        texts: `N` documents, in row order; read by row.
        embed: embeds at most `chunk_size` texts, and counts what `cut_texts` tells.
        chunk_size: rows per call of `embed`, and rows lost at most by an interruption.
        progress: whether to show how far the encoding is.

    Returns:
        `[N, D]` fp32, a read-only memory map.

    Raises:
        StoreError: If the folder holds another key or damaged rows, or does not fit on the disk.
        ValueError: If there is no text, or `embed` returns anything but finite `[n, D]`.
    """

    def encoded(done: int) -> Iterator[Block]:
        for start in range(done, len(texts), chunk_size):
            chunk = [texts[row] for row in range(start, min(start + chunk_size, len(texts)))]
            vectors, n_cut = embed(chunk)
            yield checked_rows(vectors, start, start + len(chunk)), n_cut

    return stored_rows(root, key, len(texts), encoded, progress)


def stored_rows(
    root: str | Path,
    key: Mapping[str, str],
    n_rows: int,
    blocks_from: Callable[[int], Iterator[Block]],
    progress: bool = True,
    what: str = "embed",
) -> np.memmap:
    """Embeddings that come in blocks, from a model or from files; rows that are on disk are not asked for.

    Args:
        root: folder of all stores.
        key: what the embeddings depend on, the corpus included.
        n_rows: `N`.
        blocks_from: gives the blocks from a row on, one after the other.
        progress: whether to show how far it is.
        what: is shown then.

    Returns:
        `[N, D]` fp32, a read-only memory map.

    Raises:
        StoreError: As `stored_embeddings`.
        ValueError: If there is no row, or the blocks differ in width.
    """
    if n_rows == 0:
        raise ValueError("a store needs at least one document")
    folder = store_folder(root, key)
    with _written_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if _rows_done(folder) < n_rows:
        with _writing(folder, n_rows, progress):
            _fill(folder, key, n_rows, blocks_from, progress, what)
    return open_store(folder, key, n_rows)


def open_store(folder: Path, key: Mapping[str, str], n_rows: int) -> np.memmap:
    """Maps a complete store after checking its key and every checksum.

    Raises:
        StoreError: If the store is missing, incomplete, damaged, or of another key or corpus size.
    """
    facts = _check_key(folder, key, n_rows)
    done = _rows_done(folder)
    if done != n_rows:
        raise StoreError(f"{folder}: {done} of {n_rows} rows are encoded")
    rows = _mapped(folder, (n_rows, facts["width"]))
    _verify(folder, rows)
    return rows


def cut_texts(folder: Path, count: Callable[[], int]) -> int:
    """How many of a complete store's texts were read in part.

    Args:
        folder: of the store.
        count: counts them over all texts; called where the store does not know, whose answer it then keeps.
    """
    entries = _entries(folder)
    if entries and all(isinstance(entry.get("cut"), int) for entry in entries):
        return sum(entry["cut"] for entry in entries)
    file = folder / "cut.json"
    try:
        known = read_json(file)["cut"]
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        known = None
    if not isinstance(known, int):
        known = count()
        with contextlib.suppress(OSError):  # a cache that can only be read
            write_json(file, {"cut": known})
    return known


def _fill(
    folder: Path,
    key: Mapping[str, str],
    n_rows: int,
    blocks_from: Callable[[int], Iterator[Block]],
    progress: bool,
    what: str,
) -> None:
    done = _rows_done(folder)
    if done >= n_rows:
        return  # another process has encoded them meanwhile
    width = _checked_width(folder, key, n_rows) if done else None
    if done:
        log.info("%s: %d of %d rows are there, encoding goes on", folder, done, n_rows)
    else:
        _say_what_is_not_used(folder, key, n_rows)
    with _written_to(folder):
        _drop_torn_line(folder / "done.jsonl")
    with Progress(n_rows, what, "documents", progress, initial=done) as bar:
        for vectors, n_cut in blocks_from(done):
            if width is None:
                width = vectors.shape[1]
                _create(folder, key, (n_rows, width))
            if vectors.shape[1] != width:
                raise ValueError(f"embed gave width {vectors.shape[1]} after {width}")
            with _written_to(folder, (n_rows, width)):
                _write(folder, done, vectors)
                entry = {"start": done, "stop": done + len(vectors), "sha256": _digest(vectors)}
                _append(folder / "done.jsonl", entry if n_cut is None else entry | {"cut": n_cut})
            done += len(vectors)
            bar.update(len(vectors))


def _say_what_is_not_used(folder: Path, key: Mapping[str, str], n_rows: int) -> None:
    """A line where the same documents were encoded under another key: why it is done again."""
    others = _of_same_corpus(folder, key)
    if not others:
        return
    other, found = others[0]
    differing = [name for name in {**found, **key} if found.get(name) != key.get(name)]
    why = " and ".join(DIFFERENCES.get(name, f"another {name}") for name in differing)
    more = f" (and {len(others) - 1} more beside it)" if len(others) > 1 else ""
    log.info(
        "the same documents are in %s%s, embedded with %s; those rows are not used, and %d documents are "
        "encoded into %s. Where no other run needs the old rows: %s",
        other, more, why, n_rows, folder, removal(other),
    )  # fmt: skip


def _of_same_corpus(folder: Path, key: Mapping[str, str]) -> list[tuple[Path, Mapping[str, str]]]:
    """Folder and key of the other stores of the same root and corpus, the newest first."""
    found = []
    for file in folder.parent.glob("*/key.json"):
        try:
            other, written = read_json(file)["key"], file.stat().st_mtime
            is_same = file.parent != folder and other["corpus"] == key.get("corpus")
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not ours to judge: whoever asks for that key is told
        if is_same:
            found.append((written, file.parent, other))
    return [(other, key) for _, other, key in sorted(found, key=lambda entry: entry[:2], reverse=True)]


def _checked_width(folder: Path, key: Mapping[str, str], n_rows: int) -> int:
    """Width of the rows that are there, after checking that they are what they should be."""
    width = _check_key(folder, key, n_rows)["width"]
    _verify(folder, _mapped(folder, (n_rows, width)))
    return width


def checked_rows(vectors: ArrayLike, start: int, stop: int) -> np.ndarray:
    """The embeddings of rows `start` to `stop - 1` as contiguous fp32.

    Raises:
        ValueError: If they are not `[stop - start, D]`, or one is not finite.
    """
    result = np.ascontiguousarray(vectors, dtype=np.float32)
    if result.ndim != 2 or len(result) != stop - start:
        raise ValueError(f"embed must give [{stop - start}, D] for so many texts, got {result.shape}")
    place = first_not_finite(result)
    if place is not None:
        raise ValueError(f"the embedding of document row {start + place} is not finite")
    return result


def _create(folder: Path, key: Mapping[str, str], shape: tuple[int, int]) -> None:
    """Writes the key, and rows that are all zero and have their place on the disk."""
    facts = {"format_version": FORMAT_VERSION, "key": dict(key), "n_rows": shape[0], "width": shape[1]}
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with _written_to(folder, shape):
        write_json(folder / "key.json", facts)
        with (folder / "rows.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            reserve(file.fileno(), file.tell() + 4 * shape[0] * shape[1])


def _write(folder: Path, start: int, vectors: np.ndarray) -> None:
    """Writes rows to the disk."""
    file = folder / "rows.npy"
    offset = np.load(file, mmap_mode="r").offset
    descriptor = os.open(file, os.O_WRONLY)
    try:
        position = offset + start * vectors.shape[1] * vectors.itemsize
        write_all(descriptor, memoryview(vectors).cast("B"), position)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _written_to(folder: Path, shape: tuple[int, int] | None = None) -> Iterator[None]:
    """Says of a failed write which folder it is, the room it needs where that is known, and what to do."""
    try:
        yield
    except OSError as error:
        needs = ""
        if shape is not None:
            needs = f"; rows {shape} of fp32 need {4 * shape[0] * shape[1] / 2**20:.1f} MiB"
        raise StoreError(
            f"{folder}: embeddings cannot be written there ({error.strerror or error}){needs}. Make room or "
            "choose another folder, then start again"
        ) from error


def _mapped(folder: Path, shape: tuple[int, int]) -> np.memmap:
    try:
        rows = np.lib.format.open_memmap(folder / "rows.npy", mode="r")
    except Exception as error:  # numpy reads the header as Python, whose errors are of many kinds
        said = clipped(error) or type(error).__name__
        raise StoreError(f"{folder}: rows.npy cannot be read ({said}); {_remedy(folder)}") from error
    if rows.shape != shape or rows.dtype != np.float32:
        raise StoreError(
            f"{folder}: rows.npy holds {rows.dtype} {rows.shape}, key.json says float32 "
            f"{clipped(shape, 60)}; {_remedy(folder)}"
        )
    return rows


def _check_key(folder: Path, key: Mapping[str, str], n_rows: int) -> dict:
    file = folder / "key.json"
    try:
        facts = read_json(file)
        found = {name: facts[name] for name in ("format_version", "key", "n_rows", "width")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{file}: not the description of a store ({clipped(error)}); {_remedy(folder)}"
        ) from error
    expected = {**found, "format_version": FORMAT_VERSION, "key": dict(key), "n_rows": n_rows}
    if found != expected:
        differing = [name for name in expected if found[name] != expected[name]]
        raise StoreError(
            f"{folder}: was made for another {', '.join(differing)} and is not used; {_remedy(folder)}"
        )
    return facts


def _verify(folder: Path, rows: np.ndarray) -> None:
    for entry in _entries(folder):
        give_back(rows)
        if _digest(rows[entry["start"] : entry["stop"]]) != entry["sha256"]:
            raise StoreError(
                f"{folder}: rows {entry['start']} to {entry['stop'] - 1} do not match their checksum; "
                + _remedy(folder)
            )


def _remedy(folder: Path) -> str:
    return f"remove the folder to encode anew: {removal(folder)}"


def _digest(rows: np.ndarray) -> str:
    return hashlib.sha256(memoryview(np.ascontiguousarray(rows)).cast("B")).hexdigest()


def _entries(folder: Path) -> list[dict]:
    """The finished chunks in row order; a last line without its line end was never finished."""
    file = folder / "done.jsonl"
    if not file.exists():
        return []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        entries = [json.loads(line) for line in lines]
        starts = [0, *(entry["stop"] for entry in entries)]
        is_whole = all(
            entry["start"] == start
            and isinstance(entry["stop"], int)
            and entry["stop"] > start
            and "sha256" in entry
            for entry, start in zip(entries, starts[:-1], strict=True)
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{file}: a line is not readable ({clipped(repr(error))}); {_remedy(folder)}"
        ) from error
    if not is_whole:
        raise StoreError(f"{file}: its chunks do not follow one another; {_remedy(folder)}")
    return entries


def _rows_done(folder: Path) -> int:
    entries = _entries(folder)
    return entries[-1]["stop"] if entries else 0


def _drop_torn_line(file: Path) -> None:
    if file.is_file():
        content = file.read_bytes()
        os.truncate(file, content.rfind(b"\n") + 1)


def _append(file: Path, entry: Mapping[str, object]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def _writing(folder: Path, n_rows: int, progress: bool) -> Iterator[None]:
    """Waits while another process writes; the system releases the lock of a process that dies."""
    with _written_to(folder):
        stream = (folder / "lock").open("w", encoding="utf-8")
    with stream:
        if not take_lock(stream):
            _wait(stream, folder, n_rows, progress)
        yield


def _wait(stream: TextIO, folder: Path, n_rows: int, progress: bool) -> None:
    """Until the lock is taken, and shows how far the other process is."""
    log.info("%s: another process is encoding these documents; waiting for it", folder)
    done = _rows_done(folder)
    with Progress(n_rows, "waiting for another process", "documents", progress, initial=done) as bar:
        while not take_lock(stream):
            time.sleep(WAIT_S)
            before, done = done, _rows_done(folder)
            bar.update(done - before)
