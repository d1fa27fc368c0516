"""What goes to Weights & Biases: one run for each run folder, which whatever comes later joins.

The id stands in `<run>/wandb.json`, so that a resumed run goes on under it, wherever its folder lies by then,
and an evaluation of the run's model is added to it. Sweeps and searches group their runs.
"""

import contextlib
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from search_r3.cli.instantiate import instantiate
from search_r3.cli.run_folder import is_sweep
from search_r3.data.jsonl import numbered_lines, parse_object
from search_r3.errors import UsageError
from search_r3.evaluation.results import PER_QUERY, REASONING
from search_r3.files import removal, write_json
from search_r3.records import checked, read_json_if_there

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger

log = logging.getLogger(__name__)
RECORD = "wandb.json"
MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")
"""Of wandb, which knows the last two as older names of offline and online."""
DISABLED = "WANDB_MODE=disabled: nothing goes to Weights & Biases"
N_QUERIES = 200
"""Of an evaluation, that a table shows with what was written about them."""
COLUMNS = ("benchmark", "mode", "model", "n_queries", "n_docs")
FACTS = ("command", "commit", "seed", "stage", "data", "step", "base_model")
"""Of a model, that its artifact states."""
PRICES = ("seconds_per_query", "tokens_per_query", "missing_embed_token")


def names_wandb(config: DictConfig) -> bool:
    """Whether `logger=wandb` was chosen."""
    return str(config.logger.get("_target_", "")).endswith("WandbLogger")


def uses_wandb(config: DictConfig) -> bool:
    """Whether `logger=wandb` was chosen, and the environment does not say `WANDB_MODE=disabled`."""
    return names_wandb(config) and os.environ.get("WANDB_MODE") != "disabled"


def check_wandb(config: DictConfig) -> None:
    """Refuses a mode in the environment that wandb would refuse once the run has begun.

    Raises:
        UsageError: With the choices.
    """
    mode = os.environ.get("WANDB_MODE")
    if names_wandb(config) and mode and mode not in MODES:
        raise UsageError(f"WANDB_MODE={mode} in the environment: choices are {', '.join(MODES)}")


def run_logger(config: DictConfig, folder: Path) -> "WandbLogger":
    """The logger of a training run, which begins its run of Weights & Biases or goes on with it."""
    record = _record(folder, "/".join(folder.parts[-2:]), _group(folder))
    settings = OmegaConf.to_container(config, resolve=True)
    return _logger(config.logger, folder, record, config=settings)


def _record(folder: Path, name: str, group: str | None = None) -> dict:
    """Id, name and group of the run of a folder; made where there is none.

    Raises:
        RecordError: If the file is damaged.
    """
    file = folder / RECORD
    remedy = f"a new run of Weights & Biases begins without it: {removal(file)}"
    record = read_json_if_there(file, remedy)
    if not record:
        record = {"id": uuid.uuid4().hex[:12], "name": name, "group": group}
        write_json(file, record)
    is_id = lambda value: isinstance(value, str) and re.fullmatch(r"[\w-]{1,64}", value)  # noqa: E731
    checked(file, record, "id", is_id, "up to 64 letters, digits, _ and -", remedy)
    for key in ("name", "group"):
        checked(file, record, key, lambda value: isinstance(value, str | None), "a text or null", remedy)
    return record


def _group(folder: Path) -> str | None:
    """The sweep or search that a run belongs to, by the last two parts of its folder; else None."""
    return "/".join(folder.parent.parts[-2:]) if is_sweep(folder.parent) else None


def _logger(node: DictConfig, folder: Path, record: Mapping, **arguments: object) -> "WandbLogger":
    os.environ.setdefault("WANDB_SILENT", "true")
    return instantiate(
        node,
        offline=False,  # by which Lightning would set WANDB_MODE, for the next run of this process too
        mode=_mode(node),
        save_dir=str(folder),
        id=record["id"],
        name=record["name"],
        group=record["group"],
        resume="allow",
        log_model=False,  # of checkpoints, which serve to resume; `log_results` sends the model folder
        **arguments,
    )


def _mode(node: DictConfig) -> str | None:
    """What wandb is told of the mode; None where its own variable says it."""
    if "mode" in node:
        return node.mode
    return "offline" if node.offline and not os.environ.get("WANDB_MODE") else None


