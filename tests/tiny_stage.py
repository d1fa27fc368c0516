"""A real stage of a few milliseconds per step, for the tests of the command line: data, module, configs."""

import textwrap
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from search_r3.data.types import Benchmark, Corpus, Example, TrainingData
from search_r3.models.embedder import ReasoningEmbedder

TEXTS = tuple(
    f"def add_{word}(x):\n    return x + {number}" for number, word in enumerate("abcdefghijklmnop")
)


def load_tiny(is_broken: bool = False, **unused: object) -> TrainingData:
    """Sixteen functions.

    Raises:
        ValueError: If `is_broken`, as a reader would for a bad row.
    """
    if is_broken:
        raise ValueError("rows.jsonl:3: query is empty")
    ids = tuple(map(str, range(len(TEXTS))))
    rows = tuple(
        Example(id=i, query=f"adds {i}", positive=text, positive_id=i)
        for i, text in zip(ids, TEXTS, strict=True)
    )
    whole = Benchmark("tiny-validation", Corpus(ids, TEXTS), {"q": "adds 1", "r": "adds 2"}, {"q": {"1": 1}})
    return TrainingData(
        "tiny", Corpus(ids, TEXTS), rows, validation=whole, texts=TEXTS, card={"licence": "made by a test"}
    )


class TinyDataModule(pl.LightningDataModule):
    """Batches of row numbers."""

    def __init__(self, data: TrainingData, embedder: ReasoningEmbedder, batch_size: int = 4) -> None:
        super().__init__()
        self.rows, self.batch_size = list(range(len(data.examples))), batch_size
        few = Corpus(data.corpus.ids[:4], data.corpus.texts[:4])  # validation is on less than was read
        self.validation = Benchmark("tiny-validation", few, {"q": "adds 1"}, {"q": {"1": 1}})

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows[:4], batch_size=4)


class TinyModule(pl.LightningModule):
    """Moves every weight towards zero at a learning rate; the validation metric falls with their size.

    Where `gate` names a file, it takes as many steps as the number in that file says, and then waits for a
    larger one.
    """

    def __init__(
        self,
        embedder: ReasoningEmbedder,
        learning_rate: float = 0.1,
        fails_at_step: int | None = None,
        gate: str | None = None,
    ) -> None:
        super().__init__()
        self.model = embedder.model
        self.learning_rate = learning_rate
        self.fails_at_step = fails_at_step
        self.gate = None if gate is None else Path(gate)
        self.automatic_optimization = False

    def _size(self) -> torch.Tensor:
        return torch.stack([weight.square().mean() for weight in self.model.parameters()]).mean()

    def training_step(self, batch: torch.Tensor, batch_index: int) -> dict[str, int]:
        if self.global_step == self.fails_at_step:
            raise RuntimeError("this job was told to fail")
        while self.gate is not None and self.global_step >= int(self.gate.read_text()):
            time.sleep(0.01)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self._size()
        self.manual_backward(loss)
        optimizer.step()
        self.log("train/loss", loss)
        return {"masked_by_id": 1, "candidates_direct": 8}

    def validation_step(self, batch: torch.Tensor, batch_index: int) -> None:
        self.log("val/direct/ndcg@10", 1.0 / (1.0 + self._size()), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


STAGE = """
name: tiny
module:
  _target_: tests.tiny_stage.TinyModule
  learning_rate: 0.1
  fails_at_step: null
  gate: null
datamodule:
  _target_: tests.tiny_stage.TinyDataModule
  batch_size: 4
callbacks:
  checkpoint:
    _target_: search_r3.stages.checkpoint.TrainableCheckpoint
    folder: ${output_dir}/checkpoints
    monitor: val/direct/ndcg@10
    save_every_n_steps: 50
trainer:
  max_steps: 6
  val_check_interval: 3
  check_val_every_n_epoch: null
  num_sanity_val_steps: 0
  log_every_n_steps: 1
"""
DATA = """
_target_: tests.tiny_stage.load_tiny
is_broken: false
path: null
columns: {}
"""
MODEL = """
_target_: search_r3.models.folder.opening.open_embedder
path: null
name: null
create:
  _target_: search_r3.models.nano.create_nano
  _partial_: true
  vocab_size: 300
  hidden_size: 16
  intermediate_size: 32
  num_hidden_layers: 1
  num_attention_heads: 2
  num_key_value_heads: 1
  max_position_embeddings: 256
  seed: ${seed}
prompts: {direct_system: d, reasoning_system: r, document_system: t, lead_in: "", closing: ""}
lengths: {query: 16, document: 16, reasoning: 8}
tuning:
  _target_: search_r3.models.tuning.FullTuning
"""


def write_configs(folder: Path) -> Path:
    """A folder for `--config-dir` with stage=tiny, data=tiny and model=tiny."""
    for group, text in (("stage", STAGE), ("data", DATA), ("model", MODEL)):
        path = folder / group / "tiny.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    return folder
