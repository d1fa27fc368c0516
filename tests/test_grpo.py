"""The policy loss of GRPO: weights, clipping, gradients, statistics, and its parts over two ranks."""

import math

import pytest
import torch
from random_rollouts import NORMALISATIONS, B, G, L, batch_of, rollouts, token_weights
from torch.testing import assert_close
from two_processes import on_two_ranks

from search_r3.distributed import share_of_count
from search_r3.objectives.advantages import group_advantages
from search_r3.objectives.grpo import (
    PolicyBatch,
    clipped_token_losses,
    dr_grpo,
    k2,
    k3,
    per_token,
    policy_loss,
    policy_statistics,
    trained_tokens,
)

# Weights


def test_weights_are_the_values_by_hand():
    # group 0: rollouts of 3 and 1 tokens; group 1 has no spread and is not there
    completions = torch.tensor([[[1, 1, 1], [1, 0, 0]], [[1, 1, 1], [1, 1, 1]]]).bool()
    has_spread = torch.tensor([True, False])
    mask = trained_tokens(completions, has_spread)

    first = {
        "per_token": [[1 / 4] * 3, [1 / 4, 0, 0]],
        "per_sequence": [[1 / 6] * 3, [1 / 2, 0, 0]],
        "dr_grpo": [[1 / 14] * 3, [1 / 14, 0, 0]],  # 1 / 7 tokens / 2 rollouts
    }
    for name, normalisation in NORMALISATIONS.items():
        weights = token_weights(mask, has_spread, normalisation)
        assert_close(weights[0], torch.tensor(first[name]))
        assert (weights[1] == 0).all()


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_pitfall_26_a_batch_is_as_if_groups_without_spread_were_not_in_it(name):
    data = rollouts()
    whole, leaf = batch_of(data, NORMALISATIONS[name])
    others, other_leaf = batch_of(data, NORMALISATIONS[name], [0, 2])
    losses = [policy_loss(batch, kl_weight=0.3).total for batch in (whole, others)]
    for loss in losses:
        loss.backward()

    assert_close(losses[0], losses[1])
    assert_close(leaf.grad[[0, 2]], other_leaf.grad)
    assert (leaf.grad[1] == 0).all()
    assert leaf.grad.abs().max() > 1e-3


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_parts_of_a_batch_add_up_to_its_loss_gradient_and_statistics(name):
    data = rollouts()
    whole, leaf = batch_of(data, NORMALISATIONS[name])
    n_tokens = float(whole.mask.sum())
    expected = policy_loss(whole, kl_weight=0.3).total
    expected.backward()
    part_leaf = data["log_probs"].clone().requires_grad_()
    parts = [
        PolicyBatch(
            part_leaf[rows],
            whole.old_log_probs[rows],
            whole.advantages[rows],
            whole.weights[rows],
            whole.ref_log_probs[rows],
        )
        for rows in (slice(0, 1), slice(1, 3))
    ]
    total = sum(policy_loss(part, kl_weight=0.3).total for part in parts)
    total.backward()

    assert_close(total, expected)
    assert_close(part_leaf.grad, leaf.grad)
    for name_, value in policy_statistics(whole, n_tokens).items():
        assert_close(sum(policy_statistics(part, n_tokens)[name_] for part in parts), value)


# The policy loss


def slow_loss(data: dict, leaf: torch.Tensor, name: str, clip_low: float, clip_high: float, kl_weight: float):
    """The definition, token by token; std with correction 1, groups without spread skipped."""
    per_rollout = []
    for query in range(len(leaf)):
        rewards = data["rewards"][query].tolist()
        if max(rewards) == min(rewards):
            continue
        mean = sum(rewards) / G
        std = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / (G - 1))
        for rollout in range(G):
            advantage = (rewards[rollout] - mean) / max(std, 0.005)
            tokens = []
            for place in range(L):
                if not data["completion_mask"][query, rollout, place]:
                    continue
                now, old, ref = (x[query, rollout, place] for x in (leaf, data["old"], data["ref"]))
                ratio = (now - old).exp()
                limited = min(max(ratio, torch.tensor(1 - clip_low)), torch.tensor(1 + clip_high))
                surrogate = min(ratio * advantage, limited * advantage)
                kl = (ref - now).exp() - 1 - (ref - now)
                tokens.append(-surrogate + kl_weight * kl)
            per_rollout.append(tokens)
    if name == "per_token":
        flat = [token for tokens in per_rollout for token in tokens]
        return sum(flat) / len(flat)
    if name == "per_sequence":
        return sum(sum(tokens) / len(tokens) for tokens in per_rollout if tokens) / len(per_rollout)
    return sum(sum(tokens) / 7 for tokens in per_rollout if tokens) / len(per_rollout)


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_the_policy_loss_has_the_value_and_gradient_of_the_slow_definition(name, seed):
    data = rollouts(seed)
    batch, leaf = batch_of(data, NORMALISATIONS[name])
    loss = policy_loss(batch, clip_low=0.2, clip_high=0.3, kl_weight=0.5)
    loss.total.backward()
    slow_leaf = data["log_probs"].clone().requires_grad_()
    expected = slow_loss(data, slow_leaf, name, 0.2, 0.3, 0.5)
    expected.backward()

    clipped = policy_statistics(batch, float(batch.mask.sum()), 0.2, 0.3)
    assert clipped["clip_share_low"] > 0
    assert clipped["clip_share_high"] > 0
    assert leaf.grad.abs().max() > 1e-3
    assert_close(loss.total, expected, atol=1e-5, rtol=1e-5)
    assert_close(loss.total, loss.policy + 0.5 * loss.kl)
    assert_close(leaf.grad, slow_leaf.grad, atol=1e-6, rtol=1e-4)


