"""What the long tests share: where modules are found, how they are called, what they write.

To be imported before anything that imports NumPy or numba.
"""

import argparse
import json
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "benchmarks")]

import conftest  # noqa: E402, F401 - where compiled code is kept, and threads of BLAS
import jobs  # noqa: E402
from machine import describe  # noqa: E402

RESULTS = Path(__file__).parent / "results"


class Tally:
    """Counts runs and failures of each job, and writes them to a file.

    Parameters
    ----------
    name : str
        Of the file, without suffix.
    """

    def __init__(self, name):
        self._path = RESULTS / f"{name}.json"
        self._begin = time.perf_counter()
        self._runs = {job.name: 0 for job in jobs.JOBS}
        self._failures = []

    def count(self, job, wrong, **point):
        """Count a run; ``wrong`` is None where all was well, ``point`` says where it stopped."""
        self._runs[job.name] += 1
        if wrong is not None:
            failure = {"job": job.name, **point, "error": f"{type(wrong).__name__}: {wrong}"}
            print(failure, flush=True)
            self._failures.append(failure)

    def write(self, arguments):
        """Write the result file, and return the number of failures."""
        result = {
            "machine": describe(),
            "arguments": vars(arguments),
            "seconds": round(time.perf_counter() - self._begin, 1),
            "runs": sum(self._runs.values()),
            "runs_of": self._runs,
            "failures": self._failures,
        }
        RESULTS.mkdir(exist_ok=True)
        self._path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{result['runs']} runs, {len(self._failures)} failures, {result['seconds']} s")
        return len(self._failures)


def arguments(description, what, default):
    """How often, and the seed of what is random."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(f"--{what}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()
