"""The models, the peers' copies of them, and the texts that are compared on."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from search_r3.benchmarks.peers.names import NANO_NAME
from search_r3.benchmarks.prefix import NANO, plain_base
from search_r3.data.pydocs.reader import load_pydocs
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder.loading import load_embedder
from search_r3.models.folder.saving import save_embedder
from search_r3.models.generation import SpecialIds

ATTENTIONS = ("sdpa", "eager")
"""Of transformers; a peer is timed with both, and the faster one is compared."""


@dataclass(frozen=True)
class Texts:
    """Functions of the standard library and the sentences that describe them.

    Attributes:
        queries: the first sentences of docstrings.
        documents: the functions' sources; the document at a place is the positive of the query at it.
    """

    queries: Sequence[str]
    documents: Sequence[str]


def load_texts(n: int, cache_dir: Path) -> Texts:
    """The first `n` pairs of `data=pydocs` without its packages whose query no other of them has.

    The order is that of the modules' names, so lengths are those of real code and nothing is chosen.

    Raises:
        ValueError: If there are fewer pairs.
    """
    examples = load_pydocs([], cache_dir, min_test=100).examples
    once = {example.query: example for example in examples}
    chosen = list(islice({each.positive: each for each in once.values()}.values(), n))
    if len(chosen) < n:
        raise ValueError(f"the standard library has {len(chosen)} pairs; {n} are asked for")
    return Texts([each.query for each in chosen], [each.positive for each in chosen])


@dataclass(frozen=True)
class Subject:
    """A model in two hands: ours, and its folder for a peer; both in fp32.

    Attributes:
        name: "nano" or "smollm2_135m".
        embedder: ours.
        folder: the same weights as an ordinary model folder, prompts included.
        precision: "fp32", or "bf16", which is autocast on both sides.
    """

    name: str
    embedder: ReasoningEmbedder
    folder: Path
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """Of products."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def n_weights(self) -> int:
        """Weights that every token of a forward is multiplied by."""
        return sum(each.numel() for each in self.embedder.decoder.parameters() if each.ndim == 2) - (
            self.embedder.causal_lm.get_input_embeddings().weight.numel()
        )

    @property
    def n_head(self) -> int:
        """Weights of the head."""
        return self.embedder.causal_lm.get_output_embeddings().weight.numel()

    @property
    def tolerance(self) -> float:
        """Of a coordinate of a unit vector: rounding of fp32 in other batches, or of bf16."""
        return 0.03 if self.precision == "bf16" else 1e-5

    def autocast(self) -> AbstractContextManager:
        """Both sides run within it."""
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def writes_anything(self) -> None:
        """Lets our sampling write any token and end at the embed token alone, as a peer's does."""
        special = self.embedder.special_ids
        self.embedder.special_ids = SpecialIds(special.embed, frozenset(), (), special.pad)

    def writes_all_but_the_embed_token(self) -> None:
        """Lets our sampling write any other token, so that every rollout reaches the limit."""
        special = self.embedder.special_ids
        self.embedder.special_ids = SpecialIds(special.embed, frozenset(), (special.embed,), special.pad)


def open_subject(name: str, base: Path, work: Path, precision: str = "fp32") -> Subject:
    """Reads a model, and writes its folder for peers.

    Args:
        name: "nano", the shipped base with its own prompts, or "smollm2_135m" with those of
            `model=smollm2_135m`, a chat template with a system message.
        base: the folder of the second.
        work: where the peers' folder is made.
        precision: of both sides.
    """
    embedder = load_embedder(NANO) if name == NANO_NAME else plain_base(base)
    embedder.eval()
    folder = save_embedder(embedder, work / name, {"made by": "python -m src.bench"})
    return Subject(name, embedder, folder, precision)


def sentence_transformers(subject: Subject, attentions: Sequence[str] = ATTENTIONS) -> dict[str, object]:
    """The peer's models of a subject, by attention."""
    from sentence_transformers import SentenceTransformer

    return {
        attention: SentenceTransformer(
            str(subject.folder), device="cpu", model_kwargs={"attn_implementation": attention}
        )
        for attention in attentions
    }
