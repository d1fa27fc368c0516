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
        query_index: `P` rows, the query of each pair of a query and a positive; each query has at least one.
        positive_index: `P` columns, the positive of each pair.
        relevant_ids: `B` lists of the documents that are no negatives: those known to be relevant, the
            positives first, and those that the query is not ranked against.
    """

    examples: tuple[Example, ...]
    documents: tuple[str, ...]
    document_ids: tuple[str, ...]
    query_index: tuple[int, ...]
    positive_index: tuple[int, ...]
    relevant_ids: tuple[tuple[str, ...], ...]


def collate_sft(examples: Sequence[Example], hard_negatives: int) -> SFTBatch:
    """Collects the distinct documents of a batch.

    Args:
        examples: `B` rows.
        hard_negatives: the first so many of each row are used.
    """
    documents: dict[str, str] = {}
    for example in examples:
        documents.setdefault(example.positive_id, example.positive)
        documents |= {
            document_id: text
            for document_id, text in zip(example.more_positive_ids, example.more_positives, strict=True)
            if document_id not in documents
        }
        negatives = zip(example.hard_negative_ids, example.hard_negatives, strict=True)
        for document_id, text in list(negatives)[:hard_negatives]:
            documents.setdefault(document_id, text)
    column = {document_id: index for index, document_id in enumerate(documents)}
    positives = [(example.positive_id, *example.more_positive_ids) for example in examples]
    relevant = [  # all of them: which of them other ranks hold is not known here
        (*own, *sorted((example.relevant_ids | example.excluded_ids).difference(own)))
        for own, example in zip(positives, examples, strict=True)
    ]
    pairs = [(row, column[document_id]) for row, own in enumerate(positives) for document_id in own]
    return SFTBatch(
        examples=tuple(examples),
        documents=tuple(documents.values()),
        document_ids=tuple(documents),
        query_index=tuple(row for row, _ in pairs),
        positive_index=tuple(index for _, index in pairs),
        relevant_ids=tuple(relevant),
    )
