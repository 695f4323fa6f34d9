"""Exact search as an accumulator over pieces of codes.

Whoever holds codes, in memory or on disk, feeds pieces of them and asks for the result at the end.
Pieces may be cut anywhere: results are ordered by (distance, row), which does not depend on the
cuts, the threads, or how the work was split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..held import Piece
from ..kernels.columns import BLOCK_ROWS
from ..kernels.launch import SMALL_WORK, WORK_PER_LAUNCH, share, usable_threads
from ..kernels.methods import PLAIN, best_method
from ..kernels.scan import (
    QUERIES_AT_ONCE,
    RADIUS_BLOCKS,
    RADIUS_ROWS,
    TOPK_BLOCKS,
    TOPK_ROWS,
    topk_blocks,
    topk_rows,
)
from ..kernels.topk import (
    gather_results,
    new_heaps,
    new_shortlists,
    shortlist_words,
    split_keys,
)
from .where import ALL_ROWS, MAX_PIECE_ROWS, Where

# Queries are made ready for every launch, which takes up to 32 bytes for one of theirs: so a launch
# takes not many of them, and many rows. By cell.
_QUERIES_PER_CELL = 256
_READY_BYTES = 1 << 20
_LIST_BYTES = 64 << 20  # what splitting the rows may take for shortlists
_WORDS_PER_LAUNCH = 2 * WORK_PER_LAUNCH
# Words scanned for all queries, below which other threads would wake up too late to help: 2 MiB, 20
# to 30 us. Scans take less time for a word than the work of which `SMALL_WORK` speaks.
SMALL_SCAN = 2 * SMALL_WORK
_QUERIES_PER_RADIUS_LAUNCH = 128
_PAIRS_PER_RADIUS_LAUNCH = 1 << 20  # 16 MiB of room for results

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


def _slices(piece: Piece, rows_per_launch: float, where: Where | None) -> Iterator[Any]:
    """A piece in parts of about so many rows, each with the bits of the rows let through."""
    if where is None and piece.n_rows <= rows_per_launch:
        yield piece, ALL_ROWS
        return
    step = int(rows_per_launch if where is None else min(rows_per_launch, MAX_PIECE_ROWS))
    step = max(BLOCK_ROWS, step // BLOCK_ROWS * BLOCK_ROWS)
    for part in piece.split(step):
        yield part, ALL_ROWS if where is None else where.words(part.first_row, part.n_rows)


def _queries_per_cell(n_words: int) -> int:
    return max(QUERIES_AT_ONCE, min(_QUERIES_PER_CELL, _READY_BYTES // (32 * 8 * n_words)))


def bytes_per_query(n_words: int, k: int, n_slabs: int) -> int:
    """Bytes that a `TopKScan` takes for each query, at most."""
    return 8 * n_slabs * int(shortlist_words(64 * n_words, k))


class TopKScan:
    """The k nearest rows of each query over the pieces scanned so far.

    Parameters
    ----------
    queries : (n_queries, n_words) uint64
    k : int
        At most the number of rows that will be let through, so that every place gets filled.
    n_rows : int
        About how many rows will be scanned; only speed depends on it.
    threads : int, optional
    method : int, optional
        One of ``kernels.methods``; the best for the processor by default. The plain one takes no
        blocks.
    n_visitors : int
        How many threads will call `visit`.
    """

    def __init__(
        self,
        queries: Codes,
        k: int,
        n_rows: int,
        threads: int | None = None,
        *,
        method: int | None = None,
        n_visitors: int = 0,
    ) -> None:
        self._n_cells = 1 if n_rows * queries.size < SMALL_SCAN else usable_threads(threads)
        self._k = k
        self._queries = queries
        self._method = best_method() if method is None else method
        # Few queries: split the rows, or most threads would stand idle. Many: split the queries,
        # which needs one shortlist a query instead of one a thread, and a merge of none.
        few = len(queries) < QUERIES_AT_ONCE * self._n_cells
        if few:
            list_bytes = len(queries) * bytes_per_query(queries.shape[1], k, 1)
            self._n_cells = min(self._n_cells, max(1, _LIST_BYTES // max(1, list_bytes)))
        self._n_slabs = self._n_cells if few else 1
        n_slabs = max(self._n_slabs, n_visitors)
        if self._method == PLAIN:
            self._kept = new_heaps(n_slabs, len(queries), k)
        else:
            self._kept = new_shortlists(n_slabs, len(queries), 64 * queries.shape[1], k)

    def scan(self, piece: Piece, where: Where | None = None) -> None:
        """Offer the rows of a piece, which come after those of all pieces before."""
        if not self._k:
            return
        n_words = self._queries.shape[1]
        kept = self._kept[: self._n_slabs]
        step = self._n_cells * _queries_per_cell(n_words)
        for first_query in range(0, len(self._queries), step):
            batch = slice(first_query, first_query + step)
            queries = self._queries[batch]
            work_per_row = len(queries) * n_words
            rows_per_launch = _WORDS_PER_LAUNCH * self._n_cells / work_per_row
            for part, allowed in _slices(piece, rows_per_launch, where):
                work = work_per_row * part.n_rows
                rest = part.first_row, allowed, kept[:, batch]
                arguments = self._n_cells, self._method, queries, part.codes
                if part.codes.ndim == 3:
                    TOPK_BLOCKS(*arguments, part.n_rows, *rest, work=work)
                else:
                    TOPK_ROWS(*arguments, *rest, work=work)

    def visit(self, visitor: int, piece: Piece, where: Where | None = None) -> None:
        """Offer rows on the calling thread alone, while other visitors offer others.

        Parameters
        ----------
        visitor : int
            The number of this thread, below ``n_visitors``. The rows of each come in ascending
            order.
        piece : Piece
            Some MiB at most: it is scanned at once.
        where : Where, optional
        """
        if not self._k:
            return
        first_row, n_rows, codes = piece[:3]
        allowed = ALL_ROWS if where is None else where.words(first_row, n_rows)
        step = _queries_per_cell(self._queries.shape[1])
        for begin in range(0, len(self._queries), step):
            part = begin, min(begin + step, len(self._queries)), self._queries
            cell = self._method, visitor, *part, codes, 0
            rest = first_row, allowed, self._kept
            if codes.ndim == 3:
                topk_blocks(*cell, len(codes), n_rows, *rest)
            else:
                topk_rows(*cell, n_rows, *rest)

    def result(self) -> SearchResult:
        """The nearest rows found; asked for once."""
        shape = len(self._queries), self._k
        found = SearchResult(np.empty(shape, np.int32), np.empty(shape, np.int64))
        if self._k:
            gather_results(self._kept, self._method == PLAIN, *found)
        return found


class RadiusScan:
    """All rows within a radius of each query, over the pieces scanned so far.

    Parameters
    ----------
    queries : (n_queries, n_words) uint64
    radius : int
        Rows at this distance are in; at most the number of bits.
    threads : int, optional
    method : int, optional
        See `TopKScan`.
    """

    def __init__(
        self, queries: Codes, radius: int, threads: int | None = None, *, method: int | None = None
    ) -> None:
        self._queries = queries
        self._radius = radius
        self._n_cells = usable_threads(threads)
        self._method = best_method() if method is None else method
        self._found: list[NDArray[np.int64]] = []

    def scan(self, piece: Piece, where: Where | None = None) -> None:
        """Collect from a piece."""
        step = min(_QUERIES_PER_RADIUS_LAUNCH, _queries_per_cell(self._queries.shape[1]))
        for first_query in range(0, len(self._queries), step):
            queries = self._queries[first_query : first_query + step]
            for part, allowed in _slices(piece, _PAIRS_PER_RADIUS_LAUNCH / len(queries), where):
                work = queries.size * part.n_rows
                n_cells = 1 if work < SMALL_SCAN else self._n_cells
                found = np.empty((2, part.n_rows * len(queries)), np.int64)
                n_found = np.zeros(n_cells, np.int64)
                rest = part.first_row, allowed, self._radius, found, n_found
                if part.codes.ndim == 3:
                    arguments = n_cells, self._method, queries, part.codes, part.n_rows
                    RADIUS_BLOCKS(*arguments, *rest, work=work)
                else:
                    RADIUS_ROWS(n_cells, queries, part.codes, *rest, work=work)
                n_blocks = -(-part.n_rows // BLOCK_ROWS)
                for cell in np.flatnonzero(n_found):
                    first_block, _ = share(n_blocks, int(cell), n_cells)
                    place = first_block * BLOCK_ROWS * len(queries)
                    mine = found[:, place : place + n_found[cell]].copy()
                    mine[0] += first_query
                    self._found.append(mine)

    def result(self) -> RangeResult:
        """The rows found."""
        query, keys = np.concatenate([np.zeros((2, 0), np.int64), *self._found], axis=1)
        order = np.lexsort((keys, query))
        offsets = np.searchsorted(query[order], np.arange(len(self._queries) + 1))
        return RangeResult(offsets, *split_keys(keys[order]))
