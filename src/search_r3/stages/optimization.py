"""AdamW over the parameters that are trained, and its schedule."""

import logging
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

log = logging.getLogger(__name__)

_EMBEDDING = re.compile(r"(?!embed_out$)(.*_)?embed(ding)?s?(_.*)?|wte|wpe|trainable_tokens_delta")
"""Modules that look rows up, by the names that architectures use; `embed_out` is the head of GPT-NeoX."""


@dataclass(frozen=True)
class OptimizationSettings:
    """AdamW and its schedule. The paper publishes none of these; they are ours.

    Attributes:
        learning_rate: at the end of the warm-up.
        embedding_lr_scale: the embedding rows learn at `learning_rate` times this.
        weight_decay: on matrices; never on norms, biases and embeddings.
        betas: of AdamW.
        eps: of AdamW.
        warmup: steps where an int, share of all steps where a float below 1.
        schedule: after the warm-up.
        final_lr_share: of `learning_rate`, one step after the last, so that with 0 the last one still learns;
            "constant" ignores it.
        max_grad_norm: gradients are clipped to this norm; None does not clip.
    """

    learning_rate: float = 1e-4
    embedding_lr_scale: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    warmup: int | float = 0.05
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    final_lr_share: float = 0.0
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        rules = {
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "embedding_lr_scale": (self.embedding_lr_scale > 0, "above 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "betas": (
                len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
                "two numbers in [0, 1)",
            ),
            "eps": (self.eps > 0, "above 0"),
            "warmup": (
                self.warmup >= 0 and (isinstance(self.warmup, int) or self.warmup < 1),
                "a number of steps or a share of all steps in [0, 1)",
            ),
            "schedule": (self.schedule in ("linear", "cosine", "constant"), "linear, cosine or constant"),
            "final_lr_share": (0 <= self.final_lr_share <= 1, "in [0, 1]"),
            "max_grad_norm": (self.max_grad_norm is None or self.max_grad_norm > 0, "above 0, or null"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"optimization.{name} must be {rule}, got {getattr(self, name)!r}")


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], settings: OptimizationSettings
) -> Optimizer:
    """AdamW over the parameters that are trained; frozen ones are left out.

    It is the fused one, on every device: the faster one, and the one kind whose gradients can be clipped
    under Lightning's fp16 scaler in manual optimization.

    Args:
        named_parameters: as `Module.named_parameters()` gives them, LoRA's included.
        settings: learning rates, decay and so on.

    Raises:
        ValueError: If no parameter is trained.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            is_matrix = parameter.ndim >= 2  # norms and biases are vectors
            is_embedding = is_matrix and any(map(_EMBEDDING.fullmatch, name.split(".")))
            is_decayed = is_matrix and not is_embedding
            groups.setdefault((is_embedding, is_decayed), []).append(parameter)
    if not groups:
        raise ValueError("no parameter is trained; check model.tuning")
    return AdamW(
        [
            {
                "params": parameters,
                "lr": settings.learning_rate * (settings.embedding_lr_scale if is_embedding else 1.0),
                "weight_decay": settings.weight_decay if is_decayed else 0.0,
            }
            for (is_embedding, is_decayed), parameters in sorted(groups.items())
        ],
        betas=tuple(settings.betas),
        eps=settings.eps,
        fused=True,
    )


class Schedule(LambdaLR):
    """A schedule that goes on after a resumption as if the run had been of its new length from the start.

    A checkpoint holds the rate that the old schedule came to, which is 0 at its end. So the rate of the next
    step is computed anew from its number: decay and a warm-up that is a share of all steps are those of the
    new length, and with the same length nothing changes.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to the step of a checkpoint; the optimizer's own state is restored by then."""
        super().load_state_dict(state_dict)
        before = [group["lr"] for group in self.optimizer.param_groups]
        self._last_lr = [
            base * share(self.last_epoch) for base, share in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate
        if before and not math.isclose(before[0], self._last_lr[0], rel_tol=1e-9):
            log.info(
                "the schedule has another length than before: the rate of step %d is %.3g and not %.3g",
                self.last_epoch, self._last_lr[0], before[0],
            )  # fmt: skip


def build_scheduler(optimizer: Optimizer, settings: OptimizationSettings, total_steps: int) -> Schedule:
    """Linear warm-up from the first step on, then the schedule down to `final_lr_share` after the last.

    Of `n` steps after the warm-up, step `k` (from 0) is `k / n` of the way: 10 steps to 0.1 end with one at
    0.19, so that at 0 the last step is not lost.

    Raises:
        ValueError: If `total_steps` is not positive (Lightning's -1 for "no limit" included).
    """
    if total_steps < 1:
        raise ValueError(f"a schedule needs trainer.max_steps of at least 1, got {total_steps}")
    warmup = settings.warmup if isinstance(settings.warmup, int) else round(settings.warmup * total_steps)
    if warmup > total_steps:
        log.info(
            "the warm-up of %d steps is longer than the run: the learning rate ends at %.3g of %.3g",
            warmup, settings.learning_rate * total_steps / warmup, settings.learning_rate,
        )  # fmt: skip

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup  # the first step already learns
        if settings.schedule == "constant":
            return 1.0
        done = torch.tensor(min(1.0, (step - warmup) / max(1, total_steps - warmup)), dtype=torch.float64)
        left = (1 - done if settings.schedule == "linear" else 0.5 * (1 + torch.cos(torch.pi * done))).item()
        return settings.final_lr_share + (1 - settings.final_lr_share) * left

    return Schedule(optimizer, share)
