"""GRPO (arXiv:2402.03300): which tokens count, KL, and the clipped policy loss.

Axes: `B` queries, `G` rollouts per query, `L` tokens of the longest completion. What a batch is made of:

    advantages = group_advantages(rewards)                            # `advantages`: [B, G], and which count
    mask = trained_tokens(completion_mask, advantages.has_spread)     # [B, G, L]
    weights, count = per_token(mask, advantages.has_spread, max_tokens)  # divided by the `count` of all ranks
    packed = token_log_probs(hidden, logits_of, targets, temperature, banned_ids)  # `log_probs`: `[T]`
    loss = policy_loss(PolicyBatch(unpacked(packed.log_probs, completion_mask), ...))

The weights are computed once for the whole batch of a rank, before any forward, and rows are then split as
memory asks: the parts' losses add up to the batch's, and the mean over ranks, of the loss and of the gradient
that DDP averages, is that of one rank with all groups. A group without spread is treated as if it were not in
the batch: it adds nothing to the loss, KL included, and does not count in a denominator.

What is ours: the sample standard deviation (the paper does not say which) and its floor, the limit of 20 on
log-ratios, and leaving groups without spread out of the denominators.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before `exp`: e^20 is 5e8, and fp32 overflows at e^88."""


# Which tokens count, and how much


def trained_tokens(completion_mask: Tensor, has_spread: Tensor) -> Tensor:
    """`[B, G, L]` bool, True at tokens that the loss sees.

    Args:
        completion_mask: `[B, G, L]` bool, True at tokens that the policy sampled, an embed token that it
            wrote included: to stop is its decision. One that was appended by force is False.
        has_spread: `[B]` bool.
    """
    return completion_mask & has_spread[:, None, None]


Normalisation = Callable[[Tensor, Tensor, int], tuple[Tensor, int]]
"""What a token counts: from `trained_tokens` `[B, G, L]`, `has_spread` `[B]` and the most tokens of a rollout
to weights `[B, G, L]`, and the number of things, on this rank, that the loss is a mean over. One of your own
is a function, and a YAML file in `normalisation/` below `--config-dir` like those in conf/normalisation."""


def per_token(mask: Tensor, has_spread: Tensor, max_tokens: int) -> tuple[Tensor, int]:
    """Every token counts the same: the sum over the batch divided by its tokens (DAPO, arXiv:2503.14476).

    Long rollouts move the policy more than short ones.
    """
    return mask.float(), int(mask.sum())


def per_sequence(mask: Tensor, has_spread: Tensor, max_tokens: int) -> tuple[Tensor, int]:
    """Every rollout counts the same: the mean over its tokens, then over rollouts (GRPO, arXiv:2402.03300).

    A token of a long rollout counts less. A rollout without a trained token adds 0 and is counted.
    """
    lengths = mask.sum(-1, keepdim=True)  # [B, G, 1]
    return mask / lengths.clamp(min=1), int(has_spread.sum()) * mask.shape[1]


