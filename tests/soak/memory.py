"""Address space that ends while something works: ``MemoryError`` or success, and nothing else.

    python tests/soak/memory.py [n_steps, 40 by default]

A child imports everything, runs every operation once, so that kernels are loaded and the threads of
numba's layer are there, and then repeats each under ``RLIMIT_AS``: what the process has then, plus
more and more, until it is enough. After each step, without a limit, results have to be right, and
the collection as it was before, or as the operation leaves it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import searched

import hamming_engine as he
from hamming_engine.hits import Hits

PAGE = 4096
MOST = 4 << 30
# Smaller blocks are left where they lie. Without 64 KiB for a buffer of its own, NumPy 2.4 ends the
# process: a ufunc asks for it when it has released the GIL, and then raises MemoryError.
SMALLEST_BLOCK = 1 << 17
N_SMALL = 6_000  # rows of the collection that is appended to


class Operations:
    """What is repeated: each returns something to compare, and leaves a folder to be checked."""

    def __init__(self, base: Path, scratch: Path) -> None:
        self._big, self._small = base / "big", base / "small"
        self._scratch = scratch
        self._queries = searched.queries(300)
        self._new = searched.Rows()[0:3_000]
        self._docs = he.Collection.open(self._big)
        self._streamed = he.Collection.open(self._big, memory_bytes=searched.LEAST_MEMORY)
        self._target = scratch / "none"

    def prepare(self, name: str) -> None:
        """Before the limit."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        self._target = self._scratch / "docs"
        if name.startswith("append"):
            shutil.copytree(self._small, self._target)

    def create(self) -> Any:
        he.Collection.create(self._target, searched.DIM, vectors="int8", quantizer="sign").close()

    def append(self) -> Any:
        with he.Collection.open(self._target, "a") as docs:
            docs.append(self._new)

    def append_iterator(self) -> Any:
        with he.Collection.open(self._target, "a") as docs:
            docs.append(self._new[begin : begin + 500] for begin in range(0, 3_000, 500))

    def open(self) -> Any:
        with he.Collection.open(self._big) as docs:
            return len(docs)

    def first_search(self) -> Any:
        with he.Collection.open(self._big) as docs:
            return docs.search(self._queries[:40], 5)

    def first_search_streamed(self) -> Any:
        with he.Collection.open(self._big, memory_bytes=searched.LEAST_MEMORY) as docs:
            return docs.search(self._queries[:40], 5)

    def search(self) -> Any:
        return self._docs.search(self._queries[:1], 5)

    def search_many(self) -> Any:
        return self._docs.search(self._queries, 5)

    def search_hamming(self) -> Any:
        return self._docs.search(self._queries, 5, method="hamming")

    def search_streamed(self) -> Any:
        return self._streamed.search(self._queries[:1], 5)

    def search_many_streamed(self) -> Any:
        return self._streamed.search(self._queries, 5, where=np.arange(searched.N_ROWS) % 2 == 0)

    def export(self) -> Any:
        with he.Collection.open(self._small) as docs:
            docs.export(self._target)

    def check(self, name: str, worked: bool) -> None:
        """After the limit: whatever is there is whole."""
        if name == "create":
            if worked:
                he.Collection.open(self._target).close()
            else:
                he.Collection.create(self._target, searched.DIM).close()
        elif name.startswith("append"):
            with he.Collection.open(self._target, "a") as docs:
                n = len(docs)
                # A commit that fails after the manifest was published has happened.
                expect(n == N_SMALL + 3_000 if worked else n in (N_SMALL, N_SMALL + 3_000), n)
                hits = docs.search(searched.Rows()[0:3], 2)
                expect((hits.scores[:, 0] > 0.99).all(), hits)
                docs.append(self._new)
        elif name == "export":
            expect(self._target.exists() == worked, "exported")
            expect(worked or not list(self._scratch.iterdir()), "leftovers")
            if worked:
                with he.Collection.open(self._target) as docs:
                    expect(len(docs) == N_SMALL, len(docs))


def expect(holds: Any, what: object) -> None:
    if not holds:
        raise ValueError(f"unexpected: {what}")


NAMES = tuple(
    name for name in vars(Operations) if name[0] != "_" and name not in ("prepare", "check")
)


def address_space() -> int:
    with open("/proc/self/statm") as statm:
        return PAGE * int(statm.read().split()[0])


def fill(blocks: list[bytearray | None]) -> None:
    """Take what the process can have without growing, down to small blocks."""
    size = 1 << 26
    n = 0
    while size >= SMALLEST_BLOCK and n < len(blocks):
        try:
            blocks[n] = bytearray(size)
            n += 1
        except MemoryError:
            size >>= 1


