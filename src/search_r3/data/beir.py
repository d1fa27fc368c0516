"""Collections in BEIR layout: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`, each plain or with `.gz`.

A document is its title and its text joined by one space, as in BEIR and mteb. Every row of every file is
checked when a collection is opened; a bad one is a `DataError` with file, line and rule, and nothing is
repaired.
"""

import json
import logging
import os
from array import array
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_r3.data.jsonl import (
    ConcatTexts,
    DataError,
    LazyTexts,
    checked_id,
    decode_line,
    has_letter,
    numbered_lines,
    open_lines,
    parse_object,
    raw_lines,
    text_field,
)
from search_r3.data.reasoning import cold_start_reasoning
from search_r3.data.reasonings import load_reasonings, tell_missing
from search_r3.data.splits import position
from search_r3.data.types import Benchmark, Corpus, Example, TrainingData
from search_r3.progress import Progress
from search_r3.records import shown

# the data sets whose documents may be their own queries, and where mteb ignores equal ids; none of NanoBEIR
SELF_MATCH_REMOVED = frozenset({"arguana", "fiqa", "fiqa2018", "quora", "fever", "msmarco"})

_HEADER = ["query-id", "corpus-id", "score"]
_COLUMNS_RULE = f"a row must have 3 tab-separated columns ({', '.join(_HEADER)}), got {{}}"
_UNMATCHED_HINT = (
    "; allow_unmatched_judgements=true takes such rows as published scores do (an unknown document counts as "
    "not found, an unknown query is left out)"
)

LONGEST_JUDGEMENT = 1 << 16
"""Bytes of a line of judgements, which has two ids of at most `LONGEST_ID` characters and a grade."""

_LOG = logging.getLogger(__name__)


def load_benchmark(
    path: str | Path,
    name: str | None = None,
    split: str = "test",
    remove_self_match: bool | None = None,
    allow_empty_documents: bool = True,
    allow_unmatched_judgements: bool = False,
    in_memory_mib: int = 256,
) -> Benchmark:
    """A test collection from a folder in BEIR layout.

    Args:
        path: the folder.
        name: of the benchmark; None for the folder's name as `path` writes it (`collection_name`).
        split: the file of judgements, `qrels/<split>.tsv`.
        remove_self_match: None for mteb's default by name: true for ArguAna, FiQA, Quora, FEVER and MS MARCO.
        allow_empty_documents: whether a document without title and text is kept. Several public collections
            have such, and their published scores count them; a warning says how many there are.
        allow_unmatched_judgements: whether `split` may judge a document that the corpus lacks, or a query
            that the queries file lacks, as ArguAna and others do as published. Such a document is never found
            and counts among the relevant ones (ideal gain, recall), as it does where trec_eval is given the
            judgements. Such a query cannot be asked and is left out. A warning counts either.
        in_memory_mib: a larger uncompressed corpus file stays on disk and is read by row.

    Returns:
        All documents, and the queries that have a judgement in `split`, whatever its grade. A query or a
        document may be without a letter; a warning counts them.

    Raises:
        DataError: If a file is missing or a row is bad.
    """
    folder = Path(path)
    name = name or collection_name(folder)
    corpus = load_corpus(_file(folder, "corpus.jsonl"), allow_empty_documents, in_memory_mib)
    queries = load_queries(_file(folder, "queries.jsonl"), allow_empty=True)
    file = _qrels_file(folder, split)
    judged = load_qrels(file, queries, corpus, allow_unmatched_judgements)
    if n_without := sum(max(grades.values()) <= 0 for grades in judged.grades.values()):
        _LOG.warning(
            "%s: %d of %d queries have no document of a grade above 0 and count 0",
            file, n_without, len(judged.grades),
        )  # fmt: skip
    return _benchmark(name, corpus, queries, judged, remove_self_match, name)


