"""The engine: float vectors in, ids out, on disk."""

from __future__ import annotations

import contextlib
import html
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from .forks import ForkSafeLock
from .held import Piece
from .ids import kind_of, public_ids, shown, sorting_order, stored_ids
from .indexes.scan import TopKScan
from .indexes.scan import bytes_per_query as bytes_of_shortlists
from .indexes.where import Where
from .kernels.launch import usable_threads
from .optional import progress_bar
from .quantize import Int8Scale, SignQuantizer
from .store.errors import DamagedError, FormatError
from .store.reader import CodeReader
from .store.schema import MAX_DIM, METRICS, VECTORS, Schema
from .store.segment import Calibration, Segment, SegmentWriter
from .store.spool import Spool
from .store.store import Part, Store
from .store.transfer import export_parts

MIN_MEMORY_BYTES = 8 << 20
MAX_OVERSAMPLE = 1 << 40  # far beyond every collection: more means a mistake

_BLOCK_BYTES = 4 << 20  # of floats, taken at once while appending
_SHARE_FOR_CODES = 3 / 4  # of memory_bytes; the rest is for what a batch of queries needs
_MAX_BATCH = 4096  # queries that a block is scanned for while nothing interrupts it
# Bytes a candidate takes at the worst moment of a search, beside the shortlists: row, place in the
# row order, copies while sorting, score and id.
_BYTES_PER_CANDIDATE = 96


