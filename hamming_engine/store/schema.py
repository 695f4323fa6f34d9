"""What a collection holds: the settings that every segment and manifest repeats."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

METRICS = ("cosine", "dot", "l2")
VECTORS = ("float32", "float16", "int8", None)
IDS = ("int64", "utf8")
MAX_DIM = 1 << 20
_MAX_QUANTIZER_JSON = 1 << 16


@dataclass(frozen=True)
class Schema:
    """Settings fixed when a collection is created.

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
    """

    dim: int
    n_bits: int
    metric: str
    vectors: str | None
    quantizer: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Schema:
        """Read untrusted JSON; ``ValueError`` says what is wrong with it."""
        if not isinstance(value, dict):
            raise ValueError(f"the schema is no JSON object: {value!r}")
        schema = cls(**{field: value.get(field) for field in cls.__dataclass_fields__})  # type: ignore[arg-type]
        for field in ("dim", "n_bits"):
            number = getattr(schema, field)
            if type(number) is not int or not 1 <= number <= MAX_DIM:
                raise ValueError(f"{field} is {number!r}, expected 1 to {MAX_DIM}")
        if schema.metric not in METRICS:
            raise ValueError(f"metric is {schema.metric!r}, expected one of {METRICS}")
        if schema.vectors not in VECTORS:
            raise ValueError(f"vectors is {schema.vectors!r}, expected one of {VECTORS}")
        if (
            not isinstance(schema.quantizer, dict)
            or len(json.dumps(schema.quantizer)) > _MAX_QUANTIZER_JSON
        ):
            raise ValueError("quantizer is no JSON object of at most 64 KiB")
        return schema
