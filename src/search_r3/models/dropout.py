"""Dropout off, in a model that goes on training."""

import contextlib
from collections.abc import Iterator

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


@contextlib.contextmanager
def without_dropout(model: nn.Module, keeps_checkpointing: bool) -> Iterator[None]:
    """Evaluation mode within. Every module's own mode is restored.

    Transformers recomputes activations only in layers that are in training mode, and drops the cache of keys
    and values then. In a training forward those layers therefore stay in it, the modules inside them do not;
    in sampling none does.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, was_training in modes:
            module.training = (
                was_training and keeps_checkpointing and isinstance(module, GradientCheckpointingLayer)
            )
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
