"""Blocks of text for causal language modelling."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from search_r3.data.types import TrainingData
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.positions import check_length
from search_r3.progress import Progress
from search_r3.stages.data import StreamingDataModule


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
        super().__init__(batch_size, seed)
        if text_length is not None and text_length < 1:
            raise ValueError(f"stage.datamodule.text_length must be at least 1 token, got {text_length}")
        check_length(embedder.causal_lm, "stage.datamodule.sequence_length", sequence_length)
        if embedder.tokenizer.eos_token_id is None:
            raise ValueError("pretraining puts an end-of-text token after each text; this tokenizer has none")
        self.data, self.embedder = data, embedder
        self.sequence_length, self.text_length = sequence_length, text_length
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
        return DataLoader(self.blocks, batch_sampler=self.start_sampler(len(self.blocks)))
