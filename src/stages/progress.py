"""One bar for the whole training: steps done, rate, time left.

Lightning's bars start anew with every epoch and count batches, so neither the rate nor the remaining time
is that of the run. This one counts optimizer steps up to `max_steps`, goes on where a resumed run stands,
and writes plain lines where the output is not a terminal.
"""

import sys
import time
from collections.abc import Mapping

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from tqdm import tqdm

SHOWN_UNASKED = ("train/loss", "ndcg@10")
LINE = "{desc}: {n_fmt}/{total_fmt} steps, {rate_fmt}, {elapsed} gone, {remaining} left{postfix}"


class StepProgress(Callback):
    """Shows steps, rate, remaining time and the latest value of some logged metrics.

    Args:
        metrics: names to show; one that was not logged is left out. Empty: the loss and every nDCG@10.
        line_every_s: seconds between two lines where the output is a file or a pipe.
    """

    def __init__(self, metrics: tuple[str, ...] = (), line_every_s: float = 15.0) -> None:
        self.metrics = tuple(metrics)
        self.line_every_s = line_every_s
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._is_terminal = sys.stderr.isatty()
        self._first_step, self._started_at = trainer.global_step, time.monotonic()
        self._line_at = self._started_at
        if self._is_terminal:
            self._bar = tqdm(
                total=total_steps(trainer),
                initial=trainer.global_step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
            )

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: object) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self._values(trainer.callback_metrics), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)
        elif trainer.is_global_zero and time.monotonic() - self._line_at >= self.line_every_s:
            self._print_line(trainer)

    def _print_line(self, trainer: pl.Trainer) -> None:
        self._line_at = time.monotonic()
        line = tqdm.format_meter(
            n=trainer.global_step,
            total=total_steps(trainer),
            elapsed=self._line_at - self._started_at,
            initial=self._first_step,
            prefix="training",
            unit="step",
            bar_format=LINE,
            postfix=self._values(trainer.callback_metrics),
        )
        print(line, file=sys.stderr, flush=True)

    def _values(self, logged: Mapping[str, torch.Tensor]) -> str:
        names = self.metrics or [name for name in sorted(logged) if name.endswith(SHOWN_UNASKED)]
        return " ".join(f"{name} {float(logged[name]):.4g}" for name in names if name in logged)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not self._is_terminal:
            self._print_line(trainer)
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def total_steps(trainer: pl.Trainer) -> int | None:
    """Optimizer steps at which the run ends; None where only a time limit ends it."""
    if trainer.max_steps is not None and trainer.max_steps > 0:
        return trainer.max_steps
    estimated = trainer.estimated_stepping_batches
    return int(estimated) if estimated != float("inf") else None
