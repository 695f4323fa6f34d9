"""The engine: float vectors in, ids out, on disk."""

from __future__ import annotations

import contextlib
import copy
import html
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from .calibrate import Calibration, confidence_of, oversample_of, smallest_number
from .codes import pack_rows
from .evaluate import exact_top_k
from .forks import ForkSafeLock
from .held import NO_FACTORS, Piece
from .hits import Hits
from .ids import kind_of, public_ids, stored_ids
from .incoming import Rows, drain, finite_blocks, new_ids, write_rows
from .indexes import asymmetric, scan
from .indexes.where import Where
from .kernels.launch import usable_threads
from .optional import progress_bar
from .quantize import Int8Scale, Quantizer, QueryWeights, SignQuantizer, by_name, from_stored
from .rerank import CodeSource, Source, code_scores, exact_scores
from .store.errors import DamagedError, FormatError
from .store.quantizer import FittedQuantizer
from .store.reader import CodeReader
from .store.schema import MAX_DIM, METRICS, VECTORS, Schema
from .store.segment import Calibration as Int8Calibration
from .store.segment import Segment
from .store.spool import Spool
from .store.store import Part, Store
from .store.transfer import export_parts

MIN_MEMORY_BYTES = 8 << 20
METHODS = ("hamming", "asymmetric")
DEFAULT_METHOD = "asymmetric"  # what measures best with every quantiser: benchmarks/quality
DEFAULT_OVERSAMPLE = 4.0
_CERTAIN = 0.99
_MAX_AUTO_OVERSAMPLE = 256.0
MAX_OVERSAMPLE = 1 << 40  # far beyond every collection: more means a mistake

_SHARE_FOR_CODES = 3 / 4  # of memory_bytes; the rest is for what a batch of queries needs
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

    parts: tuple[Part, ...]
    k: int
    method: str
    where: Where
    threads: int | None
    bar: Any


