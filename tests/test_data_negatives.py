"""Hard negatives: what is masked, and that all of it is counted."""

import numpy as np
import pytest

from search_r3.data.negatives import MarginRule, RankRule, mine_hard_negatives, select_hard_negatives
from search_r3.data.types import Corpus, Example
from search_r3.models.folder import load_embedder
from search_r3.stages.sft.mining import mine_by_bm25, mine_by_model

IDS = ["a", "b", "c", "d", "e", "f"]
SCORES = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]


def test_the_best_ranked_documents_that_are_not_relevant_are_selected():
    selection = select_hard_negatives(SCORES, IDS, 0.9, {"a", "c"}, RankRule(), n_negatives=3)
    assert selection.positions == (1, 3, 4)
    assert (selection.masked_by_id, selection.masked_by_rule) == (2, 0)


def test_the_rank_rule_counts_ranks_over_all_that_was_retrieved():
    selection = select_hard_negatives(SCORES, IDS, 0.9, {"a"}, RankRule(first=3, last=4), n_negatives=3)
    assert selection.positions == (2, 3)
    # b above and, since one negative is lacking, e and f below
    assert selection.masked_by_rule == 3
    enough = select_hard_negatives(SCORES, IDS, 0.9, {"a"}, RankRule(first=3, last=4), n_negatives=2)
    assert enough.masked_by_rule == 1


@pytest.mark.parametrize(
    ("rule", "positive", "expected"),
    [
        (MarginRule(margin=0.25), 0.9, (3, 4, 5)),  # at most 0.65
        (MarginRule(share=0.8), 0.9, (2, 3, 4)),  # at most 0.72
        (MarginRule(), 0.55, (4, 5)),  # the positive ranks below four others
        (MarginRule(margin=0.25, share=0.5), 0.9, ()),  # at most 0.2
        (MarginRule(), None, ()),  # not retrieved: below all that was
    ],
)
def test_the_margin_rule_masks_what_scores_close_to_the_positive(rule, positive, expected):
    selection = select_hard_negatives(SCORES, IDS, positive, set(), rule, n_negatives=3)
    assert selection.positions == expected


def test_a_share_of_a_negative_score_lies_below_it():
    scores, ids = [-0.1, -0.15, -0.2, -0.3], ["a", "b", "c", "d"]
    selection = select_hard_negatives(scores, ids, -0.1, {"a"}, MarginRule(share=0.5), 2)
    assert selection.positions == (2, 3)  # the limit is -0.2, not -0.05, and not -0.1
    assert selection.masked_by_rule == 1


def test_bad_cases_give_nothing_or_an_error():
    assert select_hard_negatives([], [], None, set(), RankRule()).positions == ()
    assert select_hard_negatives([1.0], ["a"], 1.0, {"a"}, RankRule()).positions == ()
    assert select_hard_negatives([1.0] * 3, ["a", "b", "c"], 1.0, {"b"}, RankRule(), 2).positions == (0, 2)
    for scores, ids, message in (
        ([1.0, 2.0], ["a", "b"], "descending"),
        ([float("nan")], ["a"], "finite"),
        ([1.0], ["a", "b"], "one score per id"),
    ):
        with pytest.raises(ValueError, match=message):
            select_hard_negatives(scores, ids, 1.0, set(), RankRule())
    with pytest.raises(ValueError, match="first <= last"):
        RankRule(first=5, last=4)
    with pytest.raises(ValueError, match="share"):
        MarginRule(share=0.0)


