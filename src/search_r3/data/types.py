"""Plain records that readers produce and everything else consumes.

A `Corpus` owns the map from document id to row; nothing else in the project keeps one. Its texts may be
any sequence, so that a collection of ten million documents can stay on disk and be read by row.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from search_r3.data.texts import encoded_parts


@dataclass(frozen=True)
class Corpus:
    """Documents in row order.

    Attributes:
        ids: `[N]` document ids, unique.
        texts: `[N]` the text that is embedded and indexed; title and body are already joined.
        title_lengths: `[N]` how many first characters of a text are its title; None where none has one.
    """

    ids: Sequence[str]
    texts: Sequence[str]
    title_lengths: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.texts):
            raise ValueError(f"one text per id: got {len(self.ids)} ids and {len(self.texts)} texts")
        if self.title_lengths is not None and len(self.title_lengths) != len(self.ids):
            raise ValueError(
                f"one title length per id: got {len(self.ids)} ids and {len(self.title_lengths)} lengths"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def title_of(self, row: int) -> str:
        """The title of a document as it stands at the beginning of its text; empty where it has none."""
        return "" if self.title_lengths is None else self.texts[row][: self.title_lengths[row]]

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """Row of each document id."""
        return {document_id: row for row, document_id in enumerate(self.ids)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids and texts in row order; equal corpora have equal fingerprints."""
        digest = hashlib.sha256()
        for document_id, text in zip(self.ids, self.texts, strict=True):
            for part in (document_id, text):
                n_bytes = sum(map(len, encoded_parts(part)))
                digest.update(n_bytes.to_bytes(8, "little"))
                for encoded in encoded_parts(part):
                    digest.update(encoded)
        return digest.hexdigest()


@dataclass(frozen=True)
class Example:
    """One training row.

    Attributes:
        id: unique within its data set.
        query: text of the query.
        positive: text of one relevant document.
        positive_id: its id in the corpus.
        more_positives: texts of further relevant documents that a step pulls to the same query; may be empty.
        more_positive_ids: their corpus ids, aligned with `more_positives`.
        hard_negatives: texts of documents that look relevant and are not; may be empty.
        hard_negative_ids: their corpus ids, aligned with `hard_negatives`.
        relevant_ids: every document known to be relevant, the positive included. A document in this set is
            never used as a negative of this query.
        excluded_ids: documents that evaluation takes out of this query's ranking, such as the query itself
            where queries are documents, and those that are relevant and no positive, as `min_grade` says.
            Neither positives nor negatives; none of them is in `relevant_ids`.
        grades: (document, grade) of relevant documents whose grade is not 1.
        reasoning: what the model should write before the embed token, without that token; None where a row
            has no reasoning.
        source: the data set that the row comes from; a mixture draws one source per batch.
        cluster: rows of one cluster are similar (one package, one topic); batches may be drawn within one.
    """

    id: str
    query: str
    positive: str
    positive_id: str
    more_positives: tuple[str, ...] = ()
    more_positive_ids: tuple[str, ...] = ()
    hard_negatives: tuple[str, ...] = ()
    hard_negative_ids: tuple[str, ...] = ()
    relevant_ids: frozenset[str] = frozenset()
    excluded_ids: frozenset[str] = frozenset()
    grades: tuple[tuple[str, float], ...] = ()
    reasoning: str | None = None
    source: str = ""
    cluster: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A test collection: documents, queries and graded judgements.

    Attributes:
        name: shown in tables and used as a folder name.
        corpus: all documents that are searched.
        queries: text by query id; only judged queries.
        qrels: grade by query id and document id; a grade above 0 is relevant.
        remove_self_match: whether a document whose id equals the query's id is taken out of the ranking.
        judged_queries_missing: judgements that were left out, since their query has no text.
        holds_code: whether the documents are source code, whose identifiers BM25 then splits.
        excluded: by query id, documents that are taken out of its ranking, as BRIGHT has them.
    """

    name: str
    corpus: Corpus
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    remove_self_match: bool = False
    judged_queries_missing: int = 0
    holds_code: bool = False
    excluded: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def with_queries(self, names: Sequence[str]) -> "Benchmark":
        """The same documents with these of the queries, in the order given."""
        return replace(
            self,
            queries={name: self.queries[name] for name in names},
            qrels={name: self.qrels[name] for name in names},
        )

    @property
    def most_removed(self) -> int:
        """How many documents more than are kept a ranking needs, so that removing leaves enough."""
        return 1 + max(map(len, self.excluded.values()), default=0)

    @property
    def judged_documents_missing(self) -> int:
        """Judgements of documents that the corpus lacks: never found, and counted among the relevant."""
        known = self.corpus.row_of
        return sum(document not in known for grades in self.qrels.values() for document in grades)


@dataclass(frozen=True)
class TrainingData:
    """What a `data=` choice yields.

    Attributes:
        name: of the data set.
        corpus: documents of the training split (hard negatives are mined here).
        examples: training rows.
        validation: a small held-out collection for in-training evaluation, or None.
        test: a held-out collection that no decision is taken on, or None.
        texts: running text for pretraining and for training a tokenizer; documents and queries of the
            training split only.
        card: facts for the data card: counts, packages and versions, licence remark, examples.
        weights: sampling weight by source; a single source has weight 1.
    """

    name: str
    corpus: Corpus
    examples: Sequence[Example]
    validation: Benchmark | None = None
    test: Benchmark | None = None
    texts: Sequence[str] = ()
    card: Mapping[str, object] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
