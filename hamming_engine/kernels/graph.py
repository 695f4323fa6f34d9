"""Walks through a graph of codes: from node to neighbour, nearer and nearer to a query.

A node is a code; its links are the numbers of up to ``n_links`` other nodes, -1 behind them. A walk
keeps the nearest nodes it has met in a list and expands the nearest one not expanded yet, which is
to look at all that it links to, until none is left: beam search (DiskANN: Jayaram Subramanya and
others, NeurIPS 2019, algorithm 1; HNSW: Malkov, Yashunin, TPAMI 2020, algorithm 2).

Nearly all of the time goes into waiting for memory: codes and links lie anywhere. So a thread walks
for several queries in turn. At its turn a walk computes the distances to the nodes that it called
into the cache a turn before, enters them, expands one node, and calls for what that links to.

An entry of the list is one int64, ``distance << ROW_BITS | node << 2 | flags``: it sorts by
distance and then by node, and tells whether it has been expanded.
"""

import numpy as np
from numba import prange

from .compiling import kernel, parallel_kernel
from .intrinsics import move, popcount64, prefetch
from .lanes import N_LANES, add_differing_bits, load_lanes, no_lanes, sum_of_lanes
from .launch import Launcher, share
from .topk import NO_RESULT, ROW_BITS

MAX_NODES = (1 << 31) - 1  # links are int32

# Queries that a thread walks for in turn.
WALKS_AT_ONCE = 4

_EXPANDED = 1
_PASSED = 2  # may be walked through, but not found
_FLAGS = 2
_NODE_MASK = (1 << (ROW_BITS - _FLAGS)) - 1
_LINE_WORDS = 8  # of uint64, in a cache line
_LINE_LINKS = 16  # of int32
_LINES_AHEAD = 4  # of a code: the processor's own prefetcher brings the others
_ONE = np.uint64(1)


def stride_of(n_words):
    """Words from one code to the next: 1, 2, 4, or whole cache lines.

    So a code of up to 512 bits is one line, and longer ones are whole vectors.
    """
    for stride in (1, 2, 4):
        if n_words <= stride:
            return stride
    return n_words + -n_words % N_LANES


@kernel(forceinline=True)
def code_distance(words, at, others, other_at, stride):
    """Hamming distance of two codes among flat words, in bits."""
    if stride == 1:
        return popcount64(words[at] ^ others[other_at])
    if stride == 2:
        return popcount64(words[at] ^ others[other_at]) + popcount64(
            words[at + 1] ^ others[other_at + 1]
        )
    if stride == 4:
        return (
            popcount64(words[at] ^ others[other_at])
            + popcount64(words[at + 1] ^ others[other_at + 1])
            + popcount64(words[at + 2] ^ others[other_at + 2])
            + popcount64(words[at + 3] ^ others[other_at + 3])
        )
    counts = no_lanes()
    for word in range(0, stride, N_LANES):
        counts = add_differing_bits(
            counts, load_lanes(words, at + word), load_lanes(others, other_at + word)
        )
    return sum_of_lanes(counts)


@kernel(forceinline=True)
def call_code(words, at, stride):
    """Call a code into the cache."""
    for word in range(0, min(stride, _LINES_AHEAD * _LINE_WORDS), _LINE_WORDS):
        prefetch(words, at + word)


@kernel(forceinline=True)
def _call_links(links, at, n_links):
    for link in range(0, n_links, _LINE_LINKS):
        prefetch(links, at + link)


@kernel(forceinline=True)
def _place_in(entries, begin, end, entry):
    """Where an entry belongs among sorted ones."""
    while begin < end:
        middle = (begin + end) >> 1
        if entries[middle] < entry:
            begin = middle + 1
        else:
            end = middle
    return begin


@kernel(forceinline=True)
def _node_of(entry):
    return (entry >> _FLAGS) & _NODE_MASK


@kernel(forceinline=True)
def _is_passed(allowed, node):
    """Whether a node is none of those to be found."""
    if allowed.shape[0] == 0:
        return False
    return (allowed[node >> 6] >> np.uint64(node & 63)) & _ONE == 0


