"""What all indexes have in common: rows that are numbered as they come, filters and removal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import bitmaps, checks
from ..forks import ForkSafeLock
from ..kernels.topk import MAX_BITS
from .scan import RangeResult
from .where import Where, row_numbers


class Index:
    """Codes whose rows are numbered as they were added, from 0 on; removed ones keep their number.

    Parameters
    ----------
    n_bits : int
        Bits in a code, from 1 up; a code takes ``ceil(n_bits / 64)`` words.
    """

    LARGE: tuple[str, ...] = ()
    """Arrays of ``state`` that may be verified later than they are read: a row at a time."""

    def __init__(self, n_bits: int) -> None:
        self.n_bits = checks.integer(n_bits, "n_bits", 1)
        if self.n_bits > MAX_BITS:
            raise ValueError(f"n_bits must be at most {MAX_BITS}, got {n_bits}")
        self._removed: NDArray[np.uint64] | None = None
        self._changing = ForkSafeLock()  # searches go on meanwhile, with the rows they found

    @property
    def n_rows(self) -> int:
        """How many row numbers were given out: ``len(self)`` and the removed ones."""
        raise NotImplementedError

    @property
    def rows(self) -> NDArray[np.int64]:
        """The numbers of the rows that are not removed, ascending."""
        removed = self._removed  # first: its rows are among those counted then
        n_rows = self.n_rows
        if removed is None:
            return np.arange(n_rows)
        return np.flatnonzero(~bitmaps.to_bools(removed, 0, n_rows))

    def remove(self, rows: ArrayLike) -> None:
        """Remove rows: no search finds them any more. All others keep their numbers.

        Parameters
        ----------
        rows : (n,) bool or (m,) int
            A mask over all rows, or row numbers; those removed before are ignored.

        Raises
        ------
        TypeError, ValueError
            Where they are not rows of this index; nothing is removed then.
        """
        with self._changing:
            n_rows = self.n_rows
            if checks.is_mask(rows, "rows"):
                removed = bitmaps.from_bools(checks.mask(rows, n_rows, "rows"))
            else:
                removed = bitmaps.from_rows(row_numbers(rows, "rows", n_rows), n_rows)
            if self._removed is not None:
                removed = bitmaps.union(removed, self._removed)
            self._removed = removed  # a new array: searches at work go on with theirs

    def best_keys(
        self,
        queries: NDArray[Any],
        k: int,
        allowed: Where,
        *,
        target_recall: float | None = None,
        threads: int | None = None,
    ) -> NDArray[np.int64]:
        """What ``search`` finds, for those who know rows and filters better.

        Parameters
        ----------
        queries : (n_queries, n_words) uint64, or (n_queries, n_bits) float32 where it takes floats
        k : int
        allowed : Where
            Of a whole that begins with the rows of this index.
        target_recall : float, optional
            Of indexes that do not find all.
        threads : int, optional

        Returns
        -------
        keys : (n_queries, k) int64
            See ``kernels.topk``; `NO_RESULT` where fewer rows are let through.
        """
        raise NotImplementedError

    def range_search(
        self,
        query_codes: ArrayLike,
        radius: int,
        *,
        where: ArrayLike | None = None,
        threads: int | None = None,
    ) -> RangeResult:
        """All rows with a distance of at most ``radius``, exactly.

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

        Raises
        ------
        TypeError, ValueError
            Where an argument has the wrong type, shape or value; the message says which.
        """
        queries = checks.codes(query_codes, "query_codes", self.n_bits)
        radius = min(checks.integer(radius, "radius", 0), self.n_bits)
        return self._within(queries, radius, where, checks.threads(threads))

    def _within(
        self, queries: NDArray[np.uint64], radius: int, where: Any, threads: int | None
    ) -> RangeResult:
        """`range_search` with checked arguments, but for ``where``."""
        raise NotImplementedError

    def _queries(self, query_codes: Any, method: str | None) -> NDArray[Any]:
        """What a door was given: codes, uint64, or weights for asymmetric search, float32."""
        given = checks.array(query_codes, "query_codes")
        checks.choice(method, "method", ("hamming", "asymmetric", None))
        if method is None:
            method = "asymmetric" if given.dtype.kind == "f" else "hamming"
        if method == "hamming":
            return checks.codes(given, "query_codes", self.n_bits)
        with np.errstate(over="ignore"):
            weights = checks.floats(given, "query_codes", self.n_bits).astype(np.float32)
        if not np.isfinite(weights).all():
            raise ValueError(
                "query_codes must be finite in float32, got NaN, infinity or beyond it"
            )
        return weights

    def __len__(self) -> int:
        removed = self._removed  # first: its rows are among those counted then
        n_rows = self.n_rows
        return n_rows if removed is None else Where(n_rows, None, removed).n_allowed

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_bits={self.n_bits}), {len(self):,} codes"
