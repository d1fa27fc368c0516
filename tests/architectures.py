"""Small models of real architectures, built from their configs, with weights that make every part matter."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    ModernBertDecoderConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

WINDOW = 8
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 0,
}
HEADS = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
ALTERNATING = ["sliding_attention", "full_attention"]

CONFIGS = {
    "qwen2": (Qwen2Config, SIZES),
    "qwen2_window": (
        Qwen2Config,
        SIZES | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, SIZES | {"head_dim": 8, "tie_word_embeddings": True}),
    "llama": (LlamaConfig, SIZES),
    "mistral": (MistralConfig, SIZES | {"sliding_window": WINDOW}),
    "mixtral": (MixtralConfig, SIZES | {"sliding_window": WINDOW, "num_local_experts": 4}),
    "modernbert": (
        ModernBertDecoderConfig,
        HEADS
        | {"local_attention": 2 * WINDOW, "layer_types": ALTERNATING}
        | dict.fromkeys(("bos_token_id", "sep_token_id", "cls_token_id"), 0),
    ),
    "gemma": (GemmaConfig, SIZES | {"head_dim": 8}),
    "gemma2": (
        Gemma2Config,
        SIZES
        | {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
            "query_pre_attn_scalar": 8,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3": (
        Gemma3TextConfig,
        SIZES
        | {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
            "query_pre_attn_scalar": 8,
        },
    ),
    "gemma4": (
        Gemma4TextConfig,
        SIZES
        | {
            "num_hidden_layers": 4,
            "head_dim": 8,
            "global_head_dim": 16,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING * 2,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 400,
            "final_logit_softcapping": 2.0,
        },
    ),
    "phi": (PhiConfig, SIZES),
    "phi3": (Phi3Config, SIZES | {"sliding_window": WINDOW}),
    "gpt2": (
        GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 0, "eos_token_id": 0},
    ),
    "gpt_neox": (GPTNeoXConfig, HEADS | {"rotary_pct": 0.5}),
    "granite": (
        GraniteConfig,
        SIZES | {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    ),
    "cohere": (CohereConfig, SIZES | {"logit_scale": 0.25}),
    "cohere2": (
        Cohere2Config,
        SIZES | {"logit_scale": 0.25, "sliding_window": WINDOW, "layer_types": ALTERNATING},
    ),
    "olmo2": (Olmo2Config, SIZES),
    "smollm3": (
        SmolLM3Config,
        SIZES
        | {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
            "no_rope_layers": [1, 0],
        },
    ),
    "stablelm": (StableLmConfig, SIZES),
    "starcoder2": (Starcoder2Config, SIZES | {"sliding_window": WINDOW}),
    "opt": (OPTConfig, HEADS | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
}
NO_ADAPTER = {
    "llama4": (
        Llama4TextConfig,
        SIZES
        | {
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 2,
            "attention_chunk_size": WINDOW,
        },
    ),
}
"""As `CONFIGS`, with a router that takes no adapter: other layers must be named for LoRA."""
EAGER_ONLY = ("gemma2",)
"""Transformers refuses sdpa for these."""


def build(name: str, vocab_size: int = 96, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """An untrained model in fp32 and evaluation mode.

    Matrices have variance 1 / fan-in and biases are not 0: with the usual small initial weights a layer
    hardly changes its input, and a part that is left out would not be seen.
    """
    kind, settings = (CONFIGS | NO_ADAPTER)[name]
    config = kind(**settings, vocab_size=vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
                elif parameter_name.endswith("bias"):
                    parameter.normal_(std=0.5)
    return model.float().eval()
