"""The live index over resumed and killed runs, in the smallest cases, with bad input and on a full disk."""

import json
import os
import resource
import signal
from functools import partial

import numpy as np
import pytest
from drifting import DriftingCorpus, dcg_on
from live_indexes import EVERY_RULE, KEY, RULES, created, held, ran, settings_of, without_seconds

from search_r3.index.backends.faiss_index import FaissIndex
from search_r3.index.backends.flat import InPlaceIndex
from search_r3.index.backends.hnsw import HNSWIndex
from search_r3.index.backends.ivf import IVFIndex
from search_r3.index.rows.cache import StoreError
from search_r3.index.rules.base import StepQueries
from search_r3.index.rules.certified import Certified
from search_r3.index.rules.frozen import Frozen
from search_r3.index.rules.full import Full
from search_r3.index.rules.neighbourhood import Graph
from search_r3.index.served import LiveIndex
from tests.command import forked

BACKENDS = [
    pytest.param(InPlaceIndex, id="flat"),
    pytest.param(partial(IVFIndex, n_lists=8, n_probe=3, retrain_above=0.1), id="ivf"),
    pytest.param(partial(FaissIndex, factory="IVF8,SQ8", n_probe=3, retrain_above=0.5), id="faiss"),
    # so narrow that a graph with other links would answer otherwise
    pytest.param(partial(HNSWIndex, n_links=4, ef_construction=8, ef_search=4), id="hnsw"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", EVERY_RULE)
def test_a_resumed_run_goes_on_bit_for_bit(make, backend, tmp_path):
    settings = {"background": 0.02, "budget": 60}
    whole, cut, resumed = (DriftingCorpus() for _ in range(3))
    with created(tmp_path / "whole", whole, make(), backend, **settings) as index:
        lines = ran(index, whole, range(1, 11))
        expected, found = held(index), index.search(whole.queries(10).vectors, 20)
    with created(tmp_path / "cut", cut, make(), backend, **settings) as index:
        first = ran(index, cut, range(1, 6))
        state = json.loads(json.dumps(index.state_dict()))
        index.commit(state)
        ran(index, cut, range(6, 9))
        index.state_dict()  # its trainer's checkpoint was never written
    rule = make()
    with LiveIndex.restore(
        tmp_path / "cut", KEY, state, backend, settings_of(rule, **settings), chunk_size=50
    ) as index:
        rest = ran(index, resumed, range(6, 11))
        assert without_seconds(first + rest) == without_seconds(lines)
        assert all((one == other).all() for one, other in zip(held(index), expected, strict=True))
        again = index.search(resumed.queries(10).vectors, 20)
        assert all((one == other).all() for one, other in zip(again, found, strict=True))


def test_checkpoints_older_than_the_last_two_are_dropped(tmp_path):
    corpus = DriftingCorpus()
    with created(tmp_path, corpus, Graph(k=3, n_neighbours=4)) as index:
        for step in range(1, 6):
            ran(index, corpus, [step], audits=False)
            index.commit(index.state_dict())
        folders = sorted(path.name for path in (tmp_path / "shard-0-of-1").glob("state-*"))
        assert folders == ["state-000004", "state-000005"]


def dies_within_a_step(folder):
    """Three steps, of which the end is kept, and a part of the fourth; in a process of its own."""
    corpus, calls = DriftingCorpus(), []
    index = created(folder, corpus, RULES["graph"](), background=0.02)
    ran(index, corpus, range(1, 4), audits=False)
    np.savez(folder / "expected.npz", *held(index))
    (folder / "state.json").write_text(json.dumps(index.state_dict()))

    def dies(rows):
        calls.append(rows)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return corpus.vectors(4, rows)

    index.refresh(4, corpus.queries(4), dies)


def test_after_a_kill_within_a_step_the_rows_are_those_of_the_checkpoint(tmp_path):
    done = forked(dies_within_a_step, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    state = json.loads((tmp_path / "state.json").read_text())
    with np.load(tmp_path / "expected.npz") as expected:
        settings = settings_of(RULES["graph"]())
        with LiveIndex.restore(tmp_path, KEY, state, InPlaceIndex, settings) as index:
            assert (index.rows == expected["arr_0"]).all()
            assert (index.encoded_at == expected["arr_1"]).all()


@pytest.mark.parametrize("make", EVERY_RULE)
def test_one_document_is_a_corpus_under_every_rule(make, tmp_path):
    corpus = DriftingCorpus(n=1)
    with created(tmp_path, corpus, make(), background=1.0) as index:
        queries = StepQueries(corpus.vectors(1), np.zeros((1, 1), np.int64))
        assert index.refresh(1, queries, corpus.encoder(1))["documents_encoded"] == 1
        assert index.search(queries.vectors, 5)[1].tolist() == [[0]]


@pytest.mark.parametrize("make", EVERY_RULE)
def test_a_step_without_queries_is_a_step(make, tmp_path):
    corpus = DriftingCorpus()
    with created(tmp_path, corpus, make()) as index:
        nothing = StepQueries(np.empty((0, 16), np.float32), np.empty((0, 0), np.int64))
        index.refresh(1, nothing, corpus.encoder(1))
        assert index.search(nothing.vectors, 3)[1].shape == (0, 3)


def test_an_empty_corpus_and_one_smaller_than_the_ranks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is the corpus empty"):
        created(tmp_path, None, Frozen(), source=np.empty((0, 4), np.float32))
    two = type("Two", (), {"size": 2})()
    with pytest.raises(ValueError, match="1 documents cannot be dealt to 2 ranks"):
        LiveIndex.create(tmp_path, KEY, (1, 4), InPlaceIndex, settings_of(Frozen()), two)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_another_model_and_a_second_run_are_refused(tmp_path):
    corpus = DriftingCorpus()
    with created(tmp_path, corpus, Frozen()) as index:
        state = index.state_dict()
        with pytest.raises(StoreError, match="another process has this run's rows open"):
            created(tmp_path, corpus, Frozen(), overwrite=True)
    with pytest.raises(StoreError, match="holds the rows of a run; resume that run"):
        created(tmp_path, corpus, Frozen())
    restore = partial(LiveIndex.restore, state=state, make_index=InPlaceIndex, settings=settings_of(Frozen()))
    with pytest.raises(StoreError, match="made for another weights and is not used"):
        restore(tmp_path, {**KEY, "weights": "other"})
    with pytest.raises(StoreError, match="dealt to 2 ranks, and there are 1"):
        restore(tmp_path, KEY, state={**state, "shards": state["shards"] * 2})
    restore(tmp_path, KEY).close()


def test_searching_before_building_is_refused(tmp_path):
    corpus = DriftingCorpus()
    with created(tmp_path, corpus, Frozen(), source=(400, 16)) as index:
        with pytest.raises(StoreError, match="build the index first"):
            index.search(corpus.vectors(0), 3)
        state = index.state_dict()
    with LiveIndex.restore(tmp_path, KEY, state, InPlaceIndex, settings_of(Frozen())) as index:
        index.build(corpus.encoder(0))
        assert (index.rows == corpus.vectors(0)).all()


def test_bad_vectors_and_unknown_rows_are_refused_before_they_are_written(tmp_path):
    corpus = DriftingCorpus()
    with created(tmp_path, corpus, Frozen()) as index:
        before = held(index)
        queries = corpus.queries(1)
        bad = {
            "not finite or not of unit norm": lambda rows: np.full((len(rows), 16), np.nan),
            "row .* not of unit norm": lambda rows: np.zeros((len(rows), 16)),
            r"encode must give \[6, 16\]": lambda rows: np.ones((2, 16)),
        }
        for message, encode in bad.items():
            with pytest.raises(ValueError, match=message):
                index.refresh(1, queries, encode)
        with pytest.raises(ValueError, match="positives must be rows of a corpus of 400"):
            index.refresh(1, StepQueries(queries.vectors, queries.positives + 400), corpus.encoder(1))
        assert all((one == other).all() for one, other in zip(before, held(index), strict=True))
    with pytest.raises(ValueError, match=r"positives must be \[2, ...\] integers"):
        StepQueries(np.ones((2, 3)), np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"vectors must be \[Q, D\]"):
        StepQueries(np.ones(3), np.ones((2, 1), int))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"background": 2}, "share of the corpus"),
        ({"every_n_steps": 0}, "every_n_steps"),
        ({"budget": -1}, "budget"),
        ({"budget": {-1: 3}}, "budget"),
        ({"budget": {"soon": 3}}, "budget has 'soon' for a step"),
        ({"rule": Certified(), "audit_every_n_steps": 0}, "learns from audits"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        settings_of(**{"rule": Frozen(), **change})


def acts_on_a_full_disk(folder):
    """Prints why neither an audit nor a refresh has room; in a process of its own."""
    corpus, state = DriftingCorpus(), json.loads((folder / "state.json").read_text())
    index = LiveIndex.restore(folder, KEY, state, InPlaceIndex, settings_of(Full()))
    queries, reward = corpus.queries(5), dcg_on(corpus.queries(5), 4)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    for act in (
        lambda: index.audit(5, queries, reward(index.rows), reward, corpus.encoder(5)),
        lambda: index.refresh(5, queries, corpus.encoder(5)),
    ):
        try:
            act()
        except StoreError as error:
            print(error)


def test_a_full_disk_is_one_clear_error_and_the_checkpoint_is_safe(tmp_path):
    corpus = DriftingCorpus()
    with created(tmp_path, corpus, Full()) as index:
        ran(index, corpus, [1], audits=False)
        state, expected = index.state_dict(), held(index)
    (tmp_path / "state.json").write_text(json.dumps(state))
    done = forked(acts_on_a_full_disk, tmp_path)
    audit, refresh = done.stdout.splitlines() or [done.stderr, ""]
    assert "an audit needs 0 MiB more ([Errno 27] File too large); make room or set" in audit
    assert "rows could not be written ([Errno 27] File too large)" in refresh
    with LiveIndex.restore(tmp_path, KEY, state, InPlaceIndex, settings_of(Full())) as index:
        assert all((one == other).all() for one, other in zip(held(index), expected, strict=True))


def test_a_full_disk_for_what_an_audit_keeps_is_one_error_and_the_rows_can_be_closed(tmp_path):
    corpus, calls = DriftingCorpus(), []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def encode(rows):
        calls.append(len(rows))
        if len(calls) == 2:  # the positives are written; next are old vectors of the background, 50 of them
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        return corpus.vectors(1, rows)

    index = created(tmp_path, corpus, RULES["certified"](), audit_every_n_steps=1, background=0.5)
    try:
        with pytest.raises(StoreError, match=r"an audit needs more room.*File too large"):
            index.refresh(1, corpus.queries(1), encode)
        index.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with created(tmp_path, corpus, Frozen(), overwrite=True) as again:  # the lock was given back
        assert len(again) == corpus.n
