"""The training forward: log-probabilities and embeddings of rollouts under the policy as it is now.

The reference model is the same forward under `torch.no_grad()` and `adapter_disabled`, or of an embedder
around a frozen copy. With `group_batches`, `shares_prompts=True` runs every prompt once for all of its
rollouts. Dropout is off here as it is in sampling, so that both see one model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from search_r3.models.dropout import without_dropout
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.prefix import pad_left
from search_r3.models.steps import prefill
from search_r3.objectives.log_probs import token_log_probs, unpacked
from search_r3.stages.rl.rollouts import Rollouts, of_rows


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
    with without_dropout(embedder.model, keeps_checkpointing=True):
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
    shares_prompts: bool = False,
) -> Tensor:
    """`[B, G, L]` fp32 log-probabilities without gradient, such as the reference model's.

    Args:
        embedder: the reference model, or the policy under `adapter_disabled`.
        rollouts: what was sampled.
        batches: numbers `b * G + g`, a forward each; a rollout in none of them keeps 0.
        shares_prompts: as in `training_forward`.
    """
    result = torch.zeros_like(rollouts.log_probs)
    for rows in batches:
        now = training_forward(embedder, rollouts, rows, shares_prompts=shares_prompts)
        result.flatten(0, 1)[list(rows)] = now.log_probs
    return result
