"""Approximate search: recall against speed, what building and memory cost, and joins.

    python benchmarks/ann.py                       # all parts, some hours
    python benchmarks/ann.py --parts minilm joins  # some; the others stay in the result file
    python benchmarks/ann.py --quick               # little of everything: does it run?

Parts: ``minilm``, ``wordllama`` and ``million``, recall@10 of indexes over codes; ``hash``, exact
search of ten million short codes; ``joins``, all pairs within a radius; ``floats``, recall@10 of
the best float rows, candidates scored again by floats.

A result counts as found when its distance is at most the exact tenth one. Everybody is built on all
threads and searched on one, all queries in one batch. Each point of a curve is first measured once;
those that come near to the best of their family take turns in every round, and the best call is
what counts. Run it with nothing else on the machine. Results go to ``benchmarks/results/ann.json``.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ann_curves
import ann_data
import ann_floats
import ann_indexes
import ann_tables
import datasets
import numpy as np
from ann_curves import Point
from ann_indexes import K, as_bytes, built_of, timed
from flat import ALL_THREADS, RESULTS
from machine import describe
from timing import Call, alternate

import hamming_engine as he
from hamming_engine.evaluate import exact_top_k, recall_at_k

ENOUGH = 0.9995  # recall: what is slower still is not measured
GAIN = 5e-4  # of recall: where more of the knob can give no more, it is not measured
RADIUS = 3
FLIPPED = 3  # bits, at most, of a row that is a query
HASH_ROWS, HASH_QUERIES = 10_000_000, 1_000
JOINED_ROWS, JOIN_RADIUS = 2_000_000, 2

Search = Callable[[], Any]


def timed_points(
    points: list[tuple[Point, Search]], rounds: int, by: str = "family"
) -> list[Point]:
    """The points near to the best of their family, with the speed of the best of all calls."""
    kept: list[tuple[Point, Search]] = []
    for family in dict.fromkeys(point[by] for point, _ in points):
        near = ann_curves.worth_timing(point for point, _ in points if point[by] == family)
        kept += [(point, search) for point, search in points if any(point is n for n in near)]
    calls: dict[str, Call] = {str(place): search for place, (_, search) in enumerate(kept)}
    times = alternate(calls, 0, rounds)
    for place, (point, _) in enumerate(kept):
        seconds = min(point.pop("seconds"), *times[str(place)])
        point["queries_per_second"] = point.pop("n_queries") / seconds
    return [point for point, _ in kept]


def measured(search: Search, recall_of: Callable[[Any], float], n_queries: int) -> Point:
    """A point after two calls, of which the second counts."""
    search()
    found, seconds = timed(search)
    return {
        "recall": recall_of(found),
        "n_queries": n_queries,
        "seconds": seconds,
        "queries_per_second": n_queries / seconds,
    }


def search_codes(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Curves of every index over codes."""
    data = ann_data.SETS[name](4_000 if arguments.quick else ann_data.MILLION)
    data = data.smaller() if arguments.quick else data
    exact = he.search(data.queries, data.codes, K).distances[:, -1:]

    def recall_of(distances: Any) -> float:
        return float((np.asarray(distances) <= exact).mean())

    points: list[tuple[Point, Search]] = []
    builds = []
    for make in ann_indexes.contestants(data):
        built = make()
        row = {name: getattr(built, name) for name in ("family", "variant", "build_seconds")}
        builds.append({**row, "bytes": built.n_bytes})
        for value in built.values:
            search = functools.partial(built.search, value)
            point = {
                "family": built.family,
                "variant": built.variant,
                "setting": f"{built.knob} {value}" if built.knob else "",
                **measured(search, recall_of, len(data.queries)),
            }
            points.append((point, search))
            if point["recall"] >= ENOUGH:
                break
        print(f"{name}: {built.family}, {built.variant}: {built.build_seconds:.1f} s", flush=True)
    return {
        "title": data.title,
        "n_bits": data.n_bits,
        "n_rows": len(data.codes),
        "n_queries": len(data.queries),
        "builds": builds,
        "points": timed_points(points, arguments.rounds),
    }


