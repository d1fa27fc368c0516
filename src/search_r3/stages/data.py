"""Data modules: they batch what a `data=` choice read."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from search_r3.data.types import Benchmark, Corpus, TrainingData
from search_r3.stages.sampler import GroupedBatchSampler


class Rows(Dataset):
    """A sequence as a data set."""

    def __init__(self, rows: Sequence) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> object:
        return self.rows[row]


class StreamingDataModule(pl.LightningDataModule):
    """A data module whose place in its stream of batches is part of the checkpoint.

    Args:
        batch_size: rows of all ranks together per step.
        seed: of their order.
    """

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.sampler: GroupedBatchSampler | None = None
        self.state: dict | None = None

    @property
    def n_trained(self) -> int:
        """Batches that training has finished."""
        return self.trainer.global_step

    def start_sampler(self, n_rows: int, **columns: object) -> GroupedBatchSampler:
        """The batches of this rank, from where the stream is on.

        Args:
            n_rows: rows of the data set.
            columns: what else `GroupedBatchSampler` is told of the rows, and of how they are drawn.
        """
        sampler = GroupedBatchSampler(
            n_rows,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            **columns,
        )
        sampler.only_first = self.trainer.overfit_batches or None
        sampler.n_trained = lambda: self.n_trained
        if self.state is not None:
            sampler.load_state_dict(self.state)
        self.sampler = sampler
        return sampler

    def state_dict(self) -> dict:
        """The batches that were trained on; those that the loader fetched ahead are fetched again."""
        return {} if self.sampler is None else self.sampler.state_dict(self.n_trained)

    def load_state_dict(self, state: dict) -> None:
        self.state = state or None


def thinned(benchmark: Benchmark, n_queries: int, n_documents: int, seed: int) -> Benchmark:
    """A small part of a collection: some queries, all their relevant documents, and others to tell them from.

    Args:
        benchmark: the whole.
        n_queries: kept at random.
        n_documents: kept at random, the relevant ones always.
        seed: of both draws.
    """
    random = np.random.default_rng(seed)
    names = sorted(benchmark.queries)
    chosen = [names[row] for row in sorted(random.permutation(len(names))[:n_queries])]
    known = benchmark.corpus.row_of  # a judged document may be missing
    relevant = {known[i] for query in chosen for i in benchmark.qrels[query] if i in known}
    others = [row for row in random.permutation(len(benchmark.corpus)).tolist() if row not in relevant]
    rows = sorted(relevant | set(others[: max(n_documents - len(relevant), 0)]))
    corpus = benchmark.corpus
    kept = Corpus([corpus.ids[row] for row in rows], [corpus.texts[row] for row in rows])
    return replace(benchmark.with_queries(chosen), corpus=kept)


class ExamplesDataModule(StreamingDataModule):
    """Batches of training rows, and a small collection for in-training evaluation.

    Args:
        data: what was read.
        batch_size: rows of all ranks together per step.
        seed: of their order.
        validation_queries: of the data set's validation collection.
        validation_documents: of the same.

    Raises:
        ValueError: If the data set has no rows.
    """

    def __init__(
        self,
        data: TrainingData,
        batch_size: int,
        seed: int,
        validation_queries: int,
        validation_documents: int,
    ) -> None:
        super().__init__(batch_size, seed)
        if not data.examples:
            raise ValueError(f"data set {data.name!r} has no training rows")
        self.examples = data.examples
        self.validation = None
        if data.validation is not None:
            self.validation = thinned(data.validation, validation_queries, validation_documents, seed=0)

    def val_dataloader(self) -> DataLoader | list:
        """One item: the collection itself."""
        return [] if self.validation is None else DataLoader(Rows([self.validation]), batch_size=None)

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Rows are texts until the module tokenizes them; there is nothing to move."""
        return batch
