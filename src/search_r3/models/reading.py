"""Which file of a Hugging Face folder cannot be read, where a library says what is wrong and not where."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

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
                read_json(file, REMEDY, is_list=file.name == "modules.json")
            elif file.suffix == ".jinja":
                read_text(file, REMEDY)
            elif file.suffix == ".safetensors":
                _open_weights(file)
        except RecordError as error:
            return str(error)
    return None


def _open_weights(file: Path) -> None:
    try:
        with safe_open(file, "pt"):
            pass
    except Exception as error:  # the library's own kind, and those of the system
        raise RecordError(file, f"cannot be read ({clipped(error)})", REMEDY) from None
