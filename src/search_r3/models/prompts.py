"""Prompts, and how a text becomes token ids.

A prompt is a constant prefix, the user's text and a constant suffix; `templates` renders them. The three
parts are tokenized apart, so that a path that shares the prefix and a path that writes the whole string give
the same ids. Only the user's text is ever cut, at its end or, by choice, its beginning (a very long one
before it is tokenized, see `text_ids`); a text never yields a special token, whatever it contains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import get_args

from transformers import PreTrainedTokenizerBase

from search_r3.files import json_sha256
from search_r3.models.templates import EMBED_TOKEN, Prompts, Rendered, Template, render
from search_r3.models.text_ids import Side, cut_ids, plain_ids

__all__ = ["EMBED_TOKEN", "Lengths", "PromptEncoder", "Prompts", "Rendered", "Template"]

_COUNTED_AT_ONCE = 4096
"""Texts whose cut ids are in memory while they are counted."""


@dataclass(frozen=True)
class Lengths:
    """The most tokens that are taken of a query's text, a document's text and a reasoning.

    Attributes:
        query: of its text.
        document: of its text.
        reasoning: the embed token not counted.
        repeat_ngram: a reasoning ends where it would say an n-gram of this many tokens again, since greedy
            decoding of a small model runs into loops; 0 lets it.
        truncation_side: of a query's and a document's text, the side that is cut: "right" leaves the
            beginning, "left" the end. A given reasoning keeps its beginning.
    """

    query: int
    document: int
    reasoning: int
    repeat_ngram: int = 0
    truncation_side: Side = "right"

    def __post_init__(self) -> None:
        for name in ("query", "document", "reasoning", "repeat_ngram"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise ValueError(f"lengths.{name} must be a whole number, got {value!r}")
        for name in ("query", "document", "reasoning"):
            if getattr(self, name) < 1:
                raise ValueError(f"lengths.{name} must be at least 1 token, got {getattr(self, name)}")
        if self.repeat_ngram < 0:
            raise ValueError(f"lengths.repeat_ngram must be 0 (off) or more, got {self.repeat_ngram}")
        if self.truncation_side not in get_args(Side):
            raise ValueError(f"lengths.truncation_side must be left or right, got {self.truncation_side!r}")

    @property
    def stated(self) -> dict[str, object]:
        """The fields, for a fingerprint; one that folders of before do not have, only where it is used."""
        fields = asdict(self)
        if self.truncation_side == "right":
            del fields["truncation_side"]
        return fields


def given_lengths(lengths: Mapping[str, int | str | None] | None) -> dict[str, int | str]:
    """The limits that are set, of a model's settings; null leaves one as it is."""
    return {name: value for name, value in (lengths or {}).items() if value is not None}


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that is not one of the `tokenizers` library.

    Raises:
        ValueError: With its class.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} has no tokenizer.json, which a model folder keeps; "
            "choose a model that comes with one"
        )


class PromptEncoder:
    """Turns queries, documents and reasonings into token ids under one tokenizer and one set of prompts.

    Args:
        tokenizer: with the embed token.
        prompts: the wording.
        lengths: the limits.
        rendered: the prompts as a model folder keeps them; None renders them now.
        embed_token: whose state is the embedding.

    Raises:
        ValueError: If the tokenizer is not one of the `tokenizers` library, or as `templates.render`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        lengths: Lengths,
        rendered: Rendered | None = None,
        embed_token: str = EMBED_TOKEN,
    ) -> None:
        check_tokenizer(tokenizer)
        # a tokenizer.json may keep the cut and the padding of a batch, which the fingerprint must not know
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.lengths = lengths
        self.rendered = rendered or render(tokenizer, prompts, embed_token)
        self.embed_token_id: int = tokenizer.convert_tokens_to_ids(embed_token)
        self.closing = tuple(self.plain_ids(prompts.closing)) if prompts.closing else ()
        self.n_lead_in = len(self.plain_ids(prompts.lead_in)) if prompts.lead_in else 0

    @property
    def document(self) -> Template:
        """Around a document; ends with the embed token."""
        return self.rendered.document

    @property
    def direct(self) -> Template:
        """Around a directly embedded query; ends with the embed token."""
        return self.rendered.direct

    @property
    def reasoning(self) -> Template:
        """Around a query; the model writes on after it."""
        return self.rendered.reasoning

    @property
    def templates(self) -> tuple[Template, Template, Template]:
        """All three."""
        return self.document, self.direct, self.reasoning

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of one text in which nothing is read as a special token."""
        return self.text_ids([text])[0]

    def text_ids(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of user texts, cut at `max_length`; nothing in them is read as a special token.

        Of a text of more than 65,536 characters only a beginning is read: see `search_r3.models.text_ids`.
        """
        return plain_ids(self.tokenizer, texts, max_length)

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Whole sequences of documents; the last id is the embed token."""
        return self.documents_and_cut(texts)[0]

    def documents_and_cut(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """As `documents`, and how many of the texts are cut."""
        ids, n_cut = self._cut_ids(texts, self.lengths.document)
        return [self.document.wrap(each) for each in ids], n_cut

    def queries(self, texts: Sequence[str]) -> list[list[int]]:
        """Whole sequences of directly embedded queries; the last id is the embed token."""
        return [self.direct.wrap(ids) for ids in self._cut_ids(texts, self.lengths.query)[0]]

    def reasoning_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Sequences after which the model writes its reasoning."""
        return [self.reasoning.wrap(ids) for ids in self._cut_ids(texts, self.lengths.query)[0]]

    def _cut_ids(self, texts: Sequence[str], max_length: int) -> tuple[list[list[int]], int]:
        """Of queries or documents, cut at the side that the lengths say, and how many are cut."""
        return cut_ids(self.tokenizer, texts, max_length, self.lengths.truncation_side)

    def reasonings(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of reasoning texts, without the embed token."""
        return self.text_ids(texts, self.lengths.reasoning)

    def truncated_count(self, texts: Sequence[str], kind: str) -> int:
        """How many of `texts` are cut; `kind` is "query", "document" or "reasoning"."""
        limit = getattr(self.lengths, kind)
        starts = range(0, len(texts), _COUNTED_AT_ONCE)
        return sum(self._cut_ids(texts[at : at + _COUNTED_AT_ONCE], limit)[1] for at in starts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over wording, limits, the ids of all three prompts and the tokenizer itself."""
        ids = [[each.prefix, each.suffix] for each in self.templates]
        tokenizer = self.tokenizer.backend_tokenizer.to_str()
        return json_sha256([asdict(self.prompts), self.lengths.stated, ids, tokenizer])

    @property
    def fingerprint_of_format_1(self) -> str:
        """As folders of format 1 state it: the reasoning prompt is not in it."""
        tokenizer = self.tokenizer.backend_tokenizer.to_str()
        templates = (self.document, self.direct)
        ids = [ids for each in templates for ids in (each.prefix, each.suffix)]
        lengths = self.lengths.stated
        if self.lengths.repeat_ngram == 0:
            del lengths["repeat_ngram"]  # which folders that do not have it mean
        return json_sha256([asdict(self.prompts), lengths, ids, tokenizer])
