"""Joins: all pairs of rows within a radius."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..checks import frozen
from ..kernels.groups import COUNT_ROWS, WRITE_ROWS, count_pairs, place_pairs
from ..kernels.launch import usable_threads
from ..kernels.pairs import PAIR_SHIFT
from ..kernels.substrings import pair_launches
from ..optional import progress_bar
from .distinct import Distinct, distinct
from .near import Asked, Batch, Near, no_bar
from .source import MEMORY_BYTES, Block, Source, check_words

_PIECE_PAIRS = 1 << 22  # of an iterator: 80 MiB, and four times as much while it is made
_PAIRS_PER_LAUNCH = 1 << 20
_ALL = -(1 << 62)  # with every row of the other side
_ROW_MASK = (1 << PAIR_SHIFT) - 1


class JoinResult(NamedTuple):
    """Pairs of rows, ordered by (first, second).

    Attributes
    ----------
    first, second : (n_pairs,) int64
        Row numbers; where codes came from a collection, its ids, in the order of its rows.
    distances : (n_pairs,) int32
        Hamming distances, in bits.
    """

    first: NDArray[Any]
    second: NDArray[Any]
    distances: NDArray[np.int32]


def self_join(
    codes: Any,
    radius: int,
    *,
    threads: int | None = None,
    progress: bool = False,
    memory_bytes: int = MEMORY_BYTES,
) -> JoinResult:
    """All pairs of rows with a distance of at most ``radius``.

    Parameters
    ----------
    codes : (n, n_words) uint64, or Collection
        A collection is read in blocks, each pair of blocks being joined.
    radius : int
        In bits; pairs at this very distance are in.
    threads : int, optional
        At most this many threads; all by default.
    progress : bool
        Show a bar; needs tqdm.
    memory_bytes : int
        Of a collection, what its codes and what is made of them may take, beside its ids and the
        result.

    Returns
    -------
    JoinResult
        Each pair once, ``first`` being before ``second`` in the order of rows; no row is paired
        with itself. The same whatever the number of threads and the method.

    Raises
    ------
    TypeError, ValueError
        Where an argument has the wrong type, shape or value; the message says which.
    MemoryError
        Where the result does not fit into memory; see `iter_self_join`.

    Notes
    -----
    Rows with the same code are compared as one. Small radii are searched by the pigeonhole
    principle, as ``kernels.buckets`` describes it, others by a scan; the method is chosen by an
    estimate from the codes.
    """
    source, radius, threads = _checked(codes, "codes", radius, threads, memory_bytes)
    return _whole(_Join(source, None, radius, threads), progress)


def join(
    a: Any,
    b: Any,
    radius: int,
    *,
    threads: int | None = None,
    progress: bool = False,
    memory_bytes: int = MEMORY_BYTES,
) -> JoinResult:
    """All pairs of a row of ``a`` and a row of ``b`` with a distance of at most ``radius``.

    Parameters
    ----------
    a, b : (n, n_words) uint64, or Collection
    radius, threads, progress, memory_bytes
        See `self_join`.

    Returns
    -------
    JoinResult
        ``first`` are rows of ``a`` and ``second`` rows of ``b``.

    Raises
    ------
    TypeError, ValueError, MemoryError
        See `self_join`.
    """
    source, radius, threads = _checked(a, "a", radius, threads, memory_bytes)
    other = Source(b, "b", memory_bytes, threads)
    check_words(source, other)
    return _whole(_Join(source, other, radius, threads), progress)


def iter_self_join(
    codes: Any,
    radius: int,
    *,
    threads: int | None = None,
    progress: bool = False,
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[JoinResult]:
    """What `self_join` returns, in pieces: for results that are larger than memory.

    Parameters
    ----------
    codes, radius, threads, progress, memory_bytes
        See `self_join`.

    Returns
    -------
    iterator of JoinResult
        Pieces of some million pairs, none empty; all pairs of a row, as ``first``, are in one. Put
        together they are the result of `self_join`.

    Raises
    ------
    TypeError, ValueError
        See `self_join`.
    """
    source, radius, threads = _checked(codes, "codes", radius, threads, memory_bytes)
    return _Join(source, None, radius, threads).pieces(_PIECE_PAIRS, progress)


def iter_join(
    a: Any,
    b: Any,
    radius: int,
    *,
    threads: int | None = None,
    progress: bool = False,
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[JoinResult]:
    """What `join` returns, in pieces: for results that are larger than memory.

    Parameters
    ----------
    a, b, radius, threads, progress, memory_bytes
        See `join`.

    Returns
    -------
    iterator of JoinResult
        See `iter_self_join`.

    Raises
    ------
    TypeError, ValueError
        See `self_join`.
    """
    source, radius, threads = _checked(a, "a", radius, threads, memory_bytes)
    other = Source(b, "b", memory_bytes, threads)
    check_words(source, other)
    return _Join(source, other, radius, threads).pieces(_PIECE_PAIRS, progress)


def _checked(
    codes: Any, name: str, radius: Any, threads: Any, memory_bytes: Any
) -> tuple[Source, int, int | None]:
    radius = checks.integer(radius, "radius", 0)
    threads = checks.threads(threads)
    source = Source(codes, name, checks.integer(memory_bytes, "memory_bytes", 1), threads)
    # A larger one lets no more pairs in, and kernels count distances up to the number of bits.
    return source, min(radius, 64 * source.n_words), threads


def _whole(join: _Join, progress: bool) -> JoinResult:
    pieces = list(join.pieces(None, progress))
    if len(pieces) == 1:
        return pieces[0]
    names = join.first.named(np.zeros(0, np.int64)), join.second.named(np.zeros(0, np.int64))
    pieces.append(JoinResult(*names, np.zeros(0, np.int32)))
    return JoinResult(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))


class _Join:
    """A join of two sources, or of one with itself, by ranges of rows of the first."""

    def __init__(
        self, first: Source, second: Source | None, radius: int, threads: int | None
    ) -> None:
        self.first = first
        self.second = first if second is None else second
        self._with_itself = second is None
        self._radius = radius
        self._threads = threads
        self._n_cells = usable_threads(threads)
        self._near: tuple[Block, Near] | None = None

    def pieces(self, limit: int | None, progress: bool) -> Iterator[JoinResult]:
        """The pairs of more and more rows: about ``limit`` of them, or of whole blocks."""
        with progress_bar(progress, self.first.n_rows, "row") as bar:
            for number in range(len(self.first) if len(self.second) else 0):
                n_rows = len(self.first.block(number).codes)
                update = bar.update if limit is None and len(self.second) == 1 else no_bar
                begin, step = 0, n_rows
                while begin < n_rows:
                    end = min(n_rows, begin + step)
                    found = self._of_rows(number, begin, end, limit, update)
                    if found is None:
                        step = -(-(end - begin) // 2)
                        continue
                    if update is no_bar:
                        bar.update(end - begin)
                    n_found = len(found.first)
                    if n_found:
                        yield JoinResult(
                            self.first.named(found.first),
                            self.second.named(found.second),
                            found.distances,
                        )
                    if limit is not None and end < n_rows:
                        step = max(1, min(2 * step, step * limit // (2 * n_found + 1)))
                    begin = end

    def _of_rows(
        self, number: int, begin: int, end: int, limit: int | None, update: Any
    ) -> JoinResult | None:
        """The pairs of rows ``begin`` to ``end`` of a block, or None where they are too many.

        Those of one row alone are never too many.
        """
        block = self.first.block(number)
        is_whole = end - begin == len(block.codes)
        queries = block.distinct
        if not is_whole:
            queries = distinct(frozen(block.codes[begin:end]), self._threads)
        found: list[JoinResult] = []
        n_found = 0
        for other in range(number if self._with_itself else 0, len(self.second)):
            rows = self.second.block(other)
            near = self._near_to(rows, block.distinct)
            same = self._with_itself and other == number
            reach = queries.first + begin if same else np.full(len(queries.codes), -1)
            asked = Asked(frozen(reach), near.rows.last)
            batches = []
            for batch in near.batches(queries, asked, update):
                batches.append(batch)
                if limit is not None and end - begin > 1:
                    q, row = batch.pairs >> PAIR_SHIFT, batch.pairs & _ROW_MASK
                    n_found += int((queries.sizes[q] * near.rows.sizes[row]).sum())
                    if n_found > limit:
                        return None
            shift = begin if same else _ALL
            first_rows = block.first_row + begin, rows.first_row
            found.append(self._expanded(queries, near.rows, batches, shift, first_rows))
        if len(found) == 1:
            return found[0]
        joined = JoinResult(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))
        order = np.argsort(joined.first, kind="stable")  # blocks are in the order of rows
        return JoinResult(*(array[order] for array in joined))

    def _near_to(self, rows: Block, queries: Distinct) -> Near:
        """Rows made ready, kept until other ones are."""
        if self._near is None or self._near[0] is not rows:
            self._near = None
            near = Near(rows.distinct, self._radius, self._threads, queries)
            self._near = rows, near
        return self._near[1]

    def _expanded(
        self,
        queries: Distinct,
        rows: Distinct,
        batches: list[Batch],
        shift: int,
        first_rows: tuple[int, int],
    ) -> JoinResult:
        """The pairs of rows of pairs of groups, which are taken out of ``batches``."""
        offsets = np.zeros(len(queries.codes) + 1, np.int64)
        for batch in batches:
            count_pairs(batch.pairs, offsets)
        offsets = np.cumsum(offsets)
        groups, bits = np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.int32)
        places = offsets[:-1].copy()
        while batches:
            place_pairs(*batches.pop(), places, groups, bits)
        n_rows, n_cells = len(queries.group_of), self._n_cells
        of_groups = queries.group_of, frozen(offsets), groups
        members = rows.offsets, rows.members
        counts = np.empty(n_rows, np.int64)
        for begin, end, work in pair_launches(n_rows, n_cells):
            COUNT_ROWS(n_cells, begin, end, shift, *of_groups, *members, counts, work=work)
        ends = np.cumsum(counts)
        row_offsets = frozen(np.concatenate([np.zeros(1, np.int64), ends]))
        n = int(row_offsets[-1])
        found = JoinResult(np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int32))
        begin = 0
        while n and begin < n_rows:
            done = int(row_offsets[begin])
            goals = done + _PAIRS_PER_LAUNCH * np.arange(1, n_cells + 1)
            bounds = np.searchsorted(row_offsets, goals, side="right") - 1
            bounds = np.concatenate([[begin], np.maximum(bounds, begin + 1)])
            bounds = np.minimum(bounds, n_rows)
            work = 8 * (int(row_offsets[bounds[-1]]) - done)
            places_of = bits, *members, row_offsets, *first_rows
            WRITE_ROWS(n_cells, frozen(bounds), shift, *of_groups, *places_of, *found, work=work)
            begin = int(bounds[-1])
        return found
