"""Checks of what comes in, beside those that all of the library shares."""

from __future__ import annotations

import math
import reprlib
from typing import Any

from torch import Tensor

from .. import checks


def described(value: Any) -> str:
    """What came, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    return f"{reprlib.repr(value)} of type {type(value).__name__}"


def floats(value: Any, name: str) -> Tensor:
    """A tensor of floats, of any shape."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a tensor of floats, got {described(value)}")
    return value


def positive(value: Any, name: str) -> float:
    """A finite number above zero."""
    if not 0 < checks.number(value, name) < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {value}")
    return float(value)


def not_negative(value: Any, name: str) -> float:
    """A finite number, zero or above."""
    if not 0 <= checks.number(value, name) < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")
    return float(value)
