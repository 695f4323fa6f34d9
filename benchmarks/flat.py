"""Exact search against named peers, side by side.

    python benchmarks/flat.py                       # all sweeps
    python benchmarks/flat.py --sweeps k real       # some
    python benchmarks/flat.py --sweeps one --bits 256 --rows 50000 --queries 1 64
    python benchmarks/flat.py --quick               # everything once, small: does it run?

Contestants take turns in every round, with the same data and the same number of threads, and have
to return the same distances; a row of the result is the median over all calls. Beside them run two
probes of what the machine can do, reading and counting, so that each row carries its share of that.
Run it with nothing else on the machine. Results go to ``benchmarks/results/flat.json``.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import probes
from contestants import CONTESTANTS, FEW, OURS, Codes
from machine import describe
from timing import alternate

import hamming_engine as he

RESULTS = Path(__file__).parent / "results"
REAL = Path(__file__).parents[2] / "shared" / "data" / "corpus-debian-wordnet"
ALL_THREADS = len(os.sched_getaffinity(0))
THREADS = (1,) if ALL_THREADS == 1 else (1, ALL_THREADS)


class Case(NamedTuple):
    """What is searched."""

    n_bits: int
    n_rows: int
    n_queries: int
    k: int
    threads: int
    data: str = "random"


def grid(
    bits: Sequence[int],
    rows: Sequence[int],
    queries: Sequence[int],
    k: Sequence[int] = (10,),
    threads: Sequence[int] = THREADS,
) -> list[Case]:
    """Every combination."""
    return [Case(*values) for values in itertools.product(bits, rows, queries, k, threads)]


MILLION = 1_000_000
SWEEPS: dict[str, tuple[list[Case], Sequence[str]]] = {
    "bits": (grid((64, 128, 256, 384, 512, 768, 1024, 2048, 4096), [MILLION], (1, 128)), FEW),
    "rows": (grid((256, 1024), (10_000, 30_000, 100_000, 10 * MILLION), [1]), FEW),
    "queries": (grid((256, 1024), [100_000], (1, 2, 4, 16, 64, 256, 1024, 4096)), FEW),
    "k": (grid((256, 384, 512, 768, 1024), [MILLION], [128], (1, 100, 1000)), FEW),
    "k of one": (grid((256, 1024), [MILLION], [1], (1, 100, 1000)), FEW),
    "peers": (grid((256, 1024), [100_000], (1, 128), threads=[1]), tuple(CONTESTANTS)),
    "real": (
        [
            Case(384, 85_000, q, k, t, "MiniLM")
            for q in (1, 128)
            for k in (10, 100)
            for t in THREADS
        ],
        FEW,
    ),
}


def quick(case: Case) -> Case:
    """The same, small."""
    return case._replace(n_rows=min(case.n_rows, 3_000), n_queries=min(case.n_queries, 9))


def make_data(case: Case) -> tuple[Codes, Codes] | None:
    """Codes and queries; None where real ones are not here."""
    if case.data == "random":
        rng = np.random.default_rng(0)
        shape = case.n_rows + case.n_queries, case.n_bits // 64
        codes = rng.integers(0, 2**64, shape, dtype=np.uint64)
        return codes[: case.n_rows], codes[case.n_rows :]
    if not REAL.exists():
        return None
    parts = [np.load(REAL / f"docs.minilm-l6-v2.f16.{i}.npy") for i in (0, 1)]
    queries = np.load(REAL / "queries.minilm-l6-v2.f16.npy")[: case.n_queries]
    return he.pack_signs(np.concatenate(parts)[: case.n_rows]), he.pack_signs(queries)


def run_case(
    case: Case, names: Sequence[str], seconds: float, rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each contestant, and the probes."""
    data = make_data(case)
    if data is None:
        print(f"skipped, {REAL} is not here: {case}", flush=True)
        return
    codes, queries = data
    numba.set_num_threads(case.threads)
    calls = {
        name: CONTESTANTS[name](codes, case.n_bits, queries, case.k, case.threads) for name in names
    }
    shape = case.n_queries, case.k
    expected = np.asarray(calls[names[0]](), np.int64).reshape(shape)
    for name in names[1:]:
        np.testing.assert_array_equal(np.asarray(calls[name](), np.int64).reshape(shape), expected)
    calls["reading"] = probes.reading(codes, case.threads)
    calls["counting"] = probes.counting(codes, case.n_queries, case.threads)
    times = {name: float(np.median(t)) for name, t in alternate(calls, seconds, rounds).items()}
    limit = max(times["reading"], times["counting"])
    for name in names:
        yield {
            **case._asdict(),
            "contestant": name,
            "ms": 1e3 * times[name],
            "code_GBps": codes.nbytes * case.n_queries / times[name] / 1e9,
            "reading_ms": 1e3 * times["reading"],
            "counting_ms": 1e3 * times["counting"],
            "share_of_limit": limit / times[name],
            "times_ours": times[name] / times[names[0]],
        }
    print(
        f"{case.n_bits:5} bits {case.n_rows:9,} rows {case.n_queries:5} queries k {case.k:4} "
        f"threads {case.threads} {case.data}  "
        + "  ".join(f"{name} {1e3 * time:.3g} ms" for name, time in times.items()),
        flush=True,
    )


def run_sweeps(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of the sweeps asked for."""
    sweeps = {name: SWEEPS[name] for name in arguments.sweeps if name in SWEEPS}
    if "one" in arguments.sweeps:
        cases = grid(
            arguments.bits, arguments.rows, arguments.queries, arguments.k, arguments.threads
        )
        sweeps["one"] = cases, arguments.contestants
    rows = []
    for name, (cases, contestants) in sweeps.items():
        if arguments.quick:
            cases = list(dict.fromkeys(map(quick, cases)))
        for case in cases:
            for row in run_case(case, contestants, arguments.seconds, arguments.rounds):
                rows.append({"sweep": name, **row})
    return rows


def call_overhead() -> float:
    """Microseconds of a search in which there is next to nothing to scan."""
    codes = np.arange(64, dtype=np.uint64)[:, None]
    index = he.FlatIndex(64)
    index.add(codes)
    times = []
    for _ in range(2_000):
        begin = time.perf_counter()
        index.search(codes[:1], 10)
        times.append(time.perf_counter() - begin)
    return 1e6 * float(np.median(times))


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
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=[*SWEEPS, "one"])
    parser.add_argument("--seconds", type=float, default=2, help="a case, at least")
    parser.add_argument("--rounds", type=int, default=5, help="a case, at least")
    parser.add_argument("--quick", action="store_true", help="small cases, and no first search")
    parser.add_argument("--output", type=Path, default=RESULTS / "flat.json")
    one = parser.add_argument_group("the sweep 'one': every combination of these")
    one.add_argument("--bits", type=int, nargs="+", default=[1024])
    one.add_argument("--rows", type=int, nargs="+", default=[MILLION])
    one.add_argument("--queries", type=int, nargs="+", default=[1, 128])
    one.add_argument("--k", type=int, nargs="+", default=[10])
    one.add_argument("--threads", type=int, nargs="+", default=list(THREADS))
    one.add_argument("--contestants", nargs="+", default=list(FEW), choices=list(CONTESTANTS))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.rounds = 0, 1
    if arguments.contestants[0] != OURS:
        parser.error(f"--contestants must begin with {OURS!r}, the one that others are compared to")
    result = {
        "machine": describe(),
        "arguments": {name: value for name, value in vars(arguments).items() if name != "output"},
        "first_search": None if arguments.quick else first_search(),
        "call_overhead_us": call_overhead(),
        "search": run_sweeps(arguments),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
