"""Hard negatives from any search: high in the ranking, and not relevant as far as is known.

Unjudged relevant documents rank high, so a top-ranked document is often a false negative. They are masked by
id, by text, and by a rule on rank or on score, and all that is masked is counted. The relative margin is that
of NV-Retriever (arXiv:2407.15831, "TopK-PercPos": at most 95 % of the positive's score).
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from search_r3.data.types import Corpus, Example
from search_r3.progress import Progress
from search_r3.records import shown

Search = Callable[[list[str], int], tuple[ArrayLike, ArrayLike]]


class Rule(Protocol):
    """Which ranks and scores a hard negative may have."""

    def allows(self, ranks: np.ndarray, scores: np.ndarray, positive_score: float | None) -> np.ndarray:
        """`[K]` bool from `[K]` ranks (from 1), `[K]` scores and the positive's score, None where unknown."""
        ...


@dataclass(frozen=True)
class RankRule:
    """Ranks `first` to `last`, both included, counted from 1 over all that was retrieved.

    Attributes:
        first: what ranks above it is taken for a possible false negative.
        last: what ranks below it is taken for easy.
    """

    first: int = 1
    last: int = 100

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise ValueError(f"ranks must hold 1 <= first <= last, got {self.first} and {self.last}")

    def allows(self, ranks: np.ndarray, scores: np.ndarray, positive_score: float | None) -> np.ndarray:
        return (ranks >= self.first) & (ranks <= self.last)


@dataclass(frozen=True)
class MarginRule:
    """Scores at most `share * positive_score - margin`.

    Where the positive's score is unknown nothing is allowed: a positive that was not retrieved scores below
    all that was.

    Attributes:
        margin: absolute distance; suits cosines.
        share: of the positive's score; suits scores without a fixed scale, such as BM25.
    """

    margin: float = 0.0
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.margin < 0 or not 0 < self.share <= 1:
            raise ValueError(f"margin must be >= 0 and share in (0, 1], got {self.margin} and {self.share}")

    def allows(self, ranks: np.ndarray, scores: np.ndarray, positive_score: float | None) -> np.ndarray:
        if positive_score is None:
            return np.zeros(len(scores), bool)
        # a negative positive score is moved away from zero by its share, so that the limit is below it
        scaled = positive_score * self.share if positive_score >= 0 else positive_score / self.share
        return scores <= scaled - self.margin


@dataclass(frozen=True)
class Selection:
    """Result for one query.

    Attributes:
        positions: `[n]` places in the retrieved list, best first.
        masked_by_id: how many known relevant documents were passed over.
        masked_by_rule: how many others the rule excluded that rank above the last one selected.
    """

    positions: tuple[int, ...]
    masked_by_id: int
    masked_by_rule: int


@dataclass(frozen=True)
class MiningReport:
    """What mining did, over all queries.

    Attributes:
        n_queries: examples that were searched.
        n_short: of them, how many got fewer negatives than asked for.
        n_mined: negatives added.
        excluded: retrieved documents that the query is not ranked against (`Example.excluded_ids`).
        masked_by_id: retrieved documents that are known to be relevant, without the row's own positive.
        masked_by_text: retrieved documents whose text equals that of a relevant document.
        masked_by_rule: retrieved documents that the rule excluded and that rank above the last one taken.
        positive_not_retrieved: examples whose positive is not among the retrieved documents.
    """

    n_queries: int
    n_short: int
    n_mined: int
    excluded: int
    masked_by_id: int
    masked_by_text: int
    masked_by_rule: int
    positive_not_retrieved: int


