"""Thousands of collections' lives: the machine of ``tests/test_life.py``, at length.

Results go to ``tests/soak/results/life.json``.
"""

import argparse
import json
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent), str(TESTS.parent / "benchmarks")]

import conftest  # noqa: E402, F401 - threads of BLAS
from hypothesis import HealthCheck, seed, settings  # noqa: E402
from hypothesis.stateful import run_state_machine_as_test  # noqa: E402
from machine import describe  # noqa: E402
from test_life import Life  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "life.json"


def main():
    """Run, write the result file, and return whether a life went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    failure = None
    long = settings(
        max_examples=arguments.runs,
        stateful_step_count=arguments.steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    try:
        run_state_machine_as_test(seed(arguments.seed)(Life), settings=long)
    except Exception as error:
        failure = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
        print(*failure, sep="\n")
    result = {
        "machine": describe(),
        "arguments": vars(arguments),
        "seconds": round(time.perf_counter() - begin, 1),
        "failure": failure,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{arguments.runs} lives of {arguments.steps} steps, {result['seconds']} s")
    return failure is not None


if __name__ == "__main__":
    sys.exit(main())
