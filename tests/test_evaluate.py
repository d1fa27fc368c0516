"""The command on collections as users have them: names, judgements and ids, and a mode of one's own."""

import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
import pytrec_eval
from small_evaluations import OPENED, call, configs, evaluate, write_collection  # noqa: F401

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.evaluation_collections import collections, places_of
from search_r3.cli.instantiate import instantiate
from search_r3.data.jsonl import DataError
from search_r3.data.types import Benchmark, Corpus
from search_r3.errors import UsageError
from search_r3.evaluate import check, run
from search_r3.evaluation.benchmark import evaluate_benchmark
from search_r3.evaluation.modes import MODES
from search_r3.evaluation.places import collection_path, folder_name
from search_r3.evaluation.rankers import Settings
from search_r3.evaluation.trec import encoded_id
from search_r3.stages.validation import validate

TREC = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map@100": "map_cut_100"}
SETTINGS = Settings(top_k=100, analyzer="english", k1=1.2, b=0.75, seed=0)


def read_trec(folder: Path) -> tuple[dict, dict]:
    with (folder / "run.trec").open() as run_file, (folder / "qrels.trec").open() as qrels_file:
        return pytrec_eval.parse_run(run_file), pytrec_eval.parse_qrel(qrels_file)


def assert_trec_eval_agrees(folder: Path, row: dict) -> None:
    """What pytrec_eval computes from the two files is what the row and per_query.jsonl say."""
    found, judged = read_trec(folder)
    assert found.keys() <= judged.keys()
    theirs = pytrec_eval.RelevanceEvaluator(judged, set(TREC.values())).evaluate(found)
    values = [json.loads(line) for line in (folder / "per_query.jsonl").read_text().splitlines()]
    encoded = encoded_id if row["ids_encoded"] else str
    for name, trec_name in TREC.items():
        assert row["metrics"][name] == pytest.approx(
            sum(query[trec_name] for query in theirs.values()) / len(judged), abs=1e-6
        )
        for line in values:
            scored = theirs.get(encoded(line["query_id"]), {}).get(trec_name, 0.0)
            assert line[name] == pytest.approx(scored, abs=1e-6)


# ---- names


def test_collections_behind_links_have_their_own_names_rows_and_folders(tmp_path):
    for name in ("one", "two"):
        write_collection(tmp_path / "store" / name / "v1", ids=("q0", "q1", "q2", "q3", "q4"))
    (tmp_path / "beir").mkdir()
    os.symlink("../store/one/v1", tmp_path / "beir" / "arguana")
    os.symlink("../store/two/v1", tmp_path / "beir" / "other")
    arguana, other = evaluate(tmp_path, "benchmarks=[arguana,other/]")
    assert [row["benchmark"] for row in (arguana, other)] == ["arguana", "other"]
    assert (arguana["self_match_removed"], other["self_match_removed"]) == (5, 0)
    assert (
        arguana["metrics"]["ndcg@10"] == 0 < other["metrics"]["ndcg@10"]
    )  # every positive is the query's own
    assert read_trec(tmp_path / "out" / arguana["folder"]) != read_trec(tmp_path / "out" / other["folder"])
    kept = evaluate(tmp_path, "benchmarks=[arguana]", "remove_self_match=false")[-1]
    assert kept["metrics"] == other["metrics"]


def test_names_that_a_file_system_may_not_tell_apart_have_folders_of_their_own(tmp_path):
    names = [
        "cqadupstack/android",
        "cqadupstack/physics",
        "android",
        "Android",
        "a:b",
        "a%3Ab",
        "cqa/bm25",
        "cqa",
    ]
    for name in names:
        write_collection(tmp_path / "beir" / name)
    # an own collection inside the folder of another: "cqa/bm25" is where mode bm25 of "cqa" is
    listed = ",".join(f"'{name}'" for name in [*names[:-1], "./cqa/"])
    rows = evaluate(tmp_path, f"benchmarks=[{listed}]")
    assert [row["benchmark"] for row in rows] == names
    assert len({row["folder"].casefold() for row in rows}) == len(names)
    assert {"cqadupstack/android/bm25", "android/bm25", "cqa/bm25"} <= {row["folder"] for row in rows}
    assert evaluate(tmp_path, f"benchmarks=[{listed}]") == rows  # read back, each from its place


