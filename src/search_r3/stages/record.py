"""What a run measured, kept by step, so that it can report the numbers of the weights it saves."""

import math
from typing import Any

import pytorch_lightning as pl


class ValidationRecord(pl.Callback):
    """Remembers every validation of a run and its last losses, resumed or not. Part of the checkpoint.

    Attributes:
        by_step: optimizer step -> logged validation metric -> value.
        losses: name -> value, of the last step that was saved.
    """

    LOSSES = ("loss", "sft", "kl", "info_nce", "triplet")
    """How the names of losses begin, behind `train/`."""

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, float]] = {}
        self.losses: dict[str, float] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.by_step[trainer.global_step] = {
            name: value for name, value in logged.items() if name.startswith("val") and math.isfinite(value)
        }

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        logged = {name.removeprefix("train/"): value for name, value in trainer.callback_metrics.items()}
        losses = {name: float(value) for name, value in logged.items() if name.startswith(self.LOSSES)}
        checkpoint["losses"] = self.losses = losses or self.losses

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.losses = dict(checkpoint.get("losses", {}))

    def state_dict(self) -> dict[str, Any]:
        return {"by_step": self.by_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.by_step = dict(state_dict["by_step"])

    def at(self, step: int | None) -> dict[str, float]:
        """Metrics of the validation at a step, or of the last one; empty where nothing was measured then."""
        if not self.by_step:
            return {}
        return self.by_step.get(max(self.by_step) if step is None else step, {})


def metrics_by_mode(logged: dict[str, float]) -> dict[str, dict[str, float]]:
    """`val/<mode>/<metric>` as mode -> metric -> value; a name without a mode belongs to "training"."""
    modes: dict[str, dict[str, float]] = {}
    for name, value in logged.items():
        _, _, rest = name.partition("/")
        mode, separator, metric = rest.partition("/")
        mode, metric = (mode, metric) if separator else ("training", mode or name)
        modes.setdefault(mode, {})[metric] = value
    return modes
