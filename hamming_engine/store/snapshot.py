"""What a collection holds in one generation: segments, and which of their rows are still there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import bitmaps
from ..bitmaps import Words
from . import manifest as manifests
from .arrays import ArrayFile
from .errors import DamagedError, FormatError, StoreError
from .index import IndexFile
from .manifest import IndexEntry, Manifest, QuantizerEntry, SegmentEntry, TombstoneEntry
from .quantizer import QuantizerFile, holds_quantizer, read_quantizer
from .schema import Schema
from .segment import Segment
from .tombstones import TombstoneFile


class Part(NamedTuple):
    """A segment and the row of the collection with which it begins."""

    first_row: int
    segment: Segment


@dataclass(frozen=True)
class Snapshot:
    """One generation, open for reading; it never changes.

    Rows are numbered through all segments, in their order, those that were removed among them.

    Attributes
    ----------
    path : Path
        Of the collection.
    manifest : Manifest
    parts : tuple of Part
    removed : (m,) uint64
        A bit for each row that was removed, see `hamming_engine.bitmaps`; rows beyond are there.
    quantizer : ArrayFile or None
        Where the arrays of the quantiser are.
    index : IndexFile or None
        Of the first rows; None where there is none, or it cannot be used.
    index_error : Exception or None
        Why it cannot be used.
    """

    path: Path
    manifest: Manifest
    parts: tuple[Part, ...]
    removed: Words
    quantizer: ArrayFile | None
    index: IndexFile | None = None
    index_error: Exception | None = None

    @property
    def schema(self) -> Schema:
        return self.manifest.schema

    @property
    def n_stored(self) -> int:
        """Rows in the segments."""
        return self.parts[-1].first_row + self.parts[-1].segment.n_rows if self.parts else 0

    @cached_property
    def n_rows(self) -> int:
        """Rows that are there."""
        return self.n_stored - bitmaps.count(self.removed)

    def quantizer_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays of the quantiser, read and verified; none where it has none.

        Raises
        ------
        OSError, DamagedError
        """
        return {} if self.quantizer is None else read_quantizer(self.quantizer)

    def find_ids(self, ids: NDArray[np.generic]) -> NDArray[np.int64]:
        """The row of each id, or -1 where it is not there; ids are of the collection's kind."""
        rows = np.full(len(ids), -1, np.int64)
        missing = np.arange(len(ids))
        for first_row, segment in reversed(self.parts):  # what is asked for is often new
            if not missing.size:
                break
            found = segment.find_ids(ids[missing])
            there = found >= 0
            there[there] = ~bitmaps.contains(self.removed, found[there] + first_row)
            rows[missing[there]] = found[there] + first_row
            missing = missing[~there]
        return rows

    def is_there(self, first_row: int, end_row: int) -> NDArray[np.bool_]:
        """Whether each of some rows was not removed."""
        return ~bitmaps.to_bools(self.removed, first_row, end_row - first_row)


def renumbered(removed: Words, before: Snapshot, first: int, end: int) -> NDArray[np.int64]:
    """The removed rows as they are numbered when some parts lost those removed ``before``.

    Parameters
    ----------
    removed : (m,) uint64
        All rows that are removed by now.
    before : Snapshot
    first, end : int
        Its parts ``first`` to ``end`` are replaced by one with their rows that were there.

    Returns
    -------
    rows : (n,) int64
        Ascending.
    """
    bounds = np.array([part.first_row for part in before.parts] + [before.n_stored])
    begin, stop = bounds[[first]], bounds[[end]]
    dropped = bitmaps.Rank(before.removed)
    rows = bitmaps.to_rows(removed)
    inside = (rows >= begin) & (rows < stop)
    rows = rows[~(inside & bitmaps.contains(before.removed, rows))]
    base = dropped(begin)
    return rows - np.where(rows < begin, 0, dropped(np.minimum(rows, stop)) - base)


def newest_generation(path: Path) -> int:
    """The number of the newest generation in a folder.

    Raises
    ------
    FormatError
        Where it holds none.
    """
    present = manifests.generations(path)
    if not present:
        raise FormatError(f"{path} is no collection: the folder holds no manifest")
    return present[-1]


def open_newest(path: Path, known: Snapshot | None = None) -> Snapshot:
    """The newest generation in a folder; what ``known`` has open already is taken from it.

    Raises
    ------
    OSError, FormatError, DamagedError
    """
    while True:
        generation = newest_generation(path)
        if known is not None and known.manifest.generation == generation:
            return known
        try:
            return open_generation(path, manifests.read(path, generation), known)
        except FileNotFoundError as error:
            # A writer may have committed and tidied up since the folder was read; then there is a
            # newer generation. If there is none, a file is missing.
            if newest_generation(path) == generation:
                message = f"{path}: a file of the collection is missing: {error}"
                raise FormatError(message) from error


