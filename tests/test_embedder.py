"""Embeddings do not depend on padding, order or budget, and decoding gives the state of a full forward."""

import pytest
import torch
from architectures import build
from conftest import QUERIES, TEXTS, build_embedder
from torch.nn.functional import normalize

from search_r3.models.folder import load_embedder
from search_r3.models.generation import Sampling, decode, row_uniforms, sample
from search_r3.models.prefix import common_prefix
from search_r3.models.steps import prefill


def alone(embedder, sequence):
    """Embedding of one sequence without padding, mask or positions, straight from the transformer."""
    with torch.no_grad():
        states = embedder.decoder(input_ids=torch.tensor([sequence])).last_hidden_state
    return normalize(states[0, -1], dim=-1)


def test_pitfall_13_padding_batch_order_and_token_budget_do_not_change_an_embedding(embedder):
    sequences = embedder.encoder.documents(TEXTS[:5] + QUERIES)
    expected = torch.stack([alone(embedder, sequence) for sequence in sequences])
    assert len({len(sequence) for sequence in sequences}) > 3
    for budget in (1, 64, 10_000):
        embedder.token_budget = budget
        torch.testing.assert_close(embedder.embed_ids(sequences), expected, atol=1e-5, rtol=0)
    backwards = embedder.embed_ids(sequences[::-1]).flip(0)
    torch.testing.assert_close(backwards, expected, atol=1e-5, rtol=0)


def test_different_texts_get_different_embeddings(embedder):
    vectors = embedder.embed_documents(TEXTS[:5])
    assert ((vectors @ vectors.T).fill_diagonal_(0) < 0.9999).all()


def test_no_texts_give_an_empty_result(embedder):
    assert embedder.embed_documents([]).shape == (0, embedder.width)
    assert embedder.reason([]).texts == []


def test_pitfall_10_the_embedding_captured_in_decoding_equals_a_full_forward(embedder):
    for temperature in (0.0, 1.0):
        reasoned = embedder.reason(QUERIES, seed=3, temperature=temperature)
        whole = embedder.reasoned_ids(QUERIES, reasoned.token_ids)
        expected = torch.stack([alone(embedder, sequence) for sequence in whole])
        torch.testing.assert_close(reasoned.embeddings, expected, atol=1e-5, rtol=0)
        before = torch.stack([alone(embedder, sequence[:-1]) for sequence in whole])
        assert (reasoned.embeddings - before).abs().max() > 1e-3


def test_rows_that_end_early_leave_the_batch_and_keep_their_embedding():
    embedder = build_embedder(seed=4)
    reasoned = embedder.reason(QUERIES * 8, seed=1, temperature=8.0)
    assert len(set(reasoned.n_tokens)) > 1 or all(not has for has in reasoned.has_embed_token)
    embedder.decoding_budget = 1
    one_by_one = embedder.reason(QUERIES * 8, seed=1, temperature=8.0)
    assert one_by_one.token_ids == reasoned.token_ids
    torch.testing.assert_close(one_by_one.embeddings, reasoned.embeddings, atol=1e-5, rtol=0)


