"""Every file in conf/ composes, and every `_target_` in it exists and takes the arguments that are given."""

import importlib
import inspect
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from search_r3.cli.compose import RL_GROUPS, compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.devices import cpu_ranks
from search_r3.cli.model_choice import TRAINED
from search_r3.cli.overrides import TRAINER_NODES, flat_keys
from search_r3.errors import UsageError
from search_r3.evaluate import OF_A_PLAIN_FOLDER
from search_r3.shipped import CONF

ENTRIES = [name for name in ("train", "evaluate", "tune") if (CONF / f"{name}.yaml").is_file()]
OF_EVALUATION = ("mode",)  # tests/test_evaluate.py builds each
OPTIONS = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml"))]
OPTIONS = [option for option in OPTIONS if option[0] not in OF_EVALUATION]
IDS = ["/".join(option) for option in OPTIONS]
FILLED_IN_LATER = {"data", "embedder", "texts", "save_dir", "name", "id", "resume", "group", "config"}
"""Arguments that the entry points add to a configured call."""

REQUIRED = {"path": "folder", "files": "[rows.jsonl]", "corpus": "corpus.jsonl", "name": "a", "sources": "{}"}
"""By last component: a value for what a config leaves to the user."""


@pytest.fixture(scope="module")
def source():
    with ConfigSource() as source:
        yield source


@cache
def composed(source, group, option):
    """train.yaml with one option chosen and every value that must be given filled in; read only."""
    if is_of_evaluation(group, option):
        return compose("evaluate", [f"{group}={option}"], source).config
    stages = source.groups().get("stage", [])
    if not stages:
        pytest.skip("there is no stage yet")
    if group in RL_GROUPS and "rl" not in stages:  # the stage that brings these groups
        return OmegaConf.create({"seed": 1, group: OmegaConf.load(CONF / group / f"{option}.yaml")})
    overrides = [f"{group}={option}"]
    if group in RL_GROUPS:
        stages = ["rl"]
    if group not in ("stage", "experiment"):
        overrides.append(f"stage={stages[0]}")
    return completed(source, "train", overrides)


def completed(source, command, overrides):
    """The configuration, with a value for what these overrides leave to the user."""
    try:
        return compose(command, overrides, source).config
    except UsageError as error:
        return compose(command, overrides + filled(str(error)), source).config


def is_of_evaluation(group, option):
    """Whether an option is an experiment of src.evaluate: its name says so."""
    return group == "experiment" and option.endswith("_eval")


def filled(refusal):
    """Values for what is left to the user, of which the refusal has the keys."""
    assert refusal.endswith("must be given"), refusal
    return [f"{key}={REQUIRED[key.rpartition('.')[2]]}" for key in re.findall(r"([\w.]+)=", refusal)]


