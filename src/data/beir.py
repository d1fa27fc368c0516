"""Collections in BEIR layout: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`, each plain or with `.gz`.

A document is its title and its text joined by one space, as in BEIR and mteb. Every row of every file is
checked when a collection is opened; a bad one is a `DataError` with file, line and rule, and nothing is
repaired.
"""

import json
import logging
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.data.jsonl import (
    DAMAGED_GZIP,
    ConcatTexts,
    DataError,
    LazyTexts,
    decode_line,
    numbered_lines,
    open_lines,
    parse_object,
    text_field,
)
from src.data.reasoning import cold_start_reasoning
from src.data.splits import position
from src.data.types import Benchmark, Corpus, Example, TrainingData
from src.progress import Progress

# the data sets whose documents may be their own queries, and where mteb ignores equal ids; none of NanoBEIR
SELF_MATCH_REMOVED = frozenset({"arguana", "fiqa", "fiqa2018", "quora", "fever", "msmarco"})

_LOG = logging.getLogger(__name__)


def load_benchmark(
    path: str | Path,
    name: str | None = None,
    split: str = "test",
    remove_self_match: bool | None = None,
    allow_empty_documents: bool = True,
    in_memory_mib: int = 256,
) -> Benchmark:
    """A test collection from a folder in BEIR layout.

    Args:
        path: the folder.
        name: of the benchmark; None for the folder's name.
        split: the file of judgements, `qrels/<split>.tsv`.
        remove_self_match: None for mteb's default by name: true for ArguAna, FiQA, Quora, FEVER and MS MARCO.
        allow_empty_documents: whether a document without title and text is kept. Several public collections
            have such, and their published scores count them; a warning says how many there are.
        in_memory_mib: a larger uncompressed corpus file stays on disk and is read by row.

    Returns:
        All documents, and the queries that have a judgement in `split`, whatever its grade.

    Raises:
        DataError: If a file is missing or a row is bad.
    """
    folder = Path(path)
    name = name or folder.resolve().name
    corpus = load_corpus(_file(folder, "corpus.jsonl"), allow_empty_documents, in_memory_mib)
    queries = load_queries(_file(folder, "queries.jsonl"))
    qrels = load_qrels(_qrels_file(folder, split), queries, corpus)
    return _benchmark(name, corpus, queries, qrels, remove_self_match, name)


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
    in_memory_mib: int = 256,
) -> TrainingData:
    """Training rows from the judgements of a folder in BEIR layout: one row per (query, relevant document).

    Args:
        path: the folder.
        name: of the data set; None for the folder's name.
        train_split: the judgements that become training rows.
        validation_split: the judgements for in-training evaluation; None for `dev` where the folder has it,
            and else for a share of the training queries, which then are no training rows.
        test_split: the judgements held out for testing, left out where the folder has no such file; None for
            none.
        validation_share: that share of the training queries, chosen by a hash of the query id.
        min_grade: lowest grade of a relevant document; queries whose grades are all positive and below it are
            left out with a warning.
        with_reasoning: whether rows carry `cold_start_reasoning`.
        remove_self_match: as in `load_benchmark`.
        allow_empty_documents: as in `load_benchmark`, but an error by default: such a row teaches nothing.
        in_memory_mib: as in `load_benchmark`.

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
    name = name or folder.resolve().name
    validation_split, test_split = _held_out_splits(folder, train_split, validation_split, test_split)
    corpus = load_corpus(_file(folder, "corpus.jsonl"), allow_empty_documents, in_memory_mib)
    queries = load_queries(_file(folder, "queries.jsonl"))
    train_file = _qrels_file(folder, train_split)
    train = load_qrels(train_file, queries, corpus)
    if validation_split:
        validation = load_qrels(_qrels_file(folder, validation_split), queries, corpus)
    else:
        validation = {query: train[query] for query in train if position(query) < validation_share}
    test = load_qrels(_qrels_file(folder, test_split), queries, corpus) if test_split else {}
    held_out = validation.keys() | test.keys()
    rows = {query: grades for query, grades in train.items() if query not in held_out}
    examples = _examples(name, rows, queries, corpus, min_grade, with_reasoning)
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
        "train_queries_held_out": len(train) - len(rows),
        "validation_queries": len(validation),
        "validation": validation_split or f"{validation_share:g} of {train_split}",
        "test_queries": len(test),
        "licence": "that of the collection",
    }
    if overlap := len(train.keys() & test.keys()):
        _LOG.warning("%s: %d training queries are judged in %s and left out", name, overlap, test_split)
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


def removes_self_match(name: str) -> bool:
    """Whether mteb ignores a document whose id equals the query's id on the data set of this name."""
    plain = name.casefold().replace("-", "").replace("_", "").removesuffix("retrieval")
    return plain in SELF_MATCH_REMOVED


