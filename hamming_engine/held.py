"""Codes in memory, in the order in which scans read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .checks import frozen
from .kernels.blocks import TURN, get_rows, put_rows
from .kernels.columns import BLOCK_ROWS
from .kernels.find import MAX_BLOCK_WORDS
from .kernels.launch import WORK_PER_LAUNCH, usable_threads
from .kernels.methods import PLAIN, best_method

_ROWS_TURNED_BACK = 1 << 16  # in one call of a kernel, which cannot be interrupted
_SPARE_BYTES = 64 << 20  # at most, of a piece: for rows to come

NO_FACTORS: NDArray[np.float32] = frozen(np.zeros((0, 2), np.float32))


class Piece(NamedTuple):
    """Rows that lie together.

    Attributes
    ----------
    first_row : int
    n_rows : int
    codes : (n_rows, n_words) uint64, or (ceil(n_rows / 64), 8 * n_words, 64) uint8
        Row-major, or blocks; see ``kernels.blocks``.
    factors : (n_rows, 2) float32, or (0, 2)
        Numbers that correct the scores of each row, row-major; none by default.
    """

    first_row: int
    n_rows: int
    codes: NDArray[Any]
    factors: NDArray[np.float32] = NO_FACTORS

    def split(self, n_rows: int) -> Iterator[Piece]:
        """The same in parts of so many rows, a multiple of 64, or less."""
        blocked = self.codes.ndim == 3
        for begin in range(0, self.n_rows, n_rows):
            end = min(begin + n_rows, self.n_rows)
            if blocked:
                codes = self.codes[begin // BLOCK_ROWS : -(-end // BLOCK_ROWS)]
            else:
                codes = self.codes[begin:end]
            factors = self.factors[begin:end]  # or none of none
            yield Piece(self.first_row + begin, end - begin, codes, factors)


def aligned_bytes(n_bytes: int) -> NDArray[np.uint8]:
    """Room for bytes, beginning where a cache line does.

    Kernels load 64 bytes at once, columns of codes and tables: that is one line then, not two.
    """
    room = np.empty(n_bytes + BLOCK_ROWS, np.uint8)
    begin = -room.ctypes.data % BLOCK_ROWS
    return room[begin : begin + n_bytes]


class _Room(NamedTuple):
    """Room for rows, from ``first_row`` on, and the arrays; ``to_read`` as kernels take them."""

    first_row: int
    n_rows: int
    array: NDArray[Any]
    to_read: NDArray[Any]
    factors: NDArray[np.float32]


class HeldCodes:
    """Codes that grow by rows; nothing that is there is ever moved.

    They lie in pieces, each allocated at once, and a piece begins at a multiple of 64 rows. So rows
    may be added while other threads search those that were there.

    Parameters
    ----------
    n_words : int
    method : int, optional
        What they will be scanned with, one of ``kernels.methods``; the best by default.
    n_factors : int
        Of each row, kept beside its code; 0 or 2.
    """

    def __init__(self, n_words: int, method: int | None = None, n_factors: int = 0) -> None:
        self.method = best_method() if method is None else method
        self._n_words = n_words
        self._n_factors = n_factors
        self._blocked = self.method != PLAIN and n_words <= MAX_BLOCK_WORDS
        self._pieces: list[_Room] = []
        self._n = 0

    def __len__(self) -> int:
        return self._n

    @property
    def n_free(self) -> int:
        """Rows for which there is room."""
        return self._capacity - self._n

    @property
    def _capacity(self) -> int:
        return self._pieces[-1].first_row + self._pieces[-1].n_rows if self._pieces else 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(room.array.nbytes + room.factors.nbytes for room in self._pieces)

    def reserve(self, n_rows: int) -> None:
        """Make room for so many rows more, exactly."""
        n_missing = n_rows - self.n_free
        if n_missing <= 0:
            return
        n_blocks = -(-n_missing // BLOCK_ROWS)
        if self._blocked:
            array = aligned_bytes(n_blocks * 8 * self._n_words * BLOCK_ROWS)
            array = array.reshape(n_blocks, 8 * self._n_words, BLOCK_ROWS)
        else:
            array = np.empty((n_blocks * BLOCK_ROWS, self._n_words), np.uint64)
        to_read = array if self._blocked else frozen(array)  # as kernels are compiled for
        n_rows = n_blocks * BLOCK_ROWS
        factors = np.empty((n_rows, self._n_factors), np.float32) if self._n_factors else NO_FACTORS
        self._pieces.append(_Room(self._capacity, n_rows, array, to_read, factors))

    def grow(self, n_rows: int, at_most: int | None = None) -> None:
        """Make room for so many rows more and for some to come, so that growing is rare."""
        if n_rows > self.n_free:
            spare = min(self._n // 2, _SPARE_BYTES // (8 * self._n_words + 4 * self._n_factors))
            self.reserve(max(n_rows, spare if at_most is None else min(spare, at_most)))

    def append(self, codes: NDArray[np.uint64], factors: NDArray[np.float32] | None = None) -> None:
        """Add rows."""
        self.grow(len(codes))
        self.write(self._n, codes, factors=factors)
        self.publish(len(codes))

    def write(
        self,
        first_row: int,
        codes: NDArray[np.uint64],
        threads: int | None = None,
        factors: NDArray[np.float32] | None = None,
    ) -> None:
        """Lay down rows for which room was reserved; several threads may do so for other rows.

        ``factors`` are given where, and only where, they are kept.
        """
        if (factors is None) != (self._n_factors == 0):
            raise ValueError(f"factors must be given where they are kept: {self._n_factors} a row")
        end = first_row + len(codes)
        for room in self._pieces:
            begin = max(first_row, room.first_row)
            stop = min(end, room.first_row + room.n_rows)
            if begin < stop:
                part = frozen(codes[begin - first_row : stop - first_row])
                self._write_piece(room.array, begin - room.first_row, part, threads)
                if factors is not None:
                    room.factors[begin - room.first_row : stop - room.first_row] = factors[
                        begin - first_row : stop - first_row
                    ]

    def _write_piece(
        self, array: NDArray[Any], first_row: int, codes: NDArray[np.uint64], threads: int | None
    ) -> None:
        if not self._blocked:
            array[first_row : first_row + len(codes)] = codes
            return
        # Blocks that begin or end with rows of others are written byte by byte.
        n_first = min(-first_row % BLOCK_ROWS, len(codes))
        n_last = (len(codes) - n_first) % BLOCK_ROWS
        whole = codes[n_first : len(codes) - n_last]
        put_rows(codes[:n_first], array, first_row)
        block = (first_row + n_first) // BLOCK_ROWS
        n_threads = usable_threads(threads)
        step = max(1, WORK_PER_LAUNCH * n_threads // (BLOCK_ROWS * self._n_words))
        for begin in range(0, len(whole) // BLOCK_ROWS, step):
            part = whole[begin * BLOCK_ROWS : (begin + step) * BLOCK_ROWS]
            blocks = array[block + begin : block + begin + len(part) // BLOCK_ROWS]
            TURN(n_threads, part, blocks, work=part.size)
        put_rows(codes[len(codes) - n_last :], array, first_row + len(codes) - n_last)

    def publish(self, n_rows: int) -> None:
        """Count so many rows more as there."""
        self._n += n_rows

    def pieces(self, n_rows: int) -> Iterator[Piece]:
        """The first ``n_rows`` rows, as they lie."""
        for room in self._pieces:
            n = min(n_rows - room.first_row, room.n_rows)
            if n <= 0:
                return
            stop = -(-n // BLOCK_ROWS) if self._blocked else n
            yield Piece(room.first_row, n, room.to_read[:stop], frozen(room.factors[:n]))

    def take(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """Copies of the codes and factors of some rows, (n, n_words) and (n, n_factors)."""
        codes = np.empty((len(rows), self._n_words), np.uint64)
        factors = np.empty((len(rows), self._n_factors), np.float32)
        for room in self._pieces:
            inside = (rows >= room.first_row) & (rows < room.first_row + room.n_rows)
            places = rows[inside] - room.first_row
            if self._blocked:
                columns = room.array[places // BLOCK_ROWS, :, places % BLOCK_ROWS]
                codes[inside] = np.ascontiguousarray(columns).view(np.uint64)
            else:
                codes[inside] = room.array[places]
            if self._n_factors:
                factors[inside] = room.factors[places]
        return codes, factors

    def rows(self) -> NDArray[np.uint64]:
        """All codes, row by row: a copy, (len(self), n_words)."""
        n = self._n
        codes = np.empty((n, self._n_words), np.uint64)
        for piece in self.pieces(n):
            out = codes[piece.first_row : piece.first_row + piece.n_rows]
            if not self._blocked:
                out[:] = piece.codes
                continue
            for begin in range(0, piece.n_rows, _ROWS_TURNED_BACK):
                get_rows(piece.codes, begin, out[begin : begin + _ROWS_TURNED_BACK])
        return codes