def open_generation(path: Path, manifest: Manifest, known: Snapshot | None = None) -> Snapshot:
    """The files that a manifest lists.

    Raises
    ------
    FileNotFoundError
        Where one is gone.
    OSError, FormatError, DamagedError
    """
    open_already = {} if known is None else {part.segment.header.uuid: part for part in known.parts}
    parts: list[Part] = []
    first_row = 0
    for entry in manifest.segments:
        part = open_already.get(entry.uuid)
        segment = open_segment(path, manifest, entry) if part is None else part.segment
        parts.append(Part(first_row, segment))
        first_row += segment.n_rows
    quantizer: ArrayFile | None = None
    if known is not None and known.manifest.quantizer == manifest.quantizer:
        quantizer = known.quantizer
    elif manifest.quantizer is not None:
        quantizer = open_quantizer(path, manifest, manifest.quantizer)
    index, index_error = _index_of(path, manifest, known)
    removed, listed = bitmaps.NO_BITS, set()
    if known is not None and manifest.segments[: len(known.parts)] == known.manifest.segments:
        removed, listed = known.removed, {entry.uuid for entry in known.manifest.tombstones}
    for tombstones in manifest.tombstones:
        if tombstones.uuid not in listed:
            rows = open_tombstones(path, manifest, tombstones).rows(first_row)
            removed = bitmaps.union(removed, bitmaps.from_rows(rows, first_row))
    n_listed = sum(entry.n_rows for entry in manifest.tombstones)
    if bitmaps.count(removed) != n_listed:
        raise FormatError(
            f"{path}: tombstones list {n_listed} rows, {bitmaps.count(removed)} different ones"
        )
    return Snapshot(path, manifest, tuple(parts), removed, quantizer, index, index_error)


def open_file(path: Path) -> Snapshot:
    """A single segment as a collection of its own.

    Raises
    ------
    StoreError
        Where the arrays of its quantiser are not in it.
    OSError, FormatError, DamagedError
    """
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
    manifest = Manifest(
        header.collection,
        0,
        header.schema,
        header.ids,
        header.n_rows,
        (SegmentEntry(path.name, header.uuid, header.n_rows, segment.size),),
        quantizer,
        header.search,
    )
    in_file = None if quantizer is None else segment
    return Snapshot(path, manifest, (Part(0, segment),), bitmaps.NO_BITS, in_file)


def open_segment(path: Path, manifest: Manifest, entry: SegmentEntry) -> Segment:
    """A segment that a manifest lists.

    Raises
    ------
    OSError, FormatError, DamagedError
    """
    segment = Segment(path / entry.file)
    header = segment.header
    _compare(
        segment,
        manifest,
        entry,
        ("rows", header.n_rows, entry.n_rows),
        ("ids", header.ids, manifest.ids),
        ("schema", header.schema, manifest.schema),
        (
            "quantizer_uuid",
            header.quantizer_uuid,
            None if manifest.quantizer is None else manifest.quantizer.uuid,
        ),
    )
    return segment


def open_quantizer(path: Path, manifest: Manifest, entry: QuantizerEntry) -> QuantizerFile:
    """The file of the quantiser's arrays that a manifest lists.

    Raises
    ------
    OSError, FormatError, DamagedError
    """
    file = QuantizerFile(path / entry.file)
    _compare(file, manifest, entry)
    return file


def open_index(path: Path, manifest: Manifest, entry: IndexEntry) -> IndexFile:
    """The file of the index that a manifest lists.

    Raises
    ------
    OSError, FormatError, DamagedError
    """
    file = IndexFile(path / str(entry.file))
    _compare(file, manifest, entry)
    named = tuple(listed.uuid for listed in manifest.segments)
    if entry.segments != named[: len(entry.segments)]:
        raise FormatError(f"{file.path}: the manifest says that it is of segments that are gone")
    return file


def _index_of(
    path: Path, manifest: Manifest, known: Snapshot | None
) -> tuple[IndexFile | None, Exception | None]:
    """The index, or why it cannot be used: nothing is lost with it but speed."""
    entry = manifest.index
    if entry is None or entry.file is None:
        return None, None
    if known is not None and known.index is not None and known.index.uuid == entry.uuid:
        return known.index, None
    try:
        return open_index(path, manifest, entry), None
    except FileNotFoundError as error:
        if newest_generation(path) != manifest.generation:
            raise  # a newer generation has replaced it
        return None, error
    except (OSError, FormatError, DamagedError) as error:
        return None, error


def open_tombstones(path: Path, manifest: Manifest, entry: TombstoneEntry) -> TombstoneFile:
    """A file of removed rows that a manifest lists.

    Raises
    ------
    OSError, FormatError, DamagedError
    """
    file = TombstoneFile(path / entry.file)
    _compare(file, manifest, entry, ("rows", file.n_rows, entry.n_rows))
    return file


def _compare(file: Any, manifest: Manifest, entry: Any, *pairs: tuple[str, Any, Any]) -> None:
    """Refuse a file that is not what the manifest says."""
    for what, found, expected in (
        ("uuid", file.uuid, entry.uuid),
        ("collection", file.collection, manifest.collection),
        ("bytes", file.size, entry.n_bytes),
        *pairs,
    ):
        if found != expected:
            raise FormatError(f"{file.path}: {what} is {found!r}, the manifest says {expected!r}")
