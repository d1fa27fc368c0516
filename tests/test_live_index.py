"""The index of a run under every refresh rule: what is encoded, served, and brought back by a checkpoint."""

import json
import math
import os
import resource
import signal
import time
from functools import partial

import numpy as np
import pytest
from drifting import DriftingCorpus, dcg_on

from search_r3.distributed import Ranks
from search_r3.index.backends.faiss_index import FaissIndex
from search_r3.index.backends.flat import InPlaceIndex
from search_r3.index.backends.hnsw import HNSWIndex
from search_r3.index.backends.ivf import IVFIndex
from search_r3.index.rows.cache import StoreError
from search_r3.index.rules.base import Proposal, Refresh, Rule, StepQueries, View
from search_r3.index.rules.candidates import Candidates
from search_r3.index.rules.certified import Certified
from search_r3.index.rules.drift import Drift
from search_r3.index.rules.frozen import Frozen
from search_r3.index.rules.full import Full
from search_r3.index.rules.neighbourhood import Graph
from search_r3.index.served import LiveIndex
from tests.command import forked

KEY = {"weights": "w", "corpus": "c"}
RULES = {
    "frozen": Frozen,
    "full": Full,
    "candidates": partial(Candidates, k=5),
    "graph": partial(Graph, k=3, n_neighbours=4),
    "drift": partial(Drift, n_sampled=60),
    "certified": partial(Certified, miscoverage=0.1, window=200),
}
EVERY_RULE = [pytest.param(make, id=name) for name, make in RULES.items()]


def settings_of(rule, **settings):
    return Refresh(rule, **{"audit_every_n_steps": 5, **settings})


def created(folder, corpus, rule, backend=InPlaceIndex, source=None, overwrite=False, **settings):
    source = corpus.vectors(0) if source is None else source
    settings = settings_of(rule, **settings)
    return LiveIndex.create(folder, KEY, source, backend, settings, chunk_size=50, overwrite=overwrite)


def ran(index, corpus, steps, audits=True):
    """The ledger's lines of some steps."""
    lines = []
    for step in steps:
        queries = corpus.queries(step)
        line = index.refresh(step, queries, corpus.encoder(step))
        if audits and index.settings.is_audit_step(step):
            reward = dcg_on(queries, 4)
            line |= index.audit(step, queries, reward(index.rows), reward, corpus.encoder(step))
        lines.append(line)
    return lines


def held(index):
    return index.rows.copy(), index.encoded_at.copy()


def without_seconds(lines):
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


@pytest.mark.parametrize("make", EVERY_RULE)
def test_pitfall_29_positives_are_fresh_under_every_rule_and_nothing_is_encoded_twice(make, tmp_path):
    corpus = DriftingCorpus()
    with created(tmp_path, corpus, make(), background=0.02) as index:
        for step in range(12):
            queries = corpus.queries(step)
            n_before = len(corpus.encoded)
            line = index.refresh(step, queries, corpus.encoder(step))
            again = index.refresh(step, queries, corpus.encoder(step))
            now = corpus.encoded[n_before:]
            positives = np.unique(queries.positives)
            assert (index.rows[positives] == corpus.vectors(step, positives)).all()
            assert len(set(now)) == len(now) == line["documents_encoded"] + again["documents_encoded"]
            for age in np.unique(index.encoded_at):  # every row is what it was at the step that its age says
                rows = np.flatnonzero(index.encoded_at == age)
                if not isinstance(index.settings.rule, Drift):
                    assert (index.rows[rows] == corpus.vectors(age, rows)).all()
            if step == 0:
                assert now == []  # the model is the one that the rows are from


