"""Rows on their way into a collection: blocks of vectors, their ids, and how they are written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import checks, columns
from .ids import kind_of, shown, sorting_order, stored_ids
from .kernels.launch import for_each, usable_threads
from .quantize import Int8Scale, Quantizer
from .store.merge import LiveRows
from .store.segment import SegmentWriter
from .store.snapshot import Snapshot
from .store.spool import Spool

_BLOCK_BYTES = 2 << 20  # of floats, taken at once by each thread while appending


class Labels(NamedTuple):
    """What comes with vectors.

    Attributes
    ----------
    ids : (n,) int64 or bytes, or None
    columns : dict of str to (n,) array
    """

    ids: NDArray[Any] | None
    columns: dict[str, NDArray[Any]]


class Incoming(NamedTuple):
    """Rows to be added, checked as far as that needs no collection."""

    rows: Rows
    labels: Labels


def from_arrays(rows: Rows, ids: Any, values: Any) -> Incoming:
    """Rows with ids and columns as users give them."""
    return Incoming(rows, _labels(ids, values, rows.n, ""))


def _labels(ids: Any, values: Any, n_rows: int, of_block: str) -> Labels:
    given = None if ids is None else stored_ids(ids, f"ids{of_block}")
    if given is not None and len(given) != n_rows:
        raise ValueError(f"ids{of_block} must be one a row: got {len(given)} ids for {n_rows} rows")
    return Labels(given, columns.checked(values, n_rows))


def drain(blocks: Iterator[Any], spool: Spool, dim: int) -> Incoming:
    """Lay down all blocks of an iterator; ids and columns stay in memory."""
    each: list[Labels] = []
    for i, item in enumerate(blocks):
        if isinstance(item, tuple) and len(item) not in (2, 3):
            raise ValueError(
                f"embeddings block {i} must be (block, ids) or (block, ids, columns), got "
                f"{len(item)} items"
            )
        block, *rest = item if isinstance(item, tuple) else (item,)
        ids, values = (*rest, None, None)[:2]
        rows = checks.floats(block, f"embeddings block {i}", dim)
        new = _labels(ids, values, len(rows), f" of block {i}")
        if not len(rows):
            continue
        if each:
            _check_like(new, each[0], i)
        each.append(new)
        spool.append(rows)
    return Incoming(Rows(spool.array(dim), dim), _joined(each))


def _joined(each: list[Labels]) -> Labels:
    if not each:
        return Labels(None, {})
    ids = [new.ids for new in each if new.ids is not None]
    values = {name: [new.columns[name] for new in each] for name in each[0].columns}
    return Labels(
        np.concatenate(ids) if ids else None,
        {name: np.concatenate(arrays) for name, arrays in values.items()},
    )


def _check_like(new: Labels, first: Labels, i: int) -> None:
    """Refuse a block that has not what the first one had."""
    if (new.ids is None) != (first.ids is None):
        raise TypeError(f"embeddings block {i} must come with ids, as all blocks or none do")
    if new.ids is not None and first.ids is not None and kind_of(new.ids) != kind_of(first.ids):
        raise TypeError(
            f"ids of block {i} must be {kind_of(first.ids)} as before, got {kind_of(new.ids)}"
        )
    found, expected = columns.types_of(new.columns), columns.types_of(first.columns)
    if found != expected:
        raise TypeError(f"columns of block {i} must be {expected} as before, got {found}")


class NewRows(NamedTuple):
    """Rows as they are stored, apart from their vectors.

    Attributes
    ----------
    ids : (n,) int64 or bytes
    order : (n,) int64 or None
        What sorts the ids; None where they ascend.
    columns : dict of str to (n,) array
    column_types : dict of str to str
    replaced : (m,) int64
        Rows of the collection that have these ids.
    """

    ids: NDArray[Any]
    order: NDArray[np.int64] | None
    columns: dict[str, NDArray[Any]]
    column_types: dict[str, str]
    replaced: NDArray[np.int64]


def check_new(incoming: Incoming, snapshot: Snapshot, replacing: bool) -> NewRows:
    """Check rows against a collection they are added to.

    Raises
    ------
    TypeError, ValueError
        Where ids or columns do not go with it, or, unless rows are to be replaced, an id is there.
    """
    manifest, (ids, given) = snapshot.manifest, incoming.labels
    if ids is None:
        if manifest.ids == "utf8":
            raise ValueError("ids must be given: this collection has text ids")
        ids = np.arange(manifest.next_id, manifest.next_id + incoming.rows.n)
    if manifest.ids not in (None, kind_of(ids)):
        raise TypeError(f"ids must be {manifest.ids} as in the collection, got {kind_of(ids)}")
    order = sorting_order(ids)
    in_order = ids if order is None else ids[order]
    found = snapshot.find_ids(in_order)
    there = found >= 0
    if there.any() and not replacing:
        raise ValueError(f"ids must be new, {shown(in_order[there][0])} is stored already")
    types = _column_types(columns.types_of(given), snapshot)
    values = columns.converted(given, types)
    stored = {name: columns.as_stored(array) for name, array in values.items()}
    return NewRows(ids, order, stored, types, found[there])


def _column_types(found: dict[str, str], snapshot: Snapshot) -> dict[str, str]:
    """The types of a collection's columns, which its first rows may bring along."""
    known = snapshot.schema.columns
    return known if known or snapshot.parts else found


