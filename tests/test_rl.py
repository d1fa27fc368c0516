"""The RL stage on a tiny real model: it learns, it resumes exactly, and its index follows it."""

import csv
import json
import shlex
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import rl_runs
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import CSVLogger
from rl_runs import data_of, fit, module_of, opened, world

from search_r3.data.types import Example
from search_r3.index.rules.base import Refresh
from search_r3.index.rules.candidates import Candidates
from search_r3.index.rules.certified import Certified
from search_r3.index.rules.frozen import Frozen
from search_r3.index.rules.full import Full
from search_r3.models.folder import save_embedder
from search_r3.models.tuning import FullTuning, LoraTuning
from search_r3.objectives.collapse import CollapseLimits
from search_r3.objectives.grpo import TOKEN_STATISTICS
from search_r3.objectives.rewards import Reward, dcg, margin_dcg
from search_r3.stages.checkpoint import TrainableCheckpoint
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.rl.completions import COLUMNS, Completions
from search_r3.stages.rl.environment import EnvironmentDataError
from search_r3.stages.rl.settings import PolicySettings, RolloutSettings

folder = rl_runs.folder  # fixture


@pytest.mark.parametrize("weights", [{"t": 0.0, "other": 1.0}, {"t": 1.0, "other": 0.0}])
def test_batches_come_from_the_sources_of_a_mixture_by_their_weights(folder, tmp_path, weights):
    data = world()
    rows = [replace(row, source="other") if place < 8 else row for place, row in enumerate(data.examples)]
    embedder, seen = opened(folder), set()

    class Sources(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.update(example.source for example in batch)

    data = data_of(embedder, tmp_path, data=replace(data, examples=rows, weights=weights), batch_size=2)
    fit(module_of(embedder, tmp_path, every=0), data, 3, [Sources()])
    assert seen == {max(weights, key=weights.get)}


def test_the_weights_of_rl_can_be_averaged(folder, tmp_path):
    embedder, start = opened(folder), opened(folder).causal_lm.state_dict()
    averaging = EMAWeightAveraging(decay=0.5)
    fit(module_of(embedder, tmp_path, every=1), data_of(embedder, tmp_path), 2, [averaging])
    moved = [name for name, value in embedder.causal_lm.state_dict().items() if not value.equal(start[name])]
    assert moved
    steps = [json.loads(line)["step"] for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [0, 1]


def test_data_that_counts_other_updates_per_batch_than_the_module_are_refused(folder, tmp_path):
    embedder = opened(folder)
    module = module_of(embedder, tmp_path, PolicySettings(n_updates=2), every=0)
    with pytest.raises(ValueError, match=r"updates_per_batch=1 must be that of .*n_updates=2"):
        fit(module, data_of(embedder, tmp_path), 2)


@pytest.mark.parametrize(("function", "best_wrong"), [(dcg, False), (margin_dcg, True)])
def test_the_refresh_rule_is_told_what_the_reward_reads(folder, tmp_path, function, best_wrong):
    embedder, rule = opened(folder), Certified()
    module = module_of(embedder, tmp_path, reward=Reward(partial(function, k=7)), every=0)
    data = data_of(embedder, tmp_path, Refresh(rule, audit_every_n_steps=1))
    fit(module, data, 1)
    assert (rule.reads_best_wrong, rule.cut_off) == (best_wrong, 7)


def test_advantages_are_divided_by_the_floor_of_the_config_where_rewards_hardly_differ(folder, tmp_path):
    norms = []
    for floor in (1.0, 1000.0):  # above any standard deviation of these rewards
        embedder = opened(folder)
        module = module_of(embedder, tmp_path, PolicySettings(std_floor=floor), every=0)
        _, log = fit(module, data_of(embedder, tmp_path / str(floor)), 1)
        norms += log.of("grad_norm")
    assert norms[0] > 0
    assert norms[0] / norms[1] == pytest.approx(1000, rel=1e-3)


def test_graded_judgements_reach_the_environment(folder, tmp_path):
    plain = world()
    first = replace(plain.examples[0], relevant_ids=frozenset({"d0", "d3"}), grades=(("d3", 2.0),))
    data = replace(plain, examples=[first, *plain.examples[1:]])
    found = data_of(opened(folder), tmp_path / "run", data=data).judgements.of(["e0", "e1"])
    assert found.rows.tolist() == [[0, 3], [1, -1]]
    assert found.grades.tolist() == [[1.0, 2.0], [1.0, 0.0]]


def test_rows_of_one_query_are_one_row_with_all_their_positives(folder, tmp_path):
    plain = world()
    first, second, third = plain.examples[:3]
    again = replace(second, query=first.query, grades=((second.positive_id, 2.0),))
    known = replace(third, query=first.query, relevant_ids=frozenset({first.positive_id, third.positive_id}))
    other = replace(plain.examples[3], query=first.query, source="another")
    data = replace(plain, examples=[first, again, known, other, *plain.examples[4:]])

    module = data_of(opened(folder), tmp_path / "run", data=data)

    assert [row.id for row in module.examples] == [e.id for e in (first, other, *plain.examples[4:])]
    found = module.judgements.of([first.id, other.id])
    assert found.rows.tolist() == [[0, 1, 2], [3, -1, -1]]
    assert found.grades.tolist() == [[1.0, 2.0, 1.0], [1.0, 0.0, 0.0]]


def test_rows_of_other_weights_are_not_used_and_the_run_says_why(folder, tmp_path, caplog):
    caplog.set_level("INFO", "search_r3.index.rows.cache")

    def lines(name, embedder):
        caplog.clear()
        (tmp_path / name).mkdir()
        fit(module_of(embedder, tmp_path / name), data_of(embedder, tmp_path / name), 1)
        return [
            record.getMessage() for record in caplog.records if record.name == "search_r3.index.rows.cache"
        ]

    assert lines("first", opened(folder)) == []
    assert lines("same", opened(folder)) == []
    (old,) = (tmp_path / "cache").iterdir()
    other = opened(folder)
    with torch.no_grad():
        other.causal_lm.get_output_embeddings().weight[0] += 1.0
    tuned = save_embedder(other, tmp_path / "tuned", {})
    (line,) = lines("other", opened(tuned))
    assert line.startswith(
        f"the same documents are in {old}, embedded with other weights; those rows are not"
    )
    (new,) = set((tmp_path / "cache").iterdir()) - {old}
    assert f"12 documents are encoded into {new}." in line
    assert line.endswith(f" rm -r {shlex.quote(str(old))}")


def test_the_reward_rises_and_the_rollouts_are_told_apart_by_it(folder, tmp_path):
    embedder = opened(folder)
    _, log = fit(module_of(embedder, tmp_path), data_of(embedder, tmp_path, batch_size=6), 24)
    rewards = log.of("reward")
    # from 0.0 to 0.05 at first to 0.5, by three seeds and two instruction sets; a step is off by 0.05
    assert np.mean(rewards[-12:]) > np.mean(rewards[:2]) + 0.2
    assert all(best >= mean for best, mean in zip(log.of("reward_best"), rewards, strict=True))


@pytest.mark.parametrize("tuning", [FullTuning(), FullTuning(embeddings=False), LoraTuning(r=4, alpha=8)])
def test_pitfall_25_kl_is_zero_at_first_and_the_reference_leaves_requires_grad_alone(
    folder, tmp_path, tuning
):
    embedder = opened(folder, tuning)
    before = {name: parameter.requires_grad for name, parameter in embedder.named_parameters()}
    _, log = fit(module_of(embedder, tmp_path, rate=1e-2), data_of(embedder, tmp_path), 3)
    assert log.of("kl")[0] == 0.0
    assert log.of("kl")[-1] > 1e-6
    assert {name: parameter.requires_grad for name, parameter in embedder.named_parameters()} == before
    assert log.of("log_prob_gap")[0] < 1e-4
    assert {round(ratio, 6) for ratio in log.of("ratio")} == {1.0}


@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.bf16)])
def test_a_second_update_on_the_same_rollouts_has_ratios_off_one(folder, tmp_path, precision):
    embedder = opened(folder)
    policy = PolicySettings(n_updates=3, clip_low=0.001, clip_high=0.001)
    module = module_of(embedder, tmp_path, policy, rate=1e-2)
    trainer, log = fit(module, data_of(embedder, tmp_path, updates_per_batch=3), 6, precision=precision)
    assert trainer.global_step == 6
    assert len(log.steps) == 2
    assert abs(log.of("ratio")[0] - 1) > 1e-3  # of the last update, as the clip shares
    assert log.of("clip_share_low")[0] + log.of("clip_share_high")[0] > 0


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("rule", [Candidates(k=3), Frozen()])
def test_a_resumed_run_gives_the_numbers_of_an_uninterrupted_one_bit_for_bit(folder, tmp_path, rule):
    rows, ages = {}, {}

    class Keep(pl.Callback):
        def __init__(self, name):
            self.name = name

        def on_train_end(self, trainer, pl_module):
            index = trainer.datamodule.index
            rows[self.name], ages[self.name] = np.array(index.rows), np.array(index.encoded_at)

    def run(name, steps, ckpt_path=None):
        folder_of_run = tmp_path / name.split()[0]
        folder_of_run.mkdir(exist_ok=True)
        embedder = opened(folder)
        refresh = Refresh(rule, budget=4, background=0.1, audit_every_n_steps=2, seed=1)
        module, data = module_of(embedder, folder_of_run), data_of(embedder, folder_of_run, refresh)
        saving = TrainableCheckpoint(folder_of_run / "checkpoints", save_every_n_steps=1)
        return module, fit(module, data, steps, [Keep(name), saving], ckpt_path)[1]

    whole, log = run("whole", 6)
    run("cut", 3)
    second, later = run("cut again", 6, tmp_path / "cut" / "checkpoints" / "last.ckpt")

    assert len(later.steps) == 3
    for ours, theirs in zip(later.steps, log.steps[3:], strict=True):
        told = {name: value for name, value in ours.items() if "seconds" not in name}
        assert told.keys() >= {"train/reward", "train/n_tokens", "train/index/documents_encoded"}
        assert told.items() <= theirs.items()  # Lightning repeats what a step did not log, such as KL
    assert all(torch.equal(value, weights_of(second)[name]) for name, value in weights_of(whole).items())
    assert np.array_equal(rows["whole"], rows["cut again"])
    assert np.array_equal(ages["whole"], ages["cut again"])
    assert len(set(ages["whole"].tolist())) > 1
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "completions.jsonl").open()]
    assert steps == sorted(steps)
    assert len(steps) == len((tmp_path / "whole" / "completions.jsonl").read_text().splitlines())


