"""What a model writes about the queries of a collection, once for all modes that read it."""

import time
from collections.abc import Sequence

from search_r3.models.embedder import Reasoned, ReasoningEmbedder


class GreedyTexts:
    """Keeps what a model wrote about the latest queries.

    Nothing is drawn, so that the same queries would get the same texts again; and writing them is most of the
    price of a mode that reasons. Its seconds are kept too: each mode's row has them in its own.
    """

    def __init__(self, embedder: ReasoningEmbedder) -> None:
        self._embedder = embedder
        self._queries: list[str] = []
        self._written: dict[int | None, tuple[Reasoned, float]] = {}

    def of(self, queries: Sequence[str], limit: int | None = None) -> tuple[Reasoned, float]:
        """Texts about queries with their embeddings, which must not be changed, and the seconds they took.

        Args:
            queries: of a collection, all of them; what was written about others is forgotten.
            limit: tokens that are written at most; that of the model where None.
        """
        if self._queries != list(queries):
            self._queries, self._written = list(queries), {}
        if limit not in self._written:
            started = time.perf_counter()
            reasoned = self._embedder.reason(queries, progress=True, max_new_tokens=limit)
            self._written[limit] = reasoned, time.perf_counter() - started
        return self._written[limit]
