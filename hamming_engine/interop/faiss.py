"""FAISS's binary indexes, in memory and in its own files, as indexes of this package, and back.

Both compute the same distances, so results differ at most in the order of ties and, where not all
cells are probed, in which one of cells at the same distance is. FAISS itself is needed for all of
this: its objects and files are read and written by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..indexes.flat import FlatIndex
from ..indexes.ivf import IVFIndex
from ..kernels.columns import BLOCK_ROWS
from ..optional import require
from .formats import from_format, to_format

_READ = "IndexBinaryFlat, IndexBinaryIVF, or either in an IndexBinaryIDMap"


@dataclass(frozen=True, eq=False)
class FaissContents:
    """What FAISS held.

    Attributes
    ----------
    index : FlatIndex or IVFIndex
    ids : (n_rows,) int64
        What FAISS calls each row: its number, unless it was added with an id of its own.
    """

    index: FlatIndex | IVFIndex
    ids: NDArray[np.int64]


def read_faiss(path: Any) -> FaissContents:
    """An index from a file that ``faiss.write_index_binary`` wrote.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    FaissContents
        See `from_faiss`.

    Raises
    ------
    OSError
        Where there is no such file.
    ValueError
        Where FAISS cannot read it, or it holds another kind of index. FAISS trusts its files: read
        none from people that you do not trust.
    ImportError
        Where FAISS is not installed.
    """
    path = checks.path(path)
    faiss = _faiss()
    path.stat()
    try:
        index = faiss.read_index_binary(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} holds no binary index of FAISS: {error}") from error
    return from_faiss(index)


def write_faiss(index: FlatIndex | IVFIndex, path: Any, *, ids: ArrayLike | None = None) -> None:
    """Write a file that ``faiss.read_index_binary`` reads.

    Parameters
    ----------
    index : FlatIndex or IVFIndex
    path : str or path
        A file that is there is replaced.
    ids : (n_rows,) int, optional
        See `to_faiss`.

    Raises
    ------
    OSError
        Where the file cannot be written.
    ImportError, TypeError, ValueError
        As from `to_faiss`.
    """
    path = checks.path(path)
    made = to_faiss(index, ids=ids)
    try:
        _faiss().write_index_binary(made, str(path))
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def from_faiss(index: Any) -> FaissContents:
    """An index from one of FAISS's in memory.

    Parameters
    ----------
    index : faiss.IndexBinary
        An IndexBinaryFlat, an IndexBinaryIVF, or one of them in an IndexBinaryIDMap.

    Returns
    -------
    FaissContents
        An IndexBinaryIVF becomes an `IVFIndex` with the same centres, the same rows in each list
        and the same ``nprobe``; rows are numbered by ascending id. Later additions go to the
        nearest centre; lists that they find too large are split.

    Raises
    ------
    TypeError
        Where it is no binary index of FAISS.
    ValueError
        Where it is of another kind, or an IndexBinaryIVF that is not trained.
    ImportError
        Where FAISS is not installed.
    """
    faiss = _faiss()
    if not isinstance(index, faiss.IndexBinary):
        raise TypeError(f"index must be a faiss.IndexBinary, got {type(index).__name__}")
    index = faiss.downcast_IndexBinary(index)
    outer_ids = None
    if isinstance(index, faiss.IndexBinaryIDMap):
        outer_ids = faiss.vector_to_array(index.id_map)
        index = faiss.downcast_IndexBinary(index.index)
    read: FlatIndex | IVFIndex
    if isinstance(index, faiss.IndexBinaryFlat):
        read = FlatIndex(index.d)
        read.add(from_format(_codes_of(index, index.ntotal), "faiss", index.d))
        ids = np.arange(index.ntotal)
    elif isinstance(index, faiss.IndexBinaryIVF):
        read, ids = _from_ivf(index)
    else:
        raise ValueError(f"index must be an {_READ}, got {type(index).__name__}")
    return FaissContents(read, ids if outer_ids is None else outer_ids[ids])


def _from_ivf(index: Any) -> tuple[IVFIndex, NDArray[np.int64]]:
    """The same cells, and the id of each row, ascending."""
    faiss = _faiss()
    if not index.is_trained:
        raise ValueError("index must be trained: this IndexBinaryIVF has no centres yet")
    centers = from_format(_codes_of(index.quantizer, index.nlist), "faiss", index.d)
    lists, n_bytes = index.invlists, index.code_size
    sizes = np.array([lists.list_size(which) for which in range(index.nlist)], np.int64)
    ids = np.empty(int(sizes.sum()), np.int64)
    packed = np.empty((len(ids), n_bytes), np.uint8)
    end = 0
    for which in np.flatnonzero(sizes).tolist():
        size = int(sizes[which])
        begin, end = end, end + size
        ids[begin:end] = faiss.rev_swig_ptr(lists.get_ids(which), size)
        in_list = faiss.rev_swig_ptr(lists.get_codes(which), size * n_bytes)
        packed[begin:end] = in_list.reshape(size, n_bytes)
    order = np.argsort(ids, kind="stable")
    codes = from_format(packed[order], "faiss", index.d)
    assigned = np.repeat(np.arange(index.nlist), sizes)[order]
    return IVFIndex.from_lists(index.d, centers, codes, assigned, nprobe=index.nprobe), ids[order]


def _codes_of(index: Any, n: int) -> NDArray[np.uint8]:
    """The first rows of a binary index that numbers them itself, (n, d / 8), as it packs them."""
    if not n:
        return np.zeros((0, index.code_size), np.uint8)
    packed: NDArray[np.uint8] = index.reconstruct_n(0, n)
    return packed


def to_faiss(index: FlatIndex | IVFIndex, *, ids: ArrayLike | None = None) -> Any:
    """One of FAISS's binary indexes in memory.

    Parameters
    ----------
    index : FlatIndex or IVFIndex
        Its bits must be a multiple of 8. Removed rows are left out, and so are factors, which FAISS
        has not.
    ids : (n_rows,) int, optional
        At least 0: what FAISS shall call each row; row numbers by default.

    Returns
    -------
    faiss.IndexBinaryFlat, faiss.IndexBinaryIDMap or faiss.IndexBinaryIVF
        A `FlatIndex` becomes an IndexBinaryFlat, in an IndexBinaryIDMap where rows have been
        removed or ``ids`` are given. An `IVFIndex` becomes an IndexBinaryIVF with the same centres,
        an IndexBinaryFlat, and the same rows in each list; its ``nprobe`` is the one that searches
        use by default.

    Raises
    ------
    TypeError, ValueError
        Where an argument is of the wrong type or shape, the bits are no multiple of 8, or an
        `IVFIndex` has no rows and so no cells yet.
    ImportError
        Where FAISS is not installed.
    """
    if not isinstance(index, (FlatIndex, IVFIndex)):
        raise TypeError(f"index must be a FlatIndex or IVFIndex, got {type(index).__name__}")
    faiss = _faiss()
    if isinstance(index, IVFIndex):
        return _to_ivf(index, ids)
    rows, codes = index.rows, index.codes
    packed = to_format(codes[rows], "faiss", index.n_bits)
    made = faiss.IndexBinaryFlat(index.n_bits)
    if ids is None and len(rows) == len(codes):
        made.add(packed)
        return made
    with_ids = faiss.IndexBinaryIDMap(made)
    with_ids.add_with_ids(packed, _checked_ids(ids, len(codes))[rows])
    return with_ids


def _to_ivf(index: IVFIndex, ids: ArrayLike | None) -> Any:
    """The same cells; FAISS's lists have their rows in the order of ours."""
    faiss = _faiss()
    settings, arrays = index.state()
    if not arrays:
        raise ValueError("index must have rows: this IVFIndex has no cells yet")
    n_bits, n_lists = index.n_bits, len(arrays["centers"])
    of_place = np.repeat(np.arange(n_lists), BLOCK_ROWS * np.diff(arrays["begins"]))
    row_of_place = arrays["rows"].reshape(-1)
    filled = row_of_place >= 0
    assigned = np.empty(settings["n_rows"], np.int64)
    assigned[row_of_place[filled]] = of_place[filled]
    rows = index.rows
    rows = rows[rows < len(assigned)]  # some may have been added meanwhile
    packed = to_format(index.codes[rows], "faiss", n_bits)
    centers = faiss.IndexBinaryFlat(n_bits)
    centers.add(to_format(arrays["centers"], "faiss", n_bits))
    made = faiss.IndexBinaryIVF(centers, n_bits, n_lists)
    named, of_list = _checked_ids(ids, len(assigned))[rows], assigned[rows]
    arguments = (faiss.swig_ptr(array) for array in (packed, named, of_list))
    made.add_core(len(rows), *arguments)
    made.nprobe = min(index.nprobe, n_lists)
    return made


def _checked_ids(ids: Any, n_rows: int) -> NDArray[np.int64]:
    """An id for each row number."""
    if ids is None:
        return np.arange(n_rows)
    named = checks.array(ids, "ids")
    if named.shape != (n_rows,) or (named.size and named.dtype.kind not in "iu"):
        raise ValueError(
            f"ids must be {n_rows} integers, one a row, got {named.dtype} of shape {named.shape}"
        )
    named = named.astype(np.int64)
    if named.size and named.min() < 0:
        raise ValueError(f"ids must be from 0 to 2 ** 63 - 1, row {named.argmin()} has another")
    return np.ascontiguousarray(named)


def _faiss() -> Any:
    return require("faiss", "faiss")
