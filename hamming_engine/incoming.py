"""Rows on their way into a collection: blocks of vectors, their ids, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .ids import kind_of, shown, sorting_order, stored_ids
from .quantize import Int8Scale, Quantizer
from .store.segment import SegmentWriter
from .store.spool import Spool
from .store.store import Store

_BLOCK_BYTES = 4 << 20  # of floats, taken at once while appending


def new_ids(
    store: Store, ids: NDArray[Any] | None, n: int
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Ids for n new rows, and the order that sorts them, None where they ascend."""
    kind = store.manifest.ids
    if ids is None:
        if kind == "utf8":
            raise ValueError("ids must be given: this collection has text ids")
        ids = np.arange(store.manifest.next_id, store.manifest.next_id + n)
    if kind not in (None, kind_of(ids)):
        raise TypeError(f"ids must be {kind} as in the collection, got {kind_of(ids)}")
    order = sorting_order(ids)
    in_order = ids if order is None else ids[order]
    known = in_order[store.find_ids(in_order) >= 0]
    if len(known):
        raise ValueError(f"ids must be new, {shown(known[0])} is stored already")
    return ids, order


def drain(blocks: Iterator[Any], spool: Spool, dim: int) -> NDArray[Any] | None:
    """Lay down all blocks of an iterator; their ids as stored, or None."""
    ids: list[Any] = []
    n_blocks = 0
    for i, item in enumerate(blocks):
        if isinstance(item, tuple) and len(item) != 2:
            raise ValueError(f"embeddings block {i} must be (block, ids), got {len(item)} items")
        block, block_ids = item if isinstance(item, tuple) else (item, None)
        rows = checks.floats(block, f"embeddings block {i}", dim)
        stored = None if block_ids is None else stored_ids(block_ids, f"ids of block {i}")
        if stored is not None and len(stored) != len(rows):
            raise ValueError(
                f"ids of block {i} must be one a row: got {len(stored)} for {len(rows)} rows"
            )
        if not len(rows):
            continue
        if n_blocks and (stored is not None) != bool(ids):
            raise TypeError(f"embeddings block {i} must come with ids, as all blocks or none do")
        if stored is not None:
            if ids and kind_of(ids[0]) != kind_of(stored):
                raise TypeError(
                    f"ids of block {i} must be {kind_of(ids[0])} as before, got {kind_of(stored)}"
                )
            ids.append(stored)
        n_blocks += 1
        spool.append(rows)
    return np.concatenate(ids) if ids else None


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
    fits = np.isfinite(stored).all(axis=1)
    if not fits.all():
        row = int(np.flatnonzero(~fits)[0])
        if not np.isfinite(block[row]).all():
            raise ValueError(f"embeddings row {first_row + row} holds NaN or infinity")
        raise ValueError(
            f"embeddings row {first_row + row} holds {np.abs(block[row]).max()}, which does not "
            f"fit into {kept}"
        )
    if kept == "float16":
        lost = ~stored.any(axis=1) & block.any(axis=1)
        if lost.any():
            row = int(np.flatnonzero(lost)[0])
            raise ValueError(
                f"embeddings row {first_row + row} is too small for float16, all of it becomes zero"
            )
    return stored


def write_rows(
    writer: SegmentWriter,
    rows: Rows,
    quantizer: Quantizer,
    scale: Int8Scale | None,
    threads: int | None,
    bar: Any,
) -> None:
    """Encode and write codes and vectors, a block at a time."""
    kept = writer.header.schema.vectors
    step = writer.header.rows_per_checksum
    step *= max(1, rows.per_block // step)
    for first in range(0, rows.n, step):
        block = rows.block(first, first + step)
        encoded = quantizer.encode_rows(block, "embeddings", first_row=first, threads=threads)
        writer.write("codes", first, encoded.codes)
        if quantizer.n_factors:
            writer.write("factors", first, encoded.factors)
        if scale is not None:
            writer.write("vectors", first, scale.encode(block))
        elif kept is not None:
            writer.write("vectors", first, _stored_floats(block, kept, first))
        bar.update(len(block))
