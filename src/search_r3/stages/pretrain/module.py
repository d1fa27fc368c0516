"""The pretraining stage: plain causal language modelling, so that a model made from scratch can write.

The paper starts from a model that can; `model=nano` cannot until it has been here. The embed token does not
occur in the text, so its row stays as it was initialised.
"""

from functools import partial

import torch
from torch import Tensor

from search_r3.distributed import share_of_count
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.objectives.losses import sft_cross_entropy
from search_r3.stages.base import StageModule
from search_r3.stages.gradient_cache import ChunkOutput
from search_r3.stages.optimization import OptimizationSettings


class PretrainModule(StageModule):
    """Next-token prediction on packed blocks.

    Args:
        embedder: whose backbone is trained.
        optimization: AdamW and schedule.
        micro_batch: blocks per forward; the gradient does not depend on it.
    """

    def __init__(
        self, embedder: ReasoningEmbedder, optimization: OptimizationSettings, micro_batch: int
    ) -> None:
        super().__init__(embedder, optimization)
        self.micro_batch = micro_batch

    def block_loss(self, blocks: Tensor, denominator: float) -> ChunkOutput:
        """Summed cross-entropy of blocks `[n, L]` over `denominator` targets."""
        states = self.embedder.hidden_states(blocks, torch.ones_like(blocks, dtype=torch.bool))
        states, targets = states[:, :-1].flatten(0, 1), blocks[:, 1:].flatten()
        loss = sft_cross_entropy(states, self.embedder.logits, targets, denominator=denominator)
        return ChunkOutput(extra_loss=loss)

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, int]:
        self.check_fresh_adapter()
        denominator = share_of_count(batch[:, 1:].numel(), self.device)
        chunks = batch.split(self.micro_batch)
        # Sharded weights need equally many forwards on all ranks: a block of one token has no target.
        chunks = [*([batch[:1, :1]] * self.n_missing(len(chunks))), *chunks]
        names = [f"block {batch_idx}/{row}" for row in range(len(batch))]
        result = self.optimize(chunks, partial(self.block_loss, denominator=denominator), None, names)
        told = self.over_ranks({"loss": result.loss, "grad_norm": result.grad_norm})
        self.log_dict({f"train/{name}": value for name, value in told.items()}, prog_bar=True)
        self.log("train/learning_rate", result.learning_rate)
        return {"n_tokens": batch.numel()}
