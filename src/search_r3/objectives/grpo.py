"""GRPO (arXiv:2402.03300): advantages in a group, clipped policy loss, KL, and token log-probabilities.

Axes: `B` queries, `G` rollouts per query, `L` tokens of the longest completion. What a batch is made of:

    advantages = group_advantages(rewards)                            # [B, G], and which groups count
    mask = trained_tokens(completion_mask, advantages.has_spread)     # [B, G, L]
    weights, count = per_token(mask, advantages.has_spread, max_tokens)  # divided by the `count` of all ranks
    packed = token_log_probs(hidden, head_weight, targets, temperature, banned_ids)  # `[T]`, never `[.., V]`
    loss = policy_loss(PolicyBatch(unpacked(packed.log_probs, completion_mask), ...))

The weights are computed once for the whole batch of a rank, before any forward, and rows are then split as
memory asks: the parts' losses add up to the batch's, and the mean over ranks, of the loss and of the gradient
that DDP averages, is that of one rank with all groups. A group without spread is treated as if it were not in
the batch: it adds nothing to the loss, KL included, and does not count in a denominator.

What is ours: the sample standard deviation (the paper does not say which) and its floor, the limit of 20 on
log-ratios, and leaving groups without spread out of the denominators.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from search_r3.objectives.losses import LogitsOf

STD_FLOOR = 0.005
"""What advantages are divided by at least; the arithmetic is in `group_advantages`."""

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before `exp`: e^20 is 5e8, and fp32 overflows at e^88."""


@dataclass(frozen=True)
class Advantages:
    """Attributes:
    values: `[B, G]` fp32; each row sums to zero.
    has_spread: `[B]` bool, False where all rollouts of a group earned the same, so that nothing can be
        learnt from it. `1 - has_spread.float().mean()` is a number to log.
    """

    values: Tensor
    has_spread: Tensor


