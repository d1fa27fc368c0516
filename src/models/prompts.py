"""Prompts, and how a text becomes token ids.

A prompt is a constant prefix, the user's text and a constant suffix. The three parts are tokenized apart, so
that a path that shares the prefix and a path that writes the whole string give the same ids. Only the user's
text is ever cut, at its end; a text never yields a special token, whatever it contains.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from transformers import PreTrainedTokenizerBase

EMBED_TOKEN = "<|embed_token|>"
# Stands for the user's text while the chat template is rendered. It must survive the template unchanged.
_PLACEHOLDER = "SEARCHR3USERTEXT"


@dataclass(frozen=True)
class Prompts:
    """The three system prompts and the words around the embed token.

    Attributes:
        direct_system: asks for a representation of the query, without reasoning.
        reasoning_system: asks for a short enrichment of the query that ends with the embed token.
        document_system: asks for a representation of a document.
        lead_in: what the assistant says before the embed token where it does not reason.
        closing: what it says after the token; supervised in SFT, never run at inference.
    """

    direct_system: str
    reasoning_system: str
    document_system: str
    lead_in: str = "The embedding is"
    closing: str = "."


@dataclass(frozen=True)
class Lengths:
    """The most tokens that are taken of a query's text, a document's text and a reasoning.

    Attributes:
        query: of its text.
        document: of its text.
        reasoning: the embed token not counted.
        repeat_ngram: a reasoning ends where it would say an n-gram of this many tokens again, since greedy
            decoding of a small model runs into loops; 0 lets it.
    """

    query: int
    document: int
    reasoning: int
    repeat_ngram: int = 0

    def __post_init__(self) -> None:
        for name in ("query", "document", "reasoning"):
            if getattr(self, name) < 1:
                raise ValueError(f"lengths.{name} must be at least 1 token, got {getattr(self, name)}")
        if self.repeat_ngram < 0:
            raise ValueError(f"lengths.repeat_ngram must be 0 (off) or more, got {self.repeat_ngram}")


@dataclass(frozen=True)
class Template:
    """Token ids around a text: `prefix + text + suffix`."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    def wrap(self, text_ids: Sequence[int]) -> list[int]:
        return [*self.prefix, *text_ids, *self.suffix]


class PromptEncoder:
    """Turns queries, documents and reasonings into token ids under one tokenizer and one set of prompts.

    Args:
        tokenizer: with a chat template and the embed token.
        prompts: the wording.
        lengths: the limits.

    Raises:
        ValueError: If the tokenizer has no chat template, or its template drops or repeats the user's text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, lengths: Lengths) -> None:
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.lengths = lengths
        self.embed_token_id: int = tokenizer.convert_tokens_to_ids(EMBED_TOKEN)
        lead_in = self.plain_ids(prompts.lead_in) if prompts.lead_in else []
        self.closing = tuple(self.plain_ids(prompts.closing)) if prompts.closing else ()
        self.n_lead_in = len(lead_in)
        answer = (*lead_in, self.embed_token_id)
        document = self._template(prompts.document_system)
        direct = self._template(prompts.direct_system)
        self.document = Template(document.prefix, (*document.suffix, *answer))
        self.direct = Template(direct.prefix, (*direct.suffix, *answer))
        self.reasoning = self._template(prompts.reasoning_system)

    def _template(self, system: str) -> Template:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": _PLACEHOLDER}]
        if self.tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template; choose a model that has one")
        # Qwen3 opens a think block unless told not to; other templates ignore the argument.
        rendered = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        parts = rendered.split(_PLACEHOLDER)
        if len(parts) != 2:
            raise ValueError(
                f"the chat template must contain the user's text once, it contains it {len(parts) - 1} times"
            )
        prefix, suffix = (self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts)
        return Template(tuple(prefix), tuple(suffix))

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of one text in which nothing is read as a special token."""
        return self.text_ids([text])[0]

    def text_ids(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of user texts, cut at `max_length`; nothing in them is read as a special token."""
        if not texts:
            return []
        ids = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [row[:max_length] for row in ids]

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Whole sequences of documents; the last id is the embed token."""
        return [self.document.wrap(ids) for ids in self.text_ids(texts, self.lengths.document)]

    def queries(self, texts: Sequence[str]) -> list[list[int]]:
        """Whole sequences of directly embedded queries; the last id is the embed token."""
        return [self.direct.wrap(ids) for ids in self.text_ids(texts, self.lengths.query)]

    def reasoning_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Sequences after which the model writes its reasoning."""
        return [self.reasoning.wrap(ids) for ids in self.text_ids(texts, self.lengths.query)]

    def reasonings(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of reasoning texts, without the embed token."""
        return self.text_ids(texts, self.lengths.reasoning)

    def truncated_share(self, texts: Sequence[str], kind: str) -> float:
        """Share of `texts` whose end is cut; `kind` is "query" or "document"."""
        limit = getattr(self.lengths, kind)
        return sum(len(ids) > limit for ids in self.text_ids(texts)) / max(len(texts), 1)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over wording, limits, rendered ids and the tokenizer itself."""
        tokenizer = self.tokenizer.backend_tokenizer.to_str()
        ids = [self.document.prefix, self.document.suffix, self.direct.prefix, self.direct.suffix]
        lengths = asdict(self.lengths)
        if self.lengths.repeat_ngram == 0:
            del lengths["repeat_ngram"]  # which folders that do not have it mean
        facts = [asdict(self.prompts), lengths, ids, tokenizer]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
