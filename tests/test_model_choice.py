"""A model folder and a command that contradict each other: refused with both values; agreement passes."""

import json

import pytest
from omegaconf import OmegaConf

from search_r3.cli.compose import compose, resolved_yaml
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.overrides import quote_free_text
from search_r3.cli.resume import differences
from search_r3.errors import UsageError
from search_r3.models.folder import load_embedder
from search_r3.shipped import ROOT
from search_r3.train import check
from tests.tiny_stage import write_configs

TINY = ["stage=tiny", "data=tiny", "model=tiny"]
PROMPTS = {
    "direct_system": "d",
    "reasoning_system": "r",
    "document_system": "other",
    "lead_in": "",
    "closing": "",
}
LENGTHS = {"query": 40, "document": 80, "reasoning": 20}


def write_folder(path, base="made by search_r3.models.nano.create_nano"):
    """The two JSON files of a model folder, as saving writes them."""
    path.mkdir(parents=True)
    description = {"prompts": PROMPTS, "lengths": LENGTHS, "provenance": {"base_model": base}}
    (path / "search_r3.json").write_text(json.dumps(description))
    (path / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 32}))
    return path


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = write_configs(tmp_path_factory.mktemp("configs"))
    (folder / "experiment").mkdir()
    head = "# @package _global_\n# Which?\ndefaults:\n  - override /model: tiny\n"
    (folder / "experiment" / "longer.yaml").write_text(f"{head}model:\n  lengths:\n    query: 16\n")
    (folder / "experiment" / "nested.yaml").write_text(
        "# @package _global_\n# And below?\ndefaults:\n  - longer\n"
    )
    (folder / "model" / "from_hub.yaml").write_text(
        "defaults: [tiny, _self_]\nname: Some/Base\ncreate: null\n"
    )
    (folder / "model" / "shipped.yaml").write_text(
        "defaults: [tiny, _self_]\npath: ???\nprompts: null\nlengths: null\ncreate: null\n"
    )
    return folder


@pytest.fixture
def source(configs):
    with ConfigSource(configs) as source:
        yield source


def composed(source, folder, *overrides):
    arguments = [*TINY, f"model.path={folder}", *overrides]
    return compose("train", quote_free_text(arguments), source).config


