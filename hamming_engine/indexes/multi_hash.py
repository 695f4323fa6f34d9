"""Exact search over short codes in hash tables of their substrings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import bitmaps, checks
from ..bitmaps import NO_BITS, Words
from ..checks import frozen
from ..held import HeldCodes, Piece
from ..kernels.hashing import (
    FULL,
    NEAREST,
    SCAN,
    SPLIT,
    WITHIN,
    Costs,
    Filter,
    Tables,
    word_beside,
)
from ..kernels.launch import usable_threads
from ..kernels.methods import PLAIN
from ..kernels.substrings import MAX_SORTED_ROWS, bucket_offsets, pair_launches, sorted_pairs
from ..kernels.topk import NO_RESULT, ROW_BITS, make_keys, split_keys
from ..optional import progress_bar
from .base import Index
from .scan import RadiusScan, RangeResult, SearchResult, TopKScan
from .where import Where, rows_of

# Nanoseconds, measured on a Zen 5 core with 10 M codes of 64 bits: a bucket, whose beginning comes
# from memory while others are looked through; a row in it; a word of a scan, for a few queries
# alone, which wait for memory, and for each of many.
_BUCKET_NS = 50.0
_ROW_NS = 0.5
_SCAN_NS_ALONE = 0.23
_SCAN_NS = 0.06
_FEW_QUERIES = 4
_LAUNCH_NS = 25e6  # of a thread, if all its queries cost as much as a scan
_UNITS_PER_QUERY = 6_000  # of the launcher's work: two microseconds

# Words of the last rows, which are scanned: less time than their tables would take.
_TAIL_WORDS = 1 << 12
# The next rows' tables are merged into those before, unless these have so many times the rows. So a
# row is sorted again each time the tables it is in have doubled, and tables are few.
_GROWTH = 2
_BUCKET_ROWS_BITS = 5  # a bucket has about so many rows, as a power of two; see `_width`
_LEAST_WIDTH = 8
_MOST_WIDTH = 28  # 2**28 offsets take a gigabyte
_MAX_TABLE_ROWS = MAX_SORTED_ROWS - 1

# Where a filter lets through one row of so many, these are scanned and no table is used.
_FEW_ROWS = 64
_QUERIES_PER_LAUNCH = 4_096
_ROOM_FOR_FOUND = 1 << 16  # keys of a cell, to begin with

Codes = NDArray[np.uint64]


class _Sorted(NamedTuple):
    """Rows that lie in tables: codes (n, n_words), and what ``kernels.hashing.Tables`` says."""

    first_row: int
    codes: Codes
    width: int
    offsets: NDArray[np.uint32]
    rows: NDArray[np.uint32]
    words: Codes

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.codes, self.offsets, self.rows, self.words))

    @property
    def piece(self) -> Piece:
        return Piece(self.first_row, len(self.codes), self.codes)


class _Held(NamedTuple):
    """All rows at one time: those in tables, in order, and the last ones."""

    parts: tuple[_Sorted, ...]
    tail: HeldCodes

    @property
    def n_sorted(self) -> int:
        return self.parts[-1].first_row + len(self.parts[-1].codes) if self.parts else 0

    @property
    def n_rows(self) -> int:
        return self.n_sorted + len(self.tail)

    def tail_pieces(self, n_rows: int) -> Iterator[Piece]:
        """The last rows, as far as there are ``n_rows``."""
        for piece in self.tail.pieces(n_rows - self.n_sorted):
            yield piece._replace(first_row=piece.first_row + self.n_sorted)


def _width(n_bits: int, n_rows: int, n_substrings: int | None) -> tuple[int, int]:
    """Number of substrings and the bits of each, for so many rows.

    The paper has one row in a bucket, m = bits / log2(n). But to come to one costs a cache miss,
    as much as to look through a hundred rows that lie there. The ten nearest in clusters took, for
    10 M codes of 64 bits, 24, 15 and 55 us with 3, 4 and 5 substrings; for 20 M 23 and 30 with 3
    and 4; for 1 M 8, 11 and 17 with 4, 5 and 6; for 1 M of 256 bits 91, 73 and 257 with 12, 16 and
    20; and for 10 M far away, at 13 bits, 1,417, 271 and 713 with 3, 4 and 5.
    """
    if n_substrings is not None:
        most = max(_LEAST_WIDTH, min(_MOST_WIDTH, math.ceil(math.log2(n_rows))))
        return n_substrings, min(n_bits // n_substrings, most)
    width = max(_LEAST_WIDTH, math.log2(n_rows) - _BUCKET_ROWS_BITS)
    n_substrings = max(1, round(n_bits / width))
    return n_substrings, min(n_bits // n_substrings, _MOST_WIDTH)


def _masks(n_bits: int, n_substrings: int, width: int) -> Codes:
    """The bits of each substring, in the word where it begins and the next one, (m, 2)."""
    masks = np.zeros((n_substrings, 2), np.uint64)
    for i in range(n_substrings):
        dims = np.zeros(64 * (checks.words_for(n_bits) + 1), np.uint8)
        dims[i * width : (i + 1) * width] = 1
        first = i * width // 64
        masks[i] = np.packbits(dims).view(np.uint64)[first : first + 2]
    return masks


class MultiIndexHash(Index):
    """Exact Hamming search over short codes, some 32 to 256 bits, in less time than a scan takes.

    Codes that are near each other agree in one of their substrings but for a bit or two. So there
    is a table for each substring, with the rows in the order of its value, and a query looks where
    its own substrings, and those that differ from them in a few bits, lie. Results are those of
    ``FlatIndex``. How much time it takes depends on how far away the neighbours are: a few
    microseconds for those within three bits among ten million, whatever the codes; about as much as
    the scan, which is then used instead, where the nearest ones are at a quarter of the bits.

    Parameters
    ----------
    n_bits : int
        Bits in a code, from 1 up; a code takes ``ceil(n_bits / 64)`` words.
    n_substrings : int, optional
        Number of tables, at most ``n_bits``. By default, whenever tables are made, so many that a
        bucket has some tens of rows: ``n_bits / (log2(n) - 5)``. A row takes 12 bytes in each.

    Notes
    -----
    Norouzi, Punjani, Fleet: "Fast Exact Search in Hamming Space with Multi-Index Hashing", TPAMI
    2014; see ``kernels.hashing``. Rows that are added lie in tables of their own first, which are
    merged as they grow (Bentley, Saxe: "Decomposable Searching Problems", J. Algorithms 1980).

    Examples
    --------
    >>> import numpy as np, hamming_engine as he
    >>> index = he.MultiIndexHash(n_bits=64)
    >>> index.add(np.arange(100, dtype=np.uint64)[:, None])
    >>> index.search(np.array([64], np.uint64), k=3)
    SearchResult(distances=array([[0, 1, 1]], dtype=int32), rows=array([[64,  0, 65]]))
    """

    def __init__(self, n_bits: int, n_substrings: int | None = None) -> None:
        super().__init__(n_bits)
        if n_substrings is not None:
            n_substrings = checks.integer(n_substrings, "n_substrings", 1)
            if n_substrings > self.n_bits:
                raise ValueError(
                    f"n_substrings must be at most n_bits, {n_bits}, got {n_substrings}"
                )
        self._n_substrings = n_substrings
        self._n_words = checks.words_for(self.n_bits)
        self._held = _Held((), self._new_tail())

    def _new_tail(self) -> HeldCodes:
        return HeldCodes(self._n_words, PLAIN)

    @property
    def n_rows(self) -> int:
        return self._held.n_rows

    @property
    def n_substrings(self) -> int | None:
        """How many tables the most rows are in; None while there are no tables."""
        parts = self._held.parts
        return len(max(parts, key=lambda part: len(part.codes)).rows) if parts else None

    @property
    def codes(self) -> Codes:
        """A copy of all codes, (n, n_words) uint64, by row number; removed ones are among them."""
        held = self._held
        return np.concatenate([*(part.codes for part in held.parts), held.tail.rows()])

    @property
    def nbytes(self) -> int:
        """Bytes that codes and tables take."""
        held = self._held
        return sum(part.nbytes for part in held.parts) + held.tail.nbytes

    def add(self, codes: ArrayLike, *, threads: int | None = None, progress: bool = False) -> None:
        """Append codes; they get the next row numbers.

        Parameters
        ----------
        codes : (n, n_words) or (n_words,) uint64
        threads : int, optional
            At most this many threads; all by default.
        progress : bool
            Whether to show a bar.

        Raises
        ------
        TypeError, ValueError
            Where they are not codes of ``n_bits`` bits; nothing is added then.
        """
        new = checks.codes(codes, "codes", self.n_bits)
        threads = checks.threads(threads)
        with self._changing:
            held = self._held
            if (len(held.tail) + len(new)) * self._n_words < _TAIL_WORDS:
                held.tail.append(new)
                return
            parts = list(held.parts)
            last = [held.tail.rows(), new]
            n_last = len(held.tail) + len(new)
            while parts and len(parts[-1].codes) < min(_GROWTH * n_last, _MAX_TABLE_ROWS - n_last):
                n_last += len(parts[-1].codes)
                last.insert(0, parts.pop().codes)
            first_row = held.n_rows + len(new) - n_last
            rows = np.concatenate(last)
            del last
            with progress_bar(progress, n_last, "rows") as bar:
                for begin in range(0, n_last, _MAX_TABLE_ROWS):
                    part = frozen(rows[begin : begin + _MAX_TABLE_ROWS])
                    parts.append(self._sort(first_row + begin, part, threads, bar))
            self._held = _Held(tuple(parts), self._new_tail())

    def _sort(self, first_row: int, codes: Codes, threads: int | None, bar: Any) -> _Sorted:
        """Make the tables of some rows."""
        n, n_words = codes.shape
        n_substrings, width = _width(self.n_bits, n, self._n_substrings)
        offsets = np.empty((n_substrings, (1 << width) + 1), np.uint32)
        rows = np.empty((n_substrings, n), np.uint32)
        words = np.empty((n_substrings, n), np.uint64)
        n_threads = usable_threads(threads)
        for i in range(n_substrings):
            pairs = sorted_pairs(codes, i * width, width, threads)
            offsets[i] = bucket_offsets(pairs, width, threads)
            word = int(word_beside(i, width, n_words))
            for begin, end, work in pair_launches(n, n_threads):
                arguments = pairs, begin, end, codes, word, rows[i], words[i]
                SPLIT(n_threads, *arguments, work=work)
            bar.update(n * (i + 1) // n_substrings - n * i // n_substrings)
        return _Sorted(first_row, codes, width, frozen(offsets), frozen(rows), frozen(words))

    def _tables(self, part: _Sorted) -> Tables:
        n, n_words = part.codes.shape
        n_substrings = len(part.rows)
        masks = frozen(_masks(self.n_bits, n_substrings, part.width))
        flat = (a.reshape(-1) for a in (part.offsets, part.rows, part.words, part.codes, masks))
        return Tables(part.first_row, n, n_words, n_substrings, part.width, *flat)

    def search(
        self,
        query_codes: ArrayLike,
        k: int = 10,
        *,
        where: ArrayLike | None = None,
        threads: int | None = None,
    ) -> SearchResult:
        """The k nearest rows of each query, exactly.

        Parameters
        ----------
        query_codes : (n_queries, n_words) or (n_words,) uint64
        k : int
            Results a query, at least 1.
        where : (n,) bool or (m,) int, optional
            Only these rows: a mask over all of them, or their numbers.
        threads : int, optional
            At most this many threads; all by default.

        Returns
        -------
        distances : (n_queries, min(k, rows allowed)) int32
            In bits, ascending, ties by row; the same whatever the number of threads.
        rows : (n_queries, min(k, rows allowed)) int64

        Raises
        ------
        TypeError, ValueError
            Where an argument has the wrong type, shape or value; the message says which.
        """
        queries = checks.codes(query_codes, "query_codes", self.n_bits)
        k = checks.integer(k, "k", 1)
        search = self._searching(queries, where, checks.threads(threads))
        return SearchResult(*split_keys(search.nearest(min(k, search.n_allowed))))

    def best_keys(
        self,
        queries: Codes,
        k: int,
        allowed: Where,
        *,
        target_recall: float | None = None,  # noqa: ARG002  # it finds all
        threads: int | None = None,
    ) -> NDArray[np.int64]:
        some = None if allowed.all_rows else allowed
        search = _Search(self, self._held, queries, some, threads)
        n = min(k, search.n_allowed)
        keys = np.full((len(queries), k), NO_RESULT)
        keys[:, :n] = search.nearest(n)
        return keys

    def _within(
        self, queries: NDArray[np.uint64], radius: int, where: Any, threads: int | None
    ) -> RangeResult:
        return self._searching(queries, where, threads).within(radius)

    def _searching(self, queries: Codes, where: Any, threads: int | None) -> _Search:
        removed = self._removed  # these once, and in this order: another thread may change them
        held = self._held
        return _Search(self, held, queries, rows_of(where, held.n_rows, removed), threads)

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What to keep in a file: settings as JSON holds them, and arrays.

        Returns
        -------
        settings : dict
            ``n_bits``, ``n_substrings`` and ``widths``, the bits in a substring of each part.
        arrays : dict
            Of part i with m substrings ``codes_i`` (n, n_words) uint64, ``offsets_i``
            (m * (2**width + 1),) uint32, ``rows_i`` (m * n,) uint32 and ``words_i`` (m * n,)
            uint64; ``tail`` (n, n_words) uint64; and ``removed`` uint64, a bit for each row, or
            empty. All little-endian.
        """
        with self._changing:
            removed, held = self._removed, self._held
            tail = held.tail.rows()
        arrays: dict[str, NDArray[Any]] = {"tail": tail}
        arrays["removed"] = NO_BITS if removed is None else removed
        for i, part in enumerate(held.parts):
            arrays[f"codes_{i}"] = part.codes
            for name in _TABLES:  # without lines: of long ones a file would verify all or nothing
                arrays[f"{name}_{i}"] = getattr(part, name).reshape(-1)
        settings = {
            "n_bits": self.n_bits,
            "n_substrings": self._n_substrings,
            "widths": [part.width for part in held.parts],
        }
        little = {
            name: a.astype(a.dtype.newbyteorder("<"), copy=False) for name, a in arrays.items()
        }
        return settings, little

    @classmethod
    def from_state(
        cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]
    ) -> MultiIndexHash:
        """An index from what `state` gave; large arrays are used as they are, read-only.

        Raises
        ------
        TypeError, ValueError
            Where it is no such state, as of a damaged file.
        """
        names = {"n_bits", "n_substrings", "widths"}
        if not isinstance(settings, dict) or set(settings) != names:
            raise ValueError(f"settings must be a dict of {sorted(names)}, got {settings!r}")
        index = cls(settings["n_bits"], settings["n_substrings"])
        widths = settings["widths"]
        if not isinstance(widths, list):
            raise ValueError(f"settings widths must be a list, got {widths!r}")
        expected = {f"{name}_{i}" for name in ("codes", *_TABLES) for i in range(len(widths))}
        expected |= {"tail", "removed"}
        if set(arrays) != expected:
            raise ValueError(f"arrays must be {sorted(expected)}, got {sorted(arrays)}")
        parts: list[_Sorted] = []
        n_rows = 0
        for i, width in enumerate(widths):
            parts.append(index._checked(i, width, n_rows, arrays))
            n_rows += len(parts[-1].codes)
        tail = index._new_tail()
        tail.append(index._checked_codes(arrays["tail"], "tail"))
        index._held = _Held(tuple(parts), tail)
        removed = _checked_array(arrays["removed"], "removed", np.uint64, 1)
        if removed.size:
            n_words = -(-index.n_rows // bitmaps.WORD_BITS)
            inside = bitmaps.cut(removed, 0, index.n_rows)
            if len(removed) > n_words or (inside[: len(removed)] != removed).any():
                raise ValueError(f"removed has bits beyond the {index.n_rows} rows")
            index._removed = removed
        return index

    def _checked_codes(self, array: Any, name: str) -> Codes:
        codes = _checked_array(array, name, np.uint64, 2)
        if codes.shape[1] != self._n_words:
            raise ValueError(
                f"{name} has {codes.shape[1]} words a code, {self.n_bits} bits take {self._n_words}"
            )
        checks.check_padding(codes, name, self.n_bits)
        return codes

    def _checked(self, i: int, width: Any, first_row: int, arrays: dict[str, Any]) -> _Sorted:
        """A part whose numbers lead nowhere outside its arrays."""
        width = checks.integer(width, f"settings widths {i}", 1)
        codes = self._checked_codes(arrays[f"codes_{i}"], f"codes_{i}")
        n = len(codes)
        if not 1 <= n <= _MAX_TABLE_ROWS:
            raise ValueError(f"codes_{i} must have 1 to {_MAX_TABLE_ROWS} rows, got {n}")
        flat = {
            name: _checked_array(arrays[f"{name}_{i}"], f"{name}_{i}", dtype, 1)
            for name, dtype in _TABLES.items()
        }
        n_substrings = flat["rows"].size // n
        if width > _MOST_WIDTH or not 1 <= n_substrings <= self.n_bits // width:
            raise ValueError(
                f"rows_{i} has {n_substrings} substrings of {width} bits, codes have {self.n_bits}"
            )
        lengths = {"offsets": (1 << width) + 1, "rows": n, "words": n}
        for name, array in flat.items():
            if array.size != n_substrings * lengths[name]:
                raise ValueError(
                    f"{name}_{i} must have {n_substrings} times {lengths[name]} entries, "
                    f"got {array.size}"
                )
        offsets, rows, words = (a.reshape(n_substrings, -1) for a in flat.values())
        for line in range(n_substrings):
            of_line = offsets[line]
            if of_line[0] != 0 or of_line[-1] != n or (of_line[1:] < of_line[:-1]).any():
                raise ValueError(f"offsets_{i} must ascend from 0 to {n} in each line")
            if rows[line].max() >= n:
                raise ValueError(f"rows_{i} names row {rows[line].max()}, there are {n}")
        return _Sorted(first_row, codes, width, offsets, rows, words)


_TABLES = {"offsets": np.uint32, "rows": np.uint32, "words": np.uint64}


def _checked_array(array: Any, name: str, dtype: Any, n_dims: int) -> NDArray[Any]:
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype).newbyteorder("<"):
        got = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{name} must be an array of {np.dtype(dtype)}, got {got}")
    if array.ndim != n_dims:
        raise ValueError(f"{name} must have {n_dims} dimensions, got shape {array.shape}")
    return frozen(array.astype(dtype, copy=False))


