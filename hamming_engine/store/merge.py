"""Rows of a snapshot written anew: to an exported file, a merged segment, another collection."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import bitmaps
from ..columns import TEXT
from ..ids import shown
from . import files
from .arrays import ArrayWriter
from .errors import DamagedError
from .segment import Calibration, Content, SegmentWriter, TextTypes, column_array
from .snapshot import Part, Snapshot

Done = Callable[[int], Any]

_BLOCK_BYTES = 8 << 20  # of rows, in memory at once
_ORDER_BYTES = 32 << 20  # of ids and rows, while they are sorted


class LiveRows:
    """The rows of some parts of a snapshot that were not removed, in their order.

    Nothing of them is held but a block at a time, whatever their number.

    Parameters
    ----------
    snapshot : Snapshot
    first, end : int, optional
        Its parts ``first`` to ``end``; all by default.
    """

    def __init__(self, snapshot: Snapshot, first: int = 0, end: int | None = None) -> None:
        self.snapshot = snapshot
        self.parts = snapshot.parts[first:end]
        self._n_live = [int(self._is_there(part).sum()) for part in self.parts]
        self.n_rows = sum(self._n_live)

    def _is_there(self, part: Part) -> NDArray[np.bool_]:
        return self.snapshot.is_there(part.first_row, part.first_row + part.segment.n_rows)

    def blocks(self, name: str) -> Iterator[NDArray[Any]]:
        """An array of theirs, verified, in blocks of some MiB."""
        for part in self.parts:
            segment = part.segment
            is_there = self._is_there(part)
            step = segment.header.rows_per_checksum
            step *= max(1, _BLOCK_BYTES // (segment.row_bytes(name) * step))
            sums = segment.sums(name)
            for begin in range(0, segment.n_rows, step):
                end = min(begin + step, segment.n_rows)
                kept = is_there[begin:end]
                if kept.any():
                    rows = segment.read(name, begin, end, sums)
                    yield rows if kept.all() else rows[kept]

    def content(self) -> Content:
        """What a segment of these rows holds; none of it is known yet but the calibration."""
        schema = self.snapshot.schema
        each = [part.segment.texts for part in self.parts]
        text_ids = self.snapshot.manifest.ids == "utf8"
        ids = max((t.ids for t in each), key=_width, default=np.dtype("S1" if text_ids else "<i8"))
        columns = {
            name: max((texts.columns[name] for texts in each), key=_width, default=np.dtype("S1"))
            for name, kind in schema.columns.items()
            if kind == TEXT
        }
        calibration = self._calibration() if schema.vectors == "int8" else None
        texts = TextTypes(ids, columns)
        return Content(self.n_rows, texts, self._ids_ascend(), calibration=calibration)

    def _calibration(self) -> Calibration:
        """The runs of all parts: int8 vectors are copied as they are, so nothing is lost."""
        found = []
        base = 0
        for part, n_live in zip(self.parts, self._n_live, strict=True):
            calibration = part.segment.calibration
            before = np.append(0, np.cumsum(self._is_there(part)))
            first_row = before[calibration.first_row]
            filled = np.append(first_row[1:], n_live) > first_row
            scale, offset = calibration.scale[filled], calibration.offset[filled]
            found.append((base + first_row[filled], scale, offset))
            base += n_live
        if not found:
            dim = self.snapshot.schema.dim
            none = np.zeros((0, dim), np.float32)
            return Calibration(np.zeros(0, np.int64), none, none)
        return Calibration(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))

    def _ids_ascend(self) -> bool:
        last: Any = None
        for ids in self.blocks("ids"):
            if (ids[1:] <= ids[:-1]).any() or (last is not None and ids[0] <= last):
                return False
            last = ids[-1]
        return True

    def ids_order(self) -> Iterator[NDArray[np.int64]]:
        """What sorts their ids, in blocks.

        The parts' ids are sorted each, so they are merged: of every part some lie in memory, those
        that are not larger than the smallest of the parts' last ones are sorted and passed on.

        Raises
        ------
        DamagedError
            Where an id comes twice.
        """
        runs = []
        base = 0
        for part, n_live in zip(self.parts, self._n_live, strict=True):
            n = max(1, _ORDER_BYTES // (len(self.parts) * (8 + part.segment.row_bytes("ids"))))
            runs.append(_SortedIds(part, self._is_there(part), base, n))
            base += n_live
        last: Any = None
        while runs := [run for run in runs if run.fill()]:
            limit = min(run.ids[-1] for run in runs)
            taken = [run.take(limit) for run in runs]
            ids, rows = (np.concatenate(arrays) for arrays in zip(*taken, strict=True))
            order = np.argsort(ids, kind="stable")
            ids = ids[order]
            same = np.flatnonzero(ids[1:] == ids[:-1])
            if same.size or ids[0] == last:
                twice = ids[same[0]] if same.size else last
                raise DamagedError(f"{self.parts[0].segment.path}: id {shown(twice)} comes twice")
            last = ids[-1]
            yield rows[order]


class _SortedIds:
    """The ids of a part in ascending order, a block at a time, with the rows they get."""

    def __init__(self, part: Part, is_there: NDArray[np.bool_], base: int, n: int) -> None:
        self._segment, self._is_there, self._base, self._n = part.segment, is_there, base, n
        self._removed_before = bitmaps.Rank(bitmaps.from_bools(~is_there))
        self._next = 0
        self.ids: NDArray[Any] = part.segment.map("ids")[:0]
        self._rows = np.zeros(0, np.int64)

    def fill(self) -> bool:
        """Have some ids at hand; False where none are left."""
        segment = self._segment
        while not len(self.ids) and self._next < segment.n_rows:
            end = min(self._next + self._n, segment.n_rows)
            if segment.header.ids_ascending:
                rows = np.arange(self._next, end)
            else:
                rows = np.asarray(segment.verified_map("ids_order")[self._next : end])
            rows = rows[self._is_there[rows]]
            self._next = end
            self.ids = segment.take("ids", rows)
            self._rows = self._base + rows - self._removed_before(rows)
        return bool(len(self.ids))

    def take(self, limit: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Those at hand that are not larger than a limit."""
        n = int(np.searchsorted(self.ids, limit, side="right"))
        ids, rows = self.ids[:n], self._rows[:n]
        self.ids, self._rows = self.ids[n:], self._rows[n:]
        return ids, rows


