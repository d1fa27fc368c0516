"""HTML as text: elements whose content is escaped, and a whole page that may load and run nothing else."""

import base64
import hashlib
import html
import re
from collections.abc import Iterable
from pathlib import Path

_HERE = Path(__file__).parent
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_VOID = frozenset({"circle", "col", "line", "meta", "polyline", "rect"})
LONGEST_TEXT = 1200
"""Characters of a text of somebody's that a page repeats."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = object
"""What may stand in an element: `Markup` as it is, all else as escaped text, iterables one by one."""


def escaped(value: object) -> Markup:
    """A value as text of an element or of an attribute; characters that HTML does not have are replaced."""
    return Markup(html.escape(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", str(value))))


def joined(*content: Content) -> Markup:
    """Everything after one another."""
    return Markup("".join(_parts(content)))


def _parts(content: Iterable[Content]) -> Iterable[str]:
    for each in content:
        if isinstance(each, Markup):
            yield each
        elif isinstance(each, str | int | float):
            yield escaped(each)
        elif each is not None:
            yield from _parts(each)


def element(name: str, /, *content: Content, **attributes: object) -> Markup:
    """An element; `class_="a"` and `aria_label="b"` are the attributes `class` and `aria-label`.

    An attribute that is None or False is left out, one that is True has no value.

    >>> element("b", "a < b", class_="c")
    '<b class="c">a &lt; b</b>'
    """
    begin = [name]
    for key, value in attributes.items():
        label = key.rstrip("_").replace("_", "-")
        if value is True:
            begin.append(label)
        elif value is not None and value is not False:
            begin.append(f'{label}="{escaped(value)}"')
    inner = joined(*content)
    if name in _VOID and not inner:
        return Markup(f"<{' '.join(begin)}{'>' if name in ('meta', 'col') else '/>'}")
    return Markup(f"<{' '.join(begin)}>{inner}</{name}>")


def text_of(text: str, longest: int = LONGEST_TEXT) -> Markup:
    """A text that somebody or a model wrote: its lines are kept, its direction is its own, it may be cut."""
    shown = text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"
    return element("span", shown, class_="text", dir="auto")


def section(title: str, *content: Content, note: str | None = None, level: int = 2) -> Markup | None:
    """A heading with what is below it; None where nothing is."""
    inner = joined(*content)
    if not inner:
        return None
    told = element("p", note, class_="note") if note else None
    return element("section", element(f"h{level}", title), told, inner)


def document(title: str, *content: Content) -> Markup:
    """A whole page. Its policy allows its own style and script, by their hashes, and nothing else."""
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_sha256(style)}'; script-src '{_sha256(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        Markup('<meta charset="utf-8">'),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(style)),
    )
    body = element("body", *content, element("script", Markup(script)))
    return Markup(f"<!doctype html>\n{element('html', head, body, lang='en')}\n")


def _sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
