"""How documents are ranked: what the modes call, and what they are handed."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from search_r3.data.types import Benchmark
from search_r3.evaluation.fusion import margins, mean_directions, reciprocal_ranks
from search_r3.evaluation.greedy_texts import GreedyTexts
from search_r3.evaluation.metrics import LARGEST_CUTOFF, ranked
from search_r3.evaluation.ranking import (
    Encode,
    document_index,
    documents_cut,
    id_order,
    ranking_of,
    without_removed,
)
from search_r3.index.backends.bm25 import LexicalIndex
from search_r3.index.backends.flat import FlatIndex
from search_r3.models.embedder import Reasoned, ReasoningEmbedder
from search_r3.models.interface import CUT_SHARE_TOLD, Embedder

log = logging.getLogger(__name__)
NOTHING_CUT = {"queries_cut": 0, "documents_cut": 0}


@dataclass(frozen=True)
class Settings:
    """What an evaluation depends on, besides benchmark, mode and weights.

    Attributes:
        top_k: documents kept per query; no fewer than the metrics look at.
        analyzer: of BM25.
        k1: of BM25.
        b: of BM25.
        seed: of the bootstrap and of shuffling.
        limit: evaluate the first so many queries only; None for all, as every reported number is.

    Raises:
        ValueError: If a number is out of its range.
    """

    top_k: int
    analyzer: str
    k1: float
    b: float
    seed: int
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.top_k < LARGEST_CUTOFF:
            raise ValueError(
                f"top_k must be at least {LARGEST_CUTOFF}, the metrics' largest cut-off, got {self.top_k}"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 query, or null for all, got {self.limit}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class Ranked:
    """Rankings of all queries and what they cost.

    Attributes:
        run: scores by document id, by query id, of `Task.depth` documents.
        seconds: wall time from the queries' texts to their rankings, all queries together: reasoning,
            embedding and search. Encoding or indexing the documents is not in it; it is done once.
        tokens: emitted for the queries, all together: the written reasoning, and the embed token of each
            query. So a direct query has 1, and one of BM25 has 0. Prompts are not counted.
        missing: queries whose reasoning ended without an embed token; it was appended.
        reasonings: rows of reasoning.jsonl, with the text that was written for the query; None for one that
            nothing was written for.
        facts: what else the row says, by name.
        read: tokens of prompts, queries and texts of others, as often as a model reads them, all queries
            together; not what it wrote itself, nor the embed token. None where a mode does not count.
    """

    run: dict[str, dict[str, float]]
    seconds: float
    tokens: int = 0
    missing: int = 0
    reasonings: tuple[dict, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)
    read: int | None = None


@dataclass(frozen=True)
class Model:
    """A model folder as it was loaded, and what a row calls it.

    Attributes:
        name: of its rows.
        embedder: the model.
        encode: embeds documents where several processes do so together; None where the embedder does.
        n_processes: how many these are.
        embeddings: a folder of `src.encode` that holds the vectors of the documents; None to encode them.
    """

    name: str
    embedder: Embedder
    encode: Encode | None = None
    n_processes: int = 1
    embeddings: str | Path | None = None

    @cached_property
    def greedy_texts(self) -> GreedyTexts:
        """What it writes, of a model that can reason."""
        return GreedyTexts(self.embedder)


@dataclass(frozen=True)
class Task:
    """What a mode ranks, and with what; the documents are indexed when it is made, before any clock starts.

    Attributes:
        benchmark: documents and queries, under ids that TREC's files can hold.
        settings: of the evaluation.
        model: the evaluated one.
        base: the untuned one.
        embeddings: `[N, D]` of the documents, by the model that the mode names in `embeds`; else None.
        given: a text for every query, in their order; empty where a query has none.
    """

    benchmark: Benchmark
    settings: Settings
    model: Model | None = None
    base: Model | None = None
    embeddings: np.ndarray | None = None
    given: Sequence[str] | None = None
    _index: FlatIndex | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.embeddings is not None:
            index = document_index(self.embeddings, self.benchmark.corpus.ids)
            object.__setattr__(self, "_index", index)

    @property
    def queries(self) -> list[str]:
        """Texts of the queries, in their order."""
        return list(self.benchmark.queries.values())

    @property
    def depth(self) -> int:
        """Documents of a ranking: see `depth`."""
        return depth(self.benchmark, self.settings)

    def ranking(self, vectors: np.ndarray) -> dict[str, dict[str, float]]:
        """The best `depth` documents of every query by its embedding `[Q, D]`."""
        names, ids = list(self.benchmark.queries), self.benchmark.corpus.ids
        return ranking_of(vectors, self._index, names, ids, self.depth)


def depth(benchmark: Benchmark, settings: Settings) -> int:
    """Documents of a ranking: `top_k`, and as many as may be taken out of it later."""
    return settings.top_k + benchmark.most_removed


def lexical(benchmark: Benchmark, settings: Settings) -> Ranked:
    """Every query by BM25."""
    ids = benchmark.corpus.ids
    index = LexicalIndex(
        benchmark.corpus.texts, settings.analyzer, settings.k1, settings.b, order=id_order(ids)
    )
    started = time.perf_counter()
    scores, rows = index.search(list(benchmark.queries.values()), depth(benchmark, settings))
    seconds = time.perf_counter() - started
    run = {
        query: {ids[row]: float(score) for row, score in zip(found, values, strict=True) if row >= 0}
        for query, found, values in zip(benchmark.queries, rows, scores, strict=True)
    }
    return Ranked(run, seconds, read=0)


def with_given(benchmark: Benchmark, given: Sequence[str]) -> Benchmark:
    """The queries with their given reasoning behind them, as words to look for."""
    asked = zip(benchmark.queries.items(), given, strict=True)
    return replace(benchmark, queries={name: f"{query} {text}".strip() for (name, query), text in asked})


def direct(task: Task, embedder: Embedder) -> Ranked:
    """Every query embedded as it is."""
    queries = task.queries
    started = time.perf_counter()
    vectors = embedder.embed_queries(queries, progress=True)
    run = task.ranking(vectors)
    seconds = time.perf_counter() - started
    return Ranked(run, seconds, tokens=len(queries), read=embedder.query_tokens(queries))


def prompts_read(embedder: ReasoningEmbedder, queries: Sequence[str]) -> int:
    """Tokens that a model reads of queries before it writes about them, or reads what is written."""
    return sum(map(len, embedder.encoder.reasoning_prompts(queries)))


def reasoned(
    task: Task,
    writer: Model,
    read: Callable[[Reasoned], Sequence[str]] | None = None,
    limit: int | None = None,
) -> Ranked:
    """Every query behind a text that is written about it.

    Args:
        task: what is ranked.
        writer: the model that writes.
        read: the texts that the evaluated model embeds instead of what it wrote itself.
        limit: tokens that are written at most; that of the model where None.
    """
    queries = task.queries
    written, writing = writer.greedy_texts.of(queries, limit)
    started = time.perf_counter()
    vectors = written.embeddings
    texts = None if read is None else read(written)
    if texts is not None:
        vectors = task.model.embedder.embed_reasoned(queries, texts)
    run = task.ranking(vectors)
    seconds = writing + time.perf_counter() - started
    n_read = prompts_read(writer.embedder, queries)
    if texts is not None:
        reader = task.model.embedder
        n_read += prompts_read(reader, queries) + sum(map(len, reader.encoder.reasonings(texts)))
    return _by_written(task, written, run, seconds, n_read)


def _by_written(
    task: Task, written: Reasoned, run: dict, seconds: float, n_read: int, n_embeddings: int = 1
) -> Ranked:
    """A ranking by one written text of every query; each embedding of a query emits a token."""
    n_queries = len(written.texts)
    tokens = sum(written.n_tokens) + n_embeddings * n_queries
    n_missing = n_queries - sum(written.has_embed_token)
    rows = _rows(task.benchmark, written.texts, written.n_tokens, written.has_embed_token)
    return Ranked(run, seconds, tokens, n_missing, rows, read=n_read)


def _rows(
    benchmark: Benchmark, texts: Sequence[str], n_tokens: Sequence[int], has_embed_token: Sequence[bool]
) -> tuple[dict, ...]:
    """Rows of reasoning.jsonl, by what was read for each query in the order of the queries."""
    read = zip(benchmark.queries.items(), texts, n_tokens, has_embed_token, strict=True)
    return tuple(
        {"query_id": name, "query": query, "reasoning": text, "tokens": n, "has_embed_token": has}
        for (name, query), text, n, has in read
    )


def given(task: Task, embedder: ReasoningEmbedder) -> Ranked:
    """Every query with the reasoning of a file; one that has none is embedded without."""
    benchmark, given = task.benchmark, task.given
    queries = task.queries
    tokens = [len(text) for text in embedder.encoder.text_ids(given)]
    limit = embedder.encoder.lengths.reasoning
    if n_cut := sum(n > limit for n in tokens):
        log.warning(
            "%s: %d of %d given reasonings are longer than lengths.reasoning=%d and are cut",
            benchmark.name, n_cut, len(given), limit,
        )  # fmt: skip
    tokens = [min(n, limit) for n in tokens]
    started = time.perf_counter()
    vectors = embedder.embed_reasoned(queries, given, progress=True)
    without = [place for place, n in enumerate(tokens) if n == 0]
    if without:
        vectors[without] = embedder.embed_queries([queries[place] for place in without])
    run = task.ranking(vectors)
    seconds = time.perf_counter() - started
    reasonings = _rows(benchmark, given, tokens, [True] * len(queries))
    n_read = prompts_read(embedder, queries)
    return Ranked(run, seconds, sum(tokens) + len(queries), 0, reasonings, read=n_read)


def with_lexical(task: Task, found: Ranked, constant: float) -> Ranked:
    """A ranking fused with that of BM25 by reciprocal ranks; seconds and tokens are those of both.

    Args:
        task: what is ranked.
        found: `task.depth` documents of every query, as BM25's are.
        constant: of the fusion.
    """
    benchmark = task.benchmark
    by_words = lexical(benchmark, task.settings)
    started = time.perf_counter()
    run = {}
    for query in benchmark.queries:
        own = query if benchmark.remove_self_match else None
        excluded = benchmark.excluded.get(query, frozenset())
        both = [
            {document: score for document, score in ranking[query].items() if document not in excluded}
            for ranking in (found.run, by_words.run)
        ]
        fused = reciprocal_ranks(both, constant, own)
        kept = [document for document in ranked(fused) if document != own][: task.settings.top_k]
        run[query] = {document: fused[document] for document in [*kept, own] if document in fused}
    seconds = found.seconds + by_words.seconds + time.perf_counter() - started
    return replace(found, run=run, seconds=seconds, tokens=found.tokens + by_words.tokens)


def sampled(task: Task, embedder: ReasoningEmbedder, n: int, temperature: float, seed: int) -> Ranked:
    """Every query by the mean of its embeddings behind `n` texts that are drawn.

    The rows of reasoning.jsonl have all texts in `samples`, and the first of them as the reasoning.
    """
    names, queries = list(task.benchmark.queries), task.queries
    started = time.perf_counter()
    written = embedder.reason(
        [query for query in queries for _ in range(n)], seed, temperature, progress=True
    )
    vectors = written.embeddings.numpy().reshape(len(queries), n, -1)  # [Q, G, D]
    run = task.ranking(mean_directions(vectors))
    seconds = time.perf_counter() - started
    rows = []
    for place, (name, query) in enumerate(zip(names, queries, strict=True)):
        its = slice(place * n, (place + 1) * n)
        rows.append(
            {
                "query_id": name,
                "query": query,
                "reasoning": written.texts[its][0],
                "samples": written.texts[its],
                "tokens": sum(written.n_tokens[its]),
                "has_embed_token": all(written.has_embed_token[its]),
            }
        )
    missing = sum(not row["has_embed_token"] for row in rows)
    n_tokens = sum(written.n_tokens) + n * len(queries)
    n_read = n * prompts_read(embedder, queries)
    return Ranked(run, seconds, n_tokens, missing, tuple(rows), read=n_read)


def blended(task: Task, model: Model, direct_share: float) -> Ranked:
    """Every query by a weighted mean of its embeddings as it is and behind what is written about it.

    Args:
        task: what is ranked.
        model: writes, and embeds.
        direct_share: weight of the query as it is, between 0 and 1.
    """
    queries = task.queries
    written, writing = model.greedy_texts.of(queries)
    started = time.perf_counter()
    vectors = np.stack([model.embedder.embed_queries(queries), written.embeddings], axis=1)  # [Q, 2, D]
    run = task.ranking(mean_directions(vectors, [direct_share, 1 - direct_share]))
    seconds = writing + time.perf_counter() - started
    n_read = prompts_read(model.embedder, queries) + model.embedder.query_tokens(queries)
    return _by_written(task, written, run, seconds, n_read, n_embeddings=2)


def gated(task: Task, model: Model, threshold: float) -> Ranked:
    """Every query embedded as it is, and behind a reasoning where its first two documents are too close.

    Args:
        task: what is ranked.
        model: writes, and embeds.
        threshold: of cosine; a smaller margin is unsure.
    """
    benchmark = task.benchmark
    first = direct(task, model.embedder)
    started = time.perf_counter()
    gaps = margins(without_removed(benchmark, first.run, task.settings.top_k)[0])
    unsure = [query for query in benchmark.queries if gaps[query] < threshold]
    seconds = time.perf_counter() - started
    part = replace(task, benchmark=benchmark.with_queries(unsure))
    writer = replace(model)  # which knows no texts, and leaves the model those about all queries
    second = reasoned(part, writer) if unsure else Ranked({}, 0.0, read=0)
    written = {row["query_id"]: row for row in second.reasonings}
    nothing = {"reasoning": None, "tokens": 0, "has_embed_token": True}
    rows = (
        written.get(name, {"query_id": name, "query": query, **nothing})
        for name, query in benchmark.queries.items()
    )
    return Ranked(
        {**first.run, **second.run},
        first.seconds + seconds + second.seconds,
        first.tokens + second.tokens,
        second.missing,
        tuple(rows),
        {"reasoned_share": len(unsure) / len(benchmark.queries)},
        first.read + second.read,
    )


def shuffled(reasoned: Reasoned, seed: int) -> list[str]:
    """Another query's text for every query: a rotation of a random order."""
    order = np.random.default_rng(seed).permutation(len(reasoned.texts))
    texts = [""] * len(order)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        texts[here] = reasoned.texts[there]
    return texts


def cut_texts(benchmark: Benchmark, embedder: Embedder, cache_dir: str | Path) -> dict[str, int]:
    """How many queries and documents a model reads only a part of; a warning where they are many.

    Documents were counted when they were encoded; they must be in `cache_dir`.
    """
    queries_cut = embedder.truncated_count(list(benchmark.queries.values()), "query")
    counts = {
        "queries_cut": queries_cut,
        "documents_cut": documents_cut(benchmark.corpus, embedder, cache_dir),
    }
    for what, kind, n in (
        ("queries", "query", len(benchmark.queries)), ("documents", "document", len(benchmark.corpus))
    ):  # fmt: skip
        n_cut = counts[f"{what}_cut"]
        if n_cut > CUT_SHARE_TOLD * n:
            log.warning(
                "%s: %d of %d %s (%.1f %%) are longer than %s and are cut",
                benchmark.name, n_cut, n, what, 100 * n_cut / n, embedder.limit(kind),
            )  # fmt: skip
    return counts