@kernel()
def walk(
    begin, end, words, stride, links, n_links, queries, starts, ef, room, table, allowed, found
):
    """Walk for queries ``begin`` to ``end``.

    Arguments are those of ``walk_cell``.
    """
    n_starts = starts.shape[1]
    all_starts = starts.reshape(-1)
    k = found.shape[1] - 1
    all_found = found.reshape(-1)
    entries = np.empty(WALKS_AT_ONCE * room, np.int64)
    # Nodes met. It may forget some, in whose place others came: they are measured again, and found
    # in the list, or beyond its end where they fell off.
    met = np.empty(WALKS_AT_ONCE * table, np.int32)
    waiting_room = max(n_links, n_starts)
    waiting = np.empty(WALKS_AT_ONCE * waiting_room, np.int64)  # nodes called for
    n_waiting = np.zeros(WALKS_AT_ONCE, np.int64)
    n_entries = np.zeros(WALKS_AT_ONCE, np.int64)
    n_allowed = np.zeros(WALKS_AT_ONCE, np.int64)
    first_open = np.zeros(WALKS_AT_ONCE, np.int64)  # before it all entries are expanded
    query_of = np.full(WALKS_AT_ONCE, -1, np.int64)
    next_query = begin
    n_done = begin
    while n_done < end:
        for slot in range(WALKS_AT_ONCE):
            wait_at = slot * waiting_room
            table_at = slot * table
            if query_of[slot] < 0:
                if next_query == end:
                    continue
                query = next_query
                next_query += 1
                query_of[slot] = query
                n_entries[slot] = 0
                n_allowed[slot] = 0
                first_open[slot] = 0
                met[table_at : table_at + table] = -1
                n = 0
                for i in range(query * n_starts, query * n_starts + n_starts):
                    node = np.int64(all_starts[i])
                    if node < 0:
                        break
                    met[table_at + (node & (table - 1))] = node
                    call_code(words, node * stride, stride)
                    waiting[wait_at + n] = node
                    n += 1
                n_waiting[slot] = n
                continue
            query = query_of[slot]
            at = slot * room
            n = n_entries[slot]
            n_found = n_allowed[slot]
            opened = first_open[slot]
            limit = entries[at + n - 1] if n_found == ef or n == room else NO_RESULT
            for i in range(wait_at, wait_at + n_waiting[slot]):
                node = waiting[i]
                bits = code_distance(queries, query * stride, words, node * stride, stride)
                entry = (bits << ROW_BITS) | (node << _FLAGS)
                if entry >= limit:
                    continue
                place = _place_in(entries, at, at + n, entry)
                if place < at + n and entries[place] >> _FLAGS == entry >> _FLAGS:
                    continue
                passed = _is_passed(allowed, node)
                if n == room:
                    n -= 1
                    if entries[at + n] & _PASSED == 0:
                        n_found -= 1
                move(entries, place, place + 1, at + n - place)
                n += 1
                if passed:
                    entries[place] = entry | _PASSED
                else:
                    entries[place] = entry
                    n_found += 1
                    if n_found > ef:
                        n -= 1
                        n_found -= 1
                    if n_found == ef:
                        while entries[at + n - 1] & _PASSED:
                            n -= 1
                opened = min(opened, place - at)
                if n_found == ef or n == room:
                    limit = entries[at + n - 1]
            n_entries[slot] = n
            n_allowed[slot] = n_found
            while opened < n and entries[at + opened] & _EXPANDED:
                opened += 1
            if opened >= n:
                out = query * (k + 1)
                n_out = 0
                for i in range(at, at + n):
                    if entries[i] & _PASSED == 0 and n_out < k:
                        distance = entries[i] >> ROW_BITS << ROW_BITS
                        all_found[out + n_out] = distance | _node_of(entries[i])
                        n_out += 1
                for i in range(n_out, k):
                    all_found[out + i] = NO_RESULT
                all_found[out + k] = n_found
                query_of[slot] = -1
                n_done += 1
                continue
            node = _node_of(entries[at + opened])
            entries[at + opened] |= _EXPANDED
            opened += 1
            first_open[slot] = opened
            n_new = 0
            for i in range(node * n_links, node * n_links + n_links):
                neighbour = np.int64(links[i])
                if neighbour < 0:
                    break
                place = table_at + (neighbour & (table - 1))
                if met[place] != neighbour:
                    met[place] = neighbour
                    call_code(words, neighbour * stride, stride)
                    waiting[wait_at + n_new] = neighbour
                    n_new += 1
            n_waiting[slot] = n_new
            while opened < n and entries[at + opened] & _EXPANDED:
                opened += 1
            if opened < n:  # most likely the next to be expanded
                _call_links(links, _node_of(entries[at + opened]) * n_links, n_links)


