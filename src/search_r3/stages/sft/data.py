"""Batches of the SFT stage: queries, positives and hard negatives."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch.utils.data import DataLoader

from search_r3.data.queries import one_row_per_query, sharing_relevance
from search_r3.data.types import Corpus, Example, TrainingData
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.stages.data import ExamplesDataModule, Rows
from search_r3.stages.sft.collate import collate_sft

log = logging.getLogger(__name__)


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
        miner: `(examples, corpus) -> examples` with hard negatives, see `mining`; None where rows keep those
            that they came with.
        positives_per_query: above 1, all rows of a query are one row of the batch, with so many of its
            positives; the query and its reasoning are embedded once for all of them.

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
        positives_per_query: int = 1,
    ) -> None:
        super().__init__(data, batch_size, seed, validation_queries, validation_documents)
        self.data, self.miner = data, miner
        if positives_per_query > 1:
            self.examples = one_row_per_query(data.examples, positives_per_query)
        self.examples = sharing_relevance(self.examples)
        self.hard_negatives, self.cluster_share, self.num_workers = hard_negatives, cluster_share, num_workers
        self.is_mined = False

    def setup(self, stage: str) -> None:
        n_own = [len(example.hard_negatives) for example in self.examples]
        if self.miner is not None and not self.is_mined:
            self.examples, self.is_mined = self.miner(self.examples, self.data.corpus), True
        if self.trainer is None or self.trainer.is_global_zero:
            for line in self._unused_settings(n_own):
                log.info("%s", line)

    def _unused_settings(self, n_own: Sequence[int]) -> Iterator[str]:
        """What is asked for and the rows do not have, or the other way round: a line each.

        Args:
            n_own: hard negatives of each row before any was mined; those that were stand behind them.
        """
        n_rows = len(self.examples)
        n_mined = sum(bool(example.hard_negatives) for example in self.examples)
        if self.hard_negatives > 0 and n_mined == 0:
            yield (
                f"no hard negatives: stage.datamodule.hard_negatives={self.hard_negatives}, and no row has "
                "any. Set stage.datamodule.miner, as conf/experiment/sft_hard_negatives.yaml does"
            )
        n_full = sum(number >= self.hard_negatives for number in n_own)
        if self.miner is not None and self.hard_negatives > 0 and n_full > 0:
            yield (
                f"mined negatives are left out in {n_full} of {n_rows} rows, which came with "
                f"stage.datamodule.hard_negatives={self.hard_negatives} of their own; raise it to use them"
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
            monitor = getattr(getattr(self.trainer, "checkpoint_callback", None), "monitor", None)
            if monitor is not None and "/reasoning/" in monitor:
                yield (
                    f"the best weights would be those of the best {monitor}, which is not trained here. Set "
                    "stage.callbacks.checkpoint.monitor=val/direct/ndcg@10"
                )
        if self.cluster_share > 0 and not any(example.cluster for example in self.examples):
            yield (
                f"no row names a cluster, so stage.datamodule.cluster_share={self.cluster_share} does "
                "nothing; set it to 0"
            )

    def train_dataloader(self) -> DataLoader:
        rows = self.examples
        sampler = self.start_sampler(
            len(rows),
            sources=[example.source for example in rows],
            clusters=[example.cluster for example in rows],
            weights=self.data.weights or None,
            same_cluster_share=self.cluster_share,
            keys=[[example.positive_id for example in rows]],
        )
        collate = partial(collate_sft, hard_negatives=self.hard_negatives)
        return DataLoader(Rows(rows), batch_sampler=sampler, collate_fn=collate, num_workers=self.num_workers)
