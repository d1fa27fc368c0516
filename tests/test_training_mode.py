"""The mode of a model that is trained: nothing is dropped, and activations are recomputed if asked."""

import pytest
import torch
from architectures import CONFIGS
from conftest import LENGTHS, PROMPTS, TEXTS, build_embedder
from test_sft import fit, module_of
from transformers import AutoModelForCausalLM

from search_r3.models.folder import open_embedder, save_embedder
from search_r3.models.nano import train_tokenizer
from search_r3.models.tuning import FullTuning, LoraTuning

TUNINGS = {"full": FullTuning(), "lora": LoraTuning(4, 8)}
DROPPING = {
    "opt": {"dropout": 0.5, "attention_dropout": 0.5},
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
}


def created(name, is_training):
    def create(texts):
        tokenizer = train_tokenizer(TEXTS, 400)
        kind, settings = CONFIGS[name]
        config = kind(**(settings | DROPPING[name]), vocab_size=len(tokenizer))
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).train(is_training), tokenizer

    return create


def opened(**settings):
    given = {"path": None, "name": None, "create": None, "tuning": FullTuning()}
    return open_embedder(**given | {"prompts": vars(PROMPTS), "lengths": vars(LENGTHS)} | settings)


def trained_states(embedder):
    """As a training forward has them."""
    ids = torch.tensor(embedder.encoder.queries(["why is it so"]))
    return embedder.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("name", DROPPING)
def test_nothing_is_dropped_in_training_before_and_after_a_reasoning(name, tuning, is_training, recomputes):
    embedder = opened(
        create=created(name, is_training), tuning=TUNINGS[tuning], gradient_checkpointing=recomputes
    )
    (expected,) = embedder.embed_queries(["why is it so"])
    modes = [module.training for module in embedder.modules()]
    embedder.reason(["why is it so"])
    assert [module.training for module in embedder.modules()] == modes
    states = trained_states(embedder)
    assert torch.equal(states, trained_states(embedder))
    direction = torch.nn.functional.normalize(states[0, -1].detach(), dim=-1)
    torch.testing.assert_close(direction, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_activations_of_a_saved_model_are_recomputed_where_that_is_asked_for(tmp_path, tuning, recomputes):
    folder = save_embedder(build_embedder(), tmp_path / "base", {}, is_trained=True)
    embedder = opened(path=str(folder), tuning=TUNINGS[tuning], gradient_checkpointing=recomputes)
    module = module_of(embedder, losses={"kl": 0.0})
    module.has_checked_adapter = True
    calls = []
    embedder.decoder.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    fit(module, 1)
    assert len(calls) == 1 + recomputes
