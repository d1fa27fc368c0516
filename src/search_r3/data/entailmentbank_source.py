"""The collection `data=entailmentbank` out of a clone of allenai/entailment_bank (Dalvi et al., EMNLP 2021).

Four files of the clone are read, each compared with its SHA-256 before anything is written, and what is
written is compared with that of the collection that reported numbers are of. The rules:

- Facts are those of the corpus file, in its order, but for "DUMMY"; facts of the same words (letters and
  digits, in lower case) are one document, under the text that comes first.
- A question's positives are the facts that have the words of one of its premises and, where the release with
  annotations is read too (the dev questions), the facts of its provenance. Without one it is left out.
- A question that occurs twice has what stands at its second place; it keeps the order of its first.
- Options of a question are no part of it. The test questions are not read.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from search_r3.data.jsonl import DataError, numbered_lines, parse_object
from search_r3.errors import UsageError
from search_r3.files import file_sha256, shell_command, write_text
from search_r3.folders import empty_part, give_name, make_folder
from search_r3.records import RecordError, read_json, shown

REPOSITORY = "https://github.com/allenai/entailment_bank"
COMMIT = "daac2fdb7ab52ec3ef8f2953f59288c1edd7c2f0"
_RELEASE = "data/public_dataset/entailment_trees_emnlp2021_data_v2"
FACTS = f"{_RELEASE}/supporting_data/worldtree_corpus_sentences_extended.json"
ANNOTATED = f"{_RELEASE}/dataset/task_1/dev.jsonl"
QUESTIONS = {split: f"data/processed_data/angles/task_1/{split}.jsonl" for split in ("train", "dev")}
_LEFT_OUT = "DUMMY"


@dataclass(frozen=True)
class Pinned:
    """What a clone must hold, and what comes of it.

    Attributes:
        commit: of the clone.
        read: SHA-256 by path in the clone.
        written: SHA-256 by path in the collection's folder.
    """

    commit: str
    read: Mapping[str, str]
    written: Mapping[str, str]


PINNED = Pinned(
    COMMIT,
    {
        FACTS: "7afb6b0464e02b83a29615b06cb8a28002625dbbf707f6c0a86bfd450f5aefcb",
        ANNOTATED: "a9779787851fcdf2cdd5841520deda73474ebc4915e562225744807b5d8d1f5d",
        QUESTIONS["train"]: "620f31c45f6c906012f27f926b1e9a1ed31573a463b0ed7ff842d84f1e42b713",
        QUESTIONS["dev"]: "48a6469a31f9cff23844c05d21e3345ddcbc474aeb48617cbc8162dafade2e8c",
    },
    {
        "corpus.jsonl": "0e68af63a1c4621f03f5873d7b978897ef836da9b0cbc5e05832735b3533382f",
        "queries.jsonl": "55ceec783eb993c477c4ef93fb764a2fae4d1cbc6874990bd829bb2a11a5eb6d",
        "explanations.jsonl": "aebd48bcab749ca5028c818ec6eb4928266e01a7b8e0570d977fef561747cdbd",
        "qrels/train.tsv": "672eaa1c184dd3a02312b918b0d1853a86b2991c831d7123a57631e700e90036",
        "qrels/dev.tsv": "84c768813f3ab4157afbefdb6f17bdbf7085934c0cab857e1173aec3f26a2a8c",
    },
)


@dataclass
class Facts:
    """The documents.

    Attributes:
        texts: by document id, in the order of the corpus.
        by_words: document id by words.
        by_uuid: document id by the id that provenance names.
    """

    texts: dict[str, str] = field(default_factory=dict)
    by_words: dict[str, str] = field(default_factory=dict)
    by_uuid: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A question, what people wrote about it, and the documents that it needs."""

    text: str
    answer: str
    hypothesis: str
    steps: tuple[str, ...]
    positives: frozenset[str]


def build(clone: str | Path, folder: str | Path, pinned: Pinned = PINNED) -> bool:
    """Writes the collection in BEIR layout, with `explanations.jsonl`, whole or not at all.

    Args:
        clone: of the repository, at the pinned commit.
        folder: of the collection.
        pinned: hashes of what is read and written.

    Returns:
        Whether anything was to be done.

    Raises:
        UsageError: If a file of the clone is missing or another one, or something else is in the folder.
        DataError: If a row is not of the expected form, or the result is not the pinned one.
    """
    clone, folder = Path(clone), Path(folder)
    if all(_has(folder / name, sha256) for name, sha256 in pinned.written.items()):
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} is there and is not this collection; move it away, or give another --output"
        )
    make_folder(folder, "--output").rmdir()  # refused before anything is read
    check_clone(clone, pinned)
    contents = collection(clone)
    part = empty_part(folder)
    for name, text in contents.items():
        write_text(part / name, text)
        if not _has(part / name, pinned.written[name]):
            raise DataError(part / name, 0, "is not the collection that is pinned, though its sources are")
    give_name(part, folder)
    return True


