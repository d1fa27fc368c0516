"""Judgements: tab-separated files whose every row is checked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_r3.data.beir.counted import Count
from search_r3.data.jsonl import DataError, numbered_lines, whole_number
from search_r3.data.types import Corpus
from search_r3.records import shown

_HEADER = ["query-id", "corpus-id", "score"]
_COLUMNS_RULE = f"a row must have 3 tab-separated columns ({', '.join(_HEADER)}), got {{}}"
_UNMATCHED_HINT = (
    "; allow_unmatched_judgements=true takes such rows as published scores do (an unknown document counts as "
    "not found, an unknown query is left out)"
)

EXCLUDED = "excluded.tsv"
"""In a collection's folder, where it has one: query id and document id, tab-separated, under a header."""

LONGEST_JUDGEMENT = 1 << 16
"""Bytes of a line of judgements, which has two ids of at most `LONGEST_ID` characters and a grade."""


@dataclass(frozen=True)
class Qrels:
    """What a file of judgements says.

    Attributes:
        grades: grade by query id and document id.
        n_unknown_queries: judgements left out, since their query is not in the queries file.
    """

    grades: dict[str, dict[str, int]]
    n_unknown_queries: int = 0


def load_qrels(
    path: str | Path, queries: Mapping[str, str], corpus: Corpus, allow_unmatched: bool = False
) -> Qrels:
    """Judgements of a tab-separated file; its header line may be missing.

    Args:
        path: three columns: query id, document id, integer grade, which may be written as `1.0` or `+1`.
        queries: the known queries.
        corpus: the known documents.
        allow_unmatched: whether a row may name an unknown query, which is then left out, or an unknown
            document, which is kept. Either is counted in a warning.

    Raises:
        DataError: If the file is missing or empty, a row has not three columns or no integer grade, names an
            unknown query or document, or judges a pair for the second time; and if all rows are of unknown
            queries, or all of unknown documents, so that it belongs to another collection.
    """
    path = Path(path)
    qrels: dict[str, dict[str, int]] = {}
    unasked: dict[str, dict[str, int]] = {}
    n_rows = 0
    without_query, without_document = Count(), Count()
    for line, query_id, document_id, grade in judgement_rows(path):
        is_asked, is_known = query_id in queries, document_id in corpus.row_of
        if not allow_unmatched and not (is_asked and is_known):
            unknown = f"query {shown(query_id)} is not in the queries file"
            if is_asked:
                unknown = f"document {shown(document_id)} is not in the corpus"
            raise DataError(path, line, unknown + _UNMATCHED_HINT)
        grades = (qrels if is_asked else unasked).setdefault(query_id, {})
        if document_id in grades:
            raise DataError(
                path, line, f"query {shown(query_id)} and document {shown(document_id)} are judged twice"
            )
        grades[document_id] = grade
        n_rows += 1
        without_query.add(query_id, not is_asked)
        without_document.add(document_id, is_asked and not is_known)
    if not n_rows:
        raise DataError(path, 0, "the file holds no judgements")
    if not qrels:
        raise DataError(path, 0, f"no judgement is of a query in the queries file ({n_rows} rows)")
    if without_document.n == sum(map(len, qrels.values())):
        first = f"the first is {shown(without_document.first)}, the corpus begins with {shown(corpus.ids[0])}"
        raise DataError(path, 0, f"not one judged document is in the corpus ({first})")
    without_query.tell(path, n_rows, "judgements are of a query without a text", "they are left out")
    without_document.tell(
        path, n_rows, "judgements are of a document that the corpus lacks", "it counts as not found"
    )
    return Qrels(qrels, without_query.n)


def judgement_rows(path: Path) -> Iterator[tuple[int, str, str, int]]:
    """(line, query id, document id, grade) of each row; a header line may be missing.

    Raises:
        DataError: If the file is missing, or a row has not three columns or no integer grade.
    """
    for line, text, is_first in _rows(path, _HEADER):
        yield (line, *_judgement(path, line, text, is_first))


def _rows(path: Path, header: list[str]) -> Iterator[tuple[int, str, bool]]:
    """(line, text, whether it is the first) of each row but the header's, which may be missing."""
    is_first = True
    for line, text in numbered_lines(path, LONGEST_JUDGEMENT):
        if not (is_first and [column.strip() for column in text.split("\t")] == header):
            yield line, text, is_first
        is_first = False


def _judgement(path: Path, line: int, text: str, is_first: bool) -> tuple[str, str, int]:
    """The three columns of a line, checked."""
    columns = text.split("\t")
    if len(columns) != 3:
        trec = "; TREC's format has 4: take the second column out" if len(text.split()) == 4 else ""
        raise DataError(path, line, _COLUMNS_RULE.format(len(columns)) + trec)
    query_id, document_id, grade = columns
    number = whole_number(grade)
    if number is None:
        header = f"; a header line reads {', '.join(_HEADER)}" if is_first else ""
        raise DataError(path, line, f"the score must be an integer, got {shown(grade)}{header}")
    if abs(number) >= 1 << 31:
        raise DataError(path, line, f"the score must lie within 32 bits, got {shown(grade)}")
    return query_id, document_id, number


def load_excluded(
    path: Path, queries: Mapping[str, str], judged: Sequence[Mapping[str, Mapping[str, int]]], corpus: Corpus
) -> dict[str, frozenset[str]]:
    """Documents that are taken out of a query's ranking, by query id; none where there is no such file.

    Args:
        path: of the file.
        queries: all known queries; rows of others are left out, and a warning counts them.
        judged: grades by query id and document id, of every split that is used; rows of other known queries
            are left out, since those are not asked.
        corpus: the known documents; of others none is ever found, and they are left out with a warning.

    Raises:
        DataError: If a row has not two columns, or takes out a document that is relevant to the query; and if
            no row is of a known query, so that the file belongs to another collection.
    """
    if not path.is_file():
        return {}
    relevant: dict[str, set[str]] = {query: set() for grades in judged for query in grades}
    for query, graded in (pair for grades in judged for pair in grades.items()):
        relevant[query].update(document for document, grade in graded.items() if grade > 0)
    found: dict[str, set[str]] = {}
    n_rows, without_query, without_document = 0, Count(), Count()
    for line, query, document in _excluded_rows(path):
        n_rows += 1
        is_known = query in queries
        without_query.add(query, not is_known)
        without_document.add(document, is_known and document not in corpus.row_of)
        if query not in relevant:
            continue
        if document in relevant[query]:
            raise DataError(
                path, line, f"takes out {shown(document)}, which is judged relevant to query {shown(query)}"
            )
        if document in corpus.row_of:
            found.setdefault(query, set()).add(document)
    if n_rows and without_query.n == n_rows:
        first = f"{n_rows} rows; the first names {shown(without_query.first)}"
        raise DataError(
            path, 0, f"no row is of a query in the queries file ({first}); a row is query id, document id"
        )
    without_query.tell(path, n_rows, "rows are of a query without a text", "they are left out")
    without_document.tell(path, n_rows, "rows name a document that the corpus lacks", "they are left out")
    return {query: frozenset(names) for query, names in found.items()}


def _excluded_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, query id, document id) of each row."""
    for line, text, _ in _rows(path, _HEADER[:2]):
        columns = text.split("\t")
        if len(columns) != 2:
            raise DataError(path, line, f"a row must have 2 tab-separated columns, got {len(columns)}")
        yield line, columns[0], columns[1]
