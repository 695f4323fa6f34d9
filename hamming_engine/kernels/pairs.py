"""Pairs of codes: the distances of all of them, or those within a radius.

Both go over a grid of queries and rows like scans, and with their inner loop: four queries against
the 64 rows of a block, a tile of blocks at a time, which stays in the second-level cache for all
queries of a cell. What differs is what becomes of the sums: here they are written as they are, or
those at most at the radius are noted as pairs.

A cell that finds more pairs than there is room for says so and stops; its caller cuts the work in
halves. So room is never made for all the pairs that there could be.
"""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from .columns import BLOCK_ROWS, FIND_WORDS, SUMS, add_column, by_row, no_sums
from .compiling import kernel, parallel_kernel
from .find import (
    QUERIES_AT_ONCE,
    Rows,
    blocks_a_tile,
    cost_of_four,
    find,
    four_from,
    group_of_queries,
    room_for_finds,
    sum_of,
)
from .intrinsics import compile_as, element_address, first_bit
from .launch import Launcher
from .scan import distance, make_ready, worth_stopping

_ONE = np.uint64(1)

OVERFLOW = -1  # in the place of a number of pairs
# A pair is one int64: the number of the query, and that of the row in its low bits.
PAIR_SHIFT = 32


# All distances.


def store_sums(out, first, sums):
    """Write the sums of 64 rows into a flat array of integers, from ``first`` on."""
    out[first : first + BLOCK_ROWS] = sums


@intrinsic
def _store_sums(typing_context, out, first, sums):
    def generate(context, builder, signature, arguments):
        item = ir.IntType(out.dtype.bitwidth)
        vector = ir.VectorType(item, BLOCK_ROWS)
        values = arguments[2]
        if item.width > 16:
            values = builder.zext(values, vector)
        elif item.width < 16:
            values = builder.trunc(values, vector)
        address = element_address(context, builder, signature, arguments)
        place = builder.bitcast(address, vector.as_pointer())
        builder.store(values, place).align = item.width // 8
        return context.get_dummy_value()

    return types.void(out, types.int64, SUMS), generate


compile_as(store_sums, _store_sums)


@kernel(forceinline=True)
def _sums_of_four(ready, four, columns, at):
    """The sums of a block's rows for four queries, by row."""
    a = no_sums()
    b = no_sums()
    c = no_sums()
    d = no_sums()
    first = 0
    while first < ready.n_bytes:
        n_columns = min(ready.at_once, ready.n_bytes - first)
        counts = cost_of_four(ready, four, columns, at, first, n_columns)
        a = add_column(a, counts[0])
        b = add_column(b, counts[1])
        c = add_column(c, counts[2])
        d = add_column(d, counts[3])
        first += n_columns
    return by_row(a), by_row(b), by_row(c), by_row(d)


@kernel()
def _four_by_tile(ready, q, n_queries, columns, begin, end, n_rows, out, at, n_out, spare):
    """Write the distances of up to four queries to the rows of some blocks.

    q : the first of the queries made ready, a multiple of four
    out : flat, that of the first query and of row 0 at ``at``, lines of ``n_out``
    spare : (4 * 64,), for the lines that do not hold 64 rows more
    """
    four = four_from(q, n_queries)
    for block in range(begin, end):
        sums = _sums_of_four(ready, four, columns, block * ready.n_bytes * BLOCK_ROWS)
        row = block * BLOCK_ROWS
        if n_queries == QUERIES_AT_ONCE and row + BLOCK_ROWS <= n_rows:
            store_sums(out, at + row, sums[0])
            store_sums(out, at + n_out + row, sums[1])
            store_sums(out, at + 2 * n_out + row, sums[2])
            store_sums(out, at + 3 * n_out + row, sums[3])
        else:
            store_sums(spare, 0, sums[0])
            store_sums(spare, BLOCK_ROWS, sums[1])
            store_sums(spare, 2 * BLOCK_ROWS, sums[2])
            store_sums(spare, 3 * BLOCK_ROWS, sums[3])
            n = min(BLOCK_ROWS, n_rows - row)
            for i in range(n_queries):
                for j in range(n):
                    out[at + i * n_out + row + j] = spare[i * BLOCK_ROWS + j]


