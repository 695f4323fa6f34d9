"""Search in hash tables over substrings of codes: the kernels of multi-index hashing.

Codes that differ in at most r bits differ in at most r' bits in at least one of m substrings, if
the r' of the substrings, each plus one, add up to more than r (Norouzi, Punjani, Fleet: "Fast
Search in Hamming Space with Multi-Index Hashing", CVPR 2012, where they differ by one at most; that
they may be any is the pigeonhole principle of Qin, Wang, Xiao, Wang, Lin, Ishikawa: "GPH:
Similarity Search in Hamming Space", ICDE 2018). So a query looks into *rings*: the buckets of a
table whose number differs from its own in exactly t bits. Every ring, taken in order in each table,
makes the radius within which all rows are found larger by one; which table comes next is free, and
the cheapest does. The k nearest are known when the k-th is within that radius.

A row is met in several tables. It counts where it is met first, which its code tells: in no table
does its substring lie in a ring that was done before. So there is no list of rows seen.

Beside its rows, a table holds a word of each row's code, in the order of its buckets: the whole
code, where that has one word; else the word behind its substring, which bounds the distance from
below. So a bucket is read front to back, eight rows at a time, and few rows need their code. With
rows alone, and their codes somewhere else, each costs a cache miss.
"""

from collections import namedtuple

import numpy as np
from numba import prange

from .compiling import kernel, parallel_kernel
from .intrinsics import ALL_ONES, first_bit, popcount64, prefetch
from .lanes import (
    N_LANES,
    add_differing_bits_where,
    lanes_below,
    load_lanes,
    no_lanes,
)
from .launch import Launcher, share
from .substrings import ROW_IN_PAIR_BITS, substring
from .topk import ROW_BITS, limit_of, replace_largest

# Substrings of rows that lie together; flat arrays but for the numbers.
#
# first_row : of the whole
# width : bits in a substring; that of table i begins at dimension i * width
# offsets : uint32, (table, 2**width + 1), where buckets begin among the table's rows
# rows : uint32, (table, row), without first_row
# words : uint64, (table, row)
# codes : uint64, (row, word)
# masks : uint64, (table, 2), the bits of the substring in the word it begins in and the next one
Tables = namedtuple(
    "Tables", "first_row n_rows n_words n_tables width offsets rows words codes masks"
)

# Which rows may be found, a bit for each row of the whole: those of ``allowed``, or all if it is
# empty, and not those of ``removed``, which may end before the last row.
Filter = namedtuple("Filter", "allowed removed")

# What things cost, in nanoseconds, as (a bucket, a row in it, the whole scan instead); and how many
# buckets there are in each ring.
Costs = namedtuple("Costs", "bucket row scan ring_buckets")

# What a query is worked on with; one for a cell.
#
# rings : int64, (table,), the last ring that is done, -1 for none
# costs : float64, (table,), of the next ring
# means : float64, (table,), rows in a bucket
# later : float64 and int64, (table,), costs and rings while looking ahead
# query : uint64, (word, 8), each word eight times
# begins, ends : int64, buckets on their way from memory
# pending : int64, places in ``Tables.rows`` that are below the limit by their word
_Room = namedtuple(
    "_Room", "rings costs means later_rings later_costs query ones begins ends pending"
)

DONE, SCAN, FULL = range(3)  # how a query ends; SCAN: looking at all rows will be cheaper

_ONE = np.uint64(1)
_ROW_MASK = np.uint64((1 << ROW_IN_PAIR_BITS) - 1)
_CHUNK = 64  # rows of a bucket whose comparison fits a word
_PENDING = 64  # so many are looked at together, so that their rows and codes come together
_IN_FLIGHT = 64  # room for buckets on their way
# How many buckets ahead offsets and rows are called for.
_AHEAD = 12
_LINE_WORDS = 8
_LINES_AHEAD = 40  # of a bucket, at most; what comes behind is left to the processor's prefetcher
# A share of the cost of a scan that is spent before its end is looked for: a limit falls with every
# row found, so that soon after the beginning it is nearly the last one.
_PATIENCE = 0.25


@kernel()
def split_cell(cell, n_cells, pairs, begin, end, codes, word, rows, words):
    """Take a share of sorted pairs ``begin`` to ``end`` apart.

    codes : (n, n_words) uint64
    rows : (n,) uint32, written
    words : (n,) uint64, written: word ``word`` of each row's code
    """
    n_words = codes.shape[1]
    codes = codes.reshape(-1)
    first, last = share(end - begin, cell, n_cells)
    last += begin
    for i in range(begin + first, last):
        ahead = np.int64(pairs[min(i + 16, last - 1)] & _ROW_MASK)
        prefetch(codes, ahead * n_words + word)
        row = np.int64(pairs[i] & _ROW_MASK)
        rows[i] = row
        words[i] = codes[row * n_words + word]


