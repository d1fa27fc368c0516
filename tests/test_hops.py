"""The controlled experiment: its three stages and its evaluation, chained as `make hops` chains them."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from experiments.freshness import outcome
from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.evaluation.report import model_names
from tests.command import run

ROOT = Path(__file__).resolve().parents[1]
WORLD = [
    "data.sizes={sft_people: 12, sft_queries: 8, rl_people: 8, validation_people: 4, test_people: 6, "
    "companies: 6, sft_companies: 4, cities: 5, regions: 2}",
    "data.text.lines=300",
]
STAGES = ("pretrain", "sft", "rl")
TINY = {
    "pretrain": [
        "model.create.vocab_size=500",
        "model.create.hidden_size=32",
        "model.create.intermediate_size=32",
        "model.create.num_hidden_layers=1",
        "stage.datamodule.batch_size=4",
    ],
    "sft": ["stage.datamodule.batch_size=4"],
    "rl": ["stage.datamodule.batch_size=2", "stage.module.rollouts.group_size=2"],
}


def recipe(*variables):
    """The commands of `make hops`, without those that make the environment."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "hops", f"VENV={ROOT / 'no'}", *variables],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [re.sub(r"^\S*/bin/python -m ", "", line) for line in lines if " -m src." in line]


def made(command, cwd, *more):
    """A command of the recipe, without `python -m`, and what it left."""
    module, *arguments = command.split()
    return run(module.removeprefix("src."), *arguments, *more, cwd=cwd)


