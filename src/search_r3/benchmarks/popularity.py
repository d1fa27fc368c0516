"""How far do favourite facts go? `python -m src.benchmarks.popularity <folder of entailmentbank>`.

Some facts explain many questions, so a ranking of the facts by how often training questions are judged with
them, the same for every question, already finds some. It is measured alone and fused with BM25, whose weight
is chosen on the tuning questions, beside BM25 itself. Every collection is also scored for the facts that
training has judged and for the others, apart: facts of the other kind are left out of judgements and
ranking. Rankings of other models are split in the same way: `--runs <folder of an evaluation> ...`.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from search_r3.cli.last_resort import Parser, run_command
from search_r3.cli.provenance import provenance
from search_r3.data.entailmentbank import (
    EXPLANATIONS,
    MAX_FACTS,
    REASONINGS,
    held_out_parts,
    load_entailmentbank,
    reasonings_of,
)
from search_r3.data.types import Benchmark, Example, TrainingData
from search_r3.errors import UsageError
from search_r3.evaluation.metrics import per_query_metrics, ranked
from search_r3.evaluation.significance import bootstrap_interval
from search_r3.evaluation.trec import read_run
from search_r3.files import write_json
from search_r3.index.backends.bm25 import LexicalIndex

WEIGHTS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Of log(1 + times judged) against BM25's score; the best on the tuning questions is used."""
TOP = 100
Run = dict[str, dict[str, float]]


def collections(folder: Path) -> dict[str, TrainingData]:
    """All training questions with each of the test collections, by its name in `TESTS`."""
    return {part: load_entailmentbank(folder, "all", test_part=part) for part in held_out_parts(folder)}


def times_judged(examples: Sequence[Example]) -> Counter[str]:
    """How many training questions each fact is judged for."""
    return Counter(example.positive_id for example in examples)


def fused(
    benchmark: Benchmark, index: LexicalIndex | None, counts: Mapping[str, int], weight: float, top: int = TOP
) -> Run:
    """Rankings by BM25's score plus `weight * log(1 + times judged)`.

    Args:
        benchmark: what is asked.
        index: of its corpus; None leaves BM25 out.
        counts: times judged by fact.
        weight: 0 leaves the counts out.
        top: facts kept per question.
    """
    ids = benchmark.corpus.ids
    popular = {document: weight * math.log1p(n) for document, n in counts.items() if weight}
    run: Run = {}
    if index is None:
        found = [{}] * len(benchmark.queries)
    else:
        scores, rows = index.search(list(benchmark.queries.values()), len(ids))
        found = [
            {ids[row]: float(score) for row, score in zip(*each, strict=True) if row >= 0}
            for each in zip(rows, scores, strict=True)
        ]
    for query, lexical in zip(benchmark.queries, found, strict=True):
        total = {document: lexical.get(document, 0.0) for document in lexical.keys() | popular.keys()}
        total = {document: score + popular.get(document, 0.0) for document, score in total.items()}
        run[query] = {document: total[document] for document in ranked(total)[:top]}
    return run


def apart(
    run: Mapping[str, Mapping[str, float]], benchmark: Benchmark, kept: Collection[str]
) -> tuple[Run, dict]:
    """Run and judgements of relevant facts in `kept` alone; questions without any are left out.

    A relevant fact outside `kept` is taken out of the ranking too, so that finding it costs nothing.
    """
    qrels = {
        query: left
        for query, grades in benchmark.qrels.items()
        if (left := {document: grade for document, grade in grades.items() if document in kept})
    }
    condensed = {
        query: {
            document: score
            for document, score in run.get(query, {}).items()
            if document in kept or document not in benchmark.qrels[query]
        }
        for query in qrels
    }
    return condensed, qrels


def scored(
    run: Mapping[str, Mapping[str, float]], benchmark: Benchmark, seen: Collection[str]
) -> dict[str, dict]:
    """nDCG@10 with its interval and recall@100: of all facts, those seen in training, and the others."""
    others = set(benchmark.corpus.ids) - set(seen)
    cases = {"all": (run, benchmark.qrels)}
    cases |= {"seen": apart(run, benchmark, seen), "unseen": apart(run, benchmark, others)}
    result = {}
    for name, (part, qrels) in cases.items():
        rows = list(per_query_metrics(part, qrels).values())
        if not rows:
            continue
        ndcg = [row["ndcg@10"] for row in rows]
        result[name] = {
            "n_queries": len(rows),
            "n_judgements": sum(map(len, qrels.values())),
            "ndcg@10": sum(ndcg) / len(ndcg),
            "ci95": list(bootstrap_interval(ndcg)),
            "recall@100": sum(row["recall@100"] for row in rows) / len(rows),
        }
    return result


