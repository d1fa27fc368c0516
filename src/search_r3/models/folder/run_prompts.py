"""Prompts that are rendered once in a run."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from search_r3.files import write_first
from search_r3.models.checksums import ModelFolderError
from search_r3.models.prompts import Lengths, PromptEncoder, Prompts, Rendered
from search_r3.models.vocabulary import give_pad_token


def encoder_of_run(
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
        write_first(file, json.dumps(content, indent=2) + "\n")
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