def _has(file: Path, sha256: str) -> bool:
    return file.is_file() and file_sha256(file) == sha256


def check_clone(clone: Path, pinned: Pinned) -> None:
    """Compares every file that is read with its hash.

    Raises:
        UsageError: That names all that are missing or differ, and how the right ones are had.
    """
    wrong = [
        f"{name} {'differs' if (clone / name).is_file() else 'is missing'}"
        for name, sha256 in pinned.read.items()
        if not _has(clone / name, sha256)
    ]
    if wrong:
        get = shell_command("git", "clone", REPOSITORY, clone)
        checkout = shell_command("git", "-C", clone, "checkout", pinned.commit[:7])
        raise UsageError(
            f"{clone}: not a clone at the pinned commit: {'; '.join(wrong)}. Get it: {get} && {checkout}"
        )


def collection(clone: Path) -> dict[str, str]:
    """The files of the collection by name.

    Raises:
        DataError: If a row is not of the expected form.
    """
    facts = read_facts(clone / FACTS)
    named = _provenance(clone / ANNOTATED)
    parts = {split: _questions(clone / file, facts, named) for split, file in QUESTIONS.items()}
    questions = {name: question for part in parts.values() for name, question in part.items()}
    explained = (
        {"_id": name, "answer": each.answer, "hypothesis": each.hypothesis, "steps": list(each.steps)}
        for name, each in questions.items()
    )
    return {
        "corpus.jsonl": _lines(
            {"_id": name, "title": "", "text": text} for name, text in facts.texts.items()
        ),
        "queries.jsonl": _lines({"_id": name, "text": each.text} for name, each in questions.items()),
        "explanations.jsonl": _lines(explained),
        **{f"qrels/{split}.tsv": _qrels(part) for split, part in parts.items()},
    }


def _lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _qrels(questions: Mapping[str, Question]) -> str:
    pairs = ((name, document) for name, each in questions.items() for document in sorted(each.positives))
    return "query-id\tcorpus-id\tscore\n" + "".join(f"{name}\t{document}\t1\n" for name, document in pairs)


def words(text: str) -> str:
    """What makes two facts one.

    >>> words("The Sun's light -- a (star)")
    'the sun s light a star'
    """
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def read_facts(file: Path) -> Facts:
    """The documents, in the order of the file.

    Raises:
        DataError: If it is no object of texts.
    """
    facts = Facts()
    try:
        content = read_json(file)
    except RecordError as error:
        raise DataError(file, 0, error.problem) from error
    for uuid, text in content.items():
        if not isinstance(text, str):
            raise DataError(file, 0, f"the fact {shown(uuid)} must be a text")
        if text == _LEFT_OUT:
            continue
        name = facts.by_words.setdefault(words(text), f"f{len(facts.texts)}")
        facts.texts.setdefault(name, text)
        facts.by_uuid[uuid] = name
    return facts


def _provenance(file: Path) -> dict[str, list[str]]:
    """Ids of facts by question, as the annotations name them."""
    found = {}
    for line, text in numbered_lines(file):
        row = parse_object(text, file, line)
        try:
            named = row["meta"]["worldtree_provenance"].values()
            found[row["id"]] = [each["uuid"] for each in named]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(file, line, "must have an id and meta.worldtree_provenance") from error
    return found


_INPUT = re.compile(
    r"\$proof\$ ; \$question\$ = (.*) ; \$answer\$ = (.*) ; \$hypothesis\$ = (.*) ; \$context\$ = (.*)",
    re.DOTALL,
)


def _questions(file: Path, facts: Facts, provenance: Mapping[str, list[str]]) -> dict[str, Question]:
    """The questions of a split that have a positive, by id."""
    found: dict[str, Question] = {}
    for line, text in numbered_lines(file):
        row = parse_object(text, file, line)
        name, proof = row.get("id"), row.get("output")
        parts = _INPUT.fullmatch(str(row.get("input")))
        if parts is None or not isinstance(name, str) or not isinstance(proof, str):
            raise DataError(
                file, line, "must have id, output, and question, answer, hypothesis, context in input"
            )
        question, answer, hypothesis, context = parts.groups()
        premises = (premise.strip() for premise in re.split(r"sent\d+: ", context)[1:])
        positives = {facts.by_words.get(words(premise)) for premise in premises}
        positives |= {facts.by_uuid.get(uuid) for uuid in provenance.get(name, ())}
        steps = tuple(step.strip() for step in re.findall(r"int\d+: ([^;]*)", proof))
        if positives := frozenset(positives - {None}):
            found[name] = Question(question, answer, hypothesis, steps, positives)
    return found
