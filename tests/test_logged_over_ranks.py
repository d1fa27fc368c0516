"""What SFT and pretraining log of a step on two ranks, against one rank with the whole batch."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
from conftest import build_embedder
from test_sft import module_of, training_data
from two_processes import on_two_ranks

from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.pretrain.data import PretrainDataModule
from search_r3.stages.pretrain.module import PretrainModule
from search_r3.stages.sft.data import SFTDataModule
from search_r3.stages.sft.settings import SelfWritten


def logged(module, data, **settings) -> dict[str, float]:
    """Of the first step."""
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        check_val_every_n_epoch=None, **settings,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def sft(**settings) -> dict[str, float]:
    """Rows of unequal length, of which one rank has three and the other two."""
    embedder = build_embedder()
    module = module_of(embedder)
    module.losses = replace(module.losses, false_negative_margin=0.0, false_negative_share=0.5)
    return logged(module, SFTDataModule(training_data(), embedder, 5, 0, 0.0, 0, 5, 5), **settings)


def self_written(**settings) -> dict[str, float]:
    embedder = build_embedder()
    module = module_of(embedder, written=SelfWritten(1, 1.0, 1.0))
    return logged(module, SFTDataModule(training_data(), embedder, 5, 0, 0.0, 0, 5, 5), **settings)


def pretrained(**settings) -> dict[str, float]:
    embedder = build_embedder()
    module = PretrainModule(embedder, OptimizationSettings(warmup=0), micro_batch=2)
    return logged(module, PretrainDataModule(training_data(), embedder, 5, 16, None, 0), **settings)


RUNS = {"sft": sft, "self_written": self_written, "pretrained": pretrained}


def work(rank: int) -> dict[str, dict[str, float]]:
    return {name: run(strategy="ddp", devices=2) for name, run in RUNS.items()}


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, dict[str, float]]]:
    return on_two_ranks(work)


@pytest.mark.parametrize("name", ["sft", "pretrained"])
def test_two_ranks_log_the_losses_and_counts_of_the_whole_batch(two_ranks, name):
    whole = RUNS[name](devices=1)
    assert whole["train/loss"] > 1
    if name == "sft":
        assert whole["train/masked_by_score_direct"] > 0
        assert 0 < whole["train/share_of_rows_masked_direct"] <= 1
    for rank in two_ranks:
        assert rank[name] == pytest.approx(whole, rel=1e-4)


def test_the_rows_with_a_text_of_the_model_are_counted_over_ranks(two_ranks):
    assert RUNS["self_written"](devices=1)["train/self_written_rows"] == 4
    assert [rank["self_written"]["train/self_written_rows"] for rank in two_ranks] == [4, 4]
