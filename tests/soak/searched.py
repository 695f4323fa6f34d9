"""What the soak scripts share: a collection to search, and result files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # children too test what lies here
import machine  # noqa: E402

import hamming_engine as he  # noqa: E402

DIM = 1024
N_ROWS = 66_000  # codes of a little more than the least memory_bytes, so that some are streamed
LEAST_MEMORY = 8 << 20
BASE = np.random.default_rng(0).standard_normal((4096, DIM)).astype(np.float16)


class Rows:
    """Vectors, all with codes of their own, that exist only while they are looked at."""

    shape, dtype = (N_ROWS, DIM), BASE.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        begin, end, _ = rows.indices(N_ROWS)
        return np.stack(
            [np.roll(BASE[row % len(BASE)], row // len(BASE)) for row in range(begin, end)]
        )


def make_collection(path: Path, vectors: str | None = None) -> None:
    with he.Collection.create(path, DIM, vectors=vectors) as docs:
        docs.append(Rows())


def queries(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


def write(name: str, results: object) -> None:
    """A result file, with the machine that it comes from."""
    path = HERE / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    content = {"machine": machine.describe(), "results": results}
    path.write_text(json.dumps(content, indent=1) + "\n")
