"""The checkpoints of a run on disk: whole, checked, and one more than is needed.

    <folder>/last.ckpt       what a run goes on from
    <folder>/previous.ckpt   the one before it, for the day on which the last one is damaged
    <folder>/best.ckpt       that of the best validation; one file with the last where that was the best
    <folder>/SHA256SUMS      a line per checkpoint, as `sha256sum` writes them

A checkpoint is a file, or the folder that a sharded strategy writes. A file goes from the tensors to the disk
beside its target, without a copy in memory or in a temporary folder, and is hashed on the way. Its sum is
known before it takes its place, so a kill at any moment leaves only checkpoints that are listed.
"""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from search_r3.errors import UsageError, first_line
from search_r3.files import file_sha256, removal, remove_parts, shell_command, sync, write_text

LAST, PREVIOUS, BEST, SUMS = "last.ckpt", "previous.ckpt", "best.ckpt", "SHA256SUMS"
BEFORE_SUMS = "last.old"
"""Where runs of before set a folder aside while it was replaced."""


log = logging.getLogger(__name__)


class CheckpointError(UsageError):
    """A checkpoint that cannot be written or used; the message names it and says what to do."""


class HashedCheckpointIO(CheckpointIO):
    """Writes and reads the single file of a strategy that does not shard."""

    def __init__(self) -> None:
        self.written: tuple[Path, str] | None = None  # the last file, and its SHA-256

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Writes a file that is on disk when this returns.

        Raises:
            CheckpointError: If the disk is full or fails.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        file: _HashedFile | None = None
        try:
            with path.open("wb") as stream:
                file = _HashedFile(stream)
                torch.save(checkpoint, file)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException as error:
            path.unlink(missing_ok=True)
            raised = error if file is None or file.error is None else file.error
            if isinstance(raised, (OSError, RuntimeError)):
                raise _not_written(path, raised) from error
            raise raised from None  # such as an interruption
        self.written = path, file.sha256.hexdigest()

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a file whose sum is right.

        Raises:
            CheckpointError: If it is damaged.
        """
        check(Path(path))
        return read(Path(path), map_location=map_location or (lambda storage, _: storage))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class _HashedFile:
    """A file as `torch.save` writes one, front to back."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.sha256 = stream, hashlib.sha256()
        self.error: BaseException | None = None  # torch makes one of its own of whatever `write` raises

    def write(self, content: bytes) -> int:
        try:
            self._stream.write(content)
            self.sha256.update(content)
        except BaseException as error:
            self.error = error
            raise
        return len(content)

    def flush(self) -> None:
        self._stream.flush()


def _not_written(path: Path, error: Exception) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return CheckpointError(
        f"{path.parent}: the checkpoint could not be written ({reason}); the one before it is whole. Make "
        "room, then go on with resume="
    )


def read(path: Path, **options: Any) -> dict[str, Any]:
    """The content of a checkpoint file: tensors and plain values, no code.

    Raises:
        CheckpointError: If it is none.
    """
    try:
        return torch.load(path, weights_only=True, **options)
    except Exception as error:  # what a damaged archive raises is of many kinds
        reason = first_line(error)[:200]
        raise CheckpointError(f"{path}: is not a checkpoint ({reason}). {_way_out(path)}") from error


def step_of(path: Path) -> int:
    """The optimizer step that a checkpoint is of.

    Raises:
        CheckpointError: If it cannot be read.
    """
    file = path / "meta.pt" if path.is_dir() else path  # where a sharded strategy keeps all but the weights
    found = read(file, map_location="cpu", mmap=True)
    if not isinstance(found, dict) or not isinstance(found.get("global_step"), int):
        raise CheckpointError(f"{path}: holds no step, so it is no checkpoint of a run. {_way_out(path)}")
    return found["global_step"]


def latest(folder: Path) -> Path | None:
    """What a run in a folder goes on from; None where nothing was saved.

    A folder of a sharded strategy cannot be replaced in one move. Where a kill came between the two that it
    takes, it is the one before.
    """
    names = (LAST, PREVIOUS, BEFORE_SUMS)
    return next((folder / name for name in names if (folder / name).exists()), None)


def check(path: Path) -> None:
    """Compares a checkpoint with its sum; one of a run that kept none passes.

    Raises:
        CheckpointError: If it is damaged, or is not among those that the run wrote.
    """
    sums = _sums(path.parent)
    if not sums:
        log.warning("%s: has no %s beside it, so damage would not be noticed", path, SUMS)
    elif sha256_of(path) not in {digest for digest, _ in sums}:
        raise CheckpointError(f"{path}: is damaged, its SHA-256 is not the one in {SUMS}. {_way_out(path)}")