def load_beir_training(
    path: str | Path,
    name: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    test_split: str | None = "test",
    validation_share: float = 0.1,
    min_grade: int = 1,
    with_reasoning: bool = False,
    remove_self_match: bool | None = None,
    allow_empty_documents: bool = False,
    allow_unmatched_judgements: bool = False,
    in_memory_mib: int = 256,
    reasonings: str | Path | Mapping[str, str] | None = None,
) -> TrainingData:
    """Training rows from the judgements of a folder in BEIR layout: one row per (query, relevant document).

    Args:
        path: the folder.
        name: of the data set; None for the folder's name as `path` writes it (`collection_name`).
        train_split: the judgements that become training rows.
        validation_split: the judgements for in-training evaluation; None for `dev` where the folder has it,
            and else for a share of the training queries, which then are no training rows.
        test_split: the judgements held out for testing, left out where the folder has no such file; None for
            none.
        validation_share: that share of the training queries, chosen by a hash of the query id.
        min_grade: lowest grade of a relevant document; queries whose grades are all positive and below it are
            left out with a warning.
        with_reasoning: whether rows carry `cold_start_reasoning`; where `reasonings` are given, those of the
            queries that have none there.
        remove_self_match: as in `load_benchmark`.
        allow_empty_documents: as in `load_benchmark`, but an error by default: such a row teaches nothing.
        allow_unmatched_judgements: as in `load_benchmark` for the held-out collections. Training leaves out
            the documents that the corpus lacks, and the queries that have no positive without them.
        in_memory_mib: as in `load_benchmark`.
        reasonings: JSONL of `_id` and `text`, what SFT teaches to write for a query; or the texts by query
            id. A line counts the training queries without one.

    Returns:
        Rows, the whole corpus, both held-out collections over the same corpus. `texts` are all documents and
        the training queries.

    Raises:
        DataError: If a file is missing or a row is bad, or all judgements of a training query are of grade 0.
        ValueError: If no training row is left or `validation_share` is not in [0, 1).
    """
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share must be in [0, 1), got {validation_share}")
    folder = Path(path)
    name = name or collection_name(folder)
    validation_split, test_split = _held_out_splits(name, folder, train_split, validation_split, test_split)
    corpus = load_corpus(_file(folder, "corpus.jsonl"), allow_empty_documents, in_memory_mib)
    queries = load_queries(_file(folder, "queries.jsonl"))
    train_file = _qrels_file(folder, train_split)

    def judgements(split: str) -> Qrels:
        return load_qrels(_qrels_file(folder, split), queries, corpus, allow_unmatched_judgements)

    train = judgements(train_split).grades
    if validation_split:
        validation = judgements(validation_split)
    else:
        validation = Qrels({query: train[query] for query in train if position(query) < validation_share})
    test = judgements(test_split) if test_split else Qrels({})
    held_out = validation.grades.keys() | test.grades.keys()
    rows = {query: grades for query, grades in train.items() if query not in held_out}
    n_held_out = len(train) - len(rows)
    rows = _with_known_documents(train_file, rows, corpus, min(min_grade, 1))
    given, facts = _given_reasonings(reasonings, queries, rows, with_reasoning)
    examples = _examples(name, rows, queries, corpus, min_grade, with_reasoning, given)
    if not examples:
        raise ValueError(
            f"{train_file}: no training row is left (min_grade={min_grade}, {len(train)} queries)"
        )
    _refuse_queries_without_positive(train_file, rows, min_grade)
    card = {
        "name": name,
        "documents": len(corpus),
        "examples": len(examples),
        "train_queries": len(rows),
        "train_queries_held_out": n_held_out,
        "validation_queries": len(validation.grades),
        "validation": validation_split or f"{validation_share:g} of {train_split}",
        "test_queries": len(test.grades),
        "licence": "that of the collection",
    } | facts
    if overlap := len(train.keys() & test.grades.keys()):
        _LOG.warning("%s: %d training queries are judged in %s and left out", name, overlap, test_split)
    if not validation.grades:
        _LOG.log(
            logging.WARNING if validation_share else logging.INFO,
            "%s: no validation rows (%g of %d queries in %s); nothing is evaluated while training",
            name, validation_share, len(train), train_split,
        )  # fmt: skip
    return TrainingData(
        name=name,
        corpus=corpus,
        examples=examples,
        validation=_benchmark(f"{name}-validation", corpus, queries, validation, remove_self_match, name),
        test=_benchmark(f"{name}-test", corpus, queries, test, remove_self_match, name),
        texts=ConcatTexts([corpus.texts, [queries[query] for query in rows]]),
        card=card,
        weights={name: 1.0},
    )


