"""A real fit of a real small model, which reports its steps."""

import os
import signal
import time

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from transformers import Qwen2Config, Qwen2ForCausalLM

from search_r3.objectives.losses import info_nce
from search_r3.stages.checkpoint import TrainableCheckpoint
from search_r3.stages.gradient_cache import ChunkOutput, backward_with_cache
from search_r3.stages.optimization import OptimizationSettings, build_optimizer, build_scheduler
from search_r3.stages.sampler import GroupedBatchSampler
from search_r3.stages.step import block_sync, optimization_step

N_STEPS = 8
SETTINGS = OptimizationSettings(learning_rate=1e-2, warmup=2, schedule="cosine")


class Pairs(pl.LightningModule):
    """Contrastive training of a tiny Qwen2 whose first layer is frozen."""

    def __init__(self, base_seed=0, scores=(), kill_at=None, n_frozen=1):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(base_seed)
        config = Qwen2Config(
            vocab_size=60,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
        self.model = Qwen2ForCausalLM(config)
        self.model.lm_head.requires_grad_(False)
        self.model.model.layers[:n_frozen].requires_grad_(False)
        self.scores, self.kill_at, self.losses, self.batches = list(scores), kill_at, [], []

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        n = len(batch)
        self.batches.append(batch[:, 0].tolist())
        chunks = [*batch.split(4), *batch.roll(1, dims=1).split(4)]

        def forward(rows):
            states = self.model.model(rows).last_hidden_state[:, -1]
            return ChunkOutput(normalize(states, dim=-1))

        def loss_fn(embeddings):
            both = torch.cat(embeddings)
            return info_nce(both[:n], both[n:], torch.arange(n), temperature=0.1), {}

        def run_backward():
            return backward_with_cache(chunks, forward, loss_fn, self.manual_backward, block_sync(self))

        result = optimization_step(self, run_backward, [], SETTINGS.max_grad_norm)
        self.losses.append(result.loss.item())
        self.log("loss", result.loss, prog_bar=True)
        return {"n_tokens": batch.numel(), "n_pairs": n}

    def validation_step(self, batch, batch_idx):
        score = self.scores.pop(0) if self.scores else 0.0
        self.log("score", score)

    def configure_optimizers(self):
        optimizer = build_optimizer(self.named_parameters(), SETTINGS)
        return [optimizer], [build_scheduler(optimizer, SETTINGS, N_STEPS)]


class Rows(pl.LightningDataModule):
    """Rows of tokens in an endless stateful order."""

    def __init__(self):
        super().__init__()
        self.rows = torch.randint(60, (40, 6), generator=torch.Generator().manual_seed(0))
        self.rows[:, 0] = torch.arange(40)
        self.sampler = GroupedBatchSampler(40, batch_size=8, seed=1)

    def train_dataloader(self):
        return DataLoader(self.rows, batch_sampler=self.sampler)

    def val_dataloader(self):
        return DataLoader(self.rows[:1])

    def state_dict(self):
        return {"sampler": self.sampler.state_dict(position=self.trainer.global_step)}

    def load_state_dict(self, state_dict):
        self.sampler.load_state_dict(state_dict["sampler"])


def fit(folder, module, resume=None, n_steps=N_STEPS, callbacks=(), monitor=None, every=2, **settings):
    checkpoint = TrainableCheckpoint(folder, monitor=monitor, save_every_n_steps=every)
    trainer = pl.Trainer(
        **{
            "max_steps": n_steps,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            **settings,
        },
        callbacks=[checkpoint, *callbacks],
    )
    trainer.fit(module, datamodule=Rows(), ckpt_path=resume, weights_only=None if resume is None else True)
    return trainer


def assert_same(actual: nn.Module, expected: nn.Module) -> None:
    for (name, ours), theirs in zip(actual.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


class Watch(pl.Callback):
    """When validation began or ended, by a clock of its own."""

    def __init__(self):
        self.began, self.ended = [], []

    def on_validation_start(self, trainer, pl_module):
        self.began.append(time.perf_counter())

    def on_validation_end(self, trainer, pl_module):
        self.ended.append(time.perf_counter())
