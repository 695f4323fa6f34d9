"""The checks that doors share: each names the argument, what came and what was expected."""

from __future__ import annotations

import functools
import operator
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def integer(value: Any, name: str, minimum: int) -> int:
    """``value`` as an int; bools and floats are refused."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got the bool {value}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, got {value!r} of type {type(value).__name__}"
        ) from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return number


def number(value: Any, name: str) -> Any:
    """``value`` as it came: an integer may be too large for a float."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return value


def recall(value: Any, name: str = "target_recall") -> float | None:
    """A share above 0, at most 1; ``None`` where none is asked for."""
    if value is None:
        return None
    if not 0 < number(value, name) <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value}")
    return float(value)


def threads(value: Any) -> int | None:
    """``None``, for all of numba's threads, or a positive int."""
    return None if value is None else integer(value, "threads", 1)


def choice(value: Any, name: str, options: tuple[str | None, ...]) -> Any:
    """One of a few named options."""
    if not any(
        value is option or (isinstance(value, str) and value == option) for option in options
    ):
        listed = ", ".join(repr(option) for option in options)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")
    return value


def path(value: Any) -> Path:
    """A path, from text or anything that is one."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(
            f"path must be text or a path, got {value!r} of type {type(value).__name__}"
        )
    return Path(value)


def array(value: Any, name: str) -> NDArray[Any]:
    """``np.asarray``, with a message that names the argument."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array: {error}") from None


def codes(value: Any, name: str, n_bits: int | None = None) -> NDArray[np.uint64]:
    """Codes as a C-contiguous, read-only (n, n_words) array; one code becomes one row.

    With ``n_bits`` the number of words and the pad bits are verified too.
    """
    words = array(value, name)
    if words.dtype != np.uint64 or not words.dtype.isnative:
        raise TypeError(
            f"{name} must be native uint64 words, as pack_signs returns them; got {words.dtype}"
        )
    if words.ndim not in (1, 2):
        raise ValueError(f"{name} must have shape (n, n_words) or (n_words,), got {words.shape}")
    words = frozen(words if words.ndim == 2 else words[None])
    if words.shape[1] == 0:
        raise ValueError(f"{name} must have at least one word a code, got shape {words.shape}")
    if n_bits is not None:
        n_words = words_for(n_bits)
        if words.shape[1] != n_words:
            raise ValueError(
                f"{name} have {words.shape[1]} words a code, {n_bits} bits take {n_words}"
            )
        check_padding(words, name, n_bits)
    return words


def words_for(n_bits: int) -> int:
    """Words in a code of ``n_bits`` bits."""
    return -(-n_bits // 64)


@functools.cache
def pad_mask(n_bits: int) -> np.uint64:
    """The bits of a code's last word that lie beyond ``n_bits``."""
    used = np.zeros(64, np.uint8)
    used[: (n_bits - 1) % 64 + 1] = 1
    return np.uint64(~np.packbits(used).view(np.uint64)[0])


def check_padding(codes: NDArray[np.uint64], name: str, n_bits: int, first_row: int = 0) -> None:
    """Refuse codes with ones beyond their last bit: they would count in every distance."""
    mask = pad_mask(n_bits)
    if mask:
        bad = np.flatnonzero(codes[:, -1] & mask)
        if bad.size:
            raise ValueError(
                f"{name} row {first_row + bad[0]} has ones beyond bit {n_bits}: pad bits must be "
                f"zero, is n_bits right?"
            )


def floats(value: Any, name: str, dim: int | None = None) -> NDArray[Any]:
    """Float vectors as an (n, dim) array of any layout; one vector becomes one row."""
    vectors = array(value, name)
    if vectors.dtype.kind != "f" or vectors.dtype.itemsize not in (2, 4, 8):
        raise TypeError(f"{name} must be float16, float32 or float64, got {vectors.dtype}")
    if vectors.ndim not in (1, 2):
        raise ValueError(f"{name} must have shape (n, dim) or (dim,), got {vectors.shape}")
    vectors = np.atleast_2d(vectors)
    if vectors.shape[1] == 0:
        raise ValueError(f"{name} must have at least one dimension, got shape {vectors.shape}")
    if dim is not None and vectors.shape[1] != dim:
        raise ValueError(f"{name} have {vectors.shape[1]} dimensions, {dim} were expected")
    return vectors


def is_mask(value: Any, name: str = "where") -> bool:
    """Whether an argument is a boolean mask rather than an array of ids or row numbers."""
    return bool(array(value, name).dtype == np.bool_)


def mask(where: Any, n_rows: int, name: str = "where") -> NDArray[np.bool_]:
    """A boolean mask over rows."""
    bools = np.asarray(where)
    if bools.shape != (n_rows,):
        raise ValueError(
            f"{name} is a mask of shape {bools.shape}, expected one bool a row: ({n_rows},)"
        )
    return frozen(bools)


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """A plain, C-contiguous, aligned, read-only view or copy.

    Kernels are compiled once per argument type, and numba's types tell read-only from writable
    arrays: everything that comes in is made alike here.
    """
    if type(array) is not np.ndarray or not (array.flags.c_contiguous and array.flags.aligned):
        array = np.require(np.asarray(array), requirements=["C", "A"]).view(np.ndarray)
    view = array.view()
    view.flags.writeable = False
    return view
