"""Metrics equal trec_eval's, in cases by hand and in random ones with ties."""

import math
import random

import numpy as np
import pytest
import pytrec_eval

from search_r3.evaluation.metrics import mean_metrics, per_query_metrics, query_metrics, ranked
from search_r3.evaluation.query_means import QueryMeans
from search_r3.evaluation.ranking import document_index, id_order, ranking_of

TREC = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map@100": "map_cut_100"}


def random_case(seed):
    """Rankings with many ties and graded judgements, some of them of documents that were not retrieved."""
    generator = random.Random(seed)
    documents = [f"d{number}" for number in range(150)]
    run, qrels = {}, {}
    for query in range(12):
        judged = generator.sample(documents, generator.randint(1, 20))
        qrels[f"q{query}"] = {document: generator.choice([0, 1, 1, 2, 3]) for document in judged}
        qrels[f"q{query}"][judged[0]] = 1
        found = generator.sample(documents, generator.randint(1, 140))
        run[f"q{query}"] = {
            document: generator.choice([-0.5, 0.0, 0.1, 0.1 + 1e-9, 0.7]) for document in found
        }
    return run, qrels


@pytest.mark.parametrize("seed", range(8))
def test_every_metric_equals_trec_eval_with_ties_and_grades(seed):
    run, qrels = random_case(seed)
    ours = per_query_metrics(run, qrels)
    theirs = pytrec_eval.RelevanceEvaluator(qrels, set(TREC.values())).evaluate(run)
    for query, values in ours.items():
        for name, trec_name in TREC.items():
            assert values[name] == pytest.approx(theirs[query][trec_name], abs=1e-6), (query, name)
    top = {query: {document: run[query][document] for document in ranked(run[query])[:10]} for query in run}
    reciprocal = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(top)
    for query, values in ours.items():
        assert values["mrr@10"] == pytest.approx(reciprocal[query]["recip_rank"], abs=1e-6)


def test_pitfall_1_ideal_gain_and_recall_come_from_the_judgements():
    # One of three relevant documents is found, at rank 1: ideal gain is 1 + 1/log2(3) + 1/log2(4) = 2.1309.
    values = query_metrics({"a": 1.0, "x": 0.5}, {"a": 1, "b": 1, "c": 1})
    assert values["ndcg@10"] == pytest.approx(1 / (1 + 1 / math.log2(3) + 0.5))
    assert values["recall@100"] == pytest.approx(1 / 3)
    assert values["map@100"] == pytest.approx(1 / 3)


def test_pitfall_2_scores_below_zero_count():
    assert query_metrics({"a": -0.1, "b": -0.2}, {"a": 1})["mrr@10"] == 1.0


def test_pitfall_3_ties_are_broken_by_document_id_descending():
    assert ranked({"a": 0.5, "c": 0.5, "b": 0.5, "z": 0.1}) == ["c", "b", "a", "z"]
    assert ranked({"a": 0.1 + 1e-10, "b": 0.1}) == ["b", "a"]  # equal in fp32


def test_pitfall_4_gain_is_linear_and_graded():
    # Grade 1 before grade 3: (1 + 3/log2(3)) / (3 + 1/log2(3)); an exponential gain would give 0.71.
    values = query_metrics({"low": 1.0, "high": 0.5}, {"low": 1, "high": 3})
    assert values["ndcg@10"] == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))


def test_pitfall_5_a_query_without_a_ranking_counts_zero():
    scores = per_query_metrics({"q1": {"a": 1.0}}, {"q1": {"a": 1}, "q2": {"b": 1}})
    assert mean_metrics(scores)["ndcg@10"] == 0.5


