"""Recall, ranking, exact truth and operating points, against definitions worked out slowly."""

import dataclasses
import itertools
import json
import math
import re
import tracemalloc
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from hamming_engine import evaluate
from hamming_engine.evaluate import (
    Estimate,
    OperatingPoint,
    exact_top_k,
    ndcg,
    operating_points,
    pareto_front,
    recall_at_k,
    text_table,
)

Z = 1.959963984540054  # of 95 %


def estimate(value):
    return Estimate(value, value, value, 0.95, np.array([value]))


# Estimates


def test_an_estimate_is_a_number_and_more():
    found = Estimate(0.8731, 0.8612, 0.8841, 0.95, np.ones(3))
    assert float(found) == 0.8731
    assert f"{found:.3f}|{found:>8.2f}" == "0.873|    0.87"
    assert f"{found}" == str(found) == repr(found) == "0.873 [0.861, 0.884] 95 %"
    assert found == Estimate(0.8731, 0.8612, 0.8841, 0.95, np.zeros(3))
    assert found != Estimate(0.8731, 0.8612, 0.8841, 0.9, np.ones(3))
    assert repr(dataclasses.replace(found, confidence=0.999)).endswith("99.9 %")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.value = 1.0


def test_one_trial_a_query_is_wilsons_interval():
    """Wilson's own formula, for 7 of 10, 0 of 10 and 10 of 10 queries."""
    z2 = Z * Z
    for hits in (0, 10):
        found = recall_at_k([[1]] * 10, [[1]] * hits + [[2]] * (10 - hits))
        share = z2 / (10 + z2)
        assert (found.low, found.high) == pytest.approx((0, share) if hits == 0 else (1 - share, 1))
    some = recall_at_k([[1]] * 10, [[1]] * 7 + [[2]] * 3)
    # All or nothing is the most a query can vary: 10 trials (of 1.0 each).
    variance = (10 * 0.21 + z2 * 0.21) / (9 + z2)
    trials = 10 * 0.21 / variance
    ends = np.roots([1 + z2 / trials, -(1.4 + z2 / trials), 0.49])  # (p - 0.7)^2 = z^2 p(1-p)/m
    assert (some.low, some.high) == pytest.approx(tuple(sorted(ends)))
    assert 9 < trials < 10


def test_more_queries_and_less_confidence_are_narrower():
    few, many = ([[1, 2]] * n for n in (20, 200))
    wide, narrow = (
        recall_at_k(found, ([[1, 2], [1, 3]] * len(found))[: len(found)]) for found in (few, many)
    )
    assert wide.value == narrow.value == 0.75
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)
    looser = recall_at_k(few, [[1, 2], [1, 3]] * 10, confidence=0.5)
    assert wide.low < looser.low < looser.value < looser.high < wide.high


def test_queries_that_agree_are_not_certain():
    half = recall_at_k([[1]] * 30, [[1, 2]] * 30)
    assert half.value == 0.5
    # 0.5 +- z / (2 sqrt(n + z^2)) is Wilson's interval for a half of n.
    reach = Z / (2 * math.sqrt(30 + Z * Z))
    assert (half.low, half.high) == pytest.approx((0.5 - reach, 0.5 + reach))
    assert recall_at_k([[1]], [[1]]).low < 0.25


def test_rounding_between_queries_is_agreement():
    nearly = np.array([1.0, 1 - 2**-53] * 10)
    assert evaluate._estimate(nearly, 0.95).low == pytest.approx(20 / (20 + Z * Z))


