"""What keeps bits informative: each as often on as off, and no two alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .arguments import described, floats
from .heads import Binarize, as_binarize
from .scaling import exact_products, spread_rows, widened


def bit_balance(x: Tensor, binarize: str | Binarize = "clipped") -> Tensor:
    """How unbalanced bits are: the mean over bits of the squared mean of their signs.

    0 where each bit is on in half of the rows, 1 where all are the same in every row: the first
    condition of Weiss, Torralba, Fergus: "Spectral hashing" (NeurIPS 2008), section 2, as a
    penalty.

    Parameters
    ----------
    x : (n, n_bits) Tensor of floats
        Embeddings before their signs; rows are scaled as by the losses.
    binarize : str or Binarize
        How signs are taken: a variant of `sign_ste`, or a module.

    Returns
    -------
    Tensor
        A scalar.

    Raises
    ------
    TypeError, ValueError
    """
    return _signs(x, binarize).mean(dim=0).square().mean()


def decorrelation(x: Tensor, binarize: str | Binarize = "clipped") -> Tensor:
    """How alike bits are: the mean over pairs of bits of the squared mean product of their signs.

    0 where any two bits agree as often as they differ, 1 where all agree or differ always: the
    second condition of Weiss, Torralba, Fergus (as for `bit_balance`), relaxed to a penalty as by
    Wang, Kumar, Chang: "Semi-supervised hashing for scalable image retrieval" (CVPR 2010).

    Parameters
    ----------
    x : (n, n_bits) Tensor of floats
        Embeddings before their signs; rows are scaled as by the losses.
    binarize : str or Binarize
        How signs are taken: a variant of `sign_ste`, or a module.

    Returns
    -------
    Tensor
        A scalar; 0 for a single bit.

    Raises
    ------
    TypeError, ValueError
    """
    signs = _signs(x, binarize)
    with exact_products(signs):
        products = signs.T @ signs / len(signs)
    n_bits = len(products)
    off_diagonal = ~torch.eye(n_bits, dtype=torch.bool, device=products.device)
    return (products.square() * off_diagonal).sum() / max(1, n_bits * (n_bits - 1))


def _signs(x: Any, binarize: str | Binarize) -> Tensor:
    if floats(x, "x").ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must have shape (n, n_bits), not empty, got {described(x)}")
    signs: Tensor = as_binarize(binarize)(spread_rows(widened(x)))
    return signs
