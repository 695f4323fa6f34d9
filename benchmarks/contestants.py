"""Who takes part in exact search: each makes a search of the same codes and queries.

A contestant is called with codes, bits, queries, k and threads, builds what it needs, and returns a
call that returns distances, (n_queries, k), ascending. Some have no threads, or no top-k of their
own; their names say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timing import Call

import hamming_engine as he

Codes = NDArray[np.uint64]
Make = Callable[[Codes, int, Codes, int, int], Call]


def flat_index(kernel: str | None) -> Make:
    """FlatIndex.search, with the kernel that suits the processor or another one."""

    def make(codes: Codes, n_bits: int, queries: Codes, k: int, threads: int) -> Call:
        index = he.FlatIndex(n_bits, kernel=kernel)
        index.add(codes)
        return lambda: index.search(queries, k, threads=threads).distances

    return make


def search_of_arrays(codes: Codes, n_bits: int, queries: Codes, k: int, threads: int) -> Call:
    """hamming_engine.search of row-major codes, as pack_signs returns them."""
    del n_bits
    return lambda: he.search(queries, codes, k, threads=threads).distances


def faiss_flat(codes: Codes, n_bits: int, queries: Codes, k: int, threads: int) -> Call:
    """faiss.IndexBinaryFlat.search."""
    import faiss

    index = faiss.IndexBinaryFlat(n_bits)
    index.add(codes.view(np.uint8))
    query_bytes = queries.view(np.uint8)

    def search() -> Any:
        faiss.omp_set_num_threads(threads)
        return index.search(query_bytes, k)[0]

    return search


def usearch_exact(codes: Codes, n_bits: int, queries: Codes, k: int, threads: int) -> Call:
    """usearch.index.search(exact=True) of b1 vectors."""
    del n_bits
    from usearch.index import MetricKind, search

    rows, query_bytes = codes.view(np.uint8), queries.view(np.uint8)
    return lambda: (
        search(rows, query_bytes, k, MetricKind.Hamming, exact=True, threads=threads).distances
    )


def numkong_packed(codes: Codes, n_bits: int, queries: Codes, k: int, threads: int) -> Call:
    """numkong.hammings_packed of prepared codes, then numpy.argpartition; one thread."""
    del n_bits, threads
    import numkong

    packed = numkong.hammings_pack(codes.view(np.uint8), dtype="uint1")
    query_bytes = queries.view(np.uint8)
    return lambda: smallest(np.asarray(numkong.hammings_packed(query_bytes, packed)), k)


def numpy_bitwise_count(codes: Codes, n_bits: int, queries: Codes, k: int, threads: int) -> Call:
    """numpy.bitwise_count of the XOR, a query at a time, then numpy.argpartition; one thread."""
    del n_bits, threads

    def search() -> Any:
        return np.concatenate(
            [
                smallest(np.bitwise_count(codes ^ query).sum(axis=1, dtype=np.int32)[None], k)
                for query in queries
            ]
        )

    return search


def smallest(distances: NDArray[Any], k: int) -> NDArray[Any]:
    """The k smallest of each row, ascending."""
    found = np.argpartition(distances, k - 1, axis=1)[:, :k]
    return np.sort(np.take_along_axis(distances, found, axis=1), axis=1)


OURS = "hamming_engine"
FAISS = "faiss IndexBinaryFlat"

CONTESTANTS: dict[str, Make] = {
    OURS: flat_index(None),
    "hamming_engine, row-major": search_of_arrays,
    FAISS: faiss_flat,
    "hamming_engine, popcount": flat_index("popcount"),
    "hamming_engine, table": flat_index("table"),
    "hamming_engine, plain": flat_index("plain"),
    "usearch exact": usearch_exact,
    "numkong + argpartition": numkong_packed,
    "numpy bitwise_count": numpy_bitwise_count,
}
FEW = (OURS, "hamming_engine, row-major", FAISS)
