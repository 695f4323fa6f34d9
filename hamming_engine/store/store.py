"""A collection's files: a folder of segments under a manifest, or one segment alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..forks import renew_in_children
from . import files, manifest
from .errors import LockedError, StoreError
from .index import write_index
from .manifest import IndexEntry, Manifest, QuantizerEntry, RetiredEntry, SegmentEntry
from .quantizer import Settings, stored_arrays, write_quantizer
from .schema import Schema, json_object
from .segment import Content, SegmentWriter
from .snapshot import (
    Snapshot,
    newest_generation,
    open_file,
    open_generation,
    open_newest,
    open_tombstones,
    renumbered,
)
from .tombstones import write_tombstones

Rows = NDArray[np.int64]

LOCK = "LOCK"
NO_ROWS: Rows = np.zeros(0, np.int64)
_OWN_NAMES = (
    manifest.SEGMENT_NAME,
    manifest.QUANTIZER_NAME,
    manifest.INDEX_NAME,
    manifest.TOMBSTONES_NAME,
    manifest.TEMPORARY_NAME,
)


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
        try:
            with contextlib.suppress(OSError):  # only a help to whoever finds it locked
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(self._process).encode(), 0)
        except BaseException:  # Ctrl-C: who is told of it may keep this object alive
            self._close()
            raise

    def is_ours(self) -> bool:
        """Whether this process took it; a forked child must not write with it."""
        return os.getpid() == self._process

    def after_fork_in_child(self) -> None:
        """Close the child's copy, or the lock would outlive the writer in it."""
        self._close()

    def release(self) -> None:
        """Let others write."""
        self._close()


