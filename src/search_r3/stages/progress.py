"""One display for the whole training: steps done, rate, time left.

Lightning's bars start anew with every epoch and count batches, so neither the rate nor the remaining time
is that of the run. This one counts optimizer steps up to `max_steps` and goes on where a resumed run stands.
"""

from collections.abc import Mapping

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from search_r3.progress import Progress

SHOWN_UNASKED = ("train/loss", "train/reward", "ndcg@10")


class StepProgress(Callback):
    """Shows steps, rate, remaining time and the latest value of some logged metrics.

    Args:
        metrics: names to show; one that was not logged is left out. Empty: loss, reward and every nDCG@10.
    """

    def __init__(self, metrics: tuple[str, ...] = ()) -> None:
        self.metrics = tuple(metrics)
        self._progress: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._progress = Progress(
            total_steps(trainer),
            "training",
            "steps",
            is_shown=trainer.is_global_zero,
            initial=trainer.global_step,
        )

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: object) -> None:
        if self._progress is not None:
            n = trainer.global_step - self._progress.n
            self._progress.update(n, lambda: self._values(trainer.callback_metrics))

    def _values(self, logged: Mapping[str, torch.Tensor]) -> str:
        names = self.metrics or [name for name in sorted(logged) if name.endswith(SHOWN_UNASKED)]
        return " ".join(f"{name} {float(logged[name]):.4g}" for name in names if name in logged)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, error: BaseException) -> None:
        self._close(is_finished=False)

    def _close(self, is_finished: bool = True) -> None:
        if self._progress is not None:
            self._progress.close(is_finished)
            self._progress = None


def total_steps(trainer: pl.Trainer) -> int | None:
    """Optimizer steps at which the run ends; None where only a time limit ends it."""
    if trainer.max_steps is not None and trainer.max_steps > 0:
        return trainer.max_steps
    estimated = trainer.estimated_stepping_batches
    return int(estimated) if estimated != float("inf") else None
