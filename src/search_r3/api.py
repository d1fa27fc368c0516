"""The library in five lines: a trained folder reads a corpus, reasons about a query, and finds documents.

from search_r3 import SearchR3

model = SearchR3.load("outputs/quickstart/rl/model")
model.read("my_corpus.jsonl")
for hit in model.search("how do I open a file?").hits:
    print(hit.rank, hit.score, hit.id)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from search_r3.data.beir.documents import load_corpus
from search_r3.data.beir.layout import file_in
from search_r3.data.texts import holds_half_pair
from search_r3.data.types import Corpus
from search_r3.evaluation.modes import SEARCH_MODES
from search_r3.evaluation.ranking import document_embeddings, document_index
from search_r3.models.cuts import cuts_of
from search_r3.models.embedder import Reasoned
from search_r3.models.folder.loading import load_embedder
from search_r3.models.interface import Embedder


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        rank: from 1.
        id: of the document in its corpus.
        score: cosine of its embedding and the query's.
        text: what was embedded, title and body joined.
        title: of the document, with which `text` begins; empty where it has none.
    """

    rank: int
    id: str
    score: float
    text: str
    title: str = ""


@dataclass(frozen=True)
class Found:
    """What a query found.

    Attributes:
        query: as it was asked.
        mode: "direct" or "reasoning".
        hits: best first.
        reasoning: what the model wrote; None in direct mode.
        n_tokens: of the reasoning.
        has_embed_token: whether the model ended its reasoning itself; elsewhere the limit did.
        token_ids: of the reasoning.
        embedding: `[D]` fp32, unit norm: what the documents were compared with.
        is_cut: whether the query has more tokens than the model reads, so that a part of it was not read.
    """

    query: str
    mode: str
    hits: tuple[Hit, ...]
    reasoning: str | None = None
    n_tokens: int = 0
    has_embed_token: bool = True
    token_ids: tuple[int, ...] = ()
    embedding: np.ndarray | None = field(default=None, repr=False, compare=False)
    is_cut: bool = False

    def as_dict(self) -> dict:
        """As JSON: the documents, and what is known of the reasoning where there is one."""
        hits = [
            {"rank": hit.rank, "id": hit.id, "score": hit.score, "title": hit.title, "text": hit.text}
            for hit in self.hits
        ]
        if self.mode == "direct":
            return {"hits": hits}
        return {
            "hits": hits,
            "reasoning": self.reasoning,
            "n_tokens": self.n_tokens,
            "has_embed_token": self.has_embed_token,
        }


@dataclass(frozen=True)
class Trace:
    """A reasoning cut short at `C` places, and the query's embedding at each.

    Attributes:
        unit: what stands between two places: "sentence", "word" or "token".
        n_tokens: `C` tokens of the reasoning before each place; the first is 0.
        pieces: `C` texts, each what was written since the place before; the first is empty.
        embeddings: `[C, D]` fp32, unit norm; the last is that of the whole reasoning.
    """

    unit: str
    n_tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    embeddings: np.ndarray


