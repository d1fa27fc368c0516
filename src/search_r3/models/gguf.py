"""Models from a GGUF file: weights as transformers dequantises them, the tokenizer of the file's own parts.

A GGUF file names its pre-tokenizer (`tokenizer.ggml.pre`) and does not contain it. What transformers makes of
a name that it does not know is GPT-2's, which gives other tokens and no error: SmolLM2 loses the splitting of
digits so, and with it the white space before them. Here the tokenizer is built from vocabulary and merges of
the file and a table of pre-tokenizers that are those of the originals; any other name is refused. So are
tensors and positions that the model would be read without.

A model read with `gguf_file=` is tied to its quantizer and refuses to be saved, so the weights are put into a
fresh one.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from search_r3.errors import UsageError, first_line

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""Kinds of token (`tokenizer.ggml.token_type`)."""
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_NOT_OF_THE_FILE = ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version")


class GgufError(UsageError, ValueError):
    """A GGUF file that cannot be read, or whose model would not be what the file means."""

    def __init__(self, file: str | Path, rule: str) -> None:
        super().__init__(f"{file}: {rule}")


@dataclass(frozen=True)
class PreTokenizer:
    """How a family of byte-level vocabularies cuts a text before merging.

    Attributes:
        make: builds it.
        normalizer: builds what comes before it; None where nothing does.
        ignore_merges: whether a piece that is a token as a whole is taken without merging.
        adds_bos: whether a text starts with the BOS token where the file does not say.
    """

    make: Callable[[], pre_tokenizers.PreTokenizer]
    normalizer: Callable[[], normalizers.Normalizer] | None = None
    ignore_merges: bool = False
    adds_bos: bool = False


def _by_bytes(use_regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _digits_apart() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _by_bytes(True)])


def _split_at(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), _by_bytes(False)])


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(lambda: _by_bytes(True)),
    "smollm": PreTokenizer(_digits_apart),
    "llama-bpe": PreTokenizer(lambda: _split_at(_LLAMA_3), ignore_merges=True, adds_bos=True),
    "qwen2": PreTokenizer(lambda: _split_at(_QWEN_2), normalizers.NFC),
}
"""By `tokenizer.ggml.pre`: those of GPT-2, SmolLM 1 and 2, Llama 3, and Qwen2, Qwen2.5 and Qwen3."""


