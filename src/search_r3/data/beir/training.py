"""`data=beir`: training rows from the judgements of a folder in BEIR layout."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from search_r3.data.beir.benchmark import benchmark_of, removed_documents
from search_r3.data.beir.counted import Count
from search_r3.data.beir.documents import load_corpus, load_queries
from search_r3.data.beir.layout import (
    available_splits,
    collection_name,
    file_in,
    qrels_file,
    removes_self_match,
)
from search_r3.data.beir.qrels import EXCLUDED, Qrels, load_excluded, load_qrels
from search_r3.data.cold_start import cold_start_reasoning
from search_r3.data.jsonl import ConcatTexts, DataError
from search_r3.data.reasonings import check_some, load_reasonings, tell_missing
from search_r3.data.splits import check_share, position, tell_no_validation
from search_r3.data.types import Benchmark, Corpus, Example, TrainingData
from search_r3.records import shown

_LOG = logging.getLogger(__name__)


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
    holds_code: bool = False,
) -> TrainingData:
    """Training rows from the judgements of a folder in BEIR layout: one row per (query, relevant document).

    Args:
        path: the folder.
        name: of the data set; None for the folder's name as `path` writes it (`collection_name`).
        train_split: the judgements that become training rows.
        validation_split: the judgements for in-training evaluation; None for `dev` where the folder has it,
            and else for a share of the training queries, which then are no training rows.
        test_split: the judgements held out for testing, left out where the folder has no such file; None for
            none. A training query that is held out, by its id or by its text, is no training row.
        validation_share: that share of the training queries, chosen by a hash of the query id; those that
            the test split asks are in no share.
        min_grade: lowest grade of a positive; documents of a grade above 0 and below it are neither positives
            nor negatives, and queries that have no others are left out with a warning.
        with_reasoning: whether rows carry `cold_start_reasoning`; where `reasonings` are given, those of the
            queries that have none there.
        remove_self_match: as in `load_benchmark`. The documents that evaluation takes out of a query's
            ranking, these and those of `excluded.tsv`, are no negatives of its rows (`excluded_ids`).
        allow_empty_documents: as in `load_benchmark`, but an error by default: such a row teaches nothing.
        allow_unmatched_judgements: as in `load_benchmark` for the held-out collections. Training leaves out
            the documents that the corpus lacks, and the queries that have no positive without them.
        in_memory_mib: as in `load_benchmark`.
        reasonings: JSONL of `_id` and `text`, what SFT teaches to write for a query; or the texts by query
            id. A line counts the training queries without one; a file that has none for any is refused.
        holds_code: as in `load_benchmark`, of both held-out collections.

    Returns:
        Rows, the whole corpus, both held-out collections over the same corpus. `texts` are all documents and
        the training queries.

    Raises:
        DataError: If a file is missing or a row is bad, or all judgements of a training query are of grade 0.
        ValueError: If no training row is left or `validation_share` is not in [0, 1).
    """
    check_share(validation_share)
    folder = Path(path)
    name = name or collection_name(folder)
    corpus = load_corpus(file_in(folder, "corpus.jsonl"), allow_empty_documents, in_memory_mib)
    queries = load_queries(file_in(folder, "queries.jsonl"))

    def judgements(split: str) -> Qrels:
        return load_qrels(qrels_file(folder, split), queries, corpus, allow_unmatched_judgements)

    named = _named_splits(name, folder, train_split, validation_split, test_split)
    splits = _read_splits(named, judgements, validation_share, queries)
    train_file = qrels_file(folder, train_split)
    if splits.train and not splits.rows:
        raise ValueError(_all_held_out(train_file, splits))
    rows = _with_known_documents(train_file, splits.rows, corpus, min(min_grade, 1))
    given, facts = _given_reasonings(reasonings, queries, rows, with_reasoning, f"{name}'s training rows")
    is_removed = removes_self_match(name) if remove_self_match is None else remove_self_match
    excluded = load_excluded(file_in(folder, EXCLUDED), queries, splits.judged, corpus)
    collection = _Collection(name, corpus, queries, excluded, is_removed, holds_code)
    examples = _examples(collection, rows, given, min_grade, with_reasoning)
    if not examples:
        raise ValueError(
            f"{train_file}: no training row is left (min_grade={min_grade}, {len(splits.train)} queries)"
        )
    _refuse_queries_without_positive(train_file, rows, min_grade)
    _tell_held_out(name, splits, validation_share)
    counts = {"name": name, "documents": len(corpus), "examples": len(examples), "train_queries": len(rows)}
    return TrainingData(
        name=name,
        corpus=corpus,
        examples=examples,
        validation=collection.held_out("validation", splits.validation),
        test=collection.held_out("test", splits.test),
        texts=ConcatTexts([corpus.texts, [queries[query] for query in rows]]),
        card=counts | _split_card(splits, validation_share) | facts,
        weights={name: 1.0},
    )


@dataclass(frozen=True)
class _Names:
    """The splits of a folder that are used; None for one that there is not."""

    train: str
    validation: str | None
    test: str | None


@dataclass(frozen=True)
class _Splits:
    """The judgements of each split, and which training queries are held out.

    A training query is held out with a query of the same text too, whatever their ids.

    Attributes:
        names: of the splits.
        train: grades of all training queries.
        validation: judgements.
        test: judgements.
        in_validation: the training queries that `validation` asks.
        in_test: those that `test` asks.
    """

    names: _Names
    train: Mapping[str, Mapping[str, int]]
    validation: Qrels
    test: Qrels
    in_validation: frozenset[str]
    in_test: frozenset[str]

    @cached_property
    def rows(self) -> Mapping[str, Mapping[str, int]]:
        """The grades of the training queries that are not held out."""
        held_out = self.in_validation | self.in_test
        return {query: grades for query, grades in self.train.items() if query not in held_out}

    @property
    def judged(self) -> list[Mapping[str, Mapping[str, int]]]:
        """The grades of all that is trained on or held out."""
        return [self.rows, self.validation.grades, self.test.grades]


@dataclass(frozen=True)
class _Collection:
    """Documents and queries, and the documents that evaluation takes out of a query's ranking.

    Attributes:
        name: of the data set.
        corpus: all documents.
        queries: text by query id, of all splits.
        excluded: documents by query id, those of `excluded.tsv`.
        remove_self_match: whether a document whose id equals the query's id is taken out too.
        holds_code: whether the documents are source code.
    """

    name: str
    corpus: Corpus
    queries: Mapping[str, str]
    excluded: Mapping[str, frozenset[str]]
    remove_self_match: bool
    holds_code: bool

    def removed(self, query: str) -> frozenset[str]:
        """The documents that evaluation takes out of this query's ranking."""
        return removed_documents(query, self.corpus, self.remove_self_match, self.excluded)

    def held_out(self, part: str, judgements: Qrels) -> Benchmark | None:
        """`<name>-<part>`, the judged queries over all documents; None where nothing is judged."""
        return benchmark_of(
            f"{self.name}-{part}",
            self.corpus,
            self.queries,
            judgements,
            self.excluded,
            self.remove_self_match,
            self.holds_code,
        )


