"""The nearest of few rows, from all their distances.

Where a good part of all rows is wanted, as of the centres of cells, it is faster to write down
every distance and count them than to keep the best so far: 64 of 1,166 rows of 384 bits take 1.3 us
a query in place of 5.5, 16 of them 1.6 in place of 2.5, and 16 of 4,096 rows of 256 bits 3.0 in
place of 3.3 (Zen 5).
"""

import numpy as np
from numba import prange

from .compiling import kernel, parallel_kernel
from .launch import Launcher, share


@kernel()
def nearest_of_cell(cell, n_cells, distances, n_bits, nearest, rows):
    """The nearest rows of a share of the queries, ordered by (distance, row).

    Sorting by counting (Knuth, "The Art of Computer Programming", volume 3, section 5.2, algorithm
    D), stopped at the last row that is wanted.

    distances : (n_queries, n_rows) uint16, at most ``n_bits``
    nearest : (n_queries, k) int32, written; k is at least 1 and at most n_rows
    rows : (n_queries, k) int64, written
    """
    n_rows = distances.shape[1]
    k = nearest.shape[1]
    values = distances.reshape(-1)
    places = np.empty(n_bits + 2, np.int64)
    begin, end = share(distances.shape[0], cell, n_cells)
    for q in range(begin, end):
        at = q * n_rows
        places[:] = 0
        for row in range(n_rows):
            places[np.int64(values[at + row])] += 1
        limit = 0
        place = 0
        while place < k:
            n = places[limit]
            places[limit] = place
            place += n
            limit += 1
        for row in range(n_rows):
            distance = np.int64(values[at + row])
            if distance < limit:
                place = places[distance]
                places[distance] = place + 1
                if place < k:
                    nearest[q, place] = distance
                    rows[q, place] = row


@parallel_kernel
def nearest_of_cells(n_cells, done, distances, n_bits, nearest, rows):
    for cell in prange(n_cells):
        nearest_of_cell(np.int64(cell), n_cells, distances, n_bits, nearest, rows)
        done[cell] = True


NEAREST_OF = Launcher(nearest_of_cell, nearest_of_cells)
