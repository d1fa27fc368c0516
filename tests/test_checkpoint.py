"""A real fit, saved, killed and resumed; its best checkpoint, and damaged ones."""

import os
import resource
import signal
import subprocess

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from small_fits import N_STEPS, Pairs, assert_same, fit
from torch import nn

from search_r3.stages.appended import MetricsTable, Records
from search_r3.stages.checkpoint import TrainableCheckpoint, frozen_sha256
from search_r3.stages.checkpoint_files import CheckpointError, HashedCheckpointIO, latest
from search_r3.stages.record import ValidationRecord
from tests.command import THREADS, forked


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    module = Pairs()
    fit(tmp_path_factory.mktemp("whole"), module)
    assert module.losses[-1] < module.losses[0]
    return module


def fit_until(folder, step):
    """What a process does that kills itself at a step."""
    torch.set_num_threads(THREADS)
    fit(folder, Pairs(kill_at=step))


def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path, uninterrupted):
    killed = forked(fit_until, tmp_path, 5)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = Pairs()
    trainer = fit(tmp_path, resumed, tmp_path / "last.ckpt")  # of step 4
    assert trainer.global_step == N_STEPS
    assert resumed.batches == uninterrupted.batches[4:]
    assert resumed.losses == uninterrupted.losses[4:]
    assert_same(resumed, uninterrupted)


@pytest.mark.parametrize("stop_at", [2, 3, 5])  # after a save, after a validation, after neither
def test_a_finished_run_goes_on_to_more_steps_as_if_never_stopped(tmp_path, uninterrupted, stop_at):
    fit(tmp_path, Pairs(), n_steps=stop_at)
    resumed = Pairs()
    fit(tmp_path, resumed, tmp_path / "last.ckpt")
    assert resumed.batches == uninterrupted.batches[stop_at:]
    assert_same(resumed, uninterrupted)


def test_validation_happens_at_the_same_steps_after_resuming(tmp_path):
    seen = []

    class Watch(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            seen.append(trainer.global_step)

    fit(tmp_path, Pairs(), callbacks=[Watch()])
    whole = seen.copy()
    assert whole == [3, 6]
    seen.clear()
    fit(tmp_path / "again", Pairs(), callbacks=[Watch()], n_steps=4)
    fit(tmp_path / "again", Pairs(), tmp_path / "again" / "last.ckpt", callbacks=[Watch()])
    assert seen == whole


def test_pitfall_17_a_checkpoint_loads_with_weights_only_and_holds_no_frozen_weight(tmp_path):
    module = Pairs()
    fit(tmp_path, module)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert set(state["state_dict"]) == trained
    assert "model.model.layers.1.mlp.up_proj.weight" in trained
    assert "model.model.layers.0.mlp.up_proj.weight" not in trained
    assert state["Rows"]["sampler"]["position"] == N_STEPS
    assert not list(tmp_path.glob("*.partial"))


def test_a_monitor_that_nothing_logs_is_met_before_the_first_step(tmp_path):
    module = Validated()
    with pytest.raises(ValueError, match=r"monitor 'val/scores' was not logged in validation; logged: .*val"):
        fit(tmp_path, module, monitor="val/scores", num_sanity_val_steps=1)
    assert module.batches == []


@pytest.mark.parametrize("n_first", [4, 5])  # a step that is saved for itself, and one that is the last
def test_a_run_whose_weights_lightning_averages_goes_on_as_if_it_had_never_stopped(tmp_path, n_first):
    def run(folder, n_steps, resume=None):
        module = Pairs()
        averaging = EMAWeightAveraging(decay=0.5)
        fit(folder, module, resume, n_steps, [averaging], every=2, limit_val_batches=0)
        return module

    whole, first = run(tmp_path / "whole", 8), run(tmp_path / "parts", n_first)
    rest = run(tmp_path / "parts", 8, tmp_path / "parts" / "last.ckpt")

    assert first.losses + rest.losses == whole.losses
    assert_same(rest, whole)  # the averages, which Lightning leaves in the module


class Validated(Pairs):
    """Scores are of the weights; a process may kill itself at a moment of a step."""

    def __init__(self, kill_at=None, moment=None):
        super().__init__()
        self.end = kill_at, moment

    def _end_at(self, moment):
        if self.end == (self.trainer.global_step, moment):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_start(self):
        self._end_at("validation starts")

    def validation_step(self, batch, batch_idx):
        weight = self.model.model.layers[1].self_attn.q_proj.weight
        self.log("val/score", (weight * torch.arange(16)).sin().sum())  # goes up and down

    def on_validation_end(self):
        self._end_at("validation ends")  # after the callbacks


def fit_with_records(folder, module, resume=None):
    record = ValidationRecord()
    fit(
        folder, module, resume, callbacks=[record, Records()], monitor="val/score", every=3,
        logger=MetricsTable(folder / "csv"),
    )  # fmt: skip
    return record.by_step


def end_in(folder, step, moment):
    """What a process does that kills itself at a moment of a step."""
    torch.set_num_threads(THREADS)
    fit_with_records(folder, Validated(step, moment))


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    folder, module = tmp_path_factory.mktemp("validated"), Validated()
    return folder, module, fit_with_records(folder, module)


@pytest.mark.parametrize("moment", ["validation starts", "validation ends"])
@pytest.mark.parametrize("step", [3, 6])
def test_a_kill_in_a_validation_that_falls_on_a_saved_step_loses_nothing(tmp_path, validated, step, moment):
    whole, module, by_step = validated
    done = forked(end_in, tmp_path, step, moment)
    assert done.returncode == -signal.SIGKILL, done.stderr

    for name in ("best.partial", "last.partial", "SHA256SUMS.12.part"):  # as other moments would leave them
        (tmp_path / name).write_text("half")
    resumed = Validated()
    found = fit_with_records(tmp_path, resumed, latest(tmp_path))

    assert_same(resumed, module)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in whole.iterdir()}
    assert found == by_step
    assert [list(metrics) for metrics in found.values()] == [["val/score"], ["val/score"]]
    assert (tmp_path / "csv/metrics.csv").read_bytes() == (whole / "csv/metrics.csv").read_bytes()
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        steps = [torch.load(each / name, weights_only=True)["global_step"] for each in (tmp_path, whole)]
        assert steps[0] == steps[1], name