def available_splits(folder: Path) -> list[str]:
    """Names of the files of judgements in a folder."""
    names = (path.name for path in (folder / "qrels").glob("*.tsv*"))
    return sorted({name.split(".tsv")[0] for name in names if name.endswith((".tsv", ".tsv.gz"))})


def document_text(row: Mapping[str, str]) -> str:
    """Title and text of a corpus row, joined by one space, without blanks around them."""
    return f"{row.get('title') or ''} {row.get('text') or ''}".strip()


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
    n_empty = 0
    stays_on_disk = path.is_file() and path.suffix != ".gz" and path.stat().st_size > in_memory_mib << 20
    for line, offset, raw in _lines_with_offsets(path, show_progress=stays_on_disk):
        row = parse_object(decode_line(raw, path, line), path, line)
        document_id = _new_id(row, seen, path, line)
        text_field(row, "text", path, line, may_be_empty=True)
        if row.get("title") is not None:
            text_field(row, "title", path, line, may_be_empty=True)
        text = document_text(row)
        if not text and not allow_empty_documents:
            rule = "title and text must not both be empty (allow_empty_documents=true keeps such documents)"
            raise DataError(path, line, rule)
        n_empty += not text
        ids.append(document_id)
        if stays_on_disk:
            offsets.append(offset)
        else:
            texts.append(text)
    if not ids:
        raise DataError(path, 0, "the corpus holds no documents")
    if n_empty:
        _LOG.warning("%s: %d of %d documents have neither title nor text", path, n_empty, len(ids))
    return Corpus(ids, LazyTexts(path, offsets, _line_text) if stays_on_disk else texts)


def load_queries(path: str | Path) -> dict[str, str]:
    """Text by query id, of a JSONL file with `_id` and `text`.

    Raises:
        DataError: If the file is missing, a row is bad, or an id occurs twice.
    """
    path = Path(path)
    queries: dict[str, str] = {}
    for line, text in numbered_lines(path):
        row = parse_object(text, path, line)
        query_id = _new_id(row, queries, path, line)
        queries[query_id] = text_field(row, "text", path, line)
    return queries


def load_qrels(path: str | Path, queries: Mapping[str, str], corpus: Corpus) -> dict[str, dict[str, int]]:
    """Grade by query id and document id, of a tab-separated file; its header line may be missing.

    Args:
        path: three columns: query id, document id, integer grade.
        queries: the known queries.
        corpus: the known documents.

    Raises:
        DataError: If the file is missing or empty, a row has not three columns or no integer grade, names an
            unknown query or document, or judges a pair for the second time.
    """
    path = Path(path)
    qrels: dict[str, dict[str, int]] = {}
    for line, text in numbered_lines(path):
        columns = text.split("\t")
        if line == 1 and [column.strip() for column in columns] == ["query-id", "corpus-id", "score"]:
            continue
        if len(columns) != 3:
            rule = f"a row must have 3 tab-separated columns (query-id, corpus-id, score), got {len(columns)}"
            raise DataError(path, line, rule)
        query_id, document_id, grade = columns
        if not grade.strip().removeprefix("-").isdecimal():
            raise DataError(path, line, f"the score must be an integer, got {grade!r}")
        if query_id not in queries:
            raise DataError(path, line, f"query {query_id!r} is not in the queries file")
        if document_id not in corpus.row_of:
            raise DataError(path, line, f"document {document_id!r} is not in the corpus")
        grades = qrels.setdefault(query_id, {})
        if document_id in grades:
            raise DataError(path, line, f"query {query_id!r} and document {document_id!r} are judged twice")
        grades[document_id] = int(grade)
    if not qrels:
        raise DataError(path, 0, "the file holds no judgements")
    return qrels


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
    folder: Path, train: str, validation: str | None, test: str | None
) -> tuple[str | None, str | None]:
    """The validation and test splits: `dev` where none is named, no test split that is missing or trains."""
    splits = available_splits(folder)
    if validation is None and "dev" in splits and train != "dev":
        validation = "dev"
    return validation, test if test in splits and test != train else None


