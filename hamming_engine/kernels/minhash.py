"""Loops of the sketches: minima of hashes, sums of signs, and products with hyperplanes.

Hashes come from one 64-bit mixer, the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable
pseudorandom number generators", OOPSLA 2014, section 3; its constants are variant 13 of Stafford,
"Better bit mixing", 2011). It is a bijection, so ``mix(token ^ key)`` orders the 64-bit tokens as a
permutation that the key chooses.

Minima do not depend on their order. Floats are added in one fixed order, which is that of the
tokens or dimensions, and without fused multiplication: sums have the same bits on every processor,
whatever the threads.
"""

import numpy as np
from numba import prange

from .compiling import kernel, parallel_kernel
from .launch import Launcher, share

ODD = np.uint64(0x9E37_79B9_7F4A_7C15)  # between the states of SplitMix64
_MULTIPLY_1 = np.uint64(0xBF58_476D_1CE4_E5B9)
_MULTIPLY_2 = np.uint64(0x94D0_49BB_1331_11EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)
_1 = np.uint64(1)
WORD = 64  # bits in a word of a code; so many sums at a time stay in the L1 cache


def mix(z):
    """A 64-bit permutation that looks random; of uint64 scalars in kernels, of arrays elsewhere."""
    z = (z ^ (z >> _30)) * _MULTIPLY_1
    z = (z ^ (z >> _27)) * _MULTIPLY_2
    return z ^ (z >> _31)


_mix = kernel(forceinline=True)(mix)


@kernel()
def minima_cell(cell, n_cells, tokens, first, last, offsets, keys, signatures, edges, edge_rows):
    """Take one share of tokens ``first`` to ``last`` into the minima of their sets.

    Tokens are shared, not sets, so that one large set is work for all cells. A cell writes the sets
    that begin in its share; the one that began before goes to an edge, to be merged.

    tokens : (n_tokens,) uint64
    offsets : (n + 1,) int64, where sets begin in ``tokens``; none is empty
    keys : (n_hashes,) uint64
    signatures : (n, n_hashes) uint64, lowered
    edges : (n_cells, n_hashes) uint64, lowered
    edge_rows : (n_cells,) int64, becomes the set that an edge belongs to; -1 where there is none
    """
    begin, end = share(last - first, cell, n_cells)
    begin, end = first + begin, first + end
    row = np.searchsorted(offsets, begin, side="right") - 1
    while begin < end:
        stop = min(end, offsets[row + 1])
        if offsets[row] < begin:
            edge_rows[cell] = row
            minima = edges[cell]
        else:
            minima = signatures[row]
        for i in range(begin, stop):
            token = tokens[i]
            for j in range(keys.shape[0]):
                value = _mix(token ^ keys[j])
                if value < minima[j]:
                    minima[j] = value
        begin = stop
        row += 1


@parallel_kernel
def minima_cells(n_cells, done, tokens, first, last, offsets, keys, signatures, edges, edge_rows):
    for cell in prange(n_cells):
        minima_cell(
            np.int64(cell),
            n_cells,
            tokens,
            first,
            last,
            offsets,
            keys,
            signatures,
            edges,
            edge_rows,
        )
        done[cell] = True


@kernel()
def sign_sum_cell(cell, n_cells, tokens, weights, offsets, keys, sums):
    """Add the weights of the documents that begin in one share of the tokens, with random signs.

    tokens : (n_tokens,) uint64
    weights : (n_tokens,) float64
    offsets : (n + 1,) int64, where documents begin in ``tokens``
    keys : (ceil(n_bits / 64),) uint64
    sums : (n, n_bits) float64, zeros that are added to
    """
    begin, end = share(tokens.shape[0], cell, n_cells)
    n_bits = sums.shape[1]
    for row in range(np.searchsorted(offsets, begin), np.searchsorted(offsets, end)):
        for i in range(offsets[row], offsets[row + 1]):
            weight = weights[i]
            for word in range(keys.shape[0]):
                signs = _mix(tokens[i] ^ keys[word])
                some = sums[row, word * WORD : min(word * WORD + WORD, n_bits)]
                for j in range(some.shape[0]):
                    some[j] += weight if (signs >> np.uint64(j)) & _1 else -weight


@parallel_kernel
def sign_sum_cells(n_cells, done, tokens, weights, offsets, keys, sums):
    for cell in prange(n_cells):
        sign_sum_cell(np.int64(cell), n_cells, tokens, weights, offsets, keys, sums)
        done[cell] = True


@kernel()
def project_cell(cell, n_cells, vectors, planes, sums):
    """Multiply one share of the vectors with all planes, a word of planes at a time.

    vectors : (n, dim) float64
    planes : (ceil(n_bits / 64), dim, 64) float64
    sums : (n, n_bits) float64, written
    """
    begin, end = share(vectors.shape[0], cell, n_cells)
    n_bits = sums.shape[1]
    some = np.empty(WORD)
    for word in range(planes.shape[0]):
        n_used = min(WORD, n_bits - word * WORD)
        for row in range(begin, end):
            some[:] = 0.0
            for i in range(vectors.shape[1]):
                value = vectors[row, i]
                for j in range(WORD):
                    some[j] += value * planes[word, i, j]
            sums[row, word * WORD : word * WORD + n_used] = some[:n_used]


@parallel_kernel
def project_cells(n_cells, done, vectors, planes, sums):
    for cell in prange(n_cells):
        project_cell(np.int64(cell), n_cells, vectors, planes, sums)
        done[cell] = True


MINIMA = Launcher(minima_cell, minima_cells)
SIGN_SUMS = Launcher(sign_sum_cell, sign_sum_cells)
PROJECT = Launcher(project_cell, project_cells)
