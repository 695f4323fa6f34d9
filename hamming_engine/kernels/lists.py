"""Scans of inverted lists: each query against the lists that it probes, in blocks.

A list holds the rows of one cell, in ascending order, in blocks of its own (see ``blocks``); lists
lie one after another. A *place* is where a row lies: the number of its block times 64, and its row
there. Places that no row has are excluded by the bits that say which may be found.

Queries that probe a list are scanned together, four at once, while it is in the cache, so the lists
come in an order that suits no query. What saves work is a limit that sinks early: in a first round
each query has its nearest lists alone.

What is heaps are keys in heaps (``topk``), with the distance or the rank of a score; they compare
like (distance, row), so the order of lists does not show in the result. A probe sees some thousand
rows: a heap, whose limit is always the k-th key, lets a third of the rows in that a reservoir does.
"""

from collections import namedtuple

import numpy as np
from numba import prange

from .columns import BLOCK_ROWS, FIND_WORDS
from .compiling import kernel, parallel_kernel
from .find import (
    QUERIES_AT_ONCE,
    Rows,
    blocks_a_tile,
    find,
    four_from,
    group_of_queries,
    room_for_finds,
    sum_of,
)
from .intrinsics import first_bit, prefetch
from .launch import Launcher, share
from .scan import make_ready, worth_stopping
from .topk import ROW_BITS, replace_largest
from .weighted import (
    bounds_of,
    key_of,
    ready_weights,
    score_of_limit,
    set_limits,
)

# A query's first round has this share of the lists that it probes.
_FIRST_ROUND = 8
_BYTES_AHEAD = 1 << 11  # of the list that comes next, called into the cache
_LINE_BYTES = 64
_ONE = np.uint64(1)

# Inverted lists.
#
# begins : (n_lists + 1,) int64, blocks at which lists begin
# columns : flat uint8, the blocks
# rows : (64 * n_blocks,) int64, of each place
# allowed : (n_blocks,) uint64, a bit for each place that may be found
# factors : (64 * n_blocks, 2) float32, or (0, 2)
Lists = namedtuple("Lists", "begins columns rows allowed factors")

# Queries made ready, the first of them being number ``first``; and heaps: flat, (slab, query, k),
# of all queries.
Search = namedtuple("Search", "ready parameters first heaps n_slabs n_queries k slab")


@kernel(forceinline=True)
def _limit_of(heaps, at, slab_words, n_slabs):
    """The key that a row's must be below, as far as any slab knows.

    at : where the query's heap in the first slab begins
    """
    limit = heaps[at]
    for slab in range(1, n_slabs):
        limit = min(limit, heaps[at + slab * slab_words])
    return limit


@kernel(forceinline=True)
def _bits_below(limit):
    """The distance that a row must be below: at that of the limit its number may be smaller."""
    return (limit >> ROW_BITS) + 1


@kernel(forceinline=True)
def _call(begins, columns, which, n_bytes):
    """Start bringing a list into the cache."""
    begin = begins[which] * n_bytes * BLOCK_ROWS
    for ahead in range(0, _BYTES_AHEAD, _LINE_BYTES):
        prefetch(columns, begin + ahead)


@kernel()
def _group(search, begin, end, probes, bounds, first, last, ends, queries):
    """Sort queries by the lists that they probe, and leave out what is hopeless.

    A list is hopeless if all of its rows are farther than the k-th found.

    ends : (n_lists + 1,) int64, written: where the queries of each list end
    queries : flat int64, written
    """
    heaps = search.heaps
    slab_words = search.n_queries * search.k
    # Once: other slabs work on, and both passes have to see the same.
    farthest = np.empty(end - begin, np.int64)
    for q in range(begin, end):
        limit = _limit_of(heaps, q * search.k, slab_words, search.n_slabs)
        farthest[q - begin] = _bits_below(limit)
    ends[:] = 0
    n_probes = probes.shape[1]
    probes = probes.reshape(-1)
    bounds = bounds.reshape(-1)
    for count in (True, False):
        for q in range(begin, end):
            for i in range(q * n_probes + first, q * n_probes + last):
                which = probes[i]
                if which < 0:
                    break
                if bounds[i] < farthest[q - begin]:
                    if count:
                        ends[which] += 1
                    else:
                        queries[ends[which]] = q
                        ends[which] += 1
        if count:
            place = 0
            for which in range(ends.shape[0]):
                n = ends[which]
                ends[which] = place
                place += n


