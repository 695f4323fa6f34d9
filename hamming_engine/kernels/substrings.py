"""Rows in the order of a substring of their codes: what hash tables over codes are made of.

A substring is a few neighbouring dimensions of a code, read as a number: dimension ``start`` is its
lowest bit. Codes that agree there have the same number, so rows sorted by it lie in *buckets*, and
an array of offsets, one for each number, tells where each begins.

What is sorted are *pairs*, ``substring << ROW_IN_PAIR_BITS | row``, one uint64 for a row, by a
radix sort that begins with the lowest digit (Knuth, "The Art of Computer Programming", volume 3,
section 5.2.5, algorithm R): every pass is stable, and pairs begin in the order of rows, so rows of
a bucket ascend. A pass counts the digits in every cell's share, and moves the share to where the
counts of smaller digits, and of the same digit in earlier shares, end.
"""

import numpy as np
from numba import prange

from .compiling import kernel, parallel_kernel
from .intrinsics import ALL_ONES, code_word
from .launch import WORK_PER_LAUNCH, Launcher, share, usable_threads

ROW_IN_PAIR_BITS = 32
MAX_SORTED_ROWS = 1 << ROW_IN_PAIR_BITS
MAX_SUBSTRING_BITS = 64 - ROW_IN_PAIR_BITS

_ROW_MASK = np.uint64(MAX_SORTED_ROWS - 1)
_ROW_SHIFT = np.uint64(ROW_IN_PAIR_BITS)
# 2,048 places to write to, a cache line each: an eighth of a second-level cache.
_DIGIT_BITS = 11
_PAIRS_PER_LAUNCH = WORK_PER_LAUNCH // 8  # of a thread: two to four nanoseconds each


@kernel(forceinline=True)
def substring(words, at, start, width):
    """Dimensions ``start`` to ``start + width`` of a code, ``start`` being the lowest bit.

    words : flat uint64, the code's first word being at ``at``
    width : 1 to 64
    """
    word = at + (start >> 6)
    shift = np.uint64(start & 63)
    bits = code_word(words[word]) >> shift
    if (start & 63) + width > 64:
        bits |= code_word(words[word + 1]) << (np.uint64(64) - shift)
    return bits & (ALL_ONES >> np.uint64(64 - width))


@kernel()
def pair_cell(cell, n_cells, codes, begin, end, start, width, pairs):
    """Write the pairs of a share of rows ``begin`` to ``end``.

    codes : (n, n_words) uint64
    pairs : (n,) uint64, written from ``begin`` to ``end``
    """
    n_words = codes.shape[1]
    words = codes.reshape(-1)
    first, last = share(end - begin, cell, n_cells)
    for row in range(begin + first, begin + last):
        bits = substring(words, row * n_words, start, width)
        pairs[row] = bits << _ROW_SHIFT | np.uint64(row)


@kernel()
def count_cell(cell, n_cells, pairs, begin, end, shift, counts):
    """Count the digits of a share of pairs ``begin`` to ``end``.

    shift : int, of the digit's lowest bit
    counts : (n_cells, n_digits) int64, ``n_digits`` a power of two; line ``cell`` is written
    """
    first, last = share(end - begin, cell, n_cells)
    shift = np.uint64(shift)
    mask = np.uint64(counts.shape[1] - 1)
    counts = counts[cell]
    counts[:] = 0
    for i in range(begin + first, begin + last):
        counts[pairs[i] >> shift & mask] += 1


@kernel()
def move_cell(cell, n_cells, pairs, begin, end, shift, places, moved):
    """Move a share of pairs ``begin`` to ``end`` to the places of their digits.

    places : (n_cells, n_digits) int64, where the first pair of each digit goes; line ``cell`` is
        changed to where the next one would
    moved : (n,) uint64, written at these places
    """
    first, last = share(end - begin, cell, n_cells)
    shift = np.uint64(shift)
    mask = np.uint64(places.shape[1] - 1)
    places = places[cell]
    for i in range(begin + first, begin + last):
        pair = pairs[i]
        digit = pair >> shift & mask
        place = places[digit]
        places[digit] = place + 1
        moved[place] = pair


@kernel()
def offsets_cell(cell, n_cells, pairs, begin, end, offsets):
    """Write where buckets begin that do so in a share of the sorted pairs ``begin`` to ``end``.

    offsets : (2**width + 1,) uint32, written; the number of pairs for buckets beyond the last pair
    """
    n_pairs = pairs.shape[0]
    first, last = share(end - begin, cell, n_cells)
    # Counted from -1: the first pair begins its own bucket and all empty ones before it.
    before = np.int64(-1)
    if begin + first > 0:
        before = np.int64(pairs[begin + first - 1] >> _ROW_SHIFT)
    for i in range(begin + first, begin + last):
        bucket = np.int64(pairs[i] >> _ROW_SHIFT)
        while before < bucket:
            before += 1
            offsets[before] = i
    if begin + last == n_pairs:
        offsets[before + 1 :] = n_pairs


