"""Keys that another key leaves without effect are told, and no others are."""

import pytest
from omegaconf import OmegaConf

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.run import execute
from search_r3.cli.without_effect import IDLE, without_effect
from tests.tiny_stage import write_configs

SFT = ["stage=sft", "model=nano_scratch"]
RL = ["stage=rl", "model=trained"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    with ConfigSource(write_configs(tmp_path_factory.mktemp("conf"))) as opened:
        yield opened


def told(source, *arguments: str) -> list[str]:
    composed = compose("train", arguments, source)
    return list(without_effect(composed.config, composed.overrides))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            [*SFT, "stage.module.losses.temperature=0.1", "stage.module.losses.info_nce=0"],
            "stage.module.losses.temperature has no effect: stage.module.losses.info_nce=0",
        ),
        (
            [*RL, "stage.module.policy.clip_high=0.4"],
            "stage.module.policy.clip_high has no effect: stage.module.policy.n_updates=1",
        ),
        (
            [*RL, "kl=k1", "stage.module.policy.kl_weight=0.0"],
            "kl has no effect: stage.module.policy.kl_weight=0",
        ),
        (
            [*RL, "stage.module.policy.std_floor=0.1", "stage.module.policy.scale_by_std=false"],
            "stage.module.policy.std_floor has no effect: stage.module.policy.scale_by_std=false",
        ),
        (
            [*SFT, "stage.callbacks.checkpoint.mode=min", "stage.callbacks.checkpoint.monitor=null"],
            "stage.callbacks.checkpoint.mode has no effect: stage.callbacks.checkpoint.monitor=null",
        ),
        (
            ["stage=pretrain", "data=mixture", "data.sources.beir.path=here", "data.weights.beir=3"],
            "data.weights.beir has no effect: stage.name=pretrain",
        ),
        (
            [*RL, "refresh=frozen", "refresh.budget=5"],
            "refresh.budget has no effect: refresh.rule._target_=search_r3.index.rules.frozen.Frozen",
        ),
    ],
)
def test_a_key_that_nothing_reads_is_told_with_the_reason(source, arguments, line):
    assert told(source, *arguments) == [line]


@pytest.mark.parametrize(
    "arguments",
    [
        [*SFT, "stage.module.losses.info_nce=0"],  # the temperature was not given by hand
        [*SFT, "stage.module.losses.temperature=0.1"],
        [*RL, "stage.module.policy.clip_high=0.4", "stage.module.policy.n_updates=2"],
        [*RL, "stage.module.n_retrieved=8"],  # the table of completions shows them
        [*SFT, "data=beir", "data.path=here", "data.allow_empty_documents=true"],  # which has no data.corpus
    ],
)
def test_a_key_that_is_read_is_not_told(source, arguments):
    assert told(source, *arguments) == []


def test_every_key_of_the_table_is_one_of_a_configuration(source):
    mixture = ["stage=pretrain", "data=mixture", "data.sources.beir.path=here"]
    stages = (SFT, RL, [*SFT, "data=triples"], mixture)
    known = [compose("train", each, source) for each in stages]
    for keys, others in IDLE:
        for key in {*keys, *others} - {"kl"}:
            found = [OmegaConf.select(each.config, key, default="???") != "???" for each in known]
            assert any(found), key


def test_the_log_of_a_run_tells_it(source, tmp_path):
    arguments = ["stage=tiny", "data=tiny", "model=tiny", "stage.callbacks.checkpoint.monitor=null"]
    composed = compose("train", [*arguments, "+stage.callbacks.checkpoint.mode=min"], source)
    execute("train", lambda config: None, composed, tmp_path / "run")
    assert "stage.callbacks.checkpoint.mode has no effect: " in (tmp_path / "run" / "train.log").read_text()
