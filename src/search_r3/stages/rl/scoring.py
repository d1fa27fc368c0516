"""The live index as a step uses it: refreshed, searched, scored against, audited and read."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from search_r3.distributed import Ranks
from search_r3.index.exact_rank import Positives, Retrieved, Shard, exact_ranking
from search_r3.index.rules.base import StepQueries
from search_r3.index.served import LiveIndex
from search_r3.objectives.ranking import Ranking
from search_r3.stages.rl.data import RLDataModule
from search_r3.stages.rl.environment import Environment, Outcome
from search_r3.stages.rl.rollouts import Rollouts


class Scoring:
    """Puts the rollouts of a step to the corpus. Calls are collective: every rank makes them.

    Refresh first; then all rollouts of a step are scored against the same rows.

    Args:
        environment: judgements and reward.
        source: holds the index, which is opened after this is made, and the encoder.
        n_retrieved: documents per rollout of a search.
    """

    def __init__(self, environment: Environment, source: RLDataModule, n_retrieved: int) -> None:
        self.environment, self.source, self.n_retrieved = environment, source, n_retrieved

    @property
    def index(self) -> LiveIndex:
        return self.source.index

    @property
    def ranks(self) -> Ranks:
        """The processes that share the corpus."""
        return self.index.ranks

    def refresh(self, rollouts: Rollouts, step: int) -> dict[str, float]:
        """Brings the rows as near to the model as the rule says; what the ledger says of it."""
        return self.index.refresh(step, self._asked(rollouts), self.source.encode)

    def search(self, rollouts: Rollouts) -> Retrieved:
        """The best documents of every rollout that its query is ranked against, by the index's backend."""
        asked = self._asked(rollouts)
        scores, rows = self.index.search(asked.vectors, self.n_retrieved, asked.excluded)
        shape, device = rollouts.n_tokens.shape, rollouts.embeddings.device
        return Retrieved(*(torch.from_numpy(each).to(device).unflatten(0, shape) for each in (scores, rows)))

    def score(self, rollouts: Rollouts, step: int, retrieved: Retrieved | None) -> Outcome:
        """Ranks and rewards of the rollouts."""
        return self.environment.score(
            rollouts.query_ids, rollouts.embeddings, rollouts.has_embed_token, self._shard(), step, retrieved
        )

    def audit(self, rollouts: Rollouts, outcome: Outcome, step: int) -> dict[str, float]:
        """How far rewards on a corpus encoded anew are from the served ones; empty where no audit is due."""
        if not self.index.settings.is_audit_step(step):
            return {}

        def reward_on(rows: np.ndarray) -> np.ndarray:
            ranking = self._ranking(rollouts.query_ids, rollouts.embeddings, self._shard(rows))
            return self.environment.reward(ranking, rollouts.has_embed_token).total.cpu().numpy()

        served = outcome.rewards.total.cpu().numpy()
        return self.index.audit(step, self._asked(rollouts), served, reward_on, self.source.encode)

    def ranking(self, query_ids: Sequence[str], vectors: Tensor) -> Ranking:
        """Exact ranks on the served rows of the positives of `B` queries, by other vectors `[B, G, D]`."""
        return self._ranking(query_ids, vectors, self._shard())

    def titles(self, rows: Tensor, step: int) -> list[list[list[tuple[str, bool]]]]:
        """Of documents `[n, G, K]`, -1 for none, the title, and whether each is of an earlier step."""
        flat = rows.cpu().numpy()
        _, encoded_at = self.index.read(flat.flatten())
        is_stale = (encoded_at.reshape(flat.shape) < step).tolist()
        texts = self.source.corpus.texts
        return [
            [
                [(_title(texts[row]), stale) for row, stale in zip(*pair, strict=True) if row >= 0]
                for pair in zip(*group, strict=True)
            ]
            for group in zip(flat, is_stale, strict=True)
        ]

    def positives(self, rollouts: Rollouts) -> Positives:
        """The relevant rows of the rollouts' queries, on their device."""
        return self.environment.judgements.of(rollouts.query_ids, rollouts.embeddings.device)

    def _asked(self, rollouts: Rollouts) -> StepQueries:
        """The rollouts as the index sees them: `[B * G, D]` and the rows that they are about."""
        found = self.environment.judgements.of(rollouts.query_ids)
        vectors = rollouts.embeddings.flatten(0, 1).cpu().numpy()
        rows = (each.repeat_interleave(rollouts.group_size, 0) for each in (found.rows, found.excluded))
        positives, excluded = (each.numpy() for each in rows)
        return StepQueries(vectors, positives, excluded=excluded)

    def _shard(self, rows: np.ndarray | None = None) -> Shard:
        """This rank's part of the corpus; the served rows where no others are given."""
        rows = self.index.rows if rows is None else rows
        return Shard(rows) if self.ranks.size == 1 else Shard(rows, self.index.first_row, len(self.index))

    def _ranking(self, query_ids: Sequence[str], vectors: Tensor, shard: Shard) -> Ranking:
        positives = self.environment.judgements.of(query_ids, vectors.device)
        return exact_ranking(vectors, positives, shard, self.environment.blocks)


def _title(text: str) -> str:
    """The first line that says something, cut."""
    return next((line.strip()[:80] for line in text.splitlines() if line.strip()), "")
