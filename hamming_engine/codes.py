"""Floats to codes and back.

A code is ``ceil(n_bits / 64)`` uint64 words whose bytes are those of ``np.packbits(x > 0)``; pad
bits are zero. Everything past this module works on C-contiguous ``uint64 (n, n_words)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks

_BLOCK_BYTES = 8 << 20  # per launch, and what is copied at once of arrays in other layouts


def pack_signs(embeddings: ArrayLike, *, threads: int | None = None) -> NDArray[np.uint64]:
    """Cut float vectors to one bit a dimension: 1 where the value is above zero.

    Zero, -0.0 and negative values give 0. Decide this on the original floats: casting to float16
    first turns tiny positive values into zeros.

    Parameters
    ----------
    embeddings : (n, dim) or (dim,) float16, float32 or float64
        In any memory layout and byte order, memory-mapped or not, ``dim >= 1``.
    threads : int, optional
        At most this many threads; all by default.

    Returns
    -------
    codes : (n, ceil(dim / 64)) uint64
        ``codes.view(np.uint8)[:, : ceil(dim / 8)] == np.packbits(embeddings > 0, axis=1)``. The
        bits beyond ``dim`` are zero.

    Raises
    ------
    TypeError
        Where the vectors are not floats of 16, 32 or 64 bits.
    ValueError
        Where the shape is wrong, or a row holds NaN or infinity; the message names the row.
    """
    vectors = checks.floats(embeddings, "embeddings")
    return pack_rows(vectors, "embeddings", threads=checks.threads(threads))


def pack_rows(
    vectors: NDArray[Any], name: str, *, first_row: int = 0, threads: int | None = None
) -> NDArray[np.uint64]:
    """`pack_signs` of checked (n, dim) floats, which errors call ``name`` from ``first_row`` on."""
    from .kernels.launch import usable_threads
    from .kernels.pack import PACK

    n_cells = usable_threads(threads)
    n, dim = vectors.shape
    codes = np.empty((n, checks.words_for(dim)), np.uint64)
    block_rows = max(1, _BLOCK_BYTES // (dim * vectors.itemsize))
    for first in range(0, n, block_rows):
        block = vectors[first : first + block_rows]
        native = checks.frozen(block.astype(block.dtype.newbyteorder("="), copy=False))
        bad_row = np.full(n_cells, -1, np.int64)
        PACK(
            n_cells,
            native.reshape(-1).view(f"i{native.itemsize}"),
            dim,
            codes[first : first + block_rows],
            bad_row,
            work=native.nbytes / 8,
        )
        found = bad_row[bad_row >= 0]
        if found.size:
            raise ValueError(f"{name} row {first_row + first + found.min()} holds NaN or infinity")
    return codes


def unpack_codes(codes: ArrayLike, n_bits: int) -> NDArray[np.uint8]:
    """The bits of codes, one a byte.

    Parameters
    ----------
    codes : (n, n_words) or (n_words,) uint64
    n_bits : int
        Dimensions in a code.

    Returns
    -------
    bits : (n, n_bits) uint8
        0 or 1.

    Raises
    ------
    TypeError, ValueError
        Where the codes are not of ``n_bits`` bits, or have ones beyond them.
    """
    n_bits = checks.integer(n_bits, "n_bits", 1)
    checked: Any = checks.codes(codes, "codes", n_bits)
    return np.unpackbits(checked.view(np.uint8), axis=1, count=n_bits)


def first_bits(codes: NDArray[np.uint64], n_bits: int) -> NDArray[np.uint64]:
    """Checked codes without the bits beyond the first, (n, ceil(n_bits / 64))."""
    n_words = checks.words_for(n_bits)
    kept = np.packbits(np.arange(64 * n_words) < n_bits).view(np.uint64)
    return codes[:, :n_words] & kept