@pytest.mark.parametrize("mean", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n_queries", [50, 200, 1000])
@pytest.mark.parametrize("correlation", [0.02, 0.1, 0.2])
def test_intervals_hold_the_truth(mean, n_queries, correlation):
    """Recall@10 of queries of which some are harder: beta-binomial, of this correlation."""
    rng = np.random.default_rng([n_queries, round(1000 * mean), round(1000 * correlation)])
    size = 1 / correlation - 1
    n_runs = 1000
    chances = rng.beta(mean * size, (1 - mean) * size, (n_runs, n_queries))
    samples = rng.binomial(10, chances) / 10
    found = [evaluate._estimate(sample, 0.95) for sample in samples]
    assert np.mean([one.low <= mean <= one.high for one in found]) >= 0.92
    deviation = math.sqrt(mean * (1 - mean) * (1 + 9 * correlation) / 10 / n_queries)
    assert np.mean([one.high - one.low for one in found]) < 1.5 * 2 * Z * deviation


# Recall


def slow_recall(found, truth, k, found_scores, truth_scores, tolerance):
    """Per query, by the definition."""
    shares = []
    for i, row in enumerate(found):
        right = set(truth[i][:k])
        if truth_scores is not None:
            enough = truth_scores[i][k - 1] - tolerance * abs(truth_scores[i][k - 1])
            right |= {t for t, s in zip(truth[i], truth_scores[i], strict=True) if s >= enough}
            if found_scores is not None:
                right |= {f for f, s in zip(row, found_scores[i], strict=True) if s >= enough}
        shares.append(min(k, len(right & set(row))) / k)
    return shares


@st.composite
def rankings(draw):
    n_queries, n = draw(st.integers(1, 6)), draw(st.integers(0, 9))
    k_truth = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_ids = k_truth + draw(st.integers(0, 8))
    found = rng.integers(0, n_ids, (n_queries, n))
    truth = np.array([rng.permutation(n_ids)[:k_truth] for _ in range(n_queries)])
    if draw(st.booleans()):
        found, truth = found.astype(str), truth.astype(str)
    k = draw(st.integers(1, k_truth))
    found_scores = truth_scores = None
    if draw(st.booleans()):
        truth_scores = -np.sort(rng.integers(-3, 4, truth.shape), axis=1) / 2
        if draw(st.booleans()):
            found_scores = rng.integers(-4, 5, found.shape) / 2
    tolerance = draw(st.sampled_from([0.0, 0.5])) if truth_scores is not None else 0.0
    return found, truth, k, found_scores, truth_scores, tolerance


@given(rankings())
def test_recall_is_its_definition(case):
    found, truth, k, found_scores, truth_scores, tolerance = case
    recall = recall_at_k(
        found,
        truth,
        k=k,
        found_scores=found_scores,
        truth_scores=truth_scores,
        tolerance=tolerance,
    )
    lists = [x if x is None else x.tolist() for x in (found_scores, truth_scores)]
    expected = slow_recall(found.tolist(), truth.tolist(), k, *lists, tolerance)
    np.testing.assert_array_equal(recall.per_query, expected)
    assert recall.value == pytest.approx(np.mean(expected), abs=1e-15)
    assert 0 <= recall.low <= recall.value <= recall.high <= 1
    assert not recall.per_query.flags.writeable


def test_recall_by_hand():
    assert float(recall_at_k([[1, 2, 3]], [[3, 9]])) == 0.5
    assert float(recall_at_k([["a", "b"], ["c", "d"]], [["b", "a"], ["x", "y"]])) == 0.5
    assert float(recall_at_k(np.zeros((2, 0), int), [[1], [2]])) == 0
    assert float(recall_at_k([[]], [["a"]])) == 0
    assert float(recall_at_k([[9, 8, 3, 7]], [[3, 9, 1, 2]], k=2)) == 1
    assert float(recall_at_k([[3, 3, 3]], [[3, 9]])) == 0.5
    assert float(recall_at_k([["ab"]], [["abc"]])) == 0


def test_ties_with_the_last_of_the_truth_are_hits():
    truth, scores = [[1, 2, 3, 4]], [[9.0, 5.0, 5.0, 1.0]]
    assert float(recall_at_k([[1, 3]], truth, k=2)) == 0.5
    assert float(recall_at_k([[1, 3]], truth, k=2, truth_scores=scores)) == 1
    assert float(recall_at_k([[2, 3]], truth, k=2, truth_scores=scores)) == 1
    assert float(recall_at_k([[1, 2, 3]], truth, k=2, truth_scores=scores)) == 1  # not 3 of 2
    assert float(recall_at_k([[4, 3]], truth, k=2, truth_scores=scores)) == 0.5

    def by_score(found, found_scores, **more):
        recall = recall_at_k(
            found, truth, k=2, truth_scores=scores, found_scores=found_scores, **more
        )
        return float(recall)

    assert by_score([[1, 77]], [[9.0, 5.0]]) == 1  # a tie past the columns of truth
    assert by_score([[77, 77]], [[5.0, 5.0]]) == 0.5  # the same one twice
    assert by_score([[1, 77]], [[0.0, 4.99]]) == 0.5  # a true id whatever its score
    assert by_score([[1, 77]], [[9.0, 4.99]], tolerance=0.01) == 1
    assert by_score([[1, -1]], [[9.0, -np.inf]]) == 0.5  # as some pad
    negative = recall_at_k(
        [[7]], [[1]], truth_scores=[[-2.0]], found_scores=[[-2.1]], tolerance=0.1
    )
    assert float(negative) == 1


@pytest.mark.parametrize(
    ("found", "truth"),
    [
        (np.array([["a", "é"]], object), np.array([["é"]])),
        (np.array([["a", "é"]], np.dtypes.StringDType()), np.array([["é"]])),
        (np.array([[2**63 + 1, 4]], np.uint64), np.array([[4]], np.int64)),
        (np.array([[4]], np.uint8), np.array([[4]], np.int64)),
    ],
)
def test_kinds_of_ids(found, truth):
    assert float(recall_at_k(found, truth)) == 1


def test_large_ids_do_not_run_together():
    found, truth = np.array([[2**53 + 1]], np.uint64), np.array([[2**53]], np.int64)
    assert float(recall_at_k(found, truth)) == 0


ONE = [[1]]

BAD_RECALL = [
    (
        lambda: recall_at_k(ONE, [[1], [2]]),
        ValueError,
        "found and truth must have one row a query, got (1, 1) and (2, 1)",
    ),
    (
        lambda: recall_at_k([1], ONE),
        ValueError,
        "found and truth must have one row a query, got (1,) and (1, 1)",
    ),
    (
        lambda: recall_at_k(ONE, np.zeros((1, 0))),
        ValueError,
        "truth must not be empty, got shape (1, 0)",
    ),
    (lambda: recall_at_k([[1], [1, 2]], ONE), ValueError, "found must be an array: "),
    (lambda: recall_at_k([[1.0]], ONE), TypeError, "found must be int or str ids, got float64"),
    (lambda: recall_at_k(ONE, [[None]]), TypeError, "truth must be int or str ids, got object"),
    (
        lambda: recall_at_k([["1"]], ONE),
        TypeError,
        "found and truth must hold ids of one kind, got <U1 and int64",
    ),
    (
        lambda: recall_at_k([[1], [1]], [[1, 2], [-1, -1]]),
        ValueError,
        "truth row 1 names an id twice",
    ),
    (lambda: recall_at_k(ONE, ONE, k=0), ValueError, "k must be at least 1, got 0"),
    (lambda: recall_at_k(ONE, ONE, k=2), ValueError, "k is 2, truth has 1 columns"),
    (
        lambda: recall_at_k(ONE, ONE, k=1.0),
        TypeError,
        "k must be an integer, got 1.0 of type float",
    ),
    (
        lambda: recall_at_k(ONE, ONE, found_scores=ONE),
        ValueError,
        "found_scores needs truth_scores to compare with",
    ),
    (
        lambda: recall_at_k(ONE, ONE, tolerance=0.1),
        ValueError,
        "tolerance needs truth_scores to compare with",
    ),
    (
        lambda: recall_at_k(ONE, ONE, truth_scores=ONE, tolerance=-1),
        ValueError,
        "tolerance must be at least 0 and below 1, got -1",
    ),
    (
        lambda: recall_at_k(ONE, ONE, tolerance="0"),
        TypeError,
        "tolerance must be a number, got '0' of type str",
    ),
    (
        lambda: recall_at_k(ONE, ONE, truth_scores=[1]),
        ValueError,
        "truth_scores must have the shape (1, 1) of truth, got (1,)",
    ),
    (
        lambda: recall_at_k(ONE, ONE, truth_scores=[["a"]]),
        TypeError,
        "truth_scores must be numbers, got <U1",
    ),
    (
        lambda: recall_at_k(ONE, ONE, truth_scores=[[np.inf]]),
        ValueError,
        "truth_scores must be finite",
    ),
    (
        lambda: recall_at_k(ONE, [[1, 2]], truth_scores=[[1, 2]]),
        ValueError,
        "truth_scores must be descending in every query",
    ),
    (
        lambda: recall_at_k(ONE, ONE, truth_scores=ONE, found_scores=[[np.nan]]),
        ValueError,
        "found_scores must not hold NaN",
    ),
    (
        lambda: recall_at_k(ONE, ONE, truth_scores=ONE, found_scores=[[1, 2]]),
        ValueError,
        "found_scores must have the shape (1, 1) of found, got (1, 2)",
    ),
    (
        lambda: recall_at_k(ONE, ONE, confidence=1),
        ValueError,
        "confidence must lie between 0 and 1, got 1",
    ),
    (
        lambda: recall_at_k(ONE, ONE, confidence=np.nan),
        ValueError,
        "confidence must be a number, got NaN",
    ),
    (
        lambda: recall_at_k(ONE, ONE, confidence=True),
        TypeError,
        "confidence must be a number, got True of type bool",
    ),
]

# nDCG


def slow_ndcg(row, judged, k, gain):
    def gains(relevances):
        positive = [max(0.0, r) for r in relevances]
        return positive if gain == "linear" else [2.0**r - 1 for r in positive]

    def sum_of(relevances):
        return sum(g / math.log2(i + 2) for i, g in enumerate(gains(relevances)[:k]))

    seen = [judged.get(one, 0) if one not in row[:i] else 0 for i, one in enumerate(row)]
    best = sum_of(sorted(judged.values(), reverse=True))
    return sum_of(seen) / best if best > 0 else math.nan


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 9), min_size=6, max_size=6),
            st.dictionaries(st.integers(0, 9), st.integers(-1, 3)),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 8),
    st.sampled_from(["linear", "exponential"]),
    st.booleans(),
)
def test_ndcg_is_its_definition(cases, k, gain, as_text):
    expected = [slow_ndcg(row, judged, k, gain) for row, judged in cases]
    kind = str if as_text else int
    found = [[kind(one) for one in row] for row, _ in cases]
    judgements = [{kind(one): r for one, r in judged.items()} for _, judged in cases]
    if np.isnan(expected).all():
        with pytest.raises(ValueError, match="a relevance above 0 for one query at least"):
            ndcg(found, judgements, k, gain=gain)
        return
    made = ndcg(found, judgements, k, gain=gain)
    np.testing.assert_allclose(made.per_query, expected, rtol=1e-12)
    assert made.value == pytest.approx(np.nanmean(expected))
    assert 0 <= made.low <= made.value <= made.high <= 1


