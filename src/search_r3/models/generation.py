"""Writing the reasoning: one pass yields the text and the embedding.

Decoding runs one cached step *on* the embed token and keeps the state of that step. The state that predicted
the token looks much like it and is wrong, so a test holds the result equal to a full forward.

What all prompts of a batch begin with is run once, and so is a prompt that several rollouts continue.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from search_r3.models.prefix import Prefix, common_prefix, pad_left


@dataclass(frozen=True)
class SpecialIds:
    """Tokens that decoding treats apart.

    Attributes:
        embed: ends a row; its state is the embedding.
        stops: end a row without an embedding, such as the end of a turn.
        banned: never written, such as padding and role marks.
        pad: fills rows on the left.
    """

    embed: int
    stops: frozenset[int]
    banned: tuple[int, ...]
    pad: int


@dataclass(frozen=True)
class Sampling:
    """How a reasoning is drawn.

    Attributes:
        max_new_tokens: the most tokens of reasoning.
        temperature: 0 is greedy.
        top_p: the smallest set of tokens whose probability reaches this is sampled from.
        repeat_ngram: a token that would complete an n-gram of this size that the reasoning has already is not
            written, and the reasoning ends there; 0 lets it repeat itself.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    repeat_ngram: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be 0 or more, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.repeat_ngram < 0:
            raise ValueError(f"repeat_ngram must be 0 (off) or more, got {self.repeat_ngram}")


@dataclass(frozen=True)
class Decoded:
    """What one batch of `B` prompts was continued with, `G` times each; row `b * G + g` is rollout `g`.

    Attributes:
        token_ids: `B * G` lists; the written tokens without the embed token.
        log_probs: `B * G` lists; of the written tokens and of the embed token where the model wrote it, under
            the distribution at the sampling temperature (1 where greedy) over all tokens that are not
            banned, before top-p.
        hidden: `[B * G, D]` state at the embed token after the final norm.
        has_embed_token: True where the model wrote the token itself; where False it was appended.
    """

    token_ids: list[list[int]]
    log_probs: list[list[float]]
    hidden: Tensor
    has_embed_token: list[bool]


def sample(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """One token per row by inverse transform sampling, and its log-probability; greedy at temperature 0.

    A row's token depends on its own uniform number only, so batch layout does not change what is sampled.

    Args:
        logits: `[B, V]`.
        uniforms: `[B]` in [0, 1).
        temperature: 0 takes the most probable token.
        top_p: the smallest set of tokens whose probability reaches this is sampled from.

    Returns:
        `[B]` token ids, and `[B]` fp32 log-probabilities before top-p, at the temperature (1 where greedy).
    """
    log_probs = (logits.float() / (temperature or 1.0)).log_softmax(-1)
    if temperature == 0.0:
        best = log_probs.max(-1)
        return best.indices, best.values
    probabilities, order = log_probs.exp(), None
    if top_p < 1.0:  # without a nucleus any order samples alike, and sorting is half of the decoding on a CPU
        probabilities, order = probabilities.sort(-1, descending=True)
    cumulative = probabilities.cumsum(-1)
    if order is not None:
        cumulative = cumulative.masked_fill(cumulative - probabilities >= top_p, 0.0).cummax(-1).values
    total = cumulative[:, -1:]
    # Strictly below the total, so that the token found has a probability above 0.
    threshold = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    token = torch.searchsorted(cumulative, threshold, right=True)
    if order is not None:
        token = order.gather(-1, token)
    return token[:, 0], log_probs.gather(-1, token)[:, 0]


def row_uniforms(seed: int, row_ids: Sequence[int], n: int) -> Tensor:
    """`[B, n]` uniform numbers; a row's numbers depend on (seed, row id) alone."""
    rows = []
    for row_id in row_ids:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + row_id) % (2**63))
        rows.append(torch.rand(n, generator=generator))
    return torch.stack(rows)


