"""Prompts as the model reads them: rendered once by the tokenizer's chat template, then kept as token ids.

A chat template is a program. It may write the date, so rendering again another day gives another prompt; it
may drop the system message or refuse it, so that three wordings become one prompt. What is rendered here is
therefore looked at, and stored with the model: no reading path renders again.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from transformers import PreTrainedTokenizerBase

from search_r3.data.reasonings import EMBED_TOKEN
from search_r3.models.text_ids import plain_ids

SYSTEM_SEPARATOR = "\n\n"
"""Stands between the system text and the user's where a template takes no system message."""
# They stand for the texts while a template is rendered, and must survive it unchanged.
_USER, _SYSTEM = "SEARCHR3USERTEXT", "SEARCHR3SYSTEMTEXT"
_PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"
_PROBE = "the sum of two numbers"
log = logging.getLogger(__name__)


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
class Template:
    """Token ids around a text, `prefix + text + suffix`, and the words that they come from."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    prefix_text: str = ""
    suffix_text: str = ""

    def wrap(self, text_ids: Sequence[int]) -> list[int]:
        return [*self.prefix, *text_ids, *self.suffix]

    @property
    def n_tokens(self) -> int:
        """Of both parts, the text not counted."""
        return len(self.prefix) + len(self.suffix)


@dataclass(frozen=True)
class Rendered:
    """The three prompts of a model, as they are kept in its folder.

    Attributes:
        document: around a document; the suffix ends with the lead-in and the embed token.
        direct: around a query that is embedded without reasoning; ends alike.
        reasoning: around a query that the model reasons about; what it writes comes after the suffix.
    """

    document: Template
    direct: Template
    reasoning: Template

    def as_dict(self) -> dict:
        """Plain containers for JSON."""
        return {
            name: {
                "prefix": each["prefix_text"],
                "suffix": each["suffix_text"],
                "prefix_ids": list(each["prefix"]),
                "suffix_ids": list(each["suffix"]),
            }
            for name, each in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, content: Mapping) -> "Rendered":
        """What `as_dict` gave.

        Raises:
            ValueError: If a part is missing or is of another type.
        """
        parts = {}
        for name in ("document", "direct", "reasoning"):
            try:
                part = content[name]
                ids = [tuple(int(token) for token in part[f"{place}_ids"]) for place in ("prefix", "suffix")]
                parts[name] = Template(*ids, str(part["prefix"]), str(part["suffix"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"rendered.{name} must have prefix, suffix, prefix_ids, suffix_ids: {error!r}"
                ) from error
        return cls(**parts)


def render(tokenizer: PreTrainedTokenizerBase, prompts: Prompts, embed_token: str = EMBED_TOKEN) -> Rendered:
    """Renders the three prompts under the chat template of a tokenizer, now.

    Where the template drops the system message, or refuses it, the system text is put in front of the
    user's. A tokenizer without a template, as base models have it, gets a plain one: system text, blank line,
    user's text, blank line. Either is logged. A template that writes no text but as the part of a list, as
    those of models that see images may, is given such lists.

    Raises:
        ValueError: If the template cannot be rendered, drops or repeats the user's text, makes the three
            prompts equal though their wordings differ, or leaves nothing to reason after.
    """
    template = _template_of(tokenizer)
    text, in_parts = (_messages("", True, is_part) for is_part in (False, True))
    is_part = not _writes(tokenizer, template, text, _USER) and _writes(tokenizer, template, in_parts, _USER)
    is_folded = not _writes(tokenizer, template, _messages(_SYSTEM, False, is_part), _SYSTEM)
    if is_folded:
        log.info(
            "the chat template takes no system message; the system text stands in front of the user's text"
        )
    if "strftime_now" in str(template):
        log.info("the chat template writes the date; the prompts are kept as they read now")
    systems = (prompts.document_system, prompts.direct_system, prompts.reasoning_system)
    around = [_around(tokenizer, template, _messages(system, is_folded, is_part)) for system in systems]
    document, direct, reasoning = (_tokenized(tokenizer, *each) for each in around)
    _check_distinct(systems, (document, direct, reasoning))
    if reasoning.n_tokens == 0:
        raise ValueError(
            "the reasoning prompt has no token, so there is nothing to write after; give it a wording: "
            "prompts.reasoning_system="
        )
    return Rendered(
        _answered(tokenizer, document, prompts.lead_in, embed_token),
        _answered(tokenizer, direct, prompts.lead_in, embed_token),
        reasoning,
    )


def render_as_format_1(tokenizer: PreTrainedTokenizerBase, prompts: Prompts) -> Rendered:
    """As folders of format 1 are read: a system message whatever becomes of it, parts as they stand.

    Raises:
        ValueError: If the tokenizer has no chat template, or it drops or repeats the user's text.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template")

    def template(system: str) -> Template:
        prefix, suffix = _around(tokenizer, tokenizer.chat_template, _messages(system, False))
        ids = _part_ids(tokenizer, prefix), _part_ids(tokenizer, suffix)
        return Template(*ids, prefix, suffix)

    return Rendered(
        _answered(tokenizer, template(prompts.document_system), prompts.lead_in),
        _answered(tokenizer, template(prompts.direct_system), prompts.lead_in),
        template(prompts.reasoning_system),
    )