def dr_grpo(mask: Tensor, has_spread: Tensor, max_tokens: int) -> tuple[Tensor, int]:
    """A rollout's sum divided by a constant, then the mean over rollouts (Dr. GRPO, arXiv:2503.20783).

    Args:
        mask: `[B, G, L]` bool.
        has_spread: `[B]` bool.
        max_tokens: the constant; the generation limit keeps the loss in the range of the other two.

    Raises:
        ValueError: If `max_tokens` is below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    return mask / float(max_tokens), int(has_spread.sum()) * mask.shape[1]


# KL to the reference model, estimated at the sampled token


def k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """`log p - log ref`. Value: unbiased for KL(policy || reference), of either sign.

    Gradient: that of `log p`, which is 0 in expectation over the policy's own samples. As a loss it does not
    pull towards the reference; it is here to be compared. Args and result: `[...]`, per token.
    """
    return _limited(log_probs - ref_log_probs)


def k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """`(log p - log ref)^2 / 2`. Value: biased, never negative, low variance.

    Gradient: `(log p - log ref) * grad log p`, in expectation exactly that of KL(policy || reference).
    Args and result: `[...]`, per token.
    """
    return 0.5 * _limited(log_probs - ref_log_probs).square()


def k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """`r - 1 - log r` with `r = ref / p` (Schulman, "Approximating KL divergence", 2020; GRPO's own choice).

    Value: unbiased for KL(policy || reference) and never negative. Gradient: `(1 - r) * grad log p`, in
    expectation that of the *other* direction, KL(reference || policy). Args and result: `[...]`, per token.
    """
    log_ratio = _limited(ref_log_probs - log_probs)
    return torch.expm1(log_ratio) - log_ratio  # expm1: `exp(x) - 1 - x` loses all digits near 0


KLEstimator = Callable[[Tensor, Tensor], Tensor]
"""From log-probabilities of the policy and of the reference, `[...]`, to KL at each token. One of your own is
a function, and a YAML file in `kl/` below `--config-dir` like those in conf/kl."""


# The loss


@dataclass(frozen=True)
class PolicyBatch:
    """Rollouts as the policy loss sees them. Values where `weights` is 0 do not matter, not even if NaN.

    The rollouts of a micro-batch need not be whole groups: `[n, L]` and `[n]` serve as well.

    Attributes:
        log_probs: `[B, G, L]` fp32 under the policy, with gradient.
        old_log_probs: `[B, G, L]` under the policy that the ratio is taken to: at the first update after
            sampling `log_probs.detach()`, later what those were.
        advantages: `[B, G]`.
        weights: `[B, G, L]` from a `Normalisation` of the whole batch, divided by the count of all ranks.
        ref_log_probs: `[B, G, L]` under the reference model, or None where KL is not computed.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    weights: Tensor
    ref_log_probs: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """`[B, G, L]` bool, True at trained tokens."""
        return self.weights > 0

    @property
    def log_ratios(self) -> Tensor:
        """`[B, G, L]` `log(policy / old policy)`, 0 where a token is not trained."""
        return _limited(self._kept(self.log_probs) - self._kept(self.old_log_probs.detach()))

    def token_kl(self, kl: KLEstimator) -> Tensor:
        """`[B, G, L]` KL to the reference, 0 where a token is not trained."""
        if self.ref_log_probs is None:
            raise ValueError("KL needs ref_log_probs: compute them, or set the KL weight to 0")
        return self._kept(kl(self._kept(self.log_probs), self._kept(self.ref_log_probs.detach())))

    def _kept(self, values: Tensor) -> Tensor:
        return torch.where(self.mask, values, 0.0)


@dataclass(frozen=True)
class PolicyLoss:
    """Scalars, fp32; parts of a batch add up.

    Attributes:
        total: `policy + kl_weight * kl`.
        policy: the clipped loss.
        kl: weighted as the policy loss is; 0 without reference log-probabilities.
    """

    total: Tensor
    policy: Tensor
    kl: Tensor


def clipped_token_losses(
    log_ratios: Tensor, advantages: Tensor, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """`-min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)` per token (PPO, with the upper bound of DAPO).

    Args:
        log_ratios: `[B, G, L]` or `[n, L]` `log r`.
        advantages: `[B, G]` or `[n]`.
        clip_low: how far a token's probability may fall before its gradient stops, in [0, 1].
        clip_high: how far it may rise, 0 or more; DAPO uses 0.28 with a lower bound of 0.2.

    Returns:
        As `log_ratios`.

    Raises:
        ValueError: If a bound is out of its range.
    """
    if not 0.0 <= clip_low <= 1.0 or not clip_high >= 0.0:
        raise ValueError(
            f"clip_low must be in [0, 1] and clip_high not negative, got {clip_low}, {clip_high}"
        )
    ratios, wanted = log_ratios.exp(), advantages[..., None]
    return -torch.minimum(ratios * wanted, ratios.clamp(1.0 - clip_low, 1.0 + clip_high) * wanted)


def policy_loss(
    batch: PolicyBatch,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_weight: float = 0.0,
    kl: KLEstimator = k3,
) -> PolicyLoss:
    """The clipped policy loss plus KL, each a weighted sum over tokens.

    With one update per batch and no KL weight its value is near 0 whatever is learnt; its gradient is not.

    Args:
        batch: of this rank, or a part of it.
        clip_low: as in `clipped_token_losses`.
        clip_high: as in `clipped_token_losses`.
        kl_weight: 0 or more; at 0 KL is only a number to log.
        kl: the estimator, as `k1`, `k2` or `k3`.

    Raises:
        ValueError: If the KL weight is negative, or positive without reference log-probabilities.
    """
    if not kl_weight >= 0.0:
        raise ValueError(f"kl_weight must not be negative, got {kl_weight}")
    losses = clipped_token_losses(batch.log_ratios, batch.advantages, clip_low, clip_high)
    policy = (batch.weights * losses).sum()
    if batch.ref_log_probs is None and kl_weight == 0.0:
        return PolicyLoss(policy, policy, torch.zeros_like(policy))
    divergence = (batch.weights * batch.token_kl(kl)).sum()
    total = policy + kl_weight * divergence if kl_weight else policy
    return PolicyLoss(total, policy, divergence)


TOKEN_STATISTICS = ("clip_share_low", "clip_share_high", "ratio", "kl", "log_prob_gap", "entropy")
"""Names of `policy_statistics`."""


@torch.no_grad()
def policy_statistics(
    batch: PolicyBatch,
    denominator: float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    sampling_log_probs: Tensor | None = None,
    entropy: Tensor | None = None,
) -> dict[str, Tensor]:
    """Means over the trained tokens, to log; the values of a batch's parts add up.

    Args:
        batch: of this rank, or a part of it.
        denominator: `share_of_count(n_trained_tokens)`; the mean over ranks is then that over all tokens.
        clip_low: as in `policy_loss`.
        clip_high: as in `policy_loss`.
        sampling_log_probs: `[B, G, L]` as recorded while decoding.
        entropy: `[B, G, L]` of the policy's distribution, in nats.

    Returns:
        `clip_share_low` and `clip_share_high` (tokens whose gradient is stopped by a bound) and `ratio`;
        where given, `kl` to the reference (k3), `entropy`, and `log_prob_gap`, the mean absolute difference
        of sampling and training log-probabilities: a large one means that the two passes do not agree.
    """
    mask, ratios = batch.mask, batch.log_ratios.exp()
    wanted = batch.advantages[..., None]
    values = {
        "clip_share_low": (ratios < 1.0 - clip_low) & (wanted < 0),
        "clip_share_high": (ratios > 1.0 + clip_high) & (wanted > 0),
        "ratio": ratios,
    }
    if batch.ref_log_probs is not None:
        values["kl"] = batch.token_kl(k3)
    if sampling_log_probs is not None:
        values["log_prob_gap"] = (batch.log_probs - sampling_log_probs).abs()
    if entropy is not None:
        values["entropy"] = entropy
    return {name: torch.where(mask, value, 0).float().sum() / denominator for name, value in values.items()}


def _limited(log_ratios: Tensor) -> Tensor:
    return log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
