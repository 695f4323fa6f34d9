"""Which rows of some blocks are below a limit: the inner loops of every scan of blocks.

What a row is measured by, a *cost*, is the sum of what each byte of its code costs. Hamming search
counts the bits in which a byte differs from the query's; asymmetric search adds up the weights of
those bits. Costs are integers below 2**16, limits come from the caller, a limit for each block and
query, and all that is written is which rows are below, with their costs.

Four queries at once go against the 64 rows of a block, so that a load serves four sums; or one. The
cost of a byte comes from

* COUNTS: a vector popcount of its differing bits;
* NIBBLES: two tables of 16 entries, for the halves of each byte, looked up by a byte shuffle;
* SIXES: a table of 64 entries for every six bits, looked up by the byte permutation of AVX-512
  VBMI. Three bytes make four look-ups instead of six. With four queries, from the cache, at 384
  bits and with weights: 157 GB/s against 92 of nibbles, while counting comes to 240. What limits it
  is one look-up a cycle. Tables have to begin at multiples of 64 bytes: else each look-up reads two
  cache lines, and it comes to 108.

A uint8 holds a few of these, and is then added to sums of uint16: ``Ready.at_once`` bytes later.

Rows below the limit are written aside and looked at after a run of blocks. To look at once costs
about 40 ns a row: it comes as a surprise, and the mispredicted branch throws away what the
processor had begun of the next blocks. Runs are short in the beginning, when the limit sinks with
every row, and then as long as a tile, 256 KiB, which stays in the second-level cache for all
queries.

Figures are of a Zen 5 core, in GB/s of codes times queries. The loop over columns of four queries,
counting, alone and from the cache, comes to 250. Tried and dropped, at 384 bits: eight queries at
once 256; carry-save adders (Harley and Seal) before the popcount 158, as the ternary logic takes
the units that count; a nibble look-up of 64 bytes 101.
"""

from collections import namedtuple

import numpy as np

from .columns import (
    BLOCK_ROWS,
    FIND_WORDS,
    TABLE_BYTES,
    WIDE_TABLE_BYTES,
    add_column,
    add_differing,
    add_entries,
    add_wide_entries,
    by_row,
    high_nibbles,
    load_column,
    low_nibbles,
    no_column,
    no_sums,
    six_bits,
    store_find,
    sums_below,
)
from .compiling import kernel
from .intrinsics import ALL_ONES, prefetch
from .launch import share

COUNTS, NIBBLES, SIXES = range(3)

QUERIES_AT_ONCE = 4
MAX_BLOCK_WORDS = 1023  # longer codes have distances beyond the uint16 of a sum

_TILE_BYTES = 1 << 18
ENTRIES = 2 * TABLE_BYTES  # of a query's byte: a table for the low half, one for the high half
# How far ahead of a single query's scan the codes are called into the cache. The processor's own
# prefetcher stops at every page. Two threads read 1 M codes of 256 bits in blocks at 65 GB/s
# without, 77 with 4 KiB, 89 with 8, 94 with 16, 82 with 32.
BYTES_AHEAD = 1 << 13
_TRIPLE = 3  # bytes that make four look-ups of six bits
_WIDE_ENTRIES = 4 * WIDE_TABLE_BYTES  # of three bytes of a query
_ONE = np.uint64(1)


@kernel(forceinline=True)
def triples(n_bytes):
    """How often three bytes are looked up in a code of ``n_bytes``."""
    return (n_bytes + _TRIPLE - 1) // _TRIPLE


@kernel(forceinline=True)
def rows_allowed(allowed, block, n_rows):
    """Which of a block's rows exist and may be found, a bit for each."""
    rows = n_rows - block * BLOCK_ROWS
    filled = ALL_ONES if rows >= BLOCK_ROWS else (_ONE << np.uint64(rows)) - _ONE
    return filled if allowed.shape[0] == 0 else filled & allowed[block]


# Queries, made ready for the inner loops.
#
# by : COUNTS, NIBBLES or SIXES
# at_once : bytes that a uint8 can hold the costs of; with SIXES a multiple of three
# n_bytes : of a code
# repeated : for COUNTS, every byte eight times in a uint64; flat (query, byte)
# tables : for the others, uint8; flat (query, byte, half, 16), or
#     (query, three bytes, six bits, 64)
Ready = namedtuple("Ready", "by at_once n_bytes repeated tables")

