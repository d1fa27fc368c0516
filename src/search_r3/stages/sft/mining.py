"""Hard negatives for training rows, found by BM25 or by a model folder: `stage.datamodule.miner`."""

import logging
from collections.abc import Sequence

import numpy as np

from search_r3.data.negatives import MarginRule, RankRule, Search, mine_hard_negatives
from search_r3.data.types import Corpus, Example
from search_r3.index.backends.bm25 import LexicalIndex
from search_r3.index.backends.flat import FlatIndex
from search_r3.models.folder import load_embedder

log = logging.getLogger(__name__)


def mine_by_bm25(
    examples: Sequence[Example],
    corpus: Corpus,
    rule: RankRule | MarginRule,
    n_negatives: int,
    k: int = 50,
    analyzer: str = "english",
) -> list[Example]:
    """The rows with `n_negatives` hard negatives each, by BM25 over the training corpus.

    Args:
        examples: training rows.
        corpus: searched.
        rule: which of the retrieved are taken.
        n_negatives: per row, at most.
        k: documents retrieved per query.
        analyzer: of BM25, "english" or "code".
    """
    index = LexicalIndex(corpus.texts, analyzer)
    return _mined(examples, corpus, index.search, rule, n_negatives, k)


def mine_by_model(
    examples: Sequence[Example],
    corpus: Corpus,
    path: str,
    rule: RankRule | MarginRule,
    n_negatives: int,
    k: int = 50,
    device: str = "cpu",
) -> list[Example]:
    """As `mine_by_bm25`, by the direct embeddings of a model folder.

    Args:
        examples: training rows.
        corpus: embedded once and searched.
        path: the model folder.
        rule: which of the retrieved are taken.
        n_negatives: per row, at most.
        k: documents retrieved per query.
        device: of the model.
    """
    embedder = load_embedder(path, device)
    index = FlatIndex(embedder.embed_documents(corpus.texts, progress=True).numpy())

    def search(queries: Sequence[str], count: int) -> tuple[np.ndarray, np.ndarray]:
        return index.search(embedder.embed_queries(queries), count)

    return _mined(examples, corpus, search, rule, n_negatives, k)


def _mined(
    examples: Sequence[Example],
    corpus: Corpus,
    search: Search,
    rule: RankRule | MarginRule,
    n_negatives: int,
    k: int,
) -> list[Example]:
    mined, report = mine_hard_negatives(examples, search, corpus, rule, n_negatives=n_negatives, k=k)
    log.info("hard negatives: %s", report)
    return list(mined)