def _lines_with_offsets(path: Path, show_progress: bool):
    """(line number from 1, byte offset, bytes) of each line that is not blank."""
    offset, line = 0, 0
    total = path.stat().st_size if show_progress else None
    bar = Progress(total, path.name, "B", show_progress, is_scaled=True)
    with open_lines(path) as file, bar:
        try:
            for line, raw in enumerate(file, start=1):
                if raw.strip():
                    yield line, offset, raw
                offset += len(raw)
                bar.update(len(raw))
        except DAMAGED_GZIP as error:
            raise DataError(path, line + 1, f"the gzip stream is damaged ({error})") from None


def _line_text(raw: bytes) -> str:
    return document_text(json.loads(raw.decode("utf-8-sig")))


def _new_id(row: dict, seen: set[str] | dict[str, str], path: Path, line: int) -> str:
    """The row's id; it is added to `seen` where that is a set."""
    identifier = text_field(row, "_id", path, line)
    if identifier in seen:
        raise DataError(path, line, f"_id {identifier!r} occurs for the second time")
    if any(character in identifier for character in "\t\r\n"):
        raise DataError(path, line, f"_id {identifier!r} must not hold tabs or line ends")
    if isinstance(seen, set):
        seen.add(identifier)
    return identifier


def _benchmark(
    name: str,
    corpus: Corpus,
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    remove_self_match: bool | None,
    data_set: str,
) -> Benchmark | None:
    if not qrels:
        return None
    flag = removes_self_match(data_set) if remove_self_match is None else remove_self_match
    return Benchmark(name, corpus, {query: queries[query] for query in qrels}, qrels, flag)


def _refuse_queries_without_positive(
    file: Path, qrels: Mapping[str, Mapping[str, int]], min_grade: int
) -> None:
    """Queries that training would lose; those that `min_grade` alone takes away are only counted."""
    best = {query: max(grades.values()) for query, grades in qrels.items()}
    without = [query for query, grade in best.items() if grade < min(min_grade, 1)]
    if without:
        raise DataError(
            file, 0,
            f"query {without[0]!r} has judgements and no positive among them, and a query to train on needs "
            f"one ({len(without)} of {len(qrels)} queries have none): take its lines out, or give it a "
            f"document of grade {max(min_grade, 1)} or more",
        )  # fmt: skip
    if n_below := sum(grade < min_grade for grade in best.values()):
        _LOG.warning(
            "%s: %d of %d queries have no document of min_grade=%d and are left out",
            file, n_below, len(qrels), min_grade,
        )  # fmt: skip


def _examples(
    name: str,
    qrels: Mapping[str, Mapping[str, int]],
    queries: Mapping[str, str],
    corpus: Corpus,
    min_grade: int,
    with_reasoning: bool,
) -> Sequence[Example]:
    examples = []
    for query_id, grades in qrels.items():
        relevant = frozenset(document for document, grade in grades.items() if grade >= min_grade)
        graded = tuple((i, float(grades[i])) for i in sorted(relevant) if grades[i] != 1)
        for document_id in (document for document in grades if document in relevant):
            query, positive = queries[query_id], corpus.texts[corpus.row_of[document_id]]
            examples.append(
                Example(
                    id=f"{query_id}\t{document_id}",
                    query=query,
                    positive=positive,
                    positive_id=document_id,
                    relevant_ids=relevant,
                    grades=graded,
                    reasoning=cold_start_reasoning(query, positive) if with_reasoning else None,
                    source=name,
                )
            )
    return examples
