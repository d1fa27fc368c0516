"""Plain Hugging Face folders, as a hub has them: tiny models of several architectures, trained tokenizers."""

import torch
from conftest import TEXTS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from search_r3.models.folder import open_embedder
from search_r3.models.tuning import FullTuning

WORDS = {
    "direct_system": "Represent the query",
    "reasoning_system": "Enrich the text",
    "document_system": "Represent the text",
    "lead_in": "The embedding is",
    "closing": ".",
}
LENGTHS = {"query": 24, "document": 48, "reasoning": 6}
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
MARKS = (*ROLES, "<|end|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DROPS = TEMPLATE.replace("{% for message in messages %}", "{% for message in messages[-1:] %}")
REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
ALTERNATES = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% endfor %}"
)
TEXT_ALONE = "{{ messages[-1]['content'] }}"
DATED = "{{ strftime_now('%d %b %Y %H:%M:%S.%f') }}" + TEMPLATE
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
ARCHITECTURES = {
    "llama": lambda n: LlamaConfig(vocab_size=n, intermediate_size=64, tie_word_embeddings=False, **_SMALL),
    "mistral": lambda n: MistralConfig(
        vocab_size=n, intermediate_size=64, head_dim=8, sliding_window=None, **_SMALL
    ),
    "gpt2": lambda n: GPT2Config(vocab_size=n, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "gemma": lambda n: GemmaConfig(vocab_size=n, intermediate_size=64, head_dim=8, **_SMALL),
    "phi": lambda n: PhiConfig(vocab_size=n, intermediate_size=64, **_SMALL),
    "qwen2": lambda n: Qwen2Config(vocab_size=n, intermediate_size=64, **_SMALL),
}


def byte_tokenizer(special=MARKS, **named) -> PreTrainedTokenizerFast:
    """As those of GPT-2 and Llama 3: byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    named = {"chat_template": TEMPLATE, "eos_token": "<|end|>"} | named
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def sentencepiece_tokenizer(prepends: str = "metaspace", **named) -> PreTrainedTokenizerFast:
    """As those of Llama 2 and Mistral: a blank in front of what is given, by Metaspace or by a normalizer."""
    special = ["<unk>", "<s>", "</s>", *ROLES]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if prepends == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, "[INST] sum of two [/INST]"], trainer)
    named = {"chat_template": TEMPLATE, "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | named
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def write_plain(folder, tokenizer, architecture="llama", spare_rows=20, **settings):
    """Saves a model with random weights and a tokenizer, and returns the folder."""
    config = ARCHITECTURES[architecture](len(tokenizer) + spare_rows)
    config.update({"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None})
    config.update(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def opened(folder, **options):
    """The embedder that a training run opens from a plain folder."""
    settings = {"prompts": WORDS, "lengths": LENGTHS, "tuning": FullTuning(), "create": None} | options
    return open_embedder(path=None, name=str(folder), **settings)
