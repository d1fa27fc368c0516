"""Rollouts of the RL stage: `G` reasonings of each of `B` queries, and their log-probabilities with gradient.

    rollouts = sample_rollouts(embedder, query_ids, queries, sampling, group_size, seed, step)
    for rows in micro_batches(rollouts, token_budget, has_spread):
        again = training_forward(embedder, rollouts, rows)    # log-probabilities, entropy, embeddings
        loss = policy_loss(PolicyBatch(again.log_probs, ...)) # its part of the batch's loss
        loss.total.backward()

`rows` are numbers `b * G + g` of rollouts; `of_rows` takes their part of any `[B, G, ...]`. The reference
model is the same forward under `torch.no_grad()` and `adapter_disabled`, or of an embedder around a frozen
copy. `group_batches` and `shares_prompts=True` run every prompt once for all of its rollouts.

Log-probabilities are everywhere of the temperature-scaled distribution without the banned tokens, before
top-p. Dropout is off in sampling and in training, so that both see one model.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers.modeling_layers import GradientCheckpointingLayer

from search_r3.models.embedder import ReasoningEmbedder, length_batches
from search_r3.models.generation import Decoded, Sampling, decode, pad_left, prefill, row_uniforms
from search_r3.objectives.grpo import token_log_probs, unpacked


@dataclass(frozen=True)
class Rollouts:
    """What was sampled, on the device of the model. `L` is the longest completion, its embed token included.

    Attributes:
        query_ids: `B` ids.
        prompts: `B` lists of token ids.
        sampling: how it was drawn.
        token_ids: `[B, G, L]` long; what was written and the embed token, then padding.
        completion_mask: `[B, G, L]` bool, True at tokens that the policy sampled: the reasoning, and the
            embed token where the model wrote it, since to stop there is its decision. An embed token that was
            appended is False, also where it stands for a sampled token that ended the text otherwise (end of
            text, repetition), and so is padding.
        log_probs: `[B, G, L]` fp32 as recorded while sampling, 0 where the mask is False.
        embeddings: `[B, G, D]` fp32, unit norm.
        has_embed_token: `[B, G]` bool, True where the model wrote the token itself.
        n_tokens: `[B, G]` long; written tokens, the embed token not counted.
        texts: `B` tuples of `G` reasonings.
    """

    query_ids: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    sampling: Sampling
    token_ids: Tensor
    completion_mask: Tensor
    log_probs: Tensor
    embeddings: Tensor
    has_embed_token: Tensor
    n_tokens: Tensor
    texts: tuple[tuple[str, ...], ...]

    @property
    def group_size(self) -> int:
        """`G`."""
        return self.token_ids.shape[1]

    @property
    def prompt_lengths(self) -> Tensor:
        """`[B]` long, on the CPU."""
        return torch.tensor([len(prompt) for prompt in self.prompts], dtype=torch.long)

    def sequences(self, rows: Sequence[int]) -> list[list[int]]:
        """Prompt, reasoning and embed token of the rollouts `b * G + g` in `rows`."""
        completions, n_written = of_rows(self.token_ids, rows), of_rows(self.n_tokens, rows)
        return [
            [*self.prompts[row // self.group_size], *ids[: n + 1]]
            for row, ids, n in zip(rows, completions.tolist(), n_written.tolist(), strict=True)
        ]


def rollout_keys(seed: int, step: int, query_ids: Sequence[str], group_size: int) -> list[int]:
    """`B * G` numbers that depend on (seed, step, query id, rollout) alone; 63 bits of BLAKE2b."""
    texts = (f"{seed}/{step}/{rollout}/{name}" for name in query_ids for rollout in range(group_size))
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return [int.from_bytes(digest, "little") >> 1 for digest in digests]


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
        embedder: writes and embeds, without gradient; at most `embedder.token_budget` tokens are decoded at
            once, but a group is never split.
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
    with _without_dropout(embedder.model, keeps_checkpointing=False):
        for numbers in length_batches(lengths, embedder.token_budget):
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


# With gradient


def micro_batches(rollouts: Rollouts, token_budget: int, kept: Tensor | None = None) -> list[list[int]]:
    """Numbers `b * G + g` of rollouts in batches of similar length, each of at most `token_budget` tokens.

    Args:
        rollouts: of this rank.
        token_budget: tokens of one forward, padding included.
        kept: `[B]` or `[B, G]` bool, False for rollouts that the loss does not see, such as groups without
            spread; all are kept where None.

    Returns:
        The longest first; empty where no rollout is kept. Ranks may get different numbers of batches: where
        they must run equally many forwards, fill up with `[]`, which `training_forward` takes.

    Raises:
        ValueError: If the budget is below 1.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")
    shape = rollouts.n_tokens.shape
    if kept is None:
        kept = torch.ones(shape, dtype=torch.bool)
    kept = (kept[:, None].expand(shape) if kept.ndim == 1 else kept).flatten()
    numbers = kept.nonzero()[:, 0].tolist()
    all_lengths = (rollouts.prompt_lengths[:, None] + rollouts.n_tokens.cpu() + 1).flatten().tolist()
    lengths = [all_lengths[number] for number in numbers]
    return [[numbers[place] for place in batch] for batch in length_batches(lengths, token_budget)]


