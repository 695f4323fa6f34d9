"""What the machine can do at best: a scan's limits, measured beside it."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray
from timing import Call

_CACHED_WORDS = 1 << 11  # 16 KiB, which stays in a first-level cache


def reading(codes: NDArray[np.uint64], threads: int) -> Call:
    """Summing the words of the codes: no scan of one query is faster than memory."""
    words = codes.reshape(-1)
    return lambda: _sum_words(words, threads)


def counting(codes: NDArray[np.uint64], n_queries: int, threads: int) -> Call:
    """XOR and popcount of as many words, from the first-level cache: what a batch cannot beat.

    The loop is LLVM's own vectorisation, with eight queries for a word that is read. On processors
    that count bytes by table look-up a scan can be faster.
    """
    words = np.ascontiguousarray(codes.reshape(-1)[:_CACHED_WORDS])
    n_passes = codes.size * n_queries / words.size / 8
    return lambda: _count_words(words, max(1, round(n_passes)), threads)


@numba.njit(parallel=True, cache=True)
def _sum_words(words, n_parts):  # type: ignore[no-untyped-def]
    sums = np.zeros(n_parts, np.uint64)
    for part in numba.prange(n_parts):
        piece = words[words.size * part // n_parts : words.size * (part + 1) // n_parts]
        total = np.uint64(0)
        for i in range(piece.size):
            total += piece[i]
        sums[part] = total
    return sums.sum()


@numba.njit(cache=True)
def _popcount(word):  # type: ignore[no-untyped-def]
    # The form that LLVM knows as a popcount.
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    pairs = np.uint64(0x3333333333333333)
    word = (word & pairs) + ((word >> np.uint64(2)) & pairs)
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)


@numba.njit(parallel=True, cache=True)
def _count_words(words, n_passes, n_parts):  # type: ignore[no-untyped-def]
    sums = np.zeros(n_parts, np.uint64)
    for part in numba.prange(n_parts):
        begin, end = n_passes * part // n_parts, n_passes * (part + 1) // n_parts
        total = np.uint64(0)
        for i in range(begin, end):
            query = np.uint64(i)
            for j in range(words.size):
                word = words[j]
                for q in range(8):
                    total += _popcount(word ^ (query + np.uint64(q)))
        sums[part] = total
    return sums.sum()
