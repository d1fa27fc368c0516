"""Two processes that share a corpus against one that holds it all: the same rows, rankings and ledger."""

import json
from functools import partial

import numpy as np
import pytest
from drifting import DriftingCorpus, dcg_on
from live_indexes import KEY, RULES, created, settings_of, without_seconds
from two_processes import on_two_ranks

from search_r3.distributed import Ranks
from search_r3.index.backends.faiss_index import FaissIndex
from search_r3.index.backends.flat import InPlaceIndex
from search_r3.index.rows.cache import StoreError
from search_r3.index.rules.base import StepQueries
from search_r3.index.rules.full import Full
from search_r3.index.served import LiveIndex

SETTINGS = {"background": 0.02, "budget": 61}
N = 401  # the second rank has one row more
SPLITS = [(12, 24), (0, 24), (24, 24)]
"""Rollouts of the first rank, and of both, by step; a rank may have none."""


def part_of(queries, step, rank):
    """The rollouts of one rank, whole groups of 4."""
    middle = SPLITS[step % len(SPLITS)][0]
    own = [slice(0, middle), slice(middle, 24)][rank]
    return StepQueries(queries.vectors[own], queries.positives[own])


def steps(index, corpus, first, last, rank=None):
    """Ledger lines and retrieved rows of some steps; of one rank's part where it is given."""
    lines, found = [], []
    for step in range(first, last):
        queries = corpus.queries(step)
        own = queries if rank is None else part_of(queries, step, rank)
        line = index.refresh(step, own, corpus.encoder(step))
        if index.settings.is_audit_step(step):

            def reward(rows, own=own):
                ranks = index.ranks
                return dcg_on(own, 4)(ranks.joined(np.ascontiguousarray(rows)))

            line |= index.audit(step, own, reward(index.rows), reward, corpus.encoder(step))
        lines.append(line)
        found.append(index.search(own.vectors, 9))
    return lines, found


def one_process(folder, name):
    corpus = DriftingCorpus(n=N)
    with created(folder, corpus, RULES[name](), **SETTINGS) as index:
        lines, found = steps(index, corpus, 1, 8)
        return {"lines": without_seconds(lines), "found": found, "rows": index.rows.copy()}


def error_of(action):
    try:
        action()
    except StoreError as error:
        return str(error)
    return "nothing was raised"


