"""Blocks of unknown number, laid down as one array: what an append of an iterator goes through.

A segment's arrays lie one after the other, so the number of rows has to be known before the first
is written. The blocks wait in a nameless file in the collection's folder, which is gone when it is
closed or the process dies, and come back as a map over it; memory never holds more than a block.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import files
from .errors import memory_errors


class Spool:
    """An (n, dim) array that grows on disk.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._shape = (0, 0)
        self._dtype: np.dtype[Any] | None = None

    def append(self, block: NDArray[Any]) -> None:
        """Add rows; all blocks have the width of the first, and no wider floats than it.

        Raises
        ------
        TypeError
            Where a block would lose precision in the first one's type.
        OSError
        """
        if self._dtype is None:
            self._dtype = block.dtype.newbyteorder("=")
            self._shape = (0, block.shape[1])
        if not np.can_cast(block.dtype, self._dtype):
            raise TypeError(f"a block of {block.dtype} follows blocks of {self._dtype}")
        rows = np.ascontiguousarray(block, self._dtype)
        files.write_at(self._file.fileno(), rows, self._shape[0] * rows[:1].nbytes)
        self._shape = (self._shape[0] + len(rows), self._shape[1])

    def array(self, dim: int) -> NDArray[Any]:
        """All rows, mapped; (0, dim) where none came."""
        if self._dtype is None or not self._shape[0]:
            return np.zeros((0, dim), np.float32)
        with memory_errors():
            return np.memmap(self._file, self._dtype, "r", shape=self._shape)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()
