"""Which file of a Hugging Face folder cannot be read, where a library says what is wrong and not where."""

import contextlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from search_r3.models.checksums import ModelFolderError
from search_r3.records import RecordError, clipped, read_json, read_text

REMEDY = "take the folder from a copy, or fetch or train the model again"


@contextlib.contextmanager
def named_damage(source: str | Path) -> Iterator[None]:
    """Within, a folder is read by libraries, whose errors then name the damaged file.

    Args:
        source: a folder, or a name on the hub, of which errors are left as they are.

    Raises:
        ModelFolderError: From whatever was raised, if a file of the folder cannot be read.
    """
    try:
        yield
    except ModelFolderError:
        raise
    except Exception as error:
        folder = Path(source)
        if folder.is_dir() and (damage := _damage(folder)) is not None:
            raise ModelFolderError(damage) from error
        raise


def _damage(folder: Path) -> str | None:
    """What is wrong with the first damaged file of a folder, in a line; None where all can be read."""
    for file in sorted(folder.iterdir()):
        try:
            if file.suffix == ".json":
                _check_beginning(file)
                content = read_json(file, REMEDY, is_list=file.name == "modules.json")
                if file.name.endswith(".index.json"):
                    _check_index(file, content)
            elif file.suffix == ".jinja":
                read_text(file, REMEDY)
            elif file.suffix == ".safetensors":
                _open_weights(file)
            elif file.match("pytorch_model*.bin"):
                _open_pickle(file)
        except RecordError as error:
            return str(error)
    return None


def _check_beginning(file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(len(BOM_UTF8)) == BOM_UTF8:
            raise RecordError(file, "begins with a byte order mark, with which it is not read", REMEDY)


def _open_weights(file: Path) -> None:
    try:
        with safe_open(file, "pt"):
            pass
    except Exception as error:  # the library's own kind, and those of the system
        raise RecordError(file, f"cannot be read ({clipped(error)})", REMEDY) from None


def _open_pickle(file: Path) -> None:
    try:
        torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # pickle's, zip's and torch's own kinds
        reason = clipped(str(error).split(". ")[0])
        raise RecordError(file, f"cannot be read as weights ({reason})", REMEDY) from None


def _check_index(file: Path, content: dict) -> None:
    places = content.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise RecordError(file, "must have weight_map, an object from weights to files", REMEDY)
    if absent := [place for place in sorted(set(places.values())) if not (file.parent / place).is_file()]:
        raise RecordError(file, f"names {absent[0]}, which the folder lacks", REMEDY)
