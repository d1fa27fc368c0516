"""A query that is a row once, with all of its positives, against a row for each of them."""

from dataclasses import replace

import torch

from search_r3.data.queries import one_row_per_query, sharing_relevance
from search_r3.data.types import Corpus, Example, TrainingData
from search_r3.objectives.masks import id_numbers, negatives_mask
from search_r3.stages.sft.collate import collate_sft
from search_r3.stages.sft.data import SFTDataModule

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


TWICE = [
    row("why", "a", "a", hard_negatives=("heat flows", "the sun shines"), hard_negative_ids=("b", "d")),
    row("how", "c", "c"),
    row("why", "b", "b", excluded_ids=frozenset({"a", "d"})),
]
"""One text under two ids, each with its own judgements."""


def test_a_text_that_is_asked_under_two_ids_pushes_none_of_its_positives_away():
    corpus = Corpus(list(FACTS), list(FACTS.values()))
    module = SFTDataModule(TrainingData("s", corpus, TWICE), None, 3, 1, 0.0, 0, 1, 1)
    batch = collate_sft(module.examples, hard_negatives=1)

    relevant = torch.stack([id_numbers([*ids, "-", "-"][:3]) for ids in batch.relevant_ids])
    mask, _ = negatives_mask(id_numbers(batch.document_ids), torch.tensor(batch.positive_index), relevant)
    may_be_negative = [
        {batch.document_ids[column] for column in line.nonzero()[:, 0]} - {example.positive_id}
        for line, example in zip(mask, module.examples, strict=True)
    ]
    assert batch.document_ids == ("a", "d", "c", "b")  # "b" is no hard negative any more
    assert may_be_negative == [{"c", "d"}, {"a", "b", "d"}, {"c"}]  # "d" is excluded from the last


def test_a_copy_of_a_positive_under_another_id_is_never_a_negative():
    copy = replace(row("how", "a", "e"), positive_id="e")
    apart = replace(
        row("when", "c", "c"), hard_negatives=("ice melts", "heat flows"), hard_negative_ids=("f", "b")
    )
    why, how, when = sharing_relevance([row("why", "a", "a"), copy, apart])

    assert why.relevant_ids == how.relevant_ids == {"a", "e", "f"}
    assert (when.relevant_ids, when.hard_negative_ids) == ({"c"}, ("f", "b"))  # to it they are none


def test_rows_that_share_no_text_stay_as_they_are():
    assert sharing_relevance(ROWS[:2]) == ROWS[:2]


def test_a_grade_that_a_later_row_knows_is_kept_where_its_documents_are_known_already():
    rows = [row("why", "a", "a", "b"), row("why", "b", "a", "b", grades=(("b", 3.0),))]
    (only,) = one_row_per_query(rows, 1)
    assert only.grades == (("b", 3.0),)


def test_of_two_grades_of_a_document_the_later_row_s_is_kept():
    rows = [row("why", "a", "a", grades=(("a", 3.0),)), row("why", "a", "a", grades=(("a", 2.0),))]
    assert one_row_per_query(rows, 1)[0].grades == (("a", 2.0),)
