"""Searches: the space is checked, the study goes on, a bad trial is cut short."""

import json
import shlex

import optuna
import pytest
from omegaconf import OmegaConf

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.overrides import quote_free_text
from search_r3.cli.tuning.space import Dimension
from search_r3.cli.tuning.study import finished_count, open_study, report, trials_table
from search_r3.errors import UsageError
from search_r3.tune import check, read_space
from tests.command import call, run

CONFIG = {"seed": 1, "study": "s.db", "stage": {"module": {"learning_rate": 0.1, "layers": 2}}}
KEY = "stage.module.learning_rate"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stage.modul.learning_rate: {low: 0.1, high: 1.0}", "Did you mean stage.module.learning_rate"),
        (f"{KEY}: 3", "must be {low:, high:}"),
        (f"{KEY}: {{low: 1.0, high: 0.1}}", "low must be below high"),
        (f"{KEY}: {{low: 1e-5, high: 0.1}}", "write 1.0e-5"),
        (f"{KEY}: {{low: 0, high: 1, log: true}}", "log needs low above 0"),
        (f"{KEY}: {{low: 0.1}}", "high must be a number"),
        (f"{KEY}: {{choices: [1]}}", "two or more"),
        (f"{KEY}: {{low: 0.1, hihg: 1.0}}", "unknown entry hihg"),
        ("stage.module: {choices: [1, 2]}", "name a single value"),
        ("study: {choices: [a, b]}", "cannot be searched"),
        ("- a", "must map keys"),
        ("a: [", "space="),
    ],
)
def test_a_bad_search_space_is_refused_with_its_file_and_rule(tmp_path, text, words):
    path = tmp_path / "space.yaml"
    path.write_text(text)

    with pytest.raises(UsageError) as refusal:
        read_space(path, CONFIG)

    assert words in str(refusal.value)
    assert "space.yaml" in str(refusal.value)


@pytest.mark.parametrize("name", ["a?b.db", "{x}/s.db", "100%.db"])
def test_a_study_that_its_database_could_not_open_is_refused(tmp_path, name):
    space = tmp_path / "space.yaml"
    space.write_text("stage.module.losses.temperature: {low: 0.1, high: 1.0}\n")
    arguments = quote_free_text(["stage=sft", f"space={space}", f"study={tmp_path}/{name}"])
    with ConfigSource() as source, pytest.raises(UsageError, match="cannot hold a study"):
        check(compose("tune", arguments, source).config, False)


def test_whole_ends_search_whole_numbers():
    whole, real = Dimension(KEY, low=2, high=4), Dimension("x", low=2.0, high=4.0)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()

    assert whole.suggest(trial) in (2, 3, 4)
    assert isinstance(real.suggest(trial), float)


