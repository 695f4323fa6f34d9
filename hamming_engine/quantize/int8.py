"""Vectors as int8, for re-ranking: a quarter of float32."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from .base import NotFittedError, finite_sample, taken

_LEVELS = 255  # int8 values -128 to 127


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

    def decode(self, values: NDArray[np.int8]) -> NDArray[np.float32]:
        """What (n, dim) int8 values stand for."""
        return (self.offset + self.scale * values.astype(np.float32)).astype(np.float32)


class Int8Quantizer:
    """Vectors as int8, per dimension, calibrated on a sample.

    For vectors that are kept outside of a collection; a collection with ``vectors="int8"``
    calibrates each append by the range of its own rows.

    Parameters
    ----------
    calibration : {"range", "quantile"}
        Whether the extremes of each dimension in the sample get the extremes of int8, or its
        quantiles, beyond which values are clipped: finer steps where a few values are far out.
    quantile : float
        Share of the values between the two quantiles, above 0.5 and below 1.
    sample_rows : int
        Rows to fit to, at most.
    seed : int
        Of the sample.

    Attributes
    ----------
    scale : Int8Scale or None
        After `fit`.
    """

    def __init__(
        self,
        calibration: str = "range",
        *,
        quantile: float = 0.9999,
        sample_rows: int = 100_000,
        seed: int = 0,
    ) -> None:
        self._calibration = checks.choice(calibration, "calibration", ("range", "quantile"))
        if not isinstance(quantile, (float, np.floating)) or not 0.5 < quantile < 1:
            raise ValueError(f"quantile must be a float above 0.5 and below 1, got {quantile!r}")
        self._quantile = float(quantile)
        self._sample_rows = checks.integer(sample_rows, "sample_rows", 1)
        self._seed = checks.integer(seed, "seed", 0)
        self.scale: Int8Scale | None = None

    def fit(self, vectors: ArrayLike | Iterator[Any]) -> Self:
        """Learn the scale of each dimension; arguments and errors as for other quantisers."""
        sample = finite_sample(vectors, self._sample_rows, self._seed)
        if self._calibration == "quantile":
            tail = (1 - self._quantile) / 2
            sample = np.quantile(sample, [tail, 1 - tail], axis=0)
        self.scale = Int8Scale.fit([sample])
        return self

    def encode(self, vectors: ArrayLike) -> NDArray[np.int8]:
        """The nearest int8 values of (n, dim) vectors; values out of range are clipped."""
        scale = self._fitted()
        rows = checks.floats(vectors, "vectors", len(scale.scale))
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise ValueError(f"vectors row {bad[0]} holds NaN or infinity")
        return scale.encode(rows)

    def decode(self, values: NDArray[np.int8]) -> NDArray[np.float32]:
        """What (n, dim) int8 values stand for, as float32."""
        scale = self._fitted()
        given = checks.array(values, "values")
        if given.dtype != np.int8 or given.ndim != 2 or given.shape[1] != len(scale.scale):
            raise ValueError(
                f"values must be int8 of shape (n, {len(scale.scale)}), got {given.dtype} of shape "
                f"{given.shape}"
            )
        return scale.decode(given)

    def save(self, path: Any) -> None:
        """Write what it has learnt to an ``.npz``; `load` reads it."""
        scale = self._fitted()
        with checks.path(path).open("wb") as file:
            np.savez(file, allow_pickle=False, scale=scale.scale, offset=scale.offset)

    @classmethod
    def load(cls, path: Any) -> Self:
        """Read one that `save` wrote; ``ValueError`` where the file holds none."""
        content = io.BytesIO(checks.path(path).read_bytes())
        try:
            with np.load(content, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            shape = arrays["scale"].shape if "scale" in arrays else ()
            if len(shape) != 1:
                raise ValueError(f"its arrays are {sorted(arrays)}, scale of shape {shape}")
            known = taken(arrays, {"scale": shape, "offset": shape})
        except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} holds no Int8Quantizer: {error}") from error
        quantizer = cls()
        quantizer.scale = Int8Scale(known["scale"], known["offset"])
        return quantizer

    def _fitted(self) -> Int8Scale:
        if self.scale is None:
            raise NotFittedError("Int8Quantizer must be fitted before it is used")
        return self.scale
