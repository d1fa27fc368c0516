"""Weights that a folder does not have are never made up without a word."""

import json
import logging

import pytest
import torch
from plain_folders import byte_tokenizer, opened, write_plain
from safetensors.torch import load_file, save_file

from search_r3.models.folder import ModelFolderError, load_embedder, save_embedder
from search_r3.models.folder.plain import load_plain
from search_r3.models.prompts import Lengths, Prompts
from search_r3.models.tuning import FullTuning, LoraTuning


def changed(folder, change):
    """The folder with its weights, by name, replaced by what `change` makes of each name and weight."""
    file = write_plain(folder, byte_tokenizer()) / "model.safetensors"
    pairs = (change(name, weight) for name, weight in load_file(file).items())
    save_file(dict(pair for pair in pairs if pair is not None), file, metadata={"format": "pt"})
    return folder


WRONG = {
    "a layer is missing": (
        lambda name, weight: None if ".layers.1." in name else (name, weight),
        r"9 weights of LlamaForCausalLM, .* missing or of another shape: model\.layers\.1\.input_layernorm",
    ),
    "all have other names": (
        lambda name, weight: (f"module.{name}", weight),
        r"model\.embed_tokens\.weight; it has module\.lm_head\.weight, which is none of its weights",
    ),
    "one has another shape": (
        lambda name, weight: (name, weight[:8].clone() if ".0.self_attn.q_proj." in name else weight),
        r"1 weights .* shape: model\.layers\.0\.self_attn\.q_proj\.weight$",
    ),
    "matrices are packed by a quantiser": (
        lambda name, weight: (name.replace("_proj.weight", "_proj.qweight"), weight),
        r"down_proj\.weight; it has model\.layers\.0\.mlp\.down_proj\.qweight",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_training_and_evaluation_refuse_a_folder_whose_weights_do_not_fit_by_name(tmp_path, case):
    change, message = WRONG[case]
    folder = changed(tmp_path / "plain", change)
    with pytest.raises(ModelFolderError, match=message):
        opened(folder)
    with pytest.raises(ModelFolderError, match=message):
        load_plain(folder, Prompts("direct", "reason", "document"), Lengths(24, 48, 6), "<|end|>")


def test_a_missing_head_is_told(tmp_path, caplog):
    folder = changed(tmp_path, lambda name, weight: None if name == "lm_head.weight" else (name, weight))
    opened(folder)
    assert "has no lm_head.weight: its head is random" in caplog.text


@pytest.mark.parametrize("tuning", [FullTuning(), LoraTuning(r=2, alpha=4)], ids=["full", "lora"])
def test_a_head_that_config_calls_tied_and_the_files_hold_apart_is_kept(tmp_path, caplog, tuning):
    folder = write_plain(tmp_path / "plain", byte_tokenizer(), spare_rows=0)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    head = load_file(folder / "model.safetensors")["lm_head.weight"]
    with caplog.at_level(logging.INFO):
        embedder = opened(folder, tuning=tuning)  # which adds a row
    states = torch.randn(3, embedder.width)

    torch.testing.assert_close(embedder.logits(states)[:, : len(head)], states @ head.T)
    assert "says tie_word_embeddings=true, and its head differs" in caplog.text
    loaded = load_embedder(save_embedder(embedder, tmp_path / "model", {}))
    torch.testing.assert_close(loaded.logits(states), embedder.logits(states))


def test_weights_that_stay_unread_are_told(tmp_path, caplog):
    folder = write_plain(tmp_path, byte_tokenizer())
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 1}))
    opened(folder)
    told = "9 of its weights are none of LlamaForCausalLM, as config.json describes it, and stay unread: "
    assert told + "model.layers.1.input_layernorm.weight" in caplog.text


def test_a_whole_folder_is_read_without_a_word(tmp_path, caplog):
    opened(write_plain(tmp_path, byte_tokenizer()))
    assert "head is random" not in caplog.text
    assert "stay unread" not in caplog.text


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("config.json", "quantization_config", {"bits": 4}, "cannot read it: .*quant_method"),
        ("config.json", "model_type", "t5", "cannot read it: Unrecognized configuration class"),
        (
            "config.json",
            "hidden_size",
            "32",
            "config.json: .*'hidden_size': TypeError: .* expected int",
        ),
        ("config.json", "dtype", "fp16", "cannot read its config.json: .*fp16"),
        ("config.json", "rope_scaling", {"type": "su"}, "cannot read it: KeyError: 'su'"),
        ("config.json", "hidden_act", "no such", "cannot read it: KeyError: 'no such'"),
        ("tokenizer_config.json", "extra_special_tokens", 3, "cannot read its tokenizer: "),
        ("config.json", "pad_token_id", 420, "pad_token_id that is none of the vocab_size rows"),
        ("generation_config.json", "eos_token_id", "<|end|>", "must be the id of .* got '<|end|>'"),
        ("generation_config.json", "eos_token_id", [3, "<|end|>"], "must be the id of .* got \\[3, "),
        ("generation_config.json", "num_return_sequences", 3, "cannot read it: .*num_return_sequences"),
    ],
)
def test_what_transformers_refuses_is_an_error_in_a_line_that_names_the_folder(
    tmp_path, file, key, value, message
):
    folder = write_plain(tmp_path, byte_tokenizer())
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | {key: value}))
    with pytest.raises(ModelFolderError, match=message) as caught:
        opened(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_file_of_its_own_is_refused_before_any_weight_is_read(tmp_path):
    files = {"vocab.json": {"a</w>": 0, "<unk>": 1}, "config.json": {"model_type": "ctrl"}}
    files["tokenizer_config.json"] = {"tokenizer_class": "CTRLTokenizer"}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    message = rf"^{tmp_path}: CTRLTokenizer has no tokenizer\.json, which a model folder keeps"
    with pytest.raises(ModelFolderError, match=message):
        opened(tmp_path)  # which has no weights


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ({"quant_method": "higgs", "bits": 4}, "HIGGS|higgs"),  # NotImplementedError
        ({"quant_method": "spqr"}, "GPU is required|[Aa]ccelerate|SpQR"),  # RuntimeError without a GPU
        ({"quant_method": "metal"}, "mps|MPS|[Mm]etal"),  # RuntimeError
        ({"quant_method": "gptq"}, "bits"),  # TypeError
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": 4}, "quant_type"),
    ],
)
def test_weights_that_cannot_be_unpacked_here_are_refused_in_a_line_with_their_packing(
    tmp_path, stated, reason
):
    folder = write_plain(tmp_path, byte_tokenizer())
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"quantization_config": stated}))
    says = rf"{folder}: config\.json says quantization_config\.quant_method={stated['quant_method']}, and "
    with pytest.raises(ModelFolderError, match=rf"^{says}.*here: .*({reason}).*\. Take a copy") as caught:
        opened(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["modelopt", "exl2", "bitsandbytes"])
def test_weights_that_transformers_would_not_unpack_are_refused_though_all_names_fit(tmp_path, method):
    folder = write_plain(tmp_path, byte_tokenizer())
    content = json.loads((folder / "config.json").read_text())
    stated = {"quantization_config": {"quant_method": method, "bits": 8}}
    (folder / "config.json").write_text(json.dumps(content | stated))
    message = rf"{folder}: .*quantization_config\.quant_method={method}, .*take quantization_config out"
    with pytest.raises(ModelFolderError, match=message):
        opened(folder)
    with pytest.raises(ModelFolderError, match=message):
        load_plain(folder, Prompts("direct", "reason", "document"), Lengths(24, 48, 6), "<|end|>")