def _way_out(path: Path) -> str:
    """What to do without a checkpoint; another one that is whole is named with its step."""
    folder = path.parent
    digests = {digest for digest, _ in _sums(folder)}
    for name in (PREVIOUS, LAST):
        other = folder / name
        if other != path and other.exists() and sha256_of(other) in digests:
            copy = shell_command("cp", "-r", other, path)
            return f"{name}, of step {step_of(other)}, is whole; to go on from it: {copy}"
    return "No other checkpoint is whole; start the run anew in another folder"


def remove_partials(folder: Path) -> None:
    """Removes what a run that was killed while it saved has left; nobody else works in the folder."""
    for name in ("last.partial", "previous.partial", "best.partial"):
        _remove(folder / name)
    remove_parts(folder)


def adopt(partial: Path, sha256: str | None, is_best: bool) -> None:
    """Makes a checkpoint that was written as `partial` the last one of its folder.

    Args:
        partial: in the folder of checkpoints.
        sha256: of it, where known.
        is_best: whether it is of the best validation so far.
    """
    folder = partial.parent
    sums = _sums(folder)
    new = sha256 or sha256_of(partial)
    before = LAST if (folder / LAST).exists() else PREVIOUS
    after = [(new, LAST)] + [(digest, PREVIOUS) for digest in _sum_of(folder / before, sums)]
    after += [(digest, BEST) for digest in ([new] if is_best else _sum_of(folder / BEST, sums))]
    _write_sums(folder, [*sums, *after])
    _move_to_previous(folder)
    os.replace(partial, folder / LAST)
    _remove(folder / BEFORE_SUMS)
    if is_best:
        keep_as_best(folder / LAST)
    _write_sums(folder, after)
    sync(folder)


def keep_as_best(checkpoint: Path) -> None:
    """Makes a checkpoint the best one too: one file under two names, where the disk can."""
    folder = checkpoint.parent
    part = folder / "best.partial"
    _remove(part)
    _link(checkpoint, part)
    if (folder / BEST).is_dir():
        _remove(folder / BEST)
    os.replace(part, folder / BEST)
    _remove(part)  # nothing was moved where both names are of one file already


def _move_to_previous(folder: Path) -> None:
    """Names the last checkpoint the one before it; a file has both names until another takes its place."""
    last, previous = folder / LAST, folder / PREVIOUS
    if last.is_dir():
        _remove(previous)
        os.replace(last, previous)
    elif last.exists():
        part = folder / "previous.partial"
        _remove(part)
        _link(last, part)
        os.replace(part, previous)
        _remove(part)  # as above


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name: a hard link, or a copy where the file system has none."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_or_copy)
    else:
        _link_or_copy(source, target)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file; of a folder, that over the names and sums of its files."""
    if not path.is_dir():
        return file_sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    with ThreadPoolExecutor() as pool:
        sums: Iterable[str] = pool.map(sha256_of, files)
    lines = (f"{digest}  {file.relative_to(path)}\n" for digest, file in zip(sums, files, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sums(folder: Path) -> list[tuple[str, str]]:
    """Sum and name of the checkpoints of a folder; a kill leaves a name with both of its sums.

    Raises:
        CheckpointError: If they cannot be read.
    """
    file = folder / SUMS
    if not file.exists():
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); {_without_sums(file)}") from error
    found = [re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line) for line in lines]
    if not found or None in found:
        number = found.index(None) + 1 if found else 1
        raise CheckpointError(f"{file}:{number}: is not a sum and a name; {_without_sums(file)}")
    return [(match[1], match[2]) for match in found if match]


def _without_sums(file: Path) -> str:
    return f"where you trust the checkpoints beside it: {removal(file)}"


def _sum_of(path: Path, sums: Sequence[tuple[str, str]]) -> list[str]:
    """The sum of a checkpoint, taken anew where the list does not settle it; none where it is not there."""
    if not path.exists():
        return []
    listed = [digest for digest, name in sums if name == path.name]
    return listed if len(listed) == 1 else [sha256_of(path)]


def _write_sums(folder: Path, sums: Iterable[tuple[str, str]]) -> None:
    text = "".join(f"{digest}  {name}\n" for digest, name in sums)
    write_text(folder / SUMS, text, is_durable=True)
