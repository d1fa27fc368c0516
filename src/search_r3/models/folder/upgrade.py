"""A folder of before gets what it does not hold."""

import json
import math
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from search_r3.files import write_text
from search_r3.models.card import model_card
from search_r3.models.checksums import DESCRIPTION_FILE, KEY, ModelFolderError, check_files, checksums
from search_r3.models.folder.description import description_of, encoder_of, read_description
from search_r3.models.folder.modules import MODULES_FILE, write_modules
from search_r3.models.folder.weights import read_tokenizer
from search_r3.models.logits import state_width


def upgrade_folder(path: str | Path) -> bool:
    """Writes down what a folder of before does not hold; weights and tokenizer stay as they are.

    A folder of format 1 gets the prompts that opening it renders and a new README.md, and any folder the
    checksums of its files and what opens it in sentence-transformers. Checksums say what the files hold now,
    and not that it is what was trained.

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
    tokenizer = read_tokenizer(folder, local_files_only=True)
    encoder = encoder_of(folder, description, tokenizer)
    n_parameters = _count_parameters(folder)
    has_modules = (folder / MODULES_FILE).is_file()
    if is_checked and has_modules:
        return False
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    width = state_width(config)
    if is_format_1:
        origin, is_trained = description.get("provenance", {}), description.get("is_trained", True)
        description |= description_of(encoder, origin, is_trained)
        card = model_card(description, width, n_parameters, (folder / "adapter").is_dir())
        write_text(folder / "README.md", card)
    if not has_modules:
        write_modules(folder, encoder, width, str(config.dtype or "float32").removeprefix("torch."))
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
