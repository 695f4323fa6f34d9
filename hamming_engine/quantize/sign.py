"""Quantisers that look at each dimension alone: its sign, or on which side of a threshold it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..codes import pack_rows
from .base import NO_FACTORS, Encoded, Floats, Quantizer, as_float32, taken, unit_length


class SignQuantizer(Quantizer):
    """One bit a dimension: 1 where the value is above zero. Nothing is learnt.

    Parameters
    ----------
    dim : int, optional
        Of the vectors that come in, as many bits come out; set by `fit` if not here.
    """

    kind = "sign"
    learns = False

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        if dim is not None:
            self.dim = self.n_bits = checks.integer(dim, "dim", 1)

    _sample_rows = 1

    def _learn(self, sample: Floats, threads: int | None, progress: bool) -> None:
        self.dim = self.n_bits = sample.shape[1]

    def bits_of(self, dim: int) -> int:
        return dim

    def _encode_block(self, rows: NDArray[Any], name: str, first_row: int, n_cells: int) -> Encoded:
        codes = pack_rows(rows, name, first_row=first_row, threads=n_cells)
        return Encoded(codes, NO_FACTORS)

    def _weigh(
        self, queries: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        # A code stands for the vector of +-1 / sqrt(dim), which has length 1.
        square = -1.0 if self.metric == "l2" else 0.0
        return queries / np.sqrt(self.dim), np.full(len(queries), square)

    def _parameters(self) -> dict[str, Any]:
        return {}


class ThresholdQuantizer(Quantizer):
    """One bit a dimension: 1 where the value is above its mean or median.

    For embeddings whose dimensions are not balanced around zero, which signs turn into bits that
    are nearly always the same.

    Parameters
    ----------
    threshold : {"mean", "median"}
        Medians balance every bit; means reconstruct vectors better.
    sample_rows : int
        Rows to fit to, at most. Fitting takes about 12 bytes for each of their values.
    seed : int
        Of the sample.
    """

    kind = "threshold"

    def __init__(
        self, threshold: str = "mean", *, sample_rows: int = 20_000, seed: int = 0
    ) -> None:
        super().__init__()
        self.threshold = checks.choice(threshold, "threshold", ("mean", "median"))
        self._sample_rows = checks.integer(sample_rows, "sample_rows", 1)
        self._seed = checks.integer(seed, "seed", 0)

    def _learn(self, sample: Floats, threads: int | None, progress: bool) -> None:
        rows = unit_length(sample.astype(np.float64)) if self.metric == "cosine" else sample
        if self.threshold == "mean":
            center = rows.mean(axis=0, dtype=np.float64)
        else:
            center = np.median(rows, axis=0)
        self._center = checks.frozen(np.asarray(center, np.float32))
        # What a bit stands for, on either side: the mean distance from the threshold.
        self._spread = checks.frozen(np.abs(rows - self._center).mean(axis=0).astype(np.float32))
        self.dim = self.n_bits = sample.shape[1]

    def bits_of(self, dim: int) -> int:
        return dim

    def _encode_block(self, rows: NDArray[Any], name: str, first_row: int, n_cells: int) -> Encoded:
        block = as_float32(rows, name, first_row).astype(np.float64)
        if self.metric == "cosine":
            block = unit_length(block)
        codes = pack_rows(block - self._center, name, first_row=first_row, threads=n_cells)
        return Encoded(codes, NO_FACTORS)

    def _weigh(
        self, queries: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        around, constants = around_center(queries, self._center, self._spread, self.metric)
        return around * self._spread, constants

    def _parameters(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold,
            "sample_rows": self._sample_rows,
            "seed": self._seed,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"center": self._center, "spread": self._spread} if self.is_fitted else {}

    def _set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        found = taken(arrays, {"center": (self.dim,), "spread": (self.dim,)})
        self._center, self._spread = found["center"], found["spread"]


def around_center(
    queries: NDArray[np.float64], center: Floats, spread: Floats, metric: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What multiplies the decoded residuals of rows, and constants, for rows without factors.

    A row is decoded to the centre and a residual of the length of ``spread``, the same for all
    rows. With "l2" the centre has to be taken from the query too: what is left of a row's squared
    length is its product with the centre.
    """
    around, constants = queries, queries @ center.astype(np.float64)
    if metric == "l2":
        around = queries - 2 * center.astype(np.float64)
        constants -= np.square([*center, *spread], dtype=np.float64).sum()
    return around, constants
