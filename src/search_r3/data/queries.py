"""Rows of one query made one row, so that a step embeds the query once for all of its positives."""

from collections.abc import Sequence
from dataclasses import replace

from search_r3.data.types import Example


def one_row_per_query(examples: Sequence[Example], n_positives: int) -> list[Example]:
    """A row for every query, where its first row stood, with the positives of all of its rows.

    Args:
        examples: rows; those of one source with equal text ask the same query.
        n_positives: the most that a row keeps, the first ones; the others are relevant still, so that none is
            ever a negative of the query.

    Returns:
        Rows with the relevant documents and grades of all rows of their query, its first reasoning, and the
        hard negatives that are relevant to none of them.
    """
    rows: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        rows.setdefault((example.source, example.query), []).append(example)
    return [_merged(group, n_positives) for group in rows.values()]


def _merged(rows: Sequence[Example], n_positives: int) -> Example:
    first = rows[0]
    if len(rows) == 1 and not first.more_positives:
        return first
    positives: dict[str, str] = {}
    for row in rows:
        for document_id, text in _positives(row):
            positives.setdefault(document_id, text)
    relevant = frozenset(positives).union(*(row.relevant_ids for row in rows))
    negatives = {
        document_id: text
        for row in rows
        for document_id, text in zip(row.hard_negative_ids, row.hard_negatives, strict=True)
        if document_id not in relevant
    }
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
        grades=tuple(sorted({pair for row in rows for pair in row.grades})),
        reasoning=next((row.reasoning for row in rows if row.reasoning is not None), None),
    )


def _positives(row: Example) -> list[tuple[str, str]]:
    more = zip(row.more_positive_ids, row.more_positives, strict=True)
    return [(row.positive_id, row.positive), *more]
