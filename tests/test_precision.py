"""Mixed precision: how often weights are cast, that it changes nothing, and how documents are encoded."""

import pytest
import pytorch_lightning as pl
import torch
from conftest import build_embedder
from rl_runs import data_of, likely_folder, opened
from rl_runs import module_of as rl_module_of
from test_sft import module_of, training_data
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from search_r3.stages.precision import CachedMixedPrecision, cache_casts
from search_r3.stages.rl.settings import PolicySettings
from search_r3.stages.sft.data import SFTDataModule

pytestmark = pytest.mark.bf16


class Casts(TorchDispatchMode):
    """Counts how often a tensor of a shape is brought from fp32 to bf16."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        is_cast = function is torch.ops.aten._to_copy.default and result.dtype == torch.bfloat16
        self.count += is_cast and args[0].dtype == torch.float32 and args[0].shape == self.shape
        return result


class Watched(pl.Callback):
    """The casts of the head's weight in each training step, and the gradients that the step had."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.shape = model.get_output_embeddings().weight.shape
        self.counts, self.gradients = [], []

    def on_train_batch_start(self, *_):
        self.casts = Casts(self.shape)
        self.casts.__enter__()

    def on_train_batch_end(self, *_):
        self.casts.__exit__(None, None, None)
        self.counts.append(self.casts.count)
        self.gradients.append(torch.cat([each.grad.flatten() for each in self.parameters]))


def trainer_of(is_cached, watched=(), precision="bf16-mixed"):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, precision=precision, max_steps=3, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, limit_val_batches=0, callbacks=list(watched),
    )  # fmt: skip
    if is_cached:
        cache_casts(trainer)
    return trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return likely_folder(tmp_path_factory.mktemp("precision"))


def test_gradient_caching_casts_every_weight_once_per_step_and_learns_the_same():
    found = []
    for is_cached in (False, True):
        embedder = build_embedder()
        watched = Watched(embedder.causal_lm)
        trainer = trainer_of(is_cached, [watched])
        trainer.fit(
            module_of(embedder, chunk_rows=1), SFTDataModule(training_data(), embedder, 5, 0, 0.0, 0, 5, 5)
        )
        found.append(watched)
    often, once = found
    assert isinstance(trainer.precision_plugin, CachedMixedPrecision)
    assert min(often.counts) >= 5  # parts of a batch
    assert once.counts == [1, 1, 1]
    # the last ones too: no step runs on what an earlier one has cast
    for without, with_cache in zip(often.gradients, once.gradients, strict=True):
        assert torch.cosine_similarity(without, with_cache, dim=0) > 0.999


def test_decoding_casts_every_weight_once_per_step(folder, tmp_path):
    embedder = opened(folder)
    watched = Watched(embedder.causal_lm)
    module = rl_module_of(embedder, tmp_path / "run", PolicySettings(), every=0)
    trainer_of(True, [watched]).fit(module, data_of(embedder, tmp_path / "run"))
    assert watched.counts == [1, 1, 1]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_other_precisions_are_left_as_they_are(precision):
    trainer = trainer_of(False, precision=precision)
    before = trainer.precision_plugin
    cache_casts(trainer)
    assert trainer.precision_plugin is before


def test_documents_are_encoded_in_fp32_or_as_training_multiplies_and_the_cache_tells_them_apart(
    folder, tmp_path
):
    rows, keys = {}, {}
    for precision in ("full", "run"):
        embedder = opened(folder)
        data = data_of(embedder, tmp_path / precision / "run", index_precision=precision)
        data.trainer = trainer_of(True)
        rows[precision], keys[precision] = data.encode(range(12)), data.key
    exact = opened(folder).embed_documents(data.corpus.texts)
    torch.testing.assert_close(rows["full"], exact)
    assert not torch.equal(rows["run"], exact)
    assert (rows["run"] * exact).sum(-1).min() > 0.999
    assert keys["run"] == keys["full"] | {"products": "bf16-mixed"}