def targets(node, key=""):
    """Every node with a `_target_`: its key and its content."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from targets(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for position, child in enumerate(node):
            yield from targets(child, f"{key}.{position}")


def located(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=IDS)
def test_every_option_of_every_group_composes_and_its_targets_take_their_arguments(source, group, option):
    config = OmegaConf.to_container(composed(source, group, option), resolve=True)
    assert isinstance(config, dict)

    for key, node in targets(config):
        signature = inspect.signature(located(node["_target_"]))
        given = {name for name in node if name not in ("_target_", "_partial_", "_convert_", "_recursive_")}
        if node["_target_"] == TRAINED:
            given -= {*OF_A_PLAIN_FOLDER}  # which src.evaluate does not hand on
        is_open = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        assert is_open or given <= set(signature.parameters), (key, given - set(signature.parameters))
        required = {
            name
            for name, p in signature.parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
        if not node.get("_partial_"):
            assert required <= given | FILLED_IN_LATER, (key, required - given)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=IDS)
def test_what_goes_to_the_trainer_are_arguments_of_the_trainer(source, group, option):
    import pytorch_lightning as pl

    config = composed(source, group, option)
    allowed = set(inspect.signature(pl.Trainer.__init__).parameters)

    for name in TRAINER_NODES:
        node = OmegaConf.select(config, name) or {}
        assert set(node) <= allowed, (name, set(node) - allowed)


def read_experiment(option):
    return yaml.safe_load((CONF / "experiment" / f"{option}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "experiment"])
def test_an_experiment_only_sets_keys_that_exist_without_it(source, option):
    raw = read_experiment(option)
    own = {name: node for name, node in raw.items() if name != "defaults"}
    keys, overrides = flat_keys(own), []
    for entry in raw.get("defaults", []):
        if isinstance(entry, str):
            if entry.startswith("parts/"):  # of several experiments, and no choice itself
                keys |= flat_keys(read_experiment(entry))
            elif entry != "_self_":
                overrides.append(f"experiment={entry}")
            continue
        for group, value in entry.items():  # "override /group", or "/group@package", which adds
            added = "" if group.startswith("override ") else "+"
            overrides.append(f"{added}{group.split('/')[-1]}={value}")
    if any(key.startswith("data.weights.") for key in keys):
        overrides.append("data.weights=null")  # those of the experiment go with its sources
    overrides.sort(key=lambda override: override.startswith("+"))  # a package is added to what was chosen
    command = "evaluate" if is_of_evaluation("experiment", option) else "train"
    base = flat_keys(OmegaConf.to_container(completed(source, command, overrides)))

    for key, value in keys.items():
        parent = key.rpartition(".")[0]
        ancestors = [key.rsplit(".", count)[0] for count in range(1, key.count(".") + 1)]
        is_slot = any(name in base and base[name] is None for name in ancestors)  # null, for a call
        is_open = base.get(parent) == {} or parent in (*TRAINER_NODES, "data.weights") or is_slot
        assert key in base or is_open or isinstance(value, dict), (
            f"{key} is set by the experiment and read by nobody"
        )


def test_an_experiment_has_been_read_only_where_one_was_chosen():
    with ConfigSource() as source:
        compose("train", ["stage=rl", "model.path=folder"], source)
        assert not source.loader.repository.has_taken("experiment")
        assert source.loader.repository.has_taken("stage")

        compose("train", ["experiment=freshness", "model.path=folder"], source)
        assert source.loader.repository.has_taken("experiment")


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "experiment"])
def test_an_experiment_opens_with_the_question_it_asks(option):
    first, *_ = (CONF / "experiment" / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    lines = (CONF / "experiment" / f"{option}.yaml").read_text(encoding="utf-8").splitlines()

    question = next(line for line in lines if not line.startswith("# @package"))
    assert question.startswith("#"), first


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "strategy"])
def test_a_strategy_is_five_lines(option):
    lines = (CONF / "strategy" / f"{option}.yaml").read_text(encoding="utf-8").splitlines()

    assert len([line for line in lines if line and not line.startswith("#")]) == 5


def test_strategies_that_need_no_gpu_make_a_trainer(tmp_path):
    import pytorch_lightning as pl

    for option, n_devices in (("cpu", 1), ("ddp_cpu", 2), ("cpu_ranks", cpu_ranks())):
        arguments = OmegaConf.to_container(OmegaConf.load(CONF / "strategy" / f"{option}.yaml"), resolve=True)
        trainer = pl.Trainer(**arguments, default_root_dir=tmp_path, logger=False)
        assert trainer.num_devices == n_devices


def test_the_lock_pins_every_dependency_and_nothing_local():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    root = Path(__file__).resolve().parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins, of_extras = (pinned(root / f"requirements{kind}.lock") for kind in ("", "-extras"))

    assert not any("+" in version or " " in version for version in {**pins, **of_extras}.values())
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["dev"], *extras["serve"]]:
        requirement = Requirement(text)
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, text
    for text in extras["ray"]:
        requirement = Requirement(text)
        assert of_extras[canonicalize_name(requirement.name)] in requirement.specifier, text


def pinned(lock):
    lines = lock.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))
