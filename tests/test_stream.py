"""The stream of batches under the trainer's own limits: epochs of so many batches, and the same few again."""

import pytest
import pytorch_lightning as pl
import torch

from search_r3.data.types import Corpus, Example, TrainingData
from search_r3.stages.sft.data import SFTDataModule


def forty_rows() -> TrainingData:
    rows = [Example(f"e{n}", f"query {n}", f"document {n}", f"d{n}", source="t") for n in range(40)]
    return TrainingData("t", Corpus([e.positive_id for e in rows], [e.positive for e in rows]), rows)


class Seen(pl.LightningModule):
    """Keeps which rows it was given, and takes a step of a single weight."""

    def __init__(self):
        super().__init__()
        self.weight, self.batches = torch.nn.Parameter(torch.ones(1)), []

    def training_step(self, batch, batch_idx):
        self.batches.append([example.id for example in batch.examples])
        return self.weight.square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def batches(folder, n_steps, num_workers=0, resume=None, **settings) -> list[list[str]]:
    """What a run of so many steps was given; its last checkpoint is `<folder>/last.ckpt`."""
    module, data = Seen(), SFTDataModule(forty_rows(), None, 8, 0, 0.0, 1, 5, 5, num_workers)
    trainer = pl.Trainer(
        max_steps=n_steps, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False,
        check_val_every_n_epoch=None, **settings,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=resume, weights_only=None if resume is None else True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module.batches


def test_overfitting_two_batches_gives_the_same_two_again_and_again(tmp_path):
    plain = batches(tmp_path, 2)
    assert plain[0] != plain[1]
    assert batches(tmp_path, 7, overfit_batches=2) == [*plain, *plain, *plain, plain[0]]


def test_overfitting_goes_on_with_the_batch_that_is_next(tmp_path):
    whole = batches(tmp_path, 7, overfit_batches=2)
    first = batches(tmp_path, 3, overfit_batches=2)
    assert first + batches(tmp_path, 7, resume=tmp_path / "last.ckpt", overfit_batches=2) == whole


@pytest.mark.parametrize("num_workers", [0, 1])
def test_epochs_of_three_batches_leave_out_no_row_of_the_stream(tmp_path, num_workers):
    plain = batches(tmp_path, 8)
    assert batches(tmp_path, 8, num_workers, limit_train_batches=3) == plain
    first = batches(tmp_path, 5, num_workers, limit_train_batches=3)
    rest = batches(tmp_path, 8, num_workers, resume=tmp_path / "last.ckpt", limit_train_batches=3)
    assert first + rest == plain
