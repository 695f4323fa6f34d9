"""Rows scaled to unit length, or to a mean square of 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unit_rows(x: Tensor) -> Tensor:
    """The last axis scaled to unit length; zeros come out where it has none, and no gradient."""
    lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    shortest = max(1e-12, torch.finfo(x.dtype).tiny)
    # By an infinite length, not by a tiny one: gradients through that would outweigh all others.
    return x / torch.where(lengths > shortest, lengths, math.inf)


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
