"""Exact scores of candidates, from stored vectors or from codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .checks import frozen
from .kernels.launch import WORK_PER_LAUNCH, usable_threads
from .kernels.scores import CODE_SCORES, COSINE, DOT, L2, VECTOR_SCORES
from .quantize import Int8Scale, QueryWeights

Verify = Callable[[NDArray[np.int64]], None]

_METRICS = {"cosine": COSINE, "dot": DOT, "l2": L2}


def _trusted(_places: NDArray[np.int64]) -> None:
    """Nothing to verify: the rows are in memory."""


class Source(NamedTuple):
    """Vectors to score candidates with, usually a map over a file.

    Attributes
    ----------
    first_row : int
        Of the collection.
    rows : (n, dim) float32, float16 or int8
    scale : Int8Scale, optional
        With int8 rows.
    verify : callable, optional
        Called with places in ``rows`` before they are read; raises where they are damaged.
    """

    first_row: int
    rows: NDArray[Any]
    scale: Int8Scale | None = None
    verify: Verify = _trusted


class CodeSource(NamedTuple):
    """Codes to score candidates with.

    Attributes
    ----------
    first_row : int
        Of the collection.
    rows : (n, n_words) uint64
    factors : (n, 2) float32, or (0, 2)
    verify : callable, optional
        As of `Source`.
    """

    first_row: int
    rows: NDArray[np.uint64]
    factors: NDArray[np.float32]
    verify: Verify = _trusted


def exact_scores(
    queries: NDArray[np.float64],
    candidates: NDArray[np.int64],
    sources: Iterable[Source],
    metric: str,
    threads: int | None,
) -> NDArray[np.float32]:
    """Score every candidate by its vector; higher is better.

    Parameters
    ----------
    queries : (n_queries, dim) float64
    candidates : (n_queries, n_candidates) int64
        Rows of the collection.
    sources : iterable of Source
        Together they hold all candidates.
    metric : str
        "dot"; "cosine", 0 where a vector is all zeros; "l2", minus the squared distance.
    threads : int or None

    Returns
    -------
    scores : (n_queries, n_candidates) float32
    """
    if metric == "cosine":
        # A power of two changes no digit, and brings queries of any size into the range in which
        # their squares are floats too.
        _, exponents = np.frexp(np.abs(queries).max(axis=1, keepdims=True))
        queries = np.ldexp(queries, -exponents)
    queries = frozen(queries)
    dim = queries.shape[1]
    n_cells = usable_threads(threads)
    rows = frozen(candidates.reshape(-1))
    scores = np.empty(rows.size, np.float32)
    for source, pairs in _pairs_of(rows, sources, dim, n_cells):
        scale = source.scale or Int8Scale(np.ones(dim, np.float32), np.zeros(dim, np.float32))
        vectors = frozen(source.rows)
        VECTOR_SCORES(
            n_cells,
            queries,
            vectors.view(np.uint16) if vectors.dtype == np.float16 else vectors,
            frozen(scale.scale),
            frozen(scale.offset),
            source.first_row,
            rows,
            pairs,
            _METRICS[metric],
            scores,
            work=pairs.size * dim,
        )
    return scores.reshape(candidates.shape)


def code_scores(
    queries: QueryWeights,
    candidates: NDArray[np.int64],
    sources: Iterable[CodeSource],
    threads: int | None,
) -> NDArray[np.float32]:
    """Score every candidate by its code: ``f * (weights . signs) + g + constants``.

    Parameters
    ----------
    queries : QueryWeights
    candidates : (n_queries, n_candidates) int64
        Rows of the collection.
    sources : iterable of CodeSource
        Together they hold all candidates.
    threads : int or None

    Returns
    -------
    scores : (n_queries, n_candidates) float32
    """
    weights, constants = frozen(queries.weights), frozen(queries.constants)
    n_bits = weights.shape[1]
    n_cells = usable_threads(threads)
    rows = frozen(candidates.reshape(-1))
    scores = np.empty(rows.size, np.float32)
    for source, pairs in _pairs_of(rows, sources, n_bits, n_cells):
        CODE_SCORES(
            n_cells,
            weights,
            constants,
            frozen(source.rows).view(np.uint8),
            frozen(source.factors),
            source.first_row,
            rows,
            pairs,
            scores,
            work=pairs.size * n_bits,
        )
    return scores.reshape(candidates.shape)


def _pairs_of(
    rows: NDArray[np.int64], sources: Iterable[Any], work: int, n_cells: int
) -> Iterator[tuple[Any, NDArray[np.int64]]]:
    """Each source with the places of its rows, as many as a launch takes.

    In row order, so that a disk is read in one direction and a page for all queries at once; in
    memory as they came, where a query stays in the cache.
    """
    step = max(1, WORK_PER_LAUNCH * n_cells // work)
    sources = list(sources)
    if len(sources) == 1 and sources[0].verify is _trusted:
        for first in range(0, rows.size, step):
            yield sources[0], np.arange(first, min(first + step, rows.size))
        return
    order = np.argsort(rows)
    sorted_rows = rows[order]
    for source in sources:
        begin, end = np.searchsorted(
            sorted_rows, (source.first_row, source.first_row + len(source.rows))
        )
        if begin < end:
            source.verify(sorted_rows[begin:end] - source.first_row)
        for first in range(begin, end, step):
            yield source, frozen(order[first : min(first + step, end)])
