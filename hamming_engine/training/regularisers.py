"""What keeps bits informative: each as often on as off, and no two alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .ste import described, sign_ste


def bit_balance(x: Tensor, variant: str = "clipped") -> Tensor:
    """How unbalanced bits are: the mean over bits of the squared mean of their signs.

    0 where each bit is on in half of the rows, 1 where all are the same in every row: the first
    condition of Weiss, Torralba, Fergus: "Spectral hashing" (NeurIPS 2008), section 2, as a
    penalty.

    Parameters
    ----------
    x : (n, n_bits) Tensor of floats
        Embeddings before their signs, about as large as 1.
    variant : str
        See `sign_ste`.

    Returns
    -------
    Tensor
        A scalar.

    Raises
    ------
    TypeError, ValueError
    """
    return _signs(x, variant).mean(dim=0).square().mean()


def decorrelation(x: Tensor, variant: str = "clipped") -> Tensor:
    """How alike bits are: the mean over pairs of bits of the squared mean product of their signs.

    0 where no two bits agree more often than they differ, 1 where all agree or differ always: the
    second condition of Weiss, Torralba, Fergus (as for `bit_balance`), relaxed to a penalty as by
    Wang, Kumar, Chang: "Semi-supervised hashing for scalable image retrieval" (CVPR 2010), section
    3.3.

    Parameters
    ----------
    x : (n, n_bits) Tensor of floats
        Embeddings before their signs, about as large as 1.
    variant : str
        See `sign_ste`.

    Returns
    -------
    Tensor
        A scalar; 0 for a single bit.

    Raises
    ------
    TypeError, ValueError
    """
    signs = _signs(x, variant)
    products = signs.T @ signs / len(signs)
    n_bits = len(products)
    off_diagonal = ~torch.eye(n_bits, dtype=torch.bool, device=products.device)
    return (products.square() * off_diagonal).sum() / max(1, n_bits * (n_bits - 1))


def _signs(x: Any, variant: str) -> Tensor:
    signs = sign_ste(x, variant)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must have shape (n, n_bits), not empty, got {described(x)}")
    # In float32 at least: bfloat16 does not count beyond 256.
    return signs if signs.dtype == torch.float64 else signs.float()
