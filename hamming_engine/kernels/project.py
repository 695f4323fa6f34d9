"""From vectors to what quantisers take signs of: centred, scaled to unit length, projected.

Every number is summed in an order that depends on its row alone. So a row gets the same code
whatever comes with it, in one append or in many; a product of matrices from a library does not
promise that.
"""

import numpy as np
from numba import prange

from .compiling import kernel, parallel_kernel
from .launch import Launcher, share

_ROWS_AT_ONCE = 8  # go through the matrix together: it does not fit into the first-level cache

# What is measured of each row: its squared length, that of its residual, residual . centre.
SQUARE, LENGTH, SHIFT, N_MEASURES = range(4)


@kernel(fastmath={"reassoc", "contract", "nsz"})
def centre_cell(cell, n_cells, rows, center, normalise, residuals, measures):
    """Centre a share of the rows and scale what is left to unit length.

    rows : (n, dim) float32
    center : (dim,) float32
    normalise : bool, whether rows are scaled to unit length first; all zeros stay
    residuals : (n, dim) float32, written; all zeros where a row is the centre
    measures : (n, 3) float64, written: of the row, normalised or not, its squared length, the
        length of the residual, and its product with the centre; NaN or infinite where the row is
    """
    begin, end = share(rows.shape[0], cell, n_cells)
    dim = rows.shape[1]
    for row in range(begin, end):
        square = 0.0
        for j in range(dim):
            square += np.float64(rows[row, j]) * np.float64(rows[row, j])
        scale = 1.0
        if normalise and square > 0:
            scale = 1 / np.sqrt(square)
            square *= scale * scale
        rest_square = 0.0
        shift = 0.0
        for j in range(dim):
            rest = scale * np.float64(rows[row, j]) - np.float64(center[j])
            rest_square += rest * rest
            shift += rest * np.float64(center[j])
        length = np.sqrt(rest_square)
        per_length = 1 / length if length > 0 else 0.0
        for j in range(dim):
            rest = scale * np.float64(rows[row, j]) - np.float64(center[j])
            residuals[row, j] = np.float32(per_length * rest)
        measures[row, SQUARE] = square
        measures[row, LENGTH] = length
        measures[row, SHIFT] = shift


@parallel_kernel
def centre_cells(n_cells, done, rows, center, normalise, residuals, measures):
    for cell in prange(n_cells):
        centre_cell(np.int64(cell), n_cells, rows, center, normalise, residuals, measures)
        done[cell] = True


@kernel(fastmath={"contract"})
def project_cell(cell, n_cells, rows, columns, out):
    """Multiply a share of the rows by a matrix.

    rows : (n, dim) float32
    columns : (dim, m) float32
    out : (n, m) float32, written
    """
    begin, end = share(rows.shape[0], cell, n_cells)
    dim, m = columns.shape
    sums = np.empty((_ROWS_AT_ONCE, m), np.float32)
    for first in range(begin, end, _ROWS_AT_ONCE):
        n = min(_ROWS_AT_ONCE, end - first)
        sums[:] = 0
        for j in range(0, dim - 1, 2):
            for i in range(n):
                a = rows[first + i, j]
                b = rows[first + i, j + 1]
                for k in range(m):
                    sums[i, k] = (sums[i, k] + a * columns[j, k]) + b * columns[j + 1, k]
        if dim % 2:
            for i in range(n):
                a = rows[first + i, dim - 1]
                for k in range(m):
                    sums[i, k] += a * columns[dim - 1, k]
        out[first : first + n] = sums[:n]


@parallel_kernel
def project_cells(n_cells, done, rows, columns, out):
    for cell in prange(n_cells):
        project_cell(np.int64(cell), n_cells, rows, columns, out)
        done[cell] = True


@kernel()
def hadamard_cell(cell, n_cells, rows, signs):
    """Rotate a share of the rows in place by signs and fast Walsh-Hadamard transforms.

    rows : (n, dim) float32
    signs : (n_rounds, dim) float32, +1 or -1. A round turns signs, then transforms the first or, in
        every other round, the last dimensions, as many as the largest power of two that fits.
    """
    begin, end = share(rows.shape[0], cell, n_cells)
    dim = rows.shape[1]
    width = 1
    while 2 * width <= dim:
        width *= 2
    scale = np.float32(1 / np.sqrt(np.float64(width)))
    for row in range(begin, end):
        values = rows[row]
        for turn in range(signs.shape[0]):
            for j in range(dim):
                values[j] *= signs[turn, j]
            part = values[:width] if turn % 2 == 0 else values[dim - width :]
            half = 1
            while half < width:
                for first in range(0, width, 2 * half):
                    for j in range(first, first + half):
                        a = part[j]
                        b = part[j + half]
                        part[j] = a + b
                        part[j + half] = a - b
                half *= 2
            for j in range(width):
                part[j] *= scale


@parallel_kernel
def hadamard_cells(n_cells, done, rows, signs):
    for cell in prange(n_cells):
        hadamard_cell(np.int64(cell), n_cells, rows, signs)
        done[cell] = True


CENTRE = Launcher(centre_cell, centre_cells)
PROJECT = Launcher(project_cell, project_cells)
HADAMARD = Launcher(hadamard_cell, hadamard_cells)
