"""The recorded drift and its replay on more rows, against slow definitions."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from drifting import DriftingCorpus

from search_r3.benchmarks.drift import RecordedFull, Recording, RecordingError, Replay
from search_r3.benchmarks.replay import PARTS, Task, replayed
from search_r3.index.backends.flat import InPlaceIndex
from search_r3.index.rules.base import Refresh
from search_r3.index.rules.candidates import Candidates
from search_r3.index.rules.certified import Certified
from search_r3.index.rules.drift import Drift
from search_r3.index.rules.frozen import Frozen
from search_r3.index.rules.full import Full
from search_r3.index.served import LiveIndex
from search_r3.objectives.rewards import Reward, dcg, margin_dcg

G, STEPS = 4, 5


def recorded(folder, width=16, n=80):
    """A recording of `STEPS` steps by the rule itself, and the corpus it is of."""
    corpus = DriftingCorpus(n=n, width=width, own=0.05)
    settings = Refresh(RecordedFull(folder / "drift", G))
    with LiveIndex.create(folder / "store", {"a": "b"}, corpus.vectors(0), InPlaceIndex, settings) as index:
        for step in range(STEPS):
            index.refresh(step, corpus.queries(step, n_rollouts=G), corpus.encoder(step))
    return Recording(folder / "drift"), corpus


@pytest.mark.parametrize("width", [16, 7])
def test_a_recording_has_the_documents_and_queries_of_every_step(tmp_path, width):
    recording, corpus = recorded(tmp_path, width)
    assert (recording.n_rows, recording.width, recording.group_size) == (80, width, G)
    assert recording.steps == list(range(STEPS))
    for step in range(STEPS):
        assert np.array_equal(recording.rows(step), corpus.vectors(step))
        queries = corpus.queries(step, n_rollouts=G)
        assert np.array_equal(recording.queries(step).vectors, queries.vectors)
        assert np.array_equal(recording.queries(step).positives, queries.positives)


def test_a_folder_without_a_whole_recording_is_refused(tmp_path):
    with pytest.raises(RecordingError, match="no recorded drift"):
        Recording(tmp_path)
    recorded(tmp_path)
    (tmp_path / "drift" / "rows-000002.npy").unlink()
    with pytest.raises(RecordingError, match="gaps"):
        Recording(tmp_path / "drift")


def test_replayed_rows_have_the_drift_of_their_document(tmp_path):
    recording, corpus = recorded(tmp_path)
    still = Replay(recording, 500, offset=0.0, seed=3)
    everything = np.arange(500)
    for step in (0, 3):
        assert still.vectors(step, everything) == pytest.approx(corpus.vectors(step)[still.sources], abs=1e-6)
    assert np.array_equal(still.sources[:80], np.arange(80))
    positives = {int(row) for step in range(STEPS) for row in corpus.queries(step).positives[:, 0]}
    assert positives.isdisjoint(still.sources[80:].tolist())
    assert len(set(still.sources[80:].tolist())) > 20


def test_an_offset_is_that_of_its_row_at_every_step_and_of_the_length_that_was_asked_for(tmp_path):
    recording, corpus = recorded(tmp_path, width=64)
    replay = Replay(recording, 3000, offset=0.5, seed=3)
    rows = np.arange(3000)
    vectors = replay.vectors(2, rows)
    assert np.array_equal(vectors[:80], corpus.vectors(2))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3000), abs=1e-6)
    assert np.array_equal(replay.vectors(2, rows[[2999, 7, 100]]), vectors[[2999, 7, 100]])
    # For a long vector the offset is square to its document: cosine 1 / sqrt(1 + offset^2).
    cosines = (vectors[80:] * corpus.vectors(2)[replay.sources[80:]]).sum(1)
    assert cosines.mean() == pytest.approx(1 / np.sqrt(1.25), abs=0.01)
    # Undone with the known sources, the offset is the same at another step.
    offsets = []
    for step in (1, 4):
        own, found = corpus.vectors(step)[replay.sources[200]], replay.vectors(step, rows[200:201])[0]
        first, second = replay._pool[replay._offsets[:, 200]]
        assert found == pytest.approx((own + first + second) / np.linalg.norm(own + first + second), abs=1e-6)
        offsets.append(first + second)
    assert np.array_equal(*offsets)


def test_neighbour_distance_is_that_of_all_pairs(tmp_path):
    recording, corpus = recorded(tmp_path)
    distances = np.linalg.norm(corpus.vectors(0)[:, None] - corpus.vectors(0)[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert recording.neighbour_distance() == pytest.approx(np.median(distances.min(1)), abs=1e-4)


@pytest.mark.parametrize("n_documents", [79, 10])
def test_fewer_rows_than_were_recorded_are_refused(tmp_path, n_documents):
    recording, _ = recorded(tmp_path)
    with pytest.raises(RecordingError, match="80 documents are recorded"):
        Replay(recording, n_documents, 0.1)


# ---- rules on a replay


def slow_rewards(queries, rows, tau=0.05):
    """`[B, G]` margin_dcg and 0.1 for the format, in float64, one rollout after the other."""
    values = []
    for vector, positive in zip(queries.vectors.astype(np.float64), queries.positives[:, 0], strict=True):
        scores = rows.astype(np.float64) @ vector
        own, wrong = scores[positive], np.delete(scores, positive)
        rank = 1 + (wrong >= own - 1e-6).sum()
        last = len(rows)
        worth, after = (
            0.8 / np.log2(r + 1) + 0.2 * max(0, 1 - (r - 1) / min(last, 1000)) for r in (rank, rank + 1)
        )
        margin = own - wrong.max()
        log = np.sign(margin) * np.log(1 + abs(margin) / tau) / np.log(1 + 2 / tau)
        room = min(0.005, worth - (after if rank < last else 0))
        values.append(worth - room * (1 - (0 if rank >= last else (1 + log) / 2)) + 0.1)
    return np.array(values).reshape(-1, G)


def slow_tau(one, other):
    """Kendall's tau-b by pairs, averaged over groups with spread in both."""
    found = []
    for a, b in zip(one, other, strict=True):
        pairs = [(i, j) for i in range(G) for j in range(i)]
        signs = [[0 if abs(v[i] - v[j]) <= 1e-6 else np.sign(v[i] - v[j]) for i, j in pairs] for v in (a, b)]
        scale = np.sqrt(np.square(signs[0]).sum() * np.square(signs[1]).sum())
        if scale:
            found.append(np.dot(*signs) / scale)
    return np.mean(found)


