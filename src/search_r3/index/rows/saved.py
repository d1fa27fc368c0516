"""What backends and rules keep beside a checkpoint: a folder of arrays and facts, replaced whole."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from search_r3.index.rows.cache import StoreError
from search_r3.records import clipped, read_json


@contextlib.contextmanager
def saved_whole(folder: str | Path, facts: Mapping[str, object]) -> Iterator[Path]:
    """Gives an empty folder to write to; on leaving, facts are added and it takes the place of `folder`."""
    folder = Path(folder)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    (part / "facts.json").write_text(json.dumps(dict(facts)), encoding="utf-8")
    _replace_folder(part, folder)


def save_whole(folder: str | Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, object]) -> None:
    """Writes arrays and facts as one folder, which is replaced whole."""
    with saved_whole(folder, facts) as part:
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array, allow_pickle=False)


def _replace_folder(part: Path, folder: Path) -> None:
    """Moves a finished folder to its place; an earlier one is dropped.

    A folder cannot be replaced in one move. A kill between the two leaves none under the name, and
    `load_saved` puts the earlier one back, which was set aside.
    """
    aside = _set_aside(folder)
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
    os.replace(part, folder)
    shutil.rmtree(aside, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def load_saved(
    folder: str | Path, facts: Mapping[str, object], before: Mapping[str, object] | None = None
) -> dict[str, np.ndarray]:
    """Arrays of a saved folder by name.

    Args:
        folder: that `save_whole` or `saved_whole` wrote.
        facts: that it must have been saved with.
        before: values of facts that mean the same, as they were called before.

    Raises:
        StoreError: If the folder is missing or unreadable, or was saved with other facts.
    """
    folder = Path(folder)
    if not folder.exists() and _set_aside(folder).exists():  # see _replace_folder
        os.replace(_set_aside(folder), folder)
    try:
        found = read_json(folder / "facts.json")
        arrays = {file.stem: np.load(file, allow_pickle=False) for file in folder.glob("*.npy")}
    except Exception as error:  # numpy reads a header as Python, whose errors are of many kinds
        said = clipped(error) or type(error).__name__
        raise StoreError(f"{folder}: no saved index can be read there ({said})") from error
    found |= {name: facts[name] for name, value in (before or {}).items() if found.get(name) == value}
    differing = sorted(name for name in facts if found.get(name) != facts[name])
    if differing:
        said = ", ".join(f"{name} {found.get(name)!r} instead of {facts[name]!r}" for name in differing)
        raise StoreError(f"{folder}: the index was saved with {said}; keep the setting, or build it anew")
    return arrays
