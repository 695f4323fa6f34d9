"""Bits for rows: bit ``i % 64`` of word ``i // 64`` stands for row ``i``; those beyond are zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .checks import frozen

Words = NDArray[np.uint64]

WORD_BITS = 64
NO_BITS: Words = frozen(np.zeros(0, np.uint64))


def from_bools(bools: NDArray[np.bool_]) -> Words:
    """A bit for each bool."""
    words = np.zeros(-(-len(bools) // WORD_BITS), np.uint64)
    packed = np.packbits(bools, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    return words


def from_rows(rows: NDArray[np.int64], n_rows: int) -> Words:
    """The bits of some of ``n_rows`` rows."""
    words = np.zeros(-(-n_rows // WORD_BITS), np.uint64)
    bits = np.uint64(1) << (rows % WORD_BITS).astype(np.uint64)
    np.bitwise_or.at(words, rows // WORD_BITS, bits)
    return words


def union(a: Words, b: Words) -> Words:
    """The bits of either, as a new array."""
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    words = longer.copy()
    words[: len(shorter)] |= shorter
    return words


def cut(words: Words, first: int, n: int) -> Words:
    """The bits of rows ``first`` to ``first + n``, as a bitmap of them alone."""
    begin, shift = divmod(first, WORD_BITS)
    out = np.zeros(-(-n // WORD_BITS), np.uint64)
    source = words[begin : begin + len(out) + 1]
    low = source[: len(out)] >> np.uint64(shift)
    out[: len(low)] = low
    if shift:
        high = source[1:] << np.uint64(WORD_BITS - shift)
        out[: len(high)] |= high
    if n % WORD_BITS:
        out[-1] &= np.uint64((1 << n % WORD_BITS) - 1)
    return out


def to_bools(words: Words, first: int, n: int) -> NDArray[np.bool_]:
    """A bool for each of some rows."""
    bits = np.unpackbits(cut(words, first, n).view(np.uint8), count=n, bitorder="little")
    return bits.view(np.bool_)


def to_rows(words: Words) -> NDArray[np.int64]:
    """The rows whose bits are set, ascending."""
    return np.flatnonzero(to_bools(words, 0, WORD_BITS * len(words)))


def contains(words: Words, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the bits of some rows are set."""
    inside = rows < WORD_BITS * len(words)
    known = np.where(inside, rows, 0)
    if not len(words):
        return inside
    bits = words[known // WORD_BITS] >> (known % WORD_BITS).astype(np.uint64)
    found: NDArray[np.bool_] = inside & (bits & np.uint64(1)).astype(np.bool_)
    return found


def count(words: Words) -> int:
    """How many bits are set."""
    return int(np.bitwise_count(words).sum(dtype=np.int64))


class Rank:
    """How many bits are set below a row.

    Parameters
    ----------
    words : (m,) uint64
    """

    def __init__(self, words: Words) -> None:
        self._words = np.append(words, np.uint64(0))
        self._before = np.zeros(len(self._words), np.int64)
        np.cumsum(np.bitwise_count(words), out=self._before[1:])

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number for each row; all bits count for rows beyond the last."""
        places = np.minimum(rows // WORD_BITS, len(self._words) - 1)
        below = (np.uint64(1) << (rows % WORD_BITS).astype(np.uint64)) - np.uint64(1)
        ones = np.bitwise_count(self._words[places] & below)
        found: NDArray[np.int64] = self._before[places] + ones
        return found
