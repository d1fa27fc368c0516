"""A query that is a row once, with all of its positives, against a row for each of them."""

from dataclasses import replace

from search_r3.data.queries import one_row_per_query
from search_r3.data.types import Example
from search_r3.stages.sft.collate import collate_sft

FACTS = {"a": "ice melts", "b": "heat flows", "c": "water is wet", "d": "the sun shines"}


def row(query: str, fact: str, *relevant: str, **more) -> Example:
    return Example(
        id=f"{query}-{fact}", query=query, positive=FACTS[fact], positive_id=fact,
        relevant_ids=frozenset(relevant), source="s", **more
    )  # fmt: skip


ROWS = [
    row("why", "a", "a", "b", "c", hard_negatives=("the sun shines",), hard_negative_ids=("d",)),
    row("how", "c", "c"),
    row("why", "b", "a", "b", "c", reasoning="because"),
    row("why", "c", "a", "b", "c", hard_negatives=("ice melts",), hard_negative_ids=("a",)),
]


def test_rows_of_one_query_become_one_with_their_positives():
    why, how = one_row_per_query(ROWS, n_positives=9)

    assert (why.positive_id, why.more_positive_ids) == ("a", ("b", "c"))
    assert why.more_positives == ("heat flows", "water is wet")
    assert why.relevant_ids == {"a", "b", "c"}
    assert why.reasoning == "because"
    assert why.hard_negative_ids == ("d",)  # "a" is a positive of another of its rows
    assert how == ROWS[1]


def test_a_positive_beyond_the_limit_stays_relevant():
    why, _ = one_row_per_query([replace(example, relevant_ids=frozenset()) for example in ROWS], 2)

    assert why.more_positive_ids == ("b",)
    assert why.relevant_ids == {"a", "b", "c"}


def test_equal_texts_of_two_sources_are_two_queries():
    assert len(one_row_per_query([ROWS[0], replace(ROWS[2], source="other")], 2)) == 2


def test_a_batch_has_a_pair_for_every_positive_and_each_document_once():
    batch = collate_sft(one_row_per_query(ROWS, 9), hard_negatives=1)

    assert batch.document_ids == ("a", "b", "c", "d")
    pairs = [(batch.examples[q].query, batch.document_ids[c])
             for q, c in zip(batch.query_index, batch.positive_index, strict=True)]  # fmt: skip
    assert pairs == [("why", "a"), ("why", "b"), ("why", "c"), ("how", "c")]
    assert set(batch.relevant_ids[0]) == {"a", "b", "c"}
