"""Dropout off: for good in a model that a stage trains, or for a while in one that goes on training."""

import contextlib
import logging
import re
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

log = logging.getLogger(__name__)

_RANDOM = re.compile(r"drop|jitter")
"""In the name of a setting that makes a training forward random: attention_dropout, resid_pdrop, layerdrop,
router_jitter_noise."""
_NOT_RANDOM = {"phimoe": ("router_jitter_noise",)}
"""By type of model, settings of such a name that every forward reads: from where on PhiMoE's router weighs no
other expert beside the best. Without it the model is another one."""


def leave_out_dropout(model: PreTrainedModel) -> None:
    """Sets every dropout of a model to 0, in its configuration and in its modules; logs which it had.

    Sampling, ratios, both passes of gradient caching and what is recomputed in a backward must see one and
    the same model. A mode that is switched around a forward does not reach all of this: some decoder layers
    (OPT, Falcon, BioGPT) drop by their own mode, which recomputation needs, and backward comes later.
    """
    had: dict[str, float] = {}
    _leave_out_of_config(model.config, had)
    kept = _NOT_RANDOM.get(model.config.model_type, ())
    for module in model.modules():
        for name, value in list(vars(module).items()):
            is_random = _RANDOM.search(name) or (name == "p" and isinstance(module, nn.Dropout))
            is_random = is_random and name not in kept
            if is_random and _is_above_0(value):
                setattr(module, name, 0.0)
    if had:
        log.info("dropout is off in training: %s", ", ".join(f"{name}={had[name]}" for name in sorted(had)))


def _leave_out_of_config(config: PreTrainedConfig, had: dict[str, float]) -> None:
    kept = _NOT_RANDOM.get(config.model_type, ())
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _leave_out_of_config(value, had)
        elif _RANDOM.search(name) and name not in kept and _is_above_0(value):
            had[name] = value
            setattr(config, name, 0.0)


def _is_above_0(value: object) -> bool:
    return isinstance(value, float) and value > 0


def prepare_training(model: nn.Module) -> None:
    """Puts a model into the mode that it is trained in, however it was made: that of evaluation.

    Its own flag says that it is trained. Layers that are to recompute activations are in training mode too,
    since transformers recomputes in no other; what they drop themselves, `leave_out_dropout` has set to 0.
    """
    model.eval()
    model.training = True
    for layer in filter(_recomputes, model.modules()):
        layer.training = True


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
