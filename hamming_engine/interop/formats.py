"""Codes as other systems hold them, in and out, and which system some data came from.

Systems agree on the idea, one bit a dimension, and on nothing else: which bit of a byte comes
first, whether bytes are signed and how, and what a 1 stands for. Read wrongly, two int8 conventions
even give the same Hamming distances, and only scores against floats are wrong. `FORMATS` says what
each system does; `detect_format` finds it out from a few vectors and their codes.

A bit is 1 where the value is above zero, in Weaviate where it is below. Some programs write
``>= 0`` for ``> 0`` (vLLM, the LSH index of FAISS): that differs for values of exactly zero alone,
and nothing in the codes tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks

_BLOCK_BYTES = 1 << 18  # of packed codes at a time: as text, bits take eight times as much

# What a byte becomes when its bits are read from the other end.
_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1])

_DIGITS = np.full(256, 255, np.uint8)  # the value of a character; 255 for what is no digit
_DIGITS[list(b"0123456789abcdef")] = np.arange(16)
_DIGITS[list(b"ABCDEF")] = np.arange(10, 16)
_BASES = {"bits": 2, "hex": 16}

# Codes made by the right reading may still disagree with a few signs: thresholds differ, and floats
# may have been rounded since. A reading that fails on more than a quarter explains nothing.
_LEAST_ERROR, _MOST_ERROR = 0.05, 0.25


@dataclass(frozen=True)
class Format:
    """How one system holds codes.

    Attributes
    ----------
    name : str
        What `from_format` and `to_format` call it.
    system : str
        Whose convention it is.
    unit : str
        What a row is made of: ``"uint8"``, ``"int8"`` or ``"uint64"`` numbers; ``"bytes"``, one
        object a row; or text, one ``"bits"`` character a dimension or ``"hex"`` digits.
    bit_order : str
        ``"big"`` where the first dimension is the most significant bit of its byte, ``"little"``
        where it is the least significant bit of its byte or word.
    source : str
        Where that is written.
    offset : bool
        Whether an int8 stands for ``unsigned - 128`` rather than being two's complement.
    negative : bool
        Whether a bit is 1 where the value is below zero, not above.
    whole_bytes : bool
        Whether the system takes multiples of 8 dimensions only.
    """

    name: str
    system: str
    unit: str
    bit_order: str
    source: str
    offset: bool = False
    negative: bool = False
    whole_bytes: bool = False

    @property
    def is_text(self) -> bool:
        """Whether a row is a `str`."""
        return self.unit in _BASES

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what a row is made of, as numbers."""
        return np.dtype(self.unit if self.unit in ("int8", "uint64") else "uint8")

    def n_bytes(self, n_bits: int) -> int:
        """Bytes in a row once packed, with the bits beyond ``n_bits`` that the system has."""
        return -(-n_bits // (8 * self.dtype.itemsize)) * self.dtype.itemsize

    def width(self, n_bits: int) -> int:
        """Numbers, bytes or characters in a row."""
        if self.unit == "bits":
            return n_bits
        return self.n_bytes(n_bits) * (2 if self.unit == "hex" else 1) // self.dtype.itemsize


_ST = "sentence-transformers"

FORMATS = {
    form.name: form
    for form in (
        Format("packbits", "NumPy", "uint8", "big", "packbits"),
        Format("packbits-little", "NumPy", "uint8", "little", "packbits, bitorder='little'"),
        Format("ubinary", _ST, "uint8", "big", "quantize_embeddings"),
        Format("binary", _ST, "int8", "big", "quantize_embeddings", offset=True),
        Format("cohere", "Cohere", "int8", "big", "embed, embedding type binary", offset=True),
        Format("voyage", "Voyage", "int8", "big", "quantization: offset binary", offset=True),
        Format("vespa", "Vespa", "int8", "big", "binarizing vectors: pack_bits"),
        Format("pgvector", "pgvector", "bits", "big", "src/vector.c, binary_quantize"),
        Format("faiss", "FAISS", "uint8", "little", "real_to_binary", whole_bytes=True),
        Format("usearch", "USearch", "uint8", "big", "scalar kind b1"),
        Format(
            "sqlite-vec", "sqlite-vec", "bytes", "little", "vec_quantize_binary", whole_bytes=True
        ),
        Format("weaviate", "Weaviate", "uint64", "little", "BinaryQuantizer", negative=True),
        Format("hex", "any", "hex", "big", "bytes.hex of packbits"),
    )
}
"""Every format, by name."""


def from_format(
    data: Any,
    format: str,  # noqa: A002
    n_bits: int,
    *,
    inverted: bool = False,
) -> NDArray[np.uint64]:
    """Codes out of what another system holds.

    Parameters
    ----------
    data : array or sequence
        A row a code, or a single row. For formats of numbers, an (n, width) array of the format's
        dtype; for those of 8 bits also lists of integers, as JSON has them, and for uint8 a
        sequence of `bytes`. For ``"pgvector"`` and ``"hex"``, a sequence of `str`, or a NumPy array
        of text.
    format : str
        A name in `FORMATS`.
    n_bits : int
        Dimensions in a code; the last byte or word of a row may have bits beyond them.
    inverted : bool
        Whether the bits are the opposite of what the format says.

    Returns
    -------
    codes : (n, ceil(n_bits / 64)) uint64
        As `hamming_engine.pack_signs` makes them.

    Raises
    ------
    TypeError
        Where the data are of another type than the format's.
    ValueError
        Where rows have another length than ``n_bits`` take, hold characters or numbers that the
        format has not, or have ones beyond ``n_bits``; the message names the row. Where a 1 stands
        for a value below zero, bits beyond ``n_bits`` are not looked at: some programs invert them
        with the others and some do not.

    Notes
    -----
    sentence-transformers packs all rows in one go: where its vectors have no multiple of 8
    dimensions, rows begin inside a byte, and no reading by row is right.
    """
    form, n_bits, negative = _checked(format, n_bits, inverted)
    rows = _texts(data, form) if form.is_text else _numbers(data, form, n_bits)
    codes = np.zeros((len(rows), checks.words_for(n_bits)), np.uint64)
    n_bytes = form.n_bytes(n_bits)
    for block in _blocks(len(rows), n_bytes):
        packed = (
            _packed_text(rows[block], block.start, form, n_bits)
            if form.is_text
            else np.ascontiguousarray(rows[block]).view(np.uint8)
        )
        codes[block].view(np.uint8)[:, :n_bytes] = _reordered(packed, form)
        if negative:
            codes[block] = _inverted(codes[block], n_bits)
        else:
            checks.check_padding(codes[block], "data", n_bits, block.start)
    return codes


def to_format(
    codes: ArrayLike,
    format: str,  # noqa: A002
    n_bits: int,
    *,
    inverted: bool = False,
) -> Any:
    """Codes as another system holds them.

    Parameters
    ----------
    codes : (n, n_words) or (n_words,) uint64
    format : str
        A name in `FORMATS`.
    n_bits : int
        Dimensions in a code.
    inverted : bool
        Whether to write the opposite of the bits that the format says.

    Returns
    -------
    data : (n, width) array, list of bytes or list of str
        An array of the format's dtype; for ``"sqlite-vec"`` a list of `bytes`; for ``"pgvector"``
        and ``"hex"``, in lower case, a list of `str`. Bits beyond ``n_bits`` are zero.

    Raises
    ------
    TypeError, ValueError
        Where the codes are not of ``n_bits`` bits or have ones beyond them, or the system takes
        multiples of 8 dimensions only.
    """
    form, n_bits, negative = _checked(format, n_bits, inverted)
    if form.whole_bytes and n_bits % 8:
        raise ValueError(f"n_bits must be a multiple of 8 for {form.name}, got {n_bits}")
    words = checks.codes(codes, "codes", n_bits)
    n_bytes = form.n_bytes(n_bits)
    objects: list[Any] = []
    listed = form.is_text or form.unit == "bytes"
    array = np.empty((0 if listed else len(words), form.width(n_bits)), form.dtype)
    for block in _blocks(len(words), n_bytes):
        made = _inverted(words[block], n_bits) if negative else words[block]
        packed = _reordered(made.view(np.uint8)[:, :n_bytes], form)
        if listed:
            objects += _objects(packed, form, n_bits)
        else:
            array[block].view(np.uint8)[:] = packed
    return objects if listed else array


@dataclass(frozen=True)
class Detection:
    """What `detect_format` found.

    Attributes
    ----------
    format : str
        The reading that agrees best with the vectors.
    inverted : bool
        Whether its bits are the opposite of what the format says.
    agreement : float
        The share of bits that match the signs of the vectors, values of zero left out.
    runner_up : str or None
        The best reading that decodes to other codes; None where the data allow no other.
    runner_up_inverted : bool
        Whether it is inverted.
    runner_up_agreement : float
        Its share of matching bits; 0 where there is none.
    confidence : float
        The probability that the reading is right, 0 to 1, under the model of `detect_format`. Where
        it is below 0.99, give more pairs, or longer ones.
    same_as : tuple of str
        Other formats that read such data the same way.
    """

    format: str
    inverted: bool
    agreement: float
    runner_up: str | None
    runner_up_inverted: bool
    runner_up_agreement: float
    confidence: float
    same_as: tuple[str, ...]


@dataclass(frozen=True)
class _Reading:
    """One way to decode data, and how many signs it gets right."""

    names: list[str]
    inverted: bool
    n_right: int


def detect_format(
    data: Any, vectors: ArrayLike, *, formats: Sequence[str] | None = None
) -> Detection:
    """Find out how codes are held, from a few of them and the vectors that they were made of.

    Every format that can hold such data is tried, as it is and with inverted bits. One pair of 256
    dimensions is usually enough.

    Parameters
    ----------
    data : array or sequence
        As for `from_format`, a row a vector.
    vectors : (n, dim) or (dim,) float16, float32 or float64
        In the same order.
    formats : sequence of str, optional
        The names in `FORMATS` to try; all by default. A wrong format can agree with most signs, the
        wrong kind of int8 with 7 in 8: leaving the right one out may give another with confidence.

    Returns
    -------
    found : Detection

    Raises
    ------
    TypeError
        Where the vectors are not floats.
    ValueError
        Where no format can hold the data, none agrees with the signs better than chance, there are
        not as many rows as vectors, or the vectors hold nothing but zeros, NaN or infinity.

    Notes
    -----
    The model: either one reading is right, and each bit contradicts the sign of its value with
    probability e, independently; or none is, and bits contradict signs as coins do. All these are
    as likely beforehand, e is what is seen for the best reading by Laplace's rule of succession,
    (wrong + 1) / (bits + 2), held between 0.05 and 0.25, and the confidence is what Bayes' rule
    then gives. Readings that differ in general but not on these rows, such as both bit orders on
    bytes that are palindromes, share their probability, so that neither gets more than half.
    """
    floats = checks.floats(vectors, "vectors")
    bad = np.flatnonzero(~np.isfinite(floats).all(axis=1))
    if bad.size:
        raise ValueError(f"vectors row {bad[0]} holds NaN or infinity")
    signs, known = _packed(floats > 0), _packed(floats != 0)
    n_known = int(np.bitwise_count(known).sum())
    if not n_known:
        raise ValueError(f"vectors of shape {floats.shape} hold no value but zero")

    names = tuple(FORMATS if formats is None else dict.fromkeys(formats))
    if not names:
        raise ValueError(f"formats must name one format at least, got {formats!r}")
    readings: dict[Any, _Reading] = {}
    refusals: list[str] = []
    for inverted in (False, True):
        for name in names:
            form = _format(name)
            try:
                codes = from_format(data, name, floats.shape[1], inverted=inverted)
            except (TypeError, ValueError) as error:
                refusals.append(f"{name}: {error}")
                continue
            if len(codes) != len(floats):
                raise ValueError(f"data have {len(codes)} rows, vectors {len(floats)}")
            n_wrong = int(np.bitwise_count((codes ^ signs) & known).sum())
            reading = readings.setdefault(
                (form.unit == "bits", form.bit_order, form.offset, form.negative != inverted),
                _Reading([], inverted, n_known - n_wrong),
            )
            reading.names.append(name)
    if not readings:  # and inverting has changed no message
        raise ValueError("data fit no format: " + "; ".join(refusals[: len(names)]))
    return _judged(sorted(readings.values(), key=lambda r: -r.n_right), n_known)


def _judged(readings: list[_Reading], n_known: int) -> Detection:
    """The best reading, and how sure that is; they come best first."""
    best, *others = readings
    error = (n_known - best.n_right + 1) / (n_known + 2)
    error = min(max(error, _LEAST_ERROR), _MOST_ERROR)
    n_right = np.array([reading.n_right for reading in readings])
    likelihoods = n_right * np.log1p(-error) + (n_known - n_right) * np.log(error)
    chance = -n_known * np.log(2)
    if likelihoods[0] <= chance:
        raise ValueError(
            f"data fit no format: the best, {best.names[0]}, agrees with "
            f"{best.n_right} of {n_known} signs, about half is chance"
        )
    odds = np.exp(np.array([*likelihoods, chance]) - likelihoods[0])
    other = others[0] if others else None
    return Detection(
        format=best.names[0],
        inverted=best.inverted,
        agreement=best.n_right / n_known,
        runner_up=other.names[0] if other else None,
        runner_up_inverted=other.inverted if other else False,
        runner_up_agreement=other.n_right / n_known if other else 0.0,
        confidence=float(1 / odds.sum()),
        same_as=tuple(best.names[1:]),
    )


def _checked(name: Any, n_bits: Any, inverted: Any) -> tuple[Format, int, bool]:
    """The format, the bits, and whether a 1 stands for a value below zero."""
    form = _format(name)
    if not isinstance(inverted, (bool, np.bool_)):
        raise TypeError(f"inverted must be True or False, got {inverted!r}")
    return form, checks.integer(n_bits, "n_bits", 1), form.negative != inverted


def _format(name: Any) -> Format:
    return FORMATS[checks.choice(name, "format", tuple(FORMATS))]


def _packed(bools: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Codes of which the bits are given."""
    n, n_bits = bools.shape
    codes = np.zeros((n, checks.words_for(n_bits)), np.uint64)
    codes.view(np.uint8)[:, : -(-n_bits // 8)] = np.packbits(bools, axis=1)
    return codes


def _reordered(packed: NDArray[np.uint8], form: Format) -> NDArray[np.uint8]:
    """Bytes of a format from those of codes, or back: the same steps, as no format needs both."""
    if form.offset:
        return packed ^ np.uint8(0x80)
    return _REVERSED[packed] if form.bit_order == "little" else packed


def _inverted(codes: NDArray[np.uint64], n_bits: int) -> NDArray[np.uint64]:
    """The opposite of all bits but those beyond ``n_bits``, which are zero."""
    opposite = ~codes
    opposite[:, -1] &= ~checks.pad_mask(n_bits)
    return opposite


def _blocks(n: int, n_bytes: int) -> Iterator[slice]:
    """Rows to convert at a time, of ``n_bytes`` each."""
    block_rows = max(1, _BLOCK_BYTES // n_bytes)
    for first in range(0, n, block_rows):
        yield slice(first, first + block_rows)


def _objects(packed: NDArray[np.uint8], form: Format, n_bits: int) -> list[Any]:
    """An object a row: bytes or text."""
    joined: bytes | str = packed.tobytes()
    if form.unit == "hex":
        joined = packed.tobytes().hex()
    elif form.unit == "bits":
        bits = np.unpackbits(packed, axis=1, count=n_bits)
        bits += ord("0")
        joined = bits.tobytes().decode("ascii")
    width = form.width(n_bits)
    return [joined[first : first + width] for first in range(0, len(joined), width)]


def _rows(data: Any) -> Any:
    """A list of objects, or an array of numbers or text."""
    if isinstance(data, (str, bytes)):
        return [data]
    if isinstance(data, (list, tuple)):
        return data
    array = checks.array(data, "data")
    return array.tolist() if array.dtype == object and array.ndim == 1 else array


def _numbers(data: Any, form: Format, n_bits: int) -> NDArray[Any]:
    """An (n, width) array of the format's dtype."""
    dtype, width = form.dtype, form.width(n_bits)
    rows = _rows(data)
    if isinstance(rows, (list, tuple)):
        rows = _listed_numbers(rows, form, n_bits)
    if rows.dtype != dtype:
        raise TypeError(f"data must be {dtype} for {form.name}, got {rows.dtype}")
    if rows.ndim not in (1, 2) or rows.shape[-1] != width:
        raise ValueError(
            f"data must have shape (n, {width}) or ({width},) for {n_bits} bits as {form.name}, "
            f"got {rows.shape}"
        )
    return np.atleast_2d(rows)


def _listed_numbers(rows: Sequence[Any], form: Format, n_bits: int) -> NDArray[Any]:
    """The array of a list, of the format's dtype where its values allow."""
    dtype, width = form.dtype, form.width(n_bits)
    if not rows:
        return np.zeros((0, width), dtype)
    for number, row in enumerate(rows):
        if isinstance(row, (list, tuple, bytes)) and len(row) != width:
            raise ValueError(
                f"data row {number} has {len(row)} values, {n_bits} bits take {width} "
                f"as {form.name}"
            )
    if dtype == np.uint8 and all(isinstance(row, bytes) for row in rows):
        return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, width)
    array = checks.array(rows, "data")
    if array.dtype.kind not in "iu" or dtype.itemsize > 1:
        return array
    limits = np.iinfo(dtype)
    outside = np.argwhere((array < limits.min) | (array > limits.max))
    if outside.size:
        place = tuple(outside[0])
        raise ValueError(
            f"data row {place[0] if array.ndim > 1 else 0} holds {array[place]}, {form.name} takes "
            f"{limits.min} to {limits.max}"
        )
    return array.astype(dtype)


def _texts(data: Any, form: Format) -> Any:
    """A list of what should be text, or an (n,) array of text."""
    rows = _rows(data)
    if isinstance(rows, np.ndarray) and (rows.ndim != 1 or rows.dtype.kind not in "SUT"):
        raise TypeError(
            f"data must be text for {form.name}, a str a row, got {rows.dtype} of shape "
            f"{rows.shape}"
        )
    return rows


def _packed_text(block: Any, first: int, form: Format, n_bits: int) -> NDArray[np.uint8]:
    """Bytes of rows of text, which errors count from ``first`` on."""
    if isinstance(block, np.ndarray):
        block = (np.char.decode(block, "latin-1") if block.dtype.kind == "S" else block).tolist()
    width, base = form.width(n_bits), _BASES[form.unit]
    for number, text in enumerate(block, first):
        if not isinstance(text, str):
            raise TypeError(f"data row {number} must be text for {form.name}, got {text!r:.60}")
        if len(text) != width:
            raise ValueError(
                f"data row {number} has {len(text)} characters, {n_bits} bits take {width} "
                f"as {form.name}"
            )
    # What has no byte in Latin-1 becomes one question mark, which is no digit either.
    characters = np.frombuffer("".join(block).encode("latin-1", "replace"), np.uint8)
    digits = _DIGITS[characters].reshape(-1, width)
    wrong = np.argwhere(digits >= base)
    if wrong.size:
        row, place = wrong[0]
        raise ValueError(
            f"data row {first + row} has {block[row][place]!r} at character {place}, expected "
            f"digits of base {base}"
        )
    if base == 2:
        return np.packbits(digits, axis=1)
    return digits[:, ::2] * np.uint8(16) + digits[:, 1::2]
