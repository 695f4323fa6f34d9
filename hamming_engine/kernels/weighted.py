"""Scans of codes by weights: the float query against the signs that a code stands for.

A row with signs s, +1 where its bit is set and -1 elsewhere, scores ``f * (w . s) + g``: w are the
query's weights, one a bit, and f >= 0 and g are the row's own two factors, or 1 and 0. That is
asymmetric distance estimation (Gordo, Perronnin, Gong, Lazebnik: "Asymmetric distances for binary
embeddings", TPAMI 2014), with the corrections of RaBitQ (Gao and Long, SIGMOD 2024).

``w . s`` is the sum of all |w| less the *cost* of the row, 2 |w| for each bit that disagrees. So a
scan by weights is a Hamming scan in which bits cost what their weights say, and ``find`` does both.
For that a cost is a whole number of *steps* of the query's own, as small as sums of bytes allow,
some five bits with the sign. Whoever needs more scores the rows that come out again: of 1x the true
ten nearest, on three sets of embeddings, no more than .002 was lost by it.

From there on arithmetic is exact or the same everywhere: whole steps, then float64 in a fixed
order. So results are the same on every processor, with every table, and as the plain scan's.

Rejected: tables of rounded sums of true weights, with a proven bound on their error, and every row
within the bound scored from unrounded weights at once. That gives the best k without any rounding,
but a bound for 64 look-ups is half a standard deviation of the scores, so three times as many rows
were scored as at last counted: half the speed for k = 10 among 400,000, a fifth for k = 400.
"""

from collections import namedtuple

import numpy as np
from numba import prange

from .blocks import TURN_SLACK, turn_rows
from .columns import BLOCK_ROWS, FIND_WORDS, WIDE_TABLE_BYTES
from .compiling import kernel, parallel_kernel
from .find import (
    ENTRIES,
    NIBBLES,
    QUERIES_AT_ONCE,
    SIXES,
    Ready,
    Rows,
    blocks_a_tile,
    find,
    four_from,
    group_of_queries,
    room_for_finds,
    rows_allowed,
    run_blocks,
    sum_of,
    triples,
)
from .intrinsics import first_bit
from .launch import Launcher, share
from .topk import LIMIT, NO_RESULT, ROW_BITS, add_to_reservoir, least_score_of, rank_of

# Bytes between which costs are added up in a uint8. Both make eight look-ups.
_NIBBLES_AT_ONCE, _SIXES_AT_ONCE = 4, 6
_LARGEST_COLUMN = 255
_LARGEST_SUM = 65_534  # a limit is above it where every row may be among the best
_AS_GOOD_AS_ZERO = 1e-100  # below every float32 above zero
_ROUNDING = 1e-6  # more than a float32 differs from its float64, relatively
_LARGEST_FINITE = float(np.finfo(np.float32).max)  # what is beyond, counts as infinite
_ONE = np.uint64(1)

# What is kept of each query: the sum of its weights, and the size of a step.
TOTAL, STEP, N_PARAMETERS = range(3)

# Queries as prepared, for all of a search.
#
# by : NIBBLES or SIXES, or another number for the plain scan
# tables : as in find.Ready
# units : (n_queries, 64 * n_words) int16, weights in half steps, that is, what a bit costs with the
#     sign of the weight
# parameters : (n_queries, 2) float64
Weights = namedtuple("Weights", "by tables units parameters")

# The reservoirs of a launch: flat, (slab, query, word); which slab is worked on.
Lists = namedtuple("Lists", "flat n_slabs n_queries n_words slab")


def table_bytes(by, n_bytes):
    """Bytes of tables that a query takes."""
    if by == SIXES:
        return 4 * WIDE_TABLE_BYTES * triples(n_bytes)
    return ENTRIES * n_bytes if by == NIBBLES else 0


# Making queries ready.


@kernel()
def _largest_group(costs, n_bytes):
    """The largest sum of as many bytes as are looked up at once, with either kind of table.

    With both, so that a step does not depend on which one a processor has.
    """
    largest = costs[0]
    for n in (_NIBBLES_AT_ONCE, _SIXES_AT_ONCE):
        for first in range(0, n_bytes, n):
            cost = costs[first]
            for byte in range(first + 1, min(first + n, n_bytes)):
                cost += costs[byte]
            largest = max(largest, cost)
    return largest


