"""The SFT stage (arXiv:2510.07048, stage 1): `L = SFT + KL + InfoNCE + triplet margin`.

A row is embedded twice where it has reasoning: directly, and after the reasoning. Both embeddings enter the
contrastive losses against all documents of all ranks; the supervised answer enters the token losses. On a
share of the rows the embedded reasoning is the model's own, sampled in the step, so that its embedding does
not only know perfect text; the given one is imitated all the same. The weights, the share and everything else
here are ours; the paper shows the sum only.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from search_r3.data.types import Example
from search_r3.distributed import equal_forwards
from search_r3.models.batching import length_batches
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.prefix import Prefix
from search_r3.models.reference import FrozenReference
from search_r3.stages.base import ValidatedModule
from search_r3.stages.callbacks import FalseNegatives
from search_r3.stages.gradient_cache import ChunkOutput
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.sft.collate import SFTBatch
from search_r3.stages.sft.contrast import contrastive_loss
from search_r3.stages.sft.forward import PaddedForward, TokenCounts, shared_prefix
from search_r3.stages.sft.rows import Chunk, TokenRow, by_kind, rows_of, with_reasoning
from search_r3.stages.sft.settings import SelfWritten, SFTLosses

log = logging.getLogger(__name__)
COUNTS = (*FalseNegatives.NAMES, "self_written_rows")
"""What is logged as the sum over ranks, and not as the mean."""


class SFTModule(ValidatedModule):
    """Trains the embedder on the four losses.

    Args:
        embedder: is trained.
        optimization: AdamW and schedule.
        losses: weights and settings.
        self_written: share of steps and rows with the model's own reasoning.
        chunk_rows: rows of one forward with gradient caching; None makes one forward of the whole batch.
        seed: of the sampled reasoning.
        shares_prompts: run what the documents, the direct queries or the reasoned ones of a chunk begin with
            once, with gradient, where that pays (`ReasoningEmbedder.prefix_of`). Rounding differs.

    Raises:
        ValueError: If prompts are shared while activations are recomputed, which keeps no keys and values.
    """

    def __init__(
        self,
        embedder: ReasoningEmbedder,
        optimization: OptimizationSettings,
        losses: SFTLosses,
        self_written: SelfWritten,
        chunk_rows: int | None,
        seed: int,
        shares_prompts: bool = False,
    ) -> None:
        super().__init__(embedder, optimization)
        if shares_prompts and embedder.causal_lm.is_gradient_checkpointing:
            raise ValueError("shares_prompts needs the keys and values: set gradient_checkpointing to false")
        self.shares_prompts = shares_prompts
        self.losses = losses
        self.self_written = self_written
        self.chunk_rows = chunk_rows
        self.seed = seed
        self.has_kl = losses.kl > 0 and embedder.is_trained
        if losses.kl > 0 and not embedder.is_trained:
            log.info("KL is skipped: the base model is untrained, so there is nothing to stay close to")
        self.reference = FrozenReference(embedder) if self.has_kl else None

    def setup(self, stage: str) -> None:
        """As the base's.

        Raises:
            ValueError: If prompts are shared where ranks must run equally many forwards.
        """
        super().setup(stage)
        if self.shares_prompts and self.shards_weights:
            raise ValueError(
                "shares_prompts gives ranks unequally many forwards: not where weights are sharded"
            )

    def training_step(self, batch: SFTBatch, batch_idx: int) -> dict[str, int]:
        self.check_fresh_adapter()
        chunks, n_written = self.prepare(batch)
        counts = self.token_counts(chunks)

        def over_all_embeddings(embeddings: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            kinds = tuple(torch.cat(pieces) for pieces in by_kind(chunks, embeddings))
            return contrastive_loss(kinds, batch, with_reasoning(batch), self.losses)

        names = [example.id for example in batch.examples]
        forward = partial(self.forward_chunk, counts=counts)
        result = self.optimize(chunks, forward, over_all_embeddings, names)
        told = {"loss": result.loss, "self_written_rows": float(n_written), **result.metrics}
        told |= {"grad_norm": result.grad_norm}
        told = self.over_ranks(told, COUNTS) | {"learning_rate": result.learning_rate}
        self.log("train/loss", told.pop("loss"), prog_bar=True, batch_size=len(names))
        self.log_dict({f"train/{name}": value for name, value in told.items()}, batch_size=len(names))
        n_tokens = sum(len(row.ids) for chunk in chunks for row in (*chunk.embedded, *chunk.imitated))
        masked = {name: result.metrics[name] for name in FalseNegatives.NAMES if name in result.metrics}
        return {"n_pairs": len(names), "n_tokens": n_tokens} | masked

    # ---- the step's sequences

    def prepare(self, batch: SFTBatch) -> tuple[list[Chunk], int]:
        """Chunks of a step, and how many reasonings in them are the model's own.

        Where weights are sharded, empty chunks come first, up to the most that any rank has.
        """
        written = self._write([batch.examples[row] for row in with_reasoning(batch)])
        chunks = rows_of(batch, self.embedder, written).parts(self.chunk_rows)
        n_missing = 0 if self.chunk_rows is None else self.n_missing(len(chunks))
        return [*([Chunk()] * n_missing), *chunks], len(written)

    def _write(self, examples: Sequence[Example]) -> dict[int, tuple[list[int], bool]]:
        """Sampled reasoning, and whether it ended by itself, by place in `examples`; empty where this step
        takes the given ones.

        In a step that samples, all ranks must call this, one that has no rows included.
        """
        every = self.self_written.every_n_steps
        step = self.trainer.global_step
        if every == 0 or step % every != every - 1:
            return {}
        seed = self.seed * 1_000_003 + step
        generator = torch.Generator().manual_seed(seed)
        places = self.self_written.places(len(examples), generator)
        with equal_forwards(self.embedder):
            rollouts = self.embedder.reason(
                [examples[place].query for place in places],
                seed=seed,
                temperature=self.self_written.temperature,
            )
        own = zip(rollouts.token_ids, rollouts.has_embed_token, strict=True)
        return dict(zip(places, own, strict=True))

    def token_counts(self, chunks: Sequence[Chunk]) -> TokenCounts:
        """Denominators of the token losses of all chunks; collective."""
        return TokenCounts.of([row for chunk in chunks for row in chunk.supervised], self.device)

    # ---- one forward

    def forward_chunk(self, chunk: Chunk, counts: TokenCounts) -> ChunkOutput:
        """Embeddings of a chunk (documents, direct, reasoned, in this order) and its token losses."""
        is_first_pass = not torch.is_grad_enabled()  # of gradient caching: only the embeddings are wanted
        rows = [*chunk.embedded, *(() if is_first_pass else chunk.imitated)]
        embeddings: list[Tensor | None] = [None] * len(rows)
        extra = torch.zeros((), device=self.device)
        sums = {"sft": extra, "kl": extra}
        for places, prefix in self._batches(chunk, rows):
            padded = [rows[place] for place in places] or [self._idle_row]
            forward = PaddedForward(self.embedder, padded, prefix)
            vectors = forward.embeddings()
            for place, vector in zip(places, vectors, strict=False):  # an idle row has no place
                embeddings[place] = vector
            if is_first_pass:
                continue
            if not places:
                extra = extra + 0.0 * vectors.sum()  # its backward is run as well
            parts = forward.token_losses(counts, self.reference, self.shards_weights)
            extra = extra + (self.losses.sft * parts["sft"] + self.losses.kl * parts["kl"])
            sums = {name: sums[name] + parts[name] for name in sums}
        metrics = {name: value.detach() for name, value in sums.items()}
        kept = embeddings[: len(chunk.embedded)]
        stacked = torch.stack(kept) if kept else extra.new_zeros(0, self.embedder.width)
        return ChunkOutput(stacked, extra, metrics)

    def _batches(
        self, chunk: Chunk, rows: Sequence[TokenRow]
    ) -> Iterator[tuple[Sequence[int], Prefix | None]]:
        """Places in `rows` of each forward, and what these rows begin with where prompts are shared."""
        n_documents, n_direct = len(chunk.documents), len(chunk.direct)
        edges = (0, n_documents, n_documents + n_direct, len(rows)) if self.shares_prompts else (0, len(rows))
        together: list[int] = []  # of kinds that begin with too little to share it
        for kind in (range(start, end) for start, end in pairwise(edges)):
            shares = self.shares_prompts and len(kind)
            prefix = shared_prefix(self.embedder, [rows[place] for place in kind]) if shares else None
            if prefix is None or not prefix.n_ids:
                together.extend(kind)
                continue
            yield from ((places, prefix) for places in self._of_similar_length(rows, kind))
        yield from ((places, None) for places in self._of_similar_length(rows, together))

    def _of_similar_length(self, rows: Sequence[TokenRow], places: Sequence[int]) -> list[list[int]]:
        """The places as batches for forwards; equally many on all ranks where weights are sharded."""
        lengths = [len(rows[place].ids) for place in places]
        batches = length_batches(lengths, self.embedder.token_budget, self.embedder.forward_cost)
        return [[places[number] for number in batch] for batch in self.filled_up(batches)]

    @property
    def _idle_row(self) -> TokenRow:
        """What a rank runs that is through while another goes on."""
        return TokenRow((self.embedder.embed_token_id,), 0, 1)
