"""Data modules: they batch what a `data=` choice read."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.data.collate import collate_sft
from src.data.types import Benchmark, Corpus, Example, TrainingData
from src.models.embedder import ReasoningEmbedder
from src.models.positions import check_length
from src.progress import Progress
from src.stages.sampling import GroupedBatchSampler

log = logging.getLogger(__name__)


class Rows(Dataset):
    """A sequence as a data set."""

    def __init__(self, rows: Sequence) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> object:
        return self.rows[row]


class StreamingDataModule(pl.LightningDataModule):
    """A data module whose place in its stream of batches is part of the checkpoint."""

    sampler: GroupedBatchSampler | None = None
    state: dict | None = None

    def _start(self, sampler: GroupedBatchSampler) -> GroupedBatchSampler:
        if self.state is not None:
            sampler.load_state_dict(self.state)
        self.sampler = sampler
        return sampler

    def state_dict(self) -> dict:
        """The batches that were trained on; those that the loader fetched ahead are fetched again."""
        return {} if self.sampler is None else self.sampler.state_dict(self.trainer.global_step)

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
    return Benchmark(
        name=benchmark.name,
        corpus=Corpus([corpus.ids[row] for row in rows], [corpus.texts[row] for row in rows]),
        queries={query: benchmark.queries[query] for query in chosen},
        qrels={query: benchmark.qrels[query] for query in chosen},
        remove_self_match=benchmark.remove_self_match,
    )


class ExamplesDataModule(StreamingDataModule):
    """Batches of training rows, and a small collection for in-training evaluation.

    Args:
        data: what was read.
        validation_queries: of the data set's validation collection.
        validation_documents: of the same.

    Raises:
        ValueError: If the data set has no rows.
    """

    def __init__(self, data: TrainingData, validation_queries: int, validation_documents: int) -> None:
        super().__init__()
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


class SFTDataModule(ExamplesDataModule):
    """Batches of pairs with their hard negatives and reasoning.

    Args:
        data: what was read.
        embedder: unused here; every stage's data module takes it.
        batch_size: queries of all ranks together per step.
        hard_negatives: the most hard negatives per query.
        cluster_share: share of batches drawn within one cluster, whose rows are alike.
        seed: of the order.
        validation_queries: of the data set's validation collection.
        validation_documents: of the same.
        num_workers: processes that collate.
        miner: `(examples, corpus) -> examples` with hard negatives, as `src.data.mining` has them; None where
            rows keep those that they came with.

    Raises:
        ValueError: If the data set has no rows.
    """

    def __init__(
        self,
        data: TrainingData,
        embedder: ReasoningEmbedder,
        batch_size: int,
        hard_negatives: int,
        cluster_share: float,
        seed: int,
        validation_queries: int,
        validation_documents: int,
        num_workers: int = 0,
        miner: Callable[[Sequence[Example], Corpus], list[Example]] | None = None,
    ) -> None:
        super().__init__(data, validation_queries, validation_documents)
        self.data, self.miner = data, miner
        self.batch_size, self.hard_negatives = batch_size, hard_negatives
        self.cluster_share, self.seed, self.num_workers = cluster_share, seed, num_workers

    def setup(self, stage: str) -> None:
        if self.miner is not None and self.examples is self.data.examples:
            self.examples = self.miner(self.data.examples, self.data.corpus)
        if self.trainer is None or self.trainer.is_global_zero:
            for line in self._unused_settings():
                log.info("%s", line)

    def _unused_settings(self) -> Iterator[str]:
        """What is asked for and the rows do not have, or the other way round: a line each."""
        n_rows = len(self.examples)
        n_mined = sum(bool(example.hard_negatives) for example in self.examples)
        if self.hard_negatives > 0 and n_mined == 0:
            yield (
                f"no hard negatives: stage.datamodule.hard_negatives={self.hard_negatives}, and no row has "
                "any. Set stage.datamodule.miner, as conf/experiment/sft_hard_negatives.yaml does"
            )
        if self.hard_negatives == 0 and n_mined > 0:
            yield (
                f"hard negatives are left out: {n_mined} of {n_rows} rows have some. Set "
                "stage.datamodule.hard_negatives to use them"
            )
        if not any(example.reasoning for example in self.examples):
            yield (
                "no row has a reasoning, so the embedding after a reasoning is not trained. "
                "data.with_reasoning=true gives each row one, where the data set has that key"
            )
        if self.cluster_share > 0 and not any(example.cluster for example in self.examples):
            yield (
                f"no row names a cluster, so stage.datamodule.cluster_share={self.cluster_share} does "
                "nothing; set it to 0"
            )

    def train_dataloader(self) -> DataLoader:
        rows = self.examples
        sampler = GroupedBatchSampler(
            len(rows),
            sources=[example.source for example in rows],
            clusters=[example.cluster for example in rows],
            batch_size=self.batch_size,
            seed=self.seed,
            weights=self.data.weights or None,
            same_cluster_share=self.cluster_share,
            keys=[[example.positive_id for example in rows]],
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        collate = partial(collate_sft, hard_negatives=self.hard_negatives)
        return DataLoader(
            Rows(rows), batch_sampler=self._start(sampler), collate_fn=collate, num_workers=self.num_workers
        )


class _Blocks(Dataset):
    """Consecutive blocks of one long sequence of token ids."""

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def __getitem__(self, row: int) -> Tensor:
        start = row * self.length
        return torch.from_numpy(self.tokens[start : start + self.length].astype(np.int64))


class PretrainDataModule(StreamingDataModule):
    """Packed sequences of the training split's text: texts are joined by the end token and cut into blocks.

    Args:
        data: what was read; `data.texts` is used.
        embedder: gives the tokenizer.
        batch_size: blocks of all ranks together per step.
        sequence_length: tokens per block.
        text_length: tokens that are taken of a text, from its start; None takes all.
        seed: of the order.

    Raises:
        ValueError: If the text is shorter than one block.
    """

    def __init__(
        self,
        data: TrainingData,
        embedder: ReasoningEmbedder,
        batch_size: int,
        sequence_length: int,
        text_length: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        if text_length is not None and text_length < 1:
            raise ValueError(f"stage.datamodule.text_length must be at least 1 token, got {text_length}")
        check_length(embedder.causal_lm, "stage.datamodule.sequence_length", sequence_length)
        if embedder.tokenizer.eos_token_id is None:
            raise ValueError("pretraining puts an end-of-text token after each text; this tokenizer has none")
        self.data, self.embedder = data, embedder
        self.batch_size, self.sequence_length, self.seed = batch_size, sequence_length, seed
        self.text_length = text_length
        self.blocks: _Blocks | None = None

    def setup(self, stage: str) -> None:
        if self.blocks is None:
            tokens = np.concatenate([np.empty(0, np.int32), *self._token_ids()])
            if len(tokens) < self.sequence_length:
                raise ValueError(
                    f"the text of data set {self.data.name!r} has {len(tokens)} tokens, fewer than "
                    f"stage.datamodule.sequence_length={self.sequence_length}, so it gives no block; lower it"
                )
            self.blocks = _Blocks(tokens, self.sequence_length)

    def _token_ids(self) -> Iterator[np.ndarray]:
        end = self.embedder.tokenizer.eos_token_id
        order = np.random.default_rng(self.seed).permutation(len(self.data.texts))
        with Progress(len(order), "tokenize", "texts", self.trainer.global_rank == 0) as bar:
            for start in range(0, len(order), 1000):
                texts = [self.data.texts[row] for row in order[start : start + 1000]]
                for ids in self.embedder.encoder.text_ids(texts, self.text_length):
                    yield np.array([*ids, end], dtype=np.int32)
                bar.update(len(texts))

    def train_dataloader(self) -> DataLoader:
        sampler = GroupedBatchSampler(
            len(self.blocks),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return DataLoader(self.blocks, batch_sampler=self._start(sampler))
