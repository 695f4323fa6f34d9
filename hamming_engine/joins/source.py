"""Codes as joins take them: an array, or blocks of something that holds more than memory does."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..kernels.topk import MAX_BITS


def code_array(
    value: Any, name: str, like: NDArray[np.uint64] | None = None, like_name: str = ""
) -> NDArray[np.uint64]:
    """Codes as `checks.codes` gives them, with as many words as others where these are given."""
    codes = checks.codes(value, name)
    if 64 * codes.shape[1] > MAX_BITS:
        raise ValueError(
            f"{name} must have at most {MAX_BITS // 64} words a code, got {codes.shape[1]}"
        )
    if like is not None and codes.shape[1] != like.shape[1]:
        raise ValueError(
            f"{name} have {codes.shape[1]} words a code, {like_name} have {like.shape[1]}"
        )
    return codes
