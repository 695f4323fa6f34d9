"""Cells of codes: how they are made, and what each holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import frozen
from ..held import HeldCodes
from ..kernels.columns import BLOCK_ROWS
from . import kmeans
from .lists import Lists

Codes = NDArray[np.uint64]
Floats = NDArray[Any]
Rows = NDArray[np.int64]

_LISTS_PER_ROOT = 4  # lists for the square root of the rows
_TRAINED_ON = 64  # rows a list
_LARGEST = 4  # times the mean: no list is larger
_STRANGERS = 256


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells and the rows that are in them; never changed, `with_rows` makes others.

    Attributes
    ----------
    centers : (n_lists, n_words) uint64
    held : HeldCodes
        The same, to be scanned.
    radii : (n_lists,) int32
        No row in the cell is farther from its centre, in bits.
    lists : Lists
        The rows of each, numbered from 0 on without gaps.
    n_rows : int
    n_trained : int
        Rows that the centres were made for.
    strangers : (n,) int64
        Some of them that no centre was made of: to them cells are what they are to a query.
    """

    centers: Codes
    held: HeldCodes
    radii: NDArray[np.int32]
    lists: Lists
    n_rows: int
    n_trained: int
    strangers: Rows

    @classmethod
    def new(
        cls,
        codes: Codes,
        factors: NDArray[np.float32],
        vectors: Floats | None,
        n_lists: int,
        seed: int,
        method: int,
        threads: int | None,
        advance: kmeans.Advance,
    ) -> Cells:
        """Cells made of rows.

        Parameters
        ----------
        codes : (n, n_words) uint64
        factors : (n, 2) float32, or (n, 0)
        vectors : (n, dim) floats, optional
            What cells are made of, if there are any.
        n_lists : int
            About so many.
        seed : int
        method : int
            What centres will be scanned with, one of ``kernels.methods``.
        threads : int or None
        advance : callable
            Called with 1 after each of `kmeans.N_ITERATIONS` iterations.
        """
        rng = np.random.default_rng(seed)
        mixed = rng.permutation(len(codes))
        n_strangers = min(_STRANGERS, len(codes) // 10)
        strangers, others = np.sort(mixed[:n_strangers]), np.sort(mixed[n_strangers:])
        sample = np.sort(mixed[n_strangers : n_strangers + _TRAINED_ON * n_lists])
        if vectors is None:
            centers = kmeans.of_codes(codes[sample], n_lists, rng, threads, advance)
            assigned, _ = kmeans.nearest_centers(codes, centers, threads)
        else:
            means = kmeans.of_vectors(vectors[sample], n_lists, rng, advance)
            assigned, _ = kmeans.most_alike(vectors, means)
            # What a cell is known by is the majority of its rows, whatever it was made of.
            filled = np.flatnonzero(np.bincount(assigned[others]))
            order, begins = kmeans.by_list(assigned[others], len(means))
            centers = kmeans.majority(codes, others[order], begins, threads)[filled]
            assigned = np.minimum(np.searchsorted(filled, assigned), len(filled) - 1)
        no_lists = Lists.empty(codes.shape[1], factors.shape[1])
        none = cls.of(
            centers[:0], np.zeros(0, np.int32), no_lists, 0, len(codes), strangers, method
        )
        return none._with_assigned(codes, factors, assigned, centers, seed, threads)

    @classmethod
    def of(
        cls,
        centers: Codes,
        radii: NDArray[np.int32],
        lists: Lists,
        n_rows: int,
        n_trained: int,
        strangers: Rows,
        method: int,
    ) -> Cells:
        """Cells of which all is known."""
        held = HeldCodes(centers.shape[1], method)
        held.append(centers)
        return cls(frozen(centers), held, frozen(radii), lists, n_rows, n_trained, strangers)

    def with_rows(
        self, codes: Codes, factors: NDArray[np.float32], seed: int, threads: int | None
    ) -> Cells:
        """These cells and the next rows, each in the cell of the nearest centre."""
        assigned, _ = kmeans.nearest_centers(codes, self.centers, threads)
        return self._with_assigned(codes, factors, assigned, self.centers, seed, threads)

    def _with_assigned(
        self,
        codes: Codes,
        factors: NDArray[np.float32],
        assigned: Rows,
        centers: Codes,
        seed: int,
        threads: int | None,
    ) -> Cells:
        """These cells, more of them, and the next rows in them; cells too large are split."""
        n_rows = self.n_rows + len(codes)
        rows = np.arange(self.n_rows, n_rows)
        lists = self.lists
        radii = np.zeros(len(centers), np.int32)
        radii[: len(lists)] = self.radii
        sizes = np.bincount(assigned, minlength=len(centers))
        sizes[: len(lists)] += lists.sizes
        largest = max(BLOCK_ROWS, _LARGEST * n_rows // len(centers))
        too_large = np.flatnonzero(sizes > largest)
        old = too_large[too_large < len(lists)]
        if old.size:  # take their rows out: they come again, as if they were new
            places = [lists.places_of(which) for which in old]
            rows = np.concatenate([*(lists.rows[of_list] for of_list in places), rows])
            old_codes, old_factors = lists.take(np.concatenate(places))
            of_old = np.repeat(old, [len(of_list) for of_list in places])
            order = np.argsort(rows, kind="stable")
            rows = rows[order]
            codes = np.concatenate([old_codes, codes])[order]
            factors = np.concatenate([old_factors, factors])[order]
            assigned = np.concatenate([of_old, assigned])[order]
            lists = lists.without(old)
        radii[too_large] = 0
        for which in too_large:
            mine = np.flatnonzero(assigned == which)
            parts, part_centers = _split(codes[mine], largest, seed, threads)
            assigned[mine] = np.where(parts == 0, which, len(centers) + parts - 1)
            centers = np.concatenate([centers, part_centers[1:]])
            centers[which] = part_centers[0]
        radii = np.concatenate([radii, np.zeros(len(centers) - len(radii), np.int32)])
        widen(radii, codes, centers, assigned)
        lists = lists.with_rows(rows, codes, factors, assigned, len(centers), threads)
        rest = lists, n_rows, self.n_trained, self.strangers, self.held.method
        return Cells.of(centers, radii, *rest)

    def take(self, rows: Rows) -> tuple[Codes, NDArray[np.float32]]:
        """Copies of the codes and factors of rows, (n, n_words) and (n, 2) or (n, 0)."""
        return self.lists.take(self.lists.places[rows])


def lists_for(n_rows: int) -> int:
    """How many lists suit so many rows: on average they fill a block."""
    return max(1, min(int(_LISTS_PER_ROOT * n_rows**0.5), n_rows // BLOCK_ROWS))


def widen(radii: NDArray[np.int32], codes: Codes, centers: Codes, assigned: Rows) -> None:
    """Let the radius of each cell reach to the rows that are assigned to it."""
    distances = np.bitwise_count(codes ^ centers[assigned]).sum(axis=1, dtype=np.int32)
    np.maximum.at(radii, assigned, distances)


def _split(codes: Codes, largest: int, seed: int, threads: int | None) -> tuple[Rows, Codes]:
    """Parts of at most so many codes, numbered from 0 on, and their centres."""
    n_parts = -(-2 * len(codes) // largest)
    rng = np.random.default_rng(seed)
    centers = kmeans.of_codes(codes, n_parts, rng, threads)
    parts, _ = kmeans.nearest_centers(codes, centers, threads)
    if np.bincount(parts).max() > largest:
        # Mostly alike: cut anywhere, in the order of their distance to what they have in common.
        common = kmeans.majority(codes, np.arange(len(codes)), np.array([0, len(codes)]), threads)
        _, distances = kmeans.nearest_centers(codes, common, threads)
        parts = np.empty(len(codes), np.int64)
        parts[np.argsort(distances, kind="stable")] = np.arange(len(codes)) // largest
    parts = np.unique(parts, return_inverse=True)[1]
    order, begins = kmeans.by_list(parts, int(parts.max()) + 1)
    return parts, kmeans.majority(codes, order, begins, threads)
