"""The scan by float queries against FAISS and against our own Hamming scan, side by side.

    python benchmarks/asymmetric.py                          # everything, some minutes
    python benchmarks/asymmetric.py --rows 3000 --quick      # does it run?

Rows are random Gaussians, which are given to FAISS's RaBitQ fast scan as they are, and to
`FlatIndex` as their signs with the same two factors a row. Contestants take turns with the same
queries and the same number of threads; times are those of the best call. Results go to
``benchmarks/results/asymmetric.json``.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Floats
from flat import RESULTS, THREADS
from machine import describe
from numpy.typing import NDArray
from timing import Call, alternate

import hamming_engine as he

OURS, HAMMING, FAISS = "asymmetric", "hamming", "faiss RaBitQfs"
PLAIN = "asymmetric, no factors"
OURS_BY_TABLE, HAMMING_BY_TABLE = "asymmetric, table", "hamming, table"
ROWS = {384: 1_000_000, 768: 500_000}
QUERIES, KS = (1, 128), (10, 40)
_BLOCK_ROWS = 50_000


def blocks(n_rows: int, dim: int) -> Iterator[Floats]:
    """Random rows, the same each time."""
    rng = np.random.default_rng(0)
    for first in range(0, n_rows, _BLOCK_ROWS):
        yield rng.standard_normal((min(_BLOCK_ROWS, n_rows - first), dim), dtype=np.float32)


def factors_of(block: Floats) -> Floats:
    """What RaBitQ keeps of rows around zero that are not rotated: see `RaBitQuantizer`."""
    squares = np.einsum("ij,ij->i", block, block)
    scale = squares / np.abs(block).sum(axis=1)
    return np.stack([scale, np.zeros_like(scale)], axis=1)


class Contestants:
    """Indexes of the same rows."""

    def __init__(self, dim: int, n_rows: int) -> None:
        self._indexes = {
            OURS: he.FlatIndex(dim, factors=True),
            OURS_BY_TABLE: he.FlatIndex(dim, factors=True, kernel="table"),
            PLAIN: he.FlatIndex(dim),
            HAMMING_BY_TABLE: he.FlatIndex(dim, kernel="table"),
        }
        self._indexes[HAMMING] = self._indexes[PLAIN]
        self._faiss = _new_faiss(dim, next(blocks(n_rows, dim)))
        for block in blocks(n_rows, dim):
            codes, factors = he.pack_signs(block), factors_of(block)
            for name in (OURS, OURS_BY_TABLE):
                self._indexes[name].add(codes, factors)
            for name in (PLAIN, HAMMING_BY_TABLE):
                self._indexes[name].add(codes)
            if self._faiss is not None:
                self._faiss.add(block)

    def calls(self, queries: Floats, k: int, threads: int) -> dict[str, Call]:
        """Searches that return rows."""
        codes = he.pack_signs(queries)
        calls: dict[str, Call] = {}
        for name, index in self._indexes.items():
            given: NDArray[Any] = codes if name in (HAMMING, HAMMING_BY_TABLE) else queries
            calls[name] = functools.partial(_rows_of, index, given, k, threads)
        if self._faiss is not None:
            calls[FAISS] = functools.partial(_faiss_rows, self._faiss, queries, k, threads)
        return calls


def _rows_of(index: he.FlatIndex, queries: NDArray[Any], k: int, threads: int) -> Any:
    return index.search(queries, k, threads=threads).rows


def _faiss_rows(index: Any, queries: Floats, k: int, threads: int) -> Any:
    import faiss

    faiss.omp_set_num_threads(threads)
    return index.search(queries, k)[1]


def _new_faiss(dim: int, sample: Floats) -> Any:
    """An empty index, or None where FAISS is not installed."""
    if not importlib.util.find_spec("faiss"):
        return None
    import faiss

    index = faiss.index_factory(dim, "RaBitQfs", faiss.METRIC_INNER_PRODUCT)
    index.train(sample)
    return index


def share_in_common(found: NDArray[Any], others: NDArray[Any]) -> float:
    """Of the rows found for each query, how many the other found too."""
    same = [np.isin(a, b).mean() for a, b in zip(found, others, strict=True)]
    return float(np.mean(same))


def run(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each case: milliseconds of everybody, and our ratios."""
    for dim in arguments.bits:
        n_rows = arguments.rows or ROWS.get(dim, min(ROWS.values()))
        contestants = Contestants(dim, n_rows)
        rng = np.random.default_rng(1)
        for n_queries, k, threads in itertools.product(QUERIES, KS, THREADS):
            queries = rng.standard_normal((n_queries, dim), dtype=np.float32)
            calls = contestants.calls(queries, k, threads)
            found = {name: call() for name, call in calls.items()}
            np.testing.assert_array_equal(found[OURS], found[OURS_BY_TABLE])
            np.testing.assert_array_equal(found[HAMMING], found[HAMMING_BY_TABLE])
            times = alternate(calls, arguments.seconds, arguments.rounds)
            best = {name: min(seconds) for name, seconds in times.items()}
            row = {
                "n_bits": dim,
                "n_rows": n_rows,
                "n_queries": n_queries,
                "k": k,
                "threads": threads,
                "ms": {name: 1e3 * seconds for name, seconds in best.items()},
                "times_faiss": best[FAISS] / best[OURS] if FAISS in best else None,
                "of_hamming": best[HAMMING] / best[OURS],
                "of_hamming_by_table": best[HAMMING_BY_TABLE] / best[OURS_BY_TABLE],
                "in_common_with_faiss": share_in_common(found[OURS], found[FAISS])
                if FAISS in found
                else None,
            }
            print(row, flush=True)
            yield row


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--rows", type=int, help=f"by default, by bits: {ROWS}")
    parser.add_argument("--seconds", type=float, default=3, help="a case, at least")
    parser.add_argument("--rounds", type=int, default=7, help="a case, at least")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--output", type=Path, default=RESULTS / "asymmetric.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.rounds = 0, 1
    result = {
        "machine": describe(),
        "arguments": {name: value for name, value in vars(arguments).items() if name != "output"},
        "search": list(run(arguments)),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
