"""Charts as SVG inside a page: text is text, colours are the page's, and the width is that of the place.

Places along the width are percentages and text has one size, so that a chart is as readable at 300 pixels as
at 1,000. A line is drawn in a nested image that is stretched, with a stroke that is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from search_r3.cli.page.markup import Markup, element, joined
from search_r3.cli.page.scales import Scale, number, scale_of

N_COLOURS = 8
"""Classes s0 to s7 of the style; a further series takes the first again, dashed."""
LEFT, RIGHT = 13.0, 98.0
"""Percent of the width at which the axis of a chart begins and ends."""
TOP, HEIGHT, BELOW = 8.0, 150.0, 24.0
"""Pixels above the axis, of it, and below."""
FEW = 40
"""Points of a curve that are marked each, and told when pointed at."""


@dataclass(frozen=True)
class Series:
    """A curve: its name, and its steps and values."""

    name: str
    points: Sequence[tuple[float, float]]


def colour_class(place: int) -> str:
    """The class of the style that colours the series at a place."""
    return f"s{place % N_COLOURS}" + (" dashed" if place >= N_COLOURS else "")


def _across(share: float) -> str:
    return f"{LEFT + (RIGHT - LEFT) * share:.2f}%"


def _line(points: Sequence[tuple[float, float]], class_: str, title: Markup | None = None) -> Markup:
    """A curve in the unit square, 0 at the top, in a nested image of 1,000 by 1,000."""
    text = " ".join(f"{1000 * x:.1f},{1000 * y:.1f}" for x, y in points)
    return element("polyline", title, class_=class_, points=text, vector_effect="non-scaling-stroke")


def _nested(content: Sequence[Markup], left: float, right: float, top: float, height: float) -> Markup:
    return element(
        "svg", *content, x=f"{left}%", y=top, width=f"{right - left}%", height=height,
        viewBox="0 0 1000 1000", preserveAspectRatio="none", class_="lines",
    )  # fmt: skip


def _grid(vertical: Scale, horizontal: Scale, height: float, x_label: str) -> Markup:
    """Lines at the values of the vertical axis; numbers of both."""
    parts = []
    for value in vertical.ticks:
        y = TOP + height * (1 - vertical.at(value))
        parts.append(
            element("line", class_="grid", x1=f"{LEFT}%", x2=f"{RIGHT}%", y1=f"{y:.1f}", y2=f"{y:.1f}")
        )
        parts.append(element("text", number(value), class_="tick end", x=f"{LEFT - 1}%", y=f"{y + 4:.1f}"))
    below = TOP + height + 15
    marks = horizontal.ticks
    for value in marks:
        share = horizontal.at(value)
        anchor = "tick end" if share > 0.95 else "tick start" if share < 0.02 else "tick middle"
        parts.append(element("text", number(value), class_=anchor, x=_across(share), y=below))
    parts.append(element("text", x_label, class_="tick end label", x=f"{LEFT - 1}%", y=below))
    return joined(parts)


def line_chart(title: str, series: Sequence[Series], note: str = "") -> Markup | None:
    """A chart of one or several curves, with what each began and ended at; None where there is no point.

    Args:
        title: of the chart.
        series: those of one unit.
        note: below the title.
    """
    series = [each for each in series if each.points]
    if not series:
        return None
    vertical = scale_of([value for each in series for _, value in each.points])
    steps = [step for each in series for step, _ in each.points]
    horizontal = Scale(min(steps), max(steps) if max(steps) > min(steps) else min(steps) + 1)
    curves, dots, legend = [], [], []
    for place, each in enumerate(series):
        class_ = colour_class(place)
        places = [(horizontal.at(step), 1 - vertical.at(value)) for step, value in each.points]
        curves.append(_line(places, f"curve {class_}"))
        if len(places) <= FEW:
            dots += [
                element(
                    "circle", element("title", f"{each.name}, step {number(step)}: {value:.6g}"),
                    class_=f"dot {class_}", cx=_across(x), cy=f"{TOP + HEIGHT * y:.1f}", r="2.5",
                )
                for (x, y), (step, value) in zip(places, each.points, strict=True)
            ]  # fmt: skip
        legend.append(_legend(each, class_))
    image = element(
        "svg", _grid(vertical, horizontal, HEIGHT, "step"), _nested(curves, LEFT, RIGHT, TOP, HEIGHT), *dots,
        class_="chart", height=TOP + HEIGHT + BELOW, role="img", aria_label=f"{title} by step",
    )  # fmt: skip
    told = element("p", note, class_="note") if note else None
    return element(
        "figure",
        element("figcaption", element("h4", title), told, element("ul", legend)),
        image,
        class_="card",
    )


def _legend(series: Series, class_: str) -> Markup:
    first, last = series.points[0][1], series.points[-1][1]
    values = f"{first:.4g}" if len(series.points) == 1 else f"{first:.4g} → {last:.4g}"
    return element("li", swatch(class_), series.name, " ", element("span", values, class_="values"))


def swatch(class_: str) -> Markup:
    """A bit of a series' colour before its name."""
    return element("span", class_=f"swatch {class_}", aria_hidden="true")


