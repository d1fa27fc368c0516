"""Training rows of a folder in BEIR layout: which queries are trained on, and with what."""

import csv
import json
import os
from pathlib import Path

import pytest
from beir_folders import UNMATCHED, lines, qrels, write_collection

from search_r3.data.beir.training import load_beir_training
from search_r3.data.jsonl import DataError
from search_r3.stages.data import thinned

BEIR = Path(os.environ.get("SEARCH_R3_BEIR", Path(__file__).resolve().parents[2] / "shared" / "beir"))
needs_scifact = pytest.mark.skipif(not (BEIR / "scifact").is_dir(), reason=f"no SciFact under {BEIR}")

HELD_OUT = {
    "in the test set": (["q0", "q1"], 0.0, r"of 2, 2 are judged in test too, .*data\.test_split$"),
    "for validation": (
        ["q0"],
        0.9999,
        r"of 2, 1 are judged in test too and 1 are held out for validation, .* lower data\.validation_share$",
    ),
}


@pytest.mark.parametrize("case", HELD_OUT)
def test_where_no_training_query_is_left_the_message_says_what_holds_them_out(tmp_path, case):
    tested, share, words = HELD_OUT[case]
    train = qrels([("q0", "d1", 1), ("q1", "d3", 1)])
    folder = write_collection(tmp_path, train=train, test=qrels([(query, "d1", 1) for query in tested]))

    with pytest.raises(ValueError, match=words):
        load_beir_training(folder, validation_share=share)


def test_training_rows_are_the_relevant_pairs_of_the_train_split(tmp_path):
    data = load_beir_training(write_collection(tmp_path), validation_share=0.2, with_reasoning=True)
    held_out = data.validation.queries.keys()
    assert 0 < len(held_out) < 15
    assert data.test.queries.keys() == {"q30", "q31"}
    pairs = {(row.query.split()[-1], row.positive_id) for row in data.examples}
    expected = {(str(n), "d1") for n in range(30) if f"q{n}" not in held_out}
    assert pairs == expected | ({("0", "d3")} if "q0" not in held_out else set())
    assert len({row.id for row in data.examples}) == len(data.examples)
    assert all(
        row.positive == data.corpus.texts[data.corpus.row_of[row.positive_id]] for row in data.examples
    )
    assert all(row.reasoning for row in data.examples)
    running = list(data.texts)
    assert len(running) == 4 + len({row.query for row in data.examples})
    assert not set(data.validation.queries.values()) & set(running)


def test_rows_have_reasoning_only_where_it_is_asked_for(tmp_path):
    folder = write_collection(tmp_path)
    assert {example.reasoning for example in load_beir_training(folder, validation_share=0.2).examples} == {
        None
    }
    asked = load_beir_training(folder, validation_share=0.2, with_reasoning=True).examples
    assert all(isinstance(example.reasoning, str) for example in asked)


def test_every_relevant_document_of_a_query_is_known_and_grade_zero_is_none(tmp_path):
    data = load_beir_training(write_collection(tmp_path), validation_share=0.0)
    rows = [row for row in data.examples if row.query == "query number 0"]
    assert {row.positive_id for row in rows} == {"d1", "d3"}
    assert all(row.relevant_ids == {"d1", "d3"} for row in rows)
    assert all(row.grades == (("d3", 2.0),) for row in rows)
    strict = load_beir_training(tmp_path, validation_share=0.0, min_grade=2)
    assert [(row.positive_id, row.excluded_ids) for row in strict.examples] == [("d3", {"d1"})]
    assert data.validation is None


def test_a_dev_split_is_the_validation_and_a_query_judged_in_it_is_no_training_row(tmp_path):
    folder = write_collection(tmp_path, dev=qrels([("q5", "d2", 1), ("q35", "d2", 1)]))
    data = load_beir_training(folder)
    assert data.validation.queries.keys() == {"q5", "q35"}
    assert "query number 5" not in {row.query for row in data.examples}
    assert len({row.query for row in data.examples}) == 29


