"""Exact search and packing against named peers, side by side.

Contestants take turns in every round, with the same data and the same number of threads; a row of
the result is the median over all calls, a ratio is a median over another's. Run it with nothing
else on the machine:

    make bench

Results go to ``benchmarks/results/flat.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
from machine import describe
from numpy.typing import NDArray

import hamming_engine as he

RESULTS = Path(__file__).parent / "results"
PAUSE_SECONDS = 0.005
TURN_SECONDS = 0.05

Codes = NDArray[np.uint64]
Search = Callable[[], Any]


def ours(codes: Codes, n_bits: int, queries: Codes, k: int, threads: int) -> Search:
    """FlatIndex.search."""
    index = he.FlatIndex(n_bits)
    index.add(codes)
    return lambda: index.search(queries, k, threads=threads).distances


def faiss_flat(codes: Codes, n_bits: int, queries: Codes, k: int, threads: int) -> Search:
    """faiss.IndexBinaryFlat.search."""
    import faiss

    index = faiss.IndexBinaryFlat(n_bits)
    index.add(codes.view(np.uint8))
    query_bytes = queries.view(np.uint8)

    def search() -> Any:
        faiss.omp_set_num_threads(threads)
        return index.search(query_bytes, k)[0]

    return search


def usearch_exact(codes: Codes, n_bits: int, queries: Codes, k: int, threads: int) -> Search:
    """usearch.index.search(exact=True) of b1 vectors."""
    del n_bits
    from usearch.index import MetricKind, search

    rows, query_bytes = codes.view(np.uint8), queries.view(np.uint8)
    return lambda: (
        search(rows, query_bytes, k, MetricKind.Hamming, exact=True, threads=threads).distances
    )


CONTESTANTS: dict[str, Callable[[Codes, int, Codes, int, int], Search]] = {
    "hamming_engine": ours,
    "faiss IndexBinaryFlat": faiss_flat,
    "usearch exact": usearch_exact,
}


def reading_alone(codes: Codes, threads: int) -> Search:
    """Summing the words of the codes: what a scan for one query is limited by."""
    return lambda: _sum_words(codes.reshape(-1), threads)


@numba.njit(parallel=True, cache=True)
def _sum_words(words, n_parts):  # type: ignore[no-untyped-def]
    sums = np.zeros(n_parts, np.uint64)
    for part in numba.prange(n_parts):
        piece = words[words.size * part // n_parts : words.size * (part + 1) // n_parts]
        total = np.uint64(0)
        for i in range(piece.size):
            total += piece[i]
        sums[part] = total
    return sums.sum()


def alternate(
    contestants: dict[str, Search], seconds: float, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each call, contestants taking turns: for so many rounds and so much time.

    Before a turn there is a pause, in which the threads of the one before stop spinning on the
    cores, and a call that is not counted, in which one's own wake up and caches fill.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    begin = time.perf_counter()
    done = 0
    while done < rounds or time.perf_counter() - begin < seconds:
        for name, call in contestants.items():
            time.sleep(PAUSE_SECONDS)
            call()
            turn = time.perf_counter()
            while True:
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
                if time.perf_counter() - turn > TURN_SECONDS:
                    break
        done += 1
    return times


def search_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every combination of bits, queries, k and threads."""
    rows = []
    rng = np.random.default_rng(0)
    for n_bits in arguments.bits:
        codes = rng.integers(0, 2**64, (arguments.rows, n_bits // 64), dtype=np.uint64)
        for n_queries, k, threads in itertools.product(
            arguments.queries, arguments.k, arguments.threads
        ):
            queries = rng.integers(0, 2**64, (n_queries, n_bits // 64), dtype=np.uint64)
            calls = {
                name: make(codes, n_bits, queries, k, threads)
                for name, make in CONTESTANTS.items()
                if name in arguments.contestants
            }
            distances = [
                np.asarray(call(), np.int64).reshape(n_queries, k) for call in calls.values()
            ]
            for other in distances[1:]:
                np.testing.assert_array_equal(other, distances[0])
            if n_queries == 1:
                calls["reading alone"] = reading_alone(codes, threads)
            times = alternate(calls, arguments.seconds, arguments.rounds)
            base = float(np.median(times["hamming_engine"]))
            for name, seconds in times.items():
                median = float(np.median(seconds))
                rows.append(
                    {
                        "contestant": name,
                        "n_bits": n_bits,
                        "n_rows": arguments.rows,
                        "n_queries": n_queries,
                        "k": k,
                        "threads": threads,
                        "calls": len(seconds),
                        "median_ms": 1e3 * median,
                        "min_ms": 1e3 * min(seconds),
                        "code_GBps": codes.nbytes * n_queries / median / 1e9,
                        "hamming_engine_is_faster_by": median / base,
                    }
                )
                print(
                    f"{n_bits:5} bits {n_queries:5} queries k {k:4} threads {threads}  "
                    f"{name:24} {1e3 * median:9.2f} ms {rows[-1]['code_GBps']:7.1f} GB/s "
                    f"x{median / base:5.2f}",
                    flush=True,
                )
    return rows


def pack_with_numpy(vectors: NDArray[Any]) -> NDArray[np.uint8]:
    """What pack_signs does, in one line of NumPy."""
    return np.packbits(vectors > 0, axis=1)


def pack_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """pack_signs against NumPy: vectors beyond the caches, and a batch that fits into them."""
    rows = []
    rng = np.random.default_rng(0)
    for dim, n in itertools.product((100, 384, 1024), (2_000, arguments.rows // 5)):
        for dtype in ("float16", "float32", "float64"):
            vectors = rng.standard_normal((n, dim), dtype=np.float32).astype(dtype)
            threads = max(arguments.threads)
            times = alternate(
                {
                    "hamming_engine": partial(he.pack_signs, vectors, threads=threads),
                    "numpy packbits(x > 0)": partial(pack_with_numpy, vectors),
                },
                arguments.seconds / 4,
                3,
            )
            medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
            row = {
                "dim": dim,
                "n_rows": n,
                "dtype": dtype,
                "threads": threads,
                "GBps": {name: vectors.nbytes / s / 1e9 for name, s in medians.items()},
                "hamming_engine_is_faster_by": medians["numpy packbits(x > 0)"]
                / medians["hamming_engine"],
            }
            rows.append(row)
            print(f"pack {dim:5} x {n:7} {dtype}  {row['GBps']}", flush=True)
    return rows


FIRST_SEARCH = """
import time; begin = time.perf_counter()
import numpy as np, hamming_engine as he
codes = he.pack_signs(np.ones((50_000, 256), np.float32))
he.search(codes[:1], codes, 10)
print(time.perf_counter() - begin)
"""


def first_search() -> dict[str, float]:
    """Seconds from the start of Python code to the first result, imports and compiling included."""

    def run(cache: str) -> float:
        done = subprocess.run(
            [sys.executable, "-c", FIRST_SEARCH],
            env={**os.environ, "NUMBA_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)

    with tempfile.TemporaryDirectory() as cache:
        cold = run(cache)
        warm = float(np.median([run(cache) for _ in range(5)]))
    print(f"first search: {warm:.2f} s from the cache, {cold:.1f} s compiling", flush=True)
    return {"compiling_s": cold, "from_cache_s": warm}


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--bits", type=int, nargs="+", default=[256, 768, 1024])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS))
    parser.add_argument("--seconds", type=float, default=3, help="a combination, at least")
    parser.add_argument("--rounds", type=int, default=5, help="a combination, at least")
    parser.add_argument("--no-first-search", action="store_true", help="it compiles for a while")
    parser.add_argument("--output", type=Path, default=RESULTS / "flat.json")
    arguments = parser.parse_args()
    result = {
        "machine": describe(),
        "arguments": {name: value for name, value in vars(arguments).items() if name != "output"},
        "first_search": None if arguments.no_first_search else first_search(),
        "search": search_rows(arguments),
        "pack_signs": pack_rows(arguments),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