DAMAGES = {
    "flipped": lambda content: (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 1])
        + content[len(content) // 2 + 1 :]
    ),
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_checkpoint_names_the_one_before_it_and_how_to_go_on(tmp_path, uninterrupted, damage):
    folder = tmp_path / "it's a run"
    fit(folder, Pairs(), n_steps=6)
    last = folder / "last.ckpt"
    last.write_bytes(DAMAGES[damage](last.read_bytes()))

    with pytest.raises(
        CheckpointError, match=r"last\.ckpt: is damaged.*previous\.ckpt, of step 4"
    ) as refused:
        fit(folder, Pairs(), last)
    subprocess.run(str(refused.value).partition("to go on from it: ")[2], shell=True, check=True)

    resumed = Pairs()
    fit(folder, resumed, last)
    assert_same(resumed, uninterrupted)


def test_a_damaged_or_missing_best_checkpoint_is_told_when_a_run_goes_on(tmp_path):
    folder = tmp_path / "it's a run"
    fit(folder, Pairs(scores=[0.5, 0.4]), monitor="score", n_steps=6)
    best, last = folder / "best.ckpt", folder / "last.ckpt"
    best.write_bytes(DAMAGES["flipped"](best.read_bytes()))
    with pytest.raises(CheckpointError, match=r"best\.ckpt: is damaged"):
        fit(folder, Pairs(), last, monitor="score")
    best.unlink()
    with pytest.raises(CheckpointError, match=r"best\.ckpt: is missing.*of step 3") as refused:
        fit(folder, Pairs(), last, monitor="score")

    subprocess.run(str(refused.value).partition("for the best: ")[2], shell=True, check=True)
    fit(folder, Pairs(scores=[0.1]), last, monitor="score", n_steps=9)
    assert torch.load(best, weights_only=True)["global_step"] == 9  # the best of what followed


def save_for_ever(content, path):
    while True:
        HashedCheckpointIO().save_checkpoint(content, path)


def test_an_interruption_in_a_save_is_one_and_no_full_disk(tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    content, before = {"w": torch.ones(1 << 24)}, signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay in (0.02, 0.05, 0.1, 0.2):  # of a save of a second
            signal.setitimer(signal.ITIMER_REAL, delay)
            with pytest.raises(KeyboardInterrupt):
                save_for_ever(content, tmp_path / "last.partial")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not (tmp_path / "last.partial").exists()


def test_a_checkpoint_is_streamed_to_the_disk(tmp_path):
    done = forked(save_large, tmp_path)
    assert done.returncode == 0, done.stderr
    grown, size = map(int, (tmp_path / "grown").read_text().split())
    assert size > 256 << 20
    assert grown < size / 4


def save_large(folder):
    """Saves 256 MiB and writes by how much the process grew, and how long the file is, in bytes."""
    content = {"weights": torch.ones(64 << 20)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    HashedCheckpointIO().save_checkpoint(content, folder / "large.ckpt")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    (folder / "grown").write_text(f"{grown} {(folder / 'large.ckpt').stat().st_size}")


def test_the_last_checkpoint_is_written_at_every_validation(tmp_path):
    with pytest.raises(ValueError, match="NaN at step 6"):  # stops the run between two saves
        fit(tmp_path, Pairs(scores=[0.5, float("nan")]), monitor="score", every=None)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_best_is_the_best_validation_and_survives_resuming(tmp_path):
    fit(tmp_path, Pairs(scores=[0.5, 0.4]), monitor="score", n_steps=6)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 3
    before = (tmp_path / "best.ckpt").read_bytes()
    fit(tmp_path, Pairs(scores=[0.45]), tmp_path / "last.ckpt", monitor="score", n_steps=10)
    assert (tmp_path / "best.ckpt").read_bytes() == before
    fit(tmp_path, Pairs(scores=[0.6]), tmp_path / "last.ckpt", monitor="score", n_steps=12)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 12


@pytest.mark.parametrize(
    ("scores", "monitor", "message"),
    [([float("nan")], "score", "NaN at step 3"), ([0.1], "scores", r"logged: \['loss', 'score'\]")],
)
def test_a_metric_that_is_missing_or_nan_stops_the_run(tmp_path, scores, monitor, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, Pairs(scores=scores), monitor=monitor)


@pytest.mark.parametrize(
    ("other", "message"), [({"base_seed": 1}, "frozen weights"), ({"n_frozen": 2}, "other weights")]
)
def test_resuming_on_another_base_is_refused(tmp_path, other, message):
    fit(tmp_path, Pairs(), n_steps=2)
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, Pairs(**other), tmp_path / "last.ckpt")


def test_the_hash_of_the_frozen_weights_ignores_the_trained_ones():
    module = Pairs()
    before = frozen_sha256(module)
    nn.init.zeros_(module.model.model.layers[1].mlp.up_proj.weight)
    assert frozen_sha256(module) == before
    nn.init.zeros_(module.model.model.layers[0].mlp.up_proj.weight)
    assert frozen_sha256(module) != before


@pytest.mark.parametrize("bad", [{"mode": "best"}, {"save_every_n_steps": 0}])
def test_bad_checkpoint_settings_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad)).split("_")[0]):
        TrainableCheckpoint(tmp_path, **bad)
