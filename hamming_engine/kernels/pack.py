"""Floats to sign bits."""

import numpy as np
from numba import prange

from .compiling import kernel, parallel_kernel
from .intrinsics import ALL_ONES, code_word, finite_lanes, positive_lanes
from .launch import Launcher, share


@kernel()
def pack_cell(cell, n_cells, values, dim, codes, bad_row):
    """Pack one share of the rows; ``bad_row[cell]`` becomes its first row with NaN or infinity.

    values : (n * dim,) int16, int32 or int64, the bits of the floats
    codes : (n, n_words) uint64, written
    bad_row : (n_cells,) int64, -1 where all is well
    """
    begin, end = share(codes.shape[0], cell, n_cells)
    n_whole = dim // 64
    n_rest = dim - n_whole * 64
    beside = np.uint64(64 - n_rest)
    padded = np.zeros(64, values.dtype)
    for row in range(begin, end):
        finite = ALL_ONES
        for word in range(n_whole):
            first = row * dim + word * 64
            finite &= finite_lanes(values, first)
            codes[row, word] = code_word(positive_lanes(values, first))
        if n_rest > 0:
            # The last, incomplete word: load the 64 values that end with the row and shift those
            # beside it out. Copying to a padded buffer instead costs half the speed (the vector
            # load waits for the stores), so only rows with less than 64 values before them do it.
            first = (row + 1) * dim - 64
            if first >= 0:
                finite &= ~((~finite_lanes(values, first)) >> beside)
                codes[row, n_whole] = code_word(positive_lanes(values, first) >> beside)
            else:
                padded[:n_rest] = values[(row + 1) * dim - n_rest : (row + 1) * dim]
                finite &= finite_lanes(padded, 0)
                codes[row, n_whole] = code_word(positive_lanes(padded, 0))
        if finite != ALL_ONES:
            bad_row[cell] = row
            return


@parallel_kernel
def pack_cells(n_cells, done, values, dim, codes, bad_row):
    for cell in prange(n_cells):
        pack_cell(np.int64(cell), n_cells, values, dim, codes, bad_row)
        done[cell] = True


PACK = Launcher(pack_cell, pack_cells)
