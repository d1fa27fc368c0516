"""What of a rollout is trained, by which term: the contrastive one, the best of a group, where to stop."""

import pytest
import pytorch_lightning as pl
import rl_runs
import torch
from rl_runs import data_of, fit, module_of, opened

from search_r3.index.exact_rank import Positives
from search_r3.index.rules.base import Refresh
from search_r3.index.rules.frozen import Frozen
from search_r3.models.tuning import FullTuning
from search_r3.objectives.rewards import Reward
from search_r3.stages.rl.contrast import Pool, contrasted
from search_r3.stages.rl.forward import training_forward
from search_r3.stages.rl.settings import PolicySettings

folder = rl_runs.folder  # fixture


class KeepLearnt(pl.Callback):
    """What every step learnt from, in order, and the rewards `[B, G]` that it had."""

    def __init__(self):
        self.seen, self.rewards = [], []

    def on_train_start(self, trainer, pl_module):
        made = pl_module._learnt

        def keep(rollouts, outcome, *rest):
            self.seen.append(made(rollouts, outcome, *rest))
            self.rewards.append(outcome.rewards.total)
            return self.seen[-1]

        pl_module._learnt = keep


def contrastive_losses(learnt, vectors, temperature):
    """InfoNCE `[B, G]` of rollouts `[B, G, D]` against the pool, one positive per query."""
    logits = vectors @ learnt.pool.vectors.T / temperature  # [B, G, M]
    place = (learnt.pool.rows == learnt.positives.rows[:, :1]).long().argmax(1)
    return logits.logsumexp(-1) - logits[torch.arange(len(place)), :, place]


def test_the_contrastive_term_moves_the_vectors_where_the_policy_gradient_is_left_out(folder, tmp_path):
    embedder, kept, n_updates = opened(folder), KeepLearnt(), 8
    policy = PolicySettings(contrastive_weight=1.0, n_updates=n_updates)
    flat = Reward(lambda ranking: torch.zeros(ranking.best_wrong.shape), format_weight=0.0, floor=None)
    module = module_of(embedder, tmp_path, policy, rate=5e-3, every=0, reward=flat)
    # all updates are on one batch of rollouts, whose loss must fall: no other is sampled
    fit(module, data_of(embedder, tmp_path, batch_size=6, updates_per_batch=n_updates), n_updates, [kept])

    (learnt,) = kept.seen
    assert not learnt.has_spread.any()
    rollouts = learnt.rollouts
    with torch.no_grad():
        after = training_forward(embedder, rollouts, range(rollouts.n_tokens.numel())).embeddings
    losses = [
        contrastive_losses(learnt, vectors, policy.contrastive_temperature)
        for vectors in (rollouts.embeddings, after.unflatten(0, rollouts.n_tokens.shape))
    ]
    assert losses[1].mean() < losses[0].mean() - 0.03  # 0.09 here; a vector is told to 1e-5, a loss to 1e-3


