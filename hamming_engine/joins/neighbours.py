"""The nearest other rows of every row."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .. import checks
from ..held import HeldCodes
from ..indexes.scan import SearchResult, TopKScan, bytes_per_query
from ..optional import progress_bar
from .source import code_array

_BATCH_BYTES = 64 << 20  # what the shortlists of a batch of rows may take


def knn_graph(
    codes: ArrayLike, k: int, *, threads: int | None = None, progress: bool = False
) -> SearchResult:
    """The k nearest other rows of every row, exactly.

    Parameters
    ----------
    codes : (n, n_words) uint64
    k : int
        At least 1.
    threads : int, optional
        At most this many threads; all by default.
    progress : bool
        Show a bar; needs tqdm.

    Returns
    -------
    distances : (n, min(k, n - 1)) int32
        In bits, ascending, ties by row.
    rows : (n, min(k, n - 1)) int64
        Never the row itself; others with the same code are among them.

    Raises
    ------
    TypeError, ValueError
        Where an argument has the wrong type, shape or value; the message says which.
    """
    rows = code_array(codes, "codes")
    k = checks.integer(k, "k", 1)
    threads = checks.threads(threads)
    n, n_words = rows.shape
    k = max(0, min(k, n - 1))
    graph = SearchResult(np.empty((n, k), np.int32), np.empty((n, k), np.int64))
    if not k:
        return graph
    held = HeldCodes(n_words)
    held.append(rows)
    batch = max(1, _BATCH_BYTES // bytes_per_query(n_words, k + 1, 1))
    with progress_bar(progress, n, "row") as bar:
        for first in range(0, n, batch):
            queries = rows[first : first + batch]
            scan = TopKScan(queries, k + 1, n, threads, method=held.method)
            for piece in held.pieces(n):
                scan.scan(piece)
            # One more than asked for: the row itself, or if as many others have its code and come
            # before it, one that is too many.
            found = scan.result()
            own = found.rows == np.arange(first, first + len(queries))[:, None]
            own[:, -1] |= ~own.any(axis=1)
            here = slice(first, first + len(queries))
            graph.distances[here] = found.distances[~own].reshape(-1, k)
            graph.rows[here] = found.rows[~own].reshape(-1, k)
            bar.update(len(queries))
    return graph
