"""For mkdocs: a link out of docs/, as to ../experiments, has no page in the site; it becomes a path."""

import re


def on_page_markdown(markdown: str, **_: object) -> str:
    """Writes `[text](../path)` as text and path; pictures and links within docs/ stay."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", markdown)
