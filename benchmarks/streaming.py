"""Search of codes that lie in a file, in the page cache, against reading that file and no more.

A collection without vectors is made in a temporary folder. Contestants take turns: one ``preadv``
after another into a buffer, nothing else done, and searches with several memory limits; without
limit, all codes are in memory. Results go to ``benchmarks/results/streaming.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flat import ALL_THREADS, RESULTS
from machine import describe
from numpy.typing import NDArray
from timing import Call, alternate

import hamming_engine as he

READ_BYTES = 2 << 20
LIMITS_MIB = (8, 32, 128)


def make_collection(path: Path, n_rows: int, n_bits: int) -> Path:
    """Rows with random codes; the file that they are in."""

    def blocks() -> Iterator[NDArray[np.float32]]:
        rng = np.random.default_rng(0)
        for begin in range(0, n_rows, 20_000):
            shape = min(20_000, n_rows - begin), n_bits
            yield rng.standard_normal(shape, dtype=np.float32)

    with he.Collection.create(path, n_bits, vectors=None) as docs:
        docs.append(blocks())
    return next(path.glob("segment-*"))


def read_alone(path: Path, n_bytes: int) -> Call:
    """Read so many bytes of a file, a block after another."""
    buffer = bytearray(READ_BYTES)

    def read() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for offset in range(0, n_bytes, READ_BYTES):
                os.preadv(descriptor, [buffer], offset)
        finally:
            os.close(descriptor)

    return read


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of queries and each contestant."""
    rows = []
    n_bytes = arguments.rows * arguments.bits // 8
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "c"
        file = make_collection(path, arguments.rows, arguments.bits)
        for n_queries in arguments.queries:
            queries = rng.standard_normal((n_queries, arguments.bits), dtype=np.float32)

            def searching(limit: int | None, queries: NDArray[np.float32] = queries) -> Call:
                docs = he.Collection.open(path, memory_bytes=limit and limit << 20)
                return lambda: docs.search(queries, 10, rerank=False)

            calls = {f"limit {limit} MiB": searching(limit) for limit in LIMITS_MIB}
            calls |= {"in memory": searching(None), "preadv alone": read_alone(file, n_bytes)}
            times = alternate(calls, arguments.seconds, arguments.rounds)
            for name, seconds in times.items():
                median = float(np.median(seconds))
                rows.append(
                    {
                        "contestant": name,
                        "n_queries": n_queries,
                        "threads": ALL_THREADS,
                        "ms": 1e3 * median,
                        "file_GBps": n_bytes / median / 1e9,
                        "share_of_preadv": float(np.median(times["preadv alone"])) / median,
                        "share_of_in_memory": float(np.median(times["in memory"])) / median,
                    }
                )
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--bits", type=int, default=1024)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--seconds", type=float, default=5, help="a case, at least")
    parser.add_argument("--rounds", type=int, default=7, help="a case, at least")
    parser.add_argument("--folder", type=Path, help="where the collection is made for a while")
    parser.add_argument("--output", type=Path, default=RESULTS / "streaming.json")
    arguments = parser.parse_args()
    result = {
        "machine": describe(),
        "n_rows": arguments.rows,
        "n_bits": arguments.bits,
        "search": run(arguments),
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
