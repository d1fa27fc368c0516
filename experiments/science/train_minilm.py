"""Trains a sentence encoder on the rows that `experiment=science_sft` trains on, by its own library.

    python -m experiments.science.train_minilm <folder of the collection> --model <folder> --seeds 1 2 3

The rows, their positives and their BM25 hard negatives are those of the configuration. The trainer and the
loss are those of sentence-transformers (an extra): MultipleNegativesRankingLoss, in which known positives of
a question are no negatives of it. Each seed leaves a folder that `model=sentence_transformer` evaluates.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import cos_sim
from torch import Tensor

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.instantiate import instantiate
from search_r3.data.types import Example


def science_rows(folder: Path) -> list[Example]:
    """The training rows of `experiment=science_sft`, with BM25 hard negatives; those without are left."""
    with ConfigSource() as source:
        config = compose("train", ["experiment=science_sft", f"data.path={folder}"], source).config
    data = instantiate(config.data)
    mined = instantiate(config.stage.datamodule.miner)(data.examples, data.corpus)
    return [row for row in mined if row.hard_negatives]


class KnownPositivesLoss(MultipleNegativesRankingLoss):
    """The library's loss, without the documents that are known to be relevant among a question's negatives.

    Args:
        model: that is trained.
        rows: a batch's labels are places in it.
    """

    def __init__(self, model: SentenceTransformer, rows: Sequence[Example]) -> None:
        super().__init__(model, similarity_fct=self._similarity)
        self.rows = rows
        self.batch: list[Example] = []

    def forward(self, sentence_features: Sequence[dict[str, Tensor]], labels: Tensor) -> Tensor:
        self.batch = [self.rows[place] for place in labels.tolist()]
        return super().forward(sentence_features, labels)

    def _similarity(self, queries: Tensor, documents: Tensor) -> Tensor:
        """`[B, 2 B]`: cosines with the positives of all rows, then with their hard negatives."""
        ids = [row.positive_id for row in self.batch] + [row.hard_negative_ids[0] for row in self.batch]
        known = [
            [name in row.relevant_ids and place != own for place, name in enumerate(ids)]
            for own, row in enumerate(self.batch)
        ]
        scores = cos_sim(queries, documents)
        return scores.masked_fill(torch.tensor(known, device=scores.device), -torch.inf)


def train(rows: Sequence[Example], model: Path, output: Path, seed: int, options: argparse.Namespace) -> None:
    """Trains one model and writes its folder."""
    encoder = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    columns = {
        "anchor": [row.query for row in rows],
        "positive": [row.positive for row in rows],
        "negative": [row.hard_negatives[0] for row in rows],
        "label": list(range(len(rows))),
    }
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output.parent / f"{output.name}-trainer"),
        seed=seed,
        data_seed=seed,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch,
        learning_rate=options.learning_rate,
        warmup_steps=0.1,
        batch_sampler=BatchSamplers.NO_DUPLICATES,  # a question stands once in a batch
        save_strategy="no",
        report_to="none",
        logging_steps=20,
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(
        model=encoder,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        loss=KnownPositivesLoss(encoder, rows),
    )
    trainer.train()
    encoder.save_pretrained(str(output), create_model_card=False)
    print(f"model     {output}")


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the arguments and trains a model per seed."""
    parser = argparse.ArgumentParser(prog="python -m experiments.science.train_minilm", description=__doc__)
    parser.add_argument("data", type=Path, help="the folder of the collection, as data.path= takes it")
    parser.add_argument("--model", type=Path, required=True, help="a folder of sentence-transformers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=32, help="questions per step")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--output", type=Path, default=Path("outputs/science/minilm"))
    options = parser.parse_args(argv)
    rows = science_rows(options.data)
    print(f"{len(rows)} rows of {len({row.query for row in rows})} questions")
    for seed in options.seeds:
        train(rows, options.model, options.output / f"seed{seed}", seed, options)


if __name__ == "__main__":
    main()
