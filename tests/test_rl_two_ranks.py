"""The RL stage on two real processes under DDP against one: the same rollouts, rewards, index and weights."""

import json
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from rl_runs import data_of, fit, likely_folder, module_of
from two_processes import on_two_ranks

from search_r3.index.rules.base import Refresh
from search_r3.index.rules.candidates import Candidates
from search_r3.index.rules.full import Full
from search_r3.models.folder import open_embedder
from search_r3.models.tuning import FullTuning, LoraTuning
from search_r3.objectives.grpo import per_sequence
from search_r3.objectives.rewards import Reward, dcg, margin_dcg
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.rl.settings import PolicySettings, RolloutSettings

N_STEPS = 3
RATE = 1e-3
# An eps far above the rounding of a gradient, by whose size Adam would divide: a gradient of rounding errors
# alone would move a weight as far as any other.
OPTIMIZATION = OptimizationSettings(RATE, warmup=0, schedule="constant", eps=1e-3)


@dataclass(frozen=True)
class Case:
    """A run that both sides make: arguments of the module, its index rule, and how the model is opened."""

    module: dict
    rule: object
    opened: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    n_updates: int = 1
    shards_weights: bool = False


def ties(contrastive_weight):
    """Rewards that tie, so that a rank has a batch without any spread; several updates; no shared prompts."""
    return Case(
        {
            "policy": PolicySettings(kl_weight=0.1, n_updates=2, contrastive_weight=contrastive_weight),
            "reward": Reward(dcg),
            "rollouts": RolloutSettings(group_size=3),
            "token_budget": 120,
            "seed": 1,
        },
        Full(),
        opened={"gradient_checkpointing": True},
        data={"batch_size": 4},
        n_updates=2,
        shards_weights=True,  # claimed, so that the ranks run equally many forwards
    )


CASES = {
    # KL, contrastive term, audits, the table and the agreement of both ranks at every step; five queries, so
    # that the first rank has three and the second two
    "everything": Case(
        {
            "policy": PolicySettings(kl_weight=0.05, contrastive_weight=0.5),
            "rank_agreement_every_n_steps": 1,
            "reward": Reward(partial(margin_dcg, tau=0.05)),
        },
        Candidates(k=3),
        data={"batch_size": 5},
    ),
    "ties": ties(contrastive_weight=0.5),  # whose groups without spread have something to learn all the same
    "ties alone": ties(contrastive_weight=0.0),
    "LoRA": Case(
        {"policy": PolicySettings(kl_weight=0.05, normalisation=per_sequence)},
        Candidates(k=3),
        opened={"tuning": LoraTuning(r=4, alpha=8)},
    ),
}


class Watch(pl.Callback):
    """What a run did on this rank: rewards by rollout, groups with spread, forwards."""

    def __init__(self, shards_weights):
        self.shards_weights = shards_weights
        self.rollouts, self.has_spread, self.forwards, self.index = [], [], 0, {}

    def on_train_start(self, trainer, module):
        module.shards_weights = self.shards_weights
        original = module._learnt

        def learnt(rollouts, outcome, *arguments):
            result = original(rollouts, outcome, *arguments)
            rewards = outcome.rewards.total.tolist()
            groups = zip(rollouts.query_ids, rollouts.texts, rewards, strict=True)
            self.rollouts.append({query: (texts, values) for query, texts, values in groups})
            self.has_spread.append(result.has_spread.tolist())
            return result

        module._learnt = learnt
        module.embedder.decoder.register_forward_pre_hook(self._count)

    def on_train_end(self, trainer, module):
        index = trainer.datamodule.index
        self.index = {"rows": np.array(index.rows), "encoded_at": np.array(index.encoded_at)}

    def _count(self, *_):
        self.forwards += 1


