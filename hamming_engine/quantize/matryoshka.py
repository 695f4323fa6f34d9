"""Matryoshka embeddings: the first dimensions alone are an embedding too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from .base import Encoded, Floats, Quantizer, as_float32, unit_length
from .head import HeadQuantizer


def truncate(vectors: ArrayLike, dim: int) -> NDArray[Any]:
    """The first dimensions of each vector, scaled to unit length.

    For models trained so that these are an embedding by themselves (Kusupati and others:
    "Matryoshka representation learning", NeurIPS 2022).

    Parameters
    ----------
    vectors : (n, dim_before) or (dim_before,) float16, float32 or float64
    dim : int
        How many to keep, at most ``dim_before``.

    Returns
    -------
    vectors : (n, dim), of the same type
        All zeros stay.

    Raises
    ------
    TypeError, ValueError
    """
    rows = checks.floats(vectors, "vectors")
    dim = checks.integer(dim, "dim", 1)
    if dim > rows.shape[1]:
        raise ValueError(f"dim must be at most the {rows.shape[1]} dimensions there are, got {dim}")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise ValueError(f"vectors row {bad[0]} holds NaN or infinity")
    return _cut(rows, dim).astype(rows.dtype)


def _cut(rows: NDArray[Any], dim: int) -> NDArray[np.float64]:
    return unit_length(np.ascontiguousarray(rows[:, :dim], np.float64))


class MatryoshkaQuantizer(Quantizer):
    """Another quantiser on the first dimensions, scaled to unit length.

    A collection still keeps whole vectors, so candidates found by short codes are re-ranked by all
    of their dimensions.

    Parameters
    ----------
    inner : Quantizer
        Not fitted, or a `SignQuantizer`.
    kept_dim : int
        Dimensions to keep.
    """

    kind = "matryoshka"

    def __init__(self, inner: Quantizer, kept_dim: int) -> None:
        super().__init__()
        if not isinstance(inner, Quantizer):
            raise TypeError(f"inner must be a quantizer, got {inner!r}")
        if isinstance(inner, HeadQuantizer):
            raise TypeError(
                f"inner must be a quantizer that is fitted, not trained: a head's bits may leave "
                f"dimensions out, and HeadQuantizer.truncated leaves bits out; got {inner!r}"
            )
        self._inner = inner
        self._kept_dim = checks.integer(kept_dim, "kept_dim", 1)
        self._sample_rows, self._seed = inner._sample_rows, inner._seed
        # What is true of the one is true of the other.
        self.n_factors, self.hamming = inner.n_factors, inner.hamming  # type: ignore[misc]

    def _learn(self, sample: Floats, threads: int | None, progress: bool) -> None:
        bits = self.bits_of(sample.shape[1])
        self._inner.metric = self.metric
        cut = _cut(sample, self._kept_dim).astype(np.float32)
        self._inner._learn(cut, threads, progress)
        self.dim, self.n_bits = sample.shape[1], bits

    def bits_of(self, dim: int) -> int:
        if self._kept_dim > dim:
            raise ValueError(
                f"kept_dim must be at most the {dim} dimensions there are, got {self._kept_dim}"
            )
        return self._inner.bits_of(self._kept_dim)

    def _encode_block(self, rows: NDArray[Any], name: str, first_row: int, n_cells: int) -> Encoded:
        # In float64: scaled values of float16 may be too small for it.
        cut = _cut(as_float32(rows, name, first_row), self._kept_dim)
        return self._inner._encode_block(cut, name, first_row, n_cells)

    def _seen(self, queries: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._inner._seen(_cut(queries, self._kept_dim))

    def _weigh(
        self, queries: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._inner._weigh(queries)

    def _parameters(self) -> dict[str, Any]:
        return {"inner": self._inner._description(), "kept_dim": self._kept_dim}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return self._inner.arrays()

    def _set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        inner = self._inner
        inner.dim, inner.n_bits, inner.metric = self._kept_dim, self.n_bits, self.metric
        inner._set_arrays(arrays)
