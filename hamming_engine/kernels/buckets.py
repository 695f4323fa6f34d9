"""Pairs within a radius by the pigeonhole principle: only codes that agree somewhere are compared.

The bits of a code are cut into parts. Two codes within a radius are close in at least one of them
(Norouzi, Punjani, Fleet: "Fast exact search in Hamming space with multi-index hashing", TPAMI 2014,
section 3): within ``floor(radius / n_parts)`` bits, its *rest*, in one of the first
``radius % n_parts + 1`` parts, or within one bit less in one of the others.

The bits of a part are mapped to a shorter *key* by a linear map over GF(2), the XOR of a table
entry for each byte (tabulation hashing; Carter, Wegman: "Universal classes of hash functions",
JCSS 1979). Where a part is as short as the key the map is one to one, otherwise it is random, and
codes with the same key may differ. As the map is linear, a bit that is flipped in the code flips
the same bits of every key, so the buckets within the rest of a part are ``key ^ flip`` for the same
few flips.

Rows sorted by key lie in buckets, ``key << 32 | row`` as ``substrings`` has them. A pair is noted
by the first part in which its codes are within the rest, whatever their keys.
"""

from collections import namedtuple

import numpy as np
from numba import prange

from .blocks import TURN_SLACK, WORD_BYTES, turn_rows
from .columns import BLOCK_ROWS, FIND_WORDS
from .compiling import kernel, parallel_kernel
from .find import (
    MAX_BLOCK_WORDS,
    QUERIES_AT_ONCE,
    Rows,
    blocks_a_tile,
    find,
    room_for_finds,
    sum_of,
)
from .intrinsics import first_bit, popcount64, prefetch
from .lanes import N_LANES, lanes_below
from .launch import Launcher, share
from .methods import PLAIN
from .pairs import OVERFLOW, PAIR_SHIFT
from .scan import eight_distances, make_ready, pad_query, padded_words, worth_stopping
from .substrings import ROW_IN_PAIR_BITS

_ONE = np.uint64(1)
_ROW_SHIFT = np.uint64(ROW_IN_PAIR_BITS)
_ROW_MASK = np.uint64((1 << ROW_IN_PAIR_BITS) - 1)
_ROWS_AHEAD = 16  # in the order of keys codes lie anywhere: they are called so many rows before

# Rows of a bucket against those of another one, which are
FEW = 8  # fewer: a word after another, where they lie
MANY = 256  # at least so many: copied and turned to blocks; others are copied, eight at once
_MOST_QUERIES = 256  # made ready at once
_WORDS_A_VISIT = 32  # that could be compared while a bucket is looked up


