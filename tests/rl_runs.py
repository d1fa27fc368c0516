"""Runs of the RL stage on a small world: its folder, module, data and fit."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from conftest import TEXTS, build_embedder

from search_r3.data.types import Benchmark, Corpus, Example, TrainingData
from search_r3.index.backends.flat import InPlaceIndex
from search_r3.index.rules.base import Refresh
from search_r3.index.rules.full import Full
from search_r3.models.folder import open_embedder, save_embedder
from search_r3.models.tuning import FullTuning
from search_r3.objectives.collapse import CollapseLimits
from search_r3.objectives.rewards import Reward, margin_dcg
from search_r3.stages.checkpoint import TrainableCheckpoint
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.rl.completions import Completions
from search_r3.stages.rl.data import RLDataModule
from search_r3.stages.rl.module import RLModule
from search_r3.stages.rl.settings import PolicySettings, RolloutSettings

ALIVE = CollapseLimits(window=100)
FULL = partial(Refresh, Full())


def world(n_documents: int = 12) -> TrainingData:
    """Queries about documents that share their words with them."""
    words = [
        "add",
        "parse",
        "open",
        "sort",
        "write",
        "read",
        "close",
        "find",
        "split",
        "join",
        "merge",
        "count",
    ]
    documents = [
        f"def {word}_{words[i - 1]}(value):\n    return {words[i - 2]}(value)" for i, word in enumerate(words)
    ]
    corpus = Corpus([f"d{i}" for i in range(n_documents)], documents[:n_documents])
    examples = [
        Example(f"e{i}", f"{words[i]} and {words[i - 1]}", corpus.texts[i], f"d{i}", source="t")
        for i in range(n_documents)
    ]
    validation = Benchmark(
        "v", corpus, {e.id: e.query for e in examples}, {e.id: {e.positive_id: 1} for e in examples}
    )
    return TrainingData("t", corpus, examples, validation=validation, texts=TEXTS)


def likely_folder(place):
    """A model whose embed token is likely enough that rollouts write it."""
    embedder = build_embedder(seed=4)
    with torch.no_grad():
        embedder.causal_lm.get_output_embeddings().weight[embedder.embed_token_id] *= 20.0
    return save_embedder(embedder, place / "model", {}, is_trained=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return likely_folder(tmp_path_factory.mktemp("rl"))


def opened(folder, tuning=None):
    return open_embedder(
        path=str(folder), name=None, create=None, prompts={}, lengths={}, tuning=tuning or FullTuning()
    )


def module_of(embedder, run, policy=None, limits=ALIVE, rate=2e-3, every=1, **arguments):
    settings = {
        "optimization": OptimizationSettings(rate, warmup=0, schedule="constant"),
        "reward": Reward(partial(margin_dcg, tau=0.05)),
        "rollouts": RolloutSettings(group_size=6),
        "policy": policy or PolicySettings(kl_weight=0.05),
        "collapse_limits": limits,
        "rank": "exact",
        "n_retrieved": 5,
        "rank_agreement_every_n_steps": 0,
        "token_budget": 200,
        "completions": Completions(run / "completions.jsonl", every, 2),
        "seed": 0,
    }
    return RLModule(embedder, **settings | arguments)


def data_of(embedder, run, refresh=None, data=None, batch_size=4, **arguments):
    settings = {"max_documents": None, "validation_queries": 5, "validation_documents": 12, "encode_batch": 5}
    return RLDataModule(
        data or world(), embedder, batch_size, 0, index=InPlaceIndex, refresh=refresh or FULL(),
        store=run / "index", cache_dir=run.parent / "cache", **settings | arguments,
    )  # fmt: skip


class Log(pl.Callback):
    """What every step logged."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, *rest):
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def of(self, name):
        return [step[f"train/{name}"] for step in self.steps if f"train/{name}" in step]


def fit(module, datamodule, steps, callbacks=(), ckpt_path=None, **arguments):
    log = Log()
    has_checkpoints = any(isinstance(each, TrainableCheckpoint) for each in callbacks)
    settings = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": has_checkpoints,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
        "check_val_every_n_epoch": None, "limit_val_batches": 0, "callbacks": [log, *callbacks],
    }  # fmt: skip
    trainer = pl.Trainer(max_steps=steps, **settings | arguments)
    trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    return trainer, log