def test_a_second_call_at_a_step_encodes_only_what_it_names_for_the_first_time(tmp_path):
    corpus = DriftingCorpus()
    with created(tmp_path, corpus, Candidates(5), background=0.02) as index:
        ran(index, corpus, range(4))
        queries = corpus.queries(4)
        named = StepQueries(queries.vectors, queries.positives, index.search(queries.vectors, 5)[1])
        assert index.refresh(4, named, corpus.encoder(4))["documents_encoded"] > 20
        before, ranking = held(index), index.search(queries.vectors, 20)
        assert index.refresh(4, named, corpus.encoder(4))["documents_encoded"] == 0
        assert all((one == other).all() for one, other in zip(held(index), before, strict=True))
        again = index.search(queries.vectors, 20)
        assert all((one == other).all() for one, other in zip(again, ranking, strict=True))


def test_calls_that_search_anew_at_a_step_settle_since_no_row_is_encoded_twice(tmp_path):
    corpus = DriftingCorpus(own=0.1)
    with created(tmp_path, corpus, Candidates(5)) as index:
        ran(index, corpus, range(4))
        queries, n_before, counts = corpus.queries(4), len(corpus.encoded), []
        while counts[-1:] != [0] and len(counts) < 50:  # what was encoded has moved: others are retrieved
            counts.append(index.refresh(4, queries, corpus.encoder(4))["documents_encoded"])
        now = corpus.encoded[n_before:]
        assert 2 < len(counts) < 50  # or one call had settled it
        assert len(set(now)) == len(now) == sum(counts)
        retrieved = index.search(queries.vectors, 5)[1]
        assert (index.rows[retrieved.ravel()] == corpus.vectors(4, retrieved.ravel())).all()


def test_frozen_encodes_positives_only_and_full_equals_building_anew(tmp_path):
    corpus = DriftingCorpus()
    with created(tmp_path / "frozen", corpus, Frozen()) as frozen:
        lines = ran(frozen, corpus, range(1, 6))
        assert [line["documents_encoded"] for line in lines] == [6] * 5
        asked = np.unique([corpus.queries(step).positives for step in range(1, 6)])
        rest = np.setdiff1d(np.arange(corpus.n), asked)
        assert (frozen.rows[rest] == corpus.vectors(0, rest)).all()
    with (
        created(tmp_path / "full", corpus, Full()) as full,
        created(tmp_path / "built", corpus, Full(), source=(corpus.n, corpus.width)) as built,
    ):
        lines = ran(full, corpus, range(1, 6))
        built.build(corpus.encoder(5), step=5)
        assert all(line["share_of_corpus"] == 1 for line in lines)
        assert all((one == other).all() for one, other in zip(held(full), held(built), strict=True))
        assert lines[-1]["audit/identical_rewards"] == 1
        assert lines[-1]["audit/documents_encoded"] == 0


def test_candidates_encodes_what_is_retrieved_and_nothing_else(tmp_path):
    corpus = DriftingCorpus()
    with created(tmp_path, corpus, Candidates(5)) as index:
        queries = corpus.queries(3)
        scores = queries.vectors @ index.rows.T
        retrieved = np.unique(np.argsort(-scores, axis=1, kind="stable")[:, :5])
        index.refresh(3, queries, corpus.encoder(3))
        expected = np.union1d(retrieved, queries.positives)
        assert (np.flatnonzero(index.encoded_at == 3) == expected).all()


def test_a_budget_keeps_the_first_of_the_lists_and_says_how_many_it_left_out(tmp_path):
    corpus = DriftingCorpus()
    queries = corpus.queries(3)
    with created(tmp_path / "a", corpus, Candidates(8)) as index:
        wanted = index.refresh(3, queries, corpus.encoder(3))["documents_encoded"]
    with created(tmp_path / "b", corpus, Candidates(8), budget=32, background=0.01) as index:
        first = np.setdiff1d(np.unique(index.search(queries.vectors, 1)[1]), queries.positives)
        background = index.settings.background_rows(3, corpus.n)
        line = index.refresh(3, queries, corpus.encoder(3))
        assert line["documents_encoded"] == 32
        assert line["documents_over_budget"] >= wanted - 32
        assert (index.encoded_at[background] == 3).all()
        assert len(first) + len(background) + 6 < 32  # or the next line says nothing
        assert (index.encoded_at[first] == 3).all()
    with created(tmp_path / "c", corpus, Full(), budget=2) as index:
        assert index.refresh(3, queries, corpus.encoder(3))["documents_encoded"] == 6  # the positives


