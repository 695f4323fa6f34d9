"""Where the arrays of a file lie: HDF5 as a directory, nothing more.

Writing, HDF5 lays the file out in a small object in memory; the few kilobytes it writes are
metadata, and the rows go to their offsets by ``pwrite``. Reading, everything about a file is
checked against a whitelist before a byte of its data is used, so a file from a stranger cannot make
HDF5 follow links, open other files, run filters or allocate what a header claims.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .errors import DamagedError, FormatError

VERSION = 4  # what is written, of all kinds of files
ALIGNMENT = 4096  # so that every array can be mapped, and read past the page cache

_READABLE = (1, 2, 3, 4)
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_REFUSALS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES, errno.ENOENT}

_ROOM = 4 << 20  # more than HDF5 takes for the metadata of a file

_HEADER = "header"  # the JSON attribute
_HEADER_SHA256 = "header_sha256"
_MAX_HEADER = 1 << 20
_GROUPS = frozenset({"sums", "quantizer", "columns", "sums/quantizer", "sums/columns"})
_FLOATS = tuple(map(np.dtype, ("<f2", "<f4", "<f8")))


@dataclass(frozen=True)
class ArraySpec:
    """dtype and shape of an array, and where it lies in the file (None while that is open)."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int | None = None

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=object))


class _MetadataFile(io.RawIOBase):
    """A file in memory that keeps only what is written to it, however long it is said to be."""

    def __init__(self) -> None:
        self.pieces: dict[int, bytes] = {}
        self.size = 0
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        content = bytes(data)
        self.pieces[self._position] = content
        self._position += len(content)
        self.size = max(self.size, self._position)
        return len(content)

    def readinto(self, buffer: Any) -> int:
        begin, end = self._position, min(self._position + len(buffer), self.size)
        out = bytearray(max(0, end - begin))
        for offset, content in self.pieces.items():  # in the order written: later ones prevail
            first, last = max(begin, offset), min(end, offset + len(content))
            if first < last:
                out[first - begin : last - begin] = content[first - offset : last - offset]
        buffer[: len(out)] = out
        self._position += len(out)
        return len(out)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def check_version(path: Path, kind: str, version: Any) -> None:
    """Refuse what a later release wrote."""
    if version not in _READABLE:
        raise FormatError(
            f"{path}: {kind} format version {version}, this release reads versions "
            f"{_READABLE[0]} to {_READABLE[-1]}"
        )


def _check_room() -> None:
    """Raise ``MemoryError`` while HDF5 has asked for nothing yet.

    It does not get over an allocation that fails: at some of them the process ends, and after
    others it says of every sound file, until the process ends, that a property cannot be found.
    """
    bytearray(_ROOM)


def lay_out(
    kind: str, header: Mapping[str, Any], arrays: Mapping[str, ArraySpec]
) -> tuple[dict[int, bytes], dict[str, ArraySpec], int]:
    """Let HDF5 place arrays in a new file.

    Parameters
    ----------
    kind : str
        What the file says it is.
    header : mapping
        JSON; written as an attribute, with its SHA-256.
    arrays : mapping of str to ArraySpec
        By data set name.

    Returns
    -------
    pieces : dict of int to bytes
        The metadata, by offset in the file.
    placed : dict of str to ArraySpec
        The arrays, with offsets.
    size : int
        Of the file, in bytes.
    """
    _check_room()
    target = _MetadataFile()
    text = json.dumps({"format": kind, "version": VERSION, **header}, sort_keys=True).encode()
    placed = {}
    with h5py.File(
        target,
        "w",
        libver=("v110", "v110"),
        alignment_threshold=ALIGNMENT,
        alignment_interval=ALIGNMENT,
    ) as file:
        file.attrs[_HEADER] = np.bytes_(text)
        file.attrs[_HEADER_SHA256] = np.bytes_(hashlib.sha256(text).hexdigest())
        links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        for name, spec in arrays.items():
            creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            creation.set_layout(h5py.h5d.CONTIGUOUS)
            creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            dataset = h5py.h5d.create(
                file.id,
                name.encode(),
                _file_type(spec.dtype),
                h5py.h5s.create_simple(spec.shape),
                creation,
                links,
            )
            offset = dataset.get_offset() if spec.nbytes else 0
            placed[name] = ArraySpec(spec.dtype, spec.shape, offset)
    return target.pieces, placed, target.size


def _file_type(dtype: np.dtype[Any]) -> Any:
    """The HDF5 type of an array; text is fixed-width, null-padded UTF-8."""
    kind = h5py.h5t.py_create(dtype)
    if dtype.kind == "S":
        kind.set_cset(h5py.h5t.CSET_UTF8)
        kind.set_strpad(h5py.h5t.STR_NULLPAD)
    return kind


def check_signature(path: Path) -> None:
    """Refuse what is no HDF5 file.

    Raises
    ------
    FormatError
    OSError
        What the system refuses is no damage, and said as it is.
    """
    with path.open("rb") as file:
        if file.read(len(_SIGNATURE)) != _SIGNATURE:
            raise FormatError(f"{path}: no HDF5 file")


