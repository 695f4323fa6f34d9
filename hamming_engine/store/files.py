"""The few operations that change files; nothing else in the package writes data to a disk.

They are separate functions so that tests can stop a writer before and midway through each of them.
All raise ``OSError`` and leave nothing that a later opening would take for data.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def create(path: Path) -> int:
    """Create a new file for writing; a file descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def reserve(descriptor: int, size: int) -> None:
    """Take the disk space of a whole file at once, so that a full disk shows before any write."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def write_at(descriptor: int, data: bytes | NDArray[Any], offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    if not len(data):
        return
    rest = memoryview(data).cast("B")  # type: ignore[arg-type]  # arrays are buffers
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest = rest[written:]
        offset += written


def sync(descriptor: int) -> None:
    """Wait until a file's content is on the disk."""
    os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path) -> None:
    """Give a complete file its final name; fails if that name exists."""
    os.link(temporary, final)


def remove(path: Path) -> None:
    """Remove a file that nothing refers to; one that is gone already is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
