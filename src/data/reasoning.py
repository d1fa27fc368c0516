"""Cold-start reasoning: what a model should write about a query before it has learnt to.

It is built from the query and the positive, and ordered from what the query lets one predict to what it does
not: the words of the function's name, its arguments, then telling words of its body, the common ones first.
"""

import ast
import re
from collections.abc import Mapping

_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")


def identifier_words(text: str) -> list[str]:
    """Lower-cased words of identifiers and prose: `parseHTTPHeader_2` gives parse, http, header, 2."""
    return [word.lower() for word in _WORD.findall(text)]


def _distinct(words: list[str], seen: set[str], limit: int) -> list[str]:
    """The first `limit` words that are not in `seen`, which grows."""
    kept = []
    for word in words:
        if len(kept) == limit:
            break
        if word not in seen and len(word) > 1:
            seen.add(word)
            kept.append(word)
    return kept


def cold_start_reasoning(
    document: str,
    document_frequency: Mapping[str, int],
    n_arguments: int = 6,
    n_body_words: int = 8,
) -> str:
    """Name, arguments and telling body words of a function, as one line.

    Args:
        document: source of one function, without its docstring.
        document_frequency: number of training documents that contain a word; rare words tell most.
        n_arguments: the most words taken of the arguments.
        n_body_words: the most words taken of the body.

    Returns:
        Such as "parse header; line, strict; value, partition, latin".

    >>> cold_start_reasoning("def add_all(items):\\n    return functools.reduce(add, items)", {})
    'add all; items; functools, reduce, return'
    """
    function = ast.parse(document).body[0]
    name = identifier_words(function.name)
    seen = set(name) | {"self", "cls", "args", "kwargs"}
    arguments = [argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)]
    argument_words = _distinct(identifier_words(" ".join(arguments)), seen, n_arguments)
    signature_end = document.index(function.name) + len(function.name)
    body = [word for word in identifier_words(document[signature_end:]) if word not in seen and len(word) > 1]
    rarest = sorted(set(body), key=lambda word: (document_frequency.get(word, 0), word))[:n_body_words]
    common_first = sorted(rarest, key=lambda word: (-document_frequency.get(word, 0), word))
    parts = [" ".join(name), ", ".join(argument_words), ", ".join(common_first)]
    return "; ".join(part for part in parts if part)
