"""Evaluates a model folder and BM25: `python -m src.evaluate model.path=<folder> benchmarks=[pydocs]`.

Each benchmark and mode is written on its own and taken up again where it is already there. `modes=[bm25]`
needs no model.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from src.command_line import UsageError, did_you_mean
from src.evaluation.modes import MODES, NEED_BASE, NEED_NO_MODEL
from src.run_folder import provenance, write_metrics
from src.runtime import entry_point, instantiate

if TYPE_CHECKING:
    from src.data.types import Benchmark
    from src.evaluation.benchmark import Model

log = logging.getLogger(__name__)

READS_CODE = ("pydocs", "cosqa")


def check(config: DictConfig, is_sweep: bool) -> None:
    """Refuses what cannot be evaluated, before anything is loaded.

    Raises:
        UsageError: With the choices.
    """
    for mode in config.modes:
        if mode not in MODES:
            raise UsageError(f"modes: {mode} does not exist. Choices: {', '.join(MODES)}")
    if not config.modes or not config.benchmarks:
        raise UsageError("modes= and benchmarks= need at least one entry each")
    if not NEED_NO_MODEL.issuperset(config.modes):
        _check_model("model.path", config.model.path)
    if not NEED_BASE.isdisjoint(config.modes):
        _check_model("base.path", config.base.path)
    if config.bm25.analyzer not in ("auto", "english", "code"):
        raise UsageError(f"bm25.analyzer={config.bm25.analyzer} does not exist. Choices: auto, english, code")
    for name in config.benchmarks:
        if name != embedded(config):
            _check_collection(config, name)


def embedded(config: DictConfig) -> str:
    """The name of the collection that `data=` holds out: that of its reader, `load_<name>`."""
    return str(config.data._target_).rpartition(".load_")[2]


def _check_model(key: str, path: str | None) -> None:
    if path is None:
        raise UsageError(f"{key}= is needed by these modes: the model folder that a training run wrote")
    if not (Path(path) / "search_r3.json").is_file():
        raise UsageError(f"{key}={path}: not a model folder (it has no search_r3.json)")


def _check_collection(config: DictConfig, name: str) -> None:
    if config.beir_dir is None:
        raise UsageError(
            f"benchmarks: {name} needs beir_dir=, the folder that holds it; or data={name}, if there is such "
            f"a choice: with this data= the embedded collection is {embedded(config)}"
        )
    root = Path(config.beir_dir)
    if not root.is_dir():
        raise UsageError(f"beir_dir={root}: no such folder")
    found = sorted(folder.parent.name for folder in root.glob("*/qrels"))
    if name not in found:
        known = [embedded(config), *found]
        raise UsageError(
            f"benchmarks: {name} is not in {root}.{did_you_mean(name, known)} Choices: {', '.join(known)}"
        )


def analyzer_for(configured: str, benchmark: str) -> str:
    """The configured BM25 analyzer; where that is "auto", the one that fits what the collection holds."""
    if configured != "auto":
        return configured
    return "code" if benchmark in READS_CODE else "english"


def run(config: DictConfig) -> None:
    """Evaluates every benchmark in every mode and writes metrics.json."""
    from src.evaluation.benchmark import Settings, evaluate_benchmark
    from src.evaluation.report import print_table, write_chart

    origin = provenance(seed=config.seed)
    benchmarks = [_benchmark(config, name) for name in config.benchmarks]
    model = None if NEED_NO_MODEL.issuperset(config.modes) else _load(config, config.model.path)
    base = None if NEED_BASE.isdisjoint(config.modes) else _load(config, config.base.path)
    folder = Path(config.output_dir)
    target = Path(config.metrics_file) if config.metrics_file else folder / "metrics.json"
    rows = []
    for name, benchmark in zip(config.benchmarks, benchmarks, strict=True):
        analyzer = analyzer_for(config.bm25.analyzer, name)
        settings = Settings(config.top_k, analyzer, config.bm25.k1, config.bm25.b, config.seed, config.limit)
        for mode in config.modes:
            log.info("%s, %s", benchmark.name, mode)
            rows.append(evaluate_benchmark(benchmark, mode, folder, settings, model, base, config.cache_dir))
            # Written after each, so that an interrupted evaluation shows what it has.
            write_metrics(target, rows, origin)
    print_table(rows)
    log.info("wrote %s", target)
    log.info("wrote %s", write_chart(rows, target.with_suffix(".png")))


def _benchmark(config: DictConfig, name: str) -> "Benchmark":
    if name == embedded(config):
        data = instantiate(config.data)
        if data.test is None:
            raise ValueError(f"data set {data.name!r} has no test collection")
        return data.test
    from src.data.beir import load_benchmark

    return load_benchmark(Path(config.beir_dir) / name, split=config.split)


def _load(config: DictConfig, path: str) -> "Model":
    from src.evaluation.benchmark import Model
    from src.models.folder import load_embedder

    model = config.model
    embedder = load_embedder(path, model.device, model.dtype, model.token_budget, model.attention)
    return Model(str(path), embedder)


if __name__ == "__main__":
    entry_point("evaluate", run, check)
