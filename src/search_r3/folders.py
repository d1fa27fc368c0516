"""A model folder is replaced whole, and nothing is removed that was not made here."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from search_r3.errors import UsageError
from search_r3.files import sync

MARK = ".search_r3_part"
"""A file in a folder that is being written: by it a later run knows that it may remove what a kill left."""


def left_by_a_run(path: str | Path) -> str:
    """What to give in place of a run's folder, as the end of a message; empty where it is none."""
    model = Path(path) / "model"
    return f"; give {model}, which lies in it" if (model / "search_r3.json").is_file() else ""


def can_be_on_hub(name: str) -> bool:
    """Whether a name may be one of the hub, which has one slash at most and begins with no dot.

    >>> [can_be_on_hub(name) for name in ("org/name", "./name", "/data/name", "a/b/c")]
    [True, False, False, False]
    """
    return not Path(name).is_absolute() and name.count("/") <= 1 and not name.startswith(".")


def why_kept(folder: Path) -> str | None:
    """Why the model folder at this place may not be replaced; None where it may, or there is none."""
    if folder.is_symlink():
        return (
            f"{folder} is a symbolic link to {folder.resolve()}, and a model folder is replaced whole, so "
            "that the link would be lost or another folder replaced; remove the link, and give output_dir= "
            "on the disk that the model is to be on"
        )
    if not folder.exists():
        return None
    if not folder.is_dir():
        return f"{folder} is a file, and the model folder would take its place; move it away"
    if not any(folder.iterdir()):
        return None
    description = _description(folder)
    if description is None:
        return (
            f"{folder} is there and is no model folder that a run wrote (it has no search_r3.json that says "
            "so), so it is not replaced; move it away"
        )
    strange = _strange(folder, description)
    if strange:
        return f"{folder / strange[0]} is no file of the model that is to be replaced; move it away"
    return None


def _description(folder: Path) -> dict | None:
    try:
        content = json.loads((folder / "search_r3.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "format_version" in content else None


def _strange(folder: Path, description: Mapping) -> list[str]:
    """Files that were not written with the model; without checksums nobody knows."""
    known = description.get("checksums")
    if not isinstance(known, Mapping):
        return []
    ours = {*known, "README.md", "adapter/README.md", MARK}
    paths = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    return [name for path in paths if (name := path.relative_to(folder).as_posix()) not in ours]


def part_of(folder: Path) -> Path:
    """Where a folder is written before it takes its place, or that is removed at the end."""
    return folder.with_name(f"{folder.name}.partial")


def refuse_to_replace(folder: Path) -> None:
    """Refuses a place for a model folder at which something lies that no run wrote; costs nothing.

    Raises:
        UsageError: With what is there and what to do.
    """
    reason = why_kept(folder)
    if reason is not None:
        raise UsageError(reason)
    _refuse_to_remove(part_of(folder))


def _refuse_to_remove(part: Path) -> None:
    """Refuses a place for a part where something lies that is not what a killed run left.

    Raises:
        UsageError: With what is there.
    """
    is_ours = not part.exists() or (part.is_dir() and ((part / MARK).is_file() or not any(part.iterdir())))
    if part.is_symlink() or not is_ours:
        raise UsageError(
            f"{part} is in the way and was not left by a run of this version (it holds no {MARK}), so it is "
            "not removed; move it away"
        )


def empty_part(folder: Path) -> Path:
    """Makes the marked folder `part_of(folder)`; what a killed run left there is removed.

    Raises:
        UsageError: If something else is there.
    """
    part = part_of(folder)
    _refuse_to_remove(part)
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    (part / MARK).touch()
    return part


def same_rights(folder: Path, like: Path) -> None:
    """Gives the weights in a folder the rights of another file: safetensors lets their owner alone read them.

    Args:
        folder: with those below it.
        like: a file that was made as any other is, so that the umask has decided.
    """
    for file in folder.rglob("*.safetensors"):
        shutil.copymode(like, file)


def give_name(part: Path, folder: Path) -> None:
    """Gives a written part the name of its folder, where nothing but an empty one may be."""
    part.rename(folder)
    (folder / MARK).unlink()


def put_in_place(part: Path, folder: Path) -> None:
    """Moves a written folder to its place, once all of it is on the disk; the earlier one there is removed.

    Raises:
        UsageError: If something else has come to be there meanwhile.
    """
    refuse_to_replace(folder)
    same_rights(part, part / MARK)
    for path in part.rglob("*"):
        sync(path)
    sync(part)
    if folder.exists():
        shutil.rmtree(folder)
    give_name(part, folder)
    sync(folder.parent)


def make_folder(folder: Path, key: str = "output_dir") -> Path:
    """Makes a folder, with its parents, that files can be written to.

    Args:
        folder: may exist.
        key: that the user gave it by.

    Raises:
        UsageError: With the reason, where it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # as long as the paths that are written below it
        with tempfile.NamedTemporaryFile(dir=folder.absolute(), prefix="probe_".ljust(96, "_")):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{key}={folder}: cannot be written to ({reason}); name a folder that can be made"
        ) from None
    return folder


@contextlib.contextmanager
def folder_for(folder: Path, key: str = "output_dir") -> Iterator[Path]:
    """As `make_folder`; where what is done within fails, the folders that were made go, if they are empty.

    Raises:
        UsageError: As `make_folder`, before anything is done.
    """
    made = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]  # innermost first
    make_folder(folder, key)
    try:
        yield folder
    except BaseException:
        for place in made:
            with contextlib.suppress(OSError):  # something is in it by now
                place.rmdir()
        raise