class Hits(NamedTuple):
    """What `Collection.search` found, best first.

    Attributes
    ----------
    ids : (n_queries, k) int64 or str
    scores : (n_queries, k) float32
        By the collection's metric, higher is better; ordered by (score descending, row). Without
        re-ranking: ``1 - 2 * distances / n_bits``, the cosine of the sign vectors.
    distances : (n_queries, k) int32
        Hamming distances of the codes, in bits.
    """

    ids: NDArray[Any]
    scores: NDArray[np.float32]
    distances: NDArray[np.int32]

    def _repr_html_(self) -> str:
        shown = min(len(self.ids), 10)
        rows = "".join(
            f"<tr><td>{query}</td><td>{html.escape(str(hit_id))}</td><td>{score:.4f}</td>"
            f"<td>{distance}</td></tr>"
            for query in range(shown)
            for hit_id, score, distance in zip(
                self.ids[query], self.scores[query], self.distances[query], strict=True
            )
        )
        more = f"<p>{len(self.ids) - shown} more queries</p>" if shown < len(self.ids) else ""
        head = "<tr><th>query</th><th>id</th><th>score</th><th>distance</th></tr>"
        return f"<table>{head}{rows}</table>{more}"


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
        self._reader = CodeReader(int(self._memory_bytes * _SHARE_FOR_CODES))
        self._sources: dict[str, list[Any]] = {}
        self._write_lock = ForkSafeLock()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        dim: int,
        *,
        vectors: str | None = "float16",
        metric: str = "cosine",
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
        quantizer = SignQuantizer(dim)
        schema = Schema(
            dim=dim,
            n_bits=quantizer.n_bits,
            metric=checks.choice(metric, "metric", METRICS),
            vectors=checks.choice(vectors, "vectors", VECTORS),
            quantizer=quantizer.to_json(),
        )
        memory_bytes = _checked_memory(memory_bytes)
        return cls(Store.create(checks.path(path), schema), memory_bytes)

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
            rows = _Rows(embeddings, self.dim)
            given = None if ids is None else stored_ids(ids)
            self._append_rows(rows, given, threads, progress)
            return
        if ids is not None:
            raise TypeError("ids must be None with an iterator: let it yield (block, ids)")
        with Spool(store.path) as spool:
            given = _drain(embeddings, spool, self.dim)
            rows = _Rows(spool.array(self.dim), self.dim)
            self._append_rows(rows, given, threads, progress)

    def _append_rows(
        self, rows: _Rows, ids: NDArray[Any] | None, threads: int | None, progress: bool
    ) -> None:
        if ids is not None and len(ids) != rows.n:
            raise ValueError(f"ids must be one a row: got {len(ids)} ids for {rows.n} rows")
        if not rows.n:
            return
        with self._write_lock:
            # Again under the lock: another thread may have closed the collection meanwhile.
            store = self._open_store
            store.check_writable()
            stored, order = _new_ids(store, ids, rows.n)
            scale = calibration = None
            if self.vectors == "int8":
                scale = Int8Scale.fit(_finite_blocks(rows))
                calibration = Calibration(
                    np.zeros(1, np.int64), scale.scale[None], scale.offset[None]
                )
            with (
                store.new_segment(stored, order, calibration) as writer,
                progress_bar(progress, rows.n, "row") as bar,
            ):
                self._write_rows(writer, rows, scale, threads, bar)
            store.commit(writer)

    def _write_rows(
        self,
        writer: SegmentWriter,
        rows: _Rows,
        scale: Int8Scale | None,
        threads: int | None,
        bar: Any,
    ) -> None:
        """Encode and write codes and vectors, a block at a time."""
        kept = writer.header.schema.vectors
        step = writer.header.rows_per_checksum
        step *= max(1, rows.per_block // step)
        for first in range(0, rows.n, step):
            block = rows.block(first, first + step)
            codes = self._quantizer.encode(block, "embeddings", first_row=first, threads=threads)
            writer.write("codes", first, codes)
            if scale is not None:
                writer.write("vectors", first, scale.encode(block))
            elif kept is not None:
                writer.write("vectors", first, _stored_floats(block, kept, first))
            bar.update(len(block))

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        *,
        oversample: float = 4,
        rerank: bool = True,
        where: ArrayLike | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> Hits:
        """The k best rows of each query.

        The codes nearest by Hamming distance, ``k * oversample`` of them, are found exactly, then
        scored with the stored vectors and cut to k.

        Parameters
        ----------
        queries : (n_queries, dim) or (dim,) float16, float32 or float64
        k : int
            Results a query, at least 1.
        oversample : float
            Candidates scored for each result, at least 1. More find more of the true best.
        rerank : bool
            False returns the codes nearest by Hamming distance as they are.
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
        """
        parts = self._open_store.parts
        vectors = checks.floats(queries, "queries", self.dim)
        k = checks.integer(k, "k", 1)
        threads = checks.threads(threads)
        oversample = _checked_oversample(oversample)
        rows_allowed = self._rows_of(where, _count(parts))
        k = min(k, rows_allowed.n_allowed)
        n_candidates = k
        if rerank:
            n_candidates = min(max(k, int(np.ceil(k * oversample))), rows_allowed.n_allowed)

        codes = checks.frozen(self._quantizer.encode(vectors, "queries", threads=threads))
        # One may wait for the disk while the other scans.
        n_readers = self._reader.n_readers(parts, max(2, usable_threads(threads)))
        kept = self._reader.kept(parts, n_readers) if n_candidates else []
        in_memory = sum(piece.n_rows for piece in kept) == _count(parts)
        bytes_per_query = _BYTES_PER_CANDIDATE * n_candidates + 16 * self.dim
        bytes_per_query += bytes_of_shortlists(
            codes.shape[1], n_candidates, 1 if in_memory else n_readers
        )
        room = int(self._memory_bytes * (1 - _SHARE_FOR_CODES))
        batch = max(1, min(_MAX_BATCH, room // bytes_per_query))
        starts = range(0, len(vectors), batch) or [0]
        found = []
        with progress_bar(progress, len(starts) * _count(parts), "row") as bar:
            for first in starts:
                chosen = slice(first, first + batch)
                scan = TopKScan(
                    codes[chosen],
                    n_candidates,
                    _count(parts),
                    threads,
                    n_visitors=0 if in_memory else n_readers,
                )
                if in_memory:
                    for piece in kept:
                        scan.scan(piece, rows_allowed)
                        bar.update(piece.n_rows)
                elif n_candidates:
                    self._scan_streamed(scan, parts, kept, rows_allowed, n_readers, bar)
                distances, rows = scan.result()
                if rerank:
                    scores = self._score(parts, vectors[chosen], rows, threads)
                    best = np.lexsort((rows, -scores), axis=1)[:, :k]
                    scores = np.take_along_axis(scores, best, axis=1)
                    distances = np.take_along_axis(distances, best, axis=1)
                    rows = np.take_along_axis(rows, best, axis=1)
                else:
                    scores = (1 - 2 * distances / self.n_bits).astype(np.float32)
                found.append(Hits(self._ids_of(parts, rows), scores, distances))
        return Hits(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))

    def _scan_streamed(
        self,
        scan: TopKScan,
        parts: tuple[Part, ...],
        kept: list[Piece],
        where: Where,
        n_readers: int,
        bar: Any,
    ) -> None:
        """One pass over all codes, of which some are read from disk."""
        counting = threading.Lock()

        def visit(reader: int, piece: Piece) -> None:
            scan.visit(reader, piece, where)
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
        from .rerank import exact_scores

        sources = [source for part in parts for source in self._sources_of(part)]
        scores = exact_scores(queries.astype(np.float64), rows, sources, self.metric, threads)
        if not np.isfinite(scores).all():
            raise ValueError(
                f"queries and rows are too large: {self.metric} scores do not fit into float32"
            )
        return scores

    def _sources_of(self, part: Part) -> list[Any]:
        """What candidates of a segment are scored with; the file is mapped once."""
        known = self._sources.get(part.segment.header.uuid)
        if known is None:
            known = list(_sources(part.first_row, part.segment))
            self._sources[part.segment.header.uuid] = known
        return known

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
            path, rows, dim, n_bits, metric, vectors, ids, quantizer, segments, generation, mode;
            codes_bytes, vectors_bytes and ids_bytes on disk; memory_bytes, the limit, and
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
            "quantizer": store.schema.quantizer["kind"],
            "segments": len(parts),
            "generation": store.manifest.generation,
            "mode": "a" if store.writable else "r",
            **{
                f"{name}_bytes": sum(part.segment.nbytes(name) for part in parts)
                for name in ("codes", "vectors", "ids")
            },
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


def _checked_oversample(oversample: Any) -> float:
    if isinstance(oversample, (bool, np.bool_)) or not isinstance(
        oversample, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"oversample must be a number, got {oversample!r}")
    if not 1 <= oversample <= MAX_OVERSAMPLE:
        raise ValueError(f"oversample must be at least 1 and at most 2**40, got {oversample}")
    return float(oversample)


def _quantizer_of(store: Store) -> SignQuantizer:
    schema = store.schema
    quantizer = SignQuantizer(schema.dim)
    if schema.quantizer != quantizer.to_json():
        raise FormatError(
            f"{store.path}: quantizer {schema.quantizer} is not known to this release"
        )
    if schema.n_bits != quantizer.n_bits:
        raise FormatError(f"{store.path}: {schema.n_bits} bits of {schema.dim} dimensions")
    return quantizer


def _count(parts: tuple[Part, ...]) -> int:
    return parts[-1].first_row + parts[-1].segment.n_rows if parts else 0


def _sources(first_row: int, segment: Segment) -> Iterator[Any]:
    from .rerank import Source

    kept = segment.header.schema.vectors
    if kept != "int8":
        yield Source(first_row, segment.map("codes" if kept is None else "vectors"))
        return
    calibration = segment.calibration()
    ends = np.append(calibration.first_row, segment.n_rows)[1:]
    vectors = segment.map("vectors")
    for begin, end, scale, offset in zip(
        calibration.first_row, ends, calibration.scale, calibration.offset, strict=True
    ):
        yield Source(first_row + int(begin), vectors[begin:end], Int8Scale(scale, offset))


def _new_ids(
    store: Store, ids: NDArray[Any] | None, n: int
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Ids for n new rows, and the order that sorts them, None where they ascend."""
    kind = store.manifest.ids
    if ids is None:
        if kind == "utf8":
            raise ValueError("ids must be given: this collection has text ids")
        ids = np.arange(store.manifest.next_id, store.manifest.next_id + n)
    if kind not in (None, kind_of(ids)):
        raise TypeError(f"ids must be {kind} as in the collection, got {kind_of(ids)}")
    order = sorting_order(ids)
    in_order = ids if order is None else ids[order]
    known = in_order[store.find_ids(in_order) >= 0]
    if len(known):
        raise ValueError(f"ids must be new, {shown(known[0])} is stored already")
    return ids, order


def _drain(blocks: Iterator[Any], spool: Spool, dim: int) -> NDArray[Any] | None:
    """Lay down all blocks of an iterator; their ids as stored, or None."""
    ids: list[Any] = []
    n_blocks = 0
    for i, item in enumerate(blocks):
        if isinstance(item, tuple) and len(item) != 2:
            raise ValueError(f"embeddings block {i} must be (block, ids), got {len(item)} items")
        block, block_ids = item if isinstance(item, tuple) else (item, None)
        rows = checks.floats(block, f"embeddings block {i}", dim)
        stored = None if block_ids is None else stored_ids(block_ids, f"ids of block {i}")
        if stored is not None and len(stored) != len(rows):
            raise ValueError(
                f"ids of block {i} must be one a row: got {len(stored)} for {len(rows)} rows"
            )
        if not len(rows):
            continue
        if n_blocks and (stored is not None) != bool(ids):
            raise TypeError(f"embeddings block {i} must come with ids, as all blocks or none do")
        if stored is not None:
            if ids and kind_of(ids[0]) != kind_of(stored):
                raise TypeError(
                    f"ids of block {i} must be {kind_of(ids[0])} as before, got {kind_of(stored)}"
                )
            ids.append(stored)
        n_blocks += 1
        spool.append(rows)
    return np.concatenate(ids) if ids else None


class _Rows:
    """Vectors to be appended, a block at a time: an array, or anything that can be sliced.

    What knows its shape and type is sliced as it is, so that a file larger than memory is never
    read at once; anything else becomes an array first.
    """

    def __init__(self, embeddings: Any, dim: int) -> None:
        shape = getattr(embeddings, "shape", None)
        if isinstance(embeddings, (np.ndarray, np.generic)) or not (
            shape is not None and hasattr(embeddings, "dtype")
        ):
            embeddings = checks.array(embeddings, "embeddings")
            if embeddings.size == 0 and embeddings.ndim == 1:
                embeddings = np.zeros((0, dim), np.float32)
            embeddings = checks.floats(embeddings, "embeddings", dim)
        elif len(shape) != 2:
            raise ValueError(f"embeddings must have shape (n, dim), got {tuple(shape)}")
        self._source = embeddings
        self.n, self._dim = int(embeddings.shape[0]), dim
        # One row stands for the others: its type is theirs.
        self._dtype = checks.floats(np.asarray(embeddings[:1]), "embeddings", dim).dtype

    @property
    def per_block(self) -> int:
        """Rows to take at once."""
        return max(1, _BLOCK_BYTES // (self._dim * self._dtype.itemsize))

    def block(self, begin: int, end: int) -> NDArray[Any]:
        """Some rows; somebody else's array has to give what its shape says."""
        end = min(end, self.n)
        block = np.asarray(self._source[begin:end])
        if block.shape != (end - begin, self._dim) or block.dtype != self._dtype:
            raise ValueError(
                f"embeddings gave rows {begin} to {end - 1} as {block.dtype} of shape "
                f"{block.shape}, expected {self._dtype} of shape {(end - begin, self._dim)}"
            )
        return block


def _finite_blocks(rows: _Rows) -> Iterator[NDArray[Any]]:
    for first in range(0, rows.n, rows.per_block):
        block = rows.block(first, first + rows.per_block)
        _stored_floats(block, "float32", first)
        yield block


def _stored_floats(block: NDArray[Any], kept: str, first_row: int) -> NDArray[Any]:
    """Vectors in the type they are stored in; a finite value that becomes infinite is refused."""
    with np.errstate(over="ignore"):
        stored = block.astype(kept)
    fits = np.isfinite(stored).all(axis=1)
    if not fits.all():
        row = int(np.flatnonzero(~fits)[0])
        if not np.isfinite(block[row]).all():
            raise ValueError(f"embeddings row {first_row + row} holds NaN or infinity")
        raise ValueError(
            f"embeddings row {first_row + row} holds {np.abs(block[row]).max()}, which does not "
            f"fit into {kept}"
        )
    if kept == "float16":
        lost = ~stored.any(axis=1) & block.any(axis=1)
        if lost.any():
            row = int(np.flatnonzero(lost)[0])
            raise ValueError(
                f"embeddings row {first_row + row} is too small for float16, all of it becomes zero"
            )
    return stored
