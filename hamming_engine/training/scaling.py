"""Rows scaled to unit length, or to a mean square of 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def unit_rows(x: Tensor) -> Tensor:
    """The last axis scaled to unit length; all zeros stay."""
    # The usual 1e-12 is 0 in float16.
    return functional.normalize(x, dim=-1, eps=max(1e-12, torch.finfo(x.dtype).tiny))


def spread_rows(x: Tensor) -> Tensor:
    """The last axis scaled to a mean square of 1; all zeros stay.

    No sign changes, and values get about as large as straight-through gradients want them (Zhang
    and Sennrich: "Root mean square layer normalization", NeurIPS 2019, without its gain).
    """
    return unit_rows(x) * math.sqrt(x.shape[-1])


def widened(x: Tensor) -> Tensor:
    """At least float32: bfloat16 does not count bits beyond 256."""
    return x if x.dtype == torch.float64 else x.float()


def exact_products(x: Tensor) -> torch.autocast:
    """A context in which products are not rounded to what autocast would choose."""
    return torch.autocast(x.device.type, enabled=False)
