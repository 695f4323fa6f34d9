"""A collection's files: a folder of segments under a manifest, or one segment alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..forks import renew_in_children
from . import files, manifest
from .errors import FormatError, LockedError, StoreError
from .manifest import Manifest, SegmentEntry
from .schema import Schema
from .segment import Calibration, Segment, SegmentWriter

LOCK = "LOCK"


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
        self._lock = lock
        self._failed = False

    @classmethod
    def create(cls, path: Path, schema: Schema) -> Store:
        """Make an empty collection, durably, and open it for writing.

        Raises
        ------
        FileExistsError
            Where the path exists; a folder that is empty, or has only what a killed ``create``
            left, is taken.
        OSError, LockedError
        """
        _make_folder(path)
        lock = Lock(path)
        try:
            if manifest.generations(path):
                raise FileExistsError(f"path exists already, as a collection: {path}")
            newest = Manifest(str(uuid.uuid4()), 1, schema)
            manifest.publish(path, newest)
            files.sync_folder(path.parent)
        except BaseException:
            lock.release()
            raise
        return cls(path, newest, lock)

    @classmethod
    def open(cls, path: Path, *, writable: bool) -> Store:
        """Open a folder, or a single segment for reading.

        Raises
        ------
        FileNotFoundError
            Where nothing is there.
        FormatError
            Where it is no collection, or of a newer version.
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
        entry = SegmentEntry(path.name, header.uuid, header.n_rows, segment.size)
        alone = Manifest(header.collection, 0, header.schema, header.ids, header.n_rows, (entry,))
        store = cls(path, alone, None)
        store.parts = (Part(0, segment),)
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
        self.manifest = newest
        self.parts = tuple(parts)

    def _open_entry(self, newest: Manifest, entry: SegmentEntry) -> Segment:
        segment = Segment(self.path / entry.file)
        header = segment.header
        for what, found, expected in (
            ("uuid", header.uuid, entry.uuid),
            ("rows", header.n_rows, entry.n_rows),
            ("bytes", segment.size, entry.n_bytes),
            ("collection", header.collection, newest.collection),
            ("ids", header.ids, newest.ids),
            ("schema", header.schema, newest.schema),
        ):
            if found != expected:
                raise FormatError(
                    f"{segment.path}: {what} is {found!r}, the manifest says {expected!r}"
                )
        return segment

    def new_segment(
        self,
        ids: NDArray[Any],
        order: NDArray[np.int64] | None,
        calibration: Calibration | None,
    ) -> SegmentWriter:
        """Begin to write a segment; `commit` makes it part of the collection."""
        self.check_writable()
        return SegmentWriter(
            self.path / f"segment-{uuid.uuid4()}.h5",
            collection=self.manifest.collection,
            schema=self.schema,
            ids=ids,
            order=order,
            calibration=calibration,
        )

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
            ids=header.ids,
            next_id=self.manifest.next_id + header.n_rows,
            segments=(*self.manifest.segments, entry),
        )
        try:
            files.sync_folder(self.path)
            manifest.publish(self.path, newest)
            self._adopt(newest)
        except BaseException:
            self._failed = True
            if not manifest.path_of(self.path, newest.generation).exists():
                with contextlib.suppress(OSError):  # or the next writer does it
                    files.remove(written.path)
            raise
        # The rows are there: tidying up is left to the next commit where it fails.
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
        for name in os.listdir(self.path):
            unlisted = manifest.SEGMENT_NAME.fullmatch(name) and name not in listed
            if unlisted or manifest.TEMPORARY_NAME.fullmatch(name):
                files.remove(self.path / name)

    def close(self) -> None:
        """Give maps and lock back."""
        self.parts = ()
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _make_folder(path: Path) -> None:
    try:
        path.mkdir()
    except FileExistsError:
        leftovers = path.is_dir() and all(
            name == LOCK or manifest.TEMPORARY_NAME.fullmatch(name) for name in os.listdir(path)
        )
        if not leftovers:
            raise FileExistsError(f"path exists already: {path}") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"path has no parent folder: {path}") from None


def _newest_generation(path: Path) -> int:
    present = manifest.generations(path)
    if not present:
        raise FormatError(f"{path} is no collection: the folder holds no manifest")
    return present[-1]
