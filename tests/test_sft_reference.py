"""KL to the frozen base: the value and gradient of its definition, and no forward that it does not need."""

import logging

import pytest
import torch
from conftest import build_embedder
from test_sft import NEVER, SETTINGS, WEIGHTS, opened, trainer, training_data

from search_r3.models.folder import save_embedder
from search_r3.models.tuning import FullTuning, LoraTuning, adapter_disabled
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.sft.collate import collate_sft
from search_r3.stages.sft.module import SFTModule
from search_r3.stages.sft.settings import SFTLosses
from tests.closeness import assert_close_in_ulps

ONLY_KL = WEIGHTS | {"sft": 0.0, "kl": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_embedder(build_embedder(), tmp_path_factory.mktemp("base") / "model", {}, is_trained=True)


def moved_module(folder, tuning):
    """A module whose policy is no longer its base."""
    losses = SFTLosses(**ONLY_KL, **SETTINGS)
    module = SFTModule(opened(folder, tuning), OptimizationSettings(1e-3), losses, NEVER, None, seed=0)
    module.trainer = trainer(1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.embedder.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module


def gradients(module):
    grads = {n: p.grad.clone() for n, p in module.embedder.named_parameters() if p.grad is not None}
    module.zero_grad()
    return grads


def kl_by_definition(module, rows):
    """Sum over one unpadded query after the other of sum_v p (log p - log q), the embed token left out."""
    embed = module.embedder.embed_token_id
    others = [v for v in range(module.embedder.vocabulary_size) if v != embed]
    total, n = torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor([row.ids])
        policy = module.embedder.model(input_ids=ids).logits[0]
        with torch.no_grad():
            if module.reference._copy is not None:
                base = module.reference._copy(input_ids=ids).logits[0]
            else:
                with adapter_disabled(module.embedder.model):
                    base = module.embedder.model(input_ids=ids).logits[0]
        for position in range(row.answer_at, len(row.ids)):
            if row.ids[position] != embed:
                p = policy[position - 1, others].log_softmax(-1)
                q = base[position - 1, others].log_softmax(-1)
                total, n = total + (p.exp() * (p - q)).sum(), n + 1
    return total / n


@pytest.mark.parametrize("tuning", [FullTuning(), FullTuning(embeddings=False), LoraTuning(4, 8)])
def test_kl_is_that_of_its_definition_in_value_and_gradient(folder, tuning):
    module = moved_module(folder, tuning)
    (chunk,) = module.prepare(collate_sft(training_data().examples, 0))[0]

    output = module.forward_chunk(chunk, module.token_counts([chunk]))
    output.extra_loss.backward()
    fast = gradients(module)
    expected = kl_by_definition(module, chunk.supervised)
    expected.backward()
    slow = gradients(module)

    assert expected > 1e-3
    torch.testing.assert_close(output.metrics["kl"], expected.detach(), atol=1e-6, rtol=1e-4)
    assert max(value.abs().max() for value in slow.values()) > 1e-4
    for name, value in slow.items():
        # log p - log q cancels: of two numbers near 6 a difference of 0.1 is left
        assert_close_in_ulps(fast[name], value, 4096, name)


def test_the_base_reads_only_sequences_with_a_position_to_compare(folder):
    module = moved_module(folder, FullTuning())
    (chunk,) = module.prepare(collate_sft(training_data().examples, 0))[0]
    read = []
    decoder = module.reference._copy.get_decoder()
    decoder.register_forward_pre_hook(
        lambda decoder, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )

    module.forward_chunk(chunk, module.token_counts([chunk]))

    # no lead-in and no closing: a direct query supervises the embed token alone, which KL leaves out
    assert (len(chunk.documents), len(chunk.direct), len(chunk.reasoned)) == (5, 5, 4)
    assert read == [4]


def test_weights_that_are_not_trained_are_shared_with_the_copy_of_the_others(folder):
    module = moved_module(folder, FullTuning(embeddings=False))
    ours, copied = module.embedder.causal_lm, module.reference._copy
    assert copied.get_input_embeddings().weight is ours.get_input_embeddings().weight
    apart = {name for name, p in copied.named_parameters() if p is not dict(ours.named_parameters())[name]}
    assert apart == {name for name, p in ours.named_parameters() if p.requires_grad}


def test_the_memory_of_the_frozen_copy_is_logged_where_there_is_one(folder, caplog):
    with caplog.at_level(logging.INFO, logger="search_r3.models.reference"):
        module = moved_module(folder, FullTuning())
        moved_module(folder, LoraTuning(4, 8))  # the adapter off is the base

    parameters = sum(p.numel() for p in module.embedder.model.parameters())
    ours = [record for record in caplog.records if record.name == "search_r3.models.reference"]
    assert [record.getMessage() for record in ours] == [
        f"KL: the frozen copy of the base takes {parameters * 4 / 2**20:.1f} MiB"  # fp32
    ]
