"""Differences between two rows of every run, over runs and over all benchmarks together.

    python -m experiments.science_seeds.pairs RUN... --pair "direct direct" "sft direct" --output <file.json>

A run is a folder with a folder for each part of the questions, in which `python -m src.evaluate` wrote rows
of one or several models. A row is named as `python -m src.report --runs` names it: by its mode, behind the
model's name where the folder has several.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from search_r3.cli.evaluation_report import run_scores
from search_r3.evaluation.runs import Scores, over_runs


def scores_by_label(run: Path, parts: Sequence[str]) -> dict[str, Scores]:
    """nDCG@10 by part and query, of every row that all parts have."""
    files = {part: run / part / "metrics.json" for part in parts}
    found = {part: run_scores(file, json.loads(file.read_text())["rows"]) for part, file in files.items()}
    by_part = {part: {label: one for (_, label), one in scores.items()} for part, scores in found.items()}
    common = set.intersection(*(set(labels) for labels in by_part.values()))
    return {
        label: {(part, query): score for part in parts for query, score in by_part[part][label].items()}
        for label in common
    }


def difference(runs: Sequence[Mapping[str, Scores]], before: str, after: str) -> dict:
    """What `after` has more than `before`: mean, range of runs and interval over runs and questions.

    Raises:
        ValueError: If a run does not have one of the two in all parts.
    """
    apart = []
    for run in runs:
        if missing := {before, after} - run.keys():
            raise ValueError(f"no row {', '.join(missing)} in all parts; there are {', '.join(sorted(run))}")
        apart.append({query: run[after][query] - score for query, score in run[before].items()})
    return {"from": before, "to": after, "n_queries": len(apart[0])} | vars(over_runs(apart))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.science_seeds.pairs", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders, one of each run")
    parser.add_argument("--pair", nargs=2, action="append", required=True, metavar=("FROM", "TO"))
    parser.add_argument("--parts", nargs="+", default=["set_aside", "dev"], help="folders in each run")
    parser.add_argument("--output", type=Path, required=True, help="file of the figures")
    arguments = parser.parse_args(argv)
    runs = [scores_by_label(run, arguments.parts) for run in arguments.runs]
    rows = [{"parts": arguments.parts} | difference(runs, *pair) for pair in arguments.pair]
    arguments.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    for row in rows:
        low, high = row["ci95"]
        print(f"{row['from']:16} {row['to']:16} {row['mean']:+.3f} ({low:+.3f} to {high:+.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
