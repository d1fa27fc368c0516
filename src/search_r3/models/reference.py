"""The frozen model that KL compares with: what was trained on, as it was when training began."""

import contextlib
import copy
import logging
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.tuning import adapter_disabled, has_adapter

log = logging.getLogger(__name__)


class FrozenReference:
    """A view of an embedder's model as it was: the adapter switched off, or a copy of what is trained.

    It is no `nn.Module`, so neither optimizer nor checkpoint takes the copy for a part of what is trained.

    Args:
        embedder: with an adapter no second copy of the model is made.
    """

    def __init__(self, embedder: ReasoningEmbedder) -> None:
        self._embedder = embedder
        self._copy: PreTrainedModel | None = None
        if not has_adapter(embedder.model):
            parameters = list(embedder.causal_lm.parameters())
            shared = {id(each): each for each in parameters if not each.requires_grad}  # they never change
            self._copy = copy.deepcopy(embedder.causal_lm, shared).requires_grad_(False).eval()
            size = sum(each.numel() * each.element_size() for each in parameters if each.requires_grad)
            log.info("KL: the frozen copy of the base takes %.1f MiB", size / 2**20)

    @property
    def copies(self) -> list[PreTrainedModel]:
        """The copy, or nothing where there is none."""
        return [] if self._copy is None else [self._copy]

    @contextlib.contextmanager
    def active(self) -> Iterator[ReasoningEmbedder]:
        """The embedder around the frozen model; no gradient is recorded within."""
        with torch.no_grad():
            if self._copy is None:
                with adapter_disabled(self._embedder.model):
                    yield self._embedder
                return
            frozen, device = self._copy, self._embedder.device
            if next(frozen.parameters()).device != device:  # else it would split sharded weights
                frozen.to(device)
            holder = copy.copy(self._embedder)
            holder._modules = {**self._embedder._modules, "model": frozen}
            yield holder