def run(case, model_folder, folder, **settings):
    torch.manual_seed(0)  # of an adapter's first weights
    opened = {"tuning": FullTuning(), **case.opened}
    embedder = open_embedder(path=str(model_folder), name=None, create=None, prompts={}, lengths={}, **opened)
    module = module_of(embedder, folder, optimization=OPTIMIZATION, **case.module)
    refresh = Refresh(case.rule, budget=4, background=0.1, audit_every_n_steps=1, seed=1)
    data = data_of(embedder, folder, refresh, updates_per_batch=case.n_updates, **case.data)
    watch = Watch(case.shards_weights)
    log = fit(module, data, N_STEPS * case.n_updates, [watch], **settings)[1]
    return {
        "logged": log.steps,
        "weights": {name: value.detach().clone() for name, value in module.state_dict().items()},
        "rollouts": watch.rollouts,
        "has_spread": watch.has_spread,
        "forwards": watch.forwards,
        "table": [json.loads(line) for line in (folder / "completions.jsonl").open()],
        **watch.index,
    }


def run_all(cases, model_folder, folder, trainer=dict):
    """What every case left; `trainer` makes the arguments of its trainer."""
    results = {}
    for name, case in cases.items():
        place = folder / name / "run"
        place.mkdir(parents=True, exist_ok=True)
        results[name] = run(case, model_folder, place, **trainer())
    return results


def work(rank, model_folder, folder):
    return run_all(CASES, model_folder, folder, lambda: {"strategy": "ddp", "devices": 2})


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return likely_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, model_folder):
    return on_two_ranks(work, model_folder, tmp_path_factory.mktemp("two_ranks"))


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, model_folder):
    return run_all(CASES, model_folder, tmp_path_factory.mktemp("one_rank"))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_write_the_reasonings_of_one_and_earn_its_rewards(two_ranks, one_rank, name):
    for step, whole in enumerate(one_rank[name]["rollouts"]):
        parts = [rank[name]["rollouts"][step] for rank in two_ranks]
        assert not parts[0].keys() & parts[1].keys()  # groups are whole, each on one rank
        both = parts[0] | parts[1]
        assert both.keys() == whole.keys()
        for query, (texts, rewards) in whole.items():
            assert both[query][0] == texts
            # margins are sigmoids of score differences over tau 0.05; scores agree to 1e-6
            assert both[query][1] == pytest.approx(rewards, abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_log_what_one_logs(two_ranks, one_rank, name):
    for step, expected in enumerate(one_rank[name]["logged"]):
        for rank in two_ranks:
            logged = rank[name]["logged"][step]
            assert logged.keys() == expected.keys()
            kept = {key for key in expected if "seconds" not in key}
            # log-probabilities and scores agree to 1e-5, ratios and margins over tau 0.05 multiply that by 20
            assert {key: logged[key] for key in kept} == pytest.approx(
                {key: expected[key] for key in kept}, abs=2e-4, rel=2e-3
            )


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_end_with_the_weights_and_the_index_of_one(two_ranks, one_rank, name):
    one = one_rank[name]
    for rank in two_ranks:
        for key, value in one["weights"].items():  # to a hundredth of a step of Adam
            torch.testing.assert_close(rank[name]["weights"][key], value, rtol=0, atol=RATE / 100)
    encoded_at = np.concatenate([rank[name]["encoded_at"] for rank in two_ranks])
    rows = np.concatenate([rank[name]["rows"] for rank in two_ranks])
    assert (encoded_at == one["encoded_at"]).all()
    assert len(set(encoded_at.tolist())) > 1
    assert rows == pytest.approx(one["rows"], abs=1e-4)
    assert torch.equal(*(torch.cat([v.flatten() for v in r[name]["weights"].values()]) for r in two_ranks))


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_write_the_table_of_one(two_ranks, one_rank, name):
    table, expected = two_ranks[0][name]["table"], one_rank[name]["table"]
    assert len(table) == len(expected) > 0
    for line, other in zip(table, expected, strict=True):
        assert line.pop("reward") == pytest.approx(other.pop("reward"), abs=1e-4)
        assert line == other


@pytest.mark.parametrize("name", ["ties", "ties alone"])
def test_pitfall_31_a_rank_without_any_spread_takes_its_part_in_equally_many_forwards(two_ranks, name):
    spread = [[any(step) for step in rank[name]["has_spread"]] for rank in two_ranks]
    assert any(one != other for one, other in zip(*spread, strict=True)), spread
    assert two_ranks[0][name]["forwards"] == two_ranks[1][name]["forwards"] > 10
