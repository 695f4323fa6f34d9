"""The k nearest rows of a query, while a scan goes on.

A result is one int64 key, ``distance << ROW_BITS | row``. Keys compare like the pair (distance,
row), which is the order of all results; so heaps, merges and sorts need no second array and no tie
rule, and merging any split of the rows gives the same k keys.

There are two ways to keep the k smallest keys of rows that come in ascending order:

* A bounded max-heap, an array of k keys with the largest first. It knows nothing of distances; the
  plain scan uses it.
* A *shortlist*: keys as they came, and a count for each distance. The count of rows below the limit
  tells when the limit can sink; no key moves until the room is full, and then what is beyond the
  limit is dropped, in one pass. A key costs the same few instructions whatever k is: with 128
  queries on 500,000 rows of 256 bits it scanned 1.9 times as fast as the heap for k = 1,000, and
  1.05 times for k = 100 (Zen 5). This is the counting that sorts small integers (Knuth, "The Art of
  Computer Programming", volume 3, section 5.2, algorithm D), stopped at k.

A shortlist is one line of int64: the limit, how many keys are below it, where the keys end, k, room
for keys, and the counts.

Scores are too many to count. Their keys have a *rank* in the place of the distance, the highest 23
bits of a float32 in descending order: scores that agree in their first fifteen binary digits tie.
A *reservoir* takes keys below its limit as they come; when it is full, the k smallest are selected
(Hoare: "Algorithm 65: Find", CACM 1961), and the largest of them is the limit. It is one line of
int64 too: the limit, where the keys end, k, and room for keys.
"""

import numpy as np

from .compiling import kernel

ROW_BITS = 40
MAX_ROWS = 1 << ROW_BITS  # rows in one index or collection
MAX_BITS = (1 << (63 - ROW_BITS)) - 64  # bits in a code: every distance is below NO_RESULT's

NO_RESULT = np.int64(np.iinfo(np.int64).max)  # sorts behind every result

_ROW_MASK = np.int64(MAX_ROWS - 1)

# Where things are in a shortlist.
LIMIT, N_BELOW, END, _K, _KEYS = range(5)

# And in a reservoir, where the limit is a key and comes first too.
_RESERVOIR_END, _RESERVOIR_K, _RESERVOIR_KEYS = range(1, 4)

_RANK_SHIFT = 9  # bits of a float32 that no rank has
_MINUS_INFINITY = -0x7F80_0001  # its place among floats in ascending order; below it come NaNs


def new_heaps(n_slabs, n_queries, k):
    """Empty max-heaps along the last axis."""
    return np.full((n_slabs, n_queries, k), NO_RESULT, np.int64)


@kernel(forceinline=True)
def _room(k):
    """Room for keys: when it is full, at least half of them are dropped."""
    return max(2 * k, k + 64)


def shortlist_words(n_bits, k):
    """Length of a shortlist."""
    return _KEYS + _room(k) + n_bits + 2


def new_shortlists(n_slabs, n_queries, n_bits, k):
    """Empty shortlists along the last axis."""
    lists = np.empty((n_slabs, n_queries, shortlist_words(n_bits, k)), np.int64)
    _clear_shortlists(lists, n_bits, k)
    return lists


@kernel()
def _clear_shortlists(lists, n_bits, k):
    # A third of the time that two assignments of NumPy take, which shows in a small search.
    n_slabs, n_queries, words = lists.shape
    for slab in range(n_slabs):
        for q in range(n_queries):
            shortlist = lists[slab, q]
            shortlist[LIMIT] = n_bits + 1
            shortlist[N_BELOW] = 0
            shortlist[END] = _KEYS
            shortlist[_K] = k
            shortlist[words - (n_bits + 2) :] = 0


@kernel()
def limit_of(heap):
    """The distance that a later row must be below to enter the heap."""
    return heap[0] >> ROW_BITS


@kernel()
def replace_largest(heaps, at, n, key):
    """Put ``key`` in the place of the largest key, the root, and restore the heap.

    heaps : flat int64, the heap of ``n`` keys begins at ``at``
    """
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= n:
            break
        if child + 1 < n and heaps[at + child + 1] > heaps[at + child]:
            child += 1
        if heaps[at + child] <= key:
            break
        heaps[at + hole] = heaps[at + child]
        hole = child
    heaps[at + hole] = key


