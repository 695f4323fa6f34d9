"""Modules that make bits: signs, with an annealed temperature, and a head for a quantiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .. import checks
from ..kernels.launch import usable_threads
from ..quantize import (
    HeadQuantizer,
    ITQQuantizer,
    Quantizer,
    RaBitQuantizer,
    RotationQuantizer,
    SignQuantizer,
    ThresholdQuantizer,
)
from ..quantize.base import METRICS, finite_sample
from ..quantize.descent import Descent
from ..quantize.head import N_SWEEPS
from ..quantize.projections import (
    Residuals,
    centred,
    nested_frame,
    random_rotation,
    tight_frame,
)
from .arguments import described, floats, not_negative, positive
from .scaling import spread_rows, unit_rows
from .ste import VARIANTS, sign_ste

_SAMPLE_ROWS = 20_000
_ITQ_ITERATIONS = 15
_SPREAD = 2.0  # of coupled bits, before they are settled
_NESTED_COUPLING = 0.5  # of what it is where bits need not be codes by themselves


class Binarize(nn.Module):
    """Signs: `sign_ste` in training, exact ones in evaluation.

    Parameters
    ----------
    variant : {"identity", "clipped", "tanh_ste", "tanh"}
        See `sign_ste`.
    temperature : float
        Of the variants with tanh, to begin with.
    annealing : float
        After n calls of `step` the temperature is ``temperature / sqrt(1 + annealing * n)``, as in
        Yamada, Asai, Hajishirzi: "Efficient passage retrieval with hashing" (ACL 2021), section 3,
        where it is 0.1; 0 keeps it.

    Attributes
    ----------
    n_steps : Tensor
        Calls of `step`, a buffer: a state that is loaded goes on where it was.
    """

    n_steps: Tensor

    def __init__(
        self, variant: str = "clipped", *, temperature: float = 1.0, annealing: float = 0.0
    ) -> None:
        super().__init__()
        self.variant = checks.choice(variant, "variant", VARIANTS)
        self._first_temperature = positive(temperature, "temperature")
        self._annealing = not_negative(annealing, "annealing")
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))

    @property
    def temperature(self) -> float:
        """That of the next call."""
        if not self._annealing:
            return self._first_temperature
        return self._first_temperature / math.sqrt(1 + self._annealing * int(self.n_steps))

    def step(self) -> None:
        """One step of training is done; the losses call it, once a call of their own."""
        self.n_steps += 1

    def forward(self, x: Tensor) -> Tensor:
        """Signs of floats of any shape; in training with "tanh", what nears them."""
        variant = self.variant
        if variant == "tanh" and not self.training:
            variant = "tanh_ste"
        return sign_ste(x, variant, temperature=self.temperature)

    def extra_repr(self) -> str:
        return (
            f"{self.variant!r}, temperature={self._first_temperature}, annealing={self._annealing}"
        )


def as_binarize(given: str | Binarize) -> Binarize:
    """A module that takes signs, from the name of a variant or as it came."""
    if isinstance(given, Binarize):
        return given
    if not isinstance(given, str):
        raise TypeError(f"binarize must be a variant's name or a Binarize, got {described(given)}")
    return Binarize(given)


class BinaryHead(nn.Module):
    """A linear map from embeddings to values whose signs are the bits.

    ``forward`` gives ``weight (u - mean) + bias``, where u is the vector, scaled to unit length for
    the cosine; each row of it is scaled to a mean square of 1. That changes no sign, so the bits
    stay those of a linear map and `to_quantizer` loses nothing; and it keeps values in the window
    in which straight-through gradients pass, whatever becomes of the weights. Means and deviations
    of a batch would do that for each bit, but signs would depend on what comes along.

    Bits may be coupled, and each then depends on what the others have come to: see `HeadQuantizer`.
    ``forward`` settles them and gives ``weight (u - mean) + bias - coupling b``, scaled likewise,
    with gradients as if the settled bits b did not depend on anything (the straight-through idea
    again). They are settled on the processor, whatever device the head is on.

    It begins with the signs of the dimensions themselves where there are as many bits, or else with
    those after a random rotation; `from_quantizer` begins with what was fitted, ITQ above all, and
    `coupled` with a frame for fewer dimensions than bits.

    Parameters
    ----------
    dim : int
        Of the embeddings.
    n_bits : int, optional
        As many as dimensions by default; fewer or more are fine.
    metric : {"cosine", "dot", "l2"}
        What scores of embeddings measure: with "cosine" they are scaled to unit length first.
    bias : bool
        Whether to learn one.
    seed : int
        Of the random rotation.

    Attributes
    ----------
    weight : (n_bits, dim) parameter
    bias : (n_bits,) parameter, or None
    mean : (dim,) buffer
        Zeros, unless `from_quantizer` or `coupled` know one.
    coupling : (n_bits, n_bits) parameter, or None
        Only its symmetric part off the diagonal counts.
    """

    mean: Tensor
    coupling: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        n_bits: int | None = None,
        *,
        metric: str = "cosine",
        bias: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dim = checks.integer(dim, "dim", 1)
        self.n_bits = self.dim if n_bits is None else checks.integer(n_bits, "n_bits", 1)
        self.metric = checks.choice(metric, "metric", METRICS)
        first = _first_weight(self.dim, self.n_bits, checks.integer(seed, "seed", 0))
        self.weight = nn.Parameter(torch.from_numpy(first.astype(np.float32)))
        self.bias = nn.Parameter(torch.zeros(self.n_bits)) if bias else None
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_parameter("coupling", None)

    @classmethod
    def from_quantizer(cls, quantizer: Quantizer) -> BinaryHead:
        """A head that makes the codes of a fitted quantiser, to train on from there.

        Parameters
        ----------
        quantizer : Quantizer
            Fitted; one whose bits are signs of a linear map: sign, threshold, rotation, ITQ,
            RaBitQ, or a head.

        Raises
        ------
        hamming_engine.quantize.NotFittedError, TypeError
        ValueError
            Where it is the first of coupled bits.
        """
        frame, center, bias = _linear_map(quantizer)
        if len(frame) > quantizer.n_bits:
            raise ValueError("quantizer has coupled bits that were cut: take the one it was cut of")
        head = cls(quantizer.dim, quantizer.n_bits, metric=quantizer.metric)
        with torch.no_grad():
            head.weight.copy_(torch.tensor(frame))
            head.mean.copy_(torch.tensor(center))
            if head.bias is not None:
                head.bias.copy_(torch.tensor(bias))
        coupling = quantizer.arrays().get("coupling")
        if coupling is not None:
            head.coupling = nn.Parameter(torch.tensor(coupling))
        return head

    @classmethod
    def coupled(
        cls,
        vectors: Any,
        n_bits: int | None = None,
        *,
        prefixes: Sequence[int] = (),
        n_components: int | None = None,
        metric: str = "cosine",
        seed: int = 0,
    ) -> BinaryHead:
        """A head with coupled bits, to train on from a frame that is fitted to a sample.

        Vectors are projected to fewer principal components than there are bits, and these spread
        over the bits by a tight frame that is turned as ITQ turns its axes. Bits are coupled so
        that as little of them as possible lies beyond the frame (Jégou, Furon, Fuchs: "Anti-sparse
        coding for approximate nearest neighbor search", ICASSP 2012).

        Where the first bits shall be codes by themselves, they stand for the first components, and
        so on from one length to the next; bits are coupled half as much then, since those that
        answer for others are worse alone.

        Parameters
        ----------
        vectors : (n, dim) Tensor or array of floats, or an iterator of such blocks
            A sample of the embeddings, of which 20,000 at most are taken.
        n_bits : int, optional
            As many as dimensions by default.
        prefixes : sequence of int
            Numbers of bits that shall be codes by themselves, to train on with
            `MatryoshkaBinaryLoss`.
        n_components : int, optional
            At most ``n_bits`` and the dimensions; by default half of the fewer of them.
        metric : {"cosine", "dot", "l2"}
        seed : int
            Of the sample and the frame.

        Raises
        ------
        TypeError, ValueError
        """
        center, residuals = _centred_sample(vectors, metric, seed)
        units = residuals.units
        head = cls(len(center), n_bits, metric=metric)
        most = min(head.dim, head.n_bits)
        n_components = (
            max(1, most // 2)
            if n_components is None
            else checks.integer(n_components, "n_components", 1)
        )
        if n_components > most:
            raise ValueError(
                f"n_components must be at most the {head.dim} dimensions and the {head.n_bits} "
                f"bits, got {n_components}"
            )
        lengths = sorted({checks.integer(n, "prefixes", 1) for n in prefixes})
        if lengths and lengths[-1] > head.n_bits:
            raise ValueError(f"prefixes must be at most the {head.n_bits} bits, got {lengths[-1]}")
        rng = np.random.default_rng(seed)
        shape = head.n_bits, n_components
        frame, components = (
            nested_frame(units, *shape, lengths, _ITQ_ITERATIONS, rng)
            if lengths
            else tight_frame(units, *shape, _ITQ_ITERATIONS, rng)
        )
        length = float(residuals.lengths.mean())
        scale = _SPREAD * math.sqrt(head.n_bits) / (length if length > 0 else 1.0)
        coupling = frame @ frame.T * (_NESTED_COUPLING if lengths else 1.0)
        np.fill_diagonal(coupling, 0)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(scale * frame @ components))
            head.mean.copy_(torch.tensor(center))
        head.coupling = nn.Parameter(torch.from_numpy(coupling.astype(np.float32)))
        return head

    def forward(self, x: Tensor) -> Tensor:
        """Values whose signs are the bits.

        Parameters
        ----------
        x : (..., dim) Tensor of floats

        Returns
        -------
        (..., n_bits) Tensor
            Of a mean square of 1 in each row, or all zeros.

        Raises
        ------
        TypeError, ValueError
        """
        x = floats(x, "x")
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise ValueError(f"x must have shape (..., {self.dim}), got {tuple(x.shape)}")
        x = x.to(self.weight.dtype)
        u = unit_rows(x) if self.metric == "cosine" else x
        values = functional.linear(u - self.mean, self.weight, self.bias)
        if self.coupling is not None:
            coupling = _symmetric(self.coupling)
            values = values - functional.linear(_settled(values, coupling), coupling)
        return spread_rows(values)

    def codes(self, x: Any, *, threads: int | None = None) -> NDArray[np.uint64]:
        """Codes as the exported quantiser makes them.

        Parameters
        ----------
        x : (n, dim) or (dim,), a Tensor or an array of floats
        threads : int, optional
            At most this many threads; all by default.

        Returns
        -------
        (n, ceil(n_bits / 64)) uint64

        Raises
        ------
        TypeError, ValueError
        """
        quantizer = HeadQuantizer()
        quantizer.take_head(*self._linear_map(), self.metric, self._coupling())
        return quantizer.encode(as_array(x), threads=threads)

    def to_quantizer(
        self,
        vectors: Any,
        *,
        sample_rows: int = 20_000,
        seed: int = 0,
        threads: int | None = None,
    ) -> HeadQuantizer:
        """The head as a quantiser that runs without PyTorch, and that collections store.

        Parameters
        ----------
        vectors : (n, dim) Tensor or array of floats, or an iterator of such blocks
            A sample of the embeddings that will be encoded, to which the scale of scores by codes
            alone is fitted.
        sample_rows, seed : int
            See `HeadQuantizer`.
        threads : int, optional
            At most this many threads; all by default.

        Raises
        ------
        TypeError, ValueError
            Where the vectors are no floats of this dimension, or weights are not finite.
        """
        return HeadQuantizer.from_head(
            *self._linear_map(),
            as_array(vectors),
            coupling=self._coupling(),
            metric=self.metric,
            sample_rows=sample_rows,
            seed=seed,
            threads=threads,
        )

    def truncated(self, n_bits: int) -> BinaryHead:
        """A head of the first bits alone, with weights of its own.

        For heads trained by `MatryoshkaBinaryLoss`, whose first bits are good codes by themselves.

        Raises
        ------
        TypeError, ValueError
            Where there are fewer bits, or they are coupled: then the first are settled with all
            others, as `HeadQuantizer.truncated` does.
        """
        if checks.integer(n_bits, "n_bits", 1) > self.n_bits:
            raise ValueError(f"n_bits must be at most the head's {self.n_bits}, got {n_bits}")
        if self.coupling is not None:
            raise ValueError("a head with coupled bits cannot be cut, but its quantizer can")
        head = BinaryHead(self.dim, n_bits, metric=self.metric, bias=self.bias is not None)
        head.to(self.weight.device, self.weight.dtype)
        state = self.state_dict()
        head.load_state_dict(
            {name: value if name == "mean" else value[:n_bits] for name, value in state.items()}
        )
        return head

    def _linear_map(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The frame and the bias of the quantiser."""
        frame = as_array(self.weight).astype(np.float64)
        bias = np.zeros(self.n_bits) if self.bias is None else as_array(self.bias)
        return frame, bias - frame @ as_array(self.mean).astype(np.float64)

    def _coupling(self) -> NDArray[np.float64] | None:
        """The coupling of the quantiser."""
        if self.coupling is None:
            return None
        coupling: NDArray[np.float64] = as_array(_symmetric(self.coupling)).astype(np.float64)
        return coupling

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A state says whether bits are coupled; a head that is made to load one does not know.
        found = state_dict.get(prefix + "coupling")
        if found is not None and self.coupling is None:
            self.coupling = nn.Parameter(self.weight.new_zeros(self.n_bits, self.n_bits))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, {self.n_bits}, metric={self.metric!r}, bias={self.bias is not None}, "
            f"coupled={self.coupling is not None}"
        )


