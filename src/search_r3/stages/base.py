"""What the modules of all stages have in common."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from search_r3.data.types import Benchmark
from search_r3.distributed import own_place, reduced
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.reference import FrozenReference
from search_r3.models.twin import ArchitectureError, fresh_adapter_difference
from search_r3.stages.gradient_cache import Chunk, ChunkOutput, LossOverAll, backward_with_cache
from search_r3.stages.optimization import OptimizationSettings, build_optimizer, build_scheduler
from search_r3.stages.sharding import ShardedStrategy
from search_r3.stages.step import StepResult, block_sync, optimization_step
from search_r3.stages.validation import validate


class StageModule(pl.LightningModule):
    """Trains an embedder. A step runs its own optimizer, so that a loss that is not finite changes nothing.

    Args:
        embedder: is trained.
        optimization: AdamW and schedule.

    Attributes:
        shards_weights: whether a forward or backward needs all ranks, which must then run equally many.
        reference: the frozen model of KL; None where there is none.
    """

    shards_weights = False
    reference: FrozenReference | None = None

    def __init__(self, embedder: ReasoningEmbedder, optimization: OptimizationSettings) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.embedder, self.optimization = embedder, optimization
        self.has_checked_adapter = False

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = build_optimizer(self.embedder.named_parameters(), self.optimization)
        return [optimizer], [build_scheduler(optimizer, self.optimization, self.trainer.max_steps)]

    def setup(self, stage: str) -> None:
        self.shards_weights = not isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy)

    def configure_model(self) -> None:
        """Splits the weights among the ranks, under the strategy that does."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            frozen = [] if self.reference is None else self.reference.copies
            self.trainer.strategy.shard(self.embedder, frozen)

    def on_fit_end(self) -> None:
        """Leaves the first rank with a whole model, to be saved."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.gather(self.embedder)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Forgets what the last line of the log has: Lightning would repeat it on every later one.

        A value that few steps have, as an audit's, is then on the one line of its step.
        """
        loop = self.trainer.fit_loop.epoch_loop
        if loop._batches_that_stepped % self.trainer.log_every_n_steps == 0:
            loop._results.clear()

    def over_ranks(
        self, metrics: Mapping[str, float | Tensor], counts: Collection[str] = ()
    ) -> dict[str, float | Tensor]:
        """Means over ranks of what every rank has measured of a step, and sums of `counts`; collective."""
        n_ranks = own_place()[1]
        if n_ranks == 1:
            return dict(metrics)
        own = [torch.as_tensor(value, dtype=torch.float32, device=self.device) for value in metrics.values()]
        totals = zip(metrics, reduced(torch.stack(own)), strict=True)
        return {name: total if name in counts else total / n_ranks for name, total in totals}

    def check_fresh_adapter(self) -> None:
        """Before the first step: an adapter that has learnt nothing must change nothing, on real tokens.

        Called within `training_step`, where sharded weights can be used.

        Raises:
            ArchitectureError: If it does.
        """
        if self.trainer.global_step == 0 and not self.has_checked_adapter:
            self.has_checked_adapter = True
            (row,) = self.embedder.encoder.documents(["a fresh adapter changes nothing"])
            fault = fresh_adapter_difference(self.embedder.model, row)
            if fault:
                raise ArchitectureError(
                    f"{type(self.embedder.causal_lm).__name__} cannot be trained: {fault}"
                )

    def optimize(
        self,
        chunks: Sequence[Chunk],
        forward: Callable[[Chunk], ChunkOutput],
        loss_fn: LossOverAll | None,
        batch_ids: Sequence[str],
        skip: bool = False,
    ) -> StepResult:
        """One optimizer step on chunks of a batch: `optimization_step` around `backward_with_cache`."""
        backward = partial(
            backward_with_cache, chunks, forward, loss_fn, self.manual_backward, block_sync(self)
        )
        return optimization_step(self, backward, batch_ids, self.optimization.max_grad_norm, skip)

    def n_missing(self, n: int) -> int:
        """By how many `n` is below the largest of all ranks where weights are sharded; 0 where they are not.

        Collective in the first case.
        """
        if not self.shards_weights:
            return 0
        most = reduced(torch.tensor(n, device=self.device), "max")
        return int(most) - n

    def filled_up(self, batches: Iterable[Sequence[int]]) -> list[Sequence[int]]:
        """The batches, then empty ones, so that all ranks run equally many where weights are sharded."""
        batches = list(batches)
        return [*batches, *([] for _ in range(self.n_missing(len(batches))))]


class ValidatedModule(StageModule):
    """A stage whose data module has a collection for in-training evaluation."""

    def validation_step(self, benchmark: Benchmark, batch_idx: int) -> None:
        """Metrics of both modes on a small collection, and how reasonings end; the ranks share the work."""
        for name, value in validate(self.embedder, benchmark).items():
            self.log(f"val/{name}", value, prog_bar=name.endswith("ndcg@10"), batch_size=1)
