"""Quantisers: floats to codes, and to the int8 vectors that candidates are re-ranked with."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from .base import METRICS, Encoded, NotFittedError, Quantizer, QueryWeights
from .head import HOW_TO_GET_ONE, HeadQuantizer
from .int8 import Int8Quantizer, Int8Scale
from .local_search import LocalSearchQuantizer
from .matryoshka import MatryoshkaQuantizer, truncate
from .projections import ITQQuantizer, RaBitQuantizer, RotationQuantizer
from .sign import SignQuantizer, ThresholdQuantizer
from .simhash import SimHashQuantizer

__all__ = [
    "Encoded",
    "HeadQuantizer",
    "ITQQuantizer",
    "Int8Quantizer",
    "Int8Scale",
    "LocalSearchQuantizer",
    "MatryoshkaQuantizer",
    "NotFittedError",
    "Quantizer",
    "QueryWeights",
    "RaBitQuantizer",
    "RotationQuantizer",
    "SignQuantizer",
    "SimHashQuantizer",
    "ThresholdQuantizer",
    "by_name",
    "from_stored",
    "load",
    "truncate",
]

_KINDS: dict[str, type[Quantizer]] = {
    quantizer.kind: quantizer
    for quantizer in (
        SignQuantizer,
        ThresholdQuantizer,
        RotationQuantizer,
        ITQQuantizer,
        RaBitQuantizer,
        LocalSearchQuantizer,
        SimHashQuantizer,
        HeadQuantizer,
    )
}
_SHAPE = {"dim", "n_bits", "metric"}
# What damaged files make those raise who read them.
_DAMAGES = (
    EOFError,
    KeyError,
    MemoryError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def by_name(name: str) -> Quantizer:
    """A quantiser with its default parameters, not fitted.

    Parameters
    ----------
    name : {"sign", "threshold", "rotation", "itq", "rabitq", "local_search", "simhash"}

    Raises
    ------
    ValueError
        For other names, and for "head", which has to be trained.
    """
    if isinstance(name, str) and name == HeadQuantizer.kind:
        raise ValueError(f"quantizer {name!r} cannot be made from its name: {HOW_TO_GET_ONE}")
    names = tuple(kind for kind in _KINDS if kind != HeadQuantizer.kind)
    return _KINDS[checks.choice(name, "quantizer", names)]()


def from_stored(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Quantizer:
    """The quantiser that `Quantizer.to_json` and `Quantizer.arrays` described.

    Raises
    ------
    ValueError
        Where they describe none; nothing in them is trusted.
    """
    try:
        kind, parameters = header["kind"], header.get("parameters", {})
        unknown = set(header) - {"kind", "parameters", *_SHAPE}
        if unknown:
            raise ValueError(f"unknown members {sorted(unknown)}")
        if kind == MatryoshkaQuantizer.kind:
            inner = from_stored(parameters["inner"], {})
            quantizer: Quantizer = MatryoshkaQuantizer(**{**parameters, "inner": inner})
        elif kind in _KINDS:
            quantizer = _KINDS[kind](**parameters)
        else:
            raise ValueError(f"its kind is {kind!r}, this release knows {sorted(_KINDS)}")
        if _SHAPE & set(header):
            quantizer.dim = checks.integer(header["dim"], "dim", 1)
            quantizer.n_bits = checks.integer(header["n_bits"], "n_bits", 1)
            quantizer.metric = checks.choice(header["metric"], "metric", METRICS)
            if quantizer.bits_of(quantizer.dim) != quantizer.n_bits:
                raise ValueError(f"{quantizer.n_bits} bits of {quantizer.dim} dimensions")
            quantizer._set_arrays(arrays)
        elif arrays:
            raise ValueError(f"arrays {sorted(arrays)} of a quantizer that is not fitted")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"no quantizer: {error}") from error
    return quantizer


def load(path: Any) -> Quantizer:
    """Read a quantiser that `Quantizer.save` wrote.

    Raises
    ------
    OSError
    ValueError
        Where the file holds none.
    """
    content = io.BytesIO(checks.path(path).read_bytes())
    try:
        with zipfile.ZipFile(content) as file:
            arrays = {name.removesuffix(".npy"): _read(file, name) for name in file.namelist()}
        quantizer = from_stored(json.loads(arrays.pop("header").tobytes()), arrays)
        quantizer._check_fitted()
    except _DAMAGES as error:
        raise ValueError(f"{path} holds no quantizer: {error}") from error
    return quantizer


def _read(file: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with file.open(name) as member:
        array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array