def test_full_with_a_budget_walks_through_the_corpus_oldest_first(tmp_path):
    corpus = DriftingCorpus(n=100)
    with created(tmp_path, corpus, Full(), budget=26) as index:
        lines = ran(index, corpus, range(1, 11), audits=False)
        assert all(line["documents_encoded"] == 26 for line in lines)
        assert lines[-1]["age_largest"] <= 4  # 20 rows a step beside the positives


def test_a_budget_and_a_rule_follow_their_schedules():
    settings = settings_of(Full(), budget={0: 400, 100: 50, 200: None}, every_n_steps=3)
    assert [settings.budget_at(step) for step in (0, 99, 100, 199, 200, 999)] == [
        400,
        400,
        50,
        50,
        None,
        None,
    ]
    assert settings_of(Full(), budget={10: 5}).budget_at(9) is None
    assert [step for step in range(8) if settings.is_due(step)] == [0, 3, 6]
    assert [step for step in range(12) if settings.is_audit_step(step)] == [5, 10]


@pytest.mark.parametrize("share", [0.01, 0.07, 1.0])
def test_pitfall_29_the_background_bounds_the_age_of_every_row(share, tmp_path):
    corpus = DriftingCorpus(n=130)
    with created(tmp_path, corpus, Frozen(), background=share) as index:
        bound = math.ceil(130 / math.ceil(share * 130))
        lines = ran(index, corpus, range(1, 2 * bound + 3), audits=False)
        assert max(line["age_largest"] for line in lines[bound:]) < bound
        if share < 0.1:
            rows = [index.settings.background_rows(step, 130) for step in range(3)]
            assert (np.diff(np.concatenate(rows)) != 1).any()  # not in the order of the file


def test_drift_moves_stale_rows_towards_the_fresh_ones_and_keeps_their_ages(tmp_path):
    corpus = DriftingCorpus(own=0.0005, common=0.01)
    gaps = {}
    for name, rule in (("drift", Drift(60)), ("sample", partial_drift(60))):
        with created(tmp_path / name, corpus, rule) as index:
            lines = ran(index, corpus, range(1, 9), audits=False)
            gaps[name] = np.linalg.norm(index.rows - corpus.vectors(8), axis=1).mean()
            norms = np.linalg.norm(index.rows, axis=1)
            assert norms == pytest.approx(np.ones(corpus.n), abs=1e-5)
            ages = index.encoded_at.copy()
            if name == "drift":
                assert all(line["documents_moved"] == 400 - line["documents_encoded"] for line in lines)
                assert lines[-1]["map_gain"] > 0.5
                assert len(np.unique(ages)) > 3
                assert lines[-1]["age_largest"] > 3
    assert gaps["drift"] < 0.3 * gaps["sample"]


class partial_drift(Drift):
    """The same sample without a map."""

    def finish(self, view):
        self._halves = [None, None]
        yield from ()


def test_drift_leaves_rows_alone_where_no_map_helps(tmp_path):
    corpus = DriftingCorpus(own=0.05, common=0.0)
    with created(tmp_path, corpus, Drift(40, ridges=[1e-6])) as index:
        line = ran(index, corpus, [1], audits=False)[0]
        stale = index.encoded_at == 0
        assert (line["documents_moved"], line["map_gain"]) == (0, 0)
        assert (index.rows[stale] == corpus.vectors(0)[stale]).all()


def nearest(rows, n):
    scores = (rows[None].astype(np.float64) * rows[:, None].astype(np.float64)).sum(-1)
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :n], -np.sort(-scores, axis=1)[:, :n]


