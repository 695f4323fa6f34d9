"""Many Python threads search at once, under every threading layer: results as one thread finds.

python tests/soak/threads.py [n_searches a thread, 1000 by default]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import searched

import hamming_engine as he

N_THREADS = 16
LAYERS = ("omp", "workqueue", "tbb")
BATCHES = (1, 2, 9, 33)  # small launches, and parallel ones


def tasks(path: Path) -> list:
    """Searches of different sizes; each returns arrays."""
    in_memory = he.Collection.open(path)
    streamed = he.Collection.open(path, memory_bytes=searched.LEAST_MEMORY)
    index = he.FlatIndex(256)
    index.add(np.random.default_rng(2).integers(0, 2**64, (30_000, 4), dtype=np.uint64))
    some = np.arange(searched.N_ROWS) % 3 == 0
    made = []
    for i, n in enumerate(BATCHES):
        vectors = searched.queries(n, seed=i)
        codes = index.codes[7 * n : 8 * n]
        where = some if i % 2 else None
        for docs in (in_memory, streamed):
            for method in ("asymmetric", "hamming"):
                made.append(
                    lambda docs=docs, vectors=vectors, method=method, where=where: docs.search(
                        vectors, 5, method=method, where=where
                    )
                )
        made.append(lambda codes=codes: index.search(codes, 7))
        made.append(lambda codes=codes: index.search(codes, 7, threads=1))
    return made


def child(path: Path, n_searches: int) -> None:
    """All of it under the layer that the environment names; prints what came out."""
    searches = tasks(path)
    expected = [[np.array(array) for array in search()] for search in searches]
    for docs in range(4):  # in memory and streamed alike
        for i in range(0, len(searches), 6):
            both = zip(expected[i + docs % 2], expected[i + 2 + docs % 2], strict=True)
            assert all(np.array_equal(a, b) for a, b in both)

    def search_all(thread: int) -> int:
        n_wrong = 0
        for which in np.random.default_rng(thread).integers(0, len(searches), n_searches):
            found = searches[which]()
            pairs = zip(found, expected[which], strict=True)
            n_wrong += not all(np.array_equal(a, b) for a, b in pairs)
        return n_wrong

    begin = time.perf_counter()
    with ThreadPoolExecutor(N_THREADS) as pool:
        n_wrong = sum(pool.map(search_all, range(N_THREADS)))
    seconds = time.perf_counter() - begin
    print(
        json.dumps(
            {
                "layer": numba.threading_layer(),
                "threads": N_THREADS,
                "searches": N_THREADS * n_searches,
                "wrong": n_wrong,
                "seconds": round(seconds, 1),
            }
        )
    )


def run(path: Path, layer: str, n_searches: int) -> dict:
    """What the child prints, and how it ended."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--child", str(path), str(n_searches)],
        env={
            **os.environ,
            "NUMBA_THREADING_LAYER": layer,
            "LD_LIBRARY_PATH": f"{sys.prefix}/lib",  # where the package tbb puts its library
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if "No threading layer could be loaded" in done.stderr:
        return {"layer": layer, "installed": False}
    if done.returncode:
        return {"layer": layer, "returncode": done.returncode, "stderr": done.stderr[-2000:]}
    return {"returncode": 0, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    n_searches = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "docs.hme"
        searched.make_collection(path, "float16")
        results = [run(path, layer, n_searches) for layer in LAYERS]
    searched.write("threads", results)
    print(*results, sep="\n")
    sys.exit(any(result.get("returncode") or result.get("wrong") for result in results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
