"""Model folders: what is saved is what is loaded, for full and for LoRA tuning."""

import json
import os

import pytest
import torch
from conftest import LENGTHS, PROMPTS, TEXTS, build_embedder
from plain_folders import byte_tokenizer, opened, write_plain
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder import (
    ModelFolderError,
    load_embedder,
    open_embedder,
    save_embedder,
)
from search_r3.models.nano import train_tokenizer
from search_r3.models.prompts import EMBED_TOKEN
from search_r3.models.tuning import FullTuning, LoraTuning, adapter_disabled
from search_r3.models.vocabulary import add_embed_token

UNUSED = {"name": None, "create": None, "prompts": {}, "lengths": {}}


def move_trained_weights(embedder):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in embedder.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def test_any_reader_of_hugging_face_folders_gets_our_tokenizer(nano_folder, loaded_embedder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(nano_folder)
    expected = loaded_embedder.encoder.text_ids(TEXTS)
    assert tokenizer(TEXTS, add_special_tokens=False)["input_ids"] == expected
    assert tokenizer("parseHeader")["input_ids"] == tokenizer("parse_header")["input_ids"]


@pytest.mark.parametrize("tuning", [FullTuning(), LoraTuning(r=4, alpha=8)], ids=["full", "lora"])
def test_saved_and_loaded_embeddings_are_equal(nano_folder, tmp_path, tuning):
    embedder = open_embedder(path=str(nano_folder), tuning=tuning, **UNUSED)
    before = embedder.embed_documents(TEXTS)
    move_trained_weights(embedder)
    expected = embedder.embed_documents(TEXTS)
    assert (expected - before).abs().max() > 1e-2
    loaded = load_embedder(save_embedder(embedder, tmp_path / "model", {}))
    torch.testing.assert_close(loaded.embed_documents(TEXTS), expected, atol=1e-5, rtol=0)
    assert loaded.reason(TEXTS[:3]).token_ids == embedder.reason(TEXTS[:3]).token_ids


@pytest.mark.parametrize(("umask", "rights"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_every_file_of_a_model_has_the_rights_that_the_umask_leaves(nano_folder, tmp_path, umask, rights):
    embedder = open_embedder(path=str(nano_folder), tuning=LoraTuning(r=4, alpha=8), **UNUSED)
    before = os.umask(umask)
    try:
        folder = save_embedder(embedder, tmp_path / "model", {})
    finally:
        os.umask(before)
    found = {
        path.relative_to(folder).as_posix(): path.stat().st_mode & 0o777
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert {"model.safetensors", "adapter/adapter_model.safetensors", "config.json"} <= found.keys()
    assert found == dict.fromkeys(found, rights)


def test_lora_trains_the_adapter_and_the_tokens_row_only(nano_folder):
    embedder = open_embedder(path=str(nano_folder), tuning=LoraTuning(r=4, alpha=8), **UNUSED)
    trained = [name for name, p in embedder.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in trained)
    rows = [
        p
        for name, p in embedder.model.named_parameters()
        if "trainable_tokens_delta" in name and p.requires_grad
    ]
    assert [tuple(row.shape) for row in rows] == [(1, embedder.width)]
    move_trained_weights(embedder)
    changed = embedder.embed_documents(TEXTS)
    with adapter_disabled(embedder.model):
        base = embedder.embed_documents(TEXTS)
    torch.testing.assert_close(base, load_embedder(nano_folder).embed_documents(TEXTS))
    assert (changed - base).abs().max() > 1e-2


def test_pitfall_9_a_lora_run_keeps_its_adapter_and_the_row_on_both_sides_of_an_untied_head(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 400)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    token_id = tokenizer.convert_tokens_to_ids(EMBED_TOKEN)
    embedder = ReasoningEmbedder(LoraTuning(4, 8).apply(model, token_id), tokenizer, PROMPTS, LENGTHS)
    move_trained_weights(embedder)
    folder = save_embedder(embedder, tmp_path / "model", {})
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    merged = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = (merged[name] != base[name]).any(dim=1).nonzero()[:, 0].tolist()
        assert rows == [token_id], name


def test_the_token_takes_a_spare_row_and_the_matrix_is_never_shrunk():
    tokenizer = train_tokenizer(TEXTS, 400)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    assert EMBED_TOKEN in {token["content"] for token in state["added_tokens"]}
    from transformers import PreTrainedTokenizerFast  # a tokenizer without the token, as hub models have it

    plain = PreTrainedTokenizerFast(
        tokenizer_object=train_plain(), pad_token="<|pad|>", chat_template="{{ messages }}"
    )
    config = Qwen2Config(
        vocab_size=len(plain) + 100, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    add_embed_token(model, plain)
    assert model.get_input_embeddings().weight.shape[0] == len(plain) - 1 + 100
    assert plain.convert_tokens_to_ids(EMBED_TOKEN) == len(plain) - 1


def train_plain():
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|pad|>"], show_progress=False)
    )
    return tokenizer


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda d: d.pop("prompts"), "missing key 'prompts'"),
        (lambda d: d.update(format_version=99), "format_version is 99"),
        (lambda d: d["lengths"].update(query=7), "differ from those the model was trained with"),
    ],
)
def test_pitfall_14_a_folder_of_another_contract_is_refused(tmp_path, change, rule):
    folder = save_embedder(build_embedder(), tmp_path / "model", {})
    file = folder / "search_r3.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))
    with pytest.raises(ModelFolderError, match=rule):
        load_embedder(folder)


def test_a_folder_reads_longer_or_shorter_texts_where_it_is_told_to(nano_folder):
    trained = load_embedder(nano_folder)
    text = " ".join(TEXTS) * 4

    told = load_embedder(
        nano_folder, lengths={"document": LENGTHS.document + 7, "query": 3, "reasoning": None}
    )

    assert len(told.encoder.documents([text])[0]) == len(trained.encoder.documents([text])[0]) + 7
    assert told.encoder.queries(["how to open a file"]) != trained.encoder.queries(["how to open a file"])
    assert told.encoder.lengths.reasoning == LENGTHS.reasoning
    assert told.document_key != trained.document_key  # cached vectors of one are not read for the other
    short = "a file"
    torch.testing.assert_close(told.embed_documents([short]), trained.embed_documents([short]))


def test_a_length_of_no_token_is_refused(nano_folder):
    with pytest.raises(ValueError, match=r"lengths\.document must be at least 1 token, got 0"):
        load_embedder(nano_folder, lengths={"document": 0})


def test_a_missing_folder_and_a_plain_folder_say_what_to_do(tmp_path):
    with pytest.raises(ModelFolderError, match="no such model folder"):
        load_embedder(tmp_path / "absent")
    with pytest.raises(ModelFolderError, match=r"model\.name="):
        load_embedder(tmp_path)


def test_weights_can_be_saved_in_half_precision(tmp_path):
    embedder = build_embedder()
    folder = save_embedder(embedder, tmp_path / "model", {}, dtype="bfloat16")
    loaded = load_embedder(folder)
    similarity = (loaded.embed_documents(TEXTS) * embedder.embed_documents(TEXTS)).sum(-1)
    assert similarity.min() > 0.999
    assert next(embedder.model.parameters()).dtype == torch.float32


def bf16_lora(folder):
    return open_embedder(path=str(folder), tuning=LoraTuning(r=4, alpha=8), dtype="bfloat16", **UNUSED)


def test_under_a_bf16_base_what_is_trained_is_fp32_and_takes_steps_that_bf16_would_lose(nano_folder):
    model = bf16_lora(nano_folder).model
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    assert any("trainable_tokens_delta" in name for name in trained)

    matrix = next(p for name, p in trained.items() if "lora_A" in name)
    before, step = matrix.detach().clone(), 1e-4 * matrix.detach()  # bf16 keeps 8 bits: 1e-4 rounds away
    assert torch.equal((before.bfloat16() + step.bfloat16()).float(), before.bfloat16().float())
    with torch.no_grad():
        matrix += step
    assert not torch.equal(matrix, before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tuning", [FullTuning(), LoraTuning(r=4, alpha=8)], ids=["full", "lora"])
def test_without_a_choice_the_weights_are_saved_as_they_were_trained(nano_folder, tmp_path, tuning, dtype):
    embedder = open_embedder(path=str(nano_folder), tuning=tuning, dtype=dtype, **UNUSED)

    saved = load_file(save_embedder(embedder, tmp_path / "model", {}) / "model.safetensors")

    assert {value.dtype for value in saved.values()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_bf16_base_the_adapter_is_merged_in_fp32_and_cast_once(nano_folder, tmp_path, dtype):
    embedder = bf16_lora(nano_folder)
    move_trained_weights(embedder)
    parts = dict(embedder.model.named_parameters())
    prefix = "base_model.model.model.layers.1.mlp.up_proj"
    base, a, b = (parts[f"{prefix}.{n}.weight"] for n in ("base_layer", "lora_A.default", "lora_B.default"))
    expected = base.float() + (8 / 4) * b @ a  # W + alpha / r * B A, arXiv:2106.09685
    token_id = embedder.embed_token_id
    row = next(p for name, p in parts.items() if "trainable_tokens_delta" in name)[0]

    folder = save_embedder(embedder, tmp_path / "model", {}, dtype=dtype)
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()

    assert saved["model.layers.1.mlp.up_proj.weight"].dtype == getattr(torch, dtype)
    tolerance = {"float32": 1e-6, "bfloat16": 0.0}[dtype]
    torch.testing.assert_close(
        saved["model.layers.1.mlp.up_proj.weight"], expected.to(getattr(torch, dtype)), atol=tolerance, rtol=0
    )
    assert torch.equal(saved["model.embed_tokens.weight"][token_id], row.to(getattr(torch, dtype)))
    assert base.dtype == torch.bfloat16  # the model that was saved is as it was


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tied_weights_are_written_once_in_any_dtype(tmp_path, dtype):
    embedder = build_embedder()
    folder = save_embedder(embedder, tmp_path / "model", {}, dtype=dtype)
    size = {"float32": 4, "bfloat16": 2}[dtype] * sum(p.numel() for p in embedder.causal_lm.parameters())
    assert size <= (folder / "model.safetensors").stat().st_size < size + 20_000


@pytest.mark.parametrize("tuning", [FullTuning(), LoraTuning(r=2, alpha=4)], ids=["full", "lora"])
def test_what_routes_to_experts_stays_in_fp32_among_bf16_weights(tmp_path, tuning):
    """DeepSeek's biases, some tens with differences of some hundredths, which bf16 does not tell apart."""
    tokenizer, bias = byte_tokenizer(), 40 + 0.03 * torch.arange(4)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    config = DeepseekV3Config(
        vocab_size=len(tokenizer) + 2, num_key_value_heads=4, q_lora_rank=8, moe_intermediate_size=16,
        first_k_dense_replace=1, bos_token_id=None, eos_token_id=0, **sizes, **heads, **experts,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    model.get_buffer(name).copy_(bias)
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    embedder = opened(tmp_path / "plain", tuning=tuning, dtype="bfloat16")

    saved = save_embedder(embedder, tmp_path / "model", {})

    weights = load_file(saved / "model.safetensors")
    assert torch.equal(weights.pop(name), bias)
    assert {each.dtype for each in weights.values()} == {torch.bfloat16}
    read = load_embedder(saved, dtype="bfloat16")
    assert torch.equal(read.embed_documents(TEXTS[:3]), embedder.embed_documents(TEXTS[:3]))


@pytest.mark.parametrize(
    "asked", [{"return_dict": False}, {"output_attentions": True}, {"output_hidden_states": True}], ids=str
)
def test_what_a_configuration_asks_to_be_returned_besides_is_left_out(tmp_path, asked):
    file = write_plain(tmp_path / "plain", byte_tokenizer()) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | asked))

    embedder = opened(tmp_path / "plain")

    ids = torch.tensor([[1, 2, 3]])
    assert list(embedder.decoder(input_ids=ids, use_cache=False)) == ["last_hidden_state"]
    read = load_embedder(save_embedder(embedder, tmp_path / "model", {}))
    assert torch.equal(read.embed_documents(TEXTS[:3]), embedder.embed_documents(TEXTS[:3]))
