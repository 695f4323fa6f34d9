"""The engine: float vectors in, ids out, on disk."""

from __future__ import annotations

import contextlib
import copy
import html
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks, indexing
from .calibrate import Calibration
from .columns import declared
from .forks import ForkSafeLock
from .hits import Hits, Records
from .incoming import (
    Incoming,
    Rows,
    check_mergeable,
    check_new,
    drain,
    finite_blocks,
    from_arrays,
    write_rows,
)
from .optional import progress_bar
from .quantize import Int8Scale, Quantizer, SignQuantizer, by_name, from_stored
from .store.errors import FormatError, StoreError
from .store.manifest import MAX_GRACE_SECONDS
from .store.merge import LiveRows, export_rows, write_live
from .store.quantizer import Settings
from .store.reader import CodeReader
from .store.schema import MAX_DIM, METRICS, VECTORS, Schema
from .store.segment import Calibration as Int8Calibration
from .store.segment import Content, column_array
from .store.snapshot import Snapshot
from .store.spool import Spool
from .store.store import Store
from .view import SHARE_FOR_CODES, CodeBlocks, Columns, Readers, View

MIN_MEMORY_BYTES = 8 << 20
_SHARE_FOR_TAIL = 1 / 8  # of memory_bytes: for codes of rows behind those of the index
GRACE_SECONDS = 60.0  # that files which compaction replaced stay for readers

_Result = TypeVar("_Result")


