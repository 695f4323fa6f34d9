"""Who takes part in approximate search of codes: indexes, and what each of them can be told.

All are built on all threads and searched on one, with all queries in one batch.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from ann_data import Codes, CodeSet
from flat import ALL_THREADS
from numpy.typing import NDArray

import hamming_engine as he

K = 10
NONE = (None,)  # of what is exact
PROBES = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
BEAMS = (10, 20, 40, 80, 112, 160, 224, 320, 448, 640)
LISTS_PER_ROOT = (2, 4)  # lists for the square root of the rows, to the nearest power of two
LINKS = (16, 32)
EXPANSIONS = (80, 160)  # of FAISS, while it links so many; its default is 40
_POINTS_PER_CENTER = 64  # that FAISS trains on, as many as ours does
_ROWS_TO_COMPILE = 3_000
_LARGE = 500_000  # rows from which one variant has to do: some take many minutes to build
_NOT_FOUND = np.iinfo(np.int32).max

Distances = NDArray[Any]


class Built(NamedTuple):
    """An index that holds the codes.

    Attributes
    ----------
    family : str
        What is compared; the best of its variants and values counts.
    variant : str
    knob : str
        What ``search`` is told.
    values : tuple
        Of the knob, recall ascending.
    build_seconds : float
        On all threads.
    n_bytes : int
    search : callable
        ``search(value)`` gives (n_queries, 10) distances.
    """

    family: str
    variant: str
    knob: str
    values: tuple[Any, ...]
    build_seconds: float
    n_bytes: int
    search: Callable[[Any], Distances]


Make = Callable[[], Built]


def contestants(data: CodeSet) -> Iterator[Make]:
    """Everybody who is here, not built yet."""
    large = len(data.codes) >= _LARGE
    per_root = LISTS_PER_ROOT[-1:] if large else LISTS_PER_ROOT
    all_links, all_expansions = (LINKS[:1], EXPANSIONS[:1]) if large else (LINKS, EXPANSIONS)
    n_lists = [round_power(each * len(data.codes) ** 0.5) for each in per_root]
    yield partial(ours, data, "FlatIndex", "", NONE)
    for lists in n_lists:
        yield partial(ours, data, "IVFIndex", "nprobe", PROBES, n_lists=lists)
    if hasattr(he, "GraphIndex"):
        for links in all_links:
            yield partial(ours, data, "GraphIndex", "ef", BEAMS, n_links=links)
    if hasattr(he, "MultiIndexHash"):
        yield partial(ours, data, "MultiIndexHash", "", NONE)
    if importlib.util.find_spec("faiss"):
        yield partial(faiss_flat, data)
        for lists in n_lists:
            yield partial(faiss_ivf, data, lists)
        for links, expansion in zip(all_links, all_expansions, strict=True):
            yield partial(faiss_hnsw, data, links, expansion)
        if not large:
            yield partial(faiss_hash, data, "IndexBinaryHash", 16)
            yield partial(faiss_hash, data, "IndexBinaryMultiHash", 16, 16)
    if importlib.util.find_spec("usearch"):
        for links in all_links:
            yield partial(usearch_index, data, links)


def round_power(number: float) -> int:
    """The nearest power of two."""
    return 1 << max(0, round(float(np.log2(number))))


def timed(build: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the seconds."""
    begin = time.perf_counter()
    built = build()
    return built, time.perf_counter() - begin


def built_of(codes: Codes, make: Callable[[], Any], **added: NDArray[Any]) -> tuple[Any, float]:
    """An index of ours with the rows in it, and the seconds without compiling.

    ``added`` are arrays that `add` takes, a row a code.
    """

    def build(n_rows: int) -> Any:
        index = make()
        index.add(codes[:n_rows], **{name: array[:n_rows] for name, array in added.items()})
        return index

    build(_ROWS_TO_COMPILE)
    return timed(lambda: build(len(codes)))


def ours(data: CodeSet, kind: str, knob: str, values: tuple[Any, ...], **settings: int) -> Built:
    """One of the package's indexes."""
    index, seconds = built_of(data.codes, lambda: getattr(he, kind)(data.n_bits, **settings))
    n_bytes = index.nbytes if hasattr(index, "nbytes") else data.codes.nbytes

    def search(value: Any) -> Distances:
        told = {knob: value} if knob else {}
        distances: Distances = index.search(data.queries, K, threads=1, **told).distances
        return distances

    variant = ", ".join(f"{name} {value:,}" for name, value in settings.items())
    return Built(f"hamming_engine {kind}", variant, knob, values, seconds, n_bytes, search)


