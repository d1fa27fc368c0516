"""Whether an architecture can be trusted here: a small twin of it runs the property that results rest on.

Batch, prefix sharing and cache must not change a result, and logits must be the model's own. The code of a
new architecture may break that in many ways (windows that count slots, positions of its own, a cache of
another kind), so what is checked is the code itself: a model of the same class and configuration, with two
layers, a small vocabulary and a window of 8, in fp32, against plain transformers on one row without padding
or cache.
"""

import copy
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import peft
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from search_r3.files import json_sha256, write_text
from search_r3.models.logits import decoder_of, decoder_path, own_logits
from search_r3.models.prefix import WINDOWS, other_kinds, pad_left, position_ids, remembers_keys
from search_r3.models.steps import continued, prefill
from search_r3.models.tuning import adapter_disabled, base_model, is_fresh

log = logging.getLogger(__name__)

CHECK_VERSION = 2
PASSED = Path(".cache") / "architectures"
WINDOW, VOCABULARY, MAX_WIDTH = 8, 256, 256
MAX_SIZE = 500_000_000  # parameters of its two largest layers: 2 GB
_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size")
_SAME_WIDTH = ("word_embed_proj_dim", "embed_dim", "d_model", "lru_width")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "decoder_start_token_id")
TOLERANCE = 1e-5
"""Of unit vectors, and of logits relative to the largest of them."""

MOVE, MERGED_TOLERANCE = 0.05, 1e-3
"""How far an adapter is moved before it is merged, and what rounding may then change of its logits."""
OTHER_LAYERS = (
    "Name other layers in model.tuning.target_modules, or train all weights: "
    "model.tuning._target_=search_r3.models.tuning.FullTuning"
)

RUNS_ALONG = "it remembers a text as a state that runs along (Mamba, linear attention, convolution)"
SPARSE = {
    "indexed_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
    "minimax_m3_sparse",
}
"""Layer types of transformers that choose or compress what they attend to, by keys of their own for that."""

Tune = Callable[[PreTrainedModel, int], nn.Module]
"""From a model and the embed token's id to what is trained, such as a model with an adapter."""


class ArchitectureError(ValueError):
    """An architecture that would give wrong results; the message names it and what differs."""


def check_architecture(model: PreTrainedModel, tune: Tune | None = None, settings: str = "") -> None:
    """Refuses an architecture whose results would depend on batch, prefix sharing, cache or an adapter.

    That one has passed is kept under `.cache/architectures`, by the hash of its configuration and the
    versions of the libraries, so that a model is checked once.

    Args:
        model: as it was read; it is not run.
        tune: puts an adapter on a model; None where there is none.
        settings: what `tune` depends on, for the hash.

    Raises:
        ArchitectureError: If a result differs, or the twin cannot be built or run.
    """
    facts = {
        "check": CHECK_VERSION,
        "architecture": type(model).__name__,
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "attention": _attention(model.config),
        "tuning": settings,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    for name in ("_name_or_path", "transformers_version"):
        facts["config"].pop(name, None)
    key = json_sha256(facts)[:24]
    if _has_passed(key):
        return
    with torch.random.fork_rng(devices=[]):  # a run must not depend on whether the check was made before
        fault = _fault(model, tune)
    if fault:
        raise ArchitectureError(f"{type(model).__name__} cannot be used here: {fault}")
    _remember(key, facts)


def _attention(config: PreTrainedConfig) -> str:
    """Implementation that a CPU has too."""
    return "eager" if config._attn_implementation == "eager" else "sdpa"


def _fault(model: PreTrainedModel, tune: Tune | None) -> str:
    """What is wrong with an architecture, or nothing; with another attention, if that would help."""
    attention = _attention(model.config)
    fault = _fault_under(attention, model, tune)
    if fault and not remembers_keys(model):
        return f"{_memory(model)}; choose a model whose layers all keep keys and values alone ({fault})"
    if fault and attention != "eager" and not _fault_under("eager", model, tune):
        fault += ". With model.attention=eager it is right"
    return fault


def _memory(model: PreTrainedModel) -> str:
    """How a model that does not remember keys and values alone remembers a text."""
    kinds = other_kinds(model)
    if not kinds or kinds - SPARSE:
        return RUNS_ALONG
    return (
        f"its layers are of sparse attention ({', '.join(sorted(kinds))}), which keeps keys for choosing or "
        "compressing what is attended to beside a text's keys and values"
    )


def _fault_under(attention: str, model: PreTrainedModel, tune: Tune | None) -> str:
    """As `_fault`: of a twin with few heads, and where that one has a fault, of one with all of them.

    Narrowing may have made the fault. Where the wide twin would be too large, the narrow one decides.
    """
    fault = _fault_of_twin(attention, model, tune, is_narrow=True)
    return fault and (_fault_of_twin(attention, model, tune, is_narrow=False) if _is_small(model) else fault)


def _is_small(model: PreTrainedModel) -> bool:
    """Whether a wide twin fits into memory: a layer of each kind, and at least two."""
    layers = {id(each): each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)}
    sizes = sorted(sum(weight.numel() for weight in layer.parameters()) for layer in layers.values())
    return sum(sizes[-2:]) <= MAX_SIZE


