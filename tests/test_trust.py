"""Run folders of strangers run nothing: what a stored configuration may call and refer to."""

import importlib
import inspect
import re
import shutil
from pathlib import Path

import pytest
import trusting
import yaml
from evil_pickles import MARK
from omegaconf import OmegaConf
from trusting import SFT, edited, ended, refusal, resumed_config, run_folder

from search_r3.cli.trust import BUILDERS, WRITES, calls, refuse_foreign, stored_config
from search_r3.errors import UsageError
from search_r3.shipped import CONF

place = trusting.place  # fixture


# ---- the table


def named_in_conf():
    """Every target that a file of conf/ names, in a mapping or in an override that is text."""
    found = set()
    for file in CONF.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        found |= set(re.findall(r"_target_\s*[:=]\s*([\w.]+)", text))
        found |= {target for _, target, _ in calls(yaml.safe_load(text))}
    return found


def test_the_table_names_what_conf_builds_and_nothing_else():
    assert named_in_conf() == BUILDERS


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_a_builder_is_named_where_it_is_defined(name):
    module, _, attribute = name.rpartition(".")
    built = getattr(importlib.import_module(module), attribute)

    assert inspect.isclass(built) or inspect.isfunction(built)
    assert f"{built.__module__}.{built.__qualname__}" == name
    if name in WRITES:
        assert WRITES[name] in inspect.signature(built).parameters


@pytest.mark.parametrize(
    "path", sorted(CONF.parent.glob("experiments/*/config*.yaml")), ids=lambda p: p.parent.name
)
def test_the_run_folders_that_are_shipped_pass(path):
    stored = stored_config(path)

    refuse_foreign(OmegaConf.to_container(stored, resolve=False), "shipped", folder=Path("outputs/x"))


# ---- names


STRANGE = {
    "of Python": "os.system",
    "a builtin": "builtins.eval",
    "that makes others": "functools.partial",
    "that finds others": "hydra.utils.get_method",
    "that builds others": "hydra.utils.instantiate",
    "that reads pickles": "torch.load",
    "that downloads code": "torch.hub.load",
    "of the whitelist of Hydra 1.4": "torch.utils.cpp_extension.load",
    "that writes a file": "search_r3.files.write_text",
    "that makes a folder": "search_r3.folders.make_folder",
    "that removes folders": "search_r3.models.folder.save_embedder",
    "that starts a command": "search_r3.cli.command.entry_point",
    "through a module of ours": "search_r3.files.os.system",
    "through another": "search_r3.models.folder.torch.load",
    "a builder through another module": "search_r3.train.check.__globals__",
    "a builder's method": "search_r3.stages.rl.completions.Completions.start",
    "a re-export of a builder": "search_r3.stages.data.Benchmark",
    "a longer name": "search_r3.objectives.rewards.dcg.__call__",
    "with a blank": "search_r3.objectives.rewards.dcg ",
    "with a line end": "search_r3.objectives.rewards.dcg\n",
    "without a dot": "eval",
    "empty": "",
    "a number": 3,
    "true": True,
    "nothing": None,
    "a list": ["os.system"],
    "a mapping": {"_target_": "os.system"},
    "a reference": "${output_dir}",
    "text with a reference": "src.${seed}",
}


@pytest.mark.parametrize("target", STRANGE.values(), ids=STRANGE)
def test_a_run_folder_has_nothing_called_that_conf_does_not_build(place, target):
    folder = edited(run_folder(place), "stage.module.optimization._target_", target)

    message = refusal(folder, "trust=[my_rules]")

    assert "config.yaml" in message
    assert "stage.module.optimization._target_" in message
    assert "\n" not in message
    assert "trust=[" not in message  # nothing would make these right
    assert not (place / "imported").exists()


PLACES = {
    "data": "data._target_",
    "model": "model._target_",
    "tuning": "model.tuning._target_",
    "logger": "logger._target_",
    "a callback": "stage.callbacks.throughput._target_",
    "another callback": "stage.callbacks.mine",
    "an argument": "stage.module.seed",
    "the trainer": "stage.trainer.max_time",
    "the strategy": "strategy.strategy",
    "plugins": "strategy.plugins",
    "debugging": "debug.profiler",
    "a new node": "mine",
    "the sweep": "sweep.fail_fast",
}


