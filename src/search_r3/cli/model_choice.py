"""What a model folder decides, and what a command may not say against it.

`model.path=<folder>` brings architecture, tokenizer, prompts and lengths; `model=` then only sets tuning. A
value that a user gives by hand and that the folder contradicts would have no effect, so it is refused. Only
the folder's JSON files are read here: a refused command must not import torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_r3.cli.renamed import renamed
from search_r3.errors import UsageError

MADE_BY_BASE = Path("outputs") / "bases" / "smollm2_135m"
"""The folder that `make base` writes."""
_OF_BEFORE = {"lengths.repeat_ngram": 0, "lengths.truncation_side": "right"}
"""What a folder of before does not say, and means."""
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
        plain = ""
        if key == "model.path" and (Path(path) / "config.json").is_file():
            plain = f"; evaluate a plain Hugging Face folder with experiment=authors_eval model.name={path}"
        raise UsageError(f"{key}={path}: not a model folder (it has no search_r3.json){plain}")


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
