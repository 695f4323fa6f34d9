"""What a forked child must not inherit: locks that were held, and the right to write."""

from __future__ import annotations

import _thread
import os
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


class ForkSafeLock(_thread.RLock):  # type: ignore[misc]
    """A lock that a forked child finds free.

    The thread that held it in the parent does not exist in the child and would never let it go.
    Taking it and giving it back are not Python code: Ctrl-C between the two steps of such code
    would leave it taken for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        renew_in_children(self)

    def after_fork_in_child(self) -> None:
        self._at_fork_reinit()  # type: ignore[attr-defined]  # as the standard library's locks do
