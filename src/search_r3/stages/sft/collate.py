"""From rows to one step's texts: which documents there are, and which query each belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass

from search_r3.data.types import Example


@dataclass(frozen=True)
class SFTBatch:
    """One step's rows of one rank: `B` queries and `M` distinct documents.

    Attributes:
        examples: `B` rows.
        documents: `M` texts, each document id once.
        document_ids: `M` ids.
        positive_index: `B` columns, that of each query's positive.
        relevant_ids: `B` lists of the documents known to be relevant, the positive first.
    """

    examples: tuple[Example, ...]
    documents: tuple[str, ...]
    document_ids: tuple[str, ...]
    positive_index: tuple[int, ...]
    relevant_ids: tuple[tuple[str, ...], ...]


def collate_sft(examples: Sequence[Example], hard_negatives: int, max_relevant: int = 64) -> SFTBatch:
    """Collects the distinct documents of a batch.

    Args:
        examples: `B` rows.
        hard_negatives: the first so many of each row are used.
        max_relevant: so many relevant ids per query are masked; the positive and those in the batch first.
    """
    documents: dict[str, str] = {}
    for example in examples:
        documents.setdefault(example.positive_id, example.positive)
        pairs = zip(example.hard_negative_ids, example.hard_negatives, strict=True)
        for document_id, text in list(pairs)[:hard_negatives]:
            documents.setdefault(document_id, text)
    column = {document_id: index for index, document_id in enumerate(documents)}
    relevant = [
        (
            example.positive_id,
            *sorted(example.relevant_ids - {example.positive_id}, key=lambda i: (i not in column, i)),
        )[:max_relevant]
        for example in examples
    ]
    return SFTBatch(
        examples=tuple(examples),
        documents=tuple(documents.values()),
        document_ids=tuple(documents),
        positive_index=tuple(column[example.positive_id] for example in examples),
        relevant_ids=tuple(relevant),
    )
