"""Evaluation of real files with a real model: modes, files, resuming, and the command line's refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import PROMPTS, TEXTS, build_embedder

from search_r3.data.beir.benchmark import load_benchmark
from search_r3.data.jsonl import DataError
from search_r3.data.types import Benchmark, Corpus
from search_r3.evaluation.benchmark import document_embeddings, evaluate_benchmark
from search_r3.evaluation.modes import MODES
from search_r3.evaluation.rankers import Model, Settings, shuffled
from search_r3.evaluation.report import print_table
from search_r3.evaluation.results import sealed
from search_r3.evaluation.significance import bootstrap_interval, paired_differences, paired_p_value
from search_r3.index.backends.bm25 import LexicalIndex
from search_r3.models.folder import load_embedder, save_embedder
from search_r3.models.prompts import PromptEncoder
from tests.command import run

SETTINGS = Settings(top_k=100, analyzer="code", k1=1.2, b=0.75, seed=0)
SCHEMA = {
    "benchmark": str, "mode": str, "model": str, "n_queries": int, "n_docs": int, "metrics": dict,
    "ci95": dict, "missing_embed_token": int, "self_match_removed": int, "seconds_per_query": float,
    "tokens_per_query": float, "weights_sha256": str | None, "judged_documents_missing": int,
    "judged_queries_missing": int, "ids_encoded": bool, "folder": str, "command": str, "commit": str,
    "seed": int, "queries_cut": int, "documents_cut": int, "prompts_sha256": str | None,
    "dtype": str | None, "read_state": str | None,
}  # fmt: skip


@pytest.fixture
def benchmark() -> Benchmark:
    queries = {f"q{i}": text.split("\n")[0] for i, text in enumerate(TEXTS[:5])}
    documents = [text.split("\n", 1)[1] for text in TEXTS[:5]]
    corpus = Corpus([f"d{i}" for i in range(5)] + ["q0"], [*documents, "def nothing(): pass"])
    return Benchmark(
        "tiny", corpus, queries, {f"q{i}": {f"d{i}": 1} for i in range(5)}, remove_self_match=True
    )


def test_bm25_finds_identifiers_and_nothing_where_no_word_matches():
    index = LexicalIndex(["def parseHeader(line): pass", "def other(): pass"], "code")
    scores, rows = index.search(["parse the header", "zebra", ""], k=5)
    assert rows[0].tolist() == [0, -1]
    assert scores[0, 0] > 0
    assert rows[1].tolist() == rows[2].tolist() == [-1, -1]
    english = LexicalIndex(["def parseHeader(line): pass", "parsed headers"], "english")
    assert english.search(["parse the header"], 2)[1].tolist() == [[1, -1]]


def test_bm25_ties_at_the_cut_off_stand_in_the_given_order():
    texts = ["alpha beta"] * 6 + ["gamma"]
    order = np.array([3, 1, 5, 0, 4, 2, 6])
    _, rows = LexicalIndex(texts, "english", order=order).search(["alpha"], k=3)
    assert rows[0].tolist() == [3, 1, 5]
    assert LexicalIndex(texts, "english").search(["alpha"], k=3)[1][0].tolist() == [0, 1, 2]
    assert LexicalIndex(texts, "english").search(["alpha"], k=7)[1][0].tolist() == [0, 1, 2, 3, 4, 5, -1]


def test_bm25_scores_are_those_of_the_formula():
    # One of two documents has the word: idf = ln(1 + (2 - 1 + .5) / (1 + .5)); tf 1, length 2 of mean 1.5.
    scores, _ = LexicalIndex(["alpha beta", "alpha"], "english", k1=1.2, b=0.75).search(["beta"], 1)
    expected = np.log(1 + 1.5 / 1.5) * 1 / (1 + 1.2 * (1 - 0.75 + 0.75 * 2 / 1.5))
    assert scores[0, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_writes_its_files_and_is_read_back(benchmark, nano_folder, tmp_path, mode):
    model = Model("nano", load_embedder(nano_folder))
    base = Model("base", load_embedder(save_embedder(build_embedder(seed=9), tmp_path / "base", {})))
    origin = {"command": "python -m src.evaluate", "commit": "abc"}
    arguments = (benchmark, mode, tmp_path, SETTINGS, model, base, tmp_path / "cache", origin)
    given = {f"q{i}": f"about {i}" for i in range(5)}
    row = evaluate_benchmark(*arguments, given)
    arguments = (*arguments[:-1], {"command": "a later one", "commit": "def"}, given)
    folder = tmp_path / "tiny" / mode
    lines = (folder / "run.trec").read_text().splitlines()
    assert {line.split()[0] for line in lines} == set(benchmark.queries)
    assert len((folder / "per_query.jsonl").read_text().splitlines()) == 5
    assert (folder / "reasoning.jsonl").exists() == MODES[mode].reasons
    assert row["ci95"]["ndcg@10"][0] <= row["metrics"]["ndcg@10"] <= row["ci95"]["ndcg@10"][1]
    assert evaluate_benchmark(*arguments) == row  # seconds and all: read back, not measured again
    assert not any("q0 Q0 q0 " in line for line in lines)
    schema = SCHEMA | ({"reasoned_share": float} if mode == "auto" else {}) | {"tokens_read_per_query": float}
    schema |= {"mode_settings": dict} if MODES[mode].settings else {}
    assert row.keys() == schema.keys()
    assert all(isinstance(row[name], kind) for name, kind in schema.items()), row
    assert row["metrics"].keys() == {"ndcg@10", "recall@100", "mrr@10", "map@100"}
    assert row["seconds_per_query"] > 0
    embeds = {"bm25": None, "given-bm25": None, "base-direct": base}.get(mode, model)
    assert row["weights_sha256"] == (embeds and embeds.embedder.weights_sha256)
    assert embeds is None or row["model"] == embeds.name
    assert (row["queries_cut"], row["documents_cut"]) == (0, 0)
    if MODES[mode].reasons:
        n_texts = {"fused-reasoning": 4, "blended": 2, "auto": 1 + row.get("reasoned_share", 0)}.get(mode, 1)
        written = [json.loads(line)["tokens"] for line in (folder / "reasoning.jsonl").open()]
        assert row["tokens_per_query"] == pytest.approx(
            sum(written) / 5 + n_texts
        )  # and the embed token of each
    else:
        assert row["tokens_per_query"] == (1 if embeds else 0)
    if mode == "bm25":
        assert row["metrics"]["ndcg@10"] > 0.8  # identifiers are found in prose
        assert row["weights_sha256"] is None


def test_queries_and_documents_that_are_cut_are_counted_in_the_row_and_told(
    benchmark, nano_folder, tmp_path, caplog
):
    embedder = load_embedder(nano_folder)
    lengths = {name: min(map(len, embedder.encoder.text_ids(texts))) for name, texts in (
        ("query", list(benchmark.queries.values())), ("document", benchmark.corpus.texts))}  # fmt: skip
    encoder = embedder.encoder
    encoder.lengths = replace(encoder.lengths, **lengths)  # as long as the shortest, so all others are cut
    n_long = {
        "query": sum(len(ids) > lengths["query"] for ids in encoder.text_ids([*benchmark.queries.values()])),
        "document": sum(len(ids) > lengths["document"] for ids in encoder.text_ids(benchmark.corpus.texts)),
    }
    assert n_long["query"] > 0
    assert n_long["document"] > 0

    row = evaluate_benchmark(
        benchmark, "direct", tmp_path, SETTINGS, Model("nano", embedder), cache_dir=tmp_path / "cache"
    )

    assert (row["queries_cut"], row["documents_cut"]) == (n_long["query"], n_long["document"])
    assert f"tiny: {n_long['document']} of 6 documents" in caplog.text
    assert f"tiny: {n_long['query']} of 5 queries" in caplog.text
    print_table([row])


def test_given_texts_are_read_in_place_of_the_models_own_and_the_missing_are_counted(
    benchmark, nano_folder, tmp_path, caplog
):
    """A query without a text is asked alone."""
    model = Model("nano", load_embedder(nano_folder))
    given = [f"adds number {i}" for i in range(5)]
    texts = dict(zip(benchmark.queries, given, strict=True))
    del texts["q3"]

    def scores(mode, **options):
        arguments = (benchmark, mode, tmp_path, SETTINGS, model, None, tmp_path / "cache")
        row = evaluate_benchmark(*arguments, **options)
        lines = (tmp_path / row["folder"] / "run.trec").read_text().splitlines()
        return {(q, d): float(score) for q, _, d, _, score, _ in map(str.split, lines)}

    found = scores("given-reasoning", reasonings=texts)

    vectors = model.embedder.embed_reasoned(list(benchmark.queries.values()), given).numpy()
    vectors[3] = model.embedder.embed_queries([benchmark.queries["q3"]]).numpy()[0]
    documents = model.embedder.embed_documents(benchmark.corpus.texts).numpy()
    expected = dict(zip(benchmark.queries, vectors @ documents.T, strict=True))
    assert len(found) == 5 * 6 - 1  # less the self-match
    for (query, document), score in found.items():
        assert score == pytest.approx(expected[query][benchmark.corpus.ids.index(document)], abs=1e-5)
    assert "1 of 5 queries have no reasoning (the first: 'q3'); they are asked as they are" in caplog.text
    other = scores("given-reasoning", reasonings=texts | {"q0": "else"})
    assert other != found  # written beside the first, not read back
    assert scores("given-reasoning", reasonings=texts) == found
    with pytest.raises(DataError, match="not one is of a query of tiny"):
        scores("given-reasoning", reasonings={"x": "y"})
    with pytest.raises(ValueError, match="needs a file of texts: reasonings="):
        scores("given-bm25")


def test_bm25_is_asked_for_the_query_and_the_given_text(benchmark, tmp_path):
    texts = {"q2": "parseHeader split"}
    row = evaluate_benchmark(benchmark, "given-bm25", tmp_path, SETTINGS, reasonings=texts)

    plain = evaluate_benchmark(benchmark, "bm25", tmp_path, SETTINGS)
    ranks = {}
    for name in (row["folder"], plain["folder"]):
        lines = [line.split() for line in (tmp_path / name / "run.trec").read_text().splitlines()]
        ranks[name] = [line[2] for line in lines if line[0] == "q2"]
    assert "d1" in ranks[row["folder"]]
    assert "d1" not in ranks[plain["folder"]]


def test_pitfall_6_self_matches_are_removed_by_flag_and_counted(benchmark, nano_folder, tmp_path):
    model = Model("nano", load_embedder(nano_folder))
    row = evaluate_benchmark(benchmark, "direct", tmp_path, SETTINGS, model, cache_dir=tmp_path / "cache")
    assert row["self_match_removed"] == 1


def test_pitfall_8_another_models_results_are_not_taken_for_its_own_nor_replaced(
    benchmark, nano_folder, tmp_path
):
    """Two models with one name, one after the other in the same folders."""
    first = load_embedder(nano_folder)
    other = load_embedder(save_embedder(build_embedder(seed=9), tmp_path / "other", {}))

    def evaluated(model, place):
        cache = tmp_path / place / "cache"
        named = Model("name", model)
        row = evaluate_benchmark(benchmark, "direct", tmp_path / place, SETTINGS, named, None, cache)
        run = (tmp_path / place / row["folder"] / "run.trec").read_text()
        return row | {"seconds_per_query": 0, "folder": ""}, run, row["folder"]

    alone = evaluated(other, "alone")
    before, after = evaluated(first, "shared"), evaluated(other, "shared")
    assert before[1] != after[1]
    assert after[:2] == alone[:2]
    assert (before[2], alone[2]) == ("tiny/direct", "tiny/direct")
    assert after[2].startswith("tiny/direct-")
    assert evaluated(first, "shared") == before
    assert evaluated(other, "shared") == after
    assert len(list((tmp_path / "shared" / "cache").glob("*/rows.npy"))) == 2


@pytest.mark.parametrize(("length", "share"), [(1, "100.0 %"), (24, None)])
def test_pitfall_15_queries_that_are_cut_are_said(benchmark, tmp_path, caplog, length, share):
    embedder = build_embedder()
    embedder.encoder = PromptEncoder(
        embedder.tokenizer, PROMPTS, replace(embedder.encoder.lengths, query=length)
    )
    folder = save_embedder(embedder, tmp_path / "model", {})
    with caplog.at_level("WARNING"):
        evaluate_benchmark(
            benchmark,
            "direct",
            tmp_path,
            SETTINGS,
            Model("nano", load_embedder(folder)),
            None,
            tmp_path / "c",
        )
    said = [record.getMessage() for record in caplog.records if "queries (" in record.getMessage()]
    assert said == (
        []
        if share is None
        else [f"tiny: 5 of 5 queries ({share}) are longer than lengths.query=1 and are cut"]
    )


def test_pitfall_32_in_the_shuffled_control_every_query_gets_the_reasoning_of_another(embedder):
    queries = [f"{text} {number}" for number, text in enumerate(TEXTS)]
    reasoned = embedder.reason(queries, seed=1, temperature=3.0)
    own = [
        f"{number} {text}" for number, text in enumerate(reasoned.texts)
    ]  # told apart where texts are equal
    given = shuffled(replace(reasoned, texts=own), seed=0)
    assert sorted(given) == sorted(own)
    assert not any(one == other for one, other in zip(given, own, strict=True))


def test_documents_are_encoded_once_for_all_modes_and_read_from_the_disk(benchmark, nano_folder, tmp_path):
    model = load_embedder(nano_folder)
    rows = document_embeddings(benchmark.corpus, model, tmp_path)
    assert isinstance(rows, np.memmap)
    assert np.abs(rows - model.embed_documents(benchmark.corpus.texts).numpy()).max() < 1e-6
    n_documents = []
    handle = model.decoder.register_forward_pre_hook(lambda *_: n_documents.append(1))
    again = document_embeddings(benchmark.corpus, model, tmp_path)
    handle.remove()
    assert n_documents == []
    assert (again == rows).all()


def test_a_row_says_how_the_model_reads_and_one_of_before_is_told_it(benchmark, nano_folder, tmp_path):
    stated = json.loads((nano_folder / "search_r3.json").read_text())["prompt_fingerprint"]
    model = Model("m", load_embedder(nano_folder))
    row = evaluate_benchmark(benchmark, "direct", tmp_path, SETTINGS, model, cache_dir=tmp_path / "c")
    told = {name: row[name] for name in ("prompts_sha256", "dtype", "read_state")}
    assert told == {"prompts_sha256": stated, "dtype": "float32", "read_state": "at"}

    file = tmp_path / "tiny" / "direct" / "row.json"
    content = json.loads(file.read_text())
    older = {name: value for name, value in content["row"].items() if name not in told}
    sealed(file.parent, content["key"], older)
    assert "dtype" not in json.loads(file.read_text())["row"]
    again = evaluate_benchmark(benchmark, "direct", tmp_path, SETTINGS, model, cache_dir=tmp_path / "c")
    assert again == row

    before = Model("m", load_embedder(nano_folder, read_state="before"))
    other = evaluate_benchmark(benchmark, "direct", tmp_path, SETTINGS, before, cache_dir=tmp_path / "c")
    assert (other["read_state"], other["weights_sha256"]) == ("before", row["weights_sha256"])
    assert other["folder"] != row["folder"]


def test_an_older_row_is_computed_anew(benchmark, tmp_path):
    row = evaluate_benchmark(benchmark, "bm25", tmp_path, SETTINGS)
    file = tmp_path / "tiny" / "bm25" / "row.json"
    written = json.loads(file.read_text())
    del written["key"]["version"]
    written["row"]["n_queries"] = 77
    file.write_text(json.dumps(written))
    again = evaluate_benchmark(benchmark, "bm25", tmp_path, SETTINGS)
    assert again | {"seconds_per_query": 0} == row | {"seconds_per_query": 0}


def test_the_interval_of_a_mean_covers_it_as_often_as_stated():
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval(random.random(100), n_resamples=400, seed=trial)
        covered += low <= 0.5 <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_a_paired_test_tells_a_difference_from_none():
    random = np.random.default_rng(0)
    values = random.random(200)
    assert paired_p_value(values, values + 0.1 + 0.05 * random.standard_normal(200), 500) < 0.01
    assert paired_p_value(values, values + 0.2 * random.standard_normal(200), 500) > 0.01
    assert paired_p_value(values, values, 100) == 1.0


def test_the_last_reasoning_of_a_benchmark_is_compared_with_all_its_other_rows_query_by_query(caplog):
    def row(benchmark, mode, model):
        return {"benchmark": benchmark, "mode": mode, "model": model}

    values = np.random.default_rng(0).random(50)
    found = {f"q{i}": float(value) for i, value in enumerate(values)}
    lower = {f"q{i}": float(value) - 0.1 for i, value in reversed(list(enumerate(values)))}
    rows = [
        row("a", "reasoning", "sft"), row("a", "direct", "rl"), row("b", "direct", "rl"),
        row("a", "reasoning", "rl"), row("a", "bm25", "bm25"),
    ]  # fmt: skip
    first, second = paired_differences(rows, [lower, found, found, found, None])
    assert first["less"] == {"model": "sft", "mode": "reasoning", "folder": None}
    assert second["less"] == {"model": "rl", "mode": "direct", "folder": None}
    assert (first["benchmark"], first["model"], first["mode"]) == ("a", "rl", "reasoning")
    assert first["difference"] == pytest.approx(0.1)
    assert first["ci95"] == pytest.approx([0.1, 0.1])
    assert first["p"] == pytest.approx(1 / 5001)  # no sign flip of 50 equal differences is as far from 0
    assert (second["difference"], second["p"]) == (0.0, 1.0)
    assert "other queries" not in caplog.text
    assert paired_differences(rows[1:], [{"q0": 1.0}, found, found, None]) == []
    assert "a: reasoning is not compared with direct, which has other queries (50 and 1)" in caplog.text


@pytest.mark.parametrize(
    ("name", "analyzer", "low", "high"),
    [("scifact", "english", 0.65, 0.70), ("cosqa", "english", 0.31, 0.35), ("cosqa", "code", 0.37, 0.40)],
)
def test_bm25_on_real_collections_is_where_published_figures_are(
    beir_root, tmp_path, name, analyzer, low, high
):
    settings = Settings(100, analyzer, 1.2, 0.75, seed=0)
    row = evaluate_benchmark(load_benchmark(beir_root / name), "bm25", tmp_path, settings)
    assert low <= row["metrics"]["ndcg@10"] <= high


def write_collection(folder):
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(TEXTS[:5])]
    queries = [{"_id": f"q{i}", "text": text.split("\n")[0]} for i, text in enumerate(TEXTS[:5])]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    qrels = "".join(f"q{i}\td{i}\t1\n" for i in range(5))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)


def test_the_command_evaluates_a_model_folder_on_a_collection(nano_folder, tmp_path):
    write_collection(tmp_path / "my beir" / "tiny")
    done = run(
        "evaluate",
        f"model.path={nano_folder}", "benchmarks=[tiny]", f"beir_dir={tmp_path / 'my beir'}",
        f"output_dir={tmp_path / 'out'}", f"cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [row["mode"] for row in metrics["rows"]] == ["bm25", "direct", "reasoning"]
    assert {"command", "commit", "seed", "python", "packages"} <= metrics.keys()
    assert (tmp_path / "out" / "metrics.png").stat().st_size > 1000
    assert "tiny" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["modes=[bm26]"], "Choices: bm25, base-direct, direct"),
        (["modes=[direct]"], "model.path= is needed"),
        (["modes=[bm25]", "benchmarks=[scifact]"], "needs beir_dir="),
        (["modes=[bm25]", "mdoel.path=x"], "model.path"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_the_choices(arguments, message):
    done = run("evaluate", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
