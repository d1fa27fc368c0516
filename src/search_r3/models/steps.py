"""The rows that are being written, a step at a time: what decoding asks of a model.

`Growing` is the plain way, with a cache that grows by a slot in each step. `search_r3.models.graphed` takes
the same steps in CUDA graphs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from search_r3.models.prefix import Prefix, common_prefix, pad_left


@dataclass
class Rows:
    """The rows that are still being written.

    Attributes:
        numbers: `[n]` their numbers.
        mask: `[n, L]` bool, True at real tokens of what is in the cache.
        state: `[n, D]` of the last token.
        next_position: `[n]`.
    """

    numbers: Tensor
    mask: Tensor
    state: Tensor
    next_position: Tensor

    def keep(self, places: Tensor) -> "Rows":
        return Rows(self.numbers[places], self.mask[places], self.state[places], self.next_position[places])


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
        rows = rows.keep(rows.numbers.repeat_interleave(group_size))
        rows.numbers = torch.arange(len(rows.numbers), device=ids.device)
    return cache, rows


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
    return Rows(rows.numbers, mask, state, rows.next_position + 1)


class Steps(Protocol):
    """Rows that are written a token at a time.

    Attributes:
        numbers: `[n]` of the rows that are held.
        live: `[n]` bool, True at rows that have not ended.
        state: `[n, D]` of each row's last token.
    """

    numbers: Tensor
    live: Tensor
    state: Tensor

    def logits(self) -> Tensor:
        """`[n, V]` of the next token."""

    def advanced(self, token: Tensor) -> "Steps":
        """The same rows behind one token `[n]` more; what it was called on is of no use afterwards."""

    def left(self, places: Sequence[int], ends: Tensor) -> "Steps":
        """The rows that go on, at these places; those of `ends`, `[n]` bool, have just ended."""


class Growing:
    """Steps with a cache that grows, and of which rows leave as they end.

    Args:
        decoder: the transformer without its head.
        logits_of: from states `[n, D]` to logits `[n, V]`.
        cache: keys and values of the rows.
        rows: what is in the cache, and the states behind it.
        live: `[n]` bool, True at rows that have not ended; None where none has.
    """

    def __init__(
        self,
        decoder: nn.Module,
        logits_of: Callable[[Tensor], Tensor],
        cache: DynamicCache,
        rows: Rows,
        live: Tensor | None = None,
    ) -> None:
        self.decoder, self.logits_of, self.cache, self.rows = decoder, logits_of, cache, rows
        self.live = torch.ones_like(rows.numbers, dtype=torch.bool) if live is None else live

    @property
    def numbers(self) -> Tensor:
        return self.rows.numbers

    @property
    def state(self) -> Tensor:
        return self.rows.state

    def logits(self) -> Tensor:
        return self.logits_of(self.rows.state)

    def advanced(self, token: Tensor) -> "Growing":
        self.rows = continued(self.decoder, self.cache, self.rows, token)
        return self

    def left(self, places: Sequence[int], _ends: Tensor) -> "Growing":
        if len(places) < len(self.live):
            keep = torch.tensor(places, dtype=torch.long, device=self.live.device)
            self.cache.batch_select_indices(keep)
            self.rows, self.live = self.rows.keep(keep), self.live.new_ones(len(places))
        return self
