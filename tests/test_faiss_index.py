"""`index=faiss`: which factory strings serve, what they take, and what is kept of them."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from drifting import DriftingCorpus
from live_indexes import KEY, created, settings_of
from test_index_contract import brute_force, clustered, drift, recall, unit

from search_r3.benchmarks.memory import figure
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.overrides import quote_free_text
from search_r3.errors import UsageError
from search_r3.index.backends.faiss_factory import made, trained
from search_r3.index.backends.faiss_index import FaissIndex
from search_r3.index.backends.library import faiss
from search_r3.index.rows.cache import StoreError
from search_r3.index.rules.frozen import Frozen
from search_r3.index.served import LiveIndex
from search_r3.train import check
from tests.command import forked

UPDATED = [
    "Flat", "SQfp16", "SQbf16", "SQ8", "SQ6", "SQ4", "PQ8x4", "RQ4x4", "RaBitQ", "IDMap2,SQ8", "L2norm,Flat",
    "RR16,SQ8", "PCA8,SQ8", "PCAR8,Flat", "OPQ4_8,PQ4x4", "IVF8,Flat", "IVF8,SQ8", "IVF8,SQfp16",
    "IVF8,PQ8x4", "IVF8,RaBitQ", "IVF8_HNSW4,SQ8", "PCA8,IVF8,SQ8",
]  # fmt: skip

REFUSED = {
    "HNSW32": "a graph leads from row to row",
    "HNSW16,SQ8": "a graph leads from row to row",
    "PCA8,HNSW32": "a graph leads from row to row",
    "NSG16": "a graph leads from row to row",
    "PQ8x4fs": "packed in blocks",
    "IVF8,PQ8x4fs": "packed in blocks",
    "Flat,RFlat": "a second index",
    "IVF8,SQ8,Refine(SQ8)": "a second index",
    "IVF8,FlatDedup": "share one place",
    "LSQ4x4": "another code each time",
    "SQ8_direct": "whole numbers",
    "IVF8,FlatPanorama4": "cannot be replaced",
    "LSH": "no index of inner products",
    "IMI2x3,Flat": "no index of inner products",
    "nonsense": "could not parse index string nonsense",
    "SQ8,Flat": "faiss makes no",
    "PCA8,IDMap2,Flat": "",
    "": "a text that faiss reads",
    "PQ7": "multiple of the number of subquantizers",
    "PCA64,Flat": "take PCA16",
    "IVF99999999999,Flat": "above 16777216",
    "PQ4x24": "above 16;",
}


@pytest.mark.parametrize("factory", UPDATED)
def test_a_row_that_was_replaced_has_the_code_of_its_new_vector(factory):
    rows = clustered(300)
    index = FaissIndex(rows, factory=factory, n_probe=8)
    again = FaissIndex(rows.copy(), factory=factory, n_probe=8)
    for seed in range(3):
        chosen = np.random.default_rng(seed).choice(300, 40, replace=False)
        drift(rows, chosen, seed, size=1.0)
        index.update(chosen)
    again.embeddings[:] = rows
    again._fill(index._parts_made_anew())  # what was trained, and every row encoded once more
    queries = index._turned(rows[:20])
    one, other = (each._fetched(queries, 300, None) for each in (index, again))
    by_row = [np.take_along_axis(scores, np.argsort(found), 1) for scores, found in (one, other)]
    assert by_row[0] == pytest.approx(by_row[1], abs=1e-5)
    before = FaissIndex(clustered(300), factory=factory, n_probe=8)
    stale = before._fetched(queries, 300, None)
    assert np.abs(np.take_along_axis(stale[0], np.argsort(stale[1]), 1) - by_row[0]).max() > 0.1


@pytest.mark.parametrize("factory", REFUSED)
def test_a_string_whose_rows_cannot_be_replaced_is_refused_in_one_line(factory):
    with pytest.raises(ValueError, match=r"^index\.factory=") as caught:
        FaissIndex.check(10**6, 16, factory)
    said = str(caught.value)
    assert REFUSED[factory] in said
    assert said.startswith(f"index.factory={factory}: ")
    assert "; take " in said
    assert "\n" not in said
    assert "/project/" not in said  # no place in the source of faiss


@pytest.mark.parametrize("factory", [5, None, ["IVF8", "SQ8"]])
def test_what_is_no_text_is_refused(factory):
    with pytest.raises(ValueError, match="a text that faiss reads"):
        made(factory, 16)


@pytest.mark.parametrize(
    ("n_rows", "train_rows", "factory", "words"),
    [
        (300, 1000, "IVF400,SQ8", "needs 400 rows, and a process has 300; take fewer lists$"),
        (300, 1000, "PQ4x10", "needs 1024 rows, and a process has 300; take fewer bits of PQ"),
        (200, 1000, "OPQ4,PQ4x4", "needs 256 rows, and a process has 200; leave OPQ out"),
        (200, 1000, "OPQ4,IVF400,PQ4x4", "needs 400 rows, and a process has 200; take fewer lists$"),
        (10**6, 100, "IVF400,SQ8", "index.train_rows is 100; take a higher one, or fewer lists$"),
    ],
)
def test_fewer_rows_than_training_needs_are_refused(n_rows, train_rows, factory, words):
    with pytest.raises(ValueError, match=words):
        FaissIndex.check(n_rows, 16, factory, train_rows)
    with pytest.raises(ValueError, match=words):
        FaissIndex(clustered(min(n_rows, 5000)), factory=factory, train_rows=train_rows)
    FaissIndex.check(1500, 16, factory)


def test_a_live_index_refuses_it_before_a_document_is_encoded(tmp_path):
    corpus = DriftingCorpus(n=200)
    for source in ((corpus.n, corpus.width), corpus.vectors(0)):
        backend = partial(FaissIndex, factory="IVF300,SQ8")
        with pytest.raises(ValueError, match="training needs 300 rows, and a process has 200"):
            created(tmp_path / "index", corpus, Frozen(), backend=backend, source=source)
    assert corpus.encoded == []
    assert not (tmp_path / "index").exists()


def composed(nano_folder, *arguments):
    given = ["stage=rl", f"model.path={nano_folder}", "index=faiss", *arguments]
    with ConfigSource() as source:
        return compose("train", quote_free_text(given), source).config


def test_the_command_line_takes_commas_and_refuses_a_graph_before_it_reads_anything(nano_folder, tmp_path):
    (tmp_path / "corpus.jsonl").write_text("cannot be read")
    config = composed(nano_folder, "index.factory=IVF4096,SQ8", "data=beir", f"data.path={tmp_path}")
    assert config.index.factory == "IVF4096,SQ8"
    check(config, is_sweep=False)
    quoted = composed(nano_folder, 'index.factory="PCA8,IVF64(SQ8),Flat"')
    assert quoted.index.factory == "PCA8,IVF64(SQ8),Flat"
    for factory in ("HNSW32", "PQ5,", "null"):
        with pytest.raises(UsageError, match=rf"^index.factory={factory.replace('null', 'None')}: "):
            check(composed(nano_folder, f"index.factory={factory}"), is_sweep=False)


@pytest.mark.parametrize(
    ("factory", "expected"),
    [("Flat", 256), ("SQfp16", 128), ("SQ8", 64), ("PQ16x4", 8), ("IVF64,SQ8", 80), ("PCA32,IVF64,SQ8", 48)],
)
def test_a_row_takes_its_code_and_in_lists_sixteen_bytes_more(factory, expected):
    # width 64: 4, 2 and 1 byte a number; 16 codewords of 4 bits; a list has the row's number and the row its
    # place, of 8 bytes each
    assert made(factory, 64).bytes_per_row == expected


def build_over_a_file(file, factory) -> None:
    """Prints by how much the memory of this process grew, files apart, and what the index says it takes."""
    rows = np.load(file, mmap_mode="r")
    FaissIndex(rows[:9000], factory=factory, train_rows=8000)
    before = figure("RssAnon")
    index = FaissIndex(rows, factory=factory, train_rows=8000)
    grown = (figure("RssAnon") - before) << 10
    print("grown", grown, "said", index.bytes_per_row * len(index), flush=True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory as Linux tells it")
@pytest.mark.parametrize("factory", ["SQ8", "SQfp16", "IVF64,SQ8"])
def test_codes_take_a_part_of_the_memory_of_the_rows(factory, tmp_path):
    rows = np.random.default_rng(0).standard_normal((80_000, 256), dtype=np.float32)
    np.save(tmp_path / "rows.npy", unit(rows))
    done = forked(build_over_a_file, tmp_path / "rows.npy", factory)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    grown, told = (int(words[words.index(word) + 1]) for word in ("grown", "said"))
    assert told <= rows.nbytes / (2 if factory == "SQfp16" else 3.7)
    assert grown < 1.15 * told + (8000 + 2 * 8192) * 256 * 4 / 2  # and of the sample and chunks what is kept


def test_a_pca_leaves_products_as_they_are():
    """Rows in a plane of eight dimensions, far from its origin: products within it rank as all do."""
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.standard_normal((16, 8)))[0]
    rows = ((rng.standard_normal((500, 8)) + 3 * rng.standard_normal(8)) @ plane.T).astype(np.float32)
    queries = rng.standard_normal((50, 16)).astype(np.float32)
    index = FaissIndex(rows, factory="PCA8,Flat")
    products, found = index._fetched(index._turned(queries), 500, None)
    by_row = np.take_along_axis(products, np.argsort(found), 1)
    exact = queries @ rows.T
    assert np.ptp(by_row - exact, axis=1).max() < 1e-3 * np.abs(exact).max()  # but for a constant per query


def test_lists_that_are_probed_and_documents_that_are_rescored_decide_the_recall():
    rows = clustered(3000)
    queries = unit(rows[::100] + 0.2 * np.random.default_rng(1).standard_normal((30, 16)))
    exact = brute_force(rows, queries, 10)[1]

    def found(factory, **settings):
        return recall(FaissIndex(rows, factory=factory, **settings).search(queries, 10)[1], exact)

    assert found("IVF32,Flat", n_probe=1) < found("IVF32,Flat", n_probe=32) == 1.0
    assert (
        found("PQ4x4", n_rescored=1) < found("PQ4x4", n_rescored=20) < found("PQ4x4", n_rescored=300) == 1.0
    )


def test_it_is_trained_anew_once_as_many_rows_have_changed_as_there_are(tmp_path, caplog):
    rows = clustered(500)
    index = FaissIndex(rows, factory="IVF8,SQ8", retrain_above=0.5)
    flat = FaissIndex(rows, factory="SQfp16", retrain_above=0.5)
    for seed in range(2):
        drift(rows, np.arange(seed * 100, seed * 100 + 100), seed)
        index.update(np.arange(seed * 100, seed * 100 + 100))
    assert index.n_trainings == 1
    index.save(tmp_path / "index")
    again = FaissIndex(rows, saved=tmp_path / "index", factory="IVF8,SQ8", retrain_above=0.5)
    with caplog.at_level("INFO"):
        for each in (index, again, flat):
            each.update(np.arange(200, 260))
    assert (index.n_trainings, again.n_trainings, flat.n_trainings) == (2, 2, 1)
    assert sum("is trained anew (training 2)" in record.getMessage() for record in caplog.records) == 2
    for one, other in zip(index.search(rows[:30], 5), again.search(rows[:30], 5), strict=True):
        assert (one == other).all()


def test_what_is_saved_does_not_grow_with_the_corpus(tmp_path):
    sizes = []
    for n in (400, 4000):
        FaissIndex(clustered(n), factory="IVF8,SQ8").save(tmp_path / str(n))
        sizes.append(sum(file.stat().st_size for file in (tmp_path / str(n)).iterdir()))
    assert abs(sizes[0] - sizes[1]) < 100


def test_a_saved_index_of_another_string_or_in_pieces_is_refused(tmp_path):
    rows = clustered(300)
    FaissIndex(rows, factory="IVF8,SQ8").save(tmp_path / "index")
    with pytest.raises(StoreError, match="factory 'IVF8,SQ8' instead of 'SQ8'"):
        FaissIndex(rows, saved=tmp_path / "index", factory="SQ8")
    file = tmp_path / "index" / "trained.npy"
    np.save(file, np.load(file)[:200])
    with pytest.raises(StoreError, match="no saved index can be read"):
        FaissIndex(rows, saved=tmp_path / "index", factory="IVF8,SQ8")


def test_training_does_not_depend_on_what_was_drawn_before():
    sample = clustered(600)
    faiss_threads = os.environ.get("OMP_NUM_THREADS")
    one, other = (faiss.serialize_index(trained("IVF8,PQ8x4", sample, 3).whole) for _ in range(2))
    assert (one == other).all(), faiss_threads
    assert not (one == faiss.serialize_index(trained("IVF8,PQ8x4", sample, 4).whole)).all()


def test_a_restored_live_index_takes_the_trained_part_from_its_checkpoint(tmp_path):
    corpus, backend = DriftingCorpus(), partial(FaissIndex, factory="IVF8,SQ8")
    with created(tmp_path, corpus, Frozen(), backend=backend) as index:
        state = index.state_dict()
        index.commit(state)
        expected = index._index._empty
    settings = settings_of(Frozen())
    with LiveIndex.restore(tmp_path, KEY, state, backend, settings) as index:
        assert (index._index._empty == expected).all()
        assert index._index.n_trainings == 1