def interval(value: float, low: float, high: float, scale: Scale, class_: str = "s0") -> Markup:
    """A value with its interval on an axis that the rows of a table share."""
    places = [f"{100 * min(max(scale.at(each), 0), 1):.2f}%" for each in (low, high, value)]
    return element(
        "svg",
        element("title", f"{value:.3f}, {low:.3f} to {high:.3f}"),
        element("line", class_="grid", x1="0", x2="100%", y1="9", y2="9"),
        element("line", class_=f"whisker {class_}", x1=places[0], x2=places[1], y1="9", y2="9"),
        element("circle", class_=f"dot {class_}", cx=places[2], cy="9", r="4"),
        class_="interval", role="img", height="18",
    )  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A ranking of the picture of quality against price.

    Attributes:
        name: beside the point.
        x: tokens per query.
        y: the metric.
        low: end of its interval.
        high: end of its interval.
        class_: of its colour.
    """

    name: str
    x: float
    y: float
    low: float
    high: float
    class_: str


FAR_BELOW = 0.5
"""A ranking of less than this share of the best would press all others together."""
_WIDTHS = (270.0, 700.0, 1100.0)
"""Pixels at which the names of points must not lie on one another."""


def scatter(title: str, points: Sequence[Point], x_label: str, y_label: str, note: str = "") -> Markup | None:
    """Points with vertical intervals and their names; the width is the logarithm of `1 + x`."""
    if not points:
        return None
    height = 260.0
    best = max(each.y for each in points)
    below = [each for each in points if each.y < FAR_BELOW * best]
    points = [each for each in points if each not in below]
    if below:
        told = ", ".join(f"{each.name} {each.y:.3f}" for each in below)
        note = f"{note} Far below, and not drawn: {told}.".strip()
    vertical = scale_of([end for each in points for end in (each.low, each.high, each.y)])
    horizontal = Scale(0.0, max(1.0, *(each.x for each in points)) * 1.3, is_log=True)
    parts = []
    taken: list[tuple[float, float, float, float, float]] = []
    for each in points:  # a name may lie beside a point, and on none
        y = TOP + height * (1 - vertical.at(each.y))
        for width in _WIDTHS:
            x = width * horizontal.at(each.x)
            taken.append((x - 5, x + 5, y - 5, y + 5, width))
    for each in sorted(points, key=lambda each: (each.x, -each.y)):
        share = horizontal.at(each.x)
        x, y = _across(share), TOP + height * (1 - vertical.at(each.y))
        ends = [f"{TOP + height * (1 - vertical.at(end)):.1f}" for end in (each.low, each.high)]
        told = (
            f"{each.name}: {y_label} {each.y:.3f} ({each.low:.3f} to {each.high:.3f}), {each.x:.1f} {x_label}"
        )
        parts.append(element("line", class_=f"whisker {each.class_}", x1=x, x2=x, y1=ends[0], y2=ends[1]))
        parts.append(
            element(
                "circle", element("title", told), class_=f"dot {each.class_}", cx=x, cy=f"{y:.1f}", r="4.5"
            )
        )
        parts.append(_name_beside(each, share, y, taken))
    image = element(
        "svg", _grid(vertical, horizontal, height, ""), *parts,
        class_="chart", height=TOP + height + BELOW, role="img", aria_label=title,
    )  # fmt: skip
    label = element("p", f"{y_label} (with 95 % interval) against {x_label}", class_="note")
    told = element("p", note, class_="note") if note else None
    return element(
        "figure", element("figcaption", element("h4", title), label, told), image, class_="card wide"
    )


def _name_beside(point: Point, share: float, y: float, taken: list[tuple[float, ...]]) -> Markup:
    """The name where it lies on no other at any width: beside the point, else above or below that.

    Args:
        point: is named.
        share: its place across the axis.
        y: its place in pixels.
        taken: what names and points lie on, left, right, top, bottom and the width that this is at; the
            name's own is added.
    """
    size = 6.4 * len(point.name)
    sides = ("end", "start") if share > 0.6 else ("start", "end")
    tries = [(side, dy) for dy in (0, -13, 13, -26, 26, -39, 39, -52, 52) for side in sides]
    for side, dy in tries:
        lefts = [(width, width * share + (9 if side == "start" else -9 - size)) for width in _WIDTHS]
        boxes = [(left, left + size, y + dy - 7, y + dy + 7, width) for width, left in lefts]
        is_inside = all(box[0] > -40 and box[1] < box[4] + 12 for box in boxes)
        if is_inside and not any(_overlap(box, other) for box in boxes for other in taken):
            break
    else:
        side, dy = tries[0]
    taken += boxes
    return element(
        "text", point.name, class_=f"name {side} {point.class_}", x=_across(share),
        dx="9" if side == "start" else "-9", y=f"{y + dy + 4:.1f}",
    )  # fmt: skip


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    is_one_width = one[4] == other[4]
    return (
        is_one_width and one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
    )


@dataclass(frozen=True)
class Axis:
    """An axis of a parallel view: a setting, or what the jobs came to.

    Attributes:
        name: above it.
        places: of each job, from 0 to 1; None where a job has no value.
        marks: text at places from 0 to 1.
    """

    name: str
    places: Sequence[float | None]
    marks: Sequence[tuple[float, str]]


MOST_NAMES = 4
"""Axes whose names stand in one line; those of more stand in two by turns."""


def parallel(axes: Sequence[Axis], names: Sequence[str], levels: Sequence[int]) -> Markup:
    """A line per job through its settings to what it came to.

    Args:
        axes: from left to right.
        names: of the jobs.
        levels: of each job, from 0 (the worst) to 4 (the best): the class of its colour.
    """
    has_two_lines = len(axes) > MOST_NAMES
    height, top = 220.0, 46.0 if has_two_lines else 30.0
    left, right = 6.0, 88.0
    at = [left + (right - left) * place / max(1, len(axes) - 1) for place in range(len(axes))]
    parts, lines = [], []
    for place, (axis, x) in enumerate(zip(axes, at, strict=True)):
        parts.append(element("line", class_="axis", x1=f"{x:.2f}%", x2=f"{x:.2f}%", y1=top, y2=top + height))
        anchor = "start" if x == at[0] else "end" if x == at[-1] and len(axes) > 1 else "middle"
        x_name = x if anchor != "end" else x + 8
        y_name = top - (30 if has_two_lines and place % 2 else 14)
        parts.append(element("text", axis.name, class_=f"name {anchor}", x=f"{x_name:.2f}%", y=y_name))
        for share, text in axis.marks:
            y = f"{top + height * (1 - share) + 4:.1f}"
            parts.append(element("text", text, class_="tick start halo", x=f"{x:.2f}%", dx="6", y=y))
    for job in sorted(range(len(names)), key=levels.__getitem__):
        points = [
            ((x - left) / (right - left), 1 - axis.places[job])
            for axis, x in zip(axes, at, strict=True)
            if axis.places[job] is not None
        ]
        lines.append(_line(points, f"curve level{levels[job]}", element("title", names[job])))
    nested = _nested(lines, left, right, top, height)
    image = element(
        "svg", nested, *parts, class_="chart", height=top + height + 16, role="img",
        aria_label="settings of each job and what it came to",
    )  # fmt: skip
    size = "many" if len(axes) > 4 else "few"
    return element("figure", element("div", image, class_=f"scroll {size}"), class_="card wide")
