"""Triples from JSON lines and from Hugging Face data sets saved on disk."""

import gzip
import json
import os
from pathlib import Path

import datasets
import pytest

from search_r3.data.jsonl import DataError
from search_r3.data.triples import load_triples
from search_r3.stages.sft.collate import collate_sft
from tests.beir_folders import write_collection

ROWS = [
    {"query": "what lifts a wing", "positive": "pressure", "hard_negatives": ["feathers", "wind"]},
    {"query": "what melts snow", "positive": "heat", "hard_negatives": ["pressure"]},
    {"query": "what lifts a wing", "positive": "speed", "hard_negatives": ["heat"]},
]
ALL = {"validation_share": 0.0}


def write_rows(path: Path, rows: list[dict] | str) -> str:
    text = (
        rows if isinstance(rows, str) else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    )
    raw = text.encode("utf-8", "surrogateescape")
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return str(path)


def test_a_parquet_file_is_told_how_it_is_read(tmp_path):
    path = tmp_path / "rows" / "rows.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(path)

    with pytest.raises(DataError, match=r"rows\.parquet: is a Parquet file .* data\.dataset=<its folder>"):
        load_triples(str(path), **ALL)

    read = load_triples(dataset=str(path.parent), **ALL)
    assert [(row.query, row.positive) for row in read.examples] == [
        (row["query"], row["positive"]) for row in ROWS
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_become_examples_and_their_documents_the_corpus(tmp_path, name):
    data = load_triples(write_rows(tmp_path / name, ROWS), **ALL)
    assert [(row.query, row.positive) for row in data.examples] == [(r["query"], r["positive"]) for r in ROWS]
    assert [row.hard_negatives for row in data.examples] == [("feathers", "wind"), ("pressure",), ("heat",)]
    assert sorted(data.corpus.texts) == ["feathers", "heat", "pressure", "speed", "wind"]
    for row in data.examples:
        ids = (row.positive_id, *row.hard_negative_ids)
        texts = (row.positive, *row.hard_negatives)
        assert [data.corpus.texts[data.corpus.row_of[document]] for document in ids] == list(texts)
    assert all(row.reasoning is None for row in data.examples)
    assert sorted(data.texts) == sorted([*data.corpus.texts, "what lifts a wing", "what melts snow"])


def test_all_positives_of_equal_queries_are_relevant(tmp_path):
    data = load_triples(
        [write_rows(tmp_path / "a.jsonl", ROWS[:2]), write_rows(tmp_path / "b.jsonl", ROWS[2:])], **ALL
    )
    by_text = {data.corpus.texts[row]: document for document, row in data.corpus.row_of.items()}
    assert (
        data.examples[0].relevant_ids
        == data.examples[2].relevant_ids
        == {by_text["pressure"], by_text["speed"]}
    )
    assert len({row.id for row in data.examples}) == 3


def test_a_negative_that_another_row_calls_positive_is_left_out_and_counted(tmp_path, caplog):
    rows = [*ROWS, {"query": "what lifts a wing", "positive": "heat", "hard_negatives": ["speed", "rain"]}]
    data = load_triples(write_rows(tmp_path / "rows.jsonl", rows), **ALL)
    assert [row.hard_negatives for row in data.examples] == [
        ("feathers", "wind"),
        ("pressure",),
        (),
        ("rain",),
    ]
    assert data.card["hard_negatives_that_another_row_calls_positive"] == 2
    assert "2 hard negatives left out" in caplog.text
    assert not any(set(row.hard_negative_ids) & row.relevant_ids for row in data.examples)


def test_columns_map_other_layouts(tmp_path):
    several = [{"q": "alpha", "pos": ["one", "two"], "neg": ["three"], "why": "because", "n": 4}]
    columns = {"query": "q", "positive": "pos", "hard_negatives": "neg", "reasoning": "why", "id": "n"}
    first, second = load_triples(write_rows(tmp_path / "a.jsonl", several), columns=columns, **ALL).examples
    assert (first.positive, second.positive) == ("one", "two")
    assert first.relevant_ids == {first.positive_id, second.positive_id}
    assert (first.reasoning, first.id, second.id) == ("because", "4\t0", "4\t1")
    wide = [{"query": "a", "positive": "b", "n1": "c", "n2": "d"}]
    data = load_triples(
        write_rows(tmp_path / "b.jsonl", wide), columns={"hard_negatives": ["n1", "n2"]}, **ALL
    )
    assert data.examples[0].hard_negatives == ("c", "d")
    pairs = [{"query": "a", "positive": "b"}]
    data = load_triples(write_rows(tmp_path / "c.jsonl", pairs), columns={"hard_negatives": None}, **ALL)
    assert data.examples[0].hard_negatives == ()


def test_given_reasoning_is_kept_and_missing_reasoning_is_built_on_request(tmp_path):
    rows = [ROWS[0] | {"why": "<|embed_token|> by pressure"}, ROWS[1] | {"why": None}, ROWS[2]]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    data = load_triples(path, columns={"reasoning": "why"}, with_reasoning=True, **ALL)
    assert [row.reasoning for row in data.examples] == ["<|embed_token|> by pressure", "heat", "speed"]


BAD_ROWS = [
    ("nonsense\n", "one JSON object"),
    ("3\n", "got int"),
    ('{"query": "a", "query": "d", "positive": "b", "hard_negatives": []}\n', "key 'query' is given twice"),
    ({"positive": "b", "hard_negatives": ["c"]}, "'query' is missing"),
    ({"query": "a", "hard_negatives": ["c"]}, "'positive' is missing"),
    ({"query": "a", "positive": "b"}, "columns.hard_negatives=null"),
    (
        {"query": "a", "positive": "b", "hard_negatives": [None]},
        "hard_negatives[0] must be a string, got NoneType",
    ),
    ({"query": "a", "positive": "b", "hard_negatives": ""}, "'hard_negatives' must not be empty"),
    ({"query": "a", "positive": [], "hard_negatives": ["c"]}, "'positive' must not be empty"),
    ({"query": "", "positive": "b", "hard_negatives": ["c"]}, "'query' must not be empty"),
    ({"query": "a", "positive": " \n", "hard_negatives": ["c"]}, "'positive' must not be empty"),
    ({"query": "a", "positive": "b", "hard_negatives": ["c", ""]}, "hard_negatives[1] must not be empty"),
    ({"query": 1, "positive": "b", "hard_negatives": ["c"]}, "'query' must be a string, got int"),
    ({"query": "a", "positive": None, "hard_negatives": ["c"]}, "got NoneType"),
    ({"query": "a", "positive": "b", "hard_negatives": {"c": 1}}, "got dict"),
    (
        {"query": "a", "positive": "b", "hard_negatives": ["c", 4]},
        "hard_negatives[1] must be a string, got int",
    ),
    ({"query": "a", "positive": "b", "hard_negatives": ["b"]}, "must not be a positive of its row"),
    ({"query": "a", "positive": "b", "hard_negatives": ["c"], "why": ""}, "'why' must not be empty"),
    ({"query": "a", "positive": "b", "hard_negatives": ["c"], "why": 2}, "'why' must be a string"),
    (
        {"query": "a", "positive": "b", "hard_negatives": ["c"], "why": "so<|embed_token|>"},
        "'why' must not end with <|embed_token|>, which is added",
    ),
    ('{"query": "\udcff", "positive": "b", "hard_negatives": ["c"]}\n', "UTF-8"),
    ('{"query": "\\ud800", "positive": "b", "hard_negatives": ["c"]}\n', "surrogate"),
    ({"query": "a", "positive": "b", "hard_negatives": ["c"], "key": "x"}, "'x' occurs for the second time"),
    ({"query": "a", "positive": "b", "hard_negatives": ["c"], "key": "x\t0"}, "'key' must not hold tabs"),
]


def test_pitfall_23_a_row_without_hard_negatives_is_trained_on_beside_rows_that_have_them(tmp_path):
    empty = {"query": "q0", "positive": "p0", "hard_negatives": []}
    null = {"query": "q1", "positive": "p1", "hard_negatives": None}
    data = load_triples(write_rows(tmp_path / "rows.jsonl", [ROWS[0], empty, null]), **ALL)
    assert [row.hard_negatives for row in data.examples] == [("feathers", "wind"), (), ()]
    batch = collate_sft(data.examples, hard_negatives=1)
    assert (len(batch.examples), len(batch.documents)) == (3, 4)

    one = {"query": "a", "positive": "b", "n1": "c", "n2": None}
    none = {"query": "d", "positive": "e", "n1": None, "n2": None}
    columns = {"hard_negatives": ["n1", "n2"]}
    data = load_triples(write_rows(tmp_path / "wide.jsonl", [one, none]), columns=columns, **ALL)
    assert [row.hard_negatives for row in data.examples] == [("c",), ()]


@pytest.mark.parametrize(("bad", "rule"), BAD_ROWS)
def test_a_bad_row_is_one_error_with_file_line_and_rule(tmp_path, bad, rule):
    good = json.dumps(ROWS[0] | {"key": "x"}) + "\n\n"
    row = bad if isinstance(bad, str) else json.dumps({"key": "y"} | bad) + "\n"
    path = write_rows(tmp_path / "rows.jsonl", good + row)
    with pytest.raises(DataError) as caught:
        load_triples([path], columns={"reasoning": "why", "id": "key"})
    assert (caught.value.file, caught.value.line) == (path, 3)
    assert rule in caught.value.rule


def test_a_given_corpus_supplies_the_ids_and_must_hold_every_document(tmp_path):
    documents = [
        {"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(["pressure", "wind", "unused"])
    ]
    corpus = write_rows(tmp_path / "corpus.jsonl", documents)
    rows = [{"query": "q", "positive": "pressure", "hard_negatives": ["wind"]}]
    data = load_triples(write_rows(tmp_path / "good.jsonl", rows), corpus=corpus, **ALL)
    assert (data.examples[0].positive_id, data.examples[0].hard_negative_ids) == ("d0", ("d1",))
    assert list(data.corpus.ids) == ["d0", "d1", "d2"]
    rows.append({"query": "q", "positive": "elsewhere", "hard_negatives": ["wind"]})
    bad = write_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match=r"bad.jsonl, line 2: document not in .*corpus.jsonl: 'elsewhere'$"):
        load_triples(bad, corpus=corpus, **ALL)
    titled = write_rows(tmp_path / "titled.jsonl", [*documents, {"_id": "t", "title": "On", "text": "snow"}])
    with pytest.raises(DataError, match=r"'elsewhere'; its title and text, joined by one blank"):
        load_triples(bad, corpus=titled, **ALL)


def test_a_given_corpus_may_hold_empty_documents_where_that_is_said(tmp_path):
    documents = [{"_id": f"d{n}", "text": text} for n, text in enumerate(["", "heat", " ", "pressure"])]
    corpus = write_rows(tmp_path / "corpus.jsonl", documents)
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[1:2])
    with pytest.raises(DataError, match=r"corpus.jsonl, line 1: .*allow_empty_documents=true keeps such"):
        load_triples(rows, corpus=corpus, **ALL)
    data = load_triples(rows, corpus=corpus, allow_empty_documents=True, **ALL)
    assert list(data.corpus.ids) == ["d0", "d1", "d2", "d3"]
    assert (data.examples[0].positive_id, data.examples[0].hard_negative_ids) == ("d1", ("d3",))


