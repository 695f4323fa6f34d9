"""What every quantiser is: floats to codes, queries to weights, and back from a file."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..kernels.launch import usable_threads

METRICS = ("cosine", "dot", "l2")

_BLOCK_BYTES = 4 << 20  # of float32, encoded in one go

Floats = NDArray[np.float32]

NO_FACTORS: Floats = np.zeros((0, 2), np.float32)


class Encoded(NamedTuple):
    """Rows as a collection stores them.

    Attributes
    ----------
    codes : (n, n_words) uint64
    factors : (n, 2) float32, or (0, 2)
        What corrects the scores of each row, for quantisers with ``n_factors`` of 2.
    """

    codes: NDArray[np.uint64]
    factors: Floats


class QueryWeights(NamedTuple):
    """Float queries as asymmetric search takes them.

    A row with signs s (+1 for a one, -1 for a zero) and factors f and g, 1 and 0 where it has none,
    has about the score ``f * (weights . s) + g + constants``.

    Attributes
    ----------
    weights : (n_queries, n_bits) float32
    constants : (n_queries,) float64
        The same for all rows, so it orders nothing.
    """

    weights: Floats
    constants: NDArray[np.float64]


class NotFittedError(ValueError):
    """A quantiser was used before `fit`."""


class Quantizer(ABC):
    """Vectors to one bit or so a dimension.

    `fit` learns what there is to learn, from a sample; `encode` makes codes, of rows and, for
    Hamming search, of queries; `weights` makes queries for asymmetric search, in which floats meet
    codes. A fitted quantiser is a value: it does not change any more, and threads may share it.

    Attributes
    ----------
    dim : int
        Dimensions of vectors; 0 before `fit`.
    n_bits : int
        Bits in a code; 0 before `fit`.
    metric : str
        "cosine", "dot" or "l2": what scores measure. With "cosine" vectors are scaled to unit
        length first.
    """

    kind: ClassVar[str]
    """Its name in files."""
    n_factors: ClassVar[int] = 0
    """Floats kept beside the code of each row: 0 or 2."""
    hamming: ClassVar[bool] = True
    """Whether Hamming distances of its codes mean anything."""
    learns: ClassVar[bool] = True
    """Whether it gets better with more rows to be fitted to."""

    def __init__(self) -> None:
        self.dim = 0
        self.n_bits = 0
        self.metric = "cosine"

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` was called, or nothing had to be learnt."""
        return self.n_bits > 0

    def fit(
        self,
        vectors: Any,
        *,
        metric: str = "cosine",
        threads: int | None = None,
        progress: bool = False,
    ) -> Self:
        """Learn from a sample of the rows that will be encoded.

        Parameters
        ----------
        vectors : (n, dim) float16, float32 or float64, or an iterator of such blocks
            An array, or anything with ``shape`` and slices of rows, such as a memory map or an HDF5
            data set: of more than ``sample_rows``, where a quantiser has that parameter, so many
            are taken at random. Blocks of an iterator are sampled as they come.
        metric : {"cosine", "dot", "l2"}
        threads : int, optional
            At most this many threads in compiled kernels; all by default. Products of matrices use
            those of NumPy's library.
        progress : bool
            Show a bar where it takes long; needs tqdm.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            Where the vectors are no floats, not finite, or too few.
        """
        checks.choice(metric, "metric", METRICS)
        sample = finite_sample(vectors, self._sample_rows, self._seed)
        self.metric = metric
        self._learn(sample, checks.threads(threads), progress)
        return self

    _sample_rows: int = 20_000
    _seed: int = 0

    @abstractmethod
    def _learn(self, sample: Floats, threads: int | None, progress: bool) -> None:
        """Set ``dim``, ``n_bits`` and what else it takes from (n, dim) finite vectors."""

    @abstractmethod
    def bits_of(self, dim: int) -> int:
        """Bits in a code of vectors with so many dimensions, known before fitting.

        Raises
        ------
        ValueError
            Where it does not take them.
        """

    def encode(self, vectors: ArrayLike, *, threads: int | None = None) -> NDArray[np.uint64]:
        """Codes of vectors, of rows or of queries for Hamming search.

        Parameters
        ----------
        vectors : (n, dim) or (dim,) float16, float32 or float64
        threads : int, optional
            At most this many threads; all by default.

        Returns
        -------
        codes : (n, ceil(n_bits / 64)) uint64
            The same for a row whatever comes with it.

        Raises
        ------
        NotFittedError, TypeError, ValueError
        """
        return self.encode_rows(vectors, threads=threads).codes

    def encode_rows(
        self,
        vectors: ArrayLike,
        name: str = "vectors",
        *,
        first_row: int = 0,
        threads: int | None = None,
    ) -> Encoded:
        """Codes and factors of rows, which errors call ``name`` from ``first_row`` on."""
        self._check_fitted()
        rows = checks.floats(vectors, name, self.dim)
        n_cells = usable_threads(checks.threads(threads))
        codes = np.empty((len(rows), checks.words_for(self.n_bits)), np.uint64)
        factors = np.empty((len(rows) if self.n_factors else 0, 2), np.float32)
        step = max(1, _BLOCK_BYTES // (4 * self.dim))
        for first in range(0, len(rows), step):
            block = rows[first : first + step]
            encoded = self._encode_block(block, name, first_row + first, n_cells)
            codes[first : first + len(block)] = encoded.codes
            if self.n_factors:
                factors[first : first + len(block)] = encoded.factors
        return Encoded(codes, factors)

    @abstractmethod
    def _encode_block(self, rows: NDArray[Any], name: str, first_row: int, n_cells: int) -> Encoded:
        """Encode some MiB of checked rows."""

    def weights(self, queries: ArrayLike) -> QueryWeights:
        """Queries for asymmetric search.

        Parameters
        ----------
        queries : (n_queries, dim) or (dim,) float16, float32 or float64

        Returns
        -------
        QueryWeights
            weights and constants.

        Raises
        ------
        NotFittedError, TypeError, ValueError
        """
        self._check_fitted()
        given = checks.floats(queries, "queries", self.dim)
        step = max(1, _BLOCK_BYTES // (4 * self.dim))  # NumPy does not answer Ctrl-C
        weights = np.empty((len(given), self.n_bits), np.float32)
        constants = np.empty(len(given))
        for first in range(0, len(given), step):
            some = slice(first, first + step)
            found = self._weights_of(given[some].astype(np.float64), first)
            weights[some], constants[some] = found.weights, found.constants
        return QueryWeights(weights, constants)

    def _weights_of(self, given: NDArray[np.float64], first_row: int) -> QueryWeights:
        """Weights of some MiB of queries."""
        bad = np.flatnonzero(~np.isfinite(given).all(axis=1))
        if bad.size:
            raise ValueError(f"queries row {first_row + bad[0]} holds NaN or infinity")
        given = self._seen(given)
        squares = np.zeros(len(given))
        with np.errstate(over="ignore", invalid="ignore"):
            if self.metric == "cosine":
                given = unit_length(given)
            elif self.metric == "l2":
                squares = np.einsum("ij,ij->i", given, given)
                given = 2 * given  # -|q - x|^2 = 2 q . x - |q|^2 - |x|^2
            products, constants = self._weigh(given)
            weights = products.astype(np.float32)
            constants = constants - squares
        bad = np.flatnonzero(~(np.isfinite(weights).all(axis=1) & np.isfinite(constants)))
        if bad.size:
            raise ValueError(
                f"queries row {first_row + bad[0]} is too large: its weights do not fit into "
                f"float32"
            )
        return QueryWeights(weights, constants)

    def _seen(self, queries: NDArray[np.float64]) -> NDArray[np.float64]:
        """What it looks at of queries."""
        return queries

    @abstractmethod
    def _weigh(
        self, queries: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights and constants that stand for the scores of queries and decoded rows.

        With "l2" queries come doubled, and their squared lengths are subtracted by the caller.
        """

    @abstractmethod
    def _parameters(self) -> dict[str, Any]:
        """What its constructor takes."""

    def _description(self) -> dict[str, Any]:
        """How to make one like it, not fitted."""
        parameters = self._parameters()
        return {"kind": self.kind, **({"parameters": parameters} if parameters else {})}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What it has learnt, by name; empty before `fit`."""
        return {}

    def _set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take what `arrays` returned; ``ValueError`` where it does not fit."""
        taken(arrays, {})

    def to_json(self) -> dict[str, Any]:
        """What a file stores of it beside `arrays`."""
        shape = {"dim": self.dim, "n_bits": self.n_bits, "metric": self.metric}
        return {**self._description(), **(shape if self.is_fitted else {})}

    def save(self, path: Any) -> None:
        """Write a fitted quantiser to a file of its own, an ``.npz``; `load` reads it.

        Raises
        ------
        NotFittedError, OSError
        """
        self._check_fitted()
        header = np.frombuffer(json.dumps(self.to_json()).encode(), np.uint8)
        with Path(checks.path(path)).open("wb") as file:
            np.savez(file, allow_pickle=False, header=header, **self.arrays())

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise NotFittedError(f"{type(self).__name__} must be fitted before it is used")

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._parameters().items())
        state = f"{self.dim} dimensions to {self.n_bits} bits" if self.is_fitted else "not fitted"
        return f"<{type(self).__name__}({given}), {state}>"


def unit_length(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors scaled to length 1; all zeros stay."""
    # A power of two first, so that no square leaves the range of floats.
    _, exponents = np.frexp(np.abs(vectors).max(axis=1, keepdims=True))
    vectors = np.ldexp(vectors, -exponents)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def as_float32(rows: NDArray[Any], name: str, first_row: int) -> Floats:
    """Rows as kernels take them; NaN, infinity and values beyond float32 are refused."""
    with np.errstate(over="ignore"):
        block = checks.frozen(rows.astype(np.float32, copy=False))
    bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if bad.size:
        row = first_row + int(bad[0])
        if np.isfinite(rows[bad[0]]).all():
            raise ValueError(f"{name} row {row} holds values that do not fit into float32")
        raise ValueError(f"{name} row {row} holds NaN or infinity")
    return block


def finite_sample(vectors: Any, n_rows: int, seed: int) -> Floats:
    """At most so many rows, chosen at random, as finite float32."""
    shape = getattr(vectors, "shape", None)
    if shape is None and isinstance(vectors, Iterator):
        sample = _reservoir(vectors, n_rows, seed)
    else:
        if shape is None or isinstance(vectors, np.generic):
            vectors = checks.floats(vectors, "vectors")
        elif len(shape) != 2:
            raise ValueError(f"vectors must have shape (n, dim), got {tuple(shape)}")
        sample = _chosen(vectors, n_rows, seed)
    sample = checks.floats(sample, "vectors")
    if len(sample) == 0:
        raise ValueError("vectors must not be empty: there is nothing to fit to")
    return as_float32(sample, "vectors", 0)


def _chosen(vectors: Any, n_rows: int, seed: int) -> NDArray[Any]:
    n = int(vectors.shape[0])
    if n <= n_rows:
        return np.asarray(vectors[:])
    rows = np.sort(np.random.default_rng(seed).choice(n, n_rows, replace=False))
    if isinstance(vectors, np.ndarray):
        return np.asarray(vectors[rows])
    # Others, HDF5 data sets above all, are slow at single rows: read all of it, a block at a time.
    step = 4096
    blocks = []
    for first in range(0, n, step):
        inside = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + step)]
        if inside.size:
            blocks.append(np.asarray(vectors[first : first + step])[inside - first])
    return np.concatenate(blocks)


def _reservoir(blocks: Iterator[Any], n_rows: int, seed: int) -> NDArray[Any]:
    """Of rows whose number is not known (Vitter: "Random sampling with a reservoir", 1985, R)."""
    rng = np.random.default_rng(seed)
    kept: NDArray[Any] | None = None
    n_kept = n_seen = 0
    for i, block in enumerate(blocks):
        dim = None if kept is None else kept.shape[1]
        rows = checks.floats(block, f"vectors block {i}", dim)
        if kept is None:
            kept = np.empty((n_rows, rows.shape[1]), rows.dtype)
        elif rows.dtype != kept.dtype:
            kept = kept.astype(np.promote_types(kept.dtype, rows.dtype))
        n_first = min(n_rows - n_kept, len(rows))
        kept[n_kept : n_kept + n_first] = rows[:n_first]
        n_kept += n_first
        numbers = np.arange(n_seen + n_first, n_seen + len(rows))
        places = rng.integers(0, numbers + 1) if numbers.size else numbers
        taken = places < n_rows
        # In order: of two rows for one place the later one stays.
        kept[places[taken]] = rows[n_first:][taken]
        n_seen += len(rows)
    return np.zeros((0, 1), np.float32) if kept is None else kept[:n_kept]


def taken(
    arrays: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Floats]:
    """Stored arrays, if they are those expected: finite float32 of these shapes, and no others."""
    if set(arrays) != set(shapes):
        raise ValueError(f"its arrays are {sorted(arrays)}, expected {sorted(shapes)}")
    for name, shape in shapes.items():
        array = np.asarray(arrays[name])
        if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
            raise ValueError(
                f"array {name!r} is {array.dtype} of shape {array.shape}, expected finite float32 "
                f"of shape {shape}"
            )
    return {name: checks.frozen(arrays[name]) for name in shapes}
