"""Evaluates a model folder and BM25: `python -m src.evaluate model.path=<folder> benchmarks=[pydocs]`.

Each benchmark and mode is written on its own and taken up again where it is already there. A second call with
the same `output_dir` adds its rows to those of the first. `modes=[bm25]` needs no model.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from search_r3.cli.command import entry_point
from search_r3.cli.evaluation_checks import (
    absent,
    benchmarks_of,
    bright_copy,
    check,
    is_fetched,
    is_group,
    listed,
    modes_of,
    needed,
    split_of,
)
from search_r3.cli.instantiate import instantiate
from search_r3.cli.run_folder import log_written, provenance, write_metrics
from search_r3.cli.wandb_run import log_evaluation, uses_wandb
from search_r3.errors import UsageError
from search_r3.evaluation.beir_collections import SOURCE, difference_text
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
        needs = needed(modes_of(config))
        models = {"model": _evaluated(config)} if "model" in needs else {}
        models |= {"base": _base(config)} if "base" in needs else {}
        if config.embeddings is not None:
            models["model"] = replace(models["model"], embeddings=config.embeddings)
        shared(ranks, models, lambda of_all: _evaluate(config, of_all))


def _evaluate(config: DictConfig, models: Mapping[str, "Model"]) -> None:
    """As `run`, with the models that the modes need."""
    from search_r3.data.reasonings import load_reasonings
    from search_r3.evaluation.benchmark import evaluate_benchmark
    from search_r3.evaluation.rankers import Settings
    from search_r3.evaluation.report import print_table, write_chart

    origin = provenance(seed=config.seed)
    folder = Path(config.output_dir)
    target = Path(config.metrics_file) if config.metrics_file else folder / "metrics.json"
    _earlier(folder, target)  # refused before anything is encoded where it is something else
    places = _places(config)
    modes = modes_of(config)
    needs = needed(modes)
    reasonings = load_reasonings(config.reasonings) if "reasonings" in needs else None
    if reasonings is not None:
        _check_reasonings(config, places, reasonings)
    _check_later(config, places)
    new: list[dict] = []
    rows: list[dict] = []
    for name, place in places.items():  # one at a time: a large one is not held beside the next
        benchmark = _benchmark(config, name, place)
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
    print_table(rows)
    if uses_wandb(config):
        log_evaluation(config, folder, [row | {"folder": str(target.parent / row["folder"])} for row in new])
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


def _places(config: DictConfig) -> dict[str, Path | None]:
    """The folders of all collections by name, the ones of the hub fetched; None for the one of `data=`.

    Raises:
        UsageError: With all that cannot be had and how it would be, where one was asked for by its name.
    """
    places: dict[str, Path | None] = {}
    lacking: dict[str, str] = {}
    is_offline = False  # once the hub did not answer, what is in its cache is all there is
    for name in benchmarks_of(config):
        if not is_fetched(config, name):
            places[name] = None if name == config.held_out else Path(config.beir_dir) / name
            continue
        from search_r3.data.beir.hub import HubError, from_hub

        try:
            copy = bright_copy(config, name)
            places[name] = from_hub(name, config.collections_dir, copy, is_offline)
        except HubError as error:
            lacking[name], is_offline = str(error), is_offline or error.is_unreachable
    asked = listed(config, "benchmarks")
    if lacking:
        text = (
            f"{', '.join(lacking)}: not in beir_dir={config.beir_dir}, and not to be had from the hub: "
            f"{next(iter(lacking.values()))}. Get the archives, {SOURCE.format('<name>')} (of BRIGHT: "
            "huggingface.co/datasets/xlangai/BRIGHT), and unpack them in the folder of beir_dir=; or run "
            "once where the hub can be reached, whose cache (HF_HOME) serves later"
        )
        if not places or any(name in lacking for name in asked):
            raise UsageError(f"benchmarks: {text}")
        log.warning("not evaluated: %s", text)
    for group in asked if not config.hub else ():
        if is_group(config, group) and (names := absent(config, group)):
            log.warning("not evaluated, since they are not there: %s", names)
    return places


def _check_later(config: DictConfig, places: Mapping[str, Path | None]) -> None:
    """Reads every collection but the first, so that a bad line of one ends no evaluation of hours.

    What there is to warn of is said when it is evaluated.

    Raises:
        DataError: As `_benchmark`.
    """
    readers = logging.getLogger("search_r3.data")
    level = readers.level
    readers.setLevel(logging.ERROR)
    try:
        for name, place in list(places.items())[1:]:
            _read(config, name, place)
    finally:
        readers.setLevel(level)


def _check_reasonings(
    config: DictConfig, places: Mapping[str, Path | None], reasonings: Mapping[str, str]
) -> None:
    """Refuses a file that has no text for a query of some collection, before the first one is evaluated.

    Raises:
        DataError: With the file and the collection.
    """
    from search_r3.data.beir.layout import qrels_file
    from search_r3.data.beir.qrels import judged_queries
    from search_r3.data.reasonings import check_some

    for name, place in places.items():
        if place is None:
            asked = _benchmark(config, name, place).queries
        else:
            asked = judged_queries(qrels_file(place, split_of(config, name)))
        check_some(config.reasonings, reasonings, asked, name)


def _benchmark(config: DictConfig, name: str, place: Path | None) -> "Benchmark":
    benchmark = _read(config, name, place)
    if place is not None and (told := difference_text(benchmark, split_of(config, name))):
        log.warning(told)
    return benchmark


def _read(config: DictConfig, name: str, place: Path | None) -> "Benchmark":
    if place is None:
        data = instantiate(config.data)
        collection = data.test if config.part == "test" else data.validation
        if collection is None:
            raise ValueError(f"data set {data.name!r} has no {config.part} collection")
        return collection
    from search_r3.data.beir.benchmark import load_benchmark

    return load_benchmark(
        place,
        name=name,
        split=split_of(config, name),
        remove_self_match=config.remove_self_match,
        allow_unmatched_judgements=config.allow_unmatched_judgements,
        in_memory_mib=config.in_memory_mib,
        holds_code=name.rpartition("/")[2] in config.bm25.code,
    )


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


def command(argv: Sequence[str] | None = None) -> None:
    """Runs the command and ends the process; `argv` is what follows its name, else the process's own."""
    entry_point("evaluate", run, check, argv=argv)


if __name__ == "__main__":
    command()
