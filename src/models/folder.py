"""The model folder: the interface between stages, evaluation and the outside.

It is an ordinary Hugging Face folder (weights in safetensors, tokenizer with chat template) plus
`search_r3.json` with prompts, lengths and provenance, and the model card, README.md. Adapters are merged in
fp32 and then cast. A LoRA run keeps its adapter beside the merged weights, in `adapter/`.
"""

import copy
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from src.models.card import model_card
from src.models.embedder import ReasoningEmbedder, sha256_of_files
from src.models.prompts import EMBED_TOKEN, Lengths, Prompts
from src.models.tuning import FullTuning, LoraTuning, has_adapter
from src.models.twin import ArchitectureError, check_architecture

FORMAT_VERSION = 1
DESCRIPTION_FILE = "search_r3.json"
CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 2048, 16384
"""Tokens of one forward in inference: what a CPU's cache holds, and what keeps a GPU busy."""
log = logging.getLogger(__name__)


class ModelFolderError(ValueError):
    """A model folder or a model choice that cannot be used; the message says what to do."""


def dtype_named(name: str) -> torch.dtype:
    """`torch.float32` for "float32", and so on for bfloat16 and float16."""
    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in choices:
        raise ModelFolderError(f"dtype must be one of {', '.join(choices)}, got {name!r}")
    return choices[name]


def read_description(path: str | Path) -> dict:
    """`search_r3.json` of a model folder.

    Raises:
        ModelFolderError: If the folder or the file is missing, or of a format that this code does not know.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelFolderError(
            f"{folder}: no such model folder; give the folder that a training run wrote (…/model)"
        )
    file = folder / DESCRIPTION_FILE
    if not file.is_file():
        raise ModelFolderError(
            f"{folder}: has no {DESCRIPTION_FILE}, so its prompts and lengths are unknown; "
            "for a plain Hugging Face folder use model.name=<folder> with a model= choice"
        )
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        missing = {"format_version", "prompts", "lengths", "embed_token"} - description.keys()
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ModelFolderError(f"{file}: not a JSON object: {error}") from error
    if missing:
        raise ModelFolderError(f"{file}: missing key {sorted(missing)[0]!r}")
    if description["format_version"] != FORMAT_VERSION:
        raise ModelFolderError(
            f"{file}: format_version is {description['format_version']}, this code reads {FORMAT_VERSION}"
        )
    if description["embed_token"] != EMBED_TOKEN:
        raise ModelFolderError(
            f"{file}: embed_token is {description['embed_token']!r}, must be {EMBED_TOKEN!r}"
        )
    return description


def weights_hash(path: str | Path) -> str:
    """SHA-256 over the safetensors files of a model folder, in the order of their names."""
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        raise ModelFolderError(f"{path}: holds no *.safetensors file")
    return sha256_of_files(files)


def add_embed_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds the embed token and gives it a row: a spare one where there is one; the matrix never shrinks.

    The row starts at the mean of the used rows, so that its logit starts like an ordinary token's.
    """
    if tokenizer.convert_tokens_to_ids(EMBED_TOKEN) not in (None, tokenizer.unk_token_id):
        return
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [EMBED_TOKEN]}, replace_extra_special_tokens=False
    )
    token_id = tokenizer.convert_tokens_to_ids(EMBED_TOKEN)
    if token_id >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(token_id + 1, mean_resizing=False)
    with torch.no_grad():
        for matrix in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            matrix[token_id] = matrix[:token_id].float().mean(0).to(matrix.dtype)


def load_embedder(
    path: str | Path, device: str = "cpu", dtype: str = "float32", token_budget: int | None = None
) -> ReasoningEmbedder:
    """Reads a model folder for inference.

    Args:
        path: the folder.
        device: where the weights go.
        dtype: of the weights.
        token_budget: tokens of one forward, padding included; None takes what suits the device.

    Raises:
        ModelFolderError: If the folder is not one that `save_embedder` wrote.
    """
    description = read_description(path)
    model = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype_named(dtype), local_files_only=True)
    _refuse_untrusted(model, str(path))
    tokenizer = AutoTokenizer.from_pretrained(str(path), padding_side="left", local_files_only=True)
    embedder = ReasoningEmbedder(
        model.to(device),
        tokenizer,
        Prompts(**description["prompts"]),
        Lengths(**description["lengths"]),
        token_budget or (CPU_TOKEN_BUDGET if device == "cpu" else GPU_TOKEN_BUDGET),
        weights_hash(path),
        is_trained=description.get("is_trained", True),
    )
    expected = description.get("prompt_fingerprint")
    if expected is not None and expected != embedder.encoder.fingerprint:
        raise ModelFolderError(
            f"{path}: the tokenizer or the prompts differ from those the model was trained with "
            f"({DESCRIPTION_FILE} says {expected[:12]}, found {embedder.encoder.fingerprint[:12]})"
        )
    return embedder.eval()


