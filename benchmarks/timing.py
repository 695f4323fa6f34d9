"""Timing contestants fairly on a machine that is not quiet."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Call = Callable[[], Any]

PAUSE_SECONDS = 0.005
TURN_SECONDS = 0.05


def alternate(contestants: dict[str, Call], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, contestants taking turns: for so many rounds and so much time.

    Before a turn there is a pause, in which the threads of the one before stop spinning on the
    cores, and a call that is not counted, in which one's own wake up and caches fill.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    begin = time.perf_counter()
    done = 0
    while done < rounds or time.perf_counter() - begin < seconds:
        for name, call in contestants.items():
            time.sleep(PAUSE_SECONDS)
            call()
            turn = time.perf_counter()
            while True:
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
                if time.perf_counter() - turn > TURN_SECONDS:
                    break
        done += 1
    return times
