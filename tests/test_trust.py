"""Folders of strangers run nothing: what a stored configuration, a search space, a checkpoint may call.

Every attack would leave a file, `MARK`, in the working directory; the module that a user would have to trust
leaves another one when it is imported.
"""

import importlib
import inspect
import json
import re
import shutil
import signal
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from search_r3.cli.command import entry_point
from search_r3.cli.compose import compose, resolved_yaml
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.resume import resumed
from search_r3.cli.trust import BUILDERS, WRITES, calls, checked_trust, refuse_foreign, stored_config
from search_r3.errors import UsageError
from search_r3.shipped import CONF
from search_r3.train import check, reached_step
from search_r3.tune import check as check_tune
from search_r3.tune import read_space

MARK = "ran"
SFT = ["stage=sft", "data=triples", "data.files=[rows.jsonl]", "logger=csv"]
RL = ["stage=rl", "data=triples", "data.files=[rows.jsonl]", "model.path=model"]
RULES = """
import os
from os import system
from pathlib import Path
from torch import load

import search_r3.cli.run_folder as records

Path("{place}/imported").touch()


class Rule:
    def __init__(self, k=1):
        self.k = k


def reward(ranking):
    return ranking


partial_system = __import__("functools").partial(os.system)
number = 3
"""


@cache
def source_of(configs=None):
    """Reads conf/ and, before it, a folder of the user's; made once, which takes longer than to compose."""
    with ConfigSource(configs) as source:
        return source


@cache
def composed(*overrides):
    return compose("train", overrides, source_of()).config


def run_folder(place, overrides=SFT):
    """A run folder as a run leaves it that was killed before its first checkpoint."""
    folder = place / "run"
    folder.mkdir()
    config = composed(*overrides).copy()
    config.output_dir = str(folder)
    (folder / "config.yaml").write_text(resolved_yaml(config))
    (folder / "provenance.json").write_text(json.dumps({"choices": {}}))
    status = {"state": "interrupted", "error": None, "started": None, "finished": None, "host": "h", "pid": 1}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a module of the user's own, `my_rules`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "code" / "my_rules").mkdir(parents=True)
    (tmp_path / "code" / "my_rules" / "__init__.py").write_text(RULES.replace("{place}", str(tmp_path)))
    (tmp_path / "code" / "my_rules" / "more.py").write_text("class Better:\n    pass\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_rules"]:
        del sys.modules[name]


