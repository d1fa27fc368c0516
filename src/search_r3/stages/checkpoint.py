"""When a run is saved, and what a checkpoint holds: how it lies on the disk is in `checkpoint_files`."""

import hashlib
import logging
import time
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.types import STEP_OUTPUT

from search_r3.files import shell_command
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
AVERAGED = "current_model_state"
"""In a checkpoint to which Lightning's WeightAveraging has added the weights that are trained. It then reads
its averages, which are the weights of the file, whole or not at all: none is left out."""


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
        self._frozen_sha256 = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # No frozen weight is in the file. What is missing or too much is found by on_load_checkpoint.
        pl_module.strict_loading = False
        self._frozen_sha256 = frozen_sha256(pl_module)  # before weights are split among ranks
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
                f"back, or take the last one for the best: {shell_command('cp', '-r', resumed_from, best)}"
            )
        check(best)
        step = step_of(best)
        if step != self.best_step:
            log.warning("%s: is of step %d; the best so far was of step %d", best, step, self.best_step)
            self.best_score, self.best_step = None, step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        if trainer.sanity_checking:
            if str(self.monitor).startswith("val"):  # a name that is wrong would else cost the first interval
                self._check_monitor(trainer)
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
        is_due |= step >= trainer.max_steps > 0  # at `on_train_end` a callback may have put other weights in
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
        if AVERAGED not in checkpoint:
            frozen = frozen_names(pl_module)
            checkpoint["state_dict"] = {
                name: value for name, value in checkpoint["state_dict"].items() if name not in frozen
            }
        checkpoint["frozen_sha256"] = self._frozen_sha256

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Checks that the file fits the model.

        Raises:
            ValueError: If the file trains other weights than the model, or was made on another frozen base.
        """
        self._resumed_at = checkpoint["global_step"]
        wanted = set(pl_module.state_dict())
        wanted -= set() if AVERAGED in checkpoint else frozen_names(pl_module)
        found = set(checkpoint["state_dict"])
        if wanted != found:
            raise ValueError(
                "the checkpoint trains other weights than this model; resume with the run's model settings. "
                f"Only in the model: {sorted(wanted - found)[:3]}; "
                f"only in the file: {sorted(found - wanted)[:3]}"
            )
        if checkpoint["frozen_sha256"] != self._frozen_sha256:
            raise ValueError(
                "the frozen weights are not those that the checkpoint was trained on; resume with the model "
                "folder that the run started from"
            )

    def _check_monitor(self, trainer: Trainer) -> None:
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"checkpoint monitor {self.monitor!r} was not logged in validation; "
                f"logged: {sorted(trainer.callback_metrics)}"
            )

    def _is_best(self, trainer: Trainer) -> bool:
        self._check_monitor(trainer)
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


def frozen_sha256(module: torch.nn.Module) -> str:
    """Hash over shape and first values of every frozen parameter; cheap, and different for another base."""
    frozen = frozen_names(module)
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in frozen:
            values = parameter.detach().flatten()[:256].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()
