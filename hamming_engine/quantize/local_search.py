"""The flagship: bits chosen by local search against a learned linear decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..codes import pack_rows
from ..kernels.launch import usable_threads
from ..optional import progress_bar
from .base import Encoded, Floats, Quantizer, taken
from .descent import Descent
from .projections import Frame, Residuals, centred, corrections, itq_frame, random_rotation

_RIDGE = 1e-3  # of the number of rows, added to the diagonal: keeps decoders of small samples tame
_ITQ_ITERATIONS = 20  # only to begin with
# What a stored quantiser may make us allocate: 768 MiB for the products of its decoder.
_MAX_BITS, _MAX_KICKS = 8192, 4096


class LocalSearchQuantizer(Quantizer):
    """Bits chosen so that a learned linear decoder reconstructs the vector from them.

    The sign of each coordinate is not the best pattern of bits for a vector. Here the residual of a
    row, of unit length, is approximated by ``b W``, with bits b of +-1 and a decoder W (n_bits,
    dim), so that the squared error is least: bits by iterated local search, as in local search
    quantisation (Martinez, Clement, Hoos, Little: "Revisiting additive quantization", ECCV 2016)
    with codebooks of one vector each; the decoder by least squares; in turns, from ITQ on, as
    binary autoencoders are fitted (Carreira-Perpinan and Raziperchikolaei, "Hashing with binary
    autoencoders", CVPR 2015). Queries are weighed by ``W q``, and two factors a row correct scores
    as for `RaBitQuantizer`.

    Its codes are for asymmetric search: bits of rows near to each other agree no more than the
    decoder makes them, so plain Hamming search of such codes is refused.

    Parameters
    ----------
    n_bits : int, optional
        As many as dimensions by default; fewer or more are fine, up to 8,192.
    n_sweeps : int
        At most so many sweeps over the bits in each descent.
    n_kicks : int
        Further descents from bits turned at random, at most 4,096: more find better bits, and take
        longer.
    n_iterations : int
        Turns of bits and decoder while fitting.
    sample_rows : int
        Rows to fit to, at most. Fitting takes about ``8 * (dim + 3 * n_bits)`` bytes for each.
    seed : int
        Of the sample, the frame to begin with, and the kicks.
    """

    kind = "local_search"
    n_factors = 2
    hamming = False

    def __init__(
        self,
        n_bits: int | None = None,
        *,
        n_sweeps: int = 4,
        n_kicks: int = 8,
        n_iterations: int = 10,
        sample_rows: int = 20_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._wanted_bits = None if n_bits is None else checks.integer(n_bits, "n_bits", 1)
        self._n_sweeps = checks.integer(n_sweeps, "n_sweeps", 1)
        self._n_kicks = checks.integer(n_kicks, "n_kicks", 0)
        if self._n_kicks > _MAX_KICKS:
            raise ValueError(f"n_kicks must be at most {_MAX_KICKS}, got {n_kicks}")
        self._n_iterations = checks.integer(n_iterations, "n_iterations", 1)
        self._sample_rows = checks.integer(sample_rows, "sample_rows", 2)
        self._seed = checks.integer(seed, "seed", 0)

    def bits_of(self, dim: int) -> int:
        n_bits = dim if self._wanted_bits is None else self._wanted_bits
        if n_bits > _MAX_BITS:
            raise ValueError(f"n_bits must be at most {_MAX_BITS}, got {n_bits}")
        return n_bits

    def _learn(self, sample: Floats, threads: int | None, progress: bool) -> None:
        n_bits = self.bits_of(sample.shape[1])
        center, residuals = centred(sample, self.metric)
        units = residuals.units
        rng = np.random.default_rng(self._seed)
        with progress_bar(progress, _ITQ_ITERATIONS + self._n_iterations, "iteration") as bar:
            frame = _first_frame(units, n_bits, rng, bar.update)
            bits = np.where(units @ frame.T > 0, np.float32(1), np.float32(-1))
            decoder = _least_squares(bits, units)
            for _ in range(self._n_iterations):
                search = _Search(decoder, self._n_sweeps, self._n_kicks, self._seed)
                bits, _ = search.improve(units, bits, usable_threads(threads))
                decoder = _least_squares(bits, units)
                bar.update(1)
        self.dim, self.n_bits = sample.shape[1], n_bits
        self._take(center, decoder)

    def _take(self, center: Floats, decoder: Frame) -> None:
        self._center, self._decoder = center, decoder
        self._search = _Search(decoder, self._n_sweeps, self._n_kicks, self._seed)

    def _encode_block(self, rows: NDArray[Any], name: str, first_row: int, n_cells: int) -> Encoded:
        residuals = Residuals(rows, self._center, self.metric, n_cells, name, first_row)
        bits, products = self._search.improve(residuals.units, None, n_cells)
        center = self._decoder.products(self._center.astype(np.float64))
        # A decoded vector that points away from the row is better turned round.
        turned = products < 0
        bits[turned] *= -1
        products = np.abs(products)
        factors = corrections(residuals, products, (bits * center).sum(axis=1), self.metric)
        return Encoded(pack_rows(bits, name, threads=n_cells), factors)

    def _weigh(
        self, queries: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._decoder.products(queries), queries @ self._center.astype(np.float64)

    def _parameters(self) -> dict[str, Any]:
        return {
            "n_bits": self._wanted_bits,
            "n_sweeps": self._n_sweeps,
            "n_kicks": self._n_kicks,
            "n_iterations": self._n_iterations,
            "sample_rows": self._sample_rows,
            "seed": self._seed,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"center": self._center, "decoder": self._decoder.rows} if self.is_fitted else {}

    def _set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        found = taken(arrays, {"center": (self.dim,), "decoder": (self.n_bits, self.dim)})
        self._take(found["center"], Frame(found["decoder"]))


class _Search:
    """Local search for the bits that a decoder turns into given vectors."""

    def __init__(self, decoder: Frame, n_sweeps: int, n_kicks: int, seed: int) -> None:
        n_bits = len(decoder.rows)
        self._decoder = decoder
        # The same for every row, so that a code does not depend on what else is encoded.
        rng = np.random.default_rng(seed)
        kicks = rng.integers(0, n_bits, (n_kicks, max(1, n_bits // 48)))
        gram = decoder.products(decoder.rows.astype(np.float64)).astype(np.float32)
        self._descent = Descent(gram, n_sweeps, kicks)

    def improve(
        self, units: Floats, bits: Floats | None, n_cells: int
    ) -> tuple[Floats, NDArray[np.float64]]:
        """Bits for vectors, from given ones or from the signs of correlations with the decoder.

        Parameters
        ----------
        units : (n, dim) float32
        bits : (n, n_bits) float32, optional
            +1 or -1.
        n_cells : int

        Returns
        -------
        bits : (n, n_bits) float32
            +1 or -1.
        products : (n,) float64
            Of vectors and what their bits decode to.
        """
        targets = self._decoder.project(units, n_cells)
        found, _ = self._descent.improve(targets, bits, n_cells)
        return found, np.einsum("ij,ij->i", found, targets, dtype=np.float64)


def _first_frame(units: Floats, n_bits: int, rng: np.random.Generator, done: Any) -> Floats:
    """Directions whose signs are the bits to begin with: ITQ's, and random ones beyond those."""
    dim = units.shape[1]
    frames = [itq_frame(units, min(n_bits, dim), _ITQ_ITERATIONS, rng, done)]
    for first in range(dim, n_bits, dim):
        frames.append(random_rotation(dim, rng)[: n_bits - first])
    return np.concatenate(frames).astype(np.float32)


def _least_squares(bits: Floats, units: Floats) -> Frame:
    """The decoder with the least squared error."""
    gram = (bits.T @ bits).astype(np.float64)
    gram[np.diag_indices(len(gram))] += _RIDGE * len(bits)
    return Frame(np.linalg.solve(gram, (bits.T @ units).astype(np.float64)))