@pytest.mark.parametrize("backend", [InPlaceIndex, partial(IVFIndex, n_lists=5, n_probe=5)])
def test_the_graph_starts_as_the_nearest_neighbours_and_its_region_is_re_encoded(backend, tmp_path):
    corpus, rule = DriftingCorpus(), Graph(k=3, n_neighbours=4, hops=2)
    with created(tmp_path, corpus, rule, backend=backend) as index:
        expected, scores = nearest(index.rows, 4)
        assert (rule.neighbours == expected).all()
        assert rule.scores == pytest.approx(scores, abs=1e-6)
        queries = corpus.queries(2)
        region = set(index.search(queries.vectors, 3)[1].ravel()) | set(queries.positives.ravel())
        for _ in range(2):
            region |= {int(end) for row in region for end in expected[row]}
        index.refresh(2, queries, corpus.encoder(2))
        assert set(np.flatnonzero(index.encoded_at == 2)) == region


def test_edges_of_and_to_the_touched_rows_are_those_of_a_rebuild(tmp_path):
    corpus, rule = DriftingCorpus(own=0.1), Graph(k=3, n_neighbours=4, hops=1)
    with created(tmp_path, corpus, rule) as index:
        for step in (1, 2, 3):
            old = rule.neighbours.copy()
            index.refresh(step, corpus.queries(step), corpus.encoder(step))
            touched = np.flatnonzero(index.encoded_at == step)
            expected, _ = nearest(index.rows, 4)
            assert (rule.neighbours[touched] == expected[touched]).all()
            products = np.einsum("nmd,nd->nm", index.rows[rule.neighbours], index.rows)
            assert rule.scores == pytest.approx(products, abs=1e-5)  # no edge was left with an old score
            assert (np.diff(rule.scores, axis=1) <= 0).all()
            assert all(len(set(ends)) == 4 for ends in rule.neighbours.tolist())
            rest = np.setdiff1d(np.arange(corpus.n), touched)
            changed = rest[(rule.neighbours[rest] != old[rest]).any(1)]
            assert len(changed) > 0
            is_of_touched = np.isin(rule.neighbours[changed], touched) | np.isin(old[changed], touched)
            assert is_of_touched.any(1).all()
    fresh = np.mean([len(set(a) & set(b)) / 4 for a, b in zip(rule.neighbours, expected, strict=True)])
    assert fresh > 0.8  # measured: 0.86; edges between rows outside the regions were not looked at


def test_rows_encoded_while_the_graph_is_not_due_are_linked_when_it_is_also_after_a_resume(tmp_path):
    settings = {"every_n_steps": 3, "background": 0.02}
    corpus, rule = DriftingCorpus(own=0.1), Graph(k=3, n_neighbours=4, hops=1)
    with created(tmp_path / "whole", corpus, rule, **settings) as index:
        ran(index, corpus, range(1, 7), audits=False)
        touched = np.flatnonzero(index.encoded_at >= 4)
        assert len(np.unique(index.encoded_at[touched])) == 3
        products = np.einsum("nmd,nd->nm", index.rows[rule.neighbours], index.rows)
        assert rule.scores == pytest.approx(products, abs=1e-5)
        assert (rule.neighbours[touched] == nearest(index.rows, 4)[0][touched]).all()
        expected = rule.neighbours.copy(), rule.scores.copy()
    with created(tmp_path / "cut", corpus, rule, **settings) as index:
        ran(index, corpus, range(1, 6), audits=False)  # rows of steps 4 and 5 wait for step 6
        state = index.state_dict()
    again = settings_of(Graph(k=3, n_neighbours=4, hops=1), **settings)
    with LiveIndex.restore(tmp_path / "cut", KEY, state, InPlaceIndex, again, chunk_size=50) as index:
        ran(index, corpus, [6], audits=False)
        assert (again.rule.neighbours == expected[0]).all()
        assert (again.rule.scores == expected[1]).all()


