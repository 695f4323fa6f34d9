"""Exact search over codes held in memory."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..held import HeldCodes, Piece
from ..kernels.methods import METHODS
from ..kernels.topk import MAX_BITS
from . import asymmetric
from .asymmetric import AsymmetricScan, ScoredResult, score_rows
from .base import Index
from .scan import RadiusScan, RangeResult, SearchResult, TopKScan, bytes_per_query
from .where import rows_of

_BATCH_BYTES = 64 << 20  # what the shortlists of a batch of queries may take


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
    Batches turn the codes to blocks of 64 rows, a tile at a time; ``FlatIndex`` has done that
    when rows were added. Pad bits are not known here and count like others; ``FlatIndex`` knows
    ``n_bits`` and verifies them.
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
    return _search(queries, [Piece(0, len(rows), rows)], len(rows), k, where, threads)


def _search(
    queries: NDArray[Any],
    pieces: list[Piece],
    n_rows: int,
    k: Any,
    where: Any,
    threads: Any,
    removed: NDArray[np.uint64] | None = None,
    method: int | None = None,
) -> SearchResult:
    """By codes, or by float weights; then the distances are none."""
    k = checks.integer(k, "k", 1)
    threads = checks.threads(threads)
    rows = rows_of(where, n_rows, removed)
    k = min(k, n_rows if rows is None else rows.n_allowed)
    by_codes = queries.dtype == np.uint64
    n_words = queries.shape[1] if by_codes else checks.words_for(queries.shape[1])
    of_scan = bytes_per_query if by_codes else asymmetric.bytes_per_query
    batch = max(1, _BATCH_BYTES // of_scan(n_words, k, 1))
    found = []
    for first in range(0, len(queries), batch) or [0]:
        scan: TopKScan | AsymmetricScan = (TopKScan if by_codes else AsymmetricScan)(
            queries[first : first + batch], k, n_rows, threads, method=method
        )
        for piece in pieces:
            scan.scan(piece, rows)
        result = scan.result()
        if not isinstance(result, SearchResult):
            result = SearchResult(np.zeros((0, k), np.int32), result)
        found.append(result)
    if len(found) == 1:
        return found[0]
    return SearchResult(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def checked_factors(value: Any, n_rows: int, wanted: bool) -> NDArray[np.float32]:
    """Factors that a door was given, of so many rows."""
    if not wanted:
        raise ValueError("factors must be None: the index has none, see its factors=True")
    if value is None:
        raise ValueError("factors must be given: the index has two for each row")
    with np.errstate(over="ignore"):
        factors = checks.floats(value, "factors", 2).astype(np.float32)
    if len(factors) != n_rows:
        raise ValueError(f"factors must be two a row: got {len(factors)} for {n_rows} codes")
    if not np.isfinite(factors).all() or (factors[:, 0] < 0).any():
        raise ValueError("factors must be finite, and the first of each row at least 0")
    return factors


class FlatIndex(Index):
    """Exact Hamming search over codes in memory; rows are numbered as they were added.

    Parameters
    ----------
    n_bits : int
        Bits in a code, from 1 up; a code takes ``ceil(n_bits / 64)`` words.
    factors : bool
        Whether each row has two factors beside its code, as some quantisers give them.
    kernel : {"popcount", "table", "plain"}, optional
        How distances are computed: by vector popcount, by table look-up, or by the plain reference
        scan. By default what the processor does best, or what the environment variable
        ``HAMMING_ENGINE_KERNEL`` names. Results are the same.

    Examples
    --------
    >>> import numpy as np, hamming_engine as he
    >>> embeddings = np.eye(4, 100, dtype=np.float32)
    >>> index = he.FlatIndex(n_bits=100)
    >>> index.add(he.pack_signs(embeddings))
    >>> index.search(he.pack_signs(embeddings[2]), k=2)
    SearchResult(distances=array([[0, 2]], dtype=int32), rows=array([[2, 0]]))
    """

    def __init__(self, n_bits: int, *, factors: bool = False, kernel: str | None = None) -> None:
        super().__init__(n_bits)
        checks.choice(kernel, "kernel", (*METHODS, None))
        method = None if kernel is None else METHODS[kernel]
        self._with_factors = bool(factors)
        n_factors = 2 if self._with_factors else 0
        self._held = HeldCodes(checks.words_for(self.n_bits), method, n_factors)

    @property
    def codes(self) -> NDArray[np.uint64]:
        """A copy of all codes, (n, n_words) uint64, by row number; removed ones are among them."""
        return self._held.rows()

    @property
    def n_rows(self) -> int:
        return len(self._held)

    def add(self, codes: ArrayLike, factors: ArrayLike | None = None) -> None:
        """Append codes; they get the next row numbers.

        Parameters
        ----------
        codes : (n, n_words) or (n_words,) uint64
        factors : (n, 2) float32, where the index has factors
            f, at least 0, and g: a row scores ``f * (weights . signs) + g`` in asymmetric search.

        Raises
        ------
        TypeError, ValueError
            Where they are not codes of ``n_bits`` bits, or not such factors; nothing is added then.
        """
        new = checks.codes(codes, "codes", self.n_bits)
        new_factors = None
        if self._with_factors or factors is not None:
            new_factors = checked_factors(factors, len(new), self._with_factors)
        with self._changing:
            self._held.append(new, new_factors)

    @overload
    def search(
        self,
        query_codes: NDArray[np.uint64],
        k: int = ...,
        *,
        method: str | None = ...,
        where: ArrayLike | None = ...,
        threads: int | None = ...,
    ) -> SearchResult: ...

    @overload
    def search(
        self,
        query_codes: NDArray[np.floating[Any]],
        k: int = ...,
        *,
        method: str | None = ...,
        where: ArrayLike | None = ...,
        threads: int | None = ...,
    ) -> ScoredResult: ...

    def search(
        self,
        query_codes: ArrayLike,
        k: int = 10,
        *,
        method: str | None = None,
        where: ArrayLike | None = None,
        threads: int | None = None,
    ) -> SearchResult | ScoredResult:
        """The k best rows of each query.

        Parameters
        ----------
        query_codes : (n_queries, n_words) uint64, or (n_queries, n_bits) float32; or one of them
            Codes for Hamming search; for asymmetric search floats, one for each bit, as
            ``quantizer.weights(queries).weights`` are: with plain signs the vectors themselves.
        k : int
            Results a query, at least 1.
        method : {"hamming", "asymmetric"}, optional
            What the type of the queries says already.
        where : (n,) bool or (m,) int, optional
            Only these rows: a mask over all of them, or their numbers.
        threads : int, optional
            At most this many threads; all by default. One query alone uses all of them too.

        Returns
        -------
        SearchResult
            For codes: distances and rows, as from `hamming_engine.search`.
        ScoredResult
            For floats: scores, ``f * (weights . signs) + g`` with the signs of a row's bits and its
            factors, 1 and 0 without; and rows; by (score descending, row). The rows are found with
            weights rounded to some five bits, and scored with those that were given.

        Raises
        ------
        TypeError, ValueError
            Where an argument has the wrong type, shape or value; the message says which.
        """
        queries = self._queries(query_codes, method)
        removed = self._removed  # these once, and in this order: another thread may change them
        n_rows = len(self._held)
        pieces = list(self._held.pieces(n_rows))
        found = _search(queries, pieces, n_rows, k, where, threads, removed, self._held.method)
        if queries.dtype == np.uint64:
            return found
        return score_rows(self._held.take, queries, found.rows)

    def _within(
        self, queries: NDArray[np.uint64], radius: int, where: Any, threads: int | None
    ) -> RangeResult:
        removed = self._removed
        n_rows = len(self._held)
        rows = rows_of(where, n_rows, removed)
        scan = RadiusScan(queries, radius, threads, method=self._held.method)
        for piece in self._held.pieces(n_rows):
            scan.scan(piece, rows)
        return scan.result()
