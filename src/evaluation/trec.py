"""Runs and judgements in TREC's format, as trec_eval and pytrec_eval read them.

A line is fields with blanks between them, so an id may hold none. Where a collection has such an id, all of
its ids are percent-encoded in both files: `urllib.parse.unquote` gives them back, and no two become one.
Equal scores stand in the order of ids in these tools, and these ids are the ones that are written: such a
collection is ranked and scored under its encoded ids throughout.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

from src.data.types import Benchmark, Corpus
from src.evaluation.metrics import ranked

# what str.split, or isspace of C, parts fields at; what ends a line or a C string; a byte order mark
_UNREADABLE = re.compile("[\\s\x00-\x1f\x7f\ufeff]")
_ENCODED = re.compile("[%\\s\x00-\x1f\x7f\ufeff]")


def encoded_id(identifier: str) -> str:
    """The id without blanks.

    >>> encoded_id("100% a\\u00a0b")
    '100%25%20a%C2%A0b'
    """
    return _ENCODED.sub(lambda match: quote(match[0], safe=""), identifier)


def needs_encoding(benchmark: Benchmark) -> bool:
    """Whether an id of a document, of a query or in a judgement could not be read back from a line."""

    def ids() -> Iterable[str]:
        yield from benchmark.corpus.ids
        yield from benchmark.queries
        for grades in benchmark.qrels.values():
            yield from grades

    return any(_UNREADABLE.search(identifier) for identifier in ids())


def with_encoded_ids(benchmark: Benchmark) -> Benchmark:
    """The same collection under the encoded ids of documents and queries."""
    return replace(
        benchmark,
        corpus=Corpus([encoded_id(document) for document in benchmark.corpus.ids], benchmark.corpus.texts),
        queries={encoded_id(query): text for query, text in benchmark.queries.items()},
        qrels={
            encoded_id(query): {encoded_id(document): grade for document, grade in grades.items()}
            for query, grades in benchmark.qrels.items()
        },
    )


def write_run(path: Path, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Six fields a line: query, Q0, document, rank, score, tag.

    A score is the shortest text that is read back as the same fp32 value, so that ties are the same. A query
    that retrieved nothing has no line.
    """
    with path.open("w", encoding="utf-8") as file:
        for query, found in run.items():
            for rank, document in enumerate(ranked(found), start=1):
                file.write(f"{query} Q0 {document} {rank} {np.float32(found[document])!s} {tag}\n")


def write_qrels(path: Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Four fields a line: query, 0, document, grade."""
    with path.open("w", encoding="utf-8") as file:
        for query, grades in qrels.items():
            file.writelines(f"{query} 0 {document} {grade}\n" for document, grade in grades.items())