def group_batches(rollouts: Rollouts, token_budget: int, kept: Tensor | None = None) -> list[list[int]]:
    """As `micro_batches`, but whole groups, so that `training_forward(shares_prompts=True)` saves most.

    A group that exceeds the budget by itself is not split.

    Args:
        rollouts: of this rank.
        token_budget: tokens of one forward if no prompt were shared, padding included.
        kept: `[B]` bool.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")
    groups = range(len(rollouts.prompts)) if kept is None else kept.nonzero()[:, 0].tolist()
    size, longest = rollouts.group_size, rollouts.n_tokens.cpu().tolist()
    lengths = [size * (len(rollouts.prompts[group]) + max(longest[group]) + 1) for group in groups]
    return [
        [groups[place] * size + rollout for place in batch for rollout in range(size)]
        for batch in length_batches(lengths, token_budget)
    ]


def of_rows(values: Tensor, rows: Sequence[int]) -> Tensor:
    """`[n, ...]`: the part of `[B, G, ...]` that belongs to the rollouts `b * G + g` in `rows`."""
    return values.flatten(0, 1)[torch.as_tensor(rows, dtype=torch.long, device=values.device)]


@dataclass(frozen=True)
class TrainingForward:
    """`n` rollouts under the policy as it is now.

    Attributes:
        log_probs: `[n, L]` fp32 of the sampled tokens, with gradient, 0 where `completion_mask` is False.
        entropy: `[n, L]` fp32 in nats, without gradient, 0 where the mask is False.
        embeddings: `[n, D]` fp32, unit norm, with gradient.
    """

    log_probs: Tensor
    entropy: Tensor
    embeddings: Tensor


def training_forward(
    embedder: ReasoningEmbedder,
    rollouts: Rollouts,
    rows: Sequence[int],
    chunk: int = 1024,
    shares_prompts: bool = False,
) -> TrainingForward:
    """Log-probabilities of some rollouts' completions, and the embeddings that follow them.

    The head is applied to the states that predict a sampled token only, `chunk` at a time, and again in
    backward: at most `[chunk, V]` logits exist.

    Args:
        embedder: the policy; under `torch.no_grad()` nothing has a gradient.
        rollouts: what was sampled.
        rows: numbers `b * G + g`. For none a forward over one token is run, which gives empty tensors that
            are part of the graph: a rank without rollouts still takes its part in every collective.
        chunk: positions per product with the head.
        shares_prompts: run each prompt, and what all prompts begin with, once instead of once per rollout,
            with gradient. Two or three passes through the decoder then stand for one, so not where weights
            are sharded and ranks must run equally many.

    Raises:
        ValueError: If prompts are shared while activations are recomputed, which keeps no keys and values.
    """
    if shares_prompts and embedder.model.training and embedder.causal_lm.is_gradient_checkpointing:
        raise ValueError("shares_prompts needs the keys and values: set gradient_checkpointing to false")
    mask = of_rows(rollouts.completion_mask, rows)  # [n, L]
    states_of = _states_after_shared_prompts if shares_prompts and len(rows) else _states
    with _without_dropout(embedder.model, keeps_checkpointing=True):
        predicting, last = states_of(embedder, rollouts, rows)
    packed = token_log_probs(
        predicting[mask],
        embedder.logits,
        of_rows(rollouts.token_ids, rows)[mask],
        rollouts.sampling.temperature,
        embedder.special_ids.banned,
        chunk,
    )
    return TrainingForward(
        unpacked(packed.log_probs, mask), unpacked(packed.entropy, mask), normalize(last.float(), dim=-1)
    )


def _states(embedder: ReasoningEmbedder, rollouts: Rollouts, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """States `[n, L, D]` that predict each completion token, and `[n, D]` at the embed token."""
    sequences = rollouts.sequences(rows) or [[embedder.embed_token_id]]
    ids, real = pad_left(sequences, embedder.tokenizer.pad_token_id, embedder.device)
    states = embedder.hidden_states(ids, real)[: len(rows)]  # [n, W, D]; the row of no rollout goes
    # Padding is on the left: the embed token is last, and the state before a token predicts it.
    places = torch.arange(rollouts.token_ids.shape[2], device=ids.device)
    before = ids.shape[1] - 2 - of_rows(rollouts.n_tokens, rows)[:, None] + places  # [n, L]
    before = before.clamp(max=ids.shape[1] - 1)  # padding on the right, which the mask leaves out
    return states[torch.arange(len(rows), device=ids.device)[:, None], before], states[:, -1]


def _states_after_shared_prompts(
    embedder: ReasoningEmbedder, rollouts: Rollouts, rows: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """As `_states`, with every prompt run once."""
    queries = sorted({row // rollouts.group_size for row in rows})
    prompts = [rollouts.prompts[query] for query in queries]
    cache, prefilled = prefill(embedder.decoder, prompts, 1, embedder.tokenizer.pad_token_id)
    owner = torch.tensor(
        [queries.index(row // rollouts.group_size) for row in rows], device=prefilled.state.device
    )
    cache.batch_select_indices(owner)  # a prompt's keys and values for each of its rollouts
    prefilled = prefilled.keep(owner)
    ids, n_tokens = of_rows(rollouts.token_ids, rows), of_rows(rollouts.n_tokens, rows)
    places = torch.arange(ids.shape[1], device=ids.device)
    mask = torch.cat([prefilled.mask, places <= n_tokens[:, None]], dim=1)
    states = embedder.decoder(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=prefilled.next_position[:, None] + places,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state  # [n, L, D]
    predicting = torch.cat([prefilled.state[:, None], states[:, :-1]], dim=1)
    return predicting, states[torch.arange(len(rows), device=ids.device), n_tokens]


@torch.no_grad()
def frozen_log_probs(
    embedder: ReasoningEmbedder,
    rollouts: Rollouts,
    batches: Sequence[Sequence[int]],
    chunk: int = 1024,
    shares_prompts: bool = False,
) -> Tensor:
    """`[B, G, L]` fp32 log-probabilities without gradient, such as the reference model's.

    Args:
        embedder: the reference model, or the policy under `adapter_disabled`.
        rollouts: what was sampled.
        batches: numbers `b * G + g`, a forward each; a rollout in none of them keeps 0.
        chunk: as in `training_forward`.
        shares_prompts: as in `training_forward`.
    """
    result = torch.zeros_like(rollouts.log_probs)
    for rows in batches:
        now = training_forward(embedder, rollouts, rows, chunk, shares_prompts)
        result.flatten(0, 1)[list(rows)] = now.log_probs
    return result


@contextlib.contextmanager
def _without_dropout(model: nn.Module, keeps_checkpointing: bool) -> Iterator[None]:
    """Evaluation mode within. Every module's own mode is restored.

    Transformers recomputes activations only in layers that are in training mode, and drops the cache of keys
    and values then. In a training forward those layers therefore stay in it, the modules inside them do not;
    in sampling none does.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, was_training in modes:
            module.training = (
                was_training and keeps_checkpointing and isinstance(module, GradientCheckpointingLayer)
            )
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