@kernel()
def pairwise_blocks_cell(
    cell, n_cells, method, queries, blocks, n_rows, first_query, first_row, n_out, out
):
    """Write the distances of a share of the queries to all rows.

    method : int, POPCOUNT or TABLE
    queries : (n_queries, n_words) uint64, ``first_query`` and on of the whole
    blocks : (n_blocks, 8 * n_words, 64) uint8, at most MAX_BLOCK_WORDS words
    n_rows : how many rows they hold, ``first_row`` and on of the whole
    n_out : rows of the whole
    out : flat (all queries, ``n_out``) of any integer type that holds the distances, written
    """
    n_bytes = blocks.shape[1]
    query_begin, query_end = group_of_queries(queries.shape[0], cell, n_cells)
    ready = make_ready(method, queries, query_begin, query_end, n_bytes)
    columns = blocks.reshape(-1)
    spare = np.empty(QUERIES_AT_ONCE * BLOCK_ROWS, out.dtype)
    n_blocks = (n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS
    longest = blocks_a_tile(n_bytes)
    for begin in range(0, n_blocks, longest):
        end = min(n_blocks, begin + longest)
        for q in range(query_begin, query_end, QUERIES_AT_ONCE):
            n = min(QUERIES_AT_ONCE, query_end - q)
            at = (first_query + q) * n_out + first_row
            _four_by_tile(
                ready, q - query_begin, n, columns, begin, end, n_rows, out, at, n_out, spare
            )


@kernel()
def pairwise_rows_cell(cell, n_cells, queries, codes, first_query, first_row, n_out, out):
    """The same for row-major codes of any length, a word after another."""
    query_begin, query_end = group_of_queries(queries.shape[0], cell, n_cells)
    for q in range(query_begin, query_end):
        at = (first_query + q) * n_out + first_row
        for row in range(codes.shape[0]):
            out[at + row] = distance(queries[q], codes[row])


# Those within a radius.


@kernel()
def _collect(finds, n, query, first_row, reach, last, pairs, distances, place, end):
    """Note the finds for queries ``query`` and on; the place after them, or OVERFLOW."""
    for at in range(0, n * FIND_WORDS, FIND_WORDS):
        mask = np.uint64(finds[at])
        block, i = divmod(finds[at + 1], QUERIES_AT_ONCE)
        q = query + i
        while mask != 0:
            j = first_bit(mask)
            mask &= mask - _ONE
            row = first_row + block * BLOCK_ROWS + j
            if last[row] > reach[q]:
                if place == end:
                    return OVERFLOW
                pairs[place] = (q << PAIR_SHIFT) | row
                distances[place] = sum_of(finds, at, j)
                place += 1
    return place


@kernel()
def near_blocks_cell(
    cell,
    n_cells,
    method,
    queries,
    blocks,
    n_rows,
    first_query,
    first_row,
    begin_row,
    radius,
    reach,
    last,
    pairs,
    distances,
    n_found,
):
    """Note the pairs of a share of the queries with rows within a radius.

    method, queries, blocks, n_rows, first_query, first_row : as ``pairwise_blocks_cell`` has them
    begin_row : (all queries,) int64, not descending: rows before it are not asked for
    radius : int, below 2**16 - 1
    reach : (all queries,) int64
    last : (all rows,) int64; a pair is noted where it is above the query's ``reach``
    pairs, distances : flat (cell, room) int64 and int32, written
    n_found : (n_cells,) int64, written: how many, or OVERFLOW
    """
    n_bytes = blocks.shape[1]
    room = pairs.shape[0] // n_cells
    place = cell * room
    query_begin, query_end = group_of_queries(queries.shape[0], cell, n_cells)
    n_found[cell] = 0
    if query_begin == query_end:
        return
    ready = make_ready(method, queries, query_begin, query_end, n_bytes)
    finds, limits = room_for_finds(n_bytes)
    stop_from = worth_stopping(radius + 1, n_bytes)
    rows = Rows(blocks.reshape(-1), n_rows, first_row, last[:0].view(np.uint64))
    n_blocks = (n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS
    longest = blocks_a_tile(n_bytes)
    first_block = max(0, begin_row[first_query + query_begin] - first_row) // BLOCK_ROWS
    for begin in range(first_block, n_blocks, longest):
        end = min(n_blocks, begin + longest)
        for q in range(query_begin, query_end, QUERIES_AT_ONCE):
            n_now = min(QUERIES_AT_ONCE, query_end - q)
            query = first_query + q
            block = max(begin, (begin_row[query] - first_row) // BLOCK_ROWS)
            if block >= end:
                break
            limits[: n_now * (end - block)] = radius + 1
            limits[n_now * (end - block) : QUERIES_AT_ONCE * (end - block)] = 0
            four = four_from(q - query_begin, n_now)
            n = find(ready, four, n_now, rows, block, end, limits, stop_from, finds)
            place = _collect(
                finds, n, query, first_row, reach, last, pairs, distances, place, (cell + 1) * room
            )
            if place == OVERFLOW:
                n_found[cell] = OVERFLOW
                return
    n_found[cell] = place - cell * room


@kernel()
def near_rows_cell(
    cell,
    n_cells,
    queries,
    codes,
    first_query,
    first_row,
    begin_row,
    radius,
    reach,
    last,
    pairs,
    distances,
    n_found,
):
    """The same for row-major codes of any length, a word after another."""
    room = pairs.shape[0] // n_cells
    place = cell * room
    query_begin, query_end = group_of_queries(queries.shape[0], cell, n_cells)
    n_found[cell] = OVERFLOW
    for i in range(query_begin, query_end):
        q = first_query + i
        for j in range(max(0, begin_row[q] - first_row), codes.shape[0]):
            row = first_row + j
            if last[row] > reach[q]:
                bits = distance(queries[i], codes[j])
                if bits <= radius:
                    if place == (cell + 1) * room:
                        return
                    pairs[place] = (q << PAIR_SHIFT) | row
                    distances[place] = bits
                    place += 1
    n_found[cell] = place - cell * room


@parallel_kernel
def pairwise_blocks_cells(
    n_cells, done, method, queries, blocks, n_rows, first_query, first_row, n_out, out
):
    for cell in prange(n_cells):
        pairwise_blocks_cell(
            np.int64(cell),
            n_cells,
            method,
            queries,
            blocks,
            n_rows,
            first_query,
            first_row,
            n_out,
            out,
        )
        done[cell] = True


@parallel_kernel
def pairwise_rows_cells(n_cells, done, queries, codes, first_query, first_row, n_out, out):
    for cell in prange(n_cells):
        pairwise_rows_cell(
            np.int64(cell), n_cells, queries, codes, first_query, first_row, n_out, out
        )
        done[cell] = True


@parallel_kernel
def near_blocks_cells(
    n_cells,
    done,
    method,
    queries,
    blocks,
    n_rows,
    first_query,
    first_row,
    begin_row,
    radius,
    reach,
    last,
    pairs,
    distances,
    n_found,
):
    for cell in prange(n_cells):
        near_blocks_cell(
            np.int64(cell),
            n_cells,
            method,
            queries,
            blocks,
            n_rows,
            first_query,
            first_row,
            begin_row,
            radius,
            reach,
            last,
            pairs,
            distances,
            n_found,
        )
        done[cell] = True


@parallel_kernel
def near_rows_cells(
    n_cells,
    done,
    queries,
    codes,
    first_query,
    first_row,
    begin_row,
    radius,
    reach,
    last,
    pairs,
    distances,
    n_found,
):
    for cell in prange(n_cells):
        near_rows_cell(
            np.int64(cell),
            n_cells,
            queries,
            codes,
            first_query,
            first_row,
            begin_row,
            radius,
            reach,
            last,
            pairs,
            distances,
            n_found,
        )
        done[cell] = True


PAIRWISE_BLOCKS = Launcher(pairwise_blocks_cell, pairwise_blocks_cells)
PAIRWISE_ROWS = Launcher(pairwise_rows_cell, pairwise_rows_cells)
NEAR_BLOCKS = Launcher(near_blocks_cell, near_blocks_cells)
NEAR_ROWS = Launcher(near_rows_cell, near_rows_cells)
