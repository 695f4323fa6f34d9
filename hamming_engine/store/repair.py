"""A new collection from what is sound of a damaged one."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import bitmaps, checks
from ..optional import progress_bar
from . import files
from . import manifest as manifests
from .errors import DamagedError, StoreError
from .inspection import Bools, InspectedSegment, Inspection, damage_noted, inspected, opened
from .manifest import Manifest, QuantizerEntry, SegmentEntry
from .merge import Done, LiveRows, write_live
from .quantizer import QuantizerFile, write_quantizer
from .report import Damage, RepairReport
from .segment import Segment, SegmentHeader, SegmentWriter
from .snapshot import Part, Snapshot
from .sorting import IdSource, sorted_ids, twice
from .tombstones import TombstoneFile

_AT_ONCE_BYTES = 8 << 20


def repair(
    path: str | os.PathLike[str], target: str | os.PathLike[str], *, progress: bool = False
) -> RepairReport:
    """Make a new collection of all rows of a damaged one that are sound.

    A row is sound where all blocks that hold something of it match their checksums. The rows are
    those of the newest manifest that can be read; where none can, all of the segments that can be
    opened and go together, the older first. What is there is never changed.

    Parameters
    ----------
    path : path
        A collection, or the single file that `Collection.export` wrote.
    target : path
        Of the new collection: a folder that does not exist, and that does not lie in ``path``.
    progress : bool
        Show a bar; needs tqdm.

    Returns
    -------
    RepairReport
        Rows kept and left out, and what else is different. Rows that were removed stay so, but for
        those that damaged blocks of tombstones listed: they come back. Where that makes an id come
        twice, the newer row is kept.

    Raises
    ------
    FileExistsError, FileNotFoundError, OSError
        Where the target exists, or the disk is full or fails; nothing is left at the target.
    hamming_engine.store.errors.FormatError
        Where there is no collection.
    hamming_engine.store.errors.StoreError
        Where nothing can be kept: no segment can be opened, or what its quantiser has learnt is
        damaged, without which codes mean nothing.
    """
    source, new = checks.path(path), checks.path(target)
    _check_target(source, new)
    found = opened(source)
    generation = None if found.manifest is None else found.manifest.generation
    notes: list[str] = []
    if generation is None:
        _take_all_segments(found, notes)
    elif source.is_dir() and manifests.generations(source)[-1] > generation:
        notes.append(
            f"no newer manifest than that of generation {generation} can be read: what was changed "
            f"after it is lost"
        )
    with progress_bar(progress, found.array_bytes, "B") as bar:
        found.read(bar.update)
    _check_quantizer(found)
    left_out, others = _sorted_out(found)
    notes += [str(damage) for damage in others]
    if found.n_back:
        notes.append(
            f"{found.n_back} rows at most that were removed have come back: what listed them is "
            f"damaged"
        )
    n_left_out = sum(int((item.there & ~item.sound).sum()) for item in found.usable)
    n_left_out += sum(item.n_rows for item in found.segments if item.segment is None)
    kept = [item.there & item.sound for item in found.usable]
    _leave_out_older(found, kept, notes)
    rows = _SoundRows(found, kept)
    with progress_bar(progress, rows.n_rows, "row") as bar:
        _write(new, rows, rows.next_id() if generation is None else None, bar.update)
    return RepairReport(
        str(source), str(new), generation, rows.n_rows, n_left_out, left_out, tuple(notes)
    )


def _check_target(source: Path, target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"target exists already: {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"target has no parent folder: {target}")
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"target must not lie inside the collection: {target}")


def _take_all_segments(found: Inspection, notes: list[str]) -> None:
    """Where no manifest says what counts, take the segments that have the newest one's settings."""
    path = found.path
    names = sorted(path.iterdir(), key=_age) if path.is_dir() else []
    segments: list[Segment] = []
    for file in names:
        if manifests.SEGMENT_NAME.fullmatch(file.name):
            with damage_noted(file.name, found):
                segments.append(Segment(file))
    if not segments:
        why = "; ".join(str(damage) for damage in found.damages[:3])
        raise StoreError(f"{path}: nothing can be kept: {why}")
    newest = segments[-1].header
    for segment in segments:
        if _settings(segment) == _settings(segments[-1]):
            found.segments.append(inspected(segment))
            continue
        name, n_rows = segment.path.name, segment.n_rows
        found.segments.append(InspectedSegment(name, n_rows, None))
        message = "its settings are not those of the newest segment"
        found.damages.append(Damage(name, None, 0, n_rows, message))
    quantizer = None
    if newest.quantizer_uuid is not None:
        found.quantizer = _quantizer_file(names, newest, found)
        size = 0 if found.quantizer is None else found.quantizer.size
        quantizer = QuantizerEntry("quantizer", newest.quantizer_uuid, size)
        found.quantizer_is_sound = found.quantizer is not None
    found.manifest = Manifest(
        newest.collection, 0, newest.schema, newest.ids, quantizer=quantizer, search=None
    )
    notes.append(
        "no manifest can be read: these are the rows of all segments that can be opened, by the "
        "time of their last change; settings of searches are lost"
    )
    n_listed = 0
    for file in names:
        with contextlib.suppress(OSError, StoreError):
            if manifests.TOMBSTONES_NAME.fullmatch(file.name):
                n_listed += TombstoneFile(file).n_rows_of("rows")
    if n_listed:
        notes.append(
            f"{n_listed} rows at most that were removed have come back: only a manifest says which "
            f"rows tombstones list"
        )


