"""Quantisers that take signs after a change of coordinates: rotations, ITQ, RaBitQ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..codes import pack_rows
from ..kernels.project import CENTRE, HADAMARD, LENGTH, N_MEASURES, PROJECT, SHIFT, SQUARE
from ..optional import progress_bar
from .base import NO_FACTORS, Encoded, Floats, Quantizer, as_float32, taken
from .sign import around_center

_MAX_DENSE_DIM = 2048  # a rotation matrix of float32 takes 16 MiB there; beyond, the fast transform
_HADAMARD_ROUNDS = 4


class Frame:
    """A matrix with a row for each bit, laid out for all that is done with it.

    Attributes
    ----------
    rows : (n_bits, dim) float32
    """

    def __init__(self, rows: NDArray[Any]) -> None:
        self.rows: Floats = checks.frozen(rows.astype(np.float32, copy=False))
        self._columns = checks.frozen(self.rows.T)
        self._float64 = self.rows.T.astype(np.float64)

    def project(self, vectors: Floats, n_cells: int) -> Floats:
        """Products of (n, dim) vectors with all rows, each summed in an order of its own."""
        out = np.empty((len(vectors), len(self.rows)), np.float32)
        work = len(vectors) * self.rows.size / 8
        PROJECT(n_cells, checks.frozen(vectors), self._columns, out, work=work)
        return out

    def products(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same in float64, for queries."""
        return np.asarray(vectors @ self._float64)


class Residuals:
    """What is left of rows without a centre, scaled to unit length; how long it was, and more.

    Attributes
    ----------
    units : (n, dim) float32
        Residuals scaled to unit length.
    squares, lengths, shifts : (n,) float64
        Squared lengths of rows, lengths of residuals, and residuals times the centre; rows scaled
        to unit length first for the cosine.
    name, first_row
        What errors call the rows.
    """

    def __init__(
        self,
        rows: NDArray[Any],
        center: Floats,
        metric: str,
        n_cells: int,
        name: str = "vectors",
        first_row: int = 0,
    ) -> None:
        self.name, self.first_row = name, first_row
        block = as_float32(rows, name, first_row)
        self.units = np.empty(block.shape, np.float32)
        measures = np.empty((len(block), N_MEASURES), np.float64)
        CENTRE(n_cells, block, center, metric == "cosine", self.units, measures, work=block.size)
        self.squares = measures[:, SQUARE]
        self.lengths = measures[:, LENGTH]
        self.shifts = measures[:, SHIFT]


def corrections(
    residuals: Residuals,
    products: NDArray[np.float64],
    center_products: NDArray[np.float64],
    metric: str,
) -> Floats:
    """The two factors of each row, by which its score is ``f * (w . s) + g``.

    With a residual r of unit length, decoded to the vector v that belongs to signs s, and its
    length n: f = n / (r . v), so that the decoded residual, f v, has the right product with the
    residual itself (RaBitQ, section 3.2.1). What that leaves, n r - f v, is known while encoding,
    and so is its product with the centre, which the average query is near to: g.

    Parameters
    ----------
    residuals : Residuals
    products : (n,) float64
        r . v
    center_products : (n,) float64
        Of the centre and v.
    metric : str
    """
    usable = products > 0
    f = np.where(usable, residuals.lengths / np.where(usable, products, 1), 0.0)
    g = residuals.shifts - f * center_products
    if metric == "l2":
        g = 2 * g - residuals.squares
    with np.errstate(over="ignore"):
        factors = np.stack([f, g], axis=1).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(factors).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{residuals.name} row {residuals.first_row + bad[0]} is too large: its factors do not "
            f"fit into float32"
        )
    return factors


