"""Which rows a search may find, as scans take it: a bit for each row, a piece at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import bitmaps, checks
from ..bitmaps import NO_BITS, Words
from ..checks import frozen

ALL_ROWS = NO_BITS  # no words at all: every row is let through
MAX_PIECE_ROWS = 1 << 22  # what a piece's bits take stays small, whatever the number of rows


class Where:
    """The rows that a filter lets through and that are not removed.

    Parameters
    ----------
    n_rows : int
        Of the whole.
    chosen : (n_rows,) bool, or (m,) int64, optional
        A mask, or row numbers, ascending, each once. All rows by default.
    removed : (m,) uint64, optional
        A bit for each row that is not there any more; rows beyond the last bit are there, and
        bits beyond the last row are zero.
    """

    def __init__(
        self, n_rows: int, chosen: NDArray[Any] | None = None, removed: Words | None = None
    ) -> None:
        self._chosen = chosen
        self._removed = removed
        self.n_allowed = self._count(n_rows)

    @property
    def chooses(self) -> bool:
        """Whether there is a filter, and not only removed rows."""
        return self._chosen is not None

    def _count(self, n_rows: int) -> int:
        """How many rows are let through."""
        if self._removed is None:
            if self._chosen is None:
                return n_rows
            if self._chosen.dtype == np.bool_:
                return int(np.count_nonzero(self._chosen))
            return len(self._chosen)
        if self._chosen is None:
            return n_rows - bitmaps.count(bitmaps.cut(self._removed, 0, n_rows))
        starts = range(0, n_rows, MAX_PIECE_ROWS)
        pieces = (self.words(start, min(MAX_PIECE_ROWS, n_rows - start)) for start in starts)
        return sum(bitmaps.count(words) for words in pieces)

    def words(self, first_row: int, n_rows: int) -> Words:
        """The bits of some rows; no words where all are let through."""
        if self._chosen is None and self._removed is None:
            return ALL_ROWS
        if self._chosen is None:  # scans know the number of rows: more bits do no harm
            words = np.full(-(-n_rows // bitmaps.WORD_BITS), ~np.uint64(0))
        elif self._chosen.dtype == np.bool_:
            words = bitmaps.from_bools(self._chosen[first_row : first_row + n_rows])
        else:
            begin, end = np.searchsorted(self._chosen, (first_row, first_row + n_rows))
            words = bitmaps.from_rows(self._chosen[begin:end] - first_row, n_rows)
        if self._removed is not None:
            words &= ~bitmaps.cut(self._removed, first_row, n_rows)
        return frozen(words)


def rows_of(where: Any, n_rows: int, removed: Words | None) -> Where | None:
    """What a door's ``where`` and removed rows let through; None for all rows.

    Parameters
    ----------
    where : (n_rows,) bool or (m,) int, optional
        A mask over all rows, or their numbers.
    n_rows : int
    removed : (m,) uint64, optional
    """
    if where is None:
        return None if removed is None else Where(n_rows, None, removed)
    if checks.is_mask(where):
        return Where(n_rows, checks.mask(where, n_rows), removed)
    return Where(n_rows, np.unique(row_numbers(where, "where", n_rows)), removed)


def row_numbers(value: Any, name: str, n_rows: int) -> NDArray[np.int64]:
    """Row numbers below ``n_rows``, as they came."""
    rows = checks.array(value, name)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        expected = "a bool mask or a 1-d array of row numbers"
        raise TypeError(f"{name} must be {expected}, got {rows.dtype} of shape {rows.shape}")
    if rows.size and (rows.min() < 0 or rows.max() >= n_rows):
        outside = rows[(rows < 0) | (rows >= n_rows)][0]
        raise ValueError(f"{name} names row {outside}, there are {n_rows}")
    return rows.astype(np.int64)
