"""What a forked child must not inherit: locks that were held, and the right to write."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class _Renewed(Protocol):
    def after_fork_in_child(self) -> None: ...


_living: weakref.WeakSet[_Renewed] = weakref.WeakSet()


def renew_in_children(thing: _Renewed) -> None:
    """Have ``thing.after_fork_in_child()`` called in every forked child, while the thing lives."""
    _living.add(thing)


def _after_fork_in_child() -> None:
    for thing in list(_living):
        thing.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


class ForkSafeLock:
    """A lock that a forked child finds free.

    The thread that held it in the parent does not exist in the child and would never let it go.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        renew_in_children(self)

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()
