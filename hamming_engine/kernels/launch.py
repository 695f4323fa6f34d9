"""Running kernels over threads, safely under every numba threading layer.

What a host process may do, and what it would break:

* Two Python threads that enter parallel kernels at once abort the process under numba's
  ``workqueue`` layer. So one process-wide lock surrounds parallel launches.
* A forked child that enters a parallel kernel is killed under the ``omp`` layer, if anybody ran
  one in the parent. So a child runs the serial cells on Python threads of its own; they hold no
  GIL, and results are the same.
* A kernel cannot be interrupted. So callers cut their work into launches of about
  ``WORK_PER_LAUNCH`` per thread, and Ctrl-C, progress and cancellation are answered in between.
* What a cell raises inside ``prange`` is lost on every thread but the calling one, where it comes
  as a ``SystemError``, and the cell's part of the results is not there. Cells raise nothing but
  want of memory. So drivers note the cells that came to their end, and a launch that lacks one
  raises ``MemoryError``.
* A thread may not start, for want of memory or by a limit. Threads that Python starts here are
  helpers, and the calling thread does what they do not. Those of numba's layer are started by its
  first launch, and under ``omp`` by the first of every Python thread; where the system refuses one
  of these, libgomp ends the process. A process that is to live with a limit launches once before.
* A launch over threads costs some ten microseconds. Work below ``SMALL_WORK`` runs on the calling
  thread, without the lock.

``prange`` counts in uint64: drivers turn the number of the cell into an int64, or the cell would be
compiled twice.

A unit of work is about one uint64 read from memory and processed: a third of a nanosecond.
"""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import llvmlite.binding.ffi
import numba
import numba.np.ufunc.parallel
import numpy as np
import numpy.ma  # or numba would import it later, and a child forked meanwhile wait for it for ever
from numba.core.compiler_lock import global_compiler_lock

from .. import _imported_by
from ..forks import ForkSafeLock
from .compiling import kernel

SMALL_WORK = 1 << 17
WORK_PER_LAUNCH = 1 << 25

T = TypeVar("T")
_NOTHING: Any = object()

_parallel_lock = ForkSafeLock()


def _forked_before_import() -> bool:
    """Whether numba's threads were started in a parent of this process, and are not here."""
    started = getattr(numba.np.ufunc.parallel, "_is_initialized", False)
    return started and threading.active_count() == 1 and _n_system_threads() == 1


def _n_system_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except FileNotFoundError:
        return 0


_in_forked_child = os.getpid() != _imported_by or _forked_before_import()


# A child forked while another thread compiles, or starts numba's threads, would wait for ever for
# their locks. So a fork waits for them instead, in the order in which they are taken.
_NOT_INHERITED = (
    global_compiler_lock,
    getattr(numba.np.ufunc.parallel, "_backend_init_thread_lock", threading.RLock()),
    getattr(getattr(llvmlite.binding.ffi.lib, "_lock", None), "_lock", threading.RLock()),
)


def _before_fork() -> None:
    for lock in _NOT_INHERITED:
        lock.acquire()


def _after_fork() -> None:
    for lock in reversed(_NOT_INHERITED):
        lock.release()


def _after_fork_in_child() -> None:
    global _in_forked_child
    _in_forked_child = True
    # numba asks for its number of threads under a lock that processes share. A child killed just
    # then would keep it, and its parent wait for ever; a child has no use for it.
    numba.np.ufunc.parallel._backend_init_process_lock = threading.RLock()  # type: ignore[assignment]
    _after_fork()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)


@kernel()
def share(n: int, part: int, n_parts: int) -> tuple[int, int]:
    """Bounds of one of ``n_parts`` nearly equal shares of ``range(n)``."""
    return n * part // n_parts, n * (part + 1) // n_parts


