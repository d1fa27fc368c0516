"""Batch, prefix sharing and cache never change a result, for every architecture; logits are the model's own.

The expectation is plain transformers: one row, no padding, no mask, no cache.
"""

import pytest
import torch
from architectures import CONFIGS, EAGER_ONLY, NO_ADAPTER, WINDOW, build
from conftest import LENGTHS, PROMPTS, QUERIES, TEXTS
from torch.nn.functional import normalize

from search_r3.models.batching import length_batches
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.generation import Sampling
from search_r3.models.nano import train_tokenizer
from search_r3.models.prompts import Prompts
from search_r3.stages.rl.forward import training_forward
from search_r3.stages.rl.sampling import sample_rollouts

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NEAR_TIE = 1e-4


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


@pytest.fixture(
    scope="module",
    params=[*((name, "sdpa") for name in CONFIGS | NO_ADAPTER), ("mistral", "eager")],
    ids="-".join,
)
def embedder(request, tokenizer):
    """Read only."""
    name, attention = request.param
    attention = "eager" if name in EAGER_ONLY else attention
    model = build(name, len(tokenizer), attention)
    return ReasoningEmbedder(model, tokenizer, PROMPTS, LENGTHS, is_trained=False)


def plain_logits(embedder, ids):
    """`[L, V]` of one row, by the model's own forward."""
    with torch.no_grad():
        return embedder.causal_lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def plain_vector(embedder, ids):
    with torch.no_grad():
        states = embedder.causal_lm(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    return normalize(states.hidden_states[-1][0, -1], dim=-1)


def plain_reasoning(embedder, prompt, limit):
    """Greedy ids without the embed token, and the least distance of the two best logits on the way."""
    special, written, gap = embedder.special_ids, [], float("inf")
    for _ in range(limit):
        logits = plain_logits(embedder, [*prompt, *written])[-1]
        logits[list(special.banned)] = -torch.inf
        best = logits.topk(2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        token = int(best.indices[0])
        if token == special.embed or token in special.stops:
            break
        written.append(token)
    return written, gap


def test_a_vector_is_that_of_the_text_alone_in_plain_transformers(embedder):
    sequences = embedder.encoder.documents(TEXTS[:5] + QUERIES)
    assert len({len(sequence) for sequence in sequences}) > 3  # there is padding
    expected = torch.stack([plain_vector(embedder, sequence) for sequence in sequences])
    torch.testing.assert_close(embedder.embed_ids(sequences), expected, **CLOSE)


def with_long_prompts(embedder):
    """The same model under prompts whose beginning is shared."""
    words = TEXTS[0].split("\n")[0]
    prompts = Prompts(f"{words} direct", f"{words} reason", f"{words} document", lead_in="", closing="")
    return ReasoningEmbedder(embedder.model, embedder.tokenizer, prompts, LENGTHS, is_trained=False)


def test_texts_that_share_their_prompt_have_the_vector_of_the_text_alone(embedder):
    sharing = with_long_prompts(embedder)
    sharing.token_budget, sharing.saved_from = 300, 1  # several batches behind one prefix
    sequences = [*sharing.encoder.documents([*TEXTS[:5], *QUERIES, "x"])]
    n_prompt = len(sharing.encoder.document.prefix)
    assert n_prompt > WINDOW
    assert n_prompt >= sharing.shared_from
    assert max(map(len, sequences)) > 2 * n_prompt > 2 * WINDOW  # some pad more than the prefix is long
    n_tokens = []
    hook = sharing.decoder.register_forward_pre_hook(
        lambda decoder, args, kwargs: n_tokens.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    together = sharing.embed_ids(sequences)
    hook.remove()

    assert n_tokens[0] == (1, n_prompt)  # once, and no batch again
    assert len(n_tokens) > 2
    batches = list(length_batches(list(map(len, sequences)), 300, sharing.forward_cost))
    assert n_tokens[1:] == [(len(rows), len(sequences[rows[0]]) - n_prompt) for rows in batches]
    expected = torch.stack([plain_vector(sharing, sequence) for sequence in sequences])
    torch.testing.assert_close(together, expected, **CLOSE)


def test_a_reasoning_and_its_vector_are_those_of_the_query_alone_in_plain_transformers(embedder):
    queries = [*QUERIES, TEXTS[0], "x"]  # beyond a window of 8, and far apart in length
    together = embedder.reason(queries)
    prompts = embedder.encoder.reasoning_prompts(queries)
    n_compared = 0
    for prompt, ids, vector in zip(prompts, together.token_ids, together.embeddings, strict=True):
        expected, gap = plain_reasoning(embedder, prompt, LENGTHS.reasoning)
        if gap > NEAR_TIE:
            assert ids == expected
            n_compared += 1
        whole = [*prompt, *ids, embedder.embed_token_id]
        torch.testing.assert_close(vector, plain_vector(embedder, whole), **CLOSE)
    assert n_compared > len(queries) // 2


def test_logits_are_the_models_own_also_for_no_states_and_in_gradient(embedder):
    ids = torch.tensor([embedder.encoder.documents(TEXTS[:1])[0]])
    states = embedder.decoder(input_ids=ids).last_hidden_state[0]
    own = embedder.causal_lm(input_ids=ids).logits[0]
    torch.testing.assert_close(embedder.logits(states), own, **CLOSE)
    assert embedder.logits(states[:0]).shape == (0, own.shape[1])
    head = list(embedder.causal_lm.get_output_embeddings().parameters())
    expected = torch.autograd.grad(own.log_softmax(-1)[:, 7].sum(), head)
    found = torch.autograd.grad(embedder.logits(states.detach()).log_softmax(-1)[:, 7].sum(), head)
    tied = embedder.causal_lm.get_input_embeddings().weight is head[0]
    for ours, theirs in list(zip(found, expected, strict=True))[tied:]:  # a tied matrix has another share
        scale = float(theirs.abs().max())
        assert scale > 0
        torch.testing.assert_close(ours, theirs, atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("shares_prompts", [False, True])
def test_log_probabilities_of_sampling_and_training_are_those_of_plain_transformers(embedder, shares_prompts):
    temperature = 1.3
    queries = [QUERIES[0], TEXTS[0], "x"]
    rollouts = sample_rollouts(embedder, ["a", "b", "c"], queries, Sampling(6, temperature), 3, 0, 0)
    rows = list(range(9))
    with torch.no_grad():
        again = training_forward(embedder, rollouts, rows, shares_prompts=shares_prompts)
    banned = list(embedder.special_ids.banned)
    for row, sequence in zip(rows, rollouts.sequences(rows), strict=True):
        prompt = rollouts.prompts[row // 3]
        logits = plain_logits(embedder, sequence)
        logits[:, banned] = -torch.inf
        expected = (logits / temperature).log_softmax(-1)
        mask = rollouts.completion_mask.flatten(0, 1)[row]
        n = int(mask.sum())
        places = torch.arange(len(prompt) - 1, len(prompt) - 1 + n)
        expected = expected[places, torch.tensor(sequence)[places + 1]]
        sampled, trained = rollouts.log_probs.flatten(0, 1)[row][mask], again.log_probs[row][mask]
        torch.testing.assert_close(sampled, expected, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(trained, expected, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(again.embeddings[row], plain_vector(embedder, sequence), **CLOSE)


def test_the_embed_token_forced_at_places_of_a_reasoning_has_the_vectors_of_separate_passes(embedder):
    reasoning = embedder.encoder.plain_ids(TEXTS[0] + TEXTS[1])[: 3 * WINDOW]
    cuts = [0, 1, 2, WINDOW, WINDOW + 1, len(reasoning) - 1, len(reasoning), 3]  # in any order
    prompt = embedder.encoder.reasoning_prompts([QUERIES[1]])[0]

    vectors = embedder.embed_cuts(QUERIES[1], reasoning, cuts)

    for cut, vector in zip(cuts, vectors, strict=True):
        alone = plain_vector(embedder, [*prompt, *reasoning[:cut], embedder.embed_token_id])
        torch.testing.assert_close(vector, alone, **CLOSE)
    assert (vectors[1:] - vectors[:-1]).abs().max(1).values.min() > 1e-4  # every place has another vector