@kernel()
def _round_weights(weights, units):
    """Write what each bit costs in steps, as small as fits; the size of a step."""
    dim = weights.shape[0]
    n_bytes = dim // 8
    costs = np.zeros(n_bytes, np.float64)
    for j in range(dim):
        costs[j // 8] += 2.0 * abs(np.float64(weights[j]))
    step = max(_largest_group(costs, n_bytes) / _LARGEST_COLUMN, costs.sum() / _LARGEST_SUM)
    if step == 0:
        units[:] = 0
        return 1.0
    whole = np.empty(n_bytes, np.float64)
    while True:
        whole[:] = 0
        for j in range(dim):
            unit = np.rint(2.0 * np.float64(weights[j]) / step)
            units[j] = np.int16(unit)
            whole[j // 8] += abs(unit)
        # Rounding may have added too much: a little larger then.
        if _largest_group(whole, n_bytes) <= _LARGEST_COLUMN and whole.sum() <= _LARGEST_SUM:
            return step
        step *= 1.01


@kernel()
def _fill_tables(by, units, tables, q):
    """Write the tables of a query: what each value of four or six bits costs."""
    n_bytes = units.shape[0] // 8
    n_bits, n_places = (6, 24) if by == SIXES else (4, 8)  # a look-up; bits that a step goes on by
    size = 1 << n_bits
    n_tables = n_places // n_bits
    costs = np.empty(WIDE_TABLE_BYTES, np.int64)
    n_steps = (8 * n_bytes + n_places - 1) // n_places
    for part in range(n_steps * n_tables):
        at = (q * n_steps * n_tables + part) * size
        costs[0] = 0
        for bit in range(n_bits):
            byte, place = divmod(part * n_bits + bit, 8)
            # Dimension 0 is the highest bit of byte 0.
            unit = np.int64(units[8 * byte + 7 - place]) if byte < n_bytes else 0
            # The values with this bit set, then those without.
            for value in range(1 << bit):
                costs[(1 << bit) + value] = costs[value] + max(0, -unit)
                costs[value] += max(0, unit)
        for value in range(size):
            tables[at + value] = np.uint8(costs[value])


@kernel()
def prepare_cell(cell, n_cells, by, weights, tables, units, parameters):
    """Make a share of the queries ready.

    by : as in Weights
    weights : (n_queries, 64 * n_words) float32, zero beyond the last dimension
    tables, units, parameters : as in Weights; written
    """
    begin, end = group_of_queries(weights.shape[0], cell, n_cells)
    for q in range(begin, end):
        total = 0.0
        for j in range(weights.shape[1]):
            total += abs(np.float64(weights[q, j]))
        parameters[q, TOTAL] = total
        parameters[q, STEP] = _round_weights(weights[q], units[q])
        if by == NIBBLES or by == SIXES:
            _fill_tables(by, units[q], tables, q)


@parallel_kernel
def prepare_cells(n_cells, done, by, weights, tables, units, parameters):
    for cell in prange(n_cells):
        prepare_cell(np.int64(cell), n_cells, by, weights, tables, units, parameters)
        done[cell] = True


# Scores and the best of them.


@kernel(forceinline=True)
def key_of(parameters, q, cost, factors, place, row):
    """The key of a row of some cost, whose factors are at ``place``."""
    score = parameters[q, TOTAL] - parameters[q, STEP] * cost
    if factors.shape[0] != 0:
        score = np.float64(factors[place, 0]) * score + np.float64(factors[place, 1])
    return (rank_of(np.float32(score)) << ROW_BITS) | row


@kernel(forceinline=True)
def _offer(lists, q, cost, weights, factors, place, row):
    """Offer a row of some cost, whose factors are at ``place``, to a query's reservoir."""
    key = key_of(weights.parameters, q, cost, factors, place, row)
    at = (lists.slab * lists.n_queries + q) * lists.n_words
    if key < lists.flat[at + LIMIT]:
        add_to_reservoir(lists.flat, at, key)


@kernel()
def _least_score(lists, q):
    """The score a row must reach to be among the best, as far as anybody knows."""
    limit = NO_RESULT
    for slab in range(lists.n_slabs):
        limit = min(limit, lists.flat[(slab * lists.n_queries + q) * lists.n_words + LIMIT])
    return score_of_limit(limit)


@kernel(forceinline=True)
def score_of_limit(limit):
    """The least score of a row whose key is below a limit."""
    return -np.inf if limit == NO_RESULT else np.float64(least_score_of(limit >> ROW_BITS))


# Runs of blocks.


@kernel(forceinline=True)
def ready_weights(by, tables, n_bytes):
    """Prepared queries as ``find`` takes them."""
    at_once = _SIXES_AT_ONCE if by == SIXES else _NIBBLES_AT_ONCE
    return Ready(by, at_once, n_bytes, np.zeros(0, np.uint64), tables)


@kernel(fastmath={"nnan", "nsz", "reassoc"})
def bounds_of(factors, begin, end, n_rows, bounds):
    """Of each block, 1 / the largest factor f, then 1 / the smallest, then the largest g.

    For a factor of zero a number as good as infinite, which makes no NaN.
    """
    n_blocks = end - begin
    if factors.shape[0] == 0:
        bounds[: 2 * n_blocks] = 1.0
        bounds[2 * n_blocks : 3 * n_blocks] = 0.0
        return
    for block in range(begin, end):
        first = block * BLOCK_ROWS
        largest = factors[first, 0]
        smallest = largest
        shift = factors[first, 1]
        for row in range(first, min(first + BLOCK_ROWS, n_rows)):
            largest = max(largest, factors[row, 0])
            smallest = min(smallest, factors[row, 0])
            shift = max(shift, factors[row, 1])
        at = block - begin
        bounds[at] = 1 / max(np.float64(largest), _AS_GOOD_AS_ZERO)
        bounds[at + n_blocks] = 1 / max(np.float64(smallest), _AS_GOOD_AS_ZERO)
        bounds[at + 2 * n_blocks] = shift


@kernel(fastmath={"nnan"}, forceinline=True)
def set_limits(parameters, least, q, bounds, limits, first, n_blocks):
    """Limits on the cost, the loosest of a block: no row at its limit reaches the least score.

    A row scores f * (total - step * cost) + g, so its cost is at most
    (total - (least - g) / f) / step.
    """
    if least == -np.inf:
        limits[first : first + n_blocks] = _LARGEST_SUM + 1
        return
    least = min(least, _LARGEST_FINITE)
    least -= abs(least) * _ROUNDING + 1e-30
    total = parameters[q, TOTAL]
    per_step = 1 / parameters[q, STEP]
    total += parameters[q, STEP]  # for the roundings here and of the scores
    # Without branches, four or eight blocks at once.
    for block in range(n_blocks):
        missing = least - bounds[block + 2 * n_blocks]
        per_factor = bounds[block] if missing > 0 else bounds[block + n_blocks]
        cost = (total - missing * per_factor) * per_step
        limits[first + block] = np.int64(min(max(cost, -1.0), np.float64(_LARGEST_SUM)) + 1.0)


@kernel()
def _offer_finds(finds, n, weights, q, rows, factors, lists):
    """Offer the finds for queries ``q`` and on."""
    for place in range(0, n * FIND_WORDS, FIND_WORDS):
        mask = np.uint64(finds[place])
        block, i = divmod(finds[place + 1], QUERIES_AT_ONCE)
        while mask != 0:
            j = first_bit(mask)
            mask &= mask - _ONE
            row = block * BLOCK_ROWS + j
            cost = sum_of(finds, place, j)
            _offer(lists, q + i, cost, weights, factors, row, rows.first_row + row)


@kernel()
def _best_of_run(weights, n_bytes, rows, begin, end, factors, lists, queries, room):
    """Offer the rows of a few blocks to queries ``queries[0]`` to ``queries[1]``."""
    finds, limits, bounds = room
    ready = ready_weights(weights.by, weights.tables, n_bytes)
    bounds_of(factors, begin, end, rows.n_rows, bounds)
    n_blocks = end - begin
    for q in range(queries[0], queries[1], QUERIES_AT_ONCE):
        n_queries = min(QUERIES_AT_ONCE, queries[1] - q)
        for i in range(n_queries):
            least = _least_score(lists, q + i)
            set_limits(weights.parameters, least, q + i, bounds, limits, i * n_blocks, n_blocks)
        limits[n_queries * n_blocks : QUERIES_AT_ONCE * n_blocks] = 0
        four = four_from(q, n_queries)
        n = find(ready, four, n_queries, rows, begin, end, limits, n_bytes, finds)
        _offer_finds(finds, n, weights, q, rows, factors, lists)


@kernel()
def _room(n_bytes):
    finds, limits = room_for_finds(n_bytes)
    return finds, limits, np.empty(3 * blocks_a_tile(n_bytes), np.float64)


@kernel()
def _blocks_done(lists, q, n_bytes):
    """How many blocks count as done before a launch begins: none until k rows are found."""
    return 2 * blocks_a_tile(n_bytes) if _least_score(lists, q) > -np.inf else 0


@kernel()
def _best_of_blocks(
    weights, blocks, begin, end, n_rows, first_row, allowed, factors, lists, queries
):
    n_bytes = blocks.shape[1]
    rows = Rows(blocks.reshape(-1), n_rows, first_row, allowed)
    room = _room(n_bytes)
    done = _blocks_done(lists, queries[0], n_bytes)
    block = begin
    while block < end:
        run_end = min(end, block + run_blocks(done + block - begin, n_bytes))
        _best_of_run(weights, n_bytes, rows, block, run_end, factors, lists, queries, room)
        block = run_end


@kernel()
def _best_of_rows(weights, codes, begin, end, first_row, allowed, factors, lists, queries):
    """The same for row-major codes, turned a tile at a time; ``begin`` is a multiple of 64."""
    n_bytes = 8 * codes.shape[1]
    room = _room(n_bytes)
    tile = np.empty(blocks_a_tile(n_bytes) * n_bytes * BLOCK_ROWS + TURN_SLACK, np.uint8)
    done = _blocks_done(lists, queries[0], n_bytes)
    row = begin
    while row < end:
        n_blocks = run_blocks(done + (row - begin) // BLOCK_ROWS, n_bytes)
        n_rows = min(end - row, n_blocks * BLOCK_ROWS)
        turn_rows(codes, row, row + n_rows, tile, 0)
        rows = Rows(tile, n_rows, first_row + row, allowed[row // BLOCK_ROWS :])
        n_blocks = (n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS
        of_tile = factors[row : row + n_rows]
        _best_of_run(weights, n_bytes, rows, 0, n_blocks, of_tile, lists, queries, room)
        row += n_rows


@kernel()
def _plain_best(weights, codes, begin, end, first_row, allowed, factors, lists, queries):
    """The same for row-major codes of any length, a bit after another."""
    n_rows, n_words = codes.shape
    code_bytes = codes.reshape(-1).view(np.uint8)
    for row in range(begin, end):
        rows = rows_allowed(allowed, row // BLOCK_ROWS, n_rows)
        if rows >> np.uint64(row % BLOCK_ROWS) & _ONE:
            for q in range(queries[0], queries[1]):
                cost = 0
                for j in range(64 * n_words):
                    bit = (code_bytes[8 * row * n_words + j // 8] >> (7 - j % 8)) & 1
                    unit = np.int64(weights.units[q, j])
                    cost += max(0, -unit if bit else unit)
                _offer(lists, q, cost, weights, factors, row, first_row + row)


# Cells: row slabs times query groups, as in ``scan``.


@kernel()
def best_rows(
    by,
    slab,
    query_begin,
    query_end,
    tables,
    units,
    parameters,
    codes,
    begin,
    end,
    first_row,
    allowed,
    factors,
    reservoirs,
):
    """Offer rows ``begin`` to ``end``, ``begin`` a multiple of 64, to the reservoirs of a slab."""
    weights = Weights(by, tables, units, parameters)
    lists = Lists(reservoirs.reshape(-1), *reservoirs.shape, slab)
    queries = (query_begin, query_end)
    if query_begin == query_end:
        return
    if by == NIBBLES or by == SIXES:
        _best_of_rows(weights, codes, begin, end, first_row, allowed, factors, lists, queries)
    else:
        _plain_best(weights, codes, begin, end, first_row, allowed, factors, lists, queries)


@kernel()
def best_blocks(
    by,
    slab,
    query_begin,
    query_end,
    tables,
    units,
    parameters,
    blocks,
    begin,
    end,
    n_rows,
    first_row,
    allowed,
    factors,
    reservoirs,
):
    """Offer the rows of blocks ``begin`` to ``end`` to the reservoirs of a slab."""
    weights = Weights(by, tables, units, parameters)
    lists = Lists(reservoirs.reshape(-1), *reservoirs.shape, slab)
    queries = (query_begin, query_end)
    if query_begin == query_end:
        return
    _best_of_blocks(
        weights, blocks, begin, end, n_rows, first_row, allowed, factors, lists, queries
    )


@kernel()
def best_rows_cell(
    cell,
    n_cells,
    by,
    query_begin,
    query_end,
    tables,
    units,
    parameters,
    codes,
    first_row,
    allowed,
    factors,
    reservoirs,
):
    """Scan the rows of one cell for its queries, a group of those from ``query_begin`` on.

    by : NIBBLES, SIXES, or another number for the plain scan
    tables, units, parameters : as prepared, for all queries
    codes : (n_rows, n_words) uint64, rows ``first_row`` and on of the whole
    allowed : (ceil(n_rows / 64),) uint64, a bit for each row, or (0,) for all rows
    factors : (n_rows, 2) float32, f >= 0 and g of each row, or (0, 2)
    reservoirs : (n_slabs, n_queries, n) int64, updated
    """
    n_slabs = reservoirs.shape[0]
    n_rows = codes.shape[0]
    slab, group = divmod(cell, n_cells // n_slabs)
    begin, end = share((n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS, slab, n_slabs)
    begin *= BLOCK_ROWS
    end = min(end * BLOCK_ROWS, n_rows)
    first, last = group_of_queries(query_end - query_begin, group, n_cells // n_slabs)
    best_rows(
        by,
        slab,
        query_begin + first,
        query_begin + last,
        tables,
        units,
        parameters,
        codes,
        begin,
        end,
        first_row,
        allowed,
        factors,
        reservoirs,
    )


@kernel()
def best_blocks_cell(
    cell,
    n_cells,
    by,
    query_begin,
    query_end,
    tables,
    units,
    parameters,
    blocks,
    n_rows,
    first_row,
    allowed,
    factors,
    reservoirs,
):
    """The same for (n_blocks, 8 * n_words, 64) uint8 blocks that hold ``n_rows`` rows."""
    n_slabs = reservoirs.shape[0]
    slab, group = divmod(cell, n_cells // n_slabs)
    begin, end = share((n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS, slab, n_slabs)
    first, last = group_of_queries(query_end - query_begin, group, n_cells // n_slabs)
    best_blocks(
        by,
        slab,
        query_begin + first,
        query_begin + last,
        tables,
        units,
        parameters,
        blocks,
        begin,
        end,
        n_rows,
        first_row,
        allowed,
        factors,
        reservoirs,
    )


@parallel_kernel
def best_rows_cells(
    n_cells,
    done,
    by,
    query_begin,
    query_end,
    tables,
    units,
    parameters,
    codes,
    first_row,
    allowed,
    factors,
    reservoirs,
):
    for cell in prange(n_cells):
        best_rows_cell(
            np.int64(cell),
            n_cells,
            by,
            query_begin,
            query_end,
            tables,
            units,
            parameters,
            codes,
            first_row,
            allowed,
            factors,
            reservoirs,
        )
        done[cell] = True


@parallel_kernel
def best_blocks_cells(
    n_cells,
    done,
    by,
    query_begin,
    query_end,
    tables,
    units,
    parameters,
    blocks,
    n_rows,
    first_row,
    allowed,
    factors,
    reservoirs,
):
    for cell in prange(n_cells):
        best_blocks_cell(
            np.int64(cell),
            n_cells,
            by,
            query_begin,
            query_end,
            tables,
            units,
            parameters,
            blocks,
            n_rows,
            first_row,
            allowed,
            factors,
            reservoirs,
        )
        done[cell] = True


PREPARE = Launcher(prepare_cell, prepare_cells)
BEST_ROWS = Launcher(best_rows_cell, best_rows_cells)
BEST_BLOCKS = Launcher(best_blocks_cell, best_blocks_cells)