class Collection:
    """Embeddings on disk, searched by Hamming distance and re-ranked by exact scores.

    Make one with `create` or `open`, close it with `close` or a ``with`` block. Any number of
    readers and one writer can have a collection open; a reader sees the rows that were there when
    it opened it. Threads may share one object.
    """

    def __init__(self, store: Store, memory_bytes: int | None) -> None:
        self._store: Store | None = store
        try:
            self._quantizer = _quantizer_of(store)
        except BaseException:
            store.close()
            raise
        self._memory_bytes = memory_bytes or default_memory_bytes()
        self._reader = CodeReader(
            int(self._memory_bytes * _SHARE_FOR_CODES), with_factors=store.schema.factors > 0
        )
        self._sources: dict[tuple[str, str], list[Any]] = {}
        self._write_lock = ForkSafeLock()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        dim: int,
        *,
        vectors: str | None = "float16",
        metric: str = "cosine",
        quantizer: Quantizer | str = "sign",
        memory_bytes: int | None = None,
    ) -> Collection:
        """Make an empty collection and open it for writing.

        Parameters
        ----------
        path : path
            A folder to be made; its parent exists. An empty folder is taken.
        dim : int
            Dimensions of the embeddings, 1 to 1,048,576.
        vectors : {"float16", "float32", "int8", None}
            What is kept for re-ranking. "int8" takes a quarter of float32, with the range of each
            dimension stored by append. None keeps codes alone, and candidates are re-ranked by the
            float query against the signs.
        metric : {"cosine", "dot", "l2"}
            The score: cosine similarity, dot product, or minus the squared Euclidean distance.
        quantizer : Quantizer or str
            What turns vectors into codes: one of `hamming_engine.quantize`, or its name, such as
            "local_search". If it is not fitted, the first append fits it to a sample of its rows.
        memory_bytes : int, optional
            See `open`.

        Raises
        ------
        FileExistsError
            Where the path exists.
        TypeError, ValueError, OSError
        """
        dim = checks.integer(dim, "dim", 1)
        if dim > MAX_DIM:
            raise ValueError(f"dim must be at most {MAX_DIM}, got {dim}")
        metric = checks.choice(metric, "metric", METRICS)
        given = _checked_quantizer(quantizer, dim, metric)
        schema = Schema(
            dim=dim,
            n_bits=given.bits_of(dim),
            metric=metric,
            vectors=checks.choice(vectors, "vectors", VECTORS),
            quantizer=given.to_json(),
            factors=given.n_factors,
        )
        memory_bytes = _checked_memory(memory_bytes)
        return cls(Store.create(checks.path(path), schema, given.arrays()), memory_bytes)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        mode: str = "r",
        *,
        memory_bytes: int | None = None,
    ) -> Collection:
        """Open a collection, or the single file that `export` wrote.

        Parameters
        ----------
        path : path
        mode : {"r", "a"}
            "a" allows appending, to one process at a time; a single file can only be read.
        memory_bytes : int, optional
            What the collection may hold in memory, at least 8 MiB; half of the machine's by
            default. Codes that fit are kept, others are streamed from disk by every search; results
            are the same. It holds for one search at a time, each other one that runs beside it adds
            up to a quarter, and the candidates of a single query are held whatever they take. The
            interpreter, compiled kernels and the arrays of the caller are not counted, nor is the
            page cache.

        Raises
        ------
        FileNotFoundError
            Where nothing is there.
        hamming_engine.store.errors.FormatError
            Where it is no collection, or of a newer format version.
        hamming_engine.store.errors.DamagedError
            Where a file is not as it was written.
        hamming_engine.store.errors.LockedError
            Where another writer has it open.
        """
        checks.choice(mode, "mode", ("r", "a"))
        memory_bytes = _checked_memory(memory_bytes)
        return cls(Store.open(checks.path(path), writable=mode == "a"), memory_bytes)

    @property
    def _open_store(self) -> Store:
        if self._store is None:
            raise ValueError("the collection is closed")
        return self._store

    @property
    def dim(self) -> int:
        """Dimensions of the embeddings."""
        return self._open_store.schema.dim

    @property
    def n_bits(self) -> int:
        """Bits in a code."""
        return self._open_store.schema.n_bits

    @property
    def metric(self) -> str:
        """What scores measure."""
        return self._open_store.schema.metric

    @property
    def quantizer(self) -> Quantizer:
        """What turns vectors into codes; before the first append perhaps not fitted yet."""
        return self._quantizer

    @property
    def vectors(self) -> str | None:
        """What is kept for re-ranking."""
        return self._open_store.schema.vectors

    def append(
        self,
        embeddings: ArrayLike | Iterator[Any],
        ids: ArrayLike | None = None,
        *,
        threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Add rows; they are on the disk when this returns, all or none of them.

        Parameters
        ----------
        embeddings : (n, dim) or (dim,) float16, float32 or float64; or an iterator of blocks
            An array, anything with ``shape``, ``dtype`` and slices of rows, such as a memory map or
            an HDF5 data set; or an iterator that yields such blocks, or ``(block, ids)`` pairs. A
            few blocks are in memory at a time. Blocks of an iterator wait on disk, beside the
            collection, until their number is known.
        ids : (n,) int or str, optional
            Distinct, from 0 up or at most 4,096 bytes of text, and all of one kind in a collection.
            By default the number of rows that were appended before. They are held in memory while
            appending.
        threads : int, optional
            At most this many threads; all by default.
        progress : bool
            Show a bar; needs tqdm.

        Raises
        ------
        TypeError, ValueError
            Where an argument has the wrong type, shape or value, a row holds NaN or infinity or
            does not fit into the stored type, or an id comes twice or is there already. Nothing is
            stored then.
        OSError
            Where the disk is full or fails.
        """
        store = self._open_store
        store.check_writable()
        threads = checks.threads(threads)
        if not isinstance(embeddings, Iterator):
            rows = Rows(embeddings, self.dim)
            given = None if ids is None else stored_ids(ids)
            self._append_rows(rows, given, threads, progress)
            return
        if ids is not None:
            raise TypeError("ids must be None with an iterator: let it yield (block, ids)")
        with Spool(store.path) as spool:
            given = drain(embeddings, spool, self.dim)
            rows = Rows(spool.array(self.dim), self.dim)
            self._append_rows(rows, given, threads, progress)

    def _append_rows(
        self, rows: Rows, ids: NDArray[Any] | None, threads: int | None, progress: bool
    ) -> None:
        if ids is not None and len(ids) != rows.n:
            raise ValueError(f"ids must be one a row: got {len(ids)} ids for {rows.n} rows")
        if not rows.n:
            return
        with self._write_lock:
            # Again under the lock: another thread may have closed the collection meanwhile.
            store = self._open_store
            store.check_writable()
            stored, order = new_ids(store, ids, rows.n)
            scale = calibration = None
            if self.vectors == "int8":
                scale = Int8Scale.fit(finite_blocks(rows))
                calibration = Int8Calibration(
                    np.zeros(1, np.int64), scale.scale[None], scale.offset[None]
                )
            quantizer, fitted = self._quantizer, None
            if not quantizer.is_fitted:
                quantizer = self._fitted_to(rows, threads, progress)
                schema = replace(store.schema, quantizer=quantizer.to_json())
                fitted = FittedQuantizer(schema, quantizer.arrays())
            with (
                store.new_segment(stored, order, calibration, quantizer=fitted) as writer,
                progress_bar(progress, rows.n, "row") as bar,
            ):
                write_rows(writer, rows, quantizer, scale, threads, bar)
            # Before the rows are there: a search in another thread that sees them needs it.
            before, self._quantizer = self._quantizer, quantizer
            try:
                store.commit(writer)
            except BaseException:
                self._quantizer = before
                raise

    def _fitted_to(self, rows: Rows, threads: int | None, progress: bool) -> Quantizer:
        """A copy of the quantiser, fitted to the first rows."""
        if rows.n < self.dim and self._quantizer.learns:
            warnings.warn(
                f"the quantizer is fitted to {rows.n} rows of {self.dim} dimensions, which is few: "
                f"append more at first, or fit it beforehand",
                stacklevel=4,
            )
        quantizer = copy.deepcopy(self._quantizer)
        try:
            return quantizer.fit(rows, metric=self.metric, threads=threads, progress=progress)
        except ValueError:
            for _ in finite_blocks(rows):  # it knows rows by their place in a sample
                pass
            raise

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        *,
        method: str | None = None,
        oversample: float | str | None = None,
        rerank: bool = True,
        certify: bool = False,
        where: ArrayLike | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> Hits:
        """The k best rows of each query.

        ``k * oversample`` candidates are found in the codes, exactly by the chosen method, then
        scored with the stored vectors and cut to k.

        Parameters
        ----------
        queries : (n_queries, dim) or (dim,) float16, float32 or float64
        k : int
            Results a query, at least 1.
        method : {"hamming", "asymmetric"}, optional
            How codes are compared: with the code of the query, by Hamming distance, or with the
            query itself, which finds more. By default what `calibrate` stored, or what measures
            best for the quantiser, which is "asymmetric" for all of ours.
        oversample : float or "auto", optional
            Candidates scored for each result, at least 1. More find more of the true best. By
            default what `calibrate` stored, or 4. With "auto" queries begin there, and those whose
            result is not certain by 99 % are searched again with twice as many, up to 256.
        rerank : bool
            False returns the k first candidates, ordered as the codes alone order them.
        certify : bool
            Say for each query how sure its result is, in ``Hits.confidence``. Needs stored vectors,
            and a quantiser that corrects scores: "rabitq" or "local_search".
        where : (n,) bool or (m,) ids, optional
            Only these rows: a mask over all rows, or ids; ids that are not stored are ignored. It
            is applied in the scan, so k results come back wherever so many rows are allowed.
        threads : int, optional
            At most this many threads; all by default. Codes that are not kept in memory are read
            by two at least, so that one scans while the other waits for the disk.
        progress : bool
            Show a bar; needs tqdm.

        Returns
        -------
        Hits
            ids, scores and distances, each (n_queries, min(k, rows allowed)).

        Raises
        ------
        TypeError, ValueError
            Where an argument has the wrong type, shape or value.
        OSError, hamming_engine.store.errors.DamagedError
            Where a file cannot be read, or not as it was written.
        hamming_engine.store.errors.FormatError
            Where its settings of searches are none that `calibrate` stores.
        """
        parts = self._open_store.parts
        vectors = checks.floats(queries, "queries", self.dim)
        k = checks.integer(k, "k", 1)
        threads = checks.threads(threads)
        calibrated_method, calibrated = self._calibrated()
        method = self._checked_method(calibrated_method if method is None else method)
        if method != calibrated_method:
            calibrated = DEFAULT_OVERSAMPLE
        if oversample is None:
            oversample = calibrated
        rows_allowed = self._rows_of(where, _count(parts))
        until_certain = isinstance(oversample, str) and oversample == "auto"
        if isinstance(oversample, str) and not until_certain:
            raise TypeError(f"oversample must be a number or 'auto', got {oversample!r}")
        if certify or until_certain:
            self._check_certifiable(method, rerank)
        with progress_bar(progress, 0, "row") as bar:
            task = _Search(
                parts, min(k, rows_allowed.n_allowed), method, rows_allowed, threads, bar
            )
            if until_certain:
                return self._search_until_certain(task, vectors, calibrated)
            return self._search(task, vectors, _checked_oversample(oversample), rerank, certify)

    def _search(
        self,
        task: _Search,
        queries: NDArray[Any],
        oversample: float,
        rerank: bool,
        certify: bool,
    ) -> Hits:
        """Search with a number of candidates."""
        parts, k, n_allowed = task.parts, task.k, task.where.n_allowed
        n_candidates = k
        if rerank:
            n_candidates = min(max(k, int(np.ceil(k * oversample))), n_allowed)
        found, confidences = [], []
        for batch in self._candidates(task, queries, n_candidates):
            if rerank and self.vectors is not None:
                scores = self._score(parts, batch.queries, batch.rows, task.threads)
            elif rerank or batch.distances is None:
                scores = self._score_codes(parts, batch, task.threads)
            else:
                scores = (1 - 2 * batch.distances / self.n_bits).astype(np.float32)
            if certify:
                estimates = self._score_codes(parts, batch, task.threads)
                n_unseen = n_allowed - n_candidates
                confidences.append(confidence_of(scores, estimates, k, n_unseen))
            best = np.lexsort((batch.rows, -scores), axis=1)[:, :k]
            rows = np.take_along_axis(batch.rows, best, axis=1)
            if batch.distances is None:
                distances = self._distances(parts, batch, rows)
            else:
                distances = np.take_along_axis(batch.distances, best, axis=1)
            scores = np.take_along_axis(scores, best, axis=1)
            found.append(Hits(self._ids_of(parts, rows), scores, distances))
        hits = Hits(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))
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
            hits = Hits(*(_with_rows(array, open_, better) for array, better in pairs))
            hits.confidence = _with_rows(confidence, open_, again.confidence)
        return hits

    def _check_certifiable(self, method: str, rerank: bool) -> None:
        if self.vectors is None or not rerank:
            raise ValueError("certify needs stored vectors and rerank=True: exact scores tell it")
        if method != "asymmetric" or not self._quantizer.n_factors:
            raise ValueError(
                f"certify needs a quantizer that corrects scores, 'rabitq' or 'local_search', and "
                f"method 'asymmetric'; got {self._quantizer.kind!r} and {method!r}"
            )

    def _calibrated(self) -> tuple[str | None, float]:
        """The method that `calibrate` stored, if it did, and its oversample; not trusted."""
        store = self._open_store
        stored = store.manifest.search or {}
        if stored.get("method") is None:
            return None, DEFAULT_OVERSAMPLE
        try:
            method = self._checked_method(stored["method"])
            return method, _checked_oversample(stored.get("oversample"))
        except (TypeError, ValueError) as error:
            raise FormatError(f"{store.path}: search: {error}") from None

    def _checked_method(self, method: Any) -> str:
        if method is None:
            return DEFAULT_METHOD
        checks.choice(method, "method", METHODS)
        if method == "hamming" and not self._quantizer.hamming:
            raise ValueError(
                f"method must be 'asymmetric' with the quantizer {self._quantizer.kind!r}: its "
                f"bits are chosen for a decoder, so Hamming distances between them say little"
            )
        return str(method)

    def _candidates(
        self, task: _Search, queries: NDArray[Any], n_candidates: int
    ) -> Iterator[_Batch]:
        """The best rows by their codes, a batch of queries at a time."""
        parts, _, method, where, threads, bar = task
        if not self._quantizer.is_fitted:  # nothing was appended yet
            weights = QueryWeights(
                np.zeros((len(queries), self.n_bits), np.float32), np.zeros(len(queries))
            )
            n_words = checks.words_for(self.n_bits)
            codes = checks.frozen(np.zeros((len(queries), n_words), np.uint64))
        else:
            weights = self._quantizer.weights(queries)
            if method == "hamming":
                codes = self._quantizer.encode_rows(queries, "queries", threads=threads).codes
            else:
                codes = pack_rows(weights.weights, "queries", threads=threads)
            codes = checks.frozen(codes)
        # One may wait for the disk while the other scans.
        n_readers = self._reader.n_readers(parts, max(2, usable_threads(threads)))
        kept = self._reader.kept(parts, n_readers) if n_candidates else []
        n_rows = _count(parts)
        in_memory = sum(piece.n_rows for piece in kept) == n_rows
        n_visitors = 0 if in_memory else n_readers
        of_scan = (scan if method == "hamming" else asymmetric).bytes_per_query
        bytes_per_query = _BYTES_PER_CANDIDATE * n_candidates + 16 * self.dim
        bytes_per_query += of_scan(codes.shape[1], n_candidates, max(1, n_visitors))
        room = int(self._memory_bytes * (1 - _SHARE_FOR_CODES))
        size = max(1, min(_MAX_BATCH, room // bytes_per_query))
        starts = range(0, len(queries), size) or [0]
        bar.total = len(starts) * n_rows
        for first in starts:
            chosen = slice(first, first + size)
            searched = QueryWeights(weights.weights[chosen], weights.constants[chosen])
            search: scan.TopKScan | asymmetric.AsymmetricScan
            if method == "hamming":
                search = scan.TopKScan(
                    codes[chosen], n_candidates, n_rows, threads, n_visitors=n_visitors
                )
            else:
                search = asymmetric.AsymmetricScan(
                    searched.weights, n_candidates, n_rows, threads, n_visitors=n_visitors
                )
            if in_memory:
                for piece in kept:
                    search.scan(piece, where)
                    bar.update(piece.n_rows)
            elif n_candidates:
                self._scan_streamed(search, parts, kept, where, n_readers, bar)
            distances = None
            if isinstance(search, scan.TopKScan):
                distances, rows = search.result()
            else:
                rows = search.result()
            yield _Batch(queries[chosen], searched, codes[chosen], rows, distances)

    def _scan_streamed(
        self,
        search: scan.TopKScan | asymmetric.AsymmetricScan,
        parts: tuple[Part, ...],
        kept: list[Piece],
        where: Where,
        n_readers: int,
        bar: Any,
    ) -> None:
        """One pass over all codes, of which some are read from disk."""
        counting = threading.Lock()

        def visit(reader: int, piece: Piece) -> None:
            search.visit(reader, piece, where)
            with counting:
                bar.update(piece.n_rows)

        self._reader.visit(parts, kept, n_readers, visit)

    def _score(
        self,
        parts: tuple[Part, ...],
        queries: NDArray[Any],
        rows: NDArray[np.int64],
        threads: int | None,
    ) -> NDArray[np.float32]:
        sources = self._sources_of(parts, "vectors")
        scores = exact_scores(queries.astype(np.float64), rows, sources, self.metric, threads)
        return self._finite(scores)

    def _score_codes(
        self, parts: tuple[Part, ...], batch: _Batch, threads: int | None
    ) -> NDArray[np.float32]:
        """Scores of candidates by their codes and factors, with weights that are not rounded."""
        sources = self._sources_of(parts, "codes")
        return self._finite(code_scores(batch.weights, batch.rows, sources, threads))

    def _finite(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(scores).all():
            raise ValueError(
                f"queries and rows are too large: {self.metric} scores do not fit into float32"
            )
        return scores

    def _distances(
        self, parts: tuple[Part, ...], batch: _Batch, rows: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """Hamming distances of some rows, where the scan had no use for them."""
        distances = np.zeros(rows.shape, np.int32)
        for source in self._sources_of(parts, "codes"):
            inside = (rows >= source.first_row) & (rows < source.first_row + len(source.rows))
            queries, places = np.nonzero(inside)
            differing = source.rows[rows[inside] - source.first_row] ^ batch.codes[queries]
            distances[queries, places] = np.bitwise_count(differing).sum(axis=1)
        return distances

    def _sources_of(self, parts: tuple[Part, ...], name: str) -> list[Any]:
        """What candidates are scored with, "vectors" or "codes"; files are mapped once."""
        sources: list[Any] = []
        for part in parts:
            key = part.segment.header.uuid, name
            if key not in self._sources:
                make = _vector_sources if name == "vectors" else _code_sources
                self._sources[key] = list(make(part.first_row, part.segment))
            sources += self._sources[key]
        return sources

    def _ids_of(self, parts: tuple[Part, ...], rows: NDArray[np.int64]) -> NDArray[Any]:
        kind = self._open_store.manifest.ids
        width = max([part.segment.row_bytes("ids") for part in parts], default=1)
        stored = np.empty(rows.shape, f"S{width}" if kind == "utf8" else np.int64)
        for first_row, segment in parts:
            inside = (rows >= first_row) & (rows < first_row + segment.n_rows)
            stored[inside] = segment.verified_map("ids")[rows[inside] - first_row]
        try:
            return public_ids(stored)
        except UnicodeDecodeError as error:
            raise DamagedError(f"{self._open_store.path}: ids are no UTF-8: {error}") from None

    def _rows_of(self, where: Any, n_rows: int) -> Where:
        """The rows that ``where`` lets through."""
        if where is None:
            return Where(n_rows)
        store = self._open_store
        if checks.is_mask(where):
            return Where(n_rows, checks.mask(where, n_rows))
        wanted = stored_ids(where, "where")
        if len(wanted) and store.manifest.ids not in (None, kind_of(wanted)):
            raise TypeError(
                f"where must be a bool mask or {store.manifest.ids} ids, got {kind_of(wanted)}"
            )
        rows = store.find_ids(np.unique(wanted)) if len(wanted) else np.zeros(0, np.int64)
        return Where(n_rows, np.sort(rows[(rows >= 0) & (rows < n_rows)]))

    def calibrate(
        self,
        target_recall: float = 0.99,
        queries: ArrayLike | None = None,
        *,
        k: int = 10,
        method: str | None = None,
        n_queries: int = 1000,
        max_oversample: float = 64,
        seed: int = 0,
        threads: int | None = None,
    ) -> Calibration:
        """Find and store the smallest oversample that reaches a recall; searches use it from then.

        The exact k best rows of each query are found by its products with all stored vectors, which
        takes a while, and then how many candidates had to be scored to find them.

        Parameters
        ----------
        target_recall : float
            Share of the exact top k to be found, over all queries; above 0, at most 1.
        queries : (n_queries, dim) float16, float32 or float64, optional
            Some hundreds like those to come. Without, rows of the collection stand for them, and
            are not counted among their own results: where queries are unlike rows, as questions are
            unlike documents, they need more candidates than this finds out.
        k : int
            Results a query.
        method : {"hamming", "asymmetric"}, optional
            See `search`.
        n_queries : int
            Rows to stand for queries, at most.
        max_oversample : float
            Where to give up.
        seed : int
            Of the choice of rows.
        threads : int, optional
            At most this many threads; all by default.

        Returns
        -------
        hamming_engine.calibrate.Calibration

        Raises
        ------
        TypeError, ValueError
            Where an argument has the wrong type, shape or value, no vectors are stored, there are
            fewer than k rows to find, or the recall is not reached. Nothing is stored then.
        hamming_engine.store.errors.StoreError
            Where the collection is open for reading.
        """
        with self._write_lock:
            store = self._open_store
            store.check_writable()
            k = checks.integer(k, "k", 1)
            n_queries = checks.integer(n_queries, "n_queries", 1)
            max_oversample = _checked_oversample(max_oversample, "max_oversample")
            seed = checks.integer(seed, "seed", 0)
            threads = checks.threads(threads)
            if not 0 < _checked_number(target_recall, "target_recall") <= 1:
                raise ValueError(
                    f"target_recall must be above 0 and at most 1, got {target_recall}"
                )
            if self.vectors is None:
                raise ValueError(
                    "calibrate needs stored vectors, to know what the true results are"
                )
            parts = store.parts
            n_rows = _count(parts)
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
                vectors = self._vectors_of(parts, own)
            else:
                vectors = checks.floats(queries, "queries", self.dim)
                if not len(vectors):
                    raise ValueError("queries must not be empty")
            method = self._checked_method(method)
            n_candidates = min(n_rows, int(np.ceil(k * max_oversample)) + n_own)
            task = _Search(parts, k, method, Where(n_rows), threads, progress_bar(False, 0, ""))
            found = [batch.rows for batch in self._candidates(task, vectors, n_candidates)]
            candidates = _without(np.concatenate(found), own)
            truth = _without(self._true_rows(parts, vectors, k + n_own), own)
            n, recall = smallest_number(candidates, truth, target_recall)
            calibration = Calibration(
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
            store.set_search(calibration.to_json())
            return calibration

    def _vectors_of(self, parts: tuple[Part, ...], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The stored vectors of some rows, ascending."""
        vectors = np.empty((len(rows), self.dim), np.float32)
        for source in self._sources_of(parts, "vectors"):
            inside = (rows >= source.first_row) & (rows < source.first_row + len(source.rows))
            vectors[inside] = _decoded(source, rows[inside] - source.first_row)
        return vectors

    def _true_rows(
        self, parts: tuple[Part, ...], queries: NDArray[Any], k: int
    ) -> NDArray[np.int64]:
        """The rows with the best scores by the stored vectors."""
        best = np.zeros((len(queries), 0), np.int64)
        best_scores = np.zeros(best.shape)
        for source in self._sources_of(parts, "vectors"):
            step = max(1, _TRUTH_BYTES // (4 * self.dim))
            for first in range(0, len(source.rows), step):
                places = np.arange(first, min(first + step, len(source.rows)))
                vectors = _decoded(source, places)
                rows, scores = exact_top_k(queries, vectors, min(k, len(vectors)), self.metric)
                best = np.concatenate([best, rows + source.first_row + first], axis=1)
                best_scores = np.concatenate([best_scores, scores], axis=1)
                order = np.lexsort((best, -best_scores), axis=1)[:, :k]
                best = np.take_along_axis(best, order, axis=1)
                best_scores = np.take_along_axis(best_scores, order, axis=1)
        return best

    def export(self, path: str | os.PathLike[str], *, progress: bool = False) -> None:
        """Write all rows to one plain HDF5 file, which `open` searches and h5py reads.

        Parameters
        ----------
        path : path
            Must not exist, nor lie in the collection's folder; it appears when the file is complete
            and on the disk. All ids are held in memory meanwhile.
        progress : bool
            Show a bar; needs tqdm.

        Raises
        ------
        FileExistsError, OSError
        hamming_engine.store.errors.DamagedError
            Where stored bytes are not those that were written.
        """
        store = self._open_store
        with progress_bar(progress, _count(store.parts), "row") as bar:
            export_parts(store, checks.path(path), bar.update)

    def info(self) -> dict[str, Any]:
        """What the collection is and takes.

        Returns
        -------
        dict
            path, rows, dim, n_bits, metric, vectors, ids, quantizer, search (what `calibrate`
            stored), segments, generation, mode; codes_bytes, factors_bytes, vectors_bytes and
            ids_bytes on disk, quantizer_bytes of what it has learnt; memory_bytes, the limit, and
            memory_codes_bytes, the codes in memory.
        """
        store = self._open_store
        parts = store.parts
        return {
            "path": str(store.path),
            "rows": _count(parts),
            "dim": self.dim,
            "n_bits": self.n_bits,
            "metric": self.metric,
            "vectors": self.vectors,
            "ids": store.manifest.ids,
            "quantizer": self._quantizer.kind,
            "search": store.manifest.search,
            "segments": len(parts),
            "generation": store.manifest.generation,
            "mode": "a" if store.writable else "r",
            **{
                f"{name}_bytes": sum(part.segment.nbytes(name) for part in parts)
                for name in ("codes", "factors", "vectors", "ids")
            },
            "quantizer_bytes": sum(array.nbytes for array in self._quantizer.arrays().values()),
            "memory_bytes": self._memory_bytes,
            "memory_codes_bytes": self._reader.kept_bytes,
        }

    def close(self) -> None:
        """Give files and lock back; closing twice is fine."""
        with self._write_lock:  # an append of another thread comes to its end first
            if self._store is not None:
                self._store.close()
                self._store = None
                self._sources.clear()
                self._reader = CodeReader(0)

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __len__(self) -> int:
        return _count(self._open_store.parts)

    def __repr__(self) -> str:
        if self._store is None:
            return "<Collection, closed>"
        return (
            f"<Collection {str(self._store.path)!r}: {len(self):,} rows, {self.n_bits} bits, "
            f"{self.metric}, vectors {self.vectors}>"
        )

    def _repr_html_(self) -> str:
        if self._store is None:
            return html.escape(repr(self))
        rows = "".join(
            f"<tr><th>{name}</th><td>{html.escape(_readable(value))}</td></tr>"
            for name, value in self.info().items()
        )
        return f"<table>{rows}</table>"


def _readable(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def default_memory_bytes() -> int:
    """Half of the memory that the machine has, or that its container allows."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return max(MIN_MEMORY_BYTES, total // 2)


def _checked_memory(memory_bytes: Any) -> int | None:
    if memory_bytes is None:
        return None
    return checks.integer(memory_bytes, "memory_bytes", MIN_MEMORY_BYTES)


def _checked_number(value: Any, name: str) -> Any:
    """``value`` as it came: an integer may be too large for a float."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return value


def _checked_oversample(oversample: Any, name: str = "oversample") -> float:
    if not 1 <= _checked_number(oversample, name) <= MAX_OVERSAMPLE:
        raise ValueError(f"{name} must be at least 1 and at most 2**40, got {oversample}")
    return float(oversample)


def _checked_quantizer(given: Any, dim: int, metric: str) -> Quantizer:
    """A quantiser that fits a new collection; of a plain sign quantiser one for its vectors."""
    quantizer = by_name(given) if isinstance(given, str) else given
    if not isinstance(quantizer, Quantizer):
        raise TypeError(f"quantizer must be a Quantizer or the name of one, got {given!r}")
    if isinstance(quantizer, SignQuantizer) and quantizer.dim in (0, dim):
        quantizer = SignQuantizer(dim)
        quantizer.metric = metric
    if quantizer.is_fitted and (quantizer.dim, quantizer.metric) != (dim, metric):
        raise ValueError(
            f"quantizer is fitted to {quantizer.dim} dimensions and metric {quantizer.metric!r}, "
            f"the collection has {dim} and {metric!r}"
        )
    from_stored(quantizer.to_json(), quantizer.arrays())  # as it will be read again
    return quantizer


def _quantizer_of(store: Store) -> Quantizer:
    """The quantiser that a collection stores."""
    schema = store.schema
    try:
        if schema.quantizer == {"kind": "sign"}:  # all that version 1 says
            quantizer: Quantizer = SignQuantizer(schema.dim)
            quantizer.metric = schema.metric
        else:
            quantizer = from_stored(schema.quantizer, store.quantizer_arrays())
    except ValueError as error:
        raise FormatError(f"{store.path}: quantizer: {error}") from error
    for what, found, expected in (
        ("dimensions", quantizer.dim if quantizer.is_fitted else schema.dim, schema.dim),
        ("metric", quantizer.metric if quantizer.is_fitted else schema.metric, schema.metric),
        ("bits", quantizer.bits_of(schema.dim), schema.n_bits),
        ("factors", quantizer.n_factors, schema.factors),
    ):
        if found != expected:
            raise FormatError(
                f"{store.path}: {what} of the quantizer: {found}, the schema says {expected}"
            )
    if not quantizer.is_fitted and _count(store.parts):
        raise FormatError(f"{store.path}: there are rows, and their quantizer is not fitted")
    return quantizer


def _count(parts: tuple[Part, ...]) -> int:
    return parts[-1].first_row + parts[-1].segment.n_rows if parts else 0


def _decoded(source: Source, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Some of a source's rows, as what they stand for."""
    rows = source.rows[places]
    return rows.astype(np.float32) if source.scale is None else source.scale.decode(rows)


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
    factors = segment.map("factors") if segment.header.schema.factors else NO_FACTORS
    yield CodeSource(first_row, segment.map("codes"), factors)


def _vector_sources(first_row: int, segment: Segment) -> Iterator[Source]:
    if segment.header.schema.vectors != "int8":
        yield Source(first_row, segment.map("vectors"))
        return
    calibration = segment.calibration()
    ends = np.append(calibration.first_row, segment.n_rows)[1:]
    vectors = segment.map("vectors")
    for begin, end, scale, offset in zip(
        calibration.first_row, ends, calibration.scale, calibration.offset, strict=True
    ):
        yield Source(first_row + int(begin), vectors[begin:end], Int8Scale(scale, offset))