@kernel()
def key_cell(cell, n_cells, codes, begin, end, first_byte, tables, keyed):
    """Write the keys of a share of rows ``begin`` to ``end``, with the numbers of the rows.

    codes : (n, n_words) uint64
    first_byte : int
    tables : (n_bytes, 256) uint32, what each value of the bytes from there on gives
    keyed : (n,) uint64, ``key << 32 | row``, written from ``begin`` to ``end``
    """
    n_words = codes.shape[1]
    words = codes.reshape(-1)
    flat = tables.reshape(-1)
    n_bytes = tables.shape[0]
    first, last = share(end - begin, cell, n_cells)
    for row in range(begin + first, begin + last):
        key = np.uint32(0)
        for i in range(n_bytes):
            byte = first_byte + i
            shift = np.uint64(byte % WORD_BYTES * 8)
            value = words[row * n_words + byte // WORD_BYTES] >> shift & np.uint64(0xFF)
            key ^= flat[i * 256 + np.int64(value)]
        keyed[row] = np.uint64(key) << _ROW_SHIFT | np.uint64(row)


# Both sides of a join.
#
# queries, rows : flat uint64, codes of ``n_words`` words
# by_key, of_row : (n,) uint64, keys and numbers of queries and of rows, sorted
# offsets : where the buckets of rows begin
# symmetric : whether both are the same, so that each pair of rows is compared once
Sides = namedtuple("Sides", "queries by_key rows of_row offsets n_words symmetric")

# Which pairs are noted.
#
# masks, rests : flat (part, word) uint64 and (part,) int64, of all parts
# part : the one whose keys these are
# reach, last : (n,) int64 of queries and rows; a row is asked for by queries whose ``reach`` is
#     below its ``last``
Asked = namedtuple("Asked", "radius masks rests part reach last")

# Where they go: from a place on until the end of the room.
Noted = namedtuple("Noted", "pairs distances end")


@kernel(forceinline=True)
def _code_at(keyed, place, n_words):
    """Where the code of the row at a place of the sorted ones begins."""
    return np.int64(keyed[place] & _ROW_MASK) * n_words


@kernel()
def _distance(a, at, b, bt, n_words):
    bits = 0
    for word in range(n_words):
        bits += popcount64(a[at + word] ^ b[bt + word])
    return bits


@kernel()
def _is_first(sides, asked, at, bt):
    """Whether a part is the first in which two codes are within the rest."""
    n_words = sides.n_words
    for part in range(asked.part + 1):
        bits = 0
        for word in range(n_words):
            differing = sides.queries[at + word] ^ sides.rows[bt + word]
            bits += popcount64(differing & asked.masks[part * n_words + word])
        if bits <= asked.rests[part]:
            return part == asked.part
    return False


@kernel()
def _note(sides, asked, noted, i, j, bits, place):
    """Note the pair at places ``i`` and ``j``, where it is asked for.

    Returns the place after it, or OVERFLOW.
    """
    q = np.int64(sides.by_key[i] & _ROW_MASK)
    row = np.int64(sides.of_row[j] & _ROW_MASK)
    there = asked.last[row] > asked.reach[q]
    back = sides.symmetric and asked.last[q] > asked.reach[row]
    if not (there or back) or not _is_first(sides, asked, q * sides.n_words, row * sides.n_words):
        return place
    if place + there + back > noted.end:
        return OVERFLOW
    if there:
        noted.pairs[place] = (q << PAIR_SHIFT) | row
        noted.distances[place] = bits
        place += 1
    if back:
        noted.pairs[place] = (row << PAIR_SHIFT) | q
        noted.distances[place] = bits
        place += 1
    return place


@kernel()
def _compare_few(sides, asked, noted, query_begin, query_end, begin, end, own, place):
    """Compare where codes lie. Places ``query_begin`` on with ``begin`` on.

    own : whether they are of the same bucket: then each with those after it
    """
    n_words = sides.n_words
    for i in range(query_begin, query_end):
        at = _code_at(sides.by_key, i, n_words)
        for j in range(max(begin, i + 1) if own else begin, end):
            bt = _code_at(sides.of_row, j, n_words)
            bits = _distance(sides.queries, at, sides.rows, bt, n_words)
            if bits <= asked.radius:
                place = _note(sides, asked, noted, i, j, bits, place)
                if place == OVERFLOW:
                    return place
    return place


@kernel()
def _copy_codes(words, keyed, begin, end, n_words, copy):
    """Copy the codes at places ``begin`` to ``end``, one behind the other."""
    to = 0
    for place in range(begin, end):
        at = _code_at(keyed, place, n_words)
        for word in range(n_words):
            copy[to] = words[at + word]
            to += 1


@kernel()
def _compare_some(sides, asked, noted, query_begin, query_end, begin, end, own, copy, place):
    """The same with a copy of the rows, eight at once."""
    n_words = sides.n_words
    padded = np.empty(padded_words(n_words), np.uint64)
    where = np.empty_like(padded)
    query = np.empty(n_words, np.uint64)
    for tile in range(begin, end, MANY):
        n = min(MANY, end - tile)
        _copy_codes(sides.rows, sides.of_row, tile, tile + n, n_words, copy)
        for i in range(query_begin, query_end):
            first = max(0, i + 1 - tile) if own else 0
            if first >= n:
                continue
            _copy_codes(sides.queries, sides.by_key, i, i + 1, n_words, query)
            pad_query(query, padded, where)
            while first < n:
                below = eight_distances(padded, where, copy, first, n_words)
                mask = lanes_below(below, asked.radius + 1)
                if n - first < N_LANES:
                    mask &= (_ONE << np.uint64(n - first)) - _ONE
                while mask != 0:
                    j = first + first_bit(mask)
                    mask &= mask - _ONE
                    bits = _distance(query, 0, copy, j * n_words, n_words)
                    place = _note(sides, asked, noted, i, tile + j, bits, place)
                    if place == OVERFLOW:
                        return place
                first += N_LANES
    return place


@kernel()
def _note_finds(sides, asked, noted, finds, n, query_begin, q, begin, own, place):
    """Note the finds for queries ``q`` and on of those that begin at a place."""
    for at in range(0, n * FIND_WORDS, FIND_WORDS):
        mask = np.uint64(finds[at])
        block, k = divmod(finds[at + 1], QUERIES_AT_ONCE)
        i = query_begin + q + k
        while mask != 0:
            bit = first_bit(mask)
            mask &= mask - _ONE
            j = begin + block * BLOCK_ROWS + bit
            if own and j <= i:
                continue
            place = _note(sides, asked, noted, i, j, sum_of(finds, at, bit), place)
            if place == OVERFLOW:
                return place
    return place


@kernel()
def _compare_many(
    method, sides, asked, noted, query_begin, query_end, begin, end, own, copy, tile, place
):
    """The same with rows in blocks, four queries at once against 64 of them."""
    n_words = sides.n_words
    n_bytes = n_words * WORD_BYTES
    finds, limits = room_for_finds(n_bytes)
    limits[:] = asked.radius + 1
    nobody = np.zeros(0, np.uint64)
    stop_from = worth_stopping(asked.radius + 1, n_bytes)
    queries = np.empty(_MOST_QUERIES * n_words, np.uint64)
    tile_rows = blocks_a_tile(n_bytes) * BLOCK_ROWS
    for first in range(begin, end, tile_rows):
        n_rows = min(tile_rows, end - first)
        _copy_codes(sides.rows, sides.of_row, first, first + n_rows, n_words, copy)
        turn_rows(copy[: n_rows * n_words].reshape(n_rows, n_words), 0, n_rows, tile, 0)
        rows = Rows(tile, n_rows, 0, nobody)
        n_blocks = (n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS
        query_stop = min(query_end, first + n_rows - 1) if own else query_end
        for some in range(query_begin, query_stop, _MOST_QUERIES):
            n_queries = min(_MOST_QUERIES, query_stop - some)
            _copy_codes(sides.queries, sides.by_key, some, some + n_queries, n_words, queries)
            four = queries.reshape(_MOST_QUERIES, n_words)
            ready = make_ready(method, four, 0, n_queries, n_bytes)
            for q in range(0, n_queries, QUERIES_AT_ONCE):
                block = max(0, some + q + 1 - first) // BLOCK_ROWS if own else 0
                n_now = min(QUERIES_AT_ONCE, n_queries - q)
                if n_now < QUERIES_AT_ONCE:
                    limits[n_now * (n_blocks - block) :] = 0
                n = find(ready, q, n_now, rows, block, n_blocks, limits, stop_from, finds)
                if n_now < QUERIES_AT_ONCE:
                    limits[:] = asked.radius + 1
                place = _note_finds(sides, asked, noted, finds, n, some, q, first, own, place)
                if place == OVERFLOW:
                    return place
    return place


@kernel()
def _compare(method, sides, asked, noted, query_begin, query_end, begin, end, own, room, place):
    """Compare some queries of a bucket with the rows at places ``begin`` to ``end``.

    room : for copies of rows and for a tile of blocks, of no bytes where there are none
    """
    if end - begin < FEW:
        return _compare_few(sides, asked, noted, query_begin, query_end, begin, end, own, place)
    copy, tile = room
    some = query_begin, query_end, begin, end, own, copy
    if tile.size and end - begin >= MANY and query_end - query_begin >= QUERIES_AT_ONCE:
        return _compare_many(method, sides, asked, noted, *some, tile, place)
    return _compare_some(sides, asked, noted, *some, place)


@kernel()
def near_in_buckets_cell(
    cell,
    n_cells,
    method,
    symmetric,
    begins,
    ends,
    budget,
    most_queries,
    queries,
    by_key,
    rows,
    of_row,
    offsets,
    flips,
    radius,
    masks,
    rests,
    part,
    reach,
    last,
    pairs,
    distances,
    n_found,
):
    """Note the pairs within a radius of queries at some places of the order of keys.

    method : int
    symmetric : bool, queries and rows are the same: each pair is compared once, and noted both ways
    begins, ends : (n_cells,) int64, the places of a cell; its begin is moved on to where it stopped
    budget : int, words compared after which it stops
    most_queries : int, those of a bucket that are done or not done as a whole; where no place is
        left for what they find, the cell stops before them
    queries, rows : (n, n_words) uint64
    by_key, of_row : (n,) uint64, ``key << 32 | row`` of queries and rows, sorted
    offsets : (2**key bits + 1,) uint32, where the buckets of rows begin
    flips : (n,) uint32, each once, 0 among them: buckets to compare with are ``key ^ flip``
    radius : int
    masks : (n_parts, n_words) uint64, the bits of each part
    rests : (n_parts,) int64
    part : int, the one that keys are of
    reach, last : (n,) int64 of queries and rows; a pair is noted where ``last`` is above ``reach``
    pairs, distances : flat (cell, room) int64 and int32, written
    n_found : (n_cells,) int64, written
    """
    n_words = queries.shape[1]
    room = pairs.shape[0] // n_cells
    sides = Sides(
        queries.reshape(-1), by_key, rows.reshape(-1), of_row, offsets, n_words, symmetric
    )
    asked = Asked(radius, masks.reshape(-1), rests, part, reach, last)
    noted = Noted(pairs, distances, (cell + 1) * room)
    n_bytes = n_words * WORD_BYTES
    in_blocks = method != PLAIN and n_words <= MAX_BLOCK_WORDS
    tile_rows = max(MANY, blocks_a_tile(n_bytes) * BLOCK_ROWS if in_blocks else 0)
    copy = np.empty((tile_rows + N_LANES) * n_words + N_LANES, np.uint64)
    tile = np.empty(tile_rows * n_bytes + TURN_SLACK if in_blocks else 0, np.uint8)
    copies = copy, tile
    place = cell * room
    begin, end = begins[cell], ends[cell]
    spent = 0
    while begin < end and spent < budget:
        key = np.int64(by_key[begin] >> _ROW_SHIFT)
        n_own = np.int64(offsets[key + 1]) - np.int64(offsets[key])
        most = min(end, begin + min(most_queries, 64 + budget // (1 + n_own * n_words)))
        stop = begin
        while stop < most and np.int64(by_key[stop] >> _ROW_SHIFT) == key:
            ahead = min(stop + _ROWS_AHEAD, end - 1)
            prefetch(sides.queries, _code_at(by_key, ahead, n_words))
            stop += 1
        before = place
        n_compared = 0
        for flip in flips:
            other = key ^ np.int64(flip)
            if symmetric and other < key:
                continue
            own = symmetric and other == key
            first = begin + 1 if own else np.int64(offsets[other])
            after = np.int64(offsets[other + 1])
            if first >= after:
                continue
            n_compared += after - first
            place = _compare(
                method, sides, asked, noted, begin, stop, first, after, own, copies, place
            )
            if place == OVERFLOW:
                begins[cell] = begin
                n_found[cell] = before - cell * room
                return
        spent += (stop - begin) * n_compared * n_words + _WORDS_A_VISIT * flips.size
        begin = stop
    begins[cell] = begin
    n_found[cell] = place - cell * room


@parallel_kernel
def key_cells(n_cells, done, codes, begin, end, first_byte, tables, keyed):
    for cell in prange(n_cells):
        key_cell(np.int64(cell), n_cells, codes, begin, end, first_byte, tables, keyed)
        done[cell] = True


@parallel_kernel
def near_in_buckets_cells(
    n_cells,
    done,
    method,
    symmetric,
    begins,
    ends,
    budget,
    most_queries,
    queries,
    by_key,
    rows,
    of_row,
    offsets,
    flips,
    radius,
    masks,
    rests,
    part,
    reach,
    last,
    pairs,
    distances,
    n_found,
):
    for cell in prange(n_cells):
        near_in_buckets_cell(
            np.int64(cell),
            n_cells,
            method,
            symmetric,
            begins,
            ends,
            budget,
            most_queries,
            queries,
            by_key,
            rows,
            of_row,
            offsets,
            flips,
            radius,
            masks,
            rests,
            part,
            reach,
            last,
            pairs,
            distances,
            n_found,
        )
        done[cell] = True


KEYS = Launcher(key_cell, key_cells)
NEAR_IN_BUCKETS = Launcher(near_in_buckets_cell, near_in_buckets_cells)
