"""How kernels are compiled: one decorator, so that every kernel gets the same options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function on first use, without the GIL, and keep the result on disk.

    No explicit signatures: those would compile at import. ``error_model="numpy"`` drops the
    zero-division test that would keep loops from being vectorised.
    """

    def compile_lazily(function: Callable[..., Any]) -> Any:
        settings = {"nogil": True, "error_model": "numpy", **options}
        try:
            return njit(cache=True, **settings)(function)
        except RuntimeError:  # no folder to cache in is writable: compile in every process instead
            return njit(**settings)(function)

    return compile_lazily


parallel_kernel = kernel(parallel=True)
