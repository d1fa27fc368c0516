"""What stands in metrics.csv: a value on the first line after it was measured, and on no other."""

import csv

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from search_r3.stages.base import StageModule
from search_r3.stages.callbacks import LastLine
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.step import optimization_step


class Sometimes(StageModule):
    """Logs `often` at every step and `seldom` at steps 2 and 6."""

    def training_step(self, batch, batch_idx):
        step = self.trainer.global_step
        loss = self.embedder(batch).square().mean()

        def run_backward():
            self.manual_backward(loss)
            return loss.detach(), {}

        optimization_step(self, run_backward, ["a"], max_grad_norm=1.0)
        self.log("often", float(step))
        if step in (2, 6):
            self.log("seldom", float(step))


@pytest.mark.parametrize(
    ("every", "often", "seldom"),
    [
        (1, {step: step for step in range(9)}, {2: 2, 6: 6}),
        (2, {1: 1, 3: 3, 5: 5, 7: 7}, {3: 2, 7: 6}),
        (3, {2: 2, 5: 5, 8: 8}, {2: 2, 8: 6}),
    ],
)
def test_a_value_is_on_one_line(tmp_path, every, often, seldom):
    lines, trainer = logged(tmp_path, every)
    for name, expected in (("often", often), ("seldom", seldom)):
        assert {int(line["step"]): float(line[name]) for line in lines if line[name]} == expected
        assert sum(bool(line[name]) for line in lines) == len(expected)
    assert float(trainer.callback_metrics["seldom"]) == 6


@pytest.mark.parametrize(("every", "expected"), [(5, [4, 8]), (20, [8]), (3, [2, 5, 8])])
def test_the_last_step_has_a_line_and_it_repeats_nothing(tmp_path, every, expected):
    lines, _ = logged(tmp_path, every, [LastLine()])
    assert [int(line["step"]) for line in lines] == [float(line["often"]) for line in lines] == expected
    assert [line["seldom"] for line in lines if line["seldom"]][-1] == "6.0"
    assert sum(bool(line["seldom"]) for line in lines) == min(2, len(expected))


def logged(tmp_path, every, callbacks=()):
    """Lines of nine steps, and what trained them."""
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=9, logger=CSVLogger(tmp_path, name="", version="csv"),
        log_every_n_steps=every, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    module = Sometimes(nn.Linear(3, 1), OptimizationSettings())
    trainer.fit(module, DataLoader(torch.ones(9, 3), batch_size=1))
    return list(csv.DictReader((tmp_path / "csv" / "metrics.csv").open(newline=""))), trainer