def _age(file: Path) -> tuple[int, str]:
    return file.stat().st_mtime_ns, file.name


def _settings(segment: Segment) -> Any:
    header = segment.header
    return header.collection, header.schema, header.ids, header.quantizer_uuid


def _quantizer_file(
    names: list[Path], newest: SegmentHeader, found: Inspection
) -> QuantizerFile | None:
    """The file of the quantiser that a segment names."""
    for file in names:
        if manifests.QUANTIZER_NAME.fullmatch(file.name):
            with damage_noted(file.name, found):
                quantizer = QuantizerFile(file)
                if (quantizer.uuid, quantizer.collection) == (
                    newest.quantizer_uuid,
                    newest.collection,
                ):
                    return quantizer
    return None


def _check_quantizer(found: Inspection) -> None:
    if not found.quantizer_is_sound:
        why = "; ".join(str(damage) for damage in found.damages[:3])
        raise StoreError(
            f"{found.path}: nothing can be kept: what the quantizer has learnt is damaged, and "
            f"codes mean nothing without it: {why}"
        )


def _sorted_out(found: Inspection) -> tuple[tuple[Damage, ...], list[Damage]]:
    """Damages that rows are left out for, and the others."""
    segments = {item.name: item for item in found.segments}
    left_out, others = [], []
    for damage in found.damages:
        item = segments.get(damage.file)
        if item is not None and damage.dataset is None:
            left_out.append(replace(damage, end_row=item.n_rows))
        elif item is not None and _costs_rows(damage, item):
            left_out.append(damage)
        else:
            others.append(damage)
    return tuple(left_out), others


def _costs_rows(damage: Damage, item: InspectedSegment) -> bool:
    dataset = damage.dataset or ""
    if dataset.startswith("calibration_"):
        return True
    return dataset != "ids_order" and not item.sound[damage.first_row : damage.end_row].all()


def _leave_out_older(found: Inspection, kept: list[Bools], notes: list[str]) -> None:
    """Of rows with the same id keep the newest."""
    starts = np.cumsum([0, *(item.n_rows for item in found.usable)])
    sources = [
        IdSource(item.file, int(first), rows, item.ascend)
        for item, first, rows in zip(found.usable, starts[:-1], kept, strict=True)
    ]
    n_older = 0
    for ids, rows in sorted_ids(sources):
        _, older, _ = twice(ids, rows)
        n_older += len(older)
        for part in np.unique(np.searchsorted(starts, older, "right") - 1).tolist():
            inside = (older >= starts[part]) & (older < starts[part + 1])
            kept[part][older[inside] - starts[part]] = False
    if n_older:
        notes.append(f"{n_older} rows are left out whose ids newer rows have")


class _SoundRows(LiveRows):
    """The rows that are kept; what is damaged around them is read and not used.

    Parameters
    ----------
    found : Inspection
    kept : list of (n,) bool
        Which rows of each usable segment.
    """

    def __init__(self, found: Inspection, kept: list[Bools]) -> None:
        assert found.manifest is not None
        parts, self._sources, first_row = [], [], 0
        there = [rows for rows in kept if rows.any()]
        for item, rows in zip(found.usable, kept, strict=True):
            if rows.any():
                parts.append(Part(first_row, item.file))
                self._sources.append(IdSource(item.file, first_row, rows, item.ascend))
                first_row += item.n_rows
        removed = bitmaps.from_bools(~np.concatenate([np.zeros(0, np.bool_), *there]))
        super().__init__(
            Snapshot(found.path, found.manifest, tuple(parts), removed, found.quantizer)
        )

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        for source in self._sources:
            for first, rows, sound, message in source.segment.survey(name, _AT_ONCE_BYTES):
                kept = source.kept[first : first + len(rows)]
                if (kept & ~sound).any():  # it was, a moment ago
                    raise DamagedError(f"{source.segment.path}: /{name} {message}")
                if kept.any():
                    yield rows if kept.all() else rows[kept]

    def ids_order(self) -> Iterator[NDArray[np.int64]]:
        removed_before = bitmaps.Rank(self.snapshot.removed)
        for _, rows in sorted_ids(self._sources):
            yield rows - removed_before(rows)

    def next_id(self) -> int:
        """What is larger than all ids, where they are numbers."""
        if self.snapshot.manifest.ids != "int64":
            return self.n_rows
        return max((int(ids.max()) + 1 for ids in self.blocks("ids")), default=0)


def _write(target: Path, rows: _SoundRows, next_id: int | None, done: Done) -> None:
    """Write a collection of some rows; nothing is left where that fails."""
    before = rows.snapshot.manifest
    collection = str(uuid.uuid4())
    target.mkdir()
    try:
        quantizer = write_quantizer(target, collection, rows.snapshot.quantizer_arrays())
        segments: tuple[SegmentEntry, ...] = ()
        if rows.n_rows:
            with SegmentWriter(
                target / f"segment-{uuid.uuid4()}.h5",
                rows.content(),
                collection=collection,
                schema=before.schema,
                quantizer=quantizer,
            ) as writer:
                write_live(writer, rows, done)
            name, header = writer.path.name, writer.header
            segments = (SegmentEntry(name, header.uuid, header.n_rows, writer.size),)
        files.sync_folder(target)
        new = Manifest(
            collection,
            before.generation + 1,
            before.schema,
            before.ids,
            before.next_id if next_id is None else next_id,
            segments,
            quantizer,
            before.search,
            index=None if before.index is None else before.index.without_file(),
        )
        manifests.publish(target, new)
        files.sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