def collection_name(path: str | Path) -> str:
    """What a collection is called: the last part of its path as it is written.

    A symbolic link keeps its own name, whatever it points to. Where the path ends in no name, that of the
    folder is taken: `.` is the working folder, as the shell calls it.

    Raises:
        DataError: If the folder has no name either, as `/`.

    >>> collection_name("beir/arguana/")
    'arguana'
    """
    name = Path(path).name
    if name == "" and not Path(path).is_absolute():
        shell = Path(os.environ.get("PWD", "/"))  # the system knows the working folder by its target only
        name = (shell if shell.is_dir() and os.path.samefile(shell, ".") else Path.cwd()).name
    elif name == "..":
        name = Path(path).resolve().name
    if not name:
        raise DataError(path, 0, "this folder has no name to call the collection by; give name=")
    return name


def removes_self_match(name: str) -> bool:
    """Whether mteb ignores a document whose id equals the query's id on the data set of this name.

    Of a name with slashes the last part counts.
    """
    plain = name.rpartition("/")[2].casefold().replace("-", "").replace("_", "").removesuffix("retrieval")
    return plain in SELF_MATCH_REMOVED


def available_splits(folder: Path) -> list[str]:
    """Names of the files of judgements in a folder."""
    names = (path.name for path in (folder / "qrels").glob("*.tsv*"))
    return sorted({name.split(".tsv")[0] for name in names if name.endswith((".tsv", ".tsv.gz"))})


def document_text(row: Mapping[str, str]) -> str:
    """Title and text of a corpus row, joined by one space, without blanks around them."""
    title, text = row.get("title") or "", row.get("text") or ""
    return f"{title} {text}".strip() if title else text.strip()


def load_corpus(path: str | Path, allow_empty_documents: bool = False, in_memory_mib: int = 256) -> Corpus:
    """Documents of a JSONL file with `_id`, `text` and perhaps `title`.

    Every row is read and checked once. Texts of a file above the limit stay on disk: then 8 bytes a row and
    the ids are all that is held in memory. A compressed file cannot be read by row and is held in memory.

    Raises:
        DataError: If the file is missing or empty, a row is bad, or an id occurs twice.
    """
    path = Path(path)
    ids: list[str] = []
    texts: list[str] = []
    offsets = array("Q")
    seen: set[str] = set()
    plain, empty = _Count(), _Count()
    stays_on_disk = path.is_file() and path.suffix != ".gz" and path.stat().st_size > in_memory_mib << 20
    for line, offset, raw in _lines_with_offsets(path, show_progress=stays_on_disk):
        row = parse_object(decode_line(raw, path, line), path, line)
        del raw
        document_id = _new_id(row, seen, path, line)
        text_field(row, "text", path, line, may_be_empty=True)
        if row.get("title") is not None:
            text_field(row, "title", path, line, may_be_empty=True)
        text = document_text(row)
        del row
        if not text and not allow_empty_documents:
            rule = "title and text must not both be empty (allow_empty_documents=true keeps such documents)"
            raise DataError(path, line, rule)
        (plain if text else empty).add(document_id, not has_letter(text))
        ids.append(document_id)
        if stays_on_disk:
            offsets.append(offset)
        else:
            texts.append(text)
        del text
    if not ids:
        raise DataError(path, 0, "the corpus holds no documents")
    empty.tell(path, len(ids), "documents have neither title nor text")
    plain.tell(path, len(ids), "documents hold no letter")
    return Corpus(ids, LazyTexts(path, offsets, _line_text) if stays_on_disk else texts)


