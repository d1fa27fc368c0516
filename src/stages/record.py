"""What validation measured, kept by step, so that a run can report the numbers of the weights it saves."""

import math
from typing import Any

import pytorch_lightning as pl


class ValidationRecord(pl.Callback):
    """Remembers every validation of a run, resumed or not.

    Attributes:
        by_step: optimizer step -> logged validation metric -> value. Part of the checkpoint.
    """

    def __init__(self) -> None:
        self.by_step: dict[int, dict[str, float]] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.by_step[trainer.global_step] = {
            name: value for name, value in logged.items() if name.startswith("val") and math.isfinite(value)
        }

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
