"""The head is applied to a few positions at a time: `[T, V]` logits never exist."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor
from torch.utils.checkpoint import checkpoint

LogitsOf = Callable[[Tensor], Tensor]
"""From states `[n, D]` to logits `[n, V]`, as the model itself makes them; `n` may be 0."""

Part = TypeVar("Part")


def over_chunks(part: Callable[..., Part], chunk: int, *tensors: Tensor) -> list[Part]:
    """What a function gives for each chunk of some tensors `[T, ...]`; nothing for tensors of no length.

    What it computes within is not kept and is computed again in backward, so that at most `[chunk, V]` logits
    exist at once. Of a single chunk all is kept: computing again would save nothing at the peak.

    Args:
        part: from a chunk of each tensor.
        chunk: positions.
        tensors: of one length.

    Raises:
        ValueError: If `chunk` is below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if len(tensors[0]) == 0:
        return []
    pieces = list(zip(*(tensor.split(chunk) for tensor in tensors), strict=True))
    if len(pieces) == 1:
        return [part(*pieces[0])]
    return [checkpoint(part, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
