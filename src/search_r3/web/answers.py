"""What the server says about a query: both rankings, what moved between them, and how one document moved.

All but `check_query` runs in the one thread that owns the model. A query's reasoning is kept for a while, so
that inspecting a document of its hits writes nothing anew; greedy decoding would write the same.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from search_r3.api import Found, Hit, SearchR3, Trace
from search_r3.data.texts import holds_half_pair
from search_r3.models.prompts import PromptEncoder

KEPT = 32
"""Queries whose reasoning is kept."""

SHOWN_CHARACTERS = 1000
"""Of a document's text in a list of hits."""

WHOLE_CHARACTERS = 50_000
"""Of a document's text where it is looked at alone."""

Say = Callable[[str, dict], None]
"""Is told what is known so far: the name of an event, and its data."""


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass
class _Asked:
    """What is kept of a query; the trace once it was asked for."""

    direct: Found
    reasoned: Found
    trace: Trace | None = None


class Answers:
    """Answers queries with a model that has read a corpus.

    Args:
        searcher: that has read its corpus.
        max_new_tokens: the most tokens of reasoning; None for the limit of the folder.
        max_characters: of a query.
    """

    def __init__(self, searcher: SearchR3, max_new_tokens: int | None, max_characters: int) -> None:
        self.searcher = searcher
        self.max_new_tokens = max_new_tokens
        self.max_characters = max_characters
        self.kept: OrderedDict[str, _Asked] = OrderedDict()
        own = searcher.embedder.encoder
        tokenizer = copy.deepcopy(own.tokenizer)  # one that two threads use at once may fail in both
        self.encoder = PromptEncoder(tokenizer, own.prompts, own.lengths, own.rendered)

    def check_query(self, query: str) -> None:
        """Refuses a query that could not be read whole; nothing is cut.

        Raises:
            Refused: With the limit.
        """
        if not query.strip():
            raise Refused(422, "query: it is empty")
        if holds_half_pair(query):
            raise Refused(422, "query: it holds half of a surrogate pair, which is no text")
        if len(query) > self.max_characters:
            raise Refused(422, f"query: {len(query):,} characters; at most {self.max_characters:,} are taken")
        limit = self.encoder.lengths.query
        if len(self.encoder.text_ids([query], limit + 1)[0]) > limit:
            raise Refused(422, f"query: too long; the model reads at most {limit} tokens")

    def search(self, query: str, k: int, say: Say) -> dict:
        """Both rankings of a query.

        Args:
            query: that `check_query` took.
            k: documents of each.
            say: told "direct" with the first ranking, and "text" with each further piece of the reasoning. It
                may raise to end the work.

        Returns:
            `query`, `n_documents`, `direct` and `reasoning`, each with `hits`; a hit has the rank that its
            document has in the other ranking, and how many places it moved up from direct to reasoning.
        """
        asked = self._found(query, k, say)
        answer: dict = {"query": query, "n_documents": len(self.searcher.corpus)}
        for found, other in ((asked.direct, asked.reasoned), (asked.reasoned, asked.direct)):
            ranks, _ = self.searcher.ranks(other.embedding[None], [hit.id for hit in found.hits])
            answer[found.mode] = _shown(found, ranks[0].tolist())
        return answer

    def inspect(self, query: str, document: str, say: Say) -> dict:
        """The rank of a document if the reasoning had ended after each of its sentences.

        Args:
            query: that `check_query` took.
            document: an id of the corpus.
            say: as for `search`.

        Raises:
            Refused: If the corpus has no such document.
        """
        row = self.searcher.corpus.row_of.get(document)
        if row is None:
            raise Refused(404, "id: the corpus has no such document")
        asked = self.kept.get(query) or self._found(query, 1, say)
        asked.trace = trace = asked.trace or self.searcher.trace(asked.reasoned)
        text, title = self.searcher.corpus.texts[row], self.searcher.corpus.title_of(row)
        (first,), (first_score,) = self._ranks(asked.direct.embedding[None], document)
        facts = zip(trace.pieces, trace.n_tokens, *self._ranks(trace.embeddings, document), strict=True)
        return {
            "query": query,
            "n_documents": len(self.searcher.corpus),
            "document": {"id": document, "title": title} | _clipped(text, WHOLE_CHARACTERS),
            "direct": {"rank": first, "score": first_score},
            "unit": trace.unit,
            "has_embed_token": asked.reasoned.has_embed_token,
            "steps": [
                {"text": piece, "n_tokens": n_tokens, "rank": rank, "score": score}
                for piece, n_tokens, rank, score in facts
            ],
        }

    def _ranks(self, embeddings: np.ndarray, document: str) -> tuple[list[int], list[float]]:
        ranks, scores = self.searcher.ranks(embeddings, [document])
        return ranks[:, 0].tolist(), scores[:, 0].tolist()

    def _found(self, query: str, k: int, say: Say) -> _Asked:
        direct = self.searcher.search(query, k, "direct")
        say("direct", _shown(direct, None))
        reasoned = self.searcher.search(
            query, k, "reasoning", self.max_new_tokens, lambda piece: say("text", {"text": piece})
        )
        self.kept[query] = _Asked(direct, reasoned)
        self.kept.move_to_end(query)
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return self.kept[query]


def _shown(found: Found, other_ranks: Sequence[int] | None) -> dict:
    """What was found as JSON; `other_ranks` are those of its hits in the other mode, None where not known."""
    shown = found.as_dict()
    for place, (hit, given) in enumerate(zip(shown["hits"], found.hits, strict=True)):
        hit |= _clipped(given.text, SHOWN_CHARACTERS)
        if other_ranks is not None:
            hit |= _moved(given, found.mode, other_ranks[place])
    return shown


def _moved(hit: Hit, mode: str, other: int) -> dict:
    """Ranks in both modes, and by how many places the reasoning brought the document forward."""
    direct, reasoned = (hit.rank, other) if mode == "direct" else (other, hit.rank)
    return {"direct_rank": direct, "reasoning_rank": reasoned, "moved_up": direct - reasoned}


def _clipped(text: str, most: int) -> dict:
    return {"text": text[:most], "is_cut": len(text) > most}
