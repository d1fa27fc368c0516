"""EntailmentBank (Dalvi et al., EMNLP 2021) as retrieval: a science question to the facts that explain it.

The folder is in BEIR layout, with what people reasoned in `explanations.jsonl`. The training questions are
parted by a hash of their ids: some are set aside as a second test collection, since 187 dev questions cannot
show a difference of 0.02; some are for tuning, which validation looks at; some are first seen by RL, so that
its rewards measure no memory of SFT; the rest is for SFT, and for RL again where that is asked for. Sizes and
the format of a reasoning are ours.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from search_r3.data.beir.layout import available_splits, qrels_file
from search_r3.data.beir.training import load_beir_training
from search_r3.data.jsonl import (
    ConcatTexts,
    DataError,
    checked_text,
    numbered_lines,
    parse_object,
    text_field,
)
from search_r3.data.splits import position
from search_r3.data.types import Benchmark, Corpus, Example, TrainingData
from search_r3.records import shown

SPLITS = ("sft", "rl", "all")
RL_QUESTIONS = ("shared", "unseen", "both")
TESTS = ("dev", "set_aside", "tuning", "test")
MAX_FACTS = 3
REASONINGS = ("human", "answer", "filler", "none")
EXPLANATIONS = "explanations.jsonl"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """How many training questions each purpose has; SFT has what is left.

    Attributes:
        set_aside: for testing; no stage and no choice of a setting sees them.
        tuning: for validation and for choosing settings.
        rl_only: RL trains on them and SFT does not.
    """

    set_aside: int
    tuning: int
    rl_only: int

    def __post_init__(self) -> None:
        for name in ("set_aside", "tuning", "rl_only"):
            if getattr(self, name) < 0:
                raise ValueError(f"parts.{name} must not be negative, got {getattr(self, name)}")


def load_entailmentbank(
    path: str | Path,
    split: str = "sft",
    rl_questions: str = "both",
    test_part: str = "dev",
    parts: Parts = Parts(set_aside=400, tuning=108, rl_only=200),
    max_facts: int = MAX_FACTS,
    reasoning: str = "human",
    name: str = "entailmentbank",
) -> TrainingData:
    """Training rows of one stage, the tuning questions for validation, and one of the test collections.

    Args:
        path: the folder: corpus.jsonl, queries.jsonl, explanations.jsonl, qrels/train.tsv, qrels/dev.tsv;
            and qrels/test.tsv, if the test questions are asked.
        split: "sft", "rl", or "all" questions that any stage trains on.
        rl_questions: of the split "rl": "shared" with SFT, "unseen" by it, or "both".
        test_part: "dev"; "set_aside", of the training questions; "tuning", for choosing settings; or "test".
        parts: sizes.
        max_facts: intermediate conclusions in a reasoning, at most.
        reasoning: what SFT teaches to write: "human", `short_reasoning`; "answer", the right answer alone;
            or a rival: "filler" of the human one's length, or "none", with which only direct queries are
            trained.
        name: of the data set.

    Returns:
        A row per question and fact, with its reasoning; every fact is in the corpus.

    Raises:
        DataError: If a file is missing or a row is bad.
        ValueError: If a choice is unknown, or the parts leave no question to train on.
    """
    _check_choice("split", split, SPLITS)
    _check_choice("rl_questions", rl_questions, RL_QUESTIONS)
    _check_choice("test_part", test_part, TESTS)
    _check_choice("reasoning", reasoning, REASONINGS)
    reasonings = reasonings_of(Path(path) / EXPLANATIONS, reasoning, max_facts)
    asked = "test" if test_part == "test" else "dev"
    qrels_file(Path(path), asked)  # a file that is missing is told before the corpus is read
    whole = load_beir_training(path, name, validation_split="dev", test_split=asked, reasonings=reasonings)
    rows = _rows_by_question(whole.examples, name)
    of = question_parts(list(rows), parts)
    chosen = _trained(of, split, rl_questions)
    if not chosen:
        raise ValueError(
            f"{name}: parts={asdict(parts)} leave none of {len(rows)} questions for split={split}"
        )
    tests = _test_collections(whole, asked, of, rows)
    if tests[test_part] is None:
        raise ValueError(f"{name}: test_part={test_part}, and parts={asdict(parts)} leave no question for it")
    examples = [example for query in chosen for example in rows[query]]
    card = dict(whole.card) | {
        "examples": len(examples),
        "train_queries": len(chosen),
        "validation": "tuning questions of train",
        "validation_queries": len(of["tuning"]),
        "test": test_part,
        "test_queries": len(tests[test_part].queries),
        "parts": {part: len(queries) for part, queries in of.items()},
        "reasoning": reasoning,
        "split": split if split != "rl" else f"rl, {rl_questions}",
        "licence": "Apache-2.0 in its repository; a copy elsewhere says CC-BY-4.0",
    }
    return replace(
        whole,
        examples=examples,
        validation=tests["tuning"],
        test=tests[test_part],
        texts=ConcatTexts([whole.corpus.texts, [rows[query][0].query for query in chosen]]),
        card=card,
    )


def held_out_parts(path: str | Path) -> list[str]:
    """The test collections of a folder: `TESTS`, and "test" only where its questions are judged."""
    return [part for part in TESTS if part != "test" or part in available_splits(Path(path))]


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def _test_collections(
    whole: TrainingData, asked: str, of: Mapping[str, Sequence[str]], rows: Mapping[str, Sequence[Example]]
) -> dict[str, Benchmark | None]:
    """What a run may be tested on, by a name in `TESTS`; None for a part without a question.

    Args:
        whole: all training questions; its test collection is that of the judgements `asked`.
        asked: "dev" or "test".
        of: training questions by part.
        rows: by question.
    """
    return {
        asked: replace(whole.test, name=f"{whole.name}-{asked}"),
        "set_aside": _collection(f"{whole.name}-set-aside", of["set_aside"], rows, whole.corpus),
        "tuning": _collection(f"{whole.name}-tuning", of["tuning"], rows, whole.corpus),
    }


def _rows_by_question(examples: Sequence[Example], source: str) -> dict[str, list[Example]]:
    """Rows by question id, in the order of the first; their ids are those of question and fact."""
    rows: dict[str, list[Example]] = {}
    for example in examples:
        rows.setdefault(example.id.partition("\t")[0], []).append(replace(example, source=source))
    return rows


def reasonings_of(file: Path, kind: str, max_facts: int) -> dict[str, str] | None:
    """Texts by question id, of a kind in `REASONINGS`; None for "none".

    Raises:
        DataError: As `load_explanations`.
    """
    explanations = load_explanations(file)
    if kind == "none":
        return None
    if kind == "answer":
        return {query: short_reasoning(answer, "", [], 0) for query, (answer, _, _) in explanations.items()}
    human = {query: short_reasoning(*parts, max_facts) for query, parts in explanations.items()}
    return human if kind == "human" else {query: filler(text) for query, text in human.items()}


def question_parts(questions: Sequence[str], parts: Parts) -> dict[str, list[str]]:
    """Ids by part, each in the order given: "set_aside", "tuning", "rl_only", "sft".

    They are dealt out in the order of `position`, so that the order of the file does not matter.

    Raises:
        ValueError: If the parts ask for more questions than there are.
    """
    n_asked = parts.set_aside + parts.tuning + parts.rl_only
    if n_asked > len(questions):
        raise ValueError(f"parts={asdict(parts)} ask for {n_asked} of {len(questions)} questions")
    dealt = iter(sorted(questions, key=position))
    of = {name: {next(dealt) for _ in range(n)} for name, n in asdict(parts).items()}
    of["sft"] = set(dealt)
    return {name: [query for query in questions if query in chosen] for name, chosen in of.items()}


def _trained(of: Mapping[str, Sequence[str]], split: str, rl_questions: str) -> list[str]:
    """Questions that a stage trains on."""
    shared, unseen = list(of["sft"]), list(of["rl_only"])
    if split == "sft":
        return shared
    if split == "all":
        return shared + unseen
    return {"shared": shared, "unseen": unseen, "both": shared + unseen}[rl_questions]


def _collection(
    name: str, queries: Sequence[str], rows: Mapping[str, Sequence[Example]], corpus: Corpus
) -> Benchmark | None:
    if not queries:
        return None
    qrels = {query: {row.positive_id: 1 for row in rows[query]} for query in queries}
    return Benchmark(name, corpus, {query: rows[query][0].query for query in queries}, qrels)


def load_explanations(file: Path) -> dict[str, tuple[str, str, list[str]]]:
    """Answer, hypothesis and intermediate conclusions by question id.

    Raises:
        DataError: If the file is missing or empty, or a row is bad.
    """
    found: dict[str, tuple[str, str, list[str]]] = {}
    for line, raw in numbered_lines(file):
        row = parse_object(raw, file, line)
        query = text_field(row, "_id", file, line)
        if query in found:
            raise DataError(file, line, f"_id {shown(query)} occurs for the second time")
        steps = row.get("steps")
        if not isinstance(steps, list):
            raise DataError(file, line, f"'steps' must be a list of strings, got {type(steps).__name__}")
        facts = [checked_text(step, f"steps[{n}]", file, line) for n, step in enumerate(steps)]
        found[query] = (
            text_field(row, "answer", file, line), text_field(row, "hypothesis", file, line), facts
        )  # fmt: skip
    if not found:
        raise DataError(file, 0, "the file holds no explanations")
    return found


def short_reasoning(answer: str, hypothesis: str, steps: Sequence[str], max_facts: int = MAX_FACTS) -> str:
    """What a small model can learn to write: the answer first, then a few short facts.

    The first intermediate conclusions are taken, which stand next to the facts that are looked for. Where
    nobody wrote any, the hypothesis, which is the answer as a sentence, is the fact.

    >>> short_reasoning("Helium.", "the sun makes helium", ["fusion makes helium", "the sun has fusion"])
    'Helium. fusion makes helium. the sun has fusion.'
    """
    facts = list(steps[:max_facts]) or [hypothesis][:max_facts]
    return " ".join(f"{part.strip().rstrip('.')}." for part in (answer, *facts))


def filler(reasoning: str) -> str:
    """A dot for every word: as much room to compute in, and nothing to read.

    >>> filler("Helium. fusion makes helium.")
    '. . . .'
    """
    return " ".join("." for _ in reasoning.split())
