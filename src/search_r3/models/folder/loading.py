"""A model folder for inference."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch

from search_r3.models.checksums import check_files
from search_r3.models.embedder import ReadState, ReasoningEmbedder
from search_r3.models.folder.description import encoder_of, read_description
from search_r3.models.folder.weights import OF_OURS, read_model, read_tokenizer, refuse_untrusted
from search_r3.models.positions import check_lengths
from search_r3.models.prompts import Lengths, PromptEncoder, given_lengths

CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 2048, 16384
"""Tokens of one forward in inference: what a CPU's cache holds, and what keeps a GPU busy."""


def budget_for(device: str, given: int | None) -> int:
    """The tokens of one forward: those given, or what suits the device.

    Raises:
        ValueError: If the tokens are none, or torch has no such device here.
    """
    if given is not None and given < 1:
        raise ValueError(f"token_budget must be at least 1, got {given}")
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device={device!r} is no device of torch ({reason})") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: torch finds no CUDA device here; device='cpu' runs without one")
    if given is not None:
        return given
    return CPU_TOKEN_BUDGET if kind == "cpu" else GPU_TOKEN_BUDGET


def load_embedder(
    path: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    token_budget: int | None = None,
    attention: str | None = None,
    read_state: ReadState = "at",
    lengths: Mapping[str, int | str | None] | None = None,
) -> ReasoningEmbedder:
    """Reads a model folder for inference.

    Args:
        path: the folder.
        device: where the weights go.
        dtype: of the weights.
        token_budget: tokens of one forward, padding included; None takes what suits the device.
        attention: attention implementation of transformers; None takes the best that the architecture has.
        read_state: "at" the embed token, or "before" it.
        lengths: limits in tokens instead of those that the model was trained with, as `Lengths` names them;
            None for one leaves it.

    Raises:
        ModelFolderError: If the folder is not one that `save_embedder` wrote, a file in it is not as it was
            written, its tokenizer or prompts are not those it was trained with, or the attention is not to be
            had.
        ValueError: If there is no such length, one is below 1, or they do not fit into the model's positions;
            or the token budget or the device is none.
    """
    names = [each.name for each in fields(Lengths)]
    if unknown := [name for name in lengths or {} if name not in names]:
        raise ValueError(f"lengths: there is no {unknown[0]!r}, only {', '.join(names)}")
    budget = budget_for(device, token_budget)
    description = read_description(path)
    weights_sha256 = check_files(Path(path), description)
    tokenizer = read_tokenizer(path, local_files_only=True)
    encoder = encoder_of(path, description, tokenizer)
    if given := given_lengths(lengths):
        limits = replace(encoder.lengths, **given)
        encoder = PromptEncoder(tokenizer, encoder.prompts, limits, encoder.rendered)
    model = read_model(path, dtype, attention, **OF_OURS)
    refuse_untrusted(model, str(path))
    check_lengths(model, encoder)
    embedder = ReasoningEmbedder(
        model.to(device),
        tokenizer,
        encoder.prompts,
        encoder.lengths,
        budget,
        weights_sha256,
        is_trained=description.get("is_trained", True),
        rendered=encoder.rendered,
        read_state=read_state,
    )
    return embedder.eval()
