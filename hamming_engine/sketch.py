"""Codes whose Hamming distance estimates an angle (`SimHash`) or an overlap of sets (`MinHash`).

All that looks random is made here from the seed, with BLAKE2b, SplitMix64 and IEEE arithmetic, and
not with ``np.random``, whose streams may change with its version: a code that was stored agrees
with one made years later, on another machine.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from .codes import pack_rows
from .kernels.launch import WORK_PER_LAUNCH, usable_threads
from .kernels.minhash import MINIMA, ODD, PROJECT, SIGN_SUMS, WORD, mix
from .kernels.topk import MAX_BITS

Token = str | bytes | int

_BLOCK_BYTES = 8 << 20  # of vectors, tokens, signatures or sums that are worked on at once
_KNOWN_TOKENS = 1 << 16  # whose hashes are kept, as most words of a text come again
_MAX_UINT64 = 2**64 - 1
_VERSION = 1  # of the hashes: in what is stored, so that other hashes would be told apart

# Measured on Zen 5, in units of work (see kernels.launch), per token and hash, or product.
_HASH_WORK = 0.5
_SUM_WORK = 0.5
_PRODUCT_WORK = 0.35


@dataclass(frozen=True)
class SimHash:
    """Codes whose distance estimates the angle between vectors, or between weighted documents.

    Random hyperplanes (Charikar: "Similarity estimation techniques from rounding algorithms", STOC
    2002, section 3): a bit says on which side of a plane through the origin a vector lies, and two
    vectors at an angle ``a`` lie on different sides of one with probability ``a / pi``. So there
    can be more bits, or fewer, than dimensions, and lengths do not count.

    `encode` takes dense vectors, `encode_features` bags of tokens. Their codes have nothing to do
    with one another: compare codes of one kind, and of equal ``seed``. The first bits of a longer
    code are the shorter code, but for its padding.

    Attributes
    ----------
    n_bits : int
        Of a code, at least 1.
    seed : int
        0 to 2**64 - 1. The same seed gives the same bits on every machine and in every version.

    Raises
    ------
    TypeError, ValueError
        Where an attribute is not an integer in its range.

    Notes
    -----
    The distance is binomial if the planes are independent: the estimated angle has no bias and
    the standard error ``sqrt(angle * (pi - angle) / n_bits)``, at most ``pi / 2 / sqrt(n_bits)``.
    """

    n_bits: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_bits", checks.integer(self.n_bits, "n_bits", 1))
        object.__setattr__(self, "seed", _seed(self.seed))
        if self.n_bits > MAX_BITS:
            raise ValueError(f"n_bits must be at most {MAX_BITS}, got {self.n_bits}")

    def encode(self, vectors: ArrayLike, *, threads: int | None = None) -> NDArray[np.uint64]:
        """Codes of dense vectors.

        Parameters
        ----------
        vectors : (n, dim) or (dim,) float16, float32 or float64
            In any memory layout. Vectors of another ``dim`` meet other planes.
        threads : int, optional
            At most this many threads; all by default.

        Returns
        -------
        codes : (n, ceil(n_bits / 64)) uint64
            As from ``pack_signs``: 1 where the product with a plane's normal is above zero, so a
            product of exactly 0, and every bit of a vector of zeros, gives 0.

        Raises
        ------
        TypeError
            Where the vectors are not floats of 16, 32 or 64 bits.
        ValueError
            Where the shape is wrong, or a row holds NaN, infinity, or values so large that a
            product is; the message names the row.

        Notes
        -----
        Products are summed in float64 over the dimensions in order, so a code depends on its
        vector alone, and not on batches or threads. Normals are Gaussian, drawn from the seed. They
        take ``512 * dim * ceil(n_bits / 64)`` bytes; those of the last ``dim`` that came are kept.
        """
        rows = checks.floats(vectors, "vectors")
        n_cells = usable_threads(checks.threads(threads))
        n, dim = rows.shape
        planes = _planes(dim, checks.words_for(self.n_bits), self.seed)
        codes = np.empty((n, checks.words_for(self.n_bits)), np.uint64)
        row_work = planes.size * _PRODUCT_WORK
        block_rows = max(
            1,
            min(
                _BLOCK_BYTES // (8 * max(dim, self.n_bits)),
                int(WORK_PER_LAUNCH * n_cells / row_work),
            ),
        )
        for first in range(0, n, block_rows):
            block = checks.frozen(rows[first : first + block_rows].astype(np.float64))
            sums = np.empty((len(block), self.n_bits))
            # NumPy, with the JIT off, would warn of what pack_rows refuses.
            with np.errstate(over="ignore", invalid="ignore"):
                PROJECT(n_cells, block, planes, sums, work=len(block) * row_work)
            codes[first : first + len(block)] = pack_rows(
                sums, "vectors", first_row=first, threads=n_cells
            )
        return codes

    def normals(self, dim: int) -> NDArray[np.float64]:
        """The normals of the planes that vectors of ``dim`` dimensions meet, (n_bits, dim)."""
        planes = _planes(checks.integer(dim, "dim", 1), checks.words_for(self.n_bits), self.seed)
        return planes.transpose(0, 2, 1).reshape(-1, dim)[: self.n_bits]

    def encode_features(
        self,
        features: Iterable[Iterable[Token] | Mapping[Token, float]],
        weights: Iterable[ArrayLike] | None = None,
        *,
        threads: int | None = None,
    ) -> NDArray[np.uint64]:
        """Codes of documents of weighted tokens.

        A document is the vector of the weights of all tokens there are, and each token has a random
        sign in each plane: bit j of a code is 1 where the weights, with the signs of plane j, sum
        to above zero.

        Parameters
        ----------
        features : iterable of documents
            Each a collection of tokens, which count as often as they come, or a mapping of tokens
            to their weights. A token is text, bytes, or an integer from 0 to 2**64 - 1; text is
            the same as its UTF-8 bytes. A document may be an array of integers. Documents are
            taken in blocks, so an iterator can be longer than memory.
        weights : iterable of (n_tokens,) int or float, optional
            One array a document, with a finite weight for each of its tokens; 1 by default.
        threads : int, optional
            At most this many threads; all by default.

        Returns
        -------
        codes : (n, ceil(n_bits / 64)) uint64
            A document without tokens gets a code of zeros.

        Raises
        ------
        TypeError, ValueError
            Where a document, token or weight is none; the message says in which document.

        Notes
        -----
        A token's hash of 64 bits is BLAKE2b, salted with the seed; SplitMix64 turns it into the
        signs (see ``kernels.minhash``). Weights are summed in float64 in the order of the tokens.
        That order counts only where weights are not integers, and a sum is zero but for rounding.

        Angles are estimated as for `encode` where documents have many tokens. Sums of few signs are
        not Gaussian, and often exactly 0, which gives bit 0: distances between short documents are
        then smaller than their angles.
        """
        n_cells = usable_threads(checks.threads(threads))
        keys = _keys(b"he.simhash.keys", self.seed, checks.words_for(self.n_bits))
        documents = _weighted(features, weights, _TokenHash(b"he.simhash.token", self.seed))
        codes = [np.empty((0, len(keys)), np.uint64)]
        first = 0
        for offsets, (tokens, token_weights) in _blocks(documents, self.n_bits):
            sums = np.zeros((len(offsets) - 1, self.n_bits))
            work = len(tokens) * self.n_bits * _SUM_WORK
            with np.errstate(over="ignore", invalid="ignore"):
                SIGN_SUMS(n_cells, tokens, token_weights, offsets, keys, sums, work=work)
            codes.append(pack_rows(sums, "weights", first_row=first, threads=n_cells))
            first += len(sums)
        return np.concatenate(codes)

    def estimate_angle(self, distances: ArrayLike) -> NDArray[np.float64]:
        """Angles between vectors, from distances between their codes.

        Parameters
        ----------
        distances : int, of any shape
            In bits, 0 to ``n_bits``.

        Returns
        -------
        angles : float64, of that shape
            ``pi * distances / n_bits``, in radians.

        Raises
        ------
        TypeError, ValueError
            Where distances are not integers in that range.
        """
        return np.asarray(np.pi * _shares(distances, self.n_bits))

    def estimate_cosine(self, distances: ArrayLike) -> NDArray[np.float64]:
        """Cosines between vectors: those of `estimate_angle`, which see.

        Their standard error is about ``sin(angle)`` times that of the angle.
        """
        return np.asarray(np.cos(self.estimate_angle(distances)))

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes it from."""
        return {"kind": "simhash", "version": _VERSION, "n_bits": self.n_bits, "seed": self.seed}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SimHash:
        """The one that gave ``stored``; ValueError where it is no SimHash of this version."""
        return cls(**_arguments(stored, cls().to_json()))


