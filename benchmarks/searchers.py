"""Who takes part in approximate search of floats: each finds ten rows for every query.

All get the same vectors of unit length, so that cosine, product and distance order them alike.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import blas
import numpy as np
from datasets import Floats
from numpy.typing import NDArray

import hamming_engine as he
from hamming_engine.quantize import (
    Int8Scale,
    ITQQuantizer,
    LocalSearchQuantizer,
    Quantizer,
    RaBitQuantizer,
    RotationQuantizer,
    SignQuantizer,
    ThresholdQuantizer,
)

K = 10
OVERSAMPLES = (1, 2, 4)
SAMPLE_ROWS = 20_000  # that anything is fitted to, at most
_BLOCK_BYTES = 64 << 20  # of scores

Rows = NDArray[np.int64]


class Searcher(NamedTuple):
    """A way to search.

    Attributes
    ----------
    family : str
        What it has in common with others that only score more or fewer candidates.
    method : str
    oversample : int or None
        Candidates scored for each result; None where nothing is re-ranked.
    scanned_bytes, reranked_bytes : int
        Of each row that is scanned, and of each candidate.
    search : callable
        ``search(threads)`` gives (n_queries, 10) rows, best first.
    """

    family: str
    method: str
    oversample: int | None
    scanned_bytes: int
    reranked_bytes: int
    search: Callable[[int], Rows]

    @property
    def name(self) -> str:
        method = f", {self.method}" if self.method else ""
        candidates = f", {self.oversample}x" if self.oversample else ""
        return self.family + method + candidates


def quantizers() -> dict[str, Quantizer]:
    """Every quantiser, not fitted."""
    return {
        "sign": SignQuantizer(),
        "threshold": ThresholdQuantizer(sample_rows=SAMPLE_ROWS),
        "rotation": RotationQuantizer(),
        "itq": ITQQuantizer(sample_rows=SAMPLE_ROWS),
        "rabitq, random": RaBitQuantizer("random", sample_rows=SAMPLE_ROWS),
        "rabitq, itq": RaBitQuantizer("itq", sample_rows=SAMPLE_ROWS),
        **{
            f"local_search, {n_kicks} kicks": LocalSearchQuantizer(
                n_kicks=n_kicks, sample_rows=SAMPLE_ROWS
            )
            for n_kicks in (0, 8, 32)
        },
    }


def brute_force(docs: Floats, queries: Floats) -> Iterator[Searcher]:
    """Every row scored, by NumPy, from float32, float16 and int8."""
    scale = Int8Scale.fit([docs])
    stored: dict[str, tuple[NDArray[Any], Callable[[NDArray[Any]], Floats]]] = {
        "float32": (docs, lambda block: block),
        "float16": (docs.astype(np.float16), lambda block: block.astype(np.float32)),
        "int8": (scale.encode(docs), scale.decode),
    }
    for name, (rows, decode) in stored.items():

        def search(
            threads: int,
            rows: NDArray[Any] = rows,
            decode: Callable[[NDArray[Any]], Floats] = decode,
        ) -> Rows:
            blas.set_threads(threads)
            return best_products(queries, rows, decode)

        yield Searcher(name, "", None, rows.itemsize * rows.shape[1], 0, search)


def best_products(
    queries: Floats, rows: NDArray[Any], decode: Callable[[NDArray[Any]], Floats]
) -> Rows:
    """A block of rows at a time: products, `numpy.argpartition`, and the best of both blocks."""
    best = np.zeros((len(queries), 0), np.int64)
    scores = np.zeros(best.shape, np.float32)
    step = max(K, _BLOCK_BYTES // (4 * len(queries)))
    for first in range(0, len(rows), step):
        products = queries @ decode(rows[first : first + step]).T
        n_found = min(K, products.shape[1])
        found = np.argpartition(-products, n_found - 1, axis=1)[:, :n_found]
        best = np.concatenate([best, found + first], axis=1)
        scores = np.concatenate([scores, np.take_along_axis(products, found, axis=1)], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        best = np.take_along_axis(best, order, axis=1)
        scores = np.take_along_axis(scores, order, axis=1)
    return best


def binary(
    family: str, quantizer: Quantizer, docs: Floats, queries: Floats, folder: Path
) -> Iterator[Searcher]:
    """Collections of one fitted quantiser, searched as its users do; float16 re-ranks."""
    dim = docs.shape[1]
    path = folder / family.replace(", ", "-").replace(" ", "-")
    collection = he.Collection.create(path, dim, vectors="float16", quantizer=quantizer)
    collection.append(docs)
    code_bytes = 8 * he.checks.words_for(quantizer.n_bits)
    for method in ("hamming", "asymmetric") if quantizer.hamming else ("asymmetric",):
        scanned = code_bytes + (4 * quantizer.n_factors if method == "asymmetric" else 0)
        for oversample in (None, *OVERSAMPLES):

            def search(
                threads: int, method: str = method, oversample: int | None = oversample
            ) -> Rows:
                blas.set_threads(threads)
                hits = collection.search(
                    queries,
                    K,
                    method=method,
                    oversample=oversample or 1,
                    rerank=oversample is not None,
                    threads=threads,
                )
                return np.asarray(hits.ids)

            reranked = 2 * dim if oversample else 0
            yield Searcher(family, method, oversample, scanned, reranked, search)


def peers_missing() -> str | None:
    """Why FAISS does not take part, or None."""
    return None if importlib.util.find_spec("faiss") else "faiss is not installed"


def peers(docs: Floats, queries: Floats, seed: int = 0) -> Iterator[Searcher]:
    """FAISS with codes of as many bits, candidates re-ranked by float32."""
    faiss: Any = importlib.import_module("faiss")
    dim = docs.shape[1]
    rng = np.random.default_rng(seed)
    sample = docs[rng.permutation(len(docs))[:SAMPLE_ROWS]]
    factories = {
        "faiss RaBitQfs": "RaBitQfs",
        f"faiss RR{dim},RaBitQfs": f"RR{dim},RaBitQfs",
        f"faiss PQ{dim // 4}x4fs": f"PQ{dim // 4}x4fs",
    }
    for family, factory in factories.items():
        index = faiss.index_factory(dim, factory, faiss.METRIC_L2)
        index.train(sample)
        index.add(docs)
        inner = faiss.downcast_index(index.index) if "," in factory else index
        refined = faiss.IndexRefineFlat(index, faiss.swig_ptr(docs))
        for oversample in (None, *OVERSAMPLES):

            def search(
                threads: int,
                index: Any = index,
                refined: Any = refined,
                oversample: int | None = oversample,
            ) -> Rows:
                blas.set_threads(threads)
                faiss.omp_set_num_threads(threads)
                if oversample is None:
                    return np.asarray(index.search(queries, K)[1])
                parameters = faiss.IndexRefineSearchParameters(k_factor=oversample)
                return np.asarray(refined.search(queries, K, params=parameters)[1])

            reranked = 4 * dim if oversample else 0
            yield Searcher(family, "", oversample, inner.code_size, reranked, search)
