"""What a user names with `trust=` may be called of a stored configuration, and nothing else."""

import pytest
import trusting
import yaml
from trusting import SFT, edited, refusal, resumed_config, run_folder, source_of

from search_r3.cli.compose import compose
from search_r3.cli.trust import checked_trust
from search_r3.errors import UsageError

place = trusting.place  # fixture


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
