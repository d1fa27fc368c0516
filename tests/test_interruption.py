"""A signal during a fit: the step is finished and saved, and what goes on is as if never stopped."""

import os
import signal

import pytest
import pytorch_lightning as pl
import torch
from small_fits import N_STEPS, Pairs, Rows, assert_same, fit

from search_r3.stages.interruption import SIGNALS, HeedSignals
from search_r3.stages.record import ValidationRecord


@pytest.fixture(autouse=True)
def handlers():
    """Lightning leaves SIGINT ignored behind; the command ends then, and these tests go on."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _as_the_command_does)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _as_the_command_does(number, frame):
    raise KeyboardInterrupt


class Signalled(Pairs):
    """Sends itself signals in the forward of the step after `at`; counts the steps that it then ends."""

    def __init__(self, at, numbers, in_validation=False):
        super().__init__()
        self.at, self.numbers, self.in_validation = at, numbers, in_validation
        self.ended = 0

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == self.at and not self.in_validation:
            self._send()
        result = super().training_step(batch, batch_idx)
        self.ended += 1
        return result

    def validation_step(self, batch, batch_idx):
        if self.in_validation and self.trainer.global_step == self.at:
            self._send()
        super().validation_step(batch, batch_idx)

    def _send(self):
        for number in self.numbers:
            os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    module = Pairs()
    fit(tmp_path_factory.mktemp("whole"), module, callbacks=[HeedSignals()])
    return module


def interrupted(folder, module, every=100, resume=None):
    with pytest.raises(SystemExit):  # Lightning's
        fit(folder, module, resume, callbacks=[HeedSignals(), ValidationRecord()], every=every)
    file = folder / "last.ckpt"
    return torch.load(file, weights_only=True)["global_step"] if file.exists() else None


MOMENTS = {
    "in a step that nothing would save": (4, [signal.SIGINT], False, 5),
    "by a scheduler": (4, [signal.SIGTERM], False, 5),
    "in a step that a validation follows": (5, [signal.SIGINT], False, 6),
    "in a validation": (3, [signal.SIGINT], True, 3),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupted_step_is_saved_and_the_run_goes_on_as_if_undisturbed(tmp_path, undisturbed, moment):
    at, numbers, in_validation, saved = MOMENTS[moment]

    assert interrupted(tmp_path, Signalled(at, numbers, in_validation)) == saved

    resumed = Pairs()
    trainer = fit(tmp_path, resumed, tmp_path / "last.ckpt", callbacks=[HeedSignals(), ValidationRecord()])
    assert trainer.global_step == N_STEPS
    assert resumed.losses == undisturbed.losses[saved:]
    assert_same(resumed, undisturbed)


def test_where_nothing_is_unsaved_the_first_signal_ends_the_step(tmp_path):
    module = Signalled(0, [signal.SIGINT])

    assert interrupted(tmp_path, module) is None
    assert module.ended == 0


def test_what_is_saved_already_is_not_waited_for_after_resuming(tmp_path):
    fit(tmp_path, Pairs(), n_steps=4)
    module = Signalled(4, [signal.SIGTERM])

    assert interrupted(tmp_path, module, resume=tmp_path / "last.ckpt") == 4
    assert module.ended == 0


def test_a_second_signal_ends_the_step_at_once(tmp_path, capsys):
    module = Signalled(5, [signal.SIGINT, signal.SIGINT])

    assert interrupted(tmp_path, module) == 3, "what the validation saved"
    assert module.ended == 5
    assert "once more ends at once" in capsys.readouterr().err


def test_the_handlers_of_the_command_are_back_after_a_fit(tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]

    fit(tmp_path, Pairs(), n_steps=1, callbacks=[HeedSignals()])

    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_without_a_checkpoint_the_first_signal_ends_the_fit():
    module = Signalled(2, [signal.SIGINT])
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_steps": 4}
    settings |= {"enable_model_summary": False, "enable_checkpointing": False, "limit_val_batches": 0}

    with pytest.raises(SystemExit):
        pl.Trainer(**settings, callbacks=[HeedSignals()]).fit(module, datamodule=Rows())
    assert module.ended == 2
