"""The policy's loss on a batch of rollouts: what a token counts, and the loss of a part."""

from torch import Tensor

from search_r3.distributed import share_of_count
from search_r3.objectives.grpo import Normalisation


def token_weights(mask: Tensor, has_spread: Tensor, normalisation: Normalisation) -> Tensor:
    """What each token's loss is multiplied by before everything is summed; the denominator is inside.

    Collective: every rank calls it, with an empty batch too.

    Args:
        mask: `[B, G, L]` bool, from `trained_tokens`, of all groups of this rank.
        has_spread: `[B]` bool.
        normalisation: `per_token`, `per_sequence`, or `dr_grpo` with its constant.

    Returns:
        `[B, G, L]` fp32, 0 where `mask` is False.
    """
    weights, count = normalisation(mask, has_spread)
    return weights / share_of_count(count, mask.device)
