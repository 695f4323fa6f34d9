"""A segment: rows written once to one HDF5 file, then only read."""

from __future__ import annotations

import mmap
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_padding, words_for
from .arrays import ArrayFile, ArrayWriter, checked_rows
from .errors import DamagedError, FormatError
from .layout import ArraySpec
from .manifest import QuantizerEntry
from .quantizer import specs_in, specs_of, stored_arrays
from .schema import IDS, Schema, json_object

# Before 3.13 Python keeps a descriptor open for every map.
_MAP_OPTIONS: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}

_KIND = "hamming_engine segment"
_CALIBRATION = ("calibration_first_row", "calibration_scale", "calibration_offset")


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
    quantizer_uuid : str or None
        Of the arrays of the quantiser that made the codes; None where it has none.
    search : dict or None
        Settings of searches as JSON; in an exported file alone, elsewhere the manifest has them.
    """

    uuid: str
    collection: str
    schema: Schema
    n_rows: int
    ids: str
    ids_ascending: bool
    rows_per_checksum: int
    quantizer_uuid: str | None
    search: dict[str, Any] | None

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
        for name in ("uuid", "collection"):
            if not isinstance(fields[name], str):
                raise ValueError(f"{name} is {fields[name]!r}")
        if not isinstance(header.quantizer_uuid, (str, type(None))):
            raise ValueError(f"quantizer_uuid is {header.quantizer_uuid!r}")
        if header.search is not None:
            json_object(header.search, "search")
        return header


def _expected_arrays(
    header: SegmentHeader, id_dtype: np.dtype[Any], n_runs: int
) -> dict[str, ArraySpec]:
    """The arrays of rows that a segment with this header has, without offsets."""
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
    if schema.factors:
        arrays["factors"] = spec("<f4", n, schema.factors)
    if not header.ids_ascending:
        arrays["ids_order"] = spec("<i8", n)
    return arrays


class SegmentWriter(ArrayWriter):
    """Writes one segment: codes, factors and vectors come by `write`, the rest is known.

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
    quantizer : QuantizerEntry, optional
        Where the collection keeps the arrays of the quantiser that makes the codes.
    quantizer_arrays : mapping of str to array, optional
        These arrays, for a file that is complete by itself.
    search : dict, optional
        For such a file too: settings of searches.

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
        quantizer: QuantizerEntry | None = None,
        quantizer_arrays: Mapping[str, NDArray[Any]] | None = None,
        search: dict[str, Any] | None = None,
    ) -> None:
        # The vectors count as float32 whatever is kept: rows come in blocks that a checksum covers,
        # and a block of what comes in has to stay small too.
        row_bytes = max(words_for(schema.n_bits) * 8, ids.dtype.itemsize, 4 * schema.dim)
        self.quantizer = quantizer
        self.header = SegmentHeader(
            uuid=str(uuid.uuid4()),
            collection=collection,
            schema=schema,
            n_rows=len(ids),
            ids="utf8" if ids.dtype.kind == "S" else "int64",
            ids_ascending=order is None,
            rows_per_checksum=checked_rows(row_bytes),
            quantizer_uuid=None if quantizer is None else quantizer.uuid,
            search=search,
        )
        known = {"ids": ids}
        if order is not None:
            known["ids_order"] = order
        if calibration is not None:
            known.update(zip(_CALIBRATION, vars(calibration).values(), strict=True))
        n_runs = 0 if calibration is None else len(calibration.first_row)
        stored = stored_arrays(quantizer_arrays or {})
        specs = _expected_arrays(self.header, ids.dtype, n_runs) | specs_of(stored)
        super().__init__(path, _KIND, self.header.to_json(), specs, known | stored)


class Segment(ArrayFile):
    """A segment open for reading.

    Parameters
    ----------
    path : Path

    Raises
    ------
    FileNotFoundError, FormatError, DamagedError
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, _KIND)
        try:
            self.header = SegmentHeader.from_json(self._raw_header)
        except (TypeError, ValueError) as error:
            raise FormatError(f"{path}: header: {error}") from error
        self._check_arrays(self._specs())
        self._map: mmap.mmap | None = None
        self._verified: set[str] = set()

    def _specs(self) -> dict[str, ArraySpec]:
        """The arrays that go with the header."""
        header = self.header
        id_dtype = self._arrays["ids"].dtype if "ids" in self._arrays else np.dtype("<i8")
        if (id_dtype.kind == "S") != (header.ids == "utf8"):
            raise FormatError(
                f"{self.path}: /ids has type {id_dtype}, the header says {header.ids}"
            )
        runs = self._arrays[_CALIBRATION[0]].shape if _CALIBRATION[0] in self._arrays else ()
        specs = _expected_arrays(
            header, id_dtype if header.ids == "utf8" else np.dtype("<i8"), runs[0] if runs else 0
        )
        if header.quantizer_uuid is not None:
            specs |= specs_in(self.path, self._arrays)
        return specs

    @property
    def n_rows(self) -> int:
        return self.header.n_rows

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

    def read(
        self,
        name: str,
        first_row: int,
        end_row: int,
        sums: NDArray[np.uint64] | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Read rows and verify them, codes for ones beyond their last bit too.

        See `ArrayFile.read`.
        """
        rows = super().read(name, first_row, end_row, sums, out)
        if name == "codes":
            try:
                check_padding(rows, "/codes", self.header.schema.n_bits, first_row)
            except ValueError as error:
                raise DamagedError(f"{self.path}: {error}") from None
        return rows

    def calibration(self) -> Calibration:
        """How the int8 vectors are to be read."""
        found = Calibration(*(self.read_all(name) for name in _CALIBRATION))
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
