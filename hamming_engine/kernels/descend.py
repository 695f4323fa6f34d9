"""The bits whose decoded vector comes nearest to a vector: coordinate descent, with kicks.

For a vector y and a decoder W, bits b of +-1 are sought with the least ||y - b W||^2, that is, the
least b G b - 2 h . b with G = W W^T and h = W y. A bit is turned where that lowers the error, one
after another, until none does or the sweeps are over. From there some bits are turned at random and
the descent goes on; what came out is kept if it is better. That is the iterated local search of
Martinez, Clement, Hoos, Little, "Revisiting additive quantization" (ECCV 2016), section 3.1, with
codebooks of one vector each.

The residual correlations u = h - G b are kept beside the bits: turning bit i changes the error by
4 (u_i b_i + G_ii), and u by a multiple of row i of G.
"""

import numpy as np
from numba import prange

from .compiling import kernel, parallel_kernel
from .launch import Launcher, share

LANES = 16  # bits looked at together; G is padded to a multiple of them


@kernel(fastmath={"contract"})
def _turn(bits, correlations, gram, i):
    """Turn bit ``i``."""
    change = np.float32(2) * bits[i]
    bits[i] = -bits[i]
    row = gram[i]
    for j in range(row.shape[0]):
        correlations[j] += change * row[j]


@kernel(fastmath={"nnan", "nsz"})
def _any_lowers(bits, correlations, diagonal, first):
    """Whether turning one of some bits would lower the error."""
    least = np.float32(0)
    for i in range(first, first + LANES):
        least = min(least, correlations[i] * bits[i] + diagonal[i])
    return least < 0


@kernel()
def _descend(bits, correlations, gram, diagonal, n_sweeps):
    """Sweep over the bits and turn those that lower the error; by how much, over four."""
    gain = 0.0
    for _ in range(n_sweeps):
        turned = False
        for first in range(0, bits.shape[0], LANES):
            if not _any_lowers(bits, correlations, diagonal, first):
                continue
            for i in range(first, first + LANES):
                change = correlations[i] * bits[i] + diagonal[i]
                if change < 0:
                    gain += np.float64(change)
                    _turn(bits, correlations, gram, i)
                    turned = True
        if not turned:
            break
    return gain


@kernel()
def descend_cell(cell, n_cells, bits, correlations, gram, diagonal, n_sweeps, kicks):
    """Improve the bits of a share of the rows.

    bits : (n, m) float32, +1 or -1, updated; m is a multiple of 16, bits beyond those that count
        have zeros in G and ones in its diagonal, so they are never turned
    correlations : (n, m) float32, h - G b, updated
    gram : (m, m) float32
    diagonal : (m,) float32, G_ii
    kicks : (n_kicks, n_turned) int64, the bits that are turned before each further descent
    """
    begin, end = share(bits.shape[0], cell, n_cells)
    best_bits = np.empty(bits.shape[1], np.float32)
    best_correlations = np.empty(bits.shape[1], np.float32)
    for row in range(begin, end):
        b = bits[row]
        u = correlations[row]
        _descend(b, u, gram, diagonal, n_sweeps)
        best_bits[:] = b
        best_correlations[:] = u
        for kick in range(kicks.shape[0]):
            change = 0.0
            for i in kicks[kick]:
                change += np.float64(u[i] * b[i] + diagonal[i])
                _turn(b, u, gram, i)
            change += _descend(b, u, gram, diagonal, n_sweeps)
            # Beyond what rounding may feign.
            if change < -1e-6:
                best_bits[:] = b
                best_correlations[:] = u
            else:
                b[:] = best_bits
                u[:] = best_correlations


@parallel_kernel
def descend_cells(n_cells, done, bits, correlations, gram, diagonal, n_sweeps, kicks):
    for cell in prange(n_cells):
        descend_cell(np.int64(cell), n_cells, bits, correlations, gram, diagonal, n_sweeps, kicks)
        done[cell] = True


DESCEND = Launcher(descend_cell, descend_cells)
