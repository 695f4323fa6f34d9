"""Exact scans of codes: XOR, popcount, and the k nearest or all within a radius.

The work is a grid of cells, row slabs times query groups::

                 group 0      group 1
    slab 0    |  cell 0    |  cell 1   |     few queries: one group, a slab for each thread,
    slab 1    |  cell 2    |  cell 3   |     so that one query uses all cores
                                             many queries: one slab, a group for each thread,
                                             so that there is one shortlist per query

There are three inner loops:

* Blocks, held in memory or turned a tile at a time: four queries at once against 64 rows, so that a
  load serves four distances; or one query. A byte's differing bits come from a vector popcount or
  from a table look-up, whichever the processor does better (``methods``).
* Row-major codes and less than four queries, for which turning them would cost more than the scan,
  or codes beyond ``MAX_BLOCK_WORDS``: one query against eight rows where they lie, a lane being a
  word.
* Plain: a word after another, and a heap. What the others are tested against, what runs with the
  JIT off, and readable in one glance.

Rows below the limit are written aside and looked at after a run of blocks. To look at once costs
about 40 ns a row: it comes as a surprise, and the mispredicted branch throws away what the
processor had begun of the next blocks. Runs are short in the beginning, when the limit sinks with
every row, and then as long as a tile, 256 KiB, which stays in the second-level cache for all
queries.

Figures are of a Zen 5 core, in GB/s of codes times queries. The loop over columns of four queries,
alone and from the cache, comes to 250. Tried and dropped, at 384 bits: eight queries at once 256;
carry-save adders (Harley and Seal) before the popcount 158, as the ternary logic takes the units
that count; a nibble look-up of 64 bytes 101.
"""

from collections import namedtuple

import numpy as np
from numba import prange

from .blocks import TURN_SLACK, WORD_BYTES, turn_rows
from .columns import (
    BLOCK_ROWS,
    FIND_WORDS,
    TABLE_BYTES,
    add_column,
    add_differing,
    add_entries,
    high_nibbles,
    load_column,
    low_nibbles,
    no_column,
    no_sums,
    store_find,
    sums_below,
)
from .compiling import kernel, parallel_kernel
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

QUERIES_AT_ONCE = 4
MAX_BLOCK_WORDS = 1023  # longer codes have distances beyond the uint16 of a sum

_TILE_BYTES = 1 << 18
# A byte differs in up to eight bits, so a uint8 holds 31 of them. So often columns become sums.
_COLUMN_BYTES = 31
_ENTRIES = 2 * TABLE_BYTES  # of a query's byte: a table for the low half, one for the high half
# How far ahead of a single query's scan the codes are called into the cache. The processor's own
# prefetcher stops at every page. Two threads read 1 M codes of 256 bits in blocks at 65 GB/s
# without, 77 with 4 KiB, 89 with 8, 94 with 16, 82 with 32.
_BYTES_AHEAD = 1 << 13
_WORDS_AHEAD = _BYTES_AHEAD // WORD_BYTES
_ONE = np.uint64(1)


@kernel()
def distance(query, code):
    """Hamming distance of two codes, in bits."""
    bits = 0
    for word in range(query.shape[0]):
        bits += popcount64(query[word] ^ code[word])
    return bits


@kernel(forceinline=True)
def rows_allowed(allowed, block, n_rows):
    """Which of a block's rows exist and may be found, a bit for each."""
    rows = n_rows - block * BLOCK_ROWS
    filled = ALL_ONES if rows >= BLOCK_ROWS else (_ONE << np.uint64(rows)) - _ONE
    return filled if allowed.shape[0] == 0 else filled & allowed[block]


# Queries, made ready for the inner loops: each byte repeated, or tables; the other one is empty.
Ready = namedtuple("Ready", "by_table n_bytes repeated tables")

