"""Weights that a folder keeps in fewer bits: unpacked where config.json says how, else refused."""

import json

import pytest
import torch
from conftest import TEXTS
from plain_folders import byte_tokenizer, opened, write_plain
from safetensors.torch import load_file, save_file
from transformers import BitNetConfig, BitNetForCausalLM
from transformers.integrations.bitnet import AutoBitLinear

from search_r3.models.folder import ModelFolderError, load_embedder, save_embedder
from search_r3.models.tuning import FullTuning, LoraTuning

FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}


def write_packed(folder, stated):
    """A folder whose matrices are fp8, all blocks with one scale; and what they stand for, by name."""
    file = write_plain(folder, byte_tokenizer()) / "model.safetensors"
    packed, meant = {}, {}
    for name, weight in load_file(file).items():
        packed[name] = meant[name] = weight
        if "_proj." in name:
            scale = weight.abs().max() / 448  # the largest number of fp8
            packed[name] = (weight / scale).to(torch.float8_e4m3fn)
            packed[f"{name}_scale_inv"] = scale.expand(weight.shape[0] // 16, weight.shape[1] // 16).clone()
            meant[name] = packed[name].float() * scale
    save_file(packed, file, metadata={"format": "pt"})
    if stated:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": FP8}))
    return meant


@pytest.mark.parametrize("tuning", [FullTuning(), LoraTuning(r=2)], ids=["full", "lora"])
def test_a_model_that_was_packed_in_fp8_is_saved_as_what_was_trained(tmp_path, tuning):
    meant = write_packed(tmp_path / "packed", stated=True)
    embedder = opened(tmp_path / "packed", tuning=tuning)
    name = "model.layers.0.mlp.up_proj.weight"
    read = embedder.causal_lm.get_submodule("model.layers.0.mlp.up_proj")
    torch.testing.assert_close(getattr(read, "base_layer", read).weight.detach(), meant[name])

    saved = save_embedder(embedder, tmp_path / "saved", {})

    assert {each.dtype for each in load_file(saved / "model.safetensors").values()} == {torch.float32}
    again = load_embedder(saved)
    assert torch.equal(again.embed_documents(TEXTS[:3]), embedder.embed_documents(TEXTS[:3]))


def test_packed_weights_of_which_nothing_is_said_are_not_read_as_plain_numbers(tmp_path):
    write_packed(tmp_path, stated=False)
    with pytest.raises(ModelFolderError, match=r"weight_scale_inv, so that its weights are packed"):
        opened(tmp_path)


def test_weights_that_every_forward_rounds_take_no_adapter_and_are_saved_as_they_are_trained(tmp_path):
    tokenizer, folder = byte_tokenizer(), tmp_path / "plain"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    stated = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    config = BitNetConfig(vocab_size=len(tokenizer) + 2, num_key_value_heads=2, eos_token_id=0, **sizes)
    BitNetForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text()) | {"quantization_config": stated}
    (folder / "config.json").write_text(json.dumps(content))

    with pytest.raises(
        ModelFolderError, match=rf"^{folder}: its weights stay packed \(bitnet\), .*FullTuning"
    ):
        opened(folder, tuning=LoraTuning(r=2))
    embedder = opened(folder)

    assert type(embedder.decoder.layers[0].mlp.up_proj) is AutoBitLinear
    again = load_embedder(save_embedder(embedder, tmp_path / "saved", {}))
    assert torch.equal(again.embed_documents(TEXTS[:3]), embedder.embed_documents(TEXTS[:3]))
