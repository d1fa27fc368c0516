"""The losses of the SFT stage (Search-R3, arXiv:2510.07048): contrastive, margin, token and KL.

The paper names the four and shows them without weights. Ours are: cosine similarity throughout, the mean over
rows that have something to compare, and every mask. A row whose documents but the positive are all masked has
nothing to compare: it adds 0 to a contrastive loss and does not count, in no rank's denominator either.

Similarities and probabilities are fp32 whatever the precision of the run; only the product with the head runs
in the model's own precision. A loss is a sum divided by a count. The count is that of its own rows unless
`denominator` says otherwise, which is how the parts of a batch that is split into chunks or over ranks add up
to the loss of the whole batch:

    n_rows = int(has_negative(mask, positive_index).sum())
    denominator = share_of_count(n_rows)           # rows that count on all ranks / number of ranks
    loss = info_nce(queries, gather_rows(documents), positive_index, mask, denominator=denominator)

The ranks' losses and, under DDP, their gradients are averaged; the average is then exactly that of one rank
with all rows. An empty batch gives a zero that still has a gradient graph. `share_of_count` and `gather_rows`
are collectives, in `search_r3.distributed`; nothing here asks another rank.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from search_r3.objectives.chunks import LogitsOf, over_chunks
from search_r3.objectives.masks import has_negative


def cosine_scores(queries: Tensor, documents: Tensor) -> Tensor:
    """Cosine of every query with every document, in fp32 also under autocast.

    Args:
        queries: `[B, D]`, of any length and floating dtype.
        documents: `[M, D]`.

    Returns:
        `[B, M]` fp32.
    """
    with torch.autocast(queries.device.type, enabled=False):
        return _unit(queries) @ _unit(documents).T  # [B, M]


def info_nce(
    queries: Tensor,
    documents: Tensor,
    positive_index: Tensor,
    mask: Tensor | None = None,
    temperature: float = 0.05,
    weights: Tensor | None = None,
    denominator: float | None = None,
) -> Tensor:
    """Cross-entropy of the positive among all documents by cosine / temperature (InfoNCE, arXiv:1807.03748).

    A row whose negatives are all masked has loss 0 and gradient 0, and does not count.

    Args:
        queries: `[B, D]`.
        documents: `[M, D]`, of all ranks where they were gathered.
        positive_index: `[B]` long, row of the positive in `documents`.
        mask: `[B, M]` bool, True where a document takes part; the positive does whatever its entry says.
        temperature: above 0.
        weights: `[B]`, not negative; equal weights where None.
        denominator: what the weighted sum over rows is divided by; the sum of the weights of the rows that
            have a negative where None.

    Returns:
        A scalar, fp32.

    Raises:
        ValueError: If the temperature is not positive.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    logits = cosine_scores(queries, documents) / temperature  # [B, M]
    mask = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
    kept = mask.scatter(1, positive_index[:, None], True)
    logits = logits.masked_fill(~kept, float("-inf"))
    rows = F.cross_entropy(logits, positive_index, reduction="none")  # [B]
    return _mean(rows, _only(has_negative(mask, positive_index), weights), denominator)


def hardest_negative_margin(
    queries: Tensor,
    documents: Tensor,
    positive_index: Tensor,
    mask: Tensor | None = None,
    margin: float = 0.1,
    weights: Tensor | None = None,
    denominator: float | None = None,
) -> Tensor:
    """Triplet margin on cosine, `max(0, margin - cos(q, p) + cos(q, n))`, of each row's hardest negative.

    That is the most similar document of the batch which may be a negative. A row without any adds nothing and
    does not count.

    Args:
        queries: `[B, D]`.
        documents: `[M, D]`.
        positive_index: `[B]` long.
        mask: `[B, M]` bool, True where a document may be a negative; the positive never is.
        margin: in cosine.
        weights: `[B]`, not negative; equal weights where None.
        denominator: what the weighted sum over rows is divided by; the sum of the weights of the rows that
            have a negative where None.

    Returns:
        A scalar, fp32.
    """
    scores = cosine_scores(queries, documents)  # [B, M]
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    allowed = mask.scatter(1, positive_index[:, None], False)
    positive = scores.gather(1, positive_index[:, None]).squeeze(1)
    if scores.shape[1] == 0:  # `max` of nothing is an error
        return _mean(positive, weights, denominator)
    hardest = scores.masked_fill(~allowed, -2.0).max(dim=1).values  # -2 is below every cosine
    rows = F.relu(margin - positive + hardest)
    return _mean(rows, _only(has_negative(mask, positive_index), weights), denominator)


