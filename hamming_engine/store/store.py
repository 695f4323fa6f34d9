"""A collection's files: a folder of segments under a manifest, or one segment alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..forks import renew_in_children
from . import files, manifest
from .arrays import ArrayFile
from .errors import FormatError, LockedError, StoreError
from .manifest import Manifest, QuantizerEntry, SegmentEntry
from .quantizer import (
    FittedQuantizer,
    QuantizerFile,
    holds_quantizer,
    read_quantizer,
    stored_arrays,
    write_quantizer,
)
from .schema import Schema, json_object
from .segment import Calibration, Segment, SegmentWriter

LOCK = "LOCK"
_OWN_NAMES = (manifest.SEGMENT_NAME, manifest.QUANTIZER_NAME, manifest.TEMPORARY_NAME)


class Lock:
    """The right to write to a folder: exclusive, and gone with the process that took it.

    Parameters
    ----------
    path : Path
        The folder.

    Raises
    ------
    LockedError
        Where somebody else has it; the message names the process.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._close = weakref.finalize(self, os.close, descriptor)
        self._process = os.getpid()
        renew_in_children(self)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
            self._close()
            raise LockedError(
                f"{path} is open for writing already, by process {holder or 'unknown'}"
            ) from None
        with contextlib.suppress(OSError):  # only a help to whoever finds it locked
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(self._process).encode(), 0)

    def is_ours(self) -> bool:
        """Whether this process took it; a forked child must not write with it."""
        return os.getpid() == self._process

    def after_fork_in_child(self) -> None:
        """Close the child's copy, or the lock would outlive the writer in it."""
        self._close()

    def release(self) -> None:
        """Let others write."""
        self._close()


class Part(NamedTuple):
    """A segment and the row of the collection with which it begins."""

    first_row: int
    segment: Segment


