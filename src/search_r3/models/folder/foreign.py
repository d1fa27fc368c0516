"""What a folder of others does with a text: one of sentence-transformers, or a plain Hugging Face one.

Looked at with transformers alone, and no code of the folder is run. Lost end tokens, padding on the wrong
side and forgotten prompts are what is found.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from search_r3.models.checksums import ModelFolderError, plain_hashes
from search_r3.models.folder.modules import MODULES_FILE
from search_r3.models.prompts import EMBED_TOKEN
from search_r3.models.reading import named_damage

QUERY = "how do I read the lines of a file?"
DOCUMENT = "def read_lines(path):\n    return open(path).read().splitlines()"
N_LAST = 6
"""Ids of an end that are shown."""
MOST_BY_BATCH = 1e-3
"""By how much a number of a vector may differ in a batch; in fp32 it differs by some 1e-6."""
Line = tuple[str, str]
_NEVER_CUT = 1 << 20
"""From here on the limit of a tokenizer is one that nobody set."""
_OLD_NAMES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
}
_KNOWN = ("cls", "mean", "lasttoken")


class ForeignFolder:
    """A folder that this project did not write, and how its texts become vectors.

    Args:
        folder: with a tokenizer.json, a config.json and safetensors.

    Raises:
        ModelFolderError: If a file cannot be used, or it has another module than a Transformer in front.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.sha256 = folder, plain_hashes(folder).weights
        self.modules = _json(folder / MODULES_FILE, [])
        kinds = [str(module.get("type", "")).rpartition(".")[2] for module in self.modules]
        if kinds and (kinds[0] != "Transformer" or self.modules[0].get("path")):
            raise ModelFolderError(
                f"{folder / MODULES_FILE}: begins with {kinds[0]}, and only a Transformer in the folder "
                "itself can be looked at"
            )
        self.kinds = kinds
        self.pooling = self._pooling()
        with named_damage(folder):
            options = {"local_files_only": True, "trust_remote_code": False}
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), **options)
            self.model = AutoModel.from_pretrained(
                str(folder), dtype=torch.float32, use_safetensors=True, **options
            ).eval()
        config = self.model.config.get_text_config()
        stated = _json(folder / "sentence_bert_config.json", {}).get("max_seq_length")
        limits = [stated, self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
        self.limit = next(int(limit) for limit in (*limits, 512) if limit and limit < _NEVER_CUT)
        prompts = _json(folder / "config_sentence_transformers.json", {}).get("prompts") or {}
        self.prompts = {
            "query": prompts.get("query", ""),
            "document": next(
                (prompts[name] for name in ("document", "passage", "corpus") if name in prompts), ""
            ),
        }

    def ids(self, text: str, kind: str) -> list[int]:
        """Token ids of a text behind its prompt, cut at the limit."""
        given = self.prompts[kind] + text
        return self.tokenizer(given, truncation=True, max_length=self.limit)["input_ids"]

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """`[N, D]`, unit norm: texts in one batch without a prompt; what is pooled otherwise has its mean."""
        batch = self.tokenizer(
            list(texts), truncation=True, max_length=self.limit, padding=True, return_tensors="pt"
        )
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        states, mask = self.model(**inputs).last_hidden_state, batch["attention_mask"]
        if self.pooling == "cls":
            return normalize(states[:, 0], dim=-1)
        if self.pooling == "lasttoken":
            last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
            return normalize(states[torch.arange(len(states)), last], dim=-1)
        return normalize((states * mask[..., None]).sum(1), dim=-1)

    def _pooling(self) -> str | None:
        if "Pooling" not in self.kinds:
            return None
        settings = _json(self.folder / self.modules[self.kinds.index("Pooling")]["path"] / "config.json", {})
        old = "+".join(name for key, name in _OLD_NAMES.items() if settings.get(key))
        return str(settings.get("pooling_mode") or old or "mean")


def checked_foreign(folder: Path) -> list[Line]:
    """Names and values, as `checked` has them for a folder of ours.

    Raises:
        ModelFolderError: If it cannot be looked at.
    """
    other = ForeignFolder(folder)
    kind = (
        f"sentence-transformers: {', '.join(other.kinds)}" if other.kinds else "a plain Hugging Face folder"
    )
    long = " ".join([DOCUMENT] * other.limit)
    has_token = EMBED_TOKEN in other.tokenizer.get_vocab()
    return [
        ("kind", f"{kind}; not written by this project"),
        ("weights", f"SHA-256 {other.sha256[:12]}, {type(other.model).__name__}"),
        ("embed token", f"{EMBED_TOKEN} is {'in' if has_token else 'not in'} its tokenizer"),
        ("limits", f"{other.limit} tokens, prompt included"),
        *(
            (f"prompt of a {name}", repr(prompt) if prompt else "none")
            for name, prompt in other.prompts.items()
        ),
        ("a query ends", _end(other, other.ids(QUERY, "query"))),
        ("a document ends", _end(other, other.ids(DOCUMENT, "document"))),
        ("a cut document ends", _end(other, other.ids(long, "document"), other.ids(DOCUMENT, "document"))),
        ("padding", _padding(other)),
        ("pooling", _pooled(other)),
        *_by_batch(other),
    ]


def _end(other: ForeignFolder, ids: Sequence[int], whole: Sequence[int] = ()) -> str:
    """The last ids; `whole` is a text that was not cut, whose end token the cut one must have too."""
    last = list(ids[-N_LAST:])
    told = f"{last} {' '.join(other.tokenizer.convert_ids_to_tokens(last))} ({len(ids)} tokens)"
    specials = other.tokenizer.all_special_ids
    if whole and whole[-1] in specials and ids[-1] != whole[-1]:
        token = other.tokenizer.decode([whole[-1]])
        return f"{told}; WRONG: the end token {token!r} is lost where a text is cut"
    if other.pooling == "lasttoken" and ids[-1] not in specials:
        return f"{told}; WRONG: no end token, so the state of the last word is read; its eos is lost"
    return told


def _padding(other: ForeignFolder) -> str:
    tokenizer = other.tokenizer
    if tokenizer.pad_token is None:
        return "WRONG: there is no padding token, so texts of several lengths cannot be embedded together"
    told = f"on the {tokenizer.padding_side}, with {tokenizer.pad_token!r}"
    if other.pooling == "cls" and tokenizer.padding_side == "left":
        return f"{told}; WRONG: the first place is read, which is padding in a batch"
    if other.pooling == "lasttoken" and tokenizer.padding_side == "right":
        return f"{told}; a tool that takes the last place of a batch, and not of a text, reads padding"
    return told


def _pooled(other: ForeignFolder) -> str:
    if other.pooling is None:
        return (
            f"WRONG: not stated (no Pooling in a {MODULES_FILE}); sentence-transformers guesses one, without "
            "a prompt, and says nothing. Of a checkpoint like ours: model.name=, see docs/evaluation.md"
        )
    if other.pooling not in _KNOWN:
        return f"{other.pooling}; what a batch changes is not measured for it"
    return other.pooling


def by_batch(vectors: Callable[[list[str]], torch.Tensor]) -> str:
    """By how much a number of a vector differs between a text alone and beside longer ones."""
    texts = ["a", QUERY, DOCUMENT, " ".join([DOCUMENT] * 4)]
    alone = torch.cat([vectors([text]) for text in texts])
    difference = (vectors(texts) - alone).abs().max().item()
    # Said so that what is no number is wrong too.
    wrong = "" if difference <= MOST_BY_BATCH else "; WRONG: a vector depends on what it is embedded with"
    return f"differ by at most {difference:.1e}{wrong}"


def _by_batch(other: ForeignFolder) -> list[Line]:
    if other.tokenizer.pad_token is None or other.pooling not in _KNOWN:
        return []
    lines = [("alone and in a batch", by_batch(other.vectors))]
    for kind, text in (("query", QUERY), ("document", DOCUMENT)):
        if prompt := other.prompts[kind]:
            cosine = float(other.vectors([text])[0] @ other.vectors([prompt + text])[0])
            told = f"a tool that forgets it gives other vectors: cosine {cosine:.3f}"
            lines.append((f"without its {kind} prompt", told))
    return lines


def _json(file: Path, absent: object) -> object:
    """What a file holds, or `absent` where there is none.

    Raises:
        ModelFolderError: If it is no JSON of that kind.
    """
    if not file.is_file():
        return absent
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{file}: cannot be read ({error})") from None
    if not isinstance(content, type(absent)):
        raise ModelFolderError(f"{file}: must be a JSON {'list' if absent == [] else 'object'}")
    return content
