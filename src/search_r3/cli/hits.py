"""How a search looks in a terminal: the reasoning, then a column of documents per mode."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from search_r3.api import Found, Hit

LINES = 2
"""Of a document's text that are shown."""


class Screen:
    """Writes to the terminal; what users and documents say is text there, never markup."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.is_speaking = False

    def ask(self, query: str) -> None:
        """The query, above its answer."""
        self.console.print(Text(query, style="bold"))

    def say(self, piece: str) -> None:
        """A further piece of the reasoning."""
        if not self.is_speaking:
            self.console.print(Text("thinks: ", style="dim"), end="")
            piece = piece.lstrip()
        self.is_speaking = True
        self.console.print(Text(piece, style="dim italic"), end="")

    def show(self, found: Sequence["Found"]) -> None:
        """The documents of every mode, one below the other; those that moved or are new are marked."""
        if self.is_speaking:
            self.console.print()
        self.is_speaking = False
        table = Table(expand=True, show_lines=False, box=None, padding=(0, 1), header_style="bold")
        table.add_column("", justify="right", width=3, style="dim")
        for each in found:
            cost = f", {each.n_tokens} tokens" if each.mode == "reasoning" else ""
            table.add_column(f"{each.mode}{cost}", ratio=1, overflow="fold")
        before = {hit.id: hit.rank for hit in found[0].hits} if len(found) > 1 else {}
        for rank in range(max(len(each.hits) for each in found)):
            cells = [
                self._cell(each.hits[rank], before if place else {}) if rank < len(each.hits) else Text("")
                for place, each in enumerate(found)
            ]
            table.add_row(str(rank + 1), *cells)
        self.console.print(table)

    def _cell(self, hit: "Hit", before: dict[str, int]) -> Text:
        move, style = _move(hit, before)
        head = Text.assemble((f"{hit.score:.3f}", "cyan"), "  ", (hit.id, "bold"), "  ", (move, style))
        words = " ".join(hit.text.split())
        width = max(self.console.width // 2 - 8, 20) * LINES
        shown = words if len(words) <= width else words[: width - 1] + "…"
        return head.append(f"\n{shown}", style="default")


def _move(hit: "Hit", before: dict[str, int]) -> tuple[str, str]:
    """How a document's rank differs from that of the first column, and a colour for it."""
    if not before or before.get(hit.id) == hit.rank:
        return "", "dim"
    if hit.id not in before:
        return "new", "green"
    moved = before[hit.id] - hit.rank
    return (f"▲{moved}", "green") if moved > 0 else (f"▼{-moved}", "red")
