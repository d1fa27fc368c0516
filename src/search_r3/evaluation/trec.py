"""Runs and judgements in TREC's format, as trec_eval and pytrec_eval read them.

A line is fields with blanks between them, so an id may hold none. Where a collection has such an id, all of
its ids are percent-encoded in both files: `urllib.parse.unquote` gives them back, and no two become one.
Equal scores stand in the order of ids in these tools, and these ids are the ones that are written: such a
collection is ranked and scored under its encoded ids throughout.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from search_r3.data.beir.qrels import judgement_rows
from search_r3.data.jsonl import DataError, numbered_lines, whole_number
from search_r3.data.types import Benchmark, Corpus
from search_r3.evaluation.metrics import ranked
from search_r3.records import RecordError, clipped, shown

# what str.split, or isspace of C, parts fields at; what ends a line or a C string; a byte order mark
_UNREADABLE = re.compile("[\\s\x00-\x1f\x7f\ufeff]")
_FIELD = re.compile("[^ \t\n\v\f\r]+")  # what trec_eval parts fields at: other blanks may be in an id
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
        excluded={
            encoded_id(query): frozenset(map(encoded_id, names))
            for query, names in benchmark.excluded.items()
        },
    )


def write_run(path: Path, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Six fields a line: query, Q0, document, rank, score, tag.

    A score is the shortest text that is read back as the same fp32 value, so that ties are the same. A query
    that retrieved nothing has no line.
    """
    import numpy as np  # for its shortest digits of a fp32; commands that write no run start without it

    with path.open("w", encoding="utf-8") as file:
        for query, found in run.items():
            for rank, document in enumerate(ranked(found), start=1):
                file.write(f"{query} Q0 {document} {rank} {np.float32(found[document])!s} {tag}\n")


def write_qrels(path: Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Four fields a line: query, 0, document, grade."""
    with path.open("w", encoding="utf-8") as file:
        for query, grades in qrels.items():
            file.writelines(f"{query} 0 {document} {grade}\n" for document, grade in grades.items())


def read_run(path: Path, any_ranks: bool = False) -> dict[str, dict[str, float]]:
    """Scores by document by query of a run as `write_run` wrote it.

    Args:
        path: the file.
        any_ranks: whether the rank is not read, as trec_eval does not: of runs that other tools wrote.

    Raises:
        RecordError: If the file is missing, or a line is not six fields with a finite score, has a rank that
            is not its place, or names a document for the second time.
    """
    run: dict[str, dict[str, float]] = {}
    for number, (query, _, document, rank, score, _) in _fields(path, 6):
        found = run.setdefault(query, {})
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise RecordError(path, f"line {number}: the score must be a finite number, got {shown(score)}")
        if not any_ranks and rank != str(len(found) + 1):
            raise RecordError(path, f"line {number}: rank must be {len(found) + 1}, got {shown(rank)}")
        if document in found:
            raise RecordError(path, f"line {number}: document {shown(document)} stands there twice")
        found[document] = value
    return run


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Grades by document by query of judgements as `write_qrels` wrote them.

    Raises:
        RecordError: If the file is missing, or a line is not four fields with an integer, or judges twice.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, (query, _, document, grade) in _fields(path, 4):
        grades = qrels.setdefault(query, {})
        value = whole_number(grade)
        if value is None:
            raise RecordError(path, f"line {number}: the grade must be an integer, got {shown(grade)}")
        if document in grades:
            raise RecordError(path, f"line {number}: document {shown(document)} is judged twice")
        grades[document] = value
    return qrels


def read_judgements(path: Path) -> dict[str, dict[str, int]]:
    """Grades by document by query, of a file in TREC's format or of a `qrels/<split>.tsv` of BEIR.

    Raises:
        RecordError: As `read_qrels`, or if an id of a BEIR file holds a blank, which no run can hold.
        DataError: If a row of a BEIR file is bad.
    """
    if not _is_of_beir(path):
        return read_qrels(path)
    qrels: dict[str, dict[str, int]] = {}
    for line, query, document, grade in judgement_rows(path):
        for name in (query, document):
            if _FIELD.fullmatch(name) is None:
                rule = (
                    f"line {line}: id {shown(name)} is no field of a run; give the qrels.trec beside run.trec"
                )
                raise RecordError(path, rule)
        grades = qrels.setdefault(query, {})
        if document in grades:
            raise RecordError(path, f"line {line}: document {shown(document)} is judged twice")
        grades[document] = grade
    return qrels


def _is_of_beir(path: Path) -> bool:
    """Whether the first line of a file of judgements has three columns with tabs between."""
    try:
        return next((text.count("\t") == 2 for _, text in numbered_lines(path)), False)
    except (DataError, OSError):
        return False  # `read_qrels` says what is wrong


def _fields(path: Path, n_fields: int) -> Iterator[tuple[int, list[str]]]:
    try:
        for number, text in numbered_lines(path):
            fields = _FIELD.findall(text)
            if len(fields) != n_fields:
                beir = "; a BEIR file has tabs, TREC's format a 0 behind the query" if n_fields == 4 else ""
                raise RecordError(
                    path, f"line {number}: must have {n_fields} fields, got {len(fields)}{beir}"
                )
            yield number, fields
    except DataError as error:
        raise RecordError(path, error.problem) from None
    except OSError as error:
        raise RecordError(path, f"cannot be read ({clipped(error.strerror)})") from None
