"""A training run: data, then model, then trainer, so that a bad file is named before any weight is read.

What is left in the run folder at the end is an ordinary model folder, taken from the best checkpoint where
there is one.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from search_r3.allocator import keep_freed_memory
from search_r3.cli.devices import cpu_precision
from search_r3.cli.instantiate import instantiate
from search_r3.cli.model_choice import MADE_HERE, read_facts
from search_r3.cli.provenance import write_metrics
from search_r3.cli.ranks import is_first
from search_r3.cli.run_log import log_written
from search_r3.cli.wandb_run import DISABLED, ended, log_results, names_wandb, run_logger, uses_wandb
from search_r3.files import json_text, keep_earlier, write_text
from search_r3.folders import refuse_to_replace
from search_r3.records import read_json_if_there

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from search_r3.data.types import Benchmark, TrainingData
    from search_r3.models.embedder import ReasoningEmbedder
    from search_r3.stages.record import ValidationRecord

N_LOOKED_AT, SHARE_TOLD = 1000, 0.01
"""Rows whose texts are measured, and the share of cut ones that is told."""
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
    for line in (*_cut(trainer, datamodule, embedder), *_unvalidated(trainer, datamodule)):
        log.info("%s", line)
    with ended() if uses_wandb(config) else contextlib.nullcontext():
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
        if trainer.is_global_zero:
            _finish(config, data, embedder, datamodule, module, trainer, record, masked.summary())


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


def _cut(
    trainer: "pl.Trainer", datamodule: "pl.LightningDataModule", embedder: "ReasoningEmbedder"
) -> Iterator[str]:
    """Which texts of the rows the model reads only a part of; of many rows `N_LOOKED_AT` are looked at."""
    examples = getattr(datamodule, "examples", ())
    if not trainer.is_global_zero or not examples:
        return
    rows = examples[:: -(-len(examples) // N_LOOKED_AT)]
    texts = {
        "query": [row.query for row in rows],
        "document": [row.positive for row in rows],
        "reasoning": [row.reasoning for row in rows if row.reasoning is not None],
    }
    for kind, those in texts.items():
        n_cut = embedder.truncated_count(those, kind)
        if n_cut > SHARE_TOLD * len(those):
            yield (
                f"{n_cut} of {len(those)} rows that were looked at have a {kind} longer than "
                f"{embedder.limit(kind)}, and it is cut. A new model takes another limit by "
                f"model.lengths.{kind}="
            )


def _unvalidated(trainer: "pl.Trainer", datamodule: "pl.LightningDataModule") -> Iterator[str]:
    """Why a stage that validates will not in this run; nothing where it will."""
    if not trainer.is_global_zero or trainer.fast_dev_run or not hasattr(datamodule, "validation"):
        return
    result = "so there is no best checkpoint, and the last weights become the model"
    interval, per_batch = trainer.val_check_interval, getattr(datamodule, "updates_per_batch", 1)
    n_batches = -(-trainer.max_steps // per_batch)  # an interval is of batches, max_steps of steps
    if datamodule.validation is None:
        yield (
            f"no validation: the data set has no validation rows, {result}. Set data.validation_share above "
            "0, or give a split of its own (data.validation_split, data.sizes.validation_people)"
        )
    elif trainer.limit_val_batches == 0:
        yield f"no validation: stage.trainer.limit_val_batches=0, {result}"
    elif isinstance(interval, int) and interval > n_batches > 0:
        last = f"the last step, {n_batches}"
        if per_batch > 1:
            last = f"the last batch, {n_batches} (max_steps={trainer.max_steps}, {per_batch} steps per batch)"
        yield (
            f"no validation: stage.trainer.val_check_interval={interval} is beyond {last}, {result}. "
            f"Set it to {n_batches} or less"
        )


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


def _finish(
    config: DictConfig,
    data: "TrainingData",
    embedder: "ReasoningEmbedder",
    datamodule: "pl.LightningDataModule",
    module: "pl.LightningModule",
    trainer: "pl.Trainer",
    record: "ValidationRecord",
    masked: dict[str, dict[str, float]],
) -> None:
    """Model folder and metrics.json, both of the best checkpoint where there is one."""
    from search_r3.cli.curves import drawn_curves
    from search_r3.models.folder import save_embedder
    from search_r3.stages.record import metrics_by_mode

    folder = Path(config.output_dir)
    origin = read_json_if_there(folder / "provenance.json")
    origin.pop("config_sha256", None)  # of the folder and not of the weights
    written = [folder / "metrics.json", folder / "csv" / "metrics.csv"]
    best_step = None
    if not trainer.fast_dev_run:
        best_step = _load_best(folder, module)
        facts = {"stage": config.stage.name, "data": data.name, "step": best_step or trainer.global_step}
        facts |= {"base_model": _base_model(config.model), "data_licence": _licence(data.card)}
        facts |= {"losses": record.losses, "validation": metrics_by_mode(record.at(best_step))}
        save_embedder(embedder, folder / "model", origin | facts, config.save_dtype)
        written.insert(0, folder / "model")
    measured_on = getattr(datamodule, "validation", None)  # what is left of data.validation after thinning
    rows = _rows(folder, measured_on, record.at(best_step))
    write_metrics(folder / "metrics.json", rows, origin, {"false_negatives": masked} if masked else None)
    if uses_wandb(config):
        log_results(config, trainer.loggers[-1], folder, rows)
    if curves := drawn_curves(folder):
        written.append(curves)
    log_written(*written)


def _licence(card: Mapping[str, Any]) -> str | None:
    """The licence that a data card states; of a mixture, that of each source."""
    if "sources" not in card:
        return card.get("licence")
    licences = {name: _licence(source) for name, source in card["sources"].items()}
    return " ".join(f"{name}: {licence}" for name, licence in licences.items() if licence) or None


def _base_model(model: DictConfig) -> str | None:
    """The pretrained model at the root of the lineage: a hub name, an absolute path, or `MADE_HERE` and the
    function that made it; None where the folder that the run started from does not say."""
    if model.get("path") is not None:
        facts = read_facts(model.path)
        return None if facts is None else facts.base
    if model.get("name") is not None:
        return str(Path(model.name).resolve()) if Path(model.name).exists() else model.name
    return f"{MADE_HERE}{model.create['_target_']}"


def _load_best(folder: Path, module: "pl.LightningModule") -> int | None:
    """Puts the weights of the best checkpoint back and returns its step; None where there is none.

    Raises:
        CheckpointError: If it is damaged.
        ValueError: If the file holds weights that the module does not have.
    """
    from search_r3.stages.checkpoint_files import BEST, check, read

    best = folder / "checkpoints" / BEST
    if not best.exists():
        return None
    if best.is_dir():
        log.warning("%s is sharded; the model is the last one, not the best", best)
        return None
    check(best)
    checkpoint = read(best, map_location="cpu")
    unexpected = module.load_state_dict(checkpoint["state_dict"], strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"{best} holds weights that the module does not have: {', '.join(unexpected[:3])}")
    log.info("the model is taken from step %d, the best validation", checkpoint["global_step"])
    return checkpoint["global_step"]


def _rows(folder: Path, measured_on: "Benchmark | None", logged: dict[str, float]) -> list[dict]:
    """One row per mode that was validated; empty where the stage validates nothing."""
    from search_r3.stages.record import metrics_by_mode

    return [
        {
            "benchmark": measured_on.name if measured_on else "validation",
            "mode": mode,
            "model": str(folder / "model"),
            "n_queries": len(measured_on.queries) if measured_on else 0,
            "n_docs": len(measured_on.corpus) if measured_on else 0,
            "metrics": metrics,
        }
        for mode, metrics in metrics_by_mode(logged).items()
    ]
