"""What a batch of rollouts teaches: advantages and weights of its tokens, and the loss of a part of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from search_r3.distributed import share_of_count
from search_r3.index.exact_rank import Positives
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.objectives.advantages import best_of_group, group_advantages
from search_r3.objectives.grpo import (
    PolicyBatch,
    policy_loss,
    policy_statistics,
    trained_tokens,
)
from search_r3.stages.rl.contrast import Pool, contrasted, contrastive_loss
from search_r3.stages.rl.forward import training_forward
from search_r3.stages.rl.rollouts import Rollouts, of_rows
from search_r3.stages.rl.settings import PolicySettings


@dataclass
class Learnt:
    """A batch of rollouts on its way through the updates.

    Attributes:
        rollouts: what was sampled.
        advantages: `[B, G]`.
        has_spread: `[B]` bool.
        weights: `[B, G, L]` fp32, what each token's loss is multiplied by before everything is summed, the
            denominator included; 0 where a token is not trained.
        positives: of the `B` queries.
        pool: of the contrastive term; None where it has no weight.
        contrasted: `[B, G]` fp32, 1 at the rollouts that the contrastive term takes, 0 at the others.
        n_trained: trained tokens of all ranks, divided by the number of ranks.
        n_contrasted: contrasted rollouts, likewise.
        old: `[B, G, L]` log-probabilities before the first update; filled by it.
        reference: `[B, G, L]` of the frozen model; None where KL has no weight.
        batches: rollout numbers `b * G + g`, a forward each; some may be empty.
    """

    rollouts: Rollouts
    advantages: Tensor
    has_spread: Tensor
    weights: Tensor
    positives: Positives
    pool: Pool | None
    contrasted: Tensor
    n_trained: float
    n_contrasted: float
    old: Tensor
    reference: Tensor | None = None
    batches: list[Sequence[int]] = field(default_factory=list)

    @property
    def teaches(self) -> Tensor:
        """`[B]` bool, True for groups that have something to teach."""
        return self.has_spread | self.contrasted.any(1)


def learnt_from(
    rollouts: Rollouts,
    rewards: Tensor,
    positives: Positives,
    pool: Pool | None,
    settings: PolicySettings,
) -> Learnt:
    """What rollouts with these rewards `[B, G]` teach; nothing is run through the model yet. Collective."""
    advantages = group_advantages(rewards, settings.scale_by_std, settings.std_floor)
    mask = trained_tokens(rollouts.completion_mask, advantages.has_spread)
    values = advantages.values
    if settings.advantages == "best":
        values = best_of_group(rewards, advantages.has_spread)
        mask = mask & (values > 0)[:, :, None]
    limit = rollouts.sampling.max_new_tokens
    weights, count = settings.normalisation(mask, advantages.has_spread, limit)
    taken = contrasted(advantages.values, positives, pool, settings.contrastive_rollouts)
    counts = (count, int((weights > 0).sum()), int(taken.sum()))
    denominator, n_trained, n_contrasted = (share_of_count(each, weights.device) for each in counts)
    return Learnt(
        rollouts=rollouts,
        advantages=values,
        has_spread=advantages.has_spread,
        weights=weights / denominator,
        positives=positives,
        pool=pool,
        contrasted=taken,
        n_trained=n_trained,
        n_contrasted=n_contrasted,
        old=torch.zeros_like(rollouts.log_probs),
    )


def rows_loss(
    embedder: ReasoningEmbedder,
    learnt: Learnt,
    rows: Sequence[int],
    settings: PolicySettings,
    is_first: bool,
    shares_prompts: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The part of the loss that some rollouts have, and what to log of it; both add up over parts.

    Args:
        embedder: the policy.
        learnt: the batch; at the first update its `old` is filled at these rollouts.
        rows: numbers `b * G + g`.
        settings: bounds, weights, estimator.
        is_first: whether this is the first update of the batch.
        shares_prompts: see `training_forward`.
    """
    now = training_forward(embedder, learnt.rollouts, rows, shares_prompts=shares_prompts)
    if is_first:
        learnt.old.flatten(0, 1)[list(rows)] = now.log_probs.detach()
    contrast = None
    if learnt.pool is not None:
        group = torch.as_tensor(rows, dtype=torch.long, device=now.embeddings.device)
        contrast = contrastive_loss(
            now.embeddings,
            learnt.positives.not_wrong[group // learnt.rollouts.group_size],
            of_rows(learnt.contrasted, rows),
            learnt.pool,
            settings.contrastive_temperature,
            learnt.n_contrasted,
        )
    batch = PolicyBatch(
        now.log_probs,
        of_rows(learnt.old, rows),
        of_rows(learnt.advantages, rows),
        of_rows(learnt.weights, rows),
        None if learnt.reference is None else of_rows(learnt.reference, rows),
    )
    clip = (settings.clip_low, settings.clip_high)
    loss = policy_loss(batch, *clip, settings.kl_weight, settings.kl).total
    sampled = of_rows(learnt.rollouts.log_probs, rows)
    values = policy_statistics(batch, learnt.n_trained, *clip, sampled, now.entropy)
    if contrast is not None:
        values["contrastive"] = contrast.detach()
        loss = loss + settings.contrastive_weight * contrast
    return loss, values
