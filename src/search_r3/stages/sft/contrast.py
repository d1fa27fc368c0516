"""The contrastive losses of the SFT stage: both embeddings of a query against the documents of all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from search_r3.distributed import gather_rows, own_place, row_counts, share_of_count
from search_r3.objectives.losses import cosine_scores, hardest_negative_margin, info_nce
from search_r3.objectives.masks import false_negative_mask, has_negative, id_numbers, negatives_mask
from search_r3.stages.sft.collate import SFTBatch
from search_r3.stages.sft.settings import SFTLosses


@dataclass(frozen=True)
class QueryView:
    """One embedding of the queries of `n` pairs of a query and a positive, and what it is compared with.

    Attributes:
        name: of the embedding, as it is logged.
        weight: of its losses.
        queries: `[n, D]`, of each pair.
        positive: `[n]` long, column of the positive.
        may_be_negative: `[n, M]` bool, by id; True at the positive too.
    """

    name: str
    weight: float
    queries: Tensor
    positive: Tensor
    may_be_negative: Tensor


def contrastive_loss(
    vectors: tuple[Tensor, Tensor, Tensor],
    batch: SFTBatch,
    with_reasoning: Sequence[int],
    settings: SFTLosses,
) -> tuple[Tensor, dict[str, Tensor]]:
    """InfoNCE and margin of both embeddings, weighted, and what to log of them. Collective.

    Args:
        vectors: documents `[M, D]`, direct queries `[B, D]` and reasoned queries `[R, D]` of this rank.
        batch: of this rank.
        with_reasoning: `R` rows of the batch.
        settings: weights, temperature, margins.
    """
    own, direct, reasoned = vectors
    relevant, numbers = _relevant(batch).to(own.device), id_numbers(batch.document_ids).to(own.device)
    counts = row_counts(len(own), own.device)
    documents, numbers = gather_rows(own, counts), gather_rows(numbers, counts)
    rank, n_ranks = own_place()
    positive = torch.tensor(batch.positive_index, device=own.device) + sum(counts[:rank])  # [P]
    documents, numbers, column = _each_once(documents, numbers)
    positive = column[positive]
    query = torch.tensor(batch.query_index, device=own.device)  # [P]
    by_id, n_by_id = negatives_mask(numbers, positive, relevant[query])
    views = [QueryView("direct", 1.0, direct[query], positive, by_id)]
    if len(batch.examples) and (len(with_reasoning) or n_ranks > 1):
        place = torch.full((len(batch.examples),), -1, device=own.device)
        place[list(with_reasoning)] = torch.arange(len(with_reasoning), device=own.device)
        place = place[query]  # [P], that of the reasoned embedding of a pair
        kept = place >= 0
        queries = reasoned[place[kept]]
        views.append(QueryView("reasoned", settings.reasoned, queries, positive[kept], by_id[kept]))
    losses, metrics = [], {"masked_by_id": torch.tensor(float(n_by_id))}
    for view in views:
        loss, values = _view_loss(view, documents, settings)
        losses.append(view.weight * loss)
        metrics |= values
    return torch.stack(losses).sum(), metrics


def _view_loss(view: QueryView, documents: Tensor, settings: SFTLosses) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of one embedding against documents `[M, D]`."""
    queries, positive = view.queries, view.positive
    is_low, n_high = false_negative_mask(
        cosine_scores(queries, documents),
        positive,
        settings.false_negative_margin,
        settings.false_negative_share,
        view.may_be_negative,
    )
    mask, n_rows = view.may_be_negative & is_low, share_of_count(len(queries), documents.device)
    shared = {
        "mask": mask,
        "denominator": share_of_count(int(has_negative(mask, positive).sum()), documents.device),
    }
    nce = info_nce(queries, documents, positive, temperature=settings.temperature, **shared)
    hinge = hardest_negative_margin(queries, documents, positive, margin=settings.margin, **shared)
    metrics = {
        "info_nce": nce.detach(),
        "triplet": hinge.detach(),
        "masked_by_score": torch.tensor(float(n_high)),
        "share_of_rows_masked": (~is_low).any(1).float().sum() / n_rows,
        "candidates": torch.tensor(float(len(queries) * (len(documents) - 1))),
    }
    loss = settings.info_nce * nce + settings.triplet * hinge
    for name, weight, function in settings.further:
        value = _scalar(name, function(queries, documents, positive, **shared))
        loss, metrics[name] = loss + weight * value, value.detach()
    return loss, {f"{name}_{view.name}": value for name, value in metrics.items()}


def _scalar(name: str, value: object) -> Tensor:
    """What a further term gave, without axes.

    Raises:
        ValueError: If it is no tensor of one number.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"losses.extra.{name} must give a scalar tensor, got {found}; sum it / denominator")
    return value.reshape(())


def _each_once(documents: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct ones of documents `[M, D]` and their numbers, and `[M]` the column that each is now.

    A rank holds a document once; several may hold the same one, which then counts as one negative.
    """
    _, which = numbers.unique(return_inverse=True)  # [M]
    columns = torch.arange(len(numbers), device=numbers.device)
    first = torch.full_like(columns, len(columns)).scatter_reduce(0, which, columns, "amin")  # [M]
    kept = (first[which] == columns).nonzero()[:, 0]
    return documents[kept], numbers[kept], torch.searchsorted(kept, first[which])


def _relevant(batch: SFTBatch) -> Tensor:
    """`[B, R]` long: numbers of each query's relevant documents, filled up with -1."""
    width = max(len(ids) for ids in batch.relevant_ids)
    relevant = torch.full((len(batch.relevant_ids), width), -1)
    for row, ids in enumerate(batch.relevant_ids):
        relevant[row, : len(ids)] = id_numbers(ids)
    return relevant