@dataclass
class Rows:
    """The rows that are still being written.

    Attributes:
        alive: `[n]` their numbers.
        mask: `[n, L]` bool, True at real tokens of what is in the cache.
        state: `[n, D]` of the last token.
        next_position: `[n]`.
    """

    alive: Tensor
    mask: Tensor
    state: Tensor
    next_position: Tensor

    def keep(self, places: Tensor) -> "Rows":
        return Rows(self.alive[places], self.mask[places], self.state[places], self.next_position[places])


def prefill(
    decoder: nn.Module, prompts: Sequence[Sequence[int]], group_size: int, pad_id: int
) -> tuple[DynamicCache, Rows]:
    """Cache and last states of all rollouts, with gradient where it is on.

    What all prompts begin with is run once, and so is each prompt.

    Args:
        decoder: the transformer without its head.
        prompts: `B` lists of token ids.
        group_size: `G` rollouts of every prompt.
        pad_id: fills rows on the left.

    Returns:
        Keys and values, and the `B * G` rows that continue them.
    """
    ids, mask = pad_left(prompts, pad_id, next(decoder.parameters()).device)
    n_shared = common_prefix(prompts) if len(prompts) > 1 else 0
    prefix = Prefix.of(decoder, prompts[0][:n_shared])
    cache = prefix.spread(mask)
    state = prefix.states(decoder, ids, mask, cache)[:, -1]
    rows = Rows(torch.arange(len(prompts), device=ids.device), mask, state, mask.sum(-1))
    if group_size > 1:
        cache.batch_repeat_interleave(group_size)
        rows = rows.keep(rows.alive.repeat_interleave(group_size))
        rows.alive = torch.arange(len(rows.alive), device=ids.device)
    return cache, rows


