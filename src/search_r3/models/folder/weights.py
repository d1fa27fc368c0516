"""Tokenizer and weights of a folder or a hub name, as transformers reads them; no code of theirs is run."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from search_r3.models.checksums import ModelFolderError
from search_r3.models.reading import named_damage
from search_r3.models.tuning import FullTuning, LoraTuning
from search_r3.models.twin import ArchitectureError, check_architecture

OF_OURS = {"local_files_only": True, "use_safetensors": True}
"""How the weights of a model folder are read. Those of a hub name may be pickles, which torch reads without
running anything (`weights_only`)."""


def dtype_named(name: str) -> torch.dtype:
    """`torch.float32` for "float32", and so on for bfloat16 and float16."""
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in choices:
        raise ModelFolderError(f"dtype must be one of {', '.join(choices)}, got {name!r}")
    return choices[name]


def read_tokenizer(source: str | Path, **options: object) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a hub name; code of its own is never run."""
    try:
        with named_damage(source):
            return AutoTokenizer.from_pretrained(
                str(source), padding_side="left", trust_remote_code=False, **options
            )
    except ModelFolderError:
        raise
    except ValueError as error:
        _refuse_own_code(source, error)
        raise


def _refuse_own_code(source: str | Path, error: Exception) -> None:
    """Says of a model that needs its own code what transformers answers with advice to run it."""
    if "trust_remote_code" in str(error):
        raise ModelFolderError(
            f"{source}: is of no kind that transformers knows and brings code of its own (auto_map), which "
            "is never run here; choose another model"
        ) from error


def read_model(source: str | Path, dtype: str, attention: str | None, **options: object) -> PreTrainedModel:
    """The causal language model of a folder or a hub name.

    Raises:
        ModelFolderError: If the architecture does not have this attention, with the one that every one has.
    """
    chosen = {} if attention is None else {"attn_implementation": attention}
    try:
        with named_damage(source):
            return AutoModelForCausalLM.from_pretrained(
                str(source), dtype=dtype_named(dtype), trust_remote_code=False, **chosen, **options
            )
    except ModelFolderError:
        raise
    except (ValueError, ImportError) as error:
        _refuse_own_code(source, error)
        reason = str(error).strip().splitlines()[0]
        if attention is None or not re.search("attention|attn", reason):
            raise
        raise ModelFolderError(
            f"model.attention={attention} cannot be had for {source}: {reason.split('. ')[0]}. "
            "Set model.attention=eager"
        ) from error


def refuse_untrusted(
    model: PreTrainedModel, source: str, tuning: FullTuning | LoraTuning | None = None
) -> None:
    """Refuses an architecture whose results would depend on how they are computed."""
    is_lora = isinstance(tuning, LoraTuning)
    try:
        check_architecture(model, tuning.apply if is_lora else None, repr(tuning) if is_lora else "")
    except ArchitectureError as error:
        raise ModelFolderError(f"{source}: {error}") from error