def test_batches_without_spread_are_not_taken_again_by_a_resumed_run_of_several_updates(folder, tmp_path):
    def run(name, steps, ckpt_path=None):
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        embedder, policy = opened(folder), PolicySettings(n_updates=2)
        settings = {"reward": Reward(dcg), "rollouts": RolloutSettings(group_size=3), "seed": 2}
        module = module_of(embedder, place, policy, every=0, **settings)
        saving = TrainableCheckpoint(place / "checkpoints", save_every_n_steps=1)
        data = data_of(embedder, place, Refresh(Frozen()), updates_per_batch=2)
        return module, fit(module, data, steps, [saving], ckpt_path)[1]

    whole, log = run("whole", 10)
    run("cut", 6)
    resumed, later = run("cut", 10, tmp_path / "cut" / "checkpoints" / "last.ckpt")
    flat = log.of("groups_without_spread")
    assert flat[0] == 1.0  # nothing to learn from
    assert min(flat) < 1.0
    assert len(log.steps) == 5
    assert later.of("reward") == log.of("reward")[3:]
    assert all(torch.equal(value, weights_of(resumed)[name]) for name, value in weights_of(whole).items())


def test_pitfall_28_a_full_refresh_serves_what_an_audit_finds_and_a_frozen_index_does_not(folder, tmp_path):
    found = {}
    for name, rule in (("full", Full()), ("frozen", Frozen())):
        embedder = opened(folder)
        refresh = Refresh(rule, audit_every_n_steps=1)
        module = module_of(embedder, tmp_path, PolicySettings(), rate=2e-2)
        _, log = fit(module, data_of(embedder, tmp_path / name, refresh), 8)
        found[name] = log
    assert found["full"].of("index/audit/identical_rewards") == [1.0] * 7  # there is none at step 0
    assert np.mean(found["frozen"].of("index/audit/identical_rewards")) < 1.0


