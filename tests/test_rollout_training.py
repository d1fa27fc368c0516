"""The forward that training takes of rollouts, and the reference model: both see what sampling saw."""

import drawn_rollouts
import pytest
import torch
from conftest import QUERIES, build_embedder
from drawn_rollouts import G, drawn, every_row, willing, written
from random_rollouts import token_weights
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from search_r3.models.tuning import LoraTuning, adapter_disabled
from search_r3.objectives.advantages import group_advantages
from search_r3.objectives.grpo import (
    PolicyBatch,
    dr_grpo,
    k3,
    per_sequence,
    per_token,
    policy_loss,
    trained_tokens,
)
from search_r3.stages.rl.forward import frozen_log_probs, training_forward
from search_r3.stages.rl.rollouts import group_batches, micro_batches, of_rows

policy, rollouts = drawn_rollouts.policy, drawn_rollouts.rollouts  # fixtures
SETTINGS = {"plain": (1.0, 1.0), "cool nucleus": (0.7, 0.8), "hot": (1.5, 1.0)}


# Training forward


@pytest.mark.parametrize("name", SETTINGS)
def test_training_log_probs_are_those_that_sampling_recorded(policy, name):
    rollouts = drawn(policy, temperature=SETTINGS[name][0], top_p=SETTINGS[name][1])
    again = training_forward(policy, rollouts, every_row(rollouts), chunk=16)
    mask = rollouts.completion_mask

    assert_close(again.log_probs.unflatten(0, mask.shape[:2]), rollouts.log_probs, atol=1e-4, rtol=0)
    assert_close(again.embeddings.unflatten(0, mask.shape[:2]), rollouts.embeddings, atol=1e-5, rtol=0)
    assert mask.sum() > 50
    assert (again.entropy.flatten()[mask.flatten()] > 0).all()
    assert (again.entropy.flatten()[~mask.flatten()] == 0).all()