def test_a_training_query_judged_in_the_test_split_is_left_out_and_said(tmp_path, caplog):
    folder = write_collection(tmp_path, test=qrels([("q3", "d2", 1)]))
    data = load_beir_training(folder, validation_share=0.0)
    assert "query number 3" not in {row.query for row in data.examples}
    assert "1 training queries are judged in test" in caplog.text


def test_a_training_query_with_the_text_of_a_held_out_one_is_left_out_and_said(tmp_path, caplog):
    queries = [{"_id": f"q{n}", "text": f"query number {n}"} for n in range(6)]
    queries[1]["text"], queries[3]["text"] = "query number 4 ", "query number 5"
    folder = write_collection(
        tmp_path,
        queries=lines(queries),
        train=qrels([(f"q{n}", "d1", 1) for n in range(4)]),
        dev=qrels([("q5", "d1", 1)]),
        test=qrels([("q4", "d1", 1)]),
    )
    data = load_beir_training(folder)
    assert [row.query for row in data.examples] == ["query number 0", "query number 2"]
    assert "1 training queries are judged in test and left out" in caplog.text
    assert data.card["train_queries_held_out"] == 2


def test_a_training_query_with_the_text_of_a_test_query_is_in_no_share_for_validation(tmp_path):
    queries = [{"_id": f"q{n}", "text": f"query number {n % 30}"} for n in range(60)]
    train = qrels([(f"q{n}", "d1", 1) for n in range(30)])
    test = qrels([(f"q{n}", "d1", 1) for n in range(30, 45)])
    data = load_beir_training(
        write_collection(tmp_path, queries=lines(queries), train=train, test=test), validation_share=0.5
    )
    assert not set(data.validation.queries.values()) & set(data.test.queries.values())
    assert 0 < len(data.validation.queries) == 15 - len(data.examples)


def test_a_training_query_without_a_positive_is_refused_and_one_without_a_line_is_not(tmp_path):
    rows = [("q0", "d1", 1), ("q1", "d1", 0), ("q1", "d2", -1), ("q2", "d3", 0), ("q3", "d1", 2)]
    folder = write_collection(tmp_path, train=qrels(rows), test=qrels([("q2", "d3", 0), ("q9", "d1", 1)]))
    with pytest.raises(DataError) as caught:
        load_beir_training(folder, validation_share=0.0)
    assert caught.value.file == str(folder / "qrels" / "train.tsv")
    assert "query 'q1' has judgements and no positive among them" in caught.value.rule
    assert "1 of 3 queries have none" in caught.value.rule  # q2 is held out for the test, which counts it
    assert "take its lines out, or give it a document of grade 1 or more" in caught.value.rule

    (folder / "qrels" / "train.tsv").write_text(qrels([row for row in rows if row[0] != "q1"]))
    data = load_beir_training(folder, validation_share=0.0)  # q1 is still in queries.jsonl
    assert [row.query for row in data.examples] == ["query number 0", "query number 3"]
    assert data.test.qrels == {"q2": {"d3": 0}, "q9": {"d1": 1}}


def test_held_out_training_queries_without_a_positive_are_counted_as_in_the_test_split(tmp_path):
    folder = write_collection(tmp_path, train=qrels([(f"q{n}", "d1", 1) for n in range(30)]))
    held_out = sorted(load_beir_training(folder, validation_share=0.2).validation.queries)
    rows = [(f"q{n}", "d1", int(f"q{n}" != held_out[0])) for n in range(30)]
    data = load_beir_training(write_collection(tmp_path, train=qrels(rows)), validation_share=0.2)
    assert data.validation.qrels[held_out[0]] == {"d1": 0}


