"""One benchmark in one mode: rank, score, write down, and take up again where it is already written."""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from search_r3.data.jsonl import DataError
from search_r3.data.reasonings import tell_missing
from search_r3.data.types import Benchmark
from search_r3.evaluation.metrics import LARGEST_CUTOFF, mean_metrics, per_query_metrics
from search_r3.evaluation.modes import LEXICAL, MODES, NEED_BASE, NEED_NO_MODEL, NEED_REASONINGS
from search_r3.evaluation.places import PARTIAL, kept_folder, place_of
from search_r3.evaluation.ranking import document_index, id_order, ranking_of, without_self_matches
from search_r3.evaluation.results import PER_QUERY, QRELS, REASONING, RUN, sealed
from search_r3.evaluation.significance import bootstrap_interval
from search_r3.evaluation.trec import needs_encoding, with_encoded_ids, write_qrels, write_run
from search_r3.index.backends.bm25 import LexicalIndex
from search_r3.index.rows.cache import stored_embeddings
from search_r3.models.embedder import Reasoned, ReasoningEmbedder
from search_r3.records import shown

_ROW_VERSION = 3  # higher where the same key gives another row, so that no older one is read back
log = logging.getLogger(__name__)


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
        run: `top_k + 1` scores by document id, by query id.
        seconds: wall time from the queries' texts to their rankings, all queries together: reasoning,
            embedding and search. Encoding or indexing the documents is not in it; it is done once.
        tokens: emitted for the queries, all together: the written reasoning, and the embed token of each
            query. So a direct query has 1, and one of BM25 has 0. Prompts are not counted.
        missing: queries whose reasoning ended without an embed token; it was appended.
        reasonings: rows of reasoning.jsonl, with the text that was written for the query.
    """

    run: dict[str, dict[str, float]]
    seconds: float
    tokens: int = 0
    missing: int = 0
    reasonings: tuple[dict, ...] = ()


@dataclass(frozen=True)
class Model:
    """A model folder as it was loaded, and what a row calls it."""

    name: str
    embedder: ReasoningEmbedder


def fingerprint(benchmark: Benchmark) -> str:
    """SHA-256 over documents, queries and judgements."""
    facts = [
        benchmark.corpus.fingerprint,
        dict(benchmark.queries),
        {query: dict(grades) for query, grades in benchmark.qrels.items()},
        benchmark.remove_self_match,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def document_embeddings(
    benchmark: Benchmark, embedder: ReasoningEmbedder, cache_dir: str | Path
) -> np.memmap:
    """Embeddings `[N, D]` of the corpus, on disk, encoded once per (weights, prompts, dtype, corpus)."""
    key = {**embedder.document_key, "corpus": benchmark.corpus.fingerprint}
    return stored_embeddings(cache_dir, key, benchmark.corpus.texts, embedder.embed_documents)


def _lexical(benchmark: Benchmark, settings: Settings) -> Ranked:
    ids = benchmark.corpus.ids
    index = LexicalIndex(
        benchmark.corpus.texts, settings.analyzer, settings.k1, settings.b, order=id_order(ids)
    )
    started = time.perf_counter()
    scores, rows = index.search(list(benchmark.queries.values()), settings.top_k + 1)
    seconds = time.perf_counter() - started
    run = {
        query: {ids[row]: float(score) for row, score in zip(found, values, strict=True) if row >= 0}
        for query, found, values in zip(benchmark.queries, rows, scores, strict=True)
    }
    return Ranked(run, seconds)


def _with_given(benchmark: Benchmark, given: Sequence[str]) -> Benchmark:
    """The queries with their given reasoning behind them, as words to look for."""
    asked = zip(benchmark.queries.items(), given, strict=True)
    return replace(benchmark, queries={name: f"{query} {text}".strip() for (name, query), text in asked})


def _given(
    benchmark: Benchmark,
    embedder: ReasoningEmbedder,
    given: Sequence[str],
    embeddings: np.ndarray,
    top_k: int,
) -> Ranked:
    """Every query with the reasoning of a file; one that has none is embedded without."""
    ids = benchmark.corpus.ids
    names, queries = list(benchmark.queries), list(benchmark.queries.values())
    index = document_index(embeddings, ids)
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
    run = ranking_of(vectors, index, names, ids, top_k + 1)
    seconds = time.perf_counter() - started
    rows = zip(names, queries, given, tokens, strict=True)
    reasonings = tuple(
        {"query_id": name, "query": query, "reasoning": text, "tokens": n, "has_embed_token": True}
        for name, query, text, n in rows
    )
    return Ranked(run, seconds, sum(tokens) + len(queries), 0, reasonings)


def _shuffled(reasoned: Reasoned, seed: int) -> list[str]:
    """Another query's text for every query: a rotation of a random order."""
    order = np.random.default_rng(seed).permutation(len(reasoned.texts))
    texts = [""] * len(order)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        texts[here] = reasoned.texts[there]
    return texts


