"""How kernels are compiled: one decorator, so that every kernel gets the same options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from .cache import KernelCache


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function on first use, without the GIL, and keep the result on disk.

    No explicit signatures: those would compile at import. ``error_model="numpy"`` drops the
    zero-division test that would keep loops from being vectorised.
    """

    def compile_lazily(function: Callable[..., Any]) -> Any:
        settings = {"nogil": True, "error_model": "numpy", **options}
        compiled = njit(**settings)(function)
        # The name is private, and with the JIT off there is none. What a closure holds is in no
        # source, so nothing would tell two of them apart.
        if hasattr(compiled, "_cache") and function.__closure__ is None:
            compiled._cache = KernelCache(function)
        return compiled

    return compile_lazily


parallel_kernel = kernel(parallel=True)
