"""What a command may ask of an evaluation: modes, collections, models and where it writes."""

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from search_r3.cli.devices import check_device
from search_r3.cli.inputs import check_inputs
from search_r3.cli.instantiate import instantiate
from search_r3.cli.model_choice import TRAINED, check_model_folder, check_reader
from search_r3.cli.overrides import did_you_mean, refuse_unknown
from search_r3.cli.searching import check_cache, check_embeddings
from search_r3.cli.wandb_run import check_wandb
from search_r3.data.beir import hub_sources
from search_r3.errors import UsageError
from search_r3.evaluation import beir_collections
from search_r3.evaluation.modes import MODES, Mode
from search_r3.evaluation.places import collection_path


def check(config: DictConfig, is_sweep: bool) -> None:
    """Refuses what cannot be evaluated, before anything is loaded.

    Raises:
        UsageError: With the choices.
    """
    modes = modes_of(config)
    needs = needed(modes)
    benchmarks = benchmarks_of(config)
    if "model" in needs and config.model.name is not None:
        _check_plain(config)
    elif "model" in needs:
        _check_keeps_its_own(config.model)
        check_reader(config.model, [mode.name for mode in modes if mode.reasons and "model" in mode.needs])
    if config.embeddings is not None:
        check_embeddings(config.embeddings)
        if len(benchmarks) != 1 or not any(mode.embeds == "model" for mode in modes):
            raise UsageError(
                f"embeddings={config.embeddings} is of one model and one collection: name one in "
                "benchmarks=, and a mode in which that model embeds documents, as modes=[direct]"
            )
    if any(mode.embeds for mode in modes):
        check_cache(config.cache_dir)
    if "base" in needs:
        _check_base(config)
    _check_reasonings(config.reasonings, "reasonings" in needs)
    refuse_unknown(f"part={config.part}", config.part, ("test", "validation"))
    state = config.model.get("read_state", "at")
    refuse_unknown(f"model.read_state={state}", state, ("at", "before"))
    analyzer = config.bm25.analyzer
    refuse_unknown(f"bm25.analyzer={analyzer}", analyzer, ("auto", "english", "code"))
    if not isinstance(config.bm25.code, ListConfig):
        raise UsageError(f"bm25.code={config.bm25.code}: a list is needed, as bm25.code=[{config.bm25.code}]")
    for name in benchmarks:
        if name != config.held_out:
            _check_collection(config, name)
        else:
            check_inputs(config.data)
    _check_output(config)
    check_wandb(config)


def _check_base(config: DictConfig) -> None:
    if config.base.path is None:
        raise UsageError("base.path= is needed by these modes: the model folder that a training run wrote")
    check_model_folder("base.path", config.base.path)
    check_device(config.model)


def _check_reasonings(file: str | None, are_needed: bool) -> None:
    if are_needed and file is None:
        raise UsageError("reasonings= is needed by these modes: a JSONL file of _id (of a query) and text")
    if are_needed and not Path(file).is_file():
        raise UsageError(f"reasonings={file}: no such file")
    if file is not None and not are_needed:
        raise UsageError(
            f"reasonings={file}: none of these modes reads it; add given-reasoning or given-bm25 to modes=, "
            "or leave it out"
        )


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


def benchmarks_of(config: DictConfig) -> list[str]:
    """The names of the benchmarks; in place of `beir` and `bright`, the collections of these.

    Those are meant that are in `beir_dir`, and with `hub=true` all of them. A collection of that very name is
    what it says, as the one that `data=beir` holds out.

    Raises:
        UsageError: As `listed`; if not one of BEIR's collections is there.
    """
    names = listed(config, "benchmarks")
    found: list[str] = []
    for name in names:
        its = _collections_of(config, name) if is_group(config, name) else [name]
        found += [each for each in its if each == name or each not in names]
    return list(dict.fromkeys(found))


GROUPS = {beir_collections.ALL: "BEIR", beir_collections.CQADUPSTACK: "CQADupStack", "bright": "BRIGHT"}
"""Names in `benchmarks=` that stand for all collections of something."""


def is_group(config: DictConfig, name: str) -> bool:
    """Whether a name among the benchmarks stands for all collections of BEIR or BRIGHT."""
    if name not in GROUPS or config.held_out == name:
        return False
    return config.beir_dir is None or not (Path(config.beir_dir) / name / "qrels").is_dir()


def _collections_of(config: DictConfig, group: str) -> list[str]:
    known = _known(group)
    if config.hub:
        return known
    if config.beir_dir is None:
        raise UsageError(
            f"benchmarks: {group} needs beir_dir=, the folder of {GROUPS[group]}'s collections, or hub=true"
        )
    found = [name for name in known if _is_there(config, name)]
    if not found:
        raise UsageError(
            f"benchmarks: not one collection of {GROUPS[group]} is in {config.beir_dir}. "
            f"Missing: {absent(config, group)}"
        )
    return found


def _known(group: str) -> list[str]:
    if group == beir_collections.ALL:
        return list(hub_sources.BEIR)
    return [name for name in hub_sources.SOURCES if name.startswith(f"{group}/")]


