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
    four_from,
    room_for_finds,
    sum_of,
)
from .intrinsics import first_bit, popcount64, prefetch
from .lanes import N_LANES, add_differing_bits_where, lanes_below, load_lanes, no_lanes
from .launch import Launcher, share
from .methods import PLAIN
from .pairs import OVERFLOW, PAIR_SHIFT
from .scan import eight_distances, make_ready, pad_query, padded_words, worth_stopping
from .substrings import ROW_IN_PAIR_BITS

_ONE = np.uint64(1)
_ROW_SHIFT = np.uint64(ROW_IN_PAIR_BITS)
_ROW_MASK = np.uint64((1 << ROW_IN_PAIR_BITS) - 1)
_ROWS_AHEAD = 16  # in the order of keys codes lie anywhere: they are called so many rows before

# Rows of a bucket are compared with those of another one
FEW = 4  # a word after another, where there are less
MANY = 256  # in blocks, where there are so many; in between eight at once
SMALL = 16  # in buckets of less, rows are compared with their neighbours whatever their keys are
_MOST_QUERIES = 256  # of a bucket, at once
_RUN = 1024  # places whose small buckets are compared at once
_WORDS_A_ROW = 8  # that could be compared while a row is compared with its neighbours
_WORDS_A_VISIT = 32  # or a bucket is looked up

GATHER_SLACK = 2 * N_LANES  # rows beyond the last that whole vectors may reach: eight, and a vector


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


@kernel()
def gather_cell(cell, n_cells, codes, keyed, begin, end, gathered):
    """Copy the codes of a share of places ``begin`` to ``end``, in the order of keys.

    codes : (n, n_words) uint64
    keyed : (n,) uint64, ``key << 32 | row``, sorted
    gathered : (n or more, n_words) uint64, written
    """
    n_words = codes.shape[1]
    words = codes.reshape(-1)
    copy = gathered.reshape(-1)
    first, last = share(end - begin, cell, n_cells)
    to = (begin + first) * n_words
    for place in range(begin + first, begin + last):
        ahead = min(place + _ROWS_AHEAD, begin + last - 1)
        prefetch(words, _row_at(keyed, ahead) * n_words)
        at = _row_at(keyed, place) * n_words
        for word in range(n_words):
            copy[to] = words[at + word]
            to += 1


@kernel(forceinline=True)
def _row_at(keyed, place):
    return np.int64(keyed[place] & _ROW_MASK)


# Both sides of a join, in the order of keys.
#
# queries, rows : (n + GATHER_SLACK, n_words) uint64, and the same flat
# by_key, of_row : (n,) uint64, ``key << 32 | row``
# symmetric : whether both are the same, so that each pair of rows is compared once
Sides = namedtuple("Sides", "queries flat_queries by_key rows flat_rows of_row symmetric")

# Which pairs are noted.
#
# masks, rests : flat (part, word) uint64 and (part,) int64, of all parts
# part : the one whose keys these are
# reach, last : (n,) int64 of queries and rows; a row is asked for by queries whose ``reach`` is
#     below its ``last``
Asked = namedtuple("Asked", "radius masks rests part reach last")

# Where they go: from a place on until the end of the room.
Noted = namedtuple("Noted", "pairs distances end")

# Room to work in.
#
# padded, query, where : flat uint64, the queries of a bucket and one of them, and which of their
#     bits count, as ``eight_distances`` takes them
# tile : flat uint8, rows in blocks; none where rows are never turned
# finds, limits : as ``find`` takes them
Room = namedtuple("Room", "padded query where tile finds limits")


@kernel()
def _distance(a, at, b, bt, n_words):
    bits = 0
    for word in range(n_words):
        bits += popcount64(a[at + word] ^ b[bt + word])
    return bits


@kernel()
def _is_first(sides, asked, at, bt, n_words):
    """Whether a part is the first in which two codes are within the rest."""
    for part in range(asked.part + 1):
        bits = 0
        for word in range(n_words):
            differing = sides.flat_queries[at + word] ^ sides.flat_rows[bt + word]
            bits += popcount64(differing & asked.masks[part * n_words + word])
        if bits <= asked.rests[part]:
            return part == asked.part
    return False


