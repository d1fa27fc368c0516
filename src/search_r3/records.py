"""Reading of records that some run left, and how their content is quoted in a message.

A record is a small file of JSON or YAML: a configuration, a state, the rows of a table. It may be damaged,
cut off, from another tool, or a folder may be in its place. Whatever it is, the reader gets the content or
one `RecordError` that names the file, what is wrong with it and what to do; a quoted text is cut to a few
words.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from search_r3.errors import UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

QUOTED = 80
"""Characters of a value that a message repeats."""
LONGEST_CONFIG = 1 << 20
"""Bytes of a configuration; a whole one of ours has a few thousand, and YAML is slow to read."""
LONGEST_MESSAGE = 4000
"""Characters of a message as it is printed and recorded, whoever wrote it."""
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_ESCAPED = re.compile(f"{_OBEYED.pattern}|[\u2028\u2029]")


class RecordError(UsageError, ValueError):
    """A file that cannot be read as what it should be; the message names it and says what to do."""

    def __init__(self, file: Path | str, problem: str, remedy: str = "") -> None:
        self.file, self.problem, self.remedy = str(file), problem, remedy
        super().__init__(f"{file}: {problem}{f'; {remedy}' if remedy else ''}")

    def __reduce__(self) -> tuple:
        return type(self), (self.file, self.problem, self.remedy)


def shown(value: object, limit: int = QUOTED) -> str:
    """A value as a message repeats it: its `repr`, of which the first characters if it is long.

    >>> shown("a" * 100, limit=4)
    "'aaaa'... (100 characters)"
    """
    if isinstance(value, (str, bytes)):
        unit = "characters" if isinstance(value, str) else "bytes"
        head = value[:limit]
        if len(repr(head)) > 2 * limit:  # escapes of up to ten characters
            head = head[: limit // 5]
        return repr(head) if len(head) == len(value) else f"{head!r}... ({len(value)} {unit})"
    if isinstance(value, (bool, float, type(None))):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() <= 64 else f"a whole number of {value.bit_length()} bits"
    size = f" of {len(value)}" if hasattr(value, "__len__") else ""
    return f"{type(value).__name__}{size}"


def clipped(text: object, limit: int = 300) -> str:
    """Words of somebody else's, as an exception's, in one line of at most about `limit` characters.

    >>> clipped("one\\ntwo three", limit=7)
    'one two...'
    """
    words = str(text)
    line = " ".join(words[: 4 * limit].split())
    return line if len(line) <= limit and len(words) <= 4 * limit else f"{line[:limit]}..."


def plain(text: str) -> str:
    """A text in one line, without characters that a terminal obeys.

    >>> plain("a\\tb\\x1b[2J")
    'a b�[2J'
    """
    return _OBEYED.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))


def json_line(value: object, is_ascii: bool = False) -> str:
    """JSON in one line, with escapes for what a terminal obeys and for what ends a line to some readers.

    Args:
        value: holds no NaN or infinity.
        is_ascii: whether all else that is not ASCII is escaped too.

    >>> json_line("é\x9b")
    '"é\\\\u009b"'
    """
    line = json.dumps(value, ensure_ascii=is_ascii)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def shown_names(names: Iterable[object], limit: int = 8) -> str:
    """Names in a list for a message: the first few of them in their order, each cut.

    >>> shown_names(["b", "a"])
    "'a', 'b'"
    """
    texts = sorted(map(str, names))
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(shown(text, 40) for text in texts[:limit]) + more or "none"


def read_text(path: Path, remedy: str = "", longest: int = 1 << 28) -> str:
    """A text file of at most so many bytes; a byte order mark at its start is dropped.

    Raises:
        RecordError: If it is missing, empty, no file, longer, not readable, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(longest + 1)
    except IsADirectoryError:
        raise RecordError(path, "is a folder where a file is expected", remedy) from None
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise RecordError(path, f"cannot be read ({clipped(reason)})", remedy) from None
    if len(content) > longest:
        raise RecordError(path, f"is damaged: it is longer than {longest} bytes", remedy)
    if not content.strip():
        raise RecordError(path, "is empty", remedy)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(path, f"is damaged: byte {error.start} is not UTF-8 text", remedy) from None


