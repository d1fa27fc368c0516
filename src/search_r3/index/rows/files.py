"""Writing where a disk may be full: not through a map, which would kill the process, and never in part."""

import os


def reserve(file: int, size: int) -> None:
    """Makes an open file `size` bytes long, with their place on the disk where the system can give it."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def write_all(file: int, content: bytes | memoryview, offset: int | None = None) -> None:
    """Writes all bytes; the system may take fewer at a time, as it does on a disk that is nearly full."""
    view = memoryview(content)
    while len(view):
        written = os.write(file, view) if offset is None else os.pwrite(file, view, offset)
        offset = None if offset is None else offset + written
        view = view[written:]
