"""What sequences of texts have in common that do not hold them all in memory."""

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence

_HALF = re.compile("[\ud800-\udfff]")


class Texts(Sequence[str]):
    """Texts that are found by row; a subclass has `__len__` and gives the text of one row."""

    def __getitem__(self, row):  # type: ignore[override]
        """The text of a row, counted from the end where it is negative; of a slice, a list of texts.

        Raises:
            IndexError: If there is no such row.
        """
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if row < 0:
            row += len(self)
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} texts")
        return self._text(row)

    @abstractmethod
    def _text(self, row: int) -> str:
        """The text of a row from 0 to `len(self) - 1`."""


def holds_half_pair(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which cannot be encoded."""
    return _HALF.search(text) is not None


def encoded_parts(text: str, size: int = 1 << 20) -> Iterator[bytes]:
    """UTF-8 of a text in parts of `size` characters, so that a long one is not in memory a second time.

    Raises:
        UnicodeEncodeError: If it holds half of a surrogate pair.
    """
    if len(text) <= size:
        yield text.encode()
        return
    for start in range(0, len(text), size):
        yield text[start : start + size].encode()
