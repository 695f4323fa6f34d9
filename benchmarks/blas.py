"""Threads of the OpenBLAS libraries that NumPy and FAISS bring along."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)


def set_threads(threads: int) -> None:
    """Let products of matrices use so many threads.

    Raises
    ------
    RuntimeError
        Where no loaded library takes it: a figure for one thread would be one for all.
    """
    found = 0
    for path in _loaded_libraries():
        setter = _setter(path)
        if setter is not None:
            setter(threads)
            found += 1
    if not found:
        raise RuntimeError("no loaded OpenBLAS: how many threads NumPy uses cannot be set here")


def _loaded_libraries() -> set[str]:
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[-1] for line in maps if "openblas" in line}
    return {path for path in paths if path.startswith("/")}


def _setter(path: str) -> Callable[[int], Any] | None:
    library = ctypes.CDLL(path)
    for name in _SETTERS:
        with contextlib.suppress(AttributeError):
            setter: Callable[[int], Any] = getattr(library, name)
            return setter
    return None
