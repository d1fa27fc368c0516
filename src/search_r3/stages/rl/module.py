"""The RL stage (arXiv:2510.07048, stage 2): GRPO against the ranking in the whole corpus.

A step samples `G` reasonings of each of `B` queries, brings the index as near to the model as its rule says,
counts the exact rank of every positive, and moves the policy towards the better rollouts of each group. All
rollouts of a step are scored against the same rows. Groups are never split across ranks.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search_r3.data.types import Example
from search_r3.distributed import equal_forwards, mean_over_ranks, reduced, share_of_count
from search_r3.index.exact_rank import Positives, Retrieved, Shard, exact_ranking
from search_r3.index.rules.base import StepQueries
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.generation import Sampling
from search_r3.models.positions import check_reasoning
from search_r3.models.reference import FrozenReference
from search_r3.objectives.collapse import CollapseLimits, Vitals, collapse
from search_r3.objectives.grpo import (
    TOKEN_STATISTICS,
    Advantages,
    PolicyBatch,
    dr_grpo,
    group_advantages,
    policy_loss,
    policy_statistics,
    trained_tokens,
)
from search_r3.objectives.losses import info_nce
from search_r3.objectives.rewards import Ranking, Reward
from search_r3.stages.base import ValidatedModule
from search_r3.stages.optimization import OptimizationSettings, block_sync, optimization_step
from search_r3.stages.rl.completions import Completions
from search_r3.stages.rl.environment import Environment, Outcome
from search_r3.stages.rl.policy import token_weights
from search_r3.stages.rl.rollouts import (
    Rollouts,
    frozen_log_probs,
    group_batches,
    micro_batches,
    of_rows,
    sample_rollouts,
    training_forward,
)
from search_r3.stages.rl.settings import ESTIMATORS, NORMALISATIONS, PolicySettings, RolloutSettings

log = logging.getLogger(__name__)
OF_LAST_UPDATE = ("clip_share_low", "clip_share_high", "ratio")
"""What is logged of the last update of a batch; at the first, the policy is the one that sampled."""


@dataclass(frozen=True)
class Pool:
    """The documents of the contrastive term, as served: the same `M` on every rank.

    Attributes:
        rows: `[M]` corpus rows, ascending, each once.
        vectors: `[M, D]` fp32.
    """

    rows: Tensor
    vectors: Tensor

    def negatives_of(self, relevant: Tensor) -> Tensor:
        """`[n, M]` bool, False at the rows that are relevant; `relevant` is `[n, P]`, -1 for none."""
        mask = torch.ones(len(relevant), len(self.rows), dtype=torch.bool, device=self.rows.device)
        for column in relevant.unbind(1):
            mask &= self.rows != column[:, None]
        return mask


@dataclass
class Learnt:
    """A batch of rollouts on its way through the updates.

    Attributes:
        rollouts: what was sampled.
        advantages: `[B, G]`.
        has_spread: `[B]` bool.
        weights: `[B, G, L]`, see `token_weights`.
        old: `[B, G, L]` log-probabilities before the first update; filled by it.
        reference: `[B, G, L]` of the frozen model; None where KL has no weight.
        positives: of the `B` queries.
        pool: of the contrastive term; None where it has no weight.
        contrasted: `[B, G]` fp32, 1 at the rollouts that the contrastive term takes, 0 at the others.
        batches: rollout numbers `b * G + g`, a forward each; some may be empty.
    """

    rollouts: Rollouts
    advantages: Tensor
    has_spread: Tensor
    weights: Tensor
    old: Tensor
    reference: Tensor | None
    positives: Positives
    pool: Pool | None
    contrasted: Tensor
    batches: list[Sequence[int]]


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
        self.collapse_limits, self.seed = collapse_limits, seed
        self.rank, self.n_retrieved = rank, n_retrieved
        self.rank_agreement_every_n_steps = rank_agreement_every_n_steps
        self.token_budget = token_budget or embedder.token_budget
        self.completions, self.records = completions, [completions.record]
        limit = rollouts.max_new_tokens or embedder.encoder.lengths.reasoning
        check_reasoning(embedder.causal_lm, embedder.encoder, "stage.module.rollouts.max_new_tokens", limit)
        ngram = embedder.encoder.lengths.repeat_ngram
        self.sampling = Sampling(limit, rollouts.temperature, rollouts.top_p, ngram)
        self.normalisation = NORMALISATIONS[policy.normalisation]
        if self.normalisation is dr_grpo:
            self.normalisation = partial(dr_grpo, max_tokens=limit)
        self.reference = FrozenReference(embedder) if policy.kl_weight > 0 else None
        self.vitals: list[Vitals] = []
        self.stopped_because: str | None = None

    def on_fit_start(self) -> None:
        reads = self.reward.reads
        self.trainer.datamodule.refresh.rule.reward_reads(reads.best_wrong, reads.cut_off)
        self.environment = Environment(
            self.trainer.datamodule.judgements, self.reward, self.rank, self.rank_agreement_every_n_steps
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vitals"] = [[each.entropy, each.n_tokens, each.flat_share] for each in self.vitals]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.vitals = [Vitals(*each) for each in checkpoint["vitals"]]

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
            line = self._refresh(rollouts, step)
        with seconds.part("search"):
            retrieved = self._retrieved(rollouts, step)
        with seconds.part("scoring"):
            outcome = self._score(rollouts, step, retrieved)
        with seconds.part("audit"):
            line |= self._audit(rollouts, outcome, step)
        with seconds.part("update"):
            learnt = self._learnt(rollouts, outcome, retrieved, step)
            metrics = self._update(learnt)
        with seconds.part("table"):
            self._write_table(batch, rollouts, outcome, retrieved, step)
        metrics |= self._summary(rollouts, outcome, learnt)
        if metrics["groups_without_spread"] == 1:  # no token was trained: a mean over none is not 0
            metrics = {name: value for name, value in metrics.items() if name not in TOKEN_STATISTICS}
        self._watch(metrics)
        metrics |= {f"index/{name}": value for name, value in line.items()}
        metrics |= {f"seconds/{name}": value for name, value in seconds.by_part.items()}
        logged = {f"train/{name}": value for name, value in metrics.items()}
        self.log_dict(logged, batch_size=len(batch), sync_dist=True)  # all are means over ranks
        n_prompt = int(rollouts.prompt_lengths.sum())
        return {"n_pairs": len(batch), "n_tokens": n_prompt + int((rollouts.n_tokens + 1).sum())}

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

    def _asked(self, rollouts: Rollouts) -> StepQueries:
        """The rollouts as the index sees them: `[B * G, D]` and the rows of their positives."""
        rows = self.environment.judgements.of(rollouts.query_ids).rows
        vectors = rollouts.embeddings.flatten(0, 1).cpu().numpy()
        return StepQueries(vectors, rows.repeat_interleave(rollouts.group_size, 0).numpy())

    def _refresh(self, rollouts: Rollouts, step: int) -> dict[str, float]:
        source = self.trainer.datamodule
        return source.index.refresh(step, self._asked(rollouts), source.encode)

    def _needs_search(self, step: int) -> bool:
        every = self.rank_agreement_every_n_steps
        is_compared = every > 0 and step % every == 0
        is_shown = self.completions.is_due(step)
        return self.rank == "topk" or self.policy.contrastive_weight > 0 or is_compared or is_shown

    def _retrieved(self, rollouts: Rollouts, step: int) -> Retrieved | None:
        if not self._needs_search(step):
            return None
        scores, rows = self.trainer.datamodule.index.search(self._asked(rollouts).vectors, self.n_retrieved)
        shape = rollouts.n_tokens.shape
        return Retrieved(
            *(torch.from_numpy(each).to(self.device).unflatten(0, shape) for each in (scores, rows))
        )

    def _shard(self, rows: np.ndarray | None = None) -> Shard:
        index = self.trainer.datamodule.index
        rows = index.rows if rows is None else rows
        return Shard(rows) if index.ranks.size == 1 else Shard(rows, index.first_row, len(index))

    def _score(self, rollouts: Rollouts, step: int, retrieved: Retrieved | None) -> Outcome:
        return self.environment.score(
            rollouts.query_ids, rollouts.embeddings, rollouts.has_embed_token, self._shard(), step, retrieved
        )

    def _audit(self, rollouts: Rollouts, outcome: Outcome, step: int) -> dict[str, float]:
        source = self.trainer.datamodule
        if not source.index.settings.is_audit_step(step):
            return {}

        def reward_on(rows: np.ndarray) -> np.ndarray:
            positives = self.environment.judgements.of(rollouts.query_ids, self.device)
            ranking = exact_ranking(
                rollouts.embeddings, positives, self._shard(rows), self.environment.blocks
            )
            return self.reward(ranking, rollouts.has_embed_token).total.cpu().numpy()

        served = outcome.rewards.total.cpu().numpy()
        return source.index.audit(step, self._asked(rollouts), served, reward_on, source.encode)

    # ---- the loss

    def _learnt(self, rollouts: Rollouts, outcome: Outcome, retrieved: Retrieved | None, step: int) -> Learnt:
        advantages = group_advantages(outcome.rewards.total, self.policy.scale_by_std, self.policy.std_floor)
        mask = trained_tokens(rollouts.completion_mask, advantages.has_spread)
        positives = self.environment.judgements.of(rollouts.query_ids, self.device)
        has_contrast = self.policy.contrastive_weight > 0
        pool = self._pool(positives, retrieved, step) if has_contrast else None
        contrasted = self._contrasted(advantages, positives, pool)
        batches = self._batches(rollouts, advantages.has_spread | contrasted.any(1))
        return Learnt(
            rollouts=rollouts,
            advantages=advantages.values,
            has_spread=advantages.has_spread,
            weights=token_weights(mask, advantages.has_spread, self.normalisation),
            old=torch.zeros_like(rollouts.log_probs),
            reference=self._reference_log_probs(rollouts, batches),
            positives=positives,
            pool=pool,
            contrasted=contrasted,
            batches=batches,
        )

    def _contrasted(self, advantages: Advantages, positives: Positives, pool: Pool | None) -> Tensor:
        """`[B, G]` fp32, the weight of each rollout in the contrastive term: 1 or 0.

        0 too where the pool holds nothing but the query's positives.
        """
        if pool is None:
            return torch.zeros_like(advantages.values)
        is_good = advantages.values >= 0
        is_taken = is_good if self.policy.contrastive_rollouts == "good" else torch.ones_like(is_good)
        return (is_taken & pool.negatives_of(positives.rows).any(1, keepdim=True)).float()

    def _batches(self, rollouts: Rollouts, teaches: Tensor) -> list[Sequence[int]]:
        """The groups `[B]` that have something to teach, a forward each; at least one, which may be empty."""
        batches_of = group_batches if self._shares_prompts else micro_batches
        return self.filled_up(batches_of(rollouts, self.token_budget, teaches) or [[]])

    @property
    def _shares_prompts(self) -> bool:
        """Not where it would take ranks different numbers of passes, nor where no keys are kept."""
        return not (self.shards_weights or self.embedder.causal_lm.is_gradient_checkpointing)

    def _reference_log_probs(self, rollouts: Rollouts, batches: Sequence[Sequence[int]]) -> Tensor | None:
        if self.reference is None:
            return None
        with self.reference.active() as base:
            return frozen_log_probs(base, rollouts, batches, shares_prompts=self._shares_prompts)

    def _pool(self, positives: Positives, retrieved: Retrieved, step: int) -> Pool:
        """The positives of the batch and what its rollouts retrieved, of all ranks; each reads a share.

        Only rows of this step's model: against stale ones the loss would be lowered by moving away from what
        the model was, whatever the query.
        """
        index = self.trainer.datamodule.index
        own = torch.cat([positives.rows[positives.rows >= 0], retrieved.rows.flatten()]).unique()
        rows = np.unique(index.ranks.joined(own.cpu().numpy()))
        share, encoded_at = index.read(np.array_split(rows, index.ranks.size)[index.ranks.rank])
        vectors, encoded_at = index.ranks.joined(share), index.ranks.joined(encoded_at)
        kept = encoded_at == step  # the positives too: the index keeps them fresh
        return Pool(*(torch.from_numpy(each[kept]).to(self.device) for each in (rows, vectors)))

    def _update(self, learnt: Learnt) -> dict[str, Tensor]:
        """All optimizer steps on one batch; the numbers of the first, and those of `OF_LAST_UPDATE`."""
        n_trained = share_of_count(int((learnt.weights > 0).sum()), self.device)
        n_contrasted = share_of_count(int(learnt.contrasted.sum()), self.device)
        names, metrics = list(learnt.rollouts.query_ids), {}
        for update in range(self.policy.n_updates):
            found: dict[str, Tensor] = {}

            def run_backward(is_first: bool = update == 0, found: dict = found) -> Tensor:
                total = torch.zeros((), device=self.device)
                for number, rows in enumerate(learnt.batches):
                    loss, values = self._rows_loss(learnt, rows, is_first, n_trained, n_contrasted)
                    is_last = number == len(learnt.batches) - 1
                    with contextlib.nullcontext() if is_last else block_sync(self)():
                        self.manual_backward(loss)
                    total += loss.detach()
                    for name, value in values.items():
                        found[name] = found.get(name, 0.0) + value
                return total

            has_none = not any(learnt.batches)
            result = optimization_step(self, run_backward, names, self.optimization.max_grad_norm, has_none)
            if result.is_skipped:  # as often as it would have stepped: a batch is always `n_updates` steps
                metrics = {"skipped": torch.ones(())}
                continue
            if update == 0:
                metrics = {**found, "loss": result.loss, "grad_norm": result.grad_norm}
            metrics |= {name: value for name, value in found.items() if name in OF_LAST_UPDATE}
        metrics["learning_rate"] = torch.tensor(result.learning_rate)
        return metrics

    def _rows_loss(
        self, learnt: Learnt, rows: Sequence[int], is_first: bool, n_trained: float, n_contrasted: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The part of the loss that some rollouts have, and what to log of it."""
        now = training_forward(self.embedder, learnt.rollouts, rows, shares_prompts=self._shares_prompts)
        if is_first:
            learnt.old.flatten(0, 1)[list(rows)] = now.log_probs.detach()
        batch = PolicyBatch(
            now.log_probs,
            of_rows(learnt.old, rows),
            of_rows(learnt.advantages, rows),
            of_rows(learnt.weights, rows),
            None if learnt.reference is None else of_rows(learnt.reference, rows),
        )
        policy, clip = self.policy, (self.policy.clip_low, self.policy.clip_high)
        loss = policy_loss(batch, *clip, policy.kl_weight, ESTIMATORS[policy.kl])
        sampled = of_rows(learnt.rollouts.log_probs, rows)
        values = policy_statistics(batch, n_trained, *clip, sampled, now.entropy)
        total = loss.total
        if learnt.pool is not None:
            contrast = self._contrast(learnt, now.embeddings, rows, n_contrasted)
            values["contrastive"] = contrast.detach()
            total = total + policy.contrastive_weight * contrast
        return total, values

    def _contrast(
        self, learnt: Learnt, embeddings: Tensor, rows: Sequence[int], n_contrasted: float
    ) -> Tensor:
        """InfoNCE of rollouts `[n, D]` against the pool; a query's other positives take no part."""
        group = torch.as_tensor(rows, dtype=torch.long, device=self.device) // self.rollouts.group_size
        relevant = learnt.positives.rows[group]  # [n, P]
        positive = torch.searchsorted(learnt.pool.rows, relevant[:, 0].contiguous())
        return info_nce(
            embeddings,
            learnt.pool.vectors,
            positive,
            learnt.pool.negatives_of(relevant),
            self.policy.contrastive_temperature,
            weights=of_rows(learnt.contrasted, rows),
            denominator=n_contrasted,
        )

    # ---- what is logged

    def _summary(self, rollouts: Rollouts, outcome: Outcome, learnt: Learnt) -> dict[str, float]:
        """Means over the rollouts or groups of all ranks."""
        rewards, n_groups = outcome.rewards.total, len(rollouts.query_ids)
        sums = {
            "reward": rewards.mean(1).sum(),
            "reward_ranking": outcome.rewards.ranking.mean(1).sum(),
            "reward_spread": rewards.std(1).sum(),
            "reward_best": rewards.amax(1).sum(),
            "groups_without_spread": (~learnt.has_spread).sum(),
            "n_tokens": rollouts.n_tokens.float().mean(1).sum(),
            "missing_embed_token": (~rollouts.has_embed_token).float().mean(1).sum(),
            "rank_first": _best_rank(outcome.ranking).eq(1).float().mean(1).sum(),
        }
        if outcome.rank_agreement is not None:
            sums["rank_agreement"] = rewards.new_tensor(outcome.rank_agreement * n_groups)
        packed = torch.stack([*(value.float() for value in sums.values()), rewards.new_tensor(n_groups)])
        *totals, count = reduced(packed).tolist()
        return {name: total / count for name, total in zip(sums, totals, strict=True)}

    def _watch(self, metrics: Mapping[str, Any]) -> None:
        """Stops a run that has collapsed, with the reason; the same on all ranks."""
        entropy = torch.as_tensor(metrics.get("entropy", 0.0), device=self.device).float()
        if "entropy" not in metrics:  # a step without any spread measures none: the last one stands
            entropy = entropy + (self.vitals[-1].entropy if self.vitals else 1.0)
        entropy = float(mean_over_ranks(entropy))
        self.vitals.append(Vitals(max(entropy, 0.0), metrics["n_tokens"], metrics["groups_without_spread"]))
        window = self.collapse_limits.window
        if len(self.vitals) > 2 * window:
            self.vitals = self.vitals[:window] + self.vitals[-window:]
        reason = collapse(self.vitals, self.collapse_limits)
        if reason is not None:
            self.stopped_because, self.trainer.should_stop = reason, True
            log.error("stopped at step %d: %s", self.trainer.global_step, reason)

    def _write_table(
        self,
        batch: Sequence[Example],
        rollouts: Rollouts,
        outcome: Outcome,
        retrieved: Retrieved | None,
        step: int,
    ) -> None:
        if not self.completions.is_due(step):
            return
        with equal_forwards(self.embedder):
            direct = self.embedder.embed_queries([example.query for example in batch])
        positives = self.environment.judgements.of(rollouts.query_ids, self.device)
        before = exact_ranking(
            direct[:, None].to(self.device), positives, self._shard(), self.environment.blocks
        )
        source = self.trainer.datamodule
        ranks, texts = source.index.ranks, source.corpus.texts
        shown = self.completions.shown(len(batch), ranks.rank, ranks.size)
        rows = retrieved.rows[:shown, :, :5].cpu().numpy()
        _, encoded_at = source.index.read(rows.flatten())
        lines = self.completions.lines(
            step,
            queries=[(example.id, example.query) for example in batch[:shown]],
            rollouts=rollouts,
            rewards=outcome.rewards.total,
            rank_before=_best_rank(before)[:, 0],
            rank_after=_best_rank(outcome.ranking),
            titles=[[[_title(texts[row]) for row in rows_] for rows_ in group] for group in rows],
            is_stale=(encoded_at.reshape(rows.shape) < step).tolist(),
        )
        by_rank = ranks.gather_objects(lines)
        if self.trainer.is_global_zero:
            self.completions.write(by_rank, self.loggers)


class Seconds:
    """Wall-clock seconds of the parts of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.by_part: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.by_part[name] = self.by_part.get(name, 0.0) + time.perf_counter() - started


def _best_rank(ranking: Ranking) -> Tensor:
    """`[B, G]` rank of the best positive."""
    return ranking.rank.masked_fill(~ranking.has_positive, torch.iinfo(torch.long).max).amin(-1)


def _title(text: str) -> str:
    """The first line that says something, cut."""
    return next((line.strip()[:80] for line in text.splitlines() if line.strip()), "")
