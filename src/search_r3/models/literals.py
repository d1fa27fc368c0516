"""Texts that hold the name of a special token, as `</s>` or `<|embed_token|>`: it is read as letters.

A tokenizer knows a special token twice: as an added token, which is looked for before anything else and which
`split_special_tokens` of transformers turns off, and often as an entry of its model's vocabulary, which it
does not turn off. Unigram, WordLevel and WordPiece find such an entry in a text, and BPE where merges lead to
it. So texts are read with a copy of the tokenizer in which these entries have other names.

The rule, for every kind of tokenizer: the name of a special token is read as if the vocabulary did not have
it, by the pieces that its letters have, or as the unknown token where they have none. All other ids stay as
they are. Three kinds of token keep their names:

- one that is not marked as special, as Qwen's `<tool_call>`: a text that has its name has the token;
- one of a single character or of white space alone: it is how that character is written, whatever else the
  token is used for;
- a byte of byte fallback (`<0x0A>`), without which characters beyond the vocabulary could not be written.

The other names begin with U+FDD0, which Unicode keeps out of texts. Where a text has it all the same, it is
read as U+FDD1, which is such a character too.
"""

import copy
import json
import re
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

_MARK, _IN_ITS_PLACE = "\ufdd0", "\ufdd1"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_made: WeakKeyDictionary[PreTrainedTokenizerBase, tuple] = WeakKeyDictionary()


def text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer that texts are read with: a copy where a text could spell a special token, else this one.

    It is to be called with `split_special_tokens=True`. It is made once, and again where a token is added.
    """
    backend = tokenizer.backend_tokenizer
    state = (id(backend), tuple(tokenizer.all_special_ids))
    known, made = _made.get(tokenizer, (None, None))
    if known != state:
        made = None
        if names := spelled(backend):
            made = copy.copy(tokenizer)
            made._tokenizer = Tokenizer.from_str(json.dumps(renamed(json.loads(backend.to_str()), names)))
        _made[tokenizer] = (state, made)
    return tokenizer if made is None else made


def spelled(backend: Tokenizer) -> dict[str, str]:
    """Special tokens that the model of a tokenizer gives for their own names, and their names in the copy."""
    model = backend.model
    special = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    names = [name for name in special if len(name.strip()) > 1 and not _BYTE.fullmatch(name)]
    known = [name for name in names if model.token_to_id(name) is not None]
    return {name: _MARK + name for name in known if [t.value for t in model.tokenize(name)] == [name]}


def renamed(content: dict, names: dict[str, str]) -> dict:
    """The content of a tokenizer.json in which no text spells the special tokens `names`; ids stay."""
    if not names:
        return content
    first = {"type": "Replace", "pattern": {"String": _MARK}, "content": _IN_ITS_PLACE}
    steps = [first] if content["normalizer"] is None else [first, content["normalizer"]]
    added = [
        token | {"content": names.get(token["content"], token["content"])}
        for token in content["added_tokens"]
    ]
    return content | {
        "model": _renamed_model(content["model"], names),
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "added_tokens": added,
    }


def _renamed_model(model: dict, names: dict[str, str]) -> dict:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        changed: dict = {"vocab": {names.get(piece, piece): place for piece, place in vocabulary.items()}}
    else:  # of Unigram, whose pieces have their ids by their places
        changed = {"vocab": [(names.get(piece, piece), score) for piece, score in vocabulary]}
    if "unk_token" in model:
        changed["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        joined = model.get("continuing_subword_prefix") or ""
        changed["merges"] = [
            (left, right)
            for left, right in model["merges"]
            if names.keys().isdisjoint((left, right, left + right.removeprefix(joined)))
        ]
    return model | changed
