"""Gradient caching: a loss over all embeddings of a batch whose graphs do not fit into memory together.

It is GradCache (arXiv:2101.06983). Ours differs in two points: the first chunk keeps its graph from the first
pass, so `n` chunks cost `2n - 1` forwards and one chunk is the plain step; and a forward that is not the same
both times (dropout) stops the run.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

Chunk = TypeVar("Chunk")

LossOverAll = Callable[[list[Tensor]], tuple[Tensor, dict[str, Tensor]]]
"""From the embeddings of all chunks, in their order, to a scalar and numbers to log."""

_LARGEST_CHANGE = 0.05


@dataclass(frozen=True)
class ChunkOutput:
    """What one forward over a chunk yields.

    Attributes:
        embeddings: `[n, D]`, or None where the chunk takes no part in the loss over embeddings.
        extra_loss: a scalar that needs this chunk only, such as the token losses. It is already divided by
            the count of the whole batch, so that the chunks' values add up.
        metrics: numbers to log; they add up over chunks as well.
    """

    embeddings: Tensor | None = None
    extra_loss: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)


def backward_with_cache(
    chunks: Sequence[Chunk],
    forward: Callable[[Chunk], ChunkOutput],
    loss_fn: LossOverAll | None,
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradient of a loss over all chunks' embeddings while at most one chunk's graph is in memory.

    The embeddings of all chunks are computed without a graph (the first chunk's with one), the loss and its
    gradient with respect to them follow, and every other chunk is run once more to carry its part of the
    gradient to the weights. The result equals one backward over everything at once. Under DDP only the last
    backward communicates, so the last chunk must reach every trained parameter: one that it does not reach
    would keep this rank's gradient (`find_unused_parameters=True`) or stop the run (`False`).

    Args:
        chunks: at least one. Under strategies that shard weights, as many on every rank.
        forward: called with a graph and without. It must not be random: dropout is off.
        loss_fn: has no trained parameter of its own; it may gather over ranks. None leaves the extra losses
            alone.
        backward: such as `LightningModule.manual_backward`.
        no_sync: entered around every backward but the last.

    Returns:
        The total loss, detached, and all metrics.

    Raises:
        ValueError: If there is no chunk, or a loss over embeddings and a chunk without any.
        RuntimeError: If a chunk's embeddings differ between the two passes.
    """
    if not chunks:
        raise ValueError("a step needs at least one chunk; a rank without rows passes an empty one")
    output = forward(chunks[0])
    cache = _cached(output, chunks[1:], forward, loss_fn)
    total, sums = cache.loss, {}
    change = torch.zeros_like(total)
    for number, (chunk, gradient) in enumerate(zip(chunks, cache.gradients, strict=True)):
        if number > 0:
            output = forward(chunk)
            if gradient is not None:
                change = torch.maximum(change, _largest_change(output.embeddings, cache.embeddings[number]))
        surrogate = _surrogate(output, gradient)
        with no_sync() if number < len(chunks) - 1 else nullcontext():
            backward(surrogate)
        if output.extra_loss is not None:
            total = total + output.extra_loss.detach().float()
        for name, value in output.metrics.items():
            sums[name] = sums.get(name, 0.0) + value
        del output, surrogate  # the graph goes before the next chunk's is built
    if change > _LARGEST_CHANGE:
        raise RuntimeError(
            f"embeddings changed by {change.item():.3g} of their length between the two passes of gradient "
            "caching; the forward must not be random, so turn dropout off"
        )
    return total, {**cache.metrics, **sums}


@dataclass(frozen=True)
class _Cache:
    """The loss over embeddings and its gradient; where there is no such loss, 0 and None for each chunk.

    Attributes:
        loss: a scalar, detached.
        metrics: of the loss.
        embeddings: `[n, D]` of each chunk.
        gradients: `[n, D]` of the loss with respect to them.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    embeddings: Sequence[Tensor | None]
    gradients: Sequence[Tensor | None]


def _cached(
    first: ChunkOutput,
    others: Sequence[Chunk],
    forward: Callable[[Chunk], ChunkOutput],
    loss_fn: LossOverAll | None,
) -> _Cache:
    """The first pass: the loss from all chunks' embeddings, none of which but the first's has a graph."""
    if loss_fn is None:
        nothing = [None] * (1 + len(others))
        return _Cache(torch.zeros((), device=_device(first)), {}, nothing, nothing)
    leaves = [_leaf(first.embeddings)]
    with torch.no_grad():
        for chunk in others:
            leaves.append(_leaf(forward(chunk).embeddings))
    loss, metrics = loss_fn([leaf.requires_grad_() for leaf in leaves])
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return _Cache(loss.detach().float(), metrics, leaves, gradients)


def _leaf(embeddings: Tensor | None) -> Tensor:
    if embeddings is None:
        raise ValueError("a loss over embeddings needs the embeddings of every chunk; one chunk gave None")
    return embeddings.detach()


def _surrogate(output: ChunkOutput, gradient: Tensor | None) -> Tensor:
    """A scalar whose gradient is the chunk's part of the whole."""
    parts = [] if output.extra_loss is None else [output.extra_loss.float()]
    if gradient is not None:
        parts.append((output.embeddings.float() * gradient.float()).sum())
    if not parts:
        raise ValueError("a chunk must yield embeddings that enter the loss, an extra loss, or both")
    return torch.stack(parts).sum()


def _largest_change(now: Tensor, before: Tensor) -> Tensor:
    """Largest relative change of an embedding; a scalar on the device, so that nothing waits for it."""
    if len(now) == 0:
        return torch.zeros((), device=now.device)
    now, before = now.detach().float(), before.detach().float()
    return ((now - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-6)).max()


def _device(output: ChunkOutput) -> torch.device:
    return (output.embeddings if output.extra_loss is None else output.extra_loss).device