def edited(folder, key, value):
    """Puts a value at a dotted key of the stored configuration."""
    content = yaml.safe_load((folder / "config.yaml").read_text())
    *parents, last = key.split(".")
    node = content
    for name in parents:
        node = node[name]
    node[int(last) if isinstance(node, list) else last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def resumed_config(folder, *overrides, configs=None):
    return resumed(source_of(configs), [*overrides], folder).config


def refusal(folder, *overrides, configs=None):
    """What resuming a folder is refused with; nothing has run by then."""
    with pytest.raises(UsageError) as refused:
        resumed_config(folder, *overrides, configs=configs)
    assert not Path(MARK).exists()
    return str(refused.value)


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
    "that makes a folder": "search_r3.cli.run_folder.make_folder",
    "that removes folders": "search_r3.models.folder.save_embedder",
    "that starts a command": "search_r3.cli.command.entry_point",
    "through a module of ours": "search_r3.cli.run_folder.os.system",
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


def ended(arguments, monkeypatch, capsys, run=None):
    """Exit code and messages of `python -m src.train`, in this process."""
    monkeypatch.setattr(sys, "argv", ["src.train", *arguments])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        entry_point("train", run or (lambda config: Path(MARK).touch()), check, reached=reached_step)
    signal.signal(signal.SIGTERM, handler)
    captured = capsys.readouterr()
    return end.value.code, captured.out + captured.err


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


# ---- a user's own rules


def with_rule(place, target="my_rules.Rule", key="stage.callbacks.mine"):
    return edited(run_folder(place), key, {"_target_": target})


def test_a_target_of_ones_own_is_refused_with_what_to_type(place):
    folder = with_rule(place)

    message = refusal(folder)

    for word in (str(folder), "config.yaml", "stage.callbacks.mine._target_", "my_rules.Rule"):
        assert word in message
    assert "trust=[my_rules]" in message
    assert not (place / "imported").exists()
    assert "trust=[other,my_rules]" in refusal(folder, "trust=[other]")


@pytest.mark.parametrize("trust", ["my_rules", "my_rules.Rule"])
def test_a_target_under_a_package_that_the_user_names_passes(place, trust):
    config = resumed_config(with_rule(place), f"trust=[{trust}]")

    assert config.stage.callbacks.mine._target_ == "my_rules.Rule"
    assert config.trust == [trust]


def test_a_module_below_the_package_passes(place):
    assert resumed_config(with_rule(place, "my_rules.more.Better"), "trust=[my_rules]")


def test_trust_is_never_taken_from_the_folder(place):
    folder = edited(with_rule(place), "trust", ["my_rules"])

    assert "trust=[my_rules]" in refusal(folder)
    assert resumed_config(edited(run_folder(place / "code"), "trust", ["os"])).trust is None


def test_a_run_from_before_there_was_trust_goes_on(place):
    folder = with_rule(place)
    content = yaml.safe_load((folder / "config.yaml").read_text())
    del content["trust"]
    (folder / "config.yaml").write_text(yaml.safe_dump(content))

    assert resumed_config(folder, "trust=[my_rules]").trust == ["my_rules"]


@pytest.mark.parametrize(
    "target",
    [
        "my_rules.os.system", "my_rules.system", "my_rules.load", "my_rules.records.write_text",
        "my_rules.records.os.mkdir", "my_rules.partial_system", "my_rules.number", "my_rules.os",
        "my_rules.absent", "my_rules.more", "my_rules.Rule.__init__.__globals__",
    ],
)  # fmt: skip
def test_what_a_trusted_package_only_imports_is_refused(place, target):
    message = refusal(with_rule(place, target), "trust=[my_rules]")

    assert target in message
    assert "stage.callbacks.mine._target_" in message


@pytest.mark.parametrize("target", ["my_rules_too.Rule", "other.my_rules.Rule", "my_rulesRule.x"])
def test_another_package_of_a_similar_name_is_not_trusted(place, target):
    assert f"is {target}, which is not part of this project" in refusal(
        with_rule(place, target), "trust=[my_rules]"
    )


def test_a_package_that_cannot_be_imported_is_said(place):
    message = refusal(with_rule(place, "absent_rules.Rule"), "trust=[absent_rules]")

    assert "cannot be imported" in message
    assert "PYTHONPATH" in message


def test_the_names_of_ones_own_config_dir_need_no_trust(place):
    (place / "conf" / "reward").mkdir(parents=True)
    (place / "conf" / "reward" / "mine.yaml").write_text("_target_: my_rules.Rule\n")
    folder = with_rule(place)

    assert resumed_config(folder, configs=place / "conf")
    assert "trust=[my_rules]" in refusal(folder, configs=place / "code")
    (folder / "reward.yaml").write_text("_target_: my_rules.Rule\n")  # a folder does not vouch for itself
    assert "trust=[my_rules]" in refusal(folder, configs=folder)
    assert "trust=[my_rules]" in refusal(folder, configs=place)


def test_a_class_of_a_library_is_trusted_by_its_full_name_alone(place):
    name = "pytorch_lightning.callbacks.LearningRateMonitor"
    folder = with_rule(place, name)

    assert f"trust=[{name}]" in refusal(folder)
    assert resumed_config(folder, f"trust=[{name}]")
    assert "not under trust=[torch.optim]" in refusal(
        edited(folder, "stage.callbacks.mine._target_", "torch.optim.lr_scheduler.partial"),
        "trust=[torch.optim]",
    )
    load = edited(folder, "stage.callbacks.mine._target_", "torch.load")
    assert "only a class" in refusal(load, "trust=[torch.load]")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("my_rules", "trust=[my_rules]"),
        (["os"], "part of Python"),
        (["subprocess.run"], "part of Python"),
        (["builtins"], "part of Python"),
        (["src"], "this project"),
        (["search_r3.cli.run_folder"], "this project"),
        (["hydra"], "Hydra"),
        (["torch"], "name the one class"),
        (["numpy"], "name the one class"),
        (["pytorch_lightning"], "name the one class"),
        ([""], "no package"),
        ([None], "no package"),
        (["*"], "no package"),
        (["a b"], "no package"),
        (["../x"], "no package"),
        ([["my_rules"]], "no package"),
        ({"a": 1}, "a list"),
        (3, "a list"),
        (True, "a list"),
    ],
)
def test_what_cannot_be_trusted_is_refused_with_the_reason(value, words):
    with pytest.raises(UsageError, match=r"^trust") as refused:
        checked_trust(value)
    assert words in str(refused.value)


