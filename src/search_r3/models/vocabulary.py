"""Rows of the vocabulary: the pad token, the embed token's row, and ids that stand for nothing."""

import logging
import re

import torch
from torch import nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from search_r3.models.templates import EMBED_TOKEN

log = logging.getLogger(__name__)


def give_pad_token(tokenizer: PreTrainedTokenizerBase, recorded: str | None = None) -> None:
    """Chooses a pad token for a tokenizer that has none, as those of Llama, Mistral and GPT-2; logs which.

    Padding is told by length everywhere, never by the id, so any token will do. Other tools do compare ids,
    so one that no text holds comes first: a special token named after padding, a reserved or unused one,
    the unknown token, the end of text, its beginning, the embed token. The model's config is left alone: a
    `pad_token_id` there would keep that row from being trained.

    Args:
        tokenizer: gets the token where it has none.
        recorded: the token that a model folder names; taken instead of choosing.
    """
    if tokenizer.pad_token_id is not None:
        return
    special = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    named = [text for word in ("pad", "reserved|unused") for text in special if re.search(word, text, re.I)]
    choices = [recorded, *named, tokenizer.unk_token, tokenizer.eos_token, tokenizer.bos_token, EMBED_TOKEN]
    tokenizer.pad_token = next(token for token in choices if token is not None)
    log.info("the tokenizer has no pad token; %s is used", tokenizer.pad_token)


def unused_ids(tokenizer: PreTrainedTokenizerBase, n_rows: int) -> list[int]:
    """Rows of a vocabulary matrix that are no token of the tokenizer: spare ones at the end, and holes."""
    return sorted(set(range(n_rows)) - set(tokenizer.get_vocab().values()))


def keep_out_of_texts(tokenizer: PreTrainedTokenizerBase, token: str = EMBED_TOKEN) -> None:
    """Marks the embed token of a tokenizer as special: else a text that holds its letters would have it.

    Another token in its place is marked only where it was added: a word of the vocabulary stays one.
    """
    added = tokenizer.added_tokens_decoder.get(tokenizer.convert_tokens_to_ids(token))
    if token == EMBED_TOKEN if added is None else not added.special:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [AddedToken(token, special=True, normalized=False)]},
            replace_extra_special_tokens=False,
        )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Of all special tokens: those that have a role, and those that are only marked as special."""
    marked = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
    return {*tokenizer.all_special_ids, *marked}


def train_every_row(model: PreTrainedModel) -> None:
    """Lets every row of the embeddings have a gradient.

    torch keeps it from the row of the configuration's `pad_token_id`, which may be that of the embed token or
    of the end of a turn. Padding is masked here, so that it needs no row of its own.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None


def add_embed_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds the embed token and gives every token a row: a spare one where there is one, else a new one.

    The matrix never shrinks. A row that is given starts at the mean of the used rows, and so does its bias
    in a head that has one, so that its logit starts like an ordinary token's.

    Raises:
        ValueError: If the tokenizer, which counts words and not ids, gives the token the id of another.
    """
    is_new = tokenizer.convert_tokens_to_ids(EMBED_TOKEN) in (None, tokenizer.unk_token_id)
    if is_new:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [EMBED_TOKEN]}, replace_extra_special_tokens=False
        )
    token_id = tokenizer.convert_tokens_to_ids(EMBED_TOKEN)
    named = [token for token, place in tokenizer.get_vocab().items() if place == token_id]
    if others := sorted(set(named) - {EMBED_TOKEN}):
        raise ValueError(
            f"the vocabulary has ids that no token has, so that {EMBED_TOKEN} would get id {token_id}, which "
            f"is that of {others[0]!r}; add tokens to the tokenizer until all lower ids are taken"
        )
    n_before = model.get_input_embeddings().weight.shape[0]
    n_rows = max(n_before, 1 + max(tokenizer.get_vocab().values()))
    if n_rows > n_before:
        model.resize_token_embeddings(n_rows, mean_resizing=False)
    given = [*range(n_before, n_rows)] + ([token_id] if is_new and token_id < n_before else [])
    head = model.get_output_embeddings()
    rows = {model.get_input_embeddings().weight, head.weight}  # one where the head is tied
    biases = {head.bias} if getattr(head, "bias", None) is not None else set()
    used = slice(0, min(token_id, n_before))
    with torch.no_grad():
        for matrix in rows | biases:
            if given:
                matrix[given] = matrix[used].float().mean(0).to(matrix.dtype)
