"""What a collection holds: the settings that every segment and manifest repeats."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from ..columns import check_types

METRICS = ("cosine", "dot", "l2")
VECTORS = ("float32", "float16", "int8", None)
IDS = ("int64", "utf8")
MAX_DIM = 1 << 20
FACTORS = (0, 2)
_MAX_JSON = 1 << 16


def json_object(value: Any, name: str) -> dict[str, Any]:
    """A copy of a small JSON object as it will be read again; ``ValueError`` where it is none."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        text = ""
    if not isinstance(value, dict) or not 0 < len(text) <= _MAX_JSON:
        raise ValueError(f"{name} is no JSON object of at most 64 KiB")
    copy: dict[str, Any] = json.loads(text)
    return copy


@dataclass(frozen=True)
class Schema:
    """Settings of a collection, fixed with its first rows.

    Attributes
    ----------
    dim : int
        Dimensions of the vectors that come in.
    n_bits : int
        Bits in a code.
    metric : str
        "cosine", "dot" or "l2".
    vectors : str or None
        "float32", "float16", "int8": what is kept for re-ranking; None keeps the codes alone.
    quantizer : dict
        What turned vectors into codes, as JSON.
    factors : int
        0 or 2: numbers stored with each code, which correct its scores.
    columns : dict of str to str
        Types of the columns, by name; see `hamming_engine.columns`.
    """

    dim: int
    n_bits: int
    metric: str
    vectors: str | None
    quantizer: dict[str, Any]
    factors: int = 0
    columns: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Schema:
        """Read untrusted JSON; ``ValueError`` says what is wrong with it."""
        if not isinstance(value, dict):
            raise ValueError(f"the schema is no JSON object: {value!r}")
        fields = {name: value.get(name) for name in cls.__dataclass_fields__}
        fields["quantizer"] = json_object(fields["quantizer"], "quantizer")
        fields["factors"] = value.get("factors", 0)  # version 1 has none
        fields["columns"] = value.get("columns", {})  # nor has version 2 these
        schema = cls(**fields)  # type: ignore[arg-type]
        for name in ("dim", "n_bits"):
            number = getattr(schema, name)
            if type(number) is not int or not 1 <= number <= MAX_DIM:
                raise ValueError(f"{name} is {number!r}, expected 1 to {MAX_DIM}")
        if schema.metric not in METRICS:
            raise ValueError(f"metric is {schema.metric!r}, expected one of {METRICS}")
        if schema.vectors not in VECTORS:
            raise ValueError(f"vectors is {schema.vectors!r}, expected one of {VECTORS}")
        if type(schema.factors) is not int or schema.factors not in FACTORS:
            raise ValueError(f"factors is {schema.factors!r}, expected one of {FACTORS}")
        check_types(schema.columns)
        return schema
