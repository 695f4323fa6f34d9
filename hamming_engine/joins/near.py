"""All pairs of different codes within a radius, by the method that is estimated to be faster.

* *Scan*: four queries at once against blocks of 64 rows, from the first row on that can be asked
  for, so of a join with itself the upper triangle alone. Its work does not depend on the codes.
* *Parts*: only codes that agree in some part are compared; see ``kernels.buckets``. How many those
  are depends on the codes: it is counted in a sample. Real codes have much larger buckets than
  random bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import frozen
from ..held import HeldCodes
from ..kernels.buckets import MANY, NEAR_IN_BUCKETS
from ..kernels.columns import BLOCK_ROWS
from ..kernels.launch import WORK_PER_LAUNCH, usable_threads
from ..kernels.methods import best_method
from ..kernels.pairs import NEAR_BLOCKS, NEAR_ROWS, OVERFLOW, PAIR_SHIFT
from ..kernels.substrings import bucket_offsets
from .distinct import Codes, Distinct, Rows
from .parts import (
    Part,
    Sorted,
    cuts,
    gathered,
    key_bits_for,
    keys,
    make_part,
    n_flips_of,
    sorted_by_key,
    stacked,
    varying_bits,
)

QUERIES_PER_CELL = 512  # of a launch: ready they take up to 32 bytes for one of theirs
# A word takes a fraction of the work that `WORK_PER_LAUNCH` speaks of.
_WORDS_PER_LAUNCH = 8 * WORK_PER_LAUNCH
_KEPT_BYTES = 1 << 30  # of rows in the orders of parts
_ROOM = 1 << 20  # pairs of a cell and launch, 12 MiB

# What things take, in nanoseconds of one thread (Zen 5, AVX-512, a busy machine). Fitted to 85,000
# codes of sentences, 384 bits and 128 of them, at radii from 2 to 50, and to random codes of 64
# bits; at radius 40 of 384 bits parts took 1,150 ms where the scan took 1,000.
_SCAN_A_WORD = 0.04
_COMPARE_A_WORD = 0.06  # of codes of one word, or in blocks
_COMPARE_A_LONG_WORD = 0.7  # of several, row by row
_BEGIN_A_BUCKET = 45.0  # for each query, where buckets hold a row or more
_LOOK_UP = 8.0  # a bucket, where it may be empty
_SORT_A_ROW = 50.0  # by one part, and to copy it
_SAMPLE = 1 << 15  # rows


def no_bar(n: int) -> None:
    """In the place of a bar's ``update``."""


class Batch(NamedTuple):
    """Some pairs.

    Attributes
    ----------
    pairs : (n,) int64
        ``query << 32 | row``.
    distances : (n,) int32
    """

    pairs: NDArray[np.int64]
    distances: NDArray[np.int32]


class Asked(NamedTuple):
    """Which pairs are asked for: those where ``last`` of the row is above ``reach`` of the query.

    Attributes
    ----------
    reach : (n_queries,) int64
    last : (n_rows,) int64
        Ascending.
    """

    reach: Rows
    last: Rows


