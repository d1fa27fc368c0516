"""What `src.search` and `src.serve` have in common: which model and corpus are searched."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from search_r3.cli.inputs import without_corpus
from search_r3.cli.instantiate import instantiate
from search_r3.cli.model_choice import check_reader
from search_r3.errors import UsageError

if TYPE_CHECKING:
    from search_r3.api import SearchR3
    from search_r3.data.types import Corpus
    from search_r3.models.interface import Embedder

log = logging.getLogger(__name__)


def check_searched(config: DictConfig, reasoning: Sequence[str]) -> None:
    """Refuses a model or a corpus that is not there, before anything is loaded.

    Args:
        config: of the command.
        reasoning: the modes of it in which the model writes.

    Raises:
        UsageError: With what to give.
    """
    check_reader(config.model, reasoning)
    corpus = Path(config.corpus)
    if not corpus.exists():
        raise UsageError(f"corpus={corpus}: no such folder or file")
    if corpus.is_dir() and (problem := without_corpus(corpus)):
        raise UsageError(f"corpus={corpus}: {problem}")
    if config.get("embeddings") is not None:
        check_embeddings(config.embeddings)
    if "cache_dir" in config:
        check_cache(config.cache_dir)


def check_cache(cache_dir: str) -> None:
    """Refuses a folder of vectors that cannot be made; one that is there may be full, and only be read.

    Raises:
        UsageError: With what is in the way.
    """
    place = folder = Path(cache_dir)
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UsageError(f"cache_dir={folder}: {place} is no folder; name another")
    if place != folder and not os.access(place, os.W_OK):
        raise UsageError(f"cache_dir={folder}: {place} cannot be written to; name another")


def check_embeddings(embeddings: str) -> None:
    """Refuses vectors that are not there; what they are of is compared once model and corpus are read.

    Raises:
        UsageError: With what makes them.
    """
    if not Path(embeddings).exists():
        raise UsageError(
            f"embeddings={embeddings}: no such folder; src.encode with output={embeddings} makes it"
        )


def opened(config: DictConfig) -> "SearchR3":
    """Loads the model and the corpus, whose embeddings are read from the cache or made."""
    from transformers.utils.logging import disable_progress_bar

    from search_r3.api import SearchR3
    from search_r3.evaluation.ranking import documents_cut

    disable_progress_bar()  # of reading weights, which takes less time than to look at it
    searcher = SearchR3(instantiate(config.model), config.cache_dir)
    searcher.read(config.corpus, progress=True, embeddings=config.embeddings)
    n_cut = documents_cut(searcher.corpus, searcher.embedder, config.cache_dir)
    tell_cut(n_cut, searcher.corpus, searcher.embedder)
    return searcher


def tell_cut(n_cut: int, corpus: "Corpus", embedder: "Embedder") -> None:
    """A line where so many documents of a corpus were not read whole."""
    if n_cut:
        log.warning(
            "%d of %d documents are longer than %s and are cut",
            n_cut, len(corpus), embedder.limit("document"),
        )  # fmt: skip
