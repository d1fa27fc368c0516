"""Evaluates a model folder and BM25: `python -m src.evaluate model.path=<folder> benchmarks=[pydocs]`.

Each benchmark and mode is written on its own and taken up again where it is already there. A second call with
the same `output_dir` adds its rows to those of the first. `modes=[bm25]` needs no model.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from search_r3.cli.command import entry_point
from search_r3.cli.entry import Entry
from search_r3.cli.evaluation_checks import check, modes_of, needed
from search_r3.cli.instantiate import instantiate
from search_r3.cli.last_resort import run_command
from search_r3.cli.provenance import provenance, write_metrics
from search_r3.cli.run_log import log_written
from search_r3.cli.wandb_run import DISABLED, log_evaluation, names_wandb, uses_wandb
from search_r3.evaluation.places import added, earlier_rows, rows_on_disk, seen_from, with_rows_on_disk

if TYPE_CHECKING:
    from search_r3.data.types import Benchmark
    from search_r3.evaluation.rankers import Model

OF_A_PLAIN_FOLDER = ("name", "prompts_file", "prompts", "embed_token")
"""Keys of `model` that `model.name` needs; the others are for what `_target_` names."""
log = logging.getLogger(__name__)


def analyzer_for(configured: str, benchmark: "Benchmark") -> str:
    """The configured BM25 analyzer; where that is "auto", the one that fits what the collection holds."""
    if configured != "auto":
        return configured
    return "code" if benchmark.holds_code else "english"


def run(config: DictConfig) -> None:
    """Evaluates every benchmark in every mode and writes metrics.json; the first process does, of several."""
    from search_r3.distributed import process_group
    from search_r3.evaluation.sharing import own_device, shared

    with process_group() as ranks:
        config.model.device = own_device(config.model.device, ranks)
        shared(ranks, lambda: _models(config), lambda load: _evaluate(config, load))


def _models(config: DictConfig) -> dict[str, "Model"]:
    """The models that the modes need."""
    needs = needed(modes_of(config))
    models = {"model": _evaluated(config)} if "model" in needs else {}
    models |= {"base": _base(config)} if "base" in needs else {}
    if config.embeddings is not None:
        models["model"] = replace(models["model"], embeddings=config.embeddings)
    return models


def _evaluate(config: DictConfig, load: Callable[[], Mapping[str, "Model"]]) -> None:
    """As `run`; `load` opens the models, once the collections are read and checked."""
    from search_r3.cli.evaluation_collections import collections, places_of
    from search_r3.data.reasonings import load_reasonings
    from search_r3.evaluation.benchmark import evaluate_benchmark
    from search_r3.evaluation.rankers import Settings
    from search_r3.evaluation.report import print_table, write_chart

    origin = provenance(seed=config.seed)
    folder = Path(config.output_dir)
    target = Path(config.metrics_file) if config.metrics_file else folder / "metrics.json"
    _earlier(folder, target)  # refused before anything is encoded where it is something else
    places = places_of(config)
    modes = modes_of(config)
    reasonings = load_reasonings(config.reasonings) if "reasonings" in needed(modes) else None
    benchmarks = collections(config, places, reasonings)
    models = load()
    new: list[dict] = []
    rows: list[dict] = []
    for benchmark in benchmarks:
        analyzer = analyzer_for(config.bm25.analyzer, benchmark)
        settings = Settings(config.top_k, analyzer, config.bm25.k1, config.bm25.b, config.seed, config.limit)
        for mode in modes:
            log.info("%s, %s", benchmark.name, mode.name)
            row = evaluate_benchmark(
                benchmark, mode, folder, settings, models.get("model"), models.get("base"), config.cache_dir,
                origin, reasonings,
            )  # fmt: skip
            new.append({**row, "folder": seen_from(target.parent, folder / row["folder"])})
            # Read and written for each, so that an interrupted evaluation shows what it has, and another one
            # that writes here meanwhile keeps its rows.
            rows = added(_earlier(folder, target), new)
            write_metrics(target, rows, origin)
        del benchmark  # a large one is not held beside the next
    print_table(rows)
    if uses_wandb(config):
        log_evaluation(config, folder, [row | {"folder": str(target.parent / row["folder"])} for row in new])
    elif names_wandb(config):
        log.info(DISABLED)
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


def _evaluated(config: DictConfig) -> "Model":
    """The model of `model.path`, or the plain folder of `model.name` with the prompts given for it."""
    from search_r3.evaluation.rankers import Model

    model = config.model
    if model.name is None:
        of_a_reader = [name for name in model if name not in OF_A_PLAIN_FOLDER]
        return Model(str(model.path), instantiate(OmegaConf.masked_copy(model, of_a_reader)))
    from search_r3.models.folder.plain import load_plain, plain_prompts
    from search_r3.models.prompts import EMBED_TOKEN, Lengths, given_lengths

    prompts = plain_prompts(model.name, model.prompts, model.prompts_file)
    lengths = Lengths(**given_lengths(model.lengths))
    token = model.embed_token or EMBED_TOKEN
    reading = (model.device, model.dtype, model.token_budget, model.attention, model.read_state)
    return Model(str(model.name), load_plain(model.name, prompts, lengths, token, *reading))


def _base(config: DictConfig) -> "Model":
    """The untuned model folder, read as the evaluated one is."""
    from search_r3.evaluation.rankers import Model
    from search_r3.models.folder import load_embedder

    model, path = config.model, config.base.path
    reading = (model.device, model.dtype, model.token_budget, model.attention, model.get("read_state", "at"))
    return Model(str(path), load_embedder(path, *reading, model.get("lengths")))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; `argv` is what follows its name, else the process's own."""
    return entry_point(Entry("evaluate", run, check), argv)


if __name__ == "__main__":
    run_command(main)
