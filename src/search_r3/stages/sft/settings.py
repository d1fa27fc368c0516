"""What the SFT stage can be told."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from search_r3.objectives.signatures import refuse_other_arguments

TERM_ARGUMENTS = (("queries", "documents", "positive_index"), ("mask", "denominator"))
"""What a further term is called with, by place and by name."""


@dataclass(frozen=True)
class SFTLosses:
    """Weights and settings of the four losses.

    Attributes:
        sft: weight of the cross-entropy of the supervised answer.
        kl: weight of KL to the frozen base; skipped where the base is untrained.
        info_nce: weight of InfoNCE.
        triplet: weight of the margin loss against the hardest negative.
        reasoned: weight of the reasoned embedding's contrastive losses against the direct one's 1.
        temperature: of InfoNCE, in cosine.
        margin: of the margin loss, in cosine.
        false_negative_margin: a document that scores above the positive by more than this is masked.
        false_negative_share: of the other documents, 0 to 1: a row in which more of them score that high is
            hard, and none of it is masked. Those known to be relevant do not count as such.
        extra: further terms over the embeddings by name, `{weight: 0.1, loss: <function>}` each. A function
            is called once with the direct and once with the reasoned embeddings, as
            `hardest_negative_margin` of `search_r3.objectives.losses` is, without a margin:
            `loss(queries, documents, positive_index, mask=, denominator=)`. It gives a scalar; `denominator`
            is what a sum over rows is divided by, so that the mean over ranks is that of all rows.

    Raises:
        ValueError: If a weight is negative or all are 0, another number is out of its range, or a further
            term is no pair of a weight and a function that takes these arguments.
    """

    sft: float
    kl: float
    info_nce: float
    triplet: float
    reasoned: float
    temperature: float
    margin: float
    false_negative_margin: float
    false_negative_share: float = 1.0
    extra: Mapping[str, Mapping[str, object]] | None = None

    def __post_init__(self) -> None:
        for name, term in (self.extra or {}).items():
            is_term = isinstance(term, Mapping) and set(term) == {"weight", "loss"}
            if not is_term or not callable(term["loss"]):
                raise ValueError(
                    f"losses.extra.{name} needs a weight and a loss: "
                    "{weight: 0.1, loss: {_target_: <function>, _partial_: true}}"
                )
            if name in ("sft", "kl", "info_nce", "triplet"):
                raise ValueError(f"losses.extra.{name} is the name of a loss of ours; choose another")
            if term["weight"] < 0:
                raise ValueError(f"losses.extra.{name}.weight must not be negative, got {term['weight']}")
            refuse_other_arguments(term["loss"], f"losses.extra.{name}.loss", *TERM_ARGUMENTS)
        for name in ("sft", "kl", "info_nce", "triplet", "reasoned"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"losses.{name} is a weight and must not be negative, got {getattr(self, name)}"
                )
        weights = (self.sft, self.kl, self.info_nce, self.triplet, *(each for _, each, _ in self.further))
        if not any(weights):
            raise ValueError("every weight of losses is 0, so that nothing would be learnt; set one above 0")
        if not 0 <= self.false_negative_share <= 1:
            raise ValueError(
                f"losses.false_negative_share must lie in [0, 1], got {self.false_negative_share}"
            )
        if not self.temperature > 0:
            raise ValueError(f"losses.temperature must be above 0, got {self.temperature}")

    @property
    def further(self) -> list[tuple[str, float, Callable[..., Tensor]]]:
        """Name, weight and function of each further term."""
        return [(name, term["weight"], term["loss"]) for name, term in (self.extra or {}).items()]


@dataclass(frozen=True)
class SelfWritten:
    """On which rows the reasoning is the model's own.

    Attributes:
        every_n_steps: 0 never.
        share: of the rows with reasoning of a process, in such a step.
        temperature: of sampling.
    """

    every_n_steps: int
    share: float
    temperature: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"self_written.share must lie in [0, 1], got {self.share}")

    def places(self, n_rows: int, generator: torch.Generator) -> list[int]:
        """Which of `n_rows` rows the model writes for, drawn anew for a step.

        A share that is no whole number of rows is one more in as many steps as make it the share on average:
        of one row, 0.3 are all rows in three steps of ten.
        """
        drawn = torch.randperm(n_rows, generator=generator)
        n_written = math.floor(self.share * n_rows + torch.rand(1, generator=generator).item())
        return drawn[:n_written].tolist()
