"""From states to logits, as the model itself does it.

What stands between the last state and the logits differs by architecture: a scale (Granite, Cohere), a soft
cap (Gemma 2), a bias (Phi). It is code in each model's own `forward`, so that very code is run here, with the
states in the decoder's place. Losses, log-probabilities and sampling all take logits from `own_logits`.
"""

import inspect
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


def decoder_of(causal_lm: PreTrainedModel) -> nn.Module:
    """The transformer below the head of a causal language model.

    transformers takes the whole model of Llama 4 for it, and of ModernBERT's decoder the head, which has that
    name there.
    """
    decoder = causal_lm.get_decoder()
    is_found = decoder is not causal_lm and decoder is not causal_lm.get_output_embeddings()
    return decoder if is_found else getattr(causal_lm, "model", decoder)


def decoder_path(causal_lm: PreTrainedModel) -> tuple[str, ...]:
    """Names that lead from a causal language model to its decoder, such as `("model",)`.

    Raises:
        ValueError: If the model has no decoder of its own below it.
    """
    decoder = decoder_of(causal_lm)
    for name, module in causal_lm.named_modules():
        if module is decoder and name:
            return tuple(name.split("."))
    raise ValueError(f"{type(causal_lm).__name__} has no decoder apart from its head")


def state_width(config: PreTrainedConfig) -> int:
    """Dimension `D` of a last state; OPT brings its states to that of the token embeddings."""
    config = config.get_text_config()
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size


def own_logits(causal_lm: PreTrainedModel, path: tuple[str, ...], states: Tensor) -> Tensor:
    """The logits that the model gives for states of its decoder.

    Args:
        causal_lm: with or without an adapter inside it.
        path: what `decoder_path` gave.
        states: `[n, D]` after the final norm; `n` may be 0. They are brought to the head's precision.

    Returns:
        `[n, V]` in the model's own precision, or in autocast's; with gradient where it is on.
    """
    precision = next(causal_lm.get_output_embeddings().parameters()).dtype
    states = states.to(precision)[None]
    stand_in = _Replaced(causal_lm, path, _Decoded(decoder_of(causal_lm), states))
    # Gemma 4 reads the length of what it is given.
    given = {"inputs_embeds": states} if _takes_embeddings(type(causal_lm)) else {}
    return type(causal_lm).forward(stand_in, **given).logits[0]


@cache
def _takes_embeddings(kind: type[PreTrainedModel]) -> bool:
    return "inputs_embeds" in inspect.signature(kind.forward).parameters


class _Decoded:
    """The decoder, but for a call: that gives the states that it was made with, `[1, n, D]`."""

    def __init__(self, decoder: Any, states: Tensor) -> None:
        self._decoder, self._states = decoder, states

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def __call__(self, *_: Any, **__: Any) -> "_Output":
        return _Output(last_hidden_state=self._states)


class _Output(BaseModelOutputWithPast):
    """What a decoder returns; what it does not have, such as a router's logits, is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class _Replaced:
    """A module of which one below it is another; the module itself stays as it is, for other threads too."""

    def __init__(self, module: Any, path: tuple[str, ...], other: Any) -> None:
        first, *rest = path
        self._module = module
        self._below = first, _Replaced(getattr(module, first), tuple(rest), other) if rest else other

    def __getattr__(self, name: str) -> Any:
        first, other = self._below
        return other if name == first else getattr(self._module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return type(self._module).forward(self, *args, **kwargs)