def test_a_group_whose_pool_holds_nothing_but_its_positives_takes_no_part_in_the_contrastive_term():
    advantages = torch.tensor([[0.5, -0.5], [1.0, -1.0]])
    positives = Positives(torch.tensor([[3, 5], [3, -1]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    pool = Pool(torch.tensor([3, 5]), torch.eye(2))
    assert contrasted(advantages, positives, pool, "all").tolist() == [[0, 0], [1, 1]]
    assert contrasted(advantages, positives, pool, "good").tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize("rollouts", ["all", "good"])
def test_the_contrastive_term_is_the_mean_over_the_rollouts_that_it_names(folder, tmp_path, rollouts):
    embedder, kept = opened(folder), KeepLearnt()
    policy = PolicySettings(contrastive_weight=0.5, contrastive_rollouts=rollouts)
    module = module_of(embedder, tmp_path, policy, rate=1e-12, every=0)

    _, log = fit(module, data_of(embedder, tmp_path, batch_size=6), 2, [kept])
    for learnt, logged in zip(kept.seen, log.of("contrastive"), strict=True):
        losses = contrastive_losses(learnt, learnt.rollouts.embeddings, policy.contrastive_temperature)
        named = learnt.advantages >= 0 if rollouts == "good" else torch.ones_like(losses).bool()
        assert 0 < named.sum() <= losses.numel()
        assert logged == pytest.approx(float(losses[named].mean()), abs=2e-3)
        assert sorted(row for rows in learnt.batches for row in rows) == list(range(losses.numel()))
    sizes = {float(learnt.contrasted.mean()) for learnt in kept.seen}
    assert min(sizes) < 1 if rollouts == "good" else sizes == {1.0}


def test_best_of_n_trains_the_tokens_of_each_groups_best_rollout_alone(folder, tmp_path):
    embedder, kept = opened(folder), KeepLearnt()
    policy = PolicySettings(advantages="best", contrastive_weight=0.5, contrastive_rollouts="good")
    _, log = fit(module_of(embedder, tmp_path, policy, every=0), data_of(embedder, tmp_path), 3, [kept])
    n_told = 0
    for learnt, rewards in zip(kept.seen, kept.rewards, strict=True):
        mask = learnt.rollouts.completion_mask
        for group in range(len(rewards)):
            best = int(rewards[group].argmax())
            others = [row for row in range(rewards.shape[1]) if row != best]
            assert not learnt.weights[group, others].any()
            assert learnt.advantages[group, best] == float(learnt.has_spread[group])
            if learnt.has_spread[group]:
                assert (learnt.weights[group, best] > 0).equal(mask[group, best])
                n_told += 1
        assert learnt.weights.sum() == pytest.approx(float(learnt.has_spread.any()), abs=1e-5)
        assert learnt.contrasted.sum(1).min() >= 1  # the good ones of the group, and not the best alone
        assert learnt.contrasted.sum() > len(rewards)
    assert n_told > 3
    assert all(value > 0 for value in log.of("grad_norm"))


def test_token_embeddings_that_are_not_trained_stay_what_they_were(folder, tmp_path):
    embedder = opened(folder, FullTuning(embeddings=False))
    before = {name: parameter.detach().clone() for name, parameter in embedder.named_parameters()}
    fit(module_of(embedder, tmp_path), data_of(embedder, tmp_path), 3)
    moved = {name for name, value in embedder.named_parameters() if not torch.equal(value, before[name])}
    frozen = before.keys() - moved
    assert [name.rsplit(".", 2)[-2] for name in frozen] == ["embed_tokens"]
    assert embedder.causal_lm.get_output_embeddings().weight is embedder.model.get_input_embeddings().weight


def test_the_contrastive_term_leaves_stale_rows_out(folder, tmp_path):
    embedder, kept = opened(folder), KeepLearnt()
    module = module_of(embedder, tmp_path, PolicySettings(contrastive_weight=0.5), every=0)
    fit(module, data_of(embedder, tmp_path, Refresh(Frozen()), batch_size=6), 3, [kept])
    sizes = [len(learnt.pool.rows) for learnt in kept.seen]
    assert sizes[0] > 6  # nothing has been trained yet, and so nothing is stale
    for learnt in kept.seen[1:]:  # positives are encoded at every step
        assert learnt.pool.rows.tolist() == sorted(set(learnt.positives.rows.flatten().tolist()))


def test_the_decision_to_stop_is_trained_where_the_policy_took_it_and_nowhere_else(folder, tmp_path):
    embedder, kept = opened(folder), KeepLearnt()
    module = module_of(embedder, tmp_path, PolicySettings(), rate=1e-9, every=0)

    fit(module, data_of(embedder, tmp_path, batch_size=6), 2, [kept])
    n_stops = n_forced = 0
    for learnt in kept.seen:
        rollouts = learnt.rollouts
        at_end = rollouts.n_tokens[..., None]
        assert (rollouts.token_ids.gather(2, at_end) == embedder.embed_token_id).all()
        wrote, has_spread = rollouts.has_embed_token, learnt.has_spread[:, None]
        weights, old = (values.gather(2, at_end)[..., 0] for values in (learnt.weights, learnt.old))
        assert torch.equal(weights > 0, wrote & has_spread)
        recorded = rollouts.log_probs.gather(2, at_end)[..., 0]
        trained = wrote & has_spread
        assert (recorded[trained] < 0).all()
        torch.testing.assert_close(old[trained], recorded[trained], atol=1e-4, rtol=0)
        n_stops += int(trained.sum())
        n_forced += int((~wrote & has_spread).sum())
    assert n_stops >= 5
    assert n_forced >= 5
