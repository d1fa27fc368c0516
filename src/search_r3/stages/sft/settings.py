"""What the SFT stage can be told."""

from dataclasses import dataclass


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
            hard, and none of it is masked.
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

    def __post_init__(self) -> None:
        for name in ("sft", "kl", "info_nce", "triplet", "reasoned"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"losses.{name} is a weight and must not be negative, got {getattr(self, name)}"
                )
        if not 0 <= self.false_negative_share <= 1:
            raise ValueError(
                f"losses.false_negative_share must lie in [0, 1], got {self.false_negative_share}"
            )
        if not self.temperature > 0:
            raise ValueError(f"losses.temperature must be above 0, got {self.temperature}")


@dataclass(frozen=True)
class SelfWritten:
    """On which rows the reasoning is the model's own.

    Attributes:
        every_n_steps: 0 never.
        share: of the rows with reasoning, in such a step.
        temperature: of sampling.
    """

    every_n_steps: int
    share: float
    temperature: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"self_written.share must lie in [0, 1], got {self.share}")
