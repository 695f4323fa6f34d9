"""Which rows were removed: files of row numbers, written once, that manifests list."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .arrays import ArrayFile, ArrayWriter, checked_rows
from .errors import DamagedError, FormatError
from .layout import ArraySpec
from .manifest import TombstoneEntry

_KIND = "hamming_engine tombstones"
_ROWS = "rows"
_ROW = np.dtype("<i8")


def write_tombstones(folder: Path, collection: str, rows: NDArray[np.int64]) -> TombstoneEntry:
    """Write row numbers to a file of a collection's folder, durably.

    Parameters
    ----------
    folder : Path
    collection : str
        uuid of the collection.
    rows : (n,) int64
        Ascending, each once.

    Raises
    ------
    OSError
        Where the disk is full or fails; nothing is left behind.
    """
    name = str(uuid.uuid4())
    header = {
        "uuid": name,
        "collection": collection,
        "n_rows": len(rows),
        "rows_per_checksum": checked_rows(_ROW.itemsize),
    }
    path = folder / f"tombstones-{name}.h5"
    specs = {_ROWS: ArraySpec(_ROW, rows.shape)}
    with ArrayWriter(path, _KIND, header, specs, {_ROWS: rows}) as writer:
        pass
    return TombstoneEntry(path.name, name, len(rows), writer.size)


class TombstoneFile(ArrayFile):
    """A file of row numbers in a collection's folder.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    uuid, collection : str
        What the file says of itself; to be compared with the manifest.
    n_rows : int

    Raises
    ------
    FileNotFoundError, FormatError, DamagedError
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, _KIND)
        self.uuid = self._raw_header.get("uuid")
        self.collection = self._raw_header.get("collection")
        self.n_rows = self._raw_header.get("n_rows")
        if type(self.n_rows) is not int or self.n_rows < 1:
            raise FormatError(f"{path}: header: n_rows is {self.n_rows!r}")
        self._check_arrays({_ROWS: ArraySpec(_ROW, (self.n_rows,))})

    def rows(self, n_stored: int) -> NDArray[np.int64]:
        """The rows, verified.

        Raises
        ------
        OSError, DamagedError
            Among others where they are not ascending rows of the ``n_stored`` that there are.
        """
        rows = self.read_all(_ROWS)
        if rows[0] < 0 or rows[-1] >= n_stored or (rows[1:] <= rows[:-1]).any():
            raise DamagedError(f"{self.path}: /{_ROWS} are not ascending rows of the collection")
        return rows
