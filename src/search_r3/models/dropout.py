"""Dropout off, in a model that is trained: sampling, ratios and embeddings must see one model."""

import contextlib
from collections.abc import Iterator

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def prepare_training(model: nn.Module) -> None:
    """Puts a model into the mode that it is trained in, however it was made: that of evaluation.

    Its own flag says that it is trained. Layers that are to recompute activations are in training mode too,
    since transformers recomputes in no other, and drop nothing by themselves.
    """
    model.eval()
    model.training = True
    for layer in filter(_recomputes, model.modules()):
        layer.training = True
        for name, value in list(vars(layer).items()):
            if "drop" in name and isinstance(value, float):  # OPT and others have no module for it
                setattr(layer, name, 0.0)


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
            module.training = was_training and keeps_checkpointing and _recomputes(module)
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def _recomputes(module: nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
