"""The SFT stage (arXiv:2510.07048, stage 1): `L = SFT + KL + InfoNCE + triplet margin`.

A row is embedded twice where it has reasoning: directly, and after the reasoning. Both embeddings enter the
contrastive losses against all documents of all ranks; the supervised answer enters the token losses. On a
share of the rows the embedded reasoning is the model's own, sampled in the step, so that its embedding does
not only know perfect text; the given one is imitated all the same. The weights, the share and everything else
here are ours; the paper shows the sum only.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from search_r3.distributed import equal_forwards, gather_rows, row_counts, share_of_count
from search_r3.models.embedder import ReasoningEmbedder, length_batches
from search_r3.models.generation import pad_left
from search_r3.models.reference import FrozenReference
from search_r3.objectives.losses import (
    cosine_scores,
    false_negative_mask,
    hardest_negative_margin,
    has_negative,
    id_numbers,
    info_nce,
    kl_to_reference,
    negatives_mask,
    sft_cross_entropy,
)
from search_r3.stages.base import ValidatedModule
from search_r3.stages.gradient_cache import ChunkOutput, backward_with_cache
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.sft.collate import SFTBatch
from search_r3.stages.sft.settings import SelfWritten, SFTLosses
from search_r3.stages.step import block_sync, optimization_step

log = logging.getLogger(__name__)


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
        return self.documents + self.direct + self.reasoned

    @property
    def supervised(self) -> tuple[TokenRow, ...]:
        return self.direct + self.reasoned + self.imitated


@dataclass(frozen=True)
class TokenCounts:
    """Denominators of the token losses: positions on all ranks divided by the number of ranks."""

    supervised: float
    compared: float


class SFTModule(ValidatedModule):
    """Trains the embedder on the four losses.

    Args:
        embedder: is trained.
        optimization: AdamW and schedule.
        losses: weights and settings.
        self_written: share of steps and rows with the model's own reasoning.
        chunk_rows: rows of one forward with gradient caching; None makes one forward of the whole batch.
        seed: of the sampled reasoning.
    """

    def __init__(
        self,
        embedder: ReasoningEmbedder,
        optimization: OptimizationSettings,
        losses: SFTLosses,
        self_written: SelfWritten,
        chunk_rows: int | None,
        seed: int,
    ) -> None:
        super().__init__(embedder, optimization)
        self.losses = losses
        self.self_written = self_written
        self.chunk_rows = chunk_rows
        self.seed = seed
        self.has_kl = losses.kl > 0 and embedder.is_trained
        if losses.kl > 0 and not embedder.is_trained:
            log.info("KL is skipped: the base model is untrained, so there is nothing to stay close to")
        self.reference = FrozenReference(embedder) if self.has_kl else None

    def training_step(self, batch: SFTBatch, batch_idx: int) -> dict[str, int]:
        self.check_fresh_adapter()
        chunks, n_reasoned, metrics = self.prepare(batch)
        counts = self._token_counts(chunks)

        def run_backward() -> Tensor:
            loss, parts = backward_with_cache(
                chunks,
                lambda chunk: self.forward_chunk(chunk, counts),
                lambda embeddings: self.contrastive_loss(
                    self._by_kind(chunks, embeddings), batch, n_reasoned
                ),
                self.manual_backward,
                block_sync(self),
            )
            metrics.update(parts)
            return loss

        names = [example.id for example in batch.examples]
        result = optimization_step(self, run_backward, names, self.optimization.max_grad_norm)
        metrics |= {"grad_norm": result.grad_norm, "learning_rate": result.learning_rate}
        self.log("train/loss", result.loss, prog_bar=True, batch_size=len(names))
        self.log_dict({f"train/{name}": value for name, value in metrics.items()}, batch_size=len(names))
        rows = [row for chunk in chunks for row in (*chunk.embedded, *chunk.imitated)]
        counts = {name: n for name, n in metrics.items() if name.startswith(("masked_", "candidates_"))}
        return {"n_pairs": len(names), "n_tokens": sum(len(row.ids) for row in rows)} | counts

    # ---- the step's sequences

    def prepare(self, batch: SFTBatch) -> tuple[list[Chunk], list[int], dict[str, float]]:
        """Chunks of a step, the rows of the batch that have a reasoned embedding, and what to log."""
        encoder = self.embedder.encoder
        embed = self.embedder.embed_token_id
        documents = [self._row(ids, len(ids)) for ids in encoder.documents(batch.documents)]
        direct = []
        for ids in encoder.queries([example.query for example in batch.examples]):
            answer_at = len(ids) - 1 - encoder.n_lead_in
            direct.append(TokenRow((*ids, *encoder.closing), len(ids) - 1, answer_at))
        with_reasoning = [row for row, example in enumerate(batch.examples) if example.reasoning is not None]
        prompts = encoder.reasoning_prompts([batch.examples[row].query for row in with_reasoning])
        given = encoder.reasonings([batch.examples[row].reasoning for row in with_reasoning])
        written = self._write([batch.examples[row] for row in with_reasoning])
        reasoned, imitated = [], []
        for place, prompt in enumerate(prompts):
            row = self._row((*prompt, *given[place], embed), len(prompt))
            if place in written:
                # The model's own text is embedded and the given one imitated. Where its own did not end by
                # itself, the embed token is supervised: only its own text shows the model where it runs on.
                imitated.append(row)
                text, has_embed_token = written[place]
                ids = (*prompt, *text, embed)
                row = self._row(ids, len(ids) if has_embed_token else len(ids) - 1)
            reasoned.append(row)
        chunks = self._chunks(documents, direct, reasoned, imitated)
        return chunks, with_reasoning, {"self_written_rows": float(len(written))}

    @property
    def _idle_row(self) -> TokenRow:
        """What a rank runs that is through while another goes on."""
        return TokenRow((self.embedder.embed_token_id,), 0, 1)

    @staticmethod
    def _row(ids: Sequence[int], answer_at: int) -> TokenRow:
        return TokenRow(tuple(ids), len(ids) - 1, answer_at)

    def _write(self, examples: Sequence) -> dict[int, tuple[list[int], bool]]:
        """Sampled reasoning, and whether it ended by itself, by place in `examples`; empty where this step
        takes the given ones.

        In a step that samples, all ranks must call this, one that has no rows included.
        """
        every = self.self_written.every_n_steps
        step = self.trainer.global_step
        if every == 0 or step % every != every - 1:
            return {}
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        n_written = round(self.self_written.share * len(examples))
        places = torch.randperm(len(examples), generator=generator)[:n_written].tolist()
        with equal_forwards(self.embedder):
            rollouts = self.embedder.reason(
                [examples[place].query for place in places],
                seed=self.seed * 1_000_003 + step,
                temperature=self.self_written.temperature,
            )
        own = zip(rollouts.token_ids, rollouts.has_embed_token, strict=True)
        return dict(zip(places, own, strict=True))

    def _chunks(self, documents: list, direct: list, reasoned: list, imitated: list) -> list[Chunk]:
        """Slices of `chunk_rows` sequences; queries come last, so that the last backward reaches the head.

        Where weights are sharded, empty ones come first, up to the most that any rank has.
        """
        size = self.chunk_rows
        if size is None:
            return [Chunk(tuple(documents), tuple(direct), tuple(reasoned), tuple(imitated))]
        parts = [Chunk(documents=tuple(documents[i : i + size])) for i in range(0, len(documents), size)]
        parts += [Chunk(imitated=tuple(imitated[i : i + size])) for i in range(0, len(imitated), size)]
        parts += [Chunk(reasoned=tuple(reasoned[i : i + size])) for i in range(0, len(reasoned), size)]
        parts += [Chunk(direct=tuple(direct[i : i + size])) for i in range(0, len(direct), size)]
        return [*([Chunk()] * self.n_missing(len(parts))), *parts]

    def _token_counts(self, chunks: Sequence[Chunk]) -> TokenCounts:
        rows = [row for chunk in chunks for row in chunk.supervised]
        supervised = sum(len(row.ids) - row.answer_at for row in rows)
        compared = supervised - sum(row.answer_at <= row.embed_at for row in rows)
        return TokenCounts(share_of_count(supervised, self.device), share_of_count(compared, self.device))

    # ---- one forward

    def forward_chunk(self, chunk: Chunk, counts: TokenCounts) -> ChunkOutput:
        """Embeddings of a chunk (documents, direct, reasoned, in this order) and its token losses."""
        is_first_pass = not torch.is_grad_enabled()  # of gradient caching: only the embeddings are wanted
        rows = [*chunk.embedded, *(() if is_first_pass else chunk.imitated)]
        embeddings: list[Tensor | None] = [None] * len(rows)
        extra = torch.zeros((), device=self.device)
        sums = {"sft": extra, "kl": extra}
        lengths = [len(row.ids) for row in rows]
        for places in self.filled_up(length_batches(lengths, self.embedder.token_budget)):
            part = [rows[place] for place in places] or [self._idle_row]
            ids, mask = pad_left([row.ids for row in part], self.embedder.tokenizer.pad_token_id, self.device)
            states = self.embedder.hidden_states(ids, mask)  # [n, L, D]
            offsets = [ids.shape[1] - len(row.ids) for row in part]
            at = torch.tensor(
                [o + row.embed_at for o, row in zip(offsets, part, strict=True)], device=self.device
            )
            vectors = normalize(states[torch.arange(len(part), device=self.device), at].float(), dim=-1)
            for place, vector in zip(places, vectors, strict=False):  # an idle row has no place
                embeddings[place] = vector
            if is_first_pass:
                continue
            if not places:
                extra = extra + 0.0 * vectors.sum()  # its backward is run as well
            loss, parts = self._token_losses(part, offsets, ids, mask, states, counts)
            extra = extra + loss
            sums = {name: sums[name] + parts[name] for name in sums}
        metrics = {name: value.detach() for name, value in sums.items()}
        kept = embeddings[: len(chunk.embedded)]
        stacked = torch.stack(kept) if kept else extra.new_zeros(0, self.embedder.width)
        return ChunkOutput(stacked, extra, metrics)

    def _token_losses(
        self,
        part: Sequence[TokenRow],
        offsets: Sequence[int],
        ids: Tensor,
        mask: Tensor,
        states: Tensor,
        counts: TokenCounts,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted cross-entropy and KL at the supervised positions of one padded batch."""
        where = [
            (place, offset + position)
            for place, (row, offset) in enumerate(zip(part, offsets, strict=True))
            for position in range(row.answer_at, len(row.ids))
        ]
        rows, columns = torch.tensor(where, dtype=torch.long, device=self.device).view(-1, 2).T
        targets = ids[rows, columns]
        hidden = states[rows, columns - 1]  # the state before a token predicts it
        sft = sft_cross_entropy(hidden, self.embedder.logits, targets, denominator=counts.supervised)
        kl = torch.zeros_like(sft)
        kept = targets != self.embedder.embed_token_id
        # Documents, and queries of which only the embed token is supervised, need no second forward.
        compared, places = rows[kept].unique(return_inverse=True)
        if self.has_kl and (len(compared) or self.shards_weights):
            asked = compared if len(compared) else slice(1)  # another rank may have something to compare
            with self.reference.active() as base:
                reference = base.hidden_states(ids[asked], mask[asked])  # [n, L, D]
            kl = kl_to_reference(
                hidden[kept],
                reference[places, columns[kept] - 1],
                self.embedder.logits,
                self._reference_logits,
                excluded_token=self.embedder.embed_token_id,
                denominator=counts.compared,
            )
        return self.losses.sft * sft + self.losses.kl * kl, {"sft": sft, "kl": kl}

    def _reference_logits(self, states: Tensor) -> Tensor:
        """Logits `[n, V]` of the frozen base for its states `[n, D]`."""
        with self.reference.active() as base:
            return base.logits(states)

    # ---- the loss over all embeddings

    @staticmethod
    def _by_kind(chunks: Sequence[Chunk], embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Documents `[M, D]`, direct queries `[B, D]` and reasoned queries `[R, D]` of all chunks."""
        kinds: tuple[list[Tensor], ...] = ([], [], [])
        for chunk, vectors in zip(chunks, embeddings, strict=True):
            sizes = [len(chunk.documents), len(chunk.direct), len(chunk.reasoned)]
            for kind, piece in zip(kinds, vectors.split(sizes), strict=True):
                kind.append(piece)
        return tuple(torch.cat(kind) for kind in kinds)

    def contrastive_loss(
        self, vectors: tuple[Tensor, Tensor, Tensor], batch: SFTBatch, with_reasoning: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE and margin of both embeddings, against the documents of all ranks."""
        own, direct, reasoned = vectors
        counts = row_counts(len(own), own.device)
        documents = gather_rows(own, counts)
        offset = sum(counts[: self.global_rank])
        numbers = gather_rows(id_numbers(batch.document_ids).to(own.device), counts)
        positive = torch.tensor(batch.positive_index, device=own.device) + offset  # [P]
        query = torch.tensor(batch.query_index, device=own.device)  # [P]
        width = max(len(ids) for ids in batch.relevant_ids)
        relevant = torch.full((len(batch.relevant_ids), width), -1)
        for row, ids in enumerate(batch.relevant_ids):
            relevant[row, : len(ids)] = id_numbers(ids)
        by_id, n_by_id = negatives_mask(numbers, positive, relevant.to(own.device)[query])
        losses, metrics = [], {"masked_by_id": torch.tensor(float(n_by_id))}
        views = [("direct", 1.0, direct[query], positive, by_id)]
        if len(batch.examples) and (len(with_reasoning) or self.trainer.world_size > 1):
            place = torch.full((len(batch.examples),), -1, device=own.device)
            place[list(with_reasoning)] = torch.arange(len(with_reasoning), device=own.device)
            place = place[query]  # [P], that of the reasoned embedding of a pair
            kept = place >= 0
            views.append(
                ("reasoned", self.losses.reasoned, reasoned[place[kept]], positive[kept], by_id[kept])
            )
        for name, weight, queries, index, mask in views:
            keep, n_high = false_negative_mask(
                cosine_scores(queries, documents),
                index,
                self.losses.false_negative_margin,
                self.losses.false_negative_share,
            )
            n_compared = int(has_negative(mask & keep, index).sum())
            settings = {"mask": mask & keep, "denominator": share_of_count(n_compared, own.device)}
            nce = info_nce(queries, documents, index, temperature=self.losses.temperature, **settings)
            hinge = hardest_negative_margin(queries, documents, index, margin=self.losses.margin, **settings)
            losses.append(weight * (self.losses.info_nce * nce + self.losses.triplet * hinge))
            metrics |= {f"info_nce_{name}": nce.detach(), f"triplet_{name}": hinge.detach()}
            metrics[f"masked_by_score_{name}"] = torch.tensor(float(n_high))
            metrics[f"share_of_rows_masked_{name}"] = (~keep).any(1).float().sum() / max(len(queries), 1)
            metrics[f"candidates_{name}"] = torch.tensor(float(len(queries) * (len(documents) - 1)))
        return torch.stack(losses).sum(), metrics
