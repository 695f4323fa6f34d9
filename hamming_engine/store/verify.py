"""Whether a collection is as it was written: every byte of it read, and what it says compared.

As SQLite's ``PRAGMA integrity_check`` and Lucene's ``CheckIndex`` do, it goes on after the first
damage, and beyond checksums looks at what writers promise of the content.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ids import shown
from ..optional import progress_bar
from .errors import DamagedError
from .inspection import Bools, InspectedSegment, Inspection, opened
from .report import Damage, Report
from .sorting import Block, IdSource, Rows, sorted_ids, twice

_AT_ONCE_BYTES = 1 << 20
_MOST_TWICE = 100  # ids that come twice, which are listed each


def verify(path: Path, *, progress: bool = False) -> Report:
    """Read all of a collection; see `hamming_engine.verify`.

    Raises
    ------
    FileNotFoundError, FormatError
        Where there is none.
    OSError
        Where the folder cannot be read, or that of temporary files is full.
    """
    found = opened(path)
    with progress_bar(progress, found.array_bytes, "B") as bar:
        found.read(bar.update)
    try:
        _check_ids(found)
    except DamagedError as error:  # what was sound a moment ago
        found.damages.append(Damage(path.name, None, 0, None, str(error)))
    n_rows = 0
    if found.manifest is not None:
        n_rows = sum(entry.n_rows for entry in found.manifest.segments)
        n_rows -= sum(entry.n_rows for entry in found.manifest.tombstones)
    return Report(
        str(path),
        None if found.manifest is None else found.manifest.generation,
        n_rows,
        found.n_files,
        found.n_bytes,
        tuple(found.damages),
    )


def _check_ids(found: Inspection) -> None:
    """Look for ids that come twice, and for orders that do not sort them."""
    usable = found.usable
    starts = np.cumsum([0, *(item.n_rows for item in usable)])
    there = np.concatenate([np.zeros(0, np.bool_), *(item.there for item in usable)])
    sources = [
        _source(item, int(first), found.damages)
        for item, first in zip(usable, starts[:-1], strict=True)
    ]
    n_twice = 0
    for ids, rows in sorted_ids(sources):
        for again, older, newer in _wrongly_twice(ids, rows, there, starts, found.n_back == 0):
            n_twice += 1
            if n_twice <= _MOST_TWICE:
                (old, at), (new, row) = _place(usable, starts, older), _place(usable, starts, newer)
                message = f"id {shown(again)} is that of row {at} of {old} too"
                found.damages.append(Damage(new, "ids", row, row + 1, message))
    if n_twice > _MOST_TWICE:
        message = f"{n_twice - _MOST_TWICE} more ids come twice"
        found.damages.append(Damage(found.path.name, None, 0, None, message))


def _wrongly_twice(
    ids: NDArray[Any], rows: Rows, there: Bools, starts: Rows, removed_is_known: bool
) -> Iterator[tuple[Any, int, int]]:
    """Ids with two rows of one segment, or two rows that are there; the older row and the newer."""
    again, older, newer = twice(ids, rows)
    in_one = np.searchsorted(starts, older, "right") == np.searchsorted(starts, newer, "right")
    if removed_is_known:
        in_one &= ~(there[older] & there[newer])  # they come below
    yield from zip(again[in_one], older[in_one].tolist(), newer[in_one].tolist(), strict=True)
    if removed_is_known and again.size:
        here = there[rows]
        again, older, newer = twice(ids[here], rows[here])
        yield from zip(again, older.tolist(), newer.tolist(), strict=True)


def _place(usable: list[InspectedSegment], starts: Rows, row: int) -> tuple[str, int]:
    """The file and the row in it."""
    part = int(np.searchsorted(starts, row, "right")) - 1
    return usable[part].name, row - int(starts[part])


def _source(item: InspectedSegment, first_row: int, damages: list[Damage]) -> IdSource:
    """The ids of a segment; once they are sorted, they are compared with the order it stores."""
    watch: Any = iter
    if item.order_is_sound:
        watch = partial(_compared, item, first_row, damages)
    return IdSource(item.file, first_row, item.sound_ids, item.ascend, watch)


def _compared(
    item: InspectedSegment, first_row: int, damages: list[Damage], blocks: Iterator[Block]
) -> Iterator[Block]:
    """Pass blocks on, and note where their rows are not those of the stored order."""
    order = _Order(item)
    wrong: list[int] = []
    for ids, rows in blocks:
        stored, places = order.take(len(rows))
        differ = places[stored + first_row != rows]
        if differ.size:
            wrong += [int(differ[0]), int(differ[-1])]
        yield ids, rows
    if wrong:
        end = max(wrong) + 1
        damages.append(Damage(item.name, "ids_order", min(wrong), end, "does not sort the ids"))


class _Order:
    """The stored order of a segment's ids, but for rows whose ids are not known."""

    def __init__(self, item: InspectedSegment) -> None:
        self._item = item
        self._blocks = item.file.survey("ids_order", _AT_ONCE_BYTES)
        self._rows = self._places = np.zeros(0, np.int64)

    def take(self, n: int) -> tuple[Rows, Rows]:
        """The next rows, and where in the array they are; -1 beyond the last."""
        while len(self._rows) < n:
            block = next(self._blocks, None)
            if block is None:
                rows, places = np.full(n, -1), np.full(n, self._item.n_rows - 1)
            else:
                known = self._item.sound_ids[block.rows]
                rows, places = block.rows[known], block.first_row + np.flatnonzero(known)
            self._rows = np.concatenate([self._rows, rows])
            self._places = np.concatenate([self._places, places])
        taken = self._rows[:n], self._places[:n]
        self._rows, self._places = self._rows[n:], self._places[n:]
        return taken