def test_clipping_by_hand():
    # ratios 1.5, 1.1, 0.5, 0.9 with bounds 0.8 and 1.3
    log_ratios = torch.tensor([1.5, 1.1, 0.5, 0.9]).log()[None, None].requires_grad_()
    up = clipped_token_losses(log_ratios, torch.tensor([[2.0]]), 0.2, 0.3)
    assert_close(up, torch.tensor([[[-2.6, -2.2, -1.0, -1.8]]]))
    (gradient,) = torch.autograd.grad(up.sum(), log_ratios)
    assert_close(gradient, torch.tensor([[[0.0, -2.2, -1.0, -1.8]]]))
    down = clipped_token_losses(log_ratios, torch.tensor([[-2.0]]), 0.2, 0.3)
    assert_close(down, torch.tensor([[[3.0, 2.2, 1.6, 1.8]]]))
    (gradient,) = torch.autograd.grad(down.sum(), log_ratios)
    assert_close(gradient, torch.tensor([[[3.0, 2.2, 0.0, 1.8]]]))


def test_on_policy_the_gradient_is_the_plain_policy_gradient():
    data = rollouts()
    data["old"] = data["log_probs"]
    batch, leaf = batch_of(data, per_token)
    loss = policy_loss(batch)
    loss.total.backward()
    expected = -batch.weights * batch.advantages[..., None]
    assert_close(leaf.grad, expected)
    assert expected.abs().max() > 0.01


def test_pitfall_27_the_loss_is_near_zero_on_policy_while_the_gradient_is_not():
    data = rollouts()
    data["old"] = data["log_probs"]
    data["completion_mask"] = torch.ones_like(data["completion_mask"])  # one length: nothing is left over
    batch, leaf = batch_of(data, per_token)
    loss = policy_loss(batch)
    loss.total.backward()
    assert abs(loss.total.item()) < 1e-6
    assert leaf.grad.abs().max() > 0.01


def test_a_policy_that_is_the_reference_has_kl_zero_and_no_pull():
    data = rollouts()
    data["ref"] = data["old"] = data["log_probs"]
    data["rewards"] = torch.rand(B, G)
    batch, leaf = batch_of(data, per_token)
    for kl in (k2, k3):
        loss = policy_loss(batch, kl_weight=1.0, kl=kl)
        assert loss.kl == 0.0
        (gradient,) = torch.autograd.grad(loss.kl, leaf)
        assert (gradient == 0.0).all()


def test_a_token_with_advantage_zero_gets_no_gradient_at_any_ratio():
    log_ratios = torch.tensor([-3.0, 0.0, 0.1, 9.0])[None, None].requires_grad_()
    losses = clipped_token_losses(log_ratios, torch.zeros(1, 1))
    (gradient,) = torch.autograd.grad(losses.sum(), log_ratios)
    assert (gradient == 0.0).all()


