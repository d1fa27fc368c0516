"""Encoding a corpus, and queries one by one, against sentence-transformers."""

from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch
from torch import Tensor

from search_r3.benchmarks.peers.comparison import Comparison, Cost, Equal
from search_r3.benchmarks.peers.subjects import Subject, Texts, sentence_transformers

BATCH_SIZES = (16, 32, 128)
"""Of the peer, whose default is 32."""


def encode(subject: Subject, texts: Texts) -> Comparison:
    """Documents of a corpus, in one call."""
    embedder, documents = subject.embedder, list(texts.documents)
    models = sentence_transformers(subject)

    def ours() -> Tensor:
        with subject.autocast():
            return embedder.embed_documents(documents)

    def with_setting(attention: str, batch_size: int) -> Callable[[], Tensor]:
        def theirs() -> Tensor:
            with subject.autocast():
                return models[attention].encode_document(
                    documents, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
                )

        return theirs

    ways = {
        f"{attention}, batches of {size}": with_setting(attention, size)
        for attention in models
        for size in BATCH_SIZES
    }
    sequences = embedder.encoder.documents(documents)
    return Comparison(
        unit="documents per second",
        amount=len(documents),
        peer=f"sentence-transformers {version('sentence-transformers')} encode_document",
        ours=ours,
        theirs=ways,
        equal=[_same("embeddings of documents", ours(), next(iter(ways.values()))(), subject)],
        cost=forward_cost(subject, sequences),
    )


def queries(subject: Subject, texts: Texts) -> Comparison:
    """Queries in calls of their own, as a search asks them."""
    embedder, asked = subject.embedder, list(texts.queries)
    models = sentence_transformers(subject)

    def ours() -> Tensor:
        with subject.autocast():
            return torch.cat([embedder.embed_queries([query]) for query in asked])

    def with_attention(attention: str) -> Callable[[], Tensor]:
        def theirs() -> Tensor:
            with subject.autocast():
                found = [
                    models[attention].encode_query(query, convert_to_tensor=True, show_progress_bar=False)
                    for query in asked
                ]
            return torch.stack(found)

        return theirs

    ways = {attention: with_attention(attention) for attention in models}
    sequences = embedder.encoder.queries(asked)
    n_bytes = 4 * subject.n_weights * len(asked)  # of fp32 weights, which each call reads
    return Comparison(
        unit="milliseconds per query",
        amount=len(asked),
        peer=f"sentence-transformers {version('sentence-transformers')} encode_query",
        ours=ours,
        theirs=ways,
        equal=[_same("embeddings of queries", ours(), next(iter(ways.values()))(), subject)],
        cost=Cost(forward_cost(subject, sequences).flops, n_bytes),
        is_latency=True,
    )


def forward_cost(subject: Subject, sequences: Sequence[Sequence[int]], passes: int = 1) -> Cost:
    """Of each token once; what all texts begin with is counted once."""
    shared = subject.embedder.prefix_of(sequences).n_ids
    n_tokens = sum(len(ids) - shared for ids in sequences) + shared
    return Cost(flops=2.0 * passes * subject.n_weights * n_tokens)


def _same(what: str, ours: Tensor, theirs: Tensor, subject: Subject) -> Equal:
    return Equal(what, float((ours - theirs.float()).abs().max()), subject.tolerance)
