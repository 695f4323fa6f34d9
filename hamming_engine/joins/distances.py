"""All distances between two sets of codes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..held import HeldCodes
from ..indexes.distances import write_distances
from .source import code_array


def pairwise(
    a: ArrayLike,
    b: ArrayLike | None = None,
    *,
    out: NDArray[np.integer[Any]] | None = None,
    threads: int | None = None,
) -> NDArray[np.integer[Any]]:
    """All Hamming distances between the codes of two sets, or within one.

    Parameters
    ----------
    a : (n_a, n_words) uint64
    b : (n_b, n_words) uint64, optional
        The codes of ``a`` by default.
    out : (n_a, n_b) array of an integer type, optional
        Where distances are written; C-contiguous and wide enough for ``64 * n_words``. An
        ``np.memmap`` takes matrices larger than memory.
    threads : int, optional
        At most this many threads; all by default.

    Returns
    -------
    distances : (n_a, n_b) uint16, or int32 where codes have more than 1,023 words
        In bits; ``out`` where it is given.

    Raises
    ------
    TypeError, ValueError
        Where an argument has the wrong type, shape or value; the message says which.
    """
    queries = code_array(a, "a")
    codes = queries if b is None else code_array(b, "b")
    if codes.shape[1] != queries.shape[1]:
        raise ValueError(f"b has {codes.shape[1]} words a code, a has {queries.shape[1]}")
    threads = checks.threads(threads)
    n_bits = 64 * queries.shape[1]
    shape = len(queries), len(codes)
    if out is None:
        out = np.empty(shape, np.uint16 if n_bits <= np.iinfo(np.uint16).max else np.int32)
    _check_out(out, shape, n_bits)
    held = HeldCodes(codes.shape[1])
    held.append(codes)
    write_distances(queries, held, out, threads)
    return out


def _check_out(out: Any, shape: tuple[int, int], n_bits: int) -> None:
    if not isinstance(out, np.ndarray) or out.dtype.kind not in "iu":
        kind = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
        raise TypeError(f"out must be an array of an integer type, got {kind}")
    if not out.dtype.isnative or np.iinfo(out.dtype).max < n_bits:
        raise TypeError(
            f"out must be of a native type that holds distances up to {n_bits}, got {out.dtype}"
        )
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, a row for each code of a, got {out.shape}")
    flags = out.flags
    if not (flags.writeable and flags.c_contiguous and flags.aligned):
        raise ValueError("out must be writable, C-contiguous and aligned")
