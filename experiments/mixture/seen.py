"""nDCG@10 on test queries of which training has judged a relevant document, and on the others.

    python -m experiments.mixture.seen <BEIR folder> --split train <evaluations> --output <file.json>

A collection whose splits share documents can ask in its test what it has taught in training: two thirds of
SciFact's test claims are about an abstract that a training claim is about, often as its negation.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from search_r3.cli.evaluation_report import folder_of
from search_r3.data.beir.benchmark import load_benchmark
from search_r3.evaluation.results import verified_scores
from search_r3.evaluation.significance import bootstrap_interval

METRIC = "ndcg@10"


def seen_queries(folder: Path, split: str) -> set[str]:
    """Test queries with a relevant document that a query of `split` has too."""
    taught, asked = (_relevant(load_benchmark(folder, split=each).qrels) for each in (split, "test"))
    documents = set().union(*taught.values())
    return {query for query, relevant in asked.items() if relevant & documents}


def _relevant(qrels: Mapping[str, Mapping[str, int]]) -> dict[str, set[str]]:
    return {
        query: {document for document, grade in grades.items() if grade > 0}
        for query, grades in qrels.items()
    }


def halves(scores: Mapping[str, float], seen: set[str]) -> dict[str, dict]:
    """Number of queries, mean and bootstrap interval of either half."""
    found = {}
    for name, is_in in (("seen", True), ("unseen", False)):
        values = np.array([score for query, score in scores.items() if (query in seen) == is_in])
        found[name] = {
            "n_queries": len(values),
            METRIC: float(values.mean()),
            "ci95": list(bootstrap_interval(values)),
        }
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.mixture.seen", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("collection", type=Path, help="folder in BEIR layout")
    parser.add_argument("evaluations", type=Path, nargs="+", help="folders that python -m src.evaluate wrote")
    parser.add_argument("--split", default="train", help="judgements that a model was trained on")
    parser.add_argument("--output", type=Path, required=True, help="file of the figures")
    arguments = parser.parse_args(argv)
    seen, rows = seen_queries(arguments.collection, arguments.split), []
    for folder in arguments.evaluations:
        file = folder / "metrics.json"
        for row in json.loads(file.read_text())["rows"]:
            if row["benchmark"] == arguments.collection.name:
                scores = verified_scores(folder_of(file, row), row, METRIC)
                named = {key: row[key] for key in ("benchmark", "mode", "model")}
                rows.append({**named, "evaluation": folder.name, **halves(scores, seen)})
    arguments.output.write_text(json.dumps({"split": arguments.split, "rows": rows}, indent=1) + "\n")
    for row in rows:
        shown = [f"{name} {row[name]['n_queries']:4d} {row[name][METRIC]:.3f}" for name in ("seen", "unseen")]
        print(f"{row['benchmark']:12} {row['mode']:12} {'  '.join(shown)}  {row['model']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