class Store:
    """The rows of a collection, as of the moment of opening or of the last own commit.

    Made by `create` and `open`. Rows are numbered through all segments, in their order.

    Attributes
    ----------
    path : Path
    manifest : Manifest
    parts : tuple of Part
        Replaced as a whole by a commit: who takes it once has a snapshot.
    """

    def __init__(self, path: Path, newest: Manifest, lock: Lock | None) -> None:
        self.path = path
        self.manifest = newest
        self.parts: tuple[Part, ...] = ()
        self._quantizer: ArrayFile | None = None
        self._lock = lock
        self._failed = False

    @classmethod
    def create(
        cls, path: Path, schema: Schema, arrays: Mapping[str, NDArray[Any]] | None = None
    ) -> Store:
        """Make an empty collection, durably, and open it for writing.

        Parameters
        ----------
        path : Path
        schema : Schema
        arrays : mapping of str to array, optional
            Of the quantiser, where it is fitted already and has some; see `FittedQuantizer`.

        Raises
        ------
        FileExistsError
            Where the path exists; a folder that is empty, or has only what a killed ``create``
            left, is taken.
        ValueError
            Where schema or arrays cannot be stored.
        OSError, LockedError
        """
        schema = Schema.from_json(schema.to_json())
        stored_arrays(arrays or {})  # before a folder is made
        _make_folder(path)
        # Before there is a manifest: whoever opens what a writer left that was killed here relies
        # on the folder's own name.
        files.sync_folder(path.parent)
        lock = Lock(path)
        try:
            if manifest.generations(path):
                raise FileExistsError(f"path exists already, as a collection: {path}")
            collection = str(uuid.uuid4())
            quantizer = write_quantizer(path, collection, arrays or {})
            newest = Manifest(collection, 1, schema, quantizer=quantizer)
            _publish(path, newest, [] if quantizer is None else [path / quantizer.file])
            store = cls(path, newest, lock)
            store._adopt(newest)
        except BaseException:
            lock.release()
            raise
        return store

    @classmethod
    def open(cls, path: Path, *, writable: bool) -> Store:
        """Open a folder, or a single segment for reading.

        Raises
        ------
        FileNotFoundError
            Where nothing is there.
        FormatError
            Where it is no collection, or of a newer version.
        StoreError
            Where it is one segment that does not hold the arrays of its quantiser, or a single
            file that is to be written.
        DamagedError
            Where a file is not as it was written.
        LockedError
            Where ``writable`` and somebody else is writing.
        """
        if not path.exists():
            raise FileNotFoundError(f"no collection at {path}: it does not exist")
        if not path.is_dir():
            if writable:
                raise StoreError(
                    f"{path} is a single file, which can only be read; mode must be 'r'"
                )
            return cls._open_file(path)
        lock = None
        if writable:
            _newest_generation(path)  # before a lock file is made in a folder of something else
            lock = Lock(path)
        try:
            store = cls._open_newest(path, lock)
            if writable:
                # Its writer may have died before this generation was durable. Nothing may be
                # removed or added because of it that could outlive it.
                files.sync_folder(path)
                store._remove_orphans()
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return store

    @classmethod
    def _open_newest(cls, path: Path, lock: Lock | None) -> Store:
        while True:
            generation = _newest_generation(path)
            try:
                newest = manifest.read(path, generation)
                store = cls(path, newest, lock)
                store._adopt(newest)
            except FileNotFoundError as error:
                # A writer may have committed and tidied up since the folder was read; then there
                # is a newer generation. If there is none, a file is missing.
                if _newest_generation(path) == generation:
                    raise FormatError(
                        f"{path}: a file of the collection is missing: {error}"
                    ) from error
                continue
            return store

    @classmethod
    def _open_file(cls, path: Path) -> Store:
        segment = Segment(path)
        header = segment.header
        quantizer = None
        if header.quantizer_uuid is not None:
            if not holds_quantizer(segment):
                raise StoreError(
                    f"{path} is a segment whose quantizer lies in another file of its collection: "
                    f"open the folder, or export it to one file"
                )
            quantizer = QuantizerEntry(path.name, header.quantizer_uuid, segment.size)
        alone = Manifest(
            header.collection,
            0,
            header.schema,
            header.ids,
            header.n_rows,
            (SegmentEntry(path.name, header.uuid, header.n_rows, segment.size),),
            quantizer,
            header.search,
        )
        store = cls(path, alone, None)
        store.parts = (Part(0, segment),)
        store._quantizer = segment
        return store

    @property
    def schema(self) -> Schema:
        return self.manifest.schema

    @property
    def writable(self) -> bool:
        return self._lock is not None

    def _adopt(self, newest: Manifest) -> None:
        """Open the segments of a manifest, those not open yet."""
        known = {part.segment.header.uuid: part.segment for part in self.parts}
        parts: list[Part] = []
        first_row = 0
        for entry in newest.segments:
            segment = known.get(entry.uuid) or self._open_entry(newest, entry)
            parts.append(Part(first_row, segment))
            first_row += segment.n_rows
        if newest.quantizer is None:
            self._quantizer = None
        elif self._quantizer is None or newest.quantizer != self.manifest.quantizer:
            self._quantizer = self._open_quantizer(newest, newest.quantizer)
        self.manifest = newest
        self.parts = tuple(parts)

    def _open_entry(self, newest: Manifest, entry: SegmentEntry) -> Segment:
        segment = Segment(self.path / entry.file)
        header = segment.header
        _compare(
            segment.path,
            ("uuid", header.uuid, entry.uuid),
            ("rows", header.n_rows, entry.n_rows),
            ("bytes", segment.size, entry.n_bytes),
            ("collection", header.collection, newest.collection),
            ("ids", header.ids, newest.ids),
            ("schema", header.schema, newest.schema),
            (
                "quantizer_uuid",
                header.quantizer_uuid,
                None if newest.quantizer is None else newest.quantizer.uuid,
            ),
        )
        return segment

    def _open_quantizer(self, newest: Manifest, entry: QuantizerEntry) -> QuantizerFile:
        file = QuantizerFile(self.path / entry.file)
        _compare(
            file.path,
            ("uuid", file.uuid, entry.uuid),
            ("collection", file.collection, newest.collection),
            ("bytes", file.size, entry.n_bytes),
        )
        return file

    def quantizer_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of the quantiser, read and verified; none where it has none.

        Raises
        ------
        OSError, DamagedError
        """
        return {} if self._quantizer is None else read_quantizer(self._quantizer)

    @contextlib.contextmanager
    def new_segment(
        self,
        ids: NDArray[Any],
        order: NDArray[np.int64] | None,
        calibration: Calibration | None,
        *,
        quantizer: FittedQuantizer | None = None,
    ) -> Iterator[SegmentWriter]:
        """Write a segment; `commit` makes it part of the collection.

        Parameters
        ----------
        ids, order, calibration
            See `SegmentWriter`.
        quantizer : FittedQuantizer, optional
            What takes the place of the collection's while that has no rows.

        Raises
        ------
        StoreError
            Where a quantiser comes too late.
        ValueError
            Where it cannot be stored, or does not go with the collection.
        OSError
            Where the disk is full or fails; nothing is left behind.
        """
        self.check_writable()
        schema, entry = self.schema, self.manifest.quantizer
        with contextlib.ExitStack() as undo:
            if quantizer is not None:
                schema = self._fitted_schema(quantizer)
                entry = write_quantizer(self.path, self.manifest.collection, quantizer.arrays)
                if entry is not None:
                    undo.callback(files.remove, self.path / entry.file)
            with SegmentWriter(
                self.path / f"segment-{uuid.uuid4()}.h5",
                collection=self.manifest.collection,
                schema=schema,
                ids=ids,
                order=order,
                calibration=calibration,
                quantizer=entry,
            ) as writer:
                yield writer
            undo.pop_all()

    def _fitted_schema(self, quantizer: FittedQuantizer) -> Schema:
        if self.parts:
            raise StoreError(
                f"{self.path} has rows: the quantizer that made their codes cannot be replaced"
            )
        schema = Schema.from_json(quantizer.schema.to_json())
        for name in ("dim", "metric", "vectors"):
            found, expected = getattr(schema, name), getattr(self.schema, name)
            if found != expected:
                raise ValueError(
                    f"quantizer.schema has {name} {found!r}, the collection has {expected!r}"
                )
        return schema

    def commit(self, written: SegmentWriter) -> None:
        """Make a finished segment the collection's last one, durably.

        Raises
        ------
        OSError
            Where it failed. Whether the rows are there is then for the next opening to say, and
            this object writes no more.
        """
        self.check_writable()
        header = written.header
        entry = SegmentEntry(written.path.name, header.uuid, header.n_rows, written.size)
        newest = self.manifest.successor(
            schema=header.schema,
            ids=header.ids,
            next_id=self.manifest.next_id + header.n_rows,
            segments=(*self.manifest.segments, entry),
            quantizer=written.quantizer,
        )
        new_files = [written.path]
        if written.quantizer not in (None, self.manifest.quantizer):
            new_files.append(self.path / written.quantizer.file)
        self._commit(newest, new_files)

    def set_search(self, search: dict[str, Any] | None) -> None:
        """Store settings of searches, durably; rows and all else stay as they are.

        Parameters
        ----------
        search : dict or None
            A JSON object of at most 64 KiB.

        Raises
        ------
        ValueError
            Where it is none.
        OSError
            As with `commit`.
        """
        self.check_writable()
        checked = None if search is None else json_object(search, "search")
        self._commit(self.manifest.successor(search=checked), [])

    def _commit(self, newest: Manifest, new_files: Sequence[Path]) -> None:
        try:
            _publish(self.path, newest, new_files)
            self._adopt(newest)
        except BaseException:
            self._failed = True
            raise
        # The generation is there: tidying up is left to the next commit where it fails.
        with contextlib.suppress(OSError):
            for generation in manifest.generations(self.path):
                # The one before stays: a reader that is opening it just now finds it.
                if generation < newest.generation - 1:
                    files.remove(manifest.path_of(self.path, generation))

    def find_ids(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """The row of each id, or -1; ids are of the collection's kind."""
        rows = np.full(len(ids), -1, np.int64)
        for first_row, segment in self.parts:
            found = segment.find_ids(ids)
            rows = np.where(found >= 0, found + first_row, rows)
        return rows

    def check_writable(self) -> None:
        if self._lock is None:
            raise StoreError(f"{self.path} is open for reading; open it with mode='a' to change it")
        if not self._lock.is_ours():
            raise StoreError(
                f"{self.path} was opened for writing before a fork; only the parent writes"
            )
        if self._failed:
            raise StoreError(f"{self.path}: an earlier commit failed; close and open it again")

    def _remove_orphans(self) -> None:
        """Remove what writers left that were killed or failed."""
        listed = {entry.file for entry in self.manifest.segments}
        if self.manifest.quantizer is not None:
            listed.add(self.manifest.quantizer.file)
        for name in os.listdir(self.path):
            if name not in listed and any(kind.fullmatch(name) for kind in _OWN_NAMES):
                files.remove(self.path / name)

    def close(self) -> None:
        """Give maps and lock back."""
        self.parts = ()
        self._quantizer = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _make_folder(path: Path) -> None:
    try:
        path.mkdir()
    except FileExistsError:
        leftovers = path.is_dir() and all(
            name == LOCK
            or manifest.TEMPORARY_NAME.fullmatch(name)
            or manifest.QUANTIZER_NAME.fullmatch(name)
            for name in os.listdir(path)
        )
        if not leftovers:
            raise FileExistsError(f"path exists already: {path}") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"path has no parent folder: {path}") from None


def _publish(path: Path, newest: Manifest, new_files: Sequence[Path]) -> None:
    """List files that are complete on the disk; where that fails they go again."""
    try:
        files.sync_folder(path)
        manifest.publish(path, newest)
    except BaseException:
        if not manifest.path_of(path, newest.generation).exists():
            with contextlib.suppress(OSError):  # or the next writer does it
                for file in new_files:
                    files.remove(file)
        raise


def _compare(path: Path, *pairs: tuple[str, Any, Any]) -> None:
    """Refuse a file that is not what the manifest says."""
    for what, found, expected in pairs:
        if found != expected:
            raise FormatError(f"{path}: {what} is {found!r}, the manifest says {expected!r}")


def _newest_generation(path: Path) -> int:
    present = manifest.generations(path)
    if not present:
        raise FormatError(f"{path} is no collection: the folder holds no manifest")
    return present[-1]
