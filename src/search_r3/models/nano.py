"""`model=nano`: a small Qwen3-architecture model and its tokenizer, both made here, without a download.

The choices are ours. The tokenizer reads text as retrieval does: identifiers are split at underscores and at
capitals, case is folded, what is neither letter nor digit becomes a space. So `parseHeader`, `parse_header`
and "Parse header" are the same two tokens, and a line of code costs about half the tokens it would otherwise.
The price is that text does not come back exactly as it went in.

The architecture is Qwen3's (Qwen2's with normalised queries and keys): `AutoTokenizer` replaces the tokenizer
of every folder whose model type is qwen2 by Qwen2's own, which would drop the rules above without a word.
"""

from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from search_r3.models.prompts import EMBED_TOKEN
from search_r3.models.text_ids import pieces

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over case-folded, identifier-split words.

    Args:
        texts: the text of the training split; one of more than 2^20 characters is read in pieces of so many.
        vocab_size: rows of the vocabulary, special tokens and 256 bytes included.

    Raises:
        ValueError: If `vocab_size` leaves no room for the 256 bytes and the special tokens.
    """
    special = [PAD, SYSTEM, USER, ASSISTANT, END, EMBED_TOKEN]
    if vocab_size < 256 + len(special):
        raise ValueError(f"tokenizer.vocab_size must be at least {256 + len(special)}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"), " "),
            normalizers.Replace(Regex(r"[^\p{L}\p{N}]+"), " "),
            normalizers.Lowercase(),
            normalizers.Strip(),
            normalizers.Prepend(" "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT, EMBED_TOKEN],
        chat_template=_CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def create_nano(
    texts: Iterable[str],
    *,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    max_position_embeddings: int,
    seed: int,
    initializer_range: float = 0.02,
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """An untrained model and the tokenizer of its training texts.

    The same texts, sizes and seed give the same weights. The head is tied to the embeddings.

    Args:
        texts: that the tokenizer is trained on.
        vocab_size: tokens, at most: those of the tokenizer that is trained on the texts.
        hidden_size: width of the model, and of its embeddings.
        intermediate_size: width between the two matrices of a feed-forward layer.
        num_hidden_layers: transformer blocks.
        num_attention_heads: heads of the queries of a block; they divide the width.
        num_key_value_heads: heads of its keys and values; they divide those of the queries.
        max_position_embeddings: positions that the model has; prompt, text and reasoning must fit.
        seed: of the random weights.
        initializer_range: standard deviation of all random weights.
    """
    tokenizer = train_tokenizer(texts, vocab_size)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=hidden_size // num_attention_heads,
        max_position_embeddings=max_position_embeddings,
        initializer_range=initializer_range,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    return model, tokenizer
