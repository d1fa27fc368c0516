"""Data modules: they tokenize and batch what a `data=` choice read."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from src.data.collate import SFTBatch, collate_sft
from src.data.sampling import BatchStream
from src.data.types import Example, TrainingData
from src.models.embedder import ReasoningEmbedder


class _Rows(Dataset):
    """A sequence as a data set."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Example:
        return self.rows[row]


class _StreamingDataModule(pl.LightningDataModule):
    """A data module whose place in its batch stream is part of the checkpoint."""

    stream: BatchStream

    def state_dict(self) -> dict[str, int]:
        """The batches that were trained on; those that the loader fetched ahead are fetched again."""
        return {"position": self.trainer.global_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["position"]

    def _stream(self, sources, clusters, weights, batch_size, cluster_share, seed) -> BatchStream:
        stream = BatchStream(
            sources,
            clusters,
            weights,
            batch_size,
            cluster_share,
            seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        stream.load_state_dict({"position": self.start})
        return stream


class SFTDataModule(_StreamingDataModule):
    """Batches of training rows.

    Args:
        data: what was read.
        embedder: unused here; every stage's data module takes it.
        batch_size: queries per rank and step.
        hard_negatives: the most hard negatives per query.
        cluster_share: share of batches drawn within one cluster.
        seed: of the order.
        num_workers: processes that collate.

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
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if not data.examples:
            raise ValueError(f"data set {data.name!r} has no training rows")
        self.data = data
        self.batch_size, self.hard_negatives = batch_size, hard_negatives
        self.cluster_share, self.seed, self.num_workers = cluster_share, seed, num_workers
        self.start = 0

    def collate(self, examples: Sequence[Example]) -> SFTBatch:
        return collate_sft(examples, self.hard_negatives)

    def train_dataloader(self) -> DataLoader:
        examples = self.data.examples
        stream = self._stream(
            [example.source for example in examples],
            [example.cluster for example in examples],
            self.data.weights,
            self.batch_size,
            self.cluster_share,
            self.seed,
        )
        return DataLoader(
            _Rows(examples), batch_sampler=stream, collate_fn=self.collate, num_workers=self.num_workers
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


class PretrainDataModule(_StreamingDataModule):
    """Packed sequences of the training split's text: texts are joined by the end token and cut into blocks.

    Args:
        data: what was read; `data.texts` is used.
        embedder: gives the tokenizer.
        batch_size: blocks per rank and step.
        sequence_length: tokens per block.
        seed: of the order.

    Raises:
        ValueError: If the text fills less than one batch.
    """

    def __init__(
        self,
        data: TrainingData,
        embedder: ReasoningEmbedder,
        batch_size: int,
        sequence_length: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.data, self.embedder = data, embedder
        self.batch_size, self.sequence_length, self.seed = batch_size, sequence_length, seed
        self.start = 0
        self.blocks: _Blocks | None = None

    def setup(self, stage: str) -> None:
        if self.blocks is None:
            self.blocks = _Blocks(np.concatenate(list(self._token_ids())), self.sequence_length)

    def _token_ids(self) -> Iterator[np.ndarray]:
        end = self.embedder.tokenizer.eos_token_id
        order = np.random.default_rng(self.seed).permutation(len(self.data.texts))
        with tqdm(total=len(order), desc="tokenize", disable=self.trainer.global_rank != 0) as bar:
            for start in range(0, len(order), 1000):
                texts = [self.data.texts[row] for row in order[start : start + 1000]]
                for ids in self.embedder.encoder.text_ids(texts):
                    yield np.array([*ids, end], dtype=np.int32)
                bar.update(len(texts))

    def train_dataloader(self) -> DataLoader:
        same = ["text"] * len(self.blocks)
        stream = self._stream(same, same, {}, self.batch_size, 0.0, self.seed)
        return DataLoader(self.blocks, batch_sampler=stream)
