"""From rows to the tensors of one step: token ids, which document is whose, what may be a negative."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.data.types import Example


@dataclass(frozen=True)
class SFTBatch:
    """One step's rows. `B` queries, `M` distinct documents, positives first among each query's.

    Attributes:
        ids: `B` row ids, for messages.
        queries: `B` texts.
        reasonings: `B` texts or None.
        documents: `M` texts.
        document_keys: `[M]` int64, equal for equal document ids, also across ranks.
        positive_index: `[B]` column of each query's positive among this rank's documents.
        relevant_keys: `[B, R]` keys of all documents known to be relevant, padded with the positive's.
    """

    ids: tuple[str, ...]
    queries: tuple[str, ...]
    reasonings: tuple[str | None, ...]
    documents: tuple[str, ...]
    document_keys: Tensor
    positive_index: Tensor
    relevant_keys: Tensor


def document_key(document_id: str) -> int:
    """A stable 63-bit number for a document id."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "big") >> 1


def collate_sft(examples: Sequence[Example], max_hard_negatives: int, max_relevant: int = 64) -> SFTBatch:
    """Collects the distinct documents of a batch.

    Args:
        examples: `B` rows.
        max_hard_negatives: the first so many of each row are used.
        max_relevant: the most relevant ids masked per query; the positive and those in the batch first.
    """
    documents: dict[str, str] = {}
    for example in examples:
        documents.setdefault(example.positive_id, example.positive)
        pairs = zip(example.hard_negative_ids, example.hard_negatives, strict=True)
        for document_id, text in list(pairs)[:max_hard_negatives]:
            documents.setdefault(document_id, text)
    column = {document_id: index for index, document_id in enumerate(documents)}
    relevant = [
        [
            example.positive_id,
            *sorted(example.relevant_ids - {example.positive_id}, key=lambda i: i not in column),
        ]
        for example in examples
    ]
    width = min(max(len(ids) for ids in relevant), max_relevant)
    keys = [[document_key(i) for i in (ids + ids[:1] * width)[:width]] for ids in relevant]
    return SFTBatch(
        ids=tuple(example.id for example in examples),
        queries=tuple(example.query for example in examples),
        reasonings=tuple(example.reasoning for example in examples),
        documents=tuple(documents.values()),
        document_keys=torch.tensor([document_key(i) for i in documents]),
        positive_index=torch.tensor([column[example.positive_id] for example in examples]),
        relevant_keys=torch.tensor(keys),
    )
