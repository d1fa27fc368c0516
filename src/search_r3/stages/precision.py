"""Mixed precision that brings every weight to bf16 or fp16 once per step, and not in every forward.

Lightning 2.6 turned autocast's cache off, since what had been cast without gradient lost the gradient of
later forwards; torch has mended that. Without the cache a step of decoding casts all weights for a token of
each row, and gradient caching casts them for every part of a batch.
"""

from contextlib import AbstractContextManager

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.strategies import ModelParallelStrategy


class CachedMixedPrecision(MixedPrecision):
    """Lightning's mixed precision with autocast's cache; `optimization_step` empties it behind each step."""

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast(
            self.device, dtype=torch.bfloat16 if self.precision == "bf16-mixed" else torch.half
        )


def cache_casts(trainer: Trainer) -> None:
    """Lets a trainer cast each weight once per step; one without autocast, or with sharded weights, stays."""
    plugin = trainer.precision_plugin
    if type(plugin) is MixedPrecision and not isinstance(trainer.strategy, ModelParallelStrategy):
        trainer.strategy.precision_plugin = CachedMixedPrecision(
            plugin.precision, plugin.device, plugin.scaler
        )


def forward_precision(trainer: Trainer, device: torch.device, precision: str) -> AbstractContextManager:
    """Within it, a forward is in fp32 ("full") or in the run's precision ("run")."""
    if precision == "full":
        return torch.autocast(device.type, enabled=False)
    return trainer.precision_plugin.forward_context()
