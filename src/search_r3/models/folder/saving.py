"""A model folder is written, whole or not at all."""

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from search_r3.folders import empty_part, put_in_place, refuse_to_replace
from search_r3.models.card import DECODER, model_card
from search_r3.models.checksums import DESCRIPTION_FILE, KEY, checksums
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder.description import description_of, plain
from search_r3.models.folder.modules import write_modules
from search_r3.models.folder.weights import dtype_named
from search_r3.models.logits import decoder_of, decoder_path
from search_r3.models.tuning import has_adapter


def merged_model(model: nn.Module) -> PreTrainedModel:
    """The model with its adapter merged in fp32, as a copy; without an adapter, the model itself."""
    if not has_adapter(model):
        return model
    merged = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    return merged.merge_and_unload(safe_merge=True)


def _state(file: Path, **facts: object) -> None:
    """Writes facts into a configuration that was saved, and leaves out the code that it was read without."""
    config = json.loads(file.read_text(encoding="utf-8")) | facts
    config.pop("auto_map", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _cast_state(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights by name in another dtype, on the CPU; what is tied stays tied, so that it is written once.

    Those that transformers reads in fp32 whatever the dtype, as what routes a token to experts, are kept so.
    """
    in_fp32 = [name.replace("*", ".*") for name in model._keep_in_fp32_modules_strict]
    cast: dict[tuple, Tensor] = {}
    state = {}
    for name, value in model.state_dict().items():
        place = (value.data_ptr(), value.shape, value.stride())
        kind = torch.float32 if any(re.search(each, name) for each in in_fp32) else dtype
        if place not in cast:
            cast[place] = value.detach().to("cpu", kind).contiguous()
        state[name] = cast[place]
    return state


def save_embedder(
    embedder: ReasoningEmbedder,
    folder: str | Path,
    provenance: Mapping[str, object],
    dtype: str | None = None,
    is_trained: bool = True,
) -> Path:
    """Writes a model folder, whole or not at all.

    Args:
        embedder: what is saved.
        folder: written anew; a model folder of ours that is there is replaced once the new one is complete.
        provenance: how the weights came about: command, commit, seed, packages, data; the model card also
            knows base_model, stage, step, losses, validation (mode -> metric -> value) and data_licence.
        dtype: of the saved weights; an adapter is merged in fp32 first. None: that of the model's weights,
            under LoRA of the frozen ones.
        is_trained: False where the weights are as they were initialised.

    Returns:
        The folder.

    Raises:
        UsageError: If something is there that no save has written, or a symbolic link; it is left alone.
    """
    target = Path(folder)
    refuse_to_replace(target)
    partial = empty_part(target)
    dtype = dtype or embedder.dtype_name
    model = merged_model(embedder.model)
    state = _cast_state(model, dtype_named(dtype))
    before = model.config.dtype
    model.save_pretrained(partial, state_dict=state, safe_serialization=True)
    model.config.dtype = before  # saving makes a string of it
    # transformers names the dtype of the model in memory instead of that of the saved weights
    _state(partial / "config.json", dtype=dtype)
    embedder.tokenizer.save_pretrained(partial)
    _state(partial / "tokenizer_config.json")
    if has_adapter(embedder.model):
        embedder.model.save_pretrained(partial / "adapter")
    write_modules(partial, embedder.encoder, embedder.width, dtype)
    facts = description_of(embedder.encoder, provenance, is_trained)
    description = plain(facts)
    description[KEY] = checksums(partial, description, only_read=False)
    (partial / DESCRIPTION_FILE).write_text(
        json.dumps(description, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    n_parameters = sum(p.numel() for p in model.parameters())
    is_found = decoder_of(model) is model.get_decoder()
    decoder = DECODER if is_found else ".".join(("model", *decoder_path(model)))
    card = model_card(facts, embedder.width, n_parameters, has_adapter(embedder.model), decoder)
    (partial / "README.md").write_text(card, encoding="utf-8")
    put_in_place(partial, target)
    return target
