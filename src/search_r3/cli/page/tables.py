"""Tables and lists of facts of a page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from search_r3.cli.page.markup import Content, Markup, element


@dataclass(frozen=True)
class Cell:
    """What stands in a table, with the value that its column is sorted by where that is another."""

    shown: Content
    value: object = None


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Content | Cell]], label: str, numbers: Sequence[str] = ()
) -> Markup | None:
    """A table in a box of its own, in which it is scrolled where the page is narrow; None without rows.

    A column that has nothing in any row is left out.

    Args:
        columns: headings; one of them may be empty.
        rows: cells in the order of the columns.
        label: what the table is, for those who do not see it.
        numbers: headings of the columns that hold numbers.
    """
    cells = [[each if isinstance(each, Cell) else Cell(each) for each in row] for row in rows]
    kept = [
        place
        for place in range(len(columns))
        if any(row[place].shown is not None and row[place].shown != "" for row in cells)
    ]
    if not cells:
        return None
    classes = {place: "number" if columns[place] in numbers else None for place in kept}
    head = element("tr", *(element("th", columns[at], scope="col", class_=classes[at]) for at in kept))
    body = [
        element(
            "tr",
            *(element("td", row[at].shown, class_=classes[at], data_value=row[at].value) for at in kept),
        )
        for row in cells
    ]
    whole = element("table", element("thead", head), element("tbody", *body), class_="sortable")
    return element("div", whole, class_="scroll", role="region", tabindex="0", aria_label=label)


WHOLE_LINE = ("command",)
"""Facts that take a line of their own."""


def facts(pairs: Iterable[tuple[str, Content]]) -> Markup | None:
    """Names with what they are; those that are None or empty are left out."""
    known = [(name, value) for name, value in pairs if value is not None and value != ""]
    if not known:
        return None
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", name),
                element("dd", value),
                class_="whole" if name in WHOLE_LINE else None,
            )
            for name, value in known
        ),
        class_="facts",
    )


def folded(summary: Content, *content: Content) -> Markup:
    """Something that is shown when its line is opened."""
    return element("details", element("summary", summary), *content)
