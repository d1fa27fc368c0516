"""Where the time of training goes, and how much passes through it."""

import logging
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.types import STEP_OUTPUT

log = logging.getLogger(__name__)


class Throughput(Callback):
    """Rates, and the share of time that each part of training takes.

    Parts: `data` (waiting for the loader), `forward`, `backward`, `optimizer` (from the last backward to the
    end of the step), `validation` and `save`. A stage that reports `n_tokens` and `n_pairs` in what
    `training_step` returns gets their rates, over all ranks where logged; time spent on validation and saving
    does not count in a rate. The start of a run is left out, since the first steps are slow.

    Args:
        log_every_n_steps: the window of the logged rates.
        skip_first_n_steps: not counted in the summary.
        synchronize: whether to wait for a CUDA device between the parts; otherwise they are the host's.
    """

    PARTS = ("data", "forward", "backward", "optimizer", "validation", "save")

    def __init__(
        self, log_every_n_steps: int = 10, skip_first_n_steps: int = 1, synchronize: bool = True
    ) -> None:
        self.log_every_n_steps, self.skip_first_n_steps = log_every_n_steps, skip_first_n_steps
        self.synchronize = synchronize
        self._total, self._window = _Tally(), _Tally()

    def summary(self) -> dict[str, float]:
        """Seconds and share by part, steps, and rates of this rank, over the run so far."""
        total = self._total
        elapsed = sum(total.seconds.values())
        facts = {"n_steps": float(total.n_steps), "seconds": elapsed}
        facts |= {f"{part}_share": total.seconds[part] / max(elapsed, 1e-9) for part in self.PARTS}
        return facts | total.rates()

    def table(self) -> str:
        """The summary for a reader."""
        lines = [f"{'part':<12}{'seconds':>10}{'share':>8}"]
        elapsed = max(sum(self._total.seconds.values()), 1e-9)
        for part in self.PARTS:
            seconds = self._total.seconds[part]
            lines.append(f"{part:<12}{seconds:>10.1f}{seconds / elapsed:>8.1%}")
        rates = ", ".join(f"{value:,.1f} {name}" for name, value in self._total.rates().items())
        return "\n".join([*lines, f"{self._total.n_steps} steps: {rates}"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total, self._window = _Tally(), _Tally()
        self._steps_seen = 0
        self._seconds_saving = _seconds_saving(trainer)
        self._mark = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._lap("data", trainer, pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self._lap("forward", trainer, pl_module)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lap("backward", trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self._lap("optimizer", trainer, pl_module)
        self._steps_seen += 1
        if self._steps_seen == self.skip_first_n_steps:
            self._total, self._window = _Tally(), _Tally()
            return
        for tally in (self._total, self._window):
            tally.count(outputs if isinstance(outputs, dict) else {})
        if self._window.n_steps == self.log_every_n_steps:
            self._log(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and hasattr(self, "_mark"):
            self._lap("data", trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and hasattr(self, "_mark"):
            self._lap("validation", trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self._total.n_steps > 0:
            log.info("time by part\n%s", self.table())

    def _log(self, pl_module: LightningModule) -> None:
        elapsed = max(sum(self._window.seconds.values()), 1e-9)
        shares = {f"time/{part}": self._window.seconds[part] / elapsed for part in self.PARTS}
        pl_module.log_dict(shares)
        rates = {f"throughput/{name}": value for name, value in self._window.rates().items()}
        pl_module.log_dict(rates, sync_dist=True, reduce_fx="sum")
        self._window = _Tally()

    def _lap(self, part: str, trainer: Trainer, pl_module: LightningModule) -> None:
        """Books the time since the last lap under a part, less what checkpoints took meanwhile."""
        if self.synchronize and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now, saving = time.perf_counter(), _seconds_saving(trainer)
        saved = saving - self._seconds_saving
        for tally in (self._total, self._window):
            tally.seconds[part] += now - self._mark - saved
            tally.seconds["save"] += saved
        self._mark, self._seconds_saving = now, saving


class _Tally:
    """Seconds by part and counts of one span of training."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(Throughput.PARTS, 0.0)
        self.counts = {"n_tokens": 0.0, "n_pairs": 0.0}
        self.n_steps = 0

    def count(self, outputs: dict[str, Any]) -> None:
        """Adds a step by what it returned."""
        self.n_steps += 1
        for name in self.counts:
            self.counts[name] += float(outputs.get(name, 0))

    def rates(self) -> dict[str, float]:
        """Each count per second of training; seconds of saving and of validation are left out."""
        seconds = sum(self.seconds[part] for part in ("data", "forward", "backward", "optimizer"))
        counted = {name.removeprefix("n_"): value for name, value in self.counts.items() if value > 0}
        return {f"{name}_per_s": value / max(seconds, 1e-9) for name, value in counted.items()}


def _seconds_saving(trainer: Trainer) -> float:
    return sum(getattr(callback, "seconds_saving", 0.0) for callback in trainer.checkpoint_callbacks)