class _Search:
    """One search: the rows there were at its beginning, and what it may find.

    Parameters
    ----------
    index : MultiIndexHash
    held : _Held
        All its rows now.
    queries : (n_queries, n_words) uint64
    where : Where, optional
        Of a whole that begins with these rows.
    threads : int or None
    """

    def __init__(
        self,
        index: MultiIndexHash,
        held: _Held,
        queries: Codes,
        where: Where | None,
        threads: int | None,
    ) -> None:
        self._held = held
        self._n_rows = n_rows = held.n_rows
        self._index, self._queries, self._threads = index, queries, threads
        self._where = where
        self.n_allowed = n_rows if where is None else where.count(0, n_rows)
        self._few = where is not None and self.n_allowed * _FEW_ROWS <= n_rows
        if where is None:
            self._filter = Filter(NO_BITS, NO_BITS)
        elif where.chosen is None and where.removed is not None:
            self._filter = Filter(NO_BITS, frozen(where.removed))
        else:
            self._filter = Filter(frozen(self._bits(0, n_rows)), NO_BITS)

    def _costs(self, part: _Sorted) -> Costs:
        """What kernels weigh looking into buckets against; see ``kernels.hashing``."""
        ring_buckets = [float(math.comb(part.width, t)) for t in range(part.width + 1)]
        n_queries = max(1, len(self._queries))
        per_word = _SCAN_NS_ALONE if n_queries < _FEW_QUERIES else _SCAN_NS
        # A scan of few queries has all threads, a query here has one.
        share = max(1.0, usable_threads(self._threads) / n_queries)
        return Costs(
            _BUCKET_NS, _ROW_NS, part.codes.size * per_word / share, np.array(ring_buckets)
        )

    def _launches(self, n_queries: int, costs: Costs) -> Iterator[tuple[int, int, int]]:
        """Bounds of launches over the queries, with the number of cells."""
        n_cells = usable_threads(self._threads)
        step = int(max(1, min(_QUERIES_PER_LAUNCH, _LAUNCH_NS / costs.scan))) * n_cells
        for begin in range(0, n_queries, step):
            end = min(begin + step, n_queries)
            yield begin, end, min(n_cells, end - begin)

    def _few_rows(self) -> tuple[Piece, NDArray[np.int64]]:
        """The rows that may be found, where they are few, and their numbers."""
        rows = bitmaps.to_rows(self._bits(0, self._n_rows))
        held = self._held
        codes = np.empty((len(rows), self._queries.shape[1]), np.uint64)
        for part in held.parts:
            begin, end = np.searchsorted(rows, (part.first_row, part.first_row + len(part.codes)))
            codes[begin:end] = part.codes[rows[begin:end] - part.first_row]
        begin = int(np.searchsorted(rows, held.n_sorted))
        codes[begin:] = held.tail.take(rows[begin:] - held.n_sorted)[0]
        return Piece(0, len(rows), frozen(codes)), rows

    def _bits(self, first_row: int, n_rows: int) -> Words:
        """A bit for each of some rows that may be found, where not all of them may."""
        words = NO_BITS if self._where is None else self._where.words(first_row, n_rows)
        return bitmaps.cut(words, 0, n_rows)  # with removed rows, there may be bits beyond the last

    def nearest(self, k: int) -> NDArray[np.int64]:
        """Keys of the k nearest rows, of which so many may be found, ascending."""
        keys = np.full((len(self._queries), k), NO_RESULT, np.int64)
        if not keys.size:
            return keys
        if self._few:
            piece, rows = self._few_rows()
            scan = TopKScan(self._queries, k, piece.n_rows, self._threads)
            scan.scan(piece)
            distances, places = scan.result()
            keys[:] = make_keys(distances, rows[places])
            return keys
        tail = list(self._held.tail_pieces(self._n_rows))
        _keep_nearest(keys, self._scan_nearest(self._queries, tail, k))
        for part in sorted(self._held.parts, key=lambda part: -len(part.codes)):
            self._nearest_of(part, keys)
        return keys

    def _nearest_of(self, part: _Sorted, keys: NDArray[np.int64]) -> None:
        """Offer the rows of a part; keys ascend."""
        tables, costs = self._index._tables(part), self._costs(part)
        heaps = np.ascontiguousarray(keys[:, ::-1])  # descending, which is a heap
        ends = np.empty(len(keys), np.uint8)
        for begin, end, n_cells in self._launches(len(keys), costs):
            queries = self._queries[begin:end]
            arguments = tables, self._filter, costs, queries, heaps[begin:end], ends[begin:end]
            NEAREST(n_cells, *arguments, work=_UNITS_PER_QUERY * len(queries))
        keys[:] = np.sort(heaps, axis=1)
        left = np.flatnonzero(ends == SCAN)
        if len(left):
            found = self._scan_nearest(frozen(self._queries[left]), [part.piece], keys.shape[1])
            nearest = keys[left]
            _keep_nearest(nearest, found)
            keys[left] = nearest

    def _scan_nearest(self, queries: Codes, pieces: list[Piece], k: int) -> NDArray[np.int64]:
        """Keys of up to k nearest rows in some pieces."""
        n_rows = sum(piece.n_rows for piece in pieces)
        n_allowed = n_rows
        if self._where is not None and pieces:
            n_allowed = bitmaps.count(self._bits(pieces[0].first_row, n_rows))
        scan = TopKScan(queries, min(k, n_allowed), n_rows, self._threads)
        for piece in pieces:
            scan.scan(piece, self._where)
        return scan.keys()

    def within(self, radius: int) -> RangeResult:
        """All rows within a radius."""
        if self._few:
            piece, rows = self._few_rows()
            found = self._scan_within(self._queries, [piece], radius, None)
            return found._replace(rows=rows[found.rows])
        tail = list(self._held.tail_pieces(self._n_rows))
        scanned = self._scan_within(self._queries, tail, radius, self._where)
        every_query = np.arange(len(self._queries))
        collected = [_pairs(every_query, scanned)]
        for part in self._held.parts:
            left = self._within_of(part, radius, collected)
            if len(left):
                queries = frozen(self._queries[left])
                scanned = self._scan_within(queries, [part.piece], radius, self._where)
                collected.append(_pairs(left, scanned))
        query, keys = np.concatenate(collected, axis=1)
        order = np.lexsort((keys, query))
        offsets = np.searchsorted(query[order], np.arange(len(self._queries) + 1))
        return RangeResult(offsets, *split_keys(keys[order]))

    def _scan_within(
        self, queries: Codes, pieces: list[Piece], radius: int, where: Where | None
    ) -> RangeResult:
        scan = RadiusScan(queries, radius, self._threads)
        for piece in pieces:
            scan.scan(piece, where)
        return scan.result()

    def _within_of(
        self, part: _Sorted, radius: int, collected: list[NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """Collect the queries and keys of a part's rows; which queries are left for a scan."""
        tables, costs = self._index._tables(part), self._costs(part)
        waiting = np.arange(len(self._queries))
        room = _ROOM_FOR_FOUND
        for_scan = []
        while len(waiting):
            full = []
            for begin, end, n_cells in self._launches(len(waiting), costs):
                now = waiting[begin:end]
                queries = frozen(self._queries[now])
                found = np.empty((n_cells, room), np.int64)
                first_found = np.empty(len(now), np.int64)
                n_found = np.empty(len(now), np.int64)
                ends = np.empty(len(now), np.uint8)
                arguments = tables, self._filter, costs, queries, radius, found
                WITHIN(
                    n_cells,
                    *arguments,
                    first_found,
                    n_found,
                    ends,
                    work=_UNITS_PER_QUERY * len(now),
                )
                for cell in range(n_cells):
                    of_cell = slice(len(now) * cell // n_cells, len(now) * (cell + 1) // n_cells)
                    keys = found[cell, : n_found[of_cell].sum()]
                    collected.append(np.stack([np.repeat(now[of_cell], n_found[of_cell]), keys]))
                for_scan.append(now[ends == SCAN])
                full.append(now[ends == FULL])
            waiting = np.concatenate(full)
            # All rows of a part: then one query fits.
            room = min(4 * room, max(_ROOM_FOR_FOUND, len(part.codes)))
        return np.concatenate([*for_scan, np.zeros(0, np.int64)])


def _pairs(queries: NDArray[np.int64], found: RangeResult) -> NDArray[np.int64]:
    """(2, n_results): queries, which have these numbers, and keys."""
    query = np.repeat(queries, np.diff(found.offsets))
    return np.stack([query, found.distances.astype(np.int64) << ROW_BITS | found.rows])


def _keep_nearest(keys: NDArray[np.int64], others: NDArray[np.int64]) -> None:
    """Put the smallest keys of both in the place of the first, each once, ascending."""
    every = np.sort(np.concatenate([keys, others], axis=1), axis=1)
    twice = every[:, 1:] == every[:, :-1]
    every[:, 1:][twice] = NO_RESULT
    keys[:] = np.sort(every, axis=1)[:, : keys.shape[1]]
