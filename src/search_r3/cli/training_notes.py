"""What a training run says before its first step of what it will not do: read a text whole, or validate."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from search_r3.models.embedder import ReasoningEmbedder

N_LOOKED_AT = 1000
"""Rows of the training data whose texts are measured."""


def cut(
    trainer: "pl.Trainer", datamodule: "pl.LightningDataModule", embedder: "ReasoningEmbedder"
) -> Iterator[str]:
    """Which texts of the rows the model reads only a part of; of many rows `N_LOOKED_AT` are looked at."""
    from search_r3.models.interface import CUT_SHARE_TOLD

    examples = getattr(datamodule, "examples", ())
    if not trainer.is_global_zero or not examples:
        return
    rows = examples[:: -(-len(examples) // N_LOOKED_AT)]
    texts = {
        "query": [row.query for row in rows],
        "document": [row.positive for row in rows],
        "reasoning": [row.reasoning for row in rows if row.reasoning is not None],
    }
    for kind, those in texts.items():
        n_cut = embedder.truncated_count(those, kind)
        if n_cut > CUT_SHARE_TOLD * len(those):
            yield (
                f"{n_cut} of {len(those)} rows that were looked at have a {kind} longer than "
                f"{embedder.limit(kind)}, and it is cut. A new model takes another limit by "
                f"model.lengths.{kind}="
            )


def unvalidated(trainer: "pl.Trainer", datamodule: "pl.LightningDataModule") -> Iterator[str]:
    """Why a stage that validates will not in this run; nothing where it will."""
    if not trainer.is_global_zero or trainer.fast_dev_run or not hasattr(datamodule, "validation"):
        return
    result = "so there is no best checkpoint, and the last weights become the model"
    interval, per_batch = trainer.val_check_interval, getattr(datamodule, "updates_per_batch", 1)
    n_batches = -(-trainer.max_steps // per_batch)  # an interval is of batches, max_steps of steps
    if datamodule.validation is None:
        yield (
            f"no validation: the data set has no validation rows, {result}. Set data.validation_share above "
            "0, or give a split of its own (data.validation_split, data.sizes.validation_people)"
        )
    elif trainer.limit_val_batches == 0:
        yield f"no validation: stage.trainer.limit_val_batches=0, {result}"
    elif isinstance(interval, int) and interval > n_batches > 0:
        last = f"the last step, {n_batches}"
        if per_batch > 1:
            last = f"the last batch, {n_batches} (max_steps={trainer.max_steps}, {per_batch} steps per batch)"
        yield (
            f"no validation: stage.trainer.val_check_interval={interval} is beyond {last}, {result}. "
            f"Set it to {n_batches} or less"
        )