def read_gguf(
    file: str | Path, dtype: torch.dtype = torch.float32, attention: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The causal language model of a GGUF file and its tokenizer.

    Args:
        file: path of the file.
        dtype: of the weights, which are dequantised in fp32.
        attention: implementation of transformers; None takes the best that the architecture has.

    Returns:
        An ordinary model, which can be trained and saved, and a tokenizer that pads on the left.

    Raises:
        GgufError: If the file is missing or damaged, is one part of several, has an architecture that
            transformers does not read, a tokenizer that is not in the table, or tensors or positions that
            the model would be read without.
    """
    file = Path(file)
    reader = _opened(file)
    metadata = _Metadata(file, reader)
    _refuse_parts(metadata)
    _refuse_scaled_positions(metadata, reader)
    tokenizer = _tokenizer(metadata)
    return _model(file, reader, dtype, attention), tokenizer


def quantisation(file: str | Path) -> dict[str, int]:
    """Number of tensors by their type in the file, as "Q4_1"; the most frequent first."""
    counts = Counter(tensor.tensor_type.name for tensor in _opened(Path(file)).tensors)
    return dict(counts.most_common())


def _opened(file: Path) -> GGUFReader:
    if not file.is_file():
        raise GgufError(file, "no such file")
    try:
        return GGUFReader(str(file))
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        raise GgufError(
            file, f"no whole GGUF file ({first_line(error)[:120]}); take it from a copy"
        ) from None


class _Metadata:
    """Key-value pairs of a file.

    Args:
        file: for messages.
        reader: of the file.
    """

    def __init__(self, file: Path, reader: GGUFReader) -> None:
        self.file, self._reader = file, reader

    def get(self, key: str, default: object = None) -> object:
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def require(self, key: str) -> object:
        value = self.get(key)
        if value is None:
            raise GgufError(self.file, f"its metadata have no {key}")
        return value

    def keys(self) -> list[str]:
        return list(self._reader.fields)


def _refuse_parts(metadata: _Metadata) -> None:
    if int(metadata.get("split.count", 1)) > 1:
        raise GgufError(
            metadata.file,
            f"is one of {metadata.get('split.count')} parts; join them (llama-gguf-split --merge) first",
        )


def _refuse_scaled_positions(metadata: _Metadata, reader: GGUFReader) -> None:
    """Rotary positions that are scaled, as from Llama 3.1 on, stand in keys and tensors that nobody reads."""
    tensors = [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_f")]
    keys = [key for key in metadata.keys() if key.endswith(".rope.scaling.type")]  # noqa: SIM118
    scaled = [key for key in keys if metadata.get(key) != "none"]
    if tensors or scaled:
        raise GgufError(
            metadata.file,
            f"its rotary positions are scaled ({(tensors + scaled)[0]}), which transformers does not read "
            "from GGUF; take the model as a Hugging Face folder",
        )


# ---- tokenizer


def _tokenizer(metadata: _Metadata) -> PreTrainedTokenizerFast:
    """Byte-level BPE from the file's vocabulary and merges; its special tokens and chat template."""
    family = _family(metadata)
    tokens, kinds = metadata.require("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    kinds = kinds or [_NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise GgufError(metadata.file, f"{len(tokens)} tokens and {len(kinds)} kinds of token do not align")
    # unused ids are rows that were made to round up the matrix; converters call them [PAD151665]
    vocabulary = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != _UNUSED
    }
    if len(vocabulary) < len(tokens) - kinds.count(_UNUSED):
        raise GgufError(metadata.file, "a token stands twice in its vocabulary")
    merges = _merges(metadata, vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=family.ignore_merges))
    if family.normalizer is not None:
        tokenizer.normalizer = family.normalizer()
    tokenizer.pre_tokenizer, tokenizer.decoder = family.make(), decoders.ByteLevel()
    added = [
        AddedToken(token, normalized=False, special=kind == _CONTROL)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    named = {
        name: tokens[number]
        for name, key in _NAMED.items()
        if (number := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    if metadata.get("tokenizer.ggml.add_bos_token", family.adds_bos) and "bos_token" in named:
        tokenizer.post_processor = _starts_with(named["bos_token"], vocabulary[named["bos_token"]])
    context = metadata.get(f"{metadata.require('general.architecture')}.context_length")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=metadata.get("tokenizer.chat_template"),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **({} if context is None else {"model_max_length": int(context)}),
        **named,
    )


def _family(metadata: _Metadata) -> PreTokenizer:
    """The entry of the table that the file names.

    Raises:
        GgufError: If it is another kind of tokenizer, or names one that is not in the table, or none.
    """
    kind, name = metadata.require("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    known = ", ".join(PRE_TOKENIZERS)
    remedy = "take the model as a Hugging Face folder, which has the tokenizer itself"
    if kind != "gpt2":
        raise GgufError(
            metadata.file,
            f"its tokenizer is of kind {kind!r} (tokenizer.ggml.model); only byte-level BPE ('gpt2') is "
            f"known to give the tokens of the original; {remedy}",
        )
    if name not in PRE_TOKENIZERS:
        named = "names no pre-tokenizer" if name is None else f"names the pre-tokenizer {name!r}"
        raise GgufError(
            metadata.file,
            f"{named} (tokenizer.ggml.pre), and a wrong one gives other tokens without an error. Known are "
            f"{known}; {remedy}",
        )
    return PRE_TOKENIZERS[name]


def _merges(metadata: _Metadata, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    merges = []
    for number, merge in enumerate(metadata.require("tokenizer.ggml.merges")):
        parts = tuple(merge.split(" "))
        if len(parts) != 2 or not {*parts, "".join(parts)} <= vocabulary.keys():
            raise GgufError(
                metadata.file, f"merge {number} is {merge!r}: two tokens that make a third are needed"
            )
        merges.append(parts)
    return merges


def _starts_with(token: str, number: int) -> processors.PostProcessor:
    return processors.TemplateProcessing(
        single=f"{token}:0 $A:0", pair=f"{token}:0 $A:0 {token}:1 $B:1", special_tokens=[(token, number)]
    )


# ---- weights


def _model(file: Path, reader: GGUFReader, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    """The weights as transformers dequantises them, in a model that knows nothing of the file."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars that cannot be turned off
            read, info = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=torch.float32, output_loading_info=True,
                local_files_only=True,
            )  # fmt: skip
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise GgufError(file, f"transformers cannot read it: {reason[:200]}") from error
    wrong = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if wrong:
        raise GgufError(
            file, f"lacks {len(wrong)} of the model's weights, or has them in another shape: {wrong[0]}"
        )
    unread = _unread(reader, read)
    if unread:
        raise GgufError(
            file,
            f"{len(unread)} of its tensors are no weight of {type(read).__name__} and would be left out: "
            f"{', '.join(unread[:3])}",
        )
    config = type(read.config).from_dict(_own(read.config))
    chosen = {} if attention is None else {"attn_implementation": attention}
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **chosen)
    fresh.load_state_dict(read.state_dict())
    fresh.tie_weights()
    return fresh.to(dtype).eval()


def _own(config: PreTrainedConfig) -> dict:
    """A configuration without what is of the file, and without a pad token.

    `pad_token_id` keeps a row of the embeddings from being trained, and here padding is told by length; in
    SmolLM2 it would be the row of the end of a turn.
    """
    facts = {key: value for key, value in config.to_dict().items() if key not in _NOT_OF_THE_FILE}
    return facts | {"pad_token_id": None}


def _unread(reader: GGUFReader, model: PreTrainedModel) -> list[str]:
    """Tensors of the file that no weight of the model is made of; transformers skips them in silence.

    Experts, which it joins by rules of its own, are left to it.
    """
    from transformers.integrations.gguf.utils import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    architecture = reader.fields["general.architecture"].contents()
    if is_gguf_arch_supported(architecture):
        return []  # its newer reader reports them itself
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    read = get_gguf_hf_weights_map(model, processor)
    names = (tensor.name for tensor in reader.tensors)
    return [name for name in names if name not in read and "exps" not in name and name != "output.weight"]
