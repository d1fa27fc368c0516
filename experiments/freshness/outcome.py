"""What RL reaches under each refresh rule, against what its encoder was asked for and what its steps took.

    python -m experiments.freshness.outcome <folder> --output <file.json>

The folder holds `<seed>/rl-<rule>`, run folders of `experiment=freshness`, and `<seed>/eval/rl-<rule>`, their
evaluations. Audits and validation, which only measure, count neither as documents nor as seconds.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from search_r3.cli.logged_columns import read_columns
from search_r3.evaluation.colours import COLOURS
from search_r3.evaluation.places import rows_on_disk

DOCUMENTS = "train/index/documents_encoded"
VALIDATION = "val/reasoning/ndcg@10"
AUDITS = {
    "identical": "train/index/audit/identical_rewards",
    "sign_agreement": "train/index/audit/advantage_sign_agreement",
    "difference": "train/index/audit/mean_abs_difference",
}
RULES = ("full", "certified", "candidates", "graph", "frozen")
SECONDS = tuple(f"train/seconds/{part}" for part in ("refresh", "search", "sampling", "scoring", "update"))


@dataclass(frozen=True)
class Step:
    """A step of RL: what it encoded and took, and what was measured after it."""

    number: int
    documents: int
    seconds: float
    audit: Mapping[str, float]
    validation: float | None


def steps_of(run: Path) -> list[Step]:
    """The steps in a run's `csv/metrics.csv`.

    Raises:
        KeyError: If there is none, or it is none of RL's.
        RecordError: With the line, if it is damaged.
    """
    wanted = (DOCUMENTS, VALIDATION, *SECONDS, *AUDITS.values())
    columns = read_columns(run / "csv" / "metrics.csv", wanted.__contains__, whole=wanted)
    documents = columns[DOCUMENTS].by_step
    seconds = [columns[column].by_step for column in SECONDS]
    audits = {name: columns[column].by_step for name, column in AUDITS.items() if column in columns}
    validation = columns[VALIDATION].by_step if VALIDATION in columns else {}
    return [
        Step(
            number + 1,
            int(documents[number]),
            sum(part[number] for part in seconds),
            {name: values[number] for name, values in audits.items() if number in values},
            validation.get(number),
        )
        for number in sorted({*documents, *validation})
    ]


def outcome(folder: Path, seed: str, rule: str) -> dict:
    """A run's costs, its validation against them, and its test."""
    steps = steps_of(folder / seed / f"rl-{rule}")
    documents = list(accumulate(step.documents for step in steps))
    seconds = list(accumulate(step.seconds for step in steps))
    audits = [step.audit for step in steps if step.audit]
    (tested,) = (
        row for row in rows_on_disk(folder / seed / "eval" / f"rl-{rule}") if row["mode"] == "reasoning"
    )
    return {
        "rule": rule,
        "seed": seed,
        "steps": len(steps),
        "corpus": tested["n_docs"],
        "documents_per_step": documents[-1] / len(steps),
        "seconds_per_step": seconds[-1] / len(steps),
        "audits": {name: sum(audit[name] for audit in audits) / len(audits) for name in AUDITS if audits},
        "curve": [
            {"step": step.number, "documents": spent, "seconds": gone, "ndcg@10": step.validation}
            for step, spent, gone in zip(steps, documents, seconds, strict=True)
            if step.validation is not None
        ],
        "metrics": tested["metrics"],
        "ci95": tested["ci95"],
    }


def evaluated_runs(folder: Path) -> list[tuple[str, str]]:
    """Seed and rule of the runs that have been evaluated; others are named and left out."""
    seeds = sorted(path.name for path in folder.iterdir() if path.is_dir())
    runs = [(seed, rule) for rule in RULES for seed in seeds if (folder / seed / f"rl-{rule}").is_dir()]
    found = []
    for seed, rule in runs:
        if rows_on_disk(folder / seed / "eval" / f"rl-{rule}"):
            found.append((seed, rule))
        else:
            print(f"left out: {folder / seed / f'rl-{rule}'} is not evaluated", file=sys.stderr)
    return found


def write_picture(runs: Sequence[Mapping], path: Path) -> Path:
    """Validation against documents encoded and against seconds; a line per run, a colour per rule."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    axes = {"documents": "documents encoded in training", "seconds": "seconds of training"}
    for panel, (key, label) in zip(panels, axes.items(), strict=True):
        for rule, colour in zip(RULES, COLOURS.values(), strict=False):
            for number, run in enumerate(run for run in runs if run["rule"] == rule):
                points = [[point[name] for point in run["curve"]] for name in (key, "ndcg@10")]
                panel.plot(*points, marker="o", markersize=3, color=colour, label=None if number else rule)
        panel.set(xscale="log", xlabel=label)
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("validation nDCG@10")
    panels[1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.freshness.outcome", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="a folder per seed, with rl-<rule> and eval/rl-<rule>")
    parser.add_argument(
        "--output", type=Path, required=True, help="file of the figures; the picture is beside it"
    )
    arguments = parser.parse_args(argv)
    found = evaluated_runs(arguments.folder)
    if not found:
        parser.error(f"{arguments.folder} holds no evaluated <seed>/rl-<rule> of {', '.join(RULES)}")
    runs = [outcome(arguments.folder, seed, rule) for seed, rule in found]
    arguments.output.write_text(json.dumps({"rows": runs}, indent=1) + "\n", encoding="utf-8")
    picture = write_picture(runs, arguments.output.with_suffix(".png"))
    for run in runs:
        print(
            f"{run['rule']:11} seed {run['seed']}  {run['documents_per_step']:8.0f} documents and "
            f"{run['seconds_per_step']:5.1f} s per step  nDCG@10 {run['metrics']['ndcg@10']:.3f}"
        )
    print(f"wrote {arguments.output}\nwrote {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