def dot_product_collection(n: int = 200, width: int = 8):
    """Random unit vectors; a query's positive is the document of its number."""
    rng = np.random.default_rng(3)
    documents = rng.normal(size=(n, width))
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    queries = documents + rng.normal(size=(n, width)) * 0.25
    corpus = Corpus([f"d{i}" for i in range(n)], [f"text {i}" for i in range(n)])
    examples = [
        Example(
            str(i), f"query {i}", f"text {i}", f"d{i}", relevant_ids=frozenset({f"d{i}", f"d{(i + 1) % n}"})
        )
        for i in range(n)
    ]
    scores = queries @ documents.T

    def search(texts: list[str], k: int):
        chosen = scores[[int(text.split()[1]) for text in texts]]
        rows = np.argsort(-chosen, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(chosen, rows, axis=1), rows

    return examples, search, corpus, scores


@pytest.mark.parametrize("chunk_size", [7, 1024])
def test_mining_equals_selection_over_all_documents_written_the_slow_way(chunk_size):
    examples, search, corpus, scores = dot_product_collection()
    rule, k = MarginRule(margin=0.1), 30
    mined, report = mine_hard_negatives(
        examples, search, corpus, rule, n_negatives=5, k=k, chunk_size=chunk_size, progress=False
    )
    by_id = not_retrieved = short = 0
    for number, example in enumerate(mined):
        order = sorted(range(len(corpus)), key=lambda row, number=number: -scores[number, row])[:k]
        not_retrieved += number not in order
        by_id += (number + 1) % len(corpus) in order
        limit = scores[number, number] - 0.1 if number in order else -np.inf
        expected = [
            row for row in order if row not in (number, (number + 1) % 200) and scores[number, row] <= limit
        ]
        short += len(expected) < 5
        assert list(example.hard_negative_ids) == [f"d{row}" for row in expected[:5]]
        assert list(example.hard_negatives) == [f"text {row}" for row in expected[:5]]
    assert report.n_queries == 200
    assert report.n_mined == sum(len(example.hard_negatives) for example in mined) > 500
    assert (report.masked_by_id, report.positive_not_retrieved, report.n_short) == (
        by_id,
        not_retrieved,
        short,
    )
    assert report.masked_by_rule > 0


def test_existing_negatives_stay_first_and_are_not_repeated():
    examples, search, corpus, _ = dot_product_collection(20)
    first, _ = mine_hard_negatives(examples, search, corpus, RankRule(), 2, 20, progress=False)
    both, report = mine_hard_negatives(first, search, corpus, RankRule(), 3, 20, progress=False)
    once, _ = mine_hard_negatives(examples, search, corpus, RankRule(), 5, 20, progress=False)
    assert both == once
    assert report.n_mined == 60


def test_a_copy_of_the_positive_under_another_id_is_masked_and_counted():
    corpus = Corpus(["p", "copy", "n"], ["same", "same", "other"])
    example = Example("1", "q", "same", "p", relevant_ids=frozenset({"p"}))

    def search(texts: list[str], k: int):
        return [[3.0, 2.0, 1.0][:k]] * len(texts), [[1, 0, 2][:k]] * len(texts)

    (mined,), report = mine_hard_negatives([example], search, corpus, RankRule(), 2, progress=False)
    assert mined.hard_negative_ids == ("n",)
    assert (report.masked_by_text, report.n_short, report.masked_by_id) == (1, 1, 0)


def test_a_copy_of_any_positive_of_a_row_is_masked():
    corpus = Corpus(["p", "r", "copy", "n"], ["same", "more", "more", "other"])
    example = Example("1", "q", "same", "p", ("more",), ("r",), relevant_ids=frozenset({"p", "r"}))

    def search(texts: list[str], k: int):
        return [[4.0, 3.0, 2.0, 1.0][:k]] * len(texts), [[2, 1, 0, 3][:k]] * len(texts)

    (mined,), report = mine_hard_negatives([example], search, corpus, RankRule(), 2, progress=False)
    assert (mined.hard_negative_ids, report.masked_by_text) == (("n",), 1)


def test_a_copy_of_a_relevant_document_that_has_a_row_of_its_own_is_masked():
    corpus = Corpus(["p", "r", "copy", "n"], ["same", "more", "more", "other"])
    example = Example("1", "q", "same", "p", relevant_ids=frozenset({"p", "r", "not in the corpus"}))

    def search(texts: list[str], k: int):
        return [[4.0, 3.0, 2.0, 1.0][:k]] * len(texts), [[2, 1, 0, 3][:k]] * len(texts)

    (mined,), report = mine_hard_negatives([example], search, corpus, RankRule(), 2, progress=False)
    assert (mined.hard_negative_ids, report.masked_by_text) == (("n",), 1)


def test_rows_below_zero_say_that_there_is_nothing_more():
    corpus = Corpus(["p", "n"], ["x", "y"])
    example = Example("1", "q", "x", "p", relevant_ids=frozenset({"p"}))

    def search(texts: list[str], k: int):
        return np.array([[2.0, -np.inf]]), np.array([[0, -1]])

    (mined,), report = mine_hard_negatives([example], search, corpus, RankRule(), 2, progress=False)
    assert mined.hard_negatives == ()
    assert report.n_short == 1


def test_a_positive_outside_the_corpus_and_a_wrong_search_are_refused():
    corpus = Corpus(["p"], ["x"])
    example = Example("1", "q", "x", "elsewhere")
    with pytest.raises(ValueError, match="'elsewhere' is not in the corpus"):
        mine_hard_negatives([example], lambda q, k: ([[1.0]], [[0]]), corpus, RankRule(), progress=False)
    with pytest.raises(ValueError, match="search must return"):
        mine_hard_negatives([example], lambda q, k: ([[1.0]], [[0, 1]]), corpus, RankRule(), progress=False)
    assert mine_hard_negatives([], lambda q, k: ([], []), corpus, RankRule(), progress=False)[0] == []


@pytest.mark.parametrize("by", ["bm25", "model"])
def test_a_miner_takes_what_is_near_and_says_once_what_it_did(by, nano_folder, caplog):
    caplog.set_level("INFO")
    texts = ["sort rows by a column", "sort rows by a key", "open a socket", "sort rows by a column twice"]
    corpus = Corpus([f"d{i}" for i in range(4)], texts)
    examples = [Example(str(i), texts[i], texts[i], f"d{i}") for i in range(4)]
    arguments = {"rule": RankRule(), "n_negatives": 1, "k": 4}
    if by == "bm25":
        mined = mine_by_bm25(examples, corpus, **arguments)
        assert mined[0].hard_negative_ids == ("d3",)  # all of its words, and one more
    else:
        mined = mine_by_model(examples, corpus, str(nano_folder), **arguments)
        embedder = load_embedder(nano_folder)
        scores = embedder.embed_queries(texts) @ embedder.embed_documents(texts).T
        nearest = scores.fill_diagonal_(-2.0).argmax(1).tolist()
        assert [row.hard_negative_ids for row in mined] == [(f"d{row}",) for row in nearest]
    lines = [record.getMessage() for record in caplog.records if "hard negatives" in record.getMessage()]
    assert len(lines) == 1
    assert "n_queries=4" in lines[0]