@kernel()
def _note(sides, asked, noted, i, j, bits, place):
    """Note the pair at places ``i`` and ``j``, where it is asked for.

    Returns the place after it, or OVERFLOW.
    """
    n_words = sides.queries.shape[1]
    q = _row_at(sides.by_key, i)
    row = _row_at(sides.of_row, j)
    there = asked.last[row] > asked.reach[q]
    back = sides.symmetric and asked.last[q] > asked.reach[row]
    if not (there or back) or not _is_first(sides, asked, i * n_words, j * n_words, n_words):
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
def _compare_neighbours(sides, asked, noted, begin, end, place):
    """Compare the rows of small buckets, all of less than ``SMALL`` rows, gap by gap.

    Most pairs of neighbours are of different buckets, but to compare them all, without asking,
    takes a fraction of what a branch takes that nobody can predict.
    """
    n_words = sides.queries.shape[1]
    n_rows = sides.by_key.shape[0]
    for gap in range(1, SMALL):
        n = min(end, n_rows - gap) - begin
        if n <= 0:
            break
        keys = sides.by_key[begin : begin + n]
        others = sides.by_key[begin + gap : begin + gap + n]
        n_alike = 0
        n_near = 0
        if n_words == 1:
            codes = sides.flat_queries[begin : begin + n]
            other_codes = sides.flat_queries[begin + gap : begin + gap + n]
            for i in range(n):
                alike = keys[i] >> _ROW_SHIFT == others[i] >> _ROW_SHIFT
                n_alike += alike
                n_near += alike & (popcount64(codes[i] ^ other_codes[i]) <= asked.radius)
        else:
            for i in range(n):
                n_alike += keys[i] >> _ROW_SHIFT == others[i] >> _ROW_SHIFT
            n_near = n_alike
        if n_alike == 0:
            break
        if n_near == 0:
            continue
        for i in range(n):
            if keys[i] >> _ROW_SHIFT == others[i] >> _ROW_SHIFT:
                at = (begin + i) * n_words
                bt = at + gap * n_words
                bits = _distance(sides.flat_queries, at, sides.flat_queries, bt, n_words)
                if bits <= asked.radius:
                    place = _note(sides, asked, noted, begin + i, begin + i + gap, bits, place)
                    if place == OVERFLOW:
                        return place
    return place


@kernel(forceinline=True)
def _compare_few(sides, asked, noted, query_begin, query_end, begin, end, own, place):
    """Compare places ``query_begin`` on with ``begin`` on, a word after another.

    own : whether they are of the same bucket: then each with those after it
    """
    n_words = sides.queries.shape[1]
    for i in range(query_begin, query_end):
        for j in range(max(begin, i + 1) if own else begin, end):
            bits = _distance(sides.flat_queries, i * n_words, sides.flat_rows, j * n_words, n_words)
            if bits <= asked.radius:
                place = _note(sides, asked, noted, i, j, bits, place)
                if place == OVERFLOW:
                    return place
    return place


@kernel(forceinline=True)
def _compare_some(sides, asked, noted, query_begin, query_end, begin, end, own, room, place):
    """The same with eight rows at once; the queries were padded."""
    n_words = sides.queries.shape[1]
    n_padded = padded_words(n_words)
    for i in range(query_begin, query_end):
        at = (i - query_begin) * n_padded
        for word in range(n_padded):  # a view of an array would be counted, which takes longer
            room.query[word] = room.padded[at + word]
        for first in range(max(begin, i + 1) if own else begin, end, N_LANES):
            bits = eight_distances(room.query, room.where, sides.flat_rows, first, n_words)
            mask = lanes_below(bits, asked.radius + 1)
            if end - first < N_LANES:
                mask &= (_ONE << np.uint64(end - first)) - _ONE
            while mask != 0:
                j = first + first_bit(mask)
                mask &= mask - _ONE
                n = _distance(
                    sides.flat_queries, i * n_words, sides.flat_rows, j * n_words, n_words
                )
                place = _note(sides, asked, noted, i, j, n, place)
                if place == OVERFLOW:
                    return place
    return place


@kernel(forceinline=True)
def _words_below(words, first, room, query, limit):
    """Which of eight codes of one word are below a limit of a padded query."""
    word = load_lanes(room.padded, query * N_LANES)
    where = load_lanes(room.where, 0)
    bits = add_differing_bits_where(no_lanes(), load_lanes(words, first), word, where)
    return lanes_below(bits, limit)