@kernel()
def _sort_heap(heap, keys):
    """Move the keys of a heap into an array, ascending."""
    n = heap.shape[0]
    for place in range(n - 1, -1, -1):
        keys[place] = heap[0]
        replace_largest(heap, 0, n, -1)


# In the inner loops a shortlist is a place ``at`` in a flat array, not an array of its own: making
# one counts references, two atomic instructions on a cache line that all threads share.


@kernel(forceinline=True)
def _counts_begin(lists, at):
    return _KEYS + _room(lists[at + _K])


@kernel()
def drop_beyond_limit(lists, at):
    """Keep the keys below the limit and, of those at it, as many as k leaves room for.

    Keys are in the order of their rows, so the first of those at the limit are the right ones.
    """
    limit = lists[at + LIMIT]
    room = lists[at + _K] - lists[at + N_BELOW]
    end = _KEYS
    for i in range(_KEYS, lists[at + END]):
        key = lists[at + i]
        bits = key >> ROW_BITS
        if bits < limit or (bits == limit and room > 0):
            room -= bits == limit
            lists[at + end] = key
            end += 1
    lists[at + END] = end


@kernel(forceinline=True)
def enlist(lists, at, bits, row):
    """Add a row whose distance is below the limit; every row before came before it.

    Returns whether there is no room for another one, until ``drop_beyond_limit`` makes some.
    """
    counts_begin = _counts_begin(lists, at)
    end = lists[at + END]
    lists[at + end] = (bits << ROW_BITS) | row
    lists[at + END] = end + 1
    lists[at + counts_begin + bits] += 1
    n_below = lists[at + N_BELOW] + 1
    k = lists[at + _K]
    if n_below == k:
        # Now k rows are below the limit: let it sink until the k-th is no longer below, but at it.
        limit = lists[at + LIMIT]
        while n_below >= k:
            limit -= 1
            n_below -= lists[at + counts_begin + limit]
        lists[at + LIMIT] = limit
    lists[at + N_BELOW] = n_below
    return end + 1 == counts_begin


@kernel()
def _sort_shortlist(lists, at, keys):
    """Copy the k smallest keys of a shortlist into an array, ascending."""
    drop_beyond_limit(lists, at)
    counts_begin = _counts_begin(lists, at)
    limit = lists[at + LIMIT]
    places = np.empty(limit + 1, np.int64)
    place = 0
    for bits in range(limit + 1):
        places[bits] = place
        place += lists[at + counts_begin + bits]
    for i in range(_KEYS, lists[at + END]):
        key = lists[at + i]
        bits = key >> ROW_BITS
        keys[places[bits]] = key
        places[bits] += 1


@kernel()
def gather_results(kept, heaps, distances, rows):
    """Sort what the slabs have kept of each query and merge it.

    kept : (n_slabs, n_queries, ...) int64, shortlists, or heaps, which are emptied
    heaps : bool
    distances : (n_queries, k) int32, written
    rows : (n_queries, k) int64, written
    """
    n_slabs, n_queries, words = kept.shape
    lists = kept.reshape(-1)
    k = distances.shape[1]
    keys = np.empty((n_slabs, k), np.int64)
    heads = np.empty(n_slabs, np.int64)
    for q in range(n_queries):
        keys[:] = NO_RESULT
        for slab in range(n_slabs):
            if heaps:
                _sort_heap(kept[slab, q], keys[slab])
            elif kept[slab, q, END] > _KEYS:
                _sort_shortlist(lists, (slab * n_queries + q) * words, keys[slab])
        heads[:] = 0
        for place in range(k):
            first = 0
            smallest = NO_RESULT
            for slab in range(n_slabs):
                if heads[slab] < k and keys[slab, heads[slab]] < smallest:
                    first = slab
                    smallest = keys[slab, heads[slab]]
            heads[first] += 1
            distances[q, place] = smallest >> ROW_BITS
            rows[q, place] = smallest & _ROW_MASK


