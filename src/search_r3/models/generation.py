"""Writing the reasoning: one pass yields the text and the embedding.

Decoding runs one cached step *on* the embed token and keeps the state of that step. The state that predicted
the token looks much like it and is wrong, so a test holds the result equal to a full forward.

What all prompts of a batch begin with is run once, and so is a prompt that several rollouts continue.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_r3.models.graphed import steps_of
from search_r3.models.steps import Growing, Steps, prefill


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
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or a number above it, got {self.temperature}")
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


class _Said:
    """The n-grams that each row has written; nothing is kept where `n` is 0."""

    def __init__(self, n_rows: int, n: int) -> None:
        self.n = n
        self.ngrams: list[set[tuple[int, ...]]] = [set() for _ in range(n_rows)]

    def again(self, numbers: Tensor, token: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        """`[n]` bool, True where the next token completes an n-gram that its row has; others are noted."""
        if self.n == 0:
            return torch.zeros_like(token, dtype=torch.bool)  # nothing waits for the device
        both = torch.stack([numbers, token], dim=1).tolist()
        return torch.tensor([self._note(*each, written) for each in both], device=token.device)

    def _note(self, row: int, token: int, written: Sequence[Sequence[int]]) -> bool:
        if len(written[row]) + 1 < self.n:
            return False
        ngram = (*written[row][len(written[row]) + 1 - self.n :], token)
        is_known = ngram in self.ngrams[row]
        self.ngrams[row].add(ngram)
        return is_known


@dataclass(frozen=True)
class _Chosen:
    """The next token of every row; what it is of a row that has ended means nothing.

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

    def told(self, numbers: Tensor) -> Tensor:
        """`[n, 5]` on the CPU by one copy: a row's number and the above; fp32 holds integers up to 2^24."""
        facts = (numbers, self.token, self.log_prob, self.is_natural, self.is_counted)
        return torch.stack([fact.float() for fact in facts], dim=1).cpu()


class _Choice:
    """Chooses the next tokens of all rows; the arguments are those of `decode`, and where it runs."""

    def __init__(
        self,
        special: SpecialIds,
        sampling: Sampling,
        uniforms: Tensor | None,
        n_rows: int,
        device: torch.device,
    ) -> None:
        self.embed, self.sampling = special.embed, sampling
        self.uniforms = None if uniforms is None else uniforms.to(device)
        self.said = _Said(n_rows, sampling.repeat_ngram)
        self.banned = torch.as_tensor(special.banned, dtype=torch.long, device=device)
        self.stops = torch.as_tensor(sorted(special.stops), dtype=torch.long, device=device)

    def drawn(self, steps: Steps, step: int, written: Sequence[Sequence[int]]) -> _Chosen:
        """A token from the model; the embed token instead of a stop or where the row would repeat itself."""
        logits = steps.logits().index_fill(-1, self.banned, -torch.inf)
        draws = torch.zeros(0) if self.uniforms is None else self.uniforms[steps.numbers, step]
        token, log_prob = sample(logits, draws, self.sampling.temperature, self.sampling.top_p)
        is_natural = token == self.embed
        is_forced = torch.isin(token, self.stops) & ~is_natural
        is_forced = is_forced | self.said.again(steps.numbers, token, written)
        return _Chosen(torch.where(is_forced, self.embed, token), log_prob, is_natural, ~is_forced)

    def appended(self, steps: Steps) -> _Chosen:
        """The embed token, behind rows that have reached the limit."""
        none = torch.zeros_like(steps.numbers, dtype=torch.bool)
        return _Chosen(
            torch.full_like(steps.numbers, self.embed), steps.state.new_zeros(len(none)), none, none
        )


class _Record:
    """What `n` rows have written."""

    def __init__(self, n: int, embed: int, heard: Callable[[int, int], None] | None) -> None:
        self.embed, self.heard = embed, heard
        self.token_ids: list[list[int]] = [[] for _ in range(n)]
        self.log_probs: list[list[float]] = [[] for _ in range(n)]
        self.wrote_embed, self.has_ended = [False] * n, [False] * n

    def note(self, told: Tensor) -> list[int]:
        """Notes what was chosen, as `_Chosen.told` says it; the places in it of rows that go on."""
        going_on = []
        for place, (number, new, log_prob, is_natural, counts) in enumerate(told.tolist()):
            row, token = int(number), int(new)
            if self.has_ended[row]:
                continue
            self.wrote_embed[row], self.has_ended[row] = is_natural > 0, token == self.embed
            if counts:
                self.log_probs[row].append(log_prob)
            if self.has_ended[row]:
                continue
            going_on.append(place)
            self.token_ids[row].append(token)
            if self.heard is not None:
                self.heard(row, token)
        return going_on


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
    graphs: bool | None = None,
) -> Decoded:
    """Continues every prompt until the embed token, and returns the state at that token.

    A row that writes a stop token, would repeat itself or reaches the limit gets the embed token appended and
    counts as not having written it. Finished rows leave the batch, so the cache shrinks as rows end; in CUDA
    graphs they leave it when half of them have.

    Args:
        decoder: the transformer without its head; returns `last_hidden_state` after the final norm.
        logits_of: from states `[n, D]` to the model's own logits `[n, V]`.
        prompts: `B` lists of token ids.
        special: tokens treated apart.
        sampling: limit, temperature, nucleus.
        uniforms: `[B * G, max_new_tokens]` in [0, 1); None where the temperature is 0.
        group_size: `G` rollouts of every prompt.
        heard: called with a row `b * G + g` and a token of it, the embed token left out, as each is written.
        graphs: whether steps are CUDA graphs, where the model allows it; None where they pay. True on a CPU
            takes the same steps without graphs.
    """
    limit = sampling.max_new_tokens
    growing = Growing(decoder, logits_of, *prefill(decoder, prompts, group_size, special.pad))
    steps, growing = steps_of(growing, limit + 1, graphs), None  # the cache is freed where it was copied
    n, device = len(steps.numbers), steps.state.device
    hidden = torch.empty(n, steps.state.shape[-1], dtype=steps.state.dtype, device=device)
    choice = _Choice(special, sampling, uniforms, n, device)
    record = _Record(n, special.embed, heard)
    for step in range(limit + 1):
        chosen = choice.appended(steps) if step == limit else choice.drawn(steps, step, record.token_ids)
        told = chosen.told(steps.numbers)
        steps = steps.advanced(chosen.token)
        ends = steps.live & (chosen.token == special.embed)
        hidden[steps.numbers] = torch.where(ends[:, None], steps.state, hidden[steps.numbers])
        places = record.note(told)  # while the device still computes the step
        if not places:
            break
        steps = steps.left(places, ends)
    return Decoded(record.token_ids, record.log_probs, hidden, record.wrote_embed)
