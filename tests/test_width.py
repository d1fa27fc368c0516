"""A model whose last states are narrower than its layers has embeddings of the states' width."""

import json

import torch
from plain_folders import LENGTHS, WORDS, byte_tokenizer
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, OPTConfig

from search_r3.models.folder import load_embedder, open_embedder, save_embedder
from search_r3.models.tuning import FullTuning


def test_opt_with_projected_states_embeds_reasons_and_is_saved_in_their_width(tmp_path):
    tokenizer = byte_tokenizer()
    config = OPTConfig(
        vocab_size=len(tokenizer) + 8, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, word_embed_proj_dim=16, do_layer_norm_before=False, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    settings = {"path": None, "create": None, "prompts": WORDS, "lengths": LENGTHS, "tuning": FullTuning()}
    opened = open_embedder(name=str(tmp_path / "plain"), **settings)

    folder = save_embedder(opened, tmp_path / "model", {})
    embedder = load_embedder(folder)

    assert embedder.width == 16
    vectors = embedder.embed_documents(["sum of two numbers", "x"])
    for ids, vector in zip(embedder.encoder.documents(["sum of two numbers", "x"]), vectors, strict=True):
        with torch.no_grad():
            alone = embedder.decoder(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
        torch.testing.assert_close(vector, normalize(alone, dim=-1), atol=1e-5, rtol=1e-5)
    assert embedder.reason(["sum"]).embeddings.shape == (1, 16)
    pooling = json.loads((folder / "sentence_transformers" / "pooling" / "config.json").read_text())
    assert pooling["embedding_dimension"] == 16
