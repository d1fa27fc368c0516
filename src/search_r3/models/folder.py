"""The model folder: the interface between stages, evaluation and the outside.

It is an ordinary Hugging Face folder (weights in safetensors, tokenizer with chat template) plus
`search_r3.json` with prompts, lengths and provenance, and the model card, README.md. Adapters are merged in
fp32 and then cast. A LoRA run keeps its adapter beside the merged weights, in `adapter/`.

Everything that is read has its SHA-256 in `search_r3.json` (`checksums`) and is compared with it
before it is used. No code of a folder is run: weights are safetensors, and what a configuration says of code
of its own (`auto_map`) is not heeded.

`search_r3.json` holds the three prompts as they were rendered for training, as text and as token ids, and the
pad token; whoever opens the folder takes them from there (format 2). Folders of format 1 have the wording
only and are rendered when they are opened; `python -m src.upgrade <folder>` writes down what that gives.
"""

import copy
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from search_r3.files import write_text
from search_r3.folders import empty_part, put_in_place, refuse_to_replace
from search_r3.models.card import model_card
from search_r3.models.checksums import (
    DESCRIPTION_FILE,
    KEY,
    ModelFolderError,
    check_description,
    check_files,
    checksums,
)
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.positions import check_lengths
from search_r3.models.prompts import EMBED_TOKEN, Lengths, PromptEncoder, Prompts, Rendered
from search_r3.models.reading import named_damage
from search_r3.models.templates import render_as_format_1
from search_r3.models.tuning import FullTuning, LoraTuning, has_adapter
from search_r3.models.twin import ArchitectureError, check_architecture
from search_r3.models.vocabulary import add_embed_token, give_pad_token
from search_r3.records import RecordError, read_json, shown

FORMAT_VERSION = 2
READS_VERSIONS = (1, 2)
CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 2048, 16384
"""Tokens of one forward in inference: what a CPU's cache holds, and what keeps a GPU busy."""
OF_OURS = {"local_files_only": True, "use_safetensors": True}
"""How the weights of a model folder are read. Those of a hub name may be pickles, which torch reads without
running anything (`weights_only`)."""
log = logging.getLogger(__name__)


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
        description = read_json(file, has_nan=True)  # a loss of a folder of before may be one
        missing = {"format_version", "prompts", "lengths", "embed_token"} - description.keys()
    except RecordError as error:
        raise ModelFolderError(f"{file}: not a JSON object: it {error.problem}") from error
    if missing:
        raise ModelFolderError(f"{file}: missing key {sorted(missing)[0]!r}")
    version = description["format_version"]
    if version not in READS_VERSIONS:
        raise ModelFolderError(
            f"{file}: format_version is {shown(version)}, this code reads "
            f"{' and '.join(map(str, READS_VERSIONS))}"
        )
    kept = {"rendered", "prompt_fingerprint"} - description.keys() if version > 1 else set()
    if kept:
        raise ModelFolderError(f"{file}: missing key {sorted(kept)[0]!r}")
    if description["embed_token"] != EMBED_TOKEN:
        raise ModelFolderError(
            f"{file}: embed_token is {shown(description['embed_token'])}, must be {EMBED_TOKEN!r}"
        )
    return description


def load_embedder(
    path: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    token_budget: int | None = None,
    attention: str | None = None,
) -> ReasoningEmbedder:
    """Reads a model folder for inference.

    Args:
        path: the folder.
        device: where the weights go.
        dtype: of the weights.
        token_budget: tokens of one forward, padding included; None takes what suits the device.
        attention: attention implementation of transformers; None takes the best that the architecture has.

    Raises:
        ModelFolderError: If the folder is not one that `save_embedder` wrote, a file in it is not as it was
            written, its tokenizer or prompts are not those it was trained with, or the attention is not to be
            had.
        ValueError: If its lengths do not fit into the model's positions.
    """
    description = read_description(path)
    weights_sha256 = check_files(Path(path), description)
    tokenizer = _tokenizer(path, local_files_only=True)
    encoder = _encoder_of(path, description, tokenizer)
    model = _pretrained(path, dtype, attention, **OF_OURS)
    _refuse_untrusted(model, str(path))
    check_lengths(model, encoder)
    embedder = ReasoningEmbedder(
        model.to(device),
        tokenizer,
        encoder.prompts,
        encoder.lengths,
        token_budget or (CPU_TOKEN_BUDGET if device == "cpu" else GPU_TOKEN_BUDGET),
        weights_sha256,
        is_trained=description.get("is_trained", True),
        rendered=encoder.rendered,
    )
    return embedder.eval()


def _tokenizer(source: str | Path, **options: object) -> PreTrainedTokenizerBase:
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