def test_a_saved_hugging_face_data_set_gives_the_rows_of_the_file(tmp_path):
    table = datasets.Dataset.from_list([{"anchor": row["query"]} | row for row in ROWS])
    table.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": table, "other": table.select([1])}).save_to_disk(tmp_path / "splits")
    expected = load_triples(write_rows(tmp_path / "rows.jsonl", ROWS), **ALL).examples
    columns = {"query": "anchor"}
    assert load_triples(dataset=tmp_path / "plain", columns=columns, **ALL).examples == expected
    assert load_triples(dataset=str(tmp_path / "splits"), columns=columns, **ALL).examples == expected
    other = load_triples(dataset=str(tmp_path / "splits"), dataset_split="other", **ALL)
    assert [row.query for row in other.examples] == ["what melts snow"]
    with pytest.raises(DataError, match="no split 'dev'; splits: train, other"):
        load_triples(dataset=str(tmp_path / "splits"), dataset_split="dev")
    with pytest.raises(DataError, match=r"plain: is one data set, which has no split 'dev'; leave"):
        load_triples(dataset=tmp_path / "plain", dataset_split="dev")
    with pytest.raises(DataError, match=r"plain, line 1: key 'question' is missing"):
        load_triples(dataset=str(tmp_path / "plain"), columns={"query": "question"})


