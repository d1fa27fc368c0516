import math
from pathlib import Path

import pytest
import torch
from conftest import linear_head
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.autograd.graph import saved_tensors_hooks
from torch.distributions import Categorical
from torch.testing import assert_close
from two_processes import on_two_ranks

from search_r3.distributed import share_of_count
from search_r3.models.generation import sample
from search_r3.objectives.advantages import group_advantages
from search_r3.objectives.grpo import (
    PolicyBatch,
    _entropy,
    clipped_token_losses,
    dr_grpo,
    k1,
    k2,
    k3,
    per_sequence,
    per_token,
    policy_loss,
    policy_statistics,
    token_log_probs,
    trained_tokens,
    unpacked,
)
from search_r3.objectives.rewards import Ranking

CONF = Path(__file__).resolve().parents[1] / "conf"
B, G, L = 3, 4, 5
LIMIT = 7
"""Tokens that a rollout may have at most."""

NORMALISATIONS = {
    "per_token": per_token,
    "per_sequence": per_sequence,
    "dr_grpo": dr_grpo,
}


def rollouts(seed: int = 0, n_queries: int = B) -> dict[str, torch.Tensor]:
    """Random rollouts of different lengths; the second group has no spread, one rollout has no token."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, L + 1, (n_queries, G), generator=generator)
    lengths[0, 1] = 0
    rewards = torch.rand(n_queries, G, generator=generator)
    rewards[1] = 0.25
    old = -torch.rand(n_queries, G, L, generator=generator) * 3
    return {
        "completion_mask": torch.arange(L) < lengths[..., None],
        "rewards": rewards,
        "old": old,
        "log_probs": old + 0.6 * torch.randn(n_queries, G, L, generator=generator),
        "ref": old + 0.4 * torch.randn(n_queries, G, L, generator=generator),
    }


def token_weights(mask, has_spread, normalisation, limit=LIMIT):
    """What each token's loss is multiplied by, the denominator of one rank included."""
    weights, count = normalisation(mask, has_spread, limit)
    return weights / share_of_count(count)


def batch_of(data: dict, normalisation, rows=slice(None)) -> tuple[PolicyBatch, torch.Tensor]:
    """The batch of some rows, with weights of those rows, and the leaf that the gradient goes to."""
    advantages = group_advantages(data["rewards"][rows])
    mask = trained_tokens(data["completion_mask"][rows], advantages.has_spread)
    weights = token_weights(mask, advantages.has_spread, normalisation)
    leaf = data["log_probs"][rows].clone().requires_grad_()
    return PolicyBatch(leaf, data["old"][rows], advantages.values, weights, data["ref"][rows]), leaf


# Advantages


def test_advantages_are_the_values_by_hand():
    # mean 2, deviations -1, 0, 1; sample standard deviation 1
    rewards = torch.tensor([[1.0, 2.0, 3.0]])
    assert_close(group_advantages(5 * rewards).values, torch.tensor([[-1.0, 0.0, 1.0]]))
    assert_close(group_advantages(rewards, std_floor=1.25).values, torch.tensor([[-0.8, 0.0, 0.8]]))
    assert_close(group_advantages(rewards, scale_by_std=False).values, torch.tensor([[-1.0, 0.0, 1.0]]))


@pytest.mark.parametrize("scale_by_std", [True, False])
def test_advantages_sum_to_zero_and_keep_the_order_of_rewards(scale_by_std):
    rewards = rollouts()["rewards"]
    advantages = group_advantages(rewards, scale_by_std)
    assert_close(advantages.values.sum(1), torch.zeros(B), atol=1e-5, rtol=0)
    assert torch.equal(advantages.values[[0, 2]].argsort(1), rewards[[0, 2]].argsort(1))
    assert advantages.values.abs().max() > 0.1


