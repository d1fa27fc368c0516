"""What runs beside training: checkpoints, throughput by part, and totals of masked negatives."""

import hashlib
import logging
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.types import STEP_OUTPUT

from search_r3.stages.checkpoint_files import (
    BEST,
    CheckpointError,
    HashedCheckpointIO,
    adopt,
    check,
    keep_as_best,
    remove_partials,
    step_of,
)
from search_r3.stages.interruption import stops_after_this_step

log = logging.getLogger(__name__)


class TrainableCheckpoint(Checkpoint):
    """Keeps the last checkpoint, the one before it and the best, each with all it takes to resume.

    How they lie on the disk is said in `checkpoint_files`. A file holds the trainable weights and the states
    of optimizer, scheduler, loop, data module and callbacks, and no frozen weight: those come from the model
    folder that the run started from. A hash of them is kept, and resuming on other ones is refused. The files
    load with `weights_only=True`. Global random states are not kept: what is random in a step must be seeded
    by the step.

    A run that is interrupted saves the step that it is in before it ends, see `interruption`.
    What a checkpoint says is done is done: where a validation is due after a step, the step is saved after
    it, with what it found. A run that is killed meanwhile takes the steps since the save before once more.

    Args:
        folder: where the files go.
        monitor: name of a logged validation metric; None keeps no best file.
        mode: "max" where more is better.
        save_every_n_steps: besides after every validation; None saves only then.
    """

    def __init__(
        self,
        folder: str | Path,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
        save_every_n_steps: int | None = None,
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f'checkpoint mode must be "max" or "min", got {mode!r}')
        if save_every_n_steps is not None and save_every_n_steps < 1:
            raise ValueError(f"save_every_n_steps must be at least 1 or null, got {save_every_n_steps}")
        # absolute, because Lightning reads a ~ or an http at the start of a relative path
        self.folder, self.monitor, self.mode = Path(folder).absolute(), monitor, mode
        self.save_every_n_steps = save_every_n_steps
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.seconds_saving = 0.0
        self._last_saved_step = -1
        self._resumed_at: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # No frozen weight is in the file. What is missing or too much is found by on_load_checkpoint.
        pl_module.strict_loading = False
        self._last_saved_step = -1
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = HashedCheckpointIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            remove_partials(self.folder)
        if self._resumed_at is not None and self.best_step is not None and trainer.is_global_zero:
            self._find_best(Path(trainer.ckpt_path))

    def _find_best(self, resumed_from: Path) -> None:
        """Has the best checkpoint beside the one that was resumed from.

        Raises:
            CheckpointError: If it is missing or damaged.
        """
        if self.best_step == self._resumed_at:  # a kill may have come before it had both names
            keep_as_best(resumed_from)
            return
        best = self.folder / BEST
        if not best.exists():
            raise CheckpointError(
                f"{best}: is missing; it held the best validation so far, of step {self.best_step}. Put it "
                f"back, or take the last one for the best: cp -r '{resumed_from}' '{best}'"
            )
        check(best)
        step = step_of(best)
        if step != self.best_step:
            log.warning("%s: is of step %d; the best so far was of step %d", best, step, self.best_step)
            self.best_score, self.best_step = None, step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        is_best = self.monitor is not None and self._is_best(trainer)
        self._save(trainer, is_best)
        if stops_after_this_step(trainer):
            raise KeyboardInterrupt

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        every, step = self.save_every_n_steps, trainer.global_step  # a batch may be several steps
        is_due = every is not None and step // every > self._step_before // every
        if (is_due or stops_after_this_step(trainer)) and not _is_validated_now(trainer):
            _log_step(trainer)
            self._save(trainer)
            if stops_after_this_step(trainer):  # as it may have been told meanwhile
                raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._last_saved_step:
            self._save(trainer)

    def has_unsaved(self, trainer: Trainer) -> bool:
        """Whether steps have been completed of which no checkpoint knows."""
        return trainer.global_step not in (self._last_saved_step, self._resumed_at or 0)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step, "monitor": self.monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["monitor"] == self.monitor:
            self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        frozen = frozen_names(pl_module)
        checkpoint["state_dict"] = {
            name: value for name, value in checkpoint["state_dict"].items() if name not in frozen
        }
        checkpoint["frozen_sha256"] = frozen_sha256(pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Checks that the file fits the model.

        Raises:
            ValueError: If the file trains other weights than the model, or was made on another frozen base.
        """
        self._resumed_at = checkpoint["global_step"]
        wanted = set(pl_module.state_dict()) - frozen_names(pl_module)
        found = set(checkpoint["state_dict"])
        if wanted != found:
            raise ValueError(
                "the checkpoint trains other weights than this model; resume with the run's model settings. "
                f"Only in the model: {sorted(wanted - found)[:3]}; "
                f"only in the file: {sorted(found - wanted)[:3]}"
            )
        if checkpoint["frozen_sha256"] != frozen_sha256(pl_module):
            raise ValueError(
                "the frozen weights are not those that the checkpoint was trained on; resume with the model "
                "folder that the run started from"
            )

    def _is_best(self, trainer: Trainer) -> bool:
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"checkpoint monitor {self.monitor!r} was not logged in validation; "
                f"logged: {sorted(trainer.callback_metrics)}"
            )
        score = float(trainer.callback_metrics[self.monitor])
        if score != score:
            raise ValueError(f"validation metric {self.monitor!r} is NaN at step {trainer.global_step}")
        if self.best_score is not None and (
            score <= self.best_score if self.mode == "max" else score >= self.best_score
        ):
            return False
        self.best_score, self.best_step = score, trainer.global_step
        return True

    def _save(self, trainer: Trainer, is_best: bool = False) -> None:
        start = time.perf_counter()
        partial = self.folder / "last.partial"
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            written = getattr(trainer.strategy.checkpoint_io, "written", None)
            adopt(partial, written[1] if written and written[0] == partial else None, is_best)
        trainer.strategy.barrier("TrainableCheckpoint")
        if hasattr(trainer.datamodule, "checkpoint_is_saved"):
            trainer.datamodule.checkpoint_is_saved()  # it may drop what only older checkpoints need
        self._last_saved_step = trainer.global_step
        self.seconds_saving += time.perf_counter() - start


def _is_validated_now(trainer: Trainer) -> bool:
    """Whether a validation follows the step that has just ended."""
    loop = trainer.fit_loop
    if not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
        return False
    loop.epoch_loop.val_loop.setup_data()
    return not loop.epoch_loop.val_loop.skip


def _log_step(trainer: Trainer) -> None:
    """Hands the step's line to the loggers before the step is saved; Lightning would do it right after."""
    connector = trainer._logger_connector
    if connector.should_update_logs:
        _ = trainer.callback_metrics, trainer.progress_bar_metrics  # they keep what they have seen
        connector.update_train_step_metrics()
        trainer.fit_loop.epoch_loop._results.clear()  # and so there is nothing left for Lightning to log


def frozen_names(module: torch.nn.Module) -> set[str]:
    """Names of the parameters that are not trained; a tied one has several."""
    return {
        name
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad
    }


def frozen_sha256(module: torch.nn.Module, n_values: int = 256) -> str:
    """Hash over shape and first values of every frozen parameter; cheap, and different for another base."""
    frozen = frozen_names(module)
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in frozen:
            values = parameter.detach().flatten()[:n_values].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


class FalseNegatives(Callback):
    """Totals over the run, all ranks together, of documents that were masked as false negatives.

    A stage reports the counts of a step in what `training_step` returns: `masked_by_id`, and for each of its
    embeddings (`direct`, `reasoned`) `candidates_<embedding>`, the (query, other document) pairs, and
    `masked_by_score_<embedding>`, which may count a document that its id masks as well. A stage that reports
    none has no totals. Part of the checkpoint.
    """

    CANDIDATES: ClassVar[dict[str, str]] = {
        "masked_by_id": "candidates_direct",
        "masked_by_score_direct": "candidates_direct",
        "masked_by_score_reasoned": "candidates_reasoned",
    }
    """What each count is a share of."""

    NAMES = tuple(sorted({*CANDIDATES, *CANDIDATES.values()}))

    def __init__(self) -> None:
        self._totals = torch.zeros(len(self.NAMES), dtype=torch.long)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if not isinstance(outputs, dict) or outputs.keys().isdisjoint(self.NAMES):
            return
        counts = torch.tensor([int(outputs.get(name, 0)) for name in self.NAMES], device=pl_module.device)
        # Kept on the device: reading it would wait for every step.
        self._totals = self._totals.to(counts.device) + trainer.strategy.reduce(counts, reduce_op="sum")

    def summary(self) -> dict[str, dict[str, float]]:
        """Count and share of the candidates by way of masking; empty where nothing was compared."""
        totals = self._by_name()
        return {
            name: {"count": totals[name], "share": totals[name] / totals[of]}
            for name, of in self.CANDIDATES.items()
            if totals[of] > 0
        }

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = [
            f"{name.removeprefix('masked_').replace('_', ' ')} {each['count']:,} ({each['share']:.3%})"
            for name, each in self.summary().items()
        ]
        if trainer.is_global_zero and parts:
            log.info("false negatives masked, of all (query, other document) pairs: %s", ", ".join(parts))

    def state_dict(self) -> dict[str, Any]:
        return {"totals": self._by_name()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._totals = torch.tensor([state_dict["totals"][name] for name in self.NAMES])

    def _by_name(self) -> dict[str, int]:
        return dict(zip(self.NAMES, self._totals.tolist(), strict=True))


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
        self.n_steps += 1
        for name in self.counts:
            self.counts[name] += float(outputs.get(name, 0))

    def rates(self) -> dict[str, float]:
        seconds = sum(self.seconds[part] for part in ("data", "forward", "backward", "optimizer"))
        counted = {name.removeprefix("n_"): value for name, value in self.counts.items() if value > 0}
        return {f"{name}_per_s": value / max(seconds, 1e-9) for name, value in counted.items()}


def _seconds_saving(trainer: Trainer) -> float:
    return sum(getattr(callback, "seconds_saving", 0.0) for callback in trainer.checkpoint_callbacks)