def _named_splits(name: str, folder: Path, train: str, validation: str | None, test: str | None) -> _Names:
    """`dev` for validation where none is named, and no test split that is missing or trains."""
    splits = available_splits(folder)
    if validation is None and "dev" in splits and train != "dev":
        validation = "dev"
    if test is not None and test not in splits:
        _LOG.warning("%s: no test collection: %s has no qrels/%s.tsv", name, folder, test)
    return _Names(train, validation, test if test in splits and test != train else None)


def _read_splits(
    names: _Names,
    judgements: Callable[[str], Qrels],
    validation_share: float,
    queries: Mapping[str, str],
) -> _Splits:
    """All judgements; a share of the training queries validates where no split does, none that test asks."""
    train = judgements(names.train).grades

    def asked_by(judged: Qrels) -> frozenset[str]:
        texts = {queries[query].strip() for query in judged.grades}
        return frozenset(query for query in train if queries[query].strip() in texts)

    test = judgements(names.test) if names.test else Qrels({})
    in_test = asked_by(test)
    if names.validation:
        validation = judgements(names.validation)
    else:
        share = (query for query in train if query not in in_test and position(query) < validation_share)
        validation = Qrels({query: train[query] for query in share})
    return _Splits(names, train, validation, test, asked_by(validation), in_test)


