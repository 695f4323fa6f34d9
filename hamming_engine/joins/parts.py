"""How codes are cut into parts by which close ones are found; see ``kernels.buckets``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import frozen
from ..kernels.buckets import GATHER, GATHER_SLACK, KEYS
from ..kernels.launch import usable_threads
from ..kernels.substrings import ROW_IN_PAIR_BITS, pair_launches, sort_pairs

Codes = NDArray[np.uint64]

# Buckets of keys: 64 MiB of offsets. More bits than rows have only make them emptier.
_MAX_KEY_BITS = 24
_SPARE_KEY_BITS = 1
_MAX_FLIPS = 512  # buckets that are looked up for a row, by part
_SEED = 20_140  # of the linear maps; results do not depend on it


class Part(NamedTuple):
    """Some bits of a code and a linear map of them to a key.

    Attributes
    ----------
    mask : (n_words,) uint64
        The bits.
    rest : int
        In so many of them two codes may differ.
    key_bits : int
    first_byte : int
    tables : (n_bytes, 256) uint32
        What each value of a byte adds to the key, from ``first_byte`` of the code on.
    flips : (n,) uint32
        What differs in the keys of codes that differ in ``rest`` of the bits at most.
    """

    mask: Codes
    rest: int
    key_bits: int
    first_byte: int
    tables: NDArray[np.uint32]
    flips: NDArray[np.uint32]


class Sorted(NamedTuple):
    """Rows in the order of their keys.

    Attributes
    ----------
    keyed : (n,) uint64
        ``key << 32 | row``.
    codes : (n + GATHER_SLACK, n_words) uint64
        Their codes, in this order.
    """

    keyed: NDArray[np.uint64]
    codes: Codes


def varying_bits(*sides: Codes) -> NDArray[np.int64]:
    """The bits in which any of some codes differ, ascending, bit 0 being the lowest of word 0.

    All others, such as pad bits, differ in no pair.
    """
    sides = tuple(codes for codes in sides if len(codes))
    if not sides:
        return np.zeros(0, np.int64)
    ones = np.bitwise_or.reduce([np.bitwise_or.reduce(codes, axis=0) for codes in sides])
    zeros = np.bitwise_and.reduce([np.bitwise_and.reduce(codes, axis=0) for codes in sides])
    little = (ones & ~zeros).astype("<u8").view(np.uint8)
    return np.flatnonzero(np.unpackbits(little, bitorder="little")).astype(np.int64)


def key_bits_for(n_rows: int) -> int:
    """Bits of a key with which a bucket of unrelated codes holds one row or less."""
    return min(_MAX_KEY_BITS, max(1, n_rows.bit_length() + _SPARE_KEY_BITS))


def make_part(bits: NDArray[np.int64], n_words: int, rest: int, most_key_bits: int) -> Part:
    """A part of some bits, which ascend."""
    n = len(bits)
    key_bits = max(1, min(n, most_key_bits))
    columns = np.uint32(1) << np.arange(key_bits, dtype=np.uint32)
    if n > key_bits:
        drawn = np.random.default_rng(_SEED).integers(
            1, 1 << key_bits, n - key_bits, dtype=np.uint32
        )
        columns = np.concatenate([columns, drawn])
    mask = np.zeros(n_words, np.uint64)
    first_byte = int(bits[0]) // 8 if n else 0
    tables = np.zeros((int(bits[-1]) // 8 + 1 - first_byte if n else 0, 256), np.uint32)
    values = np.arange(256)
    for bit, column in zip(bits.tolist(), columns, strict=False):
        mask[bit // 64] |= np.uint64(1 << bit % 64)
        tables[bit // 8 - first_byte, values >> bit % 8 & 1 == 1] ^= column
    flips = [np.bitwise_xor.reduce(columns[list(some)]) for some in _up_to(rest, n)]
    return Part(
        frozen(mask),
        rest,
        key_bits,
        first_byte,
        frozen(tables),
        frozen(np.unique(np.array(flips, np.uint32))),
    )


def _up_to(rest: int, n: int) -> Iterator[tuple[int, ...]]:
    for size in range(rest + 1):
        yield from combinations(range(n), size)


def cuts(n_bits: int, radius: int) -> Iterator[list[tuple[int, int, int]]]:
    """Ways to cut so many bits into parts, each as (begin, end, rest).

    ``radius + 1`` parts with a rest of none, or fewer with a rest of some.
    """
    for n_parts in range(min(radius + 1, n_bits), 0, -1):
        rest, n_wide = divmod(radius, n_parts)
        edges = [n_bits * i // n_parts for i in range(n_parts + 1)]
        parts = [
            (edges[i], edges[i + 1], rest if i <= n_wide else rest - 1) for i in range(n_parts)
        ]
        n_flips = max(n_flips_of(end - begin, rest) for begin, end, rest in parts)
        if n_flips > _MAX_FLIPS:
            return
        yield parts


def n_flips_of(n_bits: int, rest: int) -> int:
    """In how many ways so many bits can differ in ``rest`` of them at most."""
    n, term = 0, 1
    for size in range(rest + 1):
        n += term
        term = term * (n_bits - size) // (size + 1)
    return n


def sorted_by_key(codes: Codes, part: Part, threads: int | None) -> NDArray[np.uint64]:
    """``key << 32 | row`` of some codes, ascending."""
    n_cells = usable_threads(threads)
    keyed, moved = np.empty(len(codes), np.uint64), np.empty(len(codes), np.uint64)
    for begin, end, work in pair_launches(len(codes), n_cells):
        KEYS(n_cells, codes, begin, end, part.first_byte, part.tables, keyed, work=work)
    found: NDArray[np.uint64] = sort_pairs(keyed, moved, part.key_bits, n_cells)
    return found


def gathered(codes: Codes, keyed: NDArray[np.uint64], threads: int | None) -> Sorted:
    """Rows and their codes in the order of keys."""
    n_cells = usable_threads(threads)
    n, n_words = codes.shape
    copy = np.empty((n + GATHER_SLACK, n_words), np.uint64)
    copy[n:] = 0
    for begin, end, work in pair_launches(n, n_cells):
        GATHER(n_cells, codes, keyed, begin, end, copy, work=work * n_words)
    return Sorted(frozen(keyed), frozen(copy))


def keys(codes: Codes, part: Part) -> NDArray[np.int64]:
    """The key of each code."""
    keyed = np.empty(len(codes), np.uint64)
    for begin, end, work in pair_launches(len(codes), 1):
        KEYS(1, codes, begin, end, part.first_byte, part.tables, keyed, work=work)
    return (keyed >> np.uint64(ROW_IN_PAIR_BITS)).astype(np.int64)


def stacked(parts: Sequence[Part]) -> tuple[Any, Any]:
    """(masks, rests) of some parts, as kernels take them."""
    masks = np.array([part.mask for part in parts], np.uint64)
    return frozen(masks), frozen(np.array([part.rest for part in parts], np.int64))
