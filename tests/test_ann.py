"""Benchmarks of approximate search: they run, and curves are read as they say."""

import json
import math
import os
import runpy
import subprocess
import sys

import pytest

import hamming_engine as he


@pytest.fixture
def curves(root):
    return runpy.run_path(str(root / "benchmarks" / "ann_curves.py"))


def point(recall, speed):
    return {"recall": recall, "queries_per_second": speed}


def test_the_best_points(curves):
    beaten = [point(0.5, 90), point(0.9, 40), point(0.8, 50)]
    best = [point(0.5, 100), point(0.8, 60), point(0.99, 40)]
    assert curves["frontier"](beaten + best) == best
    assert curves["best_reaching"](beaten + best, 0.7) == point(0.8, 60)
    assert curves["best_reaching"](beaten + best, 0.995) is None
    near = curves["worth_timing"]([*beaten, *best, point(0.79, 39)])
    assert point(0.79, 39) not in near
    assert all(one in near for one in [*beaten, *best])


def test_speeds_between_points(curves):
    points = [point(0.9, 1000), point(0.99, 100)]
    assert curves["speed_at"](points, 0.5) == 1000
    assert curves["speed_at"](points, 0.9) == 1000
    assert math.isclose(curves["speed_at"](points, 0.99), 100)
    between = 1 - math.sqrt(0.1 * 0.01)
    assert math.isclose(curves["speed_at"](points, between), math.sqrt(1000 * 100))
    assert curves["speed_at"](points, 0.999) is None
    assert curves["speed_at"]([], 0.5) is None
    assert curves["speed_at"]([point(1.0, 7)], 1.0) == 7


def test_parts_are_written_beside_those_that_are_there(root, tmp_path):
    """Small, and with the peers that are installed."""
    output = tmp_path / "ann.json"
    output.write_text(json.dumps({"minilm": {"points": [], "kept": True}}))
    arguments = ["--quick", "--parts", "joins", "hash", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, str(root / "benchmarks" / "ann.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(output.read_text())
    expected = ["minilm", "hash"] + (["joins"] if hasattr(he, "self_join") else [])
    assert list(result) == expected
    assert result["minilm"]["kept"]
    ours = [row for row in result["hash"]["rows"] if row["family"] == "hamming_engine FlatIndex"]
    assert {row["recall"] for row in ours if row["task"] == "k"} == {1.0}
    found = {row["n_found"] for row in result["hash"]["rows"] if row["task"] == "radius"}
    assert len(found) == 2  # by all queries, and by those that are asked one at a time
