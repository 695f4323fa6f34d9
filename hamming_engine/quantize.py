"""Floats to codes, and to the int8 vectors that candidates are re-ranked with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codes import pack_rows

_LEVELS = 255  # int8 values -128 to 127


@dataclass(frozen=True)
class SignQuantizer:
    """One bit a dimension: 1 where the value is above zero.

    Attributes
    ----------
    dim : int
        Of the vectors that come in; as many bits come out.
    """

    dim: int

    @property
    def n_bits(self) -> int:
        return self.dim

    def encode(
        self,
        vectors: NDArray[Any],
        name: str,
        *,
        first_row: int = 0,
        threads: int | None = None,
    ) -> NDArray[np.uint64]:
        """Codes of (n, dim) floats, which errors call ``name`` from ``first_row`` on."""
        return pack_rows(vectors, name, first_row=first_row, threads=threads)

    def to_json(self) -> dict[str, Any]:
        """What a collection stores of it."""
        return {"kind": "sign"}


@dataclass(frozen=True)
class Int8Scale:
    """Vectors as int8: ``offset + scale * value``, per dimension.

    Every value lies between the smallest and largest seen in its dimension, so none is clipped, and
    the error is half a step, 1/510 of that range, plus float32 rounding.

    Attributes
    ----------
    scale, offset : (dim,) float32
    """

    scale: NDArray[np.float32]
    offset: NDArray[np.float32]

    @classmethod
    def fit(cls, blocks: Iterable[NDArray[Any]]) -> Int8Scale:
        """Take the range of each dimension over blocks of finite vectors."""
        bounds: tuple[NDArray[Any], NDArray[Any]] | None = None
        for block in blocks:
            found = block.min(axis=0).astype(np.float64), block.max(axis=0).astype(np.float64)
            if bounds is not None:
                found = np.minimum(bounds[0], found[0]), np.maximum(bounds[1], found[1])
            bounds = found
        if bounds is None:
            raise ValueError("blocks must not be empty")
        low, high = bounds
        scale = ((high - low) / _LEVELS).astype(np.float32)
        offset = low - scale * float(np.iinfo(np.int8).min)
        return cls(scale, offset.astype(np.float32))

    def encode(self, vectors: NDArray[Any]) -> NDArray[np.int8]:
        """The nearest int8 values of (n, dim) vectors."""
        step = np.where(self.scale > 0, self.scale, 1).astype(np.float64)
        values = np.rint((vectors - self.offset.astype(np.float64)) / step)
        limits = np.iinfo(np.int8)
        return np.clip(values, limits.min, limits.max).astype(np.int8)
