"""Modes that fuse rankings or embeddings, and the one that reasons only where it is needed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import TEXTS

from search_r3.data.types import Benchmark, Corpus
from search_r3.evaluation.benchmark import evaluate_benchmark
from search_r3.evaluation.fusion import margins, mean_directions, reciprocal_ranks
from search_r3.evaluation.modes import FusedReasoning, Hybrid
from search_r3.evaluation.rankers import Model, Settings
from search_r3.evaluation.trec import read_run
from search_r3.models.folder import load_embedder

SETTINGS = Settings(top_k=100, analyzer="code", k1=1.2, b=0.75, seed=0)
QUERIES = {f"q{i}": text.split("\n")[0] for i, text in enumerate(TEXTS[:5])}
CORPUS = Corpus(
    [f"d{i}" for i in range(5)] + ["q0"],
    [*(text.split("\n", 1)[1] for text in TEXTS[:5]), "def nothing(): pass"],
)
TINY = Benchmark("tiny", CORPUS, QUERIES, {f"q{i}": {f"d{i}": 1} for i in range(5)}, remove_self_match=True)


@pytest.fixture(scope="module")
def model(nano_folder) -> Model:
    return Model("nano", load_embedder(nano_folder))


@pytest.fixture(scope="module")
def rows(model, tmp_path_factory):
    """Evaluates in a mode; every row is written once for all tests."""
    folder = tmp_path_factory.mktemp("modes")

    def evaluated(mode, benchmark=TINY):
        row = evaluate_benchmark(benchmark, mode, folder, SETTINGS, model, None, folder / "cache")
        return row, folder / row["folder"]

    return evaluated


def texts_of(folder):
    return [json.loads(line) for line in (folder / "reasoning.jsonl").open(encoding="utf-8")]


def test_reciprocal_ranks_are_as_worked_by_hand():
    cosines = {"a": 0.9, "b": 0.8, "c": 0.1}
    words = {"c": 12.0, "a": 3.0, "d": 3.0}  # equal scores by id, descending: c, d, a
    # a: 1/61 + 1/63; b: 1/62; c: 1/63 + 1/61; d: 1/62
    fused = reciprocal_ranks([cosines, words], 60)
    assert fused == pytest.approx({"a": 1 / 61 + 1 / 63, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62})
    assert fused["a"] == fused["c"]  # to the last bit, whichever ranking comes first
    # without "a": b, c and c, d
    assert reciprocal_ranks([cosines, words], 1, own="a") == pytest.approx(
        {"b": 1 / 2, "c": 1 / 3 + 1 / 2, "d": 1 / 3, "a": 0.0}
    )
    assert reciprocal_ranks([{}, {}], 60) == {}


def test_the_mean_direction_ranks_by_the_mean_cosine():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(3, 4, 8))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    documents = random.normal(size=(20, 8))
    means = mean_directions(vectors)
    np.testing.assert_allclose(np.linalg.norm(means, axis=-1), 1, rtol=1e-6)
    by_mean_cosine = np.argsort(-(vectors @ documents.T).mean(1))
    np.testing.assert_array_equal(np.argsort(-(means @ documents.T)), by_mean_cosine)


@pytest.mark.parametrize(("mode", "part"), [("hybrid", "reasoning"), ("hybrid-direct", "direct")])
def test_a_hybrid_is_the_fusion_of_the_two_runs_on_disk(rows, mode, part):
    row, folder = rows(mode)
    inner, inner_folder = rows(part)
    ours, theirs = read_run(inner_folder / "run.trec"), read_run(rows("bm25")[1] / "run.trec")
    for query, found in read_run(folder / "run.trec").items():
        expected: dict[str, float] = {}
        for run in (ours, theirs):
            for rank, document in enumerate(run.get(query, {}), start=1):  # files stand in order of rank
                expected[document] = expected.get(document, 0) + 1 / (60 + rank)
        assert found == pytest.approx(expected, rel=1e-6)
        assert query not in found  # its own document, which takes no rank either
    assert row["self_match_removed"] == inner["self_match_removed"] == 1
    assert row["tokens_per_query"] == inner["tokens_per_query"]
    assert row["seconds_per_query"] > 0
    assert (folder / "reasoning.jsonl").exists() == (part == "reasoning")
    if part == "reasoning":
        assert texts_of(folder) == texts_of(inner_folder)


def test_another_constant_is_another_row(rows):
    _, first = rows("hybrid")
    _, other = rows(Hybrid(constant=1))
    assert other.name.startswith("hybrid-")
    assert other != first


def test_drawn_reasonings_are_fused_by_their_embeddings(rows, model):
    row, folder = rows(FusedReasoning(n=3, temperature=0.9, seed=5))
    texts = texts_of(folder)
    embedder = model.embedder
    documents = embedder.embed_documents(CORPUS.texts).numpy()
    # the same texts, read anew, one query at a time
    for line in texts:
        assert line["reasoning"] == line["samples"][0]
        assert len(line["samples"]) == 3
    assert len({text for line in texts for text in line["samples"]}) > 5  # they differ
    drawn = embedder.reason([QUERIES[f"q{i // 3}"] for i in range(15)], seed=5, temperature=0.9)
    assert [text for line in texts for text in line["samples"]] == drawn.texts
    cosines = (drawn.embeddings.numpy() @ documents.T).reshape(5, 3, -1).mean(1)  # [Q, N]
    run = read_run(folder / "run.trec")
    for query, values in zip(QUERIES, cosines, strict=True):
        by_id = {name: value for name, value in zip(CORPUS.ids, values, strict=True) if name != query}
        found = run[query]
        top = max(by_id, key=by_id.__getitem__)
        scale = found[top] / by_id[top]  # the mean of unit vectors is shorter than 1
        assert scale > 0
        assert found == pytest.approx({name: value * scale for name, value in by_id.items()}, abs=1e-5)
    assert row["tokens_per_query"] == sum(line["tokens"] for line in texts) / 5 + 3
    assert row["missing_embed_token"] == sum(not line["has_embed_token"] for line in texts)


def test_one_text_of_a_low_temperature_is_the_greedy_one(rows):
    """The limit of drawing: at a temperature near 0 the most probable token has all of the probability."""
    _, folder = rows(FusedReasoning(n=2, temperature=1e-4))
    greedy = {line["query_id"]: line["reasoning"] for line in texts_of(rows("reasoning")[1])}
    assert all(set(line["samples"]) == {greedy[line["query_id"]]} for line in texts_of(folder))
    found, expected = (read_run(each / "run.trec") for each in (folder, rows("reasoning")[1]))
    for query, scores in expected.items():
        assert found[query] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Hybrid(-1), "constant must be"),
        (lambda: FusedReasoning(n=0), "n must be at least 1"),
        (lambda: FusedReasoning(temperature=0), "temperature must be above 0"),
        (lambda: FusedReasoning(seed=-1), "seed must not be negative"),
    ],
)
def test_numbers_out_of_range_are_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_margins_are_between_the_first_and_the_second():
    run = {"a": {"x": 0.25, "y": 1.0, "z": 0.5}, "b": {"x": 0.5}, "c": {"x": 2.0, "y": 2.0}}
    assert margins(run) == {"a": 0.5, "b": float("inf"), "c": 0.0}


def test_a_hybrid_keeps_top_k_besides_a_query_of_its_own(rows):
    many = Corpus([f"d{i:03}" for i in range(130)] + ["q0"], [f"{TEXTS[i % 5]} {i}" for i in range(131)])
    benchmark = replace(TINY, name="many", corpus=many, qrels={f"q{i}": {"d000": 1} for i in range(5)})
    _, folder = rows("hybrid-direct", benchmark)
    assert {len(found) for found in read_run(folder / "run.trec").values()} == {100}
