"""How long Ctrl-C takes to end a search, and that the next one is right.

    python tests/soak/interrupts.py [n, 50 by default]

A child searches again and again; this process sends SIGINT at a random moment and compares clocks,
which all processes share.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import searched

import hamming_engine as he

LIMIT_MS = 200
BATCHES = {"one query": 1, "a big batch": 20_000}
CASES = [
    (where, method, batch)
    for where in ("in memory", "streamed")
    for method in ("asymmetric", "hamming")
    for batch in BATCHES
]


def child(path: Path, where: str, method: str, batch: str, n: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    memory_bytes = searched.LEAST_MEMORY if where == "streamed" else 1 << 30
    docs = he.Collection.open(path, memory_bytes=memory_bytes)
    queries = searched.queries(BATCHES[batch])
    expected = docs.search(queries[:7], 5, method=method)
    docs.search(queries[:300], 5, method=method)
    for _ in range(n):
        try:
            print("ready", flush=True)
            while True:
                docs.search(queries, 5, method=method)
        except KeyboardInterrupt:
            print(time.monotonic(), flush=True)
        found = docs.search(queries[:7], 5, method=method)
        same = all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        print("right" if same else "wrong", flush=True)


def run(path: Path, where: str, method: str, batch: str, n: int) -> dict:
    """Milliseconds from the signal to the exception."""
    rng = np.random.default_rng(0)
    took = []
    arguments = [sys.executable, __file__, "--child", str(path), where, method, batch, str(n)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(n):
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.05, 1.0))
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            took.append(1000 * (float(process.stdout.readline()) - begin))
            assert process.stdout.readline() == "right\n"
    return {
        "codes": where,
        "method": method,
        "batch": batch,
        "queries": BATCHES[batch],
        "n": n,
        "median_ms": round(float(np.median(took)), 1),
        "worst_ms": round(max(took), 1),
    }


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "docs.hme"
        searched.make_collection(path, "float16")
        for case in CASES:
            results.append(run(path, *case, n))
            print(results[-1], flush=True)
    searched.write("interrupts", results)
    sys.exit(any(result["worst_ms"] > LIMIT_MS for result in results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), *sys.argv[3:6], int(sys.argv[6]))
    else:
        main()
