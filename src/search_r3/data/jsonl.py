"""Reading of JSON lines: one precise error for a bad row, and texts that stay on disk."""

import gzip
import json
import os
import re
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import BinaryIO

from search_r3.data.texts import Texts, encoded_parts
from search_r3.errors import UsageError
from search_r3.records import clipped, given_once, shown, shown_names

DAMAGED_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)
LONGEST_LINE = 1 << 28
"""Bytes of a line of any file: one row, whose texts are in memory at once."""
_NO_TEXT = {
    b"\x1f\x8b": "is compressed with gzip; give it a name that ends in .gz",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it, or compress it with gzip under a name in .gz",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"\xfd7zXZ\x00": "is compressed with xz; unpack it, or compress it with gzip under a name in .gz",
    b"PAR1\x15": "is a Parquet file and no lines of JSON; data=triples data.dataset=<its folder> reads it",
}
"""What is wrong with a file that begins so, as no line of text does."""
_ROWS = json.JSONDecoder(object_pairs_hook=given_once)
"""Made once: `json.loads` with a hook makes one for every row."""
LONGEST_ID = 4096
"""Characters of an id of a document, a query or a row."""


class DataError(UsageError, ValueError):
    """A row of an input file breaks a rule.

    Attributes:
        file: the file that holds the row.
        line: its line, counted from 1; 0 where the whole file is meant.
        rule: what was expected and what was found.
        problem: the line, where there is one, and the rule: the message without the file.
    """

    def __init__(self, file: Path | str, line: int, rule: str) -> None:
        self.file, self.line, self.rule = str(file), line, rule
        self.problem = f"line {line}: {rule}" if line else rule
        super().__init__(f"{file}{', ' if line else ': '}{self.problem}")

    def __reduce__(self) -> tuple:
        return type(self), (self.file, self.line, self.rule)


def open_lines(path: Path) -> BinaryIO:
    """Opens a file for reading bytes, through gzip where its name ends in `.gz`.

    Raises:
        DataError: If there is no such file, or it cannot be opened.
    """
    if not path.is_file():
        raise DataError(path, 0, _what_is_there(path))
    try:
        return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise DataError(path, 0, f"cannot be read ({error.strerror})") from None


def _what_is_there(path: Path) -> str:
    """Why a path is no file."""
    if path.is_dir():
        return "is a folder where a file is expected"
    return "is a pipe or a device; write its content to a file" if path.exists() else "no such file"


def raw_lines(file: BinaryIO, path: Path, longest: int = LONGEST_LINE) -> Iterator[tuple[int, bytes]]:
    """Lines of an open file as bytes with their numbers, from 1.

    Args:
        file: what `open_lines` gave.
        path: its name, for the message.
        longest: bytes of a line, its end included.

    Raises:
        DataError: If a line is longer, of which no more is then read, or the file is no valid gzip file.
    """
    number = 0
    try:
        while raw := file.readline(longest + 1):
            number += 1
            if len(raw) > longest:
                raise DataError(
                    path, number, f"a line must not be longer than {longest} bytes; split the row"
                )
            yield number, raw
            del raw  # or a long line is held while the next one is read
    except DAMAGED_GZIP as error:
        reason = clipped(error) or "it ends too early"
        raise DataError(path, number + 1, f"the gzip stream is damaged ({reason})") from None


def decode_line(raw: bytes, path: Path, line: int) -> str:
    """A line as text without its line end; a byte order mark at the start of a file is dropped.

    Raises:
        DataError: If the bytes are not UTF-8.
    """
    for start, rule in _NO_TEXT.items() if line == 1 else ():
        if raw.startswith(start):
            raise DataError(path, 0, rule)
    try:
        text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(path, line, f"text must be UTF-8; byte {error.start} of the line is not") from None
    return text.rstrip("\r\n") if text.endswith(("\r", "\n")) else text


def numbered_lines(path: Path, longest: int = LONGEST_LINE) -> Iterator[tuple[int, str]]:
    """Lines of a text file with their numbers, from 1; lines that hold only blanks are left out.

    Raises:
        DataError: If the file is missing, is no valid gzip file, or holds bytes that are not UTF-8 or a line
            of more than `longest` bytes.
    """
    with open_lines(path) as file:
        for number, raw in raw_lines(file, path, longest):
            text = decode_line(raw, path, number)
            del raw
            if not text.isspace() and text:
                yield number, text
            del text


