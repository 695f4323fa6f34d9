"""A trained head as a quantiser: signs of a linear map, whose values weigh float queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..codes import pack_rows
from ..kernels.launch import usable_threads
from .base import METRICS, NO_FACTORS, Encoded, Floats, NotFittedError, Quantizer, as_float32, taken
from .descent import Descent
from .projections import Frame, Residuals

N_SWEEPS = 4  # of descent; few rows ever need more
HOW_TO_GET_ONE = (
    "a head is trained: take BinaryHead.to_quantizer of hamming_engine.training, or "
    "HeadQuantizer.from_head"
)


class HeadQuantizer(Quantizer):
    """Signs of ``frame u + bias``, where u is a vector, scaled to unit length for the cosine.

    Bits may be coupled: then they are the signs of ``frame u + bias - coupling b``, where b are the
    bits themselves, found by turning one after another until each agrees with its sign. With fewer
    dimensions than bits that is anti-sparse coding (Jégou, Furon, Fuchs: "Anti-sparse coding for
    approximate nearest neighbor search", ICASSP 2012), and what is settled is the state of a
    network of Hopfield's ("Neural networks and physical systems with emergent collective
    computational abilities", PNAS 1982).

    Frame and bias come from training (`hamming_engine.training.BinaryHead`). Asymmetric search
    weighs queries by what they are before their signs, as training did: ``frame q + bias``, less
    what the other bits answer for where they are coupled.

    What is fitted here is the scale of scores: a factor and a constant, so that rows scored by
    codes alone against themselves and against others have the right scores on average.

    `from_head` makes one; the constructor makes one without a head, for files to be read into.

    Parameters
    ----------
    sample_rows : int
        Rows to fit the scale to, at most. It takes about ``8 * (dim + n_bits)`` bytes for each.
    seed : int
        Of the sample.
    """

    kind = "head"

    def __init__(self, *, sample_rows: int = 20_000, seed: int = 0) -> None:
        super().__init__()
        self._sample_rows = checks.integer(sample_rows, "sample_rows", 1)
        self._seed = checks.integer(seed, "seed", 0)

    @classmethod
    def from_head(
        cls,
        frame: ArrayLike,
        bias: ArrayLike,
        vectors: Any,
        *,
        coupling: ArrayLike | None = None,
        metric: str = "cosine",
        sample_rows: int = 20_000,
        seed: int = 0,
        threads: int | None = None,
    ) -> Self:
        """The quantiser of a trained head, the scale of its scores fitted to a sample of vectors.

        Parameters
        ----------
        frame : (n_bits, dim) float16, float32 or float64
        bias : (n_bits,) float16, float32 or float64
        vectors : (n, dim) float16, float32 or float64, or an iterator of such blocks
            See `fit`.
        coupling : (n_bits, n_bits) float16, float32 or float64, optional
            Symmetric, with zeros on its diagonal.
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
        quantizer.take_head(frame, bias, metric, coupling)
        return quantizer.fit(vectors, metric=metric, threads=threads)

    def take_head(
        self,
        frame: ArrayLike,
        bias: ArrayLike,
        metric: str,
        coupling: ArrayLike | None = None,
        n_bits: int | None = None,
    ) -> None:
        """Encode by this head from now on; scores are as large as its values until `fit`.

        Of coupled bits only the first ``n_bits`` may be wanted; the others are settled with them.
        """
        rows = as_float32(checks.floats(frame, "frame"), "frame", 0)
        offsets = as_float32(checks.floats(bias, "bias", len(rows)), "bias", 0)
        if len(offsets) != 1:
            raise ValueError(f"bias must have shape ({len(rows)},), got {np.shape(bias)}")
        coupled = None
        if coupling is not None:
            coupled = as_float32(checks.floats(coupling, "coupling", len(rows)), "coupling", 0)
            if len(coupled) != len(rows) or (coupled != coupled.T).any() or np.diag(coupled).any():
                raise ValueError(
                    f"coupling must be symmetric, ({len(rows)}, {len(rows)}), with zeros on its "
                    f"diagonal, got shape {coupled.shape}"
                )
        self.metric = checks.choice(metric, "metric", METRICS)
        self.dim = rows.shape[1]
        self.n_bits = len(rows) if n_bits is None else n_bits
        self._frame, self._bias, self._coupling = Frame(rows), checks.frozen(offsets[0]), coupled
        self._descent = None if coupled is None else Descent(coupled, N_SWEEPS)
        self._scale = checks.frozen(np.array([1, 0], np.float32))

    def fit(
        self,
        vectors: Any,
        *,
        metric: str = "cosine",
        threads: int | None = None,
        progress: bool = False,
    ) -> Self:
        """Fit the scale of scores to a sample of the rows that will be encoded; the head stays.

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
        values = self._coordinates(units, "vectors", 0, n_cells)
        # Means over all pairs are products of means.
        middle = units.mean(axis=0, dtype=np.float64)
        square = np.einsum("ij,ij->", units, units, dtype=np.float64) / len(rows)
        of_others = middle @ middle
        if self.metric == "l2":  # 2 q . x - |x|^2: the query's own square comes off elsewhere
            of_others = 2 * of_others - square
        values = self._settled(values, n_cells)
        bits = values > 0
        own = np.abs(values).sum(dtype=np.float64) / len(rows)
        others = values.mean(axis=0, dtype=np.float64) @ (2 * bits.mean(axis=0) - 1)
        # Rows that are all alike have no scale.
        factor = (square - of_others) / (own - others) if own > others else 0.0
        factor = factor if factor > 0 else 1.0
        with np.errstate(over="ignore"):
            scale = np.array([factor, of_others - factor * others], np.float32)
        if not np.isfinite(scale).all():
            raise ValueError("vectors are too large: the scale of scores does not fit into float32")
        self._scale = checks.frozen(scale)

    def bits_of(self, dim: int) -> int:
        self._check_fitted()
        if dim != self.dim:
            raise ValueError(f"the head takes vectors of {self.dim} dimensions, got {dim}")
        return self.n_bits

    def truncated(self, n_bits: int) -> HeadQuantizer:
        """The quantiser of the first bits, for heads trained so that these are good by themselves.

        It orders rows as one made anew would. The scale of its scores is a guess, by the lengths of
        the rows of the frame; `fit` measures it.

        Parameters
        ----------
        n_bits : int
            How many to keep.

        Raises
        ------
        NotFittedError, TypeError, ValueError
        """
        self._check_fitted()
        if checks.integer(n_bits, "n_bits", 1) > self.n_bits:
            raise ValueError(f"n_bits must be at most the head's {self.n_bits}, got {n_bits}")
        short = HeadQuantizer(sample_rows=self._sample_rows, seed=self._seed)
        if self._coupling is None:
            short.take_head(self._frame.rows[:n_bits], self._bias[:n_bits], self.metric)
        else:
            short.take_head(self._frame.rows, self._bias, self.metric, self._coupling, n_bits)
        lengths = np.linalg.norm(self._frame.rows.astype(np.float64), axis=1)
        kept = lengths[:n_bits].sum()
        factor = self._scale[0] * (lengths[: self.n_bits].sum() / kept if kept > 0 else 1)
        short._scale = checks.frozen(np.array([factor, self._scale[1]], np.float32))
        return short

    def _units(self, rows: NDArray[Any], name: str, first_row: int, n_cells: int) -> Floats:
        """What the head sees of rows."""
        if self.metric != "cosine":
            return as_float32(rows, name, first_row)
        nothing = checks.frozen(np.zeros(self.dim, np.float32))
        return Residuals(rows, nothing, "cosine", n_cells, name, first_row).units

    def _settled(self, coordinates: Floats, n_cells: int) -> Floats:
        """Values whose signs are the bits, (n, n_bits)."""
        if self._descent is None:
            return coordinates
        _, settled = self._descent.improve(coordinates, None, n_cells)
        return np.ascontiguousarray(settled[:, : self.n_bits])

    def _coordinates(self, units: Floats, name: str, first_row: int, n_cells: int) -> Floats:
        """What the head makes of vectors, before bits are settled."""
        with np.errstate(over="ignore", invalid="ignore"):
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
        settled = self._settled(coordinates, n_cells)
        codes = pack_rows(settled, name, first_row=first_row, threads=n_cells)
        return Encoded(codes, NO_FACTORS)

    def _weigh(
        self, queries: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        # With "l2" they come doubled.
        seen = queries / 2 if self.metric == "l2" else queries
        values = self._frame.products(seen) + self._bias.astype(np.float64)
        if self._descent is not None:
            values = self._settled(as_float32(values, "queries", 0), 1).astype(np.float64)
        factor, constant = self._scale.astype(np.float64)
        return factor * values, np.full(len(queries), constant)

    def _parameters(self) -> dict[str, Any]:
        return {"sample_rows": self._sample_rows, "seed": self._seed}

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise NotFittedError(f"{type(self).__name__} has no head: {HOW_TO_GET_ONE}")

    def arrays(self) -> dict[str, NDArray[Any]]:
        if not self.is_fitted:
            return {}
        found = {"frame": self._frame.rows, "bias": self._bias, "scale": self._scale}
        return found if self._coupling is None else {**found, "coupling": self._coupling}

    def _set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        n_rows = self.n_bits
        if "coupling" in arrays:  # of which more bits may be settled than kept
            n_rows = max(n_rows, len(np.atleast_1d(arrays["coupling"])))
        shapes: dict[str, tuple[int, ...]] = {
            "frame": (n_rows, self.dim),
            "bias": (n_rows,),
            "scale": (2,),
        }
        if "coupling" in arrays:
            shapes["coupling"] = n_rows, n_rows
        found = taken(arrays, shapes)
        head = found["frame"], found["bias"], self.metric, found.get("coupling")
        self.take_head(*head, self.n_bits)
        self._scale = found["scale"]
