"""One benchmark in one mode: rank, score, write down, and take up again where it is already written."""

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from src.data.types import Benchmark
from src.evaluation.metrics import mean_metrics, per_query_metrics, ranked
from src.evaluation.modes import MODES, NEED_BASE, NEED_NO_MODEL
from src.evaluation.ranking import document_index, id_order, ranking_of, without_self_matches
from src.evaluation.significance import bootstrap_interval
from src.index.lexical import LexicalIndex
from src.index.store import stored_embeddings
from src.models.embedder import Reasoned, ReasoningEmbedder
from src.run_folder import write_json

_ROW_FILE = "row.json"
_ROW_VERSION = 2  # higher where the same key gives another row, so that no older one is read back
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What an evaluation depends on, besides benchmark, mode and weights.

    Attributes:
        top_k: documents kept per query.
        analyzer: of BM25.
        k1: of BM25.
        b: of BM25.
        seed: of the bootstrap and of shuffling.
        limit: evaluate the first so many queries only; None for all, as every reported number is.
    """

    top_k: int
    analyzer: str
    k1: float
    b: float
    seed: int
    limit: int | None = None


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
    cache_dir: str | Path,
) -> Ranked:
    ids = benchmark.corpus.ids
    index = document_index(document_embeddings(benchmark, embedder, cache_dir), ids)
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
    folder: Path, benchmark: Benchmark, mode: str, run: Mapping, scores: Mapping, reasonings: tuple
) -> None:
    with (folder / "run.trec").open("w", encoding="utf-8") as file:
        for query, found in run.items():
            for rank, document in enumerate(ranked(found), start=1):
                # repr of the fp32 value, so that another tool breaks ties as we do
                file.write(f"{query} Q0 {document} {rank} {np.float32(found[document])!s} {mode}\n")
    with (folder / "per_query.jsonl").open("w", encoding="utf-8") as file:
        for query, values in scores.items():
            file.write(json.dumps({"query_id": query, "query": benchmark.queries[query], **values}) + "\n")
    if reasonings:
        with (folder / "reasoning.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in reasonings)


def limited(benchmark: Benchmark, n_queries: int | None) -> Benchmark:
    """The same documents with the first `n_queries` queries."""
    if n_queries is None:
        return benchmark
    names = list(benchmark.queries)[:n_queries]
    return Benchmark(
        benchmark.name,
        benchmark.corpus,
        {name: benchmark.queries[name] for name in names},
        {name: benchmark.qrels[name] for name in names},
        benchmark.remove_self_match,
    )


def evaluate_benchmark(
    benchmark: Benchmark,
    mode: str,
    output_dir: str | Path,
    settings: Settings,
    model: Model | None = None,
    base: Model | None = None,
    cache_dir: str | Path = ".cache/embeddings",
) -> dict:
    """A row of metrics.json; read back where the same evaluation is already written in `output_dir`.

    Args:
        benchmark: documents, queries, judgements.
        mode: one of `MODES`, which `src.evaluation.modes` explains.
        output_dir: `<output_dir>/<benchmark>/<mode>/` is written, whole or not at all.
        settings: of the evaluation.
        model: the evaluated one; needed by every mode but bm25 and base-direct.
        base: the untuned one; needed by base-direct and base-reasoning.
        cache_dir: of document embeddings.

    Raises:
        ValueError: If the mode is unknown, or lacks its model.
    """
    _check_models(mode, model, base)
    embeds = base if mode == "base-direct" else model
    benchmark = limited(benchmark, settings.limit)
    key = {
        "version": _ROW_VERSION,
        "benchmark": fingerprint(benchmark),
        "settings": asdict(settings),
        "weights": None if mode == "bm25" else embeds.embedder.document_key,
        "base": base.embedder.weights_sha256 if mode == "base-reasoning" else None,
    }
    folder = Path(output_dir) / benchmark.name / mode
    known = _read_back(folder, key)
    if known is not None:
        return known
    if mode == "bm25":
        found = _lexical(benchmark, settings)
        name, weights = f"bm25 ({settings.analyzer}, k1={settings.k1}, b={settings.b})", None
    else:
        writes = base if mode == "base-reasoning" else embeds
        found = _dense(benchmark, mode, embeds.embedder, writes.embedder, settings, cache_dir)
        name, weights = embeds.name, embeds.embedder.weights_sha256
    run, removed = without_self_matches(benchmark, found.run, settings.top_k)
    scores = per_query_metrics(run, benchmark.qrels)
    row = {
        "benchmark": benchmark.name,
        "mode": mode,
        "model": name,
        "n_queries": len(scores),
        "n_docs": len(benchmark.corpus),
        **_measured(found, scores, settings.seed),
        "self_match_removed": removed,
        "weights_sha256": weights,
    }
    with _replaced(folder) as partial:
        _write(partial, benchmark, mode, run, scores, found.reasonings)
        write_json(partial / _ROW_FILE, {"key": key, "row": row})
    return row


def _check_models(mode: str, model: Model | None, base: Model | None) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode not in NEED_NO_MODEL and model is None:
        raise ValueError(f"mode {mode} needs a model folder: model.path=<folder>")
    if mode in NEED_BASE and base is None:
        raise ValueError(f"mode {mode} needs the untuned base: base.path=<folder>")


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` once it is written."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
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


def _read_back(folder: Path, key: Mapping) -> dict | None:
    file = folder / _ROW_FILE
    if not file.is_file():
        return None
    written = json.loads(file.read_text(encoding="utf-8"))
    if written["key"] != json.loads(json.dumps(key)):
        log.info("%s was written for another model, collection or setting; it is computed anew", folder)
        return None
    log.info("%s is read back", folder)
    return written["row"]
