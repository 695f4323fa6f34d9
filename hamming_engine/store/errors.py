"""What can be wrong with a store; each message names the path."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator


class StoreError(Exception):
    """A store cannot be used as asked."""


class FormatError(StoreError):
    """A path that is no collection, or one in a format that this version does not read."""


class DamagedError(StoreError):
    """Stored bytes are not those that were written."""


class LockedError(StoreError):
    """Another process or thread has the collection open for writing."""


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raise as ``MemoryError`` what the system says of memory by an error number."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError(str(error)) from error
