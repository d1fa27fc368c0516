"""What a model folder decides, and what a command may not say against it.

`model.path=<folder>` brings architecture, tokenizer, prompts and lengths; `model=` then only sets tuning. A
value that a user gives by hand and that the folder contradicts would have no effect, so it is refused. Only
the folder's JSON files are read here: a refused command must not import torch.
"""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_r3.cli.devices import check_device
from search_r3.cli.renamed import renamed
from search_r3.errors import UsageError
from search_r3.folders import left_by_a_run

TRAINABLE = "search_r3.models.folder.opening.open_embedder"
"""What a `model=` choice of src.train builds."""
TRAINED = "search_r3.models.folder.loading.load_embedder"
BASELINE = "search_r3.models.sentence_transformer.load_sentence_transformer"
"""What the two choices of src.evaluate and src.search build, which only read."""
MADE_BY_BASE = Path("outputs") / "bases" / "smollm2_135m"
"""The folder that `make base` writes."""
_OF_BEFORE = {"lengths.repeat_ngram": 0, "lengths.truncation_side": "right"}
"""What a folder of before does not say, and means."""
_MODULES = "modules.json"
MADE_HERE = "made by "
"""Precedes the function's name in `provenance.base_model` of a model that started from random weights."""


@dataclass(frozen=True)
class Given:
    """A value that a user set by hand, for a key whose value the folder brings.

    Attributes:
        key: below `model`: "name", or one of "prompts", "lengths" and "create" with a key below it.
        value: as it composes.
        origin: where it was set, for the message; empty for the command line.
    """

    key: str
    value: object
    origin: str = ""


@dataclass(frozen=True)
class FolderFacts:
    """What a model folder says about itself.

    Attributes:
        path: the folder as it was given.
        values: key below `model` -> value, for prompts and lengths.
        architecture: `config.json`.
        base: the hub name or the absolute path of the pretrained model it comes from, or `MADE_HERE` and the
            function that made it; None where the folder does not say.
        stage: that left the folder; None where it does not say.
    """

    path: str
    values: Mapping[str, object]
    architecture: Mapping[str, object]
    base: str | None
    stage: str | None = None


def check_model_folder(key: str, path: str) -> None:
    """Refuses a path that leads to no model folder; whether its files are whole is for loading to say.

    Raises:
        UsageError: With the key that named it.
    """
    if not (Path(path) / "search_r3.json").is_file():
        plain = left_by_a_run(path) or ("" if Path(path).is_dir() else "; there is no such folder")
        if key == "model.path" and (Path(path) / _MODULES).is_file():
            plain = f"; it has a {_MODULES}, and model=sentence_transformer reads it"
        elif key == "model.path" and (Path(path) / "config.json").is_file():
            plain = f"; evaluate a plain Hugging Face folder with experiment=authors_eval model.name={path}"
        raise UsageError(f"{key}={path}: not a model folder (it has no search_r3.json){plain}")


def check_reader(model: Mapping[str, object], reasoning: Sequence[str]) -> None:
    """Refuses a model that this command cannot read, or that cannot do what is asked of it.

    Args:
        model: the node `model` of a command that only reads.
        reasoning: the modes that were asked for in which it would write.

    Raises:
        UsageError: With what to give.
    """
    target, path = model.get("_target_"), model.get("path")
    if target == TRAINABLE:
        raise UsageError(
            "this choice of model= is for src.train; leave model= out for a model folder that training "
            "wrote, or take model=sentence_transformer for one of sentence-transformers"
        )
    if path is None:
        raise UsageError("model.path= is needed by these modes: the model folder that a training run wrote")
    if target in (TRAINED, BASELINE):
        check_device(model)
    if target != BASELINE:
        return check_model_folder("model.path", str(path)) if target == TRAINED else None
    if reasoning:
        raise UsageError(
            f"modes: {', '.join(reasoning)}: a model of sentence-transformers writes no reasoning; with "
            "model=sentence_transformer give modes that do without, as modes=[direct]"
        )
    if not (Path(path) / _MODULES).is_file():
        raise UsageError(f"model.path={path}: not a folder of sentence-transformers (it has no {_MODULES})")
    if importlib.util.find_spec("sentence_transformers") is None:
        raise UsageError(
            f"model=sentence_transformer needs a package that is not installed: {sys.executable} -m pip "
            "install sentence-transformers (requirements-extras.lock names the version that is tested)"
        )
    return None


def refuse_reader(model: Mapping[str, object]) -> None:
    """Refuses to train what a command that only reads would open.

    Raises:
        UsageError: With what to give.
    """
    if model.get("_target_") in (TRAINED, BASELINE):
        raise UsageError(
            "this choice of model= is for src.evaluate and src.search, which only read; src.train goes on "
            "from a model folder with model.path=<folder>, under a choice such as model=nano"
        )


def read_facts(path: str) -> FolderFacts | None:
    """Facts of a model folder; None where it cannot be read, which loading it will explain."""
    try:
        description = json.loads((Path(path) / "search_r3.json").read_text(encoding="utf-8"))
        architecture = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        values = _OF_BEFORE | {
            f"{node}.{name}": value
            for node in ("prompts", "lengths")
            for name, value in description[node].items()
        }
        origin = description.get("provenance", {})
        return FolderFacts(path, values, architecture, origin.get("base_model"), origin.get("stage"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def refuse_conflicts(
    facts: FolderFacts, given: Sequence[Given], choice: str | None, choice_name: str | None
) -> None:
    """Refuses what was asked for by hand and differs from the folder.

    Args:
        facts: of the folder.
        given: values set by hand; null claims nothing.
        choice: the option of `model=`.
        choice_name: the pretrained model that this option names; None where it names none.

    Raises:
        UsageError: With every such key, the two values and what to do.
    """
    problems = [problem for each in given if (problem := _conflict(facts, each)) is not None]
    if choice_name is not None and _is_another_base(choice_name, facts.base):
        problems.append(f"model={choice} is for {choice_name}, the folder's model is {facts.base}")
    if problems:
        raise UsageError(
            f"model.path={facts.path} decides architecture, tokenizer, prompts and lengths, and this command "
            f"says otherwise: {'; '.join(problems)}. Leave that out, or start a new model: model.path=null"
        )


def _conflict(facts: FolderFacts, given: Given) -> str | None:
    node, _, name = given.key.partition(".")
    if given.value is None or name == "_partial_":
        return None
    if node in ("prompts", "lengths") and given.key not in facts.values:
        return None  # no such key: composing says so
    found = _found(facts, node, name)
    if found == given.value:
        return None
    said = f"model.{given.key}={given.value}{f' ({given.origin})' if given.origin else ''}"
    return f"{said}, the folder has {'weights already' if found is None else found}"


def _found(facts: FolderFacts, node: str, name: str) -> object:
    """The folder's value for a key below `model`; None where it has no such value, as for a seed."""
    if node == "name":
        return facts.base
    if node == "create" and name == "_target_":
        return None if facts.base is None else renamed(facts.base.removeprefix(MADE_HERE))
    return facts.architecture.get(name) if node == "create" else facts.values[f"{node}.{name}"]


def _is_another_base(name: str, base: str | None) -> bool:
    """True where both are known and cannot be the same; a local copy may have any name."""
    if base is None:
        return False
    if base.startswith(MADE_HERE):
        return True
    return not (Path(base).is_absolute() or Path(name).is_dir()) and base != name
