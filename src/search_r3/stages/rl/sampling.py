"""Sampling rollouts: the same reasonings for a query whatever the batch and the rank that it is on."""

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

from search_r3.models.batching import length_batches
from search_r3.models.dropout import without_dropout
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.generation import Decoded, Sampling, decode, row_uniforms
from search_r3.objectives.masks import id_numbers
from search_r3.stages.rl.rollouts import Rollouts


def rollout_keys(seed: int, step: int, query_ids: Sequence[str], group_size: int) -> list[int]:
    """`B * G` numbers that depend on (seed, step, query id, rollout) alone."""
    texts = (f"{seed}/{step}/{rollout}/{name}" for name in query_ids for rollout in range(group_size))
    return id_numbers(texts).tolist()


def sample_rollouts(
    embedder: ReasoningEmbedder,
    query_ids: Sequence[str],
    queries: Sequence[str],
    sampling: Sampling,
    group_size: int,
    seed: int,
    step: int,
) -> Rollouts:
    """`G` sampled reasonings of every query, and the embeddings that follow them.

    Drawn from (seed, step, query id, rollout): order and size of the batch, its layout over ranks and the
    token budget change what is drawn only where rounding decides between two tokens. One query given twice
    gets the same rollouts twice. No collective.

    Args:
        embedder: writes and embeds, without gradient; at most `embedder.decoding_budget` tokens are
            decoded at once, but a group is never split.
        query_ids: `B` ids; a rank may have none.
        queries: `B` texts.
        sampling: limit, temperature and nucleus.
        group_size: `G`.
        seed: of the run.
        step: of training.

    Raises:
        ValueError: If numbers differ, `G` is below 1, or the temperature is 0: a group would be `G` copies.
    """
    if len(query_ids) != len(queries):
        raise ValueError(f"one id per query: got {len(query_ids)} ids and {len(queries)} queries")
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, got {group_size}")
    if sampling.temperature == 0.0:
        raise ValueError("temperature must be above 0: greedy rollouts of one query are all the same")
    prompts = embedder.encoder.reasoning_prompts(queries)
    keys = rollout_keys(seed, step, query_ids, group_size)
    limit = sampling.max_new_tokens
    lengths = [group_size * (len(prompt) + limit + 1) for prompt in prompts]
    groups: list[Decoded | None] = [None] * len(prompts)
    with without_dropout(embedder.model, keeps_checkpointing=False):
        for numbers in length_batches(lengths, embedder.decoding_budget):
            row_keys = [keys[number * group_size + g] for number in numbers for g in range(group_size)]
            decoded = decode(
                embedder.decoder,
                embedder.logits,
                [prompts[number] for number in numbers],
                embedder.special_ids,
                sampling,
                row_uniforms(0, row_keys, limit),
                group_size,
            )
            for place, number in enumerate(numbers):
                groups[number] = _group(decoded, slice(place * group_size, (place + 1) * group_size))
    return _padded(embedder, query_ids, prompts, sampling, group_size, groups)


def _group(decoded: Decoded, part: slice) -> Decoded:
    return Decoded(
        decoded.token_ids[part], decoded.log_probs[part], decoded.hidden[part], decoded.has_embed_token[part]
    )


def _padded(
    embedder: ReasoningEmbedder,
    query_ids: Sequence[str],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    group_size: int,
    groups: Sequence[Decoded],
) -> Rollouts:
    """Lists of what was decoded, of all queries, as tensors that are padded on the right."""
    written = [ids for group in groups for ids in group.token_ids]
    log_probs = [values for group in groups for values in group.log_probs]
    width = 1 + max((len(ids) for ids in written), default=0)
    token_ids = torch.full((len(written), width), embedder.tokenizer.pad_token_id, dtype=torch.long)
    recorded = torch.zeros(len(written), width)
    mask = torch.zeros(len(written), width, dtype=torch.bool)
    for number, (ids, values) in enumerate(zip(written, log_probs, strict=True)):
        token_ids[number, : len(ids) + 1] = torch.tensor([*ids, embedder.embed_token_id])
        recorded[number, : len(values)] = torch.tensor(values)
        mask[number, : len(values)] = True  # a value per sampled token; an appended embed token has none
    texts = [text.strip() for text in embedder.tokenizer.batch_decode(written)] if written else []
    shape, device = (len(prompts), group_size), embedder.device
    hidden = [group.hidden for group in groups]
    vectors = torch.cat(hidden) if hidden else torch.zeros(0, embedder.width, device=device)
    has_embed_token = torch.tensor([has for group in groups for has in group.has_embed_token]).bool()
    return Rollouts(
        query_ids=tuple(query_ids),
        prompts=tuple(tuple(prompt) for prompt in prompts),
        sampling=sampling,
        token_ids=token_ids.to(device).unflatten(0, shape),
        completion_mask=mask.to(device).unflatten(0, shape),
        log_probs=recorded.to(device).unflatten(0, shape),
        embeddings=normalize(vectors.float(), dim=-1).unflatten(0, shape),
        has_embed_token=has_embed_token.to(device).unflatten(0, shape),
        n_tokens=torch.tensor([len(ids) for ids in written], dtype=torch.long, device=device).unflatten(
            0, shape
        ),
        texts=tuple(tuple(texts[start : start + group_size]) for start in range(0, len(texts), group_size)),
    )