def test_a_step_down_the_loss_makes_the_better_rollout_likelier():
    torch.manual_seed(0)
    logits = torch.zeros(1, 2, 1, 6, requires_grad=True)
    tokens = torch.tensor([[[2], [4]]])
    log_probs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    advantages = group_advantages(torch.tensor([[1.0, 0.0]]))
    weights = token_weights(torch.ones(1, 2, 1, dtype=torch.bool), advantages.has_spread, per_token)
    policy_loss(PolicyBatch(log_probs, log_probs.detach(), advantages.values, weights)).total.backward()
    better, worse = (logits - logits.grad).log_softmax(-1)[0, [0, 1], 0, [2, 4]] - log_probs[0, :, 0]
    assert better > 0.1
    assert worse < -0.1


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize(
    "case", ["all rewards equal", "fully masked row", "one group", "no group", "far away"]
)
def test_extreme_batches_have_finite_losses_and_gradients(name, case):
    data = rollouts()
    if case == "all rewards equal":
        data["rewards"] = torch.full((B, G), 0.7)
    if case == "fully masked row":
        data["completion_mask"][:] = False
    if case == "one group":
        data = {key: value[:1] for key, value in data.items()}
    if case == "no group":
        data = {key: value[:0] for key, value in data.items()}
    if case == "far away":
        data["old"], data["ref"] = data["log_probs"] - 500, data["log_probs"] + 500
    data["log_probs"] = data["log_probs"].masked_fill(~data["completion_mask"], math.nan)  # never looked at
    batch, leaf = batch_of(data, NORMALISATIONS[name])
    loss = policy_loss(batch, kl_weight=0.1)
    loss.total.backward()

    assert loss.total.isfinite()
    assert leaf.grad.isfinite().all()
    if case in ("all rewards equal", "fully masked row", "no group"):
        assert loss.total == 0.0
        assert loss.kl == 0.0
        assert (leaf.grad == 0.0).all()
    for value in policy_statistics(batch, share_of_count(int(batch.mask.sum()))).values():
        assert value.isfinite()


def test_settings_out_of_range_and_a_missing_reference_are_refused():
    batch, _ = batch_of(rollouts(), per_token)
    for settings in ({"clip_low": 1.5}, {"clip_high": -0.1}, {"kl_weight": -1.0}):
        with pytest.raises(ValueError, match="must"):
            policy_loss(batch, **settings)
    without = PolicyBatch(batch.log_probs, batch.old_log_probs, batch.advantages, batch.weights)
    assert policy_loss(without).kl == 0.0
    with pytest.raises(ValueError, match="ref_log_probs"):
        policy_loss(without, kl_weight=0.1)
    with pytest.raises(ValueError, match="max_tokens"):
        dr_grpo(batch.mask, torch.ones(B, dtype=torch.bool), max_tokens=0)


def test_statistics_by_hand():
    # two trained tokens: ratio 1.5 with A > 0 is clipped above, 1.0 is not; the third is not trained
    log_probs = torch.tensor([[[math.log(0.75), math.log(0.5), math.nan]]])
    old = torch.tensor([[[math.log(0.5), math.log(0.5), 0.0]]])
    batch = PolicyBatch(log_probs, old, torch.tensor([[1.0]]), torch.tensor([[[0.5, 0.5, 0.0]]]), log_probs)
    numbers = policy_statistics(batch, 2.0, sampling_log_probs=old, entropy=torch.tensor([[[1.0, 2.0, 9.0]]]))
    expected = {
        "clip_share_low": 0.0,
        "clip_share_high": 0.5,
        "ratio": 1.25,
        "kl": 0.0,
        "log_prob_gap": math.log(1.5) / 2,
        "entropy": 1.5,
    }
    assert {name: value.item() for name, value in numbers.items()} == pytest.approx(expected)
    low = PolicyBatch(-log_probs, -old, torch.tensor([[-1.0]]), batch.weights)
    assert policy_statistics(low, 2.0)["clip_share_low"].item() == 0.5


# Two ranks


SPLITS = {"even": ([0, 1], [2, 3]), "ragged": ([0, 1, 2], [3]), "empty": ([0, 1, 2, 3], [])}


def loss_and_gradient(name: str, rows) -> dict[str, torch.Tensor]:
    data = rollouts(n_queries=4)
    batch, leaf = batch_of(data, NORMALISATIONS[name], rows)
    loss = policy_loss(batch, kl_weight=0.4)
    loss.total.backward()
    gradient = torch.zeros(4, G, L)
    gradient[rows] = leaf.grad
    numbers = policy_statistics(batch, share_of_count(int(batch.mask.sum())))
    return {"loss": loss.total.detach(), "gradient": gradient, **numbers}


def work(rank: int) -> dict:
    """Everything that one of the two processes does."""
    return {
        (name, split): loss_and_gradient(name, rows[rank])
        for name in NORMALISATIONS
        for split, rows in SPLITS.items()
    }


@pytest.fixture(scope="module")
def two_ranks() -> list[dict]:
    return on_two_ranks(work)


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize("split", SPLITS)
def test_the_mean_over_ranks_is_the_loss_gradient_and_statistics_of_one_rank(two_ranks, name, split):
    one = loss_and_gradient(name, [0, 1, 2, 3])
    assert one["gradient"].abs().max() > 1e-3
    for key, value in one.items():
        mean = sum(rank[name, split][key] for rank in two_ranks) / 2
        assert_close(mean, value, atol=1e-6, rtol=1e-5)
