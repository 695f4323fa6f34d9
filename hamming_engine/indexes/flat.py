"""Exact search over codes held in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..kernels.topk import MAX_BITS
from .scan import RadiusScan, RangeResult, SearchResult, TopKScan


def search(
    query_codes: ArrayLike,
    codes: ArrayLike,
    k: int = 10,
    *,
    where: ArrayLike | None = None,
    threads: int | None = None,
) -> SearchResult:
    """The k codes nearest to each query by Hamming distance, exactly.

    Parameters
    ----------
    query_codes : (n_queries, n_words) or (n_words,) uint64
    codes : (n, n_words) uint64
        Contiguous and aligned arrays are used as they are, others are copied.
    k : int
        Results a query, at least 1.
    where : (n,) bool or (m,) int, optional
        Only these rows: a mask over all of them, or their numbers.
    threads : int, optional
        At most this many threads; all by default. One query alone uses all of them too.

    Returns
    -------
    distances : (n_queries, min(k, rows allowed)) int32
        In bits, ascending, ties by row; the same whatever the number of threads.
    rows : (n_queries, min(k, rows allowed)) int64

    Raises
    ------
    TypeError, ValueError
        Where an argument has the wrong type, shape or value; the message says which.

    Notes
    -----
    A bounded max-heap a query, after a comparison with its root in vector code. Pad bits are not
    known here and count like others; ``FlatIndex`` knows ``n_bits`` and verifies them.
    """
    rows = checks.codes(codes, "codes")
    queries = checks.codes(query_codes, "query_codes")
    if queries.shape[1] != rows.shape[1]:
        raise ValueError(
            f"query_codes have {queries.shape[1]} words a code, codes have {rows.shape[1]}"
        )
    if 64 * rows.shape[1] > MAX_BITS:
        raise ValueError(
            f"codes must have at most {MAX_BITS // 64} words a code, got {rows.shape[1]}"
        )
    return _search(queries, rows, k, where, threads)


def _search(
    queries: NDArray[np.uint64],
    codes: NDArray[np.uint64],
    k: Any,
    where: Any,
    threads: Any,
) -> SearchResult:
    k = checks.integer(k, "k", 1)
    mask, n_allowed = _row_mask(where, len(codes))
    scan = TopKScan(queries, min(k, n_allowed), len(codes), checks.threads(threads))
    scan.scan(0, codes, mask)
    return scan.result()


def _row_mask(where: Any, n_rows: int) -> tuple[NDArray[np.bool_] | None, int]:
    """The mask that ``where`` means, and how many rows it lets through."""
    if where is None:
        return None, n_rows
    if checks.is_mask(where):
        mask = checks.mask(where, n_rows)
    else:
        rows = checks.array(where, "where")
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise TypeError(
                f"where must be a bool mask or a 1-d array of row numbers, "
                f"got {rows.dtype} of shape {rows.shape}"
            )
        if rows.size and (rows.min() < 0 or rows.max() >= n_rows):
            outside = rows[(rows < 0) | (rows >= n_rows)][0]
            raise ValueError(f"where names row {outside}, there are {n_rows}")
        mask = checks.mask_of_rows(rows.astype(np.int64), n_rows)
    return mask, int(np.count_nonzero(mask))


class FlatIndex:
    """Exact Hamming search over codes in memory; rows are numbered as they were added.

    Parameters
    ----------
    n_bits : int
        Bits in a code, from 1 up; a code takes ``ceil(n_bits / 64)`` words.

    Examples
    --------
    >>> import numpy as np, hamming_engine as he
    >>> embeddings = np.eye(4, 100, dtype=np.float32)
    >>> index = he.FlatIndex(n_bits=100)
    >>> index.add(he.pack_signs(embeddings))
    >>> index.search(he.pack_signs(embeddings[2]), k=2)
    SearchResult(distances=array([[0, 2]], dtype=int32), rows=array([[2, 0]]))
    """

    def __init__(self, n_bits: int) -> None:
        self.n_bits = checks.integer(n_bits, "n_bits", 1)
        if self.n_bits > MAX_BITS:
            raise ValueError(f"n_bits must be at most {MAX_BITS}, got {n_bits}")
        self._room = np.empty((0, checks.words_for(self.n_bits)), np.uint64)
        self._n = 0

    @property
    def codes(self) -> NDArray[np.uint64]:
        """The codes held, (len(self), n_words) uint64, read-only."""
        return checks.frozen(self._room[: self._n])

    def add(self, codes: ArrayLike) -> None:
        """Append codes; they get the next row numbers.

        Parameters
        ----------
        codes : (n, n_words) or (n_words,) uint64

        Raises
        ------
        TypeError, ValueError
            Where they are not codes of ``n_bits`` bits; nothing is added then.
        """
        new = checks.codes(codes, "codes", self.n_bits)
        n = self._n + len(new)
        if n > len(self._room):
            # Growing by half keeps the copying to a few times the data over any number of adds.
            room = np.empty((max(n, len(self._room) * 3 // 2), new.shape[1]), np.uint64)
            room[: self._n] = self._room[: self._n]
            self._room = room
        self._room[self._n : n] = new
        self._n = n

    def search(
        self,
        query_codes: ArrayLike,
        k: int = 10,
        *,
        where: ArrayLike | None = None,
        threads: int | None = None,
    ) -> SearchResult:
        """The k nearest rows of each query; see `hamming_engine.search`."""
        queries = checks.codes(query_codes, "query_codes", self.n_bits)
        return _search(queries, self.codes, k, where, threads)

    def range_search(
        self,
        query_codes: ArrayLike,
        radius: int,
        *,
        where: ArrayLike | None = None,
        threads: int | None = None,
    ) -> RangeResult:
        """All rows with a distance of at most ``radius``.

        Parameters
        ----------
        query_codes : (n_queries, n_words) or (n_words,) uint64
        radius : int
            In bits; rows at this very distance are in.
        where : (n,) bool or (m,) int, optional
            Only these rows: a mask over all of them, or their numbers.
        threads : int, optional
            At most this many threads; all by default.

        Returns
        -------
        offsets : (n_queries + 1,) int64
            Results of query ``i`` are ``offsets[i]`` to ``offsets[i + 1]`` of the other two.
        distances : (n_results,) int32
            In bits, ascending within a query, ties by row.
        rows : (n_results,) int64
        """
        queries = checks.codes(query_codes, "query_codes", self.n_bits)
        radius = min(checks.integer(radius, "radius", 0), self.n_bits)
        codes = self.codes  # taken once: another thread may be adding
        mask, _ = _row_mask(where, len(codes))
        scan = RadiusScan(queries, radius, checks.threads(threads))
        scan.scan(0, codes, mask)
        return scan.result()

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return f"FlatIndex(n_bits={self.n_bits}), {self._n:,} codes"