@pytest.mark.parametrize(
    "way", ["bare", "partial", "in a list", "in a list in a mapping", "beside arguments"]
)
@pytest.mark.parametrize("key", PLACES.values(), ids=PLACES)
def test_no_place_of_a_stored_configuration_is_left_out(place, key, way):
    node = {"_target_": "os.mkdir", "path": MARK}
    nodes = {
        "bare": node,
        "partial": node | {"_partial_": True, "_recursive_": False},
        "in a list": [1, node],
        "in a list in a mapping": {"a": [[{"b": node}]]},
        "beside arguments": {"_target_": "search_r3.objectives.rewards.dcg", "k": node, "_convert_": "all"},
    }
    if key.endswith("_target_"):
        key = f"{key.removesuffix('._target_')}.k"
    folder = edited(run_folder(place), key, nodes[way])

    message = refusal(folder)

    assert f"{key}." in message
    assert "os.mkdir" in message


@pytest.mark.parametrize(
    "key", [f"stage.trainer.{name}" for name in ("max_steps", "max_time", "limit_val_batches")]
)
def test_keys_that_may_change_are_looked_at_too(place, key):
    folder = edited(run_folder(place), key, {"_target_": "os.mkdir", "path": MARK})

    assert "os.mkdir" in refusal(folder, f"{key}=3")


# ---- what refers to something else


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HOME}", "a${oc.env:HOME}", "\\\\${oc.env:HOME}", "${oc.decode:'[1]'}",
        "${oc.create:{a: 1}}", "${oc.select:seed}", "${seed}", "${.path}", "${ output_dir }",
        "${output_dir}${oc.env:HOME}",
        "${shipped:/etc}", "${shipped:../secret}", "${shipped:a/../../b}", "${shipped:${oc.env:HOME}}",
        "${cpu_precision:}", "${hydra:runtime.cwd}", "${now:%Y}", "${output_dir.a}",
    ],
)  # fmt: skip
def test_a_stored_configuration_reads_no_environment_and_computes_nothing(place, text, monkeypatch):
    monkeypatch.setenv("HOME", "a secret")
    for key in ("data.name", "data.files.0", "stage.callbacks.checkpoint.monitor"):
        with pytest.raises(UsageError) as refused:
            stored_config(edited(run_folder(place), key, text) / "config.yaml")

        assert f"config.yaml: {key} is " in str(refused.value)
        assert "a secret" not in str(refused.value)
        shutil.rmtree(place / "run")


def test_text_that_only_looks_like_a_reference_stays_text(place):
    folder = edited(run_folder(place), "data.path", "\\${oc.env:HOME} \\\\\\${x}")

    assert resumed_config(folder).data.path == "${oc.env:HOME} \\${x}"


def test_settings_of_hydra_do_not_belong_into_a_run(place):
    folder = edited(run_folder(place), "hydra", {"run": {"dir": "/tmp"}, "output_subdir": "x"})

    assert "the key hydra does not belong there" in refusal(folder)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.mkdir [ran]", "- a", "", "text", "a: [", "a: &a [*a]", "a: ${b", "\0",
        "a: 1\na: 2", "? [1, 2]\n: 3",
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_refused_in_one_line(place, text):
    folder = run_folder(place)
    (folder / "config.yaml").write_text(text)

    message = refusal(folder)

    assert "config.yaml" in message or "there is no key" in message
    assert "\n" not in message


@pytest.mark.parametrize("way", ["resume", "if_exists"])
def test_both_ways_of_going_on_read_the_file_safely(place, way, monkeypatch, capsys):
    monkeypatch.setenv("TOKEN", "a secret")
    folder = edited(run_folder(place), "data.name", "${oc.env:TOKEN}")
    ways = {"resume": [f"resume={folder}"], "if_exists": [*SFT, f"output_dir={folder}", "if_exists=resume"]}

    code, output = ended(ways[way], monkeypatch, capsys)

    assert code == 2
    assert "config.yaml: data.name is ${oc.env:TOKEN}" in output
    assert "a secret" not in output


def test_going_on_by_if_exists_calls_what_ones_own_command_names(place, monkeypatch, capsys):
    folder = edited(run_folder(place), "stage.module.optimization._target_", "os.mkdir")

    code, output = ended([*SFT, f"output_dir={folder}", "if_exists=resume"], monkeypatch, capsys)

    assert code == 2
    assert "stage.module.optimization._target_: os.mkdir ->" in output
    assert not Path(MARK).exists()


def test_the_second_rank_makes_the_same_check(place, monkeypatch, capsys):
    folder = edited(run_folder(place), "stage.module.optimization._target_", "os.mkdir")
    monkeypatch.setenv("SEARCH_R3_RUN_FOLDER", str(folder))
    monkeypatch.setenv("SEARCH_R3_RUN_RESUMES", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")

    code, output = ended([f"resume={folder}"], monkeypatch, capsys)

    assert code == 2
    assert "os.mkdir" in output
    assert not Path(MARK).exists()
