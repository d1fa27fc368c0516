"""A checkpoint that is a folder, as sharded strategies write: saved, killed at any moment, resumed."""

import csv
import os
import shutil
from pathlib import Path

import pytest
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from rl_runs import likely_folder
from small_fits import Pairs, assert_same, fit
from test_rl_bad_input import composed, write_beir

from search_r3.stages.checkpoint_files import latest
from search_r3.train import run


class FolderIO(TorchCheckpointIO):
    """Two files in a folder, as DeepSpeed and sharded FSDP have one per rank and one for what they share."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        Path(path).mkdir(parents=True, exist_ok=True)
        weights, rest = {"state_dict": checkpoint["state_dict"]}, dict(checkpoint)
        del rest["state_dict"]
        super().save_checkpoint(weights, Path(path) / "shard.pt")
        super().save_checkpoint(rest, Path(path) / "meta.pt")

    def load_checkpoint(self, path, *arguments, **keywords):
        parts = [
            super(FolderIO, self).load_checkpoint(Path(path) / name, *arguments, **keywords)
            for name in ("shard.pt", "meta.pt")
        ]
        return parts[0] | parts[1]


class Killed(BaseException):
    """Nothing in the project catches it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    module = Pairs()
    fit(tmp_path_factory.mktemp("whole"), module)
    return module


def step_of(checkpoint):
    return torch.load(checkpoint / "meta.pt", weights_only=True)["global_step"]


def killed_before(number, monkeypatch):
    """The n-th move or removal of a checkpoint, from 1 on, does not happen any more."""
    seen = []

    def watch(action):
        def watched(source, *target, **keywords):
            if Path(source).name.startswith(("last.", "previous.")):
                seen.append(Path(source).name)
                if len(seen) == number:
                    raise Killed
            return action(source, *target, **keywords)

        return watched

    monkeypatch.setattr(os, "replace", watch(os.replace))
    monkeypatch.setattr(shutil, "rmtree", watch(shutil.rmtree))


# the first save is one move, the second two, each later one a removal and two moves
MOMENTS = {2: 2, 3: 2, 4: 3, 5: 3, 6: 3, 7: 4}
"""By the number of moves and removals, the step of the checkpoint that a kill before it leaves."""


@pytest.mark.parametrize("number", MOMENTS)
def test_a_run_killed_while_it_replaces_a_folder_resumes_as_if_never_stopped(
    number, tmp_path, monkeypatch, whole
):
    io = {"plugins": [FolderIO()]}
    with monkeypatch.context() as patched:
        killed_before(number, patched)
        with pytest.raises(Killed):
            fit(tmp_path, Pairs(), **io)
    found = latest(tmp_path)
    assert step_of(found) == MOMENTS[number]
    resumed = Pairs()
    fit(tmp_path, resumed, found, **io)
    assert_same(resumed, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SHA256SUMS", "last.ckpt", "previous.ckpt"]
    assert latest(tmp_path) == tmp_path / "last.ckpt"


def test_nothing_is_found_where_nothing_was_saved(tmp_path):
    (tmp_path / "last.partial").mkdir()
    assert latest(tmp_path) is None


def logged_steps(folder):
    with (folder / "csv" / "metrics.csv").open() as file:
        return {int(row["step"]) for row in csv.DictReader(file)}


def test_the_rl_stage_goes_on_from_a_folder_and_keeps_its_rows(tmp_path, caplog):
    given = write_beir(tmp_path / "data"), likely_folder(tmp_path), tmp_path
    more = ["+strategy.plugins=[{_target_: test_folder_checkpoints.FolderIO}]", "refresh.background=0.2"]
    run(composed(*given, *more))
    folder = tmp_path / "run"
    assert step_of(folder / "checkpoints" / "last.ckpt") == 2
    assert logged_steps(folder) == {0, 1}
    # as a kill between the two moves of a later save left it before there were sums
    shutil.rmtree(folder / "checkpoints" / "previous.ckpt", ignore_errors=True)
    (folder / "checkpoints" / "SHA256SUMS").unlink()
    (folder / "checkpoints" / "last.ckpt").rename(folder / "checkpoints" / "last.old")
    config = composed(*given, *more, "stage.trainer.max_steps=3")
    config.resume = str(folder)
    with caplog.at_level("INFO"):
        run(config)
    assert f"resuming from {folder / 'checkpoints' / 'last.old'}" in caplog.text
    assert logged_steps(folder) == {0, 1, 2}
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["SHA256SUMS", "last.ckpt"]
