"""Draws docs/loop.svg: one step of SFT and one of RL, with the module that does each part.

The picture is made from `PANELS` alone; a test draws it again and compares, and finds every module named.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

PICTURE = Path(__file__).with_suffix(".svg")
WIDTH, MARGIN, GAP = 800, 20, 28
BOX_WIDTH, BOX_HEIGHT, PANEL_HEIGHT = 169, 92, 274


@dataclass(frozen=True)
class Part:
    """A box.

    Attributes:
        title: a few words.
        says: one line, or two.
        modules: below `search_r3`, one or two.
    """

    title: str
    says: tuple[str, ...]
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    """A loop of eight parts: four from left to right, four back below them.

    Attributes:
        title: of the panel.
        module: that calls the parts in this order.
        parts: in their order.
    """

    title: str
    module: str
    parts: tuple[Part, ...]


PANELS = (
    Panel(
        "One step of SFT",
        "stages.sft.module",
        (
            Part("rows", ("query, reasoning,", "positive, negatives"), ("data.beir", "data.triples")),
            Part("batch", ("its distinct documents,", "and who is relevant"), ("stages.sft.collate",)),
            Part("own reasoning", ("the model writes, for a", "share of the rows"), ("models.generation",)),
            Part("embeddings", ("documents; queries as", "such and with reasoning"), ("models.embedder",)),
            Part("contrast", ("InfoNCE and margin, all", "documents of the step"), ("objectives.losses",)),
            Part(
                "answer",
                ("cross-entropy of the", "text, KL to the base"),
                ("objectives.losses", "models.reference"),
            ),
            Part("update", ("gradients in chunks,", "then AdamW"), ("stages.optimization",)),
            Part("validation", ("nDCG@10 on held-out", "queries, now and then"), ("stages.validation",)),
        ),
    ),
    Panel(
        "One step of RL",
        "stages.rl.module",
        (
            Part("queries", ("some that SFT has", "not seen"), ("stages.rl.data",)),
            Part("sample", ("a group of reasonings", "per query, embedded"), ("stages.rl.rollouts",)),
            Part(
                "refresh",
                ("stale documents, by a", "rule, are encoded anew"),
                ("index.rules", "index.served"),
            ),
            Part("rank", ("of each positive, by a", "count over the corpus"), ("index.exact_rank",)),
            Part("reward", ("what a rank is worth",), ("stages.rl.environment", "objectives.rewards")),
            Part("advantage", ("against the group;", "clipped loss, and KL"), ("objectives.grpo",)),
            Part("update", ("AdamW; all rows are", "now a step older"), ("stages.optimization",)),
            Part("validation", ("nDCG@10 on held-out", "queries, now and then"), ("stages.validation",)),
        ),
    ),
)

STYLE = """
  .card { fill: #ffffff; } .box { fill: #f3f6fb; stroke: #8597b0; } .mark { fill: #2f5d9b; }
  text { fill: #1c2733; font-family: Helvetica, Arial, sans-serif; font-size: 12px; }
  .head { font-size: 17px; font-weight: bold; } .title { font-size: 14px; font-weight: bold; }
  .module { font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 11px; fill: #2f5d9b; }
  .arrow { stroke: #5b6c82; stroke-width: 1.6; fill: none; } .tip { fill: #5b6c82; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #12171d; } .box { fill: #1d2530; stroke: #5d7290; } .mark { fill: #8db8f2; }
    text { fill: #e3e9f0; } .module { fill: #8db8f2; } .arrow { stroke: #9fb0c4; } .tip { fill: #9fb0c4; }
  }
"""


def picture() -> str:
    """The SVG; alone in a page or as an image, light or dark as the reader's system is."""
    height = MARGIN + len(PANELS) * PANEL_HEIGHT + 22
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="One step of SFT and one step of RL">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="6" refY="3.5" orient="auto">'
        '<path class="tip" d="M0,0 L7,3.5 L0,7 z"/></marker></defs>',
        f'<rect class="card" width="{WIDTH}" height="{height}" rx="8"/>',
    ]
    for number, panel in enumerate(PANELS):
        lines += _panel(panel, MARGIN + number * PANEL_HEIGHT)
    lines.append(
        f'<text x="{MARGIN}" y="{height - 14}">In blue: the module of search_r3 that does it.</text>'
    )
    return "\n".join([*lines, "</svg>", ""])


def _panel(panel: Panel, top: int) -> list[str]:
    row_tops = [top + 34, top + 34 + BOX_HEIGHT + GAP]
    lines = [
        f'<text class="head" x="{MARGIN}" y="{top + 16}">{escape(panel.title)}</text>',
        f'<text class="module" x="{MARGIN + 11 * len(panel.title)}" y="{top + 16}">{panel.module}</text>',
    ]
    for number, part in enumerate(panel.parts):
        row, place = divmod(number, 4)
        column = place if row == 0 else 3 - place
        lines += _box(part, number + 1, MARGIN + column * (BOX_WIDTH + GAP), row_tops[row])
        lines.append(_arrow(number, row_tops))
    return lines


def _box(part: Part, number: int, left: int, top: int) -> list[str]:
    lines = [
        f'<rect class="box" x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>',
        f'<text class="title" x="{left + 9}" y="{top + 19}"><tspan class="mark">{number}</tspan> '
        f"{escape(part.title)}</text>",
    ]
    for place, line in enumerate(part.says):
        lines.append(f'<text x="{left + 9}" y="{top + 37 + 15 * place}">{escape(line)}</text>')
    for place, name in enumerate(reversed(part.modules)):
        lines.append(f'<text class="module" x="{left + 9}" y="{top + 83 - 13 * place}">{name}</text>')
    return lines


def _arrow(number: int, row_tops: list[int]) -> str:
    """From a part to the next one; the last leads back to the first."""
    step = BOX_WIDTH + GAP
    right, left = MARGIN + 3 * step + BOX_WIDTH // 2, MARGIN + BOX_WIDTH // 2
    middle = [row + BOX_HEIGHT // 2 for row in row_tops]
    upper, lower = row_tops[0] + BOX_HEIGHT, row_tops[1]
    if number < 3:
        x = MARGIN + number * step + BOX_WIDTH
        points = f"M{x + 3},{middle[0]} H{x + GAP - 4}"
    elif number == 3:
        points = f"M{right},{upper + 3} V{lower - 4}"
    elif number < 7:
        x = MARGIN + (7 - number) * step
        points = f"M{x - 3},{middle[1]} H{x - GAP + 4}"
    else:
        points = f"M{left},{lower - 3} V{upper + 4}"
    return f'<path class="arrow" marker-end="url(#tip)" d="{points}"/>'


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
