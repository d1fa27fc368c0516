"""`strategy=fsdp`: weights, gradients and optimizer states of a model are split among the ranks.

It is FSDP2 (`torch.distributed.fsdp.fully_shard`) on the causal language model. Every decoder layer is a
group of its own: whole while it computes, split again afterwards. The rest, token embeddings, last norm and
head, is one group, whole from a forward of the decoder to the end of the next backward, since losses call the
head by itself. A step may run any number of forwards and backwards; each backward adds to the
split gradient. A forward or backward needs all ranks, see `StageModule.filled_up` and `equal_forwards`.

A checkpoint is the one file that any other strategy writes, gathered tensor by tensor into the memory of the
first rank: it loads without unpickling, and on another number of ranks.
"""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from search_r3.distributed import own_place
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.logits import decoder_of
from search_r3.stages.checkpoint_files import check, read


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 over all processes, with checkpoints in one file.

    Raises:
        ValueError: If a model has no layers that it could be split into.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self._empty: nn.Module | None = None  # the embedder's model as it was, without its weights

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # ---- the model

    def shard(self, embedder: ReasoningEmbedder, frozen: Iterable[PreTrainedModel]) -> None:
        """Splits the weights of an embedder, and of frozen models beside it, among the ranks; once."""
        if isinstance(embedder.causal_lm, FSDPModule):
            return
        self._empty = _without_weights(embedder.model)
        for causal_lm in (embedder.causal_lm, *frozen):
            shard(causal_lm, self.device_mesh["data_parallel"])

    def gather(self, embedder: ReasoningEmbedder) -> None:
        """Gives the embedder of the first rank a whole model on the CPU; the others keep their shares.

        Collective. Tensor by tensor, so no device holds more than its share and one tensor.
        """
        _reshard(embedder.model)
        gathered = {}
        for name, parameter in embedder.model.named_parameters():
            value = _on_first(parameter.detach())
            if value is not None:
                gathered[id(self._empty.get_parameter(name))] = nn.Parameter(value, parameter.requires_grad)
        if not self.is_global_zero:
            return
        for module in self._empty.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = gathered[id(parameter)]  # what was tied still is
        embedder.model = self._empty.train(embedder.model.training)

    # ---- checkpoints: what a strategy that does not shard would write and read

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """Weights that are trained, and buffers, whole on the CPU of the first rank; empty on the others."""
        module = self.lightning_module
        _reshard(module)
        gathered: dict[int, Tensor | None] = {}
        state = {}
        for name, value in module.state_dict(keep_vars=True).items():
            if isinstance(value, nn.Parameter) and not value.requires_grad:
                continue
            if id(value) not in gathered:  # what is tied is gathered and written once
                gathered[id(value)] = _on_first(value.detach())
            state[name] = gathered[id(value)]
        return state if self.is_global_zero else {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module, state = self.lightning_module, checkpoint["state_dict"]
        _reshard(module)
        with torch.no_grad():
            for name, value in module.state_dict(keep_vars=True).items():
                if name in state:
                    value.copy_(_share(state[name], value))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer, whole on the CPU of the first rank; empty on the others."""
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        state["state"] = {
            number: {name: _on_first(value) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        return state if self.is_global_zero else {}

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            shares = {
                number: {
                    name: _share(value, parameters[number]) if name != "step" else value
                    for name, value in values.items()
                }
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": shares})

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict:
        """The content of a checkpoint whose sum is right, on the disk until it is used.

        Raises:
            CheckpointError: If it is damaged.
        """
        check(Path(checkpoint_path))
        return read(Path(checkpoint_path), map_location="cpu", mmap=True)


def shard(causal_lm: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Splits the weights of a model among the ranks of a mesh, on its device; the model is changed.

    A call of the decoder alone then counts as a forward of the whole model.

    Raises:
        ValueError: If the decoder has no layers that transformers marks as such, or torch is too old for
            several ranks.
    """
    decoder = decoder_of(causal_lm)
    layers = [each for each in decoder.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"strategy=fsdp cannot split {type(causal_lm).__name__}: it has no layers")
    for layer in reversed(layers):  # what is inside another comes first
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(causal_lm, mesh=mesh, reshard_after_forward=False)
    _reduce_unused(causal_lm, mesh.size())
    causal_lm.run_decoder = decoder.forward
    register_fsdp_forward_method(causal_lm, "run_decoder")
    decoder.forward = causal_lm.run_decoder


def _reduce_unused(causal_lm: PreTrainedModel, n_ranks: int) -> None:
    """Lets a rank use weights in a backward that another does not, as where its loss alone reads the head.

    torch 2.11 cannot: it would wait for gradients that never come. One rank waits for none.
    """
    if hasattr(causal_lm, "set_reduce_scatter_unused_params"):
        causal_lm.set_reduce_scatter_unused_params(True)
    elif n_ranks > 1:
        raise ValueError(
            f"strategy=fsdp on {n_ranks} ranks needs torch 2.13 or later, in which ranks may use different "
            f"weights in a step; this is torch {torch.__version__}"
        )


def whole(value: Tensor) -> Tensor:
    """A tensor that is split among ranks, whole on each of them (collective), or any other as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy on the device "meta": what was tied is tied."""
    empty = {
        id(each): nn.Parameter(each.detach().to("meta"), each.requires_grad) for each in model.parameters()
    }
    return copy.deepcopy(model, empty)


def _reshard(module: nn.Module) -> None:
    """Puts the split weights in place of whole ones that a forward without a backward has left."""
    for each in module.modules():
        if isinstance(each, FSDPModule):
            each.reshard()


def _on_first(value: Any) -> Any:
    """A split tensor whole on the CPU of the first rank, and None on the others; anything else as it is."""
    if not isinstance(value, DTensor):
        return value.detach().cpu() if isinstance(value, Tensor) else value
    gathered = value.full_tensor()
    return gathered.cpu() if own_place()[0] == 0 else None


def _share(value: Tensor, like: Tensor) -> Tensor:
    """This rank's share of a tensor that all ranks have, split as another of its kind is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
