"""The collection of school science is built out of a clone of its source."""

import hashlib
import json
import os
import shlex
from pathlib import Path

import pytest

from search_r3.data.entailmentbank import load_entailmentbank
from search_r3.data.entailmentbank_source import ANNOTATED, FACTS, PINNED, QUESTIONS, Pinned, build, words
from search_r3.entailmentbank import main
from search_r3.errors import UsageError

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "sources"
SOURCES = Path(os.environ.get("SEARCH_R3_SOURCES", DEFAULT)) / "entailment_bank"
CORPUS = {
    "u0": "DUMMY",
    "u1": "a star produces light",
    "u2": "The sun is a (kind of) star",
    "u3": "a star  produces LIGHT.",  # the words of u1
    "u4": "El niño warms the ocean",
    "u5": "day and night alternate",
}
CONTEXT = "sent1: a star produces light sent2: the sun is a kind of star sent3: nobody has this one"


def asked(name: str, question: str, context: str, proof: str, answer="b") -> dict:
    text = (
        f"$proof$ ; $question$ = {question} ; $answer$ = {answer} ; $hypothesis$ = h ; $context$ = {context}"
    )
    return {"id": name, "input": text, "output": f"$proof$ = {proof}", "angle": []}


ROWS = {
    QUESTIONS["train"]: [
        asked("t1", "Why is it bright? (A; B)", CONTEXT, "sent1 -> int1: it shines; int1 -> hypothesis;"),
        asked("t2", "What warms?", "sent1: el niño warms the ocean", "sent1 -> hypothesis; ", "first"),
        asked("t3", "Unknown?", "sent1: nobody has this one", "sent1 -> hypothesis; "),
        asked("t2", "What warms?", "sent1: day and night alternate", "sent1 -> hypothesis; ", "second"),
    ],
    QUESTIONS["dev"]: [asked("d1", "Bright?", "sent1: day and night alternate", "sent1 -> hypothesis; ")],
    ANNOTATED: [
        {"id": "d1", "meta": {"worldtree_provenance": {"sent1": {"uuid": "u3"}, "x": {"uuid": "gone"}}}}
    ],
}  # fmt: skip
EXPECTED = {
    "corpus.jsonl": [
        {"_id": "f0", "title": "", "text": "a star produces light"},
        {"_id": "f1", "title": "", "text": "The sun is a (kind of) star"},
        {"_id": "f2", "title": "", "text": "El niño warms the ocean"},
        {"_id": "f3", "title": "", "text": "day and night alternate"},
    ],
    "queries.jsonl": [
        {"_id": "t1", "text": "Why is it bright? (A; B)"},
        {"_id": "t2", "text": "What warms?"},
        {"_id": "d1", "text": "Bright?"},
    ],
    "explanations.jsonl": [
        {"_id": "t1", "answer": "b", "hypothesis": "h", "steps": ["it shines"]},
        {"_id": "t2", "answer": "second", "hypothesis": "h", "steps": []},
        {"_id": "d1", "answer": "b", "hypothesis": "h", "steps": []},
    ],
}
JUDGED = {"train": "t1\tf0\t1\nt1\tf1\t1\nt2\tf3\t1\n", "dev": "d1\tf0\t1\nd1\tf3\t1\n"}


def sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


@pytest.fixture
def clone(tmp_path) -> tuple[Path, Pinned]:
    """A tiny repository of the same layout, and what is pinned of it and of the collection."""
    root = tmp_path / "a clone"
    contents = {FACTS: json.dumps(CORPUS)}
    contents |= {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in ROWS.items()}
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    written = {
        name: sha256("".join(json.dumps(row) + "\n" for row in rows)) for name, rows in EXPECTED.items()
    }
    written |= {
        f"qrels/{split}.tsv": sha256(f"query-id\tcorpus-id\tscore\n{rows}") for split, rows in JUDGED.items()
    }
    read = {name: sha256(content) for name, content in contents.items()}
    return root, Pinned("abcdef0123", read, written)


def test_the_collection_is_what_the_rules_say_and_a_second_call_finds_it(clone, tmp_path):
    root, pinned = clone
    folder = tmp_path / "made"

    assert build(root, folder, pinned)
    for name, rows in EXPECTED.items():
        assert [json.loads(line) for line in (folder / name).read_text().splitlines()] == rows
    for split, rows in JUDGED.items():
        assert (folder / "qrels" / f"{split}.tsv").read_text() == f"query-id\tcorpus-id\tscore\n{rows}"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {*pinned.written}
    assert not build(root, folder, pinned)
    assert not build(tmp_path / "no clone is needed", folder, pinned)


def test_a_clone_of_another_commit_is_refused_with_all_that_differs_and_how_to_get_it(clone, tmp_path):
    root, pinned = clone
    (root / FACTS).write_text("{}")
    (root / ANNOTATED).unlink()

    with pytest.raises(UsageError) as caught:
        build(root, tmp_path / "made", pinned)
    told = str(caught.value)
    assert f"{FACTS} differs" in told
    assert f"{ANNOTATED} is missing" in told
    assert QUESTIONS["dev"] not in told
    assert shlex.split(told.partition("Get it: ")[2]) == [
        "git", "clone", "https://github.com/allenai/entailment_bank", str(root), "&&",
        "git", "-C", str(root), "checkout", "abcdef0",
    ]  # fmt: skip
    assert "\n" not in told
    assert not (tmp_path / "made").exists()


def test_what_is_in_the_folder_is_not_replaced(clone, tmp_path):
    root, pinned = clone
    build(root, tmp_path / "made", pinned)
    (tmp_path / "made" / "corpus.jsonl").write_text("mine")

    with pytest.raises(UsageError, match="is there and is not this collection"):
        build(root, tmp_path / "made", pinned)
    assert (tmp_path / "made" / "corpus.jsonl").read_text() == "mine"


def test_rules_that_have_changed_are_noticed(clone, tmp_path):
    root, pinned = clone
    other = Pinned(pinned.commit, pinned.read, {**pinned.written, "qrels/dev.tsv": "0" * 64})

    with pytest.raises(ValueError, match=r"dev\.tsv.*not the collection that is pinned"):
        build(root, tmp_path / "made", other)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("one", "other", "is_same"), [
    ("a star.", "A  Star", True), ("moon-light", "moon light", True), ("el niño", "el nino", False),
    ("sun_set", "sun set", True), ("H2O", "h2o", True), ("rain bow", "rainbow", False),
])  # fmt: skip
def test_facts_of_the_same_words_are_one(one, other, is_same):
    assert (words(one) == words(other)) is is_same


def test_the_pinned_sources_give_the_pinned_collection(tmp_path, capsys):
    if not SOURCES.is_dir():
        pytest.skip(
            f"the files of the repository are not at {SOURCES}; set SEARCH_R3_SOURCES to the folder above it"
        )

    assert main([str(SOURCES), "--output", str(tmp_path / "made")]) == 0
    assert "make science SCIENCE_DIR=" in capsys.readouterr().out
    data = load_entailmentbank(tmp_path / "made")
    assert len(data.corpus) == 11_399
    assert len(data.test.queries) == 187
    assert {
        name: hashlib.sha256((tmp_path / "made" / name).read_bytes()).hexdigest() for name in PINNED.written
    } == dict(PINNED.written)
