"""`strategy=fsdp` in two real processes on the CPU against one: the same weights, from half of them each."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from conftest import build_embedder
from test_sft import NEVER, module_of, training_data
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from two_processes import on_two_ranks

from search_r3.models.folder import open_embedder, save_embedder
from search_r3.models.tuning import FullTuning, LoraTuning
from search_r3.stages.checkpoint import TrainableCheckpoint
from search_r3.stages.checkpoint_files import LAST
from search_r3.stages.gradient_cache import ChunkOutput
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.pretrain.data import PretrainDataModule
from search_r3.stages.pretrain.module import PretrainModule
from search_r3.stages.sft.data import SFTDataModule
from search_r3.stages.sft.settings import SelfWritten
from search_r3.stages.sharding import ShardedStrategy, shard
from search_r3.stages.step import NonFiniteLossError
from tests.closeness import assert_close_in_ulps

# An eps far above the rounding of a gradient, by whose size Adam would divide.
SETTINGS = OptimizationSettings(3e-3, warmup=0, schedule="constant", eps=1e-3)


def is_whole(layer):
    return not any(isinstance(each, DTensor) for each in layer.parameters())


class Shares(pl.Callback):
    """What a rank held: of a layer and its optimizer states at the end; of layers while one computed."""

    def __init__(self):
        self.held, self.whole = {}, set()

    def on_train_start(self, trainer, module):
        layers = module.embedder.decoder.layers
        for layer in layers:
            layer.mlp.register_forward_hook(lambda *_: self.whole.add(sum(map(is_whole, layers))))

    def on_train_end(self, trainer, module):
        (optimizer,) = trainer.optimizers
        for name, parameter in module.embedder.decoder.layers[0].named_parameters():
            state = optimizer.state.get(parameter, {})
            kept = {"weight": parameter.detach(), **{k: v for k, v in state.items() if k != "step"}}
            for kind, value in kept.items():
                own = value.to_local() if isinstance(value, DTensor) else value
                n_held = own.untyped_storage().nbytes() // own.element_size()
                self.held[f"{name} {kind}"] = (n_held, value.numel())


def result(module, data, max_steps=2, checkpoint=None, callbacks=(), **settings):
    shares = Shares()
    trainer = pl.Trainer(
        max_steps=max_steps, accelerator="cpu", logger=False, callbacks=[shares, *callbacks],
        enable_checkpointing=bool(callbacks), enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, check_val_every_n_epoch=None, limit_val_batches=0, **settings,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    weights = {}
    if trainer.is_global_zero:
        weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
    norm = float(trainer.callback_metrics["train/grad_norm"])
    return {"weights": weights, "held": shares.held, "whole": shares.whole, "grad_norm": norm}


def pretrained(folder, is_tied=True, batch_size=4, **settings):
    embedder = build_embedder()
    if not is_tied:
        head = embedder.causal_lm.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
    module = PretrainModule(embedder, SETTINGS, micro_batch=2)
    return result(module, PretrainDataModule(training_data(), embedder, batch_size, 32, None, 0), **settings)


def tuned(folder, chunk_rows=None, written=NEVER, opened=(), **settings):
    torch.manual_seed(0)  # of an adapter's first weights
    arguments = {"tuning": FullTuning(), **dict(opened)}
    embedder = open_embedder(path=str(folder), name=None, create=None, prompts={}, lengths={}, **arguments)
    module = module_of(embedder, written=written, chunk_rows=chunk_rows)
    module.optimization = SETTINGS
    return result(module, SFTDataModule(training_data(), embedder, 5, 0, 0.0, 0, 5, 5), **settings)


def resumed(folder, **settings):
    """On several ranks, stopped after a step and gone on with by other processes' objects."""
    if settings["devices"] == 1:
        return pretrained(folder, **settings)
    place = folder.parent / "resumed"
    pretrained(folder, max_steps=1, callbacks=[TrainableCheckpoint(place)], **settings)
    settings["strategy"] = ShardedStrategy()
    return pretrained(folder, checkpoint=place / LAST, callbacks=[TrainableCheckpoint(place)], **settings)


def a_bad_loss(folder, **settings):
    """What is raised where the second rank's loss is not a number."""
    embedder = build_embedder()
    module = PretrainModule(embedder, SETTINGS, micro_batch=2)
    plain = module.block_loss

    def block_loss(blocks, denominator):
        output = plain(blocks, denominator)
        factor = float("nan") if module.global_rank == 1 else 1.0
        return ChunkOutput(extra_loss=output.extra_loss * factor)

    module.block_loss = block_loss
    with pytest.raises(NonFiniteLossError) as caught:
        result(module, PretrainDataModule(training_data(), embedder, 4, 32, None, 0), **settings)
    return str(caught.value)