def test_the_map_of_drift_is_fitted_on_rows_of_the_step_at_which_it_is_due():
    corpus, maps = DriftingCorpus(own=0.0005, common=0.01), []
    rows = np.arange(200)
    for between in (False, True):
        rule = Drift(60)
        if between:
            rule.observe(4, rows[:100], corpus.vectors(0, rows[:100]), corpus.vectors(4, rows[:100]))
        for part in (rows[100:150], rows[150:]):
            rule.observe(5, part, corpus.vectors(0, part), corpus.vectors(5, part))
        nobody = StepQueries(np.empty((0, 16), np.float32), np.empty((0, 0), np.int64))
        encoded_at = np.where(rows < 100, 0, 5)
        view = View(5, corpus.vectors(0, rows), encoded_at, 0, 200, nobody, None, Ranks())
        maps.append(np.concatenate([vectors for _, vectors in rule.finish(view)]))
    assert (maps[0] == maps[1]).all()
    assert len(maps[0]) == 100


def test_a_new_rule_is_one_small_class(tmp_path):
    class Newest(Rule):
        def propose(self, view):
            return Proposal(np.arange(view.n_documents), -view.encoded_at)

    corpus = DriftingCorpus()
    with created(tmp_path, corpus, Newest(), budget=10) as index:
        assert ran(index, corpus, [1])[0]["documents_encoded"] == 10


def test_the_ledger_tells_what_happened(tmp_path):
    corpus = DriftingCorpus()
    with created(tmp_path, corpus, Candidates(5), background=0.01) as index:
        line = ran(index, corpus, range(1, 6))[-1]
        rows = np.flatnonzero(index.encoded_at == 5)
        assert line["documents_encoded"] == len(rows)
        assert line["share_of_corpus"] == len(rows) / 400
        assert line["age_mean"] == pytest.approx((5 - index.encoded_at).mean())
        assert line["drift_mean"] > 0
        assert 0 < line["encode_seconds"] < line["seconds"]
        assert line["audit/documents_encoded"] == 400 - len(rows)
        queries = corpus.queries(5)
        served, fresh = (dcg_on(queries, 4)(part) for part in (index.rows, corpus.vectors(5)))
        assert line["audit/identical_rewards"] == (np.abs(served - fresh) <= 1e-6).mean()
        assert line["audit/mean_abs_difference"] == pytest.approx(np.abs(served - fresh).mean())
        json.dumps(line)


def test_seconds_within_the_encoder_are_told_from_those_of_the_index(tmp_path):
    corpus = DriftingCorpus()

    def slow(rows):
        time.sleep(0.05)
        return corpus.vectors(1, rows)

    with created(tmp_path, corpus, Full()) as index:
        line = index.refresh(1, corpus.queries(1), slow)
        assert line["encode_seconds"] >= 0.05 * math.ceil(400 / 50)
        assert line["encode_seconds"] < line["seconds"]
        assert index.refresh(1, corpus.queries(1), slow)["encode_seconds"] == 0  # nothing is stale


def test_an_audit_changes_no_row_and_leaves_no_file(tmp_path):
    corpus = DriftingCorpus()
    for make in (partial(Candidates, 5), RULES["certified"]):
        with created(tmp_path, corpus, make(), overwrite=True) as index:
            queries, reward = corpus.queries(5), dcg_on(corpus.queries(5), 4)
            index.refresh(5, queries, corpus.encoder(5))
            before, names = held(index), sorted(os.listdir(tmp_path / "shard-0-of-1"))
            index.audit(5, queries, reward(index.rows), reward, corpus.encoder(5))
            assert all((one == other).all() for one, other in zip(before, held(index), strict=True))
            assert sorted(os.listdir(tmp_path / "shard-0-of-1")) == names


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