@pytest.mark.parametrize(
    ("content", "below", "options", "message"),
    [
        (json.dumps(ROWS[0]), "rows.jsonl", {}, r"rows\.jsonl: is a file where dataset= is"),
        (json.dumps(ROWS[0]), "other", {}, "other: no such folder$"),
        (json.dumps(ROWS[0]), "", {"dataset_split": "dev"}, r"data set \(.*dev.*'train'"),
        (json.dumps(ROWS[0]), "", {"dataset_config": "de"}, r"data set \(.*'de'.*default"),
        ("{", "", {}, r"cannot be read as a data set \("),
    ],
)
def test_what_is_no_data_set_is_told_with_its_name_and_asks_no_hub(
    tmp_path, content, below, options, message
):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_triples(dataset=str(tmp_path / below), **options)
    assert str(caught.value).startswith(str(tmp_path / below))


def test_a_name_of_reasonings_that_no_row_has_is_refused_and_rows_without_are_counted(tmp_path, caplog):
    rows = [ROWS[0] | {"thought": "air"}, ROWS[1] | {"thought": None}, ROWS[2]]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"rows\.jsonl: columns\.reasoning=thoughts: no row has this key"):
        load_triples(path, columns={"reasoning": "thoughts"}, **ALL)
    for with_reasoning, outcome in ((False, "is not trained"), (True, "get the cold-start reasoning")):
        caplog.clear()
        load_triples(path, columns={"reasoning": "thought"}, with_reasoning=with_reasoning, **ALL)
        (line,) = [text for text in caplog.messages if "no reasoning" in text]
        assert "2 of 3 rows have no reasoning under 'thought' (the first: " in line
        assert "rows.jsonl, line 2)" in line
        assert outcome in line