def test_a_folder_name_is_safe_and_no_two_names_have_one():
    names = [
        "scifact", "a/b", "a/bm25", "a/%62m25", "a/direct-12", "what?", "what%3F", "x.", "x", "metrics.json",
        "metrics.json.", "法律", "cafe\u0301", "caf\u00e9", "n" * 300, "n" * 301, "a\nb", "a b",
        "..", "/", "bm25",
    ]  # fmt: skip
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert folders[:2] == ["scifact", "a/b"]
    assert (folder_name("法律"), folder_name("bm25")) == ("法律", "bm25")
    for folder in folders:
        assert all(part not in ("", ".", "..") and len(part.encode()) < 250 for part in folder.split("/"))
        assert not any(character in folder for character in '<>:"\\|?*\n')


def test_the_texts_of_a_file_are_asked_with_the_queries(tmp_path):
    write_collection(tmp_path / "beir" / "a")
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"_id": "q0", "text": "connect to a socket"}) + "\n")

    rows = evaluate(tmp_path, "benchmarks=[a]", "modes=[bm25,given-bm25]", f"reasonings={texts}")

    assert [row["mode"] for row in rows] == ["bm25", "given-bm25"]
    plain, given = (read_trec(tmp_path / "out" / row["folder"])[0] for row in rows)
    assert plain["q0"] != given["q0"]
    assert {query: plain[query] for query in plain if query != "q0"} == {
        query: given[query] for query in given if query != "q0"
    }


def test_a_bad_line_of_a_later_collection_is_refused_before_the_first_is_evaluated(tmp_path, caplog):
    write_collection(tmp_path / "beir" / "a")
    later = write_collection(tmp_path / "beir" / "b")
    text = (later / "qrels" / "test.tsv").read_text()
    (later / "qrels" / "test.tsv").write_text(text + "q0\td1\thigh\n")

    with pytest.raises(DataError, match=r"b/qrels/test\.tsv, line 7: .*'high'"):
        evaluate(tmp_path, "benchmarks=[a,b]")
    assert not (tmp_path / "out" / "a").exists()

    (later / "qrels" / "test.tsv").write_text(text)
    (later / "corpus.jsonl").write_text((later / "corpus.jsonl").read_text() + '{"_id": "d9", "text": ""}\n')
    evaluate(tmp_path, "benchmarks=[a,b]")
    assert len([line for line in caplog.messages if "b/corpus.jsonl" in line]) == 1, "its warning, once"


def test_a_bad_line_is_refused_before_the_model_is_opened(nano_folder, tmp_path):
    damaged = tmp_path / "model"
    shutil.copytree(nano_folder, damaged)
    header = (1 << 40).to_bytes(8, "little")
    (damaged / "model.safetensors").write_bytes(header + b"no weights at all")
    corpus = write_collection(tmp_path / "beir" / "a") / "corpus.jsonl"
    text = corpus.read_text()
    asked = ("benchmarks=[a]", "modes=[direct]", f"model.path={damaged}")

    corpus.write_text(text + "no JSON\n")
    with pytest.raises(DataError, match=r"a/corpus\.jsonl, line 6: "):
        evaluate(tmp_path, *asked)

    corpus.write_text(text)
    with pytest.raises(Exception, match=r"model\.safetensors"):
        evaluate(tmp_path, *asked)


