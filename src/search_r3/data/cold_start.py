"""Cold-start reasoning: what a model should learn to write before the embed token.

No source of Search-R3 says what its cold-start text looks like beyond "query enrichment"; the recipe here is
ours. A causal model is trained on it from left to right, so it is ordered from what the query lets one
predict to what it does not: the query's own words that the positive has too, further words of the likely
name, argument names, types, and then the most characteristic words of the document. Where the positive is not
Python source, the first and the last are left, and words are those of any language.

The query's words come first because they can be copied, and because a causal model reads a word that is said
again with the whole query before it (Springer et al., "Repetition improves language model embeddings",
arXiv:2402.15449). Which of them are said again is learnt: it tells the words that matter from the others.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_LETTERS = re.compile(r"[^\W\d_]+")
_NAME = re.compile(r"^[ \t]*(?:async[ \t]+)?def[ \t]+(\w+)[ \t]*", re.MULTILINE)
_STRING = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")
_ARGUMENT = re.compile(r"(?:^|,)\s*\*{0,2}([A-Za-z_]\w*)\s*(?::([^=,]*))?")
_RAISES = re.compile(r"\braise\s+([A-Za-z_][\w.]*)")
_COMMON = """
false none true and as assert async await break class continue def del elif else except finally for from
global if import in is lambda nonlocal not or pass raise return try while with yield self cls args kwargs the
of to an that this it be are was by on at int str bool len
"""
_KEYWORDS = frozenset(_COMMON.split())
READ = 1 << 20
"""Characters that are read of a query and of a positive; what stands behind them says nothing."""


def identifier_words(text: str) -> list[str]:
    """Lower-case words of a text, identifiers split at underscores, digits and changes of case.

    >>> identifier_words("getHTTPResponse(max_size2)")
    ['get', 'http', 'response', 'max', 'size']
    """
    return [word.lower() for word in _WORD.findall(text)]


def text_words(text: str) -> list[str]:
    """Lower-case words of a text in any language; those of ASCII alone as `identifier_words` has them.

    >>> text_words("Größe der getHTTPResponse")
    ['größe', 'der', 'get', 'http', 'response']
    """
    found: list[str] = []
    for word in _LETTERS.findall(text):
        found += identifier_words(word) if word.isascii() else [word.lower()]
    return found


def cold_start_reasoning(
    query: str,
    positive: str,
    document_frequency: Mapping[str, int] | None = None,
    n_documents: int = 0,
    n_query: int = 6,
    n_name: int = 6,
    n_arguments: int = 4,
    n_types: int = 2,
    n_body_words: int = 4,
    max_words: int = 14,
    min_frequency: int = 5,
    only_shared: bool = True,
) -> str:
    """Compact text from a query and its positive: shared words, name, arguments, types, characteristic words.

    The shared words stand in the order of the query; the other parts have no word of the query. No word is
    said twice. Equal arguments give equal text.

    Args:
        query: text of the query; its first `READ` characters are read.
        positive: the relevant document, read alike; Python source for all parts to be there.
        document_frequency: in how many documents a word occurs; the body's words come by tf-idf, highest
            first. Without it they come in their order.
        n_documents: in all; needed with `document_frequency`.
        n_query: words of the query that the positive has too, at most; the rarest are kept.
        n_name: further words of the function's name, at most.
        n_arguments: words of argument names, at most.
        n_types: words of annotations and raised exceptions, at most.
        n_body_words: words of the rest, at most.
        max_words: of the whole text; it is cut at its end, where the least predictable words stand.
        min_frequency: body words in fewer documents are left out: what hardly ever occurs cannot be learnt.
        only_shared: False takes the first `n_query` words of the query, whether the positive has them or not.

    Returns:
        One line such as `"config file, read, path encoding, dict, parser yaml anchors"`; empty where nothing
        is left to say.
    """
    query, positive = query[:READ], positive[:READ]
    name, signature, body = _split(positive)
    words_of = identifier_words if name else text_words
    asked = list(_new_words(words_of(query), set()))
    seen = set(asked)
    there = set(words_of(positive))
    parts = [_shared(asked, there, document_frequency, n_query) if only_shared else asked[:n_query]]
    arguments, annotations = _arguments(signature)
    said = ((name, n_name), (arguments, n_arguments), (f"{annotations} {_raised(body)}", n_types))
    for text, limit in said:
        words = list(_new_words(identifier_words(text), seen))[:limit]
        seen.update(words)
        parts.append(words)
    rest = list(_new_words(words_of(body), seen))
    if document_frequency is not None:
        count = Counter(words_of(body))
        weight = {word: count[word] * _idf(document_frequency.get(word, 0), n_documents) for word in rest}
        rest = [word for word in rest if document_frequency.get(word, 0) >= min_frequency]
        rest.sort(key=lambda word: -weight[word])  # stable: ties stay in their order
    parts.append(rest[:n_body_words])
    return _joined(parts, max_words)


def _shared(
    asked: list[str], there: Collection[str], document_frequency: Mapping[str, int] | None, limit: int
) -> list[str]:
    """Words of the query that are there too, in the query's order; the rarest where there are more."""
    shared = [word for word in asked if word in there]
    rarest = sorted(shared, key=lambda word: (document_frequency or {}).get(word, 0))[:limit]
    return [word for word in shared if word in rarest]


def _idf(frequency: int, n_documents: int) -> float:
    return math.log((n_documents + 1) / (frequency + 0.5))


def count_words(texts: Iterator[str]) -> dict[str, int]:
    """In how many of the texts each word of `identifier_words` occurs; the argument of
    `cold_start_reasoning`."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in set(identifier_words(text)):
            counts[word] = counts.get(word, 0) + 1
    return dict(sorted(counts.items()))


def _split(positive: str) -> tuple[str, str, str]:
    """Name, signature (arguments and annotations) and body of the first function; all body where there is
    none."""
    found = _NAME.search(positive)
    if not found:
        return "", "", positive
    depth, end = 0, found.end()
    for end in range(found.end(), len(positive)):
        character = positive[end]
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == ":" and depth == 0:
            break
    return found[1], positive[found.end() : end], positive[end + 1 :]


def _arguments(signature: str) -> tuple[str, str]:
    """Names of the arguments, and all annotations, the returned one first; defaults are left out."""
    start, end = signature.find("("), signature.rfind(")")
    inner = signature[start + 1 : end if end > start else None]
    returned = ""
    if "->" in signature:
        closing, returned = signature.rsplit("->", 1)
        inner = closing[start + 1 : closing.rfind(")")]
    inner = re.sub(r"#[^\n]*", "", _STRING.sub("", inner))
    flat, depth = [], 0
    for character in inner:  # brackets become blanks, so that a comma within them separates nothing
        depth += (character in "([{") - (character in ")]}")
        flat.append(" " if character in "()[]{}" or (depth and character in ",:=") else character)
    pairs = _ARGUMENT.findall("".join(flat))
    names = " ".join(name for name, _ in pairs)
    return names, " ".join([returned, *(annotation for _, annotation in pairs)])


def _raised(body: str) -> str:
    return " ".join(_RAISES.findall(body))


def _new_words(words: Iterable[str], seen: set[str]) -> Iterator[str]:
    for word in dict.fromkeys(words):
        if len(word) > 1 and word not in seen and word not in _KEYWORDS:
            yield word


def _joined(parts: list[list[str]], max_words: int) -> str:
    kept, left = [], max_words
    for words in parts:
        if words[:left]:
            kept.append(" ".join(words[:left]))
        left = max(0, left - len(words))
    return ", ".join(kept)
