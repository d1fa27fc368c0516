"""mteb runs a model folder by its search protocol, and gets our numbers."""

import json
from pathlib import Path

import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.models_protocols import SearchProtocol
from small_collection import write_collection

from search_r3.data.beir.benchmark import load_benchmark
from search_r3.data.jsonl import parse_object
from search_r3.demo import MODEL
from search_r3.evaluation.benchmark import evaluate_benchmark
from search_r3.evaluation.mteb import SearchR3Search
from search_r3.evaluation.rankers import Model, Settings

FOLDER = Path(__file__).resolve().parents[2] / MODEL


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("mteb")
    write_collection(place / "small")
    return place


@pytest.fixture(scope="module")
def benchmark(place):
    return load_benchmark(place / "small")


def rows(file: Path) -> list[dict]:
    return [parse_object(line, file, 0) for line in file.read_text().splitlines()]


class Small(AbsTaskRetrieval):
    """The collection as a task of mteb, read from its folder."""

    folder: Path
    metadata = TaskMetadata(
        name="Small", description="a small collection", dataset={"path": "none", "revision": "1"},
        type="Retrieval", category="t2t", eval_splits=["test"], eval_langs=["eng-Latn"],
        main_score="ndcg_at_10", reference=None, date=None, domains=None, task_subtypes=None, license=None,
        annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation=None,
    )  # fmt: skip

    def load_data(self, *args, **kwargs):
        documents, queries = rows(self.folder / "corpus.jsonl"), rows(self.folder / "queries.jsonl")
        qrels: dict = {}
        for line in (self.folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
            query, document, grade = line.split("\t")
            qrels.setdefault(query, {})[document] = int(grade)
        split = {
            "corpus": Dataset.from_list(
                [{"id": row["_id"], "title": row["title"], "text": row["text"]} for row in documents]
            ),
            "queries": Dataset.from_list([{"id": row["_id"], "text": row["text"]} for row in queries]),
            "relevant_docs": qrels,
            "top_ranked": None,
        }
        self.dataset, self.data_loaded = {"default": {"test": split}}, True


@pytest.fixture(scope="module", params=["direct", "reasoning"])
def searched(request, place):
    """A mode, the model, mteb's result and the folder that it files results in."""
    Small.folder = place / "small"
    model = SearchR3Search(FOLDER, mode=request.param, cache_dir=place / "cache")
    cache = mteb.ResultCache(place / f"results-{request.param}")
    return request.param, model, mteb.evaluate(model, Small(), cache=cache), cache


def test_ndcg_is_ours(searched, benchmark, place):
    mode, model, result, _ = searched

    settings = Settings(top_k=100, analyzer="english", k1=1.2, b=0.75, seed=0)
    row = evaluate_benchmark(
        benchmark, mode, place / "ours", settings, Model("demo", model.embedder), cache_dir=place / "cache"
    )

    (theirs,) = result.task_results[0].scores["test"]
    ours = row["metrics"]["ndcg@10"]
    assert 0.05 < ours < 0.99
    assert theirs["ndcg_at_10"] == pytest.approx(ours, abs=1e-4)
    assert theirs["main_score"] == theirs["ndcg_at_10"]


def test_the_result_lies_where_mteb_looks_for_it_under_the_hash_of_the_weights(searched):
    mode, model, _, cache = searched

    meta = model.mteb_model_meta
    assert isinstance(model, SearchProtocol)
    assert meta.revision == model.embedder.weights_sha256
    file = cache.get_task_result_path("Small", meta)
    assert file.is_file()
    assert (meta.revision, mode) == (
        file.relative_to(cache.cache_path).parts[2],
        file.parent.name[-len(mode) :],
    )
    assert json.loads(file.read_text())["task_name"] == "Small"
    again = mteb.evaluate(model, Small(), cache=cache, overwrite_strategy="only-cache")
    assert again.task_results[0].get_score() == cache.load_task_result("Small", meta).get_score()


def test_a_reranking_task_ranks_its_own_documents_alone(searched, benchmark):
    mode, model, _, _ = searched
    query, chosen = next(iter(benchmark.queries.items())), benchmark.corpus.ids[:3]

    found = model.search(
        Dataset.from_list([{"id": query[0], "text": query[1]}]), top_k=10, top_ranked={query[0]: chosen}
    )

    embedder = model.embedder
    vector = (
        embedder.embed_queries([query[1]]) if mode == "direct" else embedder.reason([query[1]]).embeddings
    )
    expected = embedder.embed_documents(benchmark.corpus.texts[:3]) @ vector[0]
    assert list(found[query[0]]) == list(chosen)
    np.testing.assert_allclose(list(found[query[0]].values()), expected, atol=1e-5)


def test_what_is_no_text_is_refused(searched):
    _, model, _, _ = searched

    with pytest.raises(ValueError, match="must have a text, and the task has id, image"):
        model.index(Dataset.from_list([{"id": "a", "image": "b"}]))
    with pytest.raises(ValueError, match="a query must be one text, got list"):
        model.search(Dataset.from_list([{"id": "a", "text": ["one", "two"]}]), top_k=1)
    with pytest.raises(ValueError, match="mode must be one of"):
        SearchR3Search(FOLDER, mode="hybrid")