@contextlib.contextmanager
def ended() -> Iterator[None]:
    """Ends this process's run of Weights & Biases, if there is one: as failed where an exception passes."""
    import wandb

    try:
        yield
    except BaseException:
        wandb.finish(exit_code=1)
        raise
    wandb.finish()


def log_results(config: DictConfig, logger: "WandbLogger", folder: Path, rows: Sequence[Mapping]) -> None:
    """What a training run came to: the rows of its metrics.json as a table, and the model as an artifact.

    Args:
        config: of the run; `logger.log_model=false` leaves the model out.
        logger: what `run_logger` gave.
        folder: of the run.
        rows: of metrics.json.
    """
    _log_rows(logger, "validation", rows)
    if config.logger.log_model and (folder / "model").is_dir():
        _log_model(logger, folder / "model")


def _log_model(logger: "WandbLogger", model: Path) -> None:
    """Adds the model folder, read where it lies and not copied before."""
    import wandb

    files = [path for path in model.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    origin = read_json_if_there(model / "search_r3.json").get("provenance", {})
    facts = {key: origin[key] for key in FACTS if key in origin}
    run = logger.experiment
    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata={**facts, "bytes": size})
    artifact.add_dir(str(model), skip_cache=True, policy="immutable")
    run.log_artifact(artifact)
    told = "the model is an artifact of %.1f MB in %d files; logger.log_model=false leaves it out"
    log.info(f"Weights & Biases: {told}", size / 1e6, len(files))


def _log_rows(logger: "WandbLogger", name: str, rows: Sequence[Mapping]) -> None:
    """Rows of a metrics.json as a table, and their numbers in the summary under `<name>/`."""
    if not rows:
        return
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["metrics"]))
    columns = [*COLUMNS, *metrics, "ndcg@10 low", "ndcg@10 high", *PRICES]
    cells = [
        [
            *(row[key] for key in COLUMNS),
            *(row["metrics"].get(metric) for metric in metrics),
            *row.get("ci95", {}).get("ndcg@10", (None, None)),
            *(row.get(key) for key in PRICES),
        ]
        for row in rows
    ]
    logger.log_table(key=f"{name}/rows", columns=columns, data=cells)
    for row in rows:
        for metric, value in row["metrics"].items():
            logger.experiment.summary[f"{name}/{row['benchmark']}/{row['mode']}/{metric}"] = value


def log_evaluation(config: DictConfig, folder: Path, rows: Sequence[Mapping]) -> None:
    """Adds rows of an evaluation to the run of its model, or begins a run where that has none.

    Args:
        config: of the evaluation; `model.path` says which run, by the folder that the model lies in.
        folder: of the evaluation; what is sent later lies in it.
        rows: with `folder` as seen from the working folder.
    """
    with ended():
        owner = Path(config.model.path).parent if config.model.path else folder
        record = _record(owner if (owner / RECORD).is_file() else folder, "/".join(folder.parts[-2:]))
        logger = _logger(config.logger, folder, record)
        _log_rows(logger, "evaluation", rows)
        for row in rows:
            columns, cells = _queries(Path(row["folder"]))
            logger.log_table(
                key=f"evaluation/{row['benchmark']}/{Path(row['folder']).name}", columns=columns, data=cells
            )
        log.info("Weights & Biases: %d rows are added to run %s", len(rows), record["id"])


def _queries(folder: Path) -> tuple[list[str], list[list]]:
    """The first queries of a row, with their scores and what was written about them."""
    written = {}
    if (folder / REASONING).is_file():
        lines = _first(folder / REASONING)
        written = {line["query_id"]: line["reasoning"] for line in lines}
    lines = _first(folder / PER_QUERY)
    metrics = [key for key in lines[0] if key not in ("query_id", "query")]
    columns = ["query_id", "query", *metrics, "reasoning"]
    cells = [
        [
            line["query_id"],
            line["query"],
            *(line[metric] for metric in metrics),
            written.get(line["query_id"]),
        ]
        for line in lines
    ]
    return columns, cells


def _first(file: Path) -> list[dict]:
    """The first lines of a file, both files of a row having the queries in one order."""
    lines = zip(range(N_QUERIES), numbered_lines(file), strict=False)
    return [parse_object(text, file, number) for _, (number, text) in lines]