def _dense(
    benchmark: Benchmark,
    mode: str,
    embedder: ReasoningEmbedder,
    writer: ReasoningEmbedder,
    settings: Settings,
    embeddings: np.ndarray,
) -> Ranked:
    ids = benchmark.corpus.ids
    index = document_index(embeddings, ids)
    names, queries = list(benchmark.queries), list(benchmark.queries.values())
    cut = embedder.truncated_share(queries, "query")
    if cut > 0.01:
        log.warning("%s: %.1f %% of the queries are cut at their limit", benchmark.name, 100 * cut)
    started = time.perf_counter()
    if mode.endswith("direct"):
        vectors, written = embedder.embed_queries(queries, progress=True), None
    else:
        written = writer.reason(queries, progress=True)
        vectors = written.embeddings
        if mode != "reasoning":
            texts = written.texts if mode == "base-reasoning" else _shuffled(written, settings.seed)
            vectors = embedder.embed_reasoned(queries, texts)
    run = ranking_of(vectors, index, names, ids, settings.top_k + 1)
    seconds = time.perf_counter() - started
    if written is None:
        return Ranked(run, seconds, tokens=len(queries))
    rows = zip(names, queries, written.texts, written.n_tokens, written.has_embed_token, strict=True)
    reasonings = tuple(
        {"query_id": name, "query": query, "reasoning": text, "tokens": n, "has_embed_token": has}
        for name, query, text, n, has in rows
    )
    tokens = sum(written.n_tokens) + len(queries)
    return Ranked(run, seconds, tokens, len(queries) - sum(written.has_embed_token), reasonings)


def _write(
    folder: Path,
    asked: Benchmark,
    named: Benchmark,
    mode: str,
    run: Mapping,
    scores: Mapping,
    reasonings: tuple,
) -> None:
    """Writes all files but the row.

    Args:
        folder: is there and empty.
        asked: the collection under the ids that its user gave, which are those of the JSON lines.
        named: the same under the ids of the TREC files, which those of `run`, `scores` and `reasonings` are.
        mode: the tag of the run.
        run: rankings.
        scores: metrics by query.
        reasonings: rows of reasoning.jsonl.
    """
    ids = dict(zip(named.queries, asked.queries, strict=True))
    write_run(folder / RUN, run, mode)
    write_qrels(folder / QRELS, named.qrels)
    per_query = [
        {"query_id": ids[query], "query": named.queries[query], **values} for query, values in scores.items()
    ]
    _write_lines(folder / PER_QUERY, per_query)
    if reasonings:
        _write_lines(folder / REASONING, [row | {"query_id": ids[row["query_id"]]} for row in reasonings])


