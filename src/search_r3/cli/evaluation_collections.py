"""The collections of an evaluation: where they are, each read and checked before the first is evaluated."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from omegaconf import DictConfig

from search_r3.cli.evaluation_checks import (
    absent,
    benchmarks_of,
    bright_copy,
    is_fetched,
    is_group,
    listed,
    split_of,
)
from search_r3.cli.instantiate import instantiate
from search_r3.data.reasonings import check_some
from search_r3.data.types import Benchmark
from search_r3.errors import UsageError
from search_r3.evaluation.beir_collections import SOURCE, difference_text
from search_r3.evaluation.benchmark import limited

log = logging.getLogger(__name__)


def places_of(config: DictConfig) -> dict[str, Path | None]:
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


def collections(
    config: DictConfig, places: Mapping[str, Path | None], reasonings: Mapping[str, str] | None = None
) -> Iterator[Benchmark]:
    """The collections in their order; on return all of them are checked, so a bad line ends nothing of hours.

    Each is read once, and what there is to warn of is said then. Texts of `in_memory_mib` are held until
    their turn; collections beyond that are let go, and read again without a word. The first is checked last,
    since its turn is next.

    Args:
        config: of the command.
        places: as `places_of` gives them.
        reasonings: given texts by query id, where a mode needs them.

    Raises:
        DataError: If a file is missing or a row is bad; if a collection has no query with a given text, among
            those that are asked.
    """

    def checked(name: str) -> Benchmark:
        benchmark = _benchmark(config, name, places[name])
        if reasonings is not None:
            check_some(config.reasonings, reasonings, limited(benchmark, config.limit).queries, name)
        return benchmark

    first, *later = places
    held: dict[str, Benchmark] = {}
    room = config.in_memory_mib << 20
    for name in later:
        benchmark = checked(name)
        if (size := _size(benchmark)) is not None and size <= room:
            held[name] = benchmark
            room -= size
        del benchmark  # a large one is not held beside the next
    held[first] = checked(first)
    return (
        held.pop(name) if name in held else _read_quietly(config, name, place)
        for name, place in places.items()
    )


def _size(benchmark: Benchmark) -> int | None:
    """Characters of the documents' texts; None where they may be on disk, and would be read for it."""
    texts = benchmark.corpus.texts
    return sum(map(len, texts)) if isinstance(texts, list | tuple) else None


def _read_quietly(config: DictConfig, name: str, place: Path | None) -> Benchmark:
    readers = logging.getLogger("search_r3.data")
    level = readers.level
    readers.setLevel(logging.ERROR)
    try:
        return _read(config, name, place)
    finally:
        readers.setLevel(level)


def _benchmark(config: DictConfig, name: str, place: Path | None) -> Benchmark:
    benchmark = _read(config, name, place)
    if place is not None and (told := difference_text(benchmark, split_of(config, name))):
        log.warning(told)
    return benchmark


def _read(config: DictConfig, name: str, place: Path | None) -> Benchmark:
    if place is None:
        data = instantiate(config.data)
        collection = data.test if config.part == "test" else data.validation
        if collection is None:
            held_out = {"test": data.test, "validation": data.validation}
            parts = [f"part={part}" for part, found in held_out.items() if found is not None]
            instead = f"; it has {parts[0]}" if parts else ""
            raise UsageError(
                f"benchmarks: {name}: data set {data.name!r} has no {config.part} collection{instead}. A "
                "folder in BEIR layout is benchmarks=[<its name>] beir_dir=<the folder above it>"
            )
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
