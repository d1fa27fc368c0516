"""Search in place equals brute force, and its order does not depend on batches, blocks or copies."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from search_r3.benchmarks.memory import figure
from search_r3.index.backends.flat import FlatIndex
from search_r3.index.rows.files import give_back
from tests.command import forked

ROOT = Path(__file__).resolve().parents[1]


def unit(random, n, width=24):
    vectors = random.standard_normal((n, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def brute_force(queries, documents, k):
    """All scores in float64, sorted by score and then by row."""
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 3), (500, 10), (3000, 101), (40, 1000)])
def test_search_equals_brute_force_also_where_k_exceeds_the_corpus(n, k):
    random = np.random.default_rng(n)
    queries, documents = unit(random, 37), unit(random, n)
    scores, rows = FlatIndex(documents).search(queries, k)
    expected_scores, expected_rows = brute_force(queries, documents, k)
    assert rows.shape == (37, min(k, n))
    assert rows.dtype == np.int64
    assert scores.dtype == np.float32
    assert rows.tolist() == expected_rows.tolist()
    assert np.abs(scores - expected_scores).max() < 1e-6


def test_copies_of_a_document_tie_exactly_and_stand_in_row_order():
    random = np.random.default_rng(0)
    documents = unit(random, 2500, width=96)
    copies = [3, 700, 1023, 1024, 2499]  # on both sides of the block edges of a matrix product
    documents[copies] = documents[3]
    queries = unit(random, 200, width=96)
    scores, rows = FlatIndex(documents).search(queries, 2500)
    places = np.array([[row.tolist().index(copy) for copy in copies] for row in rows])
    assert (np.diff(places, axis=1) == 1).all()
    assert all(len(set(scores[number, places[number]].tolist())) == 1 for number in range(200))


def test_the_ranking_of_a_query_does_not_depend_on_its_batch():
    random = np.random.default_rng(1)
    documents, queries = unit(random, 3000, width=64), unit(random, 64, width=64)
    # Near copies: a fp32 product of 20 queries or more orders some of them otherwise than one of few queries.
    documents[1500:] = documents[:1500] + 1e-8 * random.standard_normal((1500, 64)).astype(np.float32)
    index = FlatIndex(documents)
    together = index.search(queries, 100)[1]
    for size in (1, 5):
        assert (index.search(queries, 100, chunk_size=size)[1] == together).all()
    alone = np.concatenate([index.search(query[None], 100)[1] for query in queries])
    assert (alone == together).all()


@pytest.mark.parametrize("k", [1, 20, 900])
def test_the_scores_of_a_query_do_not_depend_on_its_batch_nor_on_the_other_documents(k):
    random = np.random.default_rng(5)
    documents, queries = unit(random, 3000, width=256), unit(random, 64, width=256)
    scores, rows = FlatIndex(documents).search(queries, k)
    for query, found, values in zip(queries[::9], rows[::9], scores[::9], strict=True):
        slow = [np.float32(math.fsum(query.astype(np.float64) * documents[row])) for row in found]
        assert values.tolist() == slow  # fsum rounds once: what float64 loses is far below fp32
        alone = FlatIndex(documents[np.sort(found)])
        assert (alone.search(query[None], k)[0][0] == values).all()


@pytest.mark.parametrize("n", [10, 40, 20_000])  # all fetched; more ties than are fetched; several blocks
def test_the_cut_does_not_choose_among_ties(n):
    documents = np.ones((n, 1), dtype=np.float32)
    assert FlatIndex(documents).search(documents[:1], 4)[1].tolist() == [[0, 1, 2, 3]]
    backwards = np.arange(n)[::-1]
    assert FlatIndex(documents, backwards).search(documents[:1], 4)[1].tolist() == [
        [n - 1, n - 2, n - 3, n - 4]
    ]


@pytest.mark.parametrize("k", [1, 10, 100, 1100])
@pytest.mark.parametrize("seed", range(3))
def test_with_many_copies_the_ranking_is_that_of_a_slow_definition(seed, k):
    """Scores in float64, rounded to fp32, ties by a given order: one query and one document at a time."""
    random = np.random.default_rng(seed)
    documents = unit(random, 40)[random.integers(0, 40, 1000)]  # about 25 copies of each
    order = random.permutation(1000)
    queries = np.concatenate([unit(random, 25), documents[:5]])
    scores, rows = FlatIndex(documents, order).search(queries, k)
    for query, found, values in zip(queries, rows, scores, strict=True):
        exact = [np.float32((query.astype(np.float64) * row).sum()) for row in documents.astype(np.float64)]
        expected = sorted(range(1000), key=lambda row: (-exact[row], order[row]))[:k]
        assert found.tolist() == expected
        assert values == pytest.approx([exact[row] for row in expected], abs=1e-6)


def test_a_memory_map_is_searched_where_it_is(tmp_path):
    random = np.random.default_rng(2)
    documents = unit(random, 300)
    np.save(tmp_path / "rows.npy", documents)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    index = FlatIndex(mapped)
    assert index.embeddings is mapped
    assert (index.search(documents[:9], 5)[1] == FlatIndex(documents).search(documents[:9], 5)[1]).all()
    assert index.search(documents[:9], 5)[1][:, 0].tolist() == list(range(9))


def test_pitfall_24_faiss_keeps_to_one_thread_beside_torch_on_macos():
    code = """
