"""How often a model's own text begins with the right answer, and what the text is worth where it does.

    python -m experiments.science.answers --own <folders> --given <folders> --output <file.json>

The folders are those of evaluations. The first hold the modes direct and reasoning, the second, in the same
order, given-reasoning with the right answers (`reasonings.answer.jsonl`). Two answers are compared by the F1
of their words (arXiv:1606.05250), stemmed and without stop-words; from `RIGHT` on an answer is right.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import Stemmer

from search_r3.evaluation.places import rows_on_disk
from search_r3.evaluation.results import verified_scores, verified_texts
from search_r3.evaluation.significance import bootstrap_interval, paired_p_value
from search_r3.index.backends.bm25 import analyze

RIGHT = 0.5
METRIC = "ndcg@10"
WANTED = 0.02
CLASSES: Mapping[str, Callable[[float], bool]] = {
    "no word of it": lambda f1: f1 == 0,
    "some words": lambda f1: 0 < f1 < RIGHT,
    "right": lambda f1: f1 >= RIGHT,
    "all": lambda f1: True,
}


@dataclass(frozen=True)
class Answered:
    """A question: how near its written answer is to the right one, and nDCG@10 by what is read beside it."""

    f1: float
    direct: float
    own: float
    given: float


def answer_of(text: str) -> str:
    """The first sentence of a text, which is where `short_reasoning` has the answer.

    >>> answer_of("the sun. the sun is a star.")
    'the sun.'
    """
    answer, end, _ = text.partition(". ")
    return answer + end.rstrip()


def overlap(written: str, right: str) -> float:
    """F1 of the words of a written text's first sentence and of an answer; 0 where one has no word.

    >>> overlap("Planets orbit. the sun is a star.", "the orbits of a planet")
    1.0
    """
    stemmer, known = Stemmer.Stemmer("english"), {}
    first, second = (set(analyze(text, "english", stemmer, known)) for text in (answer_of(written), right))
    return 2 * len(first & second) / (len(first) + len(second)) if first and second else 0.0


@dataclass(frozen=True)
class Evaluated:
    """What two folders of evaluations say of a benchmark's questions.

    Attributes:
        benchmark: its name.
        questions: by id.
        answers: that the model writes, by id.
    """

    benchmark: str
    questions: Mapping[str, Answered]
    answers: Mapping[str, str]


def evaluated(own: Path, given: Path) -> Evaluated:
    """The questions of two folders of evaluations.

    Raises:
        ValueError: If a mode is missing, or the folders have other questions.
    """
    direct, reasoned, right = (
        _row(folder, mode)
        for folder, mode in ((own, "direct"), (own, "reasoning"), (given, "given-reasoning"))
    )
    scores = [
        verified_scores(folder / row["folder"], row, METRIC)
        for folder, row in ((own, direct), (own, reasoned), (given, right))
    ]
    if not scores[0].keys() == scores[1].keys() == scores[2].keys():
        raise ValueError(f"{own} and {given} have other questions")
    _, texts = verified_texts(own / reasoned["folder"], reasoned)
    _, answers = verified_texts(given / right["folder"], right)
    questions = {
        query: Answered(overlap(texts[query], answers[query]), *(found[query] for found in scores))
        for query in sorted(scores[0])
    }
    return Evaluated(
        reasoned["benchmark"], questions, {query: answer_of(texts[query]) for query in questions}
    )


def _row(folder: Path, mode: str) -> dict:
    found = [row for row in rows_on_disk(folder) if row["mode"] == mode]
    if len(found) != 1:
        raise ValueError(f"{folder} holds {len(found)} evaluations of mode {mode}; one is needed")
    return found[0]


def by_class(benchmark: str, questions: Sequence[Answered]) -> list[dict]:
    """nDCG@10 by how right the answer is; a class that no question is in is left out."""
    rows = []
    for name, holds in CLASSES.items():
        chosen = [question for question in questions if holds(question.f1)]
        if not chosen:
            continue
        columns = {key: [getattr(question, key) for question in chosen] for key in ("direct", "own", "given")}
        gain = np.subtract(columns["own"], columns["direct"])
        rows.append(
            {"benchmark": benchmark, "answer": name, "n": len(chosen), "share": len(chosen) / len(questions)}
            | {key: float(np.mean(values)) for key, values in columns.items()}
            | {"gain": float(gain.mean()), "ci95": list(bootstrap_interval(gain))}
            | {"p": paired_p_value(columns["own"], columns["direct"])}
        )
    return rows


def share_needed(questions: Sequence[Answered], wanted: float) -> float:
    """Share of right answers with which the own text would be `wanted` above direct.

    A right answer is taken to be worth what the given one is, a wrong one what the own wrong texts are:
    `p * gain_given + (1 - p) * gain_wrong = wanted`.
    """
    given = np.mean([question.given - question.direct for question in questions])
    wrong = np.mean([question.own - question.direct for question in questions if question.f1 < RIGHT])
    return float((wanted - wrong) / (given - wrong))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.science.answers", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--own", type=Path, nargs="+", required=True, help="folders with direct and reasoning"
    )
    parser.add_argument("--given", type=Path, nargs="+", required=True, help="folders with the right answers")
    parser.add_argument("--output", type=Path, required=True, help="file of the figures")
    parser.add_argument(
        "--answers", type=Path, help="file of the written answers alone, as reasonings= takes it"
    )
    arguments = parser.parse_args(argv)
    if len(arguments.own) != len(arguments.given):
        parser.error("--own and --given need equally many folders")
    found = [evaluated(own, given) for own, given in zip(arguments.own, arguments.given, strict=True)]
    rows = [row for each in found for row in by_class(each.benchmark, list(each.questions.values()))]
    together = [question for each in found for question in each.questions.values()]
    rows += by_class("together", together)
    needed = {str(wanted): share_needed(together, wanted) for wanted in (0.0, WANTED)}
    arguments.output.write_text(json.dumps({"rows": rows, "share_needed": needed}, indent=1) + "\n")
    if arguments.answers:
        written = {query: answer for each in found for query, answer in each.answers.items()}
        lines = [json.dumps({"query_id": query, "reasoning": answer}) for query, answer in written.items()]
        arguments.answers.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for row in rows:
        print(
            f"{row['benchmark']:28} {row['answer']:14} {row['n']:4d}  direct {row['direct']:.3f}  "
            f"own {row['own']:.3f}  given {row['given']:.3f}  gain {row['gain']:+.3f}"
        )
    print(f"share of right answers needed: {needed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
