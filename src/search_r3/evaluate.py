"""Evaluates a model folder and BM25: `python -m src.evaluate model.path=<folder> benchmarks=[pydocs]`.

Each benchmark and mode is written on its own and taken up again where it is already there. A second call with
the same `output_dir` adds its rows to those of the first. `modes=[bm25]` needs no model.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, ListConfig

from search_r3.cli.command import entry_point
from search_r3.cli.instantiate import instantiate
from search_r3.cli.overrides import did_you_mean
from search_r3.cli.run_folder import log_written, provenance, write_metrics
from search_r3.errors import UsageError
from search_r3.evaluation.modes import MODES, NEED_BASE, NEED_NO_MODEL, NEED_REASONINGS
from search_r3.evaluation.places import (
    added,
    collection_path,
    earlier_rows,
    rows_on_disk,
    seen_from,
    with_rows_on_disk,
)

if TYPE_CHECKING:
    from search_r3.data.types import Benchmark
    from search_r3.evaluation.benchmark import Model

log = logging.getLogger(__name__)


def check(config: DictConfig, is_sweep: bool) -> None:
    """Refuses what cannot be evaluated, before anything is loaded.

    Raises:
        UsageError: With the choices.
    """
    for mode in listed(config, "modes"):
        if mode not in MODES:
            raise UsageError(f"modes: {mode} does not exist. Choices: {', '.join(MODES)}")
    benchmarks = listed(config, "benchmarks")
    if not NEED_NO_MODEL.issuperset(config.modes):
        _check_model("model.path", config.model.path)
    if not NEED_BASE.isdisjoint(config.modes):
        _check_model("base.path", config.base.path)
    if not NEED_REASONINGS.isdisjoint(config.modes):
        if config.reasonings is None:
            raise UsageError(
                "reasonings= is needed by these modes: a JSONL file of _id (of a query) and text"
            )
        if not Path(config.reasonings).is_file():
            raise UsageError(f"reasonings={config.reasonings}: no such file")
    if config.bm25.analyzer not in ("auto", "english", "code"):
        raise UsageError(f"bm25.analyzer={config.bm25.analyzer} does not exist. Choices: auto, english, code")
    if not isinstance(config.bm25.code, ListConfig):
        raise UsageError(f"bm25.code={config.bm25.code}: a list is needed, as bm25.code=[{config.bm25.code}]")
    for name in benchmarks:
        if name != config.held_out:
            _check_collection(config, name)
    _check_output(config)


def listed(config: DictConfig, key: str) -> list[str]:
    """The names of a list, each once; collections by the path that leads to them.

    Raises:
        UsageError: If it is no list, is empty, or names something twice.
    """
    if not isinstance(config[key], ListConfig):
        raise UsageError(f"{key}={config[key]}: a list is needed, as {key}=[{config[key]}]")
    names = [str(name) for name in config[key]]
    if not names:
        raise UsageError("modes= and benchmarks= need at least one entry each")
    if key == "benchmarks":
        try:
            names = [collection_path(name) for name in names]
        except ValueError as error:
            raise UsageError(f"benchmarks: {error}") from None
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{key}: {twice} is named twice; one row is written of it, so name it once")
    return names


def _check_model(key: str, path: str | None) -> None:
    if path is None:
        raise UsageError(f"{key}= is needed by these modes: the model folder that a training run wrote")
    if not (Path(path) / "search_r3.json").is_file():
        raise UsageError(f"{key}={path}: not a model folder (it has no search_r3.json)")


def _check_collection(config: DictConfig, name: str) -> None:
    if config.beir_dir is None:
        raise UsageError(
            f"benchmarks: {name} needs beir_dir=, the folder that holds it; or data={name}, if there is such "
            f"a choice: with this data= the embedded collection is {config.held_out}"
        )
    root = Path(config.beir_dir)
    if not root.is_dir():
        raise UsageError(f"beir_dir={root}: no such folder")
    if not (root / name / "qrels").is_dir():
        found = sorted(folder.parent.relative_to(root).as_posix() for folder in _with_judgements(root))
        known = [config.held_out, *found]
        raise UsageError(
            f"benchmarks: {name} is not in {root}.{did_you_mean(name, known)} Choices: {', '.join(known)}"
        )
    from search_r3.data.beir.layout import available_splits

    if config.split not in (splits := available_splits(root / name)):
        raise UsageError(f"split={config.split}: {name} has no such split. Choices: {', '.join(splits)}")


def _with_judgements(root: Path) -> list[Path]:
    """The folders of judgements of the collections in `root`, and of those one level further down."""
    return [*root.glob("*/qrels"), *root.glob("*/*/qrels")]


def _check_output(config: DictConfig) -> None:
    """Refuses to write over what is no evaluation's."""
    if config.metrics_file is not None:
        file = Path(config.metrics_file)
        if file.suffix != ".json" or file.is_dir():
            raise UsageError(
                f"metrics_file={file}: a file that ends in .json is needed; its chart lies beside it"
            )
    if config.output_dir is not None:
        stored = Path(config.output_dir) / "config.yaml"
        if stored.is_file() and re.search(
            r"^stage:", stored.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        ):
            raise UsageError(
                f"output_dir={config.output_dir} is the folder of a training run, whose config.yaml and "
                "metrics.json would be replaced; give a folder of its own"
            )