def keys_of_scores(scores, rows):
    """Keys of float32 scores, of which none is NaN, and rows: arrays of one shape."""
    bits = np.ascontiguousarray(scores, np.float32).view(np.int32).astype(np.int64)
    ascending = np.where(bits < 0, bits ^ 0x7FFF_FFFF, bits)
    return make_keys((0x7FFF_FFFF - ascending) >> _RANK_SHIFT, rows)


def keys_of_heaps(heaps):
    """The k smallest keys of each query, (n_queries, k) int64, ascending."""
    n_slabs, _, k = heaps.shape
    keys = heaps[0] if n_slabs == 1 else np.concatenate(heaps, axis=1)
    return np.sort(keys, axis=1)[:, :k]


def split_keys(keys):
    """(distances int32, rows int64) of keys."""
    return (keys >> ROW_BITS).astype(np.int32), keys & _ROW_MASK


@kernel(forceinline=True)
def rank_of(score):
    """The rank of a float32 that is no NaN: smaller for higher scores."""
    bits = np.int64(np.float32(score).view(np.int32))
    # Negative floats count downwards from zero: turned over, all of them ascend as integers do.
    ascending = bits ^ 0x7FFF_FFFF if bits < 0 else bits
    return (0x7FFF_FFFF - ascending) >> _RANK_SHIFT


@kernel(forceinline=True)
def least_score_of(rank):
    """The least score that has a rank."""
    ascending = 0x7FFF_FFFF - ((rank << _RANK_SHIFT) | ((1 << _RANK_SHIFT) - 1))
    ascending = max(ascending, _MINUS_INFINITY)
    bits = ascending ^ 0x7FFF_FFFF if ascending < 0 else ascending
    return np.int32(bits).view(np.float32)


def reservoir_words(k):
    """Length of a reservoir."""
    return _RESERVOIR_KEYS + max(2 * k, k + 64)


def new_reservoirs(n_slabs, n_queries, k):
    """Empty reservoirs along the last axis."""
    reservoirs = np.full((n_slabs, n_queries, reservoir_words(k)), NO_RESULT, np.int64)
    reservoirs[..., _RESERVOIR_END] = _RESERVOIR_KEYS
    reservoirs[..., _RESERVOIR_K] = k
    return reservoirs


@kernel()
def _select(keys, begin, end, n):
    """Bring the ``n`` smallest of distinct keys to the front; the largest of them comes last."""
    place = begin + n - 1
    low, high = begin, end - 1
    while low < high:
        pivot = keys[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break


@kernel()
def _drop_from_reservoir(lists, at):
    """Keep the k smallest keys of a full reservoir, and set the limit."""
    first = at + _RESERVOIR_KEYS
    k = lists[at + _RESERVOIR_K]
    _select(lists, first, at + lists[at + _RESERVOIR_END], k)
    lists[at + _RESERVOIR_END] = _RESERVOIR_KEYS + k
    lists[at + LIMIT] = lists[first + k - 1]


@kernel(forceinline=True)
def add_to_reservoir(lists, at, key):
    """Add a key below the limit."""
    end = lists[at + _RESERVOIR_END]
    lists[at + end] = key
    lists[at + _RESERVOIR_END] = end + 1
    k = lists[at + _RESERVOIR_K]
    if end + 1 == _RESERVOIR_KEYS + max(2 * k, k + 64):
        _drop_from_reservoir(lists, at)


def keys_of_reservoirs(reservoirs):
    """The k smallest keys of each query, (n_queries, k) int64, ascending; NO_RESULT for none."""
    _, n_queries, n_words = reservoirs.shape
    k = int(reservoirs[0, 0, _RESERVOIR_K])
    taken = np.arange(n_words) < reservoirs[..., _RESERVOIR_END, None]
    taken[..., :_RESERVOIR_KEYS] = False
    keys = np.where(taken, reservoirs, NO_RESULT).transpose(1, 0, 2).reshape(n_queries, -1)
    return np.sort(keys, axis=1)[:, :k]


def rows_of_keys(keys):
    """The rows of keys."""
    return keys & _ROW_MASK


def make_keys(distances, rows):
    """Keys of distances and rows."""
    return (distances.astype(np.int64) << ROW_BITS) | rows
