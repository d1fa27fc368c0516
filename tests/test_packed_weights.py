"""Weights that a folder keeps in fewer bits: unpacked where config.json says how, else refused."""

import json

import pytest
import torch
from conftest import TEXTS
from plain_folders import byte_tokenizer, opened, write_plain
from safetensors.torch import load_file, save_file

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