def full_disk(folder, rank):
    """A write that fails on the second rank only: its file takes no more."""
    import resource

    corpus = DriftingCorpus(n=N)
    with created(folder, corpus, Full()) as index:
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
        text = error_of(lambda: index.refresh(1, part_of(corpus.queries(1), 1, rank), corpus.encoder(1)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return text


def full_disk_while_rows_are_moved(folder, rank):
    """As above, but what is encoded fits: the second rank's journal takes no more of the moved rows."""
    import resource

    corpus = DriftingCorpus(n=N, own=0.0005, common=0.02)  # nearly all of the drift is one linear map
    with created(folder, corpus, RULES["drift"]()) as index:
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (14_000, resource.RLIM_INFINITY))
        text = error_of(lambda: index.refresh(1, part_of(corpus.queries(1), 1, rank), corpus.encoder(1)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return {"error": text, "encoded": len(corpus.encoded), "served": (index.encoded_at == 1).sum()}


def no_file_for_an_audit(folder, rank):
    """The second rank may open no file more: in the refresh before an audit, then in the audit itself."""
    import os
    import resource

    corpus = DriftingCorpus(n=N)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    texts = []
    with created(folder, corpus, RULES["certified"](), audit_every_n_steps=1) as index:
        free = os.open(os.devnull, os.O_RDONLY)
        os.close(free)

        def limited(action):
            if rank == 1:
                resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            texts.append(error_of(action))
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        for step in (1, 2):
            own = part_of(corpus.queries(step), step, rank)

            def reward(rows, own=own):
                return dcg_on(own, 4)(index.ranks.joined(np.ascontiguousarray(rows)))

            def refresh(step=step, own=own):
                return index.refresh(step, own, corpus.encoder(step))

            def audit(step=step, own=own, reward=reward):
                return index.audit(step, own, reward(index.rows), reward, corpus.encoder(step))

            limited(refresh) if step == 1 else refresh()
            if step == 2:
                limited(audit)
                assert "audit/identical_rewards" in audit()  # it can be asked again
    return texts


def by_codes(folder, rank):
    """The rule `candidates` over lists of codes, all of which are probed, with a restart in between."""
    corpus, backend = DriftingCorpus(n=N), partial(FaissIndex, factory="IVF8,SQ8", n_probe=8)
    rule = RULES["candidates"]
    with created(folder, corpus, rule(), backend=backend, **SETTINGS) as index:
        lines, found = steps(index, corpus, 1, 6, rank)
        state = json.loads(json.dumps(index.state_dict()))
        index.commit(state)
        trained = index._index._empty.copy()
    with LiveIndex.restore(
        folder, KEY, state, backend, settings_of(rule(), **SETTINGS), chunk_size=50
    ) as index:
        is_same = (index._index._empty == trained).all()
        more, rest = steps(index, corpus, 6, 8, rank)
        return {
            "lines": without_seconds(lines + more), "found": found + rest, "rows": index.rows.copy(),
            "is_same": bool(is_same), "trained": trained,
        }  # fmt: skip


def work(rank, folder):
    """Everything that one of the two processes does."""
    results = {}
    for name, make in RULES.items():
        corpus = DriftingCorpus(n=N)
        with created(folder / name, corpus, make(), **SETTINGS) as index:
            lines, found = steps(index, corpus, 1, 6, rank)
            state = json.loads(json.dumps(index.state_dict()))
            index.commit(state)
            steps(index, corpus, 6, 7, rank)
        settings = settings_of(make(), **SETTINGS)
        with LiveIndex.restore(folder / name, KEY, state, InPlaceIndex, settings, chunk_size=50) as index:
            more, rest = steps(index, corpus, 6, 8, rank)
            results[name] = {
                "lines": without_seconds(lines + more),
                "found": found + rest,
                "rows": index.rows.copy(),
                "encoded": corpus.encoded,
            }
    corpus = DriftingCorpus(n=N)
    with created(folder / "built", corpus, Full(), source=(corpus.n, corpus.width)) as index:
        index.build(corpus.encoder(2), step=2)
        results["built"] = {"rows": index.rows.copy(), "ages": set(index.encoded_at.tolist())}
        results["built"]["encoded"] = [row for _, row in corpus.encoded]
    results["faiss"] = by_codes(folder / "faiss", rank)
    results["full disk"] = full_disk(folder / "disk", rank)
    results["full disk while moving"] = full_disk_while_rows_are_moved(folder / "moving", rank)
    results["no file"] = no_file_for_an_audit(folder / "files", rank)
    return results


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return on_two_ranks(work, tmp_path_factory.mktemp("two_rank_index"))


@pytest.mark.parametrize("name", RULES)
def test_two_ranks_give_the_rows_the_rankings_and_the_ledger_of_one(name, two_ranks, tmp_path):
    one, two = one_process(tmp_path, name), [results[name] for results in two_ranks]
    rows = np.concatenate([part["rows"] for part in two])
    assert rows == pytest.approx(one["rows"], abs=1e-6 if name == "drift" else 0)
    for step, (scores, found) in enumerate(one["found"], start=1):
        both = [part["found"][step - 1] for part in two]
        assert (np.concatenate([rank[1] for rank in both]) == found).all()
        # A map that is fitted on sums over ranks, in another order, has other bits.
        tolerance = 1e-6 if name == "drift" else 0
        assert np.concatenate([rank[0] for rank in both]) == pytest.approx(scores, abs=tolerance, rel=0)
    assert two[0]["lines"] == two[1]["lines"]
    for line, expected in zip(two[0]["lines"], one["lines"], strict=True):
        assert line == pytest.approx(expected, abs=1e-5)


def test_two_ranks_with_an_index_of_codes_each_find_what_one_process_finds_in_the_rows(two_ranks, tmp_path):
    one, two = one_process(tmp_path, "candidates"), [results["faiss"] for results in two_ranks]
    assert all(part["is_same"] for part in two)
    assert not np.array_equal(*(part["trained"] for part in two))  # each on the rows that it holds
    assert (np.concatenate([part["rows"] for part in two]) == one["rows"]).all()
    assert two[0]["lines"] == two[1]["lines"] == one["lines"]
    for step, (scores, found) in enumerate(one["found"], start=1):
        both = [part["found"][step - 1] for part in two]
        for place, expected in enumerate((scores, found)):
            assert (np.concatenate([rank[place] for rank in both]) == expected).all()


def test_rows_to_encode_are_dealt_evenly_and_none_is_encoded_by_both(two_ranks):
    first, second = (results["candidates"]["encoded"] for results in two_ranks)
    # audits encode every row at its holder, and the step after the checkpoint was done twice
    assert not set(first) & set(second)
    for step in (1, 2, 3, 4):
        counts = [sum(1 for at, _ in encoded if at == step) for encoded in (first, second)]
        assert max(counts) - min(counts) <= 3  # one for each of positives, background and rule
        assert min(counts) > 5


def test_two_ranks_build_the_whole_corpus_each_row_once(two_ranks):
    built = [results["built"] for results in two_ranks]
    assert (np.concatenate([part["rows"] for part in built]) == DriftingCorpus(n=N).vectors(2)).all()
    assert [part["ages"] for part in built] == [{2}, {2}]
    assert sorted(built[0]["encoded"] + built[1]["encoded"]) == list(range(N))


def test_a_full_disk_on_one_rank_stops_both_with_its_message(two_ranks):
    for results in two_ranks:
        assert results["full disk"].startswith("rank 1: ")
        assert "File too large" in results["full disk"]


def test_a_full_disk_on_one_rank_while_rows_are_moved_stops_both_with_its_message(two_ranks):
    moved = [results["full disk while moving"] for results in two_ranks]
    for result in moved:
        assert result["error"].startswith("rank 1: ")
        assert "rows could not be written" in result["error"]
        assert "File too large" in result["error"]
    n_encoded = sum(result["encoded"] for result in moved)
    assert n_encoded == sum(result["served"] for result in moved) >= 60  # what is encoded was written


def test_a_rank_that_cannot_make_a_file_for_an_audit_stops_both_with_its_message(two_ranks):
    for results in two_ranks:
        assert len(results["no file"]) == 2
        for text in results["no file"]:
            assert text.startswith("rank 1: ")
            assert "Too many open files" in text
            assert "refresh.audit_every_n_steps=0" in text


def test_one_process_is_a_group_of_one():
    ranks = Ranks()
    assert (ranks.rank, ranks.size, ranks.shard(5)) == (0, 1, slice(0, 5))
    assert ranks.sum(np.arange(3)).tolist() == ranks.joined(np.arange(3)).tolist() == [0, 1, 2]