def usable_threads(threads: int | None) -> int:
    """The number of threads to use: those asked for, at most those that numba has."""
    if threads is None:
        return int(numba.get_num_threads())
    return min(threads, int(numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


class _Stopped(BaseException):
    """Raised by `checkpoint` to leave work that nobody waits for any more."""


class _Shared:
    """Items that several threads take from, until one of them fails or is interrupted."""

    def __init__(self, items: Iterable[Any], work: Callable[[int, Any], None]) -> None:
        self._waiting = iter(items)
        self._work = work
        self._taking = threading.Lock()
        self.stopped = False
        self.error: BaseException | None = None

    def _take(self) -> Any:
        with self._taking:
            return _NOTHING if self.stopped else next(self._waiting, _NOTHING)

    def run(self, thread: int) -> None:
        """Work on this thread until nothing is left, or nothing is wanted any more."""
        before = getattr(_of_thread, "shared", None)
        _of_thread.shared = self
        try:
            while (item := self._take()) is not _NOTHING:
                self._work(thread, item)
        except _Stopped:
            pass
        finally:
            _of_thread.shared = before

    def help(self, thread: int, busy: _thread.LockType) -> None:
        """The same on a thread of its own; ``busy`` is held while it works."""
        with busy:
            try:
                self.run(thread)
            except BaseException as error:
                self.stopped = True
                self.error = error


_of_thread = threading.local()


def checkpoint() -> None:
    """Leave work of `for_each` here, where another thread failed or was interrupted.

    Called between the pieces of a work that takes longer than a launch should.
    """
    shared = getattr(_of_thread, "shared", None)
    if shared is not None and shared.stopped:
        raise _Stopped


def for_each(items: Iterable[T], n_threads: int, work: Callable[[int, T], None]) -> None:
    """Call ``work(thread, item)`` for all items, on the calling thread and helpers beside it.

    Whichever thread is free takes the next item; ``thread`` is its number below ``n_threads``, and
    0 the calling one. The first error, Ctrl-C among them, lets no thread begin another item, and is
    raised when all have ended.
    """
    shared = _Shared(items, work)
    # Some helpers may never come up: there are too many threads, or no memory for one more, even
    # after it was started, and `threading.Thread.start` would wait for such a one for ever. So the
    # calling thread waits for those that hold their lock; who gets it later finds nothing to do.
    helpers = [threading.Lock() for _ in range(n_threads - 1)]
    try:
        for number, busy in enumerate(helpers, 1):
            try:
                _thread.start_new_thread(shared.help, (number, busy))
            except (RuntimeError, MemoryError):
                break
        shared.run(0)
        _wait(helpers)
    except BaseException:
        shared.stopped = True
        _wait(helpers)
        raise
    if shared.error is not None:
        error, shared.error = shared.error, None
        try:
            raise error
        finally:
            del error  # it refers to this frame


def _wait(helpers: Iterable[_thread.LockType]) -> None:
    for busy in helpers:
        with busy:
            pass


class Launcher:
    """A kernel as a pair: ``cell(i, n_cells, *arguments)`` and its ``prange`` driver.

    The driver is called with ``(n_cells, done, *arguments)`` and sets ``done[i]``, bool, for each
    cell that came to its end.
    """

    def __init__(self, cell: Callable[..., None], driver: Callable[..., None]) -> None:
        self.cell = cell
        self.driver = driver

    def __call__(self, n_cells: int, *arguments: Any, work: float) -> None:
        """Run all cells and return.

        There are as many threads as cells, `usable_threads` of them at the most, unless the work
        is small.

        Raises
        ------
        MemoryError
            Where a cell found no memory for what it needs.
        """
        if n_cells == 1 or work < SMALL_WORK:
            for cell in range(n_cells):
                self.cell(cell, n_cells, *arguments)
        elif _in_forked_child:
            for_each(range(n_cells), n_cells, lambda _, cell: self.cell(cell, n_cells, *arguments))
        else:
            done = np.zeros(n_cells, np.bool_)
            with _parallel_lock:
                before = numba.get_num_threads()
                numba.set_num_threads(n_cells)
                try:
                    self.driver(n_cells, done, *arguments)
                except SystemError as error:
                    if not isinstance(error.__cause__, MemoryError):
                        raise
                finally:
                    numba.set_num_threads(before)
            if not done.all():
                raise MemoryError(f"no memory for {n_cells - done.sum()} of {n_cells} cells")
