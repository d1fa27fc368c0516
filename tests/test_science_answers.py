"""How right an answer is, and what a text is worth by it."""

import json

import pytest

from experiments.science import answers
from search_r3.data.reasonings import load_reasonings
from search_r3.evaluation.results import PER_QUERY, REASONING, sealed

DIRECT = {"a": 0.25, "b": 0.5, "c": 0.75}
OWN = {"a": 0.5, "b": 0.25, "c": 0.5}
GIVEN = {"a": 0.5, "b": 0.75, "c": 1.0}
ANSWERS = {"a": "Planets orbit.", "b": "The moon.", "c": "Green plants grow."}
TEXTS = {
    "a": "the orbiting planets. the sun is a star.",
    "b": "a river. it flows.",
    "c": "plants die. they eat.",
}


def evaluation(folder, mode, scores, texts=None):
    """A folder as `src.evaluate` leaves it."""
    place = folder / "science" / mode
    place.mkdir(parents=True)
    lines = [
        {"query_id": query, "query": f"what is {query}?", "ndcg@10": value} for query, value in scores.items()
    ]
    (place / PER_QUERY).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    if texts:
        lines = [{"query_id": query, "reasoning": text} for query, text in texts.items()]
        (place / REASONING).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    mean = {"ndcg@10": sum(scores.values()) / len(scores)}
    row = {
        "benchmark": "science",
        "mode": mode,
        "model": "m",
        "n_queries": 3,
        "n_docs": 9,
        "metrics": mean,
    }
    sealed(place, {}, row | {"ci95": {"ndcg@10": [0.0, 1.0]}})


@pytest.mark.parametrize(
    ("written", "right", "f1"),
    [
        ("the orbiting planets. the sun is a star.", "Planets orbit.", 1.0),
        ("planets. planets orbit.", "Planets orbit.", 2 / 3),
        ("the moon.", "Planets orbit.", 0.0),
        ("", "Planets orbit.", 0.0),
        ("the of a", "the of a", 0.0),
    ],
)
def test_the_first_sentence_is_compared_by_stemmed_words(written, right, f1):
    assert answers.overlap(written, right) == pytest.approx(f1)


def test_the_share_needed_makes_the_wanted_gain():
    questions = [answers.Answered(0.0, 0.5, 0.4, 0.8), answers.Answered(1.0, 0.5, 0.7, 0.6)]

    share = answers.share_needed(questions, 0.05)

    assert share * 0.2 + (1 - share) * -0.1 == pytest.approx(0.05)


def test_evaluations_become_rows_by_how_right_the_answer_is(tmp_path, capsys):
    evaluation(tmp_path / "own", "direct", DIRECT)
    evaluation(tmp_path / "own", "reasoning", OWN, TEXTS)
    evaluation(tmp_path / "given", "given-reasoning", GIVEN, ANSWERS)
    file = tmp_path / "answers.json"

    command = ["--own", str(tmp_path / "own"), "--given", str(tmp_path / "given"), "--output", str(file)]
    command += ["--answers", str(tmp_path / "answers.jsonl")]

    assert answers.main(command) == 0
    found = json.loads(file.read_text())
    rows = {row["answer"]: row for row in found["rows"] if row["benchmark"] == "science"}
    gains = {answer: (row["n"], row["gain"]) for answer, row in rows.items()}
    assert gains == {
        "no word of it": (1, -0.25),
        "some words": (1, -0.25),  # one of the right answer's three words
        "right": (1, 0.25),
        "all": (3, pytest.approx(-1 / 12)),
    }
    assert found["share_needed"]["0.0"] == pytest.approx(0.5)  # 0.25 where right, -0.25 where wrong
    assert "right" in capsys.readouterr().out
    alone = {"a": "the orbiting planets.", "b": "a river.", "c": "plants die."}
    assert load_reasonings(tmp_path / "answers.jsonl") == alone


def test_a_missing_mode_is_named(tmp_path):
    evaluation(tmp_path, "direct", DIRECT)

    with pytest.raises(ValueError, match="0 evaluations of mode reasoning"):
        answers.evaluated(tmp_path, tmp_path)