class Store:
    """A collection's files, and the rows as of opening, refreshing or the last own commit.

    Made by `create` and `open`.

    Attributes
    ----------
    path : Path
    snapshot : Snapshot
        Replaced as a whole by a commit: who takes it once keeps it.
    """

    def __init__(self, path: Path, snapshot: Snapshot, lock: Lock | None) -> None:
        self.path = path
        self.snapshot = snapshot
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
            store = cls(path, open_generation(path, newest), lock)
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
            return cls(path, open_file(path), None)
        lock = None
        if writable:
            newest_generation(path)  # before a lock file is made in a folder of something else
            lock = Lock(path)
        try:
            store = cls(path, open_newest(path), lock)
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

    @property
    def writable(self) -> bool:
        return self._lock is not None

    def refresh(self) -> bool:
        """Take the newest generation; whether there was a newer one.

        Raises
        ------
        OSError, FormatError, DamagedError
            The store stays as it is then.
        """
        if self.writable or not self.path.is_dir():
            return False  # a writer has the newest, and a single file is all there is
        newest = open_newest(self.path, self.snapshot)
        if newest.manifest.generation == self.snapshot.manifest.generation:
            return False
        self.snapshot = newest
        return True

    @contextlib.contextmanager
    def new_segment(
        self, content: Content, *, settings: Settings | None = None
    ) -> Iterator[SegmentWriter]:
        """Write a segment; `append` or `replace` makes it part of the collection.

        Parameters
        ----------
        content : Content
        settings : Settings, optional
            What takes the place of the collection's with this segment.

        Raises
        ------
        ValueError
            Where settings cannot be stored, or do not go with the collection.
        OSError
            Where the disk is full or fails; nothing is left behind.
        """
        self.check_writable()
        schema, entry = self.snapshot.schema, self.snapshot.manifest.quantizer
        with contextlib.ExitStack() as undo:
            if settings is not None:
                schema, entry = self._write_settings(settings)
                if entry is not None:
                    undo.callback(files.remove, self.path / entry.file)
            with SegmentWriter(
                self.path / f"segment-{uuid.uuid4()}.h5",
                content,
                collection=self.snapshot.manifest.collection,
                schema=schema,
                quantizer=entry,
            ) as writer:
                yield writer
            undo.pop_all()

    def _write_settings(self, settings: Settings) -> tuple[Schema, QuantizerEntry | None]:
        schema = Schema.from_json(settings.schema.to_json())
        for name in ("dim", "metric", "vectors"):
            found, expected = getattr(schema, name), getattr(self.snapshot.schema, name)
            if found != expected:
                raise ValueError(
                    f"settings.schema has {name} {found!r}, the collection has {expected!r}"
                )
        collection = self.snapshot.manifest.collection
        return schema, write_quantizer(self.path, collection, settings.arrays)

    def append(self, written: SegmentWriter, removed: Rows = NO_ROWS) -> None:
        """Make a finished segment the collection's last one and remove rows, durably.

        Parameters
        ----------
        written : SegmentWriter
        removed : (n,) int64
            Rows that are there, each once.

        Raises
        ------
        StoreError
            Where the segment brings settings, and there are rows already.
        OSError
            Where it failed. Whether the change is there is then for the next opening to say, and
            this object writes no more.
        """
        self.check_writable()
        before, header = self.snapshot.manifest, written.header
        if before.segments and (header.schema, written.quantizer) != (
            before.schema,
            before.quantizer,
        ):
            _discard(self._new_files(written))
            raise StoreError(f"{self.path} has rows: what made their codes cannot be replaced")
        newest = before.successor(
            schema=header.schema,
            ids=header.ids,
            next_id=before.next_id + header.n_rows,
            segments=(*before.segments, _entry_of(written)),
            quantizer=written.quantizer,
        )
        self._commit_with(newest, removed, self._new_files(written))

    def remove(self, rows: Rows) -> None:
        """Remove rows, durably.

        Parameters
        ----------
        rows : (n,) int64
            Rows that are there, each once.

        Raises
        ------
        OSError
            As with `append`.
        """
        self.check_writable()
        self._commit_with(self.snapshot.manifest.successor(), rows, [])

    def replace(
        self,
        before: Snapshot,
        first: int,
        end: int,
        written: SegmentWriter | None,
        grace_seconds: float,
    ) -> None:
        """Put a finished segment in the place of others, durably.

        Rows that were removed since stay so, and segments that were appended since follow.

        Parameters
        ----------
        before : Snapshot
            An earlier one of this store.
        first, end : int
            Its parts ``first`` to ``end`` are replaced.
        written : SegmentWriter or None
            Their rows that were there, in their order; None where none was. With settings of its
            own it has to replace all there are.
        grace_seconds : float
            How long the old files stay for readers that still use them.

        Raises
        ------
        StoreError
            Where the segments are not there any more, or others would keep other settings.
        OSError
            As with `append`.
        """
        self.check_writable()
        current = self.snapshot.manifest
        old = before.manifest.segments
        new_files = [] if written is None else self._new_files(written)
        changes: dict[str, Any] = {}
        if written is not None:
            header = written.header
            if (header.schema, written.quantizer) != (current.schema, current.quantizer):
                changes = {"schema": header.schema, "quantizer": written.quantizer, "search": None}
        whole = first == 0 and end == len(current.segments)
        if current.segments[: len(old)] != old or (changes and not whole):
            _discard(new_files)
            raise StoreError(f"{self.path} has changed since the segments were merged")
        entries = [] if written is None else [_entry_of(written)]
        kept = renumbered(self.snapshot.removed, before, first, end)
        index = current.index
        if index is not None and first < len(index.segments):
            index = index.without_file()
        newest = current.successor(
            segments=(*current.segments[:first], *entries, *current.segments[end:]),
            tombstones=(),
            index=index,
            **changes,
        )
        self._commit_with(newest, kept, new_files, grace_seconds)

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
            As with `append`.
        """
        self.check_writable()
        checked = None if search is None else json_object(search, "search")
        self._commit(self.snapshot.manifest.successor(search=checked), [])

    def set_index(
        self,
        settings: dict[str, Any] | None,
        before: Snapshot | None = None,
        state: Mapping[str, Any] | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Store an index, durably, in the place of the one that is there; or nothing.

        Parameters
        ----------
        settings : dict or None
            How it is made, a JSON object of at most 64 KiB; None for no index any more.
        before : Snapshot, optional
            An earlier one of this store, whose rows the index has, all of them.
        state, arrays : mapping, optional
            See `write_index`; none to have only the settings stored.

        Raises
        ------
        StoreError
            Where the segments of ``before`` are not there any more.
        ValueError
            Where it cannot be stored.
        OSError
            As with `append`.
        """
        self.check_writable()
        current = self.snapshot.manifest
        entry = None if settings is None else IndexEntry(json_object(settings, "index"))
        new_files = []
        if settings is not None and before is not None:
            segments = tuple(listed.uuid for listed in before.manifest.segments)
            there = tuple(listed.uuid for listed in current.segments)
            if there[: len(segments)] != segments:
                raise StoreError(f"{self.path} has changed since the index was made")
            entry = write_index(
                self.path, current.collection, settings, segments, state or {}, arrays or {}
            )
            new_files = [self.path / str(entry.file)]
        self._commit(current.successor(index=entry), new_files)

    def set_settings(self, settings: Settings) -> None:
        """Replace schema and quantiser while there are no rows, durably.

        Raises
        ------
        StoreError
            Where there are rows.
        ValueError
            Where settings cannot be stored, or do not go with the collection.
        OSError
            As with `append`.
        """
        self.check_writable()
        if self.snapshot.parts:
            raise StoreError(f"{self.path} has rows: what made their codes cannot be replaced")
        schema, entry = self._write_settings(settings)
        newest = self.snapshot.manifest.successor(schema=schema, quantizer=entry, search=None)
        self._commit(newest, [] if entry is None else [self.path / entry.file])

    def _new_files(self, written: SegmentWriter) -> list[Path]:
        """A finished segment's file, and the quantiser's where it brought one."""
        new = [written.path]
        if written.quantizer not in (None, self.snapshot.manifest.quantizer):
            new.append(self.path / written.quantizer.file)
        return new

    def _commit_with(
        self, newest: Manifest, removed: Rows, new_files: list[Path], grace_seconds: float = 0
    ) -> None:
        """Commit, with the rows listed as removed in a new file.

        The file takes in what those before it list, those that are not much longer than it: so
        there are few of them, and a row is written again a few times in its life.
        """
        if removed.size:
            entries = list(newest.tombstones)
            rows = np.sort(removed)
            try:
                while entries and entries[-1].n_rows <= 2 * len(rows):
                    older = open_tombstones(self.path, newest, entries.pop())
                    rows = np.union1d(rows, older.rows(self.snapshot.n_stored))
                entry = write_tombstones(self.path, newest.collection, rows)
            except BaseException:
                _discard(new_files)
                raise
            newest = replace(newest, tombstones=(*entries, entry))
            new_files = [*new_files, self.path / entry.file]
        self._commit(newest, new_files, grace_seconds)

    def _commit(
        self, newest: Manifest, new_files: Sequence[Path], grace_seconds: float = 0
    ) -> None:
        """Publish a generation; files that it does not list any more go, or stay for a while."""
        now = time.time()
        before = self.snapshot.manifest
        kept = [entry for entry in before.retired if not entry.is_over(now)]
        if grace_seconds > 0:
            until = now + grace_seconds
            kept += [RetiredEntry(name, until) for name in before.files - newest.files]
        newest = replace(newest, retired=tuple(sorted(kept, key=attrgetter("file"))))
        try:
            _publish(self.path, newest, new_files)
            self.snapshot = open_generation(self.path, newest, self.snapshot)
        except BaseException:
            self._failed = True
            raise
        # The generation is there: tidying up is left to the next writer where it fails.
        with contextlib.suppress(OSError):
            for generation in manifest.generations(self.path):
                # The one before stays: a reader that is opening it just now finds it.
                if generation < newest.generation - 1:
                    files.remove(manifest.path_of(self.path, generation))
            known = before.files | {entry.file for entry in before.retired}
            for name in known - newest.files - {entry.file for entry in newest.retired}:
                files.remove(self.path / name)

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
        """Remove what writers left that were killed or failed, and what was kept for readers."""
        newest, now = self.snapshot.manifest, time.time()
        kept = newest.files | {entry.file for entry in newest.retired if not entry.is_over(now)}
        for name in os.listdir(self.path):
            if name not in kept and any(kind.fullmatch(name) for kind in _OWN_NAMES):
                files.remove(self.path / name)

    def close(self) -> None:
        """Give the lock back; snapshots that are in use stay so."""
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


def _entry_of(written: SegmentWriter) -> SegmentEntry:
    header = written.header
    return SegmentEntry(written.path.name, header.uuid, header.n_rows, written.size)


def _discard(new_files: Sequence[Path]) -> None:
    """Remove files that will not be listed; where that fails, the next writer does it."""
    with contextlib.suppress(OSError):
        for file in new_files:
            files.remove(file)


def _publish(path: Path, newest: Manifest, new_files: Sequence[Path]) -> None:
    """List files that are complete on the disk; where that fails they go again."""
    try:
        files.sync_folder(path)
        manifest.publish(path, newest)
    except BaseException:
        if not manifest.path_of(path, newest.generation).exists():
            _discard(new_files)
        raise