def test_ndcg_by_hand():
    judged = {"a": 3, "b": 2, "c": 1, "no": 0, "worse": -2}
    # Ranks 1, 2, 3 are divided by log2 of 2, 3, 4: 1, 1.58496, 2.
    assert float(ndcg([["a", "b", "c"]], [judged])) == 1
    ideal = 3 + 2 / 1.5849625007211562 + 1 / 2
    assert float(ndcg([["worse", "b", "x", "a"]], [judged])) == pytest.approx(
        (2 / 1.5849625007211562 + 3 / math.log2(5)) / ideal
    )
    assert float(ndcg([["c"]], [judged], 1)) == pytest.approx(1 / 3)
    assert float(ndcg([["c"]], [judged], 1, gain="exponential")) == pytest.approx(1 / 7)
    assert float(ndcg([["a", "a"]], [{"a": 1, "b": 1}])) == pytest.approx(
        1 / (1 + 1 / math.log2(3))
    )


def test_ndcg_is_never_above_1():
    """Added up in this order, float64 gives more than in the best one."""
    made = ndcg([["a", "b", "c", "d"]], [{"a": 2**52, "b": 4, "c": 1, "d": 4}])
    assert float(made) == 1


def test_queries_without_judgements_are_left_out():
    made = ndcg([[1], [2], [3]], [{1: 1}, {}, {3: 0}])
    np.testing.assert_array_equal(made.per_query, [1, np.nan, np.nan])
    assert made.value == 1
    assert made.low == pytest.approx(1 / (1 + Z * Z))  # one query


