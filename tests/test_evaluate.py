"""The command on collections as users have them: names, judgements, ids, and several calls in one folder."""

import json
import os
import re
import warnings
from pathlib import Path
from urllib.parse import unquote

import pytest
import pytrec_eval
from conftest import TEXTS

from search_r3 import report
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.evaluation_report import scores_by_query
from search_r3.cli.instantiate import instantiate
from search_r3.data.jsonl import DataError
from search_r3.data.types import Benchmark, Corpus
from search_r3.errors import UsageError
from search_r3.evaluate import check, run
from search_r3.evaluation.benchmark import evaluate_benchmark
from search_r3.evaluation.modes import MODES
from search_r3.evaluation.places import PlaceError, collection_path, folder_name
from search_r3.evaluation.rankers import Settings
from search_r3.evaluation.report import print_differences, print_table, short_names, write_chart
from search_r3.evaluation.trec import encoded_id
from search_r3.stages.validation import validate

TREC = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map@100": "map_cut_100"}
OPENED: list[ConfigSource] = []
SETTINGS = Settings(top_k=100, analyzer="english", k1=1.2, b=0.75, seed=0)


def write_collection(folder: Path, ids=("d0", "d1", "d2", "d3", "d4"), judged=(), queries=5) -> Path:
    """Five documents; the query `q<i>` is the first line of the `i`-th one and has it as its positive."""
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": name, "text": text} for name, text in zip(ids, TEXTS[:5], strict=True)]
    asked = [{"_id": f"q{i}", "text": text.split("\n")[0]} for i, text in enumerate(TEXTS[:queries])]
    for name, rows in (("corpus", documents), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"q{i}\t{ids[i]}\t1\n" for i in range(queries)] + [f"{q}\t{d}\t{g}\n" for q, d, g in judged]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


@pytest.fixture(scope="module", autouse=True)
def configs():
    """Opened once: it takes as long as an evaluation here."""
    with ConfigSource() as source:
        OPENED.append(source)
        yield
    OPENED.clear()


def call(*overrides: str) -> None:
    """What `python -m src.evaluate modes=[bm25] ...` does, in this process."""
    config = compose("evaluate", ["modes=[bm25]", *overrides], OPENED[0]).config
    check(config, False)
    run(config)


