"""A plain Hugging Face folder, as others have published it, for inference: the prompts are given with it.

The authors' checkpoint (`ytgui/Search-R3.0-Small`) is one: a causal language model whose tokenizer has the
embed token, and two system prompts on its card. Nothing is added to such a model: the token whose state is
read must be one that its tokenizer has.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from search_r3.models.checksums import ModelFolderError, plain_hashes
from search_r3.models.embedder import ReadState, ReasoningEmbedder
from search_r3.models.folder.loading import budget_for
from search_r3.models.folder.weights import OF_OURS, read_model, read_tokenizer, refuse_untrusted
from search_r3.models.positions import check_lengths
from search_r3.models.prompts import EMBED_TOKEN, Lengths, PromptEncoder, Prompts
from search_r3.models.vocabulary import give_pad_token, keep_out_of_texts, special_ids
from search_r3.records import RecordError, read_json, shown_names

PROMPTS_FILE = "prompts.json"
"""In the folder: an object with `direct_system` and `reasoning_system`, and, where they differ from these,
`document_system` (that of a query), `lead_in` and `closing`."""


def plain_prompts(
    folder: str | Path, given: Mapping[str, str | None], file: str | Path | None = None
) -> Prompts:
    """Wording for a plain folder: what is given by key, else what the file says.

    Args:
        folder: of the model.
        given: by name of `Prompts`; None leaves it to the file.
        file: of prompts; None for the one in the folder, which need not be there.

    Raises:
        ModelFolderError: If the file is missing, is no such object, or a prompt is nowhere.
    """
    path = Path(folder) / PROMPTS_FILE if file is None else Path(file)
    found: dict[str, object] = {}
    if path.is_file():
        try:
            found = dict(read_json(path))
        except RecordError as error:
            raise ModelFolderError(f"{path}: {error.problem}; an object of texts is needed") from error
    elif file is not None:
        raise ModelFolderError(f"model.prompts_file={path}: no such file")
    known = [each.name for each in fields(Prompts)]
    if strange := sorted(found.keys() - set(known)):
        raise ModelFolderError(f"{path}: unknown key {strange[0]!r}; it may have {shown_names(known)}")
    if wrong := sorted(name for name, text in found.items() if not isinstance(text, str)):
        raise ModelFolderError(f"{path}: {wrong[0]} must be a text")
    wording = found | {name: text for name, text in given.items() if text is not None}
    for name in ("direct_system", "reasoning_system"):
        if name not in wording:
            raise ModelFolderError(
                f"{folder}: nothing says its {name}: give model.prompts.{name}=, or write it into {path}"
            )
    return Prompts(**{"document_system": wording["direct_system"], **wording})


def load_plain(
    folder: str | Path,
    prompts: Prompts,
    lengths: Lengths,
    embed_token: str = EMBED_TOKEN,
    device: str = "cpu",
    dtype: str = "float32",
    token_budget: int | None = None,
    attention: str | None = None,
    read_state: ReadState = "at",
) -> ReasoningEmbedder:
    """Reads a plain Hugging Face folder for inference.

    Args:
        folder: with config.json, tokenizer.json and weights in safetensors.
        prompts: the wording.
        lengths: the limits.
        embed_token: whose state is the embedding.
        device: where the weights go.
        dtype: of the weights.
        token_budget: tokens of one forward, padding included; None takes what suits the device.
        attention: attention implementation of transformers; None takes the best that the architecture has.
        read_state: "at" the embed token, or "before" it.

    Raises:
        ModelFolderError: If the folder cannot be used, its tokenizer does not have the embed token, or the
            attention is not to be had.
        ValueError: If the prompts cannot be rendered, or the lengths do not fit into the model's positions.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelFolderError(f"model.name={folder}: no such folder; give a local copy of the checkpoint")
    budget = budget_for(device, token_budget)
    hashes = plain_hashes(folder)
    tokenizer = read_tokenizer(folder, local_files_only=True)
    model = read_model(folder, dtype, attention, **OF_OURS)
    _check_embed_token(folder, model, tokenizer, embed_token)
    keep_out_of_texts(tokenizer, embed_token)
    give_pad_token(tokenizer)
    if tokenizer.pad_token_id >= _n_rows(model):
        tokenizer.pad_token = embed_token  # which has a row; padding is told by length
    refuse_untrusted(model, str(folder))
    embedder = ReasoningEmbedder(
        model.to(device),
        tokenizer,
        prompts,
        lengths,
        budget,
        hashes.weights,
        embed_token=embed_token,
        config_sha256=hashes.files["config.json"],
        read_state=read_state,
    )
    check_lengths(model, embedder.encoder)
    _check_rows(folder, model, embedder.encoder)
    return embedder.eval()


def _check_embed_token(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, token: str
) -> None:
    """Refuses a token that the tokenizer does not have, or reads in pieces, or that has no row.

    Raises:
        ModelFolderError: With the key that names another one.
    """
    place = tokenizer.convert_tokens_to_ids(token)
    if place is None or (place == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise ModelFolderError(
            f"{folder}: its tokenizer has no {token}, whose state would be the embedding; name a token that "
            "it has, model.embed_token=<token>, or train the model first: python -m src.train stage=sft "
            f"model.name={folder}"
        )
    ids = tokenizer(token, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    if ids != [place]:
        raise ModelFolderError(
            f"{folder}: its tokenizer reads {token} as {len(ids)} tokens {json.dumps(ids)}, not as one of "
            "its own; name another one: model.embed_token="
        )
    if place >= _n_rows(model):
        raise ModelFolderError(f"{folder}: {token} is id {place}, and the weights have {_n_rows(model)} rows")


def _n_rows(model: PreTrainedModel) -> int:
    return model.get_input_embeddings().weight.shape[0]


def _check_rows(folder: Path, model: PreTrainedModel, encoder: PromptEncoder) -> None:
    """Refuses a prompt, or words of texts, without a row; further special tokens may lack theirs.

    Raises:
        ModelFolderError: With the first of them.
    """
    tokenizer = encoder.tokenizer
    in_prompts = {token for each in encoder.templates for token in (*each.prefix, *each.suffix)}
    in_texts = set(tokenizer.get_vocab().values()) - special_ids(tokenizer)
    if lacking := sorted(token for token in in_prompts | in_texts if token >= _n_rows(model)):
        raise ModelFolderError(
            f"{folder}: {tokenizer.convert_ids_to_tokens(lacking[0])!r} of its tokenizer is id {lacking[0]}, "
            f"and the weights have {_n_rows(model)} rows; take the tokenizer that belongs to them"
        )
