"""One padded forward of the SFT stage: the embeddings of its rows, and the token losses on their answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from search_r3.distributed import share_of_count
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.prefix import Prefix, pad_left
from search_r3.models.reference import FrozenReference
from search_r3.objectives.losses import kl_to_reference, sft_cross_entropy
from search_r3.stages.sft.rows import TokenRow


@dataclass(frozen=True)
class TokenCounts:
    """Denominators of the token losses: positions on all ranks divided by the number of ranks.

    Attributes:
        supervised: of the cross-entropy.
        compared: of KL, which leaves the embed token out.
    """

    supervised: float
    compared: float

    @classmethod
    def of(cls, rows: Sequence[TokenRow], device: torch.device) -> "TokenCounts":
        """Counts a rank's supervised rows; collective."""
        supervised = sum(len(row.ids) - row.answer_at for row in rows)
        compared = supervised - sum(row.answer_at <= row.embed_at for row in rows)
        return cls(share_of_count(supervised, device), share_of_count(compared, device))


def shared_prefix(embedder: ReasoningEmbedder, rows: Sequence[TokenRow]) -> Prefix:
    """What the rows begin with, run once, with gradient where it is on; an empty prefix where that pays not.

    It ends before every state that is read: that of the embed token, and the one that predicts the first
    supervised token.
    """
    most = min(min(row.embed_at, row.answer_at - 1) for row in rows)
    return embedder.prefix_of([row.ids for row in rows], most)


class PaddedForward:
    """Rows run through the model at once, padded on the left.

    Args:
        embedder: the policy.
        rows: `n`, at least one.
        prefix: of `P` ids that the rows begin with, from `shared_prefix`; None runs every row whole.

    Attributes:
        ids: `[n, L]` tokens.
        mask: `[n, L]` bool, True at real ones.
        states: `[n, L - P, D]` of the slots behind the first `P`.
    """

    def __init__(
        self, embedder: ReasoningEmbedder, rows: Sequence[TokenRow], prefix: Prefix | None = None
    ) -> None:
        self.embedder, self.rows = embedder, rows
        self.n_shared = 0 if prefix is None else prefix.n_ids
        self.ids, self.mask = pad_left(
            [row.ids for row in rows], embedder.tokenizer.pad_token_id, embedder.device
        )
        self.states = embedder.hidden_states(self.ids, self.mask, prefix)
        self._offsets = [self.ids.shape[1] - len(row.ids) for row in rows]

    def embeddings(self) -> Tensor:
        """`[n, D]` fp32, unit norm: the states at the embed tokens."""
        columns = [offset + row.embed_at for offset, row in zip(self._offsets, self.rows, strict=True)]
        at = [column - self.n_shared for column in columns]
        places = torch.arange(len(at), device=self.ids.device)
        return normalize(self.states[places, torch.tensor(at, device=self.ids.device)].float(), dim=-1)

    def token_losses(
        self, counts: TokenCounts, reference: FrozenReference | None, always_runs_reference: bool
    ) -> dict[str, Tensor]:
        """`sft` and `kl` at the supervised positions; they add up over forwards.

        Args:
            counts: denominators.
            reference: the frozen base; None where KL is left out.
            always_runs_reference: run the base also where nothing is compared, since another rank may have
                something to compare and sharded weights need all.
        """
        rows, columns = self._supervised()
        targets = self.ids[rows, columns]
        before = columns - 1 - self.n_shared  # the state before a token predicts it
        hidden = self.states[rows, before]
        logits_of, embed = self.embedder.logits, self.embedder.embed_token_id
        sft = sft_cross_entropy(hidden, logits_of, targets, denominator=counts.supervised)
        kept = targets != embed
        # Documents, and queries of which only the embed token is supervised, need no second forward.
        compared, places = rows[kept].unique(return_inverse=True)
        if reference is None or not (len(compared) or always_runs_reference):
            return {"sft": sft, "kl": torch.zeros_like(sft)}
        asked = compared if len(compared) else slice(1)
        with reference.active() as base:
            prefix = Prefix.of(base.decoder, self.rows[0].ids[: self.n_shared])
            frozen = base.hidden_states(self.ids[asked], self.mask[asked], prefix)  # [n, L - P, D]

        def frozen_logits(states: Tensor) -> Tensor:
            with reference.active() as base:
                return base.logits(states)

        kl = kl_to_reference(
            hidden[kept],
            frozen[places, before[kept]],
            logits_of,
            frozen_logits,
            excluded_token=embed,
            denominator=counts.compared,
        )
        return {"sft": sft, "kl": kl}

    def _supervised(self) -> tuple[Tensor, Tensor]:
        """Rows `[T]` and columns `[T]` of the supervised tokens."""
        where = [
            (place, offset + position)
            for place, (row, offset) in enumerate(zip(self.rows, self._offsets, strict=True))
            for position in range(row.answer_at, len(row.ids))
        ]
        rows, columns = torch.tensor(where, dtype=torch.long, device=self.ids.device).view(-1, 2).T
        return rows, columns
