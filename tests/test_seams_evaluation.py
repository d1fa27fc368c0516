"""Evaluation of more documents than are kept: rankings by a product and a sort, in every mode."""

import numpy as np
import pytest
from conftest import TEXTS, build_embedder

from search_r3.data.types import Benchmark, Corpus
from search_r3.evaluation.benchmark import evaluate_benchmark
from search_r3.evaluation.rankers import Model, Settings
from search_r3.models.folder import load_embedder, save_embedder
from search_r3.stages.validation import validate

QUERIES = {f"q{n}": TEXTS[n].split("\n")[0] for n in range(5)}
IDS = [*(f"d{n}" for n in range(5)), "q0", "q3", *(f"n{n}" for n in range(110))]
DOCUMENTS = [
    *(text.split("\n", 1)[1] for text in TEXTS[:5]),
    QUERIES["q0"],  # the queries' own texts
    QUERIES["q3"],
    *(f"def sum_parse_sort_write_{n}(file, rows, column, integers): connect(line)" for n in range(110)),
]
TOP_K = 100
SETTINGS = Settings(top_k=TOP_K, analyzer="code", k1=1.2, b=0.75, seed=0)


def collection(remove_self_match, qrels=None):
    qrels = qrels or {query: {f"d{query[1:]}": 1} for query in QUERIES}
    return Benchmark("tiny", Corpus(IDS, DOCUMENTS), QUERIES, qrels, remove_self_match)


def order_by_definition(documents, vector):
    """Ids, best first; equal scores by id, descending."""
    scores = documents @ vector
    return sorted(IDS, key=lambda i: (scores[IDS.index(i)], i), reverse=True)


def run_of(folder):
    """The ranking of every query, as written."""
    run = {}
    for line in (folder / "run.trec").read_text().splitlines():
        query, _, document, rank, _, _ = line.split()
        run.setdefault(query, []).append(document)
        assert int(rank) == len(run[query])
    return run


@pytest.mark.parametrize("remove_self_match", [True, False])
@pytest.mark.parametrize("mode", ["direct", "reasoning", "base-direct"])
def test_the_best_documents_are_left_whether_or_not_a_querys_own_is_taken_out(
    nano_folder, tmp_path, mode, remove_self_match
):
    model = Model("nano", load_embedder(nano_folder))
    base = Model("base", load_embedder(save_embedder(build_embedder(seed=9), tmp_path / "base", {})))
    arguments = (collection(remove_self_match), mode, tmp_path, SETTINGS, model, base, tmp_path / "cache")
    row = evaluate_benchmark(*arguments)

    embedder = (base if mode == "base-direct" else model).embedder
    texts = list(QUERIES.values())
    vectors = embedder.reason(texts).embeddings if mode == "reasoning" else embedder.embed_queries(texts)
    documents = embedder.embed_documents(DOCUMENTS).double().numpy()
    n_removed, expected, scores = 0, {}, {}
    for query, vector in zip(QUERIES, vectors.double().numpy(), strict=True):
        order = order_by_definition(documents, vector)
        scores[query] = dict(zip(IDS, documents @ vector, strict=True))
        if remove_self_match:
            n_removed += query in order[: TOP_K + 1]
            order.remove(query) if query in order else None
        expected[query] = order[:TOP_K]
    assert any(query in found for query, found in expected.items()) != remove_self_match
    run = run_of(tmp_path / "tiny" / mode)
    assert run.keys() == expected.keys()
    for query, found in run.items():
        assert len(found) == len(set(found)) == len(expected[query])
        apart = [scores[query][one] - scores[query][other]
                 for one, other in zip(found, expected[query], strict=True)]  # fmt: skip
        assert np.abs(apart).max() < 1e-6  # only what fp32 does not tell apart may change places
    assert row["self_match_removed"] == n_removed
    assert (n_removed > 0) == remove_self_match


@pytest.mark.parametrize("remove_self_match", [True, False])
def test_bm25_has_as_many_documents_left_too(tmp_path, remove_self_match):
    row = evaluate_benchmark(collection(remove_self_match), "bm25", tmp_path, SETTINGS)
    run = run_of(tmp_path / "tiny" / "bm25")
    assert all(len(found) == TOP_K for found in run.values())
    assert {query for query, found in run.items() if query in found} == (
        set() if remove_self_match else {"q0", "q3"}
    )
    assert row["self_match_removed"] == (2 if remove_self_match else 0)


@pytest.mark.parametrize("mode", ["direct", "reasoning"])
@pytest.mark.parametrize("remove_self_match", [True, False])
def test_validation_in_training_ranks_as_many_documents_once_a_querys_own_is_taken_out(
    nano_folder, mode, remove_self_match
):
    """Each query's positive is its last document within the cut-off, or the first beyond it."""
    embedder = load_embedder(nano_folder)
    texts = list(QUERIES.values())
    vectors = embedder.reason(texts).embeddings if mode == "reasoning" else embedder.embed_queries(texts)
    documents = embedder.embed_documents(DOCUMENTS).double().numpy()
    orders = {}
    for query, vector in zip(QUERIES, vectors.double().numpy(), strict=True):
        orders[query] = order_by_definition(documents, vector)
        if remove_self_match and query in IDS:
            assert orders[query].index(query) < TOP_K  # or its removal changes nothing
            orders[query].remove(query)
    last = {query: {order[TOP_K - 1]: 1} for query, order in orders.items()}
    beyond = {query: {order[TOP_K]: 1} for query, order in orders.items()}

    found = [validate(embedder, collection(remove_self_match, qrels), TOP_K) for qrels in (last, beyond)]

    assert [values[f"{mode}/recall@100"] for values in found] == [1.0, 0.0]
    assert found[0][f"{mode}/map@100"] == pytest.approx(1 / TOP_K)


def test_a_ranking_that_is_cut_before_the_last_cut_off_of_a_metric_is_refused(loaded_embedder):
    with pytest.raises(ValueError, match="top_k must be at least 100"):
        Settings(top_k=99, analyzer="code", k1=1.2, b=0.75, seed=0)
    with pytest.raises(ValueError, match="top_k must be at least 100"):
        validate(loaded_embedder, collection(False), 99)
