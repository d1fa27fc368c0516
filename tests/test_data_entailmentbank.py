"""The science task: parts of its training questions, its reasonings, and reasonings of any collection."""

import json
import logging

import pytest

from search_r3.data.beir.training import load_beir_training
from search_r3.data.entailmentbank import Parts, load_entailmentbank, question_parts, short_reasoning
from search_r3.data.jsonl import DataError
from search_r3.data.reasonings import load_reasonings

N_TRAIN, N_DEV = 12, 3
PARTS = Parts(set_aside=4, tuning=2, rl_only=2)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    return write_bank(tmp_path / "bank")


def write_bank(root, n_train=N_TRAIN):
    """Training questions with two facts each, three dev questions, and a fact that nobody judges."""
    queries = [f"q{n}" for n in range(n_train + N_DEV)]
    write_lines(
        root / "corpus.jsonl", [{"_id": f"f{n}", "text": f"fact {n}"} for n in range(2 * len(queries) + 1)]
    )
    write_lines(root / "queries.jsonl", [{"_id": query, "text": f"why {query}?"} for query in queries])
    write_lines(
        root / "explanations.jsonl",
        [
            {"_id": query, "answer": f"since {query}.", "hypothesis": f"{query} is so", "steps": steps(n)}
            for n, query in enumerate(queries)
        ],
    )
    for split, part in (("train", queries[:n_train]), ("dev", queries[n_train:])):
        rows = [f"{query}\tf{2 * int(query[1:]) + k}\t1\n" for query in part for k in (0, 1)]
        (root / "qrels").mkdir(exist_ok=True)
        (root / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return root


def steps(n):
    return [f"step {k} of {n}" for k in range(n % 5)]


def questions_of(data):
    return {example.query for example in data.examples}


def test_every_training_question_has_one_purpose_and_dev_is_the_test(folder):
    sft = load_entailmentbank(folder, "sft", parts=PARTS)
    unseen = load_entailmentbank(folder, "rl", "unseen", parts=PARTS)
    aside = load_entailmentbank(folder, test_part="set_aside", parts=PARTS)

    tuning, set_aside = set(sft.validation.queries.values()), set(aside.test.queries.values())
    parts = [questions_of(sft), questions_of(unseen), tuning, set_aside]
    assert list(map(len, parts)) == [4, 2, 2, 4]
    assert len(set.union(*parts)) == N_TRAIN  # so no two parts share a question
    assert sorted(sft.test.queries) == ["q12", "q13", "q14"]
    assert sft.test.qrels["q13"] == {"f26": 1, "f27": 1}
    assert len(sft.corpus) == len(sft.test.corpus) == len(aside.test.corpus) == 31
    assert {sft.test.name, aside.test.name} == {"entailmentbank-dev", "entailmentbank-set-aside"}
    assert sft.card["parts"] == {"set_aside": 4, "tuning": 2, "rl_only": 2, "sft": 4}
    assert not (set_aside | tuning) & set(sft.texts)


def test_the_test_questions_are_asked_where_the_folder_judges_them(folder):
    with pytest.raises(DataError, match=r"qrels.test\.tsv: no such split; splits of this folder: dev, train"):
        load_entailmentbank(folder, test_part="test", parts=PARTS)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq99\tf3\t1\n")
    with (folder / "queries.jsonl").open("a") as file:
        file.write('{"_id": "q99", "text": "why not?"}\n')

    asked = load_entailmentbank(folder, test_part="test", parts=PARTS)
    assert (asked.test.name, asked.test.qrels) == ("entailmentbank-test", {"q99": {"f3": 1}})
    assert asked.examples == load_entailmentbank(folder, parts=PARTS).examples
    assert asked.validation.queries == load_entailmentbank(folder, parts=PARTS).validation.queries


def test_what_rl_trains_on_is_a_choice(folder):
    sft = questions_of(load_entailmentbank(folder, "sft", parts=PARTS))
    unseen = questions_of(load_entailmentbank(folder, "rl", "unseen", parts=PARTS))

    assert questions_of(load_entailmentbank(folder, "rl", "shared", parts=PARTS)) == sft
    assert questions_of(load_entailmentbank(folder, "rl", "both", parts=PARTS)) == sft | unseen
    assert questions_of(load_entailmentbank(folder, "all", parts=PARTS)) == sft | unseen
    for key, value in (("split", "dev"), ("rl_questions", "none"), ("test_part", "train")):
        with pytest.raises(ValueError, match=rf"{key} must be one of .*got '{value}'"):
            load_entailmentbank(folder, **{key: value}, parts=PARTS)


def test_the_parts_do_not_depend_on_the_order_of_the_files():
    questions = [f"q{n}" for n in range(40)]
    parts = Parts(set_aside=10, tuning=5, rl_only=7)

    forward, backward = question_parts(questions, parts), question_parts(questions[::-1], parts)

    assert {name: set(of) for name, of in forward.items()} == {name: set(of) for name, of in backward.items()}
    assert list(map(len, forward.values())) == [10, 5, 7, 18]
    with pytest.raises(ValueError, match="ask for 22 of 21 questions"):
        question_parts(questions[:21], parts)
    with pytest.raises(ValueError, match=r"parts.tuning must not be negative"):
        Parts(set_aside=0, tuning=-1, rl_only=0)


def test_a_row_carries_the_answer_and_at_most_three_facts(folder):
    data = load_entailmentbank(folder, "all", parts=Parts(0, 1, 0))
    reasoning = {example.id.split("\t")[0]: example.reasoning for example in data.examples}

    for query in reasoning:
        n = int(query[1:])
        facts = [f"step {k} of {n}" for k in range(min(n % 5, 3))] or [f"{query} is so"]
        assert reasoning[query] == ". ".join([f"since {query}", *facts]) + "."
    assert {int(query[1:]) % 5 for query in reasoning} == {0, 1, 2, 3, 4}
    assert short_reasoning(" Yes. ", "so it is", ["a", "b"], max_facts=0) == "Yes."


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("answer", "since q3."),
        ("filler", ". . . . . . . . . . . . . ."),  # 2 words and thrice 4
        ("none", None),
    ],
)
def test_rivals_of_the_human_reasoning_are_taught_in_its_place(folder, kind, text):
    data = load_entailmentbank(folder, "all", parts=Parts(0, 1, 0), reasoning=kind)
    found = {example.id.split("\t")[0]: example.reasoning for example in data.examples}

    assert found["q3"] == text
    assert data.card["reasoning"] == kind
    with pytest.raises(ValueError, match=r"reasoning must be one of human, answer, filler, none, got 'x'"):
        load_entailmentbank(folder, parts=PARTS, reasoning="x")


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"_id": "q1", "answer": "a", "hypothesis": "h", "steps": []}, "occurs for the second time"),
        ({"_id": "x", "answer": "a", "hypothesis": "h", "steps": "s"}, "'steps' must be a list of strings"),
        ({"_id": "x", "answer": "a", "hypothesis": "h", "steps": [3]}, r"steps\[0\] must be a string"),
        ({"_id": "x", "answer": " ", "hypothesis": "h", "steps": []}, "'answer' must not be empty"),
        ({"_id": "x", "answer": "a", "steps": []}, "key 'hypothesis' is missing"),
    ],
)
def test_a_bad_explanation_is_named_by_file_and_line(folder, row, rule):
    file = folder / "explanations.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, json.dumps(row)]) + "\n")

    with pytest.raises(DataError, match=rf"explanations.jsonl, line {len(lines) + 1}: .*{rule}"):
        load_entailmentbank(folder, parts=PARTS)