@pytest.mark.parametrize("is_cast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_token_keeps_is_counted_in_bytes(dtype, is_cast):
    embedder = build_embedder()
    embedder.model.to(dtype)
    prompts = embedder.encoder.reasoning_prompts(QUERIES[:1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
        cache, _ = prefill(embedder.decoder, prompts, 1, embedder.tokenizer.pad_token_id)
        kept = sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
        assert embedder.bytes_per_token == kept / len(prompts[0])
    assert embedder.decoding_budget == 4 * embedder.token_budget


def test_heads_that_single_layers_have_of_their_own_are_counted():
    embedder = build_embedder()
    embedder.model = build("gemma4")  # keys and values of 4 layers, 2 heads each, of 8, 16, 8 and 16 numbers
    assert embedder.bytes_per_token == 2 * 2 * (8 + 16 + 8 + 16) * 4


def test_pitfall_11_a_rollout_that_reaches_its_limit_gets_the_token_appended_and_is_counted(embedder):
    reasoned = embedder.reason(QUERIES, max_new_tokens=2)
    assert reasoned.has_embed_token == [False] * len(QUERIES)
    assert reasoned.n_tokens == [2] * len(QUERIES)
    assert torch.isfinite(reasoned.embeddings).all()


def test_pitfall_12_no_forward_keeps_the_states_of_all_layers(embedder):
    kept = []
    embedder.decoder.register_forward_hook(
        lambda module, arguments, output: kept.append(output.hidden_states)
    )
    embedder.embed_documents(TEXTS[:2])
    embedder.embed_queries(QUERIES)
    embedder.reason(QUERIES)
    assert len(kept) > 3
    assert kept == [None] * len(kept)


def test_special_tokens_are_never_written(embedder):
    reasoned = embedder.reason(QUERIES * 20, seed=0, temperature=5.0)
    special = set(embedder.tokenizer.all_special_ids)
    assert not special & {token for ids in reasoned.token_ids for token in ids}


def decoded(embedder, prompts, group_size=1, temperature=1.5, seed=5, limit=6):
    uniforms = row_uniforms(seed, range(len(prompts) * group_size), limit)
    return decode(
        embedder.decoder,
        embedder.logits,
        prompts,
        embedder.special_ids,
        Sampling(limit, temperature),
        uniforms,
        group_size,
    )


def test_rollouts_of_a_group_share_one_prefill_and_are_those_of_a_repeated_prompt(embedder):
    prompts = embedder.encoder.reasoning_prompts(QUERIES)
    grouped = decoded(embedder, prompts, group_size=3)
    repeated = decoded(embedder, [prompt for prompt in prompts for _ in range(3)])
    assert grouped.token_ids == repeated.token_ids
    assert len({tuple(ids) for ids in grouped.token_ids}) > len(prompts)  # rollouts differ within a group
    torch.testing.assert_close(grouped.hidden, repeated.hidden, atol=1e-5, rtol=0)


def test_a_prefix_that_all_prompts_share_is_run_once_and_changes_nothing(embedder):
    prefix = embedder.encoder.plain_ids("sort the rows by a column and return the table")
    tails = [embedder.encoder.plain_ids(text) for text in ("x", "parse the header of a file", "add")]
    prompts = [[*prefix, *tail] for tail in tails]
    assert common_prefix(prompts) == len(prefix)
    assert common_prefix([[1, 2], [1, 2, 3]]) == 1  # a prompt keeps an id of its own
    together, alone_ = decoded(embedder, prompts), [decoded(embedder, [prompt]) for prompt in prompts[:1]]
    assert together.token_ids[0] == alone_[0].token_ids[0]
    torch.testing.assert_close(together.hidden[:1], alone_[0].hidden, atol=1e-5, rtol=0)


def test_log_probabilities_of_a_rollout_are_those_of_a_full_forward(embedder):
    temperature = 1.5
    prompts = embedder.encoder.reasoning_prompts(QUERIES * 60)  # 300 rows of 6 draws among 382 tokens
    result = decoded(embedder, prompts, temperature=temperature)
    assert any(result.has_embed_token)
    assert not all(result.has_embed_token)
    banned = torch.tensor(embedder.special_ids.banned)
    for prompt, ids, has, log_probs in zip(
        prompts, result.token_ids, result.has_embed_token, result.log_probs, strict=True
    ):
        actions = [*ids, *[embedder.embed_token_id] * has]
        assert len(log_probs) == len(actions)  # an appended embed token is no action of the policy
        whole = torch.tensor([[*prompt, *actions]])
        states = embedder.hidden_states(whole, torch.ones_like(whole, dtype=torch.bool))[0]
        logits = embedder.logits(states[len(prompt) - 1 : -1]).index_fill(-1, banned, -torch.inf)
        expected = (logits / temperature).log_softmax(-1)[range(len(actions)), actions]
        torch.testing.assert_close(torch.tensor(log_probs), expected.detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "key"),
    [((-1,), "max_new_tokens"), ((4, -0.1), "temperature"), ((4, 1.0, 0.0), "top_p")],
)
def test_sampling_outside_its_range_is_refused(settings, key):
    with pytest.raises(ValueError, match=key):
        Sampling(*settings)


def test_sampling_follows_the_distribution_and_the_nucleus():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(20_000, 1)
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    tokens, log_probs = sample(logits, uniforms, temperature=1.0, top_p=1.0)
    torch.testing.assert_close(log_probs, logits[0, tokens])
    shares = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.01, rtol=0)
    # 0.5 alone does not reach 0.7, 0.5 + 0.3 does: the nucleus is the first two, 5 to 3.
    shares = torch.bincount(sample(logits, uniforms, 1.0, 0.7)[0], minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.01, rtol=0)


def test_a_rows_random_numbers_depend_on_seed_and_row_only():
    torch.testing.assert_close(row_uniforms(1, [7, 3], 4)[1], row_uniforms(1, [3], 4)[0])
    assert not torch.equal(row_uniforms(1, [3], 4), row_uniforms(2, [3], 4))


@pytest.mark.parametrize("budget", [1, 100])
def test_reasoned_embedding_from_text_equals_the_one_from_ids(embedder, budget):
    embedder.token_budget = budget
    texts = ["add numbers", "header value", "", "x"]
    ids = embedder.reasoned_ids(QUERIES[:4], embedder.encoder.reasonings(texts))
    torch.testing.assert_close(embedder.embed_reasoned(QUERIES[:4], texts), embedder.embed_ids(ids))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.05])