def _split_card(splits: _Splits, validation_share: float) -> dict[str, object]:
    """What the data card says of the splits."""
    return {
        "train_queries_held_out": len(splits.train) - len(splits.rows),
        "validation_queries": len(splits.validation.grades),
        "validation": splits.names.validation or f"{validation_share:g} of {splits.names.train}",
        "test_queries": len(splits.test.grades),
        "licence": "that of the collection",
    }


def _tell_held_out(name: str, splits: _Splits, share: float) -> None:
    """Warns of training queries that the test split judges, and where no query is left to validate with."""
    if overlap := len(splits.in_test):
        _LOG.warning(
            "%s: %d training queries are judged in %s and left out", name, overlap, splits.names.test
        )
    if not splits.validation.grades:
        tell_no_validation(_LOG, name, share, f"{len(splits.train)} queries in {splits.names.train}")


def _with_known_documents(
    file: Path, qrels: Mapping[str, Mapping[str, int]], corpus: Corpus, lowest: int
) -> dict[str, dict[str, int]]:
    """Judgements of documents that can be read; without queries whose positives are all missing."""
    kept, left_out = {}, Count()
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
    name: str,
) -> tuple[Mapping[str, str], dict[str, object]]:
    """Reasonings by query id, and what the data card says of them; `name` is of what is trained on."""
    if given is None:
        return {}, {}
    is_file = not isinstance(given, Mapping)
    texts = load_reasonings(given, queries) if is_file else given
    if is_file:
        check_some(given, texts, trained, name)
    outcome = "they get the cold-start reasoning" if with_reasoning else "their reasoning is not trained"
    missing = tell_missing(given if is_file else "reasonings", texts, trained, outcome)
    facts: dict[str, object] = {"train_queries_without_a_given_reasoning": missing}
    return texts, facts | ({"reasonings": str(given)} if is_file else {})


def _examples(
    collection: _Collection,
    qrels: Mapping[str, Mapping[str, int]],
    reasonings: Mapping[str, str],
    min_grade: int,
    with_reasoning: bool,
) -> list[Example]:
    """A row per query and relevant document."""
    corpus, examples = collection.corpus, []
    for query_id, grades in qrels.items():
        relevant = frozenset(document for document, grade in grades.items() if grade >= min_grade)
        partly = {document for document, grade in grades.items() if 0 < grade < min_grade}
        removed = (collection.removed(query_id) | partly) - relevant
        graded = tuple((i, float(grades[i])) for i in sorted(relevant) if grades[i] != 1)
        for document_id in (document for document in grades if document in relevant):
            query, positive = collection.queries[query_id], corpus.texts[corpus.row_of[document_id]]
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
                    excluded_ids=removed,
                    grades=graded,
                    reasoning=reasoning,
                    source=collection.name,
                )
            )
    return examples


def _all_held_out(file: Path, splits: _Splits) -> str:
    """Why no training query is left where every one of them is held out, and what to set."""
    train, names = splits.train, splits.names
    in_test, in_validation = len(splits.in_test), len(splits.in_validation - splits.in_test)
    parts = [f"{in_test} are judged in {names.test} too"] if in_test else []
    parts += [f"{in_validation} are held out for validation"] if in_validation else []
    remedy = ["name another data.train_split or data.test_split"] if in_test else []
    if in_validation:
        remedy.append(
            "name another data.validation_split" if names.validation else "lower data.validation_share"
        )
    return (
        f"{file}: no training query is left: of {len(train)}, {' and '.join(parts)}, and what is tested on "
        f"is not trained on; {', or '.join(remedy)}"
    )
