"""Codes as joins take them: an array, or blocks of something that holds more than memory does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..kernels.topk import MAX_BITS
from .distinct import Codes, Distinct, distinct

MAX_BLOCK_ROWS = 1 << 30  # numbered by 32 bits, two of them to a pair
MEMORY_BYTES = 1 << 30
_SHARE = 8  # of memory, for the codes of a block: two of them, sorted and copied, and more


class Block(NamedTuple):
    """Rows that are in memory together, ``first_row`` and on."""

    first_row: int
    codes: Codes
    distinct: Distinct


class Source:
    """Codes in blocks, and what their rows are called.

    Parameters
    ----------
    value : (n, n_words) uint64, or object with ``code_blocks``
        ``code_blocks(max_bytes)`` gives a sequence of blocks ``(ids, codes)``, always the same,
        whose codes take about so many bytes each.
    name : str
        Of the argument.
    memory_bytes : int
        What two blocks and what is made of them may take.
    threads : int or None
    """

    def __init__(self, value: Any, name: str, memory_bytes: int, threads: int | None) -> None:
        self._threads = threads
        self._kept: dict[int, Block] = {}
        self._blocks: Sequence[Any] | None = None
        self._codes: Codes | None = None
        self.ids: NDArray[Any] | None = None  # row numbers where there are none
        if hasattr(value, "code_blocks"):
            self._blocks = value.code_blocks(max(1, memory_bytes // _SHARE))
            self._read_ids(self._blocks, name)
        else:
            self._codes = code_array(value, name)
            self.n_words = self._codes.shape[1]
            self.n_rows = len(self._codes)
            self._first_rows = list(range(0, self.n_rows, MAX_BLOCK_ROWS))

    def _read_ids(self, blocks: Sequence[Any], name: str) -> None:
        self._first_rows, ids = [], []
        self.n_rows = self.n_words = 0
        for some_ids, codes in blocks:
            self._first_rows.append(self.n_rows)
            self.n_rows += len(codes)
            self.n_words = codes.shape[1]
            ids.append(some_ids)
            if len(codes) > MAX_BLOCK_ROWS:
                raise ValueError(
                    f"{name} has a block of {len(codes)} rows: at most {MAX_BLOCK_ROWS}"
                )
        self.ids = np.concatenate(ids) if ids else np.zeros(0, np.int64)

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._first_rows)

    def rows_from(self, number: int) -> int:
        """How many rows there are from a block on."""
        return self.n_rows - self._first_rows[number]

    def block(self, number: int) -> Block:
        """A block; the last two that were asked for are kept."""
        if number not in self._kept:
            if len(self._kept) == 2:
                del self._kept[min(self._kept)]
            first_row = self._first_rows[number]
            if self._codes is not None:
                codes = self._codes[first_row : first_row + MAX_BLOCK_ROWS]
            else:
                assert self._blocks is not None
                codes = checks.codes(self._blocks[number][1], "codes")
            self._kept[number] = Block(first_row, codes, distinct(codes, self._threads))
        return self._kept[number]

    def named(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """What rows are called: their ids, or their numbers."""
        return rows if self.ids is None else self.ids[rows]


def check_words(a: Source, b: Source) -> None:
    """Refuse to compare codes of different lengths."""
    if a.n_words != b.n_words and a.n_rows and b.n_rows:
        raise ValueError(f"b has {b.n_words} words a code, a has {a.n_words}")


def code_array(value: Any, name: str) -> Codes:
    """Codes as `checks.codes` gives them, of a length that all kernels take."""
    codes = checks.codes(value, name)
    if 64 * codes.shape[1] > MAX_BITS:
        raise ValueError(
            f"{name} must have at most {MAX_BITS // 64} words a code, got {codes.shape[1]}"
        )
    return codes