class _Projected(Quantizer):
    """Signs of the coordinates of a residual in another frame.

    ``_center`` is (dim,), ``_frame`` (n_bits, dim) with orthonormal rows or columns, or None for
    the fast rotation by ``_signs``; ``_spread`` (n_bits,) says what each bit stands for.
    """

    def __init__(self, sample_rows: int, seed: int) -> None:
        super().__init__()
        self._sample_rows = checks.integer(sample_rows, "sample_rows", 2)
        self._seed = checks.integer(seed, "seed", 0)
        self._center = np.zeros(0, np.float32)
        self._frame: Frame | None = None
        self._spread: Floats | None = None

    def bits_of(self, dim: int) -> int:
        return dim

    def _coordinates(self, units: Floats, n_cells: int) -> Floats:
        """Of vectors in the frame, (n, n_bits)."""
        assert self._frame is not None
        return self._frame.project(units, n_cells)

    def _encode_block(self, rows: NDArray[Any], name: str, first_row: int, n_cells: int) -> Encoded:
        residuals = Residuals(rows, self._center, self.metric, n_cells, name, first_row)
        coordinates = self._coordinates(residuals.units, n_cells)
        codes = pack_rows(coordinates, name, first_row=first_row, threads=n_cells)
        return Encoded(codes, self._factors(residuals, coordinates))

    def _factors(self, residuals: Residuals, coordinates: Floats) -> Floats:
        return NO_FACTORS

    def _decoded_queries(self, queries: NDArray[np.float64]) -> NDArray[np.float64]:
        """Queries in the frame: their products with what each bit stands for."""
        assert self._frame is not None
        return self._frame.products(queries)

    def _weigh(
        self, queries: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self._spread is None:
            return self._decoded_queries(queries), queries @ self._center.astype(np.float64)
        around, constants = around_center(queries, self._center, self._spread, self.metric)
        return self._decoded_queries(around) * self._spread, constants

    def arrays(self) -> dict[str, NDArray[Any]]:
        if not self.is_fitted:
            return {}
        frame = None if self._frame is None else self._frame.rows
        named = {"center": self._center, "frame": frame, "spread": self._spread}
        return {name: array for name, array in named.items() if array is not None}

    def _set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        shapes: dict[str, tuple[int, ...]] = {"center": (self.dim,)}
        if self._dense:
            shapes["frame"] = (self.n_bits, self.dim)
        if not self.n_factors:
            shapes["spread"] = (self.n_bits,)
        found = taken(arrays, shapes)
        self._center = found["center"]
        self._frame = Frame(found["frame"]) if "frame" in found else None
        self._spread = found.get("spread")

    @property
    def _dense(self) -> bool:
        """Whether the frame is a matrix."""
        return True


class RotationQuantizer(_Projected):
    """Signs after a random rotation, which spreads what a vector has over all bits alike.

    Up to 2,048 dimensions the rotation is a matrix drawn uniformly (QR of Gaussians: Mezzadri, "How
    to generate random matrices from the classical compact groups", 2007); beyond, four rounds of
    random signs and a fast Walsh-Hadamard transform of as many dimensions as the largest power of
    two has, from either end by turns.

    Parameters
    ----------
    seed : int
    """

    kind = "rotation"
    learns = False

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(2, seed)

    def _learn(self, sample: Floats, threads: int | None, progress: bool) -> None:
        dim = sample.shape[1]
        self._center = checks.frozen(np.zeros(dim, np.float32))
        # How far a coordinate of a random unit vector is from zero, about.
        self._spread = checks.frozen(np.full(dim, np.sqrt(2 / (np.pi * dim)), np.float32))
        self.dim = self.n_bits = dim
        self._frame = None
        if self._dense:
            rng = np.random.default_rng(self._seed)
            self._frame = Frame(random_rotation(dim, rng))

    @property
    def _dense(self) -> bool:
        return self.dim <= _MAX_DENSE_DIM

    @property
    def _signs(self) -> Floats:
        rng = np.random.default_rng(self._seed)
        signs = 1 - 2 * rng.integers(0, 2, (_HADAMARD_ROUNDS, self.dim))
        return checks.frozen(signs.astype(np.float32))

    def _coordinates(self, units: Floats, n_cells: int) -> Floats:
        if self._frame is not None:
            return super()._coordinates(units, n_cells)
        turned = units.copy()
        HADAMARD(n_cells, turned, self._signs, work=20 * turned.size)
        return turned

    def _decoded_queries(self, queries: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._frame is not None:
            return super()._decoded_queries(queries)
        return self._coordinates(queries.astype(np.float32), 1).astype(np.float64)

    def _parameters(self) -> dict[str, Any]:
        return {"seed": self._seed}


class ITQQuantizer(_Projected):
    """Signs after the rotation that brings vectors nearest to the corners of a cube.

    Iterative quantisation (Gong and Lazebnik: "Iterative quantization: a Procrustean approach to
    learning binary codes", CVPR 2011, section 2): the mean is removed, vectors are projected on
    their principal components where fewer bits than dimensions are asked for, and rotated; bits and
    rotation are fitted to each other in turns.

    Parameters
    ----------
    n_bits : int, optional
        At most the number of dimensions, which is the default.
    n_iterations : int
        Turns.
    sample_rows : int
        Rows to fit to, at most. Fitting takes about 16 bytes for each of their values.
    seed : int
        Of the sample and of the rotation to begin with.
    """

    kind = "itq"

    def __init__(
        self,
        n_bits: int | None = None,
        *,
        n_iterations: int = 30,
        sample_rows: int = 20_000,
        seed: int = 0,
    ) -> None:
        super().__init__(sample_rows, seed)
        self._wanted_bits = None if n_bits is None else checks.integer(n_bits, "n_bits", 1)
        self._n_iterations = checks.integer(n_iterations, "n_iterations", 1)

    def bits_of(self, dim: int) -> int:
        wanted = dim if self._wanted_bits is None else self._wanted_bits
        if wanted > dim:
            raise ValueError(f"n_bits must be at most the {dim} dimensions, got {wanted}")
        return wanted

    def _learn(self, sample: Floats, threads: int | None, progress: bool) -> None:
        n_bits = self.bits_of(sample.shape[1])
        self._center, residuals = centred(sample, self.metric)
        with progress_bar(progress, self._n_iterations, "iteration") as bar:
            rng = np.random.default_rng(self._seed)
            frame = itq_frame(residuals.units, n_bits, self._n_iterations, rng, bar.update)
        self._frame = Frame(frame)
        spread = (
            np.abs(residuals.units @ self._frame.rows.T).mean(axis=0) * residuals.lengths.mean()
        )
        self._spread = checks.frozen(spread.astype(np.float32))
        self.dim, self.n_bits = sample.shape[1], n_bits

    def _parameters(self) -> dict[str, Any]:
        return {
            "n_bits": self._wanted_bits,
            "n_iterations": self._n_iterations,
            "sample_rows": self._sample_rows,
            "seed": self._seed,
        }


class RaBitQuantizer(_Projected):
    """Signs of the rotated residual, and two floats a row that correct scores and bound errors.

    After Gao and Long: "RaBitQ: quantizing high-dimensional vectors with a theoretical error bound
    for approximate nearest neighbor search" (SIGMOD 2024), sections 3.1 and 3.2. The estimated
    product of a query and a row is unbiased over random rotations; a rotation learnt by ITQ has no
    such proof and finds more.

    Parameters
    ----------
    rotation : {"itq", "random"}
    n_iterations : int
        Of ITQ.
    sample_rows : int
        Rows to fit to, at most. Fitting takes about 16 bytes for each of their values.
    seed : int
        Of the sample and of the rotation.
    """

    kind = "rabitq"
    n_factors = 2

    def __init__(
        self,
        rotation: str = "itq",
        *,
        n_iterations: int = 30,
        sample_rows: int = 20_000,
        seed: int = 0,
    ) -> None:
        super().__init__(sample_rows, seed)
        self._rotation = checks.choice(rotation, "rotation", ("itq", "random"))
        self._n_iterations = checks.integer(n_iterations, "n_iterations", 1)

    def _learn(self, sample: Floats, threads: int | None, progress: bool) -> None:
        dim = sample.shape[1]
        self._center, residuals = centred(sample, self.metric)
        rng = np.random.default_rng(self._seed)
        if self._rotation == "random":
            frame = random_rotation(dim, rng)
        else:
            with progress_bar(progress, self._n_iterations, "iteration") as bar:
                frame = itq_frame(residuals.units, dim, self._n_iterations, rng, bar.update)
        self._frame = Frame(frame)
        self.dim = self.n_bits = dim

    def _factors(self, residuals: Residuals, coordinates: Floats) -> Floats:
        assert self._frame is not None
        products = np.abs(coordinates).sum(axis=1, dtype=np.float64)
        center = self._frame.products(self._center.astype(np.float64))
        # Zero counts as -1, as in the code.
        signs = np.where(coordinates > 0, 1.0, -1.0)
        return corrections(residuals, products, (signs * center).sum(axis=1), self.metric)

    def _parameters(self) -> dict[str, Any]:
        return {
            "rotation": self._rotation,
            "n_iterations": self._n_iterations,
            "sample_rows": self._sample_rows,
            "seed": self._seed,
        }


def centred(sample: Floats, metric: str) -> tuple[Floats, Residuals]:
    """The mean of a sample, scaled to unit length first for the cosine, and its residuals."""
    nothing = checks.frozen(np.zeros(sample.shape[1], np.float32))
    whole = Residuals(sample, nothing, metric, 1).units if metric == "cosine" else sample
    center = checks.frozen(whole.mean(axis=0, dtype=np.float64).astype(np.float32))
    return center, Residuals(sample, center, metric, 1)


def random_rotation(dim: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Uniformly distributed (Mezzadri 2007, section 5)."""
    orthogonal, triangular = np.linalg.qr(rng.standard_normal((dim, dim)))
    return np.asarray(orthogonal * np.sign(np.diag(triangular)))


def tight_frame(
    units: Floats, n_bits: int, n_components: int, n_iterations: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """More bits than principal components: a frame for these, turned as ITQ turns its axes.

    Returns
    -------
    frame : (n_bits, n_components)
        With orthonormal columns.
    components : (n_components, dim)
        Of the largest variance.
    """
    components = principal_components(units, n_components)
    projected = units @ components.T
    lengths = np.linalg.norm(projected, axis=1, keepdims=True)
    projected = (projected / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    frame = random_rotation(n_bits, rng)[:, :n_components]
    for _ in range(n_iterations):
        corners = np.where(
            projected @ frame.T.astype(np.float32) > 0, np.float32(1), np.float32(-1)
        )
        left, _, right = np.linalg.svd(
            (corners.T @ projected).astype(np.float64), full_matrices=False
        )
        frame = left @ right
    return frame, components


def nested_frame(
    units: Floats,
    n_bits: int,
    n_components: int,
    lengths: list[int],
    n_iterations: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """As `tight_frame`, but its first rows are one for the first components, at each length.

    Components between one length and the next are turned among themselves, as ITQ does. Rows beyond
    the number of components turn all of them once more.
    """
    components = principal_components(units, n_components)
    projected = (units @ components.T).astype(np.float32)
    frame = np.zeros((n_bits, n_components))

    def turned(some: Floats) -> NDArray[np.float64]:
        return itq_frame(some, some.shape[1], n_iterations, rng, lambda _: None)

    ends = [*(length for length in lengths if length < n_components), n_components]
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        frame[begin:end, begin:end] = turned(projected[:, begin:end])
    for begin in range(n_components, n_bits, n_components):
        frame[begin : begin + n_components] = turned(projected)[: n_bits - begin]
    return frame * math.sqrt(n_components / n_bits), components


def principal_components(units: Floats, n: int) -> NDArray[np.float64]:
    """The directions of the largest mean square, (n, dim)."""
    _, vectors = np.linalg.eigh(units.T @ units)
    return np.asarray(vectors[:, ::-1][:, :n].T, np.float64)


def itq_frame(
    units: Floats, n_bits: int, n_iterations: int, rng: np.random.Generator, done: Any
) -> NDArray[np.float64]:
    """The frame that ITQ finds, (n_bits, dim) with orthonormal rows."""
    dim = units.shape[1]
    components = np.eye(dim)
    if n_bits < dim:
        components = principal_components(units, n_bits)
        units = (units @ components.T).astype(np.float32)
    rotation = random_rotation(n_bits, rng)
    for _ in range(n_iterations):
        turned = units @ rotation.T.astype(np.float32)
        corners = np.where(turned > 0, np.float32(1), np.float32(-1))
        left, _, right = np.linalg.svd((corners.T @ units).astype(np.float64))
        rotation = left @ right
        done(1)
    return np.asarray(rotation @ components)