def test_a_second_run_with_the_same_folder_encodes_nothing(folder, tmp_path, monkeypatch):
    embedder = opened(folder)
    fit(module_of(embedder, tmp_path), data_of(embedder, tmp_path / "first"), 1)
    rows = list((tmp_path / "cache").glob("*/rows.npy"))
    written_at = [path.stat().st_mtime_ns for path in rows]
    again = opened(folder)
    encoded = []
    original = type(again).embed_documents_and_count
    monkeypatch.setattr(
        type(again),
        "embed_documents_and_count",
        lambda self, texts, *rest: (encoded.append(len(texts)), original(self, texts))[1],
    )
    data = data_of(again, tmp_path / "second", Refresh(Frozen()))
    fit(module_of(again, tmp_path), data, 1, limit_train_batches=0)
    assert sum(encoded) == 0
    assert [path.stat().st_mtime_ns for path in rows] == written_at


def test_the_table_shows_ranks_before_and_after_and_what_was_stale(folder, tmp_path):
    embedder = opened(folder)
    module = module_of(embedder, tmp_path, PolicySettings(), rate=2e-2)
    fit(module, data_of(embedder, tmp_path / "run", Refresh(Frozen())), 3)
    lines = [json.loads(line) for line in (tmp_path / "completions.jsonl").open()]
    assert len(lines) == 3 * 2 * 6
    assert all(tuple(line) == COLUMNS for line in lines)
    assert all(1 <= line[name] <= 12 for line in lines for name in ("rank_before", "rank_after"))
    assert all(len(line["top"]) == len(line["is_stale"]) == 5 for line in lines)
    assert all(line["top"][0].startswith("def ") for line in lines)
    assert not any(stale for line in lines[:12] for stale in line["is_stale"])  # step 0: nothing has changed
    last = lines[-12:]
    assert any(stale for line in last for stale in line["is_stale"])
    assert not all(stale for line in last for stale in line["is_stale"])  # positives are always fresh


