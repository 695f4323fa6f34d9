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
        self.chosen = chosen
        self.removed = removed
        self.n_allowed = self._count(n_rows)

    @property
    def all_rows(self) -> bool:
        """Whether it lets everything through."""
        return self.chosen is None and self.removed is None

    def _count(self, n_rows: int) -> int:
        """How many rows are let through."""
        if self.removed is None:
            if self.chosen is None:
                return n_rows
            if self.chosen.dtype == np.bool_:
                return int(np.count_nonzero(self.chosen))
            return len(self.chosen)
        if self.chosen is None:
            return n_rows - bitmaps.count(bitmaps.cut(self.removed, 0, n_rows))
        return self.count(0, n_rows)

    def count(self, first_row: int, n_rows: int) -> int:
        """How many of some rows are let through."""
        if self.all_rows:
            return n_rows
        starts = range(first_row, first_row + n_rows, MAX_PIECE_ROWS)
        count = 0
        for start in starts:
            n = min(MAX_PIECE_ROWS, first_row + n_rows - start)
            count += bitmaps.count(bitmaps.cut(self.words(start, n), 0, n))
        return count

    def words(self, first_row: int, n_rows: int) -> Words:
        """The bits of some rows; no words where all are let through."""
        if self.chosen is None and self.removed is None:
            return ALL_ROWS
        if self.chosen is None:  # scans know the number of rows: more bits do no harm
            words = np.full(-(-n_rows // bitmaps.WORD_BITS), ~np.uint64(0))
        elif self.chosen.dtype == np.bool_:
            words = bitmaps.from_bools(self.chosen[first_row : first_row + n_rows])
        else:
            begin, end = np.searchsorted(self.chosen, (first_row, first_row + n_rows))
            words = bitmaps.from_rows(self.chosen[begin:end] - first_row, n_rows)
        if self.removed is not None:
            words &= ~bitmaps.cut(self.removed, first_row, n_rows)
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
