"""Writers are killed at random moments: hundreds of real processes, and what each left is opened.

A job runs in a forked child, which gets a SIGKILL after a time that is uniform over what the job
takes. Results go to ``tests/soak/results/kills.json``.
"""

import random
import sys

import common
import faults
import jobs


def main():
    """Kill writers, and say how often that did harm."""
    arguments = common.arguments(__doc__, "runs", 500)
    rng = random.Random(arguments.seed)
    tally = common.Tally("kills")
    with jobs.scratch() as folder:
        durations = {}
        for job in jobs.JOBS:
            durations[job.name] = faults.seconds_of(job, folder)
            jobs.clear(folder)
        for number in range(arguments.runs):
            job = jobs.JOBS[number % len(jobs.JOBS)]
            seconds = rng.uniform(0, durations[job.name])
            last = faults.killed_after(job, folder / "c", seconds)
            try:
                jobs.check(job, folder / "c", job.legal(last))
            except Exception as error:
                tally.count(job, error, run=number, seconds=seconds, last=last)
            else:
                tally.count(job, None)
            jobs.clear(folder)
    return tally.write(arguments)


if __name__ == "__main__":
    sys.exit(bool(main()))
