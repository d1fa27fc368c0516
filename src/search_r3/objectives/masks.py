"""Which documents of a batch may be negatives of which query: by their ids, and by their scores.

Axes: `B` queries, `M` documents, of all ranks where they were gathered. The paper is silent on both masks;
they are ours.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def has_negative(mask: Tensor, positive_index: Tensor) -> Tensor:
    """`[B]` bool, True for rows that have something to compare: a document that is not the positive.

    Args:
        mask: `[B, M]` bool, True where a document takes part.
        positive_index: `[B]` long.
    """
    return mask.scatter(1, positive_index[:, None], False).any(1)


def id_numbers(ids: Iterable[str]) -> Tensor:
    """Ids as `[n]` non-negative longs, so that ranks can exchange and compare them.

    63 bits of BLAKE2b: among ten million ids the chance of one collision is about 5e-6, and its price is a
    batch in which the two documents are taken for one.
    """
    numbers = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1 for text in ids
    ]
    return torch.tensor(numbers, dtype=torch.long)


def negatives_mask(
    document_ids: Tensor, positive_index: Tensor, relevant_ids: Tensor | None = None
) -> tuple[Tensor, int]:
    """Which documents of the batch may be negatives of which query, by id.

    A document may not if it is in the query's relevant set, or another copy of its positive.

    Args:
        document_ids: `[M]` long, as `id_numbers` gives them.
        positive_index: `[B]` long.
        relevant_ids: `[B, R]` long, the relevant set of each query, filled up with -1.

    Returns:
        `[B, M]` bool, True where a document may be a negative or is the positive; and how many documents
        were masked, all queries together.
    """
    relevant = document_ids[positive_index][:, None]  # [B, 1]
    if relevant_ids is not None:
        relevant = torch.cat([relevant, relevant_ids], dim=1)
    # Looked up, not compared with each other: a query may have thousands, and `[B, M, R]` never exists.
    relevant, wanted = relevant.sort(1).values, document_ids.repeat(len(relevant), 1)  # [B, R + 1], [B, M]
    place = torch.searchsorted(relevant, wanted).clamp(max=relevant.shape[1] - 1)
    mask = relevant.gather(1, place) != wanted
    mask = mask.scatter(1, positive_index[:, None], True)
    return mask, int((~mask).sum())


def false_negative_mask(
    scores: Tensor,
    positive_index: Tensor,
    margin: float,
    max_share: float = 1.0,
    may_be_negative: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Masks documents that score so high that they are probably relevant and only not judged.

    It is the model itself that says so, and where it is wrong about the query it would mask what it has to
    learn from: all documents above a positive that stands low. So a row in which more documents score above
    the limit than there can be false negatives is taken for a hard one and masks none.

    Args:
        scores: `[B, M]` of documents for queries; no gradient is taken.
        positive_index: `[B]` long.
        margin: a document that scores above the positive plus this is masked; it may be negative.
        max_share: of the `M - 1` other documents, 0 to 1: a row with more above the limit masks none. A row
            of fewer than `1 / max_share` others never masks any.
        may_be_negative: `[B, M]` bool, False at documents that are known to be no negatives, such as the
            query's other positives, which are none of the others. All may be where None.

    Returns:
        `[B, M]` bool, True where a document may be a negative or is the positive; and how many documents
        were masked, all queries together.

    Raises:
        ValueError: If `max_share` is out of range.
    """
    if not 0.0 <= max_share <= 1.0:
        raise ValueError(f"max_share must lie in [0, 1], got {max_share}")
    scores = scores.detach()
    limit = scores.gather(1, positive_index[:, None]) + margin
    is_high = (scores > limit).scatter(1, positive_index[:, None], False)
    others = torch.ones_like(is_high) if may_be_negative is None else may_be_negative
    others = others.scatter(1, positive_index[:, None], False)
    is_hard = (is_high & others).sum(1, keepdim=True) > max_share * others.sum(1, keepdim=True)  # [B, 1]
    mask = ~is_high | is_hard
    return mask, int((~mask).sum())
