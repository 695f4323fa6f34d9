"""Rows with the same code as one: what joins compare."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import frozen
from ..kernels.groups import LAST_ALIKE
from ..kernels.launch import usable_threads
from ..kernels.substrings import pair_launches
from .parts import gathered, key_bits_for, make_part, sorted_by_key, varying_bits

Codes = NDArray[np.uint64]
Rows = NDArray[np.int64]


class Distinct(NamedTuple):
    """Different codes, each with the rows that have it, its group; numbered by their last rows.

    Attributes
    ----------
    codes : (n_groups, n_words) uint64
    group_of : (n_rows,) int64
    first, last : (n_groups,) int64
        Of the rows of each group; ``last`` ascends.
    offsets : (n_groups + 1,) int64
    members : (n_rows,) int64
        The rows of group ``i``, ascending, are ``members[offsets[i] : offsets[i + 1]]``.
    """

    codes: Codes
    group_of: Rows
    first: Rows
    last: Rows
    offsets: Rows
    members: Rows

    @property
    def sizes(self) -> Rows:
        """How many rows each group has."""
        return np.diff(self.offsets)


def distinct(codes: Codes, threads: int | None = None) -> Distinct:
    """Group the rows of some codes."""
    n, n_words = codes.shape
    bits = varying_bits(codes)
    rows = frozen(np.arange(n + 1))
    alone = Distinct(codes, rows[:n], rows[:n], rows[:n], rows, rows[:n])
    if n < 2:
        return alone
    keyed = sorted_by_key(codes, make_part(bits, n_words, 0, key_bits_for(n)), threads)
    by_key = gathered(codes, keyed, threads)
    last_alike = np.empty(n, np.int64)
    n_cells = usable_threads(threads)
    for begin, end, work in pair_launches(n, n_cells):
        LAST_ALIKE(n_cells, by_key.codes, by_key.keyed, begin, end, last_alike, work=work)
    is_last = last_alike == rows[:n]
    last = np.flatnonzero(is_last)
    if len(last) == n:
        return alone
    number = np.cumsum(is_last) - 1
    group_of = number[last_alike]
    members = np.argsort(group_of, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(group_of))])
    return Distinct(
        frozen(codes[last]),
        frozen(group_of),
        frozen(members[offsets[:-1]]),
        frozen(last),
        frozen(offsets),
        frozen(members),
    )
