"""Where a folder of a stranger may write, and what its checkpoints, search spaces and studies may call."""

import shutil
from functools import cache
from pathlib import Path

import pytest
import trusting
from evil_pickles import MARK, Evil
from omegaconf import OmegaConf
from trusting import RL, SFT, edited, ended, refusal, resumed_config, run_folder, source_of

from search_r3.cli.compose import compose
from search_r3.errors import UsageError
from search_r3.train import reached_step
from search_r3.tune import check as check_tune
from search_r3.tune import read_space

place = trusting.place  # fixture


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