# Reasonings of any collection


def test_rows_of_a_beir_folder_carry_the_reasoning_of_a_file_and_the_others_are_counted(folder, caplog):
    file = folder.parent / "texts.jsonl"
    write_lines(file, [{"_id": f"q{n}", "text": f"reason {n}"} for n in (0, 2, 13)])

    with caplog.at_level(logging.WARNING):
        data = load_beir_training(folder, reasonings=str(file))

    found = {example.id.split("\t")[0]: example.reasoning for example in data.examples}
    assert {query: text for query, text in found.items() if text} == {"q0": "reason 0", "q2": "reason 2"}
    assert data.card["train_queries_without_a_given_reasoning"] == N_TRAIN - 2
    assert data.card["reasonings"] == str(file)
    message = f"{file}: 10 of 12 queries have no reasoning (the first: 'q1'); their reasoning is not trained"
    assert message in caplog.messages


def test_with_reasoning_fills_what_the_file_leaves(folder):
    file = folder.parent / "texts.jsonl"
    write_lines(file, [{"_id": "q0", "text": "reason 0"}])

    filled = load_beir_training(folder, reasonings=str(file), with_reasoning=True)
    without = load_beir_training(folder, with_reasoning=True)

    assert [row.reasoning for row in filled.examples[:2]] == ["reason 0"] * 2
    assert [row.reasoning for row in filled.examples[2:]] == [row.reasoning for row in without.examples[2:]]


