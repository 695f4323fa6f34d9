"""Signs that gradients pass: straight-through estimators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from .arguments import floats, positive

VARIANTS = ("identity", "clipped", "tanh_ste", "tanh")


def sign_ste(x: Tensor, variant: str = "clipped", *, temperature: float = 1.0) -> Tensor:
    """Signs of ``x``, with a gradient in the place of their own, which is zero.

    ======== ===================== ================================ ==============================
    variant  forward               gradient                         after
    ======== ===================== ================================ ==============================
    identity sign(x)               1                                Bengio, Léonard, Courville:
                                                                    "Estimating or propagating
                                                                    gradients through stochastic
                                                                    neurons" (2013), section 4
    clipped  sign(x)               1 where |x| <= 1, else 0         Hubara and others: "Binarized
                                                                    neural networks" (NeurIPS
                                                                    2016), section 1.3
    tanh_ste sign(x)               that of tanh(x / temperature)
    tanh     tanh(x / temperature) its own                          Yamada, Asai, Hajishirzi:
                                                                    "Efficient passage retrieval
                                                                    with hashing" (ACL 2021),
                                                                    section 3, and Cao and others:
                                                                    "HashNet" (ICCV 2017)
    ======== ===================== ================================ ==============================

    "tanh" is no straight-through estimator: its values lie between -1 and 1, its gradient is right,
    and it nears the sign as the temperature falls to 0 in training. Signs are taken when training
    is over; `Binarize` does both. Yamada and others write ``tanh(beta x)``, with 1 / temperature
    for beta.

    Parameters
    ----------
    x : Tensor
        Floats of any shape. Gradients of all variants but "identity" vanish far from zero, so
        values should be about as large as 1, or as the temperature.
    variant : {"identity", "clipped", "tanh_ste", "tanh"}
    temperature : float
        Of the variants with tanh; the others have none.

    Returns
    -------
    Tensor
        Of the shape and type of ``x``: -1 or 1, and -1 for zero, as in codes; between them with
        "tanh". NaN stays NaN, so that a loss shows it.

    Raises
    ------
    TypeError, ValueError
    """
    x = floats(x, "x")
    checks.choice(variant, "variant", VARIANTS)
    temperature = positive(temperature, "temperature")
    if variant == "identity":
        return _apply(_Identity, x)
    if variant == "clipped":
        return _apply(_Clipped, x)
    if variant == "tanh_ste":
        return _apply(_TanhGradient, x, temperature)
    return torch.tanh(x / temperature)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    signs: Tensor = function.apply(*arguments)
    return signs


def _signs(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), x, 2 * (x > 0).to(x.dtype) - 1)


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return _signs(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return gradient


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.abs() <= 1)  # a byte a value; x would be kept in 4
        return _signs(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        passes: Tensor
        (passes,) = ctx.saved_tensors
        return gradient * passes


class _TanhGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.temperature = temperature
        return _signs(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        slope = (1 - torch.tanh(x / ctx.temperature).square()) / ctx.temperature
        return gradient * slope, None