def evaluate(tmp_path: Path, *overrides: str) -> list[dict]:
    """Rows of metrics.json after `python -m src.evaluate modes=[bm25] ...` into `tmp_path/out`."""
    out = tmp_path / "out"
    call(f"beir_dir={tmp_path / 'beir'}", f"output_dir={out}", *overrides)
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    assert len({row["folder"] for row in rows}) == len(rows)
    assert all((out / row["folder"] / "run.trec").is_file() for row in rows)
    return rows


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
        (["modes=[direct]", "model.prompts_file=a"], r"model\.prompts_file is for model\.name"),
        (["modes=[direct]", "model.embed_token=a"], r"model\.embed_token is for model\.name"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_read(tmp_path, overrides, message):
    write_collection(tmp_path / "beir" / "a")
    write_collection(tmp_path / "beir" / "nested" / "c")
    with pytest.raises(UsageError, match=message):
        evaluate(tmp_path, *overrides)
    assert not (tmp_path / "out").exists()


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


# ---- several calls in one folder


def test_a_second_call_adds_its_rows_and_takes_none_away(tmp_path):
    for name in ("a", "b"):
        write_collection(tmp_path / "beir" / name)
    first = evaluate(tmp_path, "benchmarks=[a]")
    both = evaluate(tmp_path, "benchmarks=[b]")
    assert both[0] == first[0]
    assert [row["benchmark"] for row in both] == ["a", "b"]
    more = evaluate(tmp_path, "benchmarks=[a]", "limit=2")
    assert more[:2] == both
    assert (more[2]["n_queries"], more[2]["folder"][:7]) == (2, "a/bm25-")
    again = evaluate(tmp_path, "benchmarks=[a]")
    assert sorted(again, key=lambda row: row["folder"]) == sorted(more, key=lambda row: row["folder"])
    other = evaluate(tmp_path, "benchmarks=[a]", "bm25.k1=0.9", "seed=2")
    assert len(other) == 4
    assert other[3]["seed"] == 2


def test_collections_of_one_name_in_two_places_do_not_share_a_folder(tmp_path):
    write_collection(tmp_path / "beir" / "a")
    write_collection(tmp_path / "elsewhere" / "a", queries=3)
    first = evaluate(tmp_path, "benchmarks=[a]")
    both = evaluate(tmp_path, "benchmarks=[a]", f"beir_dir={tmp_path / 'elsewhere'}")
    assert both[0] == first[0]
    assert [row["n_queries"] for row in both] == [5, 3]


def test_rows_of_a_call_that_was_killed_before_it_wrote_the_table_are_in_the_next_table(tmp_path):
    for name in ("a", "b", "x/y"):
        write_collection(tmp_path / "beir" / name)
    (row, nested) = evaluate(tmp_path, "benchmarks=[a,x/y]")
    (tmp_path / "out" / "metrics.json").unlink()
    half = tmp_path / "out" / "a" / "direct.partial"  # killed while it wrote: no evaluation
    half.mkdir()
    (half / "row.json").write_text(json.dumps({"key": {}, "row": row | {"mode": "direct"}}))
    strange = tmp_path / "out" / "other_run" / "a" / "bm25"  # an evaluation of another output folder
    strange.mkdir(parents=True)
    (strange / "row.json").write_bytes((tmp_path / "out" / "a" / "bm25" / "row.json").read_bytes())
    assert evaluate(tmp_path, "benchmarks=[b]")[:2] == [row, nested]


def test_rows_from_before_rows_named_their_folder_stay_with_the_origin_of_their_file(tmp_path):
    write_collection(tmp_path / "beir" / "a")
    (row,) = evaluate(tmp_path, "benchmarks=[a]")
    file = tmp_path / "out" / "metrics.json"
    content = json.loads(file.read_text())
    old = {key: value for key, value in row.items() if key not in ("folder", "command", "commit", "seed")}
    content |= {"command": "as it was", "commit": "123", "rows": [old | {"benchmark": "old"}]}
    file.write_text(json.dumps(content))
    (tmp_path / "out" / "old" / "bm25").mkdir(parents=True)
    (tmp_path / "out" / "old" / "bm25" / "run.trec").touch()
    rows = evaluate(tmp_path, "benchmarks=[a]")
    assert [(r["benchmark"], r["folder"], r["command"], r["commit"]) for r in rows] == [
        ("old", "old/bm25", "as it was", "123"),
        ("a", "a/bm25", row["command"], row["commit"]),
    ]


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": [{"benchmark": "validation"}]}', '{"rows": 1}'])
def test_a_file_that_no_evaluation_wrote_is_not_replaced(tmp_path, content):
    write_collection(tmp_path / "beir" / "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text(content)
    with pytest.raises(PlaceError, match=r"metrics\.json is there and is none that src.evaluate wrote"):
        evaluate(tmp_path, "benchmarks=[a]")
    assert (tmp_path / "out" / "metrics.json").read_text() == content


def test_the_folder_of_a_training_run_is_refused(tmp_path):
    write_collection(tmp_path / "beir" / "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("seed: 1\nstage:\n  name: sft\n")
    with pytest.raises(UsageError, match="is the folder of a training run"):
        evaluate(tmp_path, "benchmarks=[a]")


def test_what_lies_in_the_place_of_an_evaluation_is_left_alone(tmp_path):
    write_collection(tmp_path / "beir" / "a")
    notes = tmp_path / "out" / "a" / "bm25" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    (row,) = evaluate(tmp_path, "benchmarks=[a]")
    assert row["folder"].startswith("a/bm25-")
    assert notes.read_text() == "mine"


def test_one_table_for_several_output_folders_says_where_each_row_lies(tmp_path, caplog):
    for name in ("a", "b"):
        write_collection(tmp_path / "beir" / name)
    table = tmp_path / "tables" / "all.json"
    with caplog.at_level("INFO"):
        for name in ("a", "b"):
            out = f"output_dir={tmp_path / 'outs' / name}"
            beir = f"beir_dir={tmp_path / 'beir'}"
            call(beir, out, f"metrics_file={table}", f"benchmarks=[{name}]")
    rows = json.loads(table.read_text())["rows"]
    assert [row["folder"] for row in rows] == ["../outs/a/a/bm25", "../outs/b/b/bm25"]
    assert all((table.parent / row["folder"] / "run.trec").is_file() for row in rows)
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("wrote ")]
    assert said == [f"wrote {table}", f"wrote {table.with_suffix('.png')}"] * 2
    assert all(Path(line.removeprefix("wrote ")).is_file() for line in said)


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


# ---- reports


def test_a_report_finds_the_scores_of_every_row_and_where_its_own_rows_lie(tmp_path, monkeypatch, capsys):
    write_collection(tmp_path / "beir" / "a")
    evaluate(tmp_path, "benchmarks=[a]")
    rows = evaluate(tmp_path, "benchmarks=[a]", "limit=2")
    file = tmp_path / "out" / "metrics.json"
    assert [len(scores_by_query(file, row)) for row in rows] == [5, 2]
    joined = tmp_path / "joined" / "metrics.json"
    monkeypatch.setattr("sys.argv", ["report", str(file), "--output", str(joined)])
    assert report.main() == 0
    written = json.loads(joined.read_text())["rows"]
    assert all((joined.parent / row["folder"] / "run.trec").is_file() for row in written)
    assert rows[1]["folder"].partition("/")[2] in capsys.readouterr().out


NO_TABLE = "no metrics.json, which has rows, command, commit and seed; give one, or the folder of an"
NO_EVALUATION = {
    "{}": NO_TABLE,
    "[]": NO_TABLE,
    '{"rows": [], "command": "", "commit": "", "seed": 1}': "no row of an evaluation; `python -m src",
}


@pytest.mark.parametrize("content", NO_EVALUATION)
def test_a_report_of_what_is_no_evaluation_is_one_line(tmp_path, content):
    file = tmp_path / "metrics.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"metrics.json: {NO_EVALUATION[content]}")) as refused:
        report.joined({str(file): json.loads(content)})
    assert "\n" not in str(refused.value)


def test_a_table_and_a_chart_show_names_as_they_are_and_any_number_of_them(tmp_path, capsys):
    row = {
        "mode": "bm25", "model": "bm25", "n_queries": 1, "n_docs": 1, "missing_embed_token": 0,
        "seconds_per_query": 0.1, "tokens_per_query": 0, "weights_sha256": None,
        "metrics": {"ndcg@10": 0.5, "recall@100": 1.0}, "ci95": {"ndcg@10": [0.4, 0.6]},
    }  # fmt: skip
    print_table([row | {"benchmark": "we[b] 1"}])
    assert "we[b] 1" in capsys.readouterr().out
    assert write_chart([row | {"benchmark": "$x$ {"}], tmp_path / "one.png").is_file()
    two = [row | {"benchmark": "b", "model": f"runs/{n}/model", "weights_sha256": n} for n in ("_$a", "_$^")]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "No artists with labels")  # of a legend without a line
        assert write_chart(two, tmp_path / "two.png").is_file()
    many = [row | {"benchmark": f"b{number}"} for number in range(70)]
    image = write_chart(many, tmp_path / "many.png").read_bytes()
    assert int.from_bytes(image[16:20]) == 100 * 100  # no wider however many; matplotlib refuses 2^16 pixels
    one, three = (write_chart(many[:n], tmp_path / f"{n}.png").read_bytes()[16:20] for n in (1, 3))
    assert [int.from_bytes(width) for width in (one, three)] == [
        800,
        860,
    ]  # 3.2 + 1.8 inches each, at least 8; 100 dots
    with pytest.raises(ValueError, match="no row to draw"):
        write_chart([], tmp_path / "none.png")


def test_the_rows_of_two_models_are_told_apart_by_the_part_of_their_paths_that_differs(capsys):
    row = {
        "benchmark": "a", "mode": "direct", "n_queries": 1, "n_docs": 1, "missing_embed_token": 0,
        "seconds_per_query": 0.1, "tokens_per_query": 0, "weights_sha256": "0",
        "metrics": {"ndcg@10": 0.5, "recall@100": 1.0}, "ci95": {"ndcg@10": [0.4, 0.6]},
    }  # fmt: skip
    made = ["outputs/quickstart/sft/model", "outputs/quickstart/rl/model", "experiments/nano_base/model"]
    rows = [row | {"model": model} for model in made]
    bm25 = row | {"mode": "bm25", "model": "bm25 (english)", "weights_sha256": None}
    print_table([bm25, *rows])
    lines = [line.split("│")[2:4] for line in capsys.readouterr().out.splitlines() if "│ a " in line]
    found = [[cell.strip() for cell in line] for line in lines]
    assert found == [["", "bm25"], ["sft", "direct"], ["rl", "direct"], ["nano_base", "direct"]]
    assert short_names([rows[0]]) == {made[0]: "sft"}
    twice = short_names([row | {"model": f"{seed}/sft/model"} for seed in "12"])
    assert twice == {"1/sft/model": "1/sft", "2/sft/model": "2/sft"}


def test_the_table_of_differences_has_a_heading_for_every_column(capsys):
    one = {"benchmark": "a", "mode": "direct", "model": "m"}
    print_differences([one | {"less": one, "difference": 0.1, "ci95": [0.0, 0.2], "p": 0.01}], {})
    shown = capsys.readouterr().out
    headings = next(line for line in shown.splitlines() if "benchmark" in line)
    cells = [cell.strip() for cell in headings.strip("┃").split("┃")]
    assert cells == ["benchmark", "this", "less", "difference", "95 % interval", "p"]
    assert "+0.000 to +0.200" in shown


def test_the_validation_collection_of_a_data_set_is_evaluated_by_its_name(tmp_path):
    out = tmp_path / "out"
    call("data=hops", "benchmarks=[hops]", "part=validation", "limit=10", f"output_dir={out}")
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    assert [row["benchmark"] for row in rows] == ["hops-validation"]
    with pytest.raises(UsageError, match=r"part=dev does not exist\. Choices: test, validation"):
        call("data=hops", "benchmarks=[hops]", "part=dev")