def test_the_share_of_first_ranks_is_told_right_where_some_queries_have_more_positives(folder, tmp_path):
    plain = world()
    first = replace(plain.examples[0], relevant_ids=frozenset({"d0", "d3"}))
    data = replace(plain, examples=[first, *plain.examples[1:4]])
    module = module_of(opened(folder), tmp_path, completions=Completions(tmp_path / "t.jsonl", 1, 4))
    _, log = fit(module, data_of(opened(folder), tmp_path / "run", data=data), 3)
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").open()]
    for step, logged in enumerate(log.of("rank_first")):
        ranks = [line["rank_after"] for line in lines if line["step"] == step]
        assert len(ranks) == 4 * 6
        assert logged == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert len({line["rank_after"] == 1 for line in lines}) == 2


def test_a_collapsed_run_stops_with_the_reason(folder, tmp_path, caplog):
    embedder = opened(folder)
    limits = CollapseLimits(window=1, min_entropy=100.0)
    module = module_of(embedder, tmp_path, limits=limits)
    trainer, log = fit(module, data_of(embedder, tmp_path), 10)
    assert trainer.global_step == len(log.steps) == 2
    assert "entropy" in module.stopped_because
    assert module.stopped_because in caplog.text


@pytest.mark.parametrize("contrastive_weight", [0.0, 0.5])
def test_groups_without_spread_have_no_token_statistics_and_stop_a_run_for_what_they_are(
    folder, tmp_path, contrastive_weight
):
    policy = PolicySettings(contrastive_weight=contrastive_weight, kl_weight=0.05)
    limits = CollapseLimits(window=2, max_flat_share=0.0)
    nothing = Reward(lambda ranking: torch.zeros(ranking.best_wrong.shape), format_weight=0.0, floor=None)
    module = module_of(opened(folder), tmp_path, policy, limits, reward=nothing)
    _, log = fit(module, data_of(opened(folder), tmp_path), 10)
    assert log.of("groups_without_spread") == [1.0] * 4
    for name in TOKEN_STATISTICS:
        assert log.of(name) == []
    assert "groups have no spread" in module.stopped_because