def test_queries_that_min_grade_leaves_out_are_counted_aloud(tmp_path, caplog):
    folder = write_collection(tmp_path, train=qrels([("q0", "d1", 1), ("q1", "d1", 2), ("q2", "d1", 0)]))
    with pytest.raises(DataError, match=r"query 'q2'.*1 of 3 queries.*grade 2 or more"):
        load_beir_training(folder, validation_share=0.0, min_grade=2)
    (folder / "qrels" / "train.tsv").write_text(qrels([("q0", "d1", 1), ("q1", "d1", 2)]))
    data = load_beir_training(folder, validation_share=0.0, min_grade=2)
    assert [row.query for row in data.examples] == ["query number 1"]
    assert "1 of 2 queries have no document of min_grade=2" in caplog.text
    every = load_beir_training(
        write_collection(tmp_path, train=qrels([("q2", "d1", 0)])), validation_share=0.0, min_grade=0
    )
    assert [row.query for row in every.examples] == ["query number 2"]


def test_training_on_a_collection_with_missing_documents_leaves_out_what_cannot_be_read(tmp_path, caplog):
    train = [("q0", "d1", 1), ("q0", "gone", 1), ("q1", "gone", 1), ("q1", "d2", 0), ("q2", "d3", 2)]
    folder = write_collection(
        tmp_path, train=qrels(train), dev=qrels([("q5", "gone", 1), ("q5", "d2", 1)]), **UNMATCHED
    )
    with pytest.raises(DataError, match="'gone' is not in the corpus"):
        load_beir_training(folder)
    data = load_beir_training(folder, allow_unmatched_judgements=True)
    assert [(row.query[-1], row.positive_id, row.relevant_ids) for row in data.examples] == [
        ("0", "d1", {"d1"}),
        ("2", "d3", {"d3"}),
    ]
    assert "1 of 3 training queries have no positive in the corpus (the first: 'q1')" in caplog.text
    assert data.validation.qrels == {"q5": {"gone": 1, "d2": 1}}
    assert thinned(data.validation, 5, 2, seed=0).qrels == data.validation.qrels
    assert (data.test.judged_documents_missing, data.test.judged_queries_missing) == (2, 1)


def test_training_without_validation_rows_or_a_test_split_says_so(tmp_path, caplog):
    folder = write_collection(tmp_path)
    assert load_beir_training(folder, validation_share=1e-9, test_split="tset").validation is None
    assert "no validation rows (1e-09 of 30 queries in train)" in caplog.text
    assert f"no test collection: {folder} has no qrels/tset.tsv" in caplog.text
    caplog.clear()
    assert load_beir_training(folder, validation_share=0.2).validation is not None
    assert caplog.records == []


@needs_scifact
def test_scifact_is_read_as_other_programs_read_it():
    data = load_beir_training(BEIR / "scifact")
    documents = [json.loads(line) for line in (BEIR / "scifact" / "corpus.jsonl").open(encoding="utf-8")]
    assert len(data.corpus) == len(documents) == 5183
    assert data.corpus.texts[17] == documents[17]["title"] + " " + documents[17]["text"]
    with (BEIR / "scifact" / "qrels" / "train.tsv").open() as file:
        pairs = [(row["query-id"], row["corpus-id"]) for row in csv.DictReader(file, delimiter="\t")]
    with (BEIR / "scifact" / "queries.jsonl").open(encoding="utf-8") as file:
        asked = {row["_id"]: row["text"] for row in map(json.loads, file)}
    held_out = data.validation.queries | data.test.queries
    held_out_texts = {asked[query] for query in held_out}
    kept = {pair for pair in pairs if asked[pair[0]] not in held_out_texts}
    assert {tuple(row.id.split("\t")) for row in data.examples} == kept
    assert len({query for query, _ in pairs if asked[query] in held_out_texts} - held_out.keys()) == 2
    assert len(data.test.queries) == 300
    assert not set(data.test.queries.values()) & set(data.validation.queries.values())


@needs_scifact
def test_the_validation_share_is_the_same_on_every_call():
    first, second = (load_beir_training(BEIR / "scifact").validation for _ in range(2))
    assert first.queries == second.queries
    # 809 training queries, binomial with share 0.1: standard deviation 8.5
    assert abs(len(first.queries) - 81) < 35
