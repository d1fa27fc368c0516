"""The index of a run under every refresh rule: what is encoded, served and written down."""

import json
import math
import os
import time
from functools import partial

import numpy as np
import pytest
from drifting import DriftingCorpus, dcg_on
from live_indexes import EVERY_RULE, KEY, RULES, created, held, nearest, ran, settings_of

from search_r3.distributed import Ranks
from search_r3.index.backends.flat import InPlaceIndex
from search_r3.index.backends.ivf import IVFIndex
from search_r3.index.rules.base import Proposal, Rule, StepQueries, View
from search_r3.index.rules.candidates import Candidates
from search_r3.index.rules.drift import Drift
from search_r3.index.rules.frozen import Frozen
from search_r3.index.rules.full import Full
from search_r3.index.rules.neighbourhood import Graph
from search_r3.index.served import LiveIndex


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
