"""What the data cannot give is one line each: what happens instead, and what to set."""

import logging
from dataclasses import replace

import pytest
import pytorch_lightning as pl

from search_r3.cli.training_notes import cut, unvalidated
from search_r3.data.negatives import RankRule
from search_r3.data.types import Benchmark, Corpus, Example, TrainingData
from search_r3.stages.checkpoint import TrainableCheckpoint
from search_r3.stages.pretrain.data import PretrainDataModule
from search_r3.stages.rl.data import RLDataModule
from search_r3.stages.sft.data import SFTDataModule
from search_r3.stages.sft.mining import mine_by_bm25
from tests.conftest import TEXTS

FULL = {"reasoning": "sum", "cluster": "c"}


def data_of(has_validation=True, **fields):
    corpus = Corpus([f"d{row}" for row in range(5)], TEXTS[:5])
    rows = [
        Example(id=f"q{row}", query=text.splitlines()[0], positive=text, positive_id=f"d{row}", **fields)
        for row, text in enumerate(TEXTS[:5])
    ]
    held_out = Benchmark("v", corpus, {"q": "sum of integers"}, {"q": {"d0": 1}}) if has_validation else None
    return TrainingData("small", corpus, rows, validation=held_out, texts=TEXTS[:5], card={})


def told(caplog, data, **settings):
    settings = {"batch_size": 5, "hard_negatives": 0, "cluster_share": 0.0, "seed": 0, **settings}
    module = SFTDataModule(data, None, validation_queries=5, validation_documents=5, **settings)
    with caplog.at_level(logging.INFO, "search_r3.stages.sft.data"):
        module.setup("fit")
    return [record.getMessage() for record in caplog.records if record.name == "search_r3.stages.sft.data"]


@pytest.mark.parametrize(
    ("fields", "settings", "words"),
    [
        (FULL, {"hard_negatives": 2}, "hard_negatives=2, and no row has any. Set stage.datamodule.miner"),
        (
            FULL | {"hard_negatives": ("x",), "hard_negative_ids": ("d4",)},
            {},
            "hard negatives are left out: 5 of 5 rows have some",
        ),
        ({"cluster": "c"}, {}, "no row has a reasoning"),
        ({"reasoning": "sum"}, {"cluster_share": 0.3}, "cluster_share=0.3 does nothing; set it to 0"),
    ],
)
def test_a_setting_that_the_rows_do_not_serve_is_told(caplog, fields, settings, words):
    (line,) = told(caplog, data_of(**fields), **settings)

    assert words in line


@pytest.mark.parametrize(
    ("fields", "monitor", "is_told"),
    [
        ({"cluster": "c"}, "val/reasoning/ndcg@10", True),
        ({"cluster": "c"}, "val/direct/ndcg@10", False),
        ({"cluster": "c"}, None, False),
        (FULL, "val/reasoning/ndcg@10", False),
    ],
)
def test_weights_that_are_chosen_by_what_is_not_trained_are_told(caplog, tmp_path, fields, monitor, is_told):
    settings = {"batch_size": 5, "hard_negatives": 0, "cluster_share": 0.0, "seed": 0}
    module = SFTDataModule(data_of(**fields), None, validation_queries=5, validation_documents=5, **settings)
    checkpoint = TrainableCheckpoint(tmp_path, monitor)
    module.trainer = pl.Trainer(logger=False, accelerator="cpu", callbacks=[checkpoint])

    with caplog.at_level(logging.INFO, "search_r3.stages.sft.data"):
        module.setup("fit")

    lines = [line for line in caplog.messages if line.startswith("the best weights would be those of")]
    assert len(lines) == is_told
    if is_told:
        assert lines[0].endswith("Set stage.callbacks.checkpoint.monitor=val/direct/ndcg@10")


def test_rows_that_serve_all_settings_are_not_told_of(caplog):
    assert told(caplog, data_of(**FULL), cluster_share=0.5) == []
    mined = data_of(**FULL)
    miner = lambda rows, corpus: mine_by_bm25(rows, corpus, RankRule(1, 5), 1, k=5)  # noqa: E731
    assert told(caplog, mined, hard_negatives=1, miner=miner) == []