def test_a_file_without_a_reasoning_of_a_training_query_is_refused(folder):
    file = folder.parent / "texts.jsonl"
    write_lines(file, [{"_id": "q13", "text": "of a held-out query"}])
    with pytest.raises(DataError, match=r"not one is of a query of .*'s training rows \(the first: 'q13'\)"):
        load_beir_training(folder, reasonings=str(file))

    write_lines(file, [{"_id": "x" * 5000, "text": "of no query"}])
    with pytest.raises(DataError, match=r"line 1: _id 'x+'.* is no query of this collection") as told:
        load_beir_training(folder, reasonings=str(file))
    assert len(str(told.value)) < 400


def test_texts_that_an_evaluation_has_left_are_read(folder):
    file = folder.parent / "reasoning.jsonl"
    written = {"tokens": 3, "has_embed_token": True}
    write_lines(
        file,
        [
            {"query_id": name, "query": "?", "reasoning": text, **written}
            for name, text in (("q0", "a"), ("q1", ""))
        ],
    )

    assert load_reasonings(file) == {"q0": "a", "q1": ""}


@pytest.mark.parametrize(
    ("rows", "place", "rule"),
    [
        ([{"_id": "q0", "text": "a"}, {"_id": "q0", "text": "b"}], ", line 2", "occurs for the second time"),
        ([{"_id": "nobody", "text": "a"}], ", line 1", "'nobody' is no query of this collection"),
        ([{"_id": "q0", "text": "  "}], ", line 1", "'text' must not be empty"),
        (
            [{"_id": "q0", "text": "a <|embed_token|>\n"}],
            ", line 1",
            "'text' must not end with <.embed_token.>",
        ),
        ([{"_id": "q0"}], ", line 1", "key 'text' is missing"),
        ([{"query_id": "q0"}], ", line 1", "key '_id' is missing"),
        ([{"query_id": "q0", "reasoning": None}], ", line 1", "'reasoning' must be a string"),
        ([{"query_id": "nobody", "reasoning": ""}], ", line 1", "query_id 'nobody' is no query"),
        ([{"_id": 0, "text": "a"}], ", line 1", "'_id' must be a string"),
        ([], "", "the file holds no reasonings"),
    ],
)
def test_a_bad_reasoning_is_named_by_file_and_line(folder, rows, place, rule):
    file = folder.parent / "texts.jsonl"
    write_lines(file, rows)

    with pytest.raises(DataError, match=rf"texts.jsonl{place}: .*{rule}"):
        load_beir_training(folder, reasonings=str(file))
    with pytest.raises(DataError, match="no such file"):
        load_reasonings(folder.parent / "absent.jsonl")


def test_the_real_collection_has_the_sizes_that_are_stated(beir_root):
    folder = beir_root / "entailmentbank"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    data = load_entailmentbank(folder)

    assert data.card["parts"] == {"set_aside": 400, "tuning": 108, "rl_only": 200, "sft": 600}
    assert (len(data.test.queries), len(data.corpus)) == (187, 11399)
    assert all(example.reasoning for example in data.examples)
