"""From the rewards of a group of rollouts to what each of them teaches: GRPO's advantages, and best-of-n's.

Axes: `B` queries, `G` rollouts per query.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

STD_FLOOR = 0.005
"""What advantages are divided by at least; the arithmetic is in `group_advantages`."""


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
