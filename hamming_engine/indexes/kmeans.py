"""k-means of codes, by Hamming distance, and of float vectors, by angle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import frozen
from ..kernels.launch import usable_threads
from ..kernels.lists import COUNT_ONES
from .flat import search

Codes = NDArray[np.uint64]
Floats = NDArray[np.float32]
Advance = Callable[[int], object]

N_ITERATIONS = 10
_SLAB_BYTES = 32 << 20  # of products of vectors and centres


def by_list(assigned: NDArray[np.int64], n_lists: int) -> tuple[Any, Any]:
    """Rows sorted by their list and then by number, and where each list begins among them."""
    order = np.argsort(assigned, kind="stable")
    begins = np.zeros(n_lists + 1, np.int64)
    np.cumsum(np.bincount(assigned, minlength=n_lists), out=begins[1:])
    return order, begins


def nearest_centers(
    codes: Codes, centers: Codes, threads: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The nearest centre of each code, the first of several, and its distance in bits."""
    found = search(codes, centers, 1, threads=threads)
    return found.rows[:, 0], found.distances[:, 0]


def majority(
    codes: Codes, order: NDArray[np.int64], begins: NDArray[np.int64], threads: int | None
) -> Codes:
    """The code of each list that has the least sum of distances to the list's codes.

    A bit is set where it is set in more than half of the codes.
    """
    n_lists = len(begins) - 1
    counts = np.empty((n_lists, 64 * codes.shape[1]), np.int32)
    arguments = frozen(codes), frozen(order), frozen(begins), counts
    COUNT_ONES(usable_threads(threads), *arguments, work=8 * codes.size)
    set_bits = 2 * counts > np.diff(begins)[:, None]
    return np.packbits(set_bits, axis=1, bitorder="little").view(np.uint64)


def of_codes(
    codes: Codes,
    n_lists: int,
    rng: np.random.Generator,
    threads: int | None = None,
    advance: Advance = id,
) -> Codes:
    """Centres of cells in Hamming space.

    Parameters
    ----------
    codes : (n, n_words) uint64
    n_lists : int
    rng : numpy.random.Generator
    threads : int, optional
    advance : callable
        Called with 1 after each of `N_ITERATIONS` iterations.

    Returns
    -------
    centers : (at most n_lists, n_words) uint64
        Less where there are not so many different codes.

    Notes
    -----
    Lloyd's algorithm with the distance in bits and the majority of each bit as the centre, which
    minimises the sum of distances: k-majority (Grana, Borghesani, Manfredi, Cucchiara: "A fast
    approach for integrating ORB descriptors in the bag of words model", SPIE 2013). A centre that
    nobody is nearest to moves to one of the codes that are farthest from theirs.
    """
    different = np.unique(codes, axis=0)
    n_lists = min(n_lists, len(different))
    centers = different[np.sort(rng.choice(len(different), n_lists, replace=False))]
    for _ in range(N_ITERATIONS):
        assigned, distances = nearest_centers(codes, centers, threads)
        order, begins = by_list(assigned, n_lists)
        centers = majority(codes, order, begins, threads)
        empty = np.flatnonzero(np.diff(begins) == 0)
        centers[empty] = codes[_farthest(distances, len(empty))]
        advance(1)
    return centers


def of_vectors(
    vectors: NDArray[Any],
    n_lists: int,
    rng: np.random.Generator,
    advance: Advance = id,
) -> Floats:
    """Centres of cells by angle, (n_lists, dim) of length 1.

    Spherical k-means (Dhillon, Modha: "Concept decompositions for large sparse text data using
    clustering", Machine Learning 42, 2001). Products are NumPy's, on the threads that it uses.
    """
    n_lists = min(n_lists, len(vectors))
    vectors = _unit(vectors)
    centers = vectors[np.sort(rng.choice(len(vectors), n_lists, replace=False))]
    for _ in range(N_ITERATIONS):
        assigned, products = most_alike(vectors, centers)
        order, begins = by_list(assigned, n_lists)
        filled = np.diff(begins) > 0
        sums = np.add.reduceat(vectors[order], begins[:-1][filled], axis=0)
        centers[filled] = _unit(sums)
        empty = np.flatnonzero(~filled)
        centers[empty] = vectors[_farthest(-products, len(empty))]
        advance(1)
    return centers


def most_alike(vectors: NDArray[Any], centers: Floats) -> tuple[NDArray[np.int64], Floats]:
    """The centre with the largest product with each vector, and the product over its length."""
    n_rows = vectors.shape[0]
    assigned = np.empty(n_rows, np.int64)
    products = np.empty(n_rows, np.float32)
    step = max(1, _SLAB_BYTES // (4 * len(centers)))
    for begin in range(0, n_rows, step):
        some = slice(begin, min(begin + step, n_rows))
        of_slab = _unit(vectors[some]) @ centers.T
        assigned[some] = of_slab.argmax(axis=1)
        products[some] = of_slab.max(axis=1)
    return assigned, products


def _unit(vectors: NDArray[Any]) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: Floats = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return units


def _farthest(distances: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Rows of the largest distances, the first of several."""
    return np.argsort(-distances, kind="stable")[:n]