def _is_there(config: DictConfig, name: str) -> bool:
    return (Path(config.beir_dir) / name / "qrels").is_dir() or bright_copy(config, name) is not None


def absent(config: DictConfig, group: str) -> str:
    """Which collections of a group are not in `beir_dir`, and how they are had; empty where all are there."""
    if group != "bright":
        return beir_collections.absent_text(Path(config.beir_dir), _known(group))
    names = ", ".join(name for name in _known(group) if not _is_there(config, name))
    return names and f"{names}; or give hub=true"


def is_fetched(config: DictConfig, name: str) -> bool:
    """Whether a collection is made of a snapshot of the hub: it is known there, and not in `beir_dir`."""
    if name not in hub_sources.SOURCES or name == config.held_out:
        return False
    if config.beir_dir is not None and (Path(config.beir_dir) / name / "qrels").is_dir():
        return False
    return bool(config.hub) or bright_copy(config, name) is not None


def bright_copy(config: DictConfig, name: str) -> Path | None:
    """A copy of BRIGHT as the hub has it, `<beir_dir>/bright/examples` and so on; None without one."""
    if config.beir_dir is None or name not in hub_sources.BRIGHT:
        return None
    folder = Path(config.beir_dir) / "bright"
    return folder if (folder / "examples").is_dir() else None


def split_of(config: DictConfig, name: str) -> str:
    """The split of a collection: `split=`, else the one that BEIR reports, else test."""
    known = beir_collections.official(name)
    if config.split is not None:
        return str(config.split)
    return known.split if known is not None else "test"


def modes_of(config: DictConfig) -> list[Mode]:
    """The modes that a command names, built of their files in the config group `mode`.

    Raises:
        UsageError: If there is no such mode, or a file's class is none, or is called otherwise.
    """
    known = [*MODES, *(each for each in config.mode if each not in MODES)]
    modes = []
    for name in listed(config, "modes"):
        refuse_unknown(f"modes: {name}", name, known)
        mode = instantiate(config.mode[name])
        if not isinstance(mode, Mode):
            raise UsageError(f"mode/{name}.yaml: {config.mode[name]._target_} is no {Mode.__qualname__}")
        if mode.name != name:
            raise UsageError(f"mode/{name}.yaml: its class is called {mode.name}; one name is needed")
        modes.append(mode)
    return modes


def needed(modes: Sequence[Mode]) -> frozenset[str]:
    """What the modes need, all together."""
    return frozenset().union(*(mode.needs for mode in modes))


def _check_plain(config: DictConfig) -> None:
    """Refuses what `model.name` cannot be evaluated with; the folder's files are for loading to judge."""
    model = config.model
    if model._target_ != TRAINED:
        raise UsageError(f"model.name={model.name} is a causal language model; leave model= out")
    if model.path is not None:
        raise UsageError(f"model.path={model.path} and model.name={model.name}: give one of them")
    if not (Path(model.name) / "config.json").is_file():
        raise UsageError(
            f"model.name={model.name}: no local Hugging Face folder (it has no config.json); get one first, "
            "with hf download"
        )
    check_device(model)
    for name in ("query", "document", "reasoning"):
        if model.lengths[name] is None:
            raise UsageError(
                f"model.lengths.{name}= is needed with model.name: the most tokens of such a text; "
                "experiment=authors_eval sets all of them"
            )


def _check_keeps_its_own(model: DictConfig) -> None:
    """Refuses two keys that are for `model.name`; a prompt that differs is refused by composing."""
    for name in ("prompts_file", "embed_token"):
        if model[name] is not None:
            raise UsageError(
                f"model.{name} is for model.name; a folder given as model.path= keeps the prompts and the "
                "token that it was trained with, so leave it out"
            )


def _check_collection(config: DictConfig, name: str) -> None:
    if is_fetched(config, name):
        return
    if config.beir_dir is None:
        raise UsageError(
            f"benchmarks: {name} needs beir_dir=, the folder that holds it; the collection that this data= "
            f"holds out is benchmarks=[{config.held_out}]"
        )
    root = Path(config.beir_dir)
    if not root.is_dir():
        raise UsageError(f"beir_dir={root}: no such folder")
    if not (root / name / "qrels").is_dir():
        found = sorted(folder.parent.relative_to(root).as_posix() for folder in _with_judgements(root))
        known = [config.held_out, *found]
        published = beir_collections.official(name)
        source = (
            f" {name} is a collection of BEIR: unpack {published.source} there, or give hub=true."
            if published
            else ""
        )
        if (root / "qrels").is_dir():
            place = root.absolute()
            source = (
                f" That folder is a collection itself: beir_dir={place.parent} benchmarks=[{place.name}]."
            )
        raise UsageError(
            f"benchmarks: {name} is not in {root}.{did_you_mean(name, known)}{source} "
            f"Choices: {', '.join(known)}"
        )
    from search_r3.data.beir.layout import available_splits

    split = split_of(config, name)
    if split not in (splits := available_splits(root / name)):
        raise UsageError(f"split={split}: {name} has no such split. Choices: {', '.join(splits)}")


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
