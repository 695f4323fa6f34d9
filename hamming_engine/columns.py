"""Columns: a value for each row, beside its vector, typed and the same for all rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks, texts

TEXT = "text"
NUMBERS = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
TYPES = ("bool", *NUMBERS, TEXT)
MAX_COLUMNS = 64

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def check_types(types: Any) -> None:
    """Refuse what is no mapping of names to types; ``ValueError`` says why."""
    if not isinstance(types, Mapping) or len(types) > MAX_COLUMNS:
        raise ValueError(f"columns must map at most {MAX_COLUMNS} names to types, got {types!r}")
    for name, kind in types.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"columns must be named by 1 to 64 letters, digits and _, no digit first; got "
                f"{name!r}"
            )
        if kind not in TYPES:
            raise ValueError(f"columns: {name!r} has type {kind!r}, expected one of {TYPES}")


def declared(columns: Any) -> dict[str, str]:
    """Types by name, from types as users write them: names, NumPy's, or Python's.

    Raises
    ------
    TypeError, ValueError
    """
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        raise TypeError(f"columns must map names to types, got {columns!r}")
    types = {}
    for name, kind in columns.items():
        if kind is str or kind == TEXT:
            types[name] = TEXT
            continue
        try:
            if kind is None:  # NumPy takes it for float64
                raise TypeError
            types[name] = np.dtype(kind).name
        except TypeError:
            raise TypeError(f"columns: {name!r} has type {kind!r}, which is none") from None
    check_types(types)
    return types


def types_of(columns: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """The types of columns as stored."""
    types = {}
    for name, values in columns.items():
        types[name] = TEXT if values.dtype.kind == "S" else values.dtype.name
    return types


def stored_type(kind: str) -> np.dtype[Any]:
    """What values are stored as; of text the kind alone, its width is that of the longest."""
    return (
        np.dtype("S") if kind == TEXT else np.dtype("u1" if kind == "bool" else f"<{_code(kind)}")
    )


def _code(kind: str) -> str:
    return np.dtype(kind).str[1:]


def checked(columns: Any, n_rows: int | None = None) -> dict[str, NDArray[Any]]:
    """User's columns as arrays: numbers and bools as they are, text as fixed-width UTF-8.

    Raises
    ------
    TypeError, ValueError
        Where one is none of the types that can be stored, or not one value a row.
    """
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        raise TypeError(f"columns must map names to arrays, got {type(columns).__name__}")
    arrays = {name: _checked_values(name, values) for name, values in columns.items()}
    check_types(types_of(arrays))
    for name, values in arrays.items():
        if n_rows is not None and len(values) != n_rows:
            raise ValueError(
                f"columns[{name!r}] must have one value a row: got {len(values)} for {n_rows} rows"
            )
    return arrays


def _checked_values(name: Any, values: Any) -> NDArray[Any]:
    title = f"columns[{name!r}]"
    array = checks.array(values, title)
    if array.ndim != 1:
        raise ValueError(f"{title} must have one dimension, got shape {array.shape}")
    if array.dtype.kind == "b" or array.dtype.name in NUMBERS:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    # A list that mixes text and numbers has become text by now: look at what was given.
    each = array.tolist() if isinstance(values, np.ndarray) else list(values)
    if not each:
        return np.zeros(0)
    if not all(isinstance(text, str) for text in each):
        raise TypeError(
            f"{title} must hold bools, integers, floats or text, all of one kind; got {array.dtype}"
        )
    return texts.encoded(each, title)


def converted(
    columns: Mapping[str, NDArray[Any]], types: Mapping[str, str]
) -> dict[str, NDArray[Any]]:
    """Checked columns in the collection's types.

    Raises
    ------
    TypeError, ValueError
        Where columns are missing or too many, or a value would change.
    """
    missing, unknown = sorted(types.keys() - columns.keys()), sorted(columns.keys() - types.keys())
    if missing:
        raise ValueError(f"columns must have {missing} too: every row of this collection has them")
    if unknown:
        raise ValueError(
            f"columns {unknown} are not in this collection, it has {sorted(types)}: they are fixed "
            f"with its first rows"
        )
    return {name: _converted(name, columns[name], kind) for name, kind in types.items()}


def _converted(name: str, values: NDArray[Any], kind: str) -> NDArray[Any]:
    found = TEXT if values.dtype.kind == "S" else values.dtype.name
    if found == kind or not len(values):
        return values if found == kind else np.zeros(0, stored_type(kind))
    number = kind in NUMBERS and found in NUMBERS
    if number and kind.startswith("float"):
        # Floats are rounded to what was declared; an integer has to stay itself.
        with np.errstate(over="ignore"):
            cast = values.astype(kind)
        lost = np.isinf(cast) & np.isfinite(values)
        if values.dtype.kind in "iu":
            lost |= cast.astype(np.longdouble) != values.astype(np.longdouble)
        if not lost.any():
            return cast
        raise ValueError(f"columns[{name!r}] holds {values[lost][0]}, which does not fit {kind}")
    if number and values.dtype.kind in "iu":
        limits = np.iinfo(kind)
        low, high = int(values.min()), int(values.max())
        if limits.min <= low and high <= limits.max:
            return values.astype(kind)
        outside = low if low < limits.min else high
        raise ValueError(f"columns[{name!r}] holds {outside}, which does not fit into {kind}")
    raise TypeError(f"columns[{name!r}] must be {kind} as in the collection, got {found}")


def as_stored(values: NDArray[Any]) -> NDArray[Any]:
    """A checked column as it is written."""
    return values.view(np.uint8) if values.dtype == np.bool_ else values


def public(stored: NDArray[Any], kind: str) -> NDArray[Any]:
    """Stored values as users see them: bools, numbers, or str.

    Raises
    ------
    ValueError
        Where they are not what was written: bytes that are no UTF-8, a bool neither 0 nor 1.
    """
    if kind == TEXT:
        return texts.decoded(stored)
    if kind == "bool":
        if (stored > 1).any():
            raise ValueError("a bool is neither 0 nor 1")
        return stored.view(np.bool_)
    return stored
