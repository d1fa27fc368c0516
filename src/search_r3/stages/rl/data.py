"""The data module of the RL stage: queries without answers, and the live index that they are searched in."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from search_r3.data.queries import one_row_per_query
from search_r3.data.types import Corpus, Example, TrainingData
from search_r3.distributed import Ranks, equal_forwards
from search_r3.index.backends.base import MakeIndex
from search_r3.index.rows.cache import Embed, StoreError, open_store, store_folder, stored_embeddings
from search_r3.index.rules.base import Refresh
from search_r3.index.served import LiveIndex
from search_r3.index.shard import check_size
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.stages.data import ExamplesDataModule, Rows
from search_r3.stages.precision import forward_precision
from search_r3.stages.rl.environment import Judgements


class RLDataModule(ExamplesDataModule):
    """Batches of queries; owns the index and the judgements that their rollouts are scored with.

    Args:
        data: what was read. Rows of one query are one, with all their positives and no reasoning. Every
            training document is searched, or `max_documents` of them.
        embedder: encodes the documents.
        batch_size: queries of all ranks together per step.
        seed: of the order, and of which documents are kept.
        max_documents: None keeps all. Of fewer, the training rows whose relevant documents are all kept are
            left.
        validation_queries: of the data set's validation collection.
        validation_documents: of the same.
        index: backend, from conf/index.
        refresh: which rows are encoded when, from conf/refresh.
        store: folder of the run's rows.
        cache_dir: of embeddings under one model folder; a second run with it encodes nothing.
        encode_batch: documents per call of the encoder.
        index_precision: of the products that encode documents: "full" is fp32, "run" that of training.
        updates_per_batch: optimizer steps per batch of queries, as the module takes them.

    Raises:
        ValueError: If the data set has no rows, or none is left.
        EnvironmentDataError: If a query has no positive, or one that the corpus does not have.
    """

    def __init__(
        self,
        data: TrainingData,
        embedder: ReasoningEmbedder,
        batch_size: int,
        seed: int,
        max_documents: int | None,
        validation_queries: int,
        validation_documents: int,
        index: MakeIndex,
        refresh: Refresh,
        store: str | Path,
        cache_dir: str | Path,
        encode_batch: int = 1024,
        index_precision: Literal["full", "run"] = "full",
        updates_per_batch: int = 1,
    ) -> None:
        super().__init__(data, batch_size, seed, validation_queries, validation_documents)
        self.embedder = embedder
        self.corpus, self.weights = data.corpus, data.weights
        rows = one_row_per_query(self.examples, n_positives=1)
        self.examples = [replace(row, reasoning=None) for row in rows]  # the policy writes its own
        if max_documents is not None and max_documents < len(data.corpus):
            self.corpus, self.examples = _part(data, self.examples, max_documents, seed)
        self.judgements = Judgements(
            _qrels(self.examples),
            self.corpus.row_of,
            len(self.corpus),
            {example.id: example.excluded_ids for example in self.examples},
        )
        self.make_index, self.refresh = index, refresh
        self.store, self.cache_dir, self.encode_batch = Path(store), Path(cache_dir), encode_batch
        self.index_precision = index_precision
        self.updates_per_batch = updates_per_batch
        self.index: LiveIndex | None = None
        self._index_state: Mapping | None = None

    @property
    def key(self) -> dict[str, str]:
        """What the rows that a run starts from depend on."""
        key = {**self.embedder.document_key, "corpus": self.corpus.fingerprint}
        if self.index_precision == "run" and self.trainer.precision_plugin.precision != "32-true":
            key["products"] = self.trainer.precision_plugin.precision
        return key

    @property
    def n_trained(self) -> int:
        return self.trainer.global_step // self.updates_per_batch

    def _precision(self) -> AbstractContextManager:
        return forward_precision(self.trainer, self.embedder.device, self.index_precision)

    def train_dataloader(self) -> DataLoader:
        """Opens the index too: weights and this module's state are restored by now, and on their device."""
        sampler = self.start_sampler(
            len(self.examples),
            sources=[example.source for example in self.examples],
            weights=self.weights or None,
            keys=[[example.query for example in self.examples]],
        )
        loader = DataLoader(Rows(self.examples), batch_sampler=sampler, collate_fn=tuple)
        self._open_index()  # last, since it may encode the corpus: a bad batch size is met before
        return loader

    def teardown(self, stage: str) -> None:
        if self.index is not None:
            self.index.close()
            self.index = None

    # ---- the index

    def encode(self, rows: np.ndarray) -> Tensor:
        """Embeddings `[n, D]` of documents by row, in fp32; every rank calls it equally often."""
        texts = [self.corpus.texts[row] for row in rows]
        with self._precision(), equal_forwards(self.embedder):
            return self.embedder.embed_documents(texts)

    def _open_index(self) -> None:
        if self.index is not None:
            return
        if self._index_state is not None:
            self.index = LiveIndex.restore(
                self.store, self.key, self._index_state, self.make_index, self.refresh,
                chunk_size=self.encode_batch,
            )  # fmt: skip
            return
        check_size((len(self.corpus), self.embedder.width), Ranks(), self.make_index)
        root = Path(self.trainer.default_root_dir).resolve()
        self.index = LiveIndex.create(
            self.store, self.key, self._cached_rows(), self.make_index, self.refresh,
            chunk_size=self.encode_batch,
            # rows in this run's folder are those of its start, which made no checkpoint
            overwrite=self.store.resolve().is_relative_to(root),
        )  # fmt: skip

    def _cached_rows(self) -> np.ndarray:
        """The corpus as the model folder encodes it: by all ranks together; the first one keeps the cache.

        Raises:
            StoreError: On every rank, if the cache cannot be used or written, or a rank fails at encoding.
        """
        ranks, key = Ranks(), self.key
        folder = store_folder(self.cache_dir, key)

        def encode(texts: Sequence[str]) -> tuple[np.ndarray, int]:
            error = None
            with equal_forwards(self.embedder):  # sharded weights need all ranks; none waits in silence
                try:
                    own_texts = texts[ranks.shard(len(texts))]
                    vectors, n_cut = self.embedder.embed_documents_and_count(own_texts)
                except Exception as failed:  # raised below: until then the other ranks need this one
                    error = _not_encoded(folder, failed)
            ranks.agree(error)
            return ranks.joined(np.asarray(vectors)), sum(ranks.gather_objects(n_cut))

        def read_or_make(encode_by_all: Embed) -> np.ndarray:
            size = self.encode_batch * ranks.size
            try:
                return stored_embeddings(self.cache_dir, key, self.corpus.texts, encode_by_all, size)
            except StoreError:
                raise
            except Exception as failed:
                raise _not_encoded(folder, failed) from failed

        with self._precision():
            rows = ranks.led(read_or_make, encode)
        return ranks.together(lambda: open_store(folder, key, len(self.corpus)) if rows is None else rows)

    # ---- checkpoints

    def state_dict(self) -> dict:
        self._index_state = self.index.state_dict()
        return {"sampler": self.sampler.state_dict(self.n_trained), "index": self._index_state}

    def load_state_dict(self, state: dict) -> None:
        self.state, self._index_state = state["sampler"], state["index"]

    def checkpoint_is_saved(self) -> None:
        """Called once the checkpoint with the last state is on disk."""
        self.index.commit(self._index_state)