def test_pitfall_20_a_search_finds_the_better_end_prunes_and_goes_on_where_it_stopped(tmp_path):
    (tmp_path / "space.yaml").write_text("stage.module.learning_rate: {low: 1.0e-3, high: 1.0, log: true}\n")
    common = ["space=space.yaml", "study=my study.db", "startup_trials=2", "pruner_warmup=0"]
    common += ["stage.trainer.max_steps=6", "monitor=val/direct/ndcg@10"]

    code, output = call("tune", *common, "n_trials=4", cwd=tmp_path)
    assert code == 0, output
    study = optuna.load_study(study_name="search-r3", storage=f"sqlite:///{tmp_path}/my study.db")
    assert len(study.trials) == 4
    study.ask(
        {KEY: optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)}
    )  # a process that was killed here

    code, output = call("tune", *common, "n_trials=8", cwd=tmp_path)
    assert code == 0, output
    study = optuna.load_study(study_name="search-r3", storage=f"sqlite:///{tmp_path}/my study.db")
    states = [trial.state.name for trial in study.trials]
    assert states.count("COMPLETE") + states.count("PRUNED") == 8
    assert states.count("FAIL") == 1  # the killed one, tried again under another number
    assert "PRUNED" in states
    assert study.trials[5].params == study.trials[4].params

    # Larger steps shrink the weights faster and the metric falls with their size: the best of the finished
    # trials has the largest learning rate.
    for trial in study.trials[5:]:
        end = "pruned at" if trial.state.name == "PRUNED" else "val/direct/ndcg@10"
        assert f"trial {trial.number} ended: {end} {trial.value:.4f}, {KEY}={trial.params[KEY]:.4g}" in output
    finished = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    best = json.loads((tmp_path / "my study" / "best.json").read_text())
    assert best["settings"][KEY] == max(trial.params[KEY] for trial in finished)
    assert best["settings"][KEY] > 1e-2
    assert (tmp_path / "my study" / "history.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "my study" / str(best["number"]) / "model").is_dir()

    shown = run("report", "my study", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert f"{best['number']}    {KEY}=" in shown.stdout  # its line in the table of trials

    code, output = call("tune", *common, "n_trials=9", "seed=2", cwd=tmp_path)
    assert code == 2
    assert "its trials ran with another configuration (" in output
    assert "; seed: 1 -> 2), so" in output

    (tmp_path / "space.yaml").write_text("stage.module.learning_rate: {low: 1.0e-3, high: 0.5, log: true}\n")
    code, output = call("tune", *common, "n_trials=9", cwd=tmp_path)
    assert code == 2
    assert "another space" in output


@pytest.mark.parametrize("damage", ["cut", "text", "emptied header", "emptied", "removed"])
def test_a_damaged_study_is_refused_with_its_name(tmp_path, damage):
    (tmp_path / "space.yaml").write_text(f"{KEY}: {{low: 0.1, high: 1.0}}")
    (tmp_path / "study").mkdir()
    config = OmegaConf.create(
        {
            "study": str(tmp_path / "study.db"),
            "direction": "maximize",
            "startup_trials": 2,
            "pruner_warmup": 0,
        }
        | {"seed": 1, "space": str(tmp_path / "space.yaml"), "monitor": "m"}
    )
    file = tmp_path / "study.db"
    open_study(config)
    content = file.read_bytes()
    damaged = {"cut": content[: len(content) // 2], "text": b"no database " * 99, "emptied": b""}
    file.write_bytes(damaged.get(damage, b"\0" * 5000))
    if damage == "removed":
        file.unlink()

    with pytest.raises(UsageError, match=r"study=.*study\.db: (cannot be read \(|is missing or empty)"):
        open_study(config)


def test_a_trial_that_failed_does_not_count_and_stands_in_the_table():
    study = optuna.create_study()
    study.add_trial(optuna.trial.create_trial(value=0.5, params={}, distributions={}))
    failed = optuna.trial.create_trial(
        state=optuna.trial.TrialState.FAIL, params={}, distributions={}, user_attrs={"error": "no memory"}
    )
    study.add_trial(failed)

    assert finished_count(study) == 1
    assert [line.split()[:3] for line in trials_table(study, "score").splitlines()[2:]] == [
        ["0", "complete", "0.5000"],
        ["1", "fail", "no"],
    ]


def test_the_best_settings_are_told_as_a_command_line_that_composes_to_them(tmp_path, caplog):
    settings = {
        "stage.trainer.gradient_clip_val": None,
        "stage.module.policy.scale_by_std": False,
        "stage.module.optimization.learning_rate": 1e-05,
        "data.name": "of us, both",
        "data.path": "a folder/it's",
    }
    choices = {key: optuna.distributions.CategoricalDistribution((value,)) for key, value in settings.items()}
    study = optuna.create_study()
    study.add_trial(optuna.trial.create_trial(value=0.5, params=settings, distributions=choices))

    with caplog.at_level("INFO"):
        report(study, tmp_path, "score")
    (line,) = (text for text in caplog.messages if text.startswith("run it: "))
    typed = shlex.split(line.partition("...")[2])
    with ConfigSource() as source:
        composed = compose("train", quote_free_text(["stage=rl", "data=beir", *typed]), source).config

    assert {key: OmegaConf.select(composed, key) for key in settings} == settings


def test_a_search_whose_trials_all_fail_ends(tmp_path):
    (tmp_path / "space.yaml").write_text(f"{KEY}: {{low: 0.1, high: 1.0}}\n")
    code, output = call(
        "tune", "space=space.yaml", "study=s.db", "n_trials=9", "data.is_broken=true", cwd=tmp_path
    )

    assert code == 1
    assert "3 trials failed one after another" in output
    assert output.count(" ended: failed (") == 3