class Collection:
    """Embeddings on disk, searched by Hamming distance and re-ranked by exact scores.

    Make one with `create` or `open`, close it with `close` or a ``with`` block. Any number of
    readers and one writer can have a collection open. A reader sees one generation, that of its
    opening or of its last `refresh`; the writer sees its own changes. A change is on the disk when
    its method returns, as a whole, or it is not there at all. Threads may share one object.
    """

    def __init__(self, store: Store, memory_bytes: int | None) -> None:
        self._store: Store | None = store
        self._memory_bytes = memory_bytes or default_memory_bytes()
        self._readers = _readers(self._memory_bytes)
        self._view: View | None = None
        try:
            self._show(store.snapshot)
        except BaseException:
            store.close()
            raise
        self._write_lock = ForkSafeLock()
        self._compact_lock = ForkSafeLock()  # taken before the other

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        dim: int,
        *,
        vectors: str | None = "float16",
        metric: str = "cosine",
        quantizer: Quantizer | str = "sign",
        columns: Mapping[str, Any] | None = None,
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
        columns : mapping of str to type, optional
            Names and types of values kept beside each vector: bool, int, float or str, NumPy's
            integer and float types, or their names. By default the first `append` says.
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
            columns=declared(columns),
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
            "a" allows changes, to one process at a time; a single file can only be read.
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
    def _open_view(self) -> View:
        view = self._view
        if view is None:
            raise ValueError("the collection is closed")
        return view

    @property
    def _schema(self) -> Schema:
        return self._open_view.snapshot.schema

    def _open_to_write(self) -> Store:
        store = self._store  # once: another thread may close it here
        if store is None:
            raise ValueError("the collection is closed")
        store.check_writable()
        return store

    def _show(self, snapshot: Snapshot, quantizer: Quantizer | None = None) -> None:
        """Let searches see a generation, from now on."""
        known = self._view
        if quantizer is None and known is not None:
            same = known.snapshot.manifest.quantizer, known.snapshot.schema
            if same == (snapshot.manifest.quantizer, snapshot.schema):
                quantizer = known.quantizer
        if quantizer is None:
            quantizer = _quantizer_of(snapshot)
        self._view = View(snapshot, quantizer, self._readers, self._memory_bytes, known)

    def _read(self, read: Callable[[View], _Result], where: Any = None) -> _Result:
        """Read from a generation: the one that is shown, or if its files are gone, the newest.

        Compaction removes files after a while, and a process keeps only so many descriptors open.
        With a mask as ``where`` it has to be the one that is shown.
        """
        while True:
            view = self._open_view
            try:
                return read(view)
            except FileNotFoundError as error:
                if not self.refresh() and self._view is view:
                    raise
                if where is not None and not callable(where) and checks.is_mask(where):
                    raise StoreError(
                        f"{view.snapshot.path}: generation {view.snapshot.manifest.generation} is "
                        f"gone, and where is a mask over its rows: make it anew, or give a function"
                    ) from error

    def refresh(self) -> bool:
        """Show the newest generation to a reader; whether there was a newer one.

        A writer, and a reader of a single file, see the newest anyway.

        Raises
        ------
        OSError
        hamming_engine.store.errors.FormatError, hamming_engine.store.errors.DamagedError
            Where its files are not as they were written; the reader keeps what it has.
        """
        with self._write_lock:
            if self._store is None:
                raise ValueError("the collection is closed")
            store, before = self._store, self._store.snapshot
            if not store.refresh():
                return False
            try:
                self._show(store.snapshot)
            except BaseException:
                store.snapshot = before  # the next refresh tries again
                raise
            return True

    @property
    def generation(self) -> int:
        """Which state of the collection is shown: 1 when made, one more with each change."""
        return self._open_view.snapshot.manifest.generation

    @property
    def dim(self) -> int:
        """Dimensions of the embeddings."""
        return self._schema.dim

    @property
    def n_bits(self) -> int:
        """Bits in a code."""
        return self._schema.n_bits

    @property
    def metric(self) -> str:
        """What scores measure."""
        return self._schema.metric

    @property
    def quantizer(self) -> Quantizer:
        """What turns vectors into codes; before the first append perhaps not fitted yet."""
        return self._open_view.quantizer

    @property
    def vectors(self) -> str | None:
        """What is kept for re-ranking."""
        return self._schema.vectors

    @property
    def columns(self) -> Columns:
        """The columns of the generation that is shown, each an array with a value for each row.

        ``docs.columns["year"] >= 2020`` is a mask for the ``where`` of `search`. While another
        thread changes the same object, give ``where`` a function instead.
        """
        return self._open_view.columns

    @property
    def ids(self) -> NDArray[Any]:
        """The ids of all rows, (n,) int64 or str, in row order, as columns are."""
        return self._read(lambda view: view.ids)

    def get(self, ids: ArrayLike) -> Records:
        """What is stored of some rows.

        Parameters
        ----------
        ids : (n,) int or str
            In any order; a row may be asked for twice.

        Returns
        -------
        Records
            ids, vectors, codes and columns, in the order of ``ids``.

        Raises
        ------
        KeyError
            Where an id is not in the collection; see `contains`.
        TypeError, ValueError
        OSError, hamming_engine.store.errors.DamagedError
        """
        return self._read(lambda view: view.get(ids))

    def contains(self, ids: ArrayLike) -> NDArray[np.bool_]:
        """Whether each of some ids is in the collection.

        Parameters
        ----------
        ids : (n,) int or str

        Returns
        -------
        there : (n,) bool

        Raises
        ------
        TypeError, ValueError
        OSError, hamming_engine.store.errors.DamagedError
        """
        return self._read(lambda view: view.find(ids) >= 0)

    def code_blocks(self, max_bytes: int = 64 << 20) -> CodeBlocks:
        """The codes of all rows with their ids, in row order, read from disk a block at a time.

        Parameters
        ----------
        max_bytes : int
            What the codes of a block may take; at least as many rows as have one checksum, some
            256 KiB, are read at once.

        Returns
        -------
        sequence of (ids, codes)
            (n,) int64 or str, and (n, n_words) uint64. Of the generation that is shown now; it can
            be gone over again, until compaction has removed its files.

        Raises
        ------
        TypeError, ValueError
            Reading a block raises OSError, and hamming_engine.store.errors.DamagedError where
            stored bytes are not those that were written.
        """
        return CodeBlocks(self._open_view, checks.integer(max_bytes, "max_bytes", 1))

    def append(
        self,
        embeddings: ArrayLike | Iterator[Any],
        ids: ArrayLike | None = None,
        *,
        columns: Mapping[str, ArrayLike] | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Add rows; they are on the disk when this returns, all or none of them.

        Parameters
        ----------
        embeddings : (n, dim) or (dim,) float16, float32 or float64; or an iterator of blocks
            An array, anything with ``shape``, ``dtype`` and slices of rows, such as a memory map or
            an HDF5 data set; or an iterator that yields such blocks, ``(block, ids)`` pairs, or
            ``(block, ids, columns)``, ids perhaps None. A few blocks are in memory at a time.
            Blocks of an iterator wait on disk, beside the collection, until their number is known.
        ids : (n,) int or str, optional
            Distinct, from 0 up or at most 4,096 bytes of text, and all of one kind in a collection.
            By default the number of rows that were appended before. They are held in memory while
            appending.
        columns : mapping of str to (n,) array, optional
            A value for each row: bools, integers, floats, or text of at most 4,096 bytes. Names and
            types are fixed with `create` or with the first rows, and all rows have all columns.
            They are held in memory while appending.
        threads : int, optional
            At most this many threads; all by default.
        progress : bool
            Show a bar; needs tqdm.

        Raises
        ------
        TypeError, ValueError
            Where an argument has the wrong type, shape or value, a row holds NaN or infinity or
            does not fit into the stored type, or an id comes twice or is there already, or columns
            are not those of the collection. Nothing is stored then.
        OSError
            Where the disk is full or fails.
        """
        self._add(embeddings, ids, columns, threads, progress, replacing=False)

    def upsert(
        self,
        embeddings: ArrayLike | Iterator[Any],
        ids: ArrayLike | None = None,
        *,
        columns: Mapping[str, ArrayLike] | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> int:
        """Add rows, in the place of those that have their ids, in one change.

        Parameters
        ----------
        embeddings, ids, columns, threads, progress
            See `append`; ids have to be given, here or by the iterator.

        Returns
        -------
        n_replaced : int
            How many rows were replaced; the others are new.

        Raises
        ------
        TypeError, ValueError, OSError
            As with `append`.
        """
        return self._add(embeddings, ids, columns, threads, progress, replacing=True)

    def _add(
        self,
        embeddings: ArrayLike | Iterator[Any],
        ids: ArrayLike | None,
        columns: Mapping[str, ArrayLike] | None,
        threads: int | None,
        progress: bool,
        replacing: bool,
    ) -> int:
        store = self._open_to_write()
        threads = checks.threads(threads)
        if not isinstance(embeddings, Iterator):
            incoming = from_arrays(Rows(embeddings, self.dim), ids, columns)
            return self._add_rows(incoming, threads, progress, replacing)
        if ids is not None or columns is not None:
            raise TypeError(
                "ids and columns must be None with an iterator: let it yield (block, ids, columns)"
            )
        with Spool(store.path) as spool:
            incoming = drain(embeddings, spool, self.dim)
            return self._add_rows(incoming, threads, progress, replacing)

    def _add_rows(
        self, incoming: Incoming, threads: int | None, progress: bool, replacing: bool
    ) -> int:
        rows = incoming.rows
        if replacing and incoming.labels.ids is None and rows.n:
            raise ValueError("ids must be given: they say which rows are replaced")
        if not rows.n:
            return 0
        with self._write_lock:
            # Again under the lock: another thread may have closed the collection meanwhile.
            store = self._open_to_write()
            snapshot, quantizer = store.snapshot, self.quantizer
            new = check_new(incoming, snapshot, replacing)
            scale = calibration = None
            if self.vectors == "int8":
                scale = Int8Scale.fit(finite_blocks(rows))
                calibration = Int8Calibration(
                    np.zeros(1, np.int64), scale.scale[None], scale.offset[None]
                )
            if not quantizer.is_fitted:
                quantizer = self._fitted_to(rows, quantizer, threads, progress)
            content = Content.of_arrays(new.ids, new.order, new.columns, calibration)
            settings = _first_settings(snapshot, self.quantizer, quantizer, new.column_types)
            with (
                store.new_segment(content, settings=settings) as writer,
                progress_bar(progress, rows.n, "row") as bar,
            ):
                write_rows(writer, rows, quantizer, threads, bar, scale=scale)
            store.append(writer, new.replaced)
            self._show(store.snapshot, quantizer)
            self._keep_index(threads)
            return len(new.replaced)

    def _fitted_to(
        self, rows: Rows, quantizer: Quantizer, threads: int | None, progress: bool
    ) -> Quantizer:
        """A copy of a quantiser, fitted to rows."""
        if rows.n < self.dim and quantizer.learns:
            warnings.warn(
                f"the quantizer is fitted to {rows.n} rows of {self.dim} dimensions, which is few: "
                f"append more at first, or fit it beforehand",
                stacklevel=5,
            )
        quantizer = copy.deepcopy(quantizer)
        try:
            return quantizer.fit(rows, metric=self.metric, threads=threads, progress=progress)
        except ValueError:
            for _ in finite_blocks(rows):  # it knows rows by their place in a sample
                pass
            raise

    def delete(self, ids: ArrayLike) -> int:
        """Remove rows; they are gone for good when this returns.

        Their room on disk is given back by `compact`.

        Parameters
        ----------
        ids : (n,) int or str
            Those that are not in the collection are ignored.

        Returns
        -------
        n_removed : int

        Raises
        ------
        TypeError, ValueError
            Where they are no ids of the collection's kind; nothing is removed then.
        OSError
            Where the disk is full or fails.
        """
        with self._write_lock:
            store = self._open_to_write()
            rows = np.unique(self._open_view.find(ids))
            rows = rows[rows >= 0]
            if rows.size:
                store.remove(rows)
                self._show(store.snapshot)
            return len(rows)

    def compact(
        self, *, full: bool = True, grace_seconds: float = GRACE_SECONDS, progress: bool = False
    ) -> bool:
        """Merge segments and give back the room of removed rows.

        Every `append` and `upsert` makes a segment, which is a file, and costs every search and
        opening a little. This copies the rows that are there to one new segment; some blocks of
        some MiB are in memory at a time. Searches, appends and removals in other threads go on
        meanwhile, and readers keep what they have; the disk holds old and new files until
        ``grace_seconds`` have passed and the collection is changed or opened for writing again.

        Parameters
        ----------
        full : bool
            False merges only the newest segments, up to the first that has more than twice as many
            rows as all after it together, and writes a single one anew where half of its rows were
            removed: so called after every change, it writes a row only a few times in its life.
        grace_seconds : float
            For how long the old files stay for readers: a process that reads more segments than it
            may keep open finds them by name until then, and afterwards goes on with the newest
            generation. 0 to 30 days.
        progress : bool
            Show a bar; needs tqdm.

        Returns
        -------
        changed : bool
            False where there was nothing to merge.

        Raises
        ------
        TypeError, ValueError
        OSError, hamming_engine.store.errors.DamagedError
            Where the disk is full or fails, or stored bytes are not those that were written; the
            collection is as it was.
        """
        grace_seconds = _checked_grace(grace_seconds)
        with self._compact_lock:
            store = self._open_to_write()
            snapshot = store.snapshot
            first = 0 if full else _newest_to_merge(snapshot)
            end = len(snapshot.parts)
            rows = LiveRows(snapshot, first, end)
            n_stored = sum(part.segment.n_rows for part in rows.parts)
            n_removed = n_stored - rows.n_rows
            if end - first < 2 and (not n_removed or (not full and 2 * n_removed < n_stored)):
                return False
            written = None
            if rows.n_rows:
                with (
                    store.new_segment(rows.content()) as written,
                    progress_bar(progress, rows.n_rows, "row") as bar,
                ):
                    write_live(written, rows, bar.update)
            with self._write_lock:
                store = self._open_to_write()
                store.replace(snapshot, first, end, written, grace_seconds)
                self._show(store.snapshot)
            self._renew_index()
            return True

    def merge_from(
        self,
        other: Collection | str | os.PathLike[str],
        *,
        threads: int | None = None,
        progress: bool = False,
    ) -> int:
        """Add all rows of another collection, in one change.

        Where both have the same quantiser and keep vectors in the same type, codes and vectors are
        copied as they are; otherwise the other's vectors are encoded anew.

        Parameters
        ----------
        other : Collection or path
            With the same dim, metric and columns; its ids are new here.
        threads : int, optional
            At most this many threads; all by default.
        progress : bool
            Show a bar; needs tqdm.

        Returns
        -------
        n_added : int

        Raises
        ------
        TypeError, ValueError
            Where the collections do not go together, or an id is there already; nothing is added
            then.
        OSError, hamming_engine.store.errors.StoreError
        """
        if not isinstance(other, Collection):
            if not isinstance(other, (str, os.PathLike)):
                raise TypeError(
                    f"other must be a Collection or a path, got {other!r} of type "
                    f"{type(other).__name__}"
                )
            with Collection.open(other, memory_bytes=MIN_MEMORY_BYTES) as opened:
                return self.merge_from(opened, threads=threads, progress=progress)
        threads = checks.threads(threads)
        view = other._open_view
        theirs = view.snapshot.schema
        for name in ("dim", "metric"):
            found, expected = getattr(theirs, name), getattr(self._schema, name)
            if found != expected:
                raise ValueError(f"other has {name} {found!r}, this collection has {expected!r}")
        if not view.n_rows:
            return 0
        same = theirs.vectors == self.vectors and _same_quantizer(view.quantizer, self.quantizer)
        if not same:
            if theirs.vectors is None:
                raise ValueError(
                    "other keeps no vectors, and its codes were made by another quantizer"
                )
            incoming = from_arrays(view.stored_rows(), view.ids, view.columns)
            self._add_rows(incoming, threads, progress, replacing=False)
            return view.n_rows
        with self._write_lock:
            store = self._open_to_write()
            rows_there = LiveRows(view.snapshot)
            check_mergeable(rows_there, store.snapshot)
            types = dict(theirs.columns)
            settings = _first_settings(store.snapshot, self.quantizer, view.quantizer, types)
            with (
                store.new_segment(rows_there.content(), settings=settings) as written,
                progress_bar(progress, view.n_rows, "row") as bar,
            ):
                write_live(written, rows_there, bar.update)
            store.append(written)
            self._show(store.snapshot)
            self._keep_index(threads)
            return view.n_rows

    def requantize(
        self,
        quantizer: Quantizer | str,
        *,
        grace_seconds: float = GRACE_SECONDS,
        threads: int | None = None,
        progress: bool = False,
    ) -> None:
        """Make new codes of all rows from their stored vectors, in one change.

        It is a compaction too. What `calibrate` stored is dropped, since it held for the old codes.

        Parameters
        ----------
        quantizer : Quantizer or str
            As in `create`; if it is not fitted, it is fitted to a sample of the rows.
        grace_seconds : float
            See `compact`.
        threads : int, optional
            At most this many threads; all by default.
        progress : bool
            Show a bar; needs tqdm.

        Raises
        ------
        TypeError, ValueError
            Where no vectors are stored, or the quantiser does not go with them; nothing is changed
            then.
        OSError, hamming_engine.store.errors.DamagedError
            Where the disk is full or fails, or stored bytes are not those that were written.
        """
        grace_seconds = _checked_grace(grace_seconds)
        threads = checks.threads(threads)
        given = _checked_quantizer(quantizer, self.dim, self.metric)
        with self._compact_lock, self._write_lock:
            store, view = self._open_to_write(), self._open_view
            snapshot = view.snapshot
            if snapshot.schema.vectors is None:
                raise ValueError("requantize needs stored vectors, to make codes from")
            if not view.n_rows:
                if snapshot.parts:
                    store.replace(snapshot, 0, len(snapshot.parts), None, grace_seconds)
                store.set_settings(_settings(store.snapshot, given))
                self._show(store.snapshot, given)
                return
            rows = view.stored_rows()
            if not given.is_fitted:
                given = self._fitted_to(rows, given, threads, progress)
            live = LiveRows(snapshot)
            with (
                store.new_segment(live.content(), settings=_settings(snapshot, given)) as written,
                progress_bar(progress, view.n_rows, "row") as bar,
            ):
                write_rows(written, rows, given, threads, bar, with_vectors=False)
                write_live(written, live, with_codes=False)
            store.replace(snapshot, 0, len(snapshot.parts), written, grace_seconds)
            self._show(store.snapshot, given)
        with self._compact_lock:
            self._renew_index(threads)

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        *,
        method: str | None = None,
        oversample: float | str | None = None,
        rerank: bool = True,
        certify: bool = False,
        target_recall: float | None = None,
        where: ArrayLike | Callable[[Columns], ArrayLike] | None = None,
        columns: Sequence[str] = (),
        threads: int | None = None,
        progress: bool = False,
    ) -> Hits:
        """The k best rows of each query.

        ``k * oversample`` candidates are found in the codes by the chosen method, exactly, or as
        most of them where `build_index` has made an index; then they are scored with the stored
        vectors and cut to k.

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
            and a quantiser that corrects scores: "rabitq" or "local_search". All codes are scanned
            then, as with oversample "auto", whether there is an index or not.
        target_recall : float, optional
            Share of the candidates that the index is to find, instead of what `build_index` was
            given; 1 scans all codes.
        where : (n,) bool or (m,) ids, optional
            Only these rows: a mask over all rows, such as ``docs.columns["year"] >= 2020``, or ids;
            ids that are not stored are ignored. A function gets the columns of the generation that
            is searched and returns a mask. It is applied in the scan, so k results come back
            wherever so many rows are allowed.
        columns : sequence of str
            Columns to return with the results.
        threads : int, optional
            At most this many threads; all by default. Codes that are not kept in memory are read
            by two at least, so that one scans while the other waits for the disk.
        progress : bool
            Show a bar; needs tqdm.

        Returns
        -------
        Hits
            ids, scores and distances, each (n_queries, min(k, rows allowed)), and the columns.

        Raises
        ------
        TypeError, ValueError
            Where an argument has the wrong type, shape or value.
        KeyError
            Where a column is not in the collection.
        OSError, hamming_engine.store.errors.DamagedError
            Where a file cannot be read, or not as it was written.
        hamming_engine.store.errors.FormatError
            Where its settings of searches are none that `calibrate` stores.
        hamming_engine.store.errors.StoreError
            Where ``where`` is a mask over rows of a generation whose files compaction has removed.
        """
        return self._read(
            lambda view: view.search(
                queries,
                k,
                method=method,
                oversample=oversample,
                rerank=rerank,
                certify=certify,
                target_recall=target_recall,
                where=where,
                columns=columns,
                threads=threads,
                progress=progress,
            ),
            where,
        )

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
            store = self._open_to_write()
            calibration = self._open_view.calibrate(
                target_recall,
                queries,
                k=k,
                method=method,
                n_queries=n_queries,
                max_oversample=max_oversample,
                seed=seed,
                threads=threads,
            )
            store.set_search(calibration.to_json())
            self._show(store.snapshot)
            return calibration

    def build_index(
        self,
        kind: str = "auto",
        *,
        target_recall: float | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> str:
        """Make an index, so that a search looks at a part of the codes; it is kept from then on.

        It lies beside the segments, and is read from there as it is needed, not into memory.
        Removed rows are never found, and rows that came after it are scanned: no search misses
        them. Once they are many, the append that brings them takes them into the index; `compact`
        and `requantize` make it anew. Results without an index are exact in the codes, and so are
        those of ``search(..., target_recall=1)``.

        Parameters
        ----------
        kind : {"auto", "ivf", "graph", "multi_hash", "flat"}
            "ivf" keeps rows in cells, and a search scans those nearest to the query. "graph" links
            rows to their neighbours, by Hamming distance; "multi_hash" is exact, for short codes
            with near neighbours (see `MultiIndexHash`). With method "asymmetric" a search takes
            twice as many candidates from these two and keeps those with the best scores. "flat" is
            no index: it drops one. "auto" takes cells, a graph or none, whichever is fastest when
            measured, with rows as queries.
        target_recall : float, optional
            Share of the candidates of an exact search that searches shall find, above 0 and below
            1; .95 by default. How many cells that takes is measured with rows that cells were not
            made of. Not with "multi_hash", which finds all.
        threads : int, optional
            At most this many threads; all by default.
        progress : bool
            Show a bar; needs tqdm.

        Returns
        -------
        kind : str
            What was chosen.

        Raises
        ------
        TypeError, ValueError
        OSError, hamming_engine.store.errors.DamagedError
            Where the disk is full or fails, or stored bytes are not those that were written; what
            was there stays.
        """
        settings = indexing.Settings.checked(kind, target_recall)
        threads = checks.threads(threads)
        with self._compact_lock:
            self._open_to_write()
            return self._make_index(settings, threads, progress)

    def _make_index(self, settings: indexing.Settings, threads: int | None, progress: bool) -> str:
        """Make and store an index; changes of other threads go on meanwhile."""
        view = self._open_view
        chosen, index = indexing.made(
            settings,
            view.snapshot,
            view.all_vectors(),
            view.quantizer.hamming,
            threads,
            progress,
        )
        with self._write_lock:
            store = self._open_to_write()
            if index is None:
                stored = None if settings.kind == "flat" else asdict(chosen)
                store.set_index(stored)
            else:
                store.set_index(asdict(chosen), view.snapshot, *index.state())
            self._show(store.snapshot)
        return chosen.chosen

    def _keep_index(self, threads: int | None) -> None:
        """Let the index take in rows that have come, where they are many; under the write lock."""
        view = self._open_view
        stored = view.index
        if stored is None or not indexing.is_due(stored, view.snapshot):
            return
        store = self._open_to_write()
        try:
            index = indexing.extended(stored, view.snapshot, threads)
            store.set_index(asdict(stored.settings), view.snapshot, *index.state())
        except OSError as error:  # the rows are there, and will be scanned
            warnings.warn(f"the index could not take in the new rows: {error}", stacklevel=4)
            return
        self._show(store.snapshot)

    def _renew_index(self, threads: int | None = None) -> None:
        """Make the index anew after its rows were written anew."""
        entry = self._open_view.snapshot.manifest.index
        if entry is not None and entry.file is None:
            try:
                settings = indexing.Settings.from_json(entry.settings)
            except (TypeError, ValueError):
                return  # written by nobody we know: `build_index` makes one
            self._make_index(settings, threads, False)

    def export(self, path: str | os.PathLike[str], *, progress: bool = False) -> None:
        """Write all rows to one plain HDF5 file, which `open` searches and h5py reads.

        Parameters
        ----------
        path : path
            Must not exist, nor lie in the collection's folder; it appears when the file is complete
            and on the disk.
        progress : bool
            Show a bar; needs tqdm.

        Raises
        ------
        FileExistsError, OSError
        hamming_engine.store.errors.DamagedError
            Where stored bytes are not those that were written.
        """
        snapshot = self._open_view.snapshot
        with progress_bar(progress, snapshot.n_rows, "row") as bar:
            export_rows(snapshot, checks.path(path), bar.update)

    def info(self) -> dict[str, Any]:
        """What the collection is and takes.

        Returns
        -------
        dict
            path, rows, removed_rows (which `compact` gives back), dim, n_bits, metric, vectors,
            ids, columns (their types), quantizer, search (what `calibrate` stored), index
            (its kind, target_recall, rows and bytes, None without), segments,
            generation, mode; codes_bytes, factors_bytes, vectors_bytes, ids_bytes and columns_bytes
            on disk, quantizer_bytes of what it has learnt; memory_bytes, the limit, and
            memory_codes_bytes, the codes in memory.
        """
        view, store = self._open_view, self._store
        snapshot = view.snapshot
        segments = [part.segment for part in snapshot.parts]
        return {
            "path": str(snapshot.path),
            "rows": snapshot.n_rows,
            "removed_rows": snapshot.n_stored - snapshot.n_rows,
            "dim": self.dim,
            "n_bits": self.n_bits,
            "metric": self.metric,
            "vectors": self.vectors,
            "ids": snapshot.manifest.ids,
            "columns": snapshot.schema.columns,
            "quantizer": view.quantizer.kind,
            "search": snapshot.manifest.search,
            "index": view.about_index(),
            "segments": len(segments),
            "generation": snapshot.manifest.generation,
            "mode": "a" if store is not None and store.writable else "r",
            **{
                f"{name}_bytes": sum(segment.nbytes(name) for segment in segments)
                for name in ("codes", "factors", "vectors", "ids")
            },
            "columns_bytes": sum(
                segment.nbytes(column_array(name))
                for segment in segments
                for name in snapshot.schema.columns
            ),
            "quantizer_bytes": sum(array.nbytes for array in view.quantizer.arrays().values()),
            "memory_bytes": self._memory_bytes,
            "memory_codes_bytes": sum(reader.kept_bytes for reader in self._readers),
        }

    def close(self) -> None:
        """Give files and lock back; closing twice is fine."""
        with self._compact_lock, self._write_lock:  # changes of other threads come to their end
            # Searches of other threads go on with what they have, or find that it is closed.
            store, self._store, self._view = self._store, None, None
            if store is not None:
                self._readers = Readers(CodeReader(0), CodeReader(0))
                store.close()

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._open_view.n_rows

    def __repr__(self) -> str:
        view = self._view
        if view is None:
            return "<Collection, closed>"
        return (
            f"<Collection {str(view.snapshot.path)!r}: {len(self):,} rows, {self.n_bits} bits, "
            f"{self.metric}, vectors {self.vectors}>"
        )

    def _repr_html_(self) -> str:
        if self._view is None:
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


def _readers(memory_bytes: int) -> Readers:
    for_all = int(memory_bytes * SHARE_FOR_CODES)
    for_tail = int(memory_bytes * _SHARE_FOR_TAIL)
    return Readers(CodeReader(for_all, with_factors=True), CodeReader(for_tail, with_factors=True))


def _checked_memory(memory_bytes: Any) -> int | None:
    if memory_bytes is None:
        return None
    return checks.integer(memory_bytes, "memory_bytes", MIN_MEMORY_BYTES)


def _checked_grace(seconds: Any) -> float:
    seconds = checks.number(seconds, "grace_seconds")
    if not 0 <= seconds <= MAX_GRACE_SECONDS:
        raise ValueError(f"grace_seconds must be from 0 to {MAX_GRACE_SECONDS:.0f}, got {seconds}")
    return float(seconds)


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


def _quantizer_of(snapshot: Snapshot) -> Quantizer:
    """The quantiser that a collection stores."""
    schema = snapshot.schema
    try:
        if schema.quantizer == {"kind": "sign"}:  # all that version 1 says
            quantizer: Quantizer = SignQuantizer(schema.dim)
            quantizer.metric = schema.metric
        else:
            quantizer = from_stored(schema.quantizer, snapshot.quantizer_arrays())
    except ValueError as error:
        raise FormatError(f"{snapshot.path}: quantizer: {error}") from error
    for what, found, expected in (
        ("dimensions", quantizer.dim if quantizer.is_fitted else schema.dim, schema.dim),
        ("metric", quantizer.metric if quantizer.is_fitted else schema.metric, schema.metric),
        ("bits", quantizer.bits_of(schema.dim), schema.n_bits),
        ("factors", quantizer.n_factors, schema.factors),
    ):
        if found != expected:
            raise FormatError(
                f"{snapshot.path}: {what} of the quantizer: {found}, the schema says {expected}"
            )
    if not quantizer.is_fitted and snapshot.n_stored:
        raise FormatError(f"{snapshot.path}: there are rows, and their quantizer is not fitted")
    return quantizer


def _same_quantizer(a: Quantizer, b: Quantizer) -> bool:
    """Whether both make the same codes."""
    of_a, of_b = a.arrays(), b.arrays()
    return (
        a.to_json() == b.to_json()
        and of_a.keys() == of_b.keys()
        and all(np.array_equal(of_a[name], of_b[name]) for name in of_a)
    )


def _settings(snapshot: Snapshot, quantizer: Quantizer, **changes: Any) -> Settings:
    """A collection's settings with another quantiser."""
    schema = replace(
        snapshot.schema,
        n_bits=quantizer.bits_of(snapshot.schema.dim),
        quantizer=quantizer.to_json(),
        factors=quantizer.n_factors,
        **changes,
    )
    return Settings(schema, quantizer.arrays())


def _first_settings(
    snapshot: Snapshot, before: Quantizer, fitted: Quantizer, columns: dict[str, str]
) -> Settings | None:
    """What the first rows bring along: a quantiser fitted to them, types of columns; or nothing."""
    if snapshot.parts or (fitted is before and columns == snapshot.schema.columns):
        return None
    return _settings(snapshot, fitted, columns=columns)


def _newest_to_merge(snapshot: Snapshot) -> int:
    """The first of the newest parts that together are at least half as large as the one before."""
    first, n_rows = len(snapshot.parts), 0
    for part in reversed(snapshot.parts):
        if n_rows and part.segment.n_rows > 2 * n_rows:
            break
        n_rows += part.segment.n_rows
        first -= 1
    return first
