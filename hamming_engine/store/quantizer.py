"""The arrays of a fitted quantiser: stored once in a collection, and again in an exported file."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import ArrayFile, ArrayWriter, checked_rows
from .errors import FormatError
from .layout import ArraySpec
from .manifest import QuantizerEntry
from .schema import Schema

MAX_ARRAYS = 16
MAX_BYTES = 256 << 20  # of all arrays: they are held in memory

_KIND = "hamming_engine quantizer"
_GROUP = "quantizer/"
_NAME = re.compile(r"[a-z_]{1,32}")
_DTYPES = tuple(map(np.dtype, ("<f4", "<f8", "<i8", "<u8")))


@dataclass(frozen=True)
class Settings:
    """What takes the place of a collection's schema and quantiser, together with its rows.

    Attributes
    ----------
    schema : Schema
        With the ``dim``, ``metric`` and ``vectors`` that the collection has.
    arrays : mapping of str to array
        At most 16, of 256 MiB together: 1-d or 2-d, not empty, float32, float64, int64 or uint64,
        under names of at most 32 of the letters a to z and "_". Copies are stored, and
        `Snapshot.quantizer_arrays` returns them.
    """

    schema: Schema
    arrays: Mapping[str, NDArray[Any]]


def stored_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays by the names of their data sets; ``ValueError`` where they cannot be stored."""
    named = {_GROUP + name: np.asarray(array) for name, array in arrays.items()}
    specs_of(named)
    return named


def specs_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, ArraySpec]:
    """What a file with these arrays, named as its data sets, has to hold."""
    specs = {name: ArraySpec(array.dtype, array.shape) for name, array in arrays.items()}
    _check(specs)
    return specs


def specs_in(path: Path, arrays: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    """Those of a stranger's arrays that belong to a quantiser, checked.

    Raises
    ------
    FormatError
        Where such arrays are never written.
    """
    specs = {name: spec for name, spec in arrays.items() if name.startswith(_GROUP)}
    try:
        _check(specs)
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from None
    return specs


def _check(specs: Mapping[str, ArraySpec]) -> None:
    if len(specs) > MAX_ARRAYS:
        raise ValueError(f"a quantizer of {len(specs)} arrays, expected at most {MAX_ARRAYS}")
    for name, spec in specs.items():
        if not _NAME.fullmatch(name.removeprefix(_GROUP)):
            raise ValueError(f"/{name} is named other than by 1 to 32 of a to z and _")
        if spec.dtype not in _DTYPES or len(spec.shape) not in (1, 2) or 0 in spec.shape:
            raise ValueError(
                f"/{name} is {spec.dtype} of shape {spec.shape}, expected float32, float64, int64 "
                f"or uint64 of one or two dimensions, not empty"
            )
    n_bytes = sum(spec.nbytes for spec in specs.values())
    if n_bytes > MAX_BYTES:
        raise ValueError(f"a quantizer of {n_bytes} bytes, expected at most {MAX_BYTES}")


def write_quantizer(
    folder: Path, collection: str, arrays: Mapping[str, NDArray[Any]]
) -> QuantizerEntry | None:
    """Write arrays to a file of a collection's folder, durably; None where there are none.

    Parameters
    ----------
    folder : Path
    collection : str
        uuid of the collection.
    arrays : mapping of str to array
        See `FittedQuantizer`.

    Raises
    ------
    ValueError
        Where they cannot be stored.
    OSError
        Where the disk is full or fails; nothing is left behind.
    """
    named = stored_arrays(arrays)
    if not named:
        return None
    name = str(uuid.uuid4())
    header = {
        "uuid": name,
        "collection": collection,
        "rows_per_checksum": checked_rows(max(a.nbytes // len(a) for a in named.values())),
    }
    path = folder / f"quantizer-{name}.h5"
    with ArrayWriter(path, _KIND, header, specs_of(named), named) as writer:
        pass
    return QuantizerEntry(path.name, name, writer.size)


class QuantizerFile(ArrayFile):
    """The file of a quantiser's arrays in a collection's folder.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    uuid, collection : str
        What the file says of itself; to be compared with the manifest.

    Raises
    ------
    FileNotFoundError, FormatError, DamagedError
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, _KIND)
        self._check_arrays(specs_in(path, self._arrays))
        self.uuid = self._raw_header.get("uuid")
        self.collection = self._raw_header.get("collection")


def holds_quantizer(file: ArrayFile) -> bool:
    """Whether a quantiser's arrays are in a file."""
    return any(name.startswith(_GROUP) for name in file.names)


def read_quantizer(file: ArrayFile) -> dict[str, NDArray[Any]]:
    """All arrays of a quantiser, verified, out of its file or an exported one."""
    names = (name for name in file.names if name.startswith(_GROUP))
    return {name.removeprefix(_GROUP): file.read_all(name) for name in names}