def _fault_of_twin(attention: str, model: PreTrainedModel, tune: Tune | None, is_narrow: bool) -> str:
    try:
        twin = build_twin(model, attention, is_narrow)
        fault = difference(twin)
    except Exception as error:  # whatever the code of a strange architecture raises
        return f"its two-layer twin fails with {_shown(error)}"
    if fault or tune is None:
        return fault
    try:
        tuned, row = tune(twin, VOCABULARY - 1), _sequences()[-1]
        return fresh_adapter_difference(tuned, row) or merged_adapter_difference(tuned, row)
    except Exception as error:  # as above, and of layers that PEFT does not know
        return f"its two-layer twin with a LoRA adapter fails with {_shown(error)}. {OTHER_LAYERS}"


def _shown(error: Exception) -> str:
    log.debug("a twin failed", exc_info=True)
    reason = " ".join(str(error).split()).rstrip(".") or "no message"
    return f"{type(error).__name__}: {reason[:300]}"


def build_twin(model: PreTrainedModel, attention: str, is_narrow: bool) -> PreTrainedModel:
    """A small model of the same class, in fp32, in evaluation mode, on the CPU.

    One layer of each kind is kept, at least two; a narrow twin has one or two heads for keys and as many for
    queries as they serve. Matrices have variance 1 / fan-in and biases are not 0: with
    the usual small initial weights a layer hardly changes its input.
    """
    config = _twin_config(model, attention, is_narrow)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        twin = type(model)(config).float().eval()
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.5)
    return twin


def _twin_config(model: PreTrainedModel, attention: str, is_narrow: bool) -> PreTrainedConfig:
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    own = _own_of_layers(text)
    if own:
        text.per_layer_config = None  # with it, what some layers have of their own cannot be read
    kept = _shrink(text, own)
    if is_narrow:
        _narrow(text)
    if own:
        text.per_layer_config = {place: own[layer] for place, layer in enumerate(kept) if layer in own}
    config._attn_implementation = attention
    config.dtype = torch.float32
    return config


def _own_of_layers(config: PreTrainedConfig) -> dict[int, dict]:
    """By layer, the settings that it has of its own, as the size of the heads in some layers of Gemma 4."""
    stated = config.to_dict().get("per_layer_config") or {}
    return {int(layer): settings for layer, settings in stated.items()}


def _shrink(config: PreTrainedConfig, own: Mapping[int, dict]) -> list[int]:
    """Leaves a layer of each kind, and at least two: their places in the model, in order."""
    n_layers = config.num_hidden_layers
    types = getattr(config, "layer_types", None) or ["layer"] * n_layers
    kinds = [(kind, str(own.get(layer))) for layer, kind in enumerate(types)]
    kept = sorted(kinds.index(kind) for kind in set(kinds))
    kept = sorted({*kept, *range(n_layers)[: 2 - len(kept) + 1]})[: max(2, len(kept))]
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == n_layers and n_layers > len(kept):
            setattr(config, name, [value[layer] for layer in kept])
        elif name in WINDOWS and value:
            setattr(config, name, min(value, WINDOW))
        elif name in _WIDTHS and isinstance(value, int):
            setattr(config, name, min(value, MAX_WIDTH))
        elif (name in _TOKENS and value is not None) or name == "num_kv_shared_layers":
            setattr(config, name, 0)  # layers that shared keys with one that is gone have keys of their own
    config.num_hidden_layers = len(kept)
    config.vocab_size = VOCABULARY
    return kept


def _narrow(config: PreTrainedConfig) -> None:
    """Fewer heads of the same size, and states as narrow as that makes them."""
    n_heads, width = config.num_attention_heads, config.hidden_size
    n_keys = getattr(config, "num_key_value_heads", None) or n_heads
    fewer_keys = min(n_keys, 2)
    fewer = fewer_keys * (n_heads // n_keys)
    narrow = width // n_heads * fewer
    sizes = {"num_attention_heads": fewer, "num_key_value_heads": fewer_keys, "hidden_size": narrow}
    for name, size in sizes.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, size)
    for name in _SAME_WIDTH:
        if vars(config).get(name) == width:
            setattr(config, name, narrow)


def _sequences() -> list[list[int]]:
    """Rows that share more than a window, and whose padding is shorter and longer than what they share."""
    generator = torch.Generator().manual_seed(0)
    ids = lambda n: torch.randint(1, VOCABULARY, (n,), generator=generator).tolist()  # noqa: E731
    shared = ids(12)
    return [[*shared, *ids(n)] for n in (1, 4, 11, 30)]


