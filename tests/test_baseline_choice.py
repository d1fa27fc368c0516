"""What `model=sentence_transformer` is refused for, before anything is loaded; it needs no such library."""

import importlib.util
from pathlib import Path

import pytest

from search_r3.cli import evaluation_checks, training_checks
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.model_choice import TRAINABLE, TRAINED
from search_r3.errors import UsageError
from search_r3.evaluation.modes import MODES
from search_r3.search import check as check_search

BASELINE = "model=sentence_transformer"


@pytest.fixture(scope="module")
def source():
    with ConfigSource() as source:
        yield source


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "modules.json").write_text("[]")
    return tmp_path


@pytest.fixture
def has_library(monkeypatch):
    """As if the package were installed; nothing is imported of it."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: found("json" if name == "sentence_transformers" else name)
    )


def checked(source, command, *overrides):
    config = compose(command, list(overrides), source).config
    {"evaluate": evaluation_checks.check, "search": check_search, "train": training_checks.check}[command](
        config, False
    )


@pytest.mark.usefixtures("has_library")
@pytest.mark.parametrize("mode", MODES)
def test_modes_in_which_it_would_reason_are_refused(source, folder, nano_folder, mode):
    reasonings = folder / "reasonings.jsonl"
    reasonings.write_text("")
    given = [BASELINE, f"model.path={folder}", f"modes=[{mode}]", f"base.path={nano_folder}"]
    given += [f"reasonings={reasonings}"] * mode.startswith("given-")
    if mode in ("bm25", "direct", "hybrid-direct", "base-direct", "given-bm25"):
        checked(source, "evaluate", *given)
        return
    with pytest.raises(UsageError, match=rf"^modes: {mode}: .* modes=\[direct\]$"):
        checked(source, "evaluate", *given)


@pytest.mark.usefixtures("has_library")
def test_a_search_that_reasons_is_refused(source, folder):
    (folder / "corpus.jsonl").write_text('{"_id": "a", "text": "b"}\n')
    given = [BASELINE, f"model.path={folder}", f"corpus={folder}"]
    checked(source, "search", *given, "modes=[direct]")
    with pytest.raises(UsageError, match="modes: reasoning: "):
        checked(source, "search", *given)


def test_without_the_library_the_refusal_says_what_to_install(source, folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install sentence-transformers"):
        checked(source, "evaluate", BASELINE, f"model.path={folder}", "modes=[direct]")


@pytest.mark.parametrize("command", ["evaluate", "search"])
def test_a_folder_of_another_kind_is_refused_with_the_choice_that_reads_it(source, folder, command, tmp_path):
    (folder / "corpus.jsonl").write_text('{"_id": "a", "text": "b"}\n')
    more = ["modes=[direct]", *([f"corpus={folder}"] if command == "search" else [])]
    with pytest.raises(UsageError, match="model=sentence_transformer reads it"):
        checked(source, command, f"model.path={folder}", *more)
    with pytest.raises(UsageError, match=r"not a folder of sentence-transformers .*modules\.json"):
        checked(source, command, BASELINE, f"model.path={folder / 'other'}", *more)
    with pytest.raises(UsageError, match=r"this choice of model= is for src\.train"):
        checked(source, command, "model=nano", *more)


@pytest.mark.parametrize("choice", [BASELINE, "model=trained"])
def test_training_takes_no_choice_that_only_reads(source, choice, tmp_path):
    with pytest.raises(UsageError, match=r"is for src\.evaluate and src\.search"):
        checked(source, "train", "stage=sft", choice, f"output_dir={tmp_path / 'run'}")


def test_the_names_by_which_choices_are_told_apart_are_those_of_the_files(source):
    assert compose("evaluate", [], source).config.model._target_ == TRAINED
    assert compose("train", ["stage=sft"], source).config.model._target_ == TRAINABLE