def tiny(command):
    """What makes a command of the recipe small."""
    if "src.report" in command:
        return []
    stage = next((stage for stage in STAGES if f"hops_{stage}" in command), None)
    if stage is None:
        return WORLD
    steps = ["stage.trainer.max_steps=2", "stage.trainer.log_every_n_steps=1"]
    check = [] if stage == "pretrain" else ["stage.trainer.val_check_interval=2"]
    return [*WORLD, *TINY[stage], *steps, *check]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the recipe was run from start to end, on a tiny world."""
    folder = tmp_path_factory.mktemp("hops")
    for command in recipe():
        done = made(command, folder, *tiny(command))
        assert done.returncode == 0, command + done.stderr + done.stdout
    return folder


def test_the_recipe_leaves_the_rows_of_both_models_and_of_the_controls_in_one_file(folder):
    content = json.loads((folder / "outputs/hops/metrics.json").read_text())

    found = [(row["mode"], row["model"].split("/")[2:3]) for row in content["rows"]]
    assert found == [
        ("bm25", []),
        ("direct", ["sft"]),
        ("reasoning", ["sft"]),
        ("direct", ["rl"]),
        ("reasoning", ["rl"]),
        ("base-reasoning", ["rl"]),
        ("shuffled-reasoning", ["rl"]),
    ]
    assert {(row["benchmark"], row["n_queries"], row["n_docs"]) for row in content["rows"]} == {
        ("hops-test", 6, 5)
    }
    hashes = {
        tuple(model): row["weights_sha256"] for (_, model), row in zip(found, content["rows"], strict=True)
    }
    assert len(set(hashes.values())) == 3  # none of BM25, one of each model
    assert (folder / "outputs/hops/metrics.png").stat().st_size > 0
    differences = content["training"]["differences"]
    assert [each["less"]["mode"] for each in differences] == [mode for mode, _ in found[:4] + found[5:]]
    means = [row["metrics"]["ndcg@10"] for row in content["rows"]]
    others = means[:4] + means[5:]
    assert [each["difference"] for each in differences] == pytest.approx([means[4] - mean for mean in others])


def test_the_sft_models_reasoning_is_what_the_rl_model_embeds_in_the_control(folder):
    def written(stage, mode):
        file = folder / "outputs/hops/eval" / stage / "hops-test" / mode / "reasoning.jsonl"
        return [json.loads(line)["reasoning"] for line in file.open()]

    assert written("rl", "base-reasoning") == written("sft", "reasoning")


def test_a_second_run_trains_nothing_and_says_the_same(folder):
    names = ("base", "sft", "rl")
    models = [folder / "outputs/hops" / name / "model" / "model.safetensors" for name in names]
    before = [file.stat().st_mtime_ns for file in models]
    rows = json.loads((folder / "outputs/hops/metrics.json").read_text())["rows"]
    commands = recipe()
    for command in (commands[2], *commands[4:]):
        done = made(command, folder, *tiny(command))
        assert done.returncode == 0, command + done.stderr + done.stdout

    assert [file.stat().st_mtime_ns for file in models] == before
    assert json.loads((folder / "outputs/hops/metrics.json").read_text())["rows"] == rows


def test_what_a_rule_costs_and_reaches_is_read_from_its_run_and_its_evaluation(folder, tmp_path, capsys):
    (tmp_path / "1" / "eval").mkdir(parents=True)
    (tmp_path / "1" / "rl-candidates").symlink_to(folder / "outputs/hops/rl")
    (tmp_path / "1" / "eval" / "rl-candidates").symlink_to(folder / "outputs/hops/eval/rl")
    (tmp_path / "1" / "rl-full").mkdir()

    assert outcome.main([str(tmp_path), "--output", str(tmp_path / "outcome.json")]) == 0

    (row,) = json.loads((tmp_path / "outcome.json").read_text())["rows"]
    (last,) = row.pop("curve")  # validated once, after the second step
    tested = json.loads((folder / "outputs/hops/eval/rl/metrics.json").read_text())["rows"]
    of_own_text = next(found for found in tested if found["mode"] == "reasoning")
    assert (row["rule"], row["seed"], row["steps"], row["corpus"]) == ("candidates", "1", 2, 5)
    assert (row["metrics"], row["ci95"]) == (of_own_text["metrics"], of_own_text["ci95"])
    assert last["step"] == 2
    assert 0 < last["documents"] == 2 * row["documents_per_step"] <= 2 * 5
    assert last["seconds"] == pytest.approx(2 * row["seconds_per_step"])
    assert (tmp_path / "outcome.png").stat().st_size > 0
    said = capsys.readouterr()
    assert "candidates" in said.out
    assert "rl-full is not evaluated" in said.err


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        outcome.main([str(tmp_path), "--output", str(tmp_path / "outcome.json")])
    assert "holds no evaluated <seed>/rl-<rule> of full, certified" in capsys.readouterr().err


def test_another_refresh_rule_shares_base_and_sft_and_another_seed_shares_nothing():
    full, other = recipe("REFRESH=full"), recipe("SEED=2", "REFRESH=frozen")

    assert [command for command in full if command in recipe()] == [recipe()[0], recipe()[1], recipe()[3]]
    assert "refresh=full" in full[2]
    assert "output_dir=outputs/hops/rl-full " in full[2]
    assert "--output outputs/hops/metrics-full.json --html outputs/hops/report-full.html" in full[-1]
    assert all("outputs/hops-seed2/" in command for command in other)
    assert not any("outputs/hops/" in command for command in other)
    assert all("data.seed=2" in command for command in other[:-1])


def test_stages_share_one_world_and_only_rl_asks_about_the_rl_people():
    with ConfigSource() as source:
        configs = {
            stage: compose(
                "train",
                [f"experiment=hops_{stage}", *([] if stage == "pretrain" else ["model.path=x"])],
                source,
            ).config
            for stage in STAGES
        }
        evaluated = compose("evaluate", ["data=hops"], source).config.data

    splits = {stage: config.data.pop("split") for stage, config in configs.items()}
    assert splits == {"pretrain": "sft", "sft": "sft", "rl": "rl"}
    assert {**evaluated} == {**evaluated} | {"split": "sft"}
    evaluated.pop("split")
    assert all(config.data == evaluated for config in configs.values())
    assert configs["sft"].stage.datamodule.batch_size <= evaluated.sizes.cities


def test_models_are_named_by_what_tells_their_folders_apart():
    def rows(*models, mode="direct"):
        return [{"benchmark": "a", "mode": mode, "model": m, "weights_sha256": m} for m in models]

    bm25 = [{"benchmark": "a", "mode": "bm25", "model": "bm25 (english)", "weights_sha256": None}]
    assert model_names([*bm25, *rows("o/sft/model", "o/rl/model")]) == {
        "o/sft/model": "sft",
        "o/rl/model": "rl",
    }
    assert model_names(rows("a", "b")) == {"a": "a", "b": "b"}
    assert model_names(rows("o/a", "o/b/c")) == {"o/a": "a", "o/b/c": "b/c"}
    assert model_names(rows("o/a/model", "o/a/b/model")) == {"o/a/model": "model", "o/a/b/model": "b/model"}
    assert model_names([*bm25, *rows("o/base", mode="base-direct"), *rows("o/sft")]) == {}


@pytest.mark.parametrize("key", ["commit", "seed"])
def test_files_of_two_experiments_are_not_joined(key, tmp_path):
    content = {"command": "c", "commit": "x", "seed": 1, "rows": []}
    for name, changed in (("a", {}), ("b", {key: 9})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(content | changed))
    done = run("report", "a", "b", "--output", "c.json", cwd=tmp_path)

    assert done.returncode == 2
    assert re.search(rf"differ in their {key} \(a/metrics.json: .*, b/metrics.json: 9\)", done.stderr)
    assert not (tmp_path / "c.json").exists()
