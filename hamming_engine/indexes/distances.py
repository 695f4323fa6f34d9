"""All distances of queries to codes in memory, and the nearest of few codes by them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..held import HeldCodes
from ..kernels.columns import BLOCK_ROWS
from ..kernels.dense import NEAREST_OF
from ..kernels.launch import WORK_PER_LAUNCH, usable_threads
from ..kernels.pairs import PAIRWISE_BLOCKS, PAIRWISE_ROWS
from .scan import SearchResult

# Queries of a launch, by thread: ready they take up to 32 bytes for one of theirs.
_QUERIES_PER_CELL = 256


def write_distances(
    queries: NDArray[np.uint64], held: HeldCodes, out: NDArray[Any], threads: int | None
) -> None:
    """Write all distances into a C-contiguous (n_queries, n) array of an integer type."""
    n_rows = out.shape[1]
    flat = out.view(np.ndarray).reshape(-1)
    n_cells = usable_threads(threads)
    # Distances are written for less than half of a word's work each, but memory may be slow.
    step = n_cells * _QUERIES_PER_CELL
    for first in range(0, len(queries), step):
        some = queries[first : first + step]
        rows_at_once = WORK_PER_LAUNCH * n_cells // (len(some) * some.shape[1])
        for piece in held.pieces(n_rows):
            for part in piece.split(max(BLOCK_ROWS, rows_at_once // BLOCK_ROWS * BLOCK_ROWS)):
                rest = first, part.first_row, n_rows, flat
                work = some.size * part.n_rows
                if part.codes.ndim == 3:
                    arguments = held.method, some, part.codes, part.n_rows
                    PAIRWISE_BLOCKS(n_cells, *arguments, *rest, work=work)
                else:
                    PAIRWISE_ROWS(n_cells, some, part.codes, *rest, work=work)


def nearest_of_few(
    queries: NDArray[np.uint64], held: HeldCodes, k: int, threads: int | None
) -> SearchResult:
    """The k nearest of all rows, of which there are at least so many, as `TopKScan` finds them.

    Takes two bytes for each query and row.
    """
    n_queries, n_rows = len(queries), len(held)
    distances = np.empty((n_queries, n_rows), np.uint16)
    write_distances(queries, held, distances, threads)
    found = SearchResult(np.empty((n_queries, k), np.int32), np.empty((n_queries, k), np.int64))
    if found.rows.size:
        n_cells = usable_threads(threads)
        n_bits = 64 * queries.shape[1]
        NEAREST_OF(n_cells, distances, n_bits, *found, work=2 * distances.size)
    return found