@kernel()
def _scan_by_list(search, lists, ends, queries, room):
    """Offer the rows of each list to the queries that probe it, four at once.

    Arrays are taken out of tuples here, once: to do that counts references, two atomic operations,
    and lists are short. It was half of the time.

    ends, queries : as ``_group`` writes them
    """
    ready, parameters, heaps = search.ready, search.parameters, search.heaps
    is_weighted = parameters.shape[0] != 0
    begins, all_rows, factors = lists.begins, lists.rows, lists.factors
    n_places = all_rows.shape[0]
    columns = lists.columns
    rows = Rows(columns, n_places, 0, lists.allowed)
    finds, limits, bounds = room
    n_bytes = ready.n_bytes
    k, n_slabs = search.k, search.n_slabs
    slab_words = search.n_queries * k
    mine = search.slab * slab_words
    longest = blocks_a_tile(n_bytes)
    n_lists = begins.shape[0] - 1
    i = 0
    ahead = 0
    for which in range(n_lists):
        if i == ends[which]:
            continue
        ahead = max(ahead, which + 1)
        while ahead < n_lists and ends[ahead] == ends[which]:
            ahead += 1
        if ahead < n_lists:
            _call(begins, columns, ahead, n_bytes)
        while i < ends[which]:
            n_queries = min(QUERIES_AT_ONCE, ends[which] - i)
            four = (
                queries[i],
                queries[i + 1] if n_queries > 1 else queries[i],
                queries[i + 2] if n_queries > 2 else queries[i],
                queries[i + 3] if n_queries > 3 else queries[i],
            )
            i += n_queries
            made = (
                four[0] - search.first,
                four[1] - search.first,
                four[2] - search.first,
                four[3] - search.first,
            )
            list_end = begins[which + 1]
            for block in range(begins[which], list_end, longest):
                end = min(list_end, block + longest)
                n_blocks = end - block
                stop_from = n_bytes
                largest = np.int64(0)
                if is_weighted:
                    bounds_of(factors, block, end, n_places, bounds)
                for j in range(n_queries):
                    limit = _limit_of(heaps, four[j] * k, slab_words, n_slabs)
                    if is_weighted:
                        at = j * n_blocks
                        least = score_of_limit(limit)
                        set_limits(parameters, least, four[j], bounds, limits, at, n_blocks)
                    else:
                        limit = min(_bits_below(limit), 8 * n_bytes + 1)
                        largest = max(largest, limit)
                        for at in range(j * n_blocks, (j + 1) * n_blocks):
                            limits[at] = limit
                for at in range(n_queries * n_blocks, QUERIES_AT_ONCE * n_blocks):
                    limits[at] = 0
                if not is_weighted:
                    stop_from = worth_stopping(largest, n_bytes)
                n = find(ready, made, n_queries, rows, block, end, limits, stop_from, finds)
                for find_at in range(0, n * FIND_WORDS, FIND_WORDS):
                    mask = np.uint64(finds[find_at])
                    found_in, j = divmod(finds[find_at + 1], QUERIES_AT_ONCE)
                    q = four[j]
                    at = mine + q * k
                    while mask != 0:
                        bit = first_bit(mask)
                        mask &= mask - _ONE
                        place = found_in * BLOCK_ROWS + bit
                        cost = sum_of(finds, find_at, bit)
                        row = all_rows[place]
                        if is_weighted:
                            key = key_of(parameters, q, cost, factors, place, row)
                        else:
                            key = (cost << ROW_BITS) | row
                        if key < heaps[at]:
                            replace_largest(heaps, at, k, key)