BAD_NDCG = [
    (
        lambda: ndcg(ONE, []),
        ValueError,
        "one row and judgements one mapping a query, got shape (1, 1) and 0 mappings",
    ),
    (
        lambda: ndcg([1], [{1: 1}]),
        ValueError,
        "found must have one row and judgements one mapping a query, got shape (1,) and 1 mappings",
    ),
    (
        lambda: ndcg(ONE, [{"1": 1}]),
        TypeError,
        "judgements of query 0 must be of int ids, as found is; got '1'",
    ),
    (
        lambda: ndcg([["1"]], [{1: 1}]),
        TypeError,
        "judgements of query 0 must be of str ids, as found is; got 1",
    ),
    (
        lambda: ndcg(ONE, [{1: np.nan}]),
        ValueError,
        "judgements of query 0: relevance of 1 must be a number, got NaN",
    ),
    (
        lambda: ndcg(ONE, [{1: np.inf}]),
        ValueError,
        "judgements of query 0: the relevance inf of 1 is too large",
    ),
    (
        lambda: ndcg(ONE, [{1: 2000}], gain="exponential"),
        ValueError,
        "judgements of query 0: the relevance 2000 of 1 is too large",
    ),
    (
        lambda: ndcg(ONE, [{1: "3"}]),
        TypeError,
        "judgements of query 0: relevance of 1 must be a number, got '3' of type str",
    ),
    (lambda: ndcg(ONE, [{1: 1}], 0), ValueError, "k must be at least 1, got 0"),
    (
        lambda: ndcg(ONE, [{1: 1}], gain="log"),
        ValueError,
        "gain must be one of 'linear', 'exponential', got 'log'",
    ),
    (
        lambda: ndcg(ONE, [{1: 1}], confidence=0),
        ValueError,
        "confidence must lie between 0 and 1, got 0",
    ),
    (lambda: ndcg([[1.5]], [{1: 1}]), TypeError, "found must be int or str ids, got float64"),
]

