"""A step of contrastive training with gradient caching against that of sentence-transformers.

Both begin with texts: token ids, embeddings without a graph, the loss over the whole batch, embeddings again
with it, clipping, AdamW. Neither a trainer nor a logger runs on either side.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from search_r3.benchmarks.peers.comparison import Comparison, Equal, gradient_difference, gradient_of
from search_r3.benchmarks.peers.encode import forward_cost
from search_r3.benchmarks.peers.subjects import Subject, Texts, sentence_transformers
from search_r3.data.types import Example
from search_r3.stages.gradient_cache import backward_with_cache
from search_r3.stages.optimization import OptimizationSettings, build_optimizer
from search_r3.stages.sft.collate import SFTBatch, collate_sft
from search_r3.stages.sft.contrast import contrastive_loss
from search_r3.stages.sft.module import SFTModule
from search_r3.stages.sft.rows import by_kind, rows_of
from search_r3.stages.sft.settings import SelfWritten, SFTLosses

TEMPERATURE = 0.05
CHUNK_ROWS = (16, 32, 64)
"""Sequences of a forward with a graph: of the peer, the fastest is compared; ours takes the middle one."""

_RATE, _MAX_NORM = 1e-6, 1.0
_LOSSES = {"sft": 0.0, "kl": 0.0, "info_nce": 1.0, "triplet": 0.0, "reasoned": 0.0}


class Ours:
    """The SFT stage with its contrastive term alone: neither KL nor reasoning, which the peer has not.

    Args:
        subject: its embedder is trained, at a rate that moves nothing that matters.
        texts: a pair each.
    """

    def __init__(self, subject: Subject, texts: Texts) -> None:
        losses = SFTLosses(**_LOSSES, temperature=TEMPERATURE, margin=0.1, false_negative_margin=10.0)
        settings = OptimizationSettings(_RATE, weight_decay=0.0)
        self.subject, self.batch = subject, batch_of(texts)
        self.module = SFTModule(
            subject.embedder, settings, losses, SelfWritten(0, 0.0, 1.0), CHUNK_ROWS[1], seed=0
        )
        self.optimizer = build_optimizer(subject.embedder.named_parameters(), settings)

    def backward(self) -> Tensor:
        """Fills the gradients from texts; the loss."""
        chunks = rows_of(self.batch, self.subject.embedder, {}).parts(self.module.chunk_rows)
        counts = self.module.token_counts(chunks)

        def over_all(embeddings: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            kinds = tuple(torch.cat(pieces) for pieces in by_kind(chunks, embeddings))
            return contrastive_loss(kinds, self.batch, (), self.module.losses)

        with self.subject.autocast():
            loss, _ = backward_with_cache(
                chunks, lambda chunk: self.module.forward_chunk(chunk, counts), over_all, Tensor.backward
            )
        return loss

    def step(self) -> None:
        step(self.backward, self.optimizer, self.subject.embedder)


class Theirs:
    """CachedMultipleNegativesRankingLoss on the same weights.

    Args:
        subject: the precision.
        model: of the peer.
        texts: a pair each.
        chunk_rows: its mini batch.
    """

    def __init__(self, subject: Subject, model: nn.Module, texts: Texts, chunk_rows: int) -> None:
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

        self.subject, self.model, self.texts = subject, model, texts
        self.loss = CachedMultipleNegativesRankingLoss(
            model, scale=1 / TEMPERATURE, mini_batch_size=chunk_rows
        )
        trained = [each for each in model.parameters() if each.requires_grad]
        self.optimizer = AdamW(trained, lr=_RATE, weight_decay=0.0, betas=(0.9, 0.98), fused=True)

    def backward(self) -> Tensor:
        """Fills the gradients from texts; the loss."""
        kinds = (("query", self.texts.queries), ("document", self.texts.documents))
        features = [self.model.preprocess(list(texts), task=task) for task, texts in kinds]
        with self.subject.autocast():
            loss = self.loss(features, torch.empty(0))
        loss.backward()
        return loss.detach()

    def step(self) -> None:
        step(self.backward, self.optimizer, self.model)


def batch_of(texts: Texts) -> SFTBatch:
    """A pair is a row; every other document is a negative."""
    return collate_sft(
        [
            Example(
                id=str(row),
                query=query,
                positive=document,
                positive_id=str(row),
                relevant_ids=frozenset((str(row),)),
            )
            for row, (query, document) in enumerate(zip(texts.queries, texts.documents, strict=True))
        ],
        hard_negatives=0,
    )


def step(backward: Callable[[], Tensor], optimizer: AdamW, model: nn.Module) -> None:
    """Gradients, their norm clipped, AdamW."""
    optimizer.zero_grad(set_to_none=True)
    backward()
    nn.utils.clip_grad_norm_([each for each in model.parameters() if each.requires_grad], _MAX_NORM)
    optimizer.step()
    torch.clear_autocast_cache()


def sft(subject: Subject, texts: Texts) -> Comparison:
    """One optimizer step over all pairs."""
    ours = Ours(subject, texts)
    models = sentence_transformers(subject)
    theirs = {
        f"{attention}, mini batches of {rows}": Theirs(subject, model, texts, rows)
        for attention, model in models.items()
        for rows in CHUNK_ROWS
    }
    encoder = subject.embedder.encoder
    sequences = [*encoder.queries(texts.queries), *encoder.documents(texts.documents)]
    return Comparison(
        unit="pairs per second",
        amount=len(texts.queries),
        peer=f"sentence-transformers {version('sentence-transformers')} CachedMultipleNegativesRankingLoss",
        ours=ours.step,
        theirs={name: each.step for name, each in theirs.items()},
        equal=compared(ours, next(iter(theirs.values())), subject),
        cost=forward_cost(subject, sequences, passes=3),  # a backward is two; the cached forward is left out
    )


def compared(ours: Ours, theirs: Theirs, subject: Subject) -> list[Equal]:
    """Loss, relative, and gradient, by the length of its difference to that of its own."""
    losses = [side.backward() for side in (ours, theirs)]
    embedder = subject.embedder
    other = {name.partition(".model.")[2]: each for name, each in gradient_of(theirs.model).items()}
    difference = gradient_difference(gradient_of(embedder.decoder), other)
    for each in (embedder, theirs.model):
        each.zero_grad(set_to_none=True)
    limit = 0.1 if subject.precision == "bf16" else 1e-3
    return [
        Equal("loss", float((losses[0] - losses[1]).abs() / losses[1].abs()), limit / 10),
        Equal("gradient", difference, limit),
    ]