@pytest.mark.parametrize("command", ["train", "tune", "bench_refresh"])
def test_the_commands_that_build_from_folders_know_trust_and_check_it(command):
    given = {"tune": ["space=s.yaml", *SFT], "train": SFT, "bench_refresh": ["model.path=model"]}[command]
    assert compose(command, [*given, "trust=[my_rules]"], source_of()).config.trust == ["my_rules"]
    with pytest.raises(UsageError, match="part of Python"):
        compose(command, [*given, "trust=[os]"], source_of())


# ---- what builders would do for a stranger


def test_a_folder_writes_below_itself_alone(place):
    folder = run_folder(place, RL)
    resumed_config(folder)
    for key, value in {
        "stage.module.completions.file": "/home/user/.profile",
        "stage.callbacks.checkpoint.folder": "checkpoints",
        "stage.datamodule.store": "${output_dir}/../elsewhere",
    }.items():
        copy = shutil.copytree(folder, place / key / "run")
        message = refusal(edited(copy, key, value))
        assert f"{key}={value} is outside the run folder" in message
    outside = edited(shutil.copytree(folder, place / "own" / "run"), "stage.datamodule.store", "fast/index")
    assert resumed_config(outside, "stage.datamodule.store=fast/index").stage.datamodule.store == "fast/index"


@pytest.mark.parametrize(
    "value", ["${output_dir}", "${output_dir}x", "${output_dir}/a/../../b", "", "s3://a/b"]
)
def test_places_beside_the_folder_are_outside(place, value):
    assert "outside the run folder" in refusal(
        edited(run_folder(place), "stage.callbacks.checkpoint.folder", value)
    )


def test_arguments_that_stand_under_no_name_are_refused(place):
    folder = edited(run_folder(place), "stage.callbacks.checkpoint._args_", ["/etc"])

    assert "stage.callbacks.checkpoint._args_" in refusal(folder)


def test_what_goes_to_weights_and_biases_is_what_conf_sends(place):
    folder = run_folder(place, [*SFT[:3], "logger=wandb"])
    resumed_config(folder)

    message = refusal(edited(folder, "logger.settings", {"base_url": "http://stranger"}))

    assert "logger.settings" in message


@pytest.mark.parametrize("node", ["strategy", "stage.trainer", "debug"])
def test_checkpoints_whose_reader_unpickles_need_a_word(place, node):
    folder = run_folder(place)
    for name in ("fsdp", "deepspeed_stage_2", "fsdp_cpu_offload", "xla"):
        message = refusal(edited(folder, f"{node}.strategy", name))

        assert "unpickling" in message
        assert "trust=[checkpoints]" in message
        assert resumed_config(folder, "trust=[checkpoints]")


def test_the_checkpoints_of_strategy_fsdp_are_plain_files_and_need_no_word(place):
    folder = run_folder(place)
    ours = {"_target_": "search_r3.stages.sharding.ShardedStrategy"}
    assert resumed_config(edited(folder, "strategy.strategy", ours))
    assert "trust=" in refusal(edited(folder, "strategy.strategy", {"_target_": "my_own.Strategy"}))


def test_a_sharded_checkpoint_needs_a_word_under_any_strategy(place, monkeypatch, capsys):
    folder = run_folder(place)
    (folder / "checkpoints" / "last.ckpt").mkdir(parents=True)

    assert "trust=[checkpoints]" in refusal(folder)
    code, output = ended([*SFT, f"output_dir={folder}", "if_exists=resume"], monkeypatch, capsys)
    assert code == 2
    assert "trust=[checkpoints]" in output
    assert not Path(MARK).exists()