@torch.no_grad()
def difference(model: PreTrainedModel) -> str:
    """What of a model's results depends on how they are computed; empty where nothing does.

    Args:
        model: in fp32, with a vocabulary of `VOCABULARY`.
    """
    decoder, path = decoder_of(model), decoder_path(model)
    rows, tails = _sequences(), [[7, 3, 9, 1, 5, 2, 8, 4, 6, 11]] * 4
    plain, logits = [], []
    for row, tail in zip(rows, tails, strict=True):
        ids = torch.tensor([[*row, *tail]])
        plain.append(decoder(input_ids=ids, use_cache=False).last_hidden_state[0])
        logits.append(model(input_ids=ids, use_cache=False).logits[0])
    for states, expected in zip(plain, logits, strict=True):
        if _far(own_logits(model, path, states) / expected.abs().max(), expected / expected.abs().max()):
            return "logits made from its last states are not its own"
    ids, mask = pad_left([[*row, *tail] for row, tail in zip(rows, tails, strict=True)], 0, plain[0].device)
    batched = decoder(
        input_ids=ids, attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False
    ).last_hidden_state
    for number, states in enumerate(plain):
        if _far(_unit(batched[number, -len(states) :]), _unit(states)):
            return "a text has another vector in a batch than alone (padding changes it)"
    cached = _cached_states(decoder, rows, tails)
    for number, states in enumerate(plain):
        if _far(_unit(cached[number]), _unit(states[len(rows[number]) - 1 :])):
            return "a text that continues a shared prefix in the cache has another vector than alone"
    return ""


def _cached_states(
    decoder: nn.Module, rows: Sequence[Sequence[int]], tails: Sequence[Sequence[int]]
) -> Tensor:
    """`[B, 1 + T, D]` states at each row's last token and at the `T` after it, as decoding has them."""
    cache, prefilled = prefill(decoder, rows, 1, 0)
    states = [prefilled.state]
    for token in torch.tensor(tails).T:
        prefilled = continued(decoder, cache, prefilled, token)
        states.append(prefilled.state)
    return torch.stack(states, dim=1)


@torch.no_grad()
def fresh_adapter_difference(model: nn.Module, ids: Sequence[int]) -> str:
    """What a fresh adapter changes, which must be nothing; empty where that is so, or where none is fresh.

    Args:
        model: with or without an adapter, on any device.
        ids: a row of tokens.
    """
    if not is_fresh(model):
        return ""
    lm = base_model(model)
    row = torch.tensor([list(ids)], device=next(lm.parameters()).device)
    found = lm(input_ids=row, use_cache=False).logits[0].float()
    with adapter_disabled(model):
        expected = lm(input_ids=row, use_cache=False).logits[0].float()
    scale = expected.abs().max().clamp(min=1e-6)
    tolerance = TOLERANCE if lm.dtype == torch.float32 else 0.02
    gap = float(((found - expected).abs() / scale).max())
    if gap <= tolerance:
        return ""
    return (
        f"a fresh LoRA adapter, which must change nothing, moves its logits by {gap:.1e} of their size. "
        f"{OTHER_LAYERS}"
    )


@torch.no_grad()
def merged_adapter_difference(model: nn.Module, ids: Sequence[int]) -> str:
    """Whether a moved adapter computes otherwise than the model that it is merged into on saving.

    It does where a layer's weight is read and the layer is not called, as that of a router may be: the
    adapter then has no part in training.

    Args:
        model: with an adapter, in fp32; its adapter is moved and merged.
        ids: a row of tokens.
    """
    row = torch.tensor([list(ids)])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += MOVE * torch.randn(parameter.shape)
    found = model(input_ids=row, use_cache=False).logits[0]
    expected = model.merge_and_unload()(input_ids=row, use_cache=False).logits[0]
    gap = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if gap <= MERGED_TOLERANCE:
        return ""
    return (
        f"a LoRA adapter on it is merged into another model than is trained: logits differ by {gap:.1e} of "
        f"their size. {OTHER_LAYERS}"
    )


def _far(found: Tensor, expected: Tensor) -> bool:
    return not bool(((found - expected).abs() <= TOLERANCE).all())  # True for NaN


def _unit(states: Tensor) -> Tensor:
    return normalize(states.float(), dim=-1)


# ---- what has passed

_passed: set[str] = set()


def _has_passed(key: str) -> bool:
    return key in _passed or (PASSED / f"{key}.json").is_file()


def _remember(key: str, facts: dict) -> None:
    """Keeps that an architecture has passed; a folder that cannot be written only costs the check again."""
    _passed.add(key)
    try:
        write_text(PASSED / f"{key}.json", json.dumps(facts, indent=2))
    except OSError as error:
        log.debug("that %s has passed is not kept: %s", facts["architecture"], error)
