"""Training rows from JSON lines or from a Hugging Face data set: query, positive, hard negatives, reasoning.

The documents of the rows are the corpus, unless a corpus file is given; a document is then found in it by its
text. Equal texts are one document.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from search_r3.data.beir.benchmark import load_benchmark
from search_r3.data.beir.documents import load_corpus
from search_r3.data.cold_start import cold_start_reasoning
from search_r3.data.jsonl import (
    ConcatTexts,
    DataError,
    checked_id,
    checked_text,
    has_letter,
)
from search_r3.data.queries import asked_texts, unasked
from search_r3.data.reasonings import checked_reasoning
from search_r3.data.row_sources import raw_rows
from search_r3.data.splits import check_share, position, tell_no_validation
from search_r3.data.texts import encoded_parts
from search_r3.data.types import Benchmark, Corpus, Example, TrainingData
from search_r3.records import shown, shown_names

COLUMNS: Mapping[str, str | None] = {
    "query": "query",
    "positive": "positive",
    "hard_negatives": "hard_negatives",
    "reasoning": None,
    "id": None,
}

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Row:
    """One checked row with the place that it came from."""

    file: str
    line: int
    id: str
    query: str
    positives: tuple[str, ...]
    hard_negatives: tuple[str, ...]
    reasoning: str | None


def load_triples(
    files: str | Sequence[str] | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    dataset_split: str = "train",
    columns: Mapping[str, str | Sequence[str] | None] | None = None,
    corpus: str | Path | None = None,
    test: str | Path | None = None,
    allow_empty_documents: bool = False,
    allow_unmatched_judgements: bool = False,
    name: str = "triples",
    validation_share: float = 0.05,
    with_reasoning: bool = False,
    in_memory_mib: int = 256,
) -> TrainingData:
    """Training data from rows that hold texts.

    A row has a query (string), one positive or a list of them, and hard negatives (a list of strings, or one
    string; an empty list or null where a row has none). `columns` says under which key each stands. There,
    `hard_negatives: null` is for data without that key, and a list of keys for data with one key per
    negative. `reasoning` and `id` are read where a key is given for them. A row with several positives
    becomes several examples.

    Args:
        files: JSONL files, plain or gzip; one path or several. Either these or `dataset`.
        dataset: name on the hub, or a local folder written by `save_to_disk` or readable by `load_dataset`.
        dataset_config: configuration of that data set.
        dataset_split: split of that data set.
        columns: key by `query`, `positive`, `hard_negatives`, `reasoning`, `id`; what is not named has its
            default: its own name for the first three, and none for `reasoning` and `id`.
        corpus: JSONL with `_id`, `text` and perhaps `title`; all documents of the rows must be in it. None
            for the documents of the rows.
        test: folder in BEIR layout whose test split is held out. A row whose query it asks, with blanks
            around it or not, is left out of training and validation; a warning counts such queries.
        allow_empty_documents: whether a document of `corpus` without title and text is kept, as published
            corpora have some.
        allow_unmatched_judgements: of that folder, as in `load_benchmark`.
        name: of the data set.
        validation_share: share of the queries held out for in-training evaluation, by a hash of their text.
        with_reasoning: whether rows without reasoning get `cold_start_reasoning`.
        in_memory_mib: a larger corpus file stays on disk.

    Returns:
        Examples whose `relevant_ids` are all positives of equal queries. A hard negative that another row
        calls a positive of the same query is left out and counted in the card.

    Raises:
        DataError: If a row is bad: file, line and rule.
        ValueError: If not exactly one of `files` and `dataset` is given, `columns` names an unknown field, or
            nothing is left to train on.
    """
    fields = _checked_columns(columns)
    raw = raw_rows(files, dataset, dataset_config, dataset_split)
    check_share(validation_share)
    rows = _checked_rows(raw, fields, name)
    known = load_corpus(corpus, allow_empty_documents, in_memory_mib) if corpus else None
    documents = _Documents(known, corpus)
    examples, n_dropped = _examples(rows, documents, name, with_reasoning)
    tested = _test_collection(test, allow_unmatched_judgements, in_memory_mib)
    examples = _without_tested(examples, tested, name)
    whole = documents.corpus()
    training, held_out = _parted(examples, validation_share)
    if not training:
        raise ValueError(
            f"{name}: no training row is left ({len(rows)} rows, validation_share={validation_share})"
        )
    card = {
        "name": name,
        "rows": len(rows),
        "examples": len(training),
        "validation_examples": len(examples) - len(training),
        "documents": len(whole),
        "hard_negatives_that_another_row_calls_positive": n_dropped,
        "licence": "that of the data given",
    }
    if n_dropped:
        _LOG.warning("%s: %d hard negatives left out: another row calls them positive", name, n_dropped)
    if not held_out:
        tell_no_validation(_LOG, name, validation_share, f"{len(rows)} rows")
    _tell_letterless(name, rows)
    _tell_without_reasoning(name, rows, fields["reasoning"], with_reasoning)
    training_queries = list(dict.fromkeys(example.query for example in training))
    return TrainingData(
        name=name,
        corpus=whole,
        examples=training,
        validation=_validation(f"{name}-validation", held_out, whole),
        test=tested,
        texts=ConcatTexts([whole.texts, training_queries]),
        card=card,
        weights={name: 1.0},
    )


def _test_collection(
    folder: str | Path | None, allow_unmatched: bool, in_memory_mib: int
) -> Benchmark | None:
    if folder is None:
        return None
    return load_benchmark(folder, allow_unmatched_judgements=allow_unmatched, in_memory_mib=in_memory_mib)


def _without_tested(examples: Sequence[Example], test: Benchmark | None, name: str) -> list[Example]:
    """The examples whose query is not asked by the held-out collection."""
    kept, n_left_out = unasked(examples, asked_texts(test))
    if n_left_out:
        _LOG.warning("%s: %d training queries are judged in %s and left out", name, n_left_out, test.name)
    return kept


def _tell_letterless(name: str, rows: Sequence[_Row]) -> None:
    """One line where queries or documents of the rows hold no letter; they are kept."""
    for what, texts_of in (("queries", lambda row: (row.query,)), ("documents", _documents_of)):
        places = [(row.file, row.line) for row in rows for text in texts_of(row) if not has_letter(text)]
        if places:
            _LOG.warning(
                "%s: %d %s hold no letter (the first: %s, line %d); they are kept",
                name, len(places), what, *places[0],
            )  # fmt: skip


def _tell_without_reasoning(name: str, rows: Sequence[_Row], key: str | None, with_reasoning: bool) -> None:
    """One line where rows have no reasoning under the key that was named for it."""
    places = [(row.file, row.line) for row in rows if row.reasoning is None] if key else []
    if places:
        outcome = "they get the cold-start reasoning" if with_reasoning else "their reasoning is not trained"
        _LOG.warning(
            "%s: %d of %d rows have no reasoning under %r (the first: %s, line %d); %s",
            name, len(places), len(rows), key, *places[0], outcome,
        )  # fmt: skip


def _documents_of(row: _Row) -> tuple[str, ...]:
    return (*row.positives, *row.hard_negatives)


def _checked_columns(columns: Mapping | None) -> dict[str, str | Sequence[str] | None]:
    given = dict(columns or {})
    if unknown := sorted(given.keys() - COLUMNS.keys()):
        raise ValueError(f"columns: unknown field {', '.join(unknown)}; known are {', '.join(COLUMNS)}")
    for field in ("query", "positive"):
        if field in given and not isinstance(given[field], str):
            raise ValueError(f"columns.{field} must name one key, got {given[field]!r}")
    return {**COLUMNS, **given}


def _checked_rows(raw: Iterator[tuple[str, int, dict]], columns: Mapping, name: str) -> list[_Row]:
    rows: list[_Row] = []
    seen: set[str] = set()
    reasoning, is_named = columns["reasoning"], False
    for file, line, row in raw:
        is_named = is_named or reasoning in row
        checked = _checked_row(file, line, row, columns, f"{name}:{len(rows)}")
        if checked.id in seen:
            raise DataError(file, line, f"id {shown(checked.id)} occurs for the second time")
        seen.add(checked.id)
        rows.append(checked)
    if reasoning and rows and not is_named:
        raise DataError(
            file, 0, f"columns.reasoning={reasoning}: no row has this key; the last has {shown_names(row)}"
        )
    return rows


def _checked_row(file: str, line: int, row: dict, columns: Mapping, default_id: str) -> _Row:
    query = checked_text(_value(row, columns["query"], file, line), repr(columns["query"]), file, line)
    positives = _texts(_value(row, columns["positive"], file, line), columns["positive"], file, line)
    negatives = _negatives(row, columns["hard_negatives"], file, line)
    if both := set(positives) & set(negatives):
        raise DataError(file, line, f"a hard negative must not be a positive of its row: {shown(min(both))}")
    reasoning, row_id = None, default_id
    if key := columns["reasoning"]:
        reasoning = row.get(key)
        reasoning = None if reasoning is None else checked_reasoning(reasoning, repr(key), file, line)
    if key := columns["id"]:
        value = _value(row, key, file, line)
        if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 64:
            value = str(value)
        row_id = checked_id(checked_text(value, repr(key), file, line), repr(key), file, line)
        if "\t" in row_id:  # which parts an id from the number of a positive
            raise DataError(file, line, f"{key!r} must not hold tabs, got {shown(row_id)}")
    return _Row(file, line, row_id, query, positives, negatives, reasoning)


def _negatives(row: dict, key: str | Sequence[str] | None, file: str, line: int) -> tuple[str, ...]:
    """Without repeats; an empty list, and null under any of the keys, say that there is none."""
    if key is None:
        return ()
    if isinstance(key, str):
        value = _value(row, key, file, line)
        return () if value is None or value == [] else _texts(value, key, file, line)
    values = {one: _value(row, one, file, line) for one in key}
    texts = [checked_text(text, repr(one), file, line) for one, text in values.items() if text is not None]
    return tuple(dict.fromkeys(texts))


def _value(row: dict, key: str, file: str, line: int) -> object:
    if key not in row:
        hint = "; columns.hard_negatives=null reads rows without them" if "negative" in key else ""
        raise DataError(file, line, f"key {key!r} is missing; the row has {shown_names(row)}{hint}")
    return row[key]


def _texts(value: object, key: str, file: str, line: int) -> tuple[str, ...]:
    """One string or a list of strings, without repeats."""
    if isinstance(value, str):
        return (checked_text(value, repr(key), file, line),)
    if not isinstance(value, list):
        raise DataError(
            file, line, f"{key!r} must be a string or a list of strings, got {type(value).__name__}"
        )
    if not value:
        raise DataError(file, line, f"the list {key!r} must not be empty")
    texts = [checked_text(text, f"{key}[{i}]", file, line) for i, text in enumerate(value)]
    return tuple(dict.fromkeys(texts))


def _digest(text: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in encoded_parts(text):
        digest.update(part)
    return digest.digest()


class _Documents:
    """Ids of documents by their text: those of a given corpus, or new ones in the order of the rows."""

    def __init__(self, given: Corpus | None, file: str | Path | None) -> None:
        self.given, self.file = given, file
        self.ids: dict[bytes, str] = {}
        self.texts: list[str] = []
        if given is not None:
            for document_id, text in zip(given.ids, given.texts, strict=True):
                self.ids.setdefault(_digest(text), document_id)

    def id_of(self, text: str, row: _Row) -> str:
        digest = _digest(text.strip() if self.given is not None else text)
        if digest not in self.ids:
            if self.given is not None:
                how = "; its title and text, joined by one blank" if self.given.title_lengths else ""
                raise DataError(row.file, row.line, f"document not in {self.file}: {shown(text)}{how}")
            self.ids[digest] = digest.hex()
            self.texts.append(text)
        return self.ids[digest]

    def corpus(self) -> Corpus:
        return self.given if self.given is not None else Corpus(list(self.ids.values()), self.texts)


def _examples(
    rows: Sequence[_Row], documents: _Documents, name: str, with_reasoning: bool
) -> tuple[list[Example], int]:
    """(examples, how many hard negatives were left out because another row calls them positive)."""
    relevant: dict[str, set[str]] = {}
    for row in rows:
        ids = relevant.setdefault(row.query, set())
        ids.update(documents.id_of(text, row) for text in row.positives)
    frozen = {query: frozenset(ids) for query, ids in relevant.items()}
    examples, n_dropped = [], 0
    for row in rows:
        negatives = {documents.id_of(text, row): text for text in row.hard_negatives}
        kept = {key: text for key, text in negatives.items() if key not in frozen[row.query]}
        n_dropped += len(negatives) - len(kept)
        example = Example(
            id=row.id,
            query=row.query,
            positive="",
            positive_id="",
            hard_negatives=tuple(kept.values()),
            hard_negative_ids=tuple(kept),
            relevant_ids=frozen[row.query],
            reasoning=row.reasoning,
            source=name,
        )
        for number, positive in enumerate(row.positives):
            reasoning = row.reasoning
            if reasoning is None and with_reasoning:
                reasoning = cold_start_reasoning(row.query, positive)
            row_id = row.id if len(row.positives) == 1 else f"{row.id}\t{number}"
            positive_id = documents.id_of(positive, row)
            examples.append(
                replace(example, id=row_id, positive=positive, positive_id=positive_id, reasoning=reasoning)
            )
    return examples, n_dropped


def _parted(examples: Sequence[Example], validation_share: float) -> tuple[list[Example], list[Example]]:
    """(rows to train on, held-out rows), by a hash of the query's text without blanks around it."""
    training, held_out = [], []
    for example in examples:
        (held_out if position(example.query.strip()) < validation_share else training).append(example)
    return training, held_out


def _validation(name: str, examples: Sequence[Example], corpus: Corpus) -> Benchmark | None:
    """One query per distinct text, over the whole corpus; query ids start with `q:`."""
    if not examples:
        return None
    ids: dict[str, str] = {}
    for example in examples:
        ids.setdefault(example.query, f"q:{example.id}")
    qrels = {ids[example.query]: dict.fromkeys(sorted(example.relevant_ids), 1) for example in examples}
    return Benchmark(name, corpus, {query_id: query for query, query_id in ids.items()}, qrels)