# Rows in blocks: flat bytes, how many rows there are, the number of the first one, and a bit for
# each row that may be found, or none for all of them.
Rows = namedtuple("Rows", "columns n_rows first_row allowed")


# Sums of one block.


@kernel(forceinline=True)
def _look_up(counts, tables, at, low, high):
    return add_entries(add_entries(counts, tables, at, low), tables, at + TABLE_BYTES, high)


@kernel(forceinline=True)
def _count_four(columns, at, n_columns, repeated, first, four, n_bytes):
    """Differing bits of four queries in the next columns."""
    of_a = four[0] * n_bytes + first
    of_b = four[1] * n_bytes + first
    of_c = four[2] * n_bytes + first
    of_d = four[3] * n_bytes + first
    a = no_column()
    b = no_column()
    c = no_column()
    d = no_column()
    for j in range(n_columns):
        prefetch(columns, at + j * BLOCK_ROWS + BYTES_AHEAD)
        column = load_column(columns, at + j * BLOCK_ROWS)
        a = add_differing(a, column, repeated, of_a + j)
        b = add_differing(b, column, repeated, of_b + j)
        c = add_differing(c, column, repeated, of_c + j)
        d = add_differing(d, column, repeated, of_d + j)
    return a, b, c, d


@kernel(forceinline=True)
def _look_up_four(columns, at, n_columns, tables, first, four, n_bytes):
    """The same from tables."""
    of_a = (four[0] * n_bytes + first) * ENTRIES
    of_b = (four[1] * n_bytes + first) * ENTRIES
    of_c = (four[2] * n_bytes + first) * ENTRIES
    of_d = (four[3] * n_bytes + first) * ENTRIES
    a = no_column()
    b = no_column()
    c = no_column()
    d = no_column()
    for j in range(n_columns):
        prefetch(columns, at + j * BLOCK_ROWS + BYTES_AHEAD)
        column = load_column(columns, at + j * BLOCK_ROWS)
        low = low_nibbles(column)
        high = high_nibbles(column)
        a = _look_up(a, tables, of_a + j * ENTRIES, low, high)
        b = _look_up(b, tables, of_b + j * ENTRIES, low, high)
        c = _look_up(c, tables, of_c + j * ENTRIES, low, high)
        d = _look_up(d, tables, of_d + j * ENTRIES, low, high)
    return a, b, c, d


@kernel(forceinline=True)
def _three_bytes(columns, at, j, n_bytes):
    """Four columns of six bits from bytes ``j``, ``j + 1`` and ``j + 2`` of a block.

    Tables have nothing for bytes that are not there; they only must not be read.
    """
    last = n_bytes - 1
    return six_bits(
        load_column(columns, at + j * BLOCK_ROWS),
        load_column(columns, at + min(j + 1, last) * BLOCK_ROWS),
        load_column(columns, at + min(j + 2, last) * BLOCK_ROWS),
    )


@kernel(forceinline=True)
def _look_up_sixes(counts, tables, at, sixes):
    counts = add_wide_entries(counts, tables, at, sixes[0])
    counts = add_wide_entries(counts, tables, at + WIDE_TABLE_BYTES, sixes[1])
    counts = add_wide_entries(counts, tables, at + 2 * WIDE_TABLE_BYTES, sixes[2])
    return add_wide_entries(counts, tables, at + 3 * WIDE_TABLE_BYTES, sixes[3])


