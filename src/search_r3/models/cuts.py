"""Places at which a reasoning can be cut short: after its sentences, or after words where it has too few.

The embed token may be forced at any of them (`ReasoningEmbedder.embed_cuts`), which shows what each part of
a reasoning is worth to a search.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FEWEST = 3
"""Sentences. A reasoning of fewer is cut after words, and one of fewer words after tokens."""

_ENDS_WIDE = re.compile(r"[。！？][」』）]*$")
_ENDS = re.compile(r"(?:[.!?…][\"'”’)\]]*\s*|\n\s*)$")


@dataclass(frozen=True)
class Cuts:
    """Places in a reasoning of `R` tokens, in order; the first is 0 and the last is `R`.

    Attributes:
        unit: what stands between two places: "sentence", "word" or "token".
        places: `C` numbers of tokens, ascending.
        pieces: `C` texts, each what was written since the place before; the first is empty.
    """

    unit: str
    places: tuple[int, ...]
    pieces: tuple[str, ...]


def cuts_of(decode: Callable[[list[int]], str], token_ids: Sequence[int], most: int) -> Cuts:
    """Where a reasoning is cut: after every sentence, else every word, else every token.

    A character of several tokens is never cut. Where there are too many places, they are thinned evenly.

    Args:
        decode: from token ids to text.
        token_ids: `R` of the reasoning.
        most: the most places, at least 2.

    Returns:
        At most `most` places.
    """
    ids = list(token_ids)
    texts = [decode(ids[:place]) if place else "" for place in range(len(ids) + 1)]
    whole = [place for place in range(1, len(ids)) if not texts[place].endswith("\ufffd")]
    following = {place: texts[-1][len(texts[place]) :] for place in whole}
    found = {
        "sentence": [place for place in whole if _ends_sentence(texts[place], following[place])],
        "word": [place for place in whole if _ends_word(texts[place], following[place])],
        "token": whole,
    }
    unit = next((name for name, places in found.items() if len(places) + 1 >= FEWEST), "token")
    places = _thinned([0, *found[unit], *([len(ids)] if ids else [])], most)
    starts = [0, *places[:-1]]
    pieces = [texts[end][len(texts[start]) :] for start, end in zip(starts, places, strict=True)]
    return Cuts(unit, tuple(places), tuple(pieces))


def _ends_sentence(text: str, following: str) -> bool:
    if _ENDS_WIDE.search(text):
        return True
    return bool(_ENDS.search(text)) and (text[-1].isspace() or following[:1].isspace())


def _ends_word(text: str, following: str) -> bool:
    return bool(text.strip()) and following[:1].isspace()


def _thinned(places: list[int], most: int) -> list[int]:
    """At most `most` of them, evenly, the first and the last kept."""
    if len(places) <= most:
        return places
    last = len(places) - 1
    return [places[round(number * last / (most - 1))] for number in range(most)]