@kernel()
def walk_cell(
    cell, n_cells, words, stride, links, n_links, queries, starts, ef, room, table, allowed, found
):
    """Walk for a share of the queries.

    words : (n_nodes * stride,) uint64
    links : (n_nodes * n_links,) int32
    queries : (n_queries * stride,) uint64
    starts : (n_queries, n_starts) int32, nodes where walks begin, -1 behind them
    ef : how many nodes that may be found are kept
    room : how many nodes are kept in all, at least ef
    table : a power of two: how many nodes a walk remembers as met
    allowed : (ceil(n_nodes / 64),) uint64, a bit for each node that may be found, or (0,) for all
    found : (n_queries, k + 1) int64, written: keys of the nearest nodes found, NO_RESULT behind
        them; and how many were kept, at most ef: less if a walk met no more or had no room
    """
    n_queries = found.shape[0]
    begin, end = share(n_queries, cell, n_cells)
    walk(
        begin, end, words, stride, links, n_links, queries, starts, ef, room, table, allowed, found
    )


@parallel_kernel
def walk_cells(
    n_cells, done, words, stride, links, n_links, queries, starts, ef, room, table, allowed, found
):
    for cell in prange(n_cells):
        walk_cell(
            np.int64(cell),
            n_cells,
            words,
            stride,
            links,
            n_links,
            queries,
            starts,
            ef,
            room,
            table,
            allowed,
            found,
        )
        done[cell] = True


WALK = Launcher(walk_cell, walk_cells)


# Rows of nodes: codes that are alike are one node.


@kernel()
def allow_nodes(begin, end, row_begins, rows, bits, allowed):
    """Set the bits of nodes ``begin`` to ``end``, whole words, that have any row allowed."""
    for first in range(begin, end, 64):
        word = np.uint64(0)
        for node in range(first, min(first + 64, end)):
            for i in range(row_begins[node], row_begins[node + 1]):
                row = rows[i]
                if (bits[row >> 6] >> np.uint64(row & 63)) & _ONE:
                    word |= _ONE << np.uint64(node - first)
                    break
        allowed[first >> 6] = word


@kernel()
def allow_nodes_cell(cell, n_cells, row_begins, rows, bits, allowed):
    """Which nodes have any row that may be found.

    row_begins : (n_nodes + 1,) int64
    rows : (n_rows,) int64
    bits : (n,) uint64, a bit for each row
    allowed : (ceil(n_nodes / 64),) uint64, written
    """
    n_nodes = row_begins.shape[0] - 1
    begin, end = share(allowed.shape[0], cell, n_cells)
    allow_nodes(begin * 64, min(end * 64, n_nodes), row_begins, rows, bits, allowed)


@parallel_kernel
def allow_nodes_cells(n_cells, done, row_begins, rows, bits, allowed):
    for cell in prange(n_cells):
        allow_nodes_cell(np.int64(cell), n_cells, row_begins, rows, bits, allowed)
        done[cell] = True


ALLOW_NODES = Launcher(allow_nodes_cell, allow_nodes_cells)


@kernel()
def rows_of_nodes(found, row_begins, rows, bits, keys):
    """Turn nodes found into the rows that have their codes.

    found : (n_queries, n) int64, keys of nodes, ascending, NO_RESULT behind them
    row_begins : (n_nodes + 1,) int64
    rows : (n_rows,) int64, ascending for each node
    bits : (n,) uint64, a bit for each row that may be found, or (0,) for all
    keys : (n_queries, k) int64, written: keys of rows, ascending, NO_RESULT behind them
    """
    k = keys.shape[1]
    # Rows of one distance; no node has more than k of them here.
    group = np.empty(2 * k, np.int64)
    for query in range(found.shape[0]):
        n = 0
        i = 0
        while n < k and i < found.shape[1] and found[query, i] != NO_RESULT:
            distance = found[query, i] >> ROW_BITS
            missing = k - n
            n_group = 0
            while i < found.shape[1] and found[query, i] >> ROW_BITS == distance:
                node = found[query, i] & ((1 << ROW_BITS) - 1)
                n_of_node = 0
                for j in range(row_begins[node], row_begins[node + 1]):
                    row = rows[j]
                    if bits.shape[0] and (bits[row >> 6] >> np.uint64(row & 63)) & _ONE == 0:
                        continue
                    group[n_group] = row
                    n_group += 1
                    n_of_node += 1
                    if n_of_node == missing:
                        break
                if n_group > missing:
                    group[:n_group].sort()
                    n_group = missing
                i += 1
            group[:n_group].sort()
            for j in range(n_group):
                keys[query, n] = (distance << ROW_BITS) | group[j]
                n += 1
        for j in range(n, k):
            keys[query, j] = NO_RESULT