class _Said:
    """The n-grams that each row has written; nothing is kept where `n` is 0."""

    def __init__(self, n_rows: int, n: int) -> None:
        self.n = n
        self.ngrams: list[set[tuple[int, ...]]] = [set() for _ in range(n_rows)]

    def again(self, alive: Tensor, token: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        """`[n]` bool, True where the next token completes an n-gram that its row has; others are noted."""
        if self.n == 0:
            return torch.zeros_like(token, dtype=torch.bool)  # nothing waits for the device
        found = [self._note(*each, written) for each in zip(alive.tolist(), token.tolist(), strict=True)]
        return torch.tensor(found, device=token.device)

    def _note(self, row: int, token: int, written: Sequence[Sequence[int]]) -> bool:
        if len(written[row]) + 1 < self.n:
            return False
        ngram = (*written[row][len(written[row]) + 1 - self.n :], token)
        is_known = ngram in self.ngrams[row]
        self.ngrams[row].add(ngram)
        return is_known


@dataclass(frozen=True)
class _Chosen:
    """The next token of every live row.

    Attributes:
        token: `[n]` ids; the embed token where the row ends.
        log_prob: `[n]` of what was drawn, also where the embed token took its place; 0 where nothing was.
        is_natural: `[n]` bool, True where the model drew the embed token itself.
        is_counted: `[n]` bool, True where the token is the one that was drawn.
    """

    token: Tensor
    log_prob: Tensor
    is_natural: Tensor
    is_counted: Tensor


class _Choice:
    """Chooses the next tokens of all live rows; the arguments are those of `decode`."""

    def __init__(
        self,
        logits_of: Callable[[Tensor], Tensor],
        special: SpecialIds,
        sampling: Sampling,
        uniforms: Tensor | None,
        rows: Rows,
    ) -> None:
        device = rows.state.device
        self.logits_of, self.embed, self.sampling = logits_of, special.embed, sampling
        self.uniforms = None if uniforms is None else uniforms.to(device)
        self.said = _Said(len(rows.alive), sampling.repeat_ngram)
        self.banned = torch.as_tensor(special.banned, dtype=torch.long, device=device)
        self.stops = torch.as_tensor(sorted(special.stops), dtype=torch.long, device=device)

    def drawn(self, rows: Rows, step: int, written: Sequence[Sequence[int]]) -> _Chosen:
        """A token from the model; the embed token instead of a stop or where the row would repeat itself."""
        logits = self.logits_of(rows.state).index_fill(-1, self.banned, -torch.inf)
        draws = torch.zeros(0) if self.uniforms is None else self.uniforms[rows.alive, step]
        token, log_prob = sample(logits, draws, self.sampling.temperature, self.sampling.top_p)
        is_natural = token == self.embed
        is_forced = torch.isin(token, self.stops) & ~is_natural | self.said.again(rows.alive, token, written)
        return _Chosen(torch.where(is_forced, self.embed, token), log_prob, is_natural, ~is_forced)

    def appended(self, rows: Rows) -> _Chosen:
        """The embed token, behind rows that have reached the limit."""
        none = torch.zeros_like(rows.alive, dtype=torch.bool)
        return _Chosen(
            torch.full_like(rows.alive, self.embed), rows.state.new_zeros(len(rows.alive)), none, none
        )


@torch.no_grad()
def decode(
    decoder: nn.Module,
    logits_of: Callable[[Tensor], Tensor],
    prompts: Sequence[Sequence[int]],
    special: SpecialIds,
    sampling: Sampling,
    uniforms: Tensor | None = None,
    group_size: int = 1,
    heard: Callable[[int, int], None] | None = None,
) -> Decoded:
    """Continues every prompt until the embed token, and returns the state at that token.

    A row that writes a stop token, would repeat itself or reaches the limit gets the embed token appended and
    counts as not having written it. Finished rows leave the batch, so the cache shrinks as rows end.

    Args:
        decoder: the transformer without its head; returns `last_hidden_state` after the final norm.
        logits_of: from states `[n, D]` to the model's own logits `[n, V]`.
        prompts: `B` lists of token ids.
        special: tokens treated apart.
        sampling: limit, temperature, nucleus.
        uniforms: `[B * G, max_new_tokens]` in [0, 1); None where the temperature is 0.
        group_size: `G` rollouts of every prompt.
        heard: called with a row `b * G + g` and a token of it, the embed token left out, as each is written.
    """
    cache, rows = prefill(decoder, prompts, group_size, special.pad)
    n = len(rows.alive)
    written: list[list[int]] = [[] for _ in range(n)]
    log_probs: list[list[float]] = [[] for _ in range(n)]
    wrote_embed = [False] * n
    hidden = torch.empty(n, rows.state.shape[-1], dtype=rows.state.dtype, device=rows.state.device)
    choice = _Choice(logits_of, special, sampling, uniforms, rows)
    for step in range(sampling.max_new_tokens + 1):
        is_last = step == sampling.max_new_tokens
        chosen = choice.appended(rows) if is_last else choice.drawn(rows, step, written)
        rows = continued(decoder, cache, rows, chosen.token)
        done = chosen.token == special.embed
        hidden[rows.alive[done]] = rows.state[done]
        facts = (rows.alive, chosen.token, chosen.log_prob, done, chosen.is_natural, chosen.is_counted)
        for row, new, log_prob, is_end, is_natural, counts in zip(*(x.tolist() for x in facts), strict=True):
            wrote_embed[row] = is_natural
            if not is_end:
                written[row].append(new)
                if heard is not None:
                    heard(row, new)
            if counts:
                log_probs[row].append(log_prob)
        keep = (~done).nonzero()[:, 0]
        if len(keep) == 0:
            break
        if len(keep) < len(done):
            cache.batch_select_indices(keep)
            rows = rows.keep(keep)
    return Decoded(written, log_probs, hidden, wrote_embed)


def continued(decoder: nn.Module, cache: DynamicCache, rows: Rows, token: Tensor) -> Rows:
    """One token `[n]` further."""
    mask = torch.cat([rows.mask, rows.mask.new_ones(len(token), 1)], dim=1)
    state = decoder(
        input_ids=token[:, None],
        attention_mask=mask.long(),
        position_ids=rows.next_position[:, None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]
    return Rows(rows.alive, mask, state, rows.next_position + 1)