def test_mined_negatives_that_find_no_place_behind_a_rows_own_are_told(caplog):
    given = data_of(**FULL, hard_negatives=("x",), hard_negative_ids=("x",))
    miner = lambda rows, corpus: mine_by_bm25(rows, corpus, RankRule(1, 5), 1, k=5)  # noqa: E731
    (line,) = told(caplog, given, hard_negatives=1, miner=miner)
    assert line.startswith("mined negatives are left out in 5 of 5 rows, which came with ")
    caplog.clear()
    assert told(caplog, given, hard_negatives=2, miner=miner) == []


def test_a_text_shorter_than_a_block_is_refused_with_both_lengths(embedder):
    data = replace(data_of(), texts=TEXTS[:1])
    module = PretrainDataModule(data, embedder, 2, sequence_length=1000, text_length=None, seed=0)
    module.trainer = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    n_tokens = len(embedder.encoder.text_ids(TEXTS[:1], None)[0]) + 1  # the end token

    with pytest.raises(ValueError, match=f"has {n_tokens} tokens, fewer than .*sequence_length=1000"):
        module.setup("fit")


def test_texts_of_the_rows_that_the_model_reads_in_part_are_told_before_the_first_step(embedder):
    whole = data_of(reasoning="sum", cluster="c")
    long = [replace(row, query="sum " * 500, reasoning="so " * 500) for row in whole.examples[:2]]
    one = replace(whole.examples[2], positive="add " * 500, reasoning=None)
    limits = [replace(row, query="sum", positive="add") for row in whole.examples]
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)

    def lines_of(rows):
        data = replace(whole, examples=rows)
        return list(cut(trainer, SFTDataModule(data, embedder, 5, 0, 0.0, 0, 5, 5), embedder))

    assert lines_of(limits) == []
    told = lines_of([*long, one, *limits[3:]])
    assert [line.partition(", and it is cut")[0] for line in told] == [
        f"2 of 5 rows that were looked at have a query longer than {embedder.limit('query')}",
        f"1 of 5 rows that were looked at have a document longer than {embedder.limit('document')}",
        f"2 of 4 rows that were looked at have a reasoning longer than {embedder.limit('reasoning')}",
    ]
    assert told[1].endswith("by model.lengths.document=")
    (many,) = lines_of([one, *limits] * 1000)  # 6,000 rows, of which every sixth is looked at
    assert many.startswith("1000 of 1000 rows that were looked at have a document longer")


def test_given_reasonings_are_not_called_cut_in_rl_which_reads_none(embedder):
    data = data_of(reasoning="so " * 500)
    module = RLDataModule(data, embedder, 2, 0, None, 5, 5, None, None, "store", "cache")
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)

    assert not [line for line in cut(trainer, module, embedder) if "reasoning longer" in line]


@pytest.mark.parametrize(
    ("has_validation", "settings", "words"),
    [
        (False, {}, "the data set has no validation rows"),
        (True, {"limit_val_batches": 0}, "limit_val_batches=0"),
        (True, {"val_check_interval": 11}, "val_check_interval=11 is beyond the last step, 10"),
        (True, {"val_check_interval": 10}, None),
        (False, {"fast_dev_run": True}, None),
    ],
)
def test_a_run_that_does_not_validate_says_so_before_its_first_step(has_validation, settings, words):
    data = data_of(has_validation, **FULL)
    module = SFTDataModule(data, None, 5, 0, 0.0, 0, validation_queries=5, validation_documents=5)
    settings = {"max_steps": 10, "check_val_every_n_epoch": None, "val_check_interval": 5, **settings}
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, **settings)

    lines = list(unvalidated(trainer, module))

    assert len(lines) == (words is not None)
    if lines:
        assert words in lines[0]
        assert "the last weights become the model" in lines[0]


@pytest.mark.parametrize(("interval", "is_told"), [(3, False), (4, True), (9, True)])
def test_an_interval_of_validation_is_held_against_batches_where_each_is_several_steps(interval, is_told):
    module = RLDataModule(
        data_of(True, **FULL), None, 2, 0, None, 5, 5, None, None, "store", "cache", updates_per_batch=4
    )
    settings = {"max_steps": 10, "check_val_every_n_epoch": None, "val_check_interval": interval}
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, **settings)

    lines = list(unvalidated(trainer, module))

    assert len(lines) == is_told
    if is_told:  # 10 steps are two batches of four and the first half of another
        assert "beyond the last batch, 3 (max_steps=10, 4 steps per batch)" in lines[0]
        assert lines[0].endswith("Set it to 3 or less")
