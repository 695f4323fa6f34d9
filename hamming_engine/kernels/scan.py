"""Exact scans over row-major codes: per-uint64 XOR and popcount, eight words at a time.

The work is a grid of cells, row slabs times query groups::

                 group 0      group 1
    slab 0    |  cell 0    |  cell 1   |     few queries: one group, a slab for each thread,
    slab 1    |  cell 2    |  cell 3   |     so that one query uses all cores
                                             many queries: one slab, a group for each thread,
                                             so that there is one heap per query

A cell goes through its rows in tiles that stay in the second-level cache. Two inner loops:

* Four queries at once against blocks of eight rows, turned to word-major order when the tile is
  entered, so that a lane is a row: one load serves four distances, and no lanes need adding up.
* One query against eight rows where they lie, a lane being a word: the eight sums of lanes are
  formed together at the end. This is for what remains of the queries, and for single ones, for
  which turning the rows would cost more than the scan.

Tried on a Zen 5 core, 128 queries of 256 / 1,024 bits, in GB/s of codes: plain loops over words
32 / 78, the blocks below 154 / 203; 16 or 32 rows a block and four queries the same, two queries at
once 107 / 191, one 85 / 117.
"""

import numpy as np
from numba import prange

from .compiling import kernel, parallel_kernel
from .intrinsics import ALL_ONES, popcount64, prefetch
from .lanes import (
    N_LANES,
    add_differing_bits,
    add_differing_bits_where,
    add_neighbours,
    first_lane,
    lane,
    lanes_below,
    load_lanes,
    no_lanes,
    store_lanes,
    zip_high,
    zip_low,
)
from .launch import Launcher, share
from .topk import ROW_BITS, limit_of, replace_largest

QUERIES_AT_ONCE = 4
_TILE_WORDS = 1 << 14  # 128 KiB of codes
TURN_SLACK = 7 * N_LANES
# How far ahead of a single query's scan the codes are called into the cache, 8 KiB. The processor's
# own prefetcher stops at every page; with this one thread reads 45 GB/s of 256-bit codes instead of
# 30 (Zen 5), 32 KiB ahead the same, 4 KiB 34, 1 KiB no gain.
_WORDS_AHEAD = 1024
_ONE = np.uint64(1)


@kernel()
def distance(query, code):
    """Hamming distance of two codes, in bits."""
    bits = 0
    for word in range(query.shape[0]):
        bits += popcount64(query[word] ^ code[word])
    return bits


@kernel(forceinline=True)
def padded_words(n_words):
    """Length of a query laid out by ``pad_query``."""
    return n_words + -n_words % N_LANES


@kernel()
def pad_query(query, padded, where):
    """Lay a query out for ``eight_distances``: whole vectors, and which of their bits count.

    Codes of 1, 2 and 4 words lie several to a vector: there the query is repeated.
    """
    n_words = query.shape[0]
    for word in range(padded.shape[0]):
        counts = word < n_words or N_LANES % n_words == 0
        padded[word] = query[word % n_words] if counts else np.uint64(0)
        where[word] = ALL_ONES if counts else np.uint64(0)


