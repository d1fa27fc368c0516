"""Metrics equal trec_eval's, in cases by hand and in random ones with ties."""

import math
import random

import pytest
import pytrec_eval
import torch

from src.evaluation.metrics import mean_metrics, per_query_metrics, query_metrics, ranked, ranking_of

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
    means = mean_metrics({"q1": {"a": 1.0}}, {"q1": {"a": 1}, "q2": {"b": 1}})
    assert means["ndcg@10"] == 0.5


def test_the_best_documents_by_inner_product_are_found():
    generator = torch.Generator().manual_seed(0)
    queries, documents = torch.randn(5, 8, generator=generator), torch.randn(30, 8, generator=generator)
    run = ranking_of(queries, documents, list("abcde"), [str(i) for i in range(30)], k=4)
    for row, query in enumerate("abcde"):
        scores = {str(i): float(documents[i] @ queries[row]) for i in range(30)}
        assert ranked(run[query]) == sorted(scores, key=scores.get, reverse=True)[:4]
    assert len(ranking_of(queries, documents, list("abcde"), [str(i) for i in range(30)], k=99)["a"]) == 30
