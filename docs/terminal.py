"""Pictures of a terminal: `python docs/terminal.py docs/search.svg python -m src.search ...`.

Runs the command in a pseudo-terminal and writes what stands on it at the end as an SVG. A line that was
written over, as those of progress bars are, is shown as it was left.
"""

import os
import pty
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 96
_MOVES = re.compile(r"\x1b\[[0-9;]*[A-LN-Zac-ln-z]|\x1b\][^\x07]*\x07")
"""Escape sequences other than colours, `ESC [ ... m`."""


def seen(command: list[str], columns: int = COLUMNS) -> str:
    """What a command leaves on a terminal of so many columns, with colours as escape sequences.

    Raises:
        RuntimeError: If it fails.
    """
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"COLUMNS": str(columns), "LINES": "60", "TERM": "xterm-256color"}
        os.execvp(command[0], command)
    said = b""
    while part := _read(terminal):
        said += part
    _, status = os.waitpid(process, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {status}:\n{said.decode(errors='replace')}")
    lines = said.decode(errors="replace").replace("\r\n", "\n").split("\n")
    return "\n".join(_MOVES.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in lines).strip("\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so where the other side has ended
        return b""


def main() -> None:
    target, *command = sys.argv[1:]
    shown = " ".join(f'"{word}"' if " " in word else word for word in command)
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere)
        console.print(Text(f"$ {shown}", style="bold"))
        console.print(Text.from_ansi(seen(command)))
    picture = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="Search-R3"), flags=re.DOTALL)
    Path(target).write_text(picture, encoding="utf-8")  # without the fonts, which would be fetched


if __name__ == "__main__":
    main()
