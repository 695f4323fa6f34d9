"""Exact scans of codes: XOR, popcount, and the k nearest or all within a radius.

The work is a grid of cells, row slabs times query groups::

                 group 0      group 1
    slab 0    |  cell 0    |  cell 1   |     few queries: one group, a slab for each thread,
    slab 1    |  cell 2    |  cell 3   |     so that one query uses all cores
                                             many queries: one slab, a group for each thread,
                                             so that there is one shortlist per query

There are three inner loops:

* Blocks, held in memory or turned a tile at a time: four queries or one against 64 rows (``find``).
* Row-major codes and less than four queries, for which turning them would cost more than the scan,
  or codes beyond ``MAX_BLOCK_WORDS``: one query against eight rows where they lie, a lane being a
  word.
* Plain: a word after another, and a heap. What the others are tested against, what runs with the
  JIT off, and readable in one glance.
"""

from collections import namedtuple

import numpy as np
from numba import prange

from .blocks import TURN_SLACK, WORD_BYTES, turn_rows
from .columns import BLOCK_ROWS, FIND_WORDS, TABLE_BYTES
from .compiling import kernel, parallel_kernel
from .find import (
    BYTES_AHEAD,
    COUNTS,
    ENTRIES,
    MAX_BLOCK_WORDS,
    NIBBLES,
    QUERIES_AT_ONCE,
    Ready,
    Rows,
    blocks_a_tile,
    find,
    group_of_queries,
    room_for_finds,
    rows_allowed,
    run_blocks,
    sum_of,
)
from .intrinsics import ALL_ONES, first_bit, popcount64, prefetch
from .lanes import (
    N_LANES,
    add_differing_bits_where,
    add_neighbours,
    lanes_below,
    load_lanes,
    no_lanes,
)
from .launch import Launcher, share
from .methods import PLAIN, TABLE
from .topk import LIMIT, ROW_BITS, drop_beyond_limit, enlist, limit_of, replace_largest

# A byte differs in up to eight bits, so a uint8 holds 31 of them. So often columns become sums.
_COLUMN_BYTES = 31
_WORDS_AHEAD = BYTES_AHEAD // WORD_BYTES
_ONE = np.uint64(1)


@kernel()
def distance(query, code):
    """Hamming distance of two codes, in bits."""
    bits = 0
    for word in range(query.shape[0]):
        bits += popcount64(query[word] ^ code[word])
    return bits


