"""Quantisers: floats to codes, and to the int8 vectors that candidates are re-ranked with."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from .base import METRICS, Encoded, NotFittedError, Quantizer, QueryWeights
from .int8 import Int8Quantizer, Int8Scale
from .local_search import LocalSearchQuantizer
from .matryoshka import MatryoshkaQuantizer, truncate
from .projections import ITQQuantizer, RaBitQuantizer, RotationQuantizer
from .sign import SignQuantizer, ThresholdQuantizer

__all__ = [
    "Encoded",
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
    )
}
_SHAPE = ("dim", "n_bits", "metric")


def by_name(name: str) -> Quantizer:
    """A quantiser with its default parameters, not fitted.

    Parameters
    ----------
    name : {"sign", "threshold", "rotation", "itq", "rabitq", "local_search"}
    """
    return _KINDS[checks.choice(name, "quantizer", tuple(_KINDS))]()


def from_stored(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Quantizer:
    """The quantiser that `Quantizer.to_json` and `Quantizer.arrays` described.

    Raises
    ------
    ValueError
        Where they describe none; nothing in them is trusted.
    """
    kind = header.get("kind")
    parameters = {name: header[name] for name in header if name not in ("kind", *_SHAPE)}
    try:
        if kind == MatryoshkaQuantizer.kind:
            quantizer: Quantizer = MatryoshkaQuantizer(
                from_stored(parameters["inner"], {}), parameters["kept_dim"]
            )
        elif kind in _KINDS:
            quantizer = _KINDS[kind](**parameters)
        else:
            raise ValueError(f"its kind is {kind!r}, this release knows {sorted(_KINDS)}")
        if "n_bits" in header and "dim" in header:
            quantizer.dim = checks.integer(header["dim"], "dim", 1)
            quantizer.n_bits = checks.integer(header["n_bits"], "n_bits", 1)
            quantizer.metric = checks.choice(header["metric"], "metric", METRICS)
            if quantizer.bits_of(quantizer.dim) != quantizer.n_bits:
                raise ValueError(f"{quantizer.n_bits} bits of {quantizer.dim} dimensions")
            quantizer._set_arrays(arrays)
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
    try:
        with np.load(checks.path(path), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop("header").tobytes())
    except (KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} holds no quantizer: {error}") from error
    return from_stored(header, arrays)
