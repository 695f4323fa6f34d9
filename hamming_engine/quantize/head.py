"""A trained head as a quantiser: signs of a linear map, and a decoder for float queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..codes import pack_rows
from ..kernels.launch import usable_threads
from .base import METRICS, NO_FACTORS, Encoded, Floats, NotFittedError, Quantizer, as_float32, taken
from .projections import Frame, Residuals

_RIDGE = 1e-3  # as for local search: keeps decoders of small samples, and of constant bits, tame
HOW_TO_GET_ONE = (
    "a head is trained: take BinaryHead.to_quantizer of hamming_engine.training, or "
    "HeadQuantizer.from_head"
)


class HeadQuantizer(Quantizer):
    """Signs of ``frame u + bias``, where u is a vector, scaled to unit length for the cosine.

    Frame and bias come from training (`hamming_engine.training.BinaryHead`). What is fitted here is
    the decoder by which asymmetric search weighs queries: the linear map from signs to vectors with
    the least squared error over a sample. With "l2" it estimates squared lengths of vectors too.

    `from_head` makes one; the constructor makes one without a head, for files to be read into.

    Parameters
    ----------
    sample_rows : int
        Rows to fit the decoder to, at most. It takes about ``20 * (dim + n_bits)`` bytes for each.
    seed : int
        Of the sample.
    """

    kind = "head"

    def __init__(self, *, sample_rows: int = 20_000, seed: int = 0) -> None:
        super().__init__()
        self._sample_rows = checks.integer(sample_rows, "sample_rows", 2)
        self._seed = checks.integer(seed, "seed", 0)

    @classmethod
    def from_head(
        cls,
        frame: ArrayLike,
        bias: ArrayLike,
        vectors: Any,
        *,
        metric: str = "cosine",
        sample_rows: int = 20_000,
        seed: int = 0,
        threads: int | None = None,
    ) -> Self:
        """The quantiser of a trained head, its decoder fitted to a sample of vectors.

        Parameters
        ----------
        frame : (n_bits, dim) float16, float32 or float64
        bias : (n_bits,) float16, float32 or float64
        vectors : (n, dim) float16, float32 or float64, or an iterator of such blocks
            See `fit`.
        metric : {"cosine", "dot", "l2"}
        sample_rows, seed : int
            See the class.
        threads : int, optional
            At most this many threads; all by default.

        Raises
        ------
        TypeError, ValueError
            Where the arrays do not go together, or are not finite.
        """
        quantizer = cls(sample_rows=sample_rows, seed=seed)
        quantizer.take_head(frame, bias, metric)
        return quantizer.fit(vectors, metric=metric, threads=threads)

    def take_head(self, frame: ArrayLike, bias: ArrayLike, metric: str) -> None:
        """Encode by this head from now on; there is no decoder until `fit`."""
        rows = as_float32(checks.floats(frame, "frame"), "frame", 0)
        offsets = as_float32(checks.floats(bias, "bias", len(rows)), "bias", 0)
        if len(offsets) != 1:
            raise ValueError(f"bias must have shape ({len(rows)},), got {np.shape(bias)}")
        self.metric = checks.choice(metric, "metric", METRICS)
        self.n_bits, self.dim = rows.shape
        self._frame, self._bias = Frame(rows), checks.frozen(offsets[0])

    def fit(
        self,
        vectors: Any,
        *,
        metric: str = "cosine",
        threads: int | None = None,
        progress: bool = False,
    ) -> Self:
        """Fit the decoder to a sample of the rows that will be encoded; the head stays.

        Parameters
        ----------
        vectors, threads, progress
            See `Quantizer.fit`.
        metric : {"cosine", "dot", "l2"}
            The one that the head was trained for.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            Where there is no head.
        TypeError, ValueError
        """
        self._check_fitted()
        if checks.choice(metric, "metric", METRICS) != self.metric:
            raise ValueError(f"metric must be {self.metric!r}, the head's own, got {metric!r}")
        return super().fit(vectors, metric=metric, threads=threads, progress=progress)

    def _learn(self, sample: Floats, threads: int | None, progress: bool) -> None:
        rows = checks.floats(sample, "vectors", self.dim)
        n_cells = usable_threads(threads)
        units = self._units(rows, "vectors", 0, n_cells)
        signs = np.where(
            self._coordinates(units, "vectors", 0, n_cells) > 0, np.float32(1), np.float32(-1)
        )
        targets = units.astype(np.float64)
        if self.metric == "l2":
            targets = np.column_stack([targets, np.square(targets).sum(axis=1)])
        middle, balance = targets.mean(axis=0), signs.mean(axis=0, dtype=np.float64)
        gram = (signs.T @ signs).astype(np.float64) / len(rows) - np.outer(balance, balance)
        gram[np.diag_indices(len(gram))] += _RIDGE
        products = signs.T @ targets / len(rows) - np.outer(balance, middle)
        decoder = np.linalg.solve(gram, products)
        with np.errstate(over="ignore"):
            decoded = np.vstack([decoder, middle - balance @ decoder]).astype(np.float32)
        if not np.isfinite(decoded).all():
            raise ValueError("vectors are too large: their decoder does not fit into float32")
        self._take_decoder(
            decoded[:-1, : self.dim], decoded[-1, : self.dim], decoded[:, self.dim :]
        )

    def _take_decoder(self, decoder: Floats, center: Floats, squares: Floats) -> None:
        """Take (n_bits, dim), (dim,) and, with "l2", (n_bits + 1, 1)."""
        self._decoder, self._center = Frame(decoder), checks.frozen(center)
        self._squares = checks.frozen(squares)

    def bits_of(self, dim: int) -> int:
        self._check_fitted()
        if dim != self.dim:
            raise ValueError(f"the head takes vectors of {self.dim} dimensions, got {dim}")
        return self.n_bits

    def truncated(self, n_bits: int, vectors: Any, *, threads: int | None = None) -> HeadQuantizer:
        """The quantiser of the first bits, for heads trained so that these are good by themselves.

        Parameters
        ----------
        n_bits : int
            How many to keep.
        vectors : (n, dim) float16, float32 or float64, or an iterator of such blocks
            See `fit`: fewer bits have another decoder.
        threads : int, optional
            At most this many threads; all by default.

        Raises
        ------
        NotFittedError, TypeError, ValueError
        """
        self._check_fitted()
        if checks.integer(n_bits, "n_bits", 1) > self.n_bits:
            raise ValueError(f"n_bits must be at most the head's {self.n_bits}, got {n_bits}")
        return HeadQuantizer.from_head(
            self._frame.rows[:n_bits],
            self._bias[:n_bits],
            vectors,
            metric=self.metric,
            sample_rows=self._sample_rows,
            seed=self._seed,
            threads=threads,
        )

    def _units(self, rows: NDArray[Any], name: str, first_row: int, n_cells: int) -> Floats:
        """What the head sees of rows."""
        if self.metric != "cosine":
            return as_float32(rows, name, first_row)
        nothing = checks.frozen(np.zeros(self.dim, np.float32))
        return Residuals(rows, nothing, "cosine", n_cells, name, first_row).units

    def _coordinates(self, units: Floats, name: str, first_row: int, n_cells: int) -> Floats:
        """Whose signs are the bits."""
        with np.errstate(over="ignore"):
            coordinates: Floats = self._frame.project(units, n_cells) + self._bias
        bad = np.flatnonzero(~np.isfinite(coordinates).all(axis=1))
        if bad.size:
            raise ValueError(
                f"{name} row {first_row + bad[0]} is too large: what the head makes of it does not "
                f"fit into float32"
            )
        return coordinates

    def _encode_block(self, rows: NDArray[Any], name: str, first_row: int, n_cells: int) -> Encoded:
        units = self._units(rows, name, first_row, n_cells)
        coordinates = self._coordinates(units, name, first_row, n_cells)
        codes = pack_rows(coordinates, name, first_row=first_row, threads=n_cells)
        return Encoded(codes, NO_FACTORS)

    def _weigh(
        self, queries: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        weights = self._decoder.products(queries)
        constants = queries @ self._center.astype(np.float64)
        if self.metric == "l2":
            squares = self._squares.astype(np.float64).ravel()
            weights, constants = weights - squares[:-1], constants - squares[-1]
        return weights, constants

    def _parameters(self) -> dict[str, Any]:
        return {"sample_rows": self._sample_rows, "seed": self._seed}

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise NotFittedError(f"{type(self).__name__} has no head: {HOW_TO_GET_ONE}")

    def arrays(self) -> dict[str, NDArray[Any]]:
        if not self.is_fitted:
            return {}
        found = {
            "frame": self._frame.rows,
            "bias": self._bias,
            "decoder": self._decoder.rows,
            "center": self._center,
        }
        return {**found, "squares": self._squares} if self.metric == "l2" else found

    def _set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        shapes: dict[str, tuple[int, ...]] = {
            "frame": (self.n_bits, self.dim),
            "bias": (self.n_bits,),
            "decoder": (self.n_bits, self.dim),
            "center": (self.dim,),
        }
        if self.metric == "l2":
            shapes["squares"] = (self.n_bits + 1, 1)
        found = taken(arrays, shapes)
        self._frame, self._bias = Frame(found["frame"]), found["bias"]
        nothing = np.zeros((self.n_bits + 1, 0), np.float32)
        self._take_decoder(found["decoder"], found["center"], found.get("squares", nothing))