def test_schedules_and_ages_count_batches_however_many_updates_a_batch_has(folder, tmp_path):
    saved = set()

    class Saved(pl.Callback):
        def on_train_batch_start(self, *rest):
            if (saving.folder / "last.ckpt").is_file():
                saved.add(torch.load((saving.folder / "last.ckpt"), weights_only=True)["global_step"])

    embedder = opened(folder)
    module = module_of(embedder, tmp_path, PolicySettings(n_updates=2), every=3)
    refresh = Refresh(Frozen(), background=0.25, audit_every_n_steps=4)
    first = replace(world(), examples=world().examples[:2])  # the others grow old but for the background
    data = data_of(embedder, tmp_path, refresh, first, batch_size=2, updates_per_batch=2)
    saving = TrainableCheckpoint(tmp_path / "checkpoints", save_every_n_steps=5)
    logger = CSVLogger(tmp_path, name="", version="csv")
    trainer, log = fit(module, data, 20, [saving, Saved()], logger=logger, log_every_n_steps=1)
    assert trainer.global_step == 20
    assert max(log.of("index/age_largest")) == 3  # a row is encoded at every fourth batch
    lines = list(csv.DictReader((tmp_path / "csv" / "metrics.csv").open(newline="")))
    assert [line["step"] for line in lines if line["train/index/audit/seconds"]] == ["4", "8"]
    shown = [json.loads(line)["step"] for line in (tmp_path / "completions.jsonl").open()]
    assert sorted(set(shown)) == [0, 3, 6, 9]
    assert saved == {6, 10, 16}  # optimizer steps, at the end of a batch


def test_a_step_logs_the_rate_that_it_was_taken_with(folder, tmp_path):
    embedder, taken = opened(folder), []

    class Taken(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            taken.append(optimizer.param_groups[0]["lr"])

    schedule = OptimizationSettings(1e-3, warmup=2, schedule="linear")
    policy = PolicySettings(contrastive_weight=0.1)  # no step is skipped
    module = module_of(embedder, tmp_path, policy, optimization=schedule)
    _, log = fit(module, data_of(embedder, tmp_path), 5, [Taken()])
    assert log.of("learning_rate") == pytest.approx(taken)
    assert taken[0] == 5e-4


def test_a_part_of_the_corpus_keeps_only_queries_that_can_be_judged(folder, tmp_path):
    embedder = opened(folder)
    part = data_of(embedder, tmp_path, max_documents=6)
    assert len(part.corpus) == 6
    assert {example.positive_id for example in part.examples} == set(part.corpus.ids)
    assert len(part.judgements) == 6


@pytest.mark.parametrize("broken", ["unknown document", "one document"])
def test_bad_judgements_are_refused_before_anything_is_encoded(folder, tmp_path, broken):
    data = world(1) if broken == "one document" else world()
    if broken == "unknown document":
        example = data.examples[0]
        data.examples[0] = Example("bad", example.query, example.positive, "nowhere")
    with pytest.raises(EnvironmentDataError, match=r"nowhere|one document"):
        data_of(opened(folder), tmp_path, data=data)
