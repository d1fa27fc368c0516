"""Rows of unequal length dealt to forwards, so that little padding is run."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

_FORWARD_SHARE, _FORWARD_SHARE_ON_GPU = 32, 4
"""A forward costs as much besides its tokens as this part of a token budget takes: casts, launches and, in
training, one more addition to every weight's gradient. SmolLM2 on one core: 80 of 2,048 tokens, backward
included. On a GPU launches are nearly all of a small forward: Qwen2.5-1.5B's sizes on an H100 need 28 ms for
however few tokens, in which 3,200 of them are encoded (`experiments/gpu`)."""


_DECODING_BUDGETS = 4
_DECODED_AT_LEAST = 32_768
_MEMORY_SHARE = 0.4
"""Of a GPU's free memory, for keys and values that are decoded at once; the rest is for logits and copies."""


def forward_cost(token_budget: int, device: torch.device) -> int:
    """What one more forward costs besides its tokens, in tokens, where `token_budget` suits the device."""
    return token_budget // (_FORWARD_SHARE if device.type == "cpu" else _FORWARD_SHARE_ON_GPU)


def decoding_budget(token_budget: int) -> int:
    """The most tokens of keys and values that are decoded at once, where `token_budget` suits a forward.

    A step of decoding runs one token of each row and reads all weights for it, so many rows pay. Their keys
    and values bound it: 23 kB a token of SmolLM2 in bf16 are 0.75 GB, 57 kB a token of Qwen2.5-7B 3.8 GB.
    """
    return max(_DECODING_BUDGETS * token_budget, _DECODED_AT_LEAST)


def tokens_that_fit(device: torch.device, bytes_per_token: int) -> int:
    """The most tokens of keys and values that a GPU's free memory holds beside logits and copies.

    A step of decoding takes a GPU as long for 512 rows as for 64, so it pays to decode all that fit.

    Args:
        device: a GPU.
        bytes_per_token: of its keys and values in all layers.
    """
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + kept
    return int(_MEMORY_SHARE * free) // bytes_per_token


def length_batches(
    lengths: Sequence[int], token_budget: int, forward_cost: int | None = None
) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first, each of at most `token_budget` padded tokens.

    Longest first, so that a batch that does not fit into memory fails at the start. A row that exceeds the
    budget by itself is a batch of its own.

    Args:
        lengths: tokens of each row.
        token_budget: the most tokens of a batch, padding included.
        forward_cost: what one more forward costs, in tokens: a batch is split where less padding pays for it.
            None splits at the budget alone, as decoding wants it, whose cost is the number of its steps.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        width = lengths[order[start]]
        end = start + max(1, min(token_budget // max(width, 1), len(order) - start))
        batch, start = order[start:end], end
        padding = width * len(batch) - sum(lengths[row] for row in batch)
        if forward_cost is None or padding <= forward_cost:
            yield batch
        else:
            yield from _split(batch, np.array([lengths[row] for row in batch]), forward_cost)


def _split(batch: Sequence[int], lengths: np.ndarray, forward_cost: int) -> Iterator[list[int]]:
    """The parts of a batch, longest rows first, that cost least: padded tokens and the cost of each forward.

    Dynamic programming over where the last part begins, exact for rows in this order.
    """
    n = len(batch)
    least = np.zeros(n + 1)  # of the first rows
    begin = np.zeros(n + 1, dtype=int)  # of the last part of these
    for end in range(1, n + 1):
        costs = least[:end] + lengths[:end] * np.arange(end, 0, -1) + forward_cost
        begin[end] = costs.argmin()
        least[end] = costs[begin[end]]
    edges = [n]
    while edges[-1]:
        edges.append(int(begin[edges[-1]]))
    for first, last in zip(edges[::-1], edges[-2::-1], strict=False):
        yield list(batch[first:last])