def select_hard_negatives(
    scores: ArrayLike,
    ids: Sequence[str],
    positive_score: float | None,
    relevant_ids: Collection[str],
    rule: Rule,
    n_negatives: int = 4,
) -> Selection:
    """The best-ranked documents that are not known to be relevant and that the rule allows.

    Args:
        scores: `[K]`, best first.
        ids: `[K]` document ids in the same order.
        positive_score: of the query's positive; None where it is unknown.
        relevant_ids: never selected.
        rule: on ranks and scores.
        n_negatives: how many, at most.

    Raises:
        ValueError: If a score is not finite, scores are not in descending order, or lengths differ.

    Example:
        >>> select_hard_negatives([9.0, 8.0, 7.0], ["a", "b", "c"], 9.0, {"a"}, MarginRule(share=0.8))
        Selection(positions=(2,), masked_by_id=1, masked_by_rule=1)
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(ids),):
        raise ValueError(f"one score per id: got shape {values.shape} and {len(ids)} ids")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    if (np.diff(values) > 0).any():
        raise ValueError("scores must be in descending order")
    if n_negatives < 1:
        raise ValueError(f"n_negatives must be at least 1, got {n_negatives}")
    is_relevant = np.fromiter((document in relevant_ids for document in ids), bool, len(ids))
    allowed = rule.allows(np.arange(1, len(ids) + 1), values, positive_score)
    positions = np.flatnonzero(~is_relevant & allowed)[:n_negatives]
    passed = positions[-1] if len(positions) == n_negatives else len(ids)
    by_rule = (~is_relevant & ~allowed)[:passed].sum()
    return Selection(tuple(positions.tolist()), int(is_relevant.sum()), int(by_rule))


def mine_hard_negatives(
    examples: Sequence[Example],
    search: Search,
    corpus: Corpus,
    rule: Rule,
    n_negatives: int = 4,
    k: int = 100,
    chunk_size: int = 1024,
    progress: bool = True,
) -> tuple[list[Example], MiningReport]:
    """Adds hard negatives to training rows, behind those that they have.

    Args:
        examples: training rows; their positives are in `corpus`.
        search: `(queries, k) -> (scores [Q, K], rows [Q, K])`, best first, rows of `corpus`; a row below 0
            says that the query has no more results.
        corpus: what is searched.
        rule: which ranks and scores are allowed; ranks are those without a row's `excluded_ids`.
        n_negatives: negatives to add per row, at most.
        k: documents to retrieve per query.
        chunk_size: queries per call of `search`.
        progress: whether a bar shows rate and remaining time.

    Returns:
        (new rows in the order of `examples`, counts).

    Raises:
        ValueError: If a positive is not in the corpus, or `search` returns something else than described.
    """
    mined: list[Example] = []
    counts: Counter[str] = Counter()
    with Progress(len(examples), "hard negatives", "queries", progress) as bar:
        for start in range(0, len(examples), chunk_size):
            chunk = examples[start : start + chunk_size]
            scores, rows = _searched(search, [example.query for example in chunk], min(k, len(corpus)))
            known = _positive_scores(chunk, scores, rows, corpus, counts)
            for number, example in enumerate(chunk):
                is_result = rows[number] >= 0
                found = (scores[number][is_result], rows[number][is_result].tolist())
                mined.append(
                    _with_negatives(example, *found, known[number], corpus, rule, n_negatives, counts)
                )
            bar.update(len(chunk))
    counts["n_queries"] = len(examples)
    report = MiningReport(**{field.name: counts[field.name] for field in fields(MiningReport)})
    return mined, report


def _searched(search: Search, queries: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    scores, rows = search(queries, k)
    scores, rows = np.asarray(scores, dtype=np.float64), np.asarray(rows)
    if scores.shape != rows.shape or scores.ndim != 2 or len(scores) != len(queries):
        raise ValueError(
            f"search must return scores and rows of shape [{len(queries)}, K], "
            f"got {scores.shape} and {rows.shape}"
        )
    return scores, rows


def _positive_scores(
    chunk: Sequence[Example], scores: np.ndarray, rows: np.ndarray, corpus: Corpus, counts: Counter[str]
) -> list[float | None]:
    """Score of each positive; None for those that were not retrieved, which are counted."""
    known: list[float | None] = []
    for number, example in enumerate(chunk):
        if example.positive_id not in corpus.row_of:
            raise ValueError(
                f"example {shown(example.id)}: its positive {shown(example.positive_id)} is not in the corpus"
            )
        places = np.flatnonzero(rows[number] == corpus.row_of[example.positive_id])
        known.append(float(scores[number][places[0]]) if len(places) else None)
        counts["positive_not_retrieved"] += not len(places)
    return known


def _with_negatives(
    example: Example,
    scores: np.ndarray,
    rows: Sequence[int],
    positive_score: float | None,
    corpus: Corpus,
    rule: Rule,
    n_negatives: int,
    counts: Counter[str],
) -> Example:
    places = [place for place, row in enumerate(rows) if corpus.ids[row] not in example.excluded_ids]
    counts["excluded"] += len(rows) - len(places)
    scores, rows = scores[places], [rows[place] for place in places]
    ids = [corpus.ids[row] for row in rows]
    relevant = {*example.relevant_ids, example.positive_id}
    taken = relevant | set(example.hard_negative_ids)
    known = (corpus.row_of.get(document) for document in relevant)
    positives = {example.positive, *example.more_positives}
    positives.update(corpus.texts[row] for row in known if row is not None)
    while True:
        selection = select_hard_negatives(scores, ids, positive_score, taken, rule, n_negatives)
        texts = [corpus.texts[rows[position]] for position in selection.positions]
        copies = {ids[p] for p, text in zip(selection.positions, texts, strict=True) if text in positives}
        if not copies:
            break
        counts["masked_by_text"] += len(copies)
        taken |= copies
    counts["masked_by_id"] += sum(
        document in relevant and document != example.positive_id for document in ids
    )
    counts["masked_by_rule"] += selection.masked_by_rule
    counts["n_mined"] += len(texts)
    counts["n_short"] += len(texts) < n_negatives
    return replace(
        example,
        hard_negatives=example.hard_negatives + tuple(texts),
        hard_negative_ids=example.hard_negative_ids + tuple(ids[p] for p in selection.positions),
    )