def test_a_scaled_advantage_does_not_depend_on_the_unit_of_the_reward():
    rewards = rollouts()["rewards"]
    assert_close(
        group_advantages(rewards, std_floor=0.0).values,
        group_advantages(5 * rewards - 3, std_floor=0.0).values,
        atol=1e-4,
        rtol=0,
    )


def test_rewards_that_hardly_differ_keep_their_digits():
    # near 1.1 a mean in fp32 is off by up to 6e-8, and these differ by 1.2e-7 a step
    rewards = torch.tensor([[1.1] * 4]) + torch.arange(4) * 2.0**-23
    advantages = group_advantages(rewards, min_spread=0.0, std_floor=1.0).values
    assert_close(advantages, torch.tensor([[-1.5, -0.5, 0.5, 1.5]]) * 2.0**-23, atol=0, rtol=1e-6)


def rewards_of(ranks, margins):
    """`[1, G]` rewards as `reward=margin_dcg` gives them; the best wrong document has cosine 0.4."""
    reward = instantiate(OmegaConf.load(CONF / "reward" / "margin_dcg.yaml"))
    rank, scores = torch.tensor(ranks)[None, :, None], 0.4 + torch.tensor(margins)[None, :, None]
    best_wrong = torch.full(scores.shape[:2], 0.4)
    ranking = Ranking(rank, scores, best_wrong, torch.ones(1, 1), torch.tensor([20000]))
    return reward(ranking, torch.ones_like(best_wrong, dtype=torch.bool)).total


def advantages_of(ranks, margins):
    """As the RL stage takes them, by its config."""
    policy = OmegaConf.load(CONF / "stage" / "rl.yaml").module.policy
    return group_advantages(rewards_of(ranks, margins), policy.scale_by_std, policy.std_floor)


def test_margins_alone_earn_a_small_part_of_an_advantage():
    near = advantages_of([1, 1, 1, 1], [0.10, 0.11, 0.12, 0.13])
    assert near.has_spread.all()
    assert (near.values.diff() > 0).all()
    assert near.values.abs().max() < 0.07
    for margins in ([0.0] * 7 + [0.6], [0.0] + [0.6] * 7, [0.0, 0.6] * 4, [-1.4] + [0.6] * 7):
        assert advantages_of([1] * 8, margins).values.abs().max() < 1.0


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("margin", [-0.3, 0.0, 0.3])
def test_a_better_rank_earns_a_full_advantage(rank, margin):
    # sqrt(8) * 7 / 8 is that of one of eight that differs from the others
    advantages = advantages_of([rank] + [rank + 1] * 7, [margin] + [0.0] * 7).values
    assert advantages[0, 0].item() == pytest.approx(math.sqrt(8) * 7 / 8, rel=1e-5)


def test_without_a_floor_margins_alone_earn_a_full_advantage():
    rewards = rewards_of([1, 1, 1, 1], [0.10, 0.11, 0.12, 0.13])
    assert group_advantages(rewards, std_floor=0.0).values.abs().max() > 1.0


def test_a_group_without_spread_gets_exact_zeros_and_is_reported():
    # 0.1 is no binary fraction: the mean of seven is not 0.1 in fp32
    rewards = torch.tensor([[0.1] * 7, [0.1] * 6 + [0.2]])
    advantages = group_advantages(rewards)
    assert advantages.has_spread.tolist() == [False, True]
    assert (advantages.values[0] == 0.0).all()
    assert advantages.values[1, 6] > 2.0


@pytest.mark.parametrize("bad", [torch.zeros(2, 1), torch.zeros(4), torch.tensor([[0.0, math.nan]])])
def test_rewards_that_cannot_be_compared_are_refused(bad):
    with pytest.raises(ValueError, match="rewards must be"):
        group_advantages(bad)


def test_a_floor_below_zero_is_refused():
    with pytest.raises(ValueError, match="std_floor must not be negative"):
        group_advantages(torch.rand(1, 2), std_floor=-0.1)


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


# KL estimators, by exact enumeration of a small vocabulary


