"""The file of an index over a collection's rows: arrays that only the index understands."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .arrays import ArrayFile, ArrayWriter, checked_rows
from .errors import FormatError
from .layout import ArraySpec
from .manifest import IndexEntry
from .schema import json_object

MAX_ARRAYS = 200

_KIND = "hamming_engine index"
_NAME = re.compile(r"[a-z0-9_]{1,32}")


def write_index(
    folder: Path,
    collection: str,
    settings: Mapping[str, Any],
    segments: Sequence[str],
    state: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
) -> IndexEntry:
    """Write an index to a file of a collection's folder, durably.

    Parameters
    ----------
    folder : Path
    collection : str
        uuid of the collection.
    settings : mapping
        How it was made, as JSON: for the manifest.
    segments : sequence of str
        uuids of the segments whose rows it has, the first of the collection.
    state : mapping
        What it is beside its arrays, as JSON.
    arrays : mapping of str to array
        At most 200, of one or two dimensions, under names of at most 32 of the letters a to z, the
        digits and "_".

    Raises
    ------
    ValueError
        Where they cannot be stored.
    OSError
        Where the disk is full or fails; nothing is left behind.
    """
    specs = {name: ArraySpec(array.dtype, array.shape) for name, array in arrays.items()}
    for name, spec in specs.items():
        if not _NAME.fullmatch(name) or len(spec.shape) not in (1, 2):
            raise ValueError(f"/{name} of shape {spec.shape} cannot be stored")
    if len(specs) > MAX_ARRAYS:
        raise ValueError(f"an index of {len(specs)} arrays, expected at most {MAX_ARRAYS}")
    name = str(uuid.uuid4())
    row_bytes = (array.nbytes // len(array) for array in arrays.values() if len(array))
    header = {
        "uuid": name,
        "collection": collection,
        "rows_per_checksum": checked_rows(max(row_bytes, default=1)),
        "state": json_object(dict(state), "state"),
    }
    path = folder / f"index-{name}.h5"
    with ArrayWriter(path, _KIND, header, specs, arrays) as writer:
        pass
    stored = json_object(dict(settings), "settings")
    return IndexEntry(stored, path.name, name, writer.size, tuple(segments))


class IndexFile(ArrayFile):
    """The file of an index in a collection's folder.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    uuid, collection : str
        What the file says of itself; to be compared with the manifest.
    state : dict

    Raises
    ------
    FileNotFoundError, FormatError, DamagedError
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, _KIND)
        arrays = {n: spec for n, spec in self._arrays.items() if not n.startswith("sums/")}
        if len(arrays) > MAX_ARRAYS:
            raise FormatError(f"{path}: {len(arrays)} arrays, expected at most {MAX_ARRAYS}")
        self._check_arrays(arrays)
        self.uuid = self._raw_header.get("uuid")
        self.collection = self._raw_header.get("collection")
        self.state = self._raw_header.get("state")
        if not isinstance(self.state, dict):
            raise FormatError(f"{path}: header: state is {self.state!r}")