def load_queries(path: str | Path, allow_empty: bool = False) -> dict[str, str]:
    """Text by query id, of a JSONL file with `_id` and `text`.

    Args:
        path: the file.
        allow_empty: whether a query without text is kept, as published scores count it; a warning says so.

    Raises:
        DataError: If the file is missing, a row is bad, or an id occurs twice.
    """
    path = Path(path)
    queries: dict[str, str] = {}
    plain, empty = _Count(), _Count()
    for line, text in numbered_lines(path):
        row = parse_object(text, path, line)
        query_id = _new_id(row, queries, path, line)
        query = text_field(row, "text", path, line, may_be_empty=allow_empty)
        queries[query_id] = query
        (plain if query.strip() else empty).add(query_id, not has_letter(query))
    empty.tell(path, len(queries), "queries are empty")
    plain.tell(path, len(queries), "queries hold no letter")
    return queries


@dataclass(frozen=True)
class Qrels:
    """What a file of judgements says.

    Attributes:
        grades: grade by query id and document id.
        n_unknown_queries: judgements left out, since their query is not in the queries file.
    """

    grades: dict[str, dict[str, int]]
    n_unknown_queries: int = 0


class _Count:
    """How many rows of a file have some property, and the first of them."""

    def __init__(self) -> None:
        self.n, self.first = 0, ""

    def add(self, name: str, has_it: bool = True) -> None:
        if has_it:
            self.n, self.first = self.n + 1, self.first if self.n else name

    def tell(self, path: Path, total: int, what: str, outcome: str = "they are kept") -> None:
        """One line where there is any such row."""
        if self.n:
            _LOG.warning(
                "%s: %d of %d %s (the first: %s); %s",
                path, self.n, total, what, shown(self.first), outcome,
            )  # fmt: skip


def load_qrels(
    path: str | Path, queries: Mapping[str, str], corpus: Corpus, allow_unmatched: bool = False
) -> Qrels:
    """Judgements of a tab-separated file; its header line may be missing.

    Args:
        path: three columns: query id, document id, integer grade.
        queries: the known queries.
        corpus: the known documents.
        allow_unmatched: whether a row may name an unknown query, which is then left out, or an unknown
            document, which is kept. Either is counted in a warning.

    Raises:
        DataError: If the file is missing or empty, a row has not three columns or no integer grade, names an
            unknown query or document, or judges a pair for the second time; and if all rows are of unknown
            queries, or all of unknown documents, so that it belongs to another collection.
    """
    path = Path(path)
    qrels: dict[str, dict[str, int]] = {}
    unasked: dict[str, dict[str, int]] = {}
    n_rows, n_lines = 0, 0
    without_query, without_document = _Count(), _Count()
    for line, text in numbered_lines(path, LONGEST_JUDGEMENT):
        n_lines += 1
        columns = text.split("\t")
        if n_lines == 1 and [column.strip() for column in columns] == _HEADER:
            continue
        if len(columns) != 3:
            trec = "; TREC's format has 4: take the second column out" if len(text.split()) == 4 else ""
            raise DataError(path, line, _COLUMNS_RULE.format(len(columns)) + trec)
        query_id, document_id, grade = columns
        if not grade.strip().removeprefix("-").isdecimal():
            header = f"; a header line reads {', '.join(_HEADER)}" if n_lines == 1 else ""
            raise DataError(path, line, f"the score must be an integer, got {shown(grade)}{header}")
        if len(grade) > 20 or abs(int(grade)) >= 1 << 31:
            raise DataError(path, line, f"the score must lie within 32 bits, got {shown(grade)}")
        is_asked, is_known = query_id in queries, document_id in corpus.row_of
        if not allow_unmatched and not (is_asked and is_known):
            unknown = f"query {shown(query_id)} is not in the queries file"
            if is_asked:
                unknown = f"document {shown(document_id)} is not in the corpus"
            raise DataError(path, line, unknown + _UNMATCHED_HINT)
        grades = (qrels if is_asked else unasked).setdefault(query_id, {})
        if document_id in grades:
            raise DataError(
                path, line, f"query {shown(query_id)} and document {shown(document_id)} are judged twice"
            )
        grades[document_id] = int(grade)
        n_rows += 1
        without_query.add(query_id, not is_asked)
        without_document.add(document_id, is_asked and not is_known)
    if not n_rows:
        raise DataError(path, 0, "the file holds no judgements")
    if not qrels:
        raise DataError(path, 0, f"no judgement is of a query in the queries file ({n_rows} rows)")
    if without_document.n == sum(map(len, qrels.values())):
        first = f"the first is {shown(without_document.first)}, the corpus begins with {shown(corpus.ids[0])}"
        raise DataError(path, 0, f"not one judged document is in the corpus ({first})")
    without_query.tell(path, n_rows, "judgements are of a query without a text", "they are left out")
    without_document.tell(
        path, n_rows, "judgements are of a document that the corpus lacks", "it counts as not found"
    )
    return Qrels(qrels, without_query.n)


