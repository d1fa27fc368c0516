"""How long a sequence may be: what a model's positions allow, and what prompts and lengths ask for."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from search_r3.models.prompts import PromptEncoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reach:
    """How far the positions of a model go, in tokens.

    Attributes:
        most: a longer sequence cannot be run, or its result would depend on the batch; None: no such limit.
        reason: why, for a message.
        trained: what the model was trained with, as its config says; beyond it results are untested.
    """

    most: int | None
    reason: str
    trained: int | None


def reach(model: PreTrainedModel) -> Reach:
    """What the positions of a model allow.

    A table of positions (GPT-2, OPT, GPT-J) ends. Rotary frequencies are computed for any position, but those
    of type "dynamic" and "longrope" change for all rows of a batch once its longest row passes a limit, and
    Llama 4 scales attention by places that count padding.
    """
    config = model.config
    trained = getattr(config, "max_position_embeddings", None)
    if trained is not None and _has_table(model, trained):
        return Reach(trained, f"{type(model).__name__} has {trained} learned positions", trained)
    is_rotary = any(name.endswith("inv_freq") for name, _ in model.named_buffers())
    if not is_rotary and getattr(config, "max_seq_len", None) is not None:
        return Reach(config.max_seq_len, f"{type(model).__name__} ends at {config.max_seq_len}", trained)
    if getattr(config, "attn_temperature_tuning", False):
        reason = (
            f"{type(model).__name__} scales attention by places of a batch, padding among them, from the "
            f"{config.floor_scale}th on, so that the batch would change the result"
        )
        return Reach(config.floor_scale - 1, reason, trained)
    changes = [_changes_at(rope, trained) for rope in _ropes(getattr(config, "rope_parameters", None))]
    limits = [limit for limit in changes if limit is not None]
    if is_rotary and limits:
        reason = (
            f"{type(model).__name__} changes its rotary frequencies beyond {min(limits)} tokens, for every "
            "row of a batch that holds such a row, so that the batch would change the result"
        )
        return Reach(min(limits), reason, trained)
    return Reach(None, "", trained if is_rotary else None)


def _has_table(model: nn.Module, n_positions: int) -> bool:
    """Whether the model looks positions up in a matrix, learned or computed beforehand."""
    return any(
        re.search(r"wpe|pos", name) and value.dim() == 2 and n_positions <= value.shape[0] < n_positions + 16
        for named in (model.named_parameters(), model.named_buffers())
        for name, value in named
    )


def _ropes(parameters: Mapping | None) -> list[Mapping]:
    """Rotary settings: one mapping, or one per type of layer."""
    if not parameters:
        return []
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    return nested or [parameters]


def _changes_at(rope: Mapping, trained: int | None) -> int | None:
    kind = str(rope.get("rope_type", "default"))
    if kind == "longrope":
        return rope.get("original_max_position_embeddings", trained)
    return trained if "dynamic" in kind else None


def check_lengths(model: PreTrainedModel, encoder: PromptEncoder) -> None:
    """Refuses lengths that the model's positions cannot hold; says in one line what passes its training.

    Raises:
        ValueError: With the key, the numbers and the most that fits.
    """
    lengths, limit = encoder.lengths, reach(model)
    direct = encoder.direct.n_tokens + len(encoder.closing)
    whole = {
        "lengths.document": _whole(limit, "lengths.document", lengths.document, encoder.document.n_tokens),
        "lengths.query": _whole(limit, "lengths.query", lengths.query, direct),
        "lengths.reasoning": _whole(
            limit, "lengths.reasoning", lengths.reasoning, *_around_reasoning(encoder)
        ),
    }
    key = max(whole, key=whole.__getitem__)
    if limit.trained is not None and whole[key] > limit.trained:
        log.warning(
            "%s: sequences have up to %d tokens, the model was trained with %d positions",
            key, whole[key], limit.trained,
        )  # fmt: skip


def check_reasoning(model: PreTrainedModel, encoder: PromptEncoder, key: str, n_tokens: int) -> None:
    """Refuses reasonings of `n_tokens`, which `key` allows, where with what stands before they do not fit.

    Raises:
        ValueError: If the model's positions do not hold them.
    """
    _whole(reach(model), key, n_tokens, *_around_reasoning(encoder))


def check_length(model: PreTrainedModel, key: str, n_tokens: int) -> None:
    """Refuses sequences of `n_tokens`, which `key` allows.

    Raises:
        ValueError: If the model's positions do not hold them.
    """
    _whole(reach(model), key, n_tokens, 0)


def _around_reasoning(encoder: PromptEncoder) -> tuple[int, str]:
    """Tokens besides a reasoning, and in words: prompt, query and embed token."""
    query = encoder.lengths.query
    return encoder.reasoning.n_tokens + query + 1, f", lengths.query={query} among them"


def _whole(limit: Reach, key: str, n_tokens: int, around: int, words: str = "") -> int:
    """Tokens of a whole sequence; refused where they are more than the positions hold."""
    whole = n_tokens + around
    if limit.most is not None and whole > limit.most:
        room = limit.most - around
        remedy = (
            f"set it to at most {room}" if room > 0 else "nothing is left for it: shorten what else there is"
        )
        raise ValueError(
            f"{key}={n_tokens} makes sequences of {whole} tokens ({around} of them stand around it{words}), "
            f"and {limit.reason}; {remedy}"
        )
    return whole
