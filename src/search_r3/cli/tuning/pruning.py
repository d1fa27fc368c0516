"""What watches a trial while it trains."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna
    import pytorch_lightning as pl


def pruning_callback(trial: "optuna.Trial", monitor: str) -> "pl.Callback":
    """A Lightning callback that reports each validation and stops a trial that falls behind."""
    import optuna
    import pytorch_lightning as pl

    class Pruning(pl.Callback):
        def __init__(self) -> None:
            self.values: list[float] = []

        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.sanity_checking:
                return
            logged = trainer.callback_metrics
            if monitor not in logged:
                raise KeyError(f"monitor={monitor} was not logged; logged: {', '.join(sorted(logged))}")
            value = float(logged[monitor])
            if not math.isfinite(value):
                raise ValueError(f"monitor={monitor} is {value} at step {trainer.global_step}")
            self.values.append(value)
            trial.report(value, step=trainer.global_step)
            if trial.should_prune():
                raise optuna.TrialPruned

        def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if not self.values:
                raise ValueError("no validation ran in this trial, so nothing was measured")

    return Pruning()
