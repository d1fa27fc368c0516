"""The table of completions: what the model wrote, what it earned, and what it then retrieved."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.loggers import Logger

from search_r3.data.types import Example
from search_r3.objectives.ranking import Ranking
from search_r3.stages.appended import AppendedText
from search_r3.stages.rl.environment import Outcome
from search_r3.stages.rl.rollouts import Rollouts

COLUMNS = ("step", "query_id", "query", "reasoning", "reward", "rank_before", "rank_after", "top", "is_stale")


class Completions:
    """Appends to a JSONL file, a line per rollout, and to a W&B table where that logger is on.

    Args:
        file: in the run folder.
        every_n_steps: 0 writes nothing.
        n_queries: the first of a batch of all ranks, with all their rollouts.
    """

    def __init__(self, file: str | Path, every_n_steps: int, n_queries: int) -> None:
        if every_n_steps < 0 or n_queries < 1:
            raise ValueError(
                f"completions need every_n_steps of 0 or more and a query, got {every_n_steps}, {n_queries}"
            )
        self.record, self.every_n_steps, self.n_queries = AppendedText(file), every_n_steps, n_queries

    def is_due(self, step: int) -> bool:
        """Whether the rollouts of a step are written down."""
        return self.every_n_steps > 0 and step % self.every_n_steps == 0

    def shown(self, n_queries: int, rank: int = 0, n_ranks: int = 1) -> int:
        """How many of the queries of a rank are shown; it has every `n_ranks`-th of a batch."""
        return min(len(range(rank, self.n_queries, n_ranks)), n_queries)

    def lines(
        self,
        step: int,
        examples: Sequence[Example],
        rollouts: Rollouts,
        outcome: Outcome,
        before: Ranking,
        best: Sequence[Sequence[Sequence[tuple[str, bool]]]],
    ) -> list[list[tuple]]:
        """The rollouts of the first queries of a rank's batch, by query; a line has an entry per column.

        Args:
            step: of training.
            examples: `n` rows; the first `n` groups of what follows are theirs.
            rollouts: of the batch.
            outcome: what they earned.
            before: ranks by the direct embeddings, `[B, 1, P]`.
            best: `[n, G, K]` title of each of the best documents, and whether it was encoded at an earlier
                step.
        """
        rank_before, rank_after = before.best_rank, outcome.ranking.best_rank
        return [
            [
                (
                    step, example.id, example.query, rollouts.texts[number][g],
                    round(float(outcome.rewards.total[number, g]), 6),
                    int(rank_before[number, 0]), int(rank_after[number, g]),
                    *(list(column) for column in zip(*best[number][g], strict=True)),
                )
                for g in range(rollouts.group_size)
            ]
            for number, example in enumerate(examples)
        ]  # fmt: skip

    def write(self, by_rank: Sequence[list[list[tuple]]], loggers: Sequence[Logger] = ()) -> None:
        """Appends what `lines` gave on every rank, in the order of the whole batch.

        Args:
            by_rank: in the order of ranks.
            loggers: of the trainer.
        """
        groups = (group for groups in itertools.zip_longest(*by_rank, fillvalue=[]) for group in groups)
        rows = [row for group in groups for row in group]
        lines = (json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) for row in rows)
        self.record.append("".join(f"{line}\n" for line in lines))
        for logger in loggers:
            if hasattr(logger, "log_table"):
                cells = [[*row[:7], "\n".join(row[7]), str(row[8])] for row in rows]
                logger.log_table(key="completions", columns=list(COLUMNS), data=cells, step=rows[0][0])
