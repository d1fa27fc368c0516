"""The steps of decoding in CUDA graphs: what a step costs is then the device's work, and not its launches.

A step of 28 layers launches some thousand kernels, which takes Python 28 ms, of one row or of 512. Here all
that a step reads lies in tensors that stay: keys and values at full length, mask, position, slot and token.
One step is captured and replayed for all that follow. Rows that have ended stay until half of them have; then
the others are copied together and a step is captured anew, and so it is where the slots that attention reads
are used up. Tokens are chosen outside the graph.

The captured step must be the same kernels on the same addresses each time, so whatever does something else is
decoded the plain way: windows shorter than the rows, states that run along, weights that are gathered from
other ranks. Where a capture fails, the plain way goes on from the same step.

Under autocast the first step, which is not captured, leaves the cast weights in autocast's cache, and the
captured one reads them there: they live as long as the context, which is around the call. Weights that
autocast does not cache (frozen ones in fp32, or all of them where its cache is off) are cast in every replay,
as they are in every plain step.
"""

import logging
from collections.abc import Sequence
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from search_r3.models.capture import captured
from search_r3.models.prefix import WINDOWS
from search_r3.models.steps import Growing, Rows, Steps

log = logging.getLogger(__name__)

FEWEST_STEPS = 8
"""A capture costs two plain steps; below so many it is not worth it."""

FEWEST_ROWS, FEWEST_LEFT = 16, 32
"""Rows are copied together where more than so many are held and at least so many steps are left: of fewer
rows a step takes as long, since it reads all weights."""

SLOTS = 256
"""Attention reads so many slots ahead of those in use; where they are used up, a step is captured anew."""

_ALIGNED = 8
"""Fused attention copies a mask whose rows are no multiple of so many numbers, in every layer."""

_failed: "WeakSet[nn.Module]" = WeakSet()
"""Decoders of which a step could not be captured; they are not tried again."""

_warned: list[str] = []
"""Why captures failed; the first is logged."""


def steps_of(growing: Growing, n_steps: int, graphs: bool | None = None) -> Steps:
    """The same rows with steps that are captured, where that pays and the model allows it; else as given.

    Args:
        growing: rows behind their prompts.
        n_steps: the most that will be taken.
        graphs: whether it pays; None for what the device and the number of steps say.
    """
    if graphs is None:
        graphs = growing.state.device.type == "cuda" and n_steps >= FEWEST_STEPS
    if not graphs or not has_fixed_steps(growing.decoder, growing.cache, n_steps):
        return growing
    try:
        return FixedSteps(growing, n_steps)
    except torch.OutOfMemoryError as error:  # at full length; the plain way frees rows as they end
        _told(growing.decoder, error)
        return growing


def has_fixed_steps(decoder: nn.Module, cache: DynamicCache, n_steps: int) -> bool:
    """Whether a step of this model is the same work whatever came before, with a mask that is given.

    Args:
        decoder: the transformer without its head.
        cache: keys and values of prompts.
        n_steps: that follow them; a window that is no shorter than all slots of a row is none.
    """
    config = getattr(decoder, "config", None)
    if config is None or decoder.training or decoder in _failed:
        return False
    config = config.get_text_config()
    if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return False
    window = narrowest_window(config)
    if window is not None and window < _n_slots(cache.get_seq_length() + n_steps):
        return False
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        return False
    device = next(decoder.parameters()).device
    for layer in cache.layers:
        if type(layer) is not DynamicLayer or not layer.is_initialized or layer.keys.device != device:
            return False
    is_split = any(hasattr(each, "full_tensor") for each in decoder.parameters())  # among ranks
    return not is_split


def narrowest_window(config: PreTrainedConfig) -> int | None:
    """The fewest tokens that a layer of a model attends to, by any name; None where each attends to all.

    One that only some layers have counts for all, and so does one that stands there and no layer uses.
    """
    layers = getattr(config, "per_layer_config", None) or [config]
    stated = [getattr(layer, name, None) for layer in layers for name in WINDOWS]
    return min((window for window in stated if window), default=None)


class _Slot:
    """Where all layers write, and how far they read.

    Attributes:
        at: `[1]` the slot of the current token, on the device.
        n_read: slots that attention reads.
    """

    def __init__(self, at: int, n_read: int, device: torch.device) -> None:
        self.at, self.n_read = torch.tensor([at], device=device), n_read