def parsed(text: str, has_nan: bool = False) -> object:
    """JSON content; NaN and infinities, which JSON does not have, are refused unless `has_nan`.

    Raises:
        ValueError: With the place, where the text is not JSON; with a key that an object gives twice.
    """
    numbers = {} if has_nan else {"parse_constant": _refuse, "parse_float": _finite}
    try:
        content = json.loads(text, object_pairs_hook=given_once, **numbers)
        if "\\ud" in text.lower():  # an escape of half a pair can be read and not written again
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("a text holds half of a surrogate pair") from None
    return content


def given_once(pairs: list[tuple[str, object]]) -> dict:
    """An object of JSON, as `object_pairs_hook` of `json.loads`.

    Raises:
        ValueError: With a key that it gives twice, of whose values all but one would be lost.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        met: set[str] = set()
        twice = next(name for name, _ in pairs if name in met or met.add(name))
        raise ValueError(f"key {shown(twice)} is given twice")
    return content


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refuse(clipped(digits, 20))


def read_json(path: Path, remedy: str = "", *, is_list: bool = False, has_nan: bool = False) -> dict:
    """A JSON file whose content is an object.

    Args:
        path: of the file.
        remedy: what to do where it cannot be used, as "delete it to start anew".
        is_list: whether a list is expected instead.
        has_nan: whether NaN and infinities are read, as Python writes them.

    Raises:
        RecordError: If the file is missing or damaged, or holds something else.
    """
    text = read_text(path, remedy)
    try:
        content = parsed(text, has_nan)
    except json.JSONDecodeError as error:
        kind = "ends too early" if error.pos >= len(text.rstrip()) else "is no JSON"
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise RecordError(path, f"is damaged: it {kind} ({place})", remedy) from None
    except ValueError as error:
        raise RecordError(path, f"is damaged: it is no JSON ({clipped(error)})", remedy) from None
    wanted, name = (list, "a list") if is_list else (dict, "an object {...}")
    if not isinstance(content, wanted):
        raise RecordError(path, f"must hold {name}, found {type(content).__name__}", remedy)
    return content


def read_json_if_there(path: Path, remedy: str = "repair it, or move it away") -> dict:
    """As `read_json`; an empty dict where there is no file."""
    return read_json(path, remedy) if os.path.lexists(path) else {}


def read_config(path: Path, remedy: str = "") -> "DictConfig":
    """A YAML file of a configuration, every reference in it left as it is.

    Raises:
        RecordError: If the file is missing or damaged, or holds something else than keys with values.
    """
    import io

    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    text = read_text(path, remedy, LONGEST_CONFIG)
    try:
        if not isinstance(yaml.compose(text, Loader=yaml.SafeLoader), yaml.MappingNode):
            raise RecordError(path, "must hold keys with values, as seed: 1", remedy)
        content = OmegaConf.load(io.StringIO(text))
        OmegaConf.to_container(content, resolve=False)
    except RecordError:
        raise
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError, OSError) as error:
        raise RecordError(path, f"is damaged: it is no YAML ({clipped(error)})", remedy) from None
    if not isinstance(content, DictConfig) or not content:
        raise RecordError(path, "must hold keys with values, as seed: 1", remedy)
    return content


def checked(
    path: Path | str, content: dict, key: str, is_right: Callable[[object], bool], rule: str, remedy: str = ""
) -> object:
    """The value under a key, which the rule describes.

    Raises:
        RecordError: If the key is missing or its value breaks the rule.
    """
    if key not in content:
        raise RecordError(path, f"key {key!r} is missing; it has {shown_names(content)}", remedy)
    if not is_right(content[key]):
        raise RecordError(path, f"{key} must be {rule}, got {shown(content[key])}", remedy)
    return content[key]
