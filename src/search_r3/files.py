"""Small files: written whole or not at all, to the disk, with a hash; and what to do when one cannot be."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import TextIO

REMEDIES = {
    errno.ENOSPC: "make room on that disk, then the same command again",
    errno.EDQUOT: "make room within your quota, then the same command again",
    errno.EROFS: "the disk can only be read; choose a folder on another one",
    errno.EACCES: "give yourself the right to it, or choose another place",
    errno.EPERM: "give yourself the right to it, or choose another place",
    errno.EMFILE: "allow more open files (ulimit -n), then the same command again",
}
"""What to do about an error of the system, by its number."""


def os_error_text(error: OSError, folder: Path | None = None) -> str:
    """Which file or folder, what the system says, and what to do, in a line.

    Args:
        error: an error of writing or reading an open file does not know its name.
        folder: named then.
    """
    names = [os.fspath(name) for name in (error.filename or folder, error.filename2) if name is not None]
    remedy = REMEDIES.get(error.errno)
    said = ": ".join([*map(str, names), error.strerror or str(error)])
    return f"{said}; {remedy}" if remedy else said


def shell_command(*words: str | Path) -> str:
    """A command for a user to paste, whatever the files in it are called."""
    return shlex.join(map(str, words))


def removal(path: Path) -> str:
    """The command that removes a file or a folder."""
    return shell_command("rm", "-r", path)


def write_text(path: Path, text: str, is_durable: bool = False) -> None:
    """Writes a file whole or not at all.

    Args:
        path: of the file; its folder is made.
        text: its content.
        is_durable: whether it must be on the disk, and not only with the system, when this returns.

    Raises:
        OSError: With the name of the file, if it cannot be written; what was there is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        error.filename, error.filename2 = str(path), None  # errors of `write` have none
        raise


def write_first(file: Path, text: str) -> None:
    """Writes a file whole, unless another process has done so; whoever comes second changes nothing."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
    except OSError:
        part.unlink(missing_ok=True)
        raise
    try:
        os.link(part, file)  # fails where the file is there
        part.unlink()
    except FileExistsError:
        part.unlink()
    except OSError:  # a file system without links
        part.replace(file)


def remove_parts(folder: Path) -> None:
    """Removes what `write_text` left half written in a folder when it was killed; nobody else works in it."""
    for file in folder.glob("*.part"):
        if re.fullmatch(r".+\.\d+\.part", file.name) and file.is_file():
            file.unlink()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(content: object) -> str:
    """SHA-256 of a value as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def take_lock(file: TextIO | int) -> bool:
    """Locks an open file for this process, until it closes it or ends; False where another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_json(path: Path, content: object) -> None:
    """Writes JSON whole or not at all.

    Raises:
        ValueError: If the content holds a NaN or an infinity, which JSON cannot say.
    """
    write_text(path, json_text(content))


def keep_earlier(path: Path, content: str | None = None) -> Path | None:
    """Copies a record that will be replaced to `<stem>_before_<n><suffix>` beside it.

    Args:
        path: of the record.
        content: what will replace it; None where that is not known yet.

    Returns:
        Where the earlier one lies now; None where there is none, it is as the new one, or it is kept already.
    """
    if not path.is_file():
        return None
    earlier = path.read_bytes()
    numbered = (path.with_name(f"{path.stem}_before_{number}{path.suffix}") for number in itertools.count(1))
    kept = list(itertools.takewhile(Path.is_file, numbered))
    is_as_the_new = content is not None and earlier == content.encode()
    if is_as_the_new or (kept and kept[-1].read_bytes() == earlier):
        return None
    target = path.with_name(f"{path.stem}_before_{len(kept) + 1}{path.suffix}")
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    shutil.copyfile(path, part)
    os.replace(part, target)
    return target


def json_text(content: object) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
