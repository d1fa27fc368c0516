"""A page as html.parser reads it: a tree of elements with their texts, and what is wrong with it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from search_r3.cli.page.whole_page import write_page
from search_r3.cli.run_report import is_run
from search_r3.report import main

VOID = {"meta", "link", "br", "hr", "img", "input", "col"}


@dataclass
class Node:
    """An element; `parts` are texts and elements in their order."""

    name: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    parts: list = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it."""
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()

    def every(self, name: str | None = None, class_: str | None = None) -> Iterator["Node"]:
        """Elements in it of a name and a class, in their order."""
        for part in self.parts:
            if isinstance(part, Node):
                if name in (None, part.name) and (class_ is None or class_ in part.classes):
                    yield part
                yield from part.every(name, class_)

    def section(self, title: str) -> "Node":
        """The section under a heading."""
        for each in self.every("section"):
            heading = next(part for part in each.parts if isinstance(part, Node))
            if heading.text == title:
                return each
        raise LookupError(f"no section {title!r}; there are {self.headings}")

    @property
    def headings(self) -> list[str]:
        return [each.text for each in self.every() if each.name in ("h1", "h2", "h3")]

    def rows(self, place: int = 0) -> list[dict[str, str]]:
        """The rows of a table in it by their headings."""
        table = list(self.every("table"))[place]
        names = [cell.text for cell in table.every("th")]
        lines = [[cell.text for cell in row.every("td")] for row in table.every("tr")]
        return [dict(zip(names, line, strict=True)) for line in lines if line]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice: {attrs}"
        node = Node(tag, dict(attrs))
        self.open[-1].parts.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].parts.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def read_page(file: Path) -> Node:
    """A page; its elements must be closed in their order."""
    reader = _Reader()
    reader.feed(file.read_bytes().decode("utf-8"))
    reader.close()
    assert reader.open == [reader.root], f"not closed: {[node.name for node in reader.open[1:]]}"
    return reader.root


def page_of(tmp_path: Path, *paths: Path) -> Node:
    """What `src.report <paths> --html` writes, read; of runs alone, without the curves.png besides."""
    file = tmp_path / "page" / "page.html"
    if all(map(is_run, paths)):
        write_page(file, paths, [], None)
    else:
        assert main([*map(str, paths), "--html", str(file)]) == 0
    return read_page(file)
