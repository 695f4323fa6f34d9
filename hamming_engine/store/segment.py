"""A segment: rows written once to one HDF5 file, then only read."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_padding, frozen, words_for
from ..kernels.checksum import checksum_blocks
from . import files
from .errors import DamagedError, FormatError
from .layout import ArraySpec, lay_out, read_layout
from .schema import IDS, Schema

# Rows a checksum covers, in every array of a segment alike: as many as make at most 1 MiB of the
# widest, a power of two, and at least 8, so that every block begins at a multiple of 8 bytes.
_CHECKED_BYTES = 1 << 20
_MIN_CHECKED_ROWS = 8
_MAX_CHECKED_ROWS = 1 << 13

# Before 3.13 Python keeps a descriptor open for every map.
_MAP_OPTIONS: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}

_CALIBRATION = ("calibration_first_row", "calibration_scale", "calibration_offset")


def checked_rows(row_bytes: int) -> int:
    """Rows a checksum covers where the widest array has ``row_bytes`` a row."""
    fitting = max(1, _CHECKED_BYTES // row_bytes)
    power = 1 << (fitting.bit_length() - 1)
    return min(max(power, _MIN_CHECKED_ROWS), _MAX_CHECKED_ROWS)


@dataclass(frozen=True)
class Calibration:
    """How int8 vectors are read: ``offset + scale * value``, per run of rows and dimension.

    Attributes
    ----------
    first_row : (n_runs,) int64
        Where each run of rows begins; ascending, from 0.
    scale, offset : (n_runs, dim) float32
    """

    first_row: NDArray[np.int64]
    scale: NDArray[np.float32]
    offset: NDArray[np.float32]


@dataclass(frozen=True)
class SegmentHeader:
    """What a segment says of itself.

    Attributes
    ----------
    uuid, collection : str
    schema : Schema
    n_rows : int
    ids : str
        "int64" or "utf8".
    ids_ascending : bool
        Whether ids ascend with the rows; if not, ``ids_order`` sorts them.
    rows_per_checksum : int
    """

    uuid: str
    collection: str
    schema: Schema
    n_rows: int
    ids: str
    ids_ascending: bool
    rows_per_checksum: int

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "schema": self.schema.to_json(), "bit_order": "numpy.packbits"}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SegmentHeader:
        """Read untrusted JSON; ``ValueError`` says what is wrong with it."""
        fields = {name: value.get(name) for name in cls.__dataclass_fields__}
        header = cls(**{**fields, "schema": Schema.from_json(fields["schema"])})  # type: ignore[arg-type]
        if type(header.n_rows) is not int or header.n_rows < 0:
            raise ValueError(f"n_rows is {header.n_rows!r}")
        if header.ids not in IDS:
            raise ValueError(f"ids is {header.ids!r}, expected one of {IDS}")
        if type(header.ids_ascending) is not bool:
            raise ValueError(f"ids_ascending is {header.ids_ascending!r}")
        step = header.rows_per_checksum
        if type(step) is not int or step % _MIN_CHECKED_ROWS or not 0 < step <= _MAX_CHECKED_ROWS:
            raise ValueError(f"rows_per_checksum is {step!r}")
        for name in ("uuid", "collection"):
            if not isinstance(fields[name], str):
                raise ValueError(f"{name} is {fields[name]!r}")
        return header


def _expected_arrays(
    header: SegmentHeader, id_dtype: np.dtype[Any], n_runs: int
) -> dict[str, ArraySpec]:
    """The arrays that a segment with this header has, without offsets."""
    schema, n = header.schema, header.n_rows

    def spec(dtype: Any, *shape: int) -> ArraySpec:
        return ArraySpec(np.dtype(dtype), shape)

    arrays = {"codes": spec("<u8", n, words_for(schema.n_bits)), "ids": spec(id_dtype, n)}
    if schema.vectors is not None:
        stored = np.dtype(schema.vectors).newbyteorder("<")
        arrays["vectors"] = spec(stored, n, schema.dim)
    if schema.vectors == "int8":
        for name, dtype, shape in zip(
            _CALIBRATION, ("<i8", "<f4", "<f4"), ((), (schema.dim,), (schema.dim,)), strict=True
        ):
            arrays[name] = spec(dtype, n_runs, *shape)
    if not header.ids_ascending:
        arrays["ids_order"] = spec("<i8", n)
    sums = {
        f"sums/{name}": spec("<u8", -(-array.shape[0] // header.rows_per_checksum))
        for name, array in arrays.items()
    }
    return arrays | sums


def _checksums(rows: NDArray[Any], block_bytes: int) -> NDArray[np.uint64]:
    sums: NDArray[np.uint64] = checksum_blocks(frozen(rows.reshape(-1).view(np.uint8)), block_bytes)
    return sums


class SegmentWriter:
    """Writes one segment: codes and vectors come by `write`, the rest is known from the start.

    A context manager. Leaving it writes what remains and waits until the file is on the disk; where
    anything fails, inside or then, the file is removed.

    Parameters
    ----------
    path : Path
        Must not exist.
    collection : str
        uuid of the collection.
    schema : Schema
    ids : (n,) int64, or fixed-width bytes of UTF-8
        Their number is that of the rows.
    order : (n,) int64, optional
        What sorts the ids; None where they ascend.
    calibration : Calibration, optional
        With int8 vectors.

    Raises
    ------
    OSError
        Where the disk is full or fails; nothing is left behind.
    """

    def __init__(
        self,
        path: Path,
        *,
        collection: str,
        schema: Schema,
        ids: NDArray[Any],
        order: NDArray[np.int64] | None,
        calibration: Calibration | None,
    ) -> None:
        # The vectors count as float32 whatever is kept: rows come in blocks that a checksum covers,
        # and a block of what comes in has to stay small too.
        row_bytes = max(words_for(schema.n_bits) * 8, ids.dtype.itemsize, 4 * schema.dim)
        self.header = SegmentHeader(
            uuid=str(uuid.uuid4()),
            collection=collection,
            schema=schema,
            n_rows=len(ids),
            ids="utf8" if ids.dtype.kind == "S" else "int64",
            ids_ascending=order is None,
            rows_per_checksum=checked_rows(row_bytes),
        )
        self.path = path
        self._known = {"ids": ids}
        if order is not None:
            self._known["ids_order"] = order
        if calibration is not None:
            self._known.update(zip(_CALIBRATION, vars(calibration).values(), strict=True))
        n_runs = 0 if calibration is None else len(calibration.first_row)
        specs = _expected_arrays(self.header, ids.dtype, n_runs)
        metadata, self._arrays, self.size = lay_out(self.header.to_json(), specs)
        self._sums = {
            name.removeprefix("sums/"): np.zeros(spec.shape, np.uint64)
            for name, spec in specs.items()
            if name.startswith("sums/")
        }
        self._descriptor = files.create(path)
        try:
            files.reserve(self._descriptor, self.size)
            for offset, content in sorted(metadata.items()):
                files.write_at(self._descriptor, content, offset)
        except BaseException:
            self._close(keep=False)
            raise

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        keep = False
        try:
            if kind is None:
                self._finish()
                keep = True
        finally:
            self._close(keep)

    def write(self, name: str, first_row: int, rows: NDArray[Any]) -> None:
        """Write rows of one array.

        ``first_row`` is a multiple of ``header.rows_per_checksum``, and so is the number of rows,
        unless they are the last.
        """
        spec = self._arrays[name]
        assert spec.offset is not None
        data = np.ascontiguousarray(rows, spec.dtype)
        step = self.header.rows_per_checksum
        row_bytes = data.nbytes // len(data) if len(data) else 1
        if name in self._sums:
            sums = _checksums(data, step * row_bytes)
            self._sums[name][first_row // step :][: len(sums)] = sums
        files.write_at(self._descriptor, data, spec.offset + first_row * row_bytes)

    def _finish(self) -> None:
        for name, values in self._known.items():
            self.write(name, 0, values)
        for name, sums in self._sums.items():
            self.write(f"sums/{name}", 0, sums)
        files.sync(self._descriptor)

    def _close(self, keep: bool) -> None:
        os.close(self._descriptor)
        if not keep:
            files.remove(self.path)


class Segment:
    """A segment open for reading.

    Parameters
    ----------
    path : Path

    Raises
    ------
    FileNotFoundError, FormatError, DamagedError
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as descriptor:
            status = os.fstat(descriptor)
        self.size = status.st_size
        self._inode = status.st_ino
        raw_header, self._arrays = read_layout(path, self.size)
        try:
            self.header = SegmentHeader.from_json(raw_header)
        except (TypeError, ValueError) as error:
            raise FormatError(f"{path}: header: {error}") from error
        self._check_arrays()
        self._map: mmap.mmap | None = None
        self._verified: set[str] = set()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """A descriptor for as long as it is used: a collection may have thousands of segments."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _check_arrays(self) -> None:
        header = self.header
        found = {name: (spec.dtype, spec.shape) for name, spec in self._arrays.items()}
        id_dtype, _ = found.get("ids", (np.dtype("<i8"), ()))
        if (id_dtype.kind == "S") != (header.ids == "utf8"):
            raise FormatError(
                f"{self.path}: /ids has type {id_dtype}, the header says {header.ids}"
            )
        _, runs = found.get(_CALIBRATION[0], (None, ()))
        expected = _expected_arrays(
            header, id_dtype if header.ids == "utf8" else np.dtype("<i8"), runs[0] if runs else 0
        )
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
    def n_rows(self) -> int:
        return self.header.n_rows

    def row_bytes(self, name: str) -> int:
        spec = self._arrays[name]
        return spec.dtype.itemsize * math.prod(spec.shape[1:])

    def nbytes(self, name: str) -> int:
        """Bytes of an array on disk; 0 where the segment has none of that name."""
        return self._arrays[name].nbytes if name in self._arrays else 0

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
        array = self.map(name)
        if name not in self._verified:
            self._verify(name, array, 0, self.n_rows, self.sums(name))
            if (
                name == "ids_order"
                and self.n_rows
                and (array.min() < 0 or array.max() >= self.n_rows)
            ):
                raise DamagedError(f"{self.path}: /ids_order names rows that are not there")
            self._verified.add(name)
        return array

    def sums(self, name: str) -> NDArray[np.uint64]:
        """The stored checksums of an array."""
        return self._read_raw(f"sums/{name}", 0, self._arrays[f"sums/{name}"].shape[0], None)

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
            Multiples of ``header.rows_per_checksum``, or the end of the segment.
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
        if name == "codes":
            try:
                check_padding(rows, "/codes", self.header.schema.n_bits, first_row)
            except ValueError as error:
                raise DamagedError(f"{self.path}: {error}") from None
        return rows

    def _verify(
        self,
        name: str,
        rows: NDArray[Any],
        first_row: int,
        end_row: int,
        sums: NDArray[np.uint64],
    ) -> None:
        step = self.header.rows_per_checksum
        expected = sums[first_row // step :]
        found = _checksums(rows, step * self.row_bytes(name))
        wrong = np.flatnonzero(found != expected[: len(found)])
        if wrong.size:
            begin = first_row + int(wrong[0]) * step
            raise DamagedError(
                f"{self.path}: /{name} rows {begin} to {min(begin + step, end_row) - 1} do not "
                f"match their checksum"
            )

    def _check_same(self, descriptor: int) -> None:
        """The file behind a path has to be the one that was checked."""
        status = os.fstat(descriptor)
        if (status.st_ino, status.st_size) != (self._inode, self.size):
            raise DamagedError(f"{self.path}: it is not the file that was opened")

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

    def calibration(self) -> Calibration:
        """How the int8 vectors are to be read."""
        found = Calibration(
            *(self.read(name, 0, self._arrays[name].shape[0]) for name in _CALIBRATION)
        )
        bounds = np.append(found.first_row, self.n_rows)
        if self.n_rows and (bounds[0] != 0 or np.any(bounds[1:] <= bounds[:-1])):
            raise DamagedError(f"{self.path}: /{_CALIBRATION[0]} does not cut its rows into runs")
        return found

    def find_ids(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """The row of each id, or -1."""
        stored = self.verified_map("ids")
        if not len(stored):
            return np.full(len(ids), -1, np.int64)
        wanted = ids
        # A longer text is cut here, or NumPy would widen the whole stored array; it then equals
        # nothing below.
        ids = ids.astype(stored.dtype, copy=False)
        if self.header.ids_ascending:
            rows = np.searchsorted(stored, ids)
            rows[rows == len(stored)] = 0
        else:
            order = self.verified_map("ids_order")
            places = np.searchsorted(stored, ids, sorter=order)
            places[places == len(stored)] = 0
            rows = np.asarray(order[places])
        return np.where(stored[rows] == wanted, rows, -1).astype(np.int64)