def parse_object(text: str, path: Path, line: int) -> dict:
    """One row as a JSON object.

    Raises:
        DataError: If the row is not JSON, gives a key twice, or is JSON but not an object.
    """
    try:
        row = _ROWS.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(path, line, f"each line must be one JSON object ({clipped(error)})") from None
    if not isinstance(row, dict):
        raise DataError(path, line, f"each line must be a JSON object, got {type(row).__name__}")
    return row


def text_field(row: dict, key: str, path: Path | str, line: int, *, may_be_empty: bool = False) -> str:
    """The text under `key`, as it is.

    Raises:
        DataError: If the key is missing, its value is not a string, holds half a surrogate pair, or is empty
            or blank where it may not be.
    """
    if key not in row:
        raise DataError(path, line, f"key {key!r} is missing; the row has {shown_names(row)}")
    return checked_text(row[key], repr(key), path, line, may_be_empty=may_be_empty)


def checked_text(value: object, name: str, path: Path | str, line: int, *, may_be_empty: bool = False) -> str:
    """`value` if it is a usable text, else the error of `text_field` that calls it `name`."""
    if not isinstance(value, str):
        hint = "; write it in quotes" if isinstance(value, int | float) else ""
        raise DataError(path, line, f"{name} must be a string, got {type(value).__name__}{hint}")
    if not may_be_empty and not value.strip():
        raise DataError(path, line, f"{name} must not be empty")
    if not value.isascii():
        try:
            for _ in encoded_parts(value):
                pass
        except UnicodeEncodeError:
            raise DataError(path, line, f"{name} holds half of a surrogate pair, not valid Unicode") from None
    return value


def checked_id(value: str, name: str, path: Path | str, line: int) -> str:
    """`value` if it is not too long for an id, else an error that calls it `name`."""
    if len(value) > LONGEST_ID:
        raise DataError(
            path, line, f"{name} must have at most {LONGEST_ID} characters, got {shown(value)}; shorten it"
        )
    return value


def has_letter(text: str) -> bool:
    """Whether a text holds a letter of any script."""
    return any(map(str.isalpha, text))


class LazyTexts(Texts):
    """Texts that stay in a file and are read by row: one seek and one line each.

    Only the byte offsets are in memory, 8 bytes a row. The file is opened again in every process, so that the
    object can be sent to a data loader's workers.

    Args:
        path: an uncompressed file with one row per line. It must not change while the object is in use.
        offsets: where each row's line starts.
        text_of: turns a line into the text; must be picklable.
    """

    def __init__(self, path: Path, offsets: array, text_of: Callable[[bytes], str]) -> None:
        self.path, self.offsets, self.text_of = Path(path), offsets, text_of
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def _text(self, row: int) -> str:
        # pread keeps no shared position: threads and forked workers may read the same descriptor at once
        file = self._file
        if file is None:  # two threads may both open it: each reads its own, which stays open meanwhile
            self._file = file = self.path.open("rb", buffering=0)
        return self.text_of(_read_line(file.fileno(), self.offsets[row]))

    def __iter__(self) -> Iterator[str]:
        with self.path.open("rb") as file:
            for offset in self.offsets:
                if file.tell() != offset:
                    file.seek(offset)
                yield self.text_of(file.readline())

    def part(self, start: int, stop: int) -> "LazyTexts":
        """Rows `start` to `stop - 1`, with their offsets alone: little to send to another process."""
        return LazyTexts(self.path.absolute(), self.offsets[start:stop], self.text_of)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None}


def _read_line(descriptor: int, offset: int, block: int = 8192) -> bytes:
    parts = []
    while part := os.pread(descriptor, block, offset):
        end = part.find(b"\n")
        if end >= 0:
            parts.append(part[:end])
            break
        parts.append(part)
        offset += len(part)
        block = min(block * 2, 1 << 20)
    return b"".join(parts)


def json_string(line: bytes) -> str:
    """A line that is one JSON string."""
    return json.loads(line)


def whole_number(text: str) -> int | None:
    """The integer that a text writes, blanks around it or not; None where it is none.

    >>> [whole_number(text) for text in ("2", "+1", "-1.0", "0.5", "1e0", "")]
    [2, 1, -1, None, None, None]
    """
    found = re.fullmatch(r"([+-]?\d{1,40})(?:\.0*)?", text.strip())
    return None if found is None else int(found[1])


class ConcatTexts(Texts):
    """Several sequences of texts behind one another, none of them copied."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self.parts = tuple(parts)
        self._ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _text(self, row: int) -> str:
        part = bisect_right(self._ends, row)
        return self.parts[part][row - (self._ends[part] - len(self.parts[part]))]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self.parts)
