"""Rows padded on the left, and what they all begin with, run once.

A prompt's beginning is the same for all texts of its kind, and of a short text's tokens most are prompt. Its
keys and values are computed once and spread over every batch that continues them. Padding stays at the far
left, in front of what is shared too, because a sliding window counts slots: padding further in would take a
token's place. A test holds every architecture to the result of a text alone.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

WINDOWS = ("sliding_window", "window_size", "attention_window", "local_window_size", "attention_chunk_size")
"""What configurations call how far layers look back."""

_KINDS_WITH_KEYS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layer types of transformers whose cache is keys and values; an older model names none."""


def remembers_keys(model: PreTrainedModel) -> bool:
    """Whether a model remembers a text as keys and values alone; no state runs along, as Mamba's does."""
    return not (getattr(model, "_is_stateful", False) or other_kinds(model))


def other_kinds(model: PreTrainedModel) -> set[str]:
    """Layer types of a model whose cache is not one of keys and values alone."""
    return set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _KINDS_WITH_KEYS


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


def common_prefix(sequences: Sequence[Sequence[int]], most: int | None = None) -> int:
    """How many first ids all sequences share, up to `most`; each keeps at least one id of its own."""
    first, limit = sequences[0], min(map(len, sequences)) - 1
    limit = limit if most is None else min(limit, most)
    for place in range(limit):
        if any(sequence[place] != first[place] for sequence in sequences):
            return place
    return max(limit, 0)


@dataclass(frozen=True)
class Prefix:
    """Ids that all rows of some batches begin with, and their keys and values.

    Attributes:
        n_ids: `P`; 0 where nothing is shared.
        cache: `[1, heads, P, d]` of each layer, with gradient where it was on; never changed.
    """

    n_ids: int
    cache: DynamicCache

    @classmethod
    def of(cls, decoder: nn.Module, ids: Sequence[int]) -> "Prefix":
        """Runs the ids once; for none, nothing is run.

        Raises:
            ValueError: If the decoder keeps no keys and values of them.
        """
        cache = DynamicCache()
        if ids:
            device = next(decoder.parameters()).device
            decoder(input_ids=torch.tensor([list(ids)], device=device), past_key_values=cache, use_cache=True)
            if cache.get_seq_length() != len(ids):
                raise ValueError(f"{type(decoder).__name__} keeps no keys and values, so no prefix is shared")
        return cls(len(ids), cache)

    def spread(self, mask: Tensor) -> DynamicCache:
        """The first `P` slots of a left-padded batch as a cache of its own, `[B, heads, P, d]` in each layer.

        A row's prefix moves right by its padding. What is then beyond slot `P` is run again, in slots that
        would hold padding otherwise; what stands in slots of padding is masked.

        Args:
            mask: `[B, L]` bool, True at real tokens.
        """
        spread, n_padding = copy.copy(self.cache), (~mask).sum(-1)
        spread.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in spread.layers:
            if not layer.is_initialized:  # layers that share the keys of others hold none
                continue
            places = torch.arange(layer.keys.shape[-2], device=layer.keys.device)
            places = (places - n_padding.to(places.device)[:, None]).clamp(min=0)  # [B, P]
            layer.keys = layer.keys[0][:, places].transpose(0, 1)  # [B, heads, P, d]
            layer.values = layer.values[0][:, places].transpose(0, 1)
        return spread

    def states(self, decoder: nn.Module, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """States `[B, L - P, D]` after the final norm of the slots behind the first `P`.

        Args:
            decoder: the transformer without its head.
            ids: `[B, L]` whole rows, padded on the left.
            mask: `[B, L]` bool, True at real tokens.
            cache: what `spread` gave for this mask; holds all `L` slots afterwards.
        """
        return decoder(
            input_ids=ids[:, self.n_ids :],
            attention_mask=mask.long(),
            position_ids=position_ids(mask)[:, self.n_ids :],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
