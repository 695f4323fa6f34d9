"""All bytes of a collection read, and what is wrong with each array; damage never ends it.

`hamming_engine.verify` reports what is found here, `hamming_engine.repair` copies what is sound.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import pad_mask
from ..columns import TEXT
from . import layout
from . import manifest as manifests
from .arrays import ArrayFile
from .errors import FormatError, StoreError
from .index import IndexFile
from .manifest import Manifest, TombstoneEntry
from .report import Damage
from .segment import Segment, column_array
from .snapshot import open_file, open_index, open_quantizer, open_segment, open_tombstones
from .tombstones import TombstoneFile

Bools = NDArray[np.bool_]
Check = Callable[[NDArray[Any], Bools], Bools]  # rows, which are sound -> which are wrong
Done = Callable[[int], Any]

MANIFEST = "manifest"  # the file that damage is named after where there is none

_AT_ONCE_BYTES = 4 << 20
# Of an array's rows with one checksum, 8 of 4 MiB are the most that is ever written.
_MAX_BLOCK_BYTES = 64 << 20
_MAX_ROWS = 1 << 48  # so that row numbers of all files together fit into int64
_ALONE = ("ids_order", "calibration_", "quantizer/", "sums/")  # arrays without a value for each row


@dataclass
class InspectedSegment:
    """A segment, and what of it can be used.

    Attributes
    ----------
    name : str
        Of the file.
    n_rows : int
        As the manifest says.
    segment : Segment or None
        None where the file is missing, cannot be opened or is another than the manifest lists.
    sound : (n_rows,) bool
        Rows of which all that is stored is as it was written.
    sound_ids : (n_rows,) bool
        Rows of which the id is.
    there : (n_rows,) bool
        Rows that no tombstones list.
    ascend : bool
        Whether the ids that are sound ascend.
    order_is_sound : bool
        Whether the order that is stored can be compared with them.
    """

    name: str
    n_rows: int
    segment: Segment | None
    sound: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))
    sound_ids: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))
    there: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))
    ascend: bool = True
    order_is_sound: bool = False

    @property
    def file(self) -> Segment:
        """The segment that is open."""
        if self.segment is None:
            raise ValueError(f"{self.name} is not open")
        return self.segment


@dataclass
class Inspection:
    """A generation of a collection, its files open, and what is wrong with it so far.

    Attributes
    ----------
    path : Path
    damages : list of Damage
    manifest : Manifest or None
        The newest that can be read; None where none can.
    segments : list of InspectedSegment
        In row order.
    tombstones : list of (TombstoneEntry, TombstoneFile or None)
    quantizer : ArrayFile or None
        Where the arrays of the quantiser are.
    quantizer_is_sound : bool
    index : IndexFile or None
    n_back : int
        Rows, at most, that tombstones listed in blocks which are damaged.
    extra : list of ArrayFile
        Files that can be read, but are not those that the manifest lists.
    n_files, n_bytes : int
        What is read.
    is_missing : bool
        Whether a file is.
    """

    path: Path
    damages: list[Damage] = field(default_factory=list)
    manifest: Manifest | None = None
    segments: list[InspectedSegment] = field(default_factory=list)
    tombstones: list[tuple[TombstoneEntry, TombstoneFile | None]] = field(default_factory=list)
    quantizer: ArrayFile | None = None
    quantizer_is_sound: bool = True
    index: IndexFile | None = None
    n_back: int = 0
    extra: list[ArrayFile] = field(default_factory=list)
    n_files: int = 0
    n_bytes: int = 0
    is_missing: bool = False

    @property
    def files(self) -> list[ArrayFile]:
        """All that are open, each once."""
        each = [item.segment for item in self.segments]
        each += [file for _, file in self.tombstones]  # type: ignore[misc]
        found: dict[int, ArrayFile] = {}
        for file in (*each, self.quantizer, self.index, *self.extra):
            if file is not None:
                found[id(file)] = file
        return list(found.values())

    @property
    def usable(self) -> list[InspectedSegment]:
        """The segments that are open."""
        return [item for item in self.segments if item.segment is not None]

    @property
    def array_bytes(self) -> int:
        """What `read` reads."""
        return sum(file.nbytes(name) for file in self.files for name in _arrays_of(file))

    def read(self, done: Done) -> None:
        """Read all arrays of all files and find what is wrong with them.

        Parameters
        ----------
        done : callable
            Called with the number of bytes of each block.
        """
        for item in self.segments:
            if item.segment is not None:
                _read_segment(item.segment, item, self.damages, done)
        for file in self.extra if self.index is None else (*self.extra, self.index):
            for name in _arrays_of(file):
                _read_array(file, name, (), self.damages, done)
        for file in self.files:
            for name in _arrays_of(file):
                if name.startswith("quantizer/") and file not in self.extra:
                    sound = _read_array(file, name, (), self.damages, done)
                    self.quantizer_is_sound &= file is not self.quantizer or bool(sound.all())
        for entry, tombstones in self.tombstones:
            self._read_tombstones(entry, tombstones, done)

    def _read_tombstones(
        self, entry: TombstoneEntry, file: TombstoneFile | None, done: Done
    ) -> None:
        """Take rows away from those that are there."""
        if file is None:
            self.n_back += entry.n_rows
            return
        n_stored = sum(item.n_rows for item in self.segments)
        outside = ("not rows of the collection", lambda rows, _: (rows < 0) | (rows >= n_stored))
        order = (("not ascending", Ascending()), ("listed as removed before", self._take_away))
        sound = _read_array(file, "rows", (outside,), self.damages, done, orderly=order)
        self.n_back += int((~sound).sum())

    def _take_away(self, rows: NDArray[Any], sound: Bools) -> Bools:
        """Which rows were removed before."""
        wrong = np.zeros(len(rows), np.bool_)
        begin = 0
        for item in self.segments:
            inside = sound & (rows >= begin) & (rows < begin + item.n_rows)
            if item.segment is not None and inside.any():
                places = rows[inside] - begin
                wrong[inside] = ~item.there[places]
                item.there[places] = False
            begin += item.n_rows
        return wrong


class Ascending:
    """Finds values that are not larger than the sound one before, in blocks that follow another.

    Attributes
    ----------
    held : bool
        Whether there was none so far.
    """

    def __init__(self) -> None:
        self.held = True
        self._last: Any = None

    def __call__(self, values: NDArray[Any], sound: Bools) -> Bools:
        """Which of some values are not, of those that are sound."""
        places = np.flatnonzero(sound)
        values = values[places]
        wrong = np.zeros(len(sound), np.bool_)
        wrong[places[1:]] = values[1:] <= values[:-1]
        if len(values):
            wrong[places[0]] = self._last is not None and values[0] <= self._last
            self._last = values[-1]
        self.held &= not wrong.any()
        return wrong


def check_is_collection(path: Path) -> None:
    """Refuse a path at which there is nothing that was a collection, damaged or not.

    Raises
    ------
    FileNotFoundError, FormatError
    """
    if not path.exists():
        raise FileNotFoundError(f"no collection at {path}: it does not exist")
    if path.is_dir():
        patterns = (manifests.NAME, manifests.SEGMENT_NAME)
        if not any(p.fullmatch(entry.name) for entry in path.iterdir() for p in patterns):
            raise FormatError(f"{path} is no collection: it holds neither manifests nor segments")
    elif path.is_file():
        layout.check_signature(path)
    else:
        raise FormatError(f"{path} is no collection: it is neither a folder nor a file")


def opened(path: Path) -> Inspection:
    """Open all that the newest manifest lists that can be read, or a single file.

    Raises
    ------
    FileNotFoundError, FormatError
        Where there is no collection.
    OSError
    """
    check_is_collection(path)
    while True:
        found = Inspection(path)
        if not path.is_dir():
            _open_file(path, found)
            return found
        newest = manifests.generations(path)
        _read_manifest(path, newest, found)
        if found.manifest is not None:
            _open_listed(path, found.manifest, found)
        # A writer may have committed meanwhile, and removed what it does not list any more.
        if not found.is_missing or manifests.generations(path)[-1:] == newest[-1:]:
            return found


def _open_file(path: Path, found: Inspection) -> None:
    found.n_files, found.n_bytes = 1, path.stat().st_size
    with damage_noted(path.name, found):
        snapshot = open_file(path)
        segment = snapshot.parts[0].segment
        found.manifest, found.quantizer = snapshot.manifest, snapshot.quantizer
        found.segments.append(inspected(segment))
        return
    with contextlib.suppress(OSError, StoreError):
        found.extra.append(Segment(path))


def inspected(segment: Segment) -> InspectedSegment:
    """A segment of which nothing is read yet."""
    n_rows = segment.n_rows
    there = np.ones(n_rows, np.bool_)
    return InspectedSegment(segment.path.name, n_rows, segment, there.copy(), there.copy(), there)


@contextlib.contextmanager
def damage_noted(name: str, found: Inspection) -> Iterator[None]:
    """Note as damage that a file cannot be used."""
    try:
        yield
    except FileNotFoundError:
        found.is_missing = True
        found.damages.append(Damage(name, None, 0, None, "is missing"))
    except (OSError, StoreError) as error:
        found.damages.append(Damage(name, None, 0, None, str(error)))


def _read_manifest(path: Path, generations: Sequence[int], found: Inspection) -> None:
    """Read the newest manifest that can be read."""
    if not generations:
        found.damages.append(Damage(MANIFEST, None, 0, None, "the folder holds none"))
    for generation in reversed(generations):
        file = manifests.path_of(path, generation)
        with damage_noted(file.name, found):
            read = manifests.read(path, generation)
            _check_counts(file, read)
            found.manifest = read
            found.n_files, found.n_bytes = 1, file.stat().st_size
            return


def _check_counts(file: Path, manifest: Manifest) -> None:
    """Refuse numbers of rows that nothing could have."""
    n_rows = 0
    entries: tuple[Any, ...] = (*manifest.segments, *manifest.tombstones)
    for entry in entries:
        if type(entry.n_rows) is not int or not 0 <= entry.n_rows <= _MAX_ROWS:
            raise FormatError(f"{file}: {entry.file!r} has {entry.n_rows!r} rows")
        n_rows += entry.n_rows
    if n_rows > _MAX_ROWS:
        raise FormatError(f"{file}: {n_rows} rows")


def _open_listed(path: Path, manifest: Manifest, found: Inspection) -> None:
    for entry in manifest.segments:
        segment = _open(path, manifest, entry, open_segment, Segment, found)
        if segment is None:
            found.segments.append(InspectedSegment(entry.file, entry.n_rows, None))
        else:
            found.segments.append(inspected(segment))
    for listed in manifest.tombstones:
        file = _open(path, manifest, listed, open_tombstones, TombstoneFile, found)
        found.tombstones.append((listed, file))
    if manifest.quantizer is not None:
        found.quantizer = _open(path, manifest, manifest.quantizer, open_quantizer, None, found)
        found.quantizer_is_sound = found.quantizer is not None
    if manifest.index is not None and manifest.index.file is not None:
        found.index = _open(path, manifest, manifest.index, open_index, IndexFile, found)


def _open(
    path: Path, manifest: Manifest, entry: Any, open_entry: Any, kind: Any, found: Inspection
) -> Any:
    """A file that the manifest lists, or None; it is read even where it is another one."""
    with contextlib.suppress(OSError):
        found.n_bytes += (path / entry.file).stat().st_size
        found.n_files += 1
    with damage_noted(entry.file, found):
        return open_entry(path, manifest, entry)
    if kind is not None:
        with contextlib.suppress(OSError, StoreError):
            found.extra.append(kind(path / entry.file))
    return None


def _arrays_of(file: ArrayFile) -> list[str]:
    """The arrays that have checksums."""
    return [name for name in file.names if not name.startswith("sums/")]


def _read_segment(
    segment: Segment, item: InspectedSegment, damages: list[Damage], done: Done
) -> None:
    header = segment.header
    for name in _arrays_of(segment):
        if name.startswith(_ALONE):
            continue
        checks = _checks_of(segment, name)
        order: Sequence[tuple[str, Check]] = ()
        if name == "ids":
            ascending = Ascending()
            if header.ids_ascending:
                order = (("not larger than the one before", ascending),)
            else:
                ascending.held = False
        sound = _read_array(segment, name, checks, damages, done, orderly=order)
        item.sound &= sound
        if name == "ids":
            item.sound_ids, item.ascend = sound, ascending.held
    for name in _arrays_of(segment):
        if name.startswith("calibration_"):
            checks = _checks_of(segment, name)
            if not _read_array(segment, name, checks, damages, done).all():
                item.sound[:] = False
    _check_runs(segment, item, damages)
    if "ids_order" in segment.names:
        checks = _checks_of(segment, "ids_order")
        item.order_is_sound = bool(_read_array(segment, "ids_order", checks, damages, done).all())


def _check_runs(segment: Segment, item: InspectedSegment, damages: list[Damage]) -> None:
    """The runs of rows that have a calibration begin with the first row."""
    name = "calibration_first_row"
    if name not in segment.names or not segment.n_rows:
        return
    n_runs = segment.n_rows_of(name)
    first = next(segment.survey(name, 1), None)
    if first is None or (first.sound[0] and first.rows[0] != 0):
        message = "the first run does not begin with row 0"
        damages.append(Damage(segment.path.name, name, 0, min(1, n_runs), message))
        item.sound[:] = False


def _checks_of(segment: Segment, name: str) -> tuple[tuple[str, Check], ...]:
    """What the values of an array have to be, beside their checksums."""
    header, n_rows = segment.header, segment.n_rows
    kinds = {column_array(column): kind for column, kind in header.schema.columns.items()}
    if name == "codes":
        mask = pad_mask(header.schema.n_bits)
        message = f"with ones beyond bit {header.schema.n_bits}"
        return ((message, lambda rows, _: rows[:, -1] & mask != 0),)
    if kinds.get(name) == TEXT or (name == "ids" and header.ids == "utf8"):
        return (("no UTF-8 padded with NUL", lambda rows, _: _no_text(rows)),)
    if name == "ids":
        return (("negative", lambda rows, _: rows < 0),)
    if kinds.get(name) == "bool":
        return (("neither 0 nor 1", lambda rows, _: rows > 1),)
    if name == "ids_order":
        return (("not rows of the segment", lambda rows, _: (rows < 0) | (rows >= n_rows)),)
    if name == "calibration_first_row":
        outside = ("not rows of the segment", lambda rows, _: (rows < 0) | (rows >= n_rows))
        return (outside, ("not ascending", Ascending()))
    if name == "vectors" or name.startswith("calibration_"):
        return (("not finite", lambda rows, _: ~np.isfinite(rows).all(axis=1)),)
    return ()


def _no_text(stored: NDArray[Any]) -> Bools:
    """Which texts are no UTF-8, or hold a NUL."""
    wrong = np.zeros(len(stored), np.bool_)
    bytes_of = np.ascontiguousarray(stored).view(np.uint8).reshape(len(stored), -1)
    wrong |= ((bytes_of[:, :-1] == 0) & (bytes_of[:, 1:] != 0)).any(axis=1)
    for row in np.flatnonzero((bytes_of > 127).any(axis=1)):
        try:
            stored[row].decode()
        except UnicodeDecodeError:
            wrong[row] = True
    return wrong


def _read_array(
    file: ArrayFile,
    name: str,
    checks: Sequence[tuple[str, Check]],
    damages: list[Damage],
    done: Done,
    *,
    orderly: Sequence[tuple[str, Check]] = (),
) -> Bools:
    """Read an array and note what is wrong.

    Parameters
    ----------
    file : ArrayFile
    name : str
    checks : sequence of (str, callable)
        What is wrong with rows for which the callable says so.
    damages : list of Damage
        Grows.
    done : callable
        Called with the number of bytes of each block.
    orderly : sequence of (str, callable)
        Checks of the order of rows, which do not make the rows themselves unsound.

    Returns
    -------
    sound : (n,) bool
    """
    all_sound = np.ones(file.n_rows_of(name), np.bool_)
    file_name = file.path.name
    if file.block_bytes(name) > _MAX_BLOCK_BYTES:
        message = f"{file.block_bytes(name):,} bytes have one checksum, too many to be read"
        damages.append(Damage(file_name, name, 0, len(all_sound), message))
        done(file.nbytes(name))
        return ~all_sound
    for first, rows, sound, message in file.survey(name, _AT_ONCE_BYTES):
        _note_blocks(damages, file_name, name, first, ~sound, message)
        kept = sound.copy()
        for what, check in checks:
            wrong = sound & check(rows, kept)
            kept &= ~wrong
            _note_rows(damages, file_name, name, first, wrong, what)
        for what, check in orderly:
            _note_rows(damages, file_name, name, first, check(rows, kept), what)
        all_sound[first : first + len(rows)] = kept
        done(rows.nbytes)
    return all_sound


def _note_blocks(
    damages: list[Damage], file: str, name: str, first_row: int, wrong: Bools, message: str
) -> None:
    """Note each run of rows, as one with what was noted last where it goes on from there."""
    edges = np.flatnonzero(np.diff(wrong, prepend=False, append=False)) + first_row
    for begin, end in edges.reshape(-1, 2).tolist():
        before = damages[-1] if damages else None
        if before == Damage(file, name, before.first_row if before else 0, begin, message):
            begin = damages.pop().first_row
        damages.append(Damage(file, name, begin, end, message))


def _note_rows(
    damages: list[Damage], file: str, name: str, first_row: int, wrong: Bools, message: str
) -> None:
    """Note rows of a block together, from the first of them to the last."""
    rows = np.flatnonzero(wrong)
    if not rows.size:
        return
    begin, end = int(rows[0]), int(rows[-1]) + 1
    if rows.size < end - begin:
        message = f"{rows.size} of them {message}"
    damages.append(Damage(file, name, first_row + begin, first_row + end, message))