def test_texts_of_no_query_of_a_later_collection_are_refused_before_the_first_is_evaluated(tmp_path):
    write_collection(tmp_path / "beir" / "a")
    other = write_collection(tmp_path / "beir" / "b")
    for file in (other / "queries.jsonl", other / "qrels" / "test.tsv"):
        file.write_text(re.sub(r"\bq(\d)", r"other\1", file.read_text()))
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"_id": "q0", "text": "connect to a socket"}) + "\n")

    for benchmarks, name in (("[a,b]", "b"), ("[a,pydocs]", "pydocs")):
        with pytest.raises(
            DataError, match=rf"texts.jsonl: not one is of a query of {name} \(the first: 'q0'"
        ):
            evaluate(tmp_path, f"benchmarks={benchmarks}", "modes=[given-bm25]", f"reasonings={texts}")
        assert not list((tmp_path / "out").rglob("row.json"))


def test_a_text_of_a_query_that_is_not_asked_does_not_count_as_one_of_the_collection(tmp_path):
    write_collection(tmp_path / "beir" / "a")
    other = write_collection(tmp_path / "beir" / "b")
    lines = (other / "qrels" / "test.tsv").read_text().splitlines(keepends=True)
    (other / "qrels" / "test.tsv").write_text("".join([lines[0], *reversed(lines[1:])]))  # q4 comes first
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"_id": "q0", "text": "connect to a socket"}) + "\n")
    given = ["benchmarks=[a,b]", "modes=[given-bm25]", f"reasonings={texts}"]

    with pytest.raises(DataError, match=r"texts.jsonl: not one is of a query of b \(the first: 'q0'"):
        evaluate(tmp_path, *given, "limit=1")
    assert not list((tmp_path / "out").rglob("row.json"))
    assert len(evaluate(tmp_path, *given, "limit=5")) == 2


@pytest.mark.parametrize("in_memory_mib", [256, 0])
def test_a_collection_is_read_twice_only_where_it_cannot_be_held(tmp_path, in_memory_mib, caplog):
    for name in "abc":
        folder = write_collection(tmp_path / "beir" / name)
        with (folder / "corpus.jsonl").open("a") as file:
            file.write('{"_id": "d9", "text": ""}\n')
    given = [f"beir_dir={tmp_path / 'beir'}", "benchmarks=[a,b,c]", f"in_memory_mib={in_memory_mib}"]
    config = compose("evaluate", ["modes=[bm25]", *given], OPENED[0]).config
    read = collections(config, places_of(config))

    assert next(read).name == "a", "the first is held in any case: it is next"
    assert [line.split("/")[-2] for line in caplog.messages if "neither title" in line] == ["b", "c", "a"]
    for name in "bc":
        (tmp_path / "beir" / name / "queries.jsonl").unlink()
    if in_memory_mib:
        assert [benchmark.name for benchmark in read] == ["b", "c"]
    else:
        with pytest.raises(DataError, match=r"b/queries\.jsonl"):
            next(read)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/abs", "a/../.."])
