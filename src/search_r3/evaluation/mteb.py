"""A model folder for mteb (an extra), by its search protocol.

    import mteb
    from search_r3.evaluation.mteb import SearchR3Search

    model = SearchR3Search("outputs/quickstart/rl/model", mode="reasoning")
    mteb.evaluate(model, mteb.get_tasks(["SciFact"]))

mteb files results under name, revision and experiment. The revision is the hash of the weights, and the mode
is the experiment, so that no other model's result is taken for this one's. mteb scores, and takes a query's
own document out where its task asks for that.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mteb.models import ModelMeta

from search_r3.data.beir.documents import document_text
from search_r3.data.types import Corpus
from search_r3.evaluation.modes import SEARCH_MODES
from search_r3.evaluation.ranking import document_embeddings, document_index, ranking_of
from search_r3.models.folder.loading import load_embedder

if TYPE_CHECKING:
    from datasets import Dataset


class SearchR3Search:
    """Ranks the documents of mteb's retrieval and reranking tasks with a model folder.

    Args:
        path: the folder, `<run>/model`.
        mode: "direct" embeds a query as it is, "reasoning" after what the model writes about it.
        name: as mteb files the results; None for `search-r3/` and the name of the folder or its run.
        cache_dir: where embeddings of documents are kept, by weights and corpus.
        options: further arguments of `load_embedder`: device, dtype, token_budget, attention.

    Raises:
        ModelFolderError: If the folder cannot be used.
        ValueError: If there is no such mode.
    """

    def __init__(
        self,
        path: str | Path,
        mode: str = "direct",
        name: str | None = None,
        cache_dir: str | Path = ".cache/embeddings",
        **options: object,
    ) -> None:
        if mode not in SEARCH_MODES:
            raise ValueError(f"mode must be one of {', '.join(SEARCH_MODES)}, got {mode!r}")
        folder = Path(path).resolve()
        own = folder.parent.name if folder.name == "model" else folder.name
        self.mode, self.name, self.cache_dir = mode, name or f"search-r3/{own}", cache_dir
        self.embedder = load_embedder(path, **options)
        self._corpus: Corpus | None = None

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb writes beside the results; what nobody stated of a folder is None."""
        model = self.embedder.causal_lm
        unknown = (
            "release_date", "languages", "memory_usage_mb", "license", "public_training_code",
            "public_training_data", "training_datasets", "max_tokens",
        )  # fmt: skip
        return ModelMeta(
            loader=None,
            name=self.name,
            revision=self.embedder.weights_sha256,
            n_parameters=sum(weights.numel() for weights in model.parameters()),
            n_embedding_parameters=model.get_input_embeddings().weight.numel(),
            embed_dim=self.embedder.width,
            open_weights=True,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=False,
            experiment_kwargs={"mode": self.mode},
            **dict.fromkeys(unknown),
        )

    def index(self, corpus: "Dataset", **_: object) -> None:
        """Embeds the documents, or reads their embeddings.

        Args:
            corpus: rows of `id`, `text` and perhaps `title`.
        """
        _check_is_text(corpus, "document")
        titles = corpus["title"] if "title" in corpus.column_names else [None] * len(corpus)
        rows = zip(titles, corpus["text"], strict=True)
        texts = [document_text({"title": title, "text": text}) for title, text in rows]
        self._corpus = Corpus(list(corpus["id"]), texts)
        self._rows = document_embeddings(self._corpus, self.embedder, self.cache_dir)

    def search(
        self,
        queries: "Dataset",
        *,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: object,
    ) -> dict[str, dict[str, float]]:
        """The best documents of every query.

        Args:
            queries: rows of `id` and `text`, and of `instruction`, which is read behind the text.
            top_k: documents per query.
            top_ranked: the documents that are ranked, by query, in reranking tasks.

        Returns:
            Cosines by document by query.
        """
        _check_is_text(queries, "query")
        names, texts = list(queries["id"]), list(queries["text"])
        if "instruction" in queries.column_names:
            both = zip(texts, queries["instruction"], strict=True)
            texts = [f"{text} {instruction}" if instruction else text for text, instruction in both]
        if self.mode == "direct":
            vectors = self.embedder.embed_queries(texts, progress=True).numpy()
        else:
            vectors = self.embedder.reason(texts, progress=True).embeddings.numpy()
        if top_ranked is not None:
            found = zip(names, vectors, strict=True)
            return {query: self._scores(vector, top_ranked[query]) for query, vector in found}
        index = document_index(self._rows, self._corpus.ids)
        return ranking_of(vectors, index, names, self._corpus.ids, min(top_k, len(self._corpus)))

    def _scores(self, vector: np.ndarray, documents: Sequence[str]) -> dict[str, float]:
        """The cosine of each of some documents with a query."""
        places = [self._corpus.row_of[document] for document in documents]
        return dict(zip(documents, (self._rows[places] @ vector).tolist(), strict=True))


def _check_is_text(rows: "Dataset", what: str) -> None:
    """Refuses pictures, sounds and conversations.

    Raises:
        ValueError: With what the task has.
    """
    if "text" not in rows.column_names:
        raise ValueError(f"a {what} must have a text, and the task has {', '.join(rows.column_names)}")
    if len(rows) and not isinstance(rows[0]["text"], str):
        raise ValueError(f"a {what} must be one text, got {type(rows[0]['text']).__name__}")