def limited(operation: Callable[[], Any], more: int) -> tuple[str, Any]:
    """How it ends with so many bytes more than there are now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    ballast: list[bytearray | None] = [None] * 100_000
    now = address_space()
    resource.setrlimit(resource.RLIMIT_AS, (now, hard))
    fill(ballast)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, hard))
    try:
        result = operation()
    except MemoryError:
        return "MemoryError", None
    except BaseException as error:
        ballast.clear()
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))
    finally:
        ballast.clear()
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return "success", result


def steps(n: int, need: int) -> Iterator[int]:
    """From nothing to what is needed, and a little beyond."""
    yield from (need * i // (n - 1) // PAGE * PAGE for i in range(n + 1))
    yield from np.unique(np.geomspace(PAGE, need, n, dtype=int) // PAGE * PAGE).tolist()


def same(result: Any, expected: Any) -> bool:
    if isinstance(result, Hits):
        return all(np.array_equal(a, b) for a, b in zip(result, expected, strict=True))
    return bool(result == expected)


def child(base: Path, names: list[str], n_steps: int) -> None:
    """Run operations; a line before and after each step."""
    faulthandler.enable()
    with tempfile.TemporaryDirectory(dir=base) as scratch:
        operations = Operations(base, Path(scratch))
        expected = {}
        for _ in range(2):
            for name in names:
                operations.prepare(name)
                expected[name] = getattr(operations, name)()
                operations.check(name, worked=True)
        for name in names:
            operation = getattr(operations, name)
            need, how = 1 << 16, ""
            while how != "success" and need < MOST:
                need *= 2
                operations.prepare(name)
                say(name, need)
                how, result = limited(operation, need)
                report(operations, name, how, result, expected)
            for more in steps(n_steps, need):
                operations.prepare(name)
                say(name, more)
                how, result = limited(operation, more)
                report(operations, name, how, result, expected)


def report(operations: Operations, name: str, how: str, result: Any, expected: dict) -> None:
    trace = result if how not in ("success", "MemoryError") else None
    if how == "success" and not same(result, expected[name]):
        how = "wrong result"
    del result
    try:
        operations.check(name, how == "success")
    except BaseException as error:
        how += f"; then {type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
    print(json.dumps({"how": how, "trace": trace}), flush=True)


def say(name: str, more: int) -> None:
    print(json.dumps({"operation": name, "more": more}), flush=True)


def run(base: Path, names: Sequence[str], n_steps: int) -> list[dict]:
    """Operations in a child; which ends of each came how often."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(base), ",".join(names), str(n_steps)],
        env={
            **os.environ,
            "MALLOC_MMAP_THRESHOLD_": str(1 << 17),  # so that what is given back is given back
            "OPENBLAS_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    results: dict[str, dict] = {name: {"ends": {}, "bad": []} for name in names}
    name = names[0]
    for begun, ended in itertools.zip_longest(lines[::2], lines[1::2]):
        if ended is None:
            ended = {"how": f"the process ended: {done.returncode}", "trace": done.stderr[-3000:]}
        name = begun["operation"]
        ends = results[name]["ends"]
        ends[ended["how"]] = ends.get(ended["how"], 0) + 1
        if ended["how"] not in ("success", "MemoryError"):
            results[name]["bad"].append({**begun, **ended})
    if done.returncode and not results[name]["bad"]:
        end = {"how": f"the process ended: {done.returncode}", "trace": done.stderr[-3000:]}
        results[name]["bad"].append(end)
    return [{"operation": name, **result} for name, result in results.items()]


def make_base(base: Path) -> None:
    searched.make_collection(base / "big")
    with he.Collection.create(base / "small", searched.DIM, vectors="int8") as docs:
        docs.append(searched.Rows()[0:N_SMALL])


def main() -> None:
    n_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    names = sys.argv[2:] or NAMES
    with tempfile.TemporaryDirectory() as folder:
        make_base(Path(folder))
        results = []
        for name in names:
            results += run(Path(folder), [name], n_steps)
            print(name, results[-1]["ends"], flush=True)
            seen = set()
            for bad in results[-1]["bad"]:
                if bad["how"] not in seen:
                    seen.add(bad["how"])
                    print(bad.get("more"), bad["trace"])
    if len(names) == len(NAMES):
        searched.write("memory", results)
    sys.exit(any(result["bad"] for result in results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3].split(","), int(sys.argv[4]))
    else:
        main()
