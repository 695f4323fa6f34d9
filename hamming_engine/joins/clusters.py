"""Clusters of rows that are near duplicates of one another."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..checks import frozen
from ..kernels.groups import find_roots, unite_groups, unite_pairs
from ..optional import progress_bar
from .distinct import Distinct
from .near import Asked, Near, no_bar
from .source import MEMORY_BYTES, Source


class Duplicates(NamedTuple):
    """Clusters: rows are in the same one where pairs within the radius lead from one to the other.

    Attributes
    ----------
    labels : (n,) int64
        The smallest row number of each row's cluster.
    ids : (n,) int64 or str
        What rows are called: ids of a collection, or row numbers.
    """

    labels: NDArray[np.int64]
    ids: NDArray[Any]

    @property
    def groups(self) -> list[NDArray[Any]]:
        """The ids of each cluster of two rows or more, in the order of rows."""
        order = np.argsort(self.labels, kind="stable")
        labels = self.labels[order]
        begins = np.flatnonzero(np.diff(labels, prepend=-1))
        sizes = np.diff(begins, append=len(labels))
        return [
            self.ids[order[begin : begin + size]]
            for begin, size in zip(begins, sizes, strict=True)
            if size > 1
        ]

    @property
    def drop(self) -> NDArray[Any]:
        """The ids of all rows but the first of each cluster, as `Collection.delete` takes them."""
        later: NDArray[Any] = self.ids[self.labels != np.arange(len(self.labels))]
        return later


def duplicates(
    codes: Any,
    radius: int,
    *,
    threads: int | None = None,
    progress: bool = False,
    memory_bytes: int = MEMORY_BYTES,
) -> Duplicates:
    """Cluster the rows: those within ``radius`` are together, and so are those that they lead to.

    Parameters
    ----------
    codes : (n, n_words) uint64, or Collection
    radius : int
        In bits; pairs at this very distance are in.
    threads : int, optional
        At most this many threads; all by default.
    progress : bool
        Show a bar; needs tqdm.
    memory_bytes : int
        Of a collection, what its codes and what is made of them may take, beside its ids and the
        labels.

    Returns
    -------
    Duplicates
        ``labels``, with ``groups`` and ``drop`` by id. The clusters are those of single linkage,
        cut at the radius.

    Raises
    ------
    TypeError, ValueError
        Where an argument has the wrong type, shape or value; the message says which.

    Notes
    -----
    Pairs are found as `self_join` finds them and are never held: each unites two trees of a forest
    (Tarjan, van Leeuwen: "Worst-case analysis of set union algorithms", JACM 1984, with path
    halving), linked by row number.
    """
    radius = checks.integer(radius, "radius", 0)
    threads = checks.threads(threads)
    memory_bytes = checks.integer(memory_bytes, "memory_bytes", 1)
    source = Source(codes, "codes", memory_bytes, threads)
    radius = min(radius, 64 * source.n_words)
    parents = np.arange(source.n_rows)
    # Every block goes over itself and those after it: rows are gone over once with each before.
    n_visits = sum(source.rows_from(number) for number in range(len(source)))
    with progress_bar(progress, n_visits, "row") as bar:
        for number in range(len(source)):
            block = source.block(number)
            queries = block.distinct
            unite_groups(parents, queries.group_of, queries.first, block.first_row)
            for other in range(number, len(source)):
                rows = source.block(other)
                near = Near(rows.distinct, radius, threads, queries)
                asked = _each_once(queries, rows.distinct, same=other == number)
                update = bar.update if other == number else no_bar
                for pairs, _ in near.batches(queries, asked, update):
                    first_rows = block.first_row, rows.first_row
                    unite_pairs(parents, pairs, queries.first, rows.distinct.first, *first_rows)
                if other != number:
                    bar.update(len(rows.codes))
    find_roots(parents)
    ids = np.arange(source.n_rows) if source.ids is None else source.ids
    return Duplicates(parents, ids)


def _each_once(queries: Distinct, rows: Distinct, same: bool) -> Asked:
    """Every pair of different groups, in one direction."""
    last = frozen(np.arange(len(rows.codes)))
    return Asked(last if same else frozen(np.full(len(queries.codes), -1)), last)
