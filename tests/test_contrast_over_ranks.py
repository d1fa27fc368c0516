"""The contrastive losses of SFT where ranks hold copies of one document, against one rank with all rows."""

from dataclasses import replace

import pytest
import torch
from two_processes import on_two_ranks

from search_r3.data.types import Example
from search_r3.stages.sft.collate import collate_sft
from search_r3.stages.sft.contrast import contrastive_loss
from search_r3.stages.sft.settings import SFTLosses

LOSSES = SFTLosses(0.0, 0.0, 1.0, 1.0, 1.0, 0.2, 2.0, 0.3, 0.3)
WIDTH = 6


def row(number: int, *negatives: str) -> Example:
    """A query whose hard negatives may be another row's positive."""
    positive = f"d{number}"
    return Example(
        f"q{number}", f"query {number}", positive, positive,
        hard_negatives=negatives, hard_negative_ids=negatives, reasoning="so" if number % 2 else None,
    )  # fmt: skip


ROWS = [row(0, "n0", "d3"), row(1, "n0", "n1"), row(2, "n0", "d1"), row(3, "n1", "d0")]


def vector(name: str) -> torch.Tensor:
    """The embedding of a text is the same on every rank."""
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(sum(map(ord, name))))


def losses_and_gradient(rows: list[Example]) -> dict[str, torch.Tensor]:
    """Losses of some rows, and the gradient by document of this rank's part."""
    batch = collate_sft(rows, hard_negatives=2)
    documents = torch.stack([vector(name) for name in batch.document_ids]).requires_grad_()
    queries = torch.stack([vector(example.query) for example in batch.examples])
    reasoned = [place for place, example in enumerate(batch.examples) if example.reasoning]
    loss, metrics = contrastive_loss((documents, queries, queries[reasoned]), batch, reasoned, LOSSES)
    loss.backward()
    found = dict(zip(batch.document_ids, documents.grad, strict=True))
    return {"loss": loss.detach(), **metrics, **{f"gradient of {name}": g for name, g in found.items()}}


def work(rank: int) -> dict[str, torch.Tensor]:
    return losses_and_gradient(ROWS[:2] if rank == 0 else ROWS[2:])


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, torch.Tensor]]:
    return on_two_ranks(work)


@pytest.mark.parametrize("name", ["loss", "info_nce_direct", "triplet_direct", "info_nce_reasoned"])
def test_a_document_that_two_ranks_hold_is_one_negative_as_it_is_on_one_rank(two_ranks, name):
    whole = losses_and_gradient(ROWS)
    assert whole[name] > 0.1
    mean = sum(rank[name] for rank in two_ranks) / 2
    assert mean.item() == pytest.approx(whole[name].item(), rel=1e-6)


def test_the_gradient_of_a_document_that_two_ranks_hold_is_that_of_one_rank(two_ranks):
    whole = losses_and_gradient(ROWS)
    for name in (f"gradient of {document}" for document in ("n0", "n1", "d0", "d1", "d3")):
        assert whole[name].abs().max() > 1e-3
        mean = sum(rank.get(name, torch.zeros(WIDTH)) for rank in two_ranks) / 2
        torch.testing.assert_close(mean, whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["masked_by_score_direct", "candidates_direct"])
def test_what_is_counted_over_ranks_is_what_one_rank_counts(two_ranks, name):
    whole = losses_and_gradient(ROWS)
    assert whole[name] > 0
    assert sum(rank[name] for rank in two_ranks) == whole[name]


# sorted by id, what the other rank holds comes last
EXCLUDED = {f"a{number}" for number in range(100)} | {"d2", "d3", "n1"}
EXCLUDING = [replace(example, excluded_ids=frozenset(EXCLUDED - {example.positive_id})) for example in ROWS]


def work_excluding(rank: int) -> dict[str, torch.Tensor]:
    return losses_and_gradient(EXCLUDING[:2] if rank == 0 else EXCLUDING[2:])


def test_of_hundreds_of_excluded_documents_none_that_another_rank_holds_is_a_negative():
    found, whole = on_two_ranks(work_excluding), losses_and_gradient(EXCLUDING)
    assert sum(rank["masked_by_id"] for rank in found) == whole["masked_by_id"] == 3 + 3 + 2 + 2
    mean = sum(rank["loss"] for rank in found) / 2
    assert mean.item() == pytest.approx(whole["loss"].item(), rel=1e-6)
    assert whole["loss"] < losses_and_gradient(ROWS)["loss"] - 0.1
