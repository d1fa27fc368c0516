"""A tokenizer as its authors published it: what its `tokenizer.json` says, whatever class it is read by.

Many classes of transformers 5 take no more than the vocabulary from that file and put their own normalizer
and pre-tokenizer around it. For some models those are others: digits are no longer split apart (SmolLM2,
StarCoder2), or a model of Qwen2's architecture gets Qwen2's pattern (DeepSeek's distilled ones). The texts
are then read in other tokens than the model was trained with, and nothing fails.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

log = logging.getLogger(__name__)

_NO_RULES = {
    *("version", "truncation", "padding", "added_tokens", "post_processor", "decoder"),
    *("vocab", "merges", "dropout", "trim_offsets"),
}
"""Keys of a tokenizer.json that say nothing of the rules by which a text becomes tokens at inference."""

_ADDS_BLANK = ('"add_prefix_space": true', '"first"', '"always"', '"Prepend"')
"""What a tokenizer.json has where it puts a blank before a text."""


def as_published(
    tokenizer: PreTrainedTokenizerBase, source: str | Path, options: Mapping[str, object]
) -> PreTrainedTokenizerBase:
    """The tokenizer itself where its rules are those of its file, else one of that very file; logs which.

    Where `add_prefix_space` is stated and the file says otherwise, the class, which keeps to it, is taken.

    Args:
        tokenizer: as `AutoTokenizer` reads it.
        source: a folder or a hub name.
        options: that it was read with.
    """
    if type(tokenizer) is PreTrainedTokenizerFast or not tokenizer.is_fast:
        return tokenizer
    local = {"local_files_only": options.get("local_files_only", False)}
    file = cached_file(str(source), "tokenizer.json", _raise_exceptions_for_missing_entries=False, **local)
    if file is None:
        return tokenizer
    stated = _with_defaults(file)
    if _rules(stated) == _rules(json.loads(tokenizer.backend_tokenizer.to_str())):
        return tokenizer
    if _contradicts(stated, get_tokenizer_config(source, **local).get("add_prefix_space")):
        return tokenizer  # which keeps to the configuration
    log.info(
        "%s: %s of transformers has other rules than the tokenizer.json, which is taken as it stands",
        source, type(tokenizer).__name__,
    )  # fmt: skip
    published = PreTrainedTokenizerFast.from_pretrained(str(source), **options)
    for role, token in tokenizer.special_tokens_map.items():  # a class may know one that no file names
        is_known = role in published.SPECIAL_TOKENS_ATTRIBUTES  # and none of the class's own, as CodeLlama's
        if is_known and getattr(published, role) is None and token in published.get_vocab():
            setattr(published, role, token)
    return published


def _with_defaults(file: str) -> dict:
    """A tokenizer.json with all that it leaves to defaults, and without a vocabulary that may be large."""
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    if isinstance(content["model"]["vocab"], dict):
        empty = {key: type(content["model"][key])() for key in ("vocab", "merges") if key in content["model"]}
        content |= {"model": content["model"] | empty, "added_tokens": [], "post_processor": None}
    return json.loads(Tokenizer.from_str(json.dumps(content)).to_str())


def _contradicts(content: Mapping, adds_blank: bool | None) -> bool:
    """Whether a tokenizer.json says otherwise than the authors' configuration of the blank before a text."""
    rules = json.dumps([content["normalizer"], content["pre_tokenizer"]])
    return adds_blank is not None and adds_blank != any(mark in rules for mark in _ADDS_BLANK)


def _rules(content: object) -> object:
    """Normalizer, pre-tokenizer and model of a tokenizer.json, or a part of one, for comparison."""
    if isinstance(content, list):
        return [_rules(part) for part in content]
    if not isinstance(content, Mapping):
        return content or None  # an empty prefix is none
    return {key: _rules(part) for key, part in content.items() if key not in _NO_RULES}