def _write_lines(path: Path, rows: list[dict]) -> None:
    """JSON lines, without the characters that JSON leaves alone and at which some readers end a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False)
            for character in "\x85\u2028\u2029":
                line = line.replace(character, f"\\u{ord(character):04x}")
            file.write(line + "\n")


def limited(benchmark: Benchmark, n_queries: int | None) -> Benchmark:
    """The same documents with the first `n_queries` queries."""
    if n_queries is None:
        return benchmark
    names = list(benchmark.queries)[:n_queries]
    return replace(
        benchmark,
        queries={name: benchmark.queries[name] for name in names},
        qrels={name: benchmark.qrels[name] for name in names},
    )


def evaluate_benchmark(
    benchmark: Benchmark,
    mode: str,
    output_dir: str | Path,
    settings: Settings,
    model: Model | None = None,
    base: Model | None = None,
    cache_dir: str | Path = ".cache/embeddings",
    origin: Mapping | None = None,
    reasonings: Mapping[str, str] | None = None,
) -> dict:
    """A row of metrics.json; read back where the same evaluation is already written in `output_dir`.

    Args:
        benchmark: documents, queries, judgements.
        mode: one of `MODES`, which `search_r3.evaluation.modes` explains.
        output_dir: `<output_dir>/<benchmark>/<mode>/` is written, whole or not at all; where another
            evaluation is in there, `<mode>-<hash>` beside it. The row's `folder` says which.
        settings: of the evaluation.
        model: the evaluated one; needed by every mode but bm25, given-bm25 and base-direct.
        base: the untuned one; needed by base-direct and base-reasoning.
        cache_dir: of document embeddings.
        origin: what `provenance` returned; the row keeps command and commit of the call that measured it.
        reasonings: text by query id, for given-reasoning and given-bm25. Queries without one are asked as
            they are, and a line counts them.

    Raises:
        ValueError: If the mode is unknown, or lacks its model or the reasonings, or a score is not finite.
        DataError: If no query of the collection has a reasoning.
        PlaceError: If the folder holds something that no evaluation wrote.
    """
    _check_models(mode, model, base)
    if mode in NEED_REASONINGS and reasonings is None:
        raise ValueError(f"mode {mode} needs a file of texts: reasonings=<jsonl of _id and text>")
    embeds = base if mode == "base-direct" else model
    benchmark = limited(benchmark, settings.limit)
    key = {
        "version": _ROW_VERSION,
        "name": benchmark.name,
        "benchmark": fingerprint(benchmark),
        "judged_queries_missing": benchmark.judged_queries_missing,
        "settings": asdict(settings),
        "weights": None if mode in LEXICAL else embeds.embedder.document_key,
        "base": base.embedder.weights_sha256 if mode == "base-reasoning" else None,
    }
    given: list[str] | None = None
    if mode in NEED_REASONINGS:
        given = _given_texts(benchmark, reasonings)
        key["reasonings"] = hashlib.sha256(json.dumps(given).encode()).hexdigest()
    found = place_of(Path(output_dir), benchmark.name, mode, key)
    folder = found.folder
    place = {"folder": folder.relative_to(output_dir).as_posix()}
    if folder.name != mode:
        log.info(
            "%s is of other weights, settings or data; this one is in %s", folder.with_name(mode), folder
        )
    if found.row is not None:
        log.info("%s is read back", folder)
        return found.row | place
    if found.problem:
        log.warning("%s. It is done again now, and what was there is kept beside it", found.problem)
    row = _evaluated(benchmark, mode, folder, settings, model, base, cache_dir, key, origin or {}, given)
    return row | place


def _evaluated(
    benchmark: Benchmark,
    mode: str,
    folder: Path,
    settings: Settings,
    model: Model | None,
    base: Model | None,
    cache_dir: str | Path,
    key: Mapping,
    origin: Mapping,
    given: Sequence[str] | None = None,
) -> dict:
    """Measures a row and writes its folder."""
    named = _with_readable_ids(benchmark)
    if mode in LEXICAL:
        found = _lexical(named if given is None else _with_given(named, given), settings)
        name, weights = f"bm25 ({settings.analyzer}, k1={settings.k1}, b={settings.b})", None
    else:
        embeds = base if mode == "base-direct" else model
        writes = base if mode == "base-reasoning" else embeds
        embeddings = document_embeddings(benchmark, embeds.embedder, cache_dir)
        if given is None:
            found = _dense(named, mode, embeds.embedder, writes.embedder, settings, embeddings)
        else:
            found = _given(named, embeds.embedder, given, embeddings, settings.top_k)
        name, weights = embeds.name, embeds.embedder.weights_sha256
    run, removed = without_self_matches(named, found.run, settings.top_k)
    _check_run(named, run)
    scores = per_query_metrics(run, named.qrels)
    row = {
        "benchmark": benchmark.name,
        "mode": mode,
        "model": name,
        "n_queries": len(scores),
        "n_docs": len(benchmark.corpus),
        **_measured(found, scores, settings.seed),
        "self_match_removed": removed,
        "judged_documents_missing": benchmark.judged_documents_missing,
        "judged_queries_missing": benchmark.judged_queries_missing,
        "ids_encoded": named is not benchmark,
        "weights_sha256": weights,
        "command": origin.get("command"),
        "commit": origin.get("commit"),
        "seed": settings.seed,
    }
    with _replaced(folder) as partial:
        _write(partial, benchmark, named, mode, run, scores, found.reasonings)
        sealed(partial, key, row)
    return row


def _with_readable_ids(benchmark: Benchmark) -> Benchmark:
    """The collection under ids that can stand in TREC's files; the same object where they can as they are."""
    if not needs_encoding(benchmark):
        return benchmark
    log.warning(
        "%s: ids hold blanks, which part the fields of run.trec; there, and in qrels.trec beside it, all ids "
        "are percent-encoded",
        benchmark.name,
    )
    return with_encoded_ids(benchmark)