def gradient_of_head(rank, n_ranks=2):
    """Where the loss of the first rank reads the head and that of the second does not."""
    embedder = build_embedder()
    causal_lm = embedder.causal_lm
    causal_lm.lm_head.weight = nn.Parameter(causal_lm.lm_head.weight.detach().clone())
    if n_ranks > 1:
        shard(causal_lm, init_device_mesh("cpu", (n_ranks,)))
    ids = torch.arange(10)[None]
    states = embedder.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))
    (embedder.logits(states[0]) if rank == 0 else states).square().sum().backward()
    gradient = causal_lm.lm_head.weight.grad
    return gradient.full_tensor() if n_ranks > 1 else gradient


def on_an_older_torch():
    """What is said on two ranks, and whether one alone is sharded."""
    both = init_device_mesh("cpu", (2, 1), mesh_dim_names=("ranks", "one"))
    with pytest.MonkeyPatch.context() as older:
        older.delattr(FSDPModule, "set_reduce_scatter_unused_params")
        with pytest.raises(ValueError, match="torch") as caught:
            shard(build_embedder().causal_lm, both["ranks"])
        alone = build_embedder().causal_lm
        shard(alone, both["one"])
    return str(caught.value), not is_whole(alone)


LORA = {"tuning": LoraTuning(r=4, alpha=8)}
AS_ONE = {
    "pretrain": pretrained,
    "a head of its own": partial(pretrained, is_tied=False),
    "unequal rows": partial(pretrained, is_tied=False, batch_size=5),  # of two forwards and of one
    "resumed": resumed,
    "sft": tuned,
    "sft in chunks": partial(tuned, chunk_rows=2),
    "recomputed": partial(tuned, opened={"gradient_checkpointing": True}),
    "LoRA": partial(tuned, chunk_rows=2, opened=LORA),
}
"""Runs that two ranks make as one does."""
AS_DDP = {
    "self-written": partial(tuned, chunk_rows=1, written=SelfWritten(1, 0.5, 1.0)),
    "LoRA on bf16": partial(tuned, opened={**LORA, "dtype": "bfloat16"}),
    "bf16-mixed": partial(tuned, chunk_rows=2, precision="bf16-mixed"),
}
"""Runs that depend on what each rank draws, or round in bf16: they are as those of two ranks of DDP."""


def work(rank, folder):
    def sharded():
        return {"strategy": ShardedStrategy(), "devices": 2}

    results = {name: run(folder, **sharded()) for name, run in (AS_ONE | AS_DDP).items()}
    results |= {f"{name}, ddp": run(folder, strategy="ddp", devices=2) for name, run in AS_DDP.items()}
    results["head"] = gradient_of_head(rank)
    results["older torch"] = on_an_older_torch()
    results["bad"] = a_bad_loss(folder, **sharded())
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_embedder(build_embedder(), tmp_path_factory.mktemp("model") / "base", {}, is_trained=True)


@pytest.fixture(scope="module")
def two_ranks(folder):
    return on_two_ranks(work, folder)


def assert_same(ours, expected, ulps):
    """Two runs took the same steps; a step of Adam moves a weight by up to 3e-3."""
    assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    assert ours["weights"].keys() == expected["weights"].keys()
    for key, weight in expected["weights"].items():
        assert_close_in_ulps(ours["weights"][key], weight, ulps, key)


@pytest.mark.parametrize("name", AS_ONE)
def test_two_ranks_end_with_the_weights_of_one(two_ranks, folder, name):
    assert_same(two_ranks[0][name], AS_ONE[name](folder, devices=1), 256 if name == "LoRA" else 64)


@pytest.mark.parametrize("name", AS_DDP)
def test_two_ranks_end_with_the_weights_that_they_have_under_ddp(two_ranks, name):
    assert_same(two_ranks[0][name], two_ranks[0][f"{name}, ddp"], 64)


@pytest.mark.parametrize("name", AS_ONE | AS_DDP)
def test_a_rank_holds_half_of_a_layer_and_of_its_optimizer_states(two_ranks, name):
    for rank in two_ranks:
        held = rank[name]["held"]
        assert sum("exp_avg_sq" in kind for kind in held) > 5
        for kind, (own, whole) in held.items():
            assert 2 * own == whole, kind
    under_ddp = two_ranks[0]["bf16-mixed, ddp"]["held"]
    assert all(own == whole for own, whole in under_ddp.values())


@pytest.mark.parametrize("name", AS_ONE | AS_DDP)
def test_one_layer_is_whole_at_a_time(two_ranks, name):
    for rank in two_ranks:
        assert rank[name]["whole"] == {1}


def test_a_weight_that_one_rank_alone_uses_has_the_mean_of_both_gradients(two_ranks):
    for rank in two_ranks:
        assert_close_in_ulps(2 * rank["head"], gradient_of_head(0, n_ranks=1), 64)


def test_a_torch_in_which_ranks_must_use_the_same_weights_shards_one_rank_and_refuses_two(two_ranks):
    for said, is_sharded in (rank["older torch"] for rank in two_ranks):
        assert said.startswith("strategy=fsdp on 2 ranks needs torch 2.13")
        assert is_sharded


def test_a_bad_loss_on_one_rank_stops_both_and_names_its_batch(two_ranks):
    for rank in two_ranks:
        assert "step 0 stopped" in rank["bad"]
        assert "rank 1: loss nan" in rank["bad"]
