"""From embeddings to a run: the best documents of every query, by the index that training uses."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from search_r3.data.types import Benchmark, Corpus
from search_r3.evaluation.metrics import ranked
from search_r3.index import encoded
from search_r3.index.backends.flat import FlatIndex
from search_r3.index.rows.cache import cut_texts, store_folder, stored_embeddings, stored_rows
from search_r3.models.interface import Embedder

CHUNK = 1024
"""Documents that are encoded by a process before their vectors are on the disk."""


def id_order(ids: Sequence[str]) -> np.ndarray:
    """Place `[N]` of each row when ids are sorted in descending order: how trec_eval orders equal scores.

    >>> id_order(["a", "c", "b"]).tolist()
    [2, 0, 1]
    """
    names = list(ids)
    places = np.empty(len(names), dtype=np.int64)
    places[sorted(range(len(names)), key=names.__getitem__, reverse=True)] = np.arange(len(names))
    return places


Encode = Callable[[Sequence[str]], tuple[ArrayLike, int]]
"""From texts of documents to `[n, D]` fp32, by all processes together, and how many of them are cut."""


def document_embeddings(
    corpus: Corpus,
    embedder: Embedder,
    cache_dir: str | Path,
    progress: bool = True,
    encode: Encode | None = None,
    n_processes: int = 1,
    embeddings: str | Path | None = None,
) -> np.memmap:
    """Embeddings `[N, D]` of a corpus, on disk, encoded once per (weights, prompts, dtype, corpus).

    Vectors that are in files already are copied from there, and nothing is encoded.

    Args:
        corpus: read chunk by chunk.
        embedder: the model.
        cache_dir: of embeddings.
        progress: whether to show how far the encoding is.
        encode: what embeds the texts, where that is not the embedder in this process.
        n_processes: that share a chunk, which is so many times larger.
        embeddings: a folder of `src.encode`, or a file of `src.export`, of this corpus by this model.

    Raises:
        EncodedError: If `embeddings` are of another model or corpus, or not all there.
    """
    key = corpus_key(corpus, embedder)
    if embeddings is not None:
        files = encoded.whole(Path(embeddings), key, corpus.ids)
        blocks = partial(encoded.blocks_from, files, corpus.ids)
        return stored_rows(cache_dir, key, len(corpus), blocks, progress, "read")
    return stored_embeddings(
        cache_dir,
        key,
        corpus.texts,
        encode or embedder.embed_documents_and_count,
        CHUNK * n_processes,
        progress,
    )


def documents_cut(corpus: Corpus, embedder: Embedder, cache_dir: str | Path) -> int:
    """How many documents the model reads a part of, as counted when they were encoded."""
    folder = store_folder(cache_dir, corpus_key(corpus, embedder))
    return cut_texts(folder, lambda: embedder.truncated_count(corpus.texts, "document"))


def corpus_key(corpus: Corpus, embedder: Embedder) -> dict[str, str]:
    """What the embeddings of a corpus depend on: the model, its prompts and limits, dtype, documents."""
    return {**embedder.document_key, "corpus": corpus.fingerprint}


def document_index(documents: ArrayLike, document_ids: Sequence[str]) -> FlatIndex:
    """Searches `[N, D]` fp32 embeddings where they are, and ranks equal scores as trec_eval does."""
    return FlatIndex(np.asanyarray(documents), id_order(document_ids))


def ranking_of(
    queries: ArrayLike, index: FlatIndex, query_ids: Sequence[str], document_ids: Sequence[str], k: int
) -> dict[str, dict[str, float]]:
    """The best `k` documents of every query by inner product, ties by document id descending.

    Args:
        queries: `[Q, D]` fp32, unit norm.
        index: what `document_index` gave for the same documents.
        query_ids: `Q` ids.
        document_ids: `N` ids.
        k: cut-off; ask for one more where a query's own document is removed later.

    Returns:
        fp32 scores by document id by query id; best first.
    """
    scores, rows = index.search(queries, k)
    return {
        query: {document_ids[row]: value for row, value in zip(found, values, strict=True)}
        for query, found, values in zip(query_ids, rows.tolist(), scores.tolist(), strict=True)
    }


def without_removed(
    benchmark: Benchmark, run: Mapping[str, Mapping[str, float]], k: int
) -> tuple[dict[str, dict[str, float]], int]:
    """The best `k` of each ranking, without the query's own document where the collection asks for that.

    Documents that it excludes for a query are taken out too, and not counted.

    Args:
        benchmark: `remove_self_match` and `excluded` are read.
        run: `k + benchmark.most_removed` documents per query, so that `k` are left.
        k: cut-off.

    Returns:
        The run, and how many documents were removed as self-matches.
    """
    removed = 0
    kept = {}
    for query, scores in run.items():
        if benchmark.remove_self_match and query in scores:
            removed += 1
            scores = {document: score for document, score in scores.items() if document != query}
        if excluded := benchmark.excluded.get(query):
            scores = {document: score for document, score in scores.items() if document not in excluded}
        kept[query] = {document: scores[document] for document in ranked(scores)[:k]}
    return kept, removed
