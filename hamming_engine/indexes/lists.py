"""Inverted lists: the codes of each cell together, as scans read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .. import bitmaps
from ..checks import frozen
from ..held import aligned_bytes
from ..kernels.columns import BLOCK_ROWS
from ..kernels.launch import usable_threads
from ..kernels.lists import ALLOW, PUT, TAKE

Codes = NDArray[np.uint64]
Rows = NDArray[np.int64]

Verify = Callable[[NDArray[np.int64]], None]

NO_ROW = -1


@dataclass(frozen=True, eq=False)
class Lists:
    """Rows by list; never changed, `with_rows` makes others.

    Attributes
    ----------
    begins : (n_lists + 1,) int64
        Blocks at which lists begin.
    blocks : (n_blocks, 8 * n_words, 64) uint8
        See ``kernels.blocks``; a list's first row is in the first place of its first block.
    rows : (64 * n_blocks,) int64
        Ascending in a list; `NO_ROW` behind them.
    filled : (n_blocks,) uint64
        A bit for each place that has a row.
    factors : (64 * n_blocks, 2) float32, or (64 * n_blocks, 0)
    verify : callable, optional
        Called with numbers of blocks before what they hold is used, where files may be damaged.
    """

    begins: NDArray[np.int64]
    blocks: NDArray[np.uint8]
    rows: Rows
    filled: NDArray[np.uint64]
    factors: NDArray[np.float32]
    verify: Verify | None = None

    @classmethod
    def empty(cls, n_words: int, n_factors: int) -> Lists:
        """No lists."""
        factors = np.empty((0, n_factors), np.float32)
        blocks = frozen(np.empty((0, 8 * n_words, BLOCK_ROWS), np.uint8))
        no_rows = np.zeros(0, np.int64)
        return cls(
            frozen(np.zeros(1, np.int64)),
            blocks,
            frozen(no_rows),
            frozen(no_rows.view(np.uint64)),
            frozen(factors),
        )

    def __len__(self) -> int:
        return len(self.begins) - 1

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Rows in each list."""
        return self.count(self.filled)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = self.begins, self.blocks, self.rows, self.filled, self.factors
        return sum(array.nbytes for array in arrays)

    def check(self, lists: NDArray[np.int64]) -> None:
        """Verify some lists, each perhaps several times."""
        if self.verify is not None:
            chosen = np.zeros(len(self), np.bool_)
            chosen[lists] = True
            self.verify(np.flatnonzero(np.repeat(chosen, np.diff(self.begins))))

    def check_all(self) -> None:
        """Verify all lists."""
        if self.verify is not None:
            self.verify(np.arange(len(self.filled)))

    def count(self, allowed: NDArray[np.uint64]) -> NDArray[np.int64]:
        """How many places of each list have their bit set."""
        before = np.zeros(len(allowed) + 1, np.int64)
        np.cumsum(np.bitwise_count(allowed), out=before[1:])
        counts: NDArray[np.int64] = np.diff(before[self.begins])
        return counts

    def allowed(self, bits: bitmaps.Words, threads: int | None) -> NDArray[np.uint64]:
        """Bits by place from bits by row, which must reach to the last row."""
        self.check_all()
        allowed = np.empty(len(self.filled), np.uint64)
        ALLOW(usable_threads(threads), self.rows, frozen(bits), allowed, work=8 * len(self.rows))
        return frozen(allowed)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """The place of each row, for rows that are numbered without gaps."""
        self.check_all()
        filled = np.flatnonzero(self.rows != NO_ROW)
        order = np.argsort(self.rows[filled], kind="stable")
        places: NDArray[np.int64] = filled[order]
        return places

    def take(self, places: NDArray[np.int64]) -> tuple[Codes, NDArray[np.float32]]:
        """Copies of the codes and factors in some places, (n, n_words) and (n, 2) or (n, 0)."""
        codes = np.empty((len(places), self.blocks.shape[1] // 8), np.uint64)
        TAKE(usable_threads(None), self.blocks, frozen(places), codes, work=16 * codes.size)
        return codes, self.factors[places]

    def places_of(self, which: int) -> NDArray[np.int64]:
        """The places of a list that have a row."""
        begin, end = BLOCK_ROWS * self.begins[which], BLOCK_ROWS * self.begins[which + 1]
        places: NDArray[np.int64] = begin + np.flatnonzero(self.rows[begin:end] != NO_ROW)
        return places

    def with_rows(
        self,
        rows: Rows,
        codes: Codes,
        factors: NDArray[np.float32],
        assigned: NDArray[np.int64],
        n_lists: int,
        threads: int | None,
    ) -> Lists:
        """These lists and more rows in them, and more lists, up to ``n_lists``.

        Parameters
        ----------
        rows : (n,) int64
            Ascending, and behind all that are there.
        codes : (n, n_words) uint64
        factors : (n, 2) float32, or (n, 0)
        assigned : (n,) int64
            The list of each row.
        """
        self.check_all()
        sizes = np.zeros(n_lists, np.int64)
        sizes[: len(self)] = self.sizes
        added = np.bincount(assigned, minlength=n_lists)
        begins = np.zeros(n_lists + 1, np.int64)
        np.cumsum(-(-(sizes + added) // BLOCK_ROWS), out=begins[1:])
        n_blocks, n_columns = int(begins[-1]), self.blocks.shape[1]
        blocks = aligned_bytes(n_blocks * n_columns * BLOCK_ROWS)
        blocks[:] = 0  # all of it may go to a file
        blocks = blocks.reshape(n_blocks, n_columns, BLOCK_ROWS)
        new_rows = np.full((n_blocks, BLOCK_ROWS), NO_ROW, np.int64)
        # Where old blocks go: as far from the new beginning of their list as from the old one.
        moved = np.arange(len(self.blocks)) + np.repeat(
            begins[: len(self)] - self.begins[:-1], np.diff(self.begins)
        )
        blocks[moved] = self.blocks
        new_rows[moved] = self.rows.reshape(-1, BLOCK_ROWS)
        order = np.argsort(assigned, kind="stable")
        first_of_list = np.cumsum(added) - added
        within = np.arange(len(rows)) - np.repeat(first_of_list, added)
        places = np.empty(len(rows), np.int64)
        places[order] = (BLOCK_ROWS * begins[:-1] + sizes)[assigned[order]] + within
        PUT(usable_threads(threads), frozen(codes), frozen(places), blocks, work=16 * codes.size)
        new_rows.reshape(-1)[places] = rows
        filled = np.packbits(new_rows != NO_ROW, axis=1, bitorder="little").view(np.uint64)
        n_factors = factors.shape[1]
        new_factors = np.zeros((n_blocks, BLOCK_ROWS, n_factors), np.float32)
        new_factors[moved] = self.factors.reshape(len(self.filled), BLOCK_ROWS, n_factors)
        by_place = new_factors.reshape(n_blocks * BLOCK_ROWS, n_factors)
        by_place[places] = factors
        # Scans bound blocks by their factors: places without a row must not loosen that.
        empty = new_rows == NO_ROW
        new_factors[empty] = np.broadcast_to(new_factors[:, :1], new_factors.shape)[empty]
        return Lists(
            frozen(begins),
            frozen(blocks),
            frozen(new_rows.reshape(-1)),
            frozen(filled.reshape(-1)),
            frozen(by_place),
        )

    def without(self, lists: NDArray[np.int64]) -> Lists:
        """These lists, some of them emptied."""
        kept = np.ones(len(self), np.bool_)
        kept[lists] = False
        n_blocks = np.where(kept, np.diff(self.begins), 0)
        begins = np.zeros(len(self) + 1, np.int64)
        np.cumsum(n_blocks, out=begins[1:])
        block_kept = np.repeat(kept, np.diff(self.begins))
        by_place = np.repeat(block_kept, BLOCK_ROWS)
        return Lists(
            frozen(begins),
            frozen(self.blocks[block_kept]),
            frozen(self.rows[by_place]),
            frozen(self.filled[block_kept]),
            frozen(self.factors[by_place]),
        )