def open_embedder(
    *,
    path: str | None,
    name: str | None,
    create: Callable[..., tuple[PreTrainedModel, PreTrainedTokenizerBase]] | None,
    prompts: Mapping[str, str] | None,
    lengths: Mapping[str, int] | None,
    tuning: FullTuning | LoraTuning,
    dtype: str = "float32",
    token_budget: int = 16384,
    gradient_checkpointing: bool = False,
    attention: str = "sdpa",
    texts: Iterable[str] = (),
) -> ReasoningEmbedder:
    """The model that a stage trains.

    Args:
        path: a model folder of this project; architecture, tokenizer, prompts and lengths come from it.
        name: a Hugging Face hub name or a plain local folder, used where `path` is None.
        create: makes an untrained model and its tokenizer from `texts`, used where neither is given.
        prompts: wording, as `Prompts`; unused with `path`.
        lengths: limits, as `Lengths`; unused with `path`.
        tuning: which weights are trained.
        dtype: of the frozen weights under LoRA, and of all weights under full tuning.
        token_budget: tokens in one forward.
        gradient_checkpointing: recompute activations in the backward pass.
        attention: attention implementation of transformers.
        texts: text of the training split.

    Raises:
        ModelFolderError: If nothing says where the model comes from, or the folder cannot be used.
    """
    if path is not None:
        description = read_description(path)
        prompts, lengths = description["prompts"], description["lengths"]
        is_trained = description.get("is_trained", True)
    else:
        is_trained = name is not None
    source = path if path is not None else name
    if source is not None:
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype_named(dtype), attn_implementation=attention
        )
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    elif create is not None:
        model, tokenizer = create(texts)
    else:
        raise ModelFolderError("give model.path=<model folder>, or model.name=<hub name or folder>")
    _refuse_untrusted(model, source or "the model", tuning)
    add_embed_token(model, tokenizer)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    token_id = tokenizer.convert_tokens_to_ids(EMBED_TOKEN)
    tuned = tuning.apply(model, token_id)
    read_from = None if path is None else weights_hash(path)
    embedder = ReasoningEmbedder(
        tuned, tokenizer, Prompts(**prompts), Lengths(**lengths), token_budget, read_from, is_trained
    )
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    total = sum(p.numel() for p in tuned.parameters())
    log.info("model: %.2f M parameters, %.2f M of them trained", total / 1e6, trained / 1e6)
    return embedder


def _refuse_untrusted(
    model: PreTrainedModel, source: str, tuning: FullTuning | LoraTuning | None = None
) -> None:
    """Refuses an architecture whose results would depend on how they are computed."""
    is_lora = isinstance(tuning, LoraTuning)
    try:
        check_architecture(model, tuning.apply if is_lora else None, repr(tuning) if is_lora else "")
    except ArchitectureError as error:
        raise ModelFolderError(f"{source}: {error}") from error


def merged_model(model: nn.Module) -> PreTrainedModel:
    """The model with its adapter merged in fp32, as a copy; without an adapter, the model itself."""
    if not has_adapter(model):
        return model
    merged = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    return merged.merge_and_unload(safe_merge=True)


def _state_dtype(file: Path, dtype: str) -> None:
    """Writes the dtype of the saved weights: transformers names that of the model in memory instead."""
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"dtype": dtype}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _description(
    embedder: ReasoningEmbedder, provenance: Mapping[str, object], is_trained: bool
) -> dict[str, object]:
    """Content of `search_r3.json`."""
    return {
        "format_version": FORMAT_VERSION,
        "embed_token": EMBED_TOKEN,
        "embed_token_id": embedder.embed_token_id,
        "prompts": asdict(embedder.encoder.prompts),
        "lengths": asdict(embedder.encoder.lengths),
        "prompt_fingerprint": embedder.encoder.fingerprint,
        "is_trained": is_trained,
        "provenance": dict(provenance),
    }


def _cast_state(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights by name in another dtype, on the CPU; what is tied stays tied, so that it is written once."""
    cast: dict[tuple, Tensor] = {}
    state = {}
    for name, value in model.state_dict().items():
        place = (value.data_ptr(), value.shape, value.stride())
        if place not in cast:
            cast[place] = value.detach().to("cpu", dtype).contiguous()
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
        folder: written anew; an existing one is replaced once the new one is complete.
        provenance: how the weights came about: command, commit, seed, packages, data; the model card also
            knows base_model, stage, step, losses, validation (mode -> metric -> value) and data_licence.
        dtype: of the saved weights; an adapter is merged in fp32 first. None: that of the model's weights,
            under LoRA of the frozen ones.
        is_trained: False where the weights are as they were initialised.

    Returns:
        The folder.
    """
    target = Path(folder)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    dtype = dtype or embedder.dtype_name
    model = merged_model(embedder.model)
    state = _cast_state(model, dtype_named(dtype))
    before = model.config.dtype
    model.save_pretrained(partial, state_dict=state, safe_serialization=True)
    model.config.dtype = before  # saving makes a string of it
    _state_dtype(partial / "config.json", dtype)
    embedder.tokenizer.save_pretrained(partial)
    if has_adapter(embedder.model):
        embedder.model.save_pretrained(partial / "adapter")
    description = _description(embedder, provenance, is_trained)
    (partial / DESCRIPTION_FILE).write_text(
        json.dumps(description, indent=2, default=str) + "\n", encoding="utf-8"
    )
    n_parameters = sum(p.numel() for p in model.parameters())
    card = model_card(description, embedder.width, n_parameters, has_adapter(embedder.model))
    (partial / "README.md").write_text(card, encoding="utf-8")
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    return target
