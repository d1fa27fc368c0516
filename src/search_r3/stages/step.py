"""The one manual optimization step that all stages share.

One batch of the data loader is one optimizer step. A batch that does not fit into memory is split into chunks
within the step, so a checkpoint never falls between two halves of a step and there is no accumulation to
restore. Lightning's own clipping and accumulation refuse manual optimization, which is why they are here.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from search_r3.distributed import Ranks, all_true
from search_r3.stages.sharding import whole


class NonFiniteLossError(RuntimeError):
    """A loss or a gradient is NaN or infinite. The weights are those from before the step."""


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
        loss: this rank's, detached; None where the step was skipped.
        metrics: what the backward told beside it; empty where the step was skipped.
        grad_norm: before clipping, over all ranks' averaged gradients; None where the step was skipped.
        is_skipped: True where the weights were left alone.
        learning_rate: that the step was taken with; of the first parameter group.
    """

    loss: Tensor | None
    grad_norm: Tensor | None
    is_skipped: bool
    learning_rate: float
    metrics: dict[str, Tensor] = field(default_factory=dict)


def optimization_step(
    module: LightningModule,
    run_backward: Callable[[], tuple[Tensor, dict[str, Tensor]]],
    batch_ids: Sequence[str],
    max_grad_norm: float | None,
    skip: bool = False,
) -> StepResult:
    """One optimizer and scheduler step: zero, backward, check on all ranks, clip, step.

    Every call advances `trainer.global_step` and the schedule by one, skipped or not, so the step number is
    also the number of batches taken. Under the fp16 scaler an overflowing gradient is the scaler's to handle.

    Args:
        module: attached to a trainer, under manual optimization with one optimizer and one scheduler.
        run_backward: fills the gradients (by `module.manual_backward`); gives the detached loss, and numbers
            to log.
        batch_ids: of this rank's rows, named where the step fails.
        max_grad_norm: None does not clip.
        skip: whether this rank has nothing to learn from; the step is skipped only if no rank has.

    Raises:
        NonFiniteLossError: On all ranks, if one has a loss or gradient that is NaN or infinite.
        ValueError: If the optimizer cannot be clipped under the fp16 scaler.
    """
    optimizer, scheduler = module.optimizers(), module.lr_schedulers()
    rate = optimizer.param_groups[0]["lr"]
    optimizer.zero_grad(set_to_none=True)
    if all_true(skip, module.device):
        optimizer._on_before_step()  # counts the step, which Lightning does nowhere else
        optimizer._on_after_step()
        scheduler.step()
        return StepResult(None, None, is_skipped=True, learning_rate=rate)
    loss, metrics = run_backward()
    scaler = getattr(module.trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        if not getattr(optimizer.optimizer, "_step_supports_amp_scaling", False):
            raise ValueError("under 16-mixed the optimizer must be a fused one, as build_optimizer makes it")
        scaler.unscale_(optimizer.optimizer)
    grad_norm = _clip(optimizer.optimizer, max_grad_norm)
    may_overflow = scaler is not None and scaler.get_scale() >= 1.0
    _check_finite(module, loss, grad_norm, may_overflow, batch_ids)
    optimizer.step()
    torch.clear_autocast_cache()  # it holds the weights before this step, in bf16
    scheduler.step()
    return StepResult(loss, grad_norm, is_skipped=False, learning_rate=rate, metrics=metrics)


def block_sync(module: LightningModule) -> Callable[[], AbstractContextManager]:
    """What `backward_with_cache` takes as `no_sync` under the module's strategy."""
    return getattr(module.trainer.strategy, "block_backward_sync", nullcontext)


def _clip(optimizer: Optimizer, max_norm: float | None) -> Tensor:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole(nn.utils.get_total_norm(gradients))  # a rank may hold a share of each
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _check_finite(
    module: LightningModule, loss: Tensor, grad_norm: Tensor, may_overflow: bool, batch_ids: Sequence[str]
) -> None:
    is_finite = torch.isfinite(loss).all()
    if not may_overflow:
        is_finite = is_finite & torch.isfinite(grad_norm)
    if all_true(bool(is_finite), module.device):
        return
    reports = Ranks().gather_objects((float(loss), float(grad_norm), list(batch_ids)))
    raise NonFiniteLossError(
        f"step {module.trainer.global_step} stopped before the optimizer: "
        + "; ".join(
            f"rank {rank}: loss {loss:g}, gradient norm {norm:g}, batch {', '.join(ids) or '(empty)'}"
            for rank, (loss, norm, ids) in enumerate(reports)
        )
    )
