"""BM25 over words (Robertson and Zaragoza 2009), the baseline of every table; never a reward.

Two analyzers: `english` takes words, leaves out stop-words and stems; `code` also splits identifiers at
underscores, capitals and digits, so that `parse_header` answers "parse the header".
"""

import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import Stemmer


@contextmanager
def _without_jax() -> Iterator[None]:
    """JAX cannot be imported within, unless it was before.

    bm25s computes with JAX as soon as it is imported, and JAX then takes three quarters of a GPU's memory.
    """
    if "jax" in sys.modules:
        yield
        return
    sys.modules["jax"] = None  # what Python documents to make an import fail
    try:
        yield
    finally:
        del sys.modules["jax"]


with _without_jax():
    import bm25s
    from bm25s.stopwords import STOPWORDS_EN

_IDENTIFIER = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_WORD = re.compile(r"(?u)\b\w\w+\b")
_STOPWORDS = frozenset(STOPWORDS_EN)
_BLOCK = 1 << 16  # words
ANALYZERS = ("english", "code")


def analyze(text: str, analyzer: str, stemmer: Stemmer.Stemmer, known: dict[str, str]) -> list[str]:
    """Index terms of a text.

    Args:
        text: read in blocks of words, so that a long one does not become a list of its words.
        analyzer: one of `ANALYZERS`.
        stemmer: of English.
        known: terms that were met before, which are given again instead of equal ones; new ones are added.
    """
    pattern = _IDENTIFIER if analyzer == "code" else _WORD
    found = (match[0].lower() for match in pattern.finditer(text))
    terms: list[str] = []
    while block := list(itertools.islice(found, _BLOCK)):
        stems = stemmer.stemWords([word for word in block if word not in _STOPWORDS])
        terms += [known.setdefault(stem, stem) for stem in stems]
    return terms


class LexicalIndex:
    """BM25 in Lucene's form.

    Args:
        texts: `N` documents.
        analyzer: "english" or "code".
        k1: saturation of term frequency.
        b: share of length normalisation.
        order: `[N]` place of each row among equal scores, lower first; None for row order.

    Raises:
        ValueError: If the analyzer is unknown or there is no document.
    """

    def __init__(
        self,
        texts: Sequence[str],
        analyzer: str,
        k1: float = 1.2,
        b: float = 0.75,
        order: np.ndarray | None = None,
    ) -> None:
        if analyzer not in ANALYZERS:
            raise ValueError(f"bm25 analyzer must be one of {', '.join(ANALYZERS)}, got {analyzer!r}")
        if len(texts) == 0:
            raise ValueError("BM25 needs at least one document")
        self.analyzer = analyzer
        self.size = len(texts)
        self._order = np.arange(self.size) if order is None else order
        self._stemmer = Stemmer.Stemmer("english")
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
        known: dict[str, str] = {}
        terms = [analyze(text, analyzer, self._stemmer, known) for text in texts]
        self._is_empty = not any(terms)
        if not self._is_empty:
            self._index.index(terms, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best documents of every query.

        Returns:
            Scores `[Q, K]` fp32 and rows `[Q, K]`; where no document matches, score 0 and row -1.
        """
        k = min(k, self.size)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        for place, query in enumerate(queries):
            terms = analyze(query, self.analyzer, self._stemmer, {})
            if self._is_empty or not any(term in self._index.vocab_dict for term in terms):
                continue
            every = self._index.get_scores(terms)
            worst = np.partition(every, self.size - k)[self.size - k]
            found = np.flatnonzero((every >= worst) & (every > 0))  # all that tie at the cut-off included
            kept = found[np.lexsort((self._order[found], -every[found]))[:k]]
            scores[place, : len(kept)] = every[kept]
            rows[place, : len(kept)] = kept
        return scores, rows
