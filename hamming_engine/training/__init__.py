"""Training for binary codes with PyTorch: straight-through signs, heads, and losses.

A model whose embeddings will be cut to bits loses less when it knows that in training. `sign_ste`
takes signs that gradients pass; a `BinaryHead` turns embeddings into as many bits as wanted and
becomes a quantiser of `hamming_engine` that runs without PyTorch; the losses compare codes as
searches do, by Hamming distance or floats against bits, at one length or several. `fit_head` does
all of that for embeddings that are there already.

Needs PyTorch: ``pip install 'hamming_engine[train]'``.
"""

from __future__ import annotations

from ..optional import require

require("torch", "train")

from .adapters import SentenceTransformerLoss  # noqa: E402
from .fit import Evaluation, FittedHead, fit_head  # noqa: E402
from .heads import Binarize, BinaryHead  # noqa: E402
from .losses import BinaryContrastiveLoss, BinaryDistillationLoss, MatryoshkaBinaryLoss  # noqa: E402
from .regularisers import bit_balance, decorrelation  # noqa: E402
from .ste import sign_ste  # noqa: E402

__all__ = [
    "Binarize",
    "BinaryContrastiveLoss",
    "BinaryDistillationLoss",
    "BinaryHead",
    "Evaluation",
    "FittedHead",
    "MatryoshkaBinaryLoss",
    "SentenceTransformerLoss",
    "bit_balance",
    "decorrelation",
    "fit_head",
    "sign_ste",
]