@parallel_kernel
def pair_cells(n_cells, done, codes, begin, end, start, width, pairs):
    for cell in prange(n_cells):
        pair_cell(np.int64(cell), n_cells, codes, begin, end, start, width, pairs)
        done[cell] = True


@parallel_kernel
def count_cells(n_cells, done, pairs, begin, end, shift, counts):
    for cell in prange(n_cells):
        count_cell(np.int64(cell), n_cells, pairs, begin, end, shift, counts)
        done[cell] = True


@parallel_kernel
def move_cells(n_cells, done, pairs, begin, end, shift, places, moved):
    for cell in prange(n_cells):
        move_cell(np.int64(cell), n_cells, pairs, begin, end, shift, places, moved)
        done[cell] = True


@parallel_kernel
def offsets_cells(n_cells, done, pairs, begin, end, offsets):
    for cell in prange(n_cells):
        offsets_cell(np.int64(cell), n_cells, pairs, begin, end, offsets)
        done[cell] = True


PAIRS = Launcher(pair_cell, pair_cells)
COUNT = Launcher(count_cell, count_cells)
MOVE = Launcher(move_cell, move_cells)
OFFSETS = Launcher(offsets_cell, offsets_cells)


def pair_launches(n, n_threads):
    """Bounds of the launches over ``n`` pairs, and the work of each."""
    step = max(1, n_threads * _PAIRS_PER_LAUNCH)
    for begin in range(0, n, step):
        end = min(begin + step, n)
        yield begin, end, 8 * (end - begin)


def _sort_by_digit(pairs, moved, shift, n_bits, n_threads):
    """Write the pairs to ``moved`` in the order of a digit, those with the same as they come."""
    launches = list(pair_launches(len(pairs), n_threads))
    counts = np.empty((len(launches), n_threads, 1 << n_bits), np.int64)
    for i, (begin, end, work) in enumerate(launches):
        COUNT(n_threads, pairs, begin, end, shift, counts[i], work=work)
    # Smaller digits come first, then the same digit of earlier launches and cells.
    in_order = counts.reshape(-1, 1 << n_bits).T.reshape(-1)
    ends = np.cumsum(in_order)
    places = (ends - in_order).reshape(1 << n_bits, -1).T
    places = np.ascontiguousarray(places).reshape(counts.shape)
    for i, (begin, end, work) in enumerate(launches):
        MOVE(n_threads, pairs, begin, end, shift, places[i], moved, work=work)


def sorted_pairs(codes, start, width, threads=None):
    """The rows of some codes in the order of a substring, and then of their numbers.

    Parameters
    ----------
    codes : (n, n_words) uint64, read-only
        At most ``MAX_SORTED_ROWS`` rows.
    start, width : int
        Dimensions ``start`` to ``start + width``; at most ``MAX_SUBSTRING_BITS`` of them.
    threads : int, optional

    Returns
    -------
    (n,) uint64
        ``substring << ROW_IN_PAIR_BITS | row``, ascending.
    """
    n = len(codes)
    n_threads = usable_threads(threads)
    pairs, moved = np.empty(n, np.uint64), np.empty(n, np.uint64)
    for begin, end, work in pair_launches(n, n_threads):
        PAIRS(n_threads, codes, begin, end, start, width, pairs, work=work)
    return sort_pairs(pairs, moved, width, n_threads)


def sort_pairs(pairs, moved, width, n_threads):
    """Sort pairs by numbers of ``width`` bits, and then as they come.

    ``moved`` is room for as many; both arrays are changed, and the one that is sorted is returned.
    """
    n_passes = -(-width // _DIGIT_BITS)
    for i in range(n_passes):
        low, high = i * width // n_passes, (i + 1) * width // n_passes
        _sort_by_digit(pairs, moved, ROW_IN_PAIR_BITS + low, high - low, n_threads)
        pairs, moved = moved, pairs
    return pairs


def bucket_offsets(pairs, width, threads=None):
    """Where the bucket of each number begins in sorted pairs: (2**width + 1,) uint32.

    The last one is the number of pairs, of which there must be less than ``MAX_SORTED_ROWS``.
    """
    n_threads = usable_threads(threads)
    offsets = np.empty((1 << width) + 1, np.uint32)
    if not len(pairs):
        offsets[:] = 0
    for begin, end, work in pair_launches(len(pairs), n_threads):
        OFFSETS(n_threads, pairs, begin, end, offsets, work=work)
    return offsets