@kernel()
def _scan_lists(search, begin, end, lists, probes, bounds):
    """Offer the lists that queries ``begin`` to ``end`` probe, a share of them in each slab."""
    n_bytes = search.ready.n_bytes
    finds, limits = room_for_finds(n_bytes)
    room = finds, limits, np.empty(3 * blocks_a_tile(n_bytes), np.float64)
    first, last = share(probes.shape[1], search.slab, search.n_slabs)
    ends = np.empty(lists.begins.shape[0], np.int64)
    queries = np.empty((end - begin) * (last - first), np.int64)
    middle = first + (last - first + _FIRST_ROUND - 1) // _FIRST_ROUND
    _group(search, begin, end, probes, bounds, first, middle, ends, queries)
    _scan_by_list(search, lists, ends, queries, room)
    _group(search, begin, end, probes, bounds, middle, last, ends, queries)
    _scan_by_list(search, lists, ends, queries, room)


@kernel()
def near_lists_cell(
    cell, n_cells, method, queries, begins, blocks, rows, allowed, probes, bounds, heaps
):
    """Scan the lists of one cell's share for its queries: by Hamming distance.

    method : int, POPCOUNT or TABLE
    queries : (n_queries, n_words) uint64
    begins : (n_lists + 1,) int64, blocks at which lists begin
    blocks : (n_blocks, 8 * n_words, 64) uint8
    rows : (64 * n_blocks,) int64
    allowed : (n_blocks,) uint64, a bit for each place that may be found
    probes : (n_queries, n) int64, lists, nearest first; -1 for none, and none behind it
    bounds : (n_queries, n) int64, no row of the list is nearer
    heaps : (n_slabs, n_queries, k) int64, updated
    """
    n_slabs, n_queries, k = heaps.shape
    n_bytes = blocks.shape[1]
    slab, group = divmod(cell, n_cells // n_slabs)
    begin, end = group_of_queries(n_queries, group, n_cells // n_slabs)
    if begin == end:
        return
    no_parameters = np.zeros((0, 0), np.float64)  # by which distances are told from weights
    ready = make_ready(method, queries, begin, end, n_bytes)
    flat = heaps.reshape(-1)
    search = Search(ready, no_parameters, begin, flat, n_slabs, n_queries, k, slab)
    lists = Lists(begins, blocks.reshape(-1), rows, allowed, np.zeros((0, 2), np.float32))
    _scan_lists(search, begin, end, lists, probes, bounds)


@kernel()
def best_lists_cell(
    cell,
    n_cells,
    by,
    tables,
    parameters,
    begins,
    blocks,
    rows,
    allowed,
    factors,
    probes,
    bounds,
    heaps,
):
    """The same by weights: see ``weighted`` for how queries are prepared.

    factors : (64 * n_blocks, 2) float32, of each place, or (0, 2)
    bounds : (n_queries, n) int64, zeros
    """
    n_slabs, n_queries, k = heaps.shape
    slab, group = divmod(cell, n_cells // n_slabs)
    begin, end = group_of_queries(n_queries, group, n_cells // n_slabs)
    if begin == end:
        return
    ready = ready_weights(by, tables, blocks.shape[1])
    flat = heaps.reshape(-1)
    search = Search(ready, parameters, 0, flat, n_slabs, n_queries, k, slab)
    lists = Lists(begins, blocks.reshape(-1), rows, allowed, factors)
    _scan_lists(search, begin, end, lists, probes, bounds)


@kernel()
def lists_within_cell(
    cell,
    n_cells,
    method,
    queries,
    begins,
    blocks,
    rows,
    allowed,
    pairs,
    radius,
    room_begins,
    found,
    n_found,
):
    """Collect all rows within a radius, for one cell's share of (query, list) pairs.

    pairs : (2, n_pairs) int64, queries and lists
    room_begins : (n_pairs + 1,) int64, where the room of each pair begins: one for each place
    found : (2, n) int64, written: queries and keys
    n_found : (n_pairs,) int64, written
    """
    n_bytes = blocks.shape[1]
    begin, end = share(pairs.shape[1], cell, n_cells)
    if begin == end:
        return
    finds, limits = room_for_finds(n_bytes)
    limits[:] = radius + 1
    stop_from = worth_stopping(radius + 1, n_bytes)
    longest = blocks_a_tile(n_bytes)
    places = Rows(blocks.reshape(-1), rows.shape[0], 0, allowed)
    first_query = pairs[0, begin]
    ready = make_ready(method, queries, first_query, pairs[0, end - 1] + 1, n_bytes)
    for pair in range(begin, end):
        q, which = pairs[0, pair], pairs[1, pair]
        here = room_begins[pair]
        list_end = begins[which + 1]
        four = four_from(q - first_query, 1)
        for block in range(begins[which], list_end, longest):
            run_end = min(list_end, block + longest)
            n = find(ready, four, 1, places, block, run_end, limits, stop_from, finds)
            for find_at in range(0, n * FIND_WORDS, FIND_WORDS):
                mask = np.uint64(finds[find_at])
                first_place = finds[find_at + 1] // QUERIES_AT_ONCE * BLOCK_ROWS
                while mask != 0:
                    j = first_bit(mask)
                    mask &= mask - _ONE
                    found[0, here] = q
                    found[1, here] = (sum_of(finds, find_at, j) << ROW_BITS) | rows[first_place + j]
                    here += 1
        n_found[pair] = here - room_begins[pair]


# What lists are made of.


@kernel()
def put_cell(cell, n_cells, codes, places, blocks):
    """Write a share of the codes where they belong.

    codes : (n, n_words) uint64
    places : (n,) int64
    blocks : (n_blocks, 8 * n_words, 64) uint8, written
    """
    begin, end = share(codes.shape[0], cell, n_cells)
    columns = blocks.reshape(-1)
    block_bytes = blocks.shape[1] * BLOCK_ROWS
    for i in range(begin, end):
        at = places[i] // BLOCK_ROWS * block_bytes + places[i] % BLOCK_ROWS
        for word in codes[i]:
            for shift in range(0, 64, 8):
                columns[at] = np.uint8((word >> np.uint64(shift)) & np.uint64(0xFF))
                at += BLOCK_ROWS


@kernel()
def take_cell(cell, n_cells, blocks, places, codes):
    """Read a share of the codes back; arguments are those of ``put_cell``, codes are written."""
    begin, end = share(codes.shape[0], cell, n_cells)
    columns = blocks.reshape(-1)
    block_bytes = blocks.shape[1] * BLOCK_ROWS
    for i in range(begin, end):
        at = places[i] // BLOCK_ROWS * block_bytes + places[i] % BLOCK_ROWS
        for word in range(codes.shape[1]):
            value = np.uint64(0)
            for shift in range(0, 64, 8):
                value |= np.uint64(columns[at]) << np.uint64(shift)
                at += BLOCK_ROWS
            codes[i, word] = value


@kernel()
def allow_cell(cell, n_cells, rows, bits, allowed):
    """Turn bits by row into bits by place, for one share of the blocks.

    rows : (64 * n_blocks,) int64, -1 where there is none
    bits : (ceil(n_rows / 64),) uint64
    allowed : (n_blocks,) uint64, written
    """
    begin, end = share(allowed.shape[0], cell, n_cells)
    for block in range(begin, end):
        word = np.uint64(0)
        for j in range(BLOCK_ROWS):
            row = rows[block * BLOCK_ROWS + j]
            if 0 <= row < BLOCK_ROWS * bits.shape[0]:  # files may be damaged
                bit = bits[row >> 6] >> np.uint64(row & 63) & _ONE
                word |= bit << np.uint64(j)
        allowed[block] = word


@kernel()
def count_ones_cell(cell, n_cells, codes, order, begins, counts):
    """Count the ones of each bit over the codes of each list, for one share of the lists.

    codes : (n, n_words) uint64
    order : (n,) int64, rows, those of a list together
    begins : (n_lists + 1,) int64, where lists begin in ``order``
    counts : (n_lists, 64 * n_words) int32, written; bit j of a word is its dimension j
    """
    first, last = share(counts.shape[0], cell, n_cells)
    n_words = codes.shape[1]
    for which in range(first, last):
        of_list = counts[which]
        of_list[:] = 0
        for i in range(begins[which], begins[which + 1]):
            row = order[i]
            for word in range(n_words):
                value = codes[row, word]
                for bit in range(64):
                    of_list[word * 64 + bit] += np.int32(value >> np.uint64(bit) & _ONE)


@parallel_kernel
def near_lists_cells(
    n_cells, done, method, queries, begins, blocks, rows, allowed, probes, bounds, heaps
):
    for cell in prange(n_cells):
        near_lists_cell(
            np.int64(cell),
            n_cells,
            method,
            queries,
            begins,
            blocks,
            rows,
            allowed,
            probes,
            bounds,
            heaps,
        )
        done[cell] = True


@parallel_kernel
def best_lists_cells(
    n_cells,
    done,
    by,
    tables,
    parameters,
    begins,
    blocks,
    rows,
    allowed,
    factors,
    probes,
    bounds,
    heaps,
):
    for cell in prange(n_cells):
        best_lists_cell(
            np.int64(cell),
            n_cells,
            by,
            tables,
            parameters,
            begins,
            blocks,
            rows,
            allowed,
            factors,
            probes,
            bounds,
            heaps,
        )
        done[cell] = True


@parallel_kernel
def lists_within_cells(
    n_cells,
    done,
    method,
    queries,
    begins,
    blocks,
    rows,
    allowed,
    pairs,
    radius,
    room_begins,
    found,
    n_found,
):
    for cell in prange(n_cells):
        lists_within_cell(
            np.int64(cell),
            n_cells,
            method,
            queries,
            begins,
            blocks,
            rows,
            allowed,
            pairs,
            radius,
            room_begins,
            found,
            n_found,
        )
        done[cell] = True


@parallel_kernel
def put_cells(n_cells, done, codes, places, blocks):
    for cell in prange(n_cells):
        put_cell(np.int64(cell), n_cells, codes, places, blocks)
        done[cell] = True


@parallel_kernel
def take_cells(n_cells, done, blocks, places, codes):
    for cell in prange(n_cells):
        take_cell(np.int64(cell), n_cells, blocks, places, codes)
        done[cell] = True


@parallel_kernel
def allow_cells(n_cells, done, rows, bits, allowed):
    for cell in prange(n_cells):
        allow_cell(np.int64(cell), n_cells, rows, bits, allowed)
        done[cell] = True


@parallel_kernel
def count_ones_cells(n_cells, done, codes, order, begins, counts):
    for cell in prange(n_cells):
        count_ones_cell(np.int64(cell), n_cells, codes, order, begins, counts)
        done[cell] = True


NEAR_LISTS = Launcher(near_lists_cell, near_lists_cells)
BEST_LISTS = Launcher(best_lists_cell, best_lists_cells)
LISTS_WITHIN = Launcher(lists_within_cell, lists_within_cells)
PUT = Launcher(put_cell, put_cells)
TAKE = Launcher(take_cell, take_cells)
ALLOW = Launcher(allow_cell, allow_cells)
COUNT_ONES = Launcher(count_ones_cell, count_ones_cells)
