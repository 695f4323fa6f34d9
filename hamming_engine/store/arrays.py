"""Files of named arrays, each block of rows with a checksum: what segments and quantisers are."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import resource
import sys
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..checks import frozen
from ..kernels.checksum import checksum_blocks
from . import files
from .errors import DamagedError, FormatError, memory_errors
from .layout import ArraySpec, lay_out, read_layout

# Rows a checksum covers, in every array of a file alike: as many as make at most 256 KiB of the
# widest, a power of two, and at least 8, so that every block begins at a multiple of 8 bytes.
# Re-ranking touches rows here and there and verifies the block of each when it first does: that
# should not be much more than what the system reads ahead anyway. The same rows' codes are some
# KiB, which are still hashed at 51 GB/s, against 69 in blocks of 1 MiB (in cache, Zen 5).
_CHECKED_BYTES = 1 << 18
_MIN_CHECKED_ROWS = 8
_MAX_CHECKED_ROWS = 1 << 13

_SUMS = "sums/"

# Before 3.13 Python keeps a descriptor open for every map.
_MAP_OPTIONS: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def checked_rows(row_bytes: int) -> int:
    """Rows a checksum covers where the widest array has ``row_bytes`` a row."""
    fitting = max(1, _CHECKED_BYTES // row_bytes)
    power = 1 << (fitting.bit_length() - 1)
    return min(max(power, _MIN_CHECKED_ROWS), _MAX_CHECKED_ROWS)


def _with_sums(arrays: Mapping[str, ArraySpec], rows_per_checksum: int) -> dict[str, ArraySpec]:
    """The same arrays, and those of their checksums."""
    sums = {
        _SUMS + name: ArraySpec(np.dtype("<u8"), (-(-spec.shape[0] // rows_per_checksum),))
        for name, spec in arrays.items()
    }
    return {**arrays, **sums}


def _checksums(rows: NDArray[Any], block_bytes: int) -> NDArray[np.uint64]:
    sums: NDArray[np.uint64] = checksum_blocks(frozen(rows.reshape(-1).view(np.uint8)), block_bytes)
    return sums


class ArrayWriter:
    """Writes one file: some arrays come by `write`, the others are known from the start.

    A context manager. Leaving it writes what remains and waits until the file is on the disk; where
    anything fails, inside or then, the file is removed.

    Parameters
    ----------
    path : Path
        Must not exist.
    kind : str
        What the file says it is.
    header : mapping
        JSON; ``rows_per_checksum`` is a member.
    specs : mapping of str to ArraySpec
        All arrays, without offsets.
    known : mapping of str to array
        Those that are known.

    Raises
    ------
    OSError
        Where the disk is full or fails; nothing is left behind.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        header: Mapping[str, Any],
        specs: Mapping[str, ArraySpec],
        known: Mapping[str, NDArray[Any]],
    ) -> None:
        self.path = path
        self._rows_per_checksum: int = header["rows_per_checksum"]
        self._known = known
        all_specs = _with_sums(specs, self._rows_per_checksum)
        metadata, self._arrays, self.size = lay_out(kind, header, all_specs)
        self._sums = {name: np.zeros(all_specs[_SUMS + name].shape, np.uint64) for name in specs}
        self._descriptor = files.create(path)
        try:
            files.reserve(self._descriptor, self.size)
            for offset, content in sorted(metadata.items()):
                files.write_at(self._descriptor, content, offset)
        except BaseException:
            self._close(keep=False)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        keep = False
        try:
            if kind is None:
                self._finish()
                keep = True
        finally:
            self._close(keep)

    @property
    def rows_per_checksum(self) -> int:
        return self._rows_per_checksum

    def write(self, name: str, first_row: int, rows: NDArray[Any]) -> None:
        """Write rows of one array.

        ``first_row`` is a multiple of ``rows_per_checksum``, and so is the number of rows, unless
        they are the last.
        """
        spec = self._arrays[name]
        assert spec.offset is not None
        data = np.ascontiguousarray(rows, spec.dtype)
        step = self._rows_per_checksum
        row_bytes = data.nbytes // len(data) if len(data) else 1
        if name in self._sums:
            sums = _checksums(data, step * row_bytes)
            self._sums[name][first_row // step :][: len(sums)] = sums
        files.write_at(self._descriptor, data, spec.offset + first_row * row_bytes)

    def _finish(self) -> None:
        for name, values in self._known.items():
            self.write(name, 0, values)
        for name, sums in self._sums.items():
            self.write(_SUMS + name, 0, sums)
        files.sync(self._descriptor)

    def _close(self, keep: bool) -> None:
        os.close(self._descriptor)
        if not keep:
            files.remove(self.path)


class _Descriptors:
    """Descriptors that stay open, so that a file can be read on when its name is gone.

    Compaction removes files that readers still use. Few enough stay open for the process to have
    most of those it may have; a file beyond is opened whenever it is read.
    """

    _SHARE = 4

    def __init__(self) -> None:
        self._owners: weakref.WeakSet[object] = weakref.WeakSet()

    def keep(self, owner: object, path: Path) -> int | None:
        """Open a file for as long as its owner lives; None where too many are open."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(self._owners) >= limit // self._SHARE:
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(owner, os.close, descriptor)
        self._owners.add(owner)
        return descriptor


_descriptors = _Descriptors()


class Surveyed(NamedTuple):
    """Rows that were read, damaged or not.

    Attributes
    ----------
    first_row : int
    rows : array
        What was read; zeros where nothing could be.
    sound : (n,) bool
        Whether each was read and lies in a block that matches its checksum.
    message : str
        What is wrong with the others.
    """

    first_row: int
    rows: NDArray[Any]
    sound: NDArray[np.bool_]
    message: str


class ArrayFile:
    """A file open for reading: its header and layout are verified, its arrays as they are read.

    Parameters
    ----------
    path : Path
    kind : str
        What the file has to say it is.

    Raises
    ------
    FileNotFoundError, FormatError, DamagedError
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self._kept = _descriptors.keep(self, path)
        with self._opened() as descriptor:
            status = os.fstat(descriptor)
        self.size = status.st_size
        self._inode = status.st_ino
        self._raw_header, self._arrays = read_layout(path, kind, self.size)
        step = self._raw_header.get("rows_per_checksum")
        if type(step) is not int or step % _MIN_CHECKED_ROWS or not 0 < step <= _MAX_CHECKED_ROWS:
            raise FormatError(f"{path}: header: rows_per_checksum is {step!r}")
        self._rows_per_checksum = step
        self._map: mmap.mmap | None = None
        self._sums: dict[str, NDArray[np.uint64]] = {}
        self._verified: dict[str, NDArray[np.bool_]] = {}  # which blocks of an array

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The descriptor that is kept, or one for as long as it is used."""
        if self._kept is not None:
            yield self._kept
            return
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with memory_errors():  # a map may find no room
                yield descriptor
        finally:
            os.close(descriptor)

    def _check_same(self, descriptor: int) -> None:
        """The file behind a path has to be the one that was checked."""
        status = os.fstat(descriptor)
        if (status.st_ino, status.st_size) != (self._inode, self.size):
            raise DamagedError(f"{self.path}: it is not the file that was opened")

    def _check_arrays(self, specs: Mapping[str, ArraySpec]) -> None:
        """The file has to hold these arrays, their checksums, and nothing else."""
        found = {name: (spec.dtype, spec.shape) for name, spec in self._arrays.items()}
        expected = _with_sums(specs, self._rows_per_checksum)
        for name, spec in expected.items():
            if found.get(name) != (spec.dtype, spec.shape):
                raise FormatError(
                    f"{self.path}: /{name} is {found.get(name)}, "
                    f"expected {(spec.dtype, spec.shape)}"
                )
        extra = sorted(found.keys() - expected.keys())
        if extra:
            raise FormatError(f"{self.path}: unknown data sets {extra}")

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays in the file, those of checksums among them."""
        return tuple(self._arrays)

    def row_bytes(self, name: str) -> int:
        spec = self._arrays[name]
        return spec.dtype.itemsize * math.prod(spec.shape[1:])

    def nbytes(self, name: str) -> int:
        """Bytes of an array on disk; 0 where the file has none of that name."""
        return self._arrays[name].nbytes if name in self._arrays else 0

    def n_rows_of(self, name: str) -> int:
        """The length of an array."""
        return self._arrays[name].shape[0]

    def block_bytes(self, name: str) -> int:
        """Bytes of an array that one checksum covers: the least that can be read."""
        return min(self._rows_per_checksum * self.row_bytes(name), self.nbytes(name))

    def sums(self, name: str) -> NDArray[np.uint64]:
        """The stored checksums of an array."""
        sums = _SUMS + name
        return self._read_raw(sums, 0, self._arrays[sums].shape[0], None)

    def read(
        self,
        name: str,
        first_row: int,
        end_row: int,
        sums: NDArray[np.uint64] | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Read rows and verify them.

        Parameters
        ----------
        name : str
        first_row, end_row : int
            Multiples of ``rows_per_checksum``, or the end of the array.
        sums : array, optional
            What `sums` returned, to save reading it again.
        out : array, optional
            Room for the rows.

        Raises
        ------
        OSError, DamagedError
        """
        rows = self._read_raw(name, first_row, end_row, out)
        self._verify(name, rows, first_row, end_row, self.sums(name) if sums is None else sums)
        return rows

    def read_all(self, name: str) -> NDArray[Any]:
        """A whole array, verified."""
        return self.read(name, 0, self._arrays[name].shape[0])

    def map(self, name: str) -> NDArray[Any]:
        """A read-only array over the file, for random access; not verified against checksums."""
        spec = self._arrays[name]
        if not spec.nbytes:
            return np.zeros(spec.shape, spec.dtype)
        if self._map is None:
            with self._opened() as descriptor:
                self._check_same(descriptor)
                self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ, **_MAP_OPTIONS)
        assert spec.offset is not None
        flat = np.frombuffer(self._map, spec.dtype, int(np.prod(spec.shape)), spec.offset)
        return flat.reshape(spec.shape)

    def verified_map(self, name: str) -> NDArray[Any]:
        """The same, verified as a whole when it is first asked for."""
        self.verify_blocks(name, np.arange(-(-self.n_rows_of(name) // self._rows_per_checksum)))
        return self.map(name)

    def verify_rows(self, name: str, rows: NDArray[np.int64]) -> None:
        """Verify what a map shows at some rows, block by block, where that was not done before.

        Parameters
        ----------
        name : str
        rows : (m,) int64
            Of this file.

        Raises
        ------
        OSError, DamagedError
        """
        self.verify_blocks(name, rows // self._rows_per_checksum)

    def verify_blocks(self, name: str, blocks: NDArray[np.int64]) -> None:
        """The same for the blocks that a checksum covers."""
        step = self._rows_per_checksum
        if name not in self._verified:
            self._sums[name] = self.sums(name)
            self._verified[name] = np.zeros(len(self._sums[name]), np.bool_)
        verified = self._verified[name]
        new = blocks[~verified[blocks]]
        if not new.size:
            return
        new = np.unique(new)
        array, n_rows = self.map(name), self.n_rows_of(name)
        for run in np.split(new, np.flatnonzero(np.diff(new) > 1) + 1):
            begin, end = int(run[0]) * step, min(int(run[-1] + 1) * step, n_rows)
            self._verify(name, array[begin:end], begin, end, self._sums[name])
            self._check_content(name, array[begin:end], begin)
            verified[run] = True

    def _check_content(self, name: str, rows: NDArray[Any], first_row: int) -> None:
        """Refuse verified rows that were never written so; other files have such ones."""

    def survey(self, name: str, at_once_bytes: int) -> Iterator[Surveyed]:
        """A whole array, whatever is wrong with it; damage is reported with the rows, not raised.

        Parameters
        ----------
        name : str
        at_once_bytes : int
            About how much is read at once; at least the rows of a checksum.
        """
        n_rows, step = self.n_rows_of(name), self._rows_per_checksum
        try:
            sums: NDArray[np.uint64] | Exception = self.sums(name)
        except (OSError, DamagedError) as error:
            sums = error
        at_once = max(1, at_once_bytes // (self.row_bytes(name) * step)) * step
        for begin in range(0, n_rows, at_once):
            yield from self._surveyed(name, begin, min(begin + at_once, n_rows), sums)

    def _surveyed(
        self, name: str, begin: int, end: int, sums: NDArray[np.uint64] | Exception
    ) -> Iterator[Surveyed]:
        step = self._rows_per_checksum
        try:
            if isinstance(sums, Exception):
                raise sums
            rows = self._read_raw(name, begin, end, None)
        except (OSError, DamagedError) as error:
            if end - begin <= step:
                spec = self._arrays[name]
                nothing = np.zeros((end - begin, *spec.shape[1:]), spec.dtype)
                sound = np.zeros(end - begin, np.bool_)
                yield Surveyed(begin, nothing, sound, f"cannot be read: {error}")
                return
            for first in range(begin, end, step):
                yield from self._surveyed(name, first, min(first + step, end), sums)
            return
        sound = np.ones(end - begin, np.bool_)
        for block in self._wrong_blocks(name, rows, begin, sums):
            sound[block * step : (block + 1) * step] = False
        yield Surveyed(begin, rows, sound, "do not match their checksum")

    def _wrong_blocks(
        self, name: str, rows: NDArray[Any], first_row: int, sums: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """Those blocks of some rows that do not match their checksum, counted from the first."""
        step = self._rows_per_checksum
        found = _checksums(rows, step * self.row_bytes(name))
        return np.flatnonzero(found != sums[first_row // step :][: len(found)])

    def _verify(
        self,
        name: str,
        rows: NDArray[Any],
        first_row: int,
        end_row: int,
        sums: NDArray[np.uint64],
    ) -> None:
        wrong = self._wrong_blocks(name, rows, first_row, sums)
        if wrong.size:
            begin = first_row + int(wrong[0]) * self._rows_per_checksum
            end = min(begin + self._rows_per_checksum, end_row)
            raise DamagedError(
                f"{self.path}: /{name} rows {begin} to {end - 1} do not match their checksum"
            )

    def _read_raw(
        self, name: str, first_row: int, end_row: int, out: NDArray[Any] | None
    ) -> NDArray[Any]:
        spec = self._arrays[name]
        assert spec.offset is not None
        if out is None:
            out = np.empty((end_row - first_row, *spec.shape[1:]), spec.dtype)
        rows = out[: end_row - first_row]
        offset = spec.offset + first_row * self.row_bytes(name)
        rest = memoryview(rows.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        if not rest:
            return rows
        with self._opened() as descriptor:
            self._check_same(descriptor)
            while rest:
                n = os.preadv(descriptor, [rest], offset)
                if not n:
                    raise DamagedError(f"{self.path}: the file ends inside /{name}")
                rest, offset = rest[n:], offset + n
        return rows