@kernel()
def _repeat_bytes(queries, begin, end, n_bytes):
    """Every byte of some queries eight times in a uint64, flat; whole groups of four queries."""
    n_groups = (end - begin + QUERIES_AT_ONCE - 1) // QUERIES_AT_ONCE
    repeated = np.zeros(n_groups * QUERIES_AT_ONCE * n_bytes, np.uint64)
    i = 0
    for q in range(begin, end):
        for word in range(n_bytes // WORD_BYTES):
            for shift in range(0, 64, 8):
                byte = (queries[q, word] >> np.uint64(shift)) & np.uint64(0xFF)
                repeated[i] = byte * np.uint64(0x0101_0101_0101_0101)
                i += 1
    return repeated


@kernel()
def _make_tables(queries, begin, end, n_bytes):
    """Differing bits for each value of each half of each byte, flat.

    In the order (group of four, byte, query in the group, half, value).
    """
    n_groups = (end - begin + QUERIES_AT_ONCE - 1) // QUERIES_AT_ONCE
    tables = np.zeros(n_groups * n_bytes * QUERIES_AT_ONCE * ENTRIES, np.uint8)
    for q in range(begin, end):
        group, i = divmod(q - begin, QUERIES_AT_ONCE)
        for half in range(2 * n_bytes):
            word = queries[q, half // (2 * WORD_BYTES)]
            nibble = (word >> np.uint64(half % (2 * WORD_BYTES) * 4)) & np.uint64(15)
            at = ((group * n_bytes + half // 2) * QUERIES_AT_ONCE + i) * ENTRIES
            at += half % 2 * TABLE_BYTES
            for value in range(TABLE_BYTES):
                tables[at + value] = popcount64(nibble ^ np.uint64(value))
    return tables


@kernel()
def make_ready(method, queries, begin, end, n_bytes):
    """Queries ``begin`` to ``end``, ready for a method."""
    # In equal parts of at most 31 bytes.
    n_parts = (n_bytes + _COLUMN_BYTES - 1) // _COLUMN_BYTES
    at_once = (n_bytes + n_parts - 1) // n_parts
    if method == TABLE:
        tables = _make_tables(queries, begin, end, n_bytes)
        return Ready(NIBBLES, at_once, n_bytes, np.zeros(0, np.uint64), tables)
    repeated = _repeat_bytes(queries, begin, end, n_bytes)
    return Ready(COUNTS, at_once, n_bytes, repeated, np.zeros(0, np.uint8))


@kernel()
def worth_stopping(limit, n_bytes):
    """After how many columns a block may be hopeless: all of its rows at the limit already.

    A part of a distance is never above the whole, so stopping loses nothing, and whether to look is
    a guess: half of the bits of unrelated codes differ, give or take a standard deviation of half
    the square root, here four of them. On embeddings of sentences, where the tenth neighbour is at
    117 of 384 bits, looking after 16, 24 or 32 of 48 bytes cost more than it saved. For near
    duplicates it pays: all rows within 64 of 1,024 bits of 64 queries among a million are found in
    a quarter of the time that those within 358 take (9 and 39 ms, one thread), and within 32 of 256
    bits in 0.6 of the time that those within 89 take.
    """
    # The least number of bits with bits / 2 - 2 * sqrt(bits) >= limit.
    bits = (2 + np.sqrt(4 + 2 * limit)) ** 2
    return min(n_bytes, int(np.ceil(bits / 8)))


# The k nearest.


# The shortlists of a launch: flat, (slab, query, word); which slab is worked on.
Lists = namedtuple("Lists", "flat n_slabs n_queries n_words slab")


@kernel(forceinline=True)
def _list_of(lists, slab, q):
    """Where a query's shortlist begins."""
    return (slab * lists.n_queries + q) * lists.n_words


@kernel(forceinline=True)
def _limit_of_query(lists, q):
    """The distance a row must be below to be among the k nearest, as far as anybody knows.

    Other slabs work at the same time: k rows of another one that are within a distance prove that
    rows beyond it are out, but not rows at it, which may come before. So the result does not depend
    on who comes first, only the work does.
    """
    limit = lists.flat[_list_of(lists, lists.slab, q) + LIMIT]
    for slab in range(lists.n_slabs):
        if slab != lists.slab:
            limit = min(limit, lists.flat[_list_of(lists, slab, q) + LIMIT] + 1)
    return limit


@kernel()
def _enlist_finds(finds, n, lists, q, first_row):
    """Enlist the finds for queries ``q`` and on."""
    flat = lists.flat
    for place in range(0, n * FIND_WORDS, FIND_WORDS):
        mask = np.uint64(finds[place])
        block, i = divmod(finds[place + 1], QUERIES_AT_ONCE)
        at = _list_of(lists, lists.slab, q + i)
        row = first_row + block * BLOCK_ROWS
        while mask != 0:
            j = first_bit(mask)
            mask &= mask - _ONE
            bits = sum_of(finds, place, j)
            if bits < flat[at + LIMIT]:  # it may have sunk since
                if enlist(flat, at, bits, row + j):
                    drop_beyond_limit(flat, at)


@kernel()
def _blocks_done(lists, q, n_bytes):
    """How many blocks count as done for ``_run_blocks`` before a launch begins.

    None until k rows are found; the first query stands for all.
    """
    found = lists.flat[_list_of(lists, lists.slab, q) + LIMIT] <= 8 * n_bytes
    return 2 * blocks_a_tile(n_bytes) if found else 0


@kernel()
def _topk_of_run(ready, rows, begin, end, lists, query_begin, query_end, finds, limits):
    """Offer the rows of a few blocks to the shortlists of the queries made ready."""
    for q in range(query_begin, query_end, QUERIES_AT_ONCE):
        n_queries = min(QUERIES_AT_ONCE, query_end - q)
        largest = 0
        for i in range(QUERIES_AT_ONCE):
            limit = _limit_of_query(lists, q + i) if i < n_queries else 0
            limits[i * (end - begin) : (i + 1) * (end - begin)] = limit
            largest = max(largest, limit)
        stop_from = worth_stopping(largest, ready.n_bytes)
        n = find(ready, q - query_begin, n_queries, rows, begin, end, limits, stop_from, finds)
        _enlist_finds(finds, n, lists, q, rows.first_row)


@kernel()
def topk_blocks(
    method,
    slab,
    query_begin,
    query_end,
    queries,
    blocks,
    begin,
    end,
    n_rows,
    first_row,
    allowed,
    shortlists,
):
    """Offer the rows of blocks ``begin`` to ``end`` to the shortlists of a slab.

    Arguments are those of ``topk_blocks_cell``.
    """
    n_bytes = blocks.shape[1]
    rows = Rows(blocks.reshape(-1), n_rows, first_row, allowed)
    lists = Lists(shortlists.reshape(-1), *shortlists.shape, slab)
    ready = make_ready(method, queries, query_begin, query_end, n_bytes)
    finds, limits = room_for_finds(n_bytes)
    done = _blocks_done(lists, query_begin, n_bytes) if query_begin < query_end else 0
    block = begin
    while block < end:
        run_end = min(end, block + run_blocks(done + block - begin, n_bytes))
        _topk_of_run(ready, rows, block, run_end, lists, query_begin, query_end, finds, limits)
        block = run_end


@kernel()
def topk_blocks_cell(
    cell, n_cells, method, queries, blocks, n_rows, first_row, allowed, shortlists
):
    """Scan the blocks of one cell for its queries.

    method : int, POPCOUNT or TABLE
    queries : (n_queries, n_words) uint64
    blocks : (n_blocks, 8 * n_words, 64) uint8, at most MAX_BLOCK_WORDS words
    n_rows : how many rows they hold, ``first_row`` and on of the whole
    allowed : (n_blocks,) uint64, a bit for each row that may be found, or (0,) for all rows
    shortlists : (n_slabs, n_queries, n) int64, updated. Rows come to a slab in ascending order over
        all calls, so a row with the distance of the limit never enters.
    """
    n_slabs = shortlists.shape[0]
    slab, group = divmod(cell, n_cells // n_slabs)
    begin, end = share((n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS, slab, n_slabs)
    query_begin, query_end = group_of_queries(queries.shape[0], group, n_cells // n_slabs)
    topk_blocks(
        method,
        slab,
        query_begin,
        query_end,
        queries,
        blocks,
        begin,
        end,
        n_rows,
        first_row,
        allowed,
        shortlists,
    )


# Row-major codes.


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


@kernel(forceinline=True)
def _rows_below(limit, query, padded, where, codes, words, row, end, vectors_end):
    """Which of the 64 rows from ``row`` on are below a limit."""
    mask = np.uint64(0)
    for first in range(row, min(row + BLOCK_ROWS, end), N_LANES):
        if first + N_LANES <= vectors_end:
            distances = eight_distances(padded, where, words, first, codes.shape[1])
            mask |= lanes_below(distances, limit) << np.uint64(first - row)
        else:
            for i in range(first, min(first + N_LANES, end)):
                if distance(query, codes[i]) < limit:
                    mask |= _ONE << np.uint64(i - row)
    return mask


@kernel()
def _topk_of_query(lists, q, query, codes, begin, end, first_row, allowed):
    """Offer rows where they lie to one query's shortlist."""
    n_rows, n_words = codes.shape
    words = codes.reshape(-1)
    padded = np.empty(padded_words(n_words), np.uint64)
    where = np.empty_like(padded)
    pad_query(query, padded, where)
    vectors_end = rows_with_vectors(n_rows, n_words)
    at = _list_of(lists, lists.slab, q)
    for row in range(begin, end, BLOCK_ROWS):
        rows = rows_allowed(allowed, row // BLOCK_ROWS, n_rows)
        if rows == 0:
            continue
        limit = _limit_of_query(lists, q)
        mask = rows & _rows_below(limit, query, padded, where, codes, words, row, end, vectors_end)
        while mask != 0:
            i = row + first_bit(mask)
            mask &= mask - _ONE
            bits = distance(query, codes[i])  # again: few rows come here
            if bits < lists.flat[at + LIMIT]:
                if enlist(lists.flat, at, bits, first_row + i):
                    drop_beyond_limit(lists.flat, at)


@kernel()
def _plain_topk(heaps, q, query, codes, begin, end, first_row, allowed):
    """Offer rows to one query's heap, a word after another."""
    heap = heaps[q]
    limit = limit_of(heap)
    for row in range(begin, end):
        bits = distance(query, codes[row])
        if bits < limit:
            rows = rows_allowed(allowed, row // BLOCK_ROWS, codes.shape[0])
            if rows >> np.uint64(row % BLOCK_ROWS) & _ONE:
                replace_largest(heap, (np.int64(bits) << ROW_BITS) | (first_row + row))
                limit = limit_of(heap)


@kernel()
def topk_rows(
    method, slab, query_begin, query_end, queries, codes, begin, end, first_row, allowed, kept
):
    """Offer rows ``begin`` to ``end``, ``begin`` a multiple of 64, to what a slab keeps."""
    n_words = codes.shape[1]
    n_queries = query_end - query_begin
    if method == PLAIN:
        for q in range(query_begin, query_end):
            _plain_topk(kept[slab], q, queries[q], codes, begin, end, first_row, allowed)
        return
    lists = Lists(kept.reshape(-1), *kept.shape, slab)
    if n_queries < QUERIES_AT_ONCE or n_words > MAX_BLOCK_WORDS:
        for q in range(query_begin, query_end):
            _topk_of_query(lists, q, queries[q], codes, begin, end, first_row, allowed)
        return
    n_bytes = n_words * WORD_BYTES
    ready = make_ready(method, queries, query_begin, query_end, n_bytes)
    finds, limits = room_for_finds(n_bytes)
    tile = np.empty(blocks_a_tile(n_bytes) * n_bytes * BLOCK_ROWS + TURN_SLACK, np.uint8)
    done = _blocks_done(lists, query_begin, n_bytes)
    row = begin
    while row < end:
        n_blocks = run_blocks(done + (row - begin) // BLOCK_ROWS, n_bytes)
        n_rows = min(end - row, n_blocks * BLOCK_ROWS)
        turn_rows(codes, row, row + n_rows, tile, 0)
        rows = Rows(tile, n_rows, first_row + row, allowed[row // BLOCK_ROWS :])
        n_blocks = (n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS
        _topk_of_run(ready, rows, 0, n_blocks, lists, query_begin, query_end, finds, limits)
        row += n_rows


@kernel()
def topk_rows_cell(cell, n_cells, method, queries, codes, first_row, allowed, kept):
    """Scan the rows of one cell for its queries.

    method : int
    queries : (n_queries, n_words) uint64
    codes : (n_rows, n_words) uint64, rows ``first_row`` and on of the whole
    allowed : (ceil(n_rows / 64),) uint64, a bit for each row, or (0,) for all rows
    kept : (n_slabs, n_queries, n) int64, updated: heaps for the plain method, else shortlists. Rows
        come to a slab in ascending order over all calls.
    """
    n_slabs = kept.shape[0]
    n_rows = codes.shape[0]
    slab, group = divmod(cell, n_cells // n_slabs)
    begin, end = share((n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS, slab, n_slabs)
    begin *= BLOCK_ROWS
    end = min(end * BLOCK_ROWS, n_rows)
    query_begin, query_end = group_of_queries(queries.shape[0], group, n_cells // n_slabs)
    topk_rows(
        method, slab, query_begin, query_end, queries, codes, begin, end, first_row, allowed, kept
    )


# All within a radius.


@kernel()
def _collect(finds, n, q, first_row, found, place):
    """Write the finds for queries ``q`` and on from ``place`` on; where the next ones go."""
    for at in range(0, n * FIND_WORDS, FIND_WORDS):
        mask = np.uint64(finds[at])
        block, i = divmod(finds[at + 1], QUERIES_AT_ONCE)
        while mask != 0:
            j = first_bit(mask)
            mask &= mask - _ONE
            row = first_row + block * BLOCK_ROWS + j
            found[0, place] = q + i
            found[1, place] = (sum_of(finds, at, j) << ROW_BITS) | row
            place += 1
    return place


@kernel()
def radius_blocks_cell(
    cell, n_cells, method, queries, blocks, n_rows, first_row, allowed, radius, found, n_found
):
    """Collect all rows of one slab within ``radius`` of each query.

    Each cell writes from its own offset, that of its first (row, query) pair, so every possible
    result has a place. Other arguments are those of ``topk_blocks_cell``.

    radius : int, below 2**16 - 1
    found : (2, n_rows * n_queries) int64, written: queries and keys
    n_found : (n_cells,) int64, the number of results, written
    """
    n_bytes = blocks.shape[1]
    n_queries = queries.shape[0]
    begin, end = share((n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS, cell, n_cells)
    n_found[cell] = 0
    if begin == end:
        return
    rows = Rows(blocks.reshape(-1), n_rows, first_row, allowed)
    ready = make_ready(method, queries, 0, n_queries, n_bytes)
    finds, limits = room_for_finds(n_bytes)
    stop_from = worth_stopping(radius + 1, n_bytes)
    longest = blocks_a_tile(n_bytes)
    first_place = begin * BLOCK_ROWS * n_queries
    place = first_place
    for block in range(begin, end, longest):
        run_end = min(end, block + longest)
        limits[:] = radius + 1
        for q in range(0, n_queries, QUERIES_AT_ONCE):
            n_now = min(QUERIES_AT_ONCE, n_queries - q)
            limits[n_now * (run_end - block) :] = 0
            n = find(ready, q, n_now, rows, block, run_end, limits, stop_from, finds)
            place = _collect(finds, n, q, first_row, found, place)
    n_found[cell] = place - first_place


@kernel()
def radius_rows_cell(cell, n_cells, queries, codes, first_row, allowed, radius, found, n_found):
    """The same for row-major codes of any length, a word after another."""
    n_rows = codes.shape[0]
    n_queries = queries.shape[0]
    begin, end = share((n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS, cell, n_cells)
    first_place = begin * BLOCK_ROWS * n_queries
    place = first_place
    for row in range(begin * BLOCK_ROWS, min(end * BLOCK_ROWS, n_rows)):
        rows = rows_allowed(allowed, row // BLOCK_ROWS, n_rows)
        if rows >> np.uint64(row % BLOCK_ROWS) & _ONE:
            for q in range(n_queries):
                bits = distance(queries[q], codes[row])
                if bits <= radius:
                    found[0, place] = q
                    found[1, place] = (np.int64(bits) << ROW_BITS) | (first_row + row)
                    place += 1
    n_found[cell] = place - first_place


@parallel_kernel
def topk_blocks_cells(
    n_cells, done, method, queries, blocks, n_rows, first_row, allowed, shortlists
):
    for cell in prange(n_cells):
        topk_blocks_cell(
            np.int64(cell),
            n_cells,
            method,
            queries,
            blocks,
            n_rows,
            first_row,
            allowed,
            shortlists,
        )
        done[cell] = True


@parallel_kernel
def topk_rows_cells(n_cells, done, method, queries, codes, first_row, allowed, kept):
    for cell in prange(n_cells):
        topk_rows_cell(np.int64(cell), n_cells, method, queries, codes, first_row, allowed, kept)
        done[cell] = True


@parallel_kernel
def radius_blocks_cells(
    n_cells, done, method, queries, blocks, n_rows, first_row, allowed, radius, found, n_found
):
    for cell in prange(n_cells):
        radius_blocks_cell(
            np.int64(cell),
            n_cells,
            method,
            queries,
            blocks,
            n_rows,
            first_row,
            allowed,
            radius,
            found,
            n_found,
        )
        done[cell] = True


@parallel_kernel
def radius_rows_cells(n_cells, done, queries, codes, first_row, allowed, radius, found, n_found):
    for cell in prange(n_cells):
        radius_rows_cell(
            np.int64(cell), n_cells, queries, codes, first_row, allowed, radius, found, n_found
        )
        done[cell] = True


TOPK_BLOCKS = Launcher(topk_blocks_cell, topk_blocks_cells)
TOPK_ROWS = Launcher(topk_rows_cell, topk_rows_cells)
RADIUS_BLOCKS = Launcher(radius_blocks_cell, radius_blocks_cells)
RADIUS_ROWS = Launcher(radius_rows_cell, radius_rows_cells)