@kernel(forceinline=True)
def word_beside(table, width, n_words):
    """The word behind a table's substring: which word of the codes it holds."""
    return (((table + 1) * width - 1 >> 6) + 1) % n_words


@kernel(forceinline=True)
def _is_in(filter_, row):
    """Whether a row may be found."""
    word = row >> 6
    bit = _ONE << np.uint64(row & 63)
    if filter_.allowed.shape[0] > 0 and filter_.allowed[word] & bit == 0:
        return False
    return word >= filter_.removed.shape[0] or filter_.removed[word] & bit == 0


@kernel(forceinline=True)
def _found_before(tables, room, codes, at):
    """Whether a row was met in a ring that is done; its code begins at ``codes[at]``."""
    for table in range(tables.n_tables):
        ring = room.rings[table]
        if ring >= 0:
            word = table * tables.width >> 6
            differing = room.query[N_LANES * word] ^ codes[at + word]
            bits = popcount64(differing & tables.masks[2 * table])
            if tables.masks[2 * table + 1] != 0:
                differing = room.query[N_LANES * (word + 1)] ^ codes[at + word + 1]
                bits += popcount64(differing & tables.masks[2 * table + 1])
            if bits <= ring:
                return True
    return False


@kernel()
def _offer(tables, filter_, room, n, limit, heap, found, n_found):
    """Look at the rows that are pending; the limit, and how many were found, or -1 for no room.

    heap : (k,) int64 keys, or (0,) where all rows within the limit are wanted
    found : flat int64 keys, written from ``n_found`` on
    """
    n_words = tables.n_words
    rows = tables.rows
    pending = room.pending
    query = room.query
    codes = tables.words if n_words == 1 else tables.codes
    k = heap.shape[0]
    for i in range(n):
        prefetch(rows, pending[i])
    if n_words > 1:
        for i in range(n):
            prefetch(codes, np.int64(rows[pending[i]]) * n_words)
    for i in range(n):
        place = pending[i]
        at = place if n_words == 1 else np.int64(rows[place]) * n_words
        bits = 0
        for word in range(n_words):
            bits += popcount64(codes[at + word] ^ query[N_LANES * word])
        if bits > limit or _found_before(tables, room, codes, at):
            continue
        row = tables.first_row + np.int64(rows[place])
        if not _is_in(filter_, row):
            continue
        key = (np.int64(bits) << ROW_BITS) | row
        if k == 0:
            if n_found == found.shape[0]:
                return limit, -1
            found[n_found] = key
            n_found += 1
        elif key < heap[0]:
            replace_largest(heap, 0, k, key)
            limit = min(limit, limit_of(heap))
    return limit, n_found


@kernel(forceinline=True)
def _call_for(words, begin, end):
    """Start bringing the beginning of a bucket into the cache."""
    for i in range(begin, min(end, begin + _LINES_AHEAD * _LINE_WORDS), _LINE_WORDS):
        prefetch(words, i)


@kernel(forceinline=True)
def _next_mask(mask):
    """The next larger number with as many ones (Knuth, volume 4A, section 7.1.3, exercise 20)."""
    low = mask & -mask
    ripple = mask + low
    return ripple | ((mask ^ ripple) >> (2 + first_bit(np.uint64(low))))


