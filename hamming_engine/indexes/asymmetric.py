"""Exact search by the float query against codes, as an accumulator over pieces of codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import frozen
from ..held import NO_FACTORS, Piece, aligned_bytes
from ..kernels.find import QUERIES_AT_ONCE
from ..kernels.launch import WORK_PER_LAUNCH, usable_threads
from ..kernels.methods import best_method, weighted_tables
from ..kernels.scores import CODE_SCORES
from ..kernels.topk import keys_of_reservoirs, new_reservoirs, reservoir_words, rows_of_keys
from ..kernels.weighted import (
    BEST_BLOCKS,
    BEST_ROWS,
    N_PARAMETERS,
    PREPARE,
    best_blocks,
    best_rows,
    table_bytes,
)
from .scan import _BestScan

Take = Callable[[NDArray[np.int64]], tuple[NDArray[np.uint64], NDArray[np.float32]]]
Prepared = tuple[int, NDArray[np.uint8], NDArray[np.int16], NDArray[np.float64]]


class ScoredResult(NamedTuple):
    """The best rows of each query, ordered by (score descending, row).

    Attributes
    ----------
    scores : (n_queries, k) float32
        Higher is better.
    rows : (n_queries, k) int64
    """

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]


def score_rows(take: Take, weights: NDArray[np.float32], rows: NDArray[np.int64]) -> ScoredResult:
    """Score found rows by weights that are not rounded, and order them.

    Parameters
    ----------
    take : callable
        Gives the codes and factors of rows, (n, n_words) and (n, 2) or (n, 0).
    weights : (n_queries, n_bits) float32
    rows : (n_queries, k) int64

    Raises
    ------
    ValueError
        Where a score does not fit into float32.
    """
    codes, factors = take(rows.reshape(-1))
    places = frozen(np.arange(rows.size))
    found = np.empty(rows.size, np.float32)
    if rows.size:
        CODE_SCORES(
            usable_threads(None),
            frozen(weights),
            frozen(np.zeros(len(weights))),
            frozen(codes).view(np.uint8),
            frozen(factors if factors.shape[1] else NO_FACTORS),
            0,
            places,
            places,
            found,
            work=rows.size * weights.shape[1],
        )
    if not np.isfinite(found).all():
        raise ValueError("query_codes and factors are too large: scores do not fit into float32")
    scores = found.reshape(rows.shape)
    best = np.lexsort((rows, -scores), axis=1)
    return ScoredResult(
        np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
    )


def bytes_per_query(n_words: int, k: int, n_slabs: int) -> int:
    """Bytes that an `AsymmetricScan` takes for each query, at most."""
    tables = int(table_bytes(weighted_tables(best_method()), 8 * n_words))
    units_and_weights = 64 * n_words * (2 + 4 + 4)
    return tables + units_and_weights + 8 * n_slabs * int(reservoir_words(k))


def prepare(weights: NDArray[np.float32], by: int, n_threads: int) -> Prepared:
    """Queries as scans by weights take them; see ``kernels.weighted``.

    Parameters
    ----------
    weights : (n_queries, n_bits) float32
    by : int
        Which tables, as ``kernels.methods.weighted_tables`` says.
    n_threads : int
    """
    n_queries, n_bits = weights.shape
    n_bytes = 8 * -(-n_bits // 64)
    padded = np.zeros((n_queries, 8 * n_bytes), np.float32)
    padded[:, :n_bits] = weights
    bytes_of_query = int(table_bytes(by, n_bytes))
    tables = aligned_bytes(n_queries * bytes_of_query)
    units = np.empty(padded.shape, np.int16)
    parameters = np.zeros((n_queries, N_PARAMETERS), np.float64)
    work = 100 * padded.shape[1]  # a query
    n_at_once = 2 * WORK_PER_LAUNCH * n_threads // work
    step = max(1, n_at_once // QUERIES_AT_ONCE) * QUERIES_AT_ONCE
    for begin in range(0, n_queries, step):
        some = slice(begin, begin + step)
        places = slice(begin * bytes_of_query, (begin + step) * bytes_of_query)
        arguments = frozen(padded[some]), tables[places], units[some], parameters[some]
        PREPARE(n_threads, by, *arguments, work=work * len(padded[some]))
    return by, frozen(tables), frozen(units), frozen(parameters)


class AsymmetricScan(_BestScan):
    """The k rows with the best scores for each query over the pieces scanned so far.

    A row scores ``f * (weights . signs) + g``; signs are +1 for the ones of its code and -1 for the
    zeros, f and g are its factors, 1 and 0 where a piece has none. Weights are rounded to some five
    bits and scores to fifteen binary digits, ties by row: see ``kernels.weighted``. The result does
    not depend on threads, pieces or processor.

    Parameters
    ----------
    weights : (n_queries, n_bits) float32
        Finite.
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
        weights: NDArray[np.float32],
        k: int,
        n_rows: int,
        threads: int | None = None,
        *,
        method: int | None = None,
        n_visitors: int = 0,
    ) -> None:
        n_queries, n_bits = weights.shape
        n_words = -(-n_bits // 64)
        super().__init__(n_queries, n_words, k, n_rows, threads, n_visitors, 8 * reservoir_words(k))
        by = weighted_tables(best_method() if method is None else method)
        self._prepared = prepare(weights, by, usable_threads(threads))
        self._kept = new_reservoirs(self._n_lists, n_queries, k)

    def _launch(
        self, begin: int, end: int, piece: Piece, allowed: NDArray[np.uint64], work: int
    ) -> None:
        by, *prepared = self._prepared
        arguments = by, begin, end, *prepared, piece.codes
        rest = piece.first_row, allowed, piece.factors, self._kept[: self._n_slabs]
        if piece.codes.ndim == 3:
            BEST_BLOCKS(self._n_cells, *arguments, piece.n_rows, *rest, work=2 * work)
        else:
            BEST_ROWS(self._n_cells, *arguments, *rest, work=2 * work)

    def _offer(
        self, slab: int, begin: int, end: int, piece: Piece, allowed: NDArray[np.uint64]
    ) -> None:
        by, *prepared = self._prepared
        cell = by, slab, begin, end, *prepared, piece.codes, 0
        rest = piece.first_row, allowed, piece.factors, self._kept
        if piece.codes.ndim == 3:
            best_blocks(*cell, len(piece.codes), piece.n_rows, *rest)
        else:
            best_rows(*cell, piece.n_rows, *rest)

    def keys(self) -> NDArray[np.int64]:
        """Keys of the best rows found, (n_queries, k): their rank, then their row; ascending."""
        if not self._k or not self._n_queries:
            return np.zeros((self._n_queries, self._k), np.int64)
        keys: NDArray[np.int64] = keys_of_reservoirs(self._kept)
        return keys

    def result(self) -> NDArray[np.int64]:
        """The best rows found, (n_queries, k), ordered by (score descending, row)."""
        rows: NDArray[np.int64] = rows_of_keys(self.keys())
        return rows
