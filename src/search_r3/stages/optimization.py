"""The one manual optimization step that all stages share, and gradient caching under it.

One batch of the data loader is one optimizer step. A batch that does not fit into memory is split into chunks
within the step, so a checkpoint never falls between two halves of a step and there is no accumulation to
restore. Lightning's own clipping and accumulation refuse manual optimization, which is why they are here.

Gradient caching is GradCache (arXiv:2101.06983). Ours differs in two points: the first chunk keeps its graph
from the first pass, so `n` chunks cost `2n - 1` forwards and one chunk is the plain step; and a forward that
is not the same both times (dropout) stops the run.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from search_r3.distributed import Ranks, all_true

log = logging.getLogger(__name__)

Chunk = TypeVar("Chunk")

_EMBEDDING_PARTS = frozenset(
    {
        "embed_tokens",
        "embed_in",
        "tok_embeddings",
        "trainable_tokens_delta",
        "word_embeddings",
        "wte",
        "wpe",
        "lora_embedding_A",
        "lora_embedding_B",
    }
)
_LARGEST_CHANGE = 0.05


class NonFiniteLossError(RuntimeError):
    """A loss or a gradient is NaN or infinite. The weights are those from before the step."""


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
        final_lr_share: of `learning_rate`, at the last step; "constant" ignores it.
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
            is_embedding = not _EMBEDDING_PARTS.isdisjoint(name.split("."))
            is_decayed = parameter.ndim >= 2 and not is_embedding  # norms and biases are vectors
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
    """Linear warm-up from the first step on, then the schedule down to `final_lr_share` at the last.

    Raises:
        ValueError: If `total_steps` is not positive (Lightning's -1 for "no limit" included).
    """
    if total_steps < 1:
        raise ValueError(f"a schedule needs trainer.max_steps of at least 1, got {total_steps}")
    warmup = settings.warmup if isinstance(settings.warmup, int) else round(settings.warmup * total_steps)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup  # the first step already learns
        if settings.schedule == "constant":
            return 1.0
        done = torch.tensor(min(1.0, (step - warmup) / max(1, total_steps - warmup)), dtype=torch.float64)
        left = (1 - done if settings.schedule == "linear" else 0.5 * (1 + torch.cos(torch.pi * done))).item()
        return settings.final_lr_share + (1 - settings.final_lr_share) * left

    return Schedule(optimizer, share)


@dataclass(frozen=True)
class ChunkOutput:
    """What one forward over a chunk yields.

    Attributes:
        embeddings: `[n, D]`, or None where the chunk takes no part in the loss over embeddings.
        extra_loss: a scalar that needs this chunk only, such as the token losses. It is already divided by
            the count of the whole batch, so that the chunks' values add up.
        metrics: numbers to log; they add up over chunks as well.
    """

    embeddings: Tensor | None = None
    extra_loss: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)


def backward_with_cache(
    chunks: Sequence[Chunk],
    forward: Callable[[Chunk], ChunkOutput],
    loss_fn: Callable[[list[Tensor]], tuple[Tensor, dict[str, Tensor]]] | None,
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
    embed: Callable[[Chunk], Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradient of a loss over all chunks' embeddings while at most one chunk's graph is in memory.

    The embeddings of all chunks are computed without a graph (the first chunk's with one), the loss and its
    gradient with respect to them follow, and every other chunk is run once more to carry its part of the
    gradient to the weights. The result equals one backward over everything at once. Under DDP only the last
    backward communicates, so the last chunk must reach every trained parameter: one that it does not reach
    would keep this rank's gradient (`find_unused_parameters=True`) or stop the run (`False`).

    Args:
        chunks: at least one. Under strategies that shard weights, as many on every rank.
        forward: called with a graph. It must not be random: dropout is off.
        loss_fn: from the chunks' embeddings, in their order, to a scalar and numbers to log. It has no
            trained parameter of its own; it may gather over ranks. None leaves the extra losses alone.
        backward: such as `LightningModule.manual_backward`.
        no_sync: entered around every backward but the last.
        embed: the embeddings alone, called without a graph; `forward` where None.

    Returns:
        The total loss, detached, and all metrics.

    Raises:
        ValueError: If there is no chunk, or a loss over embeddings and a chunk without any.
        RuntimeError: If a chunk's embeddings differ between the two passes.
    """
    if not chunks:
        raise ValueError("a step needs at least one chunk; a rank without rows passes an empty one")
    output = forward(chunks[0])
    cache = _cached(output, chunks[1:], embed or (lambda chunk: forward(chunk).embeddings), loss_fn)
    total, sums = cache.loss, {}
    change = torch.zeros_like(total)
    for number, (chunk, gradient) in enumerate(zip(chunks, cache.gradients, strict=True)):
        if number > 0:
            output = forward(chunk)
            if gradient is not None:
                change = torch.maximum(change, _largest_change(output.embeddings, cache.embeddings[number]))
        surrogate = _surrogate(output, gradient)
        with no_sync() if number < len(chunks) - 1 else nullcontext():
            backward(surrogate)
        if output.extra_loss is not None:
            total = total + output.extra_loss.detach().float()
        for name, value in output.metrics.items():
            sums[name] = sums.get(name, 0.0) + value
        del output, surrogate  # the graph goes before the next chunk's is built
    if change > _LARGEST_CHANGE:
        raise RuntimeError(
            f"embeddings changed by {change.item():.3g} of their length between the two passes of gradient "
            "caching; the forward must not be random, so turn dropout off"
        )
    return total, {**cache.metrics, **sums}


@dataclass(frozen=True)
class _Cache:
    """The loss over embeddings and its gradient; where there is no such loss, 0 and None for each chunk.

    Attributes:
        loss: a scalar, detached.
        metrics: of the loss.
        embeddings: `[n, D]` of each chunk.
        gradients: `[n, D]` of the loss with respect to them.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    embeddings: Sequence[Tensor | None]
    gradients: Sequence[Tensor | None]


def _cached(
    first: ChunkOutput,
    others: Sequence[Chunk],
    embed: Callable[[Chunk], Tensor | None],
    loss_fn: Callable[[list[Tensor]], tuple[Tensor, dict[str, Tensor]]] | None,
) -> _Cache:
    """The first pass: the loss from all chunks' embeddings, none of which but the first's has a graph."""
    if loss_fn is None:
        nothing = [None] * (1 + len(others))
        return _Cache(torch.zeros((), device=_device(first)), {}, nothing, nothing)
    leaves = [_leaf(first.embeddings)]
    with torch.no_grad():
        for chunk in others:
            leaves.append(_leaf(embed(chunk)))
    loss, metrics = loss_fn([leaf.requires_grad_() for leaf in leaves])
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return _Cache(loss.detach().float(), metrics, leaves, gradients)


def _leaf(embeddings: Tensor | None) -> Tensor:
    if embeddings is None:
        raise ValueError("a loss over embeddings needs the embeddings of every chunk; one chunk gave None")
    return embeddings.detach()


def _surrogate(output: ChunkOutput, gradient: Tensor | None) -> Tensor:
    """A scalar whose gradient is the chunk's part of the whole."""
    parts = [] if output.extra_loss is None else [output.extra_loss.float()]
    if gradient is not None:
        parts.append((output.embeddings.float() * gradient.float()).sum())
    if not parts:
        raise ValueError("a chunk must yield embeddings that enter the loss, an extra loss, or both")
    return torch.stack(parts).sum()


def _largest_change(now: Tensor, before: Tensor) -> Tensor:
    """Largest relative change of an embedding; a scalar on the device, so that nothing waits for it."""
    if len(now) == 0:
        return torch.zeros((), device=now.device)
    now, before = now.detach().float(), before.detach().float()
    return ((now - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-6)).max()


def _device(output: ChunkOutput) -> torch.device:
    return (output.embeddings if output.extra_loss is None else output.extra_loss).device


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
        loss: this rank's, detached; None where the step was skipped.
        grad_norm: before clipping, over all ranks' averaged gradients; None where the step was skipped.
        is_skipped: True where the weights were left alone.
        learning_rate: that the step was taken with; of the first parameter group.
    """

    loss: Tensor | None
    grad_norm: Tensor | None
    is_skipped: bool
    learning_rate: float


def optimization_step(
    module: LightningModule,
    run_backward: Callable[[], Tensor],
    batch_ids: Sequence[str],
    max_grad_norm: float | None,
    skip: bool = False,
) -> StepResult:
    """One optimizer and scheduler step: zero, backward, check on all ranks, clip, step.

    Every call advances `trainer.global_step` and the schedule by one, skipped or not, so the step number is
    also the number of batches taken. Under the fp16 scaler an overflowing gradient is the scaler's to handle.

    Args:
        module: attached to a trainer, under manual optimization with one optimizer and one scheduler.
        run_backward: fills the gradients (by `module.manual_backward`) and returns the detached loss.
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
    loss = run_backward()
    scaler = getattr(module.trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        if not getattr(optimizer.optimizer, "_step_supports_amp_scaling", False):
            raise ValueError("under 16-mixed the optimizer must be a fused one, as build_optimizer makes it")
        scaler.unscale_(optimizer.optimizer)
    grad_norm = _clip(module, optimizer.optimizer, max_grad_norm)
    may_overflow = scaler is not None and scaler.get_scale() >= 1.0
    _check_finite(module, loss, grad_norm, may_overflow, batch_ids)
    optimizer.step()
    torch.clear_autocast_cache()  # it holds the weights before this step, in bf16
    scheduler.step()
    return StepResult(loss, grad_norm, is_skipped=False, learning_rate=rate)


def block_sync(module: LightningModule) -> Callable[[], AbstractContextManager]:
    """What `backward_with_cache` takes as `no_sync` under the module's strategy."""
    return getattr(module.trainer.strategy, "block_backward_sync", nullcontext)


def _clip(module: LightningModule, optimizer: Optimizer, max_norm: float | None) -> Tensor:
    limit = float("inf") if max_norm is None else max_norm
    sharded = getattr(module.trainer.strategy.model, "clip_grad_norm_", None)
    if sharded is not None:  # FSDP: no rank holds a whole gradient
        return sharded(limit)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
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