def enumerated(kl):
    """An estimator's expected value and gradient over the policy's samples, and both exact divergences."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(9, generator=generator, dtype=torch.float64).requires_grad_()
    ref = torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(-1)
    log_probs = logits.log_softmax(-1)
    p = log_probs.exp()
    values = kl(log_probs, ref)
    (gradient,) = torch.autograd.grad((p.detach() * values).sum(), logits, retain_graph=True)
    reverse, forward = (p * (log_probs - ref)).sum(), (ref.exp() * (ref - log_probs)).sum()
    gradients = [torch.autograd.grad(d, logits, retain_graph=True)[0] for d in (reverse, forward)]
    return (p * values).sum().item(), values.detach(), gradient, reverse.item(), *gradients


def test_k1_is_unbiased_and_does_not_pull():
    mean, values, gradient, exact, _, _ = enumerated(k1)
    assert mean == pytest.approx(exact)
    assert values.min() < 0
    assert gradient.abs().max() < 1e-12


def test_k2_is_biased_and_pulls_as_kl_to_the_reference_does():
    mean, values, gradient, exact, to_reference, _ = enumerated(k2)
    assert abs(mean - exact) > 0.01
    assert (values >= 0).all()
    assert_close(gradient, to_reference)
    assert gradient.abs().max() > 0.01


def test_k3_is_unbiased_and_pulls_as_kl_from_the_reference_does():
    mean, values, gradient, exact, to_reference, from_reference = enumerated(k3)
    assert mean == pytest.approx(exact)
    assert (values >= 0).all()
    assert_close(gradient, from_reference)
    assert not torch.allclose(gradient, to_reference, atol=1e-3)


def test_k3_is_the_value_by_hand_and_keeps_its_digits_near_zero():
    # ref twice as likely: 2 - 1 - log 2
    assert k3(torch.tensor(-2.0), torch.tensor(-2.0 + math.log(2))).item() == pytest.approx(1 - math.log(2))
    assert k3(torch.tensor(0.0), torch.tensor(1e-3)).item() == pytest.approx(5e-7, rel=0.1)


# Log-probabilities of tokens


def head(n_tokens: int = 11, vocabulary: int = 40, width: int = 6):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n_tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(5, vocabulary, (n_tokens,), generator=generator)


BANNED = [0, 3]


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_token_log_probs_have_the_value_and_gradient_of_the_plain_ones(chunk):
    hidden, weight, targets = head()
    upstream = torch.linspace(-1, 1, 11)
    result = token_log_probs(hidden, linear_head(weight), targets, 0.7, BANNED, chunk)
    result.log_probs.mul(upstream).sum().backward()
    fast = [hidden.grad.clone(), weight.grad.clone()]
    hidden.grad = weight.grad = None
    logits = (hidden @ weight.T) / 0.7
    logits[:, BANNED] = -math.inf
    plain = logits.log_softmax(-1)[torch.arange(11), targets]
    plain.mul(upstream).sum().backward()

    assert hidden.grad.abs().max() > 0.1
    assert_close(result.log_probs, plain)
    assert_close(fast[0], hidden.grad)
    assert_close(fast[1], weight.grad)
    assert_close(
        result.entropy, Categorical(logits=logits[:, [i for i in range(40) if i not in BANNED]]).entropy()
    )
    assert not result.entropy.requires_grad


def test_log_probs_are_of_the_distribution_that_sampling_draws_from():
    hidden, weight, _ = head(n_tokens=1, vocabulary=8)
    banned = torch.tensor(BANNED)
    logits = (hidden @ weight.T).detach().index_fill(-1, banned, -math.inf)
    uniforms = (torch.arange(20000) + 0.5) / 20000  # evenly spread: no sampling noise
    drawn, recorded = sample(logits.expand(20000, -1), uniforms, temperature=0.6, top_p=1.0)
    shares = drawn.bincount(minlength=8) / 20000
    allowed = [token for token in range(8) if token not in BANNED]
    states, tokens = hidden.expand(6, -1), torch.tensor(allowed)
    log_probs = token_log_probs(states, linear_head(weight), tokens, 0.6, banned).log_probs

    assert (shares[BANNED] == 0).all()
    assert_close(log_probs.exp(), shares[allowed], atol=2e-4, rtol=0)
    assert log_probs.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    for token, log_prob in zip(allowed, log_probs, strict=True):
        assert_close(recorded[drawn == token], log_prob.expand(int((drawn == token).sum())))


def test_logits_of_one_chunk_are_the_largest_tensor_kept_for_backward():
    hidden, weight, targets = head(n_tokens=64, vocabulary=50)
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        token_log_probs(hidden, linear_head(weight), targets, chunk=4).log_probs.sum().backward()
    assert max(sizes) <= max(weight.numel(), hidden.numel())  # 300 and 384; all logits would be 3200


@pytest.mark.parametrize("vocabulary", [2, 17, 150_000])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 5.0, 15.0, 50.0])
@pytest.mark.parametrize("level", [0.0, 50.0, -50.0])
def test_the_entropy_is_right_to_the_last_digits(vocabulary, spread, level):
    generator = torch.Generator().manual_seed(0)
    logits = level + spread * torch.randn(4, vocabulary, generator=generator)
    logits[1:, ::3] = -math.inf  # banned
    before = logits.clone()
    entropy = _entropy(logits)
    # log(sum of exp(z - max)), with the 1 of the highest kept apart, for sharp distributions too
    highest, at = logits.double().max(-1, keepdim=True)
    below = logits.double() - highest
    log_probs = below - below.exp().scatter(-1, at, 0.0).sum(-1, keepdim=True).log1p()
    expected = -(log_probs.exp() * log_probs.clamp(min=-1e300)).sum(-1)

    assert entropy.dtype == torch.float32
    assert torch.equal(logits, before)
    assert (entropy >= 0).all()
    # 8 ulps, and as a share of the one possible token's probability where hardly anything else is possible
    assert_close(entropy.double(), expected, rtol=8 * 2.0**-23, atol=1e-12)


def test_the_entropy_of_one_possible_token_is_zero():
    logits = torch.full((2, 9), -math.inf)
    logits[0, 4], logits[1, 0] = 50.0, -50.0
    assert _entropy(logits).tolist() == [0.0, 0.0]


def test_no_token_gives_a_zero_that_is_part_of_the_graph():
    hidden, weight, targets = head()
    result = token_log_probs(hidden[:0], linear_head(weight), targets[:0])
    result.log_probs.sum().backward()
    assert result.log_probs.shape == result.entropy.shape == (0,)
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()


def test_token_log_probs_refuse_what_cannot_be():
    hidden, weight, targets = head()
    with pytest.raises(ValueError, match=f"token {targets[0]} is banned"):
        token_log_probs(hidden, linear_head(weight), targets, banned_ids=[int(targets[0])])
    with pytest.raises(ValueError, match="one target per state"):
        token_log_probs(hidden, linear_head(weight), targets[1:])
    for settings in ({"temperature": 0.0}, {"chunk": 0}):
        with pytest.raises(ValueError, match="must be"):
            token_log_probs(hidden, linear_head(weight), targets, **settings)


def test_packed_values_go_to_their_places_and_back_with_gradient():
    mask = torch.tensor([[[True, False], [False, False], [True, True]]])
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    dense = unpacked(values, mask)
    dense.mul(torch.arange(6).reshape(1, 3, 2)).sum().backward()
    assert dense.tolist() == [[[1.0, 0.0], [0.0, 0.0], [2.0, 3.0]]]
    assert values.grad.tolist() == [0.0, 4.0, 5.0]
    with pytest.raises(ValueError, match="2 values for 3"):
        unpacked(values[:2], mask)


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