# The Pareto front


def dominates(a, b):
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_the_front_is_what_nothing_dominates(values):
    points = [{"a": a, "b": b, "c": c} for a, b, c in values]
    expected = [
        i
        for i, (a, b, c) in enumerate(values)
        if not any(dominates((x, y, -z), (a, b, -c)) for x, y, z in values)
    ]
    assert pareto_front(points, maximise=("a", "b"), minimise=("c",)) == expected


def test_points_may_be_of_any_make():
    points = [
        OperatingPoint("slow", estimate(0.9), 32, 100.0, {}),
        OperatingPoint("bad", estimate(0.8), 32, 90.0, {}),
        OperatingPoint("fast", estimate(0.8), 32, math.inf, {}),
    ]
    assert pareto_front(points, maximise=["recall", "queries_per_second"]) == [0, 2]
    assert pareto_front(points, minimise=["bytes_per_vector"]) == [0, 1, 2]


BAD_FRONT = [
    (
        lambda: pareto_front([{"a": 1}]),
        ValueError,
        "maximise and minimise must name something to compare by",
    ),
    (
        lambda: pareto_front([{"a": 1}], maximise="a"),
        TypeError,
        "maximise must be a sequence of names, got the text 'a'",
    ),
    (
        lambda: pareto_front([{"a": 1}, {"a": np.nan}], minimise=["a"]),
        ValueError,
        "points[1] 'a' must be a number, got NaN",
    ),
    (
        lambda: pareto_front([{"a": 1}, {"b": 1}], minimise=["a"]),
        ValueError,
        "points[1] has no 'a'",
    ),
    (
        lambda: pareto_front([estimate(1.0)], minimise=["size"]),
        ValueError,
        "points[0] has no 'size'",
    ),
    (
        lambda: pareto_front([{"a": "1"}], minimise=["a"]),
        TypeError,
        "points[0] 'a' must be a number, got '1' of type str",
    ),
]

# Exact truth


def rational_score(query, vector, metric):
    """Without any rounding; cosine as its square with its sign, which orders alike."""
    a, b = ([Fraction(float(x)) for x in one] for one in (query, vector))
    if metric == "l2":
        return -sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    if metric == "dot":
        return dot
    squares = sum(x * x for x in a) * sum(y * y for y in b)
    return (1 if dot > 0 else -1) * dot * dot / squares if squares else Fraction(0)


def float64_score(query, vector, metric):
    """As it is promised: two vectors at a time, NumPy's sum of float64 products."""
    a, b = query.astype(np.float64), vector.astype(np.float64)
    if metric == "l2":
        return -np.sum((a - b) ** 2)
    if metric == "dot":
        return np.sum(a * b)
    lengths = np.sqrt(np.sum(a * a)) * np.sqrt(np.sum(b * b))
    return np.sum(a * b) / lengths if lengths > 0 else 0.0


def slow_top_k(score, queries, vectors, k, metric):
    scores = [[score(q, v, metric) for v in vectors] for q in queries]
    rows = [sorted(range(len(vectors)), key=lambda r: (-line[r], r))[:k] for line in scores]
    return rows, [[line[r] for r in best] for line, best in zip(scores, rows, strict=True)]