def baselines(whole: Mapping[str, TrainingData], counts: Mapping[str, int]) -> tuple[list[dict], dict]:
    """Rows of BM25, popularity and both, on every test collection; and the facts of the measurement."""
    index = LexicalIndex(whole["dev"].corpus.texts, "english")
    tuning = whole["tuning"].test
    on_tuning = {
        weight: scored(fused(tuning, index, counts, weight), tuning, counts)["all"]["ndcg@10"]
        for weight in WEIGHTS
    }
    best = max(on_tuning, key=on_tuning.get)
    rows = []
    for part, data in whole.items():
        asked = data.test
        for name, run in (
            ("bm25", fused(asked, index, {}, 0.0)),
            ("popularity", fused(asked, None, counts, 1.0)),
            ("bm25 + popularity", fused(asked, index, counts, best)),
        ):
            rows.append({"benchmark": asked.name, "part": part, "ranking": name} | scored(run, asked, counts))
    return rows, {"weight": best, "on_tuning": {str(weight): value for weight, value in on_tuning.items()}}


def runs_apart(
    whole: Mapping[str, TrainingData], counts: Mapping[str, int], places: Sequence[Path]
) -> list[dict]:
    """Rows of the rankings in evaluation folders; their collections are told by their queries.

    Raises:
        UsageError: If a folder holds no ranking of one of the collections.
    """
    rows = []
    for place in places:
        files = sorted(place.rglob("run.trec"))
        if not files:
            raise UsageError(f"{place}: holds no run.trec; give the folder of an evaluation")
        for file in files:
            run = read_run(file)
            asked = [data.test for data in whole.values() if run.keys() <= data.test.queries.keys()]
            if not asked:
                raise UsageError(f"{file}: ranks for queries that are in none of {', '.join(whole)}")
            name = file.parent.as_posix()
            rows.append({"benchmark": asked[0].name, "ranking": name} | scored(run, asked[0], counts))
    return rows


def write_reasonings(folder: Path, target: Path) -> list[Path]:
    """Texts for `reasonings=`: what people reasoned, the right answers alone, and fillers of equal length."""
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in (kind for kind in REASONINGS if kind != "none"):
        path = target / f"reasonings.{kind}.jsonl"
        texts = reasonings_of(folder / EXPLANATIONS, kind, MAX_FACTS)
        lines = [{"_id": query, "text": text} for query, text in texts.items()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        written.append(path)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table and writes it down.

    Raises:
        UsageError: If the folder cannot be read, or a run is of another collection.
    """
    parser = Parser(prog="python -m src.benchmarks.popularity", description=__doc__)
    parser.add_argument("folder", type=Path, help="the collection")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="folders of evaluations")
    parser.add_argument(
        "--reasonings", type=Path, help="write the human texts for reasonings= into this folder"
    )
    parser.add_argument("--output", type=Path, help="write the rows to this JSON file")
    arguments = parser.parse_args(argv)
    try:
        whole = collections(arguments.folder)
        counts = times_judged(whole["dev"].examples)
        rows, facts = baselines(whole, counts)
        rows += runs_apart(whole, counts, arguments.runs)
    except ValueError as error:
        raise UsageError(str(error)) from None
    for row in rows:
        values = [
            f"{name} {row[name]['ndcg@10']:.3f} ({row[name]['ci95'][0]:.3f}-{row[name]['ci95'][1]:.3f})"
            for name in ("all", "seen", "unseen")
            if name in row
        ]
        print(f"{row['benchmark']:26} {row['ranking']:18} nDCG@10 {', '.join(values)}")
    print(f"weight of popularity, chosen on the tuning questions: {facts['weight']:g}")
    if arguments.output:
        write_json(arguments.output, {**provenance(seed=0), **facts, "rows": rows})
    if arguments.reasonings:
        print(*write_reasonings(arguments.folder, arguments.reasonings), sep="\n")
    return 0


if __name__ == "__main__":
    run_command(main)
