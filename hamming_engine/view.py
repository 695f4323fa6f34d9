"""One generation of a collection: its rows found by id, read, searched and scored."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from .calibrate import Calibration, confidence_of, oversample_of, smallest_number
from .codes import pack_rows
from .columns import public, stored_type
from .evaluate import exact_top_k
from .forks import ForkSafeLock
from .held import NO_FACTORS, Piece
from .hits import Hits, Records
from .ids import kind_of, public_ids, shown, stored_ids
from .incoming import Rows
from .indexes import asymmetric, scan
from .indexes.where import Where
from .indexing import StoredIndex
from .kernels.launch import usable_threads
from .kernels.topk import NO_RESULT, keys_of_scores, rows_of_keys, split_keys
from .optional import progress_bar
from .quantize import Int8Scale, Quantizer, QueryWeights
from .rerank import CodeSource, Source, Verify, code_scores, exact_scores
from .store.errors import DamagedError, FormatError
from .store.reader import CodeReader
from .store.segment import Segment, column_array
from .store.snapshot import Part, Snapshot

METHODS = ("hamming", "asymmetric")
DEFAULT_METHOD = "asymmetric"  # what measures best with every quantiser: benchmarks/quality
DEFAULT_OVERSAMPLE = 4.0
_CERTAIN = 0.99
_MAX_AUTO_OVERSAMPLE = 256.0
MAX_OVERSAMPLE = 1 << 40  # far beyond every collection: more means a mistake

_CANDIDATES_BY_DISTANCE = 2  # by Hamming distance, for each wanted by the float query

SHARE_FOR_CODES = 3 / 4  # of memory_bytes; the rest is for what a batch of queries needs
_TRUTH_BYTES = 64 << 20  # of floats, among which exact results are found at once
_MAX_BATCH = 4096  # queries that a block is scanned for while nothing interrupts it
# Bytes a candidate takes at the worst moment of a search, beside the shortlists: row, place in the
# row order, copies while sorting, score and id.
_BYTES_PER_CANDIDATE = 96


class _Batch(NamedTuple):
    """Some queries and their candidates, best first.

    ``distances`` are None where the scan had no use for them.
    """

    queries: NDArray[Any]
    weights: QueryWeights
    codes: NDArray[np.uint64]
    rows: NDArray[np.int64]
    distances: NDArray[np.int32] | None


class _Search(NamedTuple):
    """What is the same for all queries of a search."""

    k: int
    method: str
    where: Where
    columns: tuple[str, ...]
    threads: int | None
    bar: Any
    target_recall: float | None = None  # of the index
    exact: bool = False  # without it


class Columns(Mapping[str, NDArray[Any]]):
    """The columns of a generation, each an array with a value for each row, in row order.

    An array is read, verified and, where need be, copied whenever it is asked for; it is read-only.
    """

    def __init__(self, view: View) -> None:
        self._view = view

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._view.column(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._view.snapshot.schema.columns)

    def __len__(self) -> int:
        return len(self._view.snapshot.schema.columns)

    def __repr__(self) -> str:
        return f"<Columns of {self._view.n_rows:,} rows: {self._view.snapshot.schema.columns}>"


class Readers(NamedTuple):
    """What reads codes, and keeps them: all, or those of rows behind an index."""

    all: CodeReader
    tail: CodeReader


class View:
    """The rows of a collection as of one generation; it never changes.

    Rows are numbered as in the snapshot, those that were removed among them; outside they are known
    by their ids, and arrays over all rows leave the removed ones out.

    Parameters
    ----------
    snapshot : Snapshot
    quantizer : Quantizer
    readers : Readers
    memory_bytes : int
    before : View, optional
        Of an earlier generation: its index is taken if it is the same.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        quantizer: Quantizer,
        readers: Readers,
        memory_bytes: int,
        before: View | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.quantizer = quantizer
        self._readers = readers
        self._memory_bytes = memory_bytes
        self._sources: dict[str, list[Any]] = {}
        self._opening = ForkSafeLock()
        self._index: StoredIndex | None = None
        self.index_error: Exception | None = snapshot.index_error
        self._told = False
        if before is not None and before.snapshot.manifest.index == snapshot.manifest.index:
            self._index, self._told = before._index, before._told
            self.index_error = before.index_error

    @property
    def n_rows(self) -> int:
        return self.snapshot.n_rows

    @property
    def _n_stored(self) -> int:
        return self.snapshot.n_stored

    @property
    def _removed(self) -> NDArray[np.uint64] | None:
        return self.snapshot.removed if self.n_rows < self._n_stored else None

    def find(self, ids: Any, name: str = "ids", besides: str = "") -> NDArray[np.int64]:
        """The row of each id, or -1; an id alone is one too.

        ``besides`` says what else the argument could be.

        Raises
        ------
        TypeError, ValueError
            Where they are no ids of the collection's kind.
        """
        if isinstance(ids, (str, int, np.integer)) and not isinstance(ids, bool):
            ids = [ids]
        wanted = stored_ids(ids, name)
        kind = self.snapshot.manifest.ids
        if len(wanted) and kind not in (None, kind_of(wanted)):
            raise TypeError(f"{name} must be {besides}{kind} ids, got {kind_of(wanted)}")
        return self.snapshot.find_ids(wanted)

    def get(self, ids: Any) -> Records:
        """What is stored of some rows, in the order of their ids."""
        rows = self.find(ids)
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            first = shown(stored_ids(np.atleast_1d(ids))[missing[0]])
            raise KeyError(f"ids holds {missing.size} that are not in the collection: {first}")
        schema = self.snapshot.schema
        vectors: NDArray[Any] | None = None
        if schema.vectors is not None:
            vectors = np.empty((len(rows), schema.dim), _public_vectors(schema.vectors))
            for source, inside, places in _each(self._sources_of("vectors"), rows):
                vectors[inside] = _decoded(source, places)
        codes = np.empty((len(rows), checks.words_for(schema.n_bits)), np.uint64)
        for source, inside, places in _each(self._sources_of("codes"), rows):
            source.verify(places)
            codes[inside] = source.rows[places]
        columns = {name: self._column_of(name, rows) for name in schema.columns}
        return Records(self.ids_of(rows), vectors, codes, columns)

    @property
    def ids(self) -> NDArray[Any]:
        """The ids of all rows, in row order, read-only."""
        return self.public_ids(self._all("ids", self._id_type))

    def column(self, name: str) -> NDArray[Any]:
        """A column of all rows, in row order, read-only."""
        kind = self._column_kind(name)
        return self._public(name, kind, self._all(column_array(name), self._column_type(name)))

    def _all(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array over all rows that are there: the file's own where nothing is to be joined."""
        arrays = [part.segment.verified_map(name) for part in self.snapshot.parts]
        if len(arrays) == 1 and self._removed is None:
            return checks.frozen(arrays[0])
        joined = np.concatenate(arrays, dtype=dtype) if arrays else np.zeros(0, dtype)
        if self._removed is not None:
            joined = joined[self.snapshot.is_there(0, self._n_stored)]
        return checks.frozen(joined)

    @property
    def _id_type(self) -> np.dtype[Any]:
        kind = np.dtype("S1" if self.snapshot.manifest.ids == "utf8" else np.int64)
        return self._widest("ids", kind)

    def _column_type(self, name: str) -> np.dtype[Any]:
        kind = stored_type(self._column_kind(name))
        return self._widest(column_array(name), kind if kind.itemsize else np.dtype("S1"))

    def _widest(self, name: str, otherwise: np.dtype[Any]) -> np.dtype[Any]:
        """The type of an array in all segments: text is as wide as the longest."""
        each = (part.segment.dtype(name) for part in self.snapshot.parts)
        return max(each, key=lambda dtype: dtype.itemsize, default=otherwise)

    def _column_kind(self, name: Any) -> str:
        kinds = self.snapshot.schema.columns
        if name not in kinds:
            raise KeyError(f"no column {name!r}, the collection has {sorted(kinds)}")
        return kinds[name]

    def _checked_names(self, columns: Any) -> tuple[str, ...]:
        """Names of columns that are there; a name alone is one too."""
        given = columns if isinstance(columns, Iterable) else [columns]
        names = (columns,) if isinstance(columns, str) else tuple(given)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"columns must be names of columns, got {columns!r}")
        for name in names:
            self._column_kind(name)
        return names

    def ids_of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The ids of rows, in an array of any shape."""
        return self.public_ids(self._taken("ids", self._id_type, rows))

    def _column_of(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        kind = self._column_kind(name)
        return self._public(
            name, kind, self._taken(column_array(name), self._column_type(name), rows)
        )

    def _taken(self, name: str, dtype: np.dtype[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
        """Values of some rows."""
        values = np.empty(rows.shape, dtype)
        for first_row, segment in self.snapshot.parts:
            inside = (rows >= first_row) & (rows < first_row + segment.n_rows)
            if inside.any():
                values[inside] = segment.take(name, rows[inside] - first_row)
        return values

    def public_ids(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Ids as they were given."""
        try:
            return public_ids(stored)
        except UnicodeDecodeError as error:
            raise DamagedError(f"{self._path}: ids are no UTF-8: {error}") from None

    def _public(self, name: str, kind: str, stored: NDArray[Any]) -> NDArray[Any]:
        try:
            return public(stored, kind)
        except ValueError as error:
            raise DamagedError(f"{self._path}: column {name!r}: {error}") from None

    @property
    def _path(self) -> str:
        return str(self.snapshot.path)

    @property
    def columns(self) -> Columns:
        return Columns(self)

    def all_vectors(self) -> Any:
        """The vectors of all rows, those that were removed among them, read by rows; or None."""
        if self.snapshot.schema.vectors is None:
            return None
        return _StoredVectors(self, np.arange(self._n_stored))

    def stored_rows(self) -> Rows:
        """The vectors of all rows, to be encoded or stored anew."""
        there = np.flatnonzero(self.snapshot.is_there(0, self._n_stored))
        return Rows(_StoredVectors(self, there), self.snapshot.schema.dim)

    def where(self, where: Any) -> Where:
        """The rows that ``where`` lets through: a mask, ids, or what a function of columns says."""
        if where is None:
            return Where(self._n_stored, removed=self._removed)
        if callable(where):
            where = where(self.columns)
        if checks.is_mask(where):
            mask = checks.mask(where, self.n_rows)
            if self._removed is not None:
                stored = self.snapshot.is_there(0, self._n_stored)
                stored[stored] = mask
                mask = stored
            return Where(self._n_stored, mask)
        rows = self.find(where, "where", "a bool mask or ")
        return Where(self._n_stored, np.unique(rows[rows >= 0]))

    def search(
        self,
        queries: ArrayLike,
        k: int,
        *,
        method: str | None,
        oversample: float | str | None,
        rerank: bool,
        certify: bool,
        target_recall: Any,
        where: Any,
        columns: Any,
        threads: int | None,
        progress: bool,
    ) -> Hits:
        """See `Collection.search`."""
        target_recall = checks.recall(target_recall)
        vectors = checks.floats(queries, "queries", self.snapshot.schema.dim)
        k = checks.integer(k, "k", 1)
        threads = checks.threads(threads)
        calibrated_method, calibrated = self._calibrated()
        method = self._checked_method(calibrated_method if method is None else method)
        if method != calibrated_method:
            calibrated = DEFAULT_OVERSAMPLE
        if oversample is None:
            oversample = calibrated
        until_certain = isinstance(oversample, str) and oversample == "auto"
        if isinstance(oversample, str) and not until_certain:
            raise TypeError(f"oversample must be a number or 'auto', got {oversample!r}")
        if certify or until_certain:
            self._check_certifiable(method, rerank)
        columns = self._checked_names(columns)
        allowed = self.where(where)
        with progress_bar(progress, 0, "row") as bar:
            k = min(k, allowed.n_allowed)
            # What is certain of rows that were not seen holds where all were looked at.
            exact = certify or until_certain or target_recall == 1
            rest = columns, threads, bar, target_recall, exact
            task = _Search(k, method, allowed, *rest)
            if until_certain:
                return self._search_until_certain(task, vectors, calibrated)
            return self._search(task, vectors, checked_oversample(oversample), rerank, certify)

    def _search(
        self,
        task: _Search,
        queries: NDArray[Any],
        oversample: float,
        rerank: bool,
        certify: bool,
    ) -> Hits:
        """Search with a number of candidates."""
        k, n_allowed = task.k, task.where.n_allowed
        n_candidates = k
        if rerank:
            n_candidates = min(max(k, int(np.ceil(k * oversample))), n_allowed)
        found, found_rows, confidences = [], [], []
        for batch in self._candidates(task, queries, n_candidates):
            if rerank and self.snapshot.schema.vectors is not None:
                scores = self._score(batch.queries, batch.rows, task.threads)
            elif rerank or batch.distances is None:
                scores = self._score_codes(batch, task.threads)
            else:
                n_bits = self.snapshot.schema.n_bits
                scores = (1 - 2 * batch.distances / n_bits).astype(np.float32)
            if certify:
                estimates = self._score_codes(batch, task.threads)
                n_unseen = n_allowed - n_candidates
                confidences.append(confidence_of(scores, estimates, k, n_unseen))
            best = np.lexsort((batch.rows, -scores), axis=1)[:, :k]
            rows = np.take_along_axis(batch.rows, best, axis=1)
            if batch.distances is None:
                distances = self._distances(batch, rows)
            else:
                distances = np.take_along_axis(batch.distances, best, axis=1)
            scores = np.take_along_axis(scores, best, axis=1)
            found.append((self.ids_of(rows), scores, distances))
            found_rows.append(rows)
        hits = Hits(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))
        rows = np.concatenate(found_rows)
        hits.columns = {name: self._column_of(name, rows) for name in task.columns}
        if certify:
            hits.confidence = np.concatenate(confidences)
        return hits

    def _search_until_certain(
        self, task: _Search, queries: NDArray[Any], oversample: float
    ) -> Hits:
        """Search with more and more candidates those queries whose results are not certain."""
        hits = self._search(task, queries, oversample, rerank=True, certify=True)
        while oversample < _MAX_AUTO_OVERSAMPLE:
            confidence = hits.confidence
            assert confidence is not None
            open_ = np.flatnonzero(confidence < _CERTAIN)
            if not open_.size:
                break
            oversample = min(2 * oversample, _MAX_AUTO_OVERSAMPLE)
            again = self._search(task, queries[open_], oversample, rerank=True, certify=True)
            pairs: Any = zip(hits, again, strict=True)
            better = Hits(*(_with_rows(array, open_, new) for array, new in pairs))
            better.confidence = _with_rows(confidence, open_, again.confidence)
            better.columns = {
                name: _with_rows(values, open_, again.columns[name])
                for name, values in hits.columns.items()
            }
            hits = better
        return hits

    def _check_certifiable(self, method: str, rerank: bool) -> None:
        if self.snapshot.schema.vectors is None or not rerank:
            raise ValueError("certify needs stored vectors and rerank=True: exact scores tell it")
        if method != "asymmetric" or not self.quantizer.n_factors:
            raise ValueError(
                f"certify needs a quantizer that corrects scores, 'rabitq' or 'local_search', and "
                f"method 'asymmetric'; got {self.quantizer.kind!r} and {method!r}"
            )

    def _calibrated(self) -> tuple[str | None, float]:
        """The method that `calibrate` stored, if it did, and its oversample; not trusted."""
        stored = self.snapshot.manifest.search or {}
        if stored.get("method") is None:
            return None, DEFAULT_OVERSAMPLE
        try:
            method = self._checked_method(stored["method"])
            return method, checked_oversample(stored.get("oversample"))
        except (TypeError, ValueError) as error:
            raise FormatError(f"{self._path}: search: {error}") from None

    def _checked_method(self, method: Any) -> str:
        if method is None:
            return DEFAULT_METHOD
        checks.choice(method, "method", METHODS)
        if method == "hamming" and not self.quantizer.hamming:
            raise ValueError(
                f"method must be 'asymmetric' with the quantizer {self.quantizer.kind!r}: its "
                f"bits are chosen for a decoder, so Hamming distances between them say little"
            )
        return str(method)

    def _candidates(
        self, task: _Search, queries: NDArray[Any], n_candidates: int
    ) -> Iterator[_Batch]:
        """The best rows by their codes, a batch of queries at a time."""
        method, threads, schema = task.method, task.threads, self.snapshot.schema
        if not self.quantizer.is_fitted:  # nothing was appended yet
            weights = QueryWeights(
                np.zeros((len(queries), schema.n_bits), np.float32), np.zeros(len(queries))
            )
            n_words = checks.words_for(schema.n_bits)
            codes = checks.frozen(np.zeros((len(queries), n_words), np.uint64))
        else:
            weights = self.quantizer.weights(queries)
            if method == "hamming":
                codes = self.quantizer.encode_rows(queries, "queries", threads=threads).codes
            else:
                codes = pack_rows(weights.weights, "queries", threads=threads)
            codes = checks.frozen(codes)
        index = self.index if n_candidates else None
        if index is not None and task.exact and not (index.exact and method == "hamming"):
            index = None
        n_indexed = 0 if index is None else index.n_rows
        n_tail = task.where.count(n_indexed, self._n_stored - n_indexed)
        scan = _Scan(self, task, n_indexed, min(n_candidates, n_tail), method)
        bytes_per_query = _BYTES_PER_CANDIDATE * n_candidates + 16 * schema.dim
        bytes_per_query += scan.bytes_per_query(codes.shape[1])
        room = int(self._memory_bytes * (1 - SHARE_FOR_CODES))
        size = max(1, min(_MAX_BATCH, room // bytes_per_query))
        starts = range(0, len(queries), size) or [0]
        task.bar.total = len(starts) * self._n_stored
        for first in starts:
            chosen = slice(first, first + size)
            searched = QueryWeights(weights.weights[chosen], weights.constants[chosen])
            given = codes[chosen] if method == "hamming" else searched.weights
            keys = scan.keys(given)
            if index is not None:
                try:
                    of_index = self._keys_of_index(
                        index, task, searched, codes[chosen], n_candidates
                    )
                except DamagedError as error:
                    self._leave_index(error)
                    yield from self._candidates(task, queries[first:], n_candidates)
                    return
                task.bar.update(n_indexed)
                keys = np.sort(np.concatenate([of_index, keys], axis=1), axis=1)[:, :n_candidates]
            distances, rows = split_keys(keys)
            if method != "hamming":
                distances = None
            yield _Batch(queries[chosen], searched, codes[chosen], rows, distances)

    def _keys_of_index(
        self,
        index: StoredIndex,
        task: _Search,
        weights: QueryWeights,
        codes: NDArray[np.uint64],
        n: int,
    ) -> NDArray[np.int64]:
        """Keys of the best rows of the index, (n_queries, n)."""
        rest = task.where, task.target_recall, task.threads
        if task.method == "hamming" or index.by_weights:
            given = codes if task.method == "hamming" else weights.weights
            return index.best_keys(given, n, *rest)
        n_found = min(_CANDIDATES_BY_DISTANCE * n, task.where.count(0, index.n_rows))
        rows = rows_of_keys(index.best_keys(codes, n_found, *rest))
        scores = self._finite(code_scores(weights, rows, self._sources_of("codes"), task.threads))
        keys = np.full((len(codes), max(n, n_found)), NO_RESULT)
        # The order of a scan, in which what is the same for all rows of a query does not count.
        keys[:, :n_found] = keys_of_scores(scores - weights.constants[:, None], rows)
        best: NDArray[np.int64] = np.sort(keys, axis=1)[:, :n]
        return best

    @property
    def index(self) -> StoredIndex | None:
        """The index of the first rows, if there is one that can be used."""
        with self._opening:
            if self._index is None and self.snapshot.index is not None and not self.index_error:
                try:
                    self._index = StoredIndex(self.snapshot)
                except (OSError, DamagedError, FormatError) as error:
                    self.index_error = error
            if self.index_error is not None and not self._told:
                self._told = True
                warnings.warn(
                    f"the index cannot be used, and searches scan all codes, until build_index "
                    f"has made it anew: {self.index_error}",
                    stacklevel=2,
                )
            return None if self.index_error is not None else self._index

    def about_index(self) -> dict[str, Any] | None:
        """What `Collection.info` says of the index."""
        entry, file = self.snapshot.manifest.index, self.snapshot.index
        if entry is None:
            return None
        segments = self.snapshot.manifest.segments[: len(entry.segments)]
        about: dict[str, Any] = {
            "kind": entry.settings.get("chosen"),
            "target_recall": entry.settings.get("target_recall"),
            "rows": sum(segment.n_rows for segment in segments),
            "bytes": 0 if file is None else file.size,
        }
        if self.index_error is not None:
            about["error"] = str(self.index_error)
        return about

    def _leave_index(self, error: Exception) -> None:
        """Search without the index from now on."""
        self.index_error = error

    def _score(
        self, queries: NDArray[Any], rows: NDArray[np.int64], threads: int | None
    ) -> NDArray[np.float32]:
        sources = self._sources_of("vectors")
        metric = self.snapshot.schema.metric
        return self._finite(
            exact_scores(queries.astype(np.float64), rows, sources, metric, threads)
        )

    def _score_codes(self, batch: _Batch, threads: int | None) -> NDArray[np.float32]:
        """Scores of candidates by their codes and factors, with weights that are not rounded."""
        sources = self._sources_of("codes")
        return self._finite(code_scores(batch.weights, batch.rows, sources, threads))

    def _finite(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(scores).all():
            raise ValueError(
                f"queries and rows are too large: {self.snapshot.schema.metric} scores do not fit "
                f"into float32"
            )
        return scores

    def _distances(self, batch: _Batch, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Hamming distances of some rows, where the scan had no use for them."""
        distances = np.zeros(rows.shape, np.int32)
        for source, inside, places in _each(self._sources_of("codes"), rows):
            source.verify(places)
            differing = source.rows[places] ^ batch.codes[np.nonzero(inside)[0]]
            distances[inside] = np.bitwise_count(differing).sum(axis=1)
        return distances

    def _sources_of(self, name: str) -> list[Any]:
        """What candidates are scored with, "vectors" or "codes"; files are mapped once."""
        if name not in self._sources:
            make = _vector_sources if name == "vectors" else _code_sources
            parts = self.snapshot.parts
            self._sources[name] = [source for part in parts for source in make(*part)]
        return self._sources[name]

    def calibrate(
        self,
        target_recall: float,
        queries: ArrayLike | None,
        *,
        k: int,
        method: str | None,
        n_queries: int,
        max_oversample: float,
        seed: int,
        threads: int | None,
    ) -> Calibration:
        """See `Collection.calibrate`; nothing is stored."""
        k = checks.integer(k, "k", 1)
        n_queries = checks.integer(n_queries, "n_queries", 1)
        max_oversample = checked_oversample(max_oversample, "max_oversample")
        seed = checks.integer(seed, "seed", 0)
        threads = checks.threads(threads)
        checks.recall(target_recall)
        if self.snapshot.schema.vectors is None:
            raise ValueError("calibrate needs stored vectors, to know what the true results are")
        n_rows = self.n_rows
        n_own = 0 if queries is not None else 1  # a row finds itself first
        if n_rows < k + n_own:
            raise ValueError(
                f"k must be at most {max(0, n_rows - n_own)}, the rows that a query may find; "
                f"got {k}"
            )
        own = np.zeros(0, np.int64)
        if queries is None:
            rng = np.random.default_rng(seed)
            own = np.sort(rng.choice(n_rows, min(n_queries, n_rows), replace=False))
            own = np.flatnonzero(self.snapshot.is_there(0, self._n_stored))[own]
            vectors = self.vectors_of(own)
        else:
            vectors = checks.floats(queries, "queries", self.snapshot.schema.dim)
            if not len(vectors):
                raise ValueError("queries must not be empty")
        method = self._checked_method(method)
        n_candidates = min(n_rows, int(np.ceil(k * max_oversample)) + n_own)
        bar = progress_bar(False, 0, "")
        task = _Search(k, method, self.where(None), (), threads, bar, exact=True)
        found = [batch.rows for batch in self._candidates(task, vectors, n_candidates)]
        candidates = _without(np.concatenate(found), own)
        truth = _without(self._true_rows(vectors, k + n_own), own)
        n, recall = smallest_number(candidates, truth, target_recall)
        return Calibration(
            method=method,
            oversample=oversample_of(n, k),
            k=k,
            n_queries=len(vectors),
            n_rows=n_rows,
            target_recall=float(target_recall),
            recall=recall.value,
            low=recall.low,
            high=recall.high,
            queries="given" if queries is not None else "rows",
        )

    def vectors_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The stored vectors of some rows."""
        vectors = np.empty((len(rows), self.snapshot.schema.dim), np.float32)
        for source, inside, places in _each(self._sources_of("vectors"), rows):
            vectors[inside] = _decoded(source, places)
        return vectors

    def _vector_blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Rows that are there and their vectors, a block at a time."""
        step = max(1, _TRUTH_BYTES // (4 * self.snapshot.schema.dim))
        for source in self._sources_of("vectors"):
            for first in range(0, len(source.rows), step):
                end = min(first + step, len(source.rows))
                begin = source.first_row
                is_there = self.snapshot.is_there(begin + first, begin + end)
                places = first + np.flatnonzero(is_there)
                if places.size:
                    yield begin + places, _decoded(source, places).astype(np.float32, copy=False)

    def _true_rows(self, queries: NDArray[Any], k: int) -> NDArray[np.int64]:
        """The rows with the best scores by the stored vectors."""
        best = np.zeros((len(queries), 0), np.int64)
        best_scores = np.zeros(best.shape)
        for rows, vectors in self._vector_blocks():
            places, scores = exact_top_k(
                queries, vectors, min(k, len(vectors)), self.snapshot.schema.metric
            )
            best = np.concatenate([best, rows[places]], axis=1)
            best_scores = np.concatenate([best_scores, scores], axis=1)
            order = np.lexsort((best, -best_scores), axis=1)[:, :k]
            best = np.take_along_axis(best, order, axis=1)
            best_scores = np.take_along_axis(best_scores, order, axis=1)
        return best


class _Scan:
    """Exact search of the rows behind those of an index, or of all; a batch of queries at a time.

    Parameters
    ----------
    view : View
    task : _Search
    first_row : int
        Where a segment begins.
    k : int
        At most the number of rows that are let through.
    method : str
    """

    def __init__(self, view: View, task: _Search, first_row: int, k: int, method: str) -> None:
        self._task, self._first_row, self._k = task, first_row, k
        self._by_codes = method == "hamming"
        self._reader = view._readers.tail if first_row else view._readers.all
        self._parts = [
            Part(part.first_row - first_row, part.segment)
            for part in view.snapshot.parts
            if part.first_row >= first_row
        ]
        # One may wait for the disk while the other scans.
        at_most = max(2, usable_threads(task.threads))
        self._n_readers = self._reader.n_readers(self._parts, at_most)
        self._kept = self._reader.kept(self._parts, self._n_readers) if k else []
        self._n_rows = view.snapshot.n_stored - first_row
        self._in_memory = sum(piece.n_rows for piece in self._kept) == self._n_rows

    @property
    def _n_visitors(self) -> int:
        return 0 if self._in_memory else self._n_readers

    def bytes_per_query(self, n_words: int) -> int:
        """Bytes that a search takes for each query, at most."""
        of_scan = (scan if self._by_codes else asymmetric).bytes_per_query
        n_bytes: int = of_scan(n_words, self._k, max(1, self._n_visitors))
        return n_bytes

    def keys(self, queries: NDArray[Any]) -> NDArray[np.int64]:
        """Keys of the best rows, (n_queries, k)."""
        kind = scan.TopKScan if self._by_codes else asymmetric.AsymmetricScan
        threads, bar = self._task.threads, self._task.bar
        search = kind(queries, self._k, self._n_rows, threads, n_visitors=self._n_visitors)
        if self._in_memory:
            for piece in self._kept:
                search.scan(self._shifted(piece), self._task.where)
                bar.update(piece.n_rows)
        elif self._k:
            self._scan_streamed(search)
        return search.keys()

    def _shifted(self, piece: Piece) -> Piece:
        return piece._replace(first_row=self._first_row + piece.first_row)

    def _scan_streamed(self, search: scan.TopKScan | asymmetric.AsymmetricScan) -> None:
        """One pass over all codes, of which some are read from disk."""
        counting = threading.Lock()

        def visit(reader: int, piece: Piece) -> None:
            search.visit(reader, self._shifted(piece), self._task.where)
            with counting:
                self._task.bar.update(piece.n_rows)

        self._reader.visit(self._parts, self._kept, self._n_readers, visit)


class _StoredVectors:
    """Stored vectors of some rows as an array that is read a slice at a time."""

    dtype = np.dtype(np.float32)

    def __init__(self, view: View, rows: NDArray[np.int64]) -> None:
        self._view, self._rows = view, rows
        self.shape = len(rows), view.snapshot.schema.dim

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        return self._view.vectors_of(self._rows[rows])


class CodeBlocks:
    """The codes of all rows that are there and their ids, in row order, a block at a time.

    A sequence of ``(ids, codes)``, (n,) int64 or str and (n, n_words) uint64, which are read and
    verified whenever they are asked for. It is of one generation, whatever happens meanwhile, while
    the files of this one are there; see `Collection.compact`.

    Parameters
    ----------
    view : View
    max_bytes : int
        Of the codes of a block, or those that have one checksum where these are more.
    """

    def __init__(self, view: View, max_bytes: int) -> None:
        self._view = view
        self._blocks: list[list[tuple[Part, int, int]]] = []
        room = 0
        for part in view.snapshot.parts:
            row_bytes = part.segment.row_bytes("codes")
            step = part.segment.header.rows_per_checksum
            begin = 0
            while begin < part.segment.n_rows:
                n_rows = room // row_bytes // step * step
                if not n_rows:
                    self._blocks.append([])
                    room = max(max_bytes, row_bytes * step)
                    continue
                end = min(begin + n_rows, part.segment.n_rows)
                self._blocks[-1].append((part, begin, end))
                room -= (end - begin) * row_bytes
                begin = end

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, number: int) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        view, ids, codes = self._view, [], []
        for (first_row, segment), begin, end in self._blocks[number]:
            there = view.snapshot.is_there(first_row + begin, first_row + end)
            ids.append(segment.read("ids", begin, end, segment.sums("ids"))[there])
            codes.append(segment.read("codes", begin, end, segment.sums("codes"))[there])
        return view.public_ids(np.concatenate(ids)), np.concatenate(codes)

    def __iter__(self) -> Iterator[tuple[NDArray[Any], NDArray[np.uint64]]]:
        return (self[number] for number in range(len(self)))


def checked_oversample(oversample: Any, name: str = "oversample") -> float:
    """A number of candidates for each result."""
    if not 1 <= checks.number(oversample, name) <= MAX_OVERSAMPLE:
        raise ValueError(f"{name} must be at least 1 and at most 2**40, got {oversample}")
    return float(oversample)


def _public_vectors(kept: str) -> type:
    """The type in which users get stored vectors."""
    return {"float16": np.float16, "float32": np.float32, "int8": np.float32}[kept]


def _each(
    sources: list[Any], rows: NDArray[np.int64]
) -> Iterator[tuple[Any, NDArray[np.bool_], NDArray[np.int64]]]:
    """Each source that has some of the rows, where these are in the array, and their places."""
    for source in sources:
        inside = (rows >= source.first_row) & (rows < source.first_row + len(source.rows))
        if inside.any():
            yield source, inside, rows[inside] - source.first_row


def _decoded(source: Source, places: NDArray[np.int64]) -> NDArray[Any]:
    """Some of a source's rows, as what they stand for."""
    source.verify(places)
    rows = source.rows[places]
    return rows if source.scale is None else source.scale.decode(rows)


def _with_rows(array: NDArray[Any], rows: NDArray[np.int64], better: Any) -> NDArray[Any]:
    """A copy in which some rows are others; text gets the width that the longest needs."""
    copy = array.astype(np.result_type(array, better))
    copy[rows] = better
    return copy


def _without(rows: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each query's results without the row that the query is, or else without the last one."""
    if not own.size:
        return rows
    keep = rows != own[:, None]
    keep[keep.all(axis=1), -1] = False
    others: NDArray[np.int64] = rows[keep].reshape(len(rows), -1)
    return others


def _code_sources(first_row: int, segment: Segment) -> Iterator[CodeSource]:
    names = ("codes", "factors") if segment.header.schema.factors else ("codes",)
    factors = segment.map("factors") if len(names) == 2 else NO_FACTORS
    yield CodeSource(first_row, segment.map("codes"), factors, _verifier(segment, names))


def _vector_sources(first_row: int, segment: Segment) -> Iterator[Source]:
    vectors, names = segment.map("vectors"), ("vectors",)
    if segment.header.schema.vectors != "int8":
        yield Source(first_row, vectors, verify=_verifier(segment, names))
        return
    calibration = segment.calibration
    ends = np.append(calibration.first_row, segment.n_rows)[1:]
    for begin, end, scale, offset in zip(
        calibration.first_row, ends, calibration.scale, calibration.offset, strict=True
    ):
        yield Source(
            first_row + int(begin),
            vectors[begin:end],
            Int8Scale(scale, offset),
            _verifier(segment, names, int(begin)),
        )


def _verifier(segment: Segment, names: tuple[str, ...], begin: int = 0) -> Verify:
    """What verifies rows of a source, which begins at row ``begin`` of a segment."""

    def verify(places: NDArray[np.int64]) -> None:
        for name in names:
            segment.verify_rows(name, begin + places)

    return verify
