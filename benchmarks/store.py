"""Changing a collection, against writing and syncing the same bytes and no more.

Contestants take turns in one folder. Appends of a large block are held against one plain file of
the same bytes, written and synced; a commit of one row against four syncs of small files; lookups,
removals and opening are timed in a collection of many rows; and searches on one thread while
another process compacts, against those before. Results go to ``benchmarks/results/store.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from flat import RESULTS
from machine import describe
from numpy.typing import NDArray

import hamming_engine as he

COMPACT = """
import sys, hamming_engine as he
with he.Collection.open(sys.argv[1], "a") as docs:
    docs.compact(grace_seconds=0)
"""


def turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of calls that take turns; each is called once before."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - begin)
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


def write_and_sync(path: Path, data: bytes) -> None:
    """A plain new file, durably."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def appends(folder: Path, n_rows: int, dim: int, rounds: int) -> dict[str, Any]:
    """Appending blocks, and single rows, against plain files."""
    vectors = np.random.default_rng(0).standard_normal((n_rows, dim), dtype=np.float32)
    with he.Collection.create(folder / "large", dim) as docs:
        docs.append(vectors)
        data = bytes(folder_bytes(folder / "large"))
        large = turns(
            {
                "append": lambda: docs.append(vectors),
                "write and fsync": lambda: write_and_sync(folder / "plain", data),
            },
            rounds,
        )
    with he.Collection.create(folder / "small", dim) as docs:

        def four() -> None:
            for i in range(4):
                write_and_sync(folder / f"four-{i}", b"x" * 4096)

        small = turns(
            {
                "append": lambda: docs.append(vectors[:1]),
                "upsert": lambda: docs.upsert(vectors[:1], ids=[0]),
                "delete": lambda: docs.delete(docs.ids[-1:]),
                "four fsyncs": four,
            },
            10 * rounds,
        )
    return {
        "rows": n_rows,
        "dim": dim,
        "bytes": len(data),
        "append_GBps": len(data) / large["append"] / 1e9,
        "plain_GBps": len(data) / large["write and fsync"] / 1e9,
        "share_of_plain": large["write and fsync"] / large["append"],
        **{f"one_row_{name}_ms": 1e3 * small[name] for name in ("append", "upsert", "delete")},
        "four_fsyncs_ms": 1e3 * small["four fsyncs"],
        "one_row_append_in_four_fsyncs": small["append"] / small["four fsyncs"],
    }


def make_many(path: Path, n_rows: int, n_segments: int, dim: int) -> NDArray[np.int64]:
    """A collection of many rows; its ids, in no order."""
    ids = np.random.default_rng(1).permutation(n_rows)
    base = np.random.default_rng(2).standard_normal((50_000, dim), dtype=np.float32)

    def blocks(begin: int, end: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        for first in range(begin, end, len(base)):
            last = min(first + len(base), end)
            yield np.roll(base[: last - first], first // len(base), axis=1), ids[first:last]

    with he.Collection.create(path, dim) as docs:
        step = -(-n_rows // n_segments)
        for begin in range(0, n_rows, step):
            docs.append(blocks(begin, min(begin + step, n_rows)))
    return ids


def lookups(path: Path, ids: NDArray[np.int64], dim: int, rounds: int) -> dict[str, Any]:
    """Opening, and reading, replacing and removing 1,000 rows by their ids."""
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((1_000, dim), dtype=np.float32)
    order = rng.permutation(ids)
    chunk = count()

    def some() -> NDArray[np.int64]:
        first = 1_000 * next(chunk)
        return order[first : first + 1_000]

    result: dict[str, Any] = {"rows": len(ids)}
    opening = turns({"open": lambda: he.Collection.open(path).close()}, rounds)
    result["open_ms"] = 1e3 * opening["open"]
    with he.Collection.open(path, "a") as docs:
        begin = time.perf_counter()
        docs.get(some())
        result["first_get_ms"] = 1e3 * (time.perf_counter() - begin)
        calls = {
            "get": lambda: docs.get(some()),
            "upsert": lambda: docs.upsert(vectors, ids=some()),
            "delete": lambda: docs.delete(some()),
        }
        for name, seconds in turns(calls, rounds).items():
            result[f"{name}_1000_ms"] = 1e3 * seconds
        result["segments"] = docs.info()["segments"]
    return result


def during_compaction(path: Path, dim: int, rounds: int) -> dict[str, Any]:
    """Searches on one thread, before and while another process compacts."""
    queries = np.random.default_rng(4).standard_normal((8, dim), dtype=np.float32)
    with he.Collection.open(path) as docs:

        def search() -> float:
            begin = time.perf_counter()
            docs.search(queries, 10, threads=1)
            return time.perf_counter() - begin

        search()
        alone = [search() for _ in range(rounds)]
        process = subprocess.Popen([sys.executable, "-c", COMPACT, str(path)])
        meanwhile: list[float] = []
        while process.poll() is None:
            meanwhile.append(search())
        if process.returncode:
            raise RuntimeError("compaction failed")
        after = [search() for _ in range(rounds)]
        assert docs.refresh()
    quiet = float(np.median(alone + after))
    return {
        "search_alone_ms": 1e3 * quiet,
        "search_during_compaction_ms": 1e3 * float(np.median(meanwhile)),
        "searches_during_compaction": len(meanwhile),
        "slower": float(np.median(meanwhile)) / quiet - 1,
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="in an append")
    parser.add_argument("--dim", type=int, default=384, help="of appended rows")
    parser.add_argument("--many-rows", type=int, default=10_000_000, help="of the large collection")
    parser.add_argument("--many-dim", type=int, default=64)
    parser.add_argument("--segments", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where collections are made for a while")
    parser.add_argument("--output", type=Path, default=RESULTS / "store.json")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": describe()}
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        result["append"] = appends(folder, arguments.rows, arguments.dim, arguments.rounds)
        print(result["append"], flush=True)
        many = folder / "many"
        ids = make_many(many, arguments.many_rows, arguments.segments, arguments.many_dim)
        result["many"] = lookups(many, ids, arguments.many_dim, arguments.rounds)
        print(result["many"], flush=True)
        result["compaction"] = during_compaction(many, arguments.many_dim, arguments.rounds)
        print(result["compaction"], flush=True)
    finally:
        shutil.rmtree(folder)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