def check_top_k(queries, vectors, k, metric):
    ids, scores = exact_top_k(queries, vectors, k, metric)
    rows, expected = slow_top_k(float64_score, queries, vectors, k, metric)
    assert ids.dtype == np.int64
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(ids, rows)
    np.testing.assert_array_equal(scores, expected)


METRICS = ["cosine", "dot", "l2"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of vectors and of queries, and of pairs scored at once."""
    monkeypatch.setattr(evaluate, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(evaluate, "_BLOCK_PAIRS", 21)
    monkeypatch.setattr(evaluate, "_BLOCK_BYTES", 1 << 10)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", METRICS)
def test_top_k_of_many_ties(metric):
    """Small integers, most of them tied, and float64 rounds no two scores to the wrong order."""
    rng = np.random.default_rng(0)
    for n, k, dim in itertools.product((1, 6, 40), (1, 3, 50), (1, 2, 5)):
        vectors = rng.integers(-1, 2, (n, dim)).astype(np.float32)
        queries = rng.integers(-2, 3, (5, dim)).astype(np.float16)
        rows, _ = slow_top_k(rational_score, queries, vectors, k, metric)
        np.testing.assert_array_equal(exact_top_k(queries, vectors, k, metric)[0], rows)
        check_top_k(queries, vectors, k, metric)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_top_k_where_float32_cannot_tell(metric, dtype):
    """Vectors a few roundings of their type apart, and copies of them, all over the blocks."""
    rng = np.random.default_rng(1)
    base = rng.standard_normal((2, 20)).astype(dtype)
    step = np.finfo(dtype).eps * np.abs(base[0]) * rng.integers(-4, 5, (30, 20))
    near = (base[0] + (step if dtype != np.float64 else 1e3 * step)).astype(dtype)
    vectors = np.concatenate([near, base, near, np.zeros((2, 20), dtype)])
    vectors = vectors[rng.permutation(len(vectors))]
    check_top_k(np.concatenate([base, near[:3]]), vectors, 15, metric)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("power", [-480, -140, -60, 60, 140, 480])
def test_top_k_of_any_size(metric, power):
    """Values that float32 does not have, next to others: each row of its own size."""
    rng = np.random.default_rng(2)
    queries, vectors = rng.standard_normal((3, 6)), rng.standard_normal((30, 6))
    powers = power + rng.integers(-15, 16, (30, 1))
    check_top_k(np.ldexp(queries, power), np.ldexp(vectors, powers), 8, metric)
    check_top_k(queries, np.ldexp(vectors, powers), 8, metric)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_top_k_where_float64_underflows(metric):
    """Scores are a few of the smallest steps there are, so most are tied."""
    rng = np.random.default_rng(6)
    queries, vectors = rng.standard_normal((2, 3, 5)), rng.standard_normal((60, 5))
    check_top_k(np.ldexp(queries[0], -537), np.ldexp(vectors, -537), 9, metric)
    check_top_k(np.ldexp(queries[1], -1040), np.ldexp(vectors, -30), 9, metric)


@pytest.mark.usefixtures("small_blocks")
def test_distances_to_zero_that_differ_by_roundings():
    """Sums of the same squares in other orders: their float64 values decide."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        vectors = rng.permuted(np.tile(rng.standard_normal(50), (60, 1)), axis=1)
        check_top_k(np.zeros((1, 50)), vectors, 5, "l2")


def test_no_score_is_minus_zero():
    same = np.ones((1, 3))
    assert not np.signbit(exact_top_k(same, same, 1, "l2")[1]).any()
    assert not np.signbit(exact_top_k(-same, 0 * same, 1, "dot")[1]).any()


def test_cosine_of_the_largest_and_the_smallest():
    vectors = np.array([[1e308, 1e308], [1e308, 0], [5e-324, 0], [0, 0], [-1, 0]])
    ids, scores = exact_top_k([[1e-310, 0.0]], vectors, 5)
    np.testing.assert_array_equal(ids, [[1, 2, 0, 3, 4]])
    np.testing.assert_allclose(scores, [[1, 1, math.sqrt(0.5), 0, -1]], rtol=1e-15)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_vectors_are_ordered_by_row(metric):
    rng = np.random.default_rng(3)
    for n, dim in ((5000, 33), (3, 1000), (9000, 1)):
        vectors = np.repeat(rng.standard_normal((1, dim)), n, axis=0)
        ids, scores = exact_top_k(rng.standard_normal((3, dim)), vectors, 4, metric)
        np.testing.assert_array_equal(ids, np.tile(np.arange(n)[:4], (3, 1)))
        assert (scores == scores[:, :1]).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("order", ["random", "ascending"])
def test_top_k_over_full_blocks(metric, order, tmp_path):
    """A memory map of more rows than a block; in ascending order each is better than all before."""
    rng = np.random.default_rng(4)
    vectors, queries = rng.standard_normal((9000, 24)), rng.standard_normal((3, 24))
    vectors += 3  # uncentred: scores are close, as those of real embeddings
    if order == "ascending":
        best_first = exact_top_k(queries[:1], vectors, 9000, metric)[0][0]
        vectors = vectors[best_first[::-1]]
    np.save(tmp_path / "v.npy", vectors.astype(np.float32))
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    check_top_k(queries, mapped, 20, metric)


def test_top_k_shapes():
    vectors = np.ones((3, 2), np.float32)
    assert [x.shape for x in exact_top_k(vectors[0], vectors, 9)] == [(1, 3)] * 2
    assert [x.shape for x in exact_top_k(vectors[:0], vectors, 2)] == [(0, 2)] * 2
    assert [x.shape for x in exact_top_k(vectors, vectors[:0], 2)] == [(3, 0)] * 2
    swapped = exact_top_k(vectors.astype(">f4")[:, ::-1], np.asfortranarray(vectors), 2)
    np.testing.assert_array_equal(swapped[0], [[0, 1]] * 3)


def test_most_vectors_are_not_scored_in_float64(monkeypatch):
    counted = []
    exact = evaluate._exact_scores

    def counting(*arguments):
        counted.append(len(arguments[2]))
        return exact(*arguments)

    monkeypatch.setattr(evaluate, "_exact_scores", counting)
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((20_000, 32)).astype(np.float32)
    for metric in METRICS:
        counted.clear()
        exact_top_k(vectors[:10], vectors, 10, metric)
        assert sum(counted) < 10 * 100  # of 10 * 20,000


@pytest.mark.parametrize(("n", "dim", "k"), [(9_000, 8, 10), (1_200, 2_000, 600)])
def test_memory_is_bounded_where_nothing_can_be_told_apart(n, dim, k):
    vectors = np.ones((n, dim), np.float16)
    queries = np.ones((100, dim), np.float16)
    tracemalloc.start()
    exact_top_k(queries, vectors, k, "l2")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (128 << 20) + 100 * (4 * dim + 16 * k)


F = np.ones((2, 3), np.float32)
BIG = np.array([[1.0, 1.0, 1.0], [1.0, 2.0**501, 1.0]])

BAD_TOP_K = [
    (lambda: exact_top_k(F, F[:, :2], 1), ValueError, "queries have 3 dimensions, vectors have 2"),
    (
        lambda: exact_top_k(F.astype(int), F, 1),
        TypeError,
        "queries must be float16, float32 or float64, got int64",
    ),
    (
        lambda: exact_top_k(F, [[1, 2, 3]], 1),
        TypeError,
        "vectors must be float16, float32 or float64, got int64",
    ),
    (
        lambda: exact_top_k(F, F * [1, np.inf, 1], 1),
        ValueError,
        "vectors row 0 holds NaN or infinity",
    ),
    (
        lambda: exact_top_k(np.where(np.eye(2, 3) == 1, np.nan, F)[::-1] * [1, 0, 1], F, 1),
        ValueError,
        "queries row 0 holds NaN or infinity",
    ),
    (
        lambda: exact_top_k(F, BIG, 1, "dot"),
        ValueError,
        "vectors row 1 holds a value beyond 2**500, too large for dot in float64",
    ),
    (
        lambda: exact_top_k(BIG, F, 1, "l2"),
        ValueError,
        "queries row 1 holds a value beyond 2**500, too large for l2 in float64",
    ),
    (lambda: exact_top_k(F, F, 0), ValueError, "k must be at least 1, got 0"),
    (
        lambda: exact_top_k(F, F, 1, "euclid"),
        ValueError,
        "metric must be one of 'cosine', 'dot', 'l2', got 'euclid'",
    ),
    (
        lambda: exact_top_k(
            np.ones((1, 2**20 + 1), np.float16), np.ones((1, 2**20 + 1), np.float16), 1
        ),
        ValueError,
        "vectors must have at most 1048576 dimensions, got 1048577",
    ),
]

# Operating points

SETTINGS = {"wide": {"width": 3}, "narrow": {"width": 1}}


def first_ids(queries, width):
    return np.arange(width) + np.zeros((len(queries), 1), int)


def test_operating_points_take_turns_and_the_best_counts(monkeypatch):
    calls, clock = [], [0.0]
    seconds = iter([50.0, 50.0, 4.0, 9.0, 2.0, 8.0, 3.0, 5.0])  # two warm-ups, then pairs

    def search(queries, width):
        calls.append(width)
        clock[0] += next(seconds)
        return first_ids(queries, width)

    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: clock[0])
    sizes = {"wide": 100, "narrow": 50.5}
    points = operating_points(
        search, range(20), [[0, 1, 2, 9]] * 20, SETTINGS, bytes_per_vector=sizes, k=3
    )
    assert calls == [3, 1] * 4
    assert [p.name for p in points] == ["wide", "narrow"]
    assert [p.queries_per_second for p in points] == [10.0, 4.0]
    assert [float(p.recall) for p in points] == [1, pytest.approx(1 / 3)]
    assert [p.bytes_per_vector for p in points] == [100, 50.5]
    assert [p.settings for p in points] == [{"width": 3}, {"width": 1}]