def sft_cross_entropy(
    hidden: Tensor,
    logits_of: LogitsOf,
    targets: Tensor,
    chunk: int = 1024,
    denominator: float | None = None,
) -> Tensor:
    """Mean cross-entropy of the next token at the supervised positions.

    The head is applied as `over_chunks` says.

    Args:
        hidden: `[T, D]`, states that predict the targets, of supervised positions only.
        logits_of: from states to logits.
        targets: `[T]` long.
        chunk: positions per product with the head.
        denominator: what the sum over positions is divided by; `T` where None.

    Returns:
        A scalar, fp32.

    Raises:
        ValueError: If `hidden` and `targets` differ in length or `chunk` is below 1.
    """
    if len(hidden) != len(targets):
        raise ValueError(f"one target per state: got {len(hidden)} states and {len(targets)} targets")

    def part(states: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(logits_of(states).float(), wanted, reduction="sum")

    return _sum_over_chunks(part, chunk, hidden, targets) / _count(len(hidden), denominator)


def kl_to_reference(
    hidden: Tensor,
    ref_hidden: Tensor,
    logits_of: LogitsOf,
    ref_logits_of: LogitsOf,
    excluded_token: int | None = None,
    chunk: int = 1024,
    denominator: float | None = None,
) -> Tensor:
    """Mean KL(policy || reference) of the next-token distributions, exact over the vocabulary.

    No gradient flows to the reference. The excluded token is taken out of both distributions, which are
    then renormalised: the base gives the embed token no probability, and pulling ours to that would undo SFT.

    Args:
        hidden: `[T, D]` states of the policy at the supervised positions whose target is another token.
        ref_hidden: `[T, D']` states of the reference at the same positions.
        logits_of: from states to logits of the policy.
        ref_logits_of: the same of the reference, over the same vocabulary.
        excluded_token: id left out on both sides, or None.
        chunk: positions per product with the head.
        denominator: what the sum over positions is divided by; `T` where None.

    Returns:
        A scalar, fp32; 0 where the two are equal.

    Raises:
        ValueError: If the two have different numbers of positions or `chunk` is below 1.
    """
    if len(hidden) != len(ref_hidden):
        raise ValueError(f"one reference state per state: got {len(hidden)} and {len(ref_hidden)}")

    def log_probs(logits: Tensor) -> Tensor:
        logits = logits.float()
        if excluded_token is None:
            return logits.log_softmax(-1)
        # 0 in both after the softmax: the token's term is then exp(0) * (0 - 0), in value and in gradient.
        columns = torch.tensor([excluded_token], device=logits.device)
        return logits.index_fill(-1, columns, float("-inf")).log_softmax(-1).index_fill(-1, columns, 0.0)

    def part(states: Tensor, ref_states: Tensor) -> Tensor:
        with torch.no_grad():
            reference = log_probs(ref_logits_of(ref_states))
        policy = log_probs(logits_of(states))
        return (policy.exp() * (policy - reference)).sum()

    total = _sum_over_chunks(part, chunk, hidden, ref_hidden.detach())
    return total / _count(len(hidden), denominator)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=-1, eps=1e-6)  # of a zero vector: 0, with a finite gradient


def _only(counts: Tensor, weights: Tensor | None) -> Tensor:
    """Weights `[B]` that are 0 where `counts` is False."""
    return counts.float() if weights is None else counts * weights.float()


def _mean(rows: Tensor, weights: Tensor | None, denominator: float | None) -> Tensor:
    if weights is None:
        return rows.sum() / _count(len(rows), denominator)
    total = (rows * weights.float()).sum()
    if denominator is not None:
        return total / denominator
    weight = weights.float().sum()
    return total / torch.where(weight > 0, weight, 1.0)


def _count(n_rows: int, denominator: float | None) -> float:
    return max(n_rows, 1) if denominator is None else denominator


def _sum_over_chunks(part: Callable[..., Tensor], chunk: int, *tensors: Tensor) -> Tensor:
    parts = over_chunks(part, chunk, *tensors)
    return torch.stack(parts).sum() if parts else tensors[0].float().sum()  # 0, and part of the graph
