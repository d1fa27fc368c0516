"""The RL stage with its real data module and index: a step's contrastive term and ranks by definition."""

from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import test_sft
import torch
from rl_runs import data_of, fit, likely_folder, module_of, opened, world

from search_r3.models.tuning import LoraTuning
from search_r3.models.twin import ArchitectureError
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.pretrain.data import PretrainDataModule
from search_r3.stages.pretrain.module import PretrainModule
from search_r3.stages.rl.sampling import sample_rollouts
from search_r3.stages.rl.settings import PolicySettings
from search_r3.stages.sft.data import SFTDataModule

ALSO_RELEVANT = {0: [3, 5], 2: [7], 4: [0, 1, 8]}  # documents besides the query's own
EXCLUDED = {1: [6], 2: [9, 10], 3: [0]}  # documents that a query is not ranked against
NOT_WRONG = {n: [n, *ALSO_RELEVANT.get(n, []), *EXCLUDED.get(n, [])] for n in range(6)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return likely_folder(tmp_path_factory.mktemp("rl"))


def world_with_several_positives():
    """Six queries; some have other relevant documents, which are the positives of other queries too, and some
    exclude documents."""
    plain = world()
    examples = [
        replace(
            example,
            relevant_ids=frozenset(f"d{i}" for i in (n, *ALSO_RELEVANT.get(n, []))),
            excluded_ids=frozenset(f"d{i}" for i in EXCLUDED.get(n, [])),
        )
        for n, example in enumerate(plain.examples[:6])
    ]
    return replace(plain, examples=examples)


def test_the_contrastive_term_never_takes_a_relevant_or_excluded_document_for_a_negative(folder, tmp_path):
    """Everything is retrieved and fresh at step 0, so that the pool is the corpus."""
    data, temperature = world_with_several_positives(), 0.1
    embedder, same = opened(folder), opened(folder)
    policy = PolicySettings(contrastive_weight=0.5, contrastive_temperature=temperature)
    module = module_of(embedder, tmp_path, policy, every=0, n_retrieved=len(data.corpus))
    _, log = fit(module, data_of(embedder, tmp_path / "run", data=data, batch_size=6), 1)

    rollouts = sample_rollouts(
        same, [e.id for e in data.examples], [e.query for e in data.examples], module.sampling, 6, 0, 0
    )
    documents = same.embed_documents(data.corpus.texts).double().numpy()
    losses, as_if_wrong = [], []
    for number, group in enumerate(rollouts.embeddings.double().numpy()):
        for vector in group:
            logits = documents @ vector / temperature
            allowed = [row for row in range(len(documents)) if row not in NOT_WRONG[number]]
            for found, rows in ((losses, allowed), (as_if_wrong, [r for r in range(12) if r != number])):
                found.append(np.log(np.exp(logits[[number, *rows]]).sum()) - logits[number])
    assert np.mean(as_if_wrong) - np.mean(losses) > 0.05  # it matters
    assert log.of("contrastive") == [pytest.approx(np.mean(losses), rel=1e-4)]


def test_a_step_earns_what_the_ranks_in_the_whole_corpus_earn_by_count(folder, tmp_path):
    data = world_with_several_positives()
    embedder, same = opened(folder), opened(folder)
    module = module_of(embedder, tmp_path, every=0)
    _, log = fit(module, data_of(embedder, tmp_path / "run", data=data, batch_size=6), 1)

    rollouts = sample_rollouts(
        same, [e.id for e in data.examples], [e.query for e in data.examples], module.sampling, 6, 0, 0
    )
    documents = same.embed_documents(data.corpus.texts).double()
    n_first = 0
    for number, group in enumerate(rollouts.embeddings.double()):
        relevant = [number, *ALSO_RELEVANT.get(number, [])]
        scores = group @ documents.T  # [G, N]
        wrong = scores.clone()
        wrong[:, NOT_WRONG[number]] = -torch.inf
        n_first += int((wrong.amax(1) < scores[:, relevant].amax(1) - 1e-6).sum())
    assert 0 < n_first < 36
    assert log.of("rank_first") == [pytest.approx(n_first / 36)]


class KeepScored(pl.Callback):
    """The rollouts, outcome and advantages of every step."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        made = pl_module._learnt

        def learnt(rollouts, outcome, *rest):
            self.seen.append((rollouts, outcome, made(rollouts, outcome, *rest)))
            return self.seen[-1][-1]

        pl_module._learnt = learnt


def test_what_a_step_logs_of_its_rewards_is_told_group_by_group(folder, tmp_path):
    kept = KeepScored()
    module = module_of(opened(folder), tmp_path, every=0)
    _, log = fit(module, data_of(opened(folder), tmp_path / "run", batch_size=4), 2, [kept])
    for step, (rollouts, outcome, learnt) in enumerate(kept.seen):
        groups = outcome.rewards.total.tolist()
        ranks = outcome.ranking.rank[..., 0].tolist()  # one positive each
        assert (len(groups), len(groups[0])) == (4, 6)
        wanted = {
            "reward": np.mean([np.mean(group) for group in groups]),
            "reward_best": np.mean([max(group) for group in groups]),
            "reward_spread": np.mean([np.std(group, ddof=1) for group in groups]),
            "reward_ranking": np.mean(outcome.rewards.ranking.tolist()),
            "rank_first": np.mean([[rank == 1 for rank in group] for group in ranks]),
            "n_tokens": np.mean(rollouts.n_tokens.tolist()),
            "missing_embed_token": np.mean(
                [[not has for has in g] for g in rollouts.has_embed_token.tolist()]
            ),
            "groups_without_spread": np.mean([max(group) == min(group) for group in groups]),
        }
        found = {name: log.of(name)[step] for name in wanted}
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        assert learnt.has_spread.any()
        assert found["reward_best"] > found["reward"]


@pytest.mark.parametrize("stage", ["sft", "pretrain", "rl"])
def test_every_stage_refuses_a_fresh_adapter_that_changes_the_model(folder, tmp_path, stage):
    embedder = opened(folder, LoraTuning(r=4, alpha=8))
    rows = next(each for name, each in embedder.model.named_parameters() if "trainable_tokens_delta" in name)
    with torch.no_grad():
        rows += 1.0
    optimization = OptimizationSettings(1e-3, warmup=0, schedule="constant")
    module, data = {
        "rl": lambda: (module_of(embedder, tmp_path), data_of(embedder, tmp_path / "run")),
        "sft": lambda: (
            test_sft.module_of(embedder), SFTDataModule(world(), embedder, 4, 0, 0.0, 0, 5, 5)
        ),
        "pretrain": lambda: (
            PretrainModule(embedder, optimization, 2), PretrainDataModule(world(), embedder, 2, 16, None, 0)
        ),
    }[stage]()  # fmt: skip
    with pytest.raises(ArchitectureError, match="a fresh LoRA adapter, which must change nothing"):
        fit(module, data, 1)
