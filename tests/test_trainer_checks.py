"""Which arguments of Lightning's Trainer a run takes: none that would have no effect on it."""

import pytest

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.errors import UsageError
from search_r3.train import check, run
from tests.tiny_stage import write_configs

STAGE = ["stage=sft", "model=nano_scratch"]
REFUSED = {
    "epochs without an end": (
        ["stage.trainer.max_epochs=3"],
        ["max_epochs=3", "max_steps", "limit_train_batches"],
    ),
    "a least number of such epochs": (["+stage.trainer.min_epochs=1"], ["min_epochs=1", "no epoch ends"]),
    "validation at every other one": (
        ["stage.trainer.check_val_every_n_epoch=2"],
        ["check_val_every_n_epoch=2", "no epoch ends"],
    ),
    "in another node": (["+debug.max_epochs=3"], ["debug.max_epochs=3"]),
    "a share of batches": (["stage.trainer.limit_train_batches=0.5"], ["=0.5", "no share of all"]),
    "a share of them twice": (["debug=overfit", "debug.overfit_batches=0.1"], ["=0.1", "no share of all"]),
    "validation at a share": (["stage.trainer.val_check_interval=0.5"], ["=0.5", "no share of all"]),
    "the first batches again": (
        ["stage.trainer.limit_train_batches=3", "stage.trainer.reload_dataloaders_every_n_epochs=1"],
        ["reload_dataloaders_every_n_epochs=1", "first batches again"],
    ),
    "clipping in another node": (
        ["strategy.gradient_clip_val=1.0"],
        ["strategy.gradient_clip_val", "max_grad_norm"],
    ),
    "a logger": (["stage.trainer.logger=false"], ["stage.trainer.logger", "logger="]),
    "callbacks": (["stage.trainer.callbacks=[]"], ["stage.trainer.callbacks", "stage.callbacks"]),
    "precision beside the strategy": (["stage.trainer.precision=16-true"], ["set strategy.precision"]),
    "devices beside the strategy": (["+debug.devices=2"], ["debug.devices", "set strategy.devices"]),
    "a root": (["stage.trainer.default_root_dir=here"], ["output_dir="]),
}


@pytest.fixture(scope="module")
def source():
    with ConfigSource() as opened:
        yield opened


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_that_would_have_no_effect_is_refused_with_what_has_one(source, name):
    overrides, words = REFUSED[name]
    with pytest.raises(UsageError) as refusal:
        check(compose("train", [*STAGE, *overrides], source).config, False)
    for word in words:
        assert word in str(refusal.value)


TAKEN = {
    "epochs of so many batches": ["stage.trainer.limit_train_batches=3", "stage.trainer.max_epochs=2"],
    "validation behind each of them": [
        "stage.trainer.limit_train_batches=3",
        "stage.trainer.check_val_every_n_epoch=1",
        "stage.trainer.val_check_interval=1.0",
    ],
    "no limit": ["stage.trainer.limit_train_batches=1.0", "stage.trainer.max_epochs=-1"],
    "the same batches": ["debug=overfit", "stage.trainer.max_epochs=4"],
}


@pytest.mark.parametrize("name", TAKEN)
def test_epochs_count_where_they_have_a_number_of_batches(source, name):
    check(compose("train", [*STAGE, *TAKEN[name]], source).config, False)


def test_a_callback_that_cannot_be_made_is_met_before_data_are_read(tmp_path):
    write_configs(tmp_path / "conf")
    arguments = ["stage=tiny", "model=tiny", "data=tiny", "stage.callbacks.checkpoint.mode=highest"]
    with ConfigSource(tmp_path / "conf") as own:
        config = compose("train", [*arguments, "data.is_broken=true", f"output_dir={tmp_path}"], own).config
    with pytest.raises(Exception, match='checkpoint mode must be "max" or "min"'):
        run(config)
