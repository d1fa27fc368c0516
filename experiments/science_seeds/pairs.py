"""Differences between two rows of every run, over runs and over all benchmarks together.

    python -m experiments.science_seeds.pairs RUN... --pair "direct direct" "sft direct" --output <file.json>

A run is a folder with a folder for each part of the questions, in which `python -m src.evaluate` wrote rows
of one or several models. A row is named as `python -m src.report --runs` names it: by its mode, behind the
model's name where the folder has several.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from search_r3.cli.evaluation_report import run_scores
from search_r3.evaluation.runs import Scores, over_runs


def scores_of(run: Path, parts: Sequence[str], label: str) -> Scores:
    """nDCG@10 by part and query.

    Raises:
        ValueError: If a part has no row of this label.
    """
    found = {}
    for part in parts:
        file = run / part / "metrics.json"
        by_label = {
            name: scores
            for (_, name), scores in run_scores(file, json.loads(file.read_text())["rows"]).items()
        }
        if label not in by_label:
            raise ValueError(f"{file} has no row {label!r}; it has {', '.join(by_label)}")
        found |= {(part, query): score for query, score in by_label[label].items()}
    return found


def difference(runs: Sequence[Path], parts: Sequence[str], before: str, after: str) -> dict:
    """What `after` has more than `before`: mean, range of runs and interval over runs and questions."""
    apart = []
    for run in runs:
        ours, theirs = (scores_of(run, parts, label) for label in (after, before))
        apart.append({query: ours[query] - theirs[query] for query in theirs})
    return {"from": before, "to": after, "parts": list(parts), "n_queries": len(apart[0])} | vars(
        over_runs(apart)
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.science_seeds.pairs", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders, one of each run")
    parser.add_argument("--pair", nargs=2, action="append", required=True, metavar=("FROM", "TO"))
    parser.add_argument("--parts", nargs="+", default=["set_aside", "dev"], help="folders in each run")
    parser.add_argument("--output", type=Path, required=True, help="file of the figures")
    arguments = parser.parse_args(argv)
    rows = [difference(arguments.runs, arguments.parts, *pair) for pair in arguments.pair]
    arguments.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    for row in rows:
        low, high = row["ci95"]
        print(f"{row['from']:16} {row['to']:16} {row['mean']:+.3f} ({low:+.3f} to {high:+.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