def search_floats(arguments: argparse.Namespace) -> dict[str, Any]:
    """Curves of everybody who finds the best rows of floats."""
    data = datasets.load(ann_data.REAL)
    if arguments.quick:
        data = data.smaller(n_rows=3_000, n_queries=50, dim=64)
    truth, _ = exact_top_k(data.queries, data.docs, K)

    def recall_of(rows: Any) -> float:
        return float(recall_at_k(rows, truth).value)

    points: list[tuple[Point, Search]] = []
    builds = []
    lists_per_root = ann_floats.LISTS_PER_ROOT[: 1 if arguments.quick else None]
    for make in ann_floats.contestants(data, lists_per_root):
        made = make()
        names = ("family", "variant", "build_seconds", "code_bytes")
        builds.append({name: getattr(made, name) for name in names})
        for oversample in ann_floats.OVERSAMPLES[:: 3 if arguments.quick else 1]:
            most = recall_of(made.search(made.values[-1], oversample))
            for value in made.values:
                search = functools.partial(made.search, value, oversample)
                knob = f"{made.knob} {value}, " if made.knob else ""
                point = {
                    "family": made.family,
                    "variant": made.variant,
                    "setting": f"{knob}{oversample}x",
                    **measured(search, recall_of, len(data.queries)),
                }
                points.append((point, search))
                if point["recall"] > most - GAIN:
                    break
        print(f"floats: {made.family}, {made.variant}: {made.build_seconds:.1f} s", flush=True)
    return {
        "title": data.title,
        "dim": data.docs.shape[1],
        "n_rows": len(data.docs),
        "n_queries": len(data.queries),
        "builds": builds,
        "points": timed_points(points, arguments.rounds),
    }


def search_hash(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ten million random codes of 64 bits: ten nearest of random queries, neighbours of near ones.

    On one thread; in one batch, and a query at a time.
    """
    n_rows, n_queries = (20_000, 50) if arguments.quick else (HASH_ROWS, HASH_QUERIES)
    codes, random = ann_data.uniform(n_rows, n_queries, None)
    _, near = ann_data.uniform(n_rows, n_queries, FLIPPED)
    builds: list[dict[str, Any]] = []
    rows = []
    makers = {
        f"hamming_engine {kind}": functools.partial(our_hash, kind)
        for kind in ("MultiIndexHash", "FlatIndex")
        if hasattr(he, kind)
    }
    if importlib.util.find_spec("faiss"):
        makers["faiss IndexBinaryFlat"] = functools.partial(faiss_hash, 0)
        makers["faiss IndexBinaryMultiHash"] = functools.partial(faiss_hash, 4)
    made = {}
    for name, make in makers.items():
        searches, seconds, n_bytes = make(codes)
        made[name] = searches
        builds.append({"family": name, "build_seconds": seconds, "bytes": n_bytes})
        print(f"hash: {name}: {seconds:.1f} s", flush=True)
    exact = he.search(random, codes, K).distances[:, -1:]
    for task, queries in (("k", random), ("radius", near)):
        for batched, n_asked in ((True, n_queries), (False, n_queries // 10)):
            asked = queries[:n_asked]
            calls: dict[str, Call] = {}
            recalls = {}
            for name, searches in made.items():
                for setting, search in searches[task].items():
                    label = f"{name}|{setting}"
                    if batched:
                        calls[label] = functools.partial(search, asked)
                    else:
                        calls[label] = functools.partial(each_alone, search, asked)
                    found = search(asked)
                    recalls[label] = (
                        float((found <= exact[:n_asked]).mean()) if task == "k" else int(found)
                    )
            times = alternate(calls, 0, arguments.rounds)
            for label, recall in recalls.items():
                name, setting = label.split("|")
                rows.append(
                    {
                        "task": task,
                        "batched": batched,
                        "family": name,
                        "setting": setting,
                        "recall" if task == "k" else "n_found": recall,
                        "microseconds": 1e6 * min(times[label]) / n_asked,
                    }
                )
                print(f"hash: {rows[-1]}", flush=True)
    return {"n_rows": n_rows, "n_queries": n_queries, "builds": builds, "rows": rows}


def each_alone(search: Callable[[Any], Any], queries: Any) -> None:
    """A call for each query."""
    for place in range(len(queries)):
        search(queries[place : place + 1])


Searches = dict[str, dict[str, Callable[[Any], Any]]]


def our_hash(kind: str, codes: Any) -> tuple[Searches, float, int]:
    """Searches of one of the package's indexes, seconds and bytes."""
    index, seconds = built_of(codes, lambda: getattr(he, kind)(64))

    def nearest(queries: Any) -> Any:
        return index.search(queries, K, threads=1).distances

    def within(queries: Any) -> int:
        return len(index.range_search(queries, RADIUS, threads=1).rows)

    n_bytes = index.nbytes if hasattr(index, "nbytes") else codes.nbytes
    return {"k": {"": nearest}, "radius": {"": within}}, seconds, n_bytes


def faiss_hash(n_hashes: int, codes: Any) -> tuple[Searches, float, int]:
    """The same of FAISS: all rows, or four hash tables of 16 bits.

    Of four substrings one differs in no bit where three bits differ in all: radius 3 takes no
    flips, ten nearest are exact with more flips than can be waited for.
    """
    faiss: Any = importlib.import_module("faiss")
    faiss.omp_set_num_threads(ALL_THREADS)
    index = faiss.IndexBinaryMultiHash(64, n_hashes, 16) if n_hashes else faiss.IndexBinaryFlat(64)
    _, seconds = timed(lambda: index.add(as_bytes(codes, 64)))

    def tell(flips: int) -> None:
        faiss.omp_set_num_threads(1)
        if n_hashes:
            index.nflip = flips

    def nearest(flips: int, queries: Any) -> Any:
        tell(flips)
        return index.search(as_bytes(queries, 64), K)[0]

    def within(queries: Any) -> int:
        tell(0)
        return len(index.range_search(as_bytes(queries, 64), RADIUS + 1)[1])

    flips = range(2) if n_hashes else range(1)
    by_k: dict[str, Callable[[Any], Any]] = {
        f"nflip {n}" if n_hashes else "": functools.partial(nearest, n) for n in flips
    }
    n_bytes = faiss.serialize_index_binary(index).nbytes
    return {"k": by_k, "radius": {"": within}}, seconds, n_bytes


def join(arguments: argparse.Namespace) -> dict[str, Any]:
    """All pairs of random codes within a radius."""
    n_rows = 20_000 if arguments.quick else JOINED_ROWS
    codes, _ = ann_data.uniform(n_rows, 1, None)
    rows = []
    for threads in sorted({1, ALL_THREADS}):
        search = functools.partial(he.self_join, codes, JOIN_RADIUS, threads=threads)
        n_pairs = len(search().first)
        seconds = [timed(search)[1] for _ in range(arguments.rounds)]
        rows.append({"threads": threads, "n_pairs": n_pairs, "seconds": min(seconds)})
        print(f"joins: {rows[-1]}", flush=True)
    return {"n_rows": n_rows, "n_bits": 64, "radius": JOIN_RADIUS, "rows": rows}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    **{name: functools.partial(search_codes, name) for name in ann_data.SETS},
    "hash": search_hash,
    "joins": join,
    "floats": search_floats,
}