def unit(random, n, width):
    vectors = random.standard_normal((n, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def collection_with_copies(seed):
    """Queries, 1,500 documents of which about 50 at a time are copies, and ids in no particular order."""
    random = np.random.default_rng(seed)
    documents = unit(random, 30, 16)[random.integers(0, 30, 1500)]
    ids = [f"d{number}" for number in random.permutation(1500)]
    queries = np.concatenate([unit(random, 15, 16), documents[:5]])
    return queries, documents, ids


def slow_run(queries, documents, ids):
    """fp32-rounded float64 scores of all documents."""
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    return {
        f"q{n}": dict(zip(ids, row.astype(np.float32).tolist(), strict=True)) for n, row in enumerate(scores)
    }


@pytest.mark.parametrize("k", [1, 60, 100, 2000])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_with_many_copies_is_the_head_of_a_slow_ranking_also_at_the_cut(seed, k):
    queries, documents, ids = collection_with_copies(seed)
    names = [f"q{n}" for n in range(len(queries))]
    run = ranking_of(queries, document_index(documents, ids), names, ids, k)
    for query, scores in slow_run(queries, documents, ids).items():
        expected = sorted(sorted(ids, reverse=True), key=lambda document: -scores[document])[:k]
        assert ranked(run[query]) == list(run[query]) == expected, query


def test_a_run_does_not_depend_on_the_order_of_rows():
    queries, documents, ids = collection_with_copies(7)
    names = [f"q{n}" for n in range(len(queries))]
    run = ranking_of(queries, document_index(documents, ids), names, ids, 100)
    rows = np.random.default_rng(1).permutation(len(ids))
    shuffled_ids = [ids[row] for row in rows]
    shuffled = ranking_of(queries, document_index(documents[rows], shuffled_ids), names, shuffled_ids, 100)
    assert {query: list(found) for query, found in shuffled.items()} == {
        query: list(found) for query, found in run.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_a_cut_run_equal_trec_evals_on_the_whole_one(seed):
    queries, documents, ids = collection_with_copies(seed)
    names = [f"q{n}" for n in range(len(queries))]
    generator = random.Random(seed)
    qrels = {
        name: {document: generator.choice([1, 2]) for document in generator.sample(ids, 60)} for name in names
    }
    run = ranking_of(queries, document_index(documents, ids), names, ids, 100)
    ours = per_query_metrics(run, qrels)
    whole = slow_run(queries, documents, ids)
    theirs = pytrec_eval.RelevanceEvaluator(qrels, set(TREC.values())).evaluate(whole)
    assert 0.01 < mean_metrics(ours)["recall@100"] < 0.99
    for name in names:
        for metric, trec_name in TREC.items():
            assert ours[name][metric] == pytest.approx(theirs[name][trec_name], abs=1e-6), (name, metric)


def test_the_order_of_ids_is_trec_evals_for_any_text():
    # trec_eval compares bytes of UTF-8; "Z" < "a" < "é" < "文", and a prefix comes before its longer form.
    assert np.argsort(id_order(["a", "Z", "文", "é", "a1"])).tolist() == [2, 3, 4, 0, 1]


def test_means_are_over_queries_and_the_first_report_of_a_query_is_taken():
    means = QueryMeans(["q1", "q2", "q3"], ["ndcg@10", "mrr@10"])
    means.update({"q2": {"ndcg@10": 1.0, "mrr@10": 0.5}})
    means.update({})
    means.update({"q1": {"ndcg@10": 0.5, "mrr@10": 0.1}, "q2": {"ndcg@10": 0.0, "mrr@10": 0.0}})
    with pytest.raises(ValueError, match="1 queries were not reported, the first is 'q3'"):
        means.compute()
    means.update({"q3": {"ndcg@10": 0.0, "mrr@10": 0.0}})
    assert {name: value.item() for name, value in means.compute().items()} == pytest.approx(
        {"ndcg@10": 1.5 / 3, "mrr@10": 0.6 / 3}
    )
    means.reset()
    means.update({"q1": {"ndcg@10": 1.0, "mrr@10": 1.0}})
    with pytest.raises(ValueError, match="2 queries"):
        means.compute()


def test_means_refuse_queries_that_they_do_not_know_and_values_that_are_missing():
    means = QueryMeans(["q1"], ["ndcg@10"])
    with pytest.raises(ValueError, match="the first is 'q9'"):
        means.update({"q9": {"ndcg@10": 1.0}})
    with pytest.raises(KeyError, match="ndcg@10"):
        means.update({"q1": {"mrr@10": 1.0}})
    for bad in ([], ["q1", "q1"]):
        with pytest.raises(ValueError, match="query_ids must be unique"):
            QueryMeans(bad, ["ndcg@10"])