@kernel()
def rows_with_vectors(n_rows, n_words):
    """From how many rows whole vectors can be loaded without reading beyond the array."""
    overhang = -n_words % N_LANES
    return max(0, n_rows - (overhang + n_words - 1) // n_words)


@kernel(forceinline=True)
def _differing(words, at, padded, where):
    return add_differing_bits_where(
        no_lanes(), load_lanes(words, at), load_lanes(padded, 0), load_lanes(where, 0)
    )


@kernel(forceinline=True)
def eight_distances(padded, where, words, row, n_words):
    """Distances of one query to eight rows that lie one after the other, a row in each lane.

    The eight sums grow side by side. A loop for each row came to less than half the speed.
    """
    at = row * n_words
    for line in range(at, at + N_LANES * n_words, N_LANES):
        prefetch(words, line + _WORDS_AHEAD)
    if n_words == 1:
        return _differing(words, at, padded, where)
    if n_words == 2:
        return add_neighbours(
            _differing(words, at, padded, where),
            _differing(words, at + N_LANES, padded, where),
        )
    if n_words == 4:
        return add_neighbours(
            add_neighbours(
                _differing(words, at, padded, where),
                _differing(words, at + N_LANES, padded, where),
            ),
            add_neighbours(
                _differing(words, at + 2 * N_LANES, padded, where),
                _differing(words, at + 3 * N_LANES, padded, where),
            ),
        )
    a = no_lanes()
    b = no_lanes()
    c = no_lanes()
    d = no_lanes()
    e = no_lanes()
    f = no_lanes()
    g = no_lanes()
    h = no_lanes()
    for first in range(0, padded.shape[0], N_LANES):
        query = load_lanes(padded, first)
        bits = load_lanes(where, first)
        a = add_differing_bits_where(a, load_lanes(words, at), query, bits)
        b = add_differing_bits_where(b, load_lanes(words, at + n_words), query, bits)
        c = add_differing_bits_where(c, load_lanes(words, at + 2 * n_words), query, bits)
        d = add_differing_bits_where(d, load_lanes(words, at + 3 * n_words), query, bits)
        e = add_differing_bits_where(e, load_lanes(words, at + 4 * n_words), query, bits)
        f = add_differing_bits_where(f, load_lanes(words, at + 5 * n_words), query, bits)
        g = add_differing_bits_where(g, load_lanes(words, at + 6 * n_words), query, bits)
        h = add_differing_bits_where(h, load_lanes(words, at + 7 * n_words), query, bits)
        at += N_LANES
    return add_neighbours(
        add_neighbours(add_neighbours(a, b), add_neighbours(c, d)),
        add_neighbours(add_neighbours(e, f), add_neighbours(g, h)),
    )


@kernel()
def offer(heap, bits, row, first_row, mask):
    """Put a row that is below the heap's limit into the heap, unless it is masked out.

    The mask is read here and not for every row: few rows come this far.
    """
    if mask.shape[0] == 0 or mask[row]:
        replace_largest(heap, (np.int64(bits) << ROW_BITS) | (first_row + row))
    return limit_of(heap)


@kernel()
def offer_lanes(heap, distances, below, row, first_row, mask):
    """Offer the rows ``row`` to ``row + 7`` of the lanes in ``below``."""
    limit = limit_of(heap)
    while below != 0:
        j = first_lane(below)
        below &= below - _ONE
        bits = lane(distances, j)
        if bits < limit:  # the limit may have sunk since the lanes were compared
            limit = offer(heap, bits, row + j, first_row, mask)
    return limit


@kernel()
def scan_one_query(query, codes, begin, end, first_row, mask, heap, padded, where):
    """Offer rows ``begin`` to ``end`` to the heap of one query."""
    pad_query(query, padded, where)
    words = codes.reshape(-1)
    n_words = codes.shape[1]
    limit = limit_of(heap)
    vectors_end = min(end, rows_with_vectors(codes.shape[0], n_words))
    row = begin
    while row + N_LANES <= vectors_end:
        distances = eight_distances(padded, where, words, row, n_words)
        below = lanes_below(distances, limit)
        if below != 0:
            limit = offer_lanes(heap, distances, below, row, first_row, mask)
        row += N_LANES
    while row < end:
        bits = distance(query, codes[row])
        if bits < limit:
            limit = offer(heap, bits, row, first_row, mask)
        row += 1


@kernel(forceinline=True)
def _riffle(a, b, c, d, e, f, g, h):
    """Deal 64 words like a pack of cards cut in half; three times, and rows are columns."""
    return (
        zip_low(a, e),
        zip_high(a, e),
        zip_low(b, f),
        zip_high(b, f),
        zip_low(c, g),
        zip_high(c, g),
        zip_low(d, h),
        zip_high(d, h),
    )


@kernel()
def turn_tile(codes, begin, end, turned):
    """Write rows as blocks of eight in word-major order: block, word, row within the block.

    Eight words of eight rows are turned in registers, at 28 to 44 GB/s (Zen 5 core, 4 to 64 words);
    loops of plain reads and writes came to 9 to 18, and batches of less than 16 queries gained
    nothing by it.

    turned : (at least tile rows * n_words + TURN_SLACK,) uint64, written
    """
    n_words = codes.shape[1]
    words = codes.reshape(-1)
    whole = min(end, rows_with_vectors(codes.shape[0], n_words)) - begin
    whole_end = begin + max(0, whole) // N_LANES * N_LANES
    for row in range(begin, whole_end, N_LANES):
        for word in range(0, n_words, N_LANES):
            at = row * n_words + word
            block = (
                load_lanes(words, at),
                load_lanes(words, at + n_words),
                load_lanes(words, at + 2 * n_words),
                load_lanes(words, at + 3 * n_words),
                load_lanes(words, at + 4 * n_words),
                load_lanes(words, at + 5 * n_words),
                load_lanes(words, at + 6 * n_words),
                load_lanes(words, at + 7 * n_words),
            )
            a, b, c, d, e, f, g, h = _riffle(*_riffle(*_riffle(*block)))
            # Of a row's last words less than eight may count: what is too much lies where the next
            # block is written later, or in the slack.
            to = (row - begin) * n_words + word * N_LANES
            store_lanes(turned, to, a)
            store_lanes(turned, to + N_LANES, b)
            store_lanes(turned, to + 2 * N_LANES, c)
            store_lanes(turned, to + 3 * N_LANES, d)
            store_lanes(turned, to + 4 * N_LANES, e)
            store_lanes(turned, to + 5 * N_LANES, f)
            store_lanes(turned, to + 6 * N_LANES, g)
            store_lanes(turned, to + 7 * N_LANES, h)
    for row in range(whole_end, end):
        block_begin = (row - begin) // N_LANES * N_LANES
        to = block_begin * n_words + (row - begin) - block_begin
        for word in range(n_words):
            turned[to + word * N_LANES] = codes[row, word]


@kernel()
def scan_four_queries(queries, q, turned, n_words, begin, end, first_row, mask, heaps):
    """Offer the rows of a turned tile to the heaps of queries ``q`` to ``q + 3``."""
    limit0 = limit_of(heaps[q])
    limit1 = limit_of(heaps[q + 1])
    limit2 = limit_of(heaps[q + 2])
    limit3 = limit_of(heaps[q + 3])
    for row in range(begin, end, N_LANES):
        at = (row - begin) * n_words
        bits0 = no_lanes()
        bits1 = no_lanes()
        bits2 = no_lanes()
        bits3 = no_lanes()
        for word in range(n_words):
            lanes = load_lanes(turned, at + word * N_LANES)
            bits0 = add_differing_bits(bits0, lanes, queries[q, word])
            bits1 = add_differing_bits(bits1, lanes, queries[q + 1, word])
            bits2 = add_differing_bits(bits2, lanes, queries[q + 2, word])
            bits3 = add_differing_bits(bits3, lanes, queries[q + 3, word])
        filled = (_ONE << np.uint64(min(N_LANES, end - row))) - _ONE
        below = lanes_below(bits0, limit0) & filled
        if below != 0:
            limit0 = offer_lanes(heaps[q], bits0, below, row, first_row, mask)
        below = lanes_below(bits1, limit1) & filled
        if below != 0:
            limit1 = offer_lanes(heaps[q + 1], bits1, below, row, first_row, mask)
        below = lanes_below(bits2, limit2) & filled
        if below != 0:
            limit2 = offer_lanes(heaps[q + 2], bits2, below, row, first_row, mask)
        below = lanes_below(bits3, limit3) & filled
        if below != 0:
            limit3 = offer_lanes(heaps[q + 3], bits3, below, row, first_row, mask)


@kernel()
def topk_cell(cell, n_cells, queries, codes, first_row, mask, heaps):
    """Scan the rows of one cell for its queries.

    queries : (n_queries, n_words) uint64
    codes : (n_rows, n_words) uint64, rows ``first_row`` and on of the whole
    mask : (n_rows,) bool, or (0,) for all rows
    heaps : (n_slabs, n_queries, k) int64, updated. Rows come in ascending order over all calls,
        so a row with the distance of the root never enters.
    """
    n_slabs = heaps.shape[0]
    n_groups = n_cells // n_slabs
    n_rows, n_words = codes.shape
    row_begin, row_end = share(n_rows, cell // n_groups, n_slabs)
    n_quads = (queries.shape[0] + QUERIES_AT_ONCE - 1) // QUERIES_AT_ONCE
    quad_begin, quad_end = share(n_quads, cell % n_groups, n_groups)
    query_begin = quad_begin * QUERIES_AT_ONCE
    query_end = min(quad_end * QUERIES_AT_ONCE, queries.shape[0])
    in_fours_end = query_end - (query_end - query_begin) % QUERIES_AT_ONCE

    heaps_of_slab = heaps[cell // n_groups]
    tile_rows = max(64, _TILE_WORDS // n_words // N_LANES * N_LANES)
    turned_words = tile_rows * n_words + TURN_SLACK if in_fours_end > query_begin else 0
    turned = np.empty(turned_words, np.uint64)
    padded = np.empty(padded_words(n_words), np.uint64)
    where = np.empty_like(padded)
    for begin in range(row_begin, row_end, tile_rows):
        end = min(begin + tile_rows, row_end)
        if in_fours_end > query_begin:
            turn_tile(codes, begin, end, turned)
        for q in range(query_begin, in_fours_end, QUERIES_AT_ONCE):
            scan_four_queries(
                queries, q, turned, n_words, begin, end, first_row, mask, heaps_of_slab
            )
        for q in range(in_fours_end, query_end):
            scan_one_query(
                queries[q], codes, begin, end, first_row, mask, heaps_of_slab[q], padded, where
            )


@parallel_kernel
def topk_cells(n_cells, queries, codes, first_row, mask, heaps):
    for cell in prange(n_cells):
        topk_cell(np.int64(cell), n_cells, queries, codes, first_row, mask, heaps)


@kernel()
def radius_cell(cell, n_cells, queries, codes, first_row, mask, radius, found_query, found_key, n):
    """Collect all rows of one slab within ``radius`` of each query.

    Each cell writes from its own offset, that of its first (row, query) pair, so every possible
    result has a place.

    found_query : (n_rows * n_queries,) int64, written
    found_key : (n_rows * n_queries,) int64, written
    n : (n_cells,) int64, the number of results, written
    """
    n_rows, n_words = codes.shape
    begin, end = share(n_rows, cell, n_cells)
    words = codes.reshape(-1)
    padded = np.empty(padded_words(n_words), np.uint64)
    where = np.empty_like(padded)
    vectors_end = min(end, rows_with_vectors(n_rows, n_words))
    first_place = begin * queries.shape[0]
    place = first_place
    for q in range(queries.shape[0]):
        pad_query(queries[q], padded, where)
        row = begin
        while row < end:
            if row + N_LANES <= vectors_end:
                distances = eight_distances(padded, where, words, row, n_words)
                below = lanes_below(distances, radius + 1)
                while below != 0:
                    j = first_lane(below)
                    below &= below - _ONE
                    if mask.shape[0] == 0 or mask[row + j]:
                        found_query[place] = q
                        found_key[place] = (lane(distances, j) << ROW_BITS) | (first_row + row + j)
                        place += 1
                row += N_LANES
            else:
                bits = distance(queries[q], codes[row])
                if bits <= radius and (mask.shape[0] == 0 or mask[row]):
                    found_query[place] = q
                    found_key[place] = (np.int64(bits) << ROW_BITS) | (first_row + row)
                    place += 1
                row += 1
    n[cell] = place - first_place


@parallel_kernel
def radius_cells(n_cells, queries, codes, first_row, mask, radius, found_query, found_key, n):
    for cell in prange(n_cells):
        radius_cell(
            np.int64(cell),
            n_cells,
            queries,
            codes,
            first_row,
            mask,
            radius,
            found_query,
            found_key,
            n,
        )


TOPK = Launcher(topk_cell, topk_cells)
RADIUS = Launcher(radius_cell, radius_cells)