class Evil:
    """Unpickled, it leaves the mark."""

    def __reduce__(self):
        return (Path.touch, (Path(MARK),))


def test_a_checkpoint_that_is_a_pickle_runs_nothing(place):
    import torch

    folder = run_folder(place)
    (folder / "checkpoints").mkdir()
    torch.save({"global_step": Evil()}, folder / "checkpoints" / "last.ckpt")

    with pytest.raises(Exception, match=r"[Ww]eights"):
        reached_step(folder)

    assert not Path(MARK).exists()
    torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)
    assert Path(MARK).exists()  # so the file was one that runs something


# ---- search spaces and studies


@cache
def searched(*overrides):
    """The configuration of a search, whose `space` and `trust` a test fills in."""
    return compose("tune", [*overrides, "space=space.yaml", "study=s.db"], source_of()).config


def check_space(text, *overrides, trust=None):
    Path("space.yaml").write_text(text)
    check_tune(OmegaConf.merge(searched(*overrides), {"trust": trust}), False)


@pytest.mark.parametrize(
    ("key", "choices", "words"),
    [
        ("stage.module.optimization._target_", "[os.system, os.mkdir]", "os.system"),
        (
            "stage.module.optimization._target_",
            "[search_r3.files.write_text, os.mkdir]",
            "search_r3.files",
        ),
        ("stage.module.optimization._target_", "[my_rules.Rule, my_rules.reward]", "trust=[my_rules]"),
        ("stage.module.optimization._target_", "[1, 2]", "dotted name"),
        ("stage.module.seed", "[{_target_: os.system}, 1]", "a choice must be"),
        ("stage.module.seed", "[[{_target_: os.system}], 1]", "a choice must be"),
        ("stage.callbacks.checkpoint.folder", "[/etc, /home]", "cannot be searched"),
        ("data._convert_", "[all, none]", "cannot be searched"),
        ("trust", "[a, b]", "cannot be searched"),
        ("resume", "[a, b]", "cannot be searched"),
        ("if_exists", "[refuse, resume]", "cannot be searched"),
    ],
)
def test_a_search_space_has_nothing_called_that_conf_does_not_build(place, key, choices, words):
    with pytest.raises(UsageError) as refused:
        check_space(f"{key}: {{choices: {choices}}}", *SFT)

    assert str(refused.value).startswith(f"space=space.yaml: {key}")
    assert words in str(refused.value)
    assert not (place / "imported").exists()


def test_a_search_space_chooses_among_builders_and_what_the_user_names(place):
    space = "reward.ranking._target_: {choices: [search_r3.objectives.rewards.dcg, my_rules.reward]}"
    (place / "model").mkdir()
    (place / "model" / "search_r3.json").write_text("{}")

    with pytest.raises(UsageError, match=r"trust=\[my_rules\]"):
        check_space(space, *RL)
    check_space(space, *RL, trust=["my_rules"])
    own = OmegaConf.merge(searched(*RL), {"reward": {"ranking": {"_target_": "my_rules.reward"}}})
    check_tune(own, False)  # as on the command line, which names it already


def test_text_of_a_search_space_is_no_yaml_object_and_no_reference(place):
    (place / "space.yaml").write_text("a: !!python/object/apply:os.mkdir [ran]")
    with pytest.raises(UsageError, match=r"space\.yaml"):
        read_space(place / "space.yaml", {"a": 1})
    assert not Path(MARK).exists()


def test_a_study_that_somebody_else_wrote_is_read_as_json(place, monkeypatch):
    """Optuna keeps a study in SQLite as numbers and JSON; the sampler that unpickles (CMA-ES) is not used."""
    import pickle

    import optuna

    storage = f"sqlite:///{place}/s.db"
    study = optuna.create_study(study_name="search-r3", storage=storage)
    study._storage.set_study_system_attr(study._study_id, "cma:optimizer", pickle.dumps(Evil()).hex())
    study.set_user_attr("x", pickle.dumps(Evil()).hex())
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("a study was unpickled"))

    study = optuna.load_study(study_name="search-r3", storage=storage, sampler=optuna.samplers.TPESampler())
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 0.5)

    assert not Path(MARK).exists()
