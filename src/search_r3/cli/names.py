"""Names of a configuration that become parts of paths.

A name is checked before anything starts: none leads out of the folder that it is put into.
"""

import re
from collections.abc import Iterator, Mapping

from search_r3.errors import UsageError

NAMES = {
    "stage.name": False,
    "data.name": True,
    "data.train_split": False,
    "data.validation_split": False,
    "data.test_split": False,
}
"""Keys that are names, those of a data set also below `data.sources.<source>`: may one hold slashes?"""


def check_names(config: Mapping) -> None:
    """Refuses a name in a plain configuration that would lead elsewhere as a part of a path.

    Raises:
        UsageError: With the key, the name and the rule.
    """
    for key, value in _names(config):
        sources = re.sub(r"^data(\.sources\.[^.]+)+\.", "data.", key)
        if value is not None and sources in NAMES:
            if not isinstance(value, str):
                raise UsageError(f"{key}: {value!r} is no text, and a name is one; write it in quotes")
            _check_name(key, value, NAMES[sources])


def _names(node: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            if key.rpartition(".")[2] == "sources":
                _check_name(key, name, False)
            yield from _names(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def _check_name(key: str, name: object, may_hold_slashes: bool) -> None:
    text = str(name)
    parts = text.split("/") if may_hold_slashes else [text]
    is_name = text.isprintable() and not any(
        part in ("", ".", "..") or re.search(r"[/\\]", part) for part in parts
    )
    if not is_name or len(text.encode()) > 200:
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        raise UsageError(
            f"{key}={shown!r} is used as a name in paths: printable, without "
            f"{'a leading or trailing slash' if may_hold_slashes else 'slashes'}, not '.' or '..'"
        )