def missing(part: str) -> str | None:
    """Why a part cannot be run, or None."""
    if part in (*ann_data.SETS, "floats"):
        return ann_data.missing(part)
    if part == "joins" and not hasattr(he, "self_join"):
        return "this version has no joins"
    return None


def run(parts: Sequence[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """The results of some parts, by name."""
    results = {}
    for part in parts:
        if why := missing(part):
            print(f"skipped, {part}: {why}", flush=True)
            continue
        begin = time.perf_counter()
        result = PARTS[part](arguments)
        results[part] = {
            "machine": describe(),
            "quick": arguments.quick,
            "rounds": arguments.rounds,
            "seconds": time.perf_counter() - begin,
            **result,
        }
        print(f"{part}: {results[part]['seconds']:.0f} s in all", flush=True)
    return results


def main() -> None:
    """Measure, and write what was measured into the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5, help="of everything that is timed")
    parser.add_argument("--quick", action="store_true", help="few rows and queries, one round")
    parser.add_argument("--output", type=Path, default=RESULTS / "ann.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {}
    if arguments.output.exists():
        result = json.loads(arguments.output.read_text())
    for part in arguments.parts:  # written after each: a long run may be stopped
        result |= run([part], arguments)
        ordered = {name: result[name] for name in PARTS if name in result}
        arguments.output.write_text(json.dumps(ordered, indent=1) + "\n")
    print(f"written to {arguments.output}")
    for line, value in ann_tables.against_peers(result):
        print(f"{line}: {value}")


if __name__ == "__main__":
    main()