@kernel(forceinline=True)
def _compare_words(sides, asked, noted, query_begin, query_end, begin, end, own, room, place):
    """The same for codes of one word and four queries at once, which share loads and branches."""
    limit = asked.radius + 1
    for i in range(query_begin, query_end, QUERIES_AT_ONCE):
        query = i - query_begin
        for first in range(max(begin, i + 1) if own else begin, end, N_LANES):
            a = _words_below(sides.flat_rows, first, room, query, limit)
            b = _words_below(sides.flat_rows, first, room, query + 1, limit)
            c = _words_below(sides.flat_rows, first, room, query + 2, limit)
            d = _words_below(sides.flat_rows, first, room, query + 3, limit)
            mask = a | b << np.uint64(8) | c << np.uint64(16) | d << np.uint64(24)
            while mask != 0:
                k, lane = divmod(first_bit(mask), N_LANES)
                mask &= mask - _ONE
                j = first + lane
                # Vectors reach beyond both ends.
                if i + k >= query_end or j >= end or (own and j <= i + k):
                    continue
                n = popcount64(sides.flat_queries[i + k] ^ sides.flat_rows[j])
                place = _note(sides, asked, noted, i + k, j, n, place)
                if place == OVERFLOW:
                    return place
    return place


@kernel()
def _note_finds(sides, asked, noted, finds, n, query, begin, own, place):
    """Note the finds for places ``query`` and on among the rows from a place on."""
    for at in range(0, n * FIND_WORDS, FIND_WORDS):
        mask = np.uint64(finds[at])
        block, k = divmod(finds[at + 1], QUERIES_AT_ONCE)
        while mask != 0:
            bit = first_bit(mask)
            mask &= mask - _ONE
            j = begin + block * BLOCK_ROWS + bit
            if own and j <= query + k:
                continue
            place = _note(sides, asked, noted, query + k, j, sum_of(finds, at, bit), place)
            if place == OVERFLOW:
                return place
    return place


