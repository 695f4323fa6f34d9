"""Readers beside a writer that changes all it can: each state they see has to be a whole one.

All of a collection can be told from one number of each row, its version: id, vector and column are
made of it. The writer tells, in a file that grows by a line before each change, which rows there
will be, so a reader knows what its generation holds. Results go to
``tests/soak/results/readers.json``, or where ``--results`` says.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent), str(TESTS.parent / "benchmarks")]

import conftest  # noqa: E402, F401 - threads of BLAS
import numpy as np  # noqa: E402
from machine import describe  # noqa: E402

import hamming_engine as he  # noqa: E402
from hamming_engine.store import arrays  # noqa: E402

DIM = 70
RESULTS = Path(__file__).parent / "results" / "readers.json"
N_FIRST, MAX_ROWS = 100, 400


def vectors_of(versions):
    """The vectors that stand for versions."""
    return np.array(
        [np.random.default_rng(int(v)).standard_normal(DIM) for v in versions], np.float32
    ).reshape(len(versions), DIM)


def write(path, told, stop, seed):
    """Change a collection until told to stop; returns how often each way."""
    rng = np.random.default_rng(seed)
    rows = {i: i for i in range(N_FIRST)}  # version of each id, in row order
    version = N_FIRST
    counts = dict.fromkeys(("append", "upsert", "delete", "compact"), 0)
    with he.Collection.open(path, "a") as docs, open(told, "a") as file:
        while not stop.is_set():
            what = rng.choice(list(counts), p=[0.3, 0.3, 0.2, 0.2])
            n = int(rng.integers(1, 30))
            chosen = rng.permutation(list(rows))[:n].tolist()
            if what == "append" and len(rows) >= MAX_ROWS:
                what = "delete"
            if what == "append":
                chosen = [version + i for i in range(n)]
            after = dict(rows)
            for one in chosen if what != "compact" else ():
                after.pop(one, None)
                if what != "delete":
                    after[one] = version = version + 1
            version += n
            line = {"generation": docs.generation + 1, "rows": list(after.items())}
            file.write(json.dumps(line) + "\n")
            file.flush()
            if what == "compact":
                docs.compact(full=bool(rng.random() < 0.5), grace_seconds=rng.choice([0, 0.05]))
            elif what == "delete":
                docs.delete(chosen)
            elif chosen:
                versions = [after[one] for one in chosen]
                getattr(docs, what)(vectors_of(versions), chosen, columns={"version": versions})
            counts[what] += 1
            rows = after
    return counts


class Told:
    """What the writer told, read on as it grows."""

    def __init__(self, path):
        self._file = open(path)  # noqa: SIM115 - as long as the process
        self._begun = ""
        self._rows = {}

    def rows_of(self, generation):
        """(id, version) of each row of a generation, in order."""
        for line in self._file:
            self._begun += line
            if line.endswith("\n"):
                known = json.loads(self._begun)
                self._rows[known["generation"]] = known["rows"]
                self._begun = ""
        return self._rows[generation]


def check(docs, told, rng):
    """Compare a reader with what its generation holds."""
    rows = told.rows_of(docs.generation)
    ids, versions = [one for one, _ in rows], [version for _, version in rows]
    assert len(docs) == len(rows), "rows"
    assert docs.ids.tolist() == ids, "ids"
    assert docs.columns["version"].tolist() == versions, "column"
    if not rows:
        return
    some = rng.permutation(len(rows))[:5]
    wanted = [ids[i] for i in some]
    vectors = vectors_of([versions[i] for i in some])
    records = docs.get(wanted)
    assert records.columns["version"].tolist() == [versions[i] for i in some], "get"
    assert np.array_equal(records.vectors, vectors), "vectors"
    for where in (None, docs.columns["version"] >= int(np.median(versions)), wanted):
        hits = docs.search(vectors, 1, where=where, columns=["version"], threads=1)
        if where is None or isinstance(where, list):
            assert hits.ids[:, 0].tolist() == wanted, "hits"
            assert (hits.scores[:, 0] > 0.999).all(), "scores"
        version_of = dict(rows)
        expected = [version_of[one] for one in hits.ids[:, 0].tolist()]
        assert hits.columns["version"][:, 0].tolist() == expected, "column of hits"


def read(number, path, told, stop, ready, results):
    """Refresh and check until told to stop."""
    rng = np.random.default_rng(1000 + number)
    counts = {"reader": number, "checks": 0, "refreshes": 0, "moved": 0, "errors": []}
    if number % 2:  # no descriptors: it goes on with the newest generation when files are gone
        arrays._descriptors.keep = lambda *_: None
    known = Told(told)
    with he.Collection.open(path, memory_bytes=8 << 20) as docs:
        docs.search(np.ones(DIM), 1)  # modules are loaded before the writer begins
        ready.wait()
        while not stop.is_set() and len(counts["errors"]) < 5:
            generation = docs.generation
            try:
                counts["refreshes"] += docs.refresh()
                generation = docs.generation
                for _ in range(int(rng.integers(1, 4))):
                    check(docs, known, rng)
                    counts["checks"] += 1
            except Exception as error:
                # Between two calls, or where a column's file is gone, that one has moved on.
                gone = isinstance(error, FileNotFoundError) and docs.refresh()
                if number % 2 and (gone or docs.generation != generation):
                    counts["moved"] += 1
                    continue
                message = f"generation {generation}: {type(error).__name__}: {error}"
                print(f"reader {number}: {message}", flush=True)
                counts["errors"].append(message)
    results.put(counts)


def run(seconds, seed, n_readers=4):
    """What the writer did, and what readers found."""
    context = multiprocessing.get_context("spawn")
    stop, results, ready = context.Event(), context.Queue(), context.Barrier(n_readers + 1)
    with tempfile.TemporaryDirectory() as folder:
        path, told = Path(folder) / "c", Path(folder) / "told"
        first = list(range(N_FIRST))
        with he.Collection.create(path, DIM, vectors="float32") as docs:
            docs.append(vectors_of(first), first, columns={"version": first})
        rows = [(i, i) for i in first]
        told.write_text(json.dumps({"generation": 2, "rows": rows}) + "\n")
        readers = [
            context.Process(target=read, args=(number, path, told, stop, ready, results))
            for number in range(n_readers)
        ]
        for reader in readers:
            reader.start()
        ready.wait(120)
        end = time.monotonic() + seconds

        class Until:
            @staticmethod
            def is_set():
                return time.monotonic() > end

        try:
            writes = write(path, told, Until, seed)
        finally:
            stop.set()
        found = sorted((results.get(timeout=60) for _ in readers), key=lambda one: one["reader"])
        for reader in readers:
            reader.join()
    return {"changes": writes, "readers": found}


def main():
    """Run, write the result file, and return the number of errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = run(arguments.seconds, arguments.seed)
    n_errors = sum(len(one["errors"]) for one in found["readers"])
    n_checks = sum(one["checks"] for one in found["readers"])
    settings = {"seconds": arguments.seconds, "seed": arguments.seed}
    result = {"machine": describe(), "arguments": settings, **found, "errors": n_errors}
    arguments.results.parent.mkdir(exist_ok=True)
    arguments.results.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{sum(found['changes'].values())} changes, {n_checks} checks, {n_errors} errors")
    return n_errors or not n_checks


if __name__ == "__main__":
    sys.exit(bool(main()))
