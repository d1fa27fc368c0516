"""What a training run leaves: model folder, metrics.json, curves; of the best checkpoint if there is one."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from search_r3.cli.model_choice import MADE_HERE, read_facts
from search_r3.cli.provenance import write_metrics
from search_r3.cli.run_log import log_written
from search_r3.cli.wandb_run import log_results, uses_wandb
from search_r3.records import read_json_if_there

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from search_r3.data.types import Benchmark, TrainingData
    from search_r3.models.embedder import ReasoningEmbedder
    from search_r3.stages.record import ValidationRecord

log = logging.getLogger(__name__)


def finish(
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
