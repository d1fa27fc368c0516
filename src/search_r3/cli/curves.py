"""The curves of a training run, drawn from its metrics.csv into curves.png beside it.

Each panel has what shares a unit; a panel of which the run has logged nothing is left out. Drawing is a
convenience: matplotlib is imported when something is drawn, and a failure to draw never fails a run.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from search_r3.cli.logged_columns import read_columns
from search_r3.evaluation.colours import COLOURS

log = logging.getLogger(__name__)
FILE = "curves.png"
WIDTH, PANEL_HEIGHT, DPI = 8.0, 2.1, 100
"""Inches and dots per inch: 800 pixels wide, at which the letters are made to be read."""

PANELS: Mapping[str, str] = {
    "loss terms": r"train/(loss|sft|kl|info_nce\w*|triplet\w*|contrastive)",
    "reward": r"train/(reward|reward_best|reward_ranking)",
    "spread in a group": r"train/(reward_spread)",
    "groups without spread": r"train/(groups_without_spread)",
    "nDCG@10, validation": r"val/(\w+)/ndcg@10",
    "documents per step": r"train/index/(documents_encoded|documents_moved)",
    "age of rows, steps": r"train/index/(age_\w+)",
    "rewards as if fresh": r"train/index/audit/(identical_rewards|stated_coverage)",
}
"""What stands in a panel: the columns whose whole name fits; the group is the name of the curve."""

Curve = tuple[list[int], list[float]]
"""Steps, and the value at each."""


def draw_curves(folder: Path) -> Path | None:
    """Draws the curves of a run.

    Args:
        folder: of the run, with csv/metrics.csv.

    Returns:
        The picture; None where nothing was logged.
    """
    panels = read_panels(folder / "csv" / "metrics.csv")
    if not panels:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(
        len(panels), figsize=(WIDTH, PANEL_HEIGHT * len(panels) + 0.3), squeeze=False, sharex=True,
        layout="constrained", dpi=DPI,
    )  # fmt: skip
    colours = [COLOURS[name] for name in ("blue", "vermilion", "green", "orange", "purple", "sky", "grey")]
    for axes, (title, curves) in zip(all_axes[:, 0], panels.items(), strict=True):
        for place, (name, (steps, values)) in enumerate(curves.items()):
            axes.plot(
                steps, values, label=name, color=colours[place % len(colours)], linewidth=1.4,
                linestyle="--" if place >= len(colours) else "-", marker="o" if len(steps) < 12 else None,
                markersize=4,
            )  # fmt: skip
        axes.set_title(title, fontsize=10, loc="left")
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9, frameon=False)
    all_axes[-1, 0].set_xlabel("optimizer step", fontsize=10)
    figure.canvas.draw()
    pyplot.imsave(folder / FILE, figure.canvas.buffer_rgba(), dpi=DPI)  # savefig would draw a second time
    pyplot.close(figure)
    return folder / FILE


def drawn_curves(folder: Path) -> Path | None:
    """As `draw_curves`, but what goes wrong is a warning."""
    try:
        return draw_curves(folder)
    except Exception as error:
        log.warning("%s is not drawn: %s: %s", folder / FILE, type(error).__name__, error)
        return None


def read_panels(file: Path) -> dict[str, dict[str, Curve]]:
    """The curves of a metrics.csv by panel and name, in the order of `PANELS`; empty where there are none.

    Raises:
        RecordError: With the line, if the file is damaged.
    """
    columns = read_columns(file, lambda name: any(re.fullmatch(pattern, name) for pattern in PANELS.values()))
    found: dict[str, dict[str, Curve]] = {}
    for title, pattern in PANELS.items():
        for name, column in columns.items():
            if (match := re.fullmatch(pattern, name)) and (points := column.points):
                steps, values = zip(*points, strict=True)
                found.setdefault(title, {})[match[1]] = (list(steps), list(values))
    return found