def test_held_out_queries_are_no_training_rows_and_search_the_whole_corpus(tmp_path):
    rows = [
        {"query": f"query {n // 2}", "positive": f"document {n}", "hard_negatives": [f"other {n}"]}
        for n in range(200)
    ]
    data = load_triples(write_rows(tmp_path / "rows.jsonl", rows), validation_share=0.3)
    training = {row.query for row in data.examples}
    held_out = set(data.validation.queries.values())
    assert training | held_out == {f"query {n}" for n in range(100)}
    assert not training & held_out
    assert 10 < len(held_out) < 50  # binomial with mean 30, standard deviation 4.6
    assert all(len(grades) == 2 for grades in data.validation.qrels.values())
    assert data.validation.corpus is data.corpus
    assert not held_out & set(data.texts)


def test_blanks_around_a_query_do_not_part_its_rows(tmp_path):
    rows = [
        {"query": f"{before}query {n}{after}", "positive": f"p{n}{after}", "hard_negatives": []}
        for n in range(40)
        for before, after in (("", ""), (" ", "\n"))
    ]
    data = load_triples(write_rows(tmp_path / "rows.jsonl", rows), validation_share=0.3)
    trained = {row.query.strip() for row in data.examples}
    assert trained.isdisjoint(query.strip() for query in data.validation.queries.values())
    assert len(data.validation.queries) == 2 * (40 - len(trained)) > 0


def test_rows_with_a_query_of_the_test_folder_are_left_out_and_counted(tmp_path, caplog):
    folder = write_collection(tmp_path / "held_out")  # asks q30 and q31
    queries = ["query number 30", "query number 29", " query number 31\n", "query number 30"]
    rows = [{"query": query, "positive": f"p{n}", "hard_negatives": []} for n, query in enumerate(queries)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    caplog.clear()

    data = load_triples(file, test=folder, validation_share=0)

    assert [row.positive for row in data.examples] == ["p1"]
    assert "triples: 2 training queries are judged in held_out and left out" in caplog.messages
    assert list(data.corpus.texts) == ["p0", "p1", "p2", "p3"]
    assert set(data.test.queries) == {"q30", "q31"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of files"),
        ({"files": ["a"], "dataset": "b"}, "exactly one of files"),
        ({"files": []}, "list is empty"),
        ({"files": ["a"], "columns": {"querry": "q"}}, "unknown field querry"),
        ({"files": ["a"], "columns": {"query": None}}, "columns.query must name one key"),
        ({"files": ["a"], "validation_share": 1.0}, "validation_share"),
        ({"files": ["/no/such/file.jsonl"]}, "no such file"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_triples(**options)


def test_an_empty_file_is_named_and_an_empty_shard_beside_others_is_not(tmp_path):
    empty, full = write_rows(tmp_path / "empty.jsonl", "\n"), write_rows(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DataError, match=r"empty\.jsonl: no row stands there"):
        load_triples(empty)
    assert len(load_triples([empty, full], validation_share=0).examples) == len(ROWS)


def test_what_is_no_file_is_told_as_what_it_is(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, rule in (("folder", "is a folder where a file is expected"), ("pipe", "is a pipe or a device")):
        with pytest.raises(DataError, match=rf"{name}\.jsonl: {rule}"):
            load_triples(str(tmp_path / f"{name}.jsonl"))


def test_what_is_odd_and_kept_is_said_in_one_line_each(tmp_path, caplog):
    rows = [*ROWS, {"query": "42", "positive": "3.14", "hard_negatives": ["?", "none"]}]
    data = load_triples(write_rows(tmp_path / "rows.jsonl", rows), validation_share=1e-9)
    assert len(data.examples) == 4
    assert data.validation is None
    assert [record.getMessage() for record in caplog.records] == [
        "triples: no validation rows (1e-09 of 4 rows); nothing is evaluated while training",
        f"triples: 1 queries hold no letter (the first: {tmp_path}/rows.jsonl, line 4); they are kept",
        f"triples: 2 documents hold no letter (the first: {tmp_path}/rows.jsonl, line 4); they are kept",
    ]