def read_layout(path: Path, kind: str, size: int) -> tuple[dict[str, Any], dict[str, ArraySpec]]:
    """The header and the arrays of a file, verified; no data is read.

    Parameters
    ----------
    path : Path
    kind : str
        What the file has to say it is.
    size : int
        Of the file, in bytes; every array must lie inside.

    Raises
    ------
    FormatError
        Where the file is of another kind or a newer version, or holds what such files never hold.
    DamagedError
        Where it was such a file.
    """
    check_signature(path)
    _check_room()
    try:
        file_id = h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, _access())
    except OSError as error:
        if error.errno in _REFUSALS:
            raise
        if not path.exists():  # HDF5 has opened it, and then finds nothing behind its name
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        raise DamagedError(f"{path}: HDF5 cannot open it: {error}") from error
    with h5py.File(file_id) as file:
        try:
            header = _read_header(path, kind, file)
            root = h5py.h5g.open(file.id, b"/")
            arrays: dict[str, ArraySpec] = {}
            _collect_arrays(path, root, "", size, arrays)
        except (FormatError, DamagedError, MemoryError):
            raise
        except Exception as error:  # HDF5 reports damage by whatever error comes up on its way
            raise DamagedError(f"{path}: HDF5 cannot read its structure: {error}") from error
    return header, arrays


def _access() -> Any:
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_file_locking(False, True)  # files never change: there is nothing to lock
    return access


def _read_header(path: Path, kind: str, file: Any) -> dict[str, Any]:
    text = _read_text(path, kind, file, _HEADER, _MAX_HEADER)
    expected = _read_text(path, kind, file, _HEADER_SHA256, 64)
    if hashlib.sha256(text).hexdigest().encode() != expected:
        raise DamagedError(f"{path}: attribute {_HEADER!r} does not match its SHA-256")
    header: dict[str, Any] = json.loads(text)
    if not isinstance(header, dict) or header.get("format") != kind:
        raise FormatError(f"{path}: no {kind}")
    check_version(path, kind.removeprefix("hamming_engine "), header.get("version"))
    return header


def _read_text(path: Path, kind: str, file: Any, name: str, limit: int) -> bytes:
    """A scalar, fixed-width string attribute, its size checked before it is read."""
    if not h5py.h5a.exists(file.id, name.encode()):
        raise FormatError(f"{path}: no {kind}, attribute {name!r} is missing")
    attribute = h5py.h5a.open(file.id, name.encode())
    stored = attribute.get_type()
    if (
        not isinstance(stored, h5py.h5t.TypeStringID)
        or stored.is_variable_str()
        or stored.get_size() > limit
        or attribute.get_space().get_simple_extent_type() != h5py.h5s.SCALAR
    ):
        raise FormatError(f"{path}: attribute {name!r} is no fixed text of at most {limit} bytes")
    value = np.empty((), f"S{stored.get_size()}")
    attribute.read(value)
    return bytes(value[()])


def _collect_arrays(
    path: Path, group: Any, prefix: str, size: int, arrays: dict[str, ArraySpec]
) -> None:
    """Check every link of a group, and of the groups inside that files have."""
    if group.get_num_objs() > 64:
        raise FormatError(f"{path}: more than 64 objects in /{prefix}")
    for link in group:
        name = prefix + link.decode()
        if group.links.get_info(link).type != h5py.h5l.TYPE_HARD:
            raise FormatError(f"{path}: /{name} is a soft or external link")
        kind = h5py.h5o.get_info(group, link).type
        if kind == h5py.h5o.TYPE_GROUP and name in _GROUPS:
            _collect_arrays(path, h5py.h5g.open(group, link), name + "/", size, arrays)
        elif kind == h5py.h5o.TYPE_DATASET:
            arrays[name] = _read_spec(path, name, h5py.h5d.open(group, link), size)
        else:
            raise FormatError(f"{path}: /{name} is neither a data set nor a known group")


def _read_spec(path: Path, name: str, dataset: Any, size: int) -> ArraySpec:
    """dtype, shape and place of a data set, if it is one that files may hold."""
    creation = dataset.get_create_plist()
    if (
        creation.get_layout() != h5py.h5d.CONTIGUOUS
        or creation.get_external_count()
        or creation.get_nfilters()
    ):
        raise FormatError(f"{path}: /{name} is not contiguous, plain data inside the file")
    kind = dataset.get_type()
    is_text = isinstance(kind, h5py.h5t.TypeStringID)
    if is_text:
        allowed = not kind.is_variable_str() and kind.get_size() <= 1 << 16
    else:
        allowed = isinstance(kind, (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID))
    if not allowed:
        raise FormatError(f"{path}: /{name} has a type that files never hold")
    dtype = np.dtype(f"S{kind.get_size()}") if is_text else kind.dtype
    if dtype.kind not in "Sui" and dtype not in _FLOATS:
        raise FormatError(f"{path}: /{name} has type {dtype}, which files never hold")
    space = dataset.get_space()
    if space.get_simple_extent_type() != h5py.h5s.SIMPLE or space.get_simple_extent_ndims() > 2:
        raise FormatError(f"{path}: /{name} has neither one nor two dimensions")
    spec = ArraySpec(dtype, space.get_simple_extent_dims(), dataset.get_offset() or 0)
    if spec.nbytes and not 0 < spec.offset <= size - spec.nbytes:  # type: ignore[operator]
        raise DamagedError(
            f"{path}: /{name} of {spec.nbytes} bytes does not fit into the file of {size} bytes"
        )
    return spec
