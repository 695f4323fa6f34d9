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
from ..kernels.find import QUERIES_AT_ONCE
from ..kernels.launch import SMALL_WORK, WORK_PER_LAUNCH, checkpoint, share, usable_threads
from ..kernels.methods import PLAIN, best_method
from ..kernels.scan import (
    RADIUS_BLOCKS,
    RADIUS_ROWS,
    TOPK_BLOCKS,
    TOPK_ROWS,
    topk_blocks,
    topk_rows,
)
from ..kernels.topk import (
    gather_results,
    make_keys,
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


class _BestScan:
    """What scans for the k best rows of each query have in common: how the work is cut.

    Parameters
    ----------
    n_queries, n_words : int
    k : int
    n_rows : int
        About how many rows will be scanned.
    threads : int or None
    n_visitors : int
        How many threads will call `visit`.
    bytes_per_query : int
        What the rows kept of a query take.
    """

    def __init__(
        self,
        n_queries: int,
        n_words: int,
        k: int,
        n_rows: int,
        threads: int | None,
        n_visitors: int,
        bytes_per_query: int,
    ) -> None:
        self._n_queries, self._n_words, self._k = n_queries, n_words, k
        n_cells = 1 if n_rows * n_queries * n_words < SMALL_SCAN else usable_threads(threads)
        # Few queries: split the rows, or most threads would stand idle. Many: split the queries,
        # which needs one list a query instead of one a thread, and a merge of none.
        few = n_queries < QUERIES_AT_ONCE * n_cells
        if few:
            n_cells = min(n_cells, max(1, _LIST_BYTES // max(1, n_queries * bytes_per_query)))
        self._n_cells = n_cells
        self._n_slabs = n_cells if few else 1
        self._n_lists = max(self._n_slabs, n_visitors)

    def scan(self, piece: Piece, where: Where | None = None) -> None:
        """Offer the rows of a piece, which come after those of all pieces before."""
        if not self._k:
            return
        step = self._n_cells * _queries_per_cell(self._n_words)
        for begin in range(0, self._n_queries, step):
            end = min(begin + step, self._n_queries)
            work_per_row = (end - begin) * self._n_words
            rows_per_launch = _WORDS_PER_LAUNCH * self._n_cells / work_per_row
            for part, allowed in _slices(piece, rows_per_launch, where):
                self._launch(begin, end, part, allowed, work_per_row * part.n_rows)

    def visit(self, visitor: int, piece: Piece, where: Where | None = None) -> None:
        """Offer rows on the calling thread alone, while other visitors offer others.

        Parameters
        ----------
        visitor : int
            The number of this thread, below ``n_visitors``. The rows of each come in ascending
            order.
        piece : Piece
            Some MiB at most: some queries scan all of it at once.
        where : Where, optional
        """
        if not self._k:
            return
        allowed = ALL_ROWS if where is None else where.words(piece.first_row, piece.n_rows)
        step = _queries_per_cell(self._n_words)
        for begin in range(0, self._n_queries, step):
            checkpoint()
            end = min(begin + step, self._n_queries)
            self._offer(visitor, begin, end, piece, allowed)

    def _launch(
        self, begin: int, end: int, piece: Piece, allowed: NDArray[np.uint64], work: int
    ) -> None:
        """Offer a piece to queries ``begin`` to ``end``, on all threads."""
        raise NotImplementedError

    def _offer(
        self, slab: int, begin: int, end: int, piece: Piece, allowed: NDArray[np.uint64]
    ) -> None:
        """The same on this thread, to the lists of a slab."""
        raise NotImplementedError


class TopKScan(_BestScan):
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
        n_queries, n_words = queries.shape
        super().__init__(
            n_queries, n_words, k, n_rows, threads, n_visitors, bytes_per_query(n_words, k, 1)
        )
        self._queries = queries
        self._method = best_method() if method is None else method
        if self._method == PLAIN:
            self._kept = new_heaps(self._n_lists, n_queries, k)
        else:
            self._kept = new_shortlists(self._n_lists, n_queries, 64 * n_words, k)

    def _launch(
        self, begin: int, end: int, piece: Piece, allowed: NDArray[np.uint64], work: int
    ) -> None:
        kept = self._kept[: self._n_slabs, begin:end]
        rest = piece.first_row, allowed, kept
        arguments = self._n_cells, self._method, self._queries[begin:end], piece.codes
        if piece.codes.ndim == 3:
            TOPK_BLOCKS(*arguments, piece.n_rows, *rest, work=work)
        else:
            TOPK_ROWS(*arguments, *rest, work=work)

    def _offer(
        self, slab: int, begin: int, end: int, piece: Piece, allowed: NDArray[np.uint64]
    ) -> None:
        cell = self._method, slab, begin, end, self._queries, piece.codes, 0
        rest = piece.first_row, allowed, self._kept
        if piece.codes.ndim == 3:
            topk_blocks(*cell, len(piece.codes), piece.n_rows, *rest)
        else:
            topk_rows(*cell, piece.n_rows, *rest)

    def result(self) -> SearchResult:
        """The nearest rows found; asked for once."""
        shape = self._n_queries, self._k
        found = SearchResult(np.empty(shape, np.int32), np.empty(shape, np.int64))
        if self._k:
            gather_results(self._kept, self._method == PLAIN, *found)
        return found

    def keys(self) -> NDArray[np.int64]:
        """Keys of the same: the distance, then the row; ascending."""
        keys: NDArray[np.int64] = make_keys(*self.result())
        return keys


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

    def add(self, found: NDArray[np.int64]) -> None:
        """Take in rows found elsewhere: queries and keys, (2, n)."""
        self._found.append(found)

    def result(self) -> RangeResult:
        """The rows found."""
        query, keys = np.concatenate([np.zeros((2, 0), np.int64), *self._found], axis=1)
        order = np.lexsort((keys, query))
        offsets = np.searchsorted(query[order], np.arange(len(self._queries) + 1))
        return RangeResult(offsets, *split_keys(keys[order]))