def _template_of(tokenizer: PreTrainedTokenizerBase) -> object:
    """The chat template; a plain one where there is none, behind what the tokenizer puts before a text."""
    template = tokenizer.chat_template
    if isinstance(template, dict) and "default" not in template:
        raise ValueError(
            f"the tokenizer has chat templates named {', '.join(sorted(template))} and none named default; "
            "give the text of the one that is meant: model.chat_template="
        )
    if template is not None:
        return template
    log.info("the tokenizer has no chat template; prompts are the system text, a blank line, the user's text")
    whole, bare = (tokenizer("a", add_special_tokens=adds)["input_ids"] for adds in (True, False))
    n = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    start = "".join(tokenizer.convert_ids_to_tokens(whole[:n]))  # BOS; [CLS] of others, two tokens of GLM
    return "{{ " + json.dumps(start, ensure_ascii=False) + " }}" + _PLAIN_TEMPLATE


def _messages(system: str, is_folded: bool, is_part: bool = False) -> list[dict[str, object]]:
    """System and user's text, as two messages or folded into one; each text, or a list with it as a part."""
    before = system + SYSTEM_SEPARATOR if system else ""
    said = {"user": before + _USER} if is_folded else {"system": system, "user": _USER}
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if is_part else text}
        for role, text in said.items()
    ]


def _rendered_text(tokenizer: PreTrainedTokenizerBase, template: object, messages: Sequence[Mapping]) -> str:
    # Qwen3 opens a think block unless told not to; other templates ignore the argument.
    return tokenizer.apply_chat_template(
        messages,
        chat_template=template if template != tokenizer.chat_template else None,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )


def _writes(
    tokenizer: PreTrainedTokenizerBase, template: object, messages: Sequence[Mapping], text: str
) -> bool:
    """False where the template drops a text of these messages or refuses them."""
    try:
        return text in _rendered_text(tokenizer, template, messages)
    except Exception:  # a template is a program, which may fail in any way
        return False


def _around(tokenizer: PreTrainedTokenizerBase, template: object, messages: Sequence[Mapping]) -> list[str]:
    """What the template writes before and after the user's text."""
    try:
        rendered = _rendered_text(tokenizer, template, messages)
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"the chat template cannot write a single message of a user: {reason}") from error
    parts = rendered.split(_USER)
    if len(parts) != 2:
        raise ValueError(
            f"the chat template must contain the user's text once, it contains it {len(parts) - 1} times"
        )
    return parts


def _part_ids(tokenizer: PreTrainedTokenizerBase, part: str) -> tuple[int, ...]:
    if not part:
        return ()
    # A tokenizer_config.json may ask for split special tokens, which holds for texts and not for prompts.
    encoded = tokenizer(part, add_special_tokens=False, split_special_tokens=False)
    return tuple(encoded["input_ids"])


def _tokenized(tokenizer: PreTrainedTokenizerBase, prefix: str, suffix: str) -> Template:
    """Ids of both parts, such that at either seam a text's ids and theirs are those of the whole string.

    Tokenizers in the manner of SentencePiece put a blank in front of whatever they are given: a blank that
    stands at a seam is then that one. Where this does not help, as after a line end, the part is taken as it
    stands, in training and inference alike.
    """
    text = tuple(plain_ids(tokenizer, [_PROBE])[0])
    before, after = _part_ids(tokenizer, prefix), _part_ids(tokenizer, suffix)
    whole_before = _part_ids(tokenizer, prefix + _PROBE)
    whole_after = _part_ids(tokenizer, _PROBE + suffix)
    less_before = _part_ids(tokenizer, prefix.removesuffix(" "))
    less_after = _part_ids(tokenizer, suffix.removeprefix(" "))
    before = next((ids for ids in (before, less_before) if ids + text == whole_before), before)
    after = next((ids for ids in (after, less_after) if text + ids == whole_after), after)
    if before + text != whole_before or text + after != whole_after:
        log.info(
            "the tokenizer reads a prompt in parts (before, text, after) otherwise than in one piece; "
            "the ids of the parts are what the model is trained and used with"
        )
    return Template(before, after, prefix, suffix)


def _answered(
    tokenizer: PreTrainedTokenizerBase, template: Template, lead_in: str, embed_token: str = EMBED_TOKEN
) -> Template:
    """The template with what the assistant says where it does not reason: the lead-in and the embed token."""
    answer = plain_ids(tokenizer, [lead_in])[0] if lead_in else []
    suffix = (*template.suffix, *answer, tokenizer.convert_tokens_to_ids(embed_token))
    return replace(template, suffix=suffix, suffix_text=template.suffix_text + lead_in + embed_token)


def _check_distinct(systems: Sequence[str], templates: Sequence[Template]) -> None:
    """Refuses three prompts that are one though their wordings differ; a document's and a query's may be."""
    ids = {(each.prefix, each.suffix) for each in templates}
    if len(set(systems)) > 1 and len(ids) == 1:
        raise ValueError(
            "the prompts of documents, direct queries and reasoning are the same token ids though their "
            f"wordings differ ({', '.join(map(repr, dict.fromkeys(systems)))}): the chat template or the "
            "tokenizer drops what tells them apart; choose other wordings, prompts.*_system="
        )