class SearchR3:
    """Embeds, reasons and searches with a model folder that training wrote.

    Args:
        embedder: of the folder; `SearchR3.load` reads it. Another model that embeds, such as a baseline of
            `search_r3.models.sentence_transformer`, searches in direct mode.
        cache_dir: where embeddings of a corpus are kept, one folder per weights, prompts and corpus.
    """

    def __init__(self, embedder: Embedder, cache_dir: str | Path = ".cache/embeddings") -> None:
        self.embedder = embedder
        self.cache_dir = Path(cache_dir)
        self.corpus: Corpus | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        token_budget: int | None = None,
        attention: str | None = None,
        cache_dir: str | Path = ".cache/embeddings",
        lengths: Mapping[str, int] | None = None,
    ) -> "SearchR3":
        """Reads a model folder; every file of it is compared with its checksum.

        Args:
            path: the folder, `<run>/model`.
            device: "cpu", "cuda" or another of torch.
            dtype: of the weights.
            token_budget: tokens of one forward; None takes what suits the device.
            attention: attention implementation of transformers; None takes the best that there is.
            cache_dir: where embeddings of a corpus are kept.
            lengths: the most tokens that are read of a "query" and a "document", and written as a
                "reasoning", where they differ from those that the model was trained with.

        Raises:
            ModelFolderError: If the folder is not one that training wrote, or a file of it is damaged.
            ValueError: If a length or the token budget is below 1, the lengths do not fit into the model's
                positions, or torch has no such device here.
        """
        embedder = load_embedder(path, device, dtype, token_budget, attention, lengths=lengths)
        return cls(embedder, cache_dir)

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """`[N, D]` fp32, unit norm: the inner product of two embeddings is their cosine.

        Raises:
            ValueError: If what is given is no list of texts.
        """
        return self.embedder.embed_documents(_listed("texts", texts)).numpy()

    def embed_queries(self, texts: Sequence[str], reasonings: Sequence[str] | None = None) -> np.ndarray:
        """`[N, D]` fp32, unit norm: direct, or after given reasonings, one per query.

        The model's own reasoning and its embeddings come from `reason`, in one pass.

        Raises:
            ValueError: If what is given is no list of texts, there is not one reasoning per query, or the
                model reads none.
        """
        texts = _listed("texts", texts)
        if reasonings is None:
            return self.embedder.embed_queries(texts).numpy()
        self._check_reasons()
        reasonings = _listed("reasonings", reasonings)
        if len(texts) != len(reasonings):
            raise ValueError(
                f"one reasoning per query: got {len(texts)} queries and {len(reasonings)} reasonings"
            )
        return self.embedder.embed_reasoned(texts, reasonings).numpy()

    def reason(
        self,
        texts: Sequence[str],
        temperature: float = 0.0,
        seed: int = 0,
        max_new_tokens: int | None = None,
        heard: Callable[[int, int], None] | None = None,
    ) -> Reasoned:
        """Writes a reasoning for every query; its texts and embeddings, in the order of the queries.

        Args:
            texts: `N` queries.
            temperature: 0 is greedy.
            seed: of sampling.
            max_new_tokens: the most tokens; None takes the limit of the folder.
            heard: called with a query's place and a token's id as each token is written.

        Raises:
            ValueError: If what is given is no list of texts, a number is out of its range, or the model
                writes nothing.
        """
        self._check_reasons()
        _check_whole("seed", seed, 0)
        if max_new_tokens is not None:
            _check_whole("max_new_tokens", max_new_tokens, 0)
        listed = _listed("texts", texts)
        return self.embedder.reason(listed, seed, temperature, max_new_tokens=max_new_tokens, heard=heard)

    def read(
        self,
        corpus: str | Path | Corpus | Mapping[str, str] | Sequence[str],
        progress: bool = True,
        embeddings: str | Path | None = None,
    ) -> "SearchR3":
        """Reads and embeds the documents that `search` looks through; a second call reads the cache.

        Where it fails or is interrupted, what was read before stays.

        Args:
            corpus: a folder in BEIR layout, a JSONL file of `_id`, `text` and perhaps `title`, texts, texts
                by id, or a `Corpus`.
            progress: whether to show how far the encoding is.
            embeddings: a folder of `src.encode`, or a Parquet file of `src.export`, that is read instead.

        Raises:
            DataError: If the file is missing, or a row of it is bad.
            ValueError: If what is given in memory holds what is no text, an id twice, or nothing.
            EncodedError: If `embeddings` are of another model or corpus, or not all there.
            StoreError: If the cache is damaged, or does not fit on the disk.
        """
        documents = as_corpus(corpus)
        how = {"progress": progress, "embeddings": embeddings}
        rows = document_embeddings(documents, self.embedder, self.cache_dir, **how)
        self.corpus, self._index = documents, document_index(rows, documents.ids)
        return self

    def search(
        self,
        query: str,
        k: int = 10,
        mode: str = "reasoning",
        max_new_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Found:
        """The best documents for one query.

        Args:
            query: free text.
            k: how many; all where the corpus has fewer.
            mode: "reasoning" writes first, "direct" embeds at once.
            max_new_tokens: the most tokens of reasoning; None takes the limit of the folder.
            on_text: called with each further piece of the reasoning as it is written.

        Raises:
            ValueError: If no corpus was read, the query is empty or no text, a number is out of its range, or
                there is no such mode.
        """
        if self.corpus is None:
            raise ValueError("there is nothing to search yet: read(corpus) first")
        if not _checked("query", query).strip():
            raise ValueError("the query is empty")
        _check_whole("k", k, 1)
        if max_new_tokens is not None:
            _check_whole("max_new_tokens", max_new_tokens, 0)
        if mode not in SEARCH_MODES:
            raise ValueError(f"mode must be one of {', '.join(SEARCH_MODES)}, got {mode!r}")
        is_cut = self.embedder.truncated_count([query], "query") > 0
        if mode == "direct":
            vectors = self.embed_queries([query])
            return Found(query, mode, self._hits(vectors, k), embedding=vectors[0], is_cut=is_cut)
        self._check_reasons()
        spoken = _Spoken(self.embedder.tokenizer.decode, on_text or (lambda piece: None))
        said = self.reason([query], max_new_tokens=max_new_tokens, heard=spoken.hear)
        spoken.end()
        vectors, ids = said.embeddings.numpy(), tuple(said.token_ids[0])
        hits, has_token = self._hits(vectors, k), said.has_embed_token[0]
        return Found(query, mode, hits, said.texts[0], len(ids), has_token, ids, vectors[0], is_cut)

    def trace(self, found: Found, most: int = 40) -> Trace:
        """The query's embedding after each sentence of a reasoning, as if it had ended there.

        Args:
            found: of a search in reasoning mode.
            most: the most places; where there are more, they are thinned evenly.

        Raises:
            ValueError: If it was found in direct mode, or `most` is below 2.
        """
        if found.mode != "reasoning":
            raise ValueError("only what was found in reasoning mode has a reasoning")
        _check_whole("most", most, 2)
        cuts = cuts_of(self.embedder.tokenizer.decode, found.token_ids, most)
        vectors = self.embedder.embed_cuts(found.query, found.token_ids, cuts.places).numpy()
        vectors[-1] = found.embedding  # the same to rounding, so that the last rank is that of the hits
        return Trace(cuts.unit, cuts.places, cuts.pieces, vectors)

    def ranks(self, embeddings: np.ndarray, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Where documents stand in the whole corpus, for each of some queries.

        Args:
            embeddings: `[Q, D]` fp32, unit norm, such as those of a `Trace`.
            ids: `C` documents of the corpus.

        Returns:
            Ranks `[Q, C]` from 1, and scores `[Q, C]`.

        Raises:
            ValueError: If no corpus was read, or it has no such document.
        """
        if self.corpus is None:
            raise ValueError("there is nothing to search yet: read(corpus) first")
        unknown = [name for name in ids if name not in self.corpus.row_of]
        if unknown:
            raise ValueError(f"the corpus has no document {unknown[0]!r}")
        return self._index.ranks(embeddings, [self.corpus.row_of[name] for name in ids])

    def _check_reasons(self) -> None:
        if not self.embedder.can_reason:
            raise ValueError("this model knows no reasoning; it embeds queries directly: mode='direct'")

    def _hits(self, vectors: np.ndarray, k: int) -> tuple[Hit, ...]:
        scores, rows = self._index.search(vectors, k)
        return tuple(
            Hit(rank, self.corpus.ids[row], score, self.corpus.texts[row], self.corpus.title_of(row))
            for rank, (row, score) in enumerate(zip(rows[0].tolist(), scores[0].tolist(), strict=True), 1)
        )


def _check_whole(name: str, value: object, least: int) -> None:
    """Refuses what is no whole number of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be a whole number at least {least}, got {value!r}")


class _Spoken:
    """Turns tokens into text as they come; a character that is not whole yet waits for its last token."""

    def __init__(self, decode: Callable[[list[int]], str], on_text: Callable[[str], None]) -> None:
        self.decode, self.on_text = decode, on_text
        self.ids: list[int] = []
        self.told = ""

    def hear(self, place: int, token: int) -> None:
        """The next token of the one query."""
        self.ids.append(token)
        text = self.decode(self.ids)
        if not text.endswith("\ufffd"):
            self._tell(text)

    def end(self) -> None:
        """Tells what is left, whole or not."""
        self._tell(self.decode(self.ids) if self.ids else "")

    def _tell(self, text: str) -> None:
        if len(text) > len(self.told):
            self.on_text(text[len(self.told) :])
            self.told = text


def as_corpus(corpus: str | Path | Corpus | Mapping[str, str] | Sequence[str]) -> Corpus:
    """Documents by id: of a folder in BEIR layout, a JSONL file, or texts, whose ids are their numbers.

    Documents without text, as public collections have them, are kept and told, as evaluation keeps them.

    Raises:
        DataError: If the file is missing, or a row of it is bad.
        ValueError: If what is given in memory holds what is no text, an id twice, or nothing.
    """
    if isinstance(corpus, (str, Path)):
        path = Path(corpus)
        file = file_in(path, "corpus.jsonl") if path.is_dir() else path
        return load_corpus(file, allow_empty_documents=True)
    if isinstance(corpus, Mapping):
        corpus = Corpus(_listed("ids", list(corpus)), _listed("corpus", corpus.values()))
    elif isinstance(corpus, Corpus):
        _listed("ids", corpus.ids)
        if isinstance(corpus.texts, (list, tuple)):  # others are of files that were checked
            _listed("corpus", corpus.texts)
    else:
        texts = _listed("corpus", corpus)
        corpus = Corpus([str(number) for number in range(len(texts))], texts)
    if not len(corpus):
        raise ValueError("corpus: there is no document in it")
    if len(corpus.row_of) != len(corpus):
        twice = next(name for row, name in enumerate(corpus.ids) if corpus.row_of[name] != row)
        raise ValueError(f"corpus: the id {twice!r} occurs for the second time")
    return corpus


def _listed(name: str, texts: Iterable[str]) -> list[str]:
    """Texts as a list. A text alone would be taken as its characters, and a set has no order: refused.

    Raises:
        ValueError: With the place of what is no text.
    """
    if isinstance(texts, (str, bytes)):
        raise ValueError(f"{name} must be a list of texts, got one text: [{str(texts[:20])!r}]")
    if isinstance(texts, set | frozenset):
        raise ValueError(f"{name} must be a list of texts, got a {type(texts).__name__}, which has no order")
    return [_checked(f"{name}[{place}]", text) for place, text in enumerate(texts)]


def _checked(name: str, text: str) -> str:
    """A text that can be tokenized.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a text, got {type(text).__name__}")
    if holds_half_pair(text):
        raise ValueError(f"{name} holds half of a surrogate pair, which is no text")
    return text
