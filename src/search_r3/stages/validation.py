"""In-training evaluation: both modes on a small collection, the work dealt to all ranks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from search_r3.data.types import Benchmark
from search_r3.distributed import equal_forwards, gather_rows, own_place
from search_r3.evaluation.metrics import LARGEST_CUTOFF, METRICS, per_query_metrics
from search_r3.evaluation.query_means import QueryMeans
from search_r3.evaluation.ranking import document_index, ranking_of, without_removed
from search_r3.models.embedder import ReasoningEmbedder

ENDINGS = ("has_embed_token", "reasoning_tokens")


def validate(embedder: ReasoningEmbedder, benchmark: Benchmark, top_k: int = 100) -> dict[str, float]:
    """Metrics of the direct and the reasoning mode, and how reasonings end.

    Every rank embeds each `W`-th document and query of `W` ranks, and ranks its queries against all
    documents. The result is that of one rank alone, on all ranks, up to rounding in batches of another
    shape. All ranks must call this together.

    Args:
        embedder: the same weights on all ranks.
        benchmark: small enough for every rank to hold the embeddings of all documents.
        top_k: cut-off of a ranking; no fewer than the metrics look at.

    Returns:
        `<mode>/<metric>`, `has_embed_token` (share of queries) and `reasoning_tokens` (mean).

    Raises:
        ValueError: If `top_k` is below the largest cut-off of the metrics.
    """
    if top_k < LARGEST_CUTOFF:
        raise ValueError(f"top_k must be at least {LARGEST_CUTOFF}, the metrics' cut-off, got {top_k}")
    rank, n_ranks = own_place()
    names = list(benchmark.qrels)
    share = names[rank::n_ranks]
    queries = [benchmark.queries[name] for name in share]
    documents = _document_embeddings(embedder, benchmark.corpus.texts)
    with equal_forwards(embedder):
        direct, reasoned = embedder.embed_queries(queries), embedder.reason(queries)
    ids = benchmark.corpus.ids
    index = document_index(documents, ids)
    qrels = {name: benchmark.qrels[name] for name in share}
    results = {}
    for mode, vectors in (("direct", direct), ("reasoning", reasoned.embeddings)):
        run, _ = without_removed(
            benchmark, ranking_of(vectors, index, share, ids, top_k + benchmark.most_removed), top_k
        )
        values = _means(embedder, names, METRICS, per_query_metrics(run, qrels))
        results |= {f"{mode}/{metric}": value for metric, value in values.items()}
    ends = zip(share, reasoned.has_embed_token, reasoned.n_tokens, strict=True)
    rows = {name: dict(zip(ENDINGS, (float(has), float(n)), strict=True)) for name, has, n in ends}
    return results | _means(embedder, names, ENDINGS, rows)


def _means(
    embedder: ReasoningEmbedder,
    names: Sequence[str],
    columns: Sequence[str],
    rows: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:
    """Means over the queries of all ranks of what this rank measured on its share."""
    means = QueryMeans(names, columns).to(embedder.device)
    means.update(rows)
    return {name: float(value) for name, value in means.compute().items()}


def _document_embeddings(embedder: ReasoningEmbedder, texts: Sequence[str]) -> Tensor:
    """Embeddings `[N, D]` of all texts on every rank, on the CPU; each rank embeds each `W`-th text."""
    rank, n_ranks = own_place()
    with equal_forwards(embedder):
        own = embedder.embed_documents([texts[row] for row in range(rank, len(texts), n_ranks)])
    if n_ranks == 1:
        return own
    gathered = gather_rows(own.to(embedder.device)).cpu()
    rows = [row for start in range(n_ranks) for row in range(start, len(texts), n_ranks)]
    result = torch.empty_like(gathered)
    result[rows] = gathered
    return result
