"""The RL stage (arXiv:2510.07048, stage 2): GRPO against the ranking in the whole corpus.

A step samples `G` reasonings of each of `B` queries, brings the index as near to the model as its rule says,
counts the exact rank of every positive, and moves the policy towards the better rollouts of each group. All
rollouts of a step are scored against the same rows. Groups are never split across ranks.

    sample    sampling      queries -> rollouts
    refresh   scoring       the index follows the model
    score     scoring       rollouts -> ranks -> rewards, by `environment`
    learn     policy        rewards -> advantages -> loss, by `forward` and `contrast`
    tell      statistics, completions
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from search_r3.data.types import Example
from search_r3.distributed import equal_forwards
from search_r3.index.exact_rank import Retrieved
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.generation import Sampling
from search_r3.models.positions import check_reasoning
from search_r3.models.reference import FrozenReference
from search_r3.objectives.collapse import CollapseLimits
from search_r3.objectives.grpo import TOKEN_STATISTICS
from search_r3.objectives.rewards import Reward
from search_r3.stages.base import ValidatedModule
from search_r3.stages.gradient_cache import ChunkOutput
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.rl.completions import Completions
from search_r3.stages.rl.contrast import served_pool
from search_r3.stages.rl.environment import Environment, Outcome
from search_r3.stages.rl.forward import frozen_log_probs
from search_r3.stages.rl.policy import Learnt, learnt_from, rows_loss
from search_r3.stages.rl.rollouts import Rollouts, group_batches, micro_batches
from search_r3.stages.rl.sampling import sample_rollouts
from search_r3.stages.rl.scoring import Scoring
from search_r3.stages.rl.settings import PolicySettings, RolloutSettings
from search_r3.stages.rl.statistics import CollapseWatch, Seconds, step_means

log = logging.getLogger(__name__)
OF_LAST_UPDATE = ("clip_share_low", "clip_share_high", "ratio")
"""What is logged of the last update of a batch; at the first, the policy is the one that sampled."""
N_SHOWN_DOCUMENTS = 5
"""Of each rollout in the table."""


class RLModule(ValidatedModule):
    """GRPO over the embedder's reasoning; the data module owns index and judgements.

    Args:
        embedder: is trained.
        optimization: AdamW and schedule.
        reward: from a ranking to what is earned.
        rollouts: how reasonings are sampled.
        policy: the loss.
        collapse_limits: what stops the run with a plain message.
        rank: `exact` counts over the corpus, `topk` trusts `n_retrieved` documents.
        n_retrieved: documents per rollout that the contrastive term, `rank=topk` and the table read.
        rank_agreement_every_n_steps: how often both ranks are compared; 0 never.
        token_budget: tokens of one training forward; the model's where None.
        completions: the table of what was written.
        seed: of the rollouts.
    """

    def __init__(
        self,
        embedder: ReasoningEmbedder,
        optimization: OptimizationSettings,
        reward: Reward,
        rollouts: RolloutSettings,
        policy: PolicySettings,
        collapse_limits: CollapseLimits,
        rank: str,
        n_retrieved: int,
        rank_agreement_every_n_steps: int,
        token_budget: int | None,
        completions: Completions,
        seed: int,
    ) -> None:
        super().__init__(embedder, optimization)
        self.policy, self.rollouts, self.reward = policy, rollouts, reward
        self.watch, self.seed = CollapseWatch(collapse_limits), seed
        self.rank, self.n_retrieved = rank, n_retrieved
        self.rank_agreement_every_n_steps = rank_agreement_every_n_steps
        self.token_budget = token_budget or embedder.token_budget
        self.completions, self.records = completions, [completions.record]
        limit = rollouts.max_new_tokens or embedder.encoder.lengths.reasoning
        check_reasoning(embedder.causal_lm, embedder.encoder, "stage.module.rollouts.max_new_tokens", limit)
        ngram = embedder.encoder.lengths.repeat_ngram
        self.sampling = Sampling(limit, rollouts.temperature, rollouts.top_p, ngram)
        self.reference = FrozenReference(embedder) if policy.kl_weight > 0 else None
        self.stopped_because: str | None = None

    def on_fit_start(self) -> None:
        source, reads = self.trainer.datamodule, self.reward.reads
        if source.updates_per_batch != self.policy.n_updates:
            raise ValueError(
                f"stage.datamodule.updates_per_batch={source.updates_per_batch} must be that of "
                f"stage.module.policy.n_updates={self.policy.n_updates}: leave it out"
            )
        source.refresh.rule.reward_reads(reads.best_wrong, reads.cut_off)
        environment = Environment(
            source.judgements, self.reward, self.rank, self.rank_agreement_every_n_steps
        )
        self.scoring = Scoring(environment, source, self.n_retrieved)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vitals"] = self.watch.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.watch.restore(checkpoint["vitals"])

    # ---- a step

    @property
    def _step(self) -> int:
        """Batches taken: what schedules, ages and seeds count, however many optimizer steps a batch is."""
        return self.trainer.global_step // self.policy.n_updates

    def training_step(self, batch: Sequence[Example], batch_idx: int) -> dict[str, int]:
        self.check_fresh_adapter()
        step, seconds = self._step, Seconds(self.device)
        with seconds.part("sampling"):
            rollouts = self._sample(batch, step)
        with seconds.part("refresh"):
            line = self.scoring.refresh(rollouts, step)
        with seconds.part("search"):
            retrieved = self.scoring.search(rollouts) if self._needs_search(step) else None
        with seconds.part("scoring"):
            outcome = self.scoring.score(rollouts, step, retrieved)
        with seconds.part("audit"):
            line |= self.scoring.audit(rollouts, outcome, step)
        with seconds.part("update"):
            learnt = self._learnt(rollouts, outcome, retrieved, step)
            metrics = self._update(learnt)
        with seconds.part("table"):
            self._write_table(batch, rollouts, outcome, retrieved, step)
        metrics |= step_means(rollouts, outcome, learnt.has_spread)
        self._log_step(metrics, line, seconds, len(batch))
        n_prompt = int(rollouts.prompt_lengths.sum())
        return {"n_pairs": len(batch), "n_tokens": n_prompt + int((rollouts.n_tokens + 1).sum())}

    # ---- sample

    def _sample(self, batch: Sequence[Example], step: int) -> Rollouts:
        with equal_forwards(self.embedder):
            return sample_rollouts(
                self.embedder,
                [example.id for example in batch],
                [example.query for example in batch],
                self.sampling,
                self.rollouts.group_size,
                self.seed,
                step,
            )

    def _needs_search(self, step: int) -> bool:
        is_scored_by = self.scoring.environment.needs_retrieved(step)
        return is_scored_by or self.policy.contrastive_weight > 0 or self.completions.is_due(step)

    # ---- learn

    def _learnt(self, rollouts: Rollouts, outcome: Outcome, retrieved: Retrieved | None, step: int) -> Learnt:
        """What the rollouts teach, and what the frozen model says of them."""
        positives = self.scoring.positives(rollouts)
        has_contrast = self.policy.contrastive_weight > 0
        pool = served_pool(self.scoring.index, positives, retrieved, step) if has_contrast else None
        learnt = learnt_from(rollouts, outcome.rewards.total, positives, pool, self.policy)
        batches_of = group_batches if self._shares_prompts else micro_batches
        # at least one forward, which may be empty
        learnt.batches = self.filled_up(batches_of(rollouts, self.token_budget, learnt.teaches) or [[]])
        if self.reference is not None:
            with self.reference.active() as base:
                learnt.reference = frozen_log_probs(
                    base, rollouts, learnt.batches, shares_prompts=self._shares_prompts
                )
        return learnt

    @property
    def _shares_prompts(self) -> bool:
        """Not where it would take ranks different numbers of passes, nor where no keys are kept."""
        return not (self.shards_weights or self.embedder.causal_lm.is_gradient_checkpointing)

    def _update(self, learnt: Learnt) -> dict[str, Tensor]:
        """All optimizer steps on one batch; the numbers of the first, and those of `OF_LAST_UPDATE`."""
        names, metrics = list(learnt.rollouts.query_ids), {}
        has_none = not any(learnt.batches)
        for update in range(self.policy.n_updates):
            forward = partial(self._part_of_loss, learnt, is_first=update == 0)
            result = self.optimize(learnt.batches, forward, None, names, has_none)
            if result.is_skipped:  # as often as it would have stepped: a batch is always `n_updates` steps
                metrics = {"skipped": torch.ones(())}
                continue
            if update == 0:
                metrics = {**result.metrics, "loss": result.loss, "grad_norm": result.grad_norm}
            metrics |= {name: value for name, value in result.metrics.items() if name in OF_LAST_UPDATE}
        metrics["learning_rate"] = torch.tensor(result.learning_rate)
        return metrics

    def _part_of_loss(self, learnt: Learnt, rows: Sequence[int], is_first: bool) -> ChunkOutput:
        """The part of the loss that some rollouts have, by one forward."""
        loss, values = rows_loss(self.embedder, learnt, rows, self.policy, is_first, self._shares_prompts)
        return ChunkOutput(extra_loss=loss, metrics=values)

    # ---- tell

    def _log_step(
        self, metrics: dict[str, float | Tensor], line: dict[str, float], seconds: Seconds, batch_size: int
    ) -> None:
        """Logs a step, and stops a run that has collapsed, with the reason; the same on all ranks."""
        if metrics["groups_without_spread"] == 1:  # no token was trained: a mean over none is not 0
            metrics = {name: value for name, value in metrics.items() if name not in TOKEN_STATISTICS}
        reason = self.watch.see(metrics, self.device)
        if reason is not None:
            self.stopped_because, self.trainer.should_stop = reason, True
            log.error("stopped at step %d: %s", self.trainer.global_step, reason)
        metrics |= {f"index/{name}": value for name, value in line.items()}
        metrics |= {f"seconds/{name}": value for name, value in seconds.by_part.items()}
        told = self.over_ranks(metrics)
        self.log_dict({f"train/{name}": value for name, value in told.items()}, batch_size=batch_size)

    def _write_table(
        self,
        batch: Sequence[Example],
        rollouts: Rollouts,
        outcome: Outcome,
        retrieved: Retrieved | None,
        step: int,
    ) -> None:
        """What was written, what it earned and what it found, of the first queries of all ranks."""
        if not self.completions.is_due(step):
            return
        with equal_forwards(self.embedder):
            direct = self.embedder.embed_queries([example.query for example in batch])
        before = self.scoring.ranking(rollouts.query_ids, direct[:, None].to(self.device))
        ranks = self.scoring.ranks
        shown = self.completions.shown(len(batch), ranks.rank, ranks.size)
        best = self.scoring.titles(retrieved.rows[:shown, :, :N_SHOWN_DOCUMENTS], step)
        lines = self.completions.lines(step, batch[:shown], rollouts, outcome, before, best)
        by_rank = ranks.gather_objects(lines)
        if self.trainer.is_global_zero:
            self.completions.write(by_rank, self.loggers)
