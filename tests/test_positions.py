"""Lengths against the positions of a model: what does not fit is refused on opening, with the number."""

import logging
import re

import pytest
import torch
from conftest import QUERIES, TEXTS
from plain_folders import LENGTHS, byte_tokenizer, opened, write_plain
from rl_runs import module_of
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTJConfig,
    Llama4TextConfig,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
)

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.data.types import Corpus, TrainingData
from search_r3.evaluate import _evaluated
from search_r3.models.folder import ModelFolderError, load_embedder, save_embedder
from search_r3.models.positions import reach
from search_r3.models.prompts import Lengths, PromptEncoder
from search_r3.stages.pretrain.data import PretrainDataModule
from search_r3.stages.rl.settings import PolicySettings, RolloutSettings

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
WORDS = "sum of the rows of a table " * 40


def longrope(original):
    factors = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    return {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": original,
    } | factors


def plain(folder, config):
    tokenizer = byte_tokenizer()
    config.update({"vocab_size": len(tokenizer) + 8, "pad_token_id": None, "bos_token_id": None})
    config.update({"eos_token_id": tokenizer.eos_token_id})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CONFIGS = {
    "gpt2": None,  # of plain_folders
    "opt": OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=96,
    ),
    "gptj": GPTJConfig(n_embd=32, n_layer=1, n_head=4, n_positions=96, rotary_dim=4),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def table_folder(request, tmp_path_factory):
    """A model with 96 positions."""
    folder = tmp_path_factory.mktemp("positions") / request.param
    if request.param == "gpt2":
        return write_plain(folder, byte_tokenizer(), "gpt2", n_positions=96)
    return plain(folder, CONFIGS[request.param])


def room(folder, key, value):
    """The number that the refusal tells."""
    with pytest.raises(ValueError, match=rf"lengths\.{key}={value} .*96 learned positions") as refusal:
        opened(folder, lengths={**LENGTHS, key: value}, attention="eager")
    return int(re.search(r"at most (\d+)", str(refusal.value))[1])


@pytest.mark.parametrize("key", ["document", "query", "reasoning"])
def test_a_length_beyond_learned_positions_is_refused_with_the_most_that_runs(table_folder, key):
    most = room(table_folder, key, 500)

    assert room(table_folder, key, most + 1) == most
    embedder = opened(table_folder, lengths={**LENGTHS, key: most}, attention="eager")
    if key == "document":
        sequences = embedder.encoder.documents([WORDS])
    elif key == "query":  # a step of SFT runs the closing words too
        sequences = [[*ids, *embedder.encoder.closing] for ids in embedder.encoder.queries([WORDS])]
    else:
        ids = [7] * most
        sequences = embedder.reasoned_ids([WORDS], [ids])
    assert len(sequences[0]) == 96
    assert embedder.embed_ids(sequences).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):  # and one token more does not run
        embedder.embed_ids([[*sequences[0], 7]])


def test_where_nothing_is_left_the_message_says_so(table_folder):
    with pytest.raises(ValueError, match=r"lengths\.query=95 .*|nothing is left"):
        opened(table_folder, lengths={**LENGTHS, "query": 95}, attention="eager")


def test_a_folder_whose_lengths_do_not_fit_is_refused_where_it_is_read(table_folder, tmp_path):
    embedder = opened(table_folder, attention="eager")
    embedder.encoder = PromptEncoder(
        embedder.tokenizer, embedder.encoder.prompts, Lengths(24, 90, 6), embedder.encoder.rendered
    )
    with pytest.raises(ValueError, match=r"lengths\.document=90"):
        load_embedder(save_embedder(embedder, tmp_path / "model", {}))


def test_rollouts_longer_than_the_folders_reasoning_are_refused_before_training(table_folder, tmp_path):
    embedder = opened(table_folder, attention="eager")
    settings = {"embedder": embedder, "run": tmp_path, "policy": PolicySettings(kl_weight=0.0)}
    module_of(**settings, rollouts=RolloutSettings(group_size=2, max_new_tokens=7))
    with pytest.raises(
        ValueError, match=r"stage\.module\.rollouts\.max_new_tokens=80 .*96 learned positions"
    ):
        module_of(**settings, rollouts=RolloutSettings(group_size=2, max_new_tokens=80))


def test_blocks_of_pretraining_are_checked_and_need_an_end_token(table_folder):
    data = TrainingData("t", Corpus((), ()), (), texts=TEXTS)
    embedder = opened(table_folder, attention="eager")
    PretrainDataModule(data, embedder, 2, 96, None, 0)
    with pytest.raises(ValueError, match=r"sequence_length=97 .*96 learned positions; set it to at most 96"):
        PretrainDataModule(data, embedder, 2, 97, None, 0)
    embedder.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end-of-text token"):
        PretrainDataModule(data, embedder, 2, 96, None, 0)


