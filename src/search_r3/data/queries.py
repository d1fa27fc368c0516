"""Rows of equal text ask one query: they are made one row, or know of each other what is relevant.

What is held out is held out by its text too, so that nothing is tested on a query that was trained on.
"""

from collections.abc import Sequence
from dataclasses import replace

from search_r3.data.types import Benchmark, Example


def asked_texts(*held_out: Benchmark | None) -> frozenset[str]:
    """What collections ask, without blanks around it; None asks nothing."""
    return frozenset(text.strip() for each in held_out if each is not None for text in each.queries.values())


def unasked(examples: Sequence[Example], asked: frozenset[str]) -> tuple[list[Example], int]:
    """The rows whose query is not among `asked_texts`, and how many queries the others have."""
    kept = [example for example in examples if example.query.strip() not in asked]
    left_out = {example.query for example in examples} - {example.query for example in kept}
    return kept, len(left_out)


def one_row_per_query(examples: Sequence[Example], n_positives: int) -> list[Example]:
    """A row for every query, where its first row stood, with the positives of all of its rows.

    Args:
        examples: rows; those of one source with equal text ask the same query.
        n_positives: the most that a row keeps, the first ones; the others are relevant still, so that none is
            ever a negative of the query.

    Returns:
        Rows with the relevant documents and grades of all rows of their query, of two grades of a document
        the later one, its first reasoning, and the hard negatives that are relevant to none of them.
    """
    rows: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        rows.setdefault((example.source, example.query), []).append(example)
    return [_merged(group, n_positives) for group in rows.values()]


def sharing_relevance(examples: Sequence[Example]) -> list[Example]:
    """The same rows, which know more of what is relevant: the positives of all rows of their query, and
    copies, documents of any row whose text is that of a positive.

    A collection may ask one text under several ids, each with its own judgements, and hold one text under
    several ids. Without this a row would push away what another pulls to the same text, or a copy of what it
    pulls itself.

    Args:
        examples: rows; those of one source with equal text ask the same query.
    """
    relevant: dict[tuple[str, str], set[str]] = {}
    copies: dict[tuple[str, str], set[str]] = {}  # ids by source and text
    for row in examples:
        ids = relevant.setdefault((row.source, row.query), set())
        ids.update(row.relevant_ids, (document_id for document_id, _ in _positives(row)))
        for document_id, text in (*_positives(row), *_negatives(row)):
            copies.setdefault((row.source, text), set()).add(document_id)
    for row in examples:
        for _, text in _positives(row):
            relevant[row.source, row.query] |= copies[row.source, text]
    frozen = {query: frozenset(ids) for query, ids in relevant.items()}
    return [_knowing(row, frozen[row.source, row.query]) for row in examples]


def _knowing(row: Example, relevant: frozenset[str]) -> Example:
    if len(relevant) == len(row.relevant_ids.union(document_id for document_id, _ in _positives(row))):
        return row
    negatives = _irrelevant([row], relevant)
    return replace(
        row,
        relevant_ids=relevant,
        excluded_ids=row.excluded_ids - relevant,
        hard_negatives=tuple(negatives.values()),
        hard_negative_ids=tuple(negatives),
    )


def _merged(rows: Sequence[Example], n_positives: int) -> Example:
    first = rows[0]
    if len(rows) == 1 and not first.more_positives:
        return first
    positives: dict[str, str] = {}
    for row in rows:
        for document_id, text in _positives(row):
            positives.setdefault(document_id, text)
    relevant = frozenset(positives).union(*(row.relevant_ids for row in rows))
    negatives = _irrelevant(rows, relevant)
    excluded = frozenset().union(*(row.excluded_ids for row in rows)) - relevant
    kept = list(positives.items())[1:n_positives]
    return replace(
        first,
        more_positives=tuple(text for _, text in kept),
        more_positive_ids=tuple(document_id for document_id, _ in kept),
        hard_negatives=tuple(negatives.values()),
        hard_negative_ids=tuple(negatives),
        relevant_ids=relevant,
        excluded_ids=excluded,
        grades=tuple(sorted({name: grade for row in rows for name, grade in row.grades}.items())),
        reasoning=next((row.reasoning for row in rows if row.reasoning is not None), None),
    )


def _positives(row: Example) -> list[tuple[str, str]]:
    more = zip(row.more_positive_ids, row.more_positives, strict=True)
    return [(row.positive_id, row.positive), *more]


def _negatives(row: Example) -> list[tuple[str, str]]:
    return list(zip(row.hard_negative_ids, row.hard_negatives, strict=True))


def _irrelevant(rows: Sequence[Example], relevant: frozenset[str]) -> dict[str, str]:
    """The hard negatives of some rows that are none of the relevant documents, by id."""
    return {
        document_id: text
        for row in rows
        for document_id, text in _negatives(row)
        if document_id not in relevant
    }
