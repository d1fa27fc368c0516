"""A collection evaluated from its folder to its metrics, against mteb with sentence-transformers below it.

Both read the same files, encode all documents and all queries with the same weights and prompts, rank and
score. Nothing is taken from a cache.
"""

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from search_r3.benchmarks.peers.comparison import Comparison, Equal
from search_r3.benchmarks.peers.encode import BATCH_SIZES, forward_cost
from search_r3.benchmarks.peers.subjects import Subject, sentence_transformers
from search_r3.data.beir.benchmark import load_benchmark
from search_r3.data.beir.documents import document_text
from search_r3.data.jsonl import parse_object
from search_r3.evaluation.benchmark import evaluate_benchmark
from search_r3.evaluation.rankers import Model, Settings


def by_ours(subject: Subject, folder: Path, work: Path) -> float:
    """nDCG@10 of the direct mode; its files and vectors are removed again."""
    place = work / "ours"
    benchmark = load_benchmark(folder)
    with subject.autocast():
        row = evaluate_benchmark(
            benchmark, "direct", place / "out", Settings(100, "english", 1.2, 0.75, 0),
            Model(subject.name, subject.embedder), cache_dir=place / "cache",
        )  # fmt: skip
    shutil.rmtree(place)
    return row["metrics"]["ndcg@10"]


class PeerModel:
    """A model of sentence-transformers as mteb encodes with it, its prompts by the kind of text.

    Args:
        subject: the precision.
        model: of sentence-transformers, which knows two tasks.
        batch_size: of its `encode`.
    """

    def __init__(self, subject: Subject, model: object, batch_size: int) -> None:
        from mteb.models import ModelMeta

        self.subject, self.model, self.batch_size = subject, model, batch_size
        self.mteb_model_meta = ModelMeta.create_empty({"name": f"peer/{subject.name}", "revision": "1"})

    def encode(self, inputs: object, *, prompt_type: object = None, **_: object) -> np.ndarray:
        """Vectors of mteb's batches of texts."""
        texts = [text for batch in inputs for text in batch["text"]]
        is_query = getattr(prompt_type, "value", prompt_type) == "query"
        encode = self.model.encode_query if is_query else self.model.encode_document
        with self.subject.autocast():
            return encode(texts, batch_size=self.batch_size, show_progress_bar=False)

    def similarity(self, left: np.ndarray, right: np.ndarray) -> object:
        return self.model.similarity(left, right)

    def similarity_pairwise(self, left: np.ndarray, right: np.ndarray) -> object:
        return self.model.similarity_pairwise(left, right)


def task_of(folder: Path) -> object:
    """A collection in BEIR layout as a task of mteb, which is read when it is run."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Collection(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=folder.name, description="a collection", dataset={"path": "none", "revision": "1"},
            type="Retrieval", category="t2t", eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="ndcg_at_10", reference=None, date=None, domains=None, task_subtypes=None,
            license=None, annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation=None,
        )  # fmt: skip

        def load_data(self, *args: object, **kwargs: object) -> None:
            corpus = [
                {"id": row["_id"], "title": "", "text": document_text(row)}
                for row in _rows(folder / "corpus.jsonl")
            ]
            qrels = _qrels(folder / "qrels" / "test.tsv")
            queries = [
                {"id": row["_id"], "text": row["text"]}
                for row in _rows(folder / "queries.jsonl")
                if row["_id"] in qrels
            ]
            split = {
                "corpus": Dataset.from_list(corpus),
                "queries": Dataset.from_list(queries),
                "relevant_docs": qrels,
                "top_ranked": None,
            }
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return Collection()


def by_mteb(model: PeerModel, folder: Path) -> float:
    """nDCG@10."""
    import mteb

    result = mteb.evaluate(model, task_of(folder), cache=None, overwrite_strategy="always")
    (scores,) = result.task_results[0].scores["test"]
    return scores["ndcg_at_10"]


def evaluation(subject: Subject, folder: Path, work: Path) -> Comparison:
    """The direct mode on one collection."""
    models, size = sentence_transformers(subject), BATCH_SIZES[1]

    def with_attention(attention: str) -> Callable[[], float]:
        model = PeerModel(subject, models[attention], size)
        return lambda: by_mteb(model, folder)

    ways = {f"{attention}, batches of {size}": with_attention(attention) for attention in models}
    benchmark = load_benchmark(folder)
    ours, theirs = by_ours(subject, folder, work), next(iter(ways.values()))()
    encoder, n = subject.embedder.encoder, len(benchmark.corpus)
    sequences = encoder.documents(list(benchmark.corpus.texts))
    sequences += encoder.queries(list(benchmark.queries.values()))
    return Comparison(
        unit="documents and queries per second",
        amount=n + len(benchmark.queries),
        peer=f"mteb {version('mteb')} with sentence-transformers {version('sentence-transformers')}",
        ours=lambda: by_ours(subject, folder, work),
        theirs=ways,
        equal=[Equal("nDCG@10", abs(ours - theirs), 0.01 if subject.precision == "bf16" else 1e-4)],
        cost=forward_cost(subject, sequences),
    )


def _rows(file: Path) -> list[dict]:
    return [
        parse_object(line, file, number)
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
    ]


def _qrels(file: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for line in file.read_text("utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        if int(grade) > 0:
            found.setdefault(query, {})[document] = int(grade)
    return found
