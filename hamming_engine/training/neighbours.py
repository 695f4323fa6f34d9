"""Rows to train on: a sample in memory, and the nearest neighbours of each by their floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import checks
from ..indexes.flat import FlatIndex
from ..optional import progress_bar
from ..quantize import ThresholdQuantizer
from ..quantize.base import finite_sample, unit_length
from ..rerank import Source, exact_scores

_OVERSAMPLE = 4
_ROWS_AT_ONCE = 1024


def sample_of(embeddings: Any, n_rows: int, seed: int, metric: str) -> Tensor:
    """At most so many rows, at random, as float32; of unit length for the cosine."""
    shape = getattr(embeddings, "shape", None)
    if isinstance(embeddings, Tensor):
        embeddings = embeddings.detach().cpu().float().numpy()
    elif shape is None or len(shape) != 2:
        embeddings = checks.floats(embeddings, "embeddings")
    rows = finite_sample(embeddings, n_rows, seed)
    if metric == "cosine":
        rows = unit_length(rows.astype(np.float64)).astype(np.float32)
    return torch.from_numpy(np.array(rows))  # a copy: PyTorch warns of what it may not write to


def scores_of(queries: Tensor, rows: Tensor, metric: str) -> Tensor:
    """What the metric makes of all pairs, (n, m); higher is nearer."""
    products = queries @ rows.T
    if metric != "l2":
        return products
    return 2 * products - rows.square().sum(dim=1) - queries.square().sum(dim=1)[:, None]


def nearest(
    rows: Tensor, k: int, metric: str, threads: int | None, progress: bool
) -> tuple[Tensor, Tensor]:
    """About the k nearest others of each row, (n, k) int64, best first, and their scores.

    The best of four times as many that codes find: all products would take ten times as long.
    """
    n = len(rows)
    floats = rows.numpy()
    quantizer = ThresholdQuantizer().fit(floats, metric=metric)
    index = FlatIndex(quantizer.n_bits)
    index.add(quantizer.encode(floats, threads=threads))
    n_found = min(n, _OVERSAMPLE * k + 1)
    found = torch.empty((n, k), dtype=torch.int64)
    scores = torch.empty((n, k))
    with progress_bar(progress, n, "row") as bar:
        for first in range(0, n, _ROWS_AT_ONCE):
            some = floats[first : first + _ROWS_AT_ONCE]
            weights = quantizer.weights(some).weights
            near = index.search(weights, n_found, threads=threads).rows
            exact = exact_scores(
                some.astype(np.float64), near, [Source(0, floats)], metric, threads
            )
            exact[near == np.arange(first, first + len(some))[:, None]] = -np.inf
            best = np.argsort(-exact, axis=1, kind="stable")[:, :k]
            part = slice(first, first + len(some))
            found[part] = torch.from_numpy(np.take_along_axis(near, best, axis=1))
            scores[part] = torch.from_numpy(np.take_along_axis(exact, best, axis=1))
            bar.update(len(some))
    return found, scores


def split(n: int, n_held_out: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows held out, each ascending."""
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])
