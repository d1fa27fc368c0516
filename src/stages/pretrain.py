"""The pretraining stage: plain causal language modelling, so that a model made from scratch can write.

The paper starts from a model that can; `model=nano` cannot until it has been here. The embed token does not
occur in the text, so its row stays as it was initialised.
"""

from contextlib import nullcontext

import pytorch_lightning as pl
import torch
from torch import Tensor

from src.models.embedder import ReasoningEmbedder
from src.objectives.losses import token_cross_entropy
from src.stages.optimization import OptimizationSettings, build_optimizer, finish_step, no_sync_of


class PretrainModule(pl.LightningModule):
    """Next-token prediction on packed blocks.

    Args:
        embedder: whose backbone is trained.
        optimization: AdamW and schedule.
        micro_batch: blocks per forward; the gradient does not depend on it.
    """

    def __init__(
        self, embedder: ReasoningEmbedder, optimization: OptimizationSettings, micro_batch: int
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.embedder = embedder
        self.optimization = optimization
        self.micro_batch = micro_batch

    def configure_optimizers(self) -> dict[str, object]:
        return build_optimizer(self.embedder, self.optimization, self.trainer.estimated_stepping_batches)

    def block_loss(self, blocks: Tensor, n_targets: int) -> Tensor:
        """Cross-entropy of blocks `[n, L]`, as their share of the mean over `n_targets` targets."""
        states = self.embedder.hidden_states(blocks, torch.ones_like(blocks, dtype=torch.bool))
        states, targets = states[:, :-1].flatten(0, 1), blocks[:, 1:].flatten()
        return token_cross_entropy(states, self.embedder.head.weight, targets) / n_targets

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        n_targets = batch[:, 1:].numel()
        parts = batch.split(self.micro_batch)
        loss = torch.zeros((), device=batch.device)
        for number, part in enumerate(parts, start=1):
            with nullcontext() if number == len(parts) else no_sync_of(self)():
                part_loss = self.block_loss(part, n_targets)
                self.manual_backward(part_loss)
            loss += part_loss.detach()
        norm = finish_step(
            self, loss, self.optimization, [f"block {batch_idx}/{i}" for i in range(len(batch))]
        )
        rate = self.lr_schedulers().get_last_lr()[0]
        self.log_dict(
            {"train/loss": loss, "train/grad_norm": norm, "train/learning_rate": rate}, prog_bar=True
        )