def _file(folder: Path, name: str) -> Path:
    """The plain or the compressed file of this name; the plain one where both are missing, for the error."""
    if not folder.is_dir():
        raise DataError(folder, 0, "no such folder; a folder in BEIR layout is needed")
    compressed = folder / f"{name}.gz"
    return compressed if compressed.is_file() and not (folder / name).is_file() else folder / name


def _qrels_file(folder: Path, split: str) -> Path:
    if split not in available_splits(folder):
        found = ", ".join(available_splits(folder)) or "none"
        raise DataError(
            folder / "qrels" / f"{split}.tsv", 0, f"no such split; splits of this folder: {found}"
        )
    return _file(folder / "qrels", f"{split}.tsv")


def _held_out_splits(
    name: str, folder: Path, train: str, validation: str | None, test: str | None
) -> tuple[str | None, str | None]:
    """The validation and test splits: `dev` where none is named, no test split that is missing or trains."""
    splits = available_splits(folder)
    if validation is None and "dev" in splits and train != "dev":
        validation = "dev"
    if test is not None and test not in splits:
        _LOG.warning("%s: no test collection: %s has no qrels/%s.tsv", name, folder, test)
    return validation, test if test in splits and test != train else None


def _lines_with_offsets(path: Path, show_progress: bool):
    """(line number from 1, byte offset, bytes) of each line that is not blank."""
    offset = 0
    total = path.stat().st_size if show_progress else None
    bar = Progress(total, path.name, "B", show_progress, is_scaled=True)
    with open_lines(path) as file, bar:
        for line, raw in raw_lines(file, path):
            size = len(raw)
            text = raw.removeprefix(BOM_UTF8) if line == 1 else raw
            if text and not text.isspace():  # `strip` would copy a long one
                yield line, offset, raw
            del raw, text
            offset += size
            bar.update(size)


def _line_text(raw: bytes) -> str:
    return document_text(json.loads(raw.decode("utf-8-sig")))


def _new_id(row: dict, seen: set[str] | dict[str, str], path: Path, line: int) -> str:
    """The row's id; it is added to `seen` where that is a set."""
    identifier = checked_id(text_field(row, "_id", path, line), "_id", path, line)
    if identifier in seen:
        raise DataError(path, line, f"_id {shown(identifier)} occurs for the second time")
    if any(character in identifier for character in "\t\r\n"):
        raise DataError(path, line, f"_id {shown(identifier)} must not hold tabs or line ends")
    if isinstance(seen, set):
        seen.add(identifier)
    return identifier


