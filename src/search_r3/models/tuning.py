"""Which weights are trained: all of them, or a LoRA adapter and the embed token's row."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class FullTuning:
    """Every weight is trained.

    Attributes:
        embeddings: whether the token embeddings are too, and the head where it is tied to them.
    """

    embeddings: bool = True

    def apply(self, model: PreTrainedModel, embed_token_id: int) -> nn.Module:
        model.requires_grad_(True)
        model.get_input_embeddings().requires_grad_(self.embeddings)
        return model


@dataclass(frozen=True)
class LoraTuning:
    """A low-rank adapter (arXiv:2106.09685) on the linear layers, and the embed token's row.

    The row is new to the base model, so it is trained in the embedding and, where the head has a matrix of
    its own, in the head too; no other row is touched. What is trained is fp32, also on a bf16 base.

    Attributes:
        r: rank.
        alpha: the adapter is scaled by `alpha / r`.
        target_modules: names of the layers, or "all-linear" for every one but the head.
    """

    r: int = 16
    alpha: int = 32
    target_modules: str | tuple[str, ...] = "all-linear"

    def apply(self, model: PreTrainedModel, embed_token_id: int) -> nn.Module:
        input_name = _name_of(model, model.get_input_embeddings())
        rows = {input_name: [embed_token_id]}
        if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
            rows[_name_of(model, model.get_output_embeddings())] = [embed_token_id]
        targets = self.target_modules
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=0.0,  # sampling, ratios and embeddings must see one and the same model
            target_modules=targets if isinstance(targets, str) else list(targets),
            trainable_token_indices=rows,
        )
        # AdamW's small steps vanish in bf16 (8 bits), so what is trained is fp32 whatever the base is.
        tuned = get_peft_model(model, config, autocast_adapter_dtype=True)
        for module in tuned.modules():
            if isinstance(module, TrainableTokensLayer):
                module.__class__ = TokenRows
        return tuned


class TokenRows(TrainableTokensLayer):
    """Trained rows of an embedding or a head, put into the result and not into the matrix.

    PEFT's own layer copies the whole matrix at every call, and leaves out the bias of a head
    (https://github.com/huggingface/peft/issues/3649). A row that has not moved changes no bit.
    """

    def forward_adapters(
        self, x: Tensor, active_adapters: list[str], *args: object, **kwargs: object
    ) -> Tensor:
        if self.disable_adapters or not active_adapters or self.merged:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        self._check_overlapping_tokens(active_adapters)
        result = self.base_layer(x, *args, **kwargs)
        place = self._embedded if isinstance(self.base_layer, nn.Embedding) else self._predicted
        for name in active_adapters:
            result = place(x, result, name)
        return result

    def _embedded(self, ids: Tensor, result: Tensor, adapter: str) -> Tensor:
        """Embeddings `[..., D]` of ids `[...]` with the adapter's rows in place."""
        rows, scale = self.trainable_tokens_delta[adapter].to(result.dtype), self._get_embed_scale()
        rows = rows if scale is None else rows * scale.to(result.dtype)
        for token, row in zip(self.token_indices[adapter], rows, strict=True):
            result = torch.where((ids == token)[..., None], row, result)
        return result

    def _predicted(self, states: Tensor, result: Tensor, adapter: str) -> Tensor:
        """Logits `[..., V]` of states `[..., D]`, moved by as much as the adapter's rows have moved."""
        columns = self._columns(adapter, result.device)
        moved = self.trainable_tokens_delta[adapter] - self.trainable_tokens_original[adapter]  # [n, D]
        logits = nn.functional.linear(states, moved.to(states.dtype))
        return result.index_add(-1, columns, logits.to(result.dtype))

    def _columns(self, adapter: str, device: torch.device) -> Tensor:
        """Ids of the adapter's tokens `[n]`, copied to a device once: each copy would wait for it."""
        known: dict[tuple[str, torch.device], Tensor] = self.__dict__.setdefault("_ids_on", {})
        if (adapter, device) not in known:
            with torch.inference_mode(False):  # an inference tensor could not be kept for a backward
                known[adapter, device] = torch.tensor(self.token_indices[adapter], device=device)
        return known[adapter, device]


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    """Last part of the dotted name of a submodule."""
    return next(name for name, module in model.named_modules() if module is wanted).rsplit(".", 1)[-1]


def has_adapter(model: nn.Module) -> bool:
    return isinstance(model, PeftModel)


def is_fresh(model: nn.Module) -> bool:
    """Whether the model has an adapter that has learnt nothing: its second factors are still 0."""
    factors = [weight for name, weight in model.named_parameters() if ".lora_B." in name]
    # not any(), which of a split weight sees this rank's share alone
    return has_adapter(model) and not any(bool(weight.abs().sum() != 0) for weight in factors)


def base_model(model: nn.Module) -> PreTrainedModel:
    """The causal language model itself, without an adapter's wrapper."""
    return model.get_base_model() if has_adapter(model) else model


def adapter_disabled(model: nn.Module) -> AbstractContextManager:
    """The frozen base where the model has an adapter; nothing changes where it has none."""
    return model.disable_adapter() if has_adapter(model) else nullcontext()
