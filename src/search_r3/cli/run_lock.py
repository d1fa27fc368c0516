"""Who works in a run folder: a lock that the system takes back when its holder ends, however it ends.

    <folder>/lock     held by the first rank of whatever works in the folder; names it to those it keeps out

A process number says nothing once the process is gone: another one may have it, and another machine has its
own. The lock is the kernel's. Where a disk is shared between machines it may not reach from one to the other:
`search_r3.cli.run_status.taken` asks for the machine as well.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from search_r3.errors import UsageError
from search_r3.files import take_lock

LOCK = "lock"
_held: dict[Path, int] = {}  # open files by folder, of this process


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps every other process out of a folder; within it, this one may ask again.

    Args:
        folder: exists and can be written to.

    Raises:
        UsageError: If another process works in it.
    """
    key = folder.resolve()
    if key in _held:
        yield
        return
    file, process = _opened(folder), os.getpid()
    try:
        if not take_lock(file):
            raise UsageError(
                f"{folder}: {_holder(folder)} works in it; wait until it ends, or choose another folder"
            )
        _sign(file)
        _held[key] = file
        yield
    finally:
        if os.getpid() == process:  # one that was forked has closed it
            if _held.pop(key, None) is not None:
                os.ftruncate(file, 0)
            os.close(file)


def is_held(folder: Path) -> bool:
    """Whether a process of this machine, or of one that its locks reach, works in a folder."""
    if folder.resolve() in _held:
        return True
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _opened(folder: Path) -> int:
    try:
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(
            f"{folder / LOCK}: cannot be opened ({error.strerror}); whoever works in a folder must be able "
            "to write to it"
        ) from None


def _sign(file: int) -> None:
    """Says who holds the lock; for messages only, so a full disk does no harm."""
    content = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, f"{content}\n".encode(), 0)


def _holder(folder: Path) -> str:
    try:
        found = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        return f"process {int(found['pid'])} on {str(found['host'])[:80]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _forget() -> None:
    """A forked process leaves the lock to its parent, or a worker that outlives it would keep the folder."""
    for file in _held.values():
        with contextlib.suppress(OSError):
            os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