def _benchmark(
    name: str,
    corpus: Corpus,
    queries: Mapping[str, str],
    qrels: Qrels,
    remove_self_match: bool | None,
    data_set: str,
) -> Benchmark | None:
    if not qrels.grades:
        return None
    flag = removes_self_match(data_set) if remove_self_match is None else remove_self_match
    asked = {query: queries[query] for query in qrels.grades}
    return Benchmark(name, corpus, asked, qrels.grades, flag, qrels.n_unknown_queries)


def _with_known_documents(
    file: Path, qrels: Mapping[str, Mapping[str, int]], corpus: Corpus, lowest: int
) -> dict[str, dict[str, int]]:
    """Judgements of documents that can be read; without queries whose positives are all missing."""
    kept, left_out = {}, _Count()
    for query, grades in qrels.items():
        known = {document: grade for document, grade in grades.items() if document in corpus.row_of}
        if max(grades.values()) < lowest:
            kept[query] = dict(grades)  # without a positive in any case; that has an error of its own
        elif not any(grade >= lowest for grade in known.values()):
            left_out.add(query)
        else:
            kept[query] = known
    left_out.tell(
        file, len(qrels), "training queries have no positive in the corpus", "they are left out of training"
    )
    return kept


def _refuse_queries_without_positive(
    file: Path, qrels: Mapping[str, Mapping[str, int]], min_grade: int
) -> None:
    """Queries that training would lose; those that `min_grade` alone takes away are only counted."""
    best = {query: max(grades.values()) for query, grades in qrels.items()}
    without = [query for query, grade in best.items() if grade < min(min_grade, 1)]
    if without:
        raise DataError(
            file, 0,
            f"query {shown(without[0])} has judgements and no positive among them, and a query to train on "
            f"needs one ({len(without)} of {len(qrels)} queries have none): take its lines out, or give it a "
            f"document of grade {max(min_grade, 1)} or more",
        )  # fmt: skip
    if n_below := sum(grade < min_grade for grade in best.values()):
        _LOG.warning(
            "%s: %d of %d queries have no document of min_grade=%d and are left out",
            file, n_below, len(qrels), min_grade,
        )  # fmt: skip


def _given_reasonings(
    given: str | Path | Mapping[str, str] | None,
    queries: Mapping[str, str],
    trained: Mapping[str, object],
    with_reasoning: bool,
) -> tuple[Mapping[str, str], dict[str, object]]:
    """Reasonings by query id, and what the data card says of them."""
    if given is None:
        return {}, {}
    is_file = not isinstance(given, Mapping)
    texts = load_reasonings(given, queries) if is_file else given
    outcome = "they get the cold-start reasoning" if with_reasoning else "their reasoning is not trained"
    missing = tell_missing(given if is_file else "reasonings", texts, trained, outcome)
    facts: dict[str, object] = {"train_queries_without_a_given_reasoning": missing}
    return texts, facts | ({"reasonings": str(given)} if is_file else {})


def _examples(
    name: str,
    qrels: Mapping[str, Mapping[str, int]],
    queries: Mapping[str, str],
    corpus: Corpus,
    min_grade: int,
    with_reasoning: bool,
    reasonings: Mapping[str, str],
) -> Sequence[Example]:
    examples = []
    for query_id, grades in qrels.items():
        relevant = frozenset(document for document, grade in grades.items() if grade >= min_grade)
        graded = tuple((i, float(grades[i])) for i in sorted(relevant) if grades[i] != 1)
        for document_id in (document for document in grades if document in relevant):
            query, positive = queries[query_id], corpus.texts[corpus.row_of[document_id]]
            reasoning = reasonings.get(query_id)
            if reasoning is None and with_reasoning:
                reasoning = cold_start_reasoning(query, positive)
            examples.append(
                Example(
                    id=f"{query_id}\t{document_id}",
                    query=query,
                    positive=positive,
                    positive_id=document_id,
                    relevant_ids=relevant,
                    grades=graded,
                    reasoning=reasoning,
                    source=name,
                )
            )
    return examples
