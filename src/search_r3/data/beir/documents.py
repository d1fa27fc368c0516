"""Documents and queries: JSONL files whose every row is checked."""

import json
from array import array
from codecs import BOM_UTF8
from collections.abc import Mapping
from pathlib import Path

from search_r3.data.beir.counted import Count
from search_r3.data.jsonl import (
    DataError,
    LazyTexts,
    checked_id,
    decode_line,
    has_letter,
    numbered_lines,
    open_lines,
    parse_object,
    raw_lines,
    text_field,
)
from search_r3.data.types import Corpus
from search_r3.progress import Progress
from search_r3.records import shown


def document_text(row: Mapping[str, str]) -> str:
    """Title and text of a corpus row, joined by one space, without blanks around them."""
    title, text = row.get("title") or "", row.get("text") or ""
    return f"{title} {text}".strip() if title else text.strip()


def load_corpus(path: str | Path, allow_empty_documents: bool = False, in_memory_mib: int = 256) -> Corpus:
    """Documents of a JSONL file with `_id`, `text` and perhaps `title`.

    Every row is read and checked once. Texts of a file above the limit stay on disk: then 12 bytes a row and
    the ids are all that is held in memory. A compressed file cannot be read by row and is held in memory.

    Raises:
        DataError: If the file is missing or empty, a row is bad, or an id occurs twice.
    """
    path = Path(path)
    ids: list[str] = []
    texts: list[str] = []
    offsets, title_lengths = array("Q"), array("I")
    seen: set[str] = set()
    plain, empty = Count(), Count()
    stays_on_disk = path.is_file() and path.suffix != ".gz" and path.stat().st_size > in_memory_mib << 20
    for line, offset, raw in _lines_with_offsets(path, show_progress=stays_on_disk):
        row = parse_object(decode_line(raw, path, line), path, line)
        del raw
        document_id = _new_id(row, seen, path, line)
        text_field(row, "text", path, line, may_be_empty=True)
        if row.get("title") is not None:
            text_field(row, "title", path, line, may_be_empty=True)
        text = document_text(row)
        title_lengths.append(len((row.get("title") or "").strip()))
        del row
        if not text and not allow_empty_documents:
            rule = "title and text must not both be empty (allow_empty_documents=true keeps such documents)"
            raise DataError(path, line, rule)
        (plain if text else empty).add(document_id, not has_letter(text))
        ids.append(document_id)
        if stays_on_disk:
            offsets.append(offset)
        else:
            texts.append(text)
        del text
    if not ids:
        raise DataError(path, 0, "the corpus holds no documents")
    empty.tell(path, len(ids), "documents have neither title nor text")
    plain.tell(path, len(ids), "documents hold no letter")
    all_texts = LazyTexts(path, offsets, _line_text) if stays_on_disk else texts
    return Corpus(ids, all_texts, title_lengths if any(title_lengths) else None)


def load_queries(path: str | Path, allow_empty: bool = False) -> dict[str, str]:
    """Text by query id, of a JSONL file with `_id` and `text`.

    Args:
        path: the file.
        allow_empty: whether a query without text is kept, as published scores count it; a warning says so.

    Raises:
        DataError: If the file is missing, a row is bad, or an id occurs twice.
    """
    path = Path(path)
    queries: dict[str, str] = {}
    plain, empty = Count(), Count()
    for line, text in numbered_lines(path):
        row = parse_object(text, path, line)
        query_id = _new_id(row, queries, path, line)
        query = text_field(row, "text", path, line, may_be_empty=allow_empty)
        queries[query_id] = query
        (plain if query.strip() else empty).add(query_id, not has_letter(query))
    empty.tell(path, len(queries), "queries are empty")
    plain.tell(path, len(queries), "queries hold no letter")
    return queries


def _lines_with_offsets(path: Path, show_progress: bool):
    """(line number from 1, byte offset, bytes) of each line that is not blank."""
    offset = 0
    total = path.stat().st_size if show_progress else None
    bar = Progress(total, path.name, "B", show_progress, is_scaled=True)
    with open_lines(path) as file, bar:
        for line, raw in raw_lines(file, path):
            size = len(raw)
            text = raw.removeprefix(BOM_UTF8) if line == 1 else raw
            if text and not text.isspace():  # `strip` would copy a long one
                yield line, offset, raw
            del raw, text
            offset += size
            bar.update(size)


def _line_text(raw: bytes) -> str:
    return document_text(json.loads(raw.decode("utf-8-sig")))


def _new_id(row: dict, seen: set[str] | dict[str, str], path: Path, line: int) -> str:
    """The row's id; it is added to `seen` where that is a set."""
    identifier = checked_id(text_field(row, "_id", path, line), "_id", path, line)
    if identifier in seen:
        raise DataError(path, line, f"_id {shown(identifier)} occurs for the second time")
    if any(character in identifier for character in "\t\r\n"):
        raise DataError(path, line, f"_id {shown(identifier)} must not hold tabs or line ends")
    if isinstance(seen, set):
        seen.add(identifier)
    return identifier
