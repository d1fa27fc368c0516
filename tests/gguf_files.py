"""Small GGUF files as llama.cpp's converter writes them, with the package that it writes them with."""

import json

import gguf
import numpy as np
import torch
from conftest import TEXTS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def small_llama(n_tokens: int) -> LlamaForCausalLM:
    """Two layers with a tied head, and numbers that no default has."""
    config = LlamaConfig(
        vocab_size=n_tokens, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for weight in model.parameters():  # norms too, which start at one
            weight.data += 0.2 * torch.randn_like(weight)
    return model.eval()


def vocabulary_and_merges(n_tokens: int = 420) -> tuple[list[str], list[str]]:
    """Of a byte-level BPE that was trained on text with runs of digits and blanks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens, special_tokens=list(CONTROL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    numbers = [f"  {n} items,   {n * 1000} 1234 12" for n in range(40)]
    tokenizer.train_from_iterator([*TEXTS, *numbers], trainer)
    content = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return sorted(content, key=content.get), [" ".join(merge) for merge in merges]


def _as_converted(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """Tensors by their names in GGUF; rows of queries and keys in llama.cpp's order of rotary pairs."""
    tensors = {}
    for name, value in model.state_dict().items():
        array = value.numpy()
        if name == "model.embed_tokens.weight":
            tensors["token_embd.weight"] = array
        elif name == "model.norm.weight":
            tensors["output_norm.weight"] = array
        elif name.startswith("model.layers."):
            _, _, layer, *inner = name.removesuffix(".weight").split(".")
            short = NAMES[".".join(inner)]
            n_heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
            if short in n_heads:
                n = n_heads[short]
                pairs = array.reshape(n, 2, array.shape[0] // n // 2, array.shape[1])
                array = pairs.swapaxes(1, 2).reshape(array.shape)
            tensors[f"blk.{layer}.{short}.weight"] = array
    return tensors


def write_gguf(
    path,
    model=None,
    pre="smollm",
    kind="gpt2",
    architecture="llama",
    quantised=(),
    left_out=(),
    tensors=None,
    strings=None,
    n_unused=0,
    n_parts=1,
    **pairs,
):
    """Writes a whole file and returns the model that is in it.

    Args:
        path: of the file.
        model: written; None makes `small_llama`.
        pre: name of the pre-tokenizer; None names none.
        kind: of the tokenizer.
        architecture: as the metadata name it.
        quantised: tensors whose names end so are written as Q8_0.
        left_out: tensors that the file lacks.
        tensors: further ones, by name.
        strings: further string values, by key.
        n_unused: ids after the last token, as a converter fills a matrix that was rounded up.
        n_parts: that the metadata speak of.
        pairs: of the tokenizer: `add_bos_token`.
    """
    tokens, merges = vocabulary_and_merges()
    model = small_llama(len(tokens) + n_unused) if model is None else model
    config = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if n_parts > 1:
        writer.add_uint16("split.count", n_parts)
    writer.add_tokenizer_model(kind)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    unused = [f"[PAD{len(tokens) + number}]" for number in range(n_unused)]
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([3 if token in CONTROL else 1 for token in tokens] + [5] * n_unused)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    if "add_bos_token" in pairs:
        writer.add_add_bos_token(pairs["add_bos_token"])
    writer.add_chat_template(TEMPLATE)
    for key, value in (strings or {}).items():
        writer.add_string(key, value)
    for name, array in {**_as_converted(model), **(tensors or {})}.items():
        if name in left_out:
            continue
        if name.endswith(tuple(quantised)) and quantised:
            kind_of = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(array, kind_of), raw_dtype=kind_of)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