def check_mergeable(rows: LiveRows, snapshot: Snapshot) -> None:
    """Check rows of another collection against one they are added to.

    Raises
    ------
    TypeError, ValueError
        Where ids or columns do not go with it, or an id is there.
    """
    theirs, ours = rows.snapshot.manifest, snapshot.manifest
    if ours.ids not in (None, theirs.ids):
        raise TypeError(f"other has {theirs.ids} ids, this collection has {ours.ids}")
    types = _column_types(theirs.schema.columns, snapshot)
    if theirs.schema.columns != types:
        raise ValueError(f"other has columns {theirs.schema.columns}, this collection has {types}")
    for ids in rows.blocks("ids"):
        there = snapshot.find_ids(ids) >= 0
        if there.any():
            raise ValueError(f"other has id {shown(ids[there][0])}, which is stored here already")


class Rows:
    """Vectors to be appended, a block at a time: an array, or anything that can be sliced.

    What knows its shape and type is sliced as it is, so that a file larger than memory is never
    read at once; anything else becomes an array first.
    """

    def __init__(self, embeddings: Any, dim: int) -> None:
        shape = getattr(embeddings, "shape", None)
        if isinstance(embeddings, (np.ndarray, np.generic)) or not (
            shape is not None and hasattr(embeddings, "dtype")
        ):
            embeddings = checks.array(embeddings, "embeddings")
            if embeddings.size == 0 and embeddings.ndim == 1:
                embeddings = np.zeros((0, dim), np.float32)
            embeddings = checks.floats(embeddings, "embeddings", dim)
        elif len(shape) != 2:
            raise ValueError(f"embeddings must have shape (n, dim), got {tuple(shape)}")
        self._source = embeddings
        self.n, self._dim = int(embeddings.shape[0]), dim
        # One row stands for the others: its type is theirs.
        self._dtype = checks.floats(np.asarray(embeddings[:1]), "embeddings", dim).dtype

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self._dim

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return self.block(rows.start or 0, self.n if rows.stop is None else rows.stop)

    @property
    def per_block(self) -> int:
        """Rows to take at once."""
        return max(1, _BLOCK_BYTES // (self._dim * self._dtype.itemsize))

    def block(self, begin: int, end: int) -> NDArray[Any]:
        """Some rows; somebody else's array has to give what its shape says."""
        end = min(end, self.n)
        block = np.asarray(self._source[begin:end])
        if block.shape != (end - begin, self._dim) or block.dtype != self._dtype:
            raise ValueError(
                f"embeddings gave rows {begin} to {end - 1} as {block.dtype} of shape "
                f"{block.shape}, expected {self._dtype} of shape {(end - begin, self._dim)}"
            )
        return block


def finite_blocks(rows: Rows) -> Iterator[NDArray[Any]]:
    for first in range(0, rows.n, rows.per_block):
        block = rows.block(first, first + rows.per_block)
        _stored_floats(block, "float32", first)
        yield block


def _stored_floats(block: NDArray[Any], kept: str, first_row: int) -> NDArray[Any]:
    """Vectors in the type they are stored in; a finite value that becomes infinite is refused."""
    with np.errstate(over="ignore"):
        stored = block.astype(kept)
    # The largest bits of a row without their sign say both; floats take several passes for it.
    bits = stored.view(f"u{stored.itemsize}")
    infinity = np.array(np.inf, stored.dtype).view(bits.dtype)
    largest = (bits & (np.iinfo(bits.dtype).max >> 1)).max(axis=1, initial=0)
    if (largest >= infinity).any():
        row = int(np.flatnonzero(largest >= infinity)[0])
        if not np.isfinite(block[row]).all():
            raise ValueError(f"embeddings row {first_row + row} holds NaN or infinity")
        raise ValueError(
            f"embeddings row {first_row + row} holds {np.abs(block[row]).max()}, which does not "
            f"fit into {kept}"
        )
    for empty in np.flatnonzero(largest == 0) if kept == "float16" else ():
        if block[empty].any():
            raise ValueError(
                f"embeddings row {first_row + empty} is too small for float16, all of it becomes "
                f"zero"
            )
    return stored


def write_rows(
    writer: SegmentWriter,
    rows: Rows,
    quantizer: Quantizer,
    threads: int | None,
    bar: Any,
    *,
    scale: Int8Scale | None = None,
    with_vectors: bool = True,
) -> None:
    """Encode and write codes and vectors, each thread a block at a time."""
    kept = writer.header.schema.vectors if with_vectors else None
    step = writer.rows_per_checksum
    step *= max(1, rows.per_block // step)
    # Blocks are taken one after the other: somebody else's array may not like two threads.
    blocks = ((first, rows.block(first, first + step)) for first in range(0, rows.n, step))
    counting = threading.Lock()

    def write(_thread: int, item: tuple[int, NDArray[Any]]) -> None:
        first, block = item
        encoded = quantizer.encode_rows(block, "embeddings", first_row=first, threads=1)
        writer.write("codes", first, encoded.codes)
        if quantizer.n_factors:
            writer.write("factors", first, encoded.factors)
        if kept is not None and scale is not None:
            writer.write("vectors", first, scale.encode(block))
        elif kept is not None:
            writer.write("vectors", first, _stored_floats(block, kept, first))
        with counting:
            bar.update(len(block))

    n_blocks = -(-rows.n // step)
    for_each(blocks, min(n_blocks, usable_threads(threads)), write)
