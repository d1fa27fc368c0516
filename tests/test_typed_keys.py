"""A mistyped key or option is answered with the one that is meant, and `--help` has a line for every key."""

import pytest
from omegaconf import OmegaConf

from search_r3.cli.compose import compose, resolved_yaml
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.entry import Entry
from search_r3.cli.help import help_text
from search_r3.errors import UsageError
from tests.command import run


@pytest.fixture(scope="module")
def source():
    with ConfigSource() as source:
        yield source


def refusal(source, *arguments: str) -> str:
    with pytest.raises(UsageError) as refused:
        compose("train", list(arguments), source)
    return str(refused.value)


MEANT = {
    ("stge=sft",): "no key stge. Did you mean stage?",
    ("stage=sft", "modle=nano"): "no key modle. Did you mean model",
    ("lr=0.1",): "no key lr. Did you mean stage.module.optimization.learning_rate",
    ("stage=rl", "lr=0.1"): "Did you mean stage.module.optimization.learning_rate?",
    ("stage=sft", "model.lr=0.1"): "Did you mean stage.module.optimization.learning_rate?",
    ("stage=sft", "bs=8"): "Did you mean stage.datamodule.batch_size?",
    ("stage=sft", "batchsize=8"): "Did you mean stage.datamodule.batch_size",
    ("stage=sft", "steps=3"): "Did you mean stage.trainer.max_steps?",
    ("stage=sft", "epochs=3"): "Did you mean stage.trainer.max_steps?",
    ("stage=rl", "group=4"): "Did you mean stage.module.rollouts.group_size?",
    ("stage=rl", "temperatur=1"): "stage.module.rollouts.temperature",
    ("sft",): "The form is key=value; quote text. Did you mean stage=sft?",
}


@pytest.mark.parametrize("arguments", MEANT, ids=" ".join)
def test_a_key_that_is_not_there_is_answered_with_the_whole_key_that_is_meant(source, arguments) -> None:
    assert MEANT[arguments] in refusal(source, *arguments)


@pytest.mark.parametrize("arguments", [["seed=3"], ["trust=[mine]", "refresh.budget=3"], []])
def test_a_stage_that_is_missing_is_told_where_every_key_could_mean_something(source, arguments) -> None:
    assert refusal(source, *arguments).startswith("stage= is missing. Choices:")


def help_of(source, name: str, *overrides: str) -> list[str]:
    entry = Entry(name, lambda config: None, lambda config, is_sweep: None, None, None, f"src.{name}")
    return help_text(entry, source, overrides).splitlines()


def line_of(lines: list[str], key: str) -> str:
    return next(line for line in lines if line.startswith(f"  {key}="))


def test_help_has_a_line_for_every_key_of_the_command_and_of_index_refresh_and_reward(source) -> None:
    lines = help_of(source, "train")

    assert "go on with the run that is in output_dir" in line_of(lines, "if_exists")
    assert "retrieved per rollout" in line_of(lines, "refresh.rule.k")
    assert "ranks beyond it earn 0" in line_of(lines, "reward.ranking.k")
    assert any(line.startswith("index=flat  Exact, in place") for line in lines)
    assert not any("stage.module." in line for line in lines), "a stage has keys where it is chosen"
    assert any("stage=sft --help" in line for line in lines)


def test_help_shows_the_keys_of_what_is_chosen(source) -> None:
    lines = help_of(source, "train", "stage=rl", "refresh=certified", "index=ivf")

    assert "share of rollouts that may get another reward" in line_of(lines, "refresh.rule.miscoverage")
    assert "lists searched per query" in line_of(lines, "index.n_probe")
    assert "queries per step of all ranks" in line_of(lines, "stage.datamodule.batch_size")
    assert not any(line.startswith("  refresh.rule.k=") for line in lines), "that is refresh=candidates"


def test_help_of_a_command_that_builds_on_another_has_the_keys_of_both(source) -> None:
    lines = help_of(source, "tune")

    assert "run again to go on" in line_of(lines, "n_trials")
    assert line_of(lines, "save_dtype")


NOT_PRINTED = {
    ("stage=sft", "data=beir", "+data.weights.a=1"): "there is no key data.weights.a",
    ("stage=sft", "stage.moduel.x=1"): "there is no key stage.moduel.x",
    ("stage=sft", "seed=-1"): "seed=-1",
    ("stage=sft", "--multirun"): "leave --multirun out",
}


@pytest.mark.parametrize("arguments", NOT_PRINTED, ids=" ".join)
def test_a_configuration_is_printed_only_if_the_run_would_take_its_keys(tmp_path, arguments) -> None:
    done = run("train", *arguments, "--cfg", "job", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert NOT_PRINTED[arguments] in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_configuration_is_printed_with_added_keys_and_with_values_that_are_missing(tmp_path) -> None:
    added = "strategy.gradient_clip_val=2"
    done = run("train", "stage=sft", "data=beir", added, "hydra.job.name=mine", "--cfg", "all", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    printed = OmegaConf.create(done.stdout)
    assert OmegaConf.is_missing(printed.data, "path")
    assert (printed.strategy.gradient_clip_val, printed.hydra.job.name) == (2, "mine")


def test_the_configuration_that_a_run_goes_on_with_is_printed_and_keys_that_it_refuses_are_not(
    source, tmp_path
) -> None:
    config = compose("train", ["stage=sft", "model=nano", "stage.trainer.max_steps=2"], source).config
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(resolved_yaml(config))

    done = run("train", "resume=run", "stage.trainer.max_steps=5", "--cfg", "job", "--resolve", cwd=tmp_path)
    refused = run("train", "resume=run", "seed=5", "--cfg", "job", cwd=tmp_path)
    whole = run("train", "resume=run", "--cfg", "all", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    printed = OmegaConf.create(done.stdout)
    assert (printed.stage.name, printed.stage.trainer.max_steps, printed.output_dir) == ("sft", 5, "run")
    assert (refused.returncode, refused.stdout) == (whole.returncode, whole.stdout) == (2, "")
    assert "seed" in refused.stderr
    assert "--cfg job prints it whole" in whole.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_flag_of_printing_without_it_starts_no_run(tmp_path) -> None:
    done = run("train", "stage=sft", "--resolve", cwd=tmp_path)

    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "--resolve is for --cfg" in done.stderr
