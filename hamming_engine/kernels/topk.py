"""Results as sortable keys, and the bounded heap that keeps the k smallest.

A result is one int64 key, ``distance << ROW_BITS | row``. Keys compare like the pair (distance,
row), which is the order of all results; so heaps, merges and sorts need no second array and no tie
rule, and merging any split of the rows gives the same k keys.
"""

import numpy as np

from .compiling import kernel

ROW_BITS = 40
MAX_ROWS = 1 << ROW_BITS  # rows in one index or collection
MAX_BITS = (1 << (63 - ROW_BITS)) - 64  # bits in a code: every distance is below NO_RESULT's

NO_RESULT = np.int64(np.iinfo(np.int64).max)  # sorts behind every result

_ROW_MASK = np.int64(MAX_ROWS - 1)


def new_heaps(*shape):
    """Empty max-heaps along the last axis."""
    return np.full(shape, NO_RESULT, np.int64)


def split_keys(keys):
    """(distances int32, rows int64) of keys."""
    return (keys >> ROW_BITS).astype(np.int32), keys & _ROW_MASK


@kernel()
def limit_of(heap):
    """The distance that a later row must be below to enter the heap."""
    return heap[0] >> ROW_BITS


@kernel()
def replace_largest(heap, key):
    """Put ``key`` in the place of the largest key, the root, and restore the heap."""
    n = heap.shape[0]
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= n:
            break
        if child + 1 < n and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= key:
            break
        heap[hole] = heap[child]
        hole = child
    heap[hole] = key
