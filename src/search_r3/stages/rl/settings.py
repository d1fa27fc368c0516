"""What the RL stage can be told."""

from dataclasses import dataclass

from search_r3.objectives.advantages import STD_FLOOR
from search_r3.objectives.grpo import KLEstimator, Normalisation, k3, per_token

CONTRASTIVE_ROLLOUTS = ("all", "good")

ADVANTAGES = ("group", "best")


@dataclass(frozen=True)
class RolloutSettings:
    """How reasonings are sampled.

    Attributes:
        group_size: `G` rollouts per query, at least 2.
        temperature: above 0.
        top_p: nucleus; log-probabilities are of the distribution before it.
        max_new_tokens: `lengths.reasoning` of the model folder where None.
    """

    group_size: int
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"rollouts.group_size must be at least 2, got {self.group_size}")
        if not self.temperature > 0:
            raise ValueError(
                f"rollouts.temperature must be above 0, got {self.temperature}: a group must differ"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"rollouts.top_p must lie in (0, 1], got {self.top_p}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(
                f"rollouts.max_new_tokens must be at least 1, or null for the model folder's, got "
                f"{self.max_new_tokens}"
            )


@dataclass(frozen=True)
class PolicySettings:
    """The loss.

    Attributes:
        clip_low: how far a token's probability may fall before its gradient stops.
        clip_high: how far it may rise.
        normalisation: what a token counts; a function such as `per_token`, from conf/normalisation.
        advantages: `group` are the rewards less their group's mean (GRPO); `best` is 1 for the best rollout
            of a group, whose text is imitated (best-of-n), and 0 for the others.
        scale_by_std: whether advantages are divided by the group's standard deviation.
        std_floor: what they are divided by at least, in units of the reward; see `group_advantages`.
        kl: estimates KL at a token; a function such as `k3`, from conf/kl.
        kl_weight: of KL to the model that the stage started from; 0 makes no reference pass.
        n_updates: optimizer steps per batch of rollouts.
        contrastive_weight: of InfoNCE of the rollouts' embeddings, so that the vector learns as well as the
            text; 0 leaves it out. Its documents are served rows that were encoded at this step, without
            gradient.
        contrastive_temperature: of that loss, in cosine.
        contrastive_rollouts: `all`, or only the `good` ones, which earned at least their group's mean: the
            embedding then learns to follow a good reasoning, and not to do without it. Groups without spread
            take part in either case.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    normalisation: Normalisation = per_token
    advantages: str = "group"
    scale_by_std: bool = True
    std_floor: float = STD_FLOOR
    kl: KLEstimator = k3
    kl_weight: float = 0.0
    n_updates: int = 1
    contrastive_weight: float = 0.0
    contrastive_temperature: float = 0.05
    contrastive_rollouts: str = "all"

    def __post_init__(self) -> None:
        if not (0 <= self.clip_low <= 1 and self.clip_high >= 0):
            raise ValueError(
                f"policy.clip_low must lie in [0, 1] and policy.clip_high must not be negative, got "
                f"{self.clip_low} and {self.clip_high}"
            )
        for name, function in (("normalisation", self.normalisation), ("kl", self.kl)):
            if not callable(function):
                raise ValueError(
                    f"policy.{name} must be a function, such as those in objectives/grpo.py, got {function!r}"
                )
        if self.advantages not in ADVANTAGES:
            raise ValueError(
                f"policy.advantages must be one of {', '.join(ADVANTAGES)}, got {self.advantages!r}"
            )
        if not self.std_floor >= 0:
            raise ValueError(f"policy.std_floor must not be negative, got {self.std_floor}")
        if not self.kl_weight >= 0:
            raise ValueError(f"policy.kl_weight must not be negative, got {self.kl_weight}")
        if self.n_updates < 1:
            raise ValueError(f"policy.n_updates must be at least 1, got {self.n_updates}")
        if not self.contrastive_weight >= 0:
            raise ValueError(f"policy.contrastive_weight must not be negative, got {self.contrastive_weight}")
        if not self.contrastive_temperature > 0:
            raise ValueError(
                f"policy.contrastive_temperature must be above 0, got {self.contrastive_temperature}"
            )
        if self.contrastive_rollouts not in CONTRASTIVE_ROLLOUTS:
            raise ValueError(
                f"policy.contrastive_rollouts must be one of {', '.join(CONTRASTIVE_ROLLOUTS)}, "
                f"got {self.contrastive_rollouts!r}"
            )
