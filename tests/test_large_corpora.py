"""A corpus is encoded once, in chunks and by all processes; cut documents are counted on the way."""

import json

import numpy as np
import pytest
from conftest import TEXTS
from two_processes import on_two_ranks

from search_r3.benchmarks.memory import main, measured, slope, write_collection
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.data.beir.benchmark import load_benchmark
from search_r3.data.texts import Texts
from search_r3.data.types import Benchmark, Corpus
from search_r3.distributed import process_group
from search_r3.errors import UsageError
from search_r3.evaluate import run
from search_r3.evaluation import ranking
from search_r3.evaluation.benchmark import evaluate_benchmark
from search_r3.evaluation.rankers import Model, Settings
from search_r3.evaluation.ranking import document_embeddings, documents_cut
from search_r3.evaluation.sharing import shared
from search_r3.models.folder import load_embedder

SETTINGS = Settings(top_k=100, analyzer="english", k1=1.2, b=0.75, seed=0)
LONG = " ".join(TEXTS)


class Counted(Texts):
    """Texts that count how often one is read."""

    def __init__(self, texts):
        self.texts, self.n_read = texts, 0

    def __len__(self):
        return len(self.texts)

    def _text(self, row):
        self.n_read += 1
        return self.texts[row]


@pytest.fixture
def corpus() -> Corpus:
    """2,500 documents, in three chunks; every 500th is longer than the model reads."""
    texts = [LONG if row % 500 == 0 else f"{TEXTS[row % 5][:20]} {row}" for row in range(2500)]
    return Corpus([f"d{row}" for row in range(2500)], Counted(texts))


def test_cut_documents_are_counted_while_they_are_encoded_and_no_text_is_read_again(
    corpus, loaded_embedder, tmp_path
):
    benchmark = Benchmark("some", corpus, {"q": "sum of two"}, {"q": {"d1": 1}})
    model = Model("m", loaded_embedder)
    cache = tmp_path / "cache"

    first = evaluate_benchmark(benchmark, "direct", tmp_path, SETTINGS, model, cache_dir=cache)
    n_read = corpus.texts.n_read
    second = evaluate_benchmark(benchmark, "reasoning", tmp_path, SETTINGS, model, cache_dir=cache)

    assert first["documents_cut"] == second["documents_cut"] == 5
    assert corpus.texts.n_read == n_read
    (lines,) = cache.glob("*/done.jsonl")
    assert [json.loads(line)["cut"] for line in lines.read_text().splitlines()] == [3, 2, 0]


def test_a_store_of_before_is_counted_once(corpus, loaded_embedder, tmp_path):
    document_embeddings(corpus, loaded_embedder, tmp_path, progress=False)
    (lines,) = tmp_path.glob("*/done.jsonl")
    entries = [json.loads(line) for line in lines.read_text().splitlines()]
    lines.write_text("".join(json.dumps({**entry, "cut": None}) + "\n" for entry in entries))

    assert documents_cut(corpus, loaded_embedder, tmp_path) == 5
    n_read = corpus.texts.n_read
    assert documents_cut(corpus, loaded_embedder, tmp_path) == 5
    assert corpus.texts.n_read == n_read
    (lines.parent / "cut.json").write_text("[")  # a cache may be damaged
    assert documents_cut(corpus, loaded_embedder, tmp_path) == 5


def evaluate_as_rank(rank: int, model_folder: str, beir: str, out: str) -> list:
    """What the command does on one of two ranks: rows on the first, and how many texts this rank embedded."""
    from search_r3.models.embedder import ReasoningEmbedder

    ranking.CHUNK = 64
    n_embedded = []
    embed = ReasoningEmbedder.embed_documents_and_count

    def counting(self, texts, progress=False):
        n_embedded.append(len(texts))
        return embed(self, texts, progress)

    ReasoningEmbedder.embed_documents_and_count = counting
    with ConfigSource() as source:
        given = [
            f"model.path={model_folder}", f"beir_dir={beir}", f"output_dir={out}", "benchmarks=[some]",
            "modes=[direct,bm25]", f"cache_dir={out}/cache", "in_memory_mib=0",
        ]  # fmt: skip
        run(compose("evaluate", given, source).config)
    return n_embedded


def test_two_processes_share_the_encoding_and_write_what_one_does(nano_folder, tmp_path):
    write_collection(tmp_path / "beir" / "some", 150, n_words=2)
    given = (str(nano_folder), str(tmp_path / "beir"))

    shares = on_two_ranks(evaluate_as_rank, *given, str(tmp_path / "two"))
    with ConfigSource() as source:
        names = [f"model.path={given[0]}", f"beir_dir={given[1]}", f"output_dir={tmp_path / 'one'}"]
        names += ["benchmarks=[some]", "modes=[direct,bm25]", f"cache_dir={tmp_path / 'one' / 'cache'}"]
        run(compose("evaluate", names, source).config)

    assert shares == [[64, 11], [64, 11]]
    rows = {
        name: json.loads((tmp_path / name / "metrics.json").read_text())["rows"] for name in ("one", "two")
    }
    for one, two in zip(rows["one"], rows["two"], strict=True):
        assert one["n_docs"] == two["n_docs"] == 150
        assert two["metrics"] == pytest.approx(one["metrics"], abs=0.02)
    vectors = [np.load(next((tmp_path / name / "cache").glob("*/rows.npy"))) for name in ("one", "two")]
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-5


def fail_as_rank(rank: int, model_folder: str, which: str) -> str:
    embedder = load_embedder(model_folder)
    if rank == 1 and which == "encoding":
        embedder.model = None

    def evaluate(load):
        if which == "evaluating":
            raise UsageError("a key that means nothing")
        return load()["model"].encode(["a", "b", "c"])

    with process_group() as ranks:
        try:
            shared(ranks, lambda: {"model": Model("m", embedder)}, evaluate)
        except (RuntimeError, UsageError) as error:
            return f"{type(error).__name__}: {error}"
    return "nothing was raised"


@pytest.mark.parametrize("which", ["encoding", "evaluating"])
def test_where_one_process_fails_none_waits(which, nano_folder):
    first, second = on_two_ranks(fail_as_rank, str(nano_folder), which)

    if which == "encoding":
        assert "rank 1: documents could not be encoded" in first
        assert "rank 1: documents could not be encoded" in second
    else:
        assert first == "UsageError: a key that means nothing"
        assert "the first process failed (UsageError: a key that means nothing)" in second


def test_the_benchmark_of_memory_measures_collections_of_its_own(nano_folder, tmp_path):
    found = load_benchmark(write_collection(tmp_path / "some", 300, n_words=4), in_memory_mib=0)
    assert (len(found.corpus), len(found.queries)) == (300, 100)
    assert found.corpus.texts[7].startswith(found.queries["q7"])
    # 2,048 KiB more for 1,024 documents more
    rows = [{"documents": 2024, "anonymous_kib": 3048}, {"documents": 1000, "anonymous_kib": 1000}]
    assert slope(rows) == 2048
    with pytest.raises(UsageError, match="--documents needs two sizes of at least 100"):
        main(["--documents", "5000", "5000"])

    row = measured(100, "bm25", nano_folder, 4)
    assert (row["documents"], row["mode"]) == (100, "bm25")
    assert row["resident_kib"] > row["anonymous_kib"] >= 0
    with pytest.raises(UsageError, match=r"bm25, 100 documents: .*no such model folder"):
        measured(100, "bm25", tmp_path / "nowhere", 4)
