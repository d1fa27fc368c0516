"""`search_r3.json` of a model folder: what it says, and how it is read."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from search_r3.folders import left_by_a_run
from search_r3.models.checksums import DESCRIPTION_FILE, ModelFolderError, check_description
from search_r3.models.prompts import EMBED_TOKEN, Lengths, PromptEncoder, Prompts, Rendered
from search_r3.models.templates import render_as_format_1
from search_r3.models.vocabulary import give_pad_token
from search_r3.records import RecordError, read_json, shown
from search_r3.shipped import as_called

FORMAT_VERSION = 2
READS_VERSIONS = (1, 2)
log = logging.getLogger(__name__)


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
        instead = left_by_a_run(folder) or (
            "; for a plain Hugging Face folder use model.name=<folder> with a model= choice"
        )
        raise ModelFolderError(
            f"{folder}: has no {DESCRIPTION_FILE}, so its prompts and lengths are unknown{instead}"
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


def encoder_of(path: str | Path, description: Mapping, tokenizer: PreTrainedTokenizerBase) -> PromptEncoder:
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
            "not open another day. Keep it now: %s", path, as_called("python -m src.upgrade", path),
        )  # fmt: skip
    check_description(Path(path), description)
    return encoder


def description_of(
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


def plain(value: object) -> object:
    """What JSON can say of a value: null for a number that is not finite, a text for what it has no word."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