def test_a_name_that_leads_out_of_the_folder_of_collections_is_refused(name):
    with pytest.raises(ValueError, match="no folder inside beir_dir"):
        collection_path(name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmarks=[a,./a/]"], "benchmarks: a is named twice"),
        (["modes=[bm25,bm25]"], "modes: bm25 is named twice"),
        (["benchmarks=a"], r"benchmarks=a: a list is needed, as benchmarks=\[a\]"),
        (["modes=bm25"], r"modes=bm25: a list is needed"),
        (["benchmarks=[../a]"], "no folder inside beir_dir"),
        (["benchmarks=[b]"], r"b is not in .*Choices: pydocs, a, nested/c"),
        (
            ["benchmarks=[a]", "beir_dir={beir}/a"],
            r"itself: beir_dir={beir} benchmarks=\[a\]\. ",
        ),
        (["benchmarks=[mine]", "beir_dir=null"], r"holds out is benchmarks=\[pydocs\]$"),
        (["benchmarks=[a]", "split=dev"], "split=dev: a has no such split. Choices: test"),
        (["top_k=5"], r"top_k=5: must be a whole number at least 100"),
        (["top_k=99"], "top_k=99"),
        (["top_k=1e3"], "top_k=1000.0"),
        (["limit=-1"], "limit=-1: must be a whole number at least 1, or null"),
        (["limit=0"], "limit=0"),
        (["limit=true"], "limit=true: must be a whole number"),
        (["seed=-1"], "seed=-1"),
        (["model.token_budget=0"], "model.token_budget=0"),
        (["bm25.k1=-1"], "bm25.k1=-1"),
        (["bm25.b=1.5"], "bm25.b=1.5: must be a number at least 0 and at most 1"),
        (["bm25.b=nan"], "bm25.b=nan"),
        (["metrics_file=out.png"], "a file that ends in .json"),
        (["modes=[given-bm25]"], "reasonings= is needed by these modes: a JSONL file"),
        (["modes=[given-bm25]", "reasonings=no.jsonl"], "reasonings=no.jsonl: no such file"),
        (["modes=[bm25]", "reasonings=a.jsonl"], "reasonings=a.jsonl: none of these modes reads it"),
        (["modes=[direct]", "model.prompts_file=a"], r"model\.prompts_file is for model\.name"),
        (["modes=[direct]", "model.embed_token=a"], r"model\.embed_token is for model\.name"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_read(tmp_path, overrides, message):
    write_collection(tmp_path / "beir" / "a")
    write_collection(tmp_path / "beir" / "nested" / "c")
    beir = tmp_path / "beir"
    with pytest.raises(UsageError, match=message.replace("{beir}", str(beir))):
        evaluate(tmp_path, *(each.replace("{beir}", str(beir)) for each in overrides))
    assert not (tmp_path / "out").exists()


def test_the_environments_mode_of_wandb_is_checked_and_may_turn_it_off(tmp_path, monkeypatch, caplog):
    write_collection(tmp_path / "beir" / "a")
    monkeypatch.setenv("WANDB_MODE", "off")
    with pytest.raises(UsageError, match="WANDB_MODE=off in the environment: choices are online, offline"):
        evaluate(tmp_path, "benchmarks=[a]", "logger=wandb")
    assert not (tmp_path / "out").exists()

    monkeypatch.setenv("WANDB_MODE", "disabled")
    with caplog.at_level("INFO"):
        evaluate(tmp_path, "benchmarks=[a]", "logger=wandb")
    assert "WANDB_MODE=disabled: nothing goes to Weights & Biases" in caplog.messages


def test_settings_have_the_same_ranges():
    for wrong in ({"top_k": 99}, {"limit": 0}, {"limit": -1}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings(**{"top_k": 100, "analyzer": "code", "k1": 1.2, "b": 0.75, "seed": 0, **wrong})
    with pytest.raises(ValueError, match="top_k must be at least 100"):
        validate(None, None, top_k=99)


# ---- what is read


def test_a_judged_document_that_is_missing_is_counted_in_row_table_and_trec_files(tmp_path, capsys):
    write_collection(
        tmp_path / "beir" / "coll", judged=[("q0", "gone", 2), ("q1", "lost", 1), ("q9", "d0", 1)]
    )
    (row,) = evaluate(tmp_path, "benchmarks=[coll]", "allow_unmatched_judgements=true")
    assert (row["judged_documents_missing"], row["judged_queries_missing"], row["n_queries"]) == (2, 1, 5)
    assert row["metrics"]["recall@100"] == (3 + 0.5 + 0.5) / 5
    assert_trec_eval_agrees(tmp_path / "out" / row["folder"], row)
    assert "│ 2, 1 of queries │" in capsys.readouterr().out


HOSTILE = [
    "Page 0",
    "a!b",
    "50% off",
    "a%20b",
    " lead\u00a0trail ",
    "line\u2028end\u0085x",
    "nul\x00",
    "文 件",
]


def test_ids_with_blanks_are_written_so_that_trec_eval_reads_the_same_ranking(tmp_path):
    """All documents tie for a query of one word, and only the order of ids ranks them."""
    ids = [*HOSTILE, "a b", "plain"]
    queries = {"q 1": "alpha", "q\u00a02": "alpha beta", "q3": "beta"}
    qrels = {"q 1": {"a b": 1}, "q\u00a02": {"Page 0": 1, "50% off": 2, "gone away": 1}, "q3": {"plain": 1}}
    texts = ["alpha", "alpha beta", *["alpha"] * 8]
    row = evaluate_benchmark(Benchmark("ids", Corpus(ids, texts), queries, qrels), "bm25", tmp_path, SETTINGS)
    assert row["ids_encoded"]
    assert_trec_eval_agrees(tmp_path / row["folder"], row)
    found, judged = read_trec(tmp_path / row["folder"])
    assert {unquote(query) for query in judged} == set(queries)
    assert {unquote(document) for document in found["q%201"]} == set(ids)
    with (tmp_path / row["folder"] / "run.trec").open() as lines:
        ranking = [line.split() for line in lines]
    assert all(len(fields) == 6 for fields in ranking)
    ties = [(float(score), document.encode()) for q, _, document, _, score, _ in ranking if q == "q%201"]
    assert len({score for score, _ in ties}) == 2
    assert ties == sorted(ties, reverse=True)  # as trec_eval sorts, whatever rank says
    per_query = [
        json.loads(line)["query_id"] for line in (tmp_path / row["folder"] / "per_query.jsonl").open()
    ]
    assert per_query == list(queries)


def test_self_matches_are_removed_under_encoded_ids_too(tmp_path):
    corpus = Corpus(["a 1", "a 2"], ["alpha", "alpha"])
    own = Benchmark("own", corpus, {"a 1": "alpha"}, {"a 1": {"a 2": 1}}, remove_self_match=True)
    row = evaluate_benchmark(own, "bm25", tmp_path, SETTINGS)
    assert (row["self_match_removed"], row["metrics"]["mrr@10"]) == (1, 1.0)


def test_ids_that_can_be_written_are_written_as_they_are(tmp_path):
    corpus = Corpus(["a%20b", "50%", "<dbpedia:X>"], ["alpha", "beta", "gamma"])
    row = evaluate_benchmark(
        Benchmark("ids", corpus, {"q%1": "alpha"}, {"q%1": {"a%20b": 1}}), "bm25", tmp_path, SETTINGS
    )
    assert not row["ids_encoded"]
    assert read_trec(tmp_path / row["folder"])[0].keys() == {"q%1"}
    assert_trec_eval_agrees(tmp_path / row["folder"], row)


def test_no_two_ids_become_one_and_each_can_be_had_back():
    ids = [*HOSTILE, "Page%200", "Page%25200", "a b", "%", "%2", "%25"]
    encoded = [encoded_id(identifier) for identifier in ids]
    assert len(set(encoded)) == len(ids)
    assert [unquote(text) for text in encoded] == ids
    assert all(text.split() == [text] and text.isprintable() for text in encoded)


def test_a_query_that_finds_nothing_is_named_as_its_user_wrote_it(tmp_path, caplog):
    benchmark = Benchmark("odd", Corpus(["d1"], ["alpha"]), {"a query": "?!"}, {"a query": {"d1": 1}})
    evaluate_benchmark(benchmark, "bm25", tmp_path, SETTINGS)
    assert "(the first: 'a query') retrieved nothing" in caplog.text


def test_a_query_that_finds_nothing_counts_zero_and_is_said(tmp_path, caplog):
    corpus = Corpus(["d1", "d2"], ["alpha", "beta"])
    queries = {"q1": "alpha", "q2": "?!", "q3": ""}
    row = evaluate_benchmark(
        Benchmark("odd", corpus, queries, {query: {"d1": 1} for query in queries}), "bm25", tmp_path, SETTINGS
    )
    assert row["metrics"]["mrr@10"] == 1 / 3
    assert "odd: 2 of 3 queries (the first: 'q2') retrieved nothing and count 0" in caplog.text
    assert_trec_eval_agrees(tmp_path / row["folder"], row)


# ---- one's own

MODE = """
from search_r3.evaluation.modes import Mode

class Backwards(Mode):
    name, needs, embeds, colour = "backwards", frozenset(), None, "#123456"

    def __init__(self, factor: float) -> None:
        self.factor = factor

    @property
    def settings(self):
        return {"factor": self.factor}

    def rank(self, task):
        from search_r3.evaluation.rankers import Ranked, lexical

        found = lexical(task.benchmark, task.settings).run
        run = {q: {d: -self.factor * s for d, s in found[q].items()} for q in found}
        return Ranked(run, 0.0)
"""
READER = """
from dataclasses import replace
from search_r3.data.beir.benchmark import load_benchmark
from search_r3.data.types import Corpus, TrainingData

def anything(path):
    test = replace(load_benchmark(path), name="held-out")
    return TrainingData("mine", test.corpus, (), test=test)
"""


def test_a_mode_and_a_benchmark_of_ones_own_are_a_file_and_a_yaml_each(tmp_path, monkeypatch):
    write_collection(tmp_path / "beir" / "a")
    own = tmp_path / "own"
    (own / "mode").mkdir(parents=True)
    (own / "data").mkdir()
    (own / "mode" / "backwards.yaml").write_text("_target_: own_mode.Backwards\nfactor: 2.0\n")
    (own / "data" / "mine.yaml").write_text(
        f"_target_: own_reader.anything\npath: {tmp_path / 'beir' / 'a'}\n"
    )
    (tmp_path / "own_mode.py").write_text(MODE)
    (tmp_path / "own_reader.py").write_text(READER)
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "out"
    with ConfigSource(own) as source:
        given = ["data=mine", "benchmarks=[mine]", f"output_dir={out}"]
        config = compose("evaluate", [*given, "modes=[bm25,backwards]"], source).config
        check(config, False)
        run(config)
        with pytest.raises(UsageError, match=r"modes: backwrds does not exist\. Did you mean backwards\?"):
            check(compose("evaluate", [*given, "modes=[backwrds]"], source).config, False)
    bm25, backwards = json.loads((out / "metrics.json").read_text())["rows"]
    assert (backwards["benchmark"], backwards["mode"]) == ("held-out", "backwards")
    assert backwards["metrics"]["mrr@10"] < bm25["metrics"]["mrr@10"]
    assert backwards["colour"] == "#123456"
    assert "colour" not in bm25
    key = json.loads((out / "held-out" / "backwards" / "row.json").read_text())["key"]
    assert key["mode"] == {"factor": 2.0}


def test_the_modes_of_conf_are_those_that_are_shipped(tmp_path):
    config = compose("evaluate", [], OPENED[0]).config
    assert {name: type(instantiate(node)) for name, node in config.mode.items()} == {
        name: type(mode) for name, mode in MODES.items()
    }


def test_the_validation_collection_of_a_data_set_is_evaluated_by_its_name(tmp_path):
    out = tmp_path / "out"
    call("data=hops", "benchmarks=[hops]", "part=validation", "limit=10", f"output_dir={out}")
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    assert [row["benchmark"] for row in rows] == ["hops-validation"]
    with pytest.raises(UsageError, match=r"part=dev does not exist\. Choices: test, validation"):
        call("data=hops", "benchmarks=[hops]", "part=dev")


def test_a_data_set_without_the_part_that_is_asked_says_which_it_has(tmp_path):
    rows = [{"query": f"q {n}", "positive": f"d {n}"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["data=triples", f"data.files={tmp_path / 'rows.jsonl'}", "data.columns.hard_negatives=null"]
    given += ["benchmarks=[triples]", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(UsageError, match=r"no test collection; it has part=validation\. A folder"):
        call(*given, "data.validation_share=0.5")
    with pytest.raises(UsageError, match=r"no validation collection\. A folder"):
        call(*given, "part=validation", "data.validation_share=0")
