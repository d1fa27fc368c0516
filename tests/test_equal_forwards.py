"""Where weights are sharded, a forward or backward needs all ranks: they must run equally many.

Sharding itself is in `test_sharded_steps`. Here the SFT stage is told that weights are sharded, on two real
ranks whose texts differ in number and length, and forwards and backwards are counted.
"""

import pytest
import pytorch_lightning as pl
import torch
from conftest import build_embedder
from test_sft import module_of, opened, training_data
from two_processes import on_two_ranks

from search_r3.distributed import equal_forwards
from search_r3.models.folder import save_embedder
from search_r3.models.tuning import LoraTuning
from search_r3.stages.base import StageModule
from search_r3.stages.sft.data import SFTDataModule
from search_r3.stages.sft.settings import SelfWritten

CHUNKS = [None, 1]


def counted_step(folder, chunk_rows, is_sharded, **settings):
    """Two steps of a batch of three rows: two on the first rank, one on the second."""
    torch.manual_seed(0)  # of the adapter's first weights
    embedder = opened(folder, LoraTuning(4, 8))
    embedder.token_budget = 60  # a forward for each row or two
    module = module_of(embedder, written=SelfWritten(2, 0.5, 1.0), chunk_rows=chunk_rows)
    counts = {"forwards": 0, "backwards": 0}

    class Told(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.shards_weights = is_sharded
            embedder.decoder.register_forward_hook(count)

    def count(decoder, arguments, output):
        counts["forwards"] += 1
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda _: counts.update(backwards=counts["backwards"] + 1))

    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        callbacks=[Told()],
        **settings,
    )
    trainer.fit(module, SFTDataModule(training_data(), embedder, 3, 0, 0.0, 0, 5, 5))
    return {**counts, "weights": {name: value.detach() for name, value in embedder.named_parameters()}}


def order_of_hooks(embedder):
    """What runs before a forward: a hook that was there already, as one that fetches sharded weights is."""
    earlier = embedder.decoder.register_forward_pre_hook(lambda *_: None)
    with equal_forwards(embedder):
        hooks = list(embedder.decoder._forward_pre_hooks)
    return [number == earlier.id for number in hooks]


def both_ways(rank, folder):
    """On one rank: a step that is told of sharding, and one that is not, by chunk size."""
    return {
        (chunk_rows, is_sharded): counted_step(folder, chunk_rows, is_sharded, strategy="ddp", devices=2)
        for chunk_rows in CHUNKS
        for is_sharded in (True, False)
    } | {"hooks": order_of_hooks(build_embedder())}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "base"
    save_embedder(build_embedder(), folder, {}, is_trained=True)
    return on_two_ranks(both_ways, folder)


@pytest.mark.parametrize("chunk_rows", CHUNKS)
@pytest.mark.parametrize("what", ["forwards", "backwards"])
def test_ranks_run_equally_many_only_where_weights_are_sharded(two_ranks, chunk_rows, what):
    first, second = (rank[chunk_rows, True][what] for rank in two_ranks)
    assert first == second > 0
    first, second = (rank[chunk_rows, False][what] for rank in two_ranks)
    assert first > second > 0


@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_forwards_that_fill_up_teach_nothing(two_ranks, chunk_rows):
    for rank in two_ranks:
        for name, weight in rank[chunk_rows, False]["weights"].items():
            torch.testing.assert_close(rank[chunk_rows, True]["weights"][name], weight, atol=1e-5, rtol=0)


def test_ranks_tell_each_other_that_they_go_on_before_sharded_weights_are_fetched(two_ranks):
    assert [rank["hooks"] for rank in two_ranks] == [[False, True]] * 2


def test_on_one_rank_nothing_is_filled_up():
    module = StageModule(build_embedder(), None)
    assert module.filled_up([[1], [2]]) == [[1], [2]]
