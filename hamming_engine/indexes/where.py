"""Which rows a search may find, as scans take it: a bit for each row, a piece at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import frozen
from ..kernels.columns import BLOCK_ROWS
from ..kernels.intrinsics import ALL_ONES

Words = NDArray[np.uint64]

ALL_ROWS: Words = frozen(np.zeros(0, np.uint64))
MAX_PIECE_ROWS = 1 << 22  # what a piece's bits take stays small, whatever the number of rows


def pack_bits(bools: NDArray[np.bool_]) -> Words:
    """Bit ``i % 64`` of word ``i // 64`` for each bool ``i``."""
    words = np.zeros(-(-len(bools) // BLOCK_ROWS), np.uint64)
    packed = np.packbits(bools, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    return words


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

    def _count(self, n_rows: int) -> int:
        """How many rows are let through."""
        if self._removed is None:
            if self._chosen is None:
                return n_rows
            if self._chosen.dtype == np.bool_:
                return int(np.count_nonzero(self._chosen))
            return len(self._chosen)
        if self._chosen is None:
            known = self._removed[: -(-n_rows // BLOCK_ROWS)]
            return n_rows - int(np.bitwise_count(known).sum(dtype=np.int64))
        starts = range(0, n_rows, MAX_PIECE_ROWS)
        pieces = (self.words(start, min(MAX_PIECE_ROWS, n_rows - start)) for start in starts)
        return sum(int(np.bitwise_count(words).sum(dtype=np.int64)) for words in pieces)

    def words(self, first_row: int, n_rows: int) -> Words:
        """The bits of some rows; no words where all are let through.

        With removed rows ``first_row`` has to be a multiple of 64.
        """
        if self._chosen is None and self._removed is None:
            return ALL_ROWS
        if self._chosen is None:  # scans know the number of rows: more bits do no harm
            words = np.full(-(-n_rows // BLOCK_ROWS), ALL_ONES)
        elif self._chosen.dtype == np.bool_:
            words = pack_bits(self._chosen[first_row : first_row + n_rows])
        else:
            begin, end = np.searchsorted(self._chosen, (first_row, first_row + n_rows))
            bools = np.zeros(n_rows, np.bool_)
            bools[self._chosen[begin:end] - first_row] = True
            words = pack_bits(bools)
        if self._removed is not None:
            first_word = first_row // BLOCK_ROWS
            removed = self._removed[first_word : first_word + len(words)]
            words[: len(removed)] &= ~removed
        return frozen(words)
