"""Totals of masked documents over a whole run of the SFT stage, counted by hand."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
from conftest import build_embedder
from test_sft import NEVER, WEIGHTS, training_data

from search_r3.stages.callbacks import FalseNegatives
from search_r3.stages.checkpoint import TrainableCheckpoint
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.sft.data import SFTDataModule
from search_r3.stages.sft.module import SFTModule
from search_r3.stages.sft.settings import SFTLosses


def run(folder, steps, false_negative_margin, false_negative_share=1.0, resume=None):
    """Five queries against five documents in every step; four of the queries have a reasoning."""
    data = training_data()
    first, *rest = data.examples
    data = replace(data, examples=[replace(first, relevant_ids=frozenset({"d0", "d1", "d2"})), *rest])
    losses = SFTLosses(
        **WEIGHTS,
        temperature=0.05,
        margin=0.1,
        false_negative_margin=false_negative_margin,
        false_negative_share=false_negative_share,
    )
    settings = OptimizationSettings(1e-3, warmup=0, schedule="constant")
    module = SFTModule(build_embedder(), settings, losses, NEVER, chunk_rows=4, seed=0)
    masked = FalseNegatives()
    fit = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, limit_val_batches=0,
        enable_model_summary=False, use_distributed_sampler=False, check_val_every_n_epoch=None,
        callbacks=[masked, TrainableCheckpoint(folder, save_every_n_steps=1)],
    )  # fmt: skip
    fit.fit(
        module, SFTDataModule(data, module.embedder, 5, 0, 0.0, 0, 5, 5), ckpt_path=resume, weights_only=True
    )
    assert 0 <= fit.callback_metrics["train/share_of_rows_masked_direct"] <= 1
    return masked.summary()


@pytest.mark.parametrize(
    ("margin", "share"),
    [(-3.0, 1.0), (3.0, 0.0)],  # two cosines differ by 2 at most: all are above the limit, or none is
)
def test_totals_are_those_of_all_steps_also_where_a_run_was_resumed(tmp_path, margin, share):
    run(tmp_path, 2, margin)
    masked = run(tmp_path, 5, margin, resume=tmp_path / "last.ckpt")

    direct, reasoned = 5 * (5 * 4), 5 * (4 * 4)  # steps x queries x other documents
    assert masked == {
        "masked_by_id": {"count": 5 * 2, "share": 10 / direct},  # d1 and d2 for the first query
        "masked_by_score_direct": {"count": share * direct, "share": share},
        "masked_by_score_reasoned": {"count": share * reasoned, "share": share},
    }


def test_rows_in_which_more_than_a_share_of_documents_score_high_mask_none_by_score(tmp_path):
    masked = run(tmp_path, 2, false_negative_margin=-3.0, false_negative_share=0.75)
    assert masked["masked_by_score_direct"]["count"] == masked["masked_by_score_reasoned"]["count"] == 0
    assert masked["masked_by_id"]["count"] == 2 * 2


def test_a_stage_that_reports_nothing_has_no_totals():
    assert FalseNegatives().summary() == {}
