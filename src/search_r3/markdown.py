"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a header whose first letter is `>` is one of numbers, set to the right.

    Raises:
        ValueError: If a line has more or fewer cells than the header.
    """
    rules = ["---:" if name.startswith(">") else "---" for name in header]
    written = [[name.removeprefix(">") for name in header], rules]
    for line in lines:
        if len(line) != len(header):
            raise ValueError(f"{len(line)} cells under {len(header)} headings: {line}")
        written.append([str(cell) for cell in line])
    return "\n".join(f"| {' | '.join(line)} |" for line in written)
