"""Rollouts do not depend on the batch that they are drawn in, and their record holds together."""

import drawn_rollouts
import pytest
import torch
from conftest import QUERIES, build_embedder
from drawn_rollouts import IDS, G, drawn, every_row, willing, written
from torch.testing import assert_close

from search_r3.models.generation import Sampling
from search_r3.stages.rl.forward import frozen_log_probs, training_forward
from search_r3.stages.rl.rollouts import micro_batches, of_rows
from search_r3.stages.rl.sampling import rollout_keys, sample_rollouts

policy, rollouts = drawn_rollouts.policy, drawn_rollouts.rollouts  # fixtures


def test_the_rollouts_of_a_query_differ_and_are_of_every_kind(rollouts):
    assert all(len({tuple(ids) for ids in group}) >= G - 1 for group in written(rollouts))
    assert 0 < rollouts.has_embed_token.sum() < rollouts.has_embed_token.numel()
    assert rollouts.n_tokens.unique().numel() > 2


@pytest.mark.parametrize("budget", [1, 300, 100_000])
def test_rollouts_do_not_depend_on_order_batch_layout_over_ranks_or_budget(policy, rollouts, budget):
    before, policy.decoding_budget = policy.decoding_budget, budget
    try:
        parts = [drawn(policy, [4, 1]), drawn(policy, [3]), drawn(policy, [0, 2])]
    finally:
        policy.decoding_budget = before
    for part in parts:
        for place, name in enumerate(part.query_ids):
            number = IDS.index(name)
            assert written(part)[place] == written(rollouts)[number]
            assert part.texts[place] == rollouts.texts[number]
            assert torch.equal(part.has_embed_token[place], rollouts.has_embed_token[number])
            assert_close(part.embeddings[place], rollouts.embeddings[number], atol=1e-5, rtol=0)


def test_pitfall_31_groups_are_decoded_together_as_far_as_the_budget_allows_and_never_split(rollouts):
    embedder = willing(build_embedder(seed=1))
    width = int(rollouts.prompt_lengths[0]) + 6 + 1
    sizes = []
    embedder.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    for budget, n_groups in ((1, 1), (2 * G * width, 2), (3 * G * width - 1, 2), (100 * G * width, 5)):
        sizes.clear()
        embedder.decoding_budget = budget
        drawn(embedder, [0] * 5)
        assert max(sizes) == n_groups * G


def test_another_seed_step_or_query_id_draws_other_rollouts_and_a_larger_group_the_same_ones(
    policy, rollouts
):
    for other in (drawn(policy, seed=4), drawn(policy, step=8)):
        assert written(other) != written(rollouts)
    renamed = sample_rollouts(policy, ["other"], QUERIES[:1], rollouts.sampling, G, 3, 7)
    assert written(renamed)[0] != written(rollouts)[0]
    larger = drawn(policy, group_size=G + 2)
    assert [group[:G] for group in written(larger)] == written(rollouts)
    keys = (
        rollout_keys(0, 1, ["a", "1/a"], 12) + rollout_keys(0, 11, ["a"], 12) + rollout_keys(1, 0, ["a"], 12)
    )
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**63 for key in keys)


def test_the_record_holds_together(policy, rollouts):
    embed, pad = policy.embed_token_id, policy.tokenizer.pad_token_id
    assert rollouts.token_ids.shape == (len(QUERIES), G, int(rollouts.n_tokens.max()) + 1)
    for row in every_row(rollouts):
        ids, mask, log_probs = (
            of_rows(values, [row])[0]
            for values in (rollouts.token_ids, rollouts.completion_mask, rollouts.log_probs)
        )
        n, has = (int(of_rows(values, [row])[0]) for values in (rollouts.n_tokens, rollouts.has_embed_token))
        assert ids[n] == embed
        assert (ids[n + 1 :] == pad).all()
        assert mask.tolist() == [
            place < n + has for place in range(len(mask))
        ]  # an appended token is no choice
        assert ((log_probs < 0) == mask).all()
        assert rollouts.texts[row // G][row % G] == policy.tokenizer.decode(ids[:n]).strip()
    prompts = policy.encoder.reasoning_prompts(QUERIES)
    assert rollouts.prompt_lengths.tolist() == [len(prompt) for prompt in prompts]
    assert_close(rollouts.embeddings.norm(dim=-1), torch.ones(len(QUERIES), G))


def test_embeddings_are_those_of_the_same_text_embedded_again(policy, rollouts):
    sequences = rollouts.sequences(every_row(rollouts))
    again = policy.embed_ids(sequences).unflatten(0, rollouts.n_tokens.shape)
    assert_close(rollouts.embeddings, again, atol=1e-5, rtol=0)
    n_compared = 0
    for query, (group, texts) in enumerate(zip(written(rollouts), rollouts.texts, strict=True)):
        for rollout, (ids, text) in enumerate(zip(group, texts, strict=True)):
            if (
                policy.encoder.reasonings([text])[0] == ids
            ):  # not every sampled sequence is how its text splits
                (vector,) = policy.embed_reasoned([QUERIES[query]], [text])
                assert_close(rollouts.embeddings[query, rollout], vector, atol=1e-5, rtol=0)
                n_compared += 1
    assert n_compared > 0


def test_dropout_and_the_mode_of_the_model_change_nothing_and_are_left_as_they_were():
    plain, random = build_embedder(seed=2), build_embedder(seed=2)
    layer = random.decoder.layers[0].mlp
    layer.down_proj = torch.nn.Sequential(layer.down_proj, torch.nn.Dropout(0.5))
    random.model.train()
    random.decoder.norm.eval()
    modes = [module.training for module in random.modules()]
    expected, rollouts = drawn(plain, [0]), drawn(random, [0])
    now, then = (training_forward(e, rollouts, range(G)).log_probs for e in (random, plain))

    assert written(rollouts) == written(expected)
    assert torch.equal(now, then)
    assert [module.training for module in random.modules()] == modes
    assert any(modes)


def test_no_query_gives_no_rollout(policy):
    nothing = drawn(policy, [])
    assert nothing.token_ids.shape == (0, G, 1)
    assert nothing.embeddings.shape == (0, G, policy.width)
    assert nothing.texts == ()
    assert micro_batches(nothing, 100) == []
    assert frozen_log_probs(policy, nothing, []).shape == (0, G, 1)


def test_requests_that_make_no_group_are_refused(policy, rollouts):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        drawn(policy, temperature=0.0)
    with pytest.raises(ValueError, match="group_size"):
        drawn(policy, group_size=0)
    with pytest.raises(ValueError, match="one id per query"):
        sample_rollouts(policy, IDS[:2], QUERIES[:1], Sampling(4, 1.0), G, 0, 0)
    with pytest.raises(ValueError, match="token_budget"):
        micro_batches(rollouts, 0)