@kernel(forceinline=True)
def _look_up_sixes_of_four(columns, at, first, n_columns, n_bytes, tables, four):
    n_triples = triples(n_bytes)
    of_a = (four[0] * n_triples + first // _TRIPLE) * _WIDE_ENTRIES
    of_b = (four[1] * n_triples + first // _TRIPLE) * _WIDE_ENTRIES
    of_c = (four[2] * n_triples + first // _TRIPLE) * _WIDE_ENTRIES
    of_d = (four[3] * n_triples + first // _TRIPLE) * _WIDE_ENTRIES
    a = no_column()
    b = no_column()
    c = no_column()
    d = no_column()
    for j in range(first, first + n_columns, _TRIPLE):
        prefetch(columns, at + j * BLOCK_ROWS + BYTES_AHEAD)
        prefetch(columns, at + (j + 1) * BLOCK_ROWS + BYTES_AHEAD)
        prefetch(columns, at + (j + 2) * BLOCK_ROWS + BYTES_AHEAD)
        sixes = _three_bytes(columns, at, j, n_bytes)
        a = _look_up_sixes(a, tables, of_a, sixes)
        b = _look_up_sixes(b, tables, of_b, sixes)
        c = _look_up_sixes(c, tables, of_c, sixes)
        d = _look_up_sixes(d, tables, of_d, sixes)
        of_a += _WIDE_ENTRIES
        of_b += _WIDE_ENTRIES
        of_c += _WIDE_ENTRIES
        of_d += _WIDE_ENTRIES
    return a, b, c, d


@kernel(forceinline=True)
def cost_of_four(ready, four, columns, at, first, n_columns):
    """What some bytes of a block's rows cost for four queries."""
    n_bytes = ready.n_bytes
    here = at + first * BLOCK_ROWS
    if ready.by == COUNTS:
        return _count_four(columns, here, n_columns, ready.repeated, first, four, n_bytes)
    if ready.by == NIBBLES:
        return _look_up_four(columns, here, n_columns, ready.tables, first, four, n_bytes)
    return _look_up_sixes_of_four(columns, at, first, n_columns, n_bytes, ready.tables, four)


@kernel(forceinline=True)
def _cost_of_one(ready, q, columns, at, first, n_columns):
    """The same for one query."""
    n_bytes = ready.n_bytes
    counts = no_column()
    if ready.by == SIXES:
        t = (q * triples(n_bytes) + first // _TRIPLE) * _WIDE_ENTRIES
        for j in range(first, first + n_columns, _TRIPLE):
            prefetch(columns, at + j * BLOCK_ROWS + BYTES_AHEAD)
            prefetch(columns, at + (j + 1) * BLOCK_ROWS + BYTES_AHEAD)
            prefetch(columns, at + (j + 2) * BLOCK_ROWS + BYTES_AHEAD)
            sixes = _three_bytes(columns, at, j, n_bytes)
            counts = _look_up_sixes(counts, ready.tables, t, sixes)
            t += _WIDE_ENTRIES
        return counts
    for j in range(first, first + n_columns):
        prefetch(columns, at + j * BLOCK_ROWS + BYTES_AHEAD)
        column = load_column(columns, at + j * BLOCK_ROWS)
        if ready.by == COUNTS:
            counts = add_differing(counts, column, ready.repeated, q * n_bytes + j)
        else:
            low, high = low_nibbles(column), high_nibbles(column)
            counts = _look_up(counts, ready.tables, (q * n_bytes + j) * ENTRIES, low, high)
    return counts


# Runs of blocks: what is below the limits goes to the finds.


@kernel(forceinline=True)
def _note(finds, n, mask, block, i, sums):
    """Write a find and return how many there are: it is one only if the mask has any row.

    A find is the rows below the limit, the number of their block and query, and all sums.
    """
    store_find(finds, n * FIND_WORDS, mask, block * QUERIES_AT_ONCE + i, sums)
    return n + np.int64(mask != 0)


@kernel()
def _find_of_four(ready, four, rows, begin, end, limits, stop_from, finds):
    """Find the rows of some blocks that are below the limits of four queries."""
    n_bytes = ready.n_bytes
    n_blocks = end - begin
    n = 0
    for block in range(begin, end):
        allowed = rows_allowed(rows.allowed, block, rows.n_rows)
        if allowed == 0:
            continue
        at = block * n_bytes * BLOCK_ROWS
        limit0 = limits[block - begin]
        limit1 = limits[block - begin + n_blocks]
        limit2 = limits[block - begin + 2 * n_blocks]
        limit3 = limits[block - begin + 3 * n_blocks]
        sums0 = no_sums()
        sums1 = no_sums()
        sums2 = no_sums()
        sums3 = no_sums()
        first = 0
        while first < n_bytes:
            n_columns = min(ready.at_once, n_bytes - first)
            counts = cost_of_four(ready, four, rows.columns, at, first, n_columns)
            sums0 = add_column(sums0, counts[0])
            sums1 = add_column(sums1, counts[1])
            sums2 = add_column(sums2, counts[2])
            sums3 = add_column(sums3, counts[3])
            first += n_columns
            if (
                stop_from <= first < n_bytes
                and (
                    sums_below(sums0, limit0)
                    | sums_below(sums1, limit1)
                    | sums_below(sums2, limit2)
                    | sums_below(sums3, limit3)
                )
                == 0
            ):
                break
        sums0 = by_row(sums0)
        sums1 = by_row(sums1)
        sums2 = by_row(sums2)
        sums3 = by_row(sums3)
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
def _find_of_one(ready, q, rows, begin, end, limits, stop_from, finds):
    """The same for one query."""
    n_bytes = ready.n_bytes
    n = 0
    for block in range(begin, end):
        allowed = rows_allowed(rows.allowed, block, rows.n_rows)
        if allowed == 0:
            continue
        at = block * n_bytes * BLOCK_ROWS
        limit = limits[block - begin]
        sums = no_sums()
        first = 0
        while first < n_bytes:
            n_columns = min(ready.at_once, n_bytes - first)
            sums = add_column(sums, _cost_of_one(ready, q, rows.columns, at, first, n_columns))
            first += n_columns
            if stop_from <= first < n_bytes and sums_below(sums, limit) == 0:
                break
        sums = by_row(sums)
        n = _note(finds, n, sums_below(sums, limit) & allowed, block, 0, sums)
    return n


@kernel(forceinline=True)
def find(ready, four, n_queries, rows, begin, end, limits, stop_from, finds):
    """Find the rows of some blocks that are below the limits of one to four queries.

    four : their places among those made ready, of which the first ``n_queries`` count; see
        ``four_from``
    limits : flat (four queries, block) int64, below 2**16; those of queries that are not there are
        zero
    stop_from : after how many bytes a block may be left as soon as all of its rows are at the
        limit; costs only grow
    finds : flat int64, written
    Returns the number of finds, one a block and query with any row below the limit.
    """
    if n_queries == 1:
        return _find_of_one(ready, four[0], rows, begin, end, limits, stop_from, finds)
    return _find_of_four(ready, four, rows, begin, end, limits, stop_from, finds)


@kernel(forceinline=True)
def four_from(q, n_queries):
    """Queries ``q`` and on, up to four; the first one in the place of those that are not there."""
    return (
        q,
        q + 1 if n_queries > 1 else q,
        q + 2 if n_queries > 2 else q,
        q + 3 if n_queries > 3 else q,
    )


@kernel()
def blocks_a_tile(n_bytes):
    """The longest run."""
    return max(1, _TILE_BYTES // (n_bytes * BLOCK_ROWS))


@kernel()
def run_blocks(done, n_bytes):
    """Blocks to scan before the limits are looked at again: a few at first, then a tile."""
    return min(blocks_a_tile(n_bytes), 1 + done // 2)


@kernel()
def room_for_finds(n_bytes):
    """(finds, limits) for runs of up to a tile."""
    n = QUERIES_AT_ONCE * blocks_a_tile(n_bytes)
    return np.empty(n * FIND_WORDS, np.int64), np.empty(n, np.int64)


@kernel(forceinline=True)
def sum_of(finds, at, j):
    """The sum of row ``j`` in the find that begins at ``at``."""
    return (finds[at + 2 + (j >> 2)] >> (16 * (j & 3))) & 0xFFFF


@kernel(forceinline=True)
def group_of_queries(n_queries, group, n_groups):
    """A share of the queries, cut between fours."""
    n_fours = (n_queries + QUERIES_AT_ONCE - 1) // QUERIES_AT_ONCE
    begin, end = share(n_fours, group, n_groups)
    return begin * QUERIES_AT_ONCE, min(end * QUERIES_AT_ONCE, n_queries)