import sys
import search_r3.index.backends.library as library
assert list(sys.modules).index("torch") < list(sys.modules).index("faiss")
for platform in ("linux", "darwin"):
    library.settle(platform)
    print(library.faiss.omp_get_max_threads())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    on_linux, on_macos = map(int, run.stdout.split())
    assert on_linux > on_macos == 1


def test_no_queries_give_no_rows():
    scores, rows = FlatIndex(np.ones((3, 2), dtype=np.float32)).search(np.empty((0, 2), np.float32), 2)
    assert scores.shape == rows.shape == (0, 2)


def test_what_would_be_copied_or_is_not_a_number_is_refused():
    documents = np.eye(4, dtype=np.float32)
    for bad in (documents.astype(np.float64), documents[:, ::2], documents[0], documents[:0]):
        with pytest.raises(ValueError, match="embeddings must be"):
            FlatIndex(bad)
    with pytest.raises(ValueError, match=r"order must be \[4\]"):
        FlatIndex(documents, np.arange(3))
    index = FlatIndex(documents)
    with pytest.raises(ValueError, match=r"queries must be \[Q, 4\]"):
        index.search(np.ones((1, 3)), 1)
    with pytest.raises(ValueError, match="k must be at least 1"):
        index.search(documents, 0)
    broken = documents.copy()
    broken[2, 0] = np.nan
    with pytest.raises(ValueError, match="query 2 is not"):
        index.search(broken, 1)
    with pytest.raises(ValueError, match="row 2 is not"):
        FlatIndex(broken)


@pytest.mark.parametrize("n", [1, 40, 5000])
def test_the_rank_of_a_document_is_its_place_in_the_search_of_all(n):
    random = np.random.default_rng(n)
    documents, queries = unit(random, n), unit(random, 6)
    documents[n // 3 : n // 2] = documents[0]  # ties, on both sides of a block's edge
    order = random.permutation(n)
    index = FlatIndex(documents, order)
    asked = [0, n - 1, n // 3, max(n // 2 - 1, 0)]

    ranks, scores = index.ranks(queries, asked)

    found_scores, found = index.search(queries, n)
    places = [[row.tolist().index(document) for document in asked] for row in found]
    assert ranks.tolist() == [[place + 1 for place in row] for row in places]
    assert scores.tolist() == np.take_along_axis(found_scores, np.array(places), 1).tolist()


def test_ranks_of_unknown_rows_and_of_none():
    index = FlatIndex(unit(np.random.default_rng(0), 3))
    assert index.ranks(index.embeddings, [])[0].shape == (3, 0)
    for row in (-1, 3):
        with pytest.raises(ValueError, match="within 0 and 2"):
            index.ranks(index.embeddings, [row])


def search_a_map(file, n_rows) -> None:
    """Prints how many MiB of mapped files this process holds more once an index over a map was searched."""
    rows = np.load(file, mmap_mode="r")
    index = FlatIndex(rows[:5000])
    index.search(rows[:3], 5)
    before = figure("RssFile")
    found = FlatIndex(rows).search(np.array(rows[[7, n_rows - 1]]), 5)[1]
    print("mapped", (figure("RssFile") - before) >> 10, "found", found[:, 0].tolist(), flush=True)


def test_pages_of_a_mapped_file_do_not_add_up(tmp_path):
    n_rows = 60_000
    rows = np.random.default_rng(0).standard_normal((n_rows, 256), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(tmp_path / "rows.npy", rows)  # 58 MiB
    done = forked(search_a_map, tmp_path / "rows.npy", n_rows)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert int(words[words.index("mapped") + 1]) < 30
    assert f"found [7, {n_rows - 1}]" in done.stdout
    give_back(rows)  # nothing is mapped
    assert rows[0].any()