def by_definition(embedder, rollouts, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of one rollout's sampled tokens and its embedding, by one unpadded forward."""
    ids = torch.tensor(rollouts.sequences([row]))
    n_prompt = len(rollouts.prompts[row // G])
    output = embedder.model(input_ids=ids, output_hidden_states=True)
    logits = output.logits[0] / rollouts.sampling.temperature
    logits = logits.index_fill(-1, torch.tensor(embedder.special_ids.banned), -torch.inf).log_softmax(-1)
    n_sampled = int(of_rows(rollouts.completion_mask, [row]).sum())
    places = torch.arange(n_prompt, n_prompt + n_sampled)
    return logits[places - 1, ids[0, places]], normalize(output.hidden_states[-1][0, -1], dim=-1)


@pytest.mark.parametrize("shares_prompts", [False, True])
def test_log_probs_and_embeddings_have_the_value_and_gradient_of_unpadded_forwards(shares_prompts):
    embedder = willing(build_embedder(seed=1))
    rollouts = drawn(embedder, temperature=0.7, top_p=0.8)
    generator = torch.Generator().manual_seed(0)
    upstream = torch.randn(len(QUERIES) * G, rollouts.token_ids.shape[2], generator=generator)
    direction = torch.randn(embedder.width, generator=generator)
    for rows in group_batches(rollouts, 600) if shares_prompts else micro_batches(rollouts, 200):
        again = training_forward(embedder, rollouts, rows, chunk=7, shares_prompts=shares_prompts)
        (again.log_probs.mul(upstream[rows]).sum() + (again.embeddings @ direction).sum()).backward()
    fast = {name: parameter.grad.clone() for name, parameter in embedder.named_parameters()}
    embedder.zero_grad()
    for row in every_row(rollouts):
        log_probs, vector = by_definition(embedder, rollouts, row)
        (log_probs.mul(upstream[row, : len(log_probs)]).sum() + vector @ direction).backward()

    assert len(fast) > 10
    for name, parameter in embedder.named_parameters():
        assert parameter.grad.abs().max() > 1e-3, name
        assert cosine_similarity(fast[name].flatten(), parameter.grad.flatten(), dim=0) > 0.99999, name
        assert_close(fast[name], parameter.grad, atol=1e-3 * float(parameter.grad.abs().max()), rtol=1e-3)


def assert_whole_and_within(batches, rollouts, kept, budget, size):
    """Every kept rollout once, `size` of them or a multiple; more than `size` only within the budget."""
    assert sorted(row for rows in batches for row in rows) == [
        row for row in every_row(rollouts) if kept[row // G]
    ]
    for rows in batches:
        longest = max(len(ids) for ids in rollouts.sequences(rows))
        assert len(rows) == size or (len(rows) % size == 0 and len(rows) * longest <= budget)


def test_micro_batches_take_every_kept_rollout_once_within_the_budget(rollouts):
    kept = torch.tensor([True, False, True, True, False])
    for budget in (1, 150, 10_000):
        assert_whole_and_within(micro_batches(rollouts, budget, kept), rollouts, kept, budget, size=1)
    assert len(micro_batches(rollouts, 150, kept)) > 2
    one = torch.zeros(len(QUERIES), G, dtype=torch.bool)
    one[2, 3] = True
    assert micro_batches(rollouts, 150, one) == [[2 * G + 3]]


def test_shared_prompts_are_run_once_and_change_nothing_for_any_rows(policy, rollouts):
    mixed = [7, 3, 29, 8, 0]  # of queries 1, 0, 4, 1, 0
    n_tokens = []
    hook = policy.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: n_tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    for rows in (every_row(rollouts), mixed, [5], []):
        n_tokens.clear()
        plain = training_forward(policy, rollouts, rows)
        n_plain = sum(n_tokens)
        n_tokens.clear()
        shared = training_forward(policy, rollouts, rows, shares_prompts=True)
        for name in ("log_probs", "entropy", "embeddings"):
            assert_close(getattr(shared, name), getattr(plain, name), atol=1e-5, rtol=0)
        assert len(rows) < G or sum(n_tokens) < n_plain / 2
    hook.remove()


def test_batches_of_groups_are_whole_and_within_the_budget(rollouts):
    kept = torch.tensor([True, False, True, True, False])
    for budget in (1, 250, 10_000):
        assert_whole_and_within(group_batches(rollouts, budget, kept), rollouts, kept, budget, size=G)
    assert len(group_batches(rollouts, 250, kept)) > 1
    with pytest.raises(ValueError, match="token_budget"):
        group_batches(rollouts, 0)


def test_shared_prompts_and_recomputed_activations_are_refused(rollouts):
    embedder = build_embedder(seed=1)
    embedder.model.gradient_checkpointing_enable({"use_reentrant": False})
    embedder.model.train()
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        training_forward(embedder, rollouts, [0], shares_prompts=True)


def loss_and_gradient(embedder, rollouts, batches, normalisation) -> tuple[torch.Tensor, dict]:
    """A second update: the ratio is not 1, some tokens are clipped, KL to another model is not 0."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(2, *rollouts.log_probs.shape, generator=generator)
    old, ref = rollouts.log_probs + noise[0], rollouts.log_probs + noise[1]
    rewards = torch.rand(len(QUERIES), G, generator=generator)
    rewards[1] = 0.5
    advantages = group_advantages(rewards)
    mask = trained_tokens(rollouts.completion_mask, advantages.has_spread)
    weights = token_weights(mask, advantages.has_spread, normalisation, 6)
    total = torch.zeros(())
    embedder.zero_grad()
    for rows in batches(advantages.has_spread):
        now = training_forward(embedder, rollouts, rows)
        parts = (of_rows(values, rows) for values in (old, advantages.values, weights, ref))
        loss = policy_loss(PolicyBatch(now.log_probs, *parts), clip_high=0.28, kl_weight=0.1).total
        loss.backward()
        total += loss.detach()
    return total, {name: parameter.grad.clone() for name, parameter in embedder.named_parameters()}


@pytest.mark.parametrize("normalisation", [per_token, per_sequence, dr_grpo])
def test_the_losses_and_gradients_of_micro_batches_add_up_to_those_of_the_whole_batch(normalisation):
    embedder = willing(build_embedder(seed=1))
    rollouts = drawn(embedder)
    whole, gradient = loss_and_gradient(embedder, rollouts, lambda _: [every_row(rollouts)], normalisation)
    parts, gradient_of_parts = loss_and_gradient(
        embedder, rollouts, lambda kept: [*micro_batches(rollouts, 150, kept), []], normalisation
    )

    assert whole.abs() > 1e-3
    assert_close(parts, whole, atol=1e-5, rtol=1e-4)
    for name, value in gradient.items():
        assert_close(gradient_of_parts[name], value, atol=1e-5, rtol=1e-3, msg=name)


def test_several_updates_take_the_ratio_to_the_policy_that_sampled():
    embedder = willing(build_embedder(seed=1))
    rollouts = drawn(embedder)
    advantages = group_advantages(torch.rand(len(QUERIES), G, generator=torch.Generator().manual_seed(0)))
    weights = token_weights(rollouts.completion_mask, advantages.has_spread, per_token, 6)
    old, rows = torch.zeros_like(rollouts.log_probs), every_row(rollouts)
    optimizer = torch.optim.SGD(embedder.parameters(), lr=0.3)
    sampled_with = [by_definition(embedder, rollouts, row)[0].detach() for row in rows]
    for update in range(3):
        before = [by_definition(embedder, rollouts, row)[0].detach() for row in rows]
        now = training_forward(embedder, rollouts, rows)
        if update == 0:
            old.flatten(0, 1)[rows] = now.log_probs.detach()
        batch = PolicyBatch(
            now.log_probs, *(of_rows(values, rows) for values in (old, advantages.values, weights))
        )
        moved = torch.cat([new - then for new, then in zip(before, sampled_with, strict=True)])
        assert_close(batch.log_ratios[batch.mask], moved, atol=1e-4, rtol=0)
        assert (moved.abs().max() > 0.01) == (update > 0)
        wanted = of_rows(advantages.values, rows)[:, None].expand_as(batch.mask)[batch.mask]
        assert update == 0 or (wanted * moved).mean() > 0  # what earned more became likelier
        optimizer.zero_grad()
        policy_loss(batch, clip_high=10.0).total.backward()
        optimizer.step()


def test_rewarding_the_embed_token_teaches_to_write_it():
    embedder = willing(build_embedder(seed=1))
    optimizer = torch.optim.Adam(embedder.parameters(), lr=1e-3)
    shares = []
    for step in range(15):
        rollouts = drawn(embedder, step=step)
        shares.append(rollouts.has_embed_token.float().mean().item())
        advantages = group_advantages(rollouts.has_embed_token.float())
        mask = trained_tokens(rollouts.completion_mask, advantages.has_spread)
        weights = token_weights(mask, advantages.has_spread, per_token, 6)
        optimizer.zero_grad()
        for rows in micro_batches(rollouts, 300, advantages.has_spread):
            now = training_forward(embedder, rollouts, rows)
            parts = (of_rows(values, rows) for values in (advantages.values, weights))
            policy_loss(PolicyBatch(now.log_probs, now.log_probs.detach(), *parts)).total.backward()
        optimizer.step()
    assert shares[0] < 0.5
    assert sum(shares[-3:]) / 3 > 0.9


class HeadProducts(TorchDispatchMode):
    """Remembers the most rows that any tensor with a vocabulary axis had."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.most_rows = vocabulary, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[-1] == self.vocabulary:
                # a view of the weight is `[D, V]`
                rows = value.numel() // self.vocabulary
                self.most_rows = max(self.most_rows, rows if not function.is_view else 0)
        return result


def test_no_more_logits_than_a_chunk_exist_in_forward_and_backward(policy, rollouts):
    vocabulary = policy.vocabulary_size
    assert vocabulary not in (policy.width, 64)
    with HeadProducts(vocabulary) as seen:
        training_forward(policy, rollouts, every_row(rollouts), chunk=5).log_probs.sum().backward()
    policy.zero_grad()
    assert seen.most_rows == 5
    assert rollouts.completion_mask.sum() > 50


def test_a_micro_batch_of_nothing_reaches_every_weight_with_a_gradient_of_zero(rollouts):
    embedder = build_embedder(seed=1)
    again = training_forward(embedder, rollouts, [])
    (again.log_probs.sum() + again.embeddings.sum()).backward()
    assert again.log_probs.shape == (0, rollouts.token_ids.shape[2])
    assert again.embeddings.shape == (0, embedder.width)
    for name, parameter in embedder.named_parameters():
        assert (parameter.grad == 0).all(), name


def test_recomputed_activations_give_the_same_gradient(rollouts):
    gradients = []
    for is_recomputed in (False, True):
        embedder = willing(build_embedder(seed=1))
        embedder.model.train()
        if is_recomputed:
            embedder.model.gradient_checkpointing_enable({"use_reentrant": False})
        calls = []
        mlp = embedder.decoder.layers[0].mlp
        mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        assert written(drawn(embedder)) == written(rollouts)  # sampling keeps its cache
        calls.clear()
        training_forward(embedder, rollouts, range(G)).log_probs.sum().backward()
        assert len(calls) == 1 + is_recomputed
        gradients.append([parameter.grad for parameter in embedder.parameters()])
    assert_close(gradients[0], gradients[1])


# The reference model


@pytest.fixture(scope="module")
def with_adapter():
    """An embedder with a fresh adapter, and the rollouts that it draws."""
    embedder = willing(build_embedder(seed=1))
    embedder.model = LoraTuning(r=4, alpha=8).apply(embedder.model, embedder.embed_token_id)
    return embedder, drawn(embedder)


def test_with_a_fresh_adapter_kl_is_zero_and_the_reference_leaves_requires_grad_alone(with_adapter):
    embedder, rollouts = with_adapter
    before = {name: parameter.requires_grad for name, parameter in embedder.named_parameters()}
    with adapter_disabled(embedder.model):
        reference = frozen_log_probs(embedder, rollouts, micro_batches(rollouts, 200))
    now = frozen_log_probs(embedder, rollouts, micro_batches(rollouts, 200))

    assert torch.equal(now, reference)
    assert (k3(now, reference) == 0).all()
    assert {name: parameter.requires_grad for name, parameter in embedder.named_parameters()} == before
    assert set(before.values()) == {True, False}
    assert not reference.requires_grad
    assert_close(reference, rollouts.log_probs, atol=1e-4, rtol=0)


def test_with_a_moved_adapter_training_sees_what_sampling_saw_and_the_reference_does_not():
    torch.manual_seed(0)  # of the adapter's first weights: some rollout must write the embed token
    embedder = willing(build_embedder(seed=1))
    embedder.model = LoraTuning(r=4, alpha=8).apply(embedder.model, embedder.embed_token_id)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in embedder.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    rollouts = drawn(embedder)
    with adapter_disabled(embedder.model):
        reference = frozen_log_probs(embedder, rollouts, micro_batches(rollouts, 200))
    now = frozen_log_probs(embedder, rollouts, micro_batches(rollouts, 200))

    assert_close(now, rollouts.log_probs, atol=1e-4, rtol=0)
    at_embed = (rollouts.token_ids == embedder.embed_token_id) & rollouts.completion_mask
    assert (now - reference)[at_embed].abs().min() > 1e-3  # the embed token's row is trained in the head too
    training_forward(embedder, rollouts, range(G)).log_probs.sum().backward()
    trained = [parameter for parameter in embedder.parameters() if parameter.requires_grad]
    assert all(parameter.grad.abs().max() > 0 for parameter in trained)


def test_rollouts_left_out_of_a_recomputation_stay_zero(policy, rollouts):
    kept = torch.tensor([True, False, True, True, True])
    for batches, shares_prompts in ((micro_batches, False), (group_batches, True)):
        values = frozen_log_probs(
            policy, rollouts, batches(rollouts, 200, kept), shares_prompts=shares_prompts
        )
        assert (values[1] == 0).all()
        assert_close(values[kept], rollouts.log_probs[kept], atol=1e-4, rtol=0)