def test_operating_points_hand_on_what_recall_takes():
    points = operating_points(
        first_ids,
        [0, 0],
        [[0, 5, 2]] * 2,
        SETTINGS,
        bytes_per_vector=8,
        repeats=1,
        k=2,
        truth_scores=[[3.0, 2.1, 2.0]] * 2,
        tolerance=0.1,
        confidence=0.5,
    )
    assert [float(p.recall) for p in points] == [1, 0.5]
    assert points[0].recall.confidence == 0.5
    assert points[0].queries_per_second > 0


def test_points_as_json_and_text():
    settings = {"k": np.int64(3), "where": np.array([True]), "by": {1: (None, "x")}, "odd": 1j}
    recall = Estimate(0.9, 0.85, 0.93, 0.95, np.ones(7))
    points = [
        OperatingPoint("x4", recall, 32, 1234.56, settings),
        OperatingPoint("slower", recall, 32, 1000.0, {}),
        OperatingPoint("x16", estimate(0.99), 1056.5, 10.0, {}),
    ]
    assert json.loads(json.dumps(points[0].to_json())) == {
        "name": "x4",
        "recall": {
            "value": 0.9,
            "low": 0.85,
            "high": 0.93,
            "confidence": 0.95,
            "n_queries": 7,
        },
        "bytes_per_vector": 32,
        "queries_per_second": 1234.56,
        "settings": {"k": 3, "where": [True], "by": {"1": [None, "x"]}, "odd": "1j"},
    }
    assert text_table(points).splitlines() == [
        "  setting  recall                     queries/s  bytes/vector",
        "* x4       0.900 [0.850, 0.930] 95 %    1,234.6            32",
        "  slower   0.900 [0.850, 0.930] 95 %    1,000.0            32",
        "* x16      0.990 [0.990, 0.990] 95 %       10.0       1,056.5",
    ]
    assert text_table([]).split() == ["setting", "recall", "queries/s", "bytes/vector"]


def points_of(queries=(1,), settings=SETTINGS, size=1.0, **more):
    return operating_points(
        first_ids, queries, [[0]] * len(queries), settings, bytes_per_vector=size, **more
    )


BAD_POINTS = [
    (lambda: points_of(settings={}), ValueError, "settings must name one setting at least"),
    (lambda: points_of(queries=()), ValueError, "queries must not be empty"),
    (lambda: points_of(repeats=0), ValueError, "repeats must be at least 1, got 0"),
    (lambda: points_of(size=0), ValueError, "bytes_per_vector must be above 0 and finite, got 0"),
    (
        lambda: points_of(size="1"),
        TypeError,
        "bytes_per_vector must be a number, got '1' of type str",
    ),
    (
        lambda: points_of(size={"wide": 1}),
        ValueError,
        "bytes_per_vector lacks the setting 'narrow'",
    ),
    (lambda: points_of(k=2), ValueError, "k is 2, truth has 1 columns"),
]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [*BAD_RECALL, *BAD_NDCG, *BAD_FRONT, *BAD_TOP_K, *BAD_POINTS],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
