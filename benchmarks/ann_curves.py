"""Recall against speed: what of many points counts, and speeds at the same recall.

A point is a dict with ``recall`` and ``queries_per_second``, and more that says what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

Point = dict[str, Any]

NEAR = 1.5  # times slower than the best at its recall: may still be the best in a second look
_LEAST_MISSED = 1e-4  # what is beyond counts as so much, for logarithms


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other one beats in both recall and speed; recall ascends."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p["queries_per_second"], -p["recall"])):
        if not best or point["recall"] > best[-1]["recall"]:
            best.append(point)
    return best


def worth_timing(points: Iterable[Point]) -> list[Point]:
    """The points near to the frontier."""
    points = list(points)
    near = []
    for point in points:
        reaching = [p["queries_per_second"] for p in points if p["recall"] >= point["recall"]]
        if point["queries_per_second"] * NEAR >= max(reaching):
            near.append(point)
    return near


def best_reaching(points: Iterable[Point], recall: float) -> Point | None:
    """The fastest point with at least this recall."""
    reaching = [point for point in points if point["recall"] >= recall]
    return max(reaching, key=lambda p: p["queries_per_second"], default=None)


def speed_at(points: Iterable[Point], recall: float) -> float | None:
    """Queries a second at a recall, between the two points of the frontier around it.

    Logarithms of the speed and of what is missed lie on a line between them. None where no point
    reaches the recall.
    """
    line = frontier(points)
    above = next((i for i, point in enumerate(line) if point["recall"] >= recall), None)
    if above is None:
        return None
    fast = float(line[above]["queries_per_second"])
    if above == 0:
        return fast
    below = line[above - 1]
    ends = [_missed(below["recall"]), _missed(line[above]["recall"])]
    share = (ends[0] - _missed(recall)) / (ends[0] - ends[1])
    slow = math.log(below["queries_per_second"])
    return math.exp(slow + share * (math.log(fast) - slow))


def _missed(recall: float) -> float:
    return math.log(max(_LEAST_MISSED, 1 - recall))