# Rows in blocks: flat bytes, how many rows there are, the number of the first one, and a bit for
# each row that may be found, or none for all of them.
Rows = namedtuple("Rows", "columns n_rows first_row allowed")


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
    tables = np.zeros(n_groups * n_bytes * QUERIES_AT_ONCE * _ENTRIES, np.uint8)
    for q in range(begin, end):
        group, i = divmod(q - begin, QUERIES_AT_ONCE)
        for half in range(2 * n_bytes):
            word = queries[q, half // (2 * WORD_BYTES)]
            nibble = (word >> np.uint64(half % (2 * WORD_BYTES) * 4)) & np.uint64(15)
            at = ((group * n_bytes + half // 2) * QUERIES_AT_ONCE + i) * _ENTRIES
            at += half % 2 * TABLE_BYTES
            for value in range(TABLE_BYTES):
                tables[at + value] = popcount64(nibble ^ np.uint64(value))
    return tables


@kernel()
def _make_ready(method, queries, begin, end, n_bytes):
    """Queries ``begin`` to ``end``, ready for a method."""
    if method == TABLE:
        tables = _make_tables(queries, begin, end, n_bytes)
        return Ready(True, n_bytes, np.zeros(0, np.uint64), tables)
    repeated = _repeat_bytes(queries, begin, end, n_bytes)
    return Ready(False, n_bytes, repeated, np.zeros(0, np.uint8))


# Sums of one block.


@kernel(forceinline=True)
def _look_up(counts, tables, at, low, high):
    return add_entries(add_entries(counts, tables, at, low), tables, at + TABLE_BYTES, high)


@kernel(forceinline=True)
def _count_four(columns, at, n_columns, repeated, q, n_bytes):
    """Differing bits of four queries in the next columns."""
    a = no_column()
    b = no_column()
    c = no_column()
    d = no_column()
    for j in range(n_columns):
        prefetch(columns, at + j * BLOCK_ROWS + _BYTES_AHEAD)
        column = load_column(columns, at + j * BLOCK_ROWS)
        a = add_differing(a, column, repeated, q + j)
        b = add_differing(b, column, repeated, q + n_bytes + j)
        c = add_differing(c, column, repeated, q + 2 * n_bytes + j)
        d = add_differing(d, column, repeated, q + 3 * n_bytes + j)
    return a, b, c, d


@kernel(forceinline=True)
def _look_up_four(columns, at, n_columns, tables, t):
    """The same from tables."""
    a = no_column()
    b = no_column()
    c = no_column()
    d = no_column()
    for j in range(n_columns):
        prefetch(columns, at + j * BLOCK_ROWS + _BYTES_AHEAD)
        column = load_column(columns, at + j * BLOCK_ROWS)
        low = low_nibbles(column)
        high = high_nibbles(column)
        here = t + j * QUERIES_AT_ONCE * _ENTRIES
        a = _look_up(a, tables, here, low, high)
        b = _look_up(b, tables, here + _ENTRIES, low, high)
        c = _look_up(c, tables, here + 2 * _ENTRIES, low, high)
        d = _look_up(d, tables, here + 3 * _ENTRIES, low, high)
    return a, b, c, d


@kernel(forceinline=True)
def _count_one(columns, at, n_columns, repeated, q):
    counts = no_column()
    for j in range(n_columns):
        prefetch(columns, at + j * BLOCK_ROWS + _BYTES_AHEAD)
        column = load_column(columns, at + j * BLOCK_ROWS)
        counts = add_differing(counts, column, repeated, q + j)
    return counts


@kernel(forceinline=True)
def _look_up_one(columns, at, n_columns, tables, t):
    counts = no_column()
    for j in range(n_columns):
        prefetch(columns, at + j * BLOCK_ROWS + _BYTES_AHEAD)
        column = load_column(columns, at + j * BLOCK_ROWS)
        here = t + j * QUERIES_AT_ONCE * _ENTRIES
        counts = _look_up(counts, tables, here, low_nibbles(column), high_nibbles(column))
    return counts


# Runs of blocks: what is below the limits goes to the finds.


@kernel(forceinline=True)
def _columns_at_once(n_bytes):
    """How many columns are counted before they become sums, in equal parts."""
    n_parts = (n_bytes + _COLUMN_BYTES - 1) // _COLUMN_BYTES
    return (n_bytes + n_parts - 1) // n_parts


@kernel()
def _worth_stopping(limit, n_bytes):
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


@kernel(forceinline=True)
def _note(finds, n, mask, block, i, sums):
    """Write a find and return how many there are: it is one only if the mask has any row.

    A find is the rows below the limit, the number of their block and query, and all sums.
    """
    store_find(finds, n * FIND_WORDS, mask, block * QUERIES_AT_ONCE + i, sums)
    return n + np.int64(mask != 0)


@kernel()
def _find_of_four(ready, group, rows, begin, end, limits, finds):
    """Find the rows of some blocks that are below the limits of a group of four queries."""
    limit0 = limits[0]
    limit1 = limits[1]
    limit2 = limits[2]
    limit3 = limits[3]
    n_bytes = ready.n_bytes
    q = group * QUERIES_AT_ONCE * n_bytes
    step = _columns_at_once(n_bytes)
    stop_from = _worth_stopping(max(limit0, limit1, limit2, limit3), n_bytes)
    n = 0
    for block in range(begin, end):
        allowed = rows_allowed(rows.allowed, block, rows.n_rows)
        if allowed == 0:
            continue
        at = block * n_bytes * BLOCK_ROWS
        sums0 = no_sums()
        sums1 = no_sums()
        sums2 = no_sums()
        sums3 = no_sums()
        first = 0
        while first < n_bytes:
            n_columns = min(step, n_bytes - first)
            here = at + first * BLOCK_ROWS
            if ready.by_table:
                t = (q + first * QUERIES_AT_ONCE) * _ENTRIES
                counts = _look_up_four(rows.columns, here, n_columns, ready.tables, t)
            else:
                counts = _count_four(
                    rows.columns, here, n_columns, ready.repeated, q + first, n_bytes
                )
            sums0 = add_column(sums0, counts[0])
            sums1 = add_column(sums1, counts[1])
            sums2 = add_column(sums2, counts[2])
            sums3 = add_column(sums3, counts[3])
            first += n_columns
            if (
                first >= stop_from
                and (
                    sums_below(sums0, limit0)
                    | sums_below(sums1, limit1)
                    | sums_below(sums2, limit2)
                    | sums_below(sums3, limit3)
                )
                == 0
            ):
                break
        mask0 = sums_below(sums0, limit0) & allowed
        mask1 = sums_below(sums1, limit1) & allowed
        mask2 = sums_below(sums2, limit2) & allowed
        mask3 = sums_below(sums3, limit3) & allowed
        if mask0 | mask1 | mask2 | mask3 != 0:
            n = _note(finds, n, mask0, block, 0, sums0)
            n = _note(finds, n, mask1, block, 1, sums1)
            n = _note(finds, n, mask2, block, 2, sums2)
            n = _note(finds, n, mask3, block, 3, sums3)
    return n


@kernel()
def _find_of_one(ready, i, rows, begin, end, limit, finds):
    """The same for query ``i`` alone, the first of its group."""
    n_bytes = ready.n_bytes
    step = _columns_at_once(n_bytes)
    stop_from = _worth_stopping(limit, n_bytes)
    n = 0
    for block in range(begin, end):
        allowed = rows_allowed(rows.allowed, block, rows.n_rows)
        if allowed == 0:
            continue
        at = block * n_bytes * BLOCK_ROWS
        sums = no_sums()
        first = 0
        while first < n_bytes:
            n_columns = min(step, n_bytes - first)
            here = at + first * BLOCK_ROWS
            if ready.by_table:
                t = (i * n_bytes + first * QUERIES_AT_ONCE) * _ENTRIES
                counts = _look_up_one(rows.columns, here, n_columns, ready.tables, t)
            else:
                q = i * n_bytes + first
                counts = _count_one(rows.columns, here, n_columns, ready.repeated, q)
            sums = add_column(sums, counts)
            first += n_columns
            if first >= stop_from and sums_below(sums, limit) == 0:
                break
        n = _note(finds, n, sums_below(sums, limit) & allowed, block, 0, sums)
    return n


@kernel()
def _find(ready, i, n_queries, rows, begin, end, limits, finds):
    """Find the rows of some blocks that are below the limits of one to four queries.

    i : the first of them among those made ready, a multiple of four
    limits : (4,) int64, below 2**16; those of queries that are not there become zero
    finds : flat int64, written
    Returns the number of finds, one a block and query with any row below the limit.
    """
    if n_queries == 1:
        return _find_of_one(ready, i, rows, begin, end, limits[0], finds)
    for absent in range(n_queries, QUERIES_AT_ONCE):
        limits[absent] = 0
    return _find_of_four(ready, i // QUERIES_AT_ONCE, rows, begin, end, limits, finds)


@kernel()
def _blocks_a_tile(n_bytes):
    return max(1, _TILE_BYTES // (n_bytes * BLOCK_ROWS))


@kernel()
def _room_for_finds(n_bytes):
    """(finds, limits) for runs of up to a tile."""
    finds = np.empty(QUERIES_AT_ONCE * _blocks_a_tile(n_bytes) * FIND_WORDS, np.int64)
    return finds, np.empty(QUERIES_AT_ONCE, np.int64)


@kernel(forceinline=True)
def _sum_of(finds, at, j):
    """The sum of row ``j`` in the find that begins at ``at``."""
    return (finds[at + 2 + (j >> 2)] >> (16 * (j & 3))) & 0xFFFF


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
    for find in range(0, n * FIND_WORDS, FIND_WORDS):
        mask = np.uint64(finds[find])
        block, i = divmod(finds[find + 1], QUERIES_AT_ONCE)
        at = _list_of(lists, lists.slab, q + i)
        row = first_row + block * BLOCK_ROWS
        while mask != 0:
            j = first_bit(mask)
            mask &= mask - _ONE
            bits = _sum_of(finds, find, j)
            if bits < flat[at + LIMIT]:  # it may have sunk since
                if enlist(flat, at, bits, row + j):
                    drop_beyond_limit(flat, at)


@kernel()
def _blocks_done(lists, q, n_bytes):
    """How many blocks count as done for ``_run_blocks`` before a launch begins.

    None until k rows are found; the first query stands for all.
    """
    found = lists.flat[_list_of(lists, lists.slab, q) + LIMIT] <= 8 * n_bytes
    return 2 * _blocks_a_tile(n_bytes) if found else 0


@kernel()
def _run_blocks(done, n_bytes):
    """Blocks to scan before the limits are looked at again: a few at first, then a tile."""
    return min(_blocks_a_tile(n_bytes), 1 + done // 2)


@kernel()
def _topk_of_run(ready, rows, begin, end, lists, query_begin, query_end, finds, limits):
    """Offer the rows of a few blocks to the shortlists of the queries made ready."""
    for q in range(query_begin, query_end, QUERIES_AT_ONCE):
        n_queries = min(QUERIES_AT_ONCE, query_end - q)
        for i in range(n_queries):
            limits[i] = _limit_of_query(lists, q + i)
        n = _find(ready, q - query_begin, n_queries, rows, begin, end, limits, finds)
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
    ready = _make_ready(method, queries, query_begin, query_end, n_bytes)
    finds, limits = _room_for_finds(n_bytes)
    done = _blocks_done(lists, query_begin, n_bytes) if query_begin < query_end else 0
    block = begin
    while block < end:
        run_end = min(end, block + _run_blocks(done + block - begin, n_bytes))
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
    query_begin, query_end = _group_of_queries(queries.shape[0], group, n_cells // n_slabs)
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


@kernel(forceinline=True)
def _group_of_queries(n_queries, group, n_groups):
    """A share of the queries, cut between fours."""
    n_fours = (n_queries + QUERIES_AT_ONCE - 1) // QUERIES_AT_ONCE
    begin, end = share(n_fours, group, n_groups)
    return begin * QUERIES_AT_ONCE, min(end * QUERIES_AT_ONCE, n_queries)


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
    ready = _make_ready(method, queries, query_begin, query_end, n_bytes)
    finds, limits = _room_for_finds(n_bytes)
    tile = np.empty(_blocks_a_tile(n_bytes) * n_bytes * BLOCK_ROWS + TURN_SLACK, np.uint8)
    done = _blocks_done(lists, query_begin, n_bytes)
    row = begin
    while row < end:
        n_blocks = _run_blocks(done + (row - begin) // BLOCK_ROWS, n_bytes)
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
    query_begin, query_end = _group_of_queries(queries.shape[0], group, n_cells // n_slabs)
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
            found[1, place] = (_sum_of(finds, at, j) << ROW_BITS) | row
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
    ready = _make_ready(method, queries, 0, n_queries, n_bytes)
    finds, limits = _room_for_finds(n_bytes)
    longest = _blocks_a_tile(n_bytes)
    first_place = begin * BLOCK_ROWS * n_queries
    place = first_place
    for block in range(begin, end, longest):
        run_end = min(end, block + longest)
        for q in range(0, n_queries, QUERIES_AT_ONCE):
            limits[:] = radius + 1
            n_now = min(QUERIES_AT_ONCE, n_queries - q)
            n = _find(ready, q, n_now, rows, block, run_end, limits, finds)
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
def topk_blocks_cells(n_cells, method, queries, blocks, n_rows, first_row, allowed, shortlists):
    for cell in prange(n_cells):
        topk_blocks_cell(
            np.int64(cell), n_cells, method, queries, blocks, n_rows, first_row, allowed, shortlists
        )


@parallel_kernel
def topk_rows_cells(n_cells, method, queries, codes, first_row, allowed, kept):
    for cell in prange(n_cells):
        topk_rows_cell(np.int64(cell), n_cells, method, queries, codes, first_row, allowed, kept)


@parallel_kernel
def radius_blocks_cells(
    n_cells, method, queries, blocks, n_rows, first_row, allowed, radius, found, n_found
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


@parallel_kernel
def radius_rows_cells(n_cells, queries, codes, first_row, allowed, radius, found, n_found):
    for cell in prange(n_cells):
        radius_rows_cell(
            np.int64(cell), n_cells, queries, codes, first_row, allowed, radius, found, n_found
        )


TOPK_BLOCKS = Launcher(topk_blocks_cell, topk_blocks_cells)
TOPK_ROWS = Launcher(topk_rows_cell, topk_rows_cells)
RADIUS_BLOCKS = Launcher(radius_blocks_cell, radius_blocks_cells)
RADIUS_ROWS = Launcher(radius_rows_cell, radius_rows_cells)