ROTARY = {
    "longrope": Phi3Config(
        **SMALL, max_position_embeddings=4096, rope_parameters=longrope(96), sliding_window=None,
        original_max_position_embeddings=96, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    ),
    "dynamic": LlamaConfig(
        **SMALL, max_position_embeddings=96, initializer_range=0.3,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROTARY)
def test_rotary_frequencies_that_change_with_the_longest_row_are_a_limit(tmp_path, kind):
    folder = plain(tmp_path / kind, ROTARY[kind])
    with pytest.raises(
        ValueError, match=r"lengths\.document=200 .*beyond 96 tokens.*set it to at most"
    ) as refusal:
        opened(folder, lengths={**LENGTHS, "document": 200})
    most = int(re.search(r"at most (\d+)", str(refusal.value))[1])

    embedder = opened(folder, lengths={**LENGTHS, "document": most})

    texts = [WORDS, "sum of integers"]
    alone = torch.cat([embedder.embed_documents([text]) for text in texts])
    torch.testing.assert_close(embedder.embed_documents(texts), alone, rtol=1e-4, atol=1e-5)
    # The reason for the limit: one token more in one row moves the other.
    short, long = embedder.encoder.documents(texts[1:])[0], [*embedder.encoder.documents(texts[:1])[0], 7]
    assert len(long) == 97
    assert (embedder.embed_ids([short, long])[:1] - embedder.embed_ids([short])).abs().max() > 1e-3


def test_frequencies_of_one_type_of_layer_are_a_limit_too():
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 4.0},
    }
    config = Gemma3TextConfig(
        **SMALL, vocab_size=40, head_dim=8, num_key_value_heads=2, max_position_embeddings=96,
        rope_parameters=ropes, layer_types=["full_attention"],
    )  # fmt: skip
    assert reach(AutoModelForCausalLM.from_config(config)).most == 96


def test_attention_that_is_scaled_by_the_places_of_a_batch_is_a_limit():
    sizes = {**SMALL, "vocab_size": 96, "num_key_value_heads": 4, "head_dim": 8, "num_local_experts": 2}
    sizes |= {"intermediate_size_mlp": 64, "no_rope_layer_interval": 1, "pad_token_id": 0}
    config = Llama4TextConfig(**sizes, floor_scale=16, num_experts_per_tok=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    found = reach(model)
    ids = torch.arange(1, found.most + 2)[None]

    def apart(n_padding, n):  # a text of n tokens, alone and behind padding
        mask = (torch.arange(n_padding + n) >= n_padding).long()[None]
        padded = torch.cat([torch.zeros(1, n_padding, dtype=torch.long), ids[:, :n]], dim=1)
        with torch.no_grad():
            alone = model(input_ids=ids[:, :n], use_cache=False).logits[0, -1]
            behind = model(input_ids=padded, attention_mask=mask, use_cache=False).logits[0, -1]
        return float((alone - behind).abs().max() / alone.abs().max())

    assert found.most == 15
    assert "scales attention by places of a batch" in found.reason
    assert apart(5, 10) < 1e-5  # as many as are allowed, padding among them
    assert apart(6, 10) > 1e-4
    config.attn_temperature_tuning = False
    assert reach(AutoModelForCausalLM.from_config(config)).most is None


@pytest.mark.parametrize("architecture", ["llama", "gemma", "phi", "mistral"])
def test_ordinary_rotary_positions_are_no_limit_and_what_passes_the_training_is_told_once(
    tmp_path, architecture, caplog
):
    folder = write_plain(tmp_path / "plain", byte_tokenizer(), architecture, max_position_embeddings=64)
    with caplog.at_level(logging.WARNING):
        embedder = opened(folder, lengths={**LENGTHS, "document": 200})

    (line,) = [
        record.getMessage() for record in caplog.records if record.name == "search_r3.models.positions"
    ]
    assert re.search(
        r"lengths\.document: sequences have up to 2\d\d tokens, .*trained with 64 positions", line
    )
    assert embedder.embed_documents([WORDS]).isfinite().all()
    assert reach(embedder.causal_lm).most is None


def test_lengths_that_fit_say_nothing(tmp_path, caplog):
    opened(write_plain(tmp_path / "plain", byte_tokenizer()))

    assert not [record for record in caplog.records if record.name == "search_r3.models.positions"]


# Attention


def test_an_attention_that_an_architecture_refuses_names_the_key_and_the_one_that_works(tmp_path):
    folder = plain(
        tmp_path / "gptj", GPTJConfig(n_embd=32, n_layer=1, n_head=4, n_positions=256, rotary_dim=4)
    )
    with pytest.raises(ModelFolderError, match=r"model\.attention=sdpa .*Set model\.attention=eager"):
        opened(folder)

    saved = save_embedder(opened(folder, attention="eager"), tmp_path / "model", {})

    with pytest.raises(ModelFolderError, match=r"model\.attention=sdpa .*Set model\.attention=eager"):
        load_embedder(saved, attention="sdpa")
    assert load_embedder(saved, attention="eager").embed_queries(QUERIES).isfinite().all()
    assert load_embedder(saved).causal_lm.config._attn_implementation == "eager"  # the best that it has


def test_an_unknown_attention_names_the_key(tmp_path):
    with pytest.raises(ModelFolderError, match=r"model\.attention=sdqa .*Set model\.attention=eager"):
        opened(write_plain(tmp_path / "plain", byte_tokenizer()), attention="sdqa")


def test_evaluation_reads_the_attention_of_its_config(nano_folder):
    for attention in ("eager", "sdpa"):
        with ConfigSource() as source:
            overrides = [f"model.path={nano_folder}", f"model.attention={attention}"]
            model = _evaluated(compose("evaluate", overrides, source).config).embedder
        assert model.causal_lm.config._attn_implementation == attention
