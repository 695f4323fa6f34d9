"""Power is lost at random moments: thousands of states of a simulated disk, each opened and used.

Jobs are recorded as they go, and as another writer goes on after the first was killed at a random
moment. Of each record random moments, and what the disk may hold then; see ``tests/disk.py``.
Results go to ``tests/soak/results/power_loss.json``.
"""

import random
import sys

import common
import jobs
import power

STATES_OF_A_RECORD = 10


def main():
    """Lose power, and say how often that did harm."""
    arguments = common.arguments(__doc__, "states", 5_000)
    rng = random.Random(arguments.seed)
    tally = common.Tally("power_loss")
    with jobs.scratch() as folder:
        whole = []
        for job in jobs.JOBS:
            whole.append(power.story_of(job, folder))
            jobs.clear(folder)
        for number in range(arguments.states):
            if number % STATES_OF_A_RECORD == 0:
                story = rng.choice(whole)
                killed_after = rng.choice([None, rng.choice(power.ends(story))])
                if killed_after is not None:
                    story = power.story_of(story.job, folder, killed_after)
                    jobs.clear(folder)
            _, wrong = power.random_loss([story], rng, folder)
            tally.count(story.job, wrong, state=number, killed_after=killed_after)
    return tally.write(arguments)


if __name__ == "__main__":
    sys.exit(bool(main()))