@dataclass(frozen=True)
class MinHash:
    """Codes whose distance estimates the Jaccard similarity of sets, ``|A & B| / |A | B|``.

    A random permutation of all tokens has its minimum over two sets at the same token with
    probability J, their similarity (Broder: "On the resemblance and containment of documents",
    Compression and Complexity of Sequences 1997). The lowest ``bits`` bits of each of ``n_hashes``
    minima are kept (Li, König: "b-Bit minwise hashing", WWW 2010, sections 2-3). Minima that differ
    agree in these with probability ``2**-bits``, whatever the sizes of the sets: the limit of few
    tokens in a large universe holds, as hashes have 64 bits.

    The kept values are written in a simplex code of ``2**bits - 1`` bits, of which any two
    different values differ in ``2**(bits - 1)``: bit i of the word for v is the parity of
    ``v & (i + 1)``. So the expected distance is ``(1 - J) / 2 * n_bits``, and ``1 - 2 * distance /
    n_bits`` estimates J for all ``bits``. The first bits of a code with more hashes are the code
    with fewer, but for its padding.

    Attributes
    ----------
    n_hashes : int
        At least 1.
    bits : int
        Kept of each: 1, 2, 3 or 4.
    seed : int
        0 to 2**64 - 1. The same seed gives the same bits on every machine and in every version.

    Raises
    ------
    TypeError, ValueError
        Where an attribute is not an integer in its range.

    Notes
    -----
    The estimate has no bias and the variance ``(1 - J) * (J + 1 / (2**bits - 1)) / n_hashes`` (Li
    and König's, in that limit), which is ``(1 - J) * (1 + J * (2**bits - 1)) / n_bits``. So in
    codes of the same length one bit is the best choice for every J above 0; more bits take fewer
    hashes, so less time, and lose little where J is far below ``2**-bits``.
    """

    n_hashes: int = 128
    bits: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_hashes", checks.integer(self.n_hashes, "n_hashes", 1))
        object.__setattr__(self, "bits", checks.integer(self.bits, "bits", 1))
        object.__setattr__(self, "seed", _seed(self.seed))
        if self.bits > 4:
            raise ValueError(f"bits must be 1, 2, 3 or 4, got {self.bits}")
        if self.n_bits > MAX_BITS:
            raise ValueError(
                f"n_hashes of {self.bits} bits must give codes of at most {MAX_BITS} bits, got "
                f"{self.n_hashes}, which give {self.n_bits}"
            )

    @property
    def n_bits(self) -> int:
        """Of a code: ``n_hashes * (2**bits - 1)``."""
        return self.n_hashes * ((1 << self.bits) - 1)

    def encode(
        self, sets: Iterable[Iterable[Token]], *, threads: int | None = None
    ) -> NDArray[np.uint64]:
        """Codes of sets of tokens.

        Parameters
        ----------
        sets : iterable of collections of tokens
            A token is text, bytes, or an integer from 0 to 2**64 - 1; text is the same as its UTF-8
            bytes. A set may be an array of integers. Duplicates do not count. Sets are taken in
            blocks, so an iterator can be longer than memory.
        threads : int, optional
            At most this many threads; all by default.

        Returns
        -------
        codes : (n, ceil(n_bits / 64)) uint64
            The same whatever the order of tokens, the batches and the threads.

        Raises
        ------
        TypeError, ValueError
            Where a set is empty, as it is similar to none, or a set or token is none; the message
            names the set.

        Notes
        -----
        A token's hash of 64 bits is BLAKE2b, salted with the seed, or for integers SplitMix64;
        SplitMix64 with a key for each hash stands for the permutations (see ``kernels.minhash``).
        """
        return self._codes(self._of_sets(sets, checks.threads(threads)))

    def encode_arrays(
        self, values: ArrayLike, offsets: ArrayLike, *, threads: int | None = None
    ) -> NDArray[np.uint64]:
        """Codes of sets of integers that lie one after another: those of `encode`, much faster.

        Parameters
        ----------
        values : (n_tokens,) int
            0 to 2**64 - 1, in any integer type.
        offsets : (n + 1,) int
            Set i is ``values[offsets[i] : offsets[i + 1]]``; from 0 to ``n_tokens``.
        threads : int, optional
            At most this many threads; all by default.

        Returns
        -------
        codes : (n, ceil(n_bits / 64)) uint64

        Raises
        ------
        TypeError, ValueError
            Where an array is no such array, or a set is empty; the message names the set.
        """
        tokens, bounds = checks.array(values, "values"), checks.array(offsets, "offsets")
        for array, name in ((tokens, "values"), (bounds, "offsets")):
            if array.dtype.kind not in "iu":
                raise TypeError(f"{name} must be integers, got {array.dtype}")
            if array.ndim != 1:
                raise ValueError(f"{name} must have one dimension, got shape {array.shape}")
        if not len(bounds) or bounds[0] != 0 or bounds[-1] != len(tokens):
            ends = f"{bounds[0]} to {bounds[-1]}" if len(bounds) else "none"
            raise ValueError(f"offsets must go from 0 to {len(tokens)}, got {ends}")
        bad = np.flatnonzero(bounds[1:] <= bounds[:-1])
        if bad.size:
            begin, end = bounds[bad[0] : bad[0] + 2]
            raise ValueError(
                f"offsets must ascend, so that no set is empty; set {bad[0]} goes from {begin} to "
                f"{end}"
            )
        return self._codes(
            self._of_arrays(tokens, bounds.astype(np.int64), checks.threads(threads))
        )

    def signatures(
        self, sets: Iterable[Iterable[Token]], *, threads: int | None = None
    ) -> NDArray[np.uint64]:
        """All bits of the minima, for estimates closer than those of codes.

        Parameters
        ----------
        sets, threads
            As for `encode`.

        Returns
        -------
        signatures : (n, n_hashes) uint64
            See `estimate_jaccard_of_signatures`.

        Raises
        ------
        TypeError, ValueError
            As `encode` does.
        """
        return np.concatenate(
            [
                np.empty((0, self.n_hashes), np.uint64),
                *self._of_sets(sets, checks.threads(threads)),
            ]
        )

    def estimate_jaccard(self, distances: ArrayLike) -> NDArray[np.float64]:
        """Jaccard similarities of sets, from distances between their codes.

        Parameters
        ----------
        distances : int, of any shape
            In bits, 0 to ``n_bits``.

        Returns
        -------
        similarities : float64, of that shape
            ``1 - 2 * distances / n_bits``. Below zero by chance where sets have little in common:
            cutting that off would bias their mean.

        Raises
        ------
        TypeError, ValueError
            Where distances are not integers in that range.
        """
        return np.asarray(1 - 2 * _shares(distances, self.n_bits))

    def estimate_jaccard_of_signatures(self, a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
        """Jaccard similarities of sets, from their signatures.

        Parameters
        ----------
        a, b : (..., n_hashes) uint64
            Of shapes that broadcast: the same, or one against many.

        Returns
        -------
        similarities : (...) float64
            The share of minima that are equal. It has no bias and the variance ``J * (1 - J) /
            n_hashes``.

        Raises
        ------
        TypeError, ValueError
            Where the arrays are no signatures, or do not go together.
        """
        first, second = checks.array(a, "a"), checks.array(b, "b")
        for array, name in ((first, "a"), (second, "b")):
            if array.dtype != np.uint64:
                raise TypeError(f"{name} must be uint64 signatures, got {array.dtype}")
            if array.shape[-1:] != (self.n_hashes,):
                raise ValueError(
                    f"{name} must have shape (..., {self.n_hashes}), got {array.shape}"
                )
        try:
            np.broadcast_shapes(first.shape, second.shape)
        except ValueError:
            raise ValueError(
                f"a and b must broadcast, got shapes {first.shape} and {second.shape}"
            ) from None
        return np.asarray(np.mean(first == second, axis=-1))

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes it from."""
        return {
            "kind": "minhash",
            "version": _VERSION,
            "n_hashes": self.n_hashes,
            "bits": self.bits,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> MinHash:
        """The one that gave ``stored``; ValueError where it is no MinHash of this version."""
        return cls(**_arguments(stored, cls().to_json()))

    def _of_sets(
        self, sets: Iterable[Iterable[Token]], threads: int | None
    ) -> Iterator[NDArray[np.uint64]]:
        """Signatures of a block of sets after the other."""
        hash_tokens = _TokenHash(b"he.minhash.token", self.seed)

        def documents() -> Iterator[tuple[NDArray[np.uint64]]]:
            for number, document in enumerate(_collection(sets, "sets")):
                where = f"sets document {number}"
                tokens = hash_tokens(document, where)
                if not len(tokens):
                    raise ValueError(f"{where} is empty; a set must have at least one token")
                yield (tokens,)

        for offsets, (tokens,) in _blocks(documents(), self.n_hashes):
            yield self._minima(tokens, offsets, threads)

    def _of_arrays(
        self, values: NDArray[Any], offsets: NDArray[np.int64], threads: int | None
    ) -> Iterator[NDArray[np.uint64]]:
        """Signatures of a block of sets after the other."""
        hash_tokens = _TokenHash(b"he.minhash.token", self.seed)
        first, limit = 0, _BLOCK_BYTES // 8
        while first < len(offsets) - 1:
            # As many sets as fit, one at least.
            last = int(np.searchsorted(offsets, offsets[first] + limit, side="right")) - 1
            last = max(first + 1, min(last, first + max(1, limit // self.n_hashes)))
            tokens = hash_tokens(values[offsets[first] : offsets[last]], "values")
            yield self._minima(
                tokens, checks.frozen(offsets[first : last + 1] - offsets[first]), threads
            )
            first = last

    def _minima(
        self, tokens: NDArray[np.uint64], offsets: NDArray[np.int64], threads: int | None
    ) -> NDArray[np.uint64]:
        """The signatures of sets of hashed tokens."""
        n_cells = usable_threads(threads)
        keys = _keys(b"he.minhash.keys", self.seed, self.n_hashes)
        signatures = np.full((len(offsets) - 1, self.n_hashes), _MAX_UINT64, np.uint64)
        token_work = self.n_hashes * _HASH_WORK
        launch = max(1, int(WORK_PER_LAUNCH * n_cells / token_work))
        for first in range(0, len(tokens), launch):
            last = min(first + launch, len(tokens))
            edges = np.full((n_cells, self.n_hashes), _MAX_UINT64, np.uint64)
            edge_rows = np.full(n_cells, -1, np.int64)
            # Hashes wrap around, of which NumPy would warn with the JIT off.
            with np.errstate(over="ignore"):
                MINIMA(
                    n_cells,
                    checks.frozen(tokens),
                    first,
                    last,
                    offsets,
                    keys,
                    signatures,
                    edges,
                    edge_rows,
                    work=(last - first) * token_work,
                )
            for row, edge in zip(edge_rows, edges, strict=True):
                if row >= 0:
                    np.minimum(signatures[row], edge, out=signatures[row])
        return signatures

    def _codes(self, blocks: Iterable[NDArray[np.uint64]]) -> NDArray[np.uint64]:
        """The lowest bits of signatures, in the simplex code."""
        n_values = 1 << self.bits
        values = np.arange(n_values, dtype=np.uint8)
        simplex = np.bitwise_count(values[:, None] & values[1:]) & np.uint8(1)
        codes = [np.empty((0, checks.words_for(self.n_bits)), np.uint64)]
        for signatures in blocks:
            low = (signatures & np.uint64(n_values - 1)).astype(np.intp)
            packed = np.packbits(simplex[low].reshape(len(low), -1), axis=1)
            block = np.zeros((len(low), codes[0].shape[1]), np.uint64)
            block.view(np.uint8)[:, : packed.shape[1]] = packed
            codes.append(block)
        return np.concatenate(codes)


def shingles(text: str, size: int = 5) -> set[str]:
    """Every run of ``size`` characters of a text, as a set for `MinHash`.

    Parameters
    ----------
    text : str
    size : int
        In characters, at least 1.

    Returns
    -------
    runs : set of str
        A text shorter than ``size`` is its only run; an empty one has none.

    Raises
    ------
    TypeError, ValueError
        Where the text is none, or the size not a positive integer.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {text!r} of type {type(text).__name__}")
    size = checks.integer(size, "size", 1)
    if not text:
        return set()
    return {text[i : i + size] for i in range(max(1, len(text) - size + 1))}


class _TokenHash:
    """Hashes of 64 bits of the tokens of documents."""

    def __init__(self, person: bytes, seed: int) -> None:
        self._state = _salted(person, seed)
        self._integer_key = np.uint64(_word(self._state))
        self._known: dict[str | bytes, int] = {}

    def __call__(self, tokens: Iterable[Token], where: str) -> NDArray[np.uint64]:
        """Of one document, which errors call ``where``."""
        if isinstance(tokens, np.ndarray) and tokens.ndim == 1 and tokens.dtype.kind in "iu":
            if len(tokens) and tokens.min() < 0:
                raise ValueError(_not_a_token(where, int(tokens.min())))
            return self._of_integers(tokens.astype(np.uint64))
        if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Iterable):
            raise TypeError(
                f"{where} must be a collection of tokens, got {tokens!r} of type "
                f"{type(tokens).__name__}"
            )
        values, integers = [], []
        for token in tokens:
            if isinstance(token, (str, bytes)):
                values.append(self._of_text(token))
            else:
                value = checks.integer(token, f"{where}: a token that is not str or bytes", 0)
                if value > _MAX_UINT64:
                    raise ValueError(_not_a_token(where, value))
                integers.append(len(values))
                values.append(value)
        hashes = np.array(values, np.uint64)
        if integers:
            hashes[integers] = self._of_integers(hashes[integers])
        return hashes

    def _of_text(self, token: str | bytes) -> int:
        known = self._known.get(token)
        if known is not None:
            return known
        if len(self._known) >= _KNOWN_TOKENS:
            self._known.clear()
        state = self._state.copy()
        # Text that is no Unicode, as file names can be, is hashed too.
        state.update(token.encode("utf-8", "surrogatepass") if isinstance(token, str) else token)
        self._known[token] = value = _word(state)
        return value

    def _of_integers(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return np.asarray(mix(values ^ self._integer_key))


def _not_a_token(where: str, value: int) -> str:
    return f"{where}: an integer token must be 0 to 2**64 - 1, got {value}"


def _collection(value: Any, name: str) -> Iterable[Any]:
    """The documents that an argument holds."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(
            f"{name} must be an iterable of documents, got {value!r} of type {type(value).__name__}"
        )
    return value


def _weighted(
    features: Any, weights: Any, hash_tokens: Callable[[Any, str], NDArray[np.uint64]]
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.float64]]]:
    """Hashes and weights of the tokens of each document."""
    given = None if weights is None else iter(_collection(weights, "weights"))
    end = object()
    number = -1
    for number, document in enumerate(_collection(features, "features")):
        where = f"document {number}"
        tokens = hash_tokens(document, f"features {where}")
        found: Any = np.ones(len(tokens))
        if isinstance(document, Mapping):
            if given is not None:
                raise ValueError(f"features {where} is a mapping: it has its own weights")
            found = list(document.values())
        elif given is not None:
            found = next(given, end)
            if found is end:
                raise ValueError(f"weights must have one array a document, got {number}")
        yield tokens, _weights(found, f"weights {where}", len(tokens))
    if given is not None and next(given, end) is not end:
        raise ValueError(f"weights must have one array a document: {number + 1}, got more")


def _weights(value: Any, where: str, n_tokens: int) -> NDArray[np.float64]:
    """The weights of a document's tokens, as finite floats."""
    found = checks.array(value, where)
    if found.size and found.dtype.kind not in "iuf":
        raise TypeError(f"{where} must be ints or floats, got {found.dtype}")
    if found.shape != (n_tokens,):
        raise ValueError(f"{where} must have one weight a token, ({n_tokens},), got {found.shape}")
    floats = found.astype(np.float64)
    if not np.isfinite(floats).all():
        raise ValueError(f"{where} holds NaN or infinity")
    return floats


def _blocks(
    documents: Iterable[tuple[NDArray[Any], ...]], row_values: int
) -> Iterator[tuple[NDArray[np.int64], list[NDArray[Any]]]]:
    """Documents in blocks: ``offsets`` of each, and the columns they have, end to end.

    A block ends when its tokens, or its rows of ``row_values`` values, have reached their memory.
    """
    limit = _BLOCK_BYTES // 8
    batch: list[tuple[NDArray[Any], ...]] = []
    offsets = [0]
    for document in documents:
        batch.append(document)
        offsets.append(offsets[-1] + len(document[0]))
        if offsets[-1] >= limit or len(batch) * row_values >= limit:
            yield _joined(batch, offsets)
            batch, offsets = [], [0]
    if batch:
        yield _joined(batch, offsets)


def _joined(
    batch: list[tuple[NDArray[Any], ...]], offsets: list[int]
) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
    columns = [checks.frozen(np.concatenate(column)) for column in zip(*batch, strict=True)]
    return checks.frozen(np.array(offsets, np.int64)), columns


def _seed(value: Any) -> int:
    seed = checks.integer(value, "seed", 0)
    if seed > _MAX_UINT64:
        raise ValueError(f"seed must be at most 2**64 - 1, got {seed}")
    return seed


def _arguments(stored: Any, example: dict[str, Any]) -> dict[str, Any]:
    """What a class is made with, out of what `to_json` gave, which is like ``example``."""
    if not isinstance(stored, Mapping):
        raise TypeError(f"stored must be a mapping, got {stored!r} of type {type(stored).__name__}")
    same = all(stored.get(name) == example[name] for name in ("kind", "version"))
    if not same or set(stored) != set(example):
        raise ValueError(f"stored must be like {example}, got {dict(stored)}")
    return {name: stored[name] for name in example if name not in ("kind", "version")}


def _shares(distances: Any, n_bits: int) -> NDArray[np.float64]:
    """Distances as shares of all bits."""
    found = checks.array(distances, "distances")
    if found.dtype.kind not in "iu":
        raise TypeError(f"distances must be integers, got {found.dtype}")
    bad = found[(found < 0) | (found > n_bits)]
    if bad.size:
        raise ValueError(f"distances must be 0 to {n_bits}, got {bad[0]}")
    return np.asarray(found / n_bits)


def _salted(person: bytes, seed: int) -> hashlib.blake2b:
    """BLAKE2b to 64 bits, for one purpose and seed."""
    return hashlib.blake2b(digest_size=8, person=person, salt=seed.to_bytes(8, "little"))


def _word(state: hashlib.blake2b) -> int:
    return int.from_bytes(state.digest(), "little")


def _keys(person: bytes, seed: int, n: int) -> NDArray[np.uint64]:
    """The first ``n`` outputs of a SplitMix64 that begins at the hash of nothing."""
    start = np.uint64(_word(_salted(person, seed)))
    return checks.frozen(mix(start + np.arange(1, n + 1, dtype=np.uint64) * ODD))


@functools.lru_cache(maxsize=1)
def _planes(dim: int, n_words: int, seed: int) -> NDArray[np.float64]:
    """Gaussian normals of hyperplanes, (n_words, dim, 64), each value from its own place alone.

    By the ratio of uniforms (Kinderman, Monahan: "Computer generation of random variables using the
    ratio of uniform deviates", ACM TOMS 3, 1977), which takes a logarithm only to accept or refuse:
    the values themselves come out of a product and a quotient, so they do not depend on a library.
    """
    rows = _keys(b"he.simhash.rows", seed, dim)[:, None]
    columns = _keys(b"he.simhash.plane", seed, n_words * WORD).reshape(n_words, 1, WORD)
    planes = np.empty((n_words, dim, WORD))
    for word, column in enumerate(columns):
        # Each value has a stream of SplitMix64 of its own, and takes pairs until one is accepted.
        states = mix(rows ^ column).reshape(-1)
        values = planes[word].reshape(-1)
        waiting = np.arange(values.size)
        while waiting.size:
            states += ODD
            u = _fractions(mix(states))
            states += ODD
            v = _fractions(mix(states)) - 0.5
            drawn = math.sqrt(8 / math.e) * v / u
            accepted = drawn * drawn <= -4 * np.log(u)
            values[waiting[accepted]] = drawn[accepted]
            waiting, states = waiting[~accepted], states[~accepted]
    return checks.frozen(planes)


def _fractions(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """52 bits of each word as a float between 0 and 1, never either, as likely as 1 minus it."""
    return np.asarray(((words >> np.uint64(12)) + 0.5) * 2.0**-52)