class Near:
    """Rows, made ready to be joined with queries.

    Parameters
    ----------
    rows : Distinct
    radius : int
    threads : int or None
    queries : Distinct
        All of them or some that are like them, for the estimate.
    n_queries : int
        How many there will be.
    """

    def __init__(
        self,
        rows: Distinct,
        radius: int,
        threads: int | None,
        queries: Distinct,
        n_queries: int | None = None,
    ) -> None:
        self.rows = rows
        self._radius = radius
        self._threads = threads
        self._n_cells = usable_threads(threads)
        n = len(queries.codes) if n_queries is None else n_queries
        self._parts = choose_parts(queries.codes, rows.codes, n, radius, queries is rows)
        self._held: HeldCodes | None = None
        self._sorted: dict[int, tuple[Sorted, NDArray[np.uint32]]] = {}

    def batches(
        self, queries: Distinct, asked: Asked, update: Callable[[int], Any] = no_bar
    ) -> Iterator[Batch]:
        """The pairs of queries and rows that are asked for.

        Where the queries are the rows themselves every pair is compared once, and comes in both
        directions where both are asked for.

        Parameters
        ----------
        queries : Distinct
        asked : Asked
        update : callable, optional
            Called with numbers of rows of the queries that are done.
        """
        n, n_rows = len(queries.codes), len(queries.group_of)
        if not n or not len(self.rows.codes):
            update(n_rows)
            return
        n_done = 0

        def done(n_more: int) -> None:
            nonlocal n_done
            before, n_done = n_done, n_done + n_more
            update(n_rows * n_done // n - n_rows * before // n)

        if self._parts is None:
            yield from self._scan(queries.codes, asked, done)
        else:
            yield from self._in_parts(self._parts, queries.codes, asked, done)

    def _room(self, n_pairs: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        n = self._n_cells * max(BLOCK_ROWS, min(n_pairs, _ROOM))
        return np.empty(n, np.int64), np.empty(n, np.int32)

    def _scan(self, queries: Codes, asked: Asked, update: Callable[[int], Any]) -> Iterator[Batch]:
        if self._held is None:
            held = HeldCodes(queries.shape[1])
            held.append(self.rows.codes)
            self._held = held
        n_rows = len(self.rows.codes)
        # Suffix minima: queries whose rows begin earlier may come after others.
        begin_row = np.searchsorted(asked.last, asked.reach, side="right")
        begin_row = frozen(np.minimum.accumulate(begin_row[::-1])[::-1].astype(np.int64))
        room = self._room(len(queries) * n_rows)
        step = self._n_cells * QUERIES_PER_CELL
        for first in range(0, len(queries), step):
            some = queries[first : first + step]
            most_rows = _WORDS_PER_LAUNCH * self._n_cells // some.size
            for piece in self._held.pieces(n_rows):
                for part in piece.split(max(BLOCK_ROWS, most_rows // BLOCK_ROWS * BLOCK_ROWS)):
                    if part.first_row + part.n_rows > begin_row[first]:
                        yield from self._scan_part(some, first, part, begin_row, asked, room)
            update(len(some))

    def _scan_part(
        self, some: Codes, first: int, part: Any, begin_row: Rows, asked: Asked, room: Any
    ) -> Iterator[Batch]:
        n_found = np.zeros(self._n_cells, np.int64)
        rest = first, part.first_row, begin_row, self._radius, *asked, *room, n_found
        work = some.size * part.n_rows
        if part.codes.ndim == 3:
            method = best_method()
            NEAR_BLOCKS(self._n_cells, method, some, part.codes, part.n_rows, *rest, work=work)
        else:
            NEAR_ROWS(self._n_cells, some, part.codes, *rest, work=work)
        if (n_found != OVERFLOW).all():
            yield from _noted(room, n_found)
        elif part.n_rows > BLOCK_ROWS:
            half = -(-part.n_rows // 2 // BLOCK_ROWS) * BLOCK_ROWS
            for smaller in part.split(half):
                yield from self._scan_part(some, first, smaller, begin_row, asked, room)
        else:
            half = -(-len(some) // 2)
            for begin in range(0, len(some), half):
                fewer = some[begin : begin + half]
                yield from self._scan_part(fewer, first + begin, part, begin_row, asked, room)

    def _in_parts(
        self, parts: Sequence[Part], queries: Codes, asked: Asked, update: Callable[[int], Any]
    ) -> Iterator[Batch]:
        rows = self.rows.codes
        symmetric = queries is rows
        if symmetric:  # no code is compared with itself
            alike = np.flatnonzero(asked.last > asked.reach)
            yield Batch(alike << PAIR_SHIFT | alike, np.zeros(len(alike), np.int32))
        masks, rests = stacked(parts)
        room = self._room(len(queries) * len(rows))
        for i, part in enumerate(parts):
            of_rows, offsets = self._sorted_rows(i, part, keep=not symmetric)
            if symmetric:
                by_key = of_rows
            else:
                keyed = sorted_by_key(queries, part, self._threads)
                by_key = gathered(queries, keyed, self._threads)
            sides = by_key.codes, by_key.keyed, of_rows.codes, of_rows.keyed, offsets
            rest = part.flips, self._radius, masks, rests, i, *asked
            yield from self._launches(symmetric, sides, rest, room)
            update(len(queries) * (i + 1) // len(parts) - len(queries) * i // len(parts))

    def _sorted_rows(
        self, number: int, part: Part, keep: bool
    ) -> tuple[Sorted, NDArray[np.uint32]]:
        """Rows in the order of a part's keys, and where their buckets begin.

        Queries that come a few at a time would wait for it every time, so it is kept where there
        is room.
        """
        if number in self._sorted:
            return self._sorted[number]
        rows = self.rows.codes
        keyed = sorted_by_key(rows, part, self._threads)
        offsets = frozen(bucket_offsets(keyed, part.key_bits, self._threads))
        made = gathered(rows, keyed, self._threads), offsets
        n_bytes = keyed.nbytes + rows.nbytes + offsets.nbytes
        if keep and n_bytes * (1 + len(self._sorted)) <= _KEPT_BYTES:
            self._sorted[number] = made
        return made

    def _launches(self, symmetric: bool, sides: Any, rest: Any, room: Any) -> Iterator[Batch]:
        n_cells, n_words = self._n_cells, sides[0].shape[1]
        edges = len(sides[1]) * np.arange(n_cells + 1) // n_cells
        begins, ends = edges[:-1].copy(), edges[1:].copy()
        n_found = np.zeros(n_cells, np.int64)
        most_queries = 1 << 20
        while (begins < ends).any():
            before = begins.copy()
            NEAR_IN_BUCKETS(
                n_cells,
                best_method(),
                symmetric,
                begins,
                ends,
                WORK_PER_LAUNCH,
                most_queries,
                *sides,
                *rest,
                *room,
                n_found,
                work=float((ends - begins).sum()) * 32 * n_words,
            )
            yield from _noted(room, n_found)
            stuck = (begins == before) & (begins < ends)
            if stuck.any():
                if most_queries > 1:
                    most_queries //= 16
                else:
                    room = tuple(np.empty(2 * len(array), array.dtype) for array in room)
            _share_anew(begins, ends)


def _noted(room: Any, n_found: NDArray[np.int64]) -> Iterator[Batch]:
    """What cells have noted, copied."""
    pairs, distances = room
    step = len(pairs) // len(n_found)
    for cell in np.flatnonzero(n_found).tolist():
        mine = slice(cell * step, cell * step + int(n_found[cell]))
        yield Batch(pairs[mine].copy(), distances[mine].copy())


def _share_anew(begins: Rows, ends: Rows) -> None:
    """Give cells that have nothing left half of what the others have."""
    for cell in np.flatnonzero(begins == ends).tolist():
        most = int(np.argmax(ends - begins))
        half = int(ends[most] - begins[most]) // 2
        if half:
            begins[cell], ends[cell] = ends[most] - half, ends[most]
            ends[most] -= half


# The estimate.


class _Estimate(NamedTuple):
    """Of one part: how many rows are compared, and how large a query's own bucket is."""

    n_compared: float
    bucket: float


def _cost_of(
    estimate: _Estimate, n_flips: int, n_queries: int, n_rows: int, n_words: int, symmetric: bool
) -> float:
    """Nanoseconds that a part takes, of one thread."""
    share = 0.5 if symmetric else 1.0
    bucket = max(1.0, estimate.bucket)
    look_ups = n_queries * n_flips / bucket * _LOOK_UP
    fast = n_words == 1 or bucket >= MANY
    a_word = _COMPARE_A_WORD if fast else _COMPARE_A_LONG_WORD
    compared = estimate.n_compared * (a_word * n_words + _BEGIN_A_BUCKET / bucket)
    n_sorted = n_rows if symmetric else n_queries + n_rows
    return n_sorted * _SORT_A_ROW + look_ups + share * compared


def choose_parts(
    queries: Codes, rows: Codes, n_queries: int, radius: int, symmetric: bool
) -> list[Part] | None:
    """The parts by which a join is estimated to be fastest, or None where a scan is.

    Parameters
    ----------
    queries, rows : (n, n_words) uint64
        ``queries`` may be some of many.
    n_queries : int
        All of them.
    radius : int
    symmetric : bool
        Whether queries are the rows.
    """
    n_rows, n_words = rows.shape
    bits = varying_bits(queries, rows)
    share = 0.5 if symmetric else 1.0
    best, cost = None, share * n_queries * n_rows * n_words * _SCAN_A_WORD
    if not len(bits) or not n_queries or not n_rows:
        return None
    most_key_bits = key_bits_for(n_rows)
    sample = _sample(queries), _sample(rows)

    options = []
    for cut in cuts(len(bits), radius):
        # Of random bits; real ones are never better.
        least = 0.0
        for begin, end, rest in cut:
            key_bits = min(end - begin, most_key_bits)
            n_flips = n_flips_of(end - begin, rest)
            bucket = n_rows / 2.0**key_bits
            estimate = _Estimate(n_queries * n_flips * bucket, bucket)
            least += _cost_of(estimate, n_flips, n_queries, n_rows, n_words, symmetric)
        options.append((least, cut))
    for least, cut in sorted(options, key=lambda option: option[0]):
        if least >= cost:
            break
        parts = [
            make_part(bits[begin:end], n_words, rest, most_key_bits) for begin, end, rest in cut
        ]
        total = 0.0
        for part in parts:
            estimate = _counted(part, *sample, n_queries, n_rows, symmetric)
            total += _cost_of(estimate, part.flips.size, n_queries, n_rows, n_words, symmetric)
            if total >= cost:
                break
        else:
            best, cost = parts, total
    return best


def _sample(codes: Codes) -> Codes:
    """Rows spread over all of them."""
    step = -(-len(codes) // _SAMPLE)
    return frozen(codes[::step]) if step > 1 else codes


def _counted(
    part: Part, queries: Codes, rows: Codes, n_queries: int, n_rows: int, symmetric: bool
) -> _Estimate:
    """What a sample says of a part."""
    of_queries, of_rows = keys(queries, part), keys(rows, part)
    counts = np.bincount(of_rows, minlength=1 << part.key_bits)
    own = int(counts[of_queries].sum())
    others = sum(int(counts[of_queries ^ int(flip)].sum()) for flip in part.flips[1:])
    n, m = len(queries), len(rows)
    scale = n_rows / m
    if symmetric:  # each code is in its own bucket, once
        own -= n
        scale = (n_rows - 1) / max(1, m - 1)
    return _Estimate((own + others) / n * scale * n_queries, own / n * scale)
