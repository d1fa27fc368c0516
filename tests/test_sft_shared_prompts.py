"""SFT with shared prompts: the losses and gradients of whole rows, with fewer tokens run."""

import pytest
import pytorch_lightning as pl
import torch
from architectures import WINDOW, build
from conftest import LENGTHS, TEXTS
from test_sft import NEVER, SETTINGS, WEIGHTS, fit, trainer, training_data

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.training_checks import check
from search_r3.errors import UsageError
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.nano import train_tokenizer
from search_r3.models.prompts import Prompts
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.sft.collate import collate_sft
from search_r3.stages.sft.forward import PaddedForward, TokenCounts, shared_prefix
from search_r3.stages.sft.module import SFTModule
from search_r3.stages.sft.rows import TokenRow
from search_r3.stages.sft.settings import SelfWritten, SFTLosses
from tests.closeness import assert_close_in_ulps

WORDS = "Return the lines of this text so that a search for what they do will find them."
PROMPTS = Prompts(f"{WORDS} query", f"{WORDS} reason", f"{WORDS} document", lead_in="it is", closing="done")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


def embedder_of(name, tokenizer):
    model = build(name, len(tokenizer))
    embedder = ReasoningEmbedder(model, tokenizer, PROMPTS, LENGTHS, token_budget=300)
    embedder.saved_from = 1  # the batch has five rows
    return embedder


def module_of(name, tokenizer, shares_prompts, chunk_rows=None):
    losses = SFTLosses(**WEIGHTS, **SETTINGS)
    module = SFTModule(
        embedder_of(name, tokenizer), OptimizationSettings(3e-3), losses, SelfWritten(1, 0.5, 1.0),
        chunk_rows, seed=0, shares_prompts=shares_prompts,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the policy is not its base, so that KL is not 0
        for parameter in module.embedder.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return module


class Step(pl.Callback):
    """Gradients, losses and forwards of one step."""

    def __init__(self):
        self.gradients, self.metrics, self.shapes = {}, {}, []

    def on_train_start(self, trainer, module):
        module.embedder.decoder.register_forward_pre_hook(
            lambda decoder, args, kwargs: self.shapes.append(tuple(kwargs["input_ids"].shape)),
            with_kwargs=True,
        )

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer, *_):
        self.metrics = {n: float(value) for n, value in trainer.callback_metrics.items()}


def step_of(module):
    step = Step()
    fit(module, 1, callbacks=[step])
    return step


@pytest.mark.parametrize("chunk_rows", [None, 3])
@pytest.mark.parametrize("name", ["qwen2", "mistral", "gemma3"])
def test_a_step_has_the_losses_and_gradients_of_whole_rows(name, chunk_rows, tokenizer):
    whole = step_of(module_of(name, tokenizer, False, chunk_rows))
    shared = step_of(module_of(name, tokenizer, True, chunk_rows))

    n_prompt = len(embedder_of(name, tokenizer).encoder.document.prefix)
    assert n_prompt > WINDOW
    assert (1, n_prompt) in shared.shapes
    assert sum(rows * columns for rows, columns in shared.shapes) < sum(
        rows * columns for rows, columns in whole.shapes
    )
    assert whole.metrics["train/kl"] > 1e-4
    assert shared.metrics.keys() == whole.metrics.keys()
    for metric, value in whole.metrics.items():
        assert shared.metrics[metric] == pytest.approx(value, rel=1e-4, abs=1e-5), metric
    assert max(value.abs().max() for value in whole.gradients.values()) > 1e-3
    assert shared.gradients.keys() == whole.gradients.keys()
    for parameter, value in whole.gradients.items():
        assert_close_in_ulps(shared.gradients[parameter], value, 4096, parameter)


@pytest.mark.parametrize("name", ["qwen2", "mistral"])
@pytest.mark.parametrize("answer_at", [9, 12, 1])
def test_a_state_that_predicts_within_the_prompt_is_not_shared(name, answer_at, tokenizer):
    embedder = embedder_of(name, tokenizer)
    rows = [TokenRow.ending(ids, answer_at) for ids in embedder.encoder.documents(TEXTS[:5])]
    counts = TokenCounts.of(rows, embedder.device)
    prefix = shared_prefix(embedder, rows)
    assert len(embedder.encoder.document.prefix) > 12
    assert prefix.n_ids == (answer_at - 1 if answer_at - 1 >= embedder.shared_from else 0)

    def losses(prefix):
        forward = PaddedForward(embedder, rows, prefix)
        loss = forward.token_losses(counts, None, False)["sft"] + forward.embeddings().square().sum(0)[0]
        return loss, torch.autograd.grad(loss, list(embedder.model.parameters()))

    (whole, expected), (shared, found) = losses(None), losses(prefix)
    torch.testing.assert_close(shared, whole, atol=1e-6, rtol=1e-5)
    assert max(value.abs().max() for value in expected) > 1e-3
    for ours, theirs in zip(found, expected, strict=True):
        assert_close_in_ulps(ours, theirs, 4096, "gradient")


def test_shared_prompts_are_refused_where_no_keys_are_kept_or_ranks_must_run_equally_many(tokenizer):
    module = module_of("qwen2", tokenizer, True)
    module.trainer = trainer(1)
    module.setup("fit")
    module.trainer.strategy.__class__ = type("Sharded", (pl.strategies.Strategy,), {})
    with pytest.raises(ValueError, match="sharded"):
        module.setup("fit")

    embedder = embedder_of("qwen2", tokenizer)
    embedder.model.gradient_checkpointing_enable({"use_reentrant": False})
    losses = SFTLosses(**WEIGHTS, **SETTINGS)
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        SFTModule(embedder, OptimizationSettings(1e-3), losses, NEVER, None, 0, shares_prompts=True)


def test_prompts_are_not_shared_unless_asked_for(tokenizer):
    embedder = embedder_of("qwen2", tokenizer)
    losses = SFTLosses(**WEIGHTS, **SETTINGS)
    module = SFTModule(embedder, OptimizationSettings(1e-3), losses, NEVER, None, seed=0)
    module.trainer = trainer(1)
    (chunk,) = module.prepare(collate_sft(training_data().examples, 0))[0]
    rows = [*chunk.embedded, *chunk.imitated]
    batches = list(module._batches(chunk, rows))
    assert [prefix for _, prefix in batches] == [None] * len(batches)
    assert sorted(place for places, _ in batches for place in places) == list(range(len(rows)))


@pytest.mark.parametrize("other", ["model.gradient_checkpointing=true", "strategy=fsdp"])
def test_a_command_that_cannot_share_prompts_is_refused_before_anything_is_read(other):
    with ConfigSource() as source:
        arguments = ["stage=sft", "model=nano", other]
        check(compose("train", arguments[:2], source).config, False)
        config = compose("train", [*arguments, "stage.module.shares_prompts=true"], source).config
    with pytest.raises(UsageError, match=r"stage\.module\.shares_prompts=true.*leave shares_prompts out"):
        check(config, False)
