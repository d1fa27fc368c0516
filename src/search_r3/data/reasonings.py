"""Reasonings of queries from a file: JSON lines with `_id` and `text`, plain or with `.gz`.

They are what SFT imitates (`data.reasonings=`) and what an evaluation reads in place of the model's own
(`reasonings=`, mode `given-reasoning`). A `reasoning.jsonl` that another evaluation has left is read too, so
that one model reads what another has written.
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from search_r3.data.jsonl import DataError, checked_text, numbered_lines, parse_object, text_field
from search_r3.records import shown

EMBED_TOKEN = "<|embed_token|>"
"""Ends every reasoning, and its state is the embedding. No text is ever read as it: a stage puts it there."""

log = logging.getLogger(__name__)

_WRITTEN = ("query_id", "reasoning")  # the keys of an evaluation's reasoning.jsonl


def load_reasonings(path: str | Path, known: Collection[str] | None = None) -> dict[str, str]:
    """Reasoning by query id.

    Args:
        path: the file.
        known: ids of the collection's queries, of all splits; None takes any.

    Raises:
        DataError: If the file is missing or holds no row, a row is bad, an id occurs twice, or it is no query
            of the collection.
    """
    path = Path(path)
    texts: dict[str, str] = {}
    for line, raw in numbered_lines(path):
        row = parse_object(raw, path, line)
        was_written = "_id" not in row and all(key in row for key in _WRITTEN)
        id_key, text_key = _WRITTEN if was_written else ("_id", "text")
        query = text_field(row, id_key, path, line)
        if query in texts:
            raise DataError(path, line, f"{id_key} {shown(query)} occurs for the second time")
        if known is not None and query not in known:
            raise DataError(path, line, f"{id_key} {shown(query)} is no query of this collection")
        text = text_field(row, text_key, path, line, may_be_empty=was_written)
        texts[query] = text if was_written else checked_reasoning(text, repr(text_key), path, line)
    if not texts:
        raise DataError(path, 0, "the file holds no reasonings")
    return texts


def checked_reasoning(value: object, name: str, path: Path | str, line: int) -> str:
    """`value` if it is a usable text without the embed token at its end, which would be taught as letters.

    Raises:
        DataError: If it is not; the message calls it `name`.
    """
    text = checked_text(value, name, path, line)
    if text.rstrip().endswith(EMBED_TOKEN):
        raise DataError(path, line, f"{name} must not end with {EMBED_TOKEN}, which is added; take it out")
    return text


def check_some(path: str | Path, texts: Mapping[str, str], asked: Collection[str], name: str) -> None:
    """Refuses texts of which not one is of a query of the collection.

    Args:
        path: of the file, for the message.
        texts: what it holds, by query id.
        asked: the collection's queries.
        name: of the collection, for the message.

    Raises:
        DataError: With the file, the collection and the first id of the file.
    """
    if not any(query in texts for query in asked):
        first = next(iter(texts), None)
        raise DataError(path, 0, f"not one is of a query of {name} (the first: {shown(first)})")


def tell_missing(path: str | Path, texts: Mapping[str, str], asked: Collection[str], outcome: str) -> int:
    """Counts the queries that the file has no reasoning for, and says so where there are any.

    Args:
        path: of the file, for the message.
        texts: what it holds.
        asked: the queries that need one.
        outcome: what becomes of the others.
    """
    missing = [query for query in asked if query not in texts]
    if missing:
        log.warning(
            "%s: %d of %d queries have no reasoning (the first: %s); %s",
            path, len(missing), len(asked), shown(missing[0]), outcome,
        )  # fmt: skip
    return len(missing)
