"""Arrays that an index is made of, as they come from a file: checked before kernels see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, tuple[Any, tuple[int, ...]]]


def length_of(arrays: Arrays, name: str, axis: int = 0) -> int:
    """The length of an array; 0 where it is not there or has no such axis."""
    array = arrays.get(name)
    return array.shape[axis] if array is not None and array.ndim > axis else 0


def check_arrays(arrays: Arrays, shapes: Shapes) -> None:
    """Refuse arrays that are missing, or have another dtype or shape than expected.

    Raises
    ------
    ValueError
    """
    for name, (dtype, shape) in shapes.items():
        array = arrays.get(name)
        if array is None or array.dtype != dtype or array.shape != shape:
            came = "none" if array is None else f"{array.dtype} {array.shape}"
            raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, got {came}")