def as_bytes(codes: Codes, n_bits: int) -> NDArray[np.uint8]:
    """Rows of n_bits / 8 bytes; the order of bits is the same in rows and queries."""
    return np.ascontiguousarray(codes.view(np.uint8)[:, : n_bits // 8])


def faiss_search(index: Any, queries: NDArray[np.uint8], tell: Callable[[Any], None]) -> Any:
    """A call that tells a FAISS index a value, and searches on one thread."""
    faiss: Any = importlib.import_module("faiss")

    def search(value: Any) -> Distances:
        faiss.omp_set_num_threads(1)
        tell(value)
        distances: Distances = index.search(queries, K)[0]
        return distances

    return search


def faiss_built(
    data: CodeSet,
    index: Any,
    variant: str,
    knob: str,
    values: tuple[Any, ...],
    tell: Callable[[Any], None],
) -> Built:
    """A FAISS index with the rows in it."""
    faiss: Any = importlib.import_module("faiss")
    rows, queries = (as_bytes(codes, data.n_bits) for codes in (data.codes, data.queries))
    faiss.omp_set_num_threads(ALL_THREADS)

    def build() -> None:
        index.train(rows)
        index.add(rows)

    _, seconds = timed(build)
    n_bytes = faiss.serialize_index_binary(index).nbytes
    family = f"faiss {type(index).__name__}"
    search = faiss_search(index, queries, tell)
    return Built(family, variant, knob, values, seconds, n_bytes, search)


def faiss_flat(data: CodeSet) -> Built:
    """IndexBinaryFlat."""
    faiss: Any = importlib.import_module("faiss")
    return faiss_built(data, faiss.IndexBinaryFlat(data.n_bits), "", "", NONE, lambda _: None)


def faiss_ivf(data: CodeSet, n_lists: int) -> Built:
    """IndexBinaryIVF.

    Not with its ``per_invlist_search``: in 1.15.1 that writes beyond its memory, which ends the
    process, and where it came through it was at most a third faster.
    """
    faiss: Any = importlib.import_module("faiss")
    index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(data.n_bits), data.n_bits, n_lists)
    index.cp.max_points_per_centroid = _POINTS_PER_CENTER
    index.cp.min_points_per_centroid = 1  # no warning

    def tell(nprobe: int) -> None:
        index.nprobe = nprobe

    values = tuple(nprobe for nprobe in PROBES if nprobe <= n_lists)
    return faiss_built(data, index, f"nlist {n_lists:,}", "nprobe", values, tell)


def faiss_hnsw(data: CodeSet, links: int, expansion: int) -> Built:
    """IndexBinaryHNSW."""
    faiss: Any = importlib.import_module("faiss")
    index = faiss.IndexBinaryHNSW(data.n_bits, links)
    index.hnsw.efConstruction = expansion

    def tell(expansion: int) -> None:
        index.hnsw.efSearch = expansion

    variant = f"M {links}, efConstruction {expansion}"
    return faiss_built(data, index, variant, "efSearch", BEAMS, tell)


def faiss_hash(data: CodeSet, kind: str, *settings: int) -> Built:
    """IndexBinaryHash of the first bits, or IndexBinaryMultiHash of several runs of bits."""
    faiss: Any = importlib.import_module("faiss")
    index = getattr(faiss, kind)(data.n_bits, *settings)

    def tell(flips: int) -> None:
        index.nflip = flips

    names = ("b",) if len(settings) == 1 else ("nhash", "b")
    variant = ", ".join(f"{name} {value}" for name, value in zip(names, settings, strict=True))
    return faiss_built(data, index, variant, "nflip", (0, 1, 2), tell)


def usearch_index(data: CodeSet, links: int) -> Built:
    """USearch's graph of b1 vectors."""
    from usearch.index import Index, MetricKind, ScalarKind

    rows, queries = (as_bytes(codes, data.n_bits) for codes in (data.codes, data.queries))

    def build() -> Any:
        index = Index(
            ndim=data.n_bits, metric=MetricKind.Hamming, dtype=ScalarKind.B1, connectivity=links
        )
        index.add(np.arange(len(rows)), rows, threads=ALL_THREADS)
        return index

    index, seconds = timed(build)

    def search(expansion: int) -> Distances:
        index.expansion_search = expansion
        found = index.search(queries, K, threads=1)
        missing = np.arange(K) >= np.asarray(found.counts)[:, None]
        distances: Distances = np.where(missing, _NOT_FOUND, found.distances)
        return distances

    n_bytes = int(index.serialized_length)
    variant = f"connectivity {links}"
    return Built("usearch b1", variant, "expansion_search", BEAMS, seconds, n_bytes, search)