def _check_run(benchmark: Benchmark, run: Mapping[str, Mapping[str, float]]) -> None:
    """Stops at a score that is no number; says how many queries retrieved nothing."""
    for query, found in run.items():
        if not all(map(math.isfinite, found.values())):
            raise ValueError(
                f"{benchmark.name}: a score of query {shown(query)} is not finite; nothing is written"
            )
    empty = [query for query in benchmark.qrels if not run.get(query)]
    if empty:
        log.warning(
            "%s: %d of %d queries (the first: %r) retrieved nothing and count 0; run.trec has no line of "
            "them, so trec_eval counts them with -c only",
            benchmark.name, len(empty), len(benchmark.qrels), empty[0],
        )  # fmt: skip


def _given_texts(benchmark: Benchmark, reasonings: Mapping[str, str]) -> list[str]:
    """The text of every query in the order of the queries; empty where there is none.

    Raises:
        DataError: If there is none for any query.
    """
    missing = tell_missing(
        f"{benchmark.name}, reasonings", reasonings, benchmark.queries, "they are asked as they are"
    )
    if missing == len(benchmark.queries):
        first = next(iter(reasonings), None)
        raise DataError("reasonings", 0, f"not one is of a query of {benchmark.name} (the first: {first!r})")
    return [reasonings.get(query, "") for query in benchmark.queries]


def _check_models(mode: str, model: Model | None, base: Model | None) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode not in NEED_NO_MODEL and model is None:
        raise ValueError(f"mode {mode} needs a model folder: model.path=<folder>")
    if mode in NEED_BASE and base is None:
        raise ValueError(f"mode {mode} needs the untuned base: base.path=<folder>")


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` once it is written; what was there is kept."""
    partial = folder.with_name(f"{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    with contextlib.suppress(OSError):
        folder.rmdir()  # an empty one
    if os.path.lexists(folder):
        log.info("kept %s", kept_folder(folder))
    partial.rename(folder)


def _measured(found: Ranked, scores: Mapping[str, Mapping[str, float]], seed: int) -> dict:
    """The measured part of a row."""
    ndcg = [values["ndcg@10"] for values in scores.values()]
    return {
        "metrics": mean_metrics(scores),
        "ci95": {"ndcg@10": list(bootstrap_interval(ndcg, seed=seed))},
        "missing_embed_token": found.missing,
        "seconds_per_query": found.seconds / len(scores),
        "tokens_per_query": found.tokens / len(scores),
    }
