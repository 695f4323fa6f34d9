"""Ids of rows: int64 from 0 up, or text kept as fixed-width UTF-8."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks, texts


def stored_ids(ids: Any, name: str = "ids") -> NDArray[Any]:
    """User's ids as they are stored: int64, or bytes of UTF-8.

    Raises
    ------
    TypeError
        Where they are neither all ints nor all text.
    ValueError
        Where an int is negative or too large, or a text cannot be stored.
    """
    array = checks.array(ids, name)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {array.shape}")
    if array.dtype.kind in "iu":
        if array.size and array.min() < 0:
            raise ValueError(f"{name} must not be negative, got {array.min()}")
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name} must fit into int64, got {array.max()}")
        return array.astype(np.int64)
    if array.size == 0:
        return np.zeros(0, np.int64)
    # A list that mixes text and numbers has become text by now: look at what was given.
    each = array.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if all(isinstance(number, int) and not isinstance(number, bool) for number in each):
        raise ValueError(f"{name} must fit into int64, got {max(each, key=abs)}")
    if not all(isinstance(text, str) for text in each):
        raise TypeError(f"{name} must be all integers or all text, got {array.dtype}")
    return texts.encoded(each, name)


def kind_of(stored: NDArray[Any]) -> str:
    """Which kind of stored ids these are: "int64" or "utf8"."""
    return "utf8" if stored.dtype.kind == "S" else "int64"


def public_ids(stored: NDArray[Any]) -> NDArray[Any]:
    """Stored ids as users see them: int64 or str."""
    return texts.decoded(stored) if stored.dtype.kind == "S" else stored


def shown(stored: Any) -> str:
    """One stored id as messages show it."""
    return repr(stored.decode() if isinstance(stored, bytes) else int(stored))


def sorting_order(stored: NDArray[Any]) -> NDArray[np.int64] | None:
    """The order that sorts distinct ids; None where they ascend already.

    Raises
    ------
    ValueError
        Where an id comes twice; the message names it.
    """
    if np.all(stored[1:] > stored[:-1]):
        return None
    order = np.argsort(stored, kind="stable")
    in_order = stored[order]
    twice = np.flatnonzero(in_order[1:] == in_order[:-1])
    if twice.size:
        raise ValueError(f"ids must be distinct, {shown(in_order[twice[0]])} comes twice")
    return order