REFUSED = {
    "a length": (["model.lengths.query=64"], ["model.lengths.query=64", "the folder has 40"]),
    "a prompt": (["model.prompts.document_system=doc"], ["document_system=doc", "the folder has other"]),
    "a length of later than the folder": (["++model.lengths.truncation_side=left"], ["has right"]),
    "a whole node": (["model.lengths={query: 40, document: 9}"], ["model.lengths.document=9", "has 80"]),
    "with plus signs": (["++model.lengths.query=64"], ["model.lengths.query=64"]),
    "a size": (["model.create.hidden_size=16"], ["model.create.hidden_size=16", "the folder has 32"]),
    "a seed": (["model.create.seed=3"], ["model.create.seed=3", "weights already"]),
    "another maker": (["model.create._target_=a.b"], ["the folder has search_r3.models.nano.create_nano"]),
    "a name": (["model.name=Qwen/Qwen2.5-7B"], ["model.name=Qwen/Qwen2.5-7B", "create_nano"]),
    "a choice": (["model=from_hub"], ["model=from_hub is for Some/Base", "create_nano"]),
    "an experiment": (["experiment=longer"], ["model.lengths.query=16 (experiment=longer)", "has 40"]),
    "a nested experiment": (["experiment=nested"], ["model.lengths.query=16 (experiment=longer)"]),
    "several": (["model.lengths.query=1", "model.lengths.document=2"], ["query=1", "document=2", "has 80"]),
    "a folder by default": (
        ["model=shipped", "model.lengths.query=64"],
        ["model.lengths.query=64", "has 40"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_given_by_hand_that_differs_from_the_folder_is_refused_with_both(source, tmp_path, name):
    overrides, words = REFUSED[name]
    folder = write_folder(tmp_path / "model")

    with pytest.raises(UsageError) as refusal:
        composed(source, folder, *overrides)

    for word in (*words, f"model.path={folder}", "Leave that out"):
        assert word in str(refusal.value)


PASSING = {
    "the defaults of a group": [],
    "the folder's own length": ["model.lengths.query=40"],
    "the folder's own length over an experiment": ["experiment=longer", "model.lengths.query=40"],
    "the folder's own size": ["model.create.hidden_size=32"],
    "the folder's own maker": ["model.create._target_=search_r3.models.nano.create_nano"],
    "null": ["model.name=null", "model.create=null"],
    "tuning": ["model.tuning._target_=search_r3.models.tuning.LoraTuning", "+model.dtype=bfloat16"],
    "an option without prompts": ["model=shipped", "model.lengths.query=40"],
}


@pytest.mark.parametrize("name", PASSING)
def test_what_agrees_with_the_folder_or_does_not_concern_it_passes(source, tmp_path, name):
    composed(source, write_folder(tmp_path / "model"), *PASSING[name])


READERS = {
    "evaluate": [],
    "search": ["corpus=a", "query=b"],
    "serve": ["corpus=a"],
    "encode": ["corpus=a", "output=b"],
    "export": ["to=parquet", "corpus=a", "output=b"],
}


@pytest.mark.parametrize("command", READERS)
def test_what_only_reads_a_folder_may_read_longer_texts(tmp_path, command):
    folder = write_folder(tmp_path / "model")
    with ConfigSource() as source:
        given = [f"model.path={folder}", "model.lengths.document=9", *READERS[command]]
        lengths = compose(command, quote_free_text(given), source).config.model.lengths

    assert (lengths.document, lengths.query) == (9, None)


def test_without_a_folder_the_same_keys_are_free(source):
    config = compose("train", [*TINY, "model.lengths.query=64", "model.create.seed=3"], source).config

    assert config.model.lengths.query == 64


def test_a_misspelt_key_is_still_called_misspelt(source, tmp_path):
    with pytest.raises(UsageError, match=r"no key model\.lengths\.qurey.*model\.lengths\.query"):
        composed(source, write_folder(tmp_path / "model"), "model.lengths.qurey=3")


@pytest.mark.parametrize(
    ("base", "is_refused"),
    [
        ("Some/Base", False),
        ("Some/Other", True),
        (None, False),  # the folder does not say
        ("/models/a-copy", False),  # a local copy may have any name
    ],
)
def test_a_choice_for_a_pretrained_model_fits_folders_that_come_from_it(source, tmp_path, base, is_refused):
    folder = write_folder(tmp_path / "model", base)
    if not is_refused:
        composed(source, folder, "model=from_hub")
        return
    with pytest.raises(
        UsageError, match=r"model=from_hub is for Some/Base, the folder's model is Some/Other"
    ):
        composed(source, folder, "model=from_hub")


def test_the_lora_smoke_experiment_goes_on_from_a_folder_of_any_size(tmp_path):
    with ConfigSource() as source:
        arguments = ["experiment=sft_lora_smoke", f"model.path={write_folder(tmp_path / 'model')}"]
        config = compose("train", quote_free_text(arguments), source).config
        with pytest.raises(UsageError, match=r"model\.lengths\.query=64"):
            compose("train", quote_free_text([*arguments, "model.lengths.query=64"]), source)

    assert config.model.tuning.r == 8


def test_a_path_that_is_no_model_folder_is_refused_before_anything_is_loaded(source, tmp_path):
    with pytest.raises(UsageError, match=r"model\.path=.*no search_r3\.json.*model\.name="):
        check(composed(source, tmp_path / "absent"), False)
    run = write_folder(tmp_path / "run" / "model").parent
    with pytest.raises(UsageError, match=r"no search_r3\.json\); give .*run/model, which lies in it$"):
        check(composed(source, run), False)


@pytest.mark.parametrize("choice", ["nano", "nano_lora"])
def test_the_shipped_base_is_found_from_any_folder_and_the_record_names_no_machine(
    choice, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with ConfigSource() as source:
        config = compose("train", ["stage=sft", f"model={choice}"], source).config
    check(config, False)
    assert load_embedder(config.model.path).width == 256
    record = resolved_yaml(config)

    assert str(ROOT) not in record
    monkeypatch.chdir(ROOT)  # a run goes on from another folder than it was started from
    resumed = OmegaConf.create(record)
    assert resumed.model.path == "experiments/nano_base/model"
    assert differences(config, resumed, ignored=()) == []
    check(resumed, False)


def test_what_a_user_types_is_looked_up_where_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = ["stage=sft", "model.path=experiments/nano_base/model"]
    with ConfigSource() as source:
        config = compose("train", quote_free_text(typed), source).config

    assert config.model.path == "experiments/nano_base/model"
    with pytest.raises(UsageError, match="not a model folder"):
        check(config, False)


def test_a_value_that_the_shipped_base_contradicts_is_refused_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ConfigSource() as source, pytest.raises(UsageError, match=r"query=64, the folder has 40"):
        compose("train", ["stage=sft", "model.lengths.query=64"], source)
