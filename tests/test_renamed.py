"""Folders that were written under the names of before are read under those of today."""

import importlib
import json

import pytest
import yaml
from omegaconf import OmegaConf

from search_r3.cli.compose import compose, resolved_yaml
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.instantiate import instantiate
from search_r3.cli.model_choice import Given, read_facts, refuse_conflicts
from search_r3.cli.renamed import RENAMED, WORDS
from search_r3.cli.resume import resumed
from search_r3.cli.trust import BUILDERS, stored_config
from search_r3.errors import UsageError
from search_r3.objectives import grpo

BEFORE = {new: old for old, new in RENAMED.items()}


def as_before(text: str) -> str:
    """A configuration's text with the names of before, and with words where functions were words."""
    config = yaml.safe_load(text)
    for name, functions in WORDS.items():
        if name in config:
            target = config.pop(name)["_target_"]
            config["stage"]["module"]["policy"][name] = {each: word for word, each in functions.items()}[
                target
            ]
    text = yaml.safe_dump(config)
    for new, old in sorted(BEFORE.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(f"_target_: {new}\n", f"_target_: {old}\n")
    return text


@pytest.mark.parametrize("name", sorted(set(RENAMED.values())))
def test_every_name_of_today_is_defined_where_it_says(name):
    module, _, attribute = name.rpartition(".")

    assert name in BUILDERS
    assert getattr(importlib.import_module(module), attribute).__module__ == module


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rl"])
def test_the_configuration_of_a_run_of_before_is_the_one_of_today(stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ConfigSource() as source:
        path = [] if stage == "pretrain" else ["model.path=model"]
        config = compose("train", [f"stage={stage}", "output_dir=run", *path], source).config
        today = resolved_yaml(config)
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "config.yaml").write_text(as_before(today))
        assert "_target_: src." in as_before(today)
        assert "_target_: search_r3." not in as_before(today)

        stored = stored_config(folder / "config.yaml")
        later = resumed(source, ["resume=run", "stage.trainer.max_steps=9999"], folder)

    assert OmegaConf.to_container(stored) == yaml.safe_load(today)
    assert later.config.stage.trainer.max_steps == 9999


def run_of_words(source, folder, *choices):
    """A run folder whose policy says in words what are functions now, and its configuration of today."""
    arguments = ["stage=rl", "output_dir=run", "model.path=model", *choices]
    today = resolved_yaml(compose("train", arguments, source).config)
    folder.mkdir()
    (folder / "config.yaml").write_text(as_before(today))
    return yaml.safe_load(today)


@pytest.mark.parametrize(
    ("normalisation", "kl"), [("per_token", "k3"), ("per_sequence", "k1"), ("dr_grpo", "k2")]
)
def test_a_run_that_names_its_functions_in_words_goes_on_with_them(normalisation, kl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ConfigSource() as source:
        today = run_of_words(source, tmp_path / "run", f"normalisation={normalisation}", f"kl={kl}")
        stored = stored_config(tmp_path / "run" / "config.yaml")
        later = resumed(source, ["resume=run", "stage.trainer.max_steps=9999"], tmp_path / "run")

    assert OmegaConf.to_container(stored) == today
    policy = instantiate(later.config.stage.module.policy)
    assert policy.normalisation.func is getattr(grpo, normalisation)
    assert policy.kl.func is getattr(grpo, kl)


def test_a_run_with_a_word_that_no_function_stands_for_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ConfigSource() as source:
        run_of_words(source, tmp_path / "run")
        file = tmp_path / "run" / "config.yaml"
        file.write_text(file.read_text().replace("normalisation: per_token", "normalisation: mean"))
        with pytest.raises(UsageError, match=r"policy\.normalisation=mean is chosen by a config group"):
            resumed(source, ["resume=run"], tmp_path / "run")


def test_a_name_of_before_without_one_of_today_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ConfigSource() as source:
        text = resolved_yaml(compose("train", ["stage=sft", "model.path=m", "output_dir=run"], source).config)
        (tmp_path / "run").mkdir()
        gone = text.replace("search_r3.stages.sft.module.SFTModule", "src.stages.sft.OtherModule")
        (tmp_path / "run" / "config.yaml").write_text(gone)

        with pytest.raises(UsageError, match=r"stage\.module\._target_ is src\.stages\.sft\.OtherModule"):
            resumed(source, ["resume=run"], tmp_path / "run")


def test_a_configuration_of_ones_own_is_told_the_name_of_today(tmp_path):
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "mine.yaml").write_text(
        "# @package _global_\nreward:\n  _target_: src.objectives.rewards.Reward\n"
        "  ranking: {_partial_: true, _target_: src.objectives.rewards.dcg}\n"
    )
    with (
        ConfigSource(tmp_path) as source,
        pytest.raises(UsageError, match=r"search_r3\.objectives\.rewards\."),
    ):
        compose("train", ["stage=rl", "model.path=m", "reward=mine"], source)


def test_a_model_folder_of_before_says_what_it_was_made_by(tmp_path):
    description = {"prompts": {}, "lengths": {}}
    description["provenance"] = {"base_model": "made by src.models.nano.create_nano"}
    (tmp_path / "search_r3.json").write_text(json.dumps(description))
    (tmp_path / "config.json").write_text("{}")

    facts = read_facts(str(tmp_path))
    refuse_conflicts(facts, [Given("create._target_", "search_r3.models.nano.create_nano")], None, None)
    with pytest.raises(UsageError, match="create"):
        refuse_conflicts(facts, [Given("create._target_", "search_r3.models.other.create")], None, None)


def test_an_option_of_before_is_told_the_name_of_today():
    with ConfigSource() as source:
        with pytest.raises(UsageError, match=r"^index=graph is called index=hnsw now$"):
            compose("train", ["stage=rl", "model.path=m", "index=graph"], source)
        kept = compose("train", ["stage=rl", "model.path=m", "index=hnsw", "refresh=graph"], source).choices
    assert (kept["index"], kept["refresh"]) == ("hnsw", "graph")


def test_a_run_of_before_with_the_backend_graph_goes_on_with_hnsw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    with ConfigSource() as source:
        config = compose("train", ["stage=rl", "model.path=m", "index=hnsw", "output_dir=run"], source).config
        text = as_before(resolved_yaml(config))
        assert "_target_: src.index.graph.GraphIndex" in text
        (folder / "config.yaml").write_text(text)
        later = resumed(source, ["resume=run", "stage.trainer.max_steps=9999"], folder).config
    assert later.index._target_ == "search_r3.index.backends.hnsw.HNSWIndex"
