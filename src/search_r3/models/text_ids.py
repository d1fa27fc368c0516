"""Token ids of texts of any length, in memory that the longest text does not decide.

A tokenizer needs about a hundred bytes per character, and a model reads the first few hundred tokens. So a
long text is cut in characters before it is tokenized:

- A text of at most `WHOLE` characters (`PER_TOKEN` times the limit in tokens, where that is more) is
  tokenized whole.
- Of a longer one so many characters are, then twice as many, and so on, until its first `max_length`
  tokens end in the first half of what was read: the second half stands between them and the cut.
- At `TIMES` times as many characters (524,288 as a rule) it ends: what stands behind them is not read, which
  a warning says.

This leaves the ids as those of the whole text wherever the second half holds a place that neither a
normalization, nor a pre-token, nor a token spans, as the end of a word before a blank is to every tokenizer
that we know: what is left of such a place is tokenized without a look at what is right of it. A text without
such a place in 32,768 characters (one word, blanks or combining marks throughout) is, by definition, its
first so many characters. The rule looks at the text and the limit alone, so that all paths read the same.

Where the beginning is cut instead (`side="left"`), all this holds of the last tokens and characters.

The name of a special token in a text is read as letters, whatever the kind of tokenizer: see `literals`.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

from transformers import BatchEncoding, PreTrainedTokenizerBase

from search_r3.models.literals import text_tokenizer

WHOLE = 1 << 16
PER_TOKEN = 32
TIMES = 8
AT_ONCE = 1 << 18
"""Characters of all texts that are tokenized in one call."""
PIECE = 1 << 20
"""Characters of a piece of a text where there is no limit in tokens."""
log = logging.getLogger(__name__)


T = TypeVar("T")
Side = Literal["left", "right"]
"""Of a text, the one that is cut."""


def plain_ids(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int | None = None,
    side: Side = "right",
) -> list[list[int]]:
    """Token ids of texts, cut at `max_length`; nothing in them is read as a special token.

    Without a limit a text is read in pieces of `PIECE` characters.

    Args:
        tokenizer: of the model.
        texts: any number.
        max_length: tokens of a text; None cuts nothing.
        side: that is cut: "right" leaves the first tokens, "left" the last ones.
    """
    return cut_ids(tokenizer, texts, max_length, side)[0]


def cut_ids(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int | None = None,
    side: Side = "right",
) -> tuple[list[list[int]], int]:
    """As `plain_ids`, and how many of the texts have more tokens than are taken."""
    whole = PIECE if max_length is None else whole_length(max_length)
    result: list[list[int]] = [[] for _ in texts]
    n_cut = n_unread = 0
    for rows in _groups(texts, whole):
        for row, ids in zip(rows, _tokenized(tokenizer, [texts[row] for row in rows]), strict=True):
            result[row] = ids if max_length is None else cut(ids, max_length, side)
            n_cut += len(result[row]) < len(ids)
    for row, text in enumerate(texts):
        if len(text) <= whole:
            continue
        if max_length is None:
            result[row] = [id for piece in pieces(text) for id in _tokenized(tokenizer, [piece])[0]]
        else:
            ids, is_read = settled_ids(tokenizer, text, max_length + 1, whole, side)
            result[row] = cut(ids, max_length, side)
            n_cut += len(result[row]) < len(ids)
            n_unread += not is_read
    if n_unread:
        log.warning(
            "%d texts have fewer than %d tokens that end in the %s half of their %s %d characters; the "
            "rest of them is not read",
            n_unread, max_length, *(("first",) * 2 if side == "right" else ("last",) * 2), TIMES * whole,
        )  # fmt: skip
    return result, n_cut


def cut(ids: list[T], max_length: int, side: Side) -> list[T]:
    """The first `max_length` ids, or the last ones where the left side is cut.

    >>> cut([1, 2, 3], 2, "left")
    [2, 3]
    """
    return ids[:max_length] if side == "right" else ids[-max_length:]


def whole_length(max_length: int) -> int:
    """Characters of the longest text that is tokenized whole where so many tokens are taken."""
    return max(WHOLE, PER_TOKEN * max_length)


def settled_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, max_length: int, start: int, side: Side
) -> tuple[list[int], bool]:
    """The ids that `cut` leaves of a text, of which `start` characters are read, or up to `TIMES` as many.

    Returns:
        The ids, and whether they are settled: False where the rest of the text might have changed them.
    """
    size = start
    while True:
        part = text[:size] if side == "right" else text[-size:]
        encoded = _encoded(tokenizer, part, return_offsets_mapping=True)
        places = cut(encoded["offset_mapping"], max_length, side)
        if side == "right":  # characters from the end that is kept up to the last of these ids
            furthest = max((end for _, end in places), default=0)
        else:
            furthest = len(part) - min((begin for begin, _ in places), default=len(part))
        is_settled = size >= len(text) or (len(places) == max_length and furthest <= size // 2)
        if is_settled or size >= TIMES * start:
            return cut(encoded["input_ids"], max_length, side), is_settled
        size *= 2


def pieces(text: str) -> Iterator[str]:
    """A text in pieces of `PIECE` characters; as it is where it is no longer."""
    for start in range(0, max(len(text), 1), PIECE):
        yield text[start : start + PIECE]


def _tokenized(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return _encoded(tokenizer, texts)["input_ids"]


def _encoded(tokenizer: PreTrainedTokenizerBase, given: str | list[str], **options: bool) -> BatchEncoding:
    """What a tokenizer makes of a text or of several, in which it reads no special token."""
    return text_tokenizer(tokenizer)(given, add_special_tokens=False, split_special_tokens=True, **options)


def _groups(texts: Sequence[str], longest: int) -> Iterator[list[int]]:
    """Rows of the texts of at most `longest` characters, in groups of `AT_ONCE` characters or of one text."""
    rows: list[int] = []
    size = 0
    for row, text in enumerate(texts):
        if len(text) > longest:
            continue
        if rows and size + len(text) > AT_ONCE:
            yield rows
            rows, size = [], 0
        rows.append(row)
        size += len(text)
    if rows:
        yield rows