class _FixedLayer(CacheLayerMixin):
    """Keys and values of one layer in `n_slots` slots, `[n, heads, n_slots, d]` each, zero where none is.

    Under autocast they are held in its precision, to which attention would bring all of them in every step.
    """

    is_compileable = True
    is_sliding = False

    def __init__(self, layer: DynamicLayer, n_slots: int, slot: _Slot) -> None:
        super().__init__()
        self.keys, self.values = (
            _lengthened(each, n_slots, _product_dtype(each)) for each in (layer.keys, layer.values)
        )
        self.slot, self.is_initialized = slot, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Made whole."""

    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.slot.at, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, self.slot.at, value_states.to(self.values.dtype))
        return self.keys[:, :, : self.slot.n_read], self.values[:, :, : self.slot.n_read]

    def get_seq_length(self) -> Tensor:
        """Of the tokens before; a tensor, because a number would be captured as it was."""
        return self.slot.at[0]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slot.n_read, 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    def keep(self, places: Tensor) -> None:
        self.keys, self.values = self.keys[places], self.values[places]


def _lengthened(values: Tensor, n_slots: int, dtype: torch.dtype) -> Tensor:
    n, heads, length, width = values.shape
    # zeros, since attention multiplies what a mask hides by 0
    whole = values.new_zeros(n, heads, n_slots, width, dtype=dtype)
    whole[:, :, :length] = values
    return whole


class FixedSteps:
    """Steps on tensors that stay where they are, on a GPU as a CUDA graph.

    Args:
        growing: rows behind their prompts, of a model that `has_fixed_steps`.
        n_steps: the most that will be taken.

    Attributes:
        numbers: `[n]` of the rows held.
        live: `[n]` bool, True at rows that have not ended.
        state: `[n, D]` of the last token.
        n_captures: how often a step was captured, or would have been.
    """

    def __init__(self, growing: Growing, n_steps: int) -> None:
        self.decoder, self.logits_of = growing.decoder, growing.logits_of
        rows, device = growing.rows, growing.state.device
        self.filled = rows.mask.shape[1]
        self.last = self.filled + n_steps
        n_slots = _n_slots(self.last)
        self.slot = _Slot(self.filled, self._reach(n_slots), device)
        self.cache = Cache(layers=[_FixedLayer(layer, n_slots, self.slot) for layer in growing.cache.layers])
        self.mask = _additive(rows.mask, n_slots, self.cache.layers[0].keys.dtype)
        self.position = rows.next_position[:, None].clone()
        self.token = torch.zeros_like(rows.numbers)[:, None]
        self.numbers, self.live, self.state = rows.numbers, growing.live, rows.state
        self._logits: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_ready, self.n_captures = False, 0

    def logits(self) -> Tensor:
        """`[n, V]` of the next token."""
        return self.logits_of(self.state) if self._logits is None else self._logits

    def advanced(self, token: Tensor) -> Steps:
        """The same rows behind one token `[n]` more; with a cache that grows where a step failed."""
        try:
            self._take(token)
        except Exception as error:  # whatever it is, the plain step either works or raises it
            _told(self.decoder, error)
            return self._growing().advanced(token)
        self.filled += 1
        self.slot.at += 1
        self.position += 1
        return self

    def left(self, places: Sequence[int], ends: Tensor) -> "FixedSteps":
        """The rows that go on; those that have ended stay until half of all that are held have."""
        n, self.live = len(self.live), self.live & ~ends
        if 2 * len(places) <= n and n > FEWEST_ROWS and self.last - self.filled >= FEWEST_LEFT:
            self._compact(torch.tensor(places, device=self.live.device))
        return self

    def _compact(self, places: Tensor) -> None:
        self.state, self._logits = self.state[places], self.logits()[places]
        self._forget()
        self.slot.n_read = self._reach(self.mask.shape[-1])
        for layer in self.cache.layers:
            layer.keep(places)
        self.mask, self.position, self.token = self.mask[places], self.position[places], self.token[places]
        self.numbers, self.live = self.numbers[places], self.live[places]

    def _reach(self, n_slots: int) -> int:
        """Slots that attention reads from now on, of `n_slots`: all where few steps would need the rest."""
        reach = _rounded_up(self.filled + SLOTS, _ALIGNED)
        return n_slots if n_slots - reach < FEWEST_LEFT else reach

    def _forget(self) -> None:
        """Drops the captured step; its memory is free with its last tensors."""
        self._graph, self._is_ready = None, False

    def _take(self, token: Tensor) -> None:
        if self.filled >= self.slot.n_read:
            self._forget()
            self.slot.n_read = self._reach(self.mask.shape[-1])
        self.token.copy_(token[:, None])
        self.mask[..., self.filled] = 0.0
        if not self._is_ready:
            self.n_captures += 1
            if token.device.type == "cuda":
                self._graph = captured(self._step, token.device)
            self._is_ready = True
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()

    def _step(self) -> None:
        """What is captured: from the token in place to the state behind it and its logits."""
        self.state = self.decoder(
            input_ids=self.token,
            attention_mask=self.mask[..., : self.slot.n_read],
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        self._logits = self.logits_of(self.state)

    def _growing(self) -> Growing:
        """The rows as they were before the step, in a cache that grows; this object is of no use then."""
        self._forget()
        cache = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            cache.update(layer.keys[:, :, : self.filled], layer.values[:, :, : self.filled], number)
            layer.keys = layer.values = None
        mask = self.mask[:, 0, 0, : self.filled] == 0
        rows = Rows(self.numbers, mask, self.state, self.position[:, 0])
        return Growing(self.decoder, self.logits_of, cache, rows, self.live)


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _n_slots(n_tokens: int) -> int:
    """Slots of rows of so many tokens; some architectures count a window back from the last of them."""
    return _rounded_up(n_tokens, _ALIGNED)


def _product_dtype(values: Tensor) -> torch.dtype:
    """That of attention's products of these values."""
    device = values.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values.dtype


def _additive(mask: Tensor, n_slots: int, dtype: torch.dtype) -> Tensor:
    """`[n, 1, 1, n_slots]`, added to the scores of attention: 0 at the real tokens of `mask` `[n, L]`.

    In the precision of the scores, since another would be brought to it in every layer.
    """
    hidden = torch.full((len(mask), 1, 1, n_slots), torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    hidden[:, 0, 0, : mask.shape[1]].masked_fill_(mask, 0.0)
    return hidden


def _told(decoder: nn.Module, error: Exception) -> None:
    """Notes that this decoder's steps cannot be captured, and says so once per process."""
    if not isinstance(error, torch.OutOfMemoryError):  # there may be more memory in another call
        _failed.add(decoder)
    _warned.append(f"{type(error).__name__}: {error}".strip().partition("\n")[0])
    if len(_warned) == 1:
        log.warning("decoding goes on without CUDA graphs, and slower: %s", _warned[0])