def _pretrained(source: str | Path, dtype: str, attention: str | None, **options: object) -> PreTrainedModel:
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


def _encoder_of(path: str | Path, description: Mapping, tokenizer: PreTrainedTokenizerBase) -> PromptEncoder:
    """The prompts that a model folder keeps, under its tokenizer, compared with what it was trained with.

    Raises:
        ModelFolderError: If they differ, or `search_r3.json` does not hold them.
    """
    is_format_1 = description["format_version"] == 1
    give_pad_token(tokenizer, description.get("pad_token"))
    try:
        prompts, lengths = Prompts(**description["prompts"]), Lengths(**description["lengths"])
        if is_format_1:
            rendered = render_as_format_1(tokenizer, prompts)
        else:
            rendered = Rendered.from_dict(description["rendered"])
    except (TypeError, ValueError) as error:
        raise ModelFolderError(f"{Path(path) / DESCRIPTION_FILE}: {error}") from error
    encoder = PromptEncoder(tokenizer, prompts, lengths, rendered)
    expected = description.get("prompt_fingerprint")
    found = encoder.fingerprint_of_format_1 if is_format_1 else encoder.fingerprint
    if expected is not None and expected != found:
        raise ModelFolderError(
            f"{path}: the tokenizer or the prompts differ from those the model was trained with "
            f"({DESCRIPTION_FILE} says {expected[:12]}, found {found[:12]})"
        )
    if is_format_1 and "strftime_now" in str(tokenizer.chat_template):
        log.warning(
            "%s: the chat template writes the date and format 1 does not keep what it wrote: the folder will "
            "not open another day. Keep it now: python -m src.upgrade %s", path, path,
        )  # fmt: skip
    check_description(Path(path), description)
    return encoder


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
    prompts_file: str | Path | None = None,
    chat_template: str | None = None,
) -> ReasoningEmbedder:
    """The model that a stage trains.

    Args:
        path: a model folder of this project; architecture, tokenizer, prompts and lengths come from it.
        name: a Hugging Face hub name, a plain local folder or a GGUF file, used where `path` is None.
        create: makes an untrained model and its tokenizer from `texts`, used where neither is given.
        prompts: wording, as `Prompts`; unused with `path`.
        lengths: limits, as `Lengths`; unused with `path`.
        tuning: which weights are trained.
        dtype: of the frozen weights under LoRA, and of all weights under full tuning.
        token_budget: tokens in one forward.
        gradient_checkpointing: recompute activations in the backward pass.
        attention: attention implementation of transformers; "eager" is what every architecture has.
        texts: text of the training split.
        prompts_file: of the run, unused with `path`: the rendered prompts are read from it, and written to it
            where it does not exist, so that a resumed run and other ranks have the same ones.
        chat_template: of a new model, instead of the tokenizer's own; the model folder then has this one.

    Raises:
        ModelFolderError: If nothing says where the model comes from, the folder cannot be used, a file in it
            is not as it was written, or its tokenizer or prompts are not those it was trained with.
        ValueError: If the prompts cannot be rendered, or the lengths do not fit into the model's positions.
    """
    if path is not None and chat_template is not None:
        raise ModelFolderError(f"{path}: has rendered prompts already; leave model.chat_template out")
    description = None if path is None else read_description(path)
    read_from = None if path is None else check_files(Path(path), description)
    source = path if path is not None else name
    if path is None and str(name).endswith(".gguf"):
        from search_r3.models.gguf import read_gguf  # its package is imported where such a file is

        model, tokenizer = read_gguf(name, dtype_named(dtype), attention)
    elif source is not None:
        tokenizer = _tokenizer(source, local_files_only=path is not None)
        model = _pretrained(source, dtype, attention, **(OF_OURS if path is not None else {}))
    elif create is not None:
        model, tokenizer = create(texts)
    else:
        raise ModelFolderError(
            "give model.path=<model folder>, or model.name=<hub name, folder or GGUF file>"
        )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    _refuse_untrusted(model, source or "the model", tuning)
    add_embed_token(model, tokenizer)
    if description is not None:
        encoder = _encoder_of(path, description, tokenizer)
        is_trained = description.get("is_trained", True)
    else:
        encoder = _encoder_of_run(prompts_file, tokenizer, Prompts(**prompts), Lengths(**lengths))
        is_trained = name is not None
    check_lengths(model, encoder)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    token_id = tokenizer.convert_tokens_to_ids(EMBED_TOKEN)
    tuned = tuning.apply(model, token_id)
    embedder = ReasoningEmbedder(
        tuned,
        tokenizer,
        encoder.prompts,
        encoder.lengths,
        token_budget,
        read_from,
        is_trained,
        encoder.rendered,
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


def _encoder_of_run(
    file: str | Path | None, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, lengths: Lengths
) -> PromptEncoder:
    """Prompts that are rendered once in a run: whoever comes first writes them down, all others read them.

    Raises:
        ModelFolderError: If the file was written under another tokenizer, wording or limit.
    """
    give_pad_token(tokenizer)
    if file is None:
        return PromptEncoder(tokenizer, prompts, lengths)
    file = Path(file)
    if not file.is_file():
        encoder = PromptEncoder(tokenizer, prompts, lengths)
        content = {"prompt_fingerprint": encoder.fingerprint, "rendered": encoder.rendered.as_dict()}
        _write_first(file, json.dumps(content, indent=2) + "\n")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        encoder = PromptEncoder(tokenizer, prompts, lengths, Rendered.from_dict(content["rendered"]))
        expected = content["prompt_fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(f"{file}: does not hold the prompts of this run: {error!r}") from error
    if expected != encoder.fingerprint:
        raise ModelFolderError(
            f"{file}: the tokenizer or the prompts differ from those this run began with; start a new run"
        )
    return encoder


def _write_first(file: Path, text: str) -> None:
    """Writes a file whole, unless another process has done so."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
    except OSError:
        part.unlink(missing_ok=True)
        raise
    try:
        os.link(part, file)  # fails where the file is there
        part.unlink()
    except FileExistsError:
        part.unlink()
    except OSError:  # a file system without links
        part.replace(file)


def upgrade_folder(path: str | Path) -> bool:
    """Writes down what a folder of before does not hold; weights and tokenizer stay as they are.

    A folder of format 1 gets the prompts that opening it renders and a new README.md, and any folder the
    checksums of its files. Those say what the files hold now, and not that it is what was trained.

    Returns:
        Whether anything was to be done. Where nothing was, the checksums have been compared.

    Raises:
        ModelFolderError: If the folder cannot be used, a file differs from its checksum, or today's prompts
            are not those it was trained with.
    """
    folder = Path(path)
    description = read_description(folder)
    is_format_1 = description["format_version"] == 1
    is_checked = KEY in description and not is_format_1
    check_files(folder, description)
    tokenizer = _tokenizer(folder, local_files_only=True)
    encoder = _encoder_of(folder, description, tokenizer)
    n_parameters = _count_parameters(folder)
    if is_checked:
        return False
    if is_format_1:
        origin, is_trained = description.get("provenance", {}), description.get("is_trained", True)
        description |= _description(encoder, origin, is_trained)
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        width = config.get_text_config().hidden_size
        card = model_card(description, width, n_parameters, (folder / "adapter").is_dir())
        write_text(folder / "README.md", card)
    description[KEY] = checksums(folder, description)
    write_text(folder / DESCRIPTION_FILE, json.dumps(description, indent=2) + "\n")
    return True


def _count_parameters(folder: Path) -> int:
    """Numbers in the weights of a model folder.

    Raises:
        ModelFolderError: If a file is no whole safetensors file.
    """
    n_parameters = 0
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as weights:
                names = list(weights.keys())
                n_parameters += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
        except (SafetensorError, OSError) as error:
            raise ModelFolderError(
                f"{file}: no whole safetensors file ({error}); take it from a copy, or train the model again"
            ) from error
    return n_parameters


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


def _description(
    encoder: PromptEncoder, provenance: Mapping[str, object], is_trained: bool
) -> dict[str, object]:
    """Content of `search_r3.json`."""
    return {
        "format_version": FORMAT_VERSION,
        "embed_token": EMBED_TOKEN,
        "embed_token_id": encoder.embed_token_id,
        "pad_token": encoder.tokenizer.pad_token,
        "prompts": asdict(encoder.prompts),
        "rendered": encoder.rendered.as_dict(),
        "lengths": asdict(encoder.lengths),
        "prompt_fingerprint": encoder.fingerprint,
        "is_trained": is_trained,
        "provenance": dict(provenance),
    }


def _plain(value: object) -> object:
    """What JSON can say of a value: null for a number that is not finite, a text for what it has no word."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


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
    facts = _description(embedder.encoder, provenance, is_trained)
    description = _plain(facts)
    description[KEY] = checksums(partial, description, only_read=False)
    (partial / DESCRIPTION_FILE).write_text(
        json.dumps(description, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    n_parameters = sum(p.numel() for p in model.parameters())
    card = model_card(facts, embedder.width, n_parameters, has_adapter(embedder.model))
    (partial / "README.md").write_text(card, encoding="utf-8")
    put_in_place(partial, target)
    return target
