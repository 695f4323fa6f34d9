"""Running kernels over threads, safely under every numba threading layer.

What a host process may do, and what it would break:

* Two Python threads that enter parallel kernels at once abort the process under numba's
  ``workqueue`` layer. So one process-wide lock surrounds parallel launches.
* A forked child that enters a parallel kernel is killed under the ``omp`` layer, if anybody ran
  one in the parent. So a child runs the serial cells on Python threads of its own; they hold no
  GIL, and results are the same.
* A kernel cannot be interrupted. So callers cut their work into launches of about
  ``WORK_PER_LAUNCH`` per thread, and Ctrl-C, progress and cancellation are answered in between.
* A launch over threads costs some ten microseconds. Work below ``SMALL_WORK`` runs on the calling
  thread, without the lock.

``prange`` counts in uint64: drivers turn the number of the cell into an int64, or the cell would be
compiled twice.

A unit of work is about one uint64 read from memory and processed: a third of a nanosecond.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numba.np.ufunc.parallel
from numba.core.compiler_lock import global_compiler_lock

from .. import _imported_by
from ..forks import ForkSafeLock
from .compiling import kernel

SMALL_WORK = 1 << 17
WORK_PER_LAUNCH = 1 << 25

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


def _after_fork_in_child() -> None:
    global _in_forked_child
    _in_forked_child = True
    global_compiler_lock.release()


# A child forked while another thread compiles would wait for ever for numba's compiler lock. So a
# fork waits for the compiler instead.
os.register_at_fork(
    before=global_compiler_lock.acquire,
    after_in_parent=global_compiler_lock.release,
    after_in_child=_after_fork_in_child,
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


class Launcher:
    """A kernel as a pair: ``cell(i, n_cells, *arguments)`` and its ``prange`` driver."""

    def __init__(self, cell: Callable[..., None], driver: Callable[..., None]) -> None:
        self.cell = cell
        self.driver = driver

    def __call__(self, n_cells: int, *arguments: Any, work: float) -> None:
        """Run all cells and return.

        There are as many threads as cells, `usable_threads` of them at the most, unless the work
        is small.
        """
        if n_cells == 1 or work < SMALL_WORK:
            for cell in range(n_cells):
                self.cell(cell, n_cells, *arguments)
        elif _in_forked_child:
            with ThreadPoolExecutor(n_cells) as pool:
                for done in [
                    pool.submit(self.cell, cell, n_cells, *arguments) for cell in range(n_cells)
                ]:
                    done.result()
        else:
            with _parallel_lock:
                before = numba.get_num_threads()
                numba.set_num_threads(n_cells)
                try:
                    self.driver(n_cells, *arguments)
                finally:
                    numba.set_num_threads(before)
