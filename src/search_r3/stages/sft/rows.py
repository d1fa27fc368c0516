"""The token sequences of one SFT step, and how they are dealt to forwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search_r3.models.embedder import ReasoningEmbedder
from search_r3.stages.sft.collate import SFTBatch


@dataclass(frozen=True)
class TokenRow:
    """One sequence of a step.

    Attributes:
        ids: its tokens.
        embed_at: place of the embed token.
        answer_at: place of the first supervised token; `len(ids)` where none is.
    """

    ids: tuple[int, ...]
    embed_at: int
    answer_at: int

    @classmethod
    def ending(cls, ids: Sequence[int], answer_at: int) -> "TokenRow":
        """A sequence that ends with the embed token."""
        return cls(tuple(ids), len(ids) - 1, answer_at)


@dataclass(frozen=True)
class Chunk:
    """The part of a step that one forward takes: documents, direct queries, reasoned queries.

    `imitated` are queries with given reasoning whose embedding is not used: the model's own reasoning has it.
    """

    documents: tuple[TokenRow, ...] = ()
    direct: tuple[TokenRow, ...] = ()
    reasoned: tuple[TokenRow, ...] = ()
    imitated: tuple[TokenRow, ...] = ()

    @property
    def embedded(self) -> tuple[TokenRow, ...]:
        """Sequences whose embedding is used, in the order of the embeddings."""
        return self.documents + self.direct + self.reasoned

    @property
    def supervised(self) -> tuple[TokenRow, ...]:
        """Sequences whose answer is imitated: the embed token, behind the reasoning where one is given."""
        return self.direct + self.reasoned + self.imitated

    def parts(self, size: int | None) -> list["Chunk"]:
        """Chunks of `size` sequences of one kind each; the whole where `size` is None.

        Queries come last, so that the last backward reaches the head.
        """
        if size is None:
            return [self]
        return [
            Chunk(**{kind: rows[start : start + size]})
            for kind in ("documents", "imitated", "reasoned", "direct")
            for rows in [getattr(self, kind)]
            for start in range(0, len(rows), size)
        ]


def with_reasoning(batch: SFTBatch) -> list[int]:
    """The rows of a batch that have a reasoning, and so an embedding after it."""
    return [row for row, example in enumerate(batch.examples) if example.reasoning is not None]


def rows_of(
    batch: SFTBatch, embedder: ReasoningEmbedder, written: Mapping[int, tuple[Sequence[int], bool]]
) -> Chunk:
    """All sequences of a step.

    Where the model has written a reasoning, its own text is embedded and the given one imitated. Where its
    own did not end by itself, the embed token is supervised: only its own text shows the model where it runs
    on.

    Args:
        batch: of this rank.
        embedder: makes token ids of texts.
        written: reasoning in the model's own words, and whether it ended by itself, by place in
            `with_reasoning(batch)`.
    """
    encoder, embed = embedder.encoder, embedder.embed_token_id
    direct = []
    for ids in encoder.queries([example.query for example in batch.examples]):
        answer_at = len(ids) - 1 - encoder.n_lead_in
        direct.append(TokenRow((*ids, *encoder.closing), len(ids) - 1, answer_at))
    examples = [batch.examples[row] for row in with_reasoning(batch)]
    prompts = encoder.reasoning_prompts([example.query for example in examples])
    given = encoder.reasonings([example.reasoning for example in examples])
    reasoned, imitated = [], []
    for place, prompt in enumerate(prompts):
        row = TokenRow.ending((*prompt, *given[place], embed), len(prompt))
        if place in written:
            imitated.append(row)
            text, has_embed_token = written[place]
            ids = (*prompt, *text, embed)
            row = TokenRow.ending(ids, len(ids) if has_embed_token else len(ids) - 1)
        reasoned.append(row)
    documents = (TokenRow.ending(ids, len(ids)) for ids in encoder.documents(batch.documents))
    return Chunk(tuple(documents), tuple(direct), tuple(reasoned), tuple(imitated))


def by_kind(chunks: Sequence[Chunk], values: Sequence) -> tuple[list, list, list]:
    """Values `[n, ...]` of each chunk's embedded rows as pieces of documents, direct and reasoned queries."""
    kinds: tuple[list, list, list] = ([], [], [])
    for chunk, rows in zip(chunks, values, strict=True):
        sizes = [len(chunk.documents), len(chunk.direct), len(chunk.reasoned)]
        for kind, piece in zip(kinds, rows.split(sizes), strict=True):
            kind.append(piece)
    return kinds
