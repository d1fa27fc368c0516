"""What runs beside training: totals of masked negatives, and a line of the log for the last step."""

import logging
from typing import Any, ClassVar

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.types import STEP_OUTPUT

from search_r3.distributed import reduced

log = logging.getLogger(__name__)


class FalseNegatives(Callback):
    """Totals over the run, all ranks together, of documents that were masked as false negatives.

    A stage reports the counts of a step in what `training_step` returns: `masked_by_id`, and for each of its
    embeddings (`direct`, `reasoned`) `candidates_<embedding>`, the (query, other document) pairs, and
    `masked_by_score_<embedding>`, which may count a document that its id masks as well. A stage that reports
    none has no totals. Part of the checkpoint.
    """

    CANDIDATES: ClassVar[dict[str, str]] = {
        "masked_by_id": "candidates_direct",
        "masked_by_score_direct": "candidates_direct",
        "masked_by_score_reasoned": "candidates_reasoned",
    }
    """What each count is a share of."""

    NAMES = tuple(sorted({*CANDIDATES, *CANDIDATES.values()}))

    def __init__(self) -> None:
        self._totals = torch.zeros(len(self.NAMES), dtype=torch.long)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if not isinstance(outputs, dict) or outputs.keys().isdisjoint(self.NAMES):
            return
        counts = torch.tensor([int(outputs.get(name, 0)) for name in self.NAMES], device=pl_module.device)
        # Kept on the device: reading it would wait for every step.
        self._totals = self._totals.to(counts.device) + reduced(counts)

    def summary(self) -> dict[str, dict[str, float]]:
        """Count and share of the candidates by way of masking; empty where nothing was compared."""
        totals = self._by_name()
        return {
            name: {"count": totals[name], "share": totals[name] / totals[of]}
            for name, of in self.CANDIDATES.items()
            if totals[of] > 0
        }

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = [
            f"{name.removeprefix('masked_').replace('_', ' ')} {each['count']:,} ({each['share']:.3%})"
            for name, each in self.summary().items()
        ]
        if trainer.is_global_zero and parts:
            log.info("false negatives masked, of all (query, other document) pairs: %s", ", ".join(parts))

    def state_dict(self) -> dict[str, Any]:
        return {"totals": self._by_name()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._totals = torch.tensor([state_dict["totals"][name] for name in self.NAMES])

    def _by_name(self) -> dict[str, int]:
        return dict(zip(self.NAMES, self._totals.tolist(), strict=True))


class LastLine(Callback):
    """Has the last step logged, whatever `log_every_n_steps` says: a short run may have no other line."""

    def on_train_batch_end(self, trainer: Trainer, *rest: object) -> None:
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.log_every_n_steps = 1
