"""Copying rows from one set of segments into a new one."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ids import sorting_order
from . import files
from .segment import Calibration, SegmentWriter
from .store import Part, Store

_BLOCK_BYTES = 8 << 20


def export_parts(store: Store, path: Path, done: Callable[[int], Any]) -> None:
    """Write all rows of a store to one segment file.

    The file is written under another name beside it, and gets its own when it is complete.

    Parameters
    ----------
    store : Store
    path : Path
        Must not exist.
    done : callable
        Called with the number of rows of each block of codes.
    """
    if path.exists():
        raise FileExistsError(f"path exists already: {path}")
    if path.parent.resolve() == store.path.resolve():
        raise ValueError(f"path must not lie inside the collection: {path}")
    parts = store.parts
    ids = _all_ids(store, parts)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4()}.tmp")
    with SegmentWriter(
        temporary,
        collection=store.manifest.collection,
        schema=store.schema,
        ids=ids,
        order=sorting_order(ids),
        calibration=_calibration(parts) if store.schema.vectors == "int8" else None,
        quantizer=store.manifest.quantizer,
        quantizer_arrays=store.quantizer_arrays(),
        search=store.manifest.search,
    ) as writer:
        _copy(parts, "codes", writer, done)
        if store.schema.factors:
            _copy(parts, "factors", writer, None)
        if store.schema.vectors is not None:
            _copy(parts, "vectors", writer, None)
    try:
        files.publish(temporary, path)
        files.sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            files.remove(temporary)


def _all_ids(store: Store, parts: tuple[Part, ...]) -> NDArray[Any]:
    if not parts:
        return np.zeros(0, "S1" if store.manifest.ids == "utf8" else np.int64)
    return np.concatenate([part.segment.read("ids", 0, part.segment.n_rows) for part in parts])


def _calibration(parts: tuple[Part, ...]) -> Calibration | None:
    """The runs of all segments: int8 vectors are copied as they are, so nothing is lost."""
    each = [(part.first_row, part.segment.calibration()) for part in parts]
    if not each:
        return None
    return Calibration(
        np.concatenate([first_row + c.first_row for first_row, c in each]),
        np.concatenate([c.scale for _, c in each]),
        np.concatenate([c.offset for _, c in each]),
    )


def _copy(
    parts: tuple[Part, ...], name: str, writer: SegmentWriter, done: Callable[[int], Any] | None
) -> None:
    """Copy one array, verified, in blocks that fit the writer's checksums."""
    step = writer.header.rows_per_checksum
    waiting: list[NDArray[Any]] = []
    n_waiting = 0
    written = 0
    for rows in _verified_blocks(parts, name):
        waiting.append(rows)
        n_waiting += len(rows)
        whole = n_waiting // step * step
        if whole:
            joined = np.concatenate(waiting)
            writer.write(name, written, joined[:whole])
            written += whole
            waiting, n_waiting = [joined[whole:]], n_waiting - whole
        if done is not None:
            done(len(rows))
    if n_waiting:
        writer.write(name, written, np.concatenate(waiting))


def _verified_blocks(parts: tuple[Part, ...], name: str) -> Iterator[NDArray[Any]]:
    for _, segment in parts:
        step = segment.header.rows_per_checksum
        step *= max(1, _BLOCK_BYTES // (segment.row_bytes(name) * step))
        sums = segment.sums(name)
        for first in range(0, segment.n_rows, step):
            yield segment.read(name, first, min(first + step, segment.n_rows), sums)
