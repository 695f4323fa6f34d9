"""Exact search as an accumulator over blocks of codes.

Whoever holds codes, in memory or on disk, feeds ``(first_row, block)`` in ascending order and asks
for the result at the end. Blocks may be cut anywhere: results are ordered by (distance, row), which
does not depend on the cuts, the threads, or how the work was split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import frozen
from ..kernels.launch import SMALL_WORK, WORK_PER_LAUNCH, share, usable_threads
from ..kernels.scan import QUERIES_AT_ONCE, RADIUS, TOPK
from ..kernels.topk import new_heaps, split_keys

_QUERIES_PER_LAUNCH = 4096
_PAIRS_PER_RADIUS_LAUNCH = 1 << 20  # 16 MiB of room for results

_ALL_ROWS = frozen(np.zeros(0, np.bool_))

Mask = NDArray[np.bool_]
Codes = NDArray[np.uint64]


class SearchResult(NamedTuple):
    """The nearest rows of each query, ordered by (distance, row).

    Attributes
    ----------
    distances : (n_queries, k) int32
        Hamming distances, in bits.
    rows : (n_queries, k) int64
    """

    distances: NDArray[np.int32]
    rows: NDArray[np.int64]


class RangeResult(NamedTuple):
    """All rows within a radius of each query, ordered by (query, distance, row).

    Attributes
    ----------
    offsets : (n_queries + 1,) int64
        The results of query ``i`` are ``offsets[i]`` to ``offsets[i + 1]`` of the other two.
    distances : (n_results,) int32
        Hamming distances, in bits.
    rows : (n_results,) int64
    """

    offsets: NDArray[np.int64]
    distances: NDArray[np.int32]
    rows: NDArray[np.int64]


def _slices(n_rows: int, rows_per_launch: float) -> Iterator[slice]:
    step = max(64, int(rows_per_launch))
    for begin in range(0, n_rows, step):
        yield slice(begin, min(begin + step, n_rows))


class TopKScan:
    """The k nearest rows of each query over the blocks scanned so far.

    Parameters
    ----------
    queries : (n_queries, n_words) uint64
    k : int
        At most the number of rows that will be let through, so that every place gets filled.
    n_rows : int
        About how many rows will be scanned; only speed depends on it.
    threads : int, optional
    """

    def __init__(self, queries: Codes, k: int, n_rows: int, threads: int | None = None) -> None:
        small = n_rows * queries.size < SMALL_WORK
        n_threads = 1 if small else usable_threads(threads)
        self._k = k
        self._queries = queries
        # Few queries: split the rows, or most threads would stand idle. Many: split the queries,
        # which needs one heap a query instead of one a thread, and a merge of none.
        few = len(queries) < QUERIES_AT_ONCE * n_threads
        self._heaps = new_heaps(n_threads if few else 1, len(queries), k)
        self._n_cells = n_threads

    def scan(self, first_row: int, codes: Codes, mask: Mask | None = None) -> None:
        """Offer a block of rows; ``mask`` has a bool for each of them."""
        if not self._k:
            return
        mask = _ALL_ROWS if mask is None else mask
        n_words = codes.shape[1]
        for first_query in range(0, len(self._queries), _QUERIES_PER_LAUNCH):
            batch = slice(first_query, first_query + _QUERIES_PER_LAUNCH)
            queries = self._queries[batch]
            work_per_row = len(queries) * n_words
            for rows in _slices(len(codes), WORK_PER_LAUNCH * self._n_cells / work_per_row):
                TOPK(
                    self._n_cells,
                    queries,
                    codes[rows],
                    first_row + rows.start,
                    mask[rows] if len(mask) else mask,
                    self._heaps[:, batch],
                    work=work_per_row * (rows.stop - rows.start),
                )

    def result(self) -> SearchResult:
        """The nearest rows found."""
        n_slabs, n_queries, k = self._heaps.shape
        keys = self._heaps.transpose(1, 0, 2).reshape(n_queries, n_slabs * k)
        if n_slabs > 1 and k:
            keys = np.partition(keys, k - 1, axis=1)[:, :k]
        return SearchResult(*split_keys(np.sort(keys, axis=1)))


class RadiusScan:
    """All rows within a radius of each query, over the blocks scanned so far.

    Parameters
    ----------
    queries : (n_queries, n_words) uint64
    radius : int
        Rows at this distance are in.
    threads : int, optional
    """

    def __init__(self, queries: Codes, radius: int, threads: int | None = None) -> None:
        self._queries = queries
        self._radius = radius
        self._n_cells = usable_threads(threads)
        self._found: list[tuple[Any, Any]] = []

    def scan(self, first_row: int, codes: Codes, mask: Mask | None = None) -> None:
        """Collect from a block of rows; ``mask`` has a bool for each of them."""
        mask = _ALL_ROWS if mask is None else mask
        for first_query in range(0, len(self._queries), _QUERIES_PER_LAUNCH):
            queries = self._queries[first_query : first_query + _QUERIES_PER_LAUNCH]
            for rows in _slices(len(codes), _PAIRS_PER_RADIUS_LAUNCH / len(queries)):
                n_rows = rows.stop - rows.start
                found_query = np.empty(n_rows * len(queries), np.int64)
                found_key = np.empty_like(found_query)
                n = np.zeros(self._n_cells, np.int64)
                RADIUS(
                    self._n_cells,
                    queries,
                    codes[rows],
                    first_row + rows.start,
                    mask[rows] if len(mask) else mask,
                    self._radius,
                    found_query,
                    found_key,
                    n,
                    work=found_query.size * codes.shape[1],
                )
                for cell in np.flatnonzero(n):
                    place = share(n_rows, int(cell), self._n_cells)[0] * len(queries)
                    mine = slice(place, place + n[cell])
                    self._found.append((found_query[mine] + first_query, found_key[mine].copy()))

    def result(self) -> RangeResult:
        """The rows found."""
        none = np.zeros(0, np.int64)
        query = np.concatenate([none, *(query for query, _ in self._found)])
        keys = np.concatenate([none, *(keys for _, keys in self._found)])
        order = np.lexsort((keys, query))
        offsets = np.searchsorted(query[order], np.arange(len(self._queries) + 1))
        return RangeResult(offsets, *split_keys(keys[order]))