def test_a_reasoning_ends_before_the_token_that_would_complete_an_ngram_again(n, temperature):
    embedder = build_embedder(seed=3)  # untrained: at a low temperature it loops
    prompts = embedder.encoder.reasoning_prompts(QUERIES)
    uniforms = row_uniforms(0, range(len(prompts)), 12)

    def decoded(repeat_ngram):
        sampling = Sampling(12, temperature, 1.0, repeat_ngram)
        draws = None if temperature == 0.0 else uniforms
        return decode(embedder.decoder, embedder.logits, prompts, embedder.special_ids, sampling, draws)

    free, kept = decoded(0), decoded(n)
    n_cut = 0
    for number, (whole, text) in enumerate(zip(free.token_ids, kept.token_ids, strict=True)):
        ngrams = [tuple(whole[at : at + n]) for at in range(len(whole) - n + 1)]
        again = [at for at, ngram in enumerate(ngrams) if ngram in ngrams[:at]]
        expected = whole[: again[0] + n - 1] if again else whole
        assert text == expected
        assert not again or not kept.has_embed_token[number]
        assert len(kept.log_probs[number]) == len(text) + kept.has_embed_token[number]
        n_cut += bool(again)
    assert n_cut > 0
    states = embedder.embed_ids(embedder.reasoned_ids(QUERIES, kept.token_ids))
    torch.testing.assert_close(torch.nn.functional.normalize(kept.hidden, dim=-1), states, atol=1e-5, rtol=0)


def test_the_state_before_the_embed_token_is_that_of_a_sequence_without_it(nano_folder):
    before, at = (load_embedder(nano_folder, read_state=where) for where in ("before", "at"))
    sequences = before.encoder.documents(TEXTS[:4])
    with torch.no_grad():
        states = [
            before.causal_lm(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -2]
            for ids in sequences
        ]
    expected = torch.nn.functional.normalize(torch.stack(states), dim=-1)

    assert torch.allclose(before.embed_documents(TEXTS[:4]), expected, atol=1e-5)
    assert (before.embed_documents(TEXTS[:4]) - at.embed_documents(TEXTS[:4])).abs().max() > 0.01
    written = before.reason(QUERIES)
    assert written.token_ids == at.reason(QUERIES).token_ids
    ids = before.reasoned_ids(QUERIES, written.token_ids)
    assert torch.allclose(written.embeddings, at.embed_ids([each[:-1] for each in ids]), atol=1e-5)
    cuts = before.embed_cuts(QUERIES[0], written.token_ids[0], [0])
    assert torch.allclose(cuts, before.embed_ids([[*ids[0][: -len(written.token_ids[0]) - 1], ids[0][-1]]]))
    assert before.document_key == {**at.document_key, "read_state": "before"}
    with pytest.raises(ValueError, match="read_state must be at or before"):
        load_embedder(nano_folder, read_state="after")