def _not_encoded(folder: Path, error: Exception) -> StoreError:
    """The error that ranks tell each other, of whatever kind it was where it happened."""
    if isinstance(error, StoreError):
        return error
    result = StoreError(f"{folder}: the corpus could not be encoded ({type(error).__name__}: {error})")
    result.__cause__ = error
    return result


def _qrels(examples: Sequence[Example]) -> dict[str, dict[str, float]]:
    return {
        example.id: dict.fromkeys(sorted({example.positive_id, *example.relevant_ids}), 1.0)
        | dict(example.grades)
        for example in examples
    }


def _part(
    data: TrainingData, examples: Sequence[Example], n_documents: int, seed: int
) -> tuple[Corpus, list[Example]]:
    """Some documents, drawn at random, and the rows all of whose relevant documents are among them."""
    if n_documents < 2:
        raise ValueError(f"max_documents must be at least 2, got {n_documents}")
    drawn = np.random.default_rng(seed).permutation(len(data.corpus))[:n_documents]
    rows = np.sort(drawn).tolist()
    corpus = Corpus([data.corpus.ids[row] for row in rows], [data.corpus.texts[row] for row in rows])
    examples = [
        example
        for example in examples
        if all(document in corpus.row_of for document in (example.positive_id, *example.relevant_ids))
    ]
    if not examples:
        raise ValueError(f"max_documents={n_documents} leaves no training row of {data.name!r} complete")
    return corpus, examples
