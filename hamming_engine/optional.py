"""Packages that only some features need."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import an optional package, or say how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is needed for this: pip install 'hamming_engine[{extra}]'"
        ) from error


def progress_bar(show: bool, total: int, unit: str) -> Any:
    """A context manager with an ``update(n)`` method: a tqdm bar, silent unless ``show``."""
    if not show:
        return _Silent()
    return require("tqdm.auto", "progress").tqdm(total=total, unit=unit, unit_scale=True)


class _Silent:
    total = 0

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def update(self, n: int) -> None:
        pass
