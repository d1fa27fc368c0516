"""Precision and attention by measurement: once for a run, and another one only where it is clearly faster."""

import json

import pytest
from plain_folders import opened
from test_positions import plain
from transformers import GPTJConfig

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.errors import UsageError
from search_r3.models.checksums import ModelFolderError
from search_r3.models.measured import MEASURED, Way, chosen, measure, settled, ways
from search_r3.train import check
from tests.command import call

EAGER, SDPA = Way("32-true", "eager"), Way("32-true", "sdpa")
TEXTS = [f"def add_{n}(x): return x + {n}" for n in range(20)]


def test_what_is_fixed_stays_and_the_usual_way_comes_first():
    usual = Way("32-true", "eager")

    everything = ways(MEASURED, MEASURED, usual)
    assert everything[0] == usual
    assert len(set(everything)) == 4
    assert ways("bf16-mixed", MEASURED, usual) == [Way("bf16-mixed", "eager"), Way("bf16-mixed", "sdpa")]
    assert ways(MEASURED, "sdpa", usual) == [SDPA, Way("bf16-mixed", "sdpa")]


def test_every_way_is_measured_and_the_model_is_left_as_it_was(embedder):
    before = embedder.causal_lm.config._attn_implementation
    weights = [weight.clone() for weight in embedder.parameters()]

    speeds = measure(embedder, TEXTS, ways(MEASURED, MEASURED, EAGER), seconds=0)

    assert list(speeds) == ways(MEASURED, MEASURED, EAGER)
    assert min(speeds.values()) > 0
    assert embedder.causal_lm.config._attn_implementation == before
    assert all(weight.grad is None for weight in embedder.parameters())
    assert all(old.equal(new) for old, new in zip(weights, embedder.parameters(), strict=True))


def test_an_attention_that_an_architecture_lacks_is_no_choice(tmp_path):
    config = GPTJConfig(n_embd=32, n_layer=1, n_head=4, n_positions=256, rotary_dim=4)
    embedder = opened(plain(tmp_path / "gptj", config), attention="eager")

    speeds = measure(embedder, TEXTS, [EAGER, SDPA], seconds=0)

    assert list(speeds) == [EAGER]
    assert embedder.causal_lm.config._attn_implementation == "eager"


def test_another_way_is_taken_only_where_it_is_clearly_faster():
    assert chosen({EAGER: 100.0, SDPA: 109.0}) == EAGER
    assert chosen({EAGER: 100.0, SDPA: 111.0}) == SDPA
    assert chosen({EAGER: 100.0, SDPA: 50.0}) == EAGER


def test_a_run_keeps_what_was_measured_first(embedder, tmp_path):
    file = tmp_path / "measured.json"
    way, speeds = settled(file, embedder, TEXTS, [EAGER, SDPA])
    assert set(speeds) == {EAGER, SDPA}
    assert way in speeds
    content = json.loads(file.read_text())
    content["chosen"] = {"precision": "32-true", "attention": "sdpa"}
    file.write_text(json.dumps(content))

    assert settled(file, embedder, TEXTS, [EAGER]) == (SDPA, speeds)

    file.write_text("{}")
    with pytest.raises(ModelFolderError, match=r"measured\.json: does not hold what was measured"):
        settled(file, embedder, TEXTS, [EAGER])


def test_a_run_says_what_it_measured_and_its_resumption_measures_nothing(tmp_path):
    arguments = ["strategy.precision=measured", "output_dir=run"]
    code, output = call("train", *arguments, "stage.trainer.max_steps=2", cwd=tmp_path)
    assert code == 0, output
    assert "measured here: precision " in output
    file = tmp_path / "run" / "measured.json"
    content = json.loads(file.read_text())
    content["chosen"] = {"precision": "32-true", "attention": "eager"}
    file.write_text(json.dumps(content))

    code, output = call("train", *arguments, "stage.trainer.max_steps=4", "if_exists=resume", cwd=tmp_path)

    assert code == 0, output
    assert "measured here: precision 32-true and attention eager" in output
    assert json.loads(file.read_text()) == content


@pytest.mark.parametrize("key", ["strategy.precision", "model.attention"])
def test_nothing_is_measured_for_a_gpu(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("search_r3.cli.training_checks.visible_gpus", lambda: 1)
    monkeypatch.setattr("search_r3.cli.training_checks.torch_is_cpu_build", lambda: False)
    with ConfigSource() as source:
        config = compose("train", ["stage=sft", "strategy=gpu", f"{key}=measured"], source).config

    with pytest.raises(UsageError, match=rf"{key}=measured is for CPUs; on a GPU give {key}="):
        check(config, False)
