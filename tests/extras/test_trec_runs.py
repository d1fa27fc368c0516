"""The runs and judgements that an evaluation writes, scored by three other tools."""

import json
from pathlib import Path

import ir_measures
import pytest
import pytrec_eval
import ranx
from small_collection import write_collection

from search_r3.data.beir.benchmark import load_benchmark
from search_r3.demo import MODEL
from search_r3.evaluation.benchmark import evaluate_benchmark
from search_r3.evaluation.rankers import Model, Settings
from search_r3.models.folder import load_embedder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The row of an evaluation, its run and its judgements."""
    place = tmp_path_factory.mktemp("trec")
    write_collection(place / "small")
    model = Model("demo", load_embedder(Path(__file__).resolve().parents[2] / MODEL))
    settings = Settings(top_k=100, analyzer="english", k1=1.2, b=0.75, seed=0)
    benchmark = load_benchmark(place / "small")
    row = evaluate_benchmark(benchmark, "direct", place / "out", settings, model, cache_dir=place / "cache")
    folder = place / "out" / row["folder"]
    assert 0.05 < row["metrics"]["ndcg@10"] < 0.99
    return row, folder / "run.trec", folder / "qrels.trec"


def test_pytrec_eval_reads_them(written):
    row, run, qrels = written
    with run.open() as run_file, qrels.open() as qrels_file:
        judged, found = pytrec_eval.parse_qrel(qrels_file), pytrec_eval.parse_run(run_file)

    scores = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut_10", "recall_100"}).evaluate(found)

    for ours, theirs in (("ndcg@10", "ndcg_cut_10"), ("recall@100", "recall_100")):
        mean = sum(each[theirs] for each in scores.values()) / len(scores)
        assert mean == pytest.approx(row["metrics"][ours], abs=1e-6)
    lines = (run.parent / "per_query.jsonl").read_text().splitlines()
    for ours in map(json.loads, lines):
        assert ours["ndcg@10"] == pytest.approx(scores[ours["query_id"]]["ndcg_cut_10"], abs=1e-6)


def test_ir_measures_reads_them(written):
    row, run, qrels = written
    measures = {"ndcg@10": ir_measures.nDCG @ 10, "recall@100": ir_measures.R @ 100}

    scores = ir_measures.calc_aggregate(
        measures.values(), ir_measures.read_trec_qrels(str(qrels)), ir_measures.read_trec_run(str(run))
    )

    for name, measure in measures.items():
        assert scores[measure] == pytest.approx(row["metrics"][name], abs=1e-6)


def test_ranx_reads_them(written):
    row, run, qrels = written

    scores = ranx.evaluate(
        ranx.Qrels.from_file(str(qrels), kind="trec"),
        ranx.Run.from_file(str(run), kind="trec"),
        ["ndcg@10", "recall@100"],
    )

    for name, score in scores.items():
        assert score == pytest.approx(row["metrics"][name], abs=1e-6)