@kernel()
def _compare_many(
    method, sides, asked, noted, query_begin, query_end, begin, end, own, room, place
):
    """The same with rows in blocks, four queries at once against 64 of them."""
    n_bytes = sides.queries.shape[1] * WORD_BYTES
    nobody = np.zeros(0, np.uint64)
    stop_from = worth_stopping(asked.radius + 1, n_bytes)
    tile_rows = blocks_a_tile(n_bytes) * BLOCK_ROWS
    for first in range(begin, end, tile_rows):
        n_rows = min(tile_rows, end - first)
        turn_rows(sides.rows, first, first + n_rows, room.tile, 0)
        rows = Rows(room.tile, n_rows, 0, nobody)
        n_blocks = (n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS
        query_stop = min(query_end, first + n_rows - 1) if own else query_end
        for some in range(query_begin, query_stop, _MOST_QUERIES):
            n_queries = min(_MOST_QUERIES, query_stop - some)
            ready = make_ready(method, sides.queries, some, some + n_queries, n_bytes)
            for q in range(0, n_queries, QUERIES_AT_ONCE):
                block = max(0, some + q + 1 - first) // BLOCK_ROWS if own else 0
                n_now = min(QUERIES_AT_ONCE, n_queries - q)
                n_limits = n_now * (n_blocks - block)
                room.limits[:n_limits] = asked.radius + 1
                room.limits[n_limits : QUERIES_AT_ONCE * (n_blocks - block)] = 0
                four, limits, finds = four_from(q, n_now), room.limits, room.finds
                n = find(ready, four, n_now, rows, block, n_blocks, limits, stop_from, finds)
                place = _note_finds(sides, asked, noted, room.finds, n, some + q, first, own, place)
                if place == OVERFLOW:
                    return place
    return place


@kernel(forceinline=True)
def _compare(method, sides, asked, noted, query_begin, query_end, begin, end, own, room, place):
    """Compare some queries of a bucket with the rows at places ``begin`` to ``end``."""
    if end - begin < FEW:
        return _compare_few(sides, asked, noted, query_begin, query_end, begin, end, own, place)
    some = query_begin, query_end, begin, end, own, room, place
    if room.tile.size and end - begin >= MANY and query_end - query_begin >= QUERIES_AT_ONCE:
        return _compare_many(method, sides, asked, noted, *some)
    if sides.queries.shape[1] == 1:
        return _compare_words(sides, asked, noted, *some)
    return _compare_some(sides, asked, noted, *some)


@kernel(forceinline=True)
def _pad_queries(sides, begin, end, room):
    """Lay out the queries of some places for ``eight_distances``."""
    n_padded = padded_words(sides.queries.shape[1])
    for i in range(begin, end):
        at = (i - begin) * n_padded
        pad_query(sides.queries[i], room.padded[at : at + n_padded], room.where)


@kernel()
def _are_small(by_key, begin, end):
    """Whether all buckets that begin at places ``begin`` to ``end`` are small."""
    gap = SMALL - 1
    n = min(end, by_key.shape[0] - gap) - begin
    if n <= 0:
        return True
    keys = by_key[begin : begin + n]
    others = by_key[begin + gap : begin + gap + n]
    n_alike = 0
    for i in range(n):
        n_alike += keys[i] >> _ROW_SHIFT == others[i] >> _ROW_SHIFT
    return n_alike == 0


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
    queries, rows : (n + GATHER_SLACK, n_words) uint64, in the order of keys
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
    n_bytes = n_words * WORD_BYTES
    n_room = pairs.shape[0] // n_cells
    sides = Sides(queries, queries.reshape(-1), by_key, rows, rows.reshape(-1), of_row, symmetric)
    asked = Asked(radius, masks.reshape(-1), rests, part, reach, last)
    noted = Noted(pairs, distances, (cell + 1) * n_room)
    in_blocks = method != PLAIN and n_words <= MAX_BLOCK_WORDS
    finds, limits = room_for_finds(n_bytes)
    tile_bytes = blocks_a_tile(n_bytes) * n_bytes * BLOCK_ROWS + TURN_SLACK if in_blocks else 0
    n_padded = padded_words(n_words)
    room = Room(
        np.zeros((_MOST_QUERIES + QUERIES_AT_ONCE) * n_padded, np.uint64),
        np.empty(n_padded, np.uint64),
        np.empty(n_padded, np.uint64),
        np.empty(tile_bytes, np.uint8),
        finds,
        limits,
    )
    place = cell * n_room
    begin, end = begins[cell], ends[cell]
    spent = 0
    while begin < end and spent < budget:
        before = place
        if symmetric and flips.size == 1:
            stop = min(end, begin + min(most_queries, _RUN))
            if _are_small(by_key, begin, stop):
                place = _compare_neighbours(sides, asked, noted, begin, stop, place)
                if place == OVERFLOW:
                    begins[cell] = begin
                    n_found[cell] = before - cell * n_room
                    return
                spent += (stop - begin) * (n_words + _WORDS_A_ROW)
                begin = stop
                continue
        key = np.int64(by_key[begin] >> _ROW_SHIFT)
        most = min(end, begin + min(most_queries, _MOST_QUERIES))
        stop = begin + 1
        while stop < most and np.int64(by_key[stop] >> _ROW_SHIFT) == key:
            stop += 1
        _pad_queries(sides, begin, stop, room)
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
                method, sides, asked, noted, begin, stop, first, after, own, room, place
            )
            if place == OVERFLOW:
                begins[cell] = begin
                n_found[cell] = before - cell * n_room
                return
        spent += (stop - begin) * n_compared * n_words + _WORDS_A_VISIT * flips.size
        begin = stop
    begins[cell] = begin
    n_found[cell] = place - cell * n_room


@parallel_kernel
def key_cells(n_cells, done, codes, begin, end, first_byte, tables, keyed):
    for cell in prange(n_cells):
        key_cell(np.int64(cell), n_cells, codes, begin, end, first_byte, tables, keyed)
        done[cell] = True


@parallel_kernel
def gather_cells(n_cells, done, codes, keyed, begin, end, gathered):
    for cell in prange(n_cells):
        gather_cell(np.int64(cell), n_cells, codes, keyed, begin, end, gathered)
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
GATHER = Launcher(gather_cell, gather_cells)
NEAR_IN_BUCKETS = Launcher(near_in_buckets_cell, near_in_buckets_cells)
