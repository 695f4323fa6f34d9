"""Rows with the same code as one group, pairs of groups as pairs of rows, and clusters of rows."""

import numpy as np
from numba import prange

from .compiling import kernel, parallel_kernel
from .launch import Launcher, share
from .pairs import PAIR_SHIFT
from .substrings import ROW_IN_PAIR_BITS

_ROW_SHIFT = np.uint64(ROW_IN_PAIR_BITS)
_ROW_MASK = np.uint64((1 << ROW_IN_PAIR_BITS) - 1)
_PAIR_MASK = (1 << PAIR_SHIFT) - 1

# A row number and a distance in one int64, the row in the high bits: sorted as one.
DISTANCE_BITS = 23  # see topk.MAX_BITS
_DISTANCE_MASK = (1 << DISTANCE_BITS) - 1
_SHORT = 24  # keys that are sorted by insertion


# Identical codes.


@kernel()
def _same(words, at, bt, n_words):
    for word in range(n_words):
        if words[at + word] != words[bt + word]:
            return False
    return True


@kernel()
def _bucket_begin(keyed, place):
    """The first place at or after this one where a bucket begins."""
    n = keyed.shape[0]
    while 0 < place < n and keyed[place] >> _ROW_SHIFT == keyed[place - 1] >> _ROW_SHIFT:
        place += 1
    return place


@kernel()
def last_alike_cell(cell, n_cells, codes, keyed, begin, end, last_alike):
    """Find the last row with the same code as each, for the buckets of a share of some places.

    codes : (n or more, n_words) uint64, in the order of keys
    keyed : (n,) uint64, ``key << 32 | row``, sorted; the same codes have the same key
    last_alike : (n,) int64, written
    """
    n_words = codes.shape[1]
    words = codes.reshape(-1)
    n = keyed.shape[0]
    first, last = share(end - begin, cell, n_cells)
    place = _bucket_begin(keyed, begin + first)
    stop = _bucket_begin(keyed, begin + last)
    different = np.empty(1, np.int64)  # the places of different codes of a bucket
    while place < stop:
        key = keyed[place] >> _ROW_SHIFT
        after = place + 1
        while after < n and keyed[after] >> _ROW_SHIFT == key:
            after += 1
        n_different = 0
        for i in range(after - 1, place - 1, -1):
            known = 0
            while known < n_different and not _same(
                words, i * n_words, different[known] * n_words, n_words
            ):
                known += 1
            if known == n_different:
                if n_different == different.size:
                    larger = np.empty(2 * n_different, np.int64)
                    larger[:n_different] = different
                    different = larger
                different[n_different] = i
                n_different += 1
            last_alike[keyed[i] & _ROW_MASK] = keyed[different[known]] & _ROW_MASK
        place = after


# Pairs of groups as pairs of rows.


@kernel()
def count_pairs(pairs, counts):
    """Count the pairs of each query: (n_queries + 1,) int64, one place further on."""
    for pair in pairs:
        counts[(pair >> PAIR_SHIFT) + 1] += 1


@kernel()
def place_pairs(pairs, distances, places, rows, bits):
    """Write the rows and distances of pairs where those of their query go next."""
    for i in range(pairs.shape[0]):
        q = pairs[i] >> PAIR_SHIFT
        place = places[q]
        places[q] = place + 1
        rows[place] = pairs[i] & _PAIR_MASK
        bits[place] = distances[i]


@kernel()
def _first_after(members, begin, end, row):
    """The place of the first member after a row."""
    while begin < end:
        middle = (begin + end) // 2
        if members[middle] > row:
            end = middle
        else:
            begin = middle + 1
    return begin


@kernel()
def count_rows_cell(
    cell, n_cells, begin, end, shift, group_of, offsets, groups, member_offsets, members, counts
):
    """Count the pairs of a share of rows ``begin`` to ``end``.

    shift : int, only with members above ``row + shift``
    group_of : (n,) int64, of each row
    offsets, groups : (n_groups + 1,) and (n_pairs,) int64, the groups on the other side that each
        group is paired with
    member_offsets, members : (n_others + 1,) and (n,) int64, the rows of these, ascending
    counts : (n,) int64, written from ``begin`` to ``end``
    """
    first, last = share(end - begin, cell, n_cells)
    for row in range(begin + first, begin + last):
        group = group_of[row]
        n = 0
        for i in range(offsets[group], offsets[group + 1]):
            first_member = member_offsets[groups[i]]
            end_member = member_offsets[groups[i] + 1]
            n += end_member - _first_after(members, first_member, end_member, row + shift)
        counts[row] = n


@kernel()
def _merge(keys, begin, middle, end, spare):
    """Merge two sorted runs."""
    if keys[middle - 1] <= keys[middle]:
        return
    n = middle - begin
    spare[:n] = keys[begin:middle]
    i = 0
    j = middle
    for place in range(begin, end):
        if i < n and (j == end or spare[i] <= keys[j]):
            keys[place] = spare[i]
            i += 1
        else:
            keys[place] = keys[j]
            j += 1
            if i == n:
                return


