"""Search in the cells that are nearest to a query: inverted lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..checks import frozen
from ..codes import pack_signs
from ..held import NO_FACTORS, HeldCodes
from ..kernels.columns import BLOCK_ROWS
from ..kernels.find import MAX_BLOCK_WORDS, QUERIES_AT_ONCE
from ..kernels.launch import WORK_PER_LAUNCH, usable_threads
from ..kernels.lists import BEST_LISTS, LISTS_WITHIN, NEAR_LISTS
from ..kernels.methods import METHODS, PLAIN, POPCOUNT, best_method, weighted_tables
from ..kernels.topk import (
    NO_RESULT,
    keys_of_heaps,
    new_heaps,
    rows_of_keys,
    split_keys,
)
from ..optional import progress_bar
from . import kmeans
from .asymmetric import AsymmetricScan, ScoredResult, prepare, score_rows
from .base import Index
from .cells import Cells, lists_for, widen
from .distances import nearest_of_few
from .flat import checked_factors
from .lists import Lists, Verify
from .scan import SMALL_SCAN, RadiusScan, RangeResult, SearchResult, TopKScan
from .state import check_arrays, length_of
from .where import Where, row_numbers, rows_of

Codes = NDArray[np.uint64]
Rows = NDArray[np.int64]

DEFAULT_RECALL = 0.95

_GROWN = 4  # times the rows that lists were made for: then new ones are made
_TAIL = 64  # this share of the rows may wait to be sorted into lists
_LEAST_TAIL = 1024
_QUERIES_TRIED = 256  # to calibrate
_TRIED_KS = 10, 100, 1000
_TRIED_STEP = 1.25  # from one nprobe to the next
_TRIED_ANEW = 2  # when there are so many times the rows
_BATCH_BYTES = 64 << 20  # what is kept of the queries of a batch
_PAIRS_PER_LAUNCH = 1 << 20  # of queries and rows: 16 MiB of room for what is within a radius


@dataclass(frozen=True, eq=False)
class _Contents:
    """All that a search reads; replaced as a whole, but for the rows that the tail gets.

    Attributes
    ----------
    cells : Cells or None
    tail : HeldCodes
        Rows behind those in cells, which wait to be sorted in: they are scanned.
    tried : _Tried
    """

    cells: Cells | None
    tail: HeldCodes
    tried: _Tried

    @property
    def n_listed(self) -> int:
        return self.cells.n_rows if self.cells else 0

    @property
    def n_rows(self) -> int:
        return self.n_listed + len(self.tail)

    def take(self, rows: Rows) -> tuple[Codes, NDArray[np.float32]]:
        """Copies of the codes and factors of rows."""
        if self.cells is None:
            return self.tail.take(rows)
        listed = rows < self.n_listed
        codes, factors = self.cells.take(np.where(listed, rows, 0))
        if not listed.all():
            codes[~listed], factors[~listed] = self.tail.take(rows[~listed] - self.n_listed)
        return codes, factors


class _Probes(NamedTuple):
    """Lists that queries scan.

    Attributes
    ----------
    lists : (n_queries, n) int64
        Nearest first; -1 for none, and then none behind it.
    bounds : (n_queries, n) int64
        No row of the list is nearer.
    """

    lists: Rows
    bounds: Rows


@dataclass(frozen=True, eq=False)
class _Tried:
    """Which recall so many probed cells reached.

    Attributes
    ----------
    numbers : (n,) int64
        Of cells, ascending; the last one is all of them.
    recalls : (3, n) float64
        Recall@10, @100 and @1000, ascending.
    n_rows : int
        Rows in cells when it was measured.
    """

    numbers: NDArray[np.int64]
    recalls: NDArray[np.float64]
    n_rows: int

    def enough(self, recall: float, k: int) -> int:
        """The least number of cells that reached a recall."""
        line = self.recalls[_level(k)]
        return int(self.numbers[np.argmax(line >= recall)])


_EVERY_LIST = np.iinfo(np.int64).max
_NEVER_TRIED = _Tried(np.array([_EVERY_LIST]), np.ones((len(_TRIED_KS), 1)), 0)


def _level(k: int) -> int:
    """Which of the recalls measured tells of the nearest ``k``."""
    return min(int(np.searchsorted(_TRIED_KS, k)), len(_TRIED_KS) - 1)


class IVFIndex(Index):
    """Codes in cells; a search scans those whose centres are nearest to the query.

    Rows are in the cell of the nearest centre, found by k-means. A cell is one contiguous inverted
    list, scanned by the kernels of exact search; none is larger than some times the mean. The
    number of cells to probe is measured when the lists are made, so that a recall can be asked for.
    With ``nprobe`` as large as the number of lists results are exact, those of `FlatIndex`, and
    `range_search` always is.

    Parameters
    ----------
    n_bits : int
        Bits in a code, from 1 to 65,472.
    n_lists : int, optional
        Cells. By default four times the square root of the number of rows, and made anew when that
        has grown fourfold.
    nprobe : int, optional
        Cells that a search scans, if it does not say; by default as many as ``target_recall`` asks
        for.
    target_recall : float, optional
        Recall@10 of the exact nearest that a search aims at, if it does not say; .95 by default.
        See `calibrate`.
    factors : bool
        Whether each row has two factors beside its code, as some quantisers give them.
    seed : int
        Of the rows that k-means begins with. The index depends on it and the rows, and on nothing
        else.
    kernel : {"popcount", "table"}, optional
        How distances are computed; by default what the processor does best.

    Notes
    -----
    Inverted lists of binary codes: Sivic, Zisserman: "Video Google", ICCV 2003; Jégou, Douze,
    Schmid: "Hamming embedding and weak geometric consistency", ECCV 2008. A cell of radius r is
    left out when its centre is farther than r from the k-th nearest row's distance, which by the
    triangle inequality loses nothing.

    Examples
    --------
    >>> import numpy as np, hamming_engine as he
    >>> embeddings = np.random.default_rng(0).standard_normal((5_000, 128))
    >>> index = he.IVFIndex(n_bits=128)
    >>> index.add(he.pack_signs(embeddings))
    >>> index.search(he.pack_signs(embeddings[7]), k=1)
    SearchResult(distances=array([[0]], dtype=int32), rows=array([[7]]))
    """

    LARGE = "blocks", "rows", "factors"  # a row for each block

    def __init__(
        self,
        n_bits: int,
        n_lists: int | None = None,
        *,
        nprobe: int | None = None,
        target_recall: float | None = None,
        factors: bool = False,
        seed: int = 0,
        kernel: str | None = None,
    ) -> None:
        super().__init__(n_bits)
        if self.n_bits > 64 * MAX_BLOCK_WORDS:
            raise ValueError(f"n_bits must be at most {64 * MAX_BLOCK_WORDS:,}, got {n_bits}")
        self._n_lists = None if n_lists is None else checks.integer(n_lists, "n_lists", 1)
        self._nprobe = None if nprobe is None else checks.integer(nprobe, "nprobe", 1)
        self._target_recall = checks.recall(target_recall)
        self._n_factors = 2 if factors else 0
        self._seed = checks.integer(seed, "seed", 0)
        checks.choice(kernel, "kernel", ("popcount", "table", None))
        method = best_method() if kernel is None else METHODS[kernel]
        self._method = POPCOUNT if method == PLAIN else method  # lists are always in blocks
        self._contents = _Contents(None, self._new_tail(), _NEVER_TRIED)
        # Bits by place of the rows that are not removed: of which lists, which bitmap, the bits.
        self._not_removed: tuple[Lists, NDArray[np.uint64], NDArray[np.uint64]] | None = None

    def _new_tail(self) -> HeldCodes:
        return HeldCodes(checks.words_for(self.n_bits), self._method, self._n_factors)

    @classmethod
    def from_lists(
        cls,
        n_bits: int,
        centers: ArrayLike,
        codes: ArrayLike,
        assigned: ArrayLike,
        *,
        nprobe: int | None = None,
        threads: int | None = None,
    ) -> IVFIndex:
        """An index whose cells were made elsewhere; they are kept as they are.

        Parameters
        ----------
        n_bits : int
        centers : (n_lists, n_words) uint64
        codes : (n, n_words) uint64
            They get row numbers from 0 on.
        assigned : (n,) int
            The cell of each row, whether its centre is the nearest or not.
        nprobe : int, optional
            See `IVFIndex`.
        threads : int, optional
            At most this many threads; all by default.

        Raises
        ------
        TypeError, ValueError
            Where an argument has the wrong type, shape or value; the message says which.

        Notes
        -----
        Rows added later go to the cell of the nearest centre, and what is too large then is split.
        """
        checked_centers = checks.codes(centers, "centers", checks.integer(n_bits, "n_bits", 1))
        index = cls(n_bits, len(checked_centers), nprobe=nprobe)
        new = checks.codes(codes, "codes", index.n_bits)
        n_rows, n_lists = len(new), len(checked_centers)
        of_row = row_numbers(assigned, "assigned", n_lists)
        if len(of_row) != n_rows:
            raise ValueError(f"assigned must be a list a code: got {len(of_row)} for {n_rows}")
        threads = checks.threads(threads)
        lists = Lists.empty(new.shape[1], 0)
        rest = np.arange(n_rows), new, np.empty((n_rows, 0), np.float32), of_row
        lists = lists.with_rows(*rest, n_lists, threads)
        radii = np.zeros(n_lists, np.int32)
        widen(radii, new, checked_centers, of_row)
        # Nobody knows which rows these centres were made of.
        rng = np.random.default_rng(index._seed)
        strangers = np.sort(rng.choice(n_rows, min(_QUERIES_TRIED, n_rows), replace=False))
        known = radii, lists, n_rows, max(1, n_rows), strangers, index._method
        cells = Cells.of(checked_centers, *known)
        tried = index._tried(cells, None, threads)
        index._contents = _Contents(cells, index._new_tail(), tried)
        return index

    @property
    def n_rows(self) -> int:
        return self._contents.n_rows

    @property
    def nprobe(self) -> int:
        """How many cells a search for ten rows scans now if it does not say."""
        return self._number_to_probe(self._contents, 10, None, None)

    @property
    def n_lists(self) -> int:
        """How many lists there are now; none until there are rows enough."""
        cells = self._contents.cells
        return len(cells.lists) if cells else 0

    @property
    def nbytes(self) -> int:
        """Bytes of codes, row numbers and centres."""
        contents = self._contents
        cells = contents.cells
        listed = cells.lists.nbytes + cells.held.nbytes + cells.centers.nbytes if cells else 0
        return listed + contents.tail.nbytes

    @property
    def codes(self) -> Codes:
        """A copy of all codes, (n, n_words) uint64, by row number; removed ones are among them."""
        contents = self._contents
        return contents.take(np.arange(contents.n_rows))[0]

    # Adding.

    def add(
        self,
        codes: ArrayLike,
        factors: ArrayLike | None = None,
        *,
        vectors: ArrayLike | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Append codes; they get the next row numbers.

        Parameters
        ----------
        codes : (n, n_words) or (n_words,) uint64
        factors : (n, 2) float32, where the index has factors
            See `FlatIndex.add`.
        vectors : (n, dim) float16, float32 or float64, optional
            What the codes were made of: an array, or anything with ``shape`` that is read by slices
            and arrays of row numbers. If cells are made now, and of these rows alone, they are
            made of the vectors, which tell better what belongs together; they are not kept.
        threads : int, optional
            At most this many threads; all by default.
        progress : bool
            Whether to show a bar while cells are made.

        Raises
        ------
        TypeError, ValueError
            Where they are not codes of ``n_bits`` bits, or not such factors or vectors; nothing is
            added then.
        """
        new = checks.codes(codes, "codes", self.n_bits)
        new_factors = None
        if self._n_factors or factors is not None:
            new_factors = checked_factors(factors, len(new), bool(self._n_factors))
        floats = None if vectors is None else _checked_vectors(vectors, len(new))
        threads = checks.threads(threads)
        with self._changing:
            contents = self._contents
            n_rows = contents.n_rows + len(new)
            if len(contents.tail) + len(new) <= max(_LEAST_TAIL, n_rows // _TAIL):
                contents.tail.append(new, new_factors)
                return
            self._sort_in(contents, new, new_factors, floats, threads, progress)

    def _sort_in(
        self,
        contents: _Contents,
        codes: Codes,
        factors: NDArray[np.float32] | None,
        vectors: NDArray[Any] | None,
        threads: int | None,
        progress: bool,
    ) -> None:
        """Put the rows that wait, and more, into cells; new ones if rows have become many."""
        if factors is None:
            factors = np.empty((len(codes), 0), np.float32)
        cells = contents.cells
        n_rows = contents.n_rows + len(codes)
        anew = cells is None or (self._n_lists is None and n_rows >= _GROWN * cells.n_trained)
        before = np.arange(0 if anew else contents.n_listed, contents.n_rows)
        if len(before):
            codes_before, factors_before = contents.take(before)
            codes = np.concatenate([codes_before, codes])
            factors = np.concatenate([factors_before, factors])
            vectors = None
        with progress_bar(progress, kmeans.N_ITERATIONS, "iteration") as bar:
            if cells is None or anew:
                n_lists = self._n_lists or lists_for(n_rows)
                rest = n_lists, self._seed, self._method, threads, bar.update
                cells = Cells.new(codes, factors, vectors, *rest)
            else:
                cells = cells.with_rows(codes, factors, self._seed, threads)
        tried = contents.tried
        if anew or n_rows >= _TRIED_ANEW * tried.n_rows:
            tried = self._tried(cells, None, threads)
        self._contents = _Contents(cells, self._new_tail(), tried)

    # Searching.

    @overload
    def search(
        self,
        query_codes: NDArray[np.uint64],
        k: int = ...,
        *,
        method: str | None = ...,
        nprobe: int | None = ...,
        target_recall: float | None = ...,
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
        nprobe: int | None = ...,
        target_recall: float | None = ...,
        where: ArrayLike | None = ...,
        threads: int | None = ...,
    ) -> ScoredResult: ...

    def search(
        self,
        query_codes: ArrayLike,
        k: int = 10,
        *,
        method: str | None = None,
        nprobe: int | None = None,
        target_recall: float | None = None,
        where: ArrayLike | None = None,
        threads: int | None = None,
    ) -> SearchResult | ScoredResult:
        """The k best rows of each query among those in the cells that are nearest to it.

        Parameters
        ----------
        query_codes : (n_queries, n_words) uint64, or (n_queries, n_bits) float32; or one of them
            Codes for Hamming search, weights for asymmetric search: see `FlatIndex.search`.
        k : int
            Results a query, at least 1. They are always found: where the cells have too few rows,
            more are probed.
        method : {"hamming", "asymmetric"}, optional
            What the type of the queries says already.
        nprobe : int, optional
            Cells to scan. With ``where``, and with rows removed, so many more of them as it takes
            for as many rows to be let through as are in ``nprobe`` cells on average.
        target_recall : float, optional
            Instead of it: as many cells as reached this recall when it was measured.
        where : (n,) bool or (m,) int, optional
            Only these rows: a mask over all of them, or their numbers.
        threads : int, optional
            At most this many threads; all by default. One query alone uses them too, if it scans
            enough.

        Returns
        -------
        SearchResult or ScoredResult
            As from `FlatIndex.search`; distances and scores are exact.

        Raises
        ------
        TypeError, ValueError
            Where an argument has the wrong type, shape or value; the message says which.
        """
        queries = self._queries(query_codes, method)
        k = checks.integer(k, "k", 1)
        threads = checks.threads(threads)
        removed = self._removed  # these once, and in this order: another thread may change them
        contents = self._contents
        n_rows = contents.n_rows
        probed = self._number_to_probe(contents, k, nprobe, target_recall)
        allowed = rows_of(where, n_rows, removed)
        k = min(k, n_rows if allowed is None else allowed.n_allowed)
        keys = self._best_keys(contents, n_rows, queries, k, probed, allowed, threads)
        rows = rows_of_keys(keys)
        if rows.size and rows.max() >= n_rows:
            raise ValueError(f"the index is damaged: it names row {rows.max()}, there are {n_rows}")
        if queries.dtype == np.uint64:
            return SearchResult(*split_keys(keys))
        return score_rows(contents.take, queries, rows)

    def _number_to_probe(self, contents: _Contents, k: int, nprobe: Any, target_recall: Any) -> int:
        if nprobe is not None and target_recall is not None:
            raise ValueError("nprobe and target_recall must not be given both")
        if nprobe is not None:
            return checks.integer(nprobe, "nprobe", 1)
        wanted = checks.recall(target_recall)
        if wanted is None and self._nprobe is not None:
            return self._nprobe
        wanted = wanted or self._target_recall or DEFAULT_RECALL
        return _EVERY_LIST if wanted == 1 else contents.tried.enough(wanted, k)

    def best_keys(
        self,
        queries: NDArray[Any],
        k: int,
        allowed: Where,
        *,
        target_recall: float | None = None,
        threads: int | None = None,
    ) -> NDArray[np.int64]:
        contents = self._contents
        n_rows = contents.n_rows
        nprobe = self._number_to_probe(contents, k, None, target_recall)
        return self._best_keys(contents, n_rows, queries, k, nprobe, allowed, threads)

    def _best_keys(
        self,
        contents: _Contents,
        n_rows: int,
        queries: NDArray[Any],
        k: int,
        nprobe: int,
        allowed: Where | None,
        threads: int | None,
    ) -> NDArray[np.int64]:
        """Keys of the best rows found for each query, (n_queries, k)."""
        if not k:
            return np.zeros((len(queries), 0), np.int64)
        n_listed = contents.n_listed
        pieces = [
            piece._replace(first_row=n_listed + piece.first_row)
            for piece in contents.tail.pieces(n_rows - n_listed)
        ]
        n_tail = n_rows - n_listed
        if allowed is not None:
            n_tail = allowed.count(n_listed, n_tail)
        by_codes = queries.dtype == np.uint64
        n_lists = 0 if contents.cells is None else len(contents.cells.lists)
        nprobe = min(nprobe, n_lists)  # "all" is a number beyond them
        bytes_of_query = 16 * (k + nprobe) + 2 * n_lists + (0 if by_codes else 64 * self.n_bits)
        batch = max(QUERIES_AT_ONCE, _BATCH_BYTES // bytes_of_query)
        bits = None if contents.cells is None else self._bits(contents.cells, allowed, threads)
        found = []
        for first in range(0, len(queries), batch) or [0]:
            some = queries[first : first + batch]
            keys = [np.full((len(some), k), NO_RESULT)]
            if contents.cells is not None and bits is not None:
                keys = [self._keys_of_lists(contents.cells, some, k, nprobe, bits, threads)]
            if n_tail:
                kind = TopKScan if by_codes else AsymmetricScan
                scan = kind(some, min(k, n_tail), n_tail, threads, method=self._method)
                for piece in pieces:
                    scan.scan(piece, allowed)
                keys.append(scan.keys())
                keys = [np.sort(np.concatenate(keys, axis=1), axis=1)[:, :k]]
            found.append(keys[0])
        return np.concatenate(found)

    def _bits(self, cells: Cells, allowed: Where | None, threads: int | None) -> NDArray[np.uint64]:
        """The places of lists that may be found."""
        if allowed is None or allowed.all_rows:
            return cells.lists.filled
        removed, known = allowed.removed, self._not_removed
        if allowed.chosen is not None or removed is None:
            return cells.lists.allowed(allowed.words(0, cells.n_rows), threads)
        if known is None or known[0] is not cells.lists or known[1] is not removed:
            bits = cells.lists.allowed(allowed.words(0, cells.n_rows), threads)
            known = self._not_removed = cells.lists, removed, bits
        return known[2]

    def _keys_of_lists(
        self,
        cells: Cells,
        queries: NDArray[Any],
        k: int,
        nprobe: int,
        bits: NDArray[np.uint64],
        threads: int | None,
    ) -> NDArray[np.int64]:
        """Keys of the best rows in the cells to probe, (n_queries, k)."""
        n_allowed = None if bits is cells.lists.filled else cells.lists.count(bits)
        probes = self._probes(cells, queries, k, nprobe, n_allowed, threads)
        return self._scanned(cells, queries, k, probes, bits, threads)

    def _scanned(
        self,
        cells: Cells,
        queries: NDArray[Any],
        k: int,
        probes: _Probes,
        bits: NDArray[np.uint64],
        threads: int | None,
    ) -> NDArray[np.int64]:
        """Keys of the best rows in some cells, (n_queries, k); `NO_RESULT` where they have less."""
        n_queries, n_probed = probes.lists.shape
        cells.lists.check(probes.lists[probes.lists >= 0])
        n_threads = usable_threads(threads)
        n_words = cells.centers.shape[1]
        by_codes = queries.dtype == np.uint64
        work_of_list = (1 if by_codes else 2) * n_words * BLOCK_ROWS * len(bits) / len(cells.lists)
        n_cells = 1 if n_queries * n_probed * work_of_list < SMALL_SCAN else n_threads
        n_slabs = n_cells if n_queries < QUERIES_AT_ONCE * n_cells else 1
        kept = new_heaps(n_slabs, n_queries, k)
        lists = cells.lists.begins, cells.lists.blocks, cells.lists.rows, bits
        factors = cells.lists.factors if self._n_factors else NO_FACTORS
        per_launch = 2 * WORK_PER_LAUNCH * n_cells / work_of_list  # lists
        step = max(1, int(per_launch / n_probed)) * QUERIES_AT_ONCE
        width = max(1, int(per_launch / min(step, n_queries)))
        for begin in range(0, n_queries, step):
            some = slice(begin, begin + step)
            for first in range(0, n_probed, width):
                part = slice(first, first + width)
                of_part = frozen(probes.lists[some, part]), frozen(probes.bounds[some, part])
                rest = *of_part, kept[:, some]
                work = int(rest[0].size * work_of_list)
                if by_codes:
                    near = self._method, frozen(queries[some])
                    NEAR_LISTS(n_cells, *near, *lists, *rest, work=work)
                else:
                    by = weighted_tables(self._method)
                    _, tables, _, parameters = prepare(queries[some], by, n_cells)
                    best = by, tables, parameters
                    BEST_LISTS(n_cells, *best, *lists, factors, *rest, work=work)
        keys: NDArray[np.int64] = keys_of_heaps(kept)
        return keys

    def _probes(
        self,
        cells: Cells,
        queries: NDArray[Any],
        k: int,
        nprobe: int,
        n_allowed: NDArray[np.int64] | None,
        threads: int | None,
    ) -> _Probes:
        """The lists for each query to scan."""
        n_lists = len(cells.lists)
        wanted = min(nprobe, n_lists)
        sizes = cells.lists.sizes if n_allowed is None else n_allowed
        if n_allowed is None:
            nearest = self._nearest_cells(cells, queries, wanted, threads)
            if wanted == n_lists or sizes[nearest.lists].sum(axis=1).min(initial=k) >= k:
                return nearest
        # As many rows as in an average of unfiltered lists, and k of them at least.
        lists, bounds = self._nearest_cells(cells, queries, n_lists, threads)
        enough = max(k, wanted * cells.n_rows / n_lists)
        before = np.cumsum(sizes[lists], axis=1) - sizes[lists]
        needed = (before < enough) | (np.arange(n_lists) < (wanted if n_allowed is None else 0))
        width = int(needed.sum(axis=1).max(initial=0))
        return _Probes(np.where(needed, lists, -1)[:, :width], bounds[:, :width])

    def _nearest_cells(
        self, cells: Cells, queries: NDArray[Any], n: int, threads: int | None
    ) -> _Probes:
        by_codes = queries.dtype == np.uint64
        codes = queries if by_codes else pack_signs(queries, threads=threads)
        distances, lists = nearest_of_few(codes, cells.held, n, threads)
        bounds = np.zeros(lists.shape, np.int64)
        if by_codes:  # scores have none
            np.maximum(0, distances - cells.radii[lists], out=bounds)
        return _Probes(lists, bounds)

    def _within(
        self, queries: NDArray[np.uint64], radius: int, where: Any, threads: int | None
    ) -> RangeResult:
        # Cells are left out where the triangle inequality says that no row of theirs is within.
        removed = self._removed
        contents = self._contents
        n_rows = contents.n_rows
        allowed = rows_of(where, n_rows, removed)
        scan = RadiusScan(queries, radius, threads, method=self._method)
        n_listed = contents.n_listed
        for piece in contents.tail.pieces(n_rows - n_listed):
            scan.scan(piece._replace(first_row=n_listed + piece.first_row), allowed)
        if contents.cells is not None and len(queries):
            bits = self._bits(contents.cells, allowed, threads)
            for found in self._within_lists(contents.cells, queries, radius, bits, threads):
                scan.add(found)
        result = scan.result()
        if result.rows.size and result.rows.max() >= n_rows:
            raise ValueError(f"the index is damaged: it names row {result.rows.max()}")
        return result

    def _within_lists(
        self,
        cells: Cells,
        queries: Codes,
        radius: int,
        bits: NDArray[np.uint64],
        threads: int | None,
    ) -> Iterator[NDArray[np.int64]]:
        """Queries and keys, (2, n), of all rows of lists within a radius."""
        probes, bounds = self._nearest_cells(cells, queries, len(cells.lists), threads)
        query, place = np.nonzero(bounds <= radius)
        pairs = np.stack([query, probes[query, place]])
        cells.lists.check(pairs[1])
        room = np.concatenate([[0], np.cumsum(BLOCK_ROWS * np.diff(cells.lists.begins)[pairs[1]])])
        n_threads = usable_threads(threads)
        first = 0
        while first < pairs.shape[1]:
            enough = int(np.searchsorted(room, room[first] + _PAIRS_PER_LAUNCH, "right")) - 1
            some = slice(first, max(first + 1, enough))
            begins = room[first : some.stop + 1] - room[first]
            found = np.empty((2, int(begins[-1])), np.int64)
            n_found = np.zeros(some.stop - first, np.int64)
            work = int(begins[-1]) * queries.shape[1]
            LISTS_WITHIN(
                1 if work < SMALL_SCAN else n_threads,
                self._method,
                frozen(queries),
                cells.lists.begins,
                cells.lists.blocks,
                cells.lists.rows,
                bits,
                frozen(pairs[:, some]),
                radius,
                frozen(begins),
                found,
                n_found,
                work=work,
            )
            within = np.arange(int(n_found.sum())) - np.repeat(
                np.cumsum(n_found) - n_found, n_found
            )
            yield found[:, np.repeat(begins[:-1], n_found) + within]
            first = some.stop

    # Calibrating.

    def calibrate(
        self, query_codes: ArrayLike | None = None, k: int = 10, *, threads: int | None = None
    ) -> list[tuple[int, float]]:
        """Measure which recall so many probed cells reach, for ``target_recall``.

        Parameters
        ----------
        query_codes : (n_queries, n_words) uint64, optional
            Queries like those to come: the best way to know. By default rows of the index, which is
            what adding rows measures; queries from elsewhere take more cells.
        k : int
            The recall is of so many nearest rows; ties count as found.
        threads : int, optional
            At most this many threads; all by default.

        Returns
        -------
        list of (nprobe, recall)
            Ascending.
        """
        queries = None
        if query_codes is not None:
            queries = checks.codes(query_codes, "query_codes", self.n_bits)
            if not len(queries):
                raise ValueError("query_codes must be at least one, got none")
        k = checks.integer(k, "k", 1)
        threads = checks.threads(threads)
        with self._changing:
            contents = self._contents
            if contents.cells is None:
                return []
            tried = self._tried(contents.cells, queries, threads)
            self._contents = replace(contents, tried=tried)
        recalls = tried.recalls[_level(k)]
        return list(zip(tried.numbers.tolist(), recalls.tolist(), strict=True))

    def _tried(self, cells: Cells, queries: Codes | None, threads: int | None) -> _Tried:
        n_self = 0
        if queries is None:  # then each query finds itself, which does not count
            rows = np.concatenate([cells.strangers, np.arange(cells.n_trained, cells.n_rows)])
            if len(rows) > _QUERIES_TRIED:
                rng = np.random.default_rng(self._seed)
                rows = np.sort(rng.choice(rows, _QUERIES_TRIED, replace=False))
            if not len(rows):
                return _NEVER_TRIED
            queries, _ = cells.take(rows)
            n_self = 1
        ks = np.minimum(_TRIED_KS, cells.n_rows - n_self)
        k_max = int(ks.max()) + n_self

        def distances(nprobe: int) -> NDArray[np.int32]:
            probes = self._nearest_cells(cells, queries, nprobe, threads)
            keys = self._scanned(cells, queries, k_max, probes, cells.lists.filled, threads)
            found: NDArray[np.int32] = split_keys(keys)[0]
            return found

        n_lists = len(cells.lists)
        exact = distances(n_lists)
        numbers, recalls = [], []
        nprobe = 1
        while nprobe < n_lists:
            found = distances(nprobe)
            numbers.append(nprobe)
            recalls.append([_share_found(found, exact, int(k), n_self) for k in ks])
            nprobe = max(nprobe + 1, int(_TRIED_STEP * nprobe))
        recalls = [*recalls, [1.0] * len(ks)]
        # More cells never find less; a k-th that ties with others should not say so.
        ascending = np.maximum.accumulate(np.array(recalls).T, axis=1)
        return _Tried(np.array([*numbers, n_lists]), ascending, cells.n_rows)

    # Keeping.

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What the index is made of, to be kept in a file.

        Returns
        -------
        settings : dict
            What JSON holds.
        arrays : dict of arrays
            All rows are in lists.
        """
        with self._changing:
            contents = self._contents
            if len(contents.tail):
                none = np.zeros((0, checks.words_for(self.n_bits)), np.uint64)
                self._sort_in(contents, none, None, None, None, False)
                contents = self._contents
            removed = self._removed
        settings: dict[str, Any] = {
            "n_bits": self.n_bits,
            "n_lists": self._n_lists,
            "nprobe": self._nprobe,
            "target_recall": self._target_recall,
            "factors": bool(self._n_factors),
            "seed": self._seed,
            "n_rows": contents.n_rows,
        }
        if contents.cells is None:
            return settings, {}
        cells = contents.cells
        settings["n_trained"] = cells.n_trained
        n_blocks, n_columns, _ = cells.lists.blocks.shape
        arrays: dict[str, NDArray[Any]] = {
            "centers": cells.centers,
            "radii": cells.radii,
            "strangers": cells.strangers,
            "tried": contents.tried.numbers,
            "recalls": contents.tried.recalls,
            "begins": cells.lists.begins,
            "blocks": cells.lists.blocks.reshape(n_blocks, n_columns * BLOCK_ROWS),
            "rows": cells.lists.rows.reshape(n_blocks, BLOCK_ROWS),
            "filled": cells.lists.filled,
        }
        if removed is not None:
            arrays["removed"] = removed
        if self._n_factors:
            arrays["factors"] = cells.lists.factors.reshape(n_blocks, 2 * BLOCK_ROWS)
        return settings, arrays

    @classmethod
    def from_state(
        cls,
        settings: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        verify: Verify | None = None,
    ) -> IVFIndex:
        """The index that `state` was asked of; large arrays are used as they are.

        Parameters
        ----------
        settings, arrays : mapping
        verify : callable, optional
            Called with row numbers of the arrays named in `LARGE` before these are used.

        Raises
        ------
        ValueError
            Where they do not fit together.
        """
        index = cls(
            settings.get("n_bits"),  # type: ignore[arg-type]
            settings.get("n_lists"),
            nprobe=settings.get("nprobe"),
            target_recall=settings.get("target_recall"),
            factors=bool(settings.get("factors")),
            seed=settings.get("seed"),  # type: ignore[arg-type]
        )
        n_rows = checks.integer(settings.get("n_rows"), "n_rows", 0)
        if not n_rows:
            return index
        n_words = checks.words_for(index.n_bits)
        n_lists, n_blocks, n_tried = (length_of(arrays, n) for n in ("radii", "filled", "tried"))
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "centers": (np.uint64, (n_lists, n_words)),
            "radii": (np.int32, (n_lists,)),
            "strangers": (np.int64, (length_of(arrays, "strangers"),)),
            "tried": (np.int64, (n_tried,)),
            "recalls": (np.float64, (len(_TRIED_KS), n_tried)),
            "begins": (np.int64, (n_lists + 1,)),
            "blocks": (np.uint8, (n_blocks, 8 * n_words * BLOCK_ROWS)),
            "rows": (np.int64, (n_blocks, BLOCK_ROWS)),
            "filled": (np.uint64, (n_blocks,)),
        }
        if "removed" in arrays:
            shapes["removed"] = np.uint64, (length_of(arrays, "removed"),)
        if index._n_factors:
            shapes["factors"] = np.float32, (n_blocks, 2 * BLOCK_ROWS)
        check_arrays(arrays, shapes)
        begins, filled = frozen(arrays["begins"]), frozen(arrays["filled"])
        if not n_lists or begins[0] != 0 or begins[-1] != n_blocks or (np.diff(begins) < 0).any():
            raise ValueError(f"begins must ascend from 0 to {n_blocks}, the number of blocks")
        n_filled = int(np.bitwise_count(filled).sum())
        if n_filled != n_rows:
            raise ValueError(f"filled must have a bit for each of {n_rows} rows, has {n_filled}")
        n_places = BLOCK_ROWS * n_blocks
        factors = np.empty((n_places, 0), np.float32)
        if index._n_factors:
            factors = arrays["factors"].reshape(n_places, 2)
        blocks = arrays["blocks"].reshape(n_blocks, 8 * n_words, BLOCK_ROWS)
        rows = arrays["rows"].reshape(n_places)
        lists = Lists(begins, frozen(blocks), frozen(rows), filled, frozen(factors), verify)
        centers = checks.codes(arrays["centers"], "centers", index.n_bits)
        n_trained = checks.integer(settings["n_trained"], "n_trained", 1)
        strangers = np.array(arrays["strangers"])
        if strangers.size and not 0 <= strangers.min() <= strangers.max() < n_rows:
            raise ValueError(f"strangers must be rows below {n_rows}")
        rest = frozen(arrays["radii"]), lists, n_rows, n_trained, strangers, index._method
        tried = _Tried(np.array(arrays["tried"]), np.array(arrays["recalls"]), n_rows)
        if not n_tried or not (tried.recalls[:, -1] == 1).all():
            raise ValueError("recalls must end with 1, which all lists reach")
        index._contents = _Contents(Cells.of(centers, *rest), index._new_tail(), tried)
        if "removed" in arrays:
            index._removed = np.array(arrays["removed"])
        return index


def _checked_vectors(value: Any, n_rows: int) -> Any:
    """Vectors as an array, or what is read by rows as it came."""
    is_read = not isinstance(value, np.ndarray) and hasattr(value, "shape")
    vectors = value if is_read else checks.floats(value, "vectors")
    if len(vectors.shape) != 2 or vectors.shape[0] != n_rows:
        raise ValueError(
            f"vectors must be one a code: got shape {tuple(vectors.shape)} for {n_rows} codes"
        )
    return vectors


def _share_found(found: NDArray[np.int32], exact: NDArray[np.int32], k: int, n_self: int) -> float:
    """How many of the nearest ``k`` were found, as a share; ties count."""
    if k < 1:
        return 1.0
    near = found[:, : k + n_self] <= exact[:, k + n_self - 1, None]
    return float((near.sum() - n_self * len(found)) / (k * len(found)))
