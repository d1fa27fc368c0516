"""One benchmark in one mode: rank, score, write down, and take up again where it is already written.

Modes: `bm25`; `direct` and `reasoning` of one model; `base-reasoning`, the control in which another model
(the untuned base) writes and the evaluated one embeds; `shuffled-reasoning`, in which every query gets
another query's reasoning.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.data.types import Benchmark
from src.evaluation.metrics import METRICS, per_query_metrics, ranked, ranking_of
from src.evaluation.significance import bootstrap_interval
from src.index.lexical import LexicalIndex
from src.models.embedder import Reasoned, ReasoningEmbedder

MODES = ("bm25", "direct", "reasoning", "base-reasoning", "shuffled-reasoning")
_ROW_FILE = "row.json"
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
    """Rankings of all queries and what they cost."""

    run: dict[str, dict[str, float]]
    seconds: float
    tokens: int = 0
    missing: int = 0
    reasonings: tuple[dict, ...] = ()


def fingerprint(benchmark: Benchmark) -> str:
    """SHA-256 over documents, queries and judgements."""
    facts = [
        benchmark.corpus.fingerprint,
        dict(benchmark.queries),
        {query: dict(grades) for query, grades in benchmark.qrels.items()},
        benchmark.remove_self_match,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def document_embeddings(benchmark: Benchmark, embedder: ReasoningEmbedder, cache_dir: str | Path) -> Tensor:
    """Embeddings `[N, D]` of the corpus, encoded once per (weights, prompts, corpus)."""
    key = {**embedder.document_key, "corpus": benchmark.corpus.fingerprint}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = Path(cache_dir) / f"{name}.npy"
    if path.is_file():
        return torch.from_numpy(np.load(path))
    vectors = embedder.embed_documents(benchmark.corpus.texts, progress=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, vectors.numpy())
    partial.replace(path)
    return vectors


def _lexical(benchmark: Benchmark, settings: Settings) -> Ranked:
    index = LexicalIndex(benchmark.corpus.texts, settings.analyzer, settings.k1, settings.b)
    started = time.perf_counter()
    scores, rows = index.search(list(benchmark.queries.values()), settings.top_k + 1)
    seconds = time.perf_counter() - started
    ids = benchmark.corpus.ids
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
    base: ReasoningEmbedder | None,
    settings: Settings,
    cache_dir: str | Path,
) -> Ranked:
    documents = document_embeddings(benchmark, embedder, cache_dir)
    names, queries = list(benchmark.queries), list(benchmark.queries.values())
    cut = embedder.truncated_share(queries, "query")
    if cut > 0.01:
        log.warning("%s: %.1f %% of the queries are cut at their limit", benchmark.name, 100 * cut)
    started = time.perf_counter()
    if mode == "direct":
        vectors, written = embedder.embed_queries(queries, progress=True), None
    else:
        written = (base if mode == "base-reasoning" else embedder).reason(queries, progress=True)
        vectors = written.embeddings
        if mode != "reasoning":
            texts = written.texts if mode == "base-reasoning" else _shuffled(written, settings.seed)
            vectors = embedder.embed_reasoned(queries, texts)
    seconds = time.perf_counter() - started
    run = ranking_of(vectors, documents, names, benchmark.corpus.ids, settings.top_k + 1)
    if written is None:
        return Ranked(run, seconds, tokens=len(queries))
    rows = zip(names, queries, written.texts, written.n_tokens, written.has_embed_token, strict=True)
    reasonings = tuple(
        {"query_id": name, "query": query, "reasoning": text, "tokens": n, "has_embed_token": has}
        for name, query, text, n, has in rows
    )
    tokens = sum(written.n_tokens) + len(queries)
    return Ranked(run, seconds, tokens, len(queries) - sum(written.has_embed_token), reasonings)


def _without_self_matches(
    benchmark: Benchmark, run: dict[str, dict[str, float]], top_k: int
) -> tuple[dict, int]:
    removed = 0
    kept = {}
    for query, scores in run.items():
        if benchmark.remove_self_match and query in scores:
            removed += 1
            scores = {document: score for document, score in scores.items() if document != query}
        kept[query] = {document: scores[document] for document in ranked(scores)[:top_k]}
    return kept, removed


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
    embedder: ReasoningEmbedder | None = None,
    base: ReasoningEmbedder | None = None,
    model_name: str = "",
    cache_dir: str | Path = ".cache/embeddings",
) -> dict:
    """A row of metrics.json; read back where the same evaluation is already written in `output_dir`.

    Args:
        benchmark: documents, queries, judgements.
        mode: one of `MODES`.
        output_dir: `<output_dir>/<benchmark>/<mode>/` is written, whole or not at all.
        settings: of the evaluation.
        embedder: needed by every mode but bm25.
        base: needed by base-reasoning.
        model_name: named in the row.
        cache_dir: of document embeddings.

    Raises:
        ValueError: If the mode is unknown, or lacks its model.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode != "bm25" and embedder is None:
        raise ValueError(f"mode {mode} needs a model folder: model.path=<folder>")
    if mode == "base-reasoning" and base is None:
        raise ValueError("mode base-reasoning needs the model that writes: base.path=<folder>")
    benchmark = limited(benchmark, settings.limit)
    key = {
        "benchmark": fingerprint(benchmark),
        "settings": settings.__dict__,
        "weights": None if mode == "bm25" else embedder.document_key,
        "base": base.weights_sha256 if mode == "base-reasoning" else None,
    }
    folder = Path(output_dir) / benchmark.name / mode
    known = _read_back(folder, key)
    if known is not None:
        return known
    found = _lexical(benchmark, settings) if mode == "bm25" else _dense(
        benchmark, mode, embedder, base, settings, cache_dir
    )  # fmt: skip
    run, removed = _without_self_matches(benchmark, found.run, settings.top_k)
    scores = per_query_metrics(run, benchmark.qrels)
    n = len(scores)
    ndcg = [values["ndcg@10"] for values in scores.values()]
    row = {
        "benchmark": benchmark.name,
        "mode": mode,
        "model": f"bm25 ({settings.analyzer}, k1={settings.k1}, b={settings.b})"
        if mode == "bm25"
        else model_name,
        "n_queries": n,
        "n_docs": len(benchmark.corpus),
        "metrics": {name: sum(values[name] for values in scores.values()) / n for name in METRICS},
        "ci95": {"ndcg@10": list(bootstrap_interval(ndcg, seed=settings.seed))},
        "missing_embed_token": found.missing,
        "self_match_removed": removed,
        "seconds_per_query": found.seconds / n,
        "tokens_per_query": found.tokens / n,
        "weights_sha256": None if mode == "bm25" else embedder.weights_sha256,
    }
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(partial, benchmark, mode, run, scores, found.reasonings)
    (partial / _ROW_FILE).write_text(json.dumps({"key": key, "row": row}, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return row


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
