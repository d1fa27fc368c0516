"""A model that has dropout is trained without it, and its training forward is the one it was sampled from."""

import pytest
import torch
from conftest import QUERIES, TEXTS
from plain_folders import LENGTHS, WORDS, byte_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    FalconConfig,
    GPT2Config,
    OPTConfig,
    PhimoeConfig,
)

from search_r3.models.dropout import leave_out_dropout
from search_r3.models.folder import open_embedder
from search_r3.models.generation import Sampling
from search_r3.models.tuning import FullTuning, LoraTuning
from search_r3.stages.rl.forward import training_forward
from search_r3.stages.rl.sampling import sample_rollouts

CONFIGS = {
    "opt": lambda n: OPTConfig(
        vocab_size=n, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, word_embed_proj_dim=32, dropout=0.3, layerdrop=0.3,
    ),
    "falcon": lambda n: FalconConfig(
        vocab_size=n, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, hidden_dropout=0.3,
        attention_dropout=0.3,
    ),
    "biogpt": lambda n: BioGptConfig(
        vocab_size=n, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256,
    ),
    "gpt2": lambda n: GPT2Config(vocab_size=n, n_embd=32, n_layer=2, n_head=4, n_positions=256),
}  # fmt: skip


def opened(folder, name, tuning, **options):
    """What a stage opens, in training mode, of a model whose dropout is on."""
    tokenizer = byte_tokenizer()
    config = CONFIGS[name](len(tokenizer) + 8)
    config.update({"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"path": None, "create": None, "prompts": WORDS, "lengths": LENGTHS, "tuning": tuning}
    embedder = open_embedder(name=str(folder), **settings, **options)
    embedder.model.train()
    return embedder


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("recomputes", [False, True])
def test_ratios_are_1_before_the_first_step_and_recomputation_takes_no_dropout(tmp_path, name, recomputes):
    embedder = opened(tmp_path, name, FullTuning(), gradient_checkpointing=recomputes)
    rollouts = sample_rollouts(embedder, ["a", "b"], QUERIES[:2], Sampling(6, 1.0), 2, 0, 0)
    now = training_forward(embedder, rollouts, range(4))
    mask = rollouts.completion_mask.flatten(0, 1)
    assert mask.any()
    sampled = rollouts.log_probs.flatten(0, 1)
    torch.testing.assert_close(now.log_probs[mask], sampled[mask], atol=2e-5, rtol=1e-5)
    (now.log_probs.sum() + now.embeddings[:, 0].sum()).backward()
    gradient = embedder.causal_lm.get_input_embeddings().weight.grad
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_two_training_forwards_give_the_same_states(tmp_path, name):
    embedder = opened(tmp_path, name, LoraTuning(r=4))
    ids = torch.tensor([embedder.encoder.documents(TEXTS[:1])[0]])
    first, again = (embedder.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool)) for _ in range(2))
    assert torch.equal(first, again)


def test_what_was_left_out_is_told_and_stands_in_the_configuration(caplog):
    model = AutoModelForCausalLM.from_config(CONFIGS["gpt2"](300))
    with caplog.at_level("INFO"):
        leave_out_dropout(model)
    assert "dropout is off in training: attn_pdrop=0.1, embd_pdrop=0.1" in caplog.text
    assert (model.config.attn_pdrop, model.config.resid_pdrop) == (0.0, 0.0)
    caplog.clear()
    leave_out_dropout(model)
    assert not caplog.text


def test_a_setting_named_after_jitter_that_every_forward_reads_stays_as_it_is(caplog):
    config = PhimoeConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, router_jitter_noise=0.1, input_jitter_noise=0.3,
        pad_token_id=0, bos_token_id=None, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad(), caplog.at_level("INFO"):
        before = model(input_ids=ids).logits
        leave_out_dropout(model)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert "input_jitter_noise=0.3" in caplog.text
    assert "router_jitter_noise" not in caplog.text
