"""A training run: data, then model, then trainer, so that a bad file is named before any weight is read.

What it leaves at the end is in `training_results`.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from search_r3.allocator import keep_freed_memory
from search_r3.cli.devices import cpu_precision
from search_r3.cli.instantiate import instantiate
from search_r3.cli.ranks import is_first
from search_r3.cli.training_notes import cut, unvalidated
from search_r3.cli.training_results import finish
from search_r3.cli.wandb_run import DISABLED, ended, names_wandb, run_logger, uses_wandb
from search_r3.files import json_text, keep_earlier, write_text
from search_r3.folders import refuse_to_replace

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from search_r3.data.types import TrainingData
    from search_r3.models.embedder import ReasoningEmbedder

log = logging.getLogger(__name__)


def run(config: DictConfig, extra_callbacks: Sequence["pl.Callback"] = ()) -> None:
    """Trains the configured stage in `config.output_dir` and leaves model, metrics and checkpoints there.

    Args:
        config: composed; `output_dir` is the run folder, `resume` is set where a run goes on.
        extra_callbacks: of the caller, as the pruning of a search.
    """
    import pytorch_lightning as pl
    from transformers.utils import logging as transformers_logging

    from search_r3.stages.appended import Records
    from search_r3.stages.callbacks import FalseNegatives
    from search_r3.stages.record import ValidationRecord

    transformers_logging.disable_progress_bar()
    keep_freed_memory()
    folder = Path(config.output_dir)
    refuse_to_replace(folder / "model")  # also where no command line named the folder
    pl.seed_everything(config.seed, workers=True, verbose=False)
    _check_settings(config.stage)
    callbacks = instantiate(config.stage.get("callbacks") or OmegaConf.create({}))
    data: TrainingData = instantiate(config.data)
    _write_card(folder, data)
    embedder = instantiate(config.model, texts=data.texts, prompts_file=folder / "prompts.json")
    config = _measured(config, embedder, data)
    datamodule = instantiate(config.stage.datamodule, data=data, embedder=embedder)
    module = instantiate(config.stage.module, embedder=embedder)
    checkpoint = _last_checkpoint(folder) if config.resume else None
    record, masked = ValidationRecord(), FalseNegatives()
    trainer = _trainer(config, folder, callbacks, [record, masked, Records(), *extra_callbacks])
    for line in (*cut(trainer, datamodule, embedder), *unvalidated(trainer, datamodule)):
        log.info("%s", line)
    with ended() if uses_wandb(config) else contextlib.nullcontext():
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
        if trainer.is_global_zero:
            finish(config, data, embedder, datamodule, module, trainer, record, masked.summary())


def _measured(config: DictConfig, embedder: "ReasoningEmbedder", data: "TrainingData") -> DictConfig:
    """The configuration with the precision that is fastest here, and the embedder with the attention, where
    the run leaves them to a measurement."""
    from search_r3.models.measured import MEASURED, Way, settled, ways

    precision, attention = config.strategy.get("precision"), config.model.get("attention")
    if MEASURED not in (precision, attention):
        return config
    own = embedder.causal_lm.config._attn_implementation
    choices = ways(precision, attention or own, Way(cpu_precision(), "eager"))
    way, speeds = settled(Path(config.output_dir) / "measured.json", embedder, data.corpus.texts, choices)
    log.info(
        "measured here: precision %s and attention %s, of %s", way.precision, way.attention,
        ", ".join(f"{each.precision} {each.attention} {speed:,.0f}" for each, speed in speeds.items())
        + " tokens/s",
    )  # fmt: skip
    embedder.causal_lm.set_attn_implementation(way.attention)
    config = config.copy()
    config.strategy.precision = way.precision
    return config


def _check_settings(stage: DictConfig) -> None:
    """Builds what needs neither data nor model, so that a number out of range costs no reading of either."""
    for part in (stage.module, stage.datamodule):
        for name in part:
            if OmegaConf.is_dict(part[name]) and "_target_" in part[name]:
                instantiate(part[name])


def _write_card(folder: Path, data: "TrainingData") -> None:
    if is_first():
        content = json_text({"name": data.name, "examples": len(data.examples), **data.card})
        keep_earlier(folder / "data_card.json", content)
        write_text(folder / "data_card.json", content)


def _last_checkpoint(folder: Path) -> Path | None:
    from search_r3.stages.checkpoint_files import LAST, latest

    path = latest(folder / "checkpoints")
    if path is None:
        log.info("no checkpoint in %s yet; starting from the first step", folder)
    elif path.name == LAST:
        log.info("resuming from %s", path)
    else:
        log.warning("resuming from %s: there is no %s", path, LAST)
    return path


def reached_step(folder: Path) -> int | None:
    """The optimizer step of a run folder's last checkpoint; None where there is none.

    Raises:
        CheckpointError: If it cannot be read.
    """
    from search_r3.stages.checkpoint_files import latest, step_of

    path = latest(folder / "checkpoints")
    return None if path is None else step_of(path)


def _trainer(
    config: DictConfig,
    folder: Path,
    callbacks: Mapping[str, "pl.Callback"],
    extra_callbacks: Sequence["pl.Callback"],
) -> "pl.Trainer":
    import pytorch_lightning as pl

    from search_r3.stages.callbacks import LastLine
    from search_r3.stages.interruption import HeedSignals
    from search_r3.stages.precision import cache_casts
    from search_r3.stages.progress import StepProgress

    arguments = {
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "enable_checkpointing": any(isinstance(each, pl.callbacks.Checkpoint) for each in callbacks.values()),
    }
    for node in (config.strategy, config.stage.trainer, config.debug):
        arguments |= instantiate(node)
    trainer = pl.Trainer(
        default_root_dir=folder.absolute(),  # Lightning would expand a ~ at the start of a relative path
        logger=_loggers(config, folder),
        callbacks=[*callbacks.values(), HeedSignals(), StepProgress(), LastLine(), *extra_callbacks],
        **arguments,
    )
    cache_casts(trainer)
    return trainer


def _loggers(config: DictConfig, folder: Path) -> list["pl.loggers.Logger"]:
    from search_r3.stages.appended import MetricsTable

    loggers = [MetricsTable(folder / "csv")]
    if uses_wandb(config):
        loggers.append(run_logger(config, folder))
    elif names_wandb(config):
        log.info(DISABLED)
    elif config.logger.get("_target_"):
        loggers.append(instantiate(config.logger))
    return loggers