def group_advantages(
    rewards: Tensor, scale_by_std: bool = True, std_floor: float = STD_FLOOR, min_spread: float = 1e-6
) -> Advantages:
    """Rewards centred, and on request scaled, within each query's group (section 4.1.2 of the paper).

        advantage = (reward - mean) / max(std, std_floor)

    A group without spread gets zeros and is reported.

    The floor is what keeps a group whose rewards hardly differ from earning advantages as large as one in
    which a rank was gained: no advantage exceeds `(best - worst) / std_floor`. It is to be chosen by the
    reward. With `margin_dcg` rollouts of the same ranks differ by `margin_weight = 0.005` at most, so that
    at a floor of 0.005 their advantages stay below 1 whatever the margins, and below 0.07 where margins
    differ by 0.03. One rollout of eight that is a rank better than the others has a standard deviation of
    `gain / sqrt(8)` and an advantage of `sqrt(8) * 7 / 8 = 2.5` where that reaches the floor, which is to
    gain 0.014: at ranks 1 to 7; it is 1.5 at rank 10 and 0.5 at rank 20.

    Args:
        rewards: `[B, G]`, any scale; higher is better.
        scale_by_std: divide by the group's sample standard deviation (correction 1), or by the floor where
            that is larger; Dr. GRPO (arXiv:2503.20783) does not, since it favours groups that are nearly all
            right or all wrong.
        std_floor: in units of the reward, 0 or more; 0 is the paper's.
        min_spread: a group has spread if its best reward exceeds its worst by more than this.

    Raises:
        ValueError: If a group has fewer than two rollouts, a reward is not finite, or the floor is negative.

    >>> group_advantages(torch.tensor([[1.0, 0.0], [0.3, 0.3]]), scale_by_std=False).values
    tensor([[ 0.5000, -0.5000],
            [ 0.0000,  0.0000]])
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards must be [B, G] with at least two rollouts each, got {tuple(rewards.shape)}"
        )
    if not torch.isfinite(rewards).all():
        row = int((~torch.isfinite(rewards).all(1)).nonzero()[0])
        raise ValueError(f"rewards must be finite: group {row} has {rewards[row].tolist()}")
    if not std_floor >= 0.0:
        raise ValueError(f"std_floor must not be negative, got {std_floor}")
    rewards = rewards.double()  # near 1, the mean rounded to fp32 is as far off as margins differ
    has_spread = rewards.amax(1) - rewards.amin(1) > min_spread  # [B]
    values = rewards - rewards.mean(1, keepdim=True)
    if scale_by_std:
        variance = values.square().sum(1, keepdim=True) / (rewards.shape[1] - 1)
        values = values / variance.sqrt().clamp(min=std_floor)
    return Advantages(values.masked_fill(~has_spread[:, None], 0.0).float(), has_spread)


def best_of_group(rewards: Tensor, has_spread: Tensor) -> Tensor:
    """Advantages `[B, G]` of 1 for the best rollout of a group and 0 for the others; the first of equal ones.

    On rollouts of the current policy the policy gradient with them is that of the best text's
    log-probability: best-of-n self-imitation (RAFT, arXiv:2304.06767), a rival of GRPO at the same compute.

    Args:
        rewards: `[B, G]`.
        has_spread: `[B]` bool; a group without spread has no best rollout, and gets zeros.

    >>> best_of_group(torch.tensor([[0.1, 0.7, 0.7], [0.3, 0.3, 0.3]]), torch.tensor([True, False]))
    tensor([[0., 1., 0.],
            [0., 0., 0.]])
    """
    is_best = F.one_hot(rewards.argmax(1), rewards.shape[1]).bool()
    return (is_best & has_spread[:, None]).float()


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


# Log-probabilities of the tokens that were sampled


@dataclass(frozen=True)
class TokenLogProbs:
    """Attributes:
    log_probs: `[T]` fp32, with gradient where the states have one.
    entropy: `[T]` fp32 in nats, without gradient.
    """

    log_probs: Tensor
    entropy: Tensor


def token_log_probs(
    hidden: Tensor,
    logits_of: LogitsOf,
    targets: Tensor,
    temperature: float = 1.0,
    banned_ids: Sequence[int] | Tensor = (),
    chunk: int = 1024,
) -> TokenLogProbs:
    """Log-probability of each target, and the entropy, under the distribution that sampling draws from.

    That is the temperature-scaled distribution without the banned tokens, before top-p. The head is applied
    to `chunk` positions at a time and again in backward, so that at most `[chunk, V]` logits exist at once.

    Args:
        hidden: `[T, D]` states that predict the targets, of completion positions only.
        logits_of: from states to logits, as the model itself makes them.
        targets: `[T]` long.
        temperature: of sampling, above 0.
        banned_ids: `[n]` tokens that sampling never writes.
        chunk: positions per product with the head.

    Raises:
        ValueError: If lengths differ, the temperature is not positive, `chunk` is below 1, or a target is
            banned and so cannot have been sampled.
    """
    if len(hidden) != len(targets):
        raise ValueError(f"one target per state: got {len(hidden)} states and {len(targets)} targets")
    if not temperature > 0.0 or chunk < 1:
        raise ValueError(f"temperature must be above 0 and chunk at least 1, got {temperature}, {chunk}")
    banned = torch.as_tensor(banned_ids, dtype=torch.long, device=targets.device)
    is_banned = torch.isin(targets, banned)
    if is_banned.any():
        raise ValueError(f"token {int(targets[is_banned][0])} is banned and cannot have been sampled")
    if len(hidden) == 0:
        nothing = logits_of(hidden).float().sum(-1)
        # [0], and part of the graph: DDP waits for a gradient of every weight, the head's included
        return TokenLogProbs(nothing, nothing.detach())

    def part(states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(states).float()
        logits = logits.index_fill(-1, banned, float("-inf")) / temperature  # [chunk, V]
        return -F.cross_entropy(logits, wanted, reduction="none"), _entropy(logits)

    pieces = list(zip(hidden.split(chunk), targets.split(chunk), strict=True))
    if len(pieces) == 1:  # recomputing would save nothing at the peak
        return TokenLogProbs(*part(*pieces[0]))
    results = [checkpoint(part, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    log_probs, entropy = (torch.cat(values) for values in zip(*results, strict=True))
    return TokenLogProbs(log_probs, entropy)


def unpacked(values: Tensor, completion_mask: Tensor) -> Tensor:
    """Values `[T]` of the completion tokens at their places in the mask, zeros elsewhere; with gradient.

    Args:
        values: `[T]`, in the order of `completion_mask.nonzero()`.
        completion_mask: `[B, G, L]` or `[n, L]` bool with `T` times True.

    Raises:
        ValueError: If the numbers differ.
    """
    if len(values) != int(completion_mask.sum()):
        raise ValueError(f"got {len(values)} values for {int(completion_mask.sum())} completion tokens")
    return values.new_zeros(completion_mask.shape).masked_scatter(completion_mask, values)


@torch.no_grad()
def _entropy(logits: Tensor) -> Tensor:
    """`[chunk]` from `[chunk, V]`: `-sum(p log p)`, to a few roundings, with 0 for what has no probability.

    With `d = z - max(z)`, at most 0, and `e = exp(d)` it is `log(sum(e)) + sum(e * -d) / sum(e)`, two terms
    that are never negative: `logsumexp(z) - sum(p z)` would lose what two numbers of the size of `z` lose.
    """
    highest, at = logits.max(-1, keepdim=True)
    below = logits - highest  # [chunk, V]
    weights = below.exp()
    others = weights.scatter_(-1, at, 0.0).sum(-1)  # of the highest it is 1, in which a small sum would drown
    spent = weights.mul_(below.clamp_(min=torch.finfo(torch.float32).min)).sum(-1)
    return others.log1p() - spent / (1.0 + others)


def _limited(log_ratios: Tensor) -> Tensor:
    return log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
