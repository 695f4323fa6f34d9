"""A segment: rows written once to one HDF5 file, then only read."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import check_padding, words_for
from ..columns import TEXT, stored_type
from .arrays import ArrayFile, ArrayWriter, checked_rows
from .errors import DamagedError, FormatError
from .layout import ArraySpec
from .manifest import QuantizerEntry
from .quantizer import specs_in, specs_of, stored_arrays
from .schema import IDS, Schema, json_object

_KIND = "hamming_engine segment"
_COLUMNS = "columns/"
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


class TextTypes(NamedTuple):
    """How ids and columns of text are stored: as wide as the longest in the segment.

    Attributes
    ----------
    ids : dtype
        int64 where ids are no text.
    columns : dict of str to dtype
        Of the columns of text.
    """

    ids: np.dtype[Any]
    columns: dict[str, np.dtype[Any]]


def column_array(name: str) -> str:
    """The data set of a column."""
    return _COLUMNS + name


def _expected_arrays(header: SegmentHeader, texts: TextTypes, n_runs: int) -> dict[str, ArraySpec]:
    """The arrays of rows that a segment with this header has, without offsets."""
    schema, n = header.schema, header.n_rows

    def spec(dtype: Any, *shape: int) -> ArraySpec:
        return ArraySpec(np.dtype(dtype), shape)

    arrays = {"codes": spec("<u8", n, words_for(schema.n_bits)), "ids": spec(texts.ids, n)}
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
    for name, kind in schema.columns.items():
        arrays[column_array(name)] = spec(texts.columns.get(name, stored_type(kind)), n)
    if not header.ids_ascending:
        arrays["ids_order"] = spec("<i8", n)
    return arrays


@dataclass(frozen=True)
class Content:
    """What a new segment will hold.

    Attributes
    ----------
    n_rows : int
    texts : TextTypes
    ids_ascending : bool
        If not, ``ids_order``, what sorts them, is an array of the segment.
    known : mapping of str to array
        Arrays that need not be written by rows.
    calibration : Calibration, optional
        With int8 vectors.
    """

    n_rows: int
    texts: TextTypes
    ids_ascending: bool
    known: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    calibration: Calibration | None = None

    @classmethod
    def of_arrays(
        cls,
        ids: NDArray[Any],
        order: NDArray[np.int64] | None,
        columns: Mapping[str, NDArray[Any]] | None = None,
        calibration: Calibration | None = None,
    ) -> Content:
        """Rows whose ids, what sorts these (None where they ascend), and columns are in memory."""
        known = {"ids": ids}
        if order is not None:
            known["ids_order"] = order
        columns = columns or {}
        known |= {column_array(name): values for name, values in columns.items()}
        of_text = {
            name: values.dtype for name, values in columns.items() if values.dtype.kind == "S"
        }
        return cls(len(ids), TextTypes(ids.dtype, of_text), order is None, known, calibration)


class SegmentWriter(ArrayWriter):
    """Writes one segment: arrays of rows come by `write`, but for those that are known.

    Parameters
    ----------
    path : Path
        Must not exist.
    content : Content
    collection : str
        uuid of the collection.
    schema : Schema
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
        content: Content,
        *,
        collection: str,
        schema: Schema,
        quantizer: QuantizerEntry | None = None,
        quantizer_arrays: Mapping[str, NDArray[Any]] | None = None,
        search: dict[str, Any] | None = None,
    ) -> None:
        # The vectors count as float32 whatever is kept: rows come in blocks that a checksum covers,
        # and a block of what comes in has to stay small too.
        texts, calibration = content.texts, content.calibration
        widths = [words_for(schema.n_bits) * 8, 4 * schema.dim, texts.ids.itemsize]
        row_bytes = max(*widths, *(dtype.itemsize for dtype in texts.columns.values()))
        self.quantizer = quantizer
        self.header = SegmentHeader(
            uuid=str(uuid.uuid4()),
            collection=collection,
            schema=schema,
            n_rows=content.n_rows,
            ids="utf8" if texts.ids.kind == "S" else "int64",
            ids_ascending=content.ids_ascending,
            rows_per_checksum=checked_rows(row_bytes),
            quantizer_uuid=None if quantizer is None else quantizer.uuid,
            search=search,
        )
        arrays = {**content.known}
        if calibration is not None:
            arrays.update(zip(_CALIBRATION, vars(calibration).values(), strict=True))
        n_runs = 0 if calibration is None else len(calibration.first_row)
        stored = stored_arrays(quantizer_arrays or {})
        specs = _expected_arrays(self.header, texts, n_runs) | specs_of(stored)
        super().__init__(path, _KIND, self.header.to_json(), specs, arrays | stored)


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

    def _specs(self) -> dict[str, ArraySpec]:
        """The arrays that go with the header."""
        header = self.header
        ids = self._text_type("ids") if header.ids == "utf8" else np.dtype("<i8")
        of_text = (name for name, kind in header.schema.columns.items() if kind == TEXT)
        columns = {name: self._text_type(column_array(name)) for name in of_text}
        runs = self._arrays[_CALIBRATION[0]].shape if _CALIBRATION[0] in self._arrays else ()
        specs = _expected_arrays(header, TextTypes(ids, columns), runs[0] if runs else 0)
        if header.quantizer_uuid is not None:
            specs |= specs_in(self.path, self._arrays)
        return specs

    def _text_type(self, name: str) -> np.dtype[Any]:
        """The type of an array of texts, whose width only the file says."""
        dtype = self._arrays[name].dtype if name in self._arrays else np.dtype("S1")
        if dtype.kind != "S":
            raise FormatError(f"{self.path}: /{name} has type {dtype}, the header says text")
        return dtype

    @property
    def uuid(self) -> str:
        return self.header.uuid

    @property
    def collection(self) -> str:
        return self.header.collection

    @property
    def n_rows(self) -> int:
        return self.header.n_rows

    @property
    def texts(self) -> TextTypes:
        """The types of ids and columns of text."""
        of_text = (name for name, kind in self.header.schema.columns.items() if kind == TEXT)
        columns = {name: self._arrays[column_array(name)].dtype for name in of_text}
        return TextTypes(self._arrays["ids"].dtype, columns)

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type of an array."""
        return self._arrays[name].dtype

    def _check_content(self, name: str, rows: NDArray[Any], first_row: int) -> None:
        if name == "ids_order" and not _inside(rows, self.n_rows):
            raise DamagedError(f"{self.path}: /ids_order names rows that are not there")
        if name == "codes":
            self._check_padding(rows, first_row)

    def take(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Copies of some rows, verified."""
        self.verify_rows(name, rows)
        copies: NDArray[Any] = self.map(name)[rows]
        return copies

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
            self._check_padding(rows, first_row)
        return rows

    def _check_padding(self, codes: NDArray[np.uint64], first_row: int) -> None:
        try:
            check_padding(codes, "/codes", self.header.schema.n_bits, first_row)
        except ValueError as error:
            raise DamagedError(f"{self.path}: {error}") from None

    @functools.cached_property
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


def _inside(rows: NDArray[np.int64], n_rows: int) -> bool:
    return bool(rows.min() >= 0 and rows.max() < n_rows)
