"""pack_signs against NumPy, side by side. Results go to ``benchmarks/results/packing.json``."""

from __future__ import annotations

import argparse
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flat import ALL_THREADS, RESULTS
from machine import describe
from numpy.typing import NDArray
from timing import alternate

import hamming_engine as he


def pack_with_numpy(vectors: NDArray[Any]) -> NDArray[np.uint8]:
    """What pack_signs does, in one line of NumPy."""
    return np.packbits(vectors > 0, axis=1)


def pack_rows(n_rows: int, seconds: float) -> list[dict[str, Any]]:
    """Vectors beyond the caches, and a batch that fits into them."""
    rows = []
    rng = np.random.default_rng(0)
    for dim, n in itertools.product((100, 384, 1024), (n_rows // 100, n_rows)):
        for dtype in ("float16", "float32", "float64"):
            vectors = rng.standard_normal((n, dim), dtype=np.float32).astype(dtype)
            times = alternate(
                {
                    "hamming_engine": partial(he.pack_signs, vectors, threads=ALL_THREADS),
                    "numpy packbits(x > 0)": partial(pack_with_numpy, vectors),
                },
                seconds,
                3,
            )
            medians = {name: float(np.median(times)) for name, times in times.items()}
            row = {
                "dim": dim,
                "n_rows": n,
                "dtype": dtype,
                "threads": ALL_THREADS,
                "GBps": {name: vectors.nbytes / s / 1e9 for name, s in medians.items()},
                "hamming_engine_is_faster_by": medians["numpy packbits(x > 0)"]
                / medians["hamming_engine"],
            }
            rows.append(row)
            print(f"pack {dim:5} x {n:7} {dtype}  {row['GBps']}", flush=True)
    return rows


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=0.5, help="a case, at least")
    parser.add_argument("--output", type=Path, default=RESULTS / "packing.json")
    arguments = parser.parse_args()
    result = {
        "machine": describe(),
        "pack_signs": pack_rows(arguments.rows, arguments.seconds),
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