@kernel()
def _look_into_ring(tables, filter_, room, table, ring, limit, heap, found, n_found):
    """Offer the rows of one ring: the limit, how many were found, or -1, and rows looked at.

    Buckets come in three steps: its offsets are called for, its rows are, it is looked through.
    """
    width = tables.width
    query = room.query
    # Arrays are taken out of their tuples here, and passed on to intrinsics only: in the loops a
    # tuple or a function would count references, which took twice the time of all the rest.
    offsets = tables.offsets
    words = tables.words
    ones = room.ones
    begins = room.begins
    ends = room.ends
    pending = room.pending
    at = N_LANES * word_beside(table, width, tables.n_words)
    first_offset = table * ((1 << width) + 1)
    first_place = table * tables.n_rows
    n_looked_at = 0
    n_pending = 0
    own = _own_bucket(query, table, width)
    mask_end = 1 << width
    mask = (1 << ring) - 1
    n_called = 0
    n_read = 0
    n_done = 0
    while mask < mask_end or n_done < n_called:
        if mask < mask_end:
            offset = first_offset + (own ^ mask)
            prefetch(offsets, offset)
            begins[n_called % _IN_FLIGHT] = offset
            n_called += 1
            mask = mask_end if mask == 0 else _next_mask(mask)
        ahead = _AHEAD if mask < mask_end else 0
        while n_called - n_read > ahead:
            slot = n_read % _IN_FLIGHT
            begin = first_place + np.int64(offsets[begins[slot]])
            end = first_place + np.int64(offsets[begins[slot] + 1])
            begins[slot] = begin
            ends[slot] = end
            for i in range(begin, min(end, begin + _LINES_AHEAD * _LINE_WORDS), _LINE_WORDS):
                prefetch(words, i)
            n_read += 1
        while n_read - n_done > ahead:
            begin = begins[n_done % _IN_FLIGHT]
            end = ends[n_done % _IN_FLIGHT]
            n_looked_at += end - begin
            n_done += 1
            bound = limit
            for first in range(begin, end, _CHUNK):
                stop = min(first + _CHUNK, end)
                near = np.uint64(0)
                if first + _CHUNK <= words.shape[0]:  # what lies beyond ``stop`` is masked below
                    for i in range(first, stop, N_LANES):
                        bits = add_differing_bits_where(
                            no_lanes(),
                            load_lanes(words, i),
                            load_lanes(query, at),
                            load_lanes(ones, 0),
                        )
                        near |= lanes_below(bits, bound + 1) << np.uint64(i - first)
                else:
                    for i in range(first, stop):
                        if popcount64(words[i] ^ query[at]) <= bound:
                            near |= _ONE << np.uint64(i - first)
                near &= ALL_ONES >> np.uint64(_CHUNK - (stop - first))
                while near != 0:
                    pending[n_pending] = first + first_bit(near)
                    near &= near - _ONE
                    n_pending += 1
                if n_pending >= _PENDING:
                    limit, n_found = _offer(
                        tables, filter_, room, n_pending, limit, heap, found, n_found
                    )
                    n_pending = 0
                    if n_found < 0:
                        return limit, n_found, n_looked_at
                    # Rows of a bucket ascend. Of a thousand equal codes only the first are near
                    # enough; the others need not be looked at one by one.
                    bound = limit
                    if heap.shape[0] > 0 and first + _CHUNK < end:
                        row = tables.first_row + np.int64(tables.rows[first + _CHUNK])
                        bound -= (np.int64(limit) << ROW_BITS) | row > heap[0]
    if n_pending > 0:
        limit, n_found = _offer(tables, filter_, room, n_pending, limit, heap, found, n_found)
    return limit, n_found, n_looked_at


@kernel(forceinline=True)
def _own_bucket(query, table, width):
    """The number of a query's own bucket; its words lie ``N_LANES`` times each."""
    start = table * width
    word = start >> 6
    if word == (start + width - 1) >> 6:
        return np.int64(substring(query, N_LANES * word, start & 63, width))
    n_low = 64 - (start & 63)
    low = substring(query, N_LANES * word, start & 63, n_low)
    high = substring(query, N_LANES * (word + 1), 0, width - n_low)
    return np.int64(low | high << np.uint64(n_low))


@kernel(forceinline=True)
def _cheapest(costs):
    best = 0
    for table in range(1, costs.shape[0]):
        if costs[table] < costs[best]:
            best = table
    return best


@kernel(forceinline=True)
def _cost_of_ring(tables, costs, ring, mean):
    """What a ring will cost; more than anything beyond the last one."""
    if ring > tables.width:
        return np.inf
    return costs.ring_buckets[ring] * (costs.bucket + costs.row * mean)


@kernel()
def _cost_to_end(tables, costs, room, radius, limit):
    """What the rings will cost that make the radius reach the limit; stops above a scan's cost."""
    room.later_rings[:] = room.rings
    room.later_costs[:] = room.costs
    cost = 0.0
    while radius < limit and cost <= costs.scan:
        table = _cheapest(room.later_costs)
        cost += room.later_costs[table]
        room.later_rings[table] += 1
        ring = room.later_rings[table] + 1
        room.later_costs[table] = _cost_of_ring(tables, costs, ring, room.means[table])
        radius += 1
    return cost


