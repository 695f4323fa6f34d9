"""Exact scores of candidates, a (query, row) pair at a time.

Sums are formed in float64: products of float32 and float16 are exact there, so a score, rounded to
float32 at the end, hardly ever depends on the order of the sum. And each pair is summed by the same
loop wherever its row lies, so a score never depends on threads, blocks or memory.
"""

import numpy as np
from numba import prange, types
from numba.extending import overload

from .compiling import kernel, parallel_kernel
from .intrinsics import as_float64, prefetch
from .launch import Launcher, share

DOT, COSINE, L2 = 0, 1, 2

# Only what lets LLVM vectorise the sums; NaN and infinity keep their meaning.
_SUMMED_IN_ANY_ORDER = {"reassoc", "contract", "nsz"}

_LINE_BYTES = 64
# Candidates lie anywhere, and no processor guesses where. 384 float16 in memory take 50 ns with the
# eighth row from here asked for, 57 with the fourth, 92 with the next, 340 without.
_BYTES_AHEAD = 8192


def value_of(vector, scale, offset, j):
    """A stored component as it was meant; only int8 is scaled."""
    value = as_float64(vector[j])
    return float(offset[j]) + float(scale[j]) * value if vector.dtype == np.int8 else value


@overload(value_of, inline="always")
def _compile_value_of(vector, scale, offset, j):
    if vector.dtype == types.int8:
        return lambda vector, scale, offset, j: (
            np.float64(offset[j]) + np.float64(scale[j]) * as_float64(vector[j])
        )
    return lambda vector, scale, offset, j: as_float64(vector[j])  # noqa: ARG005


@kernel(fastmath=_SUMMED_IN_ANY_ORDER)
def _score(metric, query, vector, scale, offset):
    """One score; a loop for each metric, with the sums that it needs."""
    dim = query.shape[0]
    dot = 0.0
    if metric == DOT:
        for j in range(dim):
            dot += query[j] * value_of(vector, scale, offset, j)
        return dot
    if metric == L2:
        square = 0.0
        for j in range(dim):
            difference = query[j] - value_of(vector, scale, offset, j)
            square += difference * difference
        return -square
    query_square = 0.0
    row_square = 0.0
    for j in range(dim):
        value = value_of(vector, scale, offset, j)
        dot += query[j] * value
        query_square += query[j] * query[j]
        row_square += value * value
    # Roots before the product: the squares of two small or large vectors leave float64 together.
    norms = np.sqrt(query_square) * np.sqrt(row_square)
    return dot / norms if norms > 0 else 0.0


@kernel(fastmath=_SUMMED_IN_ANY_ORDER)
def vector_cell(
    cell, n_cells, queries, vectors, scale, offset, first_row, rows, pairs, metric, out
):
    """Score one share of the pairs against stored vectors.

    queries : (n_queries, dim) float64
    vectors : (n, dim) float32, uint16 (the bits of float16) or int8, rows ``first_row`` and on
    scale, offset : (dim,) float32; an int8 value means ``offset + scale * value``
    rows : (n_queries * n_candidates,) int64
    pairs : (n_pairs,) int64, places in ``rows`` that lie in these vectors
    out : (n_queries * n_candidates,) float32, written at ``pairs``
    """
    begin, end = share(pairs.shape[0], cell, n_cells)
    n_candidates = rows.shape[0] // queries.shape[0]
    dim = vectors.shape[1]
    values = vectors.reshape(-1)
    values_a_line = _LINE_BYTES // vectors.itemsize
    n_ahead = max(1, _BYTES_AHEAD // (dim * vectors.itemsize))
    for i in range(begin, end):
        if i + n_ahead < end:
            at = (rows[pairs[i + n_ahead]] - first_row) * dim
            for j in range(0, dim, values_a_line):
                prefetch(values, at + j)
        pair = pairs[i]
        query = queries[pair // n_candidates]
        vector = vectors[rows[pair] - first_row]
        out[pair] = _score(metric, query, vector, scale, offset)


@parallel_kernel
def vector_cells(
    n_cells, done, queries, vectors, scale, offset, first_row, rows, pairs, metric, out
):
    for cell in prange(n_cells):
        vector_cell(
            np.int64(cell),
            n_cells,
            queries,
            vectors,
            scale,
            offset,
            first_row,
            rows,
            pairs,
            metric,
            out,
        )
        done[cell] = True


@kernel(fastmath=_SUMMED_IN_ANY_ORDER)
def code_cell(cell, n_cells, weights, constants, codes, factors, first_row, rows, pairs, out):
    """Score one share of the pairs against codes: ``f * (weights . signs) + g + constant``.

    weights : (n_queries, n_bits) float32
    constants : (n_queries,) float64
    codes : (n, n_words * 8) uint8, rows ``first_row`` and on
    factors : (n, 2) float32, f and g of these rows, or (0, 2) for 1 and 0
    rows, pairs, out : as for ``vector_cell``
    """
    begin, end = share(pairs.shape[0], cell, n_cells)
    n_candidates = rows.shape[0] // weights.shape[0]
    for i in range(begin, end):
        pair = pairs[i]
        query = pair // n_candidates
        row = rows[pair] - first_row
        weight = weights[query]
        code = codes[row]
        dot = 0.0
        for j in range(weight.shape[0]):
            sign = 1.0 if (code[j >> 3] >> (7 - (j & 7))) & 1 else -1.0
            dot += np.float64(weight[j]) * sign
        if factors.shape[0] != 0:
            dot = np.float64(factors[row, 0]) * dot + np.float64(factors[row, 1])
        out[pair] = dot + constants[query]


@parallel_kernel
def code_cells(n_cells, done, weights, constants, codes, factors, first_row, rows, pairs, out):
    for cell in prange(n_cells):
        code_cell(
            np.int64(cell),
            n_cells,
            weights,
            constants,
            codes,
            factors,
            first_row,
            rows,
            pairs,
            out,
        )
        done[cell] = True


VECTOR_SCORES = Launcher(vector_cell, vector_cells)
CODE_SCORES = Launcher(code_cell, code_cells)