def _centred_sample(vectors: Any, metric: str, seed: int) -> tuple[NDArray[np.float32], Residuals]:
    """The mean of a sample of the rows, and what is left of them."""
    checks.choice(metric, "metric", METRICS)
    seed = checks.integer(seed, "seed", 0)
    return centred(finite_sample(as_array(vectors), _SAMPLE_ROWS, seed), metric)


def _symmetric(coupling: Tensor) -> Tensor:
    """What counts of a coupling."""
    return (coupling + coupling.T).fill_diagonal_(0) / 2


def _settled(values: Tensor, coupling: Tensor) -> Tensor:
    """Coupled bits, -1 and 1, of rows of values, on as many threads as PyTorch may use.

    No gradient passes.
    """
    rows = as_array(values).reshape(-1, len(coupling)).astype(np.float32)
    descent = Descent(as_array(coupling).astype(np.float32), N_SWEEPS)
    bits, _ = descent.improve(rows, None, usable_threads(torch.get_num_threads()))
    return torch.from_numpy(bits).to(values).reshape(values.shape)


def as_array(x: Any) -> Any:
    """A tensor as the NumPy array of its values, bfloat16 as float32; all else as it came."""
    if not isinstance(x, Tensor):
        return x
    x = x.detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def _first_weight(dim: int, n_bits: int, seed: int) -> NDArray[np.float64]:
    if n_bits == dim:
        return np.eye(dim)
    rng = np.random.default_rng(seed)
    # More bits than dimensions: a rotation, and others behind it.
    rotations = [random_rotation(dim, rng) for _ in range(-(-n_bits // dim))]
    return np.concatenate(rotations)[:n_bits]


def _linear_map(
    quantizer: Any,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Frame, centre and bias of a quantiser whose bits are signs of a linear map."""
    linear = (
        SignQuantizer,
        ThresholdQuantizer,
        RotationQuantizer,
        ITQQuantizer,
        RaBitQuantizer,
        HeadQuantizer,
    )
    if not isinstance(quantizer, linear):
        kinds = ", ".join(repr(each.kind) for each in linear)
        raise TypeError(f"quantizer must be one of the kinds {kinds}, got {quantizer!r}")
    quantizer._check_fitted()
    arrays = quantizer.arrays()
    nothing = np.zeros(quantizer.dim, np.float32)
    unmoved = np.zeros(quantizer.n_bits, np.float32)
    if isinstance(quantizer, HeadQuantizer):  # whose centre belongs to its decoder
        return arrays["frame"], nothing, arrays["bias"]
    identity = np.eye(quantizer.dim, dtype=np.float32)
    if isinstance(quantizer, (SignQuantizer, ThresholdQuantizer)):
        return identity, arrays.get("center", nothing), unmoved
    # The fast rotation has no matrix: what it makes of the dimensions are its columns.
    frame = arrays["frame"] if "frame" in arrays else quantizer._coordinates(identity, 1).T
    return frame, arrays["center"], unmoved