def nothing(queries, rows, k=0):
    return np.empty(0, np.int64)


def best(queries, rows, k):
    scores = queries.vectors.astype(np.float64) @ rows.T.astype(np.float64)
    return np.unique(np.argsort(-scores, axis=1, kind="stable")[:, :k])


def task_of(folder, rule, recording, n_documents=300, **settings):
    replay = Replay(recording, n_documents, 0.3, seed=1)
    base = replay.write(folder / "base.npy", 0)
    settings = {"audit_every_n_steps": 1, **settings}
    reward = Reward(partial(margin_dcg, tau=0.05))
    return Task(replay, base, InPlaceIndex, Refresh(rule, **settings), reward, STEPS - 1, folder / "replayed")


@pytest.mark.parametrize(
    ("rule", "chosen"),
    [
        (Frozen(), nothing),
        (Candidates(k=3), partial(best, k=3)),
        (Full(), lambda queries, rows: np.arange(len(rows))),
    ],
)
def test_agreement_of_a_rule_is_that_of_a_brute_force_replay(tmp_path, rule, chosen):
    recording, _ = recorded(tmp_path)
    task = task_of(tmp_path, rule, recording)
    lines = list(replayed(task))
    assert len(lines) == STEPS - 1
    served = task.replay.vectors(0, np.arange(300))
    for step, line in enumerate(lines, start=1):
        queries, fresh = recording.queries(step), task.replay.vectors(step, np.arange(300))
        rows = np.union1d(chosen(queries, served), queries.positives)
        served[rows] = fresh[rows]
        one, other = slow_rewards(queries, served), slow_rewards(queries, fresh)
        side = [np.sign(np.round(v - v.mean(1, keepdims=True), 6)) for v in (one, other)]
        assert line["index/documents_encoded"] == len(rows)
        assert line["index/audit/identical_rewards"] == (np.abs(one - other) <= 1e-6).mean()
        assert line["index/audit/mean_abs_difference"] == pytest.approx(np.abs(one - other).mean(), abs=1e-6)
        assert line["index/audit/advantage_sign_agreement"] == (side[0] == side[1]).mean()
        assert line["index/audit/kendall_tau"] == pytest.approx(slow_tau(one, other), abs=1e-9)
    if isinstance(rule, Frozen):
        assert lines[-1]["index/audit/identical_rewards"] < 1  # or the comparison says nothing


@pytest.mark.parametrize("rule", [Drift(n_sampled=60), Certified(miscoverage=0.2, window=50)])
def test_a_replay_tells_seconds_and_bytes_by_part_and_leaves_no_store(tmp_path, rule):
    recording, _ = recorded(tmp_path)
    task = task_of(tmp_path, rule, recording, audit_every_n_steps=2)
    lines = list(replayed(task))
    for line in lines:
        assert all(line[f"seconds/{part}"] >= 0 for part in (*PARTS, "encode"))
        assert line["memory/rows"] == 300 * 16 * 4
        assert line["memory/ages"] == 300 * 16
        assert line["memory/peak_resident"] > 1e6
        written = line["index/documents_encoded"] + line["index/documents_moved"]
        assert line["memory/journal"] >= written * (16 + 16 * 4) > 0  # committed at every step
    assert not task.folder.exists()
    assert ("seconds/audit" in lines[0]) == isinstance(rule, Certified)  # it calibrates first
    assert "seconds/audit" in lines[1]
    assert "seconds/audit" in lines[3]


def test_the_rule_of_a_replay_is_told_what_the_reward_reads(tmp_path):
    rule = Certified()
    recording, _ = recorded(tmp_path)
    task = replace(task_of(tmp_path, rule, recording), reward=Reward(partial(dcg, k=3)), n_steps=1)
    assert len(list(replayed(task))) == 1
    assert (rule.reads_best_wrong, rule.cut_off) == (False, 3)