def analyzer_for(configured: str, benchmark: "Benchmark") -> str:
    """The configured BM25 analyzer; where that is "auto", the one that fits what the collection holds."""
    if configured != "auto":
        return configured
    return "code" if benchmark.holds_code else "english"


def run(config: DictConfig) -> None:
    """Evaluates every benchmark in every mode and writes metrics.json."""
    from search_r3.data.reasonings import load_reasonings
    from search_r3.evaluation.benchmark import Settings, evaluate_benchmark
    from search_r3.evaluation.report import print_table, write_chart

    origin = provenance(seed=config.seed)
    folder = Path(config.output_dir)
    target = Path(config.metrics_file) if config.metrics_file else folder / "metrics.json"
    _earlier(folder, target)  # refused before anything is encoded where it is something else
    benchmarks = [_benchmark(config, name) for name in listed(config, "benchmarks")]
    model = None if NEED_NO_MODEL.issuperset(config.modes) else _load(config, config.model.path)
    base = None if NEED_BASE.isdisjoint(config.modes) else _load(config, config.base.path)
    reasonings = None if NEED_REASONINGS.isdisjoint(config.modes) else load_reasonings(config.reasonings)
    new: list[dict] = []
    rows: list[dict] = []
    for benchmark in benchmarks:
        analyzer = analyzer_for(config.bm25.analyzer, benchmark)
        settings = Settings(config.top_k, analyzer, config.bm25.k1, config.bm25.b, config.seed, config.limit)
        for mode in config.modes:
            log.info("%s, %s", benchmark.name, mode)
            row = evaluate_benchmark(
                benchmark, mode, folder, settings, model, base, config.cache_dir, origin, reasonings
            )
            new.append({**row, "folder": seen_from(target.parent, folder / row["folder"])})
            # Read and written for each, so that an interrupted evaluation shows what it has, and another one
            # that writes here meanwhile keeps its rows.
            rows = added(_earlier(folder, target), new)
            write_metrics(target, rows, origin)
    print_table(rows)
    log_written(target, write_chart(rows, target.with_suffix(".png")))


def _earlier(folder: Path, target: Path) -> list[dict]:
    """The rows of earlier calls: those of the file, and those in the folder.

    Raises:
        PlaceError: If the file is something else.
    """
    rows = earlier_rows(target)
    if target.resolve() != (folder / "metrics.json").resolve():
        return rows
    return with_rows_on_disk(rows, rows_on_disk(folder), target)


def _benchmark(config: DictConfig, name: str) -> "Benchmark":
    if name == config.held_out:
        data = instantiate(config.data)
        if data.test is None:
            raise ValueError(f"data set {data.name!r} has no test collection")
        return data.test
    from search_r3.data.beir.benchmark import load_benchmark

    return load_benchmark(
        Path(config.beir_dir) / name,
        name=name,
        split=config.split,
        remove_self_match=config.remove_self_match,
        allow_unmatched_judgements=config.allow_unmatched_judgements,
        holds_code=name.rpartition("/")[2] in config.bm25.code,
    )


def _load(config: DictConfig, path: str) -> "Model":
    from search_r3.evaluation.benchmark import Model
    from search_r3.models.folder import load_embedder

    model = config.model
    embedder = load_embedder(path, model.device, model.dtype, model.token_budget, model.attention)
    return Model(str(path), embedder)


def command(argv: Sequence[str] | None = None) -> None:
    """Runs the command and ends the process; `argv` is what follows its name, else the process's own."""
    entry_point("evaluate", run, check, argv=argv)


if __name__ == "__main__":
    command()
