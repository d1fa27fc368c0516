"""Random rollouts, and the batch of the policy that is made of them."""

import torch

from search_r3.distributed import share_of_count
from search_r3.objectives.advantages import group_advantages
from search_r3.objectives.grpo import (
    PolicyBatch,
    dr_grpo,
    per_sequence,
    per_token,
    trained_tokens,
)

B, G, L = 3, 4, 5
LIMIT = 7
"""Tokens that a rollout may have at most."""

NORMALISATIONS = {
    "per_token": per_token,
    "per_sequence": per_sequence,
    "dr_grpo": dr_grpo,
}


def rollouts(seed: int = 0, n_queries: int = B) -> dict[str, torch.Tensor]:
    """Random rollouts of different lengths; the second group has no spread, one rollout has no token."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, L + 1, (n_queries, G), generator=generator)
    lengths[0, 1] = 0
    rewards = torch.rand(n_queries, G, generator=generator)
    rewards[1] = 0.25
    old = -torch.rand(n_queries, G, L, generator=generator) * 3
    return {
        "completion_mask": torch.arange(L) < lengths[..., None],
        "rewards": rewards,
        "old": old,
        "log_probs": old + 0.6 * torch.randn(n_queries, G, L, generator=generator),
        "ref": old + 0.4 * torch.randn(n_queries, G, L, generator=generator),
    }


def token_weights(mask, has_spread, normalisation, limit=LIMIT):
    """What each token's loss is multiplied by, the denominator of one rank included."""
    weights, count = normalisation(mask, has_spread, limit)
    return weights / share_of_count(count)


def batch_of(data: dict, normalisation, rows=slice(None)) -> tuple[PolicyBatch, torch.Tensor]:
    """The batch of some rows, with weights of those rows, and the leaf that the gradient goes to."""
    advantages = group_advantages(data["rewards"][rows])
    mask = trained_tokens(data["completion_mask"][rows], advantages.has_spread)
    weights = token_weights(mask, advantages.has_spread, normalisation)
    leaf = data["log_probs"][rows].clone().requires_grad_()
    return PolicyBatch(leaf, data["old"][rows], advantages.values, weights, data["ref"][rows]), leaf