def _width(dtype: np.dtype[Any]) -> int:
    return dtype.itemsize


def write_blocks(
    writer: ArrayWriter, name: str, blocks: Iterable[NDArray[Any]], done: Done | None = None
) -> None:
    """Write one array from blocks of any length, cut as the file's checksums need it."""
    step = writer.rows_per_checksum
    waiting: list[NDArray[Any]] = []
    n_waiting = written = 0
    for rows in blocks:
        waiting.append(rows)
        n_waiting += len(rows)
        whole = n_waiting // step * step
        if whole:
            joined = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
            writer.write(name, written, joined[:whole])
            written += whole
            waiting, n_waiting = [joined[whole:]], n_waiting - whole
        if done is not None:
            done(len(rows))
    if n_waiting:
        writer.write(name, written, np.concatenate(waiting))


def write_live(
    writer: SegmentWriter, rows: LiveRows, done: Done | None = None, *, with_codes: bool = True
) -> None:
    """Write the arrays of a segment as they are.

    Parameters
    ----------
    writer : SegmentWriter
        For the content that ``rows`` has.
    rows : LiveRows
    done : callable, optional
        Called with the number of rows of each block of codes.
    with_codes : bool
        False leaves codes and factors to others.
    """
    schema = rows.snapshot.schema
    if with_codes:
        write_blocks(writer, "codes", rows.blocks("codes"), done)
        if schema.factors:
            write_blocks(writer, "factors", rows.blocks("factors"))
    if schema.vectors is not None:
        write_blocks(writer, "vectors", rows.blocks("vectors"))
    write_blocks(writer, "ids", rows.blocks("ids"))
    for name in schema.columns:
        write_blocks(writer, column_array(name), rows.blocks(column_array(name)))
    if not writer.header.ids_ascending:
        write_blocks(writer, "ids_order", rows.ids_order())


def export_rows(snapshot: Snapshot, path: Path, done: Done) -> None:
    """Write all rows of a snapshot to one segment file, complete by itself.

    The file is written under another name beside it, and gets its own when it is complete.

    Parameters
    ----------
    snapshot : Snapshot
    path : Path
        Must not exist.
    done : callable
        Called with the number of rows of each block of codes.
    """
    if path.exists():
        raise FileExistsError(f"path exists already: {path}")
    if path.parent.resolve() == snapshot.path.resolve():
        raise ValueError(f"path must not lie inside the collection: {path}")
    rows = LiveRows(snapshot)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4()}.tmp")
    with SegmentWriter(
        temporary,
        rows.content(),
        collection=snapshot.manifest.collection,
        schema=snapshot.schema,
        quantizer=snapshot.manifest.quantizer,
        quantizer_arrays=snapshot.quantizer_arrays(),
        search=snapshot.manifest.search,
    ) as writer:
        write_live(writer, rows, done)
    try:
        files.publish(temporary, path)
        files.sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            files.remove(temporary)
