"""Random hyperplanes as a quantiser: any number of bits, nothing to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..sketch import SimHash
from .base import NO_FACTORS, Encoded, Floats, Quantizer, as_float32


class SimHashQuantizer(Quantizer):
    """The codes of `hamming_engine.sketch.SimHash`, for collections.

    Hamming distance estimates the angle between vectors (Charikar 2002); ``n_bits`` may be more or
    fewer than the dimensions.

    Parameters
    ----------
    n_bits : int
    seed : int
    """

    kind = "simhash"
    learns = False
    _sample_rows = 1

    def __init__(self, n_bits: int = 64, *, seed: int = 0) -> None:
        super().__init__()
        self._hash = SimHash(n_bits, seed)

    def _learn(self, sample: Floats, threads: int | None, progress: bool) -> None:
        self.dim, self.n_bits = sample.shape[1], self._hash.n_bits

    def bits_of(self, dim: int) -> int:
        return self._hash.n_bits

    def _encode_block(self, rows: NDArray[Any], name: str, first_row: int, n_cells: int) -> Encoded:
        checked = as_float32(rows, name, first_row)
        return Encoded(self._hash.encode(checked, threads=n_cells), NO_FACTORS)

    def _weigh(
        self, queries: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        # For a unit vector x and Gaussian normals p the mean of sign(p . x) p is sqrt(2 / pi) x.
        normals = self._hash.normals(self.dim)
        weights = queries @ normals.T * (np.sqrt(np.pi / 2) / self.n_bits)
        return weights, np.zeros(len(queries))

    def _parameters(self) -> dict[str, Any]:
        return {"n_bits": self._hash.n_bits, "seed": self._hash.seed}
