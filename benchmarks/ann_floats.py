"""Who takes part in search of floats by codes: candidates from an index, scored again by floats.

Nobody scans more than 48 bytes of codes a row and what its method keeps beside them. Ours score
candidates from float16, FAISS from float32.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple

import blas
import numpy as np
import searchers
from ann_indexes import as_bytes, built_of, round_power, timed
from datasets import Dataset, Floats
from flat import ALL_THREADS
from numpy.typing import NDArray

import hamming_engine as he
from hamming_engine.quantize import Encoded, Quantizer
from hamming_engine.rerank import Source, exact_scores

K = searchers.K
OVERSAMPLES = (1, 2, 4, 6, 8, 10, 12, 16, 24, 32)
PROBES = (4, 8, 16, 32, 48, 64, 96, 128, 256)
BEAMS = (0, 40, 80, 160)  # beyond the candidates
LISTS_PER_ROOT = (2,)
QUANTIZERS = {
    "sign": ("hamming", "asymmetric"),
    "itq": ("hamming",),
    "rabitq, itq": ("asymmetric",),
}
SAMPLE_ROWS = searchers.SAMPLE_ROWS

Rows = NDArray[np.int64]


class FloatSearcher(NamedTuple):
    """A way to find the rows nearest to floats.

    Attributes
    ----------
    family : str
    variant : str
    knob : str
    values : tuple
        Of the knob, recall ascending.
    code_bytes : int
        Of each row, factors among them.
    build_seconds : float
        Fitting, encoding and building, on all threads.
    search : callable
        ``search(value, oversample)`` gives (n_queries, 10) rows, on one thread.
    """

    family: str
    variant: str
    knob: str
    values: tuple[Any, ...]
    code_bytes: int
    build_seconds: float
    search: Callable[[Any, int], Rows]


Make = Callable[[], FloatSearcher]


def contestants(data: Dataset, lists_per_root: tuple[int, ...]) -> Iterator[Make]:
    """Everybody who is here, not built yet."""
    n_lists = [round_power(per_root * len(data.docs) ** 0.5) for per_root in lists_per_root]
    for name, methods in QUANTIZERS.items():
        coded = Coded(data, name)
        for method in methods:
            ours = partial(binary, data, coded, method)
            yield partial(ours, "FlatIndex", "", (None,))
            for lists in n_lists:
                for by_vectors in (False, True):
                    ivf = partial(ours, "IVFIndex", "nprobe", PROBES, by_vectors)
                    yield partial(ivf, n_lists=lists)
            if hasattr(he, "GraphIndex") and method == "hamming":
                yield partial(ours, "GraphIndex", "ef", BEAMS)
    if importlib.util.find_spec("faiss"):
        yield partial(faiss_binary, data, "IndexBinaryFlat", 0)
        for lists in n_lists:
            yield partial(faiss_binary, data, "IndexBinaryIVF", lists)
        yield partial(faiss_binary, data, "IndexBinaryHNSW", 32)
        dim = data.docs.shape[1]
        for codes in (f"PQ{dim // 4}x4fs", "RaBitQfs"):
            yield partial(faiss_floats, data, codes, codes, 0)
            for lists in n_lists:
                yield partial(faiss_floats, data, f"IVF,{codes}", f"IVF{lists},{codes}", lists)
                # Not OPQ: two of its fifty iterations took minutes for 20,000 rows.
                factory = f"RR{dim},IVF{lists},{codes}"
                yield partial(faiss_floats, data, f"RR{dim},IVF,{codes}", factory, lists)


class Coded:
    """Rows as codes of a quantiser; fitted and encoded once, when first asked for."""

    def __init__(self, data: Dataset, name: str) -> None:
        self._data = data
        self.name = name

    @cached_property
    def timed(self) -> tuple[tuple[Quantizer, Encoded], float]:
        """Quantiser and codes, and the seconds that fitting and encoding took."""

        def make() -> tuple[Quantizer, Encoded]:
            quantizer = searchers.quantizers()[self.name].fit(self._data.docs, metric="dot")
            return quantizer, quantizer.encode_rows(self._data.docs)

        blas.set_threads(ALL_THREADS)
        small = searchers.quantizers()[self.name].fit(self._data.docs[:400], metric="dot")
        small.encode_rows(self._data.docs[:400])  # compiles
        return timed(make)


def best(queries: Floats, docs: NDArray[np.float16], found: Rows) -> Rows:
    """The ten best of candidates, by their products with the query."""
    sources = [Source(0, docs)]
    scores = exact_scores(queries.astype(np.float64), found, sources, "dot", threads=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(found, order, axis=1)


def binary(
    data: Dataset,
    coded: Coded,
    method: str,
    kind: str,
    knob: str,
    values: tuple[Any, ...],
    by_vectors: bool = False,
    **settings: int,
) -> FloatSearcher:
    """One of the package's indexes; queries are encoded within the time that counts.

    Cells are made of the codes, or ``by_vectors`` of what these were made of.
    """
    stored = data.docs.astype(np.float16)
    blas.set_threads(ALL_THREADS)

    (quantizer, encoded), encoding_seconds = coded.timed
    factors = method == "asymmetric" and quantizer.n_factors > 0
    options: dict[str, Any] = {"factors": True} if factors else {}
    added: dict[str, NDArray[Any]] = {"factors": encoded.factors} if factors else {}
    if by_vectors:
        added["vectors"] = data.docs

    index, seconds = built_of(
        encoded.codes, lambda: getattr(he, kind)(quantizer.n_bits, **settings, **options), **added
    )
    seconds += encoding_seconds

    def search(value: Any, oversample: int) -> Rows:
        blas.set_threads(1)
        queries: NDArray[Any] = (
            quantizer.encode(data.queries, threads=1)
            if method == "hamming"
            else quantizer.weights(data.queries).weights
        )
        n_found = K * oversample
        told = {knob: n_found + value if knob == "ef" else value} if knob else {}
        found: Rows = index.search(queries, n_found, threads=1, **told).rows
        return found if oversample == 1 else best(data.queries, stored, found)

    code_bytes = 8 * he.checks.words_for(quantizer.n_bits)
    code_bytes += 4 * quantizer.n_factors if method == "asymmetric" else 0
    family = f"hamming_engine {kind}, {coded.name}, {method}"
    variant = ", ".join(f"{setting} {value:,}" for setting, value in settings.items())
    variant += ", of vectors" if by_vectors else ""
    return FloatSearcher(family, variant, knob, values, code_bytes, seconds, search)


def faiss_binary(data: Dataset, kind: str, size: int) -> FloatSearcher:
    """FAISS's binary indexes over sign codes, and its products for the candidates."""
    faiss: Any = importlib.import_module("faiss")
    dim = data.docs.shape[1]
    faiss.omp_set_num_threads(ALL_THREADS)
    knob, variant = "", ""
    values: tuple[Any, ...] = (None,)
    if kind == "IndexBinaryIVF":
        index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(dim), dim, size)
        knob, values, variant = "nprobe", PROBES, f"nlist {size:,}"
    elif kind == "IndexBinaryHNSW":
        index = faiss.IndexBinaryHNSW(dim, size)
        index.hnsw.efConstruction = 160
        knob, values, variant = "efSearch", BEAMS, f"M {size}, efConstruction 160"
    else:
        index = faiss.IndexBinaryFlat(dim)

    def build() -> None:
        rows = as_bytes(he.pack_signs(data.docs), dim)
        index.train(rows)
        index.add(rows)

    _, seconds = timed(build)

    def search(value: Any, oversample: int) -> Rows:
        faiss.omp_set_num_threads(1)
        n_found = K * oversample
        if knob == "nprobe":
            index.nprobe = value
        elif knob:
            index.hnsw.efSearch = n_found + value
        codes = he.pack_signs(data.queries, threads=1)
        found: Rows = index.search(as_bytes(codes, dim), n_found)[1]
        if oversample == 1:
            return found
        scores = np.empty(found.shape, np.float32)
        pointers = (faiss.swig_ptr(array) for array in (scores, data.queries, data.docs, found))
        faiss.fvec_inner_products_by_idx(*pointers, dim, len(found), n_found)
        scores[found < 0] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        return np.take_along_axis(found, order, axis=1)

    return FloatSearcher(f"faiss {kind}", variant, knob, values, dim // 8, seconds, search)


def faiss_floats(data: Dataset, family: str, factory: str, n_lists: int) -> FloatSearcher:
    """FAISS's quantisers with fast scans, in an IndexRefineFlat."""
    faiss: Any = importlib.import_module("faiss")
    faiss.omp_set_num_threads(ALL_THREADS)
    blas.set_threads(ALL_THREADS)
    index = faiss.index_factory(data.docs.shape[1], factory, faiss.METRIC_L2)
    rng = np.random.default_rng(0)
    sample = data.docs[rng.permutation(len(data.docs))[:SAMPLE_ROWS]]

    def build() -> None:
        index.train(sample if not n_lists else data.docs)
        index.add(data.docs)

    _, seconds = timed(build)
    refined = faiss.IndexRefineFlat(index, faiss.swig_ptr(data.docs))
    lists = faiss.extract_index_ivf(index) if n_lists else None

    def search(nprobe: Any, oversample: int) -> Rows:
        faiss.omp_set_num_threads(1)
        blas.set_threads(1)
        if lists is not None:
            lists.nprobe = nprobe
        if oversample == 1:
            found: Rows = index.search(data.queries, K)[1]
            return found
        parameters = faiss.IndexRefineSearchParameters(k_factor=oversample)
        rows: Rows = refined.search(data.queries, K, params=parameters)[1]
        return rows

    n_bytes = int(lists.code_size if lists is not None else index.sa_code_size())
    values = tuple(n for n in PROBES if n <= n_lists) or (None,)
    knob = "nprobe" if n_lists else ""
    return FloatSearcher(f"faiss {family}", factory, knob, values, n_bytes, seconds, search)