@kernel()
def _sort(keys, n, spare):
    """Sort the first keys: short runs by insertion, then merged."""
    for begin in range(0, n, _SHORT):
        for i in range(begin + 1, min(begin + _SHORT, n)):
            key = keys[i]
            j = i
            while j > begin and keys[j - 1] > key:
                keys[j] = keys[j - 1]
                j -= 1
            keys[j] = key
    width = _SHORT
    while width < n:
        for begin in range(0, n - width, 2 * width):
            _merge(keys, begin, begin + width, min(begin + 2 * width, n), spare)
        width *= 2


@kernel()
def write_rows_cell(
    cell,
    n_cells,
    bounds,
    shift,
    group_of,
    offsets,
    groups,
    bits,
    member_offsets,
    members,
    row_offsets,
    first_row,
    other_row,
    first,
    second,
    distances,
):
    """Write the pairs of rows ``bounds[cell]`` to ``bounds[cell + 1]``, ordered by (first, second).

    bits : (n_pairs,) int32, the distances of groups
    row_offsets : (n + 1,) int64, where the pairs of each row go
    first_row, other_row : int, the numbers of the first rows of both sides
    first, second, distances : int64, int64 and int32, written
    """
    longest = 0
    for row in range(bounds[cell], bounds[cell + 1]):
        longest = max(longest, row_offsets[row + 1] - row_offsets[row])
    keys = np.empty(longest, np.int64)
    spare = np.empty(longest, np.int64)
    for row in range(bounds[cell], bounds[cell + 1]):
        group = group_of[row]
        n = 0
        for i in range(offsets[group], offsets[group + 1]):
            first_member = member_offsets[groups[i]]
            end_member = member_offsets[groups[i] + 1]
            first_member = _first_after(members, first_member, end_member, row + shift)
            for member in range(first_member, end_member):
                keys[n] = (members[member] << DISTANCE_BITS) | np.int64(bits[i])
                n += 1
        _sort(keys, n, spare)
        at = row_offsets[row]
        for i in range(n):
            first[at + i] = first_row + row
            second[at + i] = other_row + (keys[i] >> DISTANCE_BITS)
            distances[at + i] = keys[i] & _DISTANCE_MASK


# Clusters: a forest in which the parent of a row is never after it.


@kernel()
def _root(parents, row):
    """The root of a row's tree; every other row on the way becomes a child of its grandparent."""
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = parents[row]
    return row


@kernel()
def _unite(parents, a, b):
    a = _root(parents, a)
    b = _root(parents, b)
    if a < b:
        parents[b] = a
    elif b < a:
        parents[a] = b


@kernel()
def unite_pairs(parents, pairs, first, first_of_rows, first_row, other_row):
    """Unite the trees of pairs of groups.

    parents : (n,) int64, changed
    first, first_of_rows : (n_groups,) int64, a row of each group, on both sides
    first_row, other_row : int, the numbers of the first rows of both sides
    """
    for pair in pairs:
        row = first_row + first[pair >> PAIR_SHIFT]
        _unite(parents, row, other_row + first_of_rows[pair & _PAIR_MASK])


@kernel()
def unite_groups(parents, group_of, first, first_row):
    """Unite the rows of each group with its first one."""
    for row in range(group_of.shape[0]):
        _unite(parents, first_row + row, first_row + first[group_of[row]])


@kernel()
def find_roots(parents):
    """Make every row a child of its root: its parent comes before it and has been done."""
    for row in range(parents.shape[0]):
        parents[row] = parents[parents[row]]


@parallel_kernel
def last_alike_cells(n_cells, done, codes, keyed, begin, end, last_alike):
    for cell in prange(n_cells):
        last_alike_cell(np.int64(cell), n_cells, codes, keyed, begin, end, last_alike)
        done[cell] = True


@parallel_kernel
def count_rows_cells(
    n_cells,
    done,
    begin,
    end,
    shift,
    group_of,
    offsets,
    groups,
    member_offsets,
    members,
    counts,
):
    for cell in prange(n_cells):
        count_rows_cell(
            np.int64(cell),
            n_cells,
            begin,
            end,
            shift,
            group_of,
            offsets,
            groups,
            member_offsets,
            members,
            counts,
        )
        done[cell] = True


@parallel_kernel
def write_rows_cells(
    n_cells,
    done,
    bounds,
    shift,
    group_of,
    offsets,
    groups,
    bits,
    member_offsets,
    members,
    row_offsets,
    first_row,
    other_row,
    first,
    second,
    distances,
):
    for cell in prange(n_cells):
        write_rows_cell(
            np.int64(cell),
            n_cells,
            bounds,
            shift,
            group_of,
            offsets,
            groups,
            bits,
            member_offsets,
            members,
            row_offsets,
            first_row,
            other_row,
            first,
            second,
            distances,
        )
        done[cell] = True


LAST_ALIKE = Launcher(last_alike_cell, last_alike_cells)
COUNT_ROWS = Launcher(count_rows_cell, count_rows_cells)
WRITE_ROWS = Launcher(write_rows_cell, write_rows_cells)
