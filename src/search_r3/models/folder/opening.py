"""The model that a stage trains: from a folder, a name, a GGUF file, or made anew."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from search_r3.models.checksums import ModelFolderError, check_files
from search_r3.models.dropout import leave_out_dropout, prepare_training
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder.description import encoder_of, read_description
from search_r3.models.folder.run_prompts import encoder_of_run
from search_r3.models.folder.weights import OF_OURS, dtype_named, read_model, read_tokenizer, refuse_untrusted
from search_r3.models.measured import MEASURED
from search_r3.models.positions import check_lengths
from search_r3.models.prompts import EMBED_TOKEN, Lengths, Prompts
from search_r3.models.tuning import FullTuning, LoraTuning
from search_r3.models.vocabulary import add_embed_token, keep_out_of_texts, train_every_row

log = logging.getLogger(__name__)


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
        attention: attention implementation of transformers; "eager" is what every architecture has. The model
            is opened with it where `measured` asks which is faster.
        texts: text of the training split.
        prompts_file: of the run, unused with `path`: the rendered prompts are read from it, and written to it
            where it does not exist, so that a resumed run and other ranks have the same ones.
        chat_template: of a new model, instead of the tokenizer's own; the model folder then has this one, and
            is opened with no other.

    Raises:
        ModelFolderError: If nothing says where the model comes from, the folder cannot be used, a file in it
            is not as it was written, or its tokenizer or prompts are not those it was trained with.
        ValueError: If the prompts cannot be rendered, or the lengths do not fit into the model's positions.
    """
    description = None if path is None else read_description(path)
    read_from = None if path is None else check_files(Path(path), description)
    if path is None and name is None and create is not None:
        model, tokenizer = create(texts)
    else:
        model, tokenizer = _read(path, name, dtype, "eager" if attention == MEASURED else attention)
    if chat_template is not None:
        _set_chat_template(tokenizer, chat_template, path)
    refuse_untrusted(model, path or name or "the model", tuning)
    leave_out_dropout(model)
    train_every_row(model)
    add_embed_token(model, tokenizer)
    if path is None:  # a folder of ours stays as it was trained
        keep_out_of_texts(tokenizer)
    if description is not None:
        encoder = encoder_of(path, description, tokenizer)
        is_trained = description.get("is_trained", True)
    else:
        encoder = encoder_of_run(prompts_file, tokenizer, Prompts(**prompts), Lengths(**lengths))
        is_trained = name is not None
    check_lengths(model, encoder)
    if gradient_checkpointing:
        _recompute_activations(model)
    tuned = tuning.apply(model, tokenizer.convert_tokens_to_ids(EMBED_TOKEN))
    prepare_training(tuned)
    _log_size(tuned)
    return ReasoningEmbedder(
        tuned, tokenizer, encoder.prompts, encoder.lengths, token_budget, read_from, is_trained,
        encoder.rendered,
    )  # fmt: skip


def _set_chat_template(tokenizer: PreTrainedTokenizerBase, template: str, path: str | None) -> None:
    if path is not None and template != tokenizer.chat_template:
        raise ModelFolderError(
            f"{path}: was trained with another chat template; leave model.chat_template out"
        )
    tokenizer.chat_template = template


def _log_size(model: torch.nn.Module) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    log.info("model: %.2f M parameters, %.2f M of them trained", total / 1e6, trained / 1e6)


def _recompute_activations(model: PreTrainedModel) -> None:
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelFolderError(
            f"model.gradient_checkpointing=true cannot be had: {str(error).rstrip('.')}; set it to false"
        ) from error
    model.enable_input_require_grads()


def _read(
    path: str | None, name: str | None, dtype: str, attention: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a model folder, or else of a hub name, a plain folder or a GGUF file."""
    if path is not None:
        tokenizer = read_tokenizer(path, local_files_only=True)
        return read_model(path, dtype, attention, **OF_OURS), tokenizer
    if name is None:
        raise ModelFolderError(
            "give model.path=<model folder>, or model.name=<hub name, folder or GGUF file>"
        )
    if str(name).endswith(".gguf"):
        from search_r3.models.gguf import read_gguf  # its package is imported where such a file is

        return read_gguf(name, dtype_named(dtype), attention)
    tokenizer = read_tokenizer(name, local_files_only=False)
    return read_model(name, dtype, attention), tokenizer
