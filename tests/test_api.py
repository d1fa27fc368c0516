"""The class as a program uses it: what it is given by mistake, and what an interruption leaves."""

import numpy as np
import pytest
import torch

from search_r3 import SearchR3
from search_r3.data.types import Corpus
from search_r3.models.checksums import ModelFolderError

DOCUMENTS = {"add": "def add(a, b): return a + b", "neg": "def neg(a): return -a"}


@pytest.fixture
def model(nano_folder, tmp_path):
    return SearchR3.load(nano_folder, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_a_reading_that_is_interrupted_leaves_the_corpus_that_was_read_before(
    model, monkeypatch, interruption
):
    model.read(["one", "two"], progress=False)
    before = model.search("one", mode="direct")

    def interrupt(texts):
        raise interruption

    with monkeypatch.context() as patched:
        patched.setattr(model.embedder, "embed_documents_and_count", interrupt)
        with pytest.raises(interruption):
            model.read(DOCUMENTS, progress=False)

    assert model.search("one", mode="direct") == before


def test_a_first_reading_that_is_interrupted_leaves_nothing_to_search(model, monkeypatch):
    def interrupt(texts):
        raise KeyboardInterrupt

    monkeypatch.setattr(model.embedder, "embed_documents_and_count", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.read(DOCUMENTS, progress=False)
    with pytest.raises(ValueError, match=r"read\(corpus\) first"):
        model.search("one", mode="direct")


def test_texts_by_id_are_a_corpus(model):
    by_id = model.read(DOCUMENTS, progress=False).search("add", mode="direct")
    corpus = Corpus(list(DOCUMENTS), list(DOCUMENTS.values()))
    assert by_id == model.read(corpus, progress=False).search("add", mode="direct")
    assert {hit.id: hit.text for hit in by_id.hits} == DOCUMENTS


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ([], "there is no document in it"),
        ({}, "there is no document in it"),
        ({"one", "two"}, "corpus must be a list of texts, got a set, which has no order"),
        (["one", None], r"corpus\[1\] must be a text, got NoneType"),
        ([("d1", "one")], r"corpus\[0\] must be a text, got tuple"),
        ({"d1": {"text": "one"}}, r"corpus\[0\] must be a text, got dict"),
        ({"d1": "one", 2: "two"}, r"ids\[1\] must be a text, got int"),
        (Corpus(["a", 2], ["one", "two"]), r"ids\[1\] must be a text, got int"),
        (Corpus(["a", "b"], ["one", None]), r"corpus\[1\] must be a text, got NoneType"),
        (["one", "\ud83d"], r"corpus\[1\] holds half of a surrogate pair"),
        (Corpus(["a", "b", "a"], ["one", "two", "three"]), "the id 'a' occurs for the second time"),
    ],
)
def test_what_is_no_corpus_is_refused_with_its_place(model, corpus, words):
    with pytest.raises(ValueError, match=words):
        model.read(corpus, progress=False)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model.embed_documents("ab"), "a list of texts, got one text"),
        (lambda model: model.embed_queries("ab"), "a list of texts, got one text"),
        (lambda model: model.embed_queries(["a", "b"], "cd"), "reasonings must be a list of texts"),
        (lambda model: model.reason("ab"), "a list of texts, got one text"),
        (lambda model: model.embed_documents({"a", "b"}), "got a set, which has no order"),
        (lambda model: model.embed_queries(["a", 3]), r"texts\[1\] must be a text, got int"),
        (lambda model: model.embed_documents(["\ud800"]), r"texts\[0\] holds half of a surrogate pair"),
        (lambda model: model.reason(["a"], temperature=float("nan")), "temperature must be 0"),
        (lambda model: model.read(["a"], progress=False).search(None), "query must be a text"),
        (lambda model: model.read(["a"], progress=False).search("\ud800"), "query holds half of a surrogate"),
        (lambda model: model.read(["a"], progress=False).search("a", k=2.0), "k must be a whole .* got 2.0"),
        (lambda model: model.read(["a"], progress=False).search("a", k="2"), "k must be a whole .* got '2'"),
        (lambda model: model.read(["a"], progress=False).search("a", k=True), "k must be .* got True"),
        (
            lambda model: model.read(["a"], progress=False).search("a", max_new_tokens=1.5),
            "tokens .* got 1.5",
        ),
        (lambda model: model.reason(["a"], max_new_tokens="3"), "max_new_tokens must be a whole .* got '3'"),
        (lambda model: model.reason(["a"], 1.0, seed=1.5), "seed must be a whole number .* got 1.5"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(model, call, words):
    with pytest.raises(ValueError, match=words):
        call(model)


def test_texts_of_any_iterable_kind_are_embedded_one_each(model):
    texts = np.array(["one", "two", "three"])
    expected = model.embed_queries(texts.tolist())
    for given in (texts, tuple(texts), (text for text in texts)):
        np.testing.assert_array_equal(model.embed_queries(given), expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"token_budget": 0}, "token_budget must be at least 1, got 0"),
        ({"device": "gpu"}, r"device='gpu' is no device of torch \("),
        pytest.param(
            {"device": "cuda"},
            "device='cuda': torch finds no CUDA device here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_a_budget_or_a_device_that_is_none_is_refused_before_the_folder_is_read(given, words):
    with pytest.raises(ValueError, match=words):
        SearchR3.load("nowhere", **given)


def test_a_length_that_does_not_exist_is_named(nano_folder):
    with pytest.raises(ValueError, match="there is no 'querry', only query, document, reasoning"):
        SearchR3.load(nano_folder, lengths={"querry": 5})


@pytest.mark.parametrize(("name", "value"), [("query", 5.5), ("document", True), ("reasoning", "40")])
def test_a_length_that_is_no_whole_number_is_refused(nano_folder, name, value):
    with pytest.raises(ValueError, match=rf"lengths\.{name} must be a whole number, got {value!r}"):
        SearchR3.load(nano_folder, lengths={name: value})


def test_the_folder_of_a_run_is_answered_with_the_model_folder_in_it(nano_folder, tmp_path):
    (tmp_path / "model").symlink_to(nano_folder, target_is_directory=True)
    with pytest.raises(ModelFolderError, match=rf"no search_r3\.json, .*; give {tmp_path}/model, which lies"):
        SearchR3.load(tmp_path)
