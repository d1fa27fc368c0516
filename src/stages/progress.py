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

LINE_EVERY_S = 15.0


class StepProgress(Callback):
    """Shows steps, rate, remaining time and the latest value of some logged metrics.

    Args:
        metrics: names to show; a name that was not logged is left out. Empty: the loss and what validation
            logged, as far as they fit.
        line_every_s: seconds between two lines where the output is a file or a pipe.
    """

    def __init__(self, metrics: tuple[str, ...] = (), line_every_s: float = LINE_EVERY_S) -> None:
        self.metrics = tuple(metrics)
        self.line_every_s = line_every_s
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        is_terminal = sys.stderr.isatty()
        self._shown_at = time.monotonic()
        self._bar = tqdm(
            total=total_steps(trainer),
            initial=trainer.global_step,
            unit="step",
            desc="training",
            dynamic_ncols=True,
            file=sys.stderr,
            mininterval=0.5 if is_terminal else float("inf"),
            leave=is_terminal,
        )
        if not is_terminal:
            self._bar.disable = False

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: object) -> None:
        if self._bar is None:
            return
        self._bar.set_postfix_str(self._values(trainer.callback_metrics), refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)
        if not sys.stderr.isatty() and time.monotonic() - self._shown_at >= self.line_every_s:
            self._print_line()

    def _print_line(self) -> None:
        self._shown_at = time.monotonic()
        print(str(self._bar), file=sys.stderr, flush=True)

    def _values(self, logged: Mapping[str, torch.Tensor]) -> str:
        names = (
            self.metrics
            or [name for name in sorted(logged) if name.startswith(("val", "train/loss", "loss"))][:4]
        )
        return " ".join(f"{name} {float(logged[name]):.4g}" for name in names if name in logged)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            if not sys.stderr.isatty():
                self._print_line()
            self._bar.close()
            self._bar = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def total_steps(trainer: pl.Trainer) -> int | None:
    """Optimizer steps at which the run ends; None where only a time limit ends it."""
    if trainer.max_steps is not None and trainer.max_steps > 0:
        return trainer.max_steps
    estimated = trainer.estimated_stepping_batches
    return int(estimated) if estimated != float("inf") else None
