"""Writing the reasoning: one pass yields the text and the embedding.

Decoding runs one cached step *on* the embed token and keeps the state of that step. The state that predicted
the token looks much like it and is wrong, so a test holds the result equal to a full forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache


@dataclass(frozen=True)
class Decoded:
    """What one batch of prompts was continued with.

    Attributes:
        token_ids: `B` lists; the written tokens without the embed token.
        hidden: `[B, D]` state at the embed token after the final norm.
        has_embed_token: True where the model wrote the token itself; where False it was appended.
    """

    token_ids: list[list[int]]
    hidden: Tensor
    has_embed_token: list[bool]


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids `[B, L]` padded on the left and their mask `[B, L]`, True at real tokens."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        start = width - len(sequence)
        ids[row, start:] = torch.as_tensor(sequence)
        mask[row, start:] = True
    return ids.to(device), mask.to(device)


def position_ids(mask: Tensor) -> Tensor:
    """`[B, L]` positions that count real tokens only, so that padding does not move a text."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def sample(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token per row by inverse transform sampling; greedy at temperature 0.

    A row's token depends on its own uniform number only, so batch layout does not change what is sampled.

    Args:
        logits: `[B, V]`.
        uniforms: `[B]` in [0, 1).
        temperature: 0 takes the most probable token.
        top_p: the smallest set of tokens whose probability reaches this is sampled from.

    Returns:
        `[B]` token ids.
    """
    if temperature == 0.0:
        return logits.argmax(-1)
    probabilities, order = (logits.float() / temperature).softmax(-1).sort(-1, descending=True)
    cumulative = probabilities.cumsum(-1)
    cumulative = cumulative.masked_fill(cumulative - probabilities >= top_p, 0.0).cummax(-1).values
    threshold = uniforms[:, None] * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, threshold, right=True).clamp(max=logits.shape[-1] - 1)
    return order.gather(-1, choice)[:, 0]


def row_uniforms(seed: int, row_ids: Sequence[int], n: int) -> Tensor:
    """`[B, n]` uniform numbers; a row's numbers depend on (seed, row id) alone."""
    rows = []
    for row_id in row_ids:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + row_id) % (2**63))
        rows.append(torch.rand(n, generator=generator))
    return torch.stack(rows)


@torch.no_grad()
def decode(
    decoder: nn.Module,
    head: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    embed_token_id: int,
    stop_ids: frozenset[int],
    banned_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    uniforms: Tensor | None,
    temperature: float,
    top_p: float,
) -> Decoded:
    """Continues every prompt until the embed token, and returns the state at that token.

    A row that writes a stop token or reaches `max_new_tokens` gets the embed token appended and counts as
    not having written it. Finished rows leave the batch, so the cache shrinks as rows end.

    Args:
        decoder: the transformer without its head; returns `last_hidden_state` after the final norm.
        head: hidden states to logits.
        prompts: `B` lists of token ids.
        embed_token_id: ends a row.
        stop_ids: tokens that end a row without an embedding, such as the end of a turn.
        banned_ids: tokens that are never written, such as padding and role marks.
        pad_id: fills rows on the left.
        max_new_tokens: the most tokens of reasoning.
        uniforms: `[B, max_new_tokens]`, or None where temperature is 0.
        temperature: of sampling; 0 is greedy.
        top_p: of sampling.
    """
    device = next(decoder.parameters()).device
    ids, mask = pad_left(prompts, pad_id, device)
    cache = DynamicCache()
    positions = position_ids(mask)
    state = decoder(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]
    next_position = positions[:, -1] + 1  # [B]
    alive = torch.arange(len(prompts), device=device)
    written: list[list[int]] = [[] for _ in prompts]
    wrote_embed = [False] * len(prompts)
    hidden = torch.empty(len(prompts), state.shape[-1], dtype=state.dtype, device=device)
    banned = torch.as_tensor(list(banned_ids), dtype=torch.long, device=device)
    stops = torch.as_tensor(sorted(stop_ids), dtype=torch.long, device=device)
    for step in range(max_new_tokens + 1):
        if step < max_new_tokens:
            logits = head(state).index_fill(-1, banned, -torch.inf)
            draws = torch.zeros(0) if uniforms is None else uniforms.to(device)[alive, step]
            token = sample(logits, draws, temperature, top_p)
            natural = token == embed_token_id
            token = torch.where(torch.isin(token, stops), embed_token_id, token)
        else:
            natural = torch.zeros_like(alive, dtype=torch.bool)
            token = torch.full_like(alive, embed_token_id)
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        state = decoder(
            input_ids=token[:, None],
            attention_mask=mask.long(),
            position_ids=next_position[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        next_position = next_position + 1
        done = token == embed_token_id
        hidden[alive[done]] = state[done]
        for row, is_natural in zip(alive[done].tolist(), natural[done].tolist(), strict=True):
            wrote_embed[row] = is_natural
        keep = (~done).nonzero()[:, 0]
        for row, new in zip(alive[keep].tolist(), token[keep].tolist(), strict=True):
            written[row].append(new)
        if len(keep) == 0:
            break
        if len(keep) < len(alive):
            cache.batch_select_indices(keep)
            alive, mask, state, next_position = alive[keep], mask[keep], state[keep], next_position[keep]
    return Decoded(written, hidden, wrote_embed)
