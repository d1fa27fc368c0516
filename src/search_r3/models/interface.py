"""What evaluation and search ask of a model that embeds: ours, or another library's."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Protocol

from torch import Tensor

Kind = Literal["query", "document"]

CUT_SHARE_TOLD = 0.01
"""Of some texts: where a model cuts more than this share of them, the log says how many."""


class Embedder(Protocol):
    """Turns queries and documents into vectors whose inner product is their cosine.

    Attributes:
        can_reason: whether it also writes about a query, and embeds what it wrote (`reason`).
    """

    can_reason: ClassVar[bool]

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights as they were read."""

    @property
    def document_key(self) -> Mapping[str, str]:
        """What a cached document embedding depends on, besides the document: weights, prompts, dtype."""

    def embed_documents(self, texts: Sequence[str], progress: bool = False) -> Tensor:
        """Embeddings `[N, D]`, fp32 on the CPU, unit norm, in the caller's order."""

    def embed_documents_and_count(self, texts: Sequence[str], progress: bool = False) -> tuple[Tensor, int]:
        """As `embed_documents`, and how many of the documents are cut."""

    def embed_queries(self, texts: Sequence[str], progress: bool = False) -> Tensor:
        """Embeddings `[N, D]` of queries without reasoning, fp32 on the CPU, unit norm."""

    def truncated_count(self, texts: Sequence[str], kind: Kind) -> int:
        """How many texts are longer than what is read of one, and are cut."""

    def query_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that are read of queries without reasoning, prompts included and the embed token not."""

    def limit(self, kind: Kind) -> str:
        """The most tokens that are read of a text, with the name that its user knows it by."""
