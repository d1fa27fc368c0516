"""How a search looks in a terminal: the reasoning, then a column of documents per mode."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search_r3.records import plain

if TYPE_CHECKING:
    from search_r3.api import Found, Hit

LINES = 2
"""Of a document's text that are shown."""

NARROWEST = 34
"""Characters of a column; in a terminal without room for so many, modes stand one below the other."""

BESIDE = 5
"""Characters that the column of ranks takes."""


class Screen:
    """Writes to the terminal; what users, documents and models say is text there, never markup or control."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.is_speaking = False
        self.column = 0
        self.blanks = ""  # between the last word and the next
        self.pending = ""  # a word of the reasoning that may not be whole yet

    def ask(self, query: str) -> None:
        """The query, above its answer."""
        self.console.print(Text(plain(query), style="bold"))

    def warn(self, line: str) -> None:
        """A line that stands out, below the reasoning where one was written."""
        self._end_speech()
        self.console.print(Text(line, style="yellow"))

    def say(self, piece: str) -> None:
        """A further piece of the reasoning; a word is written when it is whole, so that none is broken."""
        if not self.is_speaking:
            self.is_speaking = True
            self._write("thinks: ", "dim")
            piece = piece.lstrip()
        *words, self.pending = re.split(r"(?<=\s)(?=\S)", self.pending + piece)
        for word in words:
            self._write(word, "dim italic")

    def show(self, found: Sequence["Found"], before: Mapping[str, int] | None = None) -> None:
        """The documents of every mode side by side; those that moved are marked.

        Args:
            found: of every mode; the first is what the others are compared with.
            before: ranks of documents in the first one; where None, those of its hits, and others are new.
        """
        self._end_speech()
        if before is None:
            before = {hit.id: hit.rank for hit in found[0].hits}
        width = (self.console.width - BESIDE) // len(found) - 2
        if width >= NARROWEST:
            self._table(found, found[0], before, width)
        else:
            for each in found:
                self._table([each], found[0], before, self.console.width - BESIDE - 2)

    def _end_speech(self) -> None:
        if self.is_speaking:
            self._write(self.pending, "dim italic")
            self.console.print()
        self.is_speaking, self.column, self.blanks, self.pending = False, 0, "", ""

    def _write(self, text: str, style: str) -> None:
        """A word and the blanks after it, in this line or, where it does not fit, in the next one."""
        word = plain(text.rstrip())
        if self.column and self.column + cell_len(self.blanks + word) > self.console.width:
            self.blanks = "\n"
        *lines, indent = self.blanks.split("\n")
        self.column = cell_len(indent + word) + (0 if lines else self.column)
        self.console.print(Text("\n" * len(lines) + indent + word, style=style), end="", soft_wrap=True)
        self.blanks = re.sub(r"[^\S\n]", " ", text[len(text.rstrip()) :])

    def _table(self, found: Sequence["Found"], first: "Found", before: Mapping[str, int], width: int) -> None:
        table = Table(box=None, padding=(0, 1), header_style="bold")
        table.add_column("", justify="right", width=BESIDE - 2, style="dim")
        for each in found:
            plural = "" if each.n_tokens == 1 else "s"
            cost = f", {each.n_tokens} token{plural}" if each.mode == "reasoning" else ""
            table.add_column(f"{each.mode}{cost}", width=width, overflow="fold")
        for rank in range(max(len(each.hits) for each in found)):
            cells = [
                self._cell(each.hits[rank], {} if each is first else before, width)
                if rank < len(each.hits)
                else Text("")
                for each in found
            ]
            table.add_row(str(rank + 1), *cells)
        self.console.print(table)

    def _cell(self, hit: "Hit", before: Mapping[str, int], width: int) -> Text:
        move, style = _move(hit, before)
        head = Text.assemble((f"{hit.score:.3f}", "cyan"), "  ", (plain(hit.id), "bold"), "  ", (move, style))
        lines = Text(plain(hit.text[: LINES * width * 4])).wrap(self.console, width)
        if len(lines) > LINES:
            lines = lines[:LINES]
            lines[-1].rstrip()
            lines[-1].truncate(width - 1)
            lines[-1].append("…")
        return Text("\n").join([head, *lines])


def _move(hit: "Hit", before: Mapping[str, int]) -> tuple[str, str]:
    """How a document's rank differs from that of the first column, and a colour for it."""
    if not before or before.get(hit.id) == hit.rank:
        return "", "dim"
    if hit.id not in before:
        return "new", "green"
    moved = before[hit.id] - hit.rank
    return (f"▲{moved}", "green") if moved > 0 else (f"▼{-moved}", "red")