@kernel()
def _search_query(tables, filter_, costs, room, query, limit, heap, found, n_found):
    """DONE, SCAN or FULL, and how many rows were found."""
    width = tables.width
    for word in range(tables.n_words):
        room.query[N_LANES * word : N_LANES * (word + 1)] = query[word]
    # Rows in a bucket are guessed as a mean over those seen and one more of average size.
    average = tables.n_rows / (1 << width)
    for table in range(tables.n_tables):
        offset = table * ((1 << width) + 1) + _own_bucket(room.query, table, width)
        begin = np.int64(tables.offsets[offset])
        end = np.int64(tables.offsets[offset + 1])
        first_place = table * tables.n_rows
        _call_for(tables.words, first_place + begin, first_place + end)
        room.rings[table] = -1
        room.costs[table] = costs.bucket + costs.row * (end - begin)
        room.means[table] = (end - begin + average) / 2
    radius = -1  # all rows within it are found
    spent = 0.0
    while radius < limit:
        table = _cheapest(room.costs)
        spent += room.costs[table]
        in_doubt = spent > _PATIENCE * costs.scan or (heap.shape[0] == 0 and radius < 0)
        if in_doubt and _cost_to_end(tables, costs, room, radius, limit) > costs.scan:
            return SCAN, n_found
        ring = room.rings[table] + 1
        limit, n_found, n_looked_at = _look_into_ring(
            tables, filter_, room, table, ring, limit, heap, found, n_found
        )
        if n_found < 0:
            return FULL, n_found
        room.rings[table] = ring
        radius += 1
        if ring == width:
            break  # all rows were in this table's buckets
        if ring > 0:
            room.means[table] = (n_looked_at + average) / (costs.ring_buckets[ring] + 1)
        room.costs[table] = _cost_of_ring(tables, costs, ring + 1, room.means[table])
    return DONE, n_found


@kernel()
def _new_room(tables):
    m = tables.n_tables
    return _Room(
        np.empty(m, np.int64),
        np.empty(m, np.float64),
        np.empty(m, np.float64),
        np.empty(m, np.int64),
        np.empty(m, np.float64),
        np.empty(N_LANES * tables.n_words, np.uint64),
        np.full(N_LANES, ALL_ONES),
        np.empty(_IN_FLIGHT, np.int64),
        np.empty(_IN_FLIGHT, np.int64),
        np.empty(_PENDING + _CHUNK, np.int64),
    )


@kernel()
def nearest_cell(cell, n_cells, tables, filter_, costs, queries, heaps, ends):
    """The k nearest rows of a share of the queries.

    queries : (n_queries, n_words) uint64
    heaps : (n_queries, k) int64, keys of the nearest rows before these tables; updated
    ends : (n_queries,) uint8, written: DONE, or SCAN where a scan is to go on
    """
    room = _new_room(tables)
    nothing = np.empty(0, np.int64)
    begin, end = share(queries.shape[0], cell, n_cells)
    for q in range(begin, end):
        limit = min(limit_of(heaps[q]), 64 * tables.n_words)
        ends[q], _ = _search_query(
            tables, filter_, costs, room, queries[q], limit, heaps[q], nothing, 0
        )


@kernel()
def within_cell(
    cell, n_cells, tables, filter_, costs, queries, radius, found, first_found, n_found, ends
):
    """All rows within ``radius`` of a share of the queries.

    found : (n_cells, room) int64, keys, written
    first_found, n_found : (n_queries,) int64, written: where those of a query begin in its cell's
        line, and how many there are
    ends : (n_queries,) uint8, written: DONE; SCAN where only a scan will do; FULL for the first
        query whose rows did not fit and all behind it
    """
    room = _new_room(tables)
    no_heap = np.empty(0, np.int64)
    begin, end = share(queries.shape[0], cell, n_cells)
    ends[begin:end] = FULL
    n_found[begin:end] = 0
    first_found[begin:end] = 0
    place = 0
    for q in range(begin, end):
        ends[q], after = _search_query(
            tables, filter_, costs, room, queries[q], radius, no_heap, found[cell], place
        )
        if ends[q] == FULL:
            return
        if ends[q] == DONE:
            first_found[q] = place
            n_found[q] = after - place
            place = after


@parallel_kernel
def split_cells(n_cells, done, pairs, begin, end, codes, word, rows, words):
    for cell in prange(n_cells):
        split_cell(np.int64(cell), n_cells, pairs, begin, end, codes, word, rows, words)
        done[cell] = True


@parallel_kernel
def nearest_cells(n_cells, done, tables, filter_, costs, queries, heaps, ends):
    for cell in prange(n_cells):
        nearest_cell(np.int64(cell), n_cells, tables, filter_, costs, queries, heaps, ends)
        done[cell] = True


@parallel_kernel
def within_cells(
    n_cells, done, tables, filter_, costs, queries, radius, found, first_found, n_found, ends
):
    for cell in prange(n_cells):
        within_cell(
            np.int64(cell),
            n_cells,
            tables,
            filter_,
            costs,
            queries,
            radius,
            found,
            first_found,
            n_found,
            ends,
        )
        done[cell] = True


SPLIT = Launcher(split_cell, split_cells)
NEAREST = Launcher(nearest_cell, nearest_cells)
WITHIN = Launcher(within_cell, within_cells)
