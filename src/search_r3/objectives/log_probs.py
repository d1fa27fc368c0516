"""Log-probabilities, and the entropy, of the tokens that were sampled.

They are of completion positions only, packed one after the other as `[T]`, and go back to `[B, G, L]` by
`unpacked`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from search_r3.objectives.chunks import LogitsOf, over_chunks


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
    as `over_chunks` says.

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

    parts = over_chunks(part, chunk, hidden, targets)
    log_probs, entropy = (torch.cat(values) for values in zip(*parts, strict=True))
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
