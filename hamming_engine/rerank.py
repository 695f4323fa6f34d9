"""Exact scores of candidates, from stored vectors or from the codes themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .checks import frozen
from .kernels.launch import WORK_PER_LAUNCH, Launcher, usable_threads
from .kernels.scores import CODE_SCORES, COSINE, DOT, L2, VECTOR_SCORES
from .quantize import Int8Scale

_METRICS = {"cosine": COSINE, "dot": DOT, "l2": L2}


class Source(NamedTuple):
    """Rows to score candidates with, usually a map over a file.

    Attributes
    ----------
    first_row : int
        Of the collection.
    rows : (n, dim) float32, float16 or int8; or (n, n_words) uint64 codes
        Codes stand for vectors of +-1 / sqrt(dim).
    scale : Int8Scale, optional
        With int8 rows.
    """

    first_row: int
    rows: NDArray[Any]
    scale: Int8Scale | None = None


def exact_scores(
    queries: NDArray[np.float64],
    candidates: NDArray[np.int64],
    sources: Iterable[Source],
    metric: str,
    threads: int | None,
) -> NDArray[np.float32]:
    """Score every candidate; higher is better.

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
    rows = frozen(candidates.reshape(-1))
    scores = np.empty(rows.size, np.float32)
    # In row order, so that a disk is read in one direction and a page for all queries at once.
    order = np.argsort(rows, kind="stable")
    sorted_rows = rows[order]
    n_cells = usable_threads(threads)
    step = max(1, WORK_PER_LAUNCH * n_cells // queries.shape[1])
    for source in sources:
        begin, end = np.searchsorted(
            sorted_rows, (source.first_row, source.first_row + len(source.rows))
        )
        launcher, arrays = _kernel_for(source)
        for first in range(begin, end, step):
            pairs = frozen(order[first : min(first + step, end)])
            launcher(
                n_cells,
                queries,
                *arrays,
                source.first_row,
                rows,
                pairs,
                _METRICS[metric],
                scores,
                work=pairs.size * queries.shape[1],
            )
    return scores.reshape(candidates.shape)


def _kernel_for(source: Source) -> tuple[Launcher, tuple[NDArray[Any], ...]]:
    """What scores a source's rows, and the rows as it takes them."""
    rows = frozen(source.rows)
    if rows.dtype == np.uint64:
        return CODE_SCORES, (rows.view(np.uint8),)
    dim = rows.shape[1]
    scale = source.scale or Int8Scale(np.ones(dim, np.float32), np.zeros(dim, np.float32))
    as_stored = rows.view(np.uint16) if rows.dtype == np.float16 else rows
    return VECTOR_SCORES, (as_stored, frozen(scale.scale), frozen(scale.offset))
