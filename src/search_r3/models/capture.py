"""Capturing work of a GPU in a CUDA graph, so that a failure leaves the process as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch

_kept: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture did not end well: the allocator may still ask them which stream they were on."""


def captured(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph of a step that has been taken once, for its kernels to be loaded and its weights to be cast.

    Taking it again must change nothing. An operation that waits for the device raises the first time, when no
    capture can be damaged by it.

    Args:
        step: keeps its results in tensors of its own; those of the captured one are filled by every replay.
        device: of all its tensors.

    Raises:
        RuntimeError: If the step cannot be captured.
    """
    stream, current = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream), _waiting_refused():
            step()
    finally:
        current.wait_stream(stream)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()  # within a capture nothing that is cached can be freed for it
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    with torch.cuda.stream(stream), _random_state_apart(device):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            step()
        except Exception:
            with suppress(Exception):  # it tells that the capture is spoilt, and not by what
                _end(graph, pool, device)
            raise
        _end(graph, pool, device)
    current.wait_stream(stream)
    return graph


def _end(graph: torch.cuda.CUDAGraph, pool: tuple[int, int], device: torch.device) -> None:
    """Ends a capture; what a spoilt one leaves in the allocator is undone, which `capture_end` does not."""
    try:
        graph.capture_end()
    except Exception:
        _kept.append(graph)
        with suppress(RuntimeError, AttributeError):  # closed already, or another torch
            torch._C._cuda_endAllocateToPool(device.index, pool)
            torch._C._cuda_releasePool(device.index, pool)
        raise


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device)


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Within, an operation that waits for the device raises."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def _random_state_apart(device: torch.device) -> Iterator[None]:
    """Lends the device's generator another state: one that a failed capture has seen never draws again."""
    generator = torch.cuda.default_generators[device.index]
    own = generator.graphsafe_get_state()
    generator.graphsafe_set_state(torch.Generator(device))
    try:
        yield
    finally:
        generator.graphsafe_set_state(own)
