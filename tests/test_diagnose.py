# ruff: noqa: E501 -- a table of bad input, a case a line
"""Forecasts of what binary codes will find: facts by hand, recall by brute force, and the truth."""

import dataclasses
import json
import math
import re

import numpy as np
import oracle
import pytest
from test_real_data import load

from hamming_engine import diagnose as module
from hamming_engine.diagnose import Diagnosis, Forecast, diagnose
from hamming_engine.evaluate import Estimate, exact_top_k, recall_at_k
from hamming_engine.held import HeldCodes
from hamming_engine.indexes.asymmetric import AsymmetricScan
from hamming_engine.quantize import LocalSearchQuantizer, RaBitQuantizer, SignQuantizer


def clusters(seed, n, dim=64, n_clusters=300):
    """Many Gaussian clusters of very different sizes, each longer in its own few directions."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1.0, dim + 1) ** -0.5
    frames = np.array([np.linalg.qr(rng.standard_normal((dim, dim)))[0] for _ in range(8)])
    centers = rng.standard_normal((n_clusters, dim)) * spectrum @ frames[0]
    weights = np.arange(1.0, n_clusters + 1) ** -1.0
    widths = rng.lognormal(-0.4, 0.4, n_clusters)
    cluster = rng.choice(n_clusters, n, p=weights / weights.sum())
    inside = rng.standard_normal((n, dim)) * spectrum
    for frame in range(8):
        mine = cluster % 8 == frame
        inside[mine] = inside[mine] @ frames[frame]
    return (centers[cluster] + widths[cluster, None] * inside).astype(np.float32)


def normal(seed, n, dim):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def by_way(diagnosis):
    return {(one.quantizer, one.method, one.oversample): one for one in diagnosis.forecasts}


# Facts


def small(rows, **options):
    return diagnose(rows, rows[:1], k=1, quantizers=["sign"], oversamples=[1], **options)


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_facts_worked_out_by_hand(metric):
    rows = np.array([[3, 4, 0], [3, -4, 0], [3, 4, 0], [0, 0, 0]], np.float32)
    facts = small(rows, metric=metric).facts
    assert (facts.n_rows, facts.dim) == (4, 3)
    assert facts.ones.tolist() == [0.75, 0.5, 0]
    assert facts.n_unbalanced_bits == 1
    # The mean is (9, 4, 0) / 4, lengths are 5, 5, 5, 0: scaled to unit length both are a fifth.
    assert facts.mean_offset == pytest.approx(math.sqrt(97) / 15)
    assert (facts.mean_length, facts.length_spread) == pytest.approx((3.75, math.sqrt(1 / 3)))
    # Bits 1, 1, 1, 0 and 1, 0, 1, 0: variances 3/16 and 4/16, covariance 2/16.
    assert facts.mean_bit_correlation == pytest.approx(2 / math.sqrt(12))
    assert facts.effective_bits == pytest.approx(49 / 33)
    # Floats: variances 27/16 and 11, covariance 3/4.
    assert facts.effective_dim == pytest.approx(
        (27 / 16 + 11) ** 2 / ((27 / 16) ** 2 + 121 + 2 * 9 / 16)
    )
    assert (facts.n_distinct_codes, facts.n_duplicates, facts.n_zero_rows) == (3, 1, 1)
    assert facts.n_float16_lost == 0


def test_what_float16_loses_is_counted():
    rows = np.array([[1e-9, 1.0], [1e6, -1e-30], [0.0, 6e-8], [-7e4, 65504.0]], np.float32)
    assert small(rows).facts.n_float16_lost == 4  # 1e-9, 1e6, -1e-30, -7e4
    assert small(np.float16([[1, 2], [3, 6e-8]])).facts.n_float16_lost == 0


def test_moments_do_not_depend_on_blocks(monkeypatch):
    rows = clusters(0, 300, 32)
    whole = diagnose(rows, quantizers=["sign"], k=2).facts
    covariance = np.cov(rows.T / np.linalg.norm(rows, axis=1), bias=True)
    expected = np.trace(covariance) ** 2 / np.square(covariance).sum()
    assert whole.effective_dim == pytest.approx(expected, rel=1e-5)
    correlations = np.abs(np.corrcoef((rows > 0).T))
    expected = (correlations.sum() - 32) / (32 * 31)
    assert whole.mean_bit_correlation == pytest.approx(expected)
    monkeypatch.setattr(module, "_MOMENT_COLUMNS", 5)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 7 * 8 * 32)
    parts = diagnose(rows, quantizers=["sign"], k=2).facts
    np.testing.assert_array_equal(parts.ones, whole.ones)
    for one in dataclasses.fields(whole):
        assert getattr(parts, one.name) == pytest.approx(getattr(whole, one.name)), one.name


# Forecasts


def hits(found, truth):
    return np.array([len({*f} & {*t}) for f, t in zip(found.tolist(), truth.tolist(), strict=True)])


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_recall_in_the_sample_is_that_of_brute_force(metric):
    """Queries of +-1 weigh all signs alike: asymmetric search is Hamming search there."""
    rows = normal(1, 150, 24)
    queries = np.where(normal(2, 20, 24) > 0, np.float32(1), np.float32(-1))
    truth = np.argsort(-oracle.scores(queries, rows, metric), axis=1, kind="stable")[:, :5]
    _, found = oracle.nearest(oracle.hamming(oracle.pack(queries), oracle.pack(rows)), 20)
    got = by_way(
        diagnose(rows, queries, k=5, metric=metric, quantizers=["sign"], oversamples=[1, 2, 4])
    )
    assert len(got) == 6
    for (_, _, oversample), forecast in got.items():
        expected = hits(found[:, : 5 * oversample], truth) / 5
        np.testing.assert_array_equal(forecast.recall.per_query, expected)
        assert forecast.recall == recall_at_k(found[:, : 5 * oversample], truth)
        assert forecast.measured is forecast.recall


def test_recall_of_more_rows_is_the_sum_of_what_halving_shows():
    """For twice the rows, by brute force: what half as many results lose from half the sample."""
    rows, queries = clusters(1, 160, 24), clusters(2, 30, 24)
    order = np.random.default_rng(7).permutation(160)
    distances = oracle.hamming(oracle.pack(queries), oracle.pack(rows))
    scores = oracle.scores(queries, rows, "dot")

    def recall(k, chosen):
        chosen = np.sort(chosen)
        truth = np.argsort(-scores[:, chosen], axis=1, kind="stable")[:, :k]
        return hits(oracle.nearest(distances[:, chosen], 2 * k)[1], truth) / k

    def change(k):
        return recall(k, order) - (recall(k, order[:80]) + recall(k, order[80:])) / 2

    way = "sign", "hamming", 2
    options = {"k": 4, "metric": "dot", "quantizers": ["sign"], "oversamples": [1, 2], "seed": 7}
    for n_rows, expected in (
        (160, recall(4, order)),
        (320, recall(4, order) + change(2)),
        (640, recall(4, order) + change(2) + change(1)),
        (226, recall(4, order) + math.log2(226 / 160) * change(2)),
        (1280, recall(4, order) + change(2) + 2 * change(1)),
    ):
        forecast = by_way(diagnose(rows, queries, n_rows=n_rows, **options))[way]
        np.testing.assert_allclose(forecast.recall.per_query, expected)
        assert forecast.recall.value == pytest.approx(max(0, expected.mean()))
        assert forecast.measured.value == pytest.approx(recall(4, order).mean())
        assert forecast.recall.low <= forecast.recall.value <= forecast.recall.high
        # No narrower than in the sample.
        room = forecast.measured.value - forecast.measured.low
        assert forecast.recall.low <= max(0, forecast.recall.value - room * (1 - 1e-9))
    # Of three results, the halved k lies between 1 and 2, in logarithms.
    options["k"] = 3
    share = math.log(1.5) / math.log(2)
    expected = recall(3, order) + (1 - share) * change(1) + share * change(2)
    forecast = by_way(diagnose(rows, queries, n_rows=320, **options))[way]
    np.testing.assert_allclose(forecast.recall.per_query, expected)


def test_steps_end_where_the_collection_does():
    assert module._steps(10, 1.0) == []
    assert module._steps(10, 16.0) == [
        (5.0, 1.0, True),
        (2.5, 1.0, True),
        (1.25, 1.0, True),
        (1.0, 1.0, False),
    ]
    assert module._steps(1, math.sqrt(2)) == [(1.0, pytest.approx(0.5), False)]


def test_factors_count_and_quantizers_are_searched_as_a_collection_would():
    rows, queries = clusters(3, 800), clusters(4, 40)
    quantizer = RaBitQuantizer(n_iterations=3)
    got = by_way(diagnose(rows, queries, quantizers={"mine": quantizer}, metric="l2"))
    assert not quantizer.is_fitted
    quantizer.fit(rows, metric="l2")
    codes, factors = quantizer.encode_rows(rows)
    held = HeldCodes(codes.shape[1], n_factors=2)
    held.append(codes, factors)
    scan = AsymmetricScan(quantizer.weights(queries).weights, 40, 800)
    for piece in held.pieces(800):
        scan.scan(piece)
    truth, _ = exact_top_k(queries, rows, 10, "l2")
    # Of the same rows in another order the fit is another one, by a little.
    expected = float(recall_at_k(scan.result(), truth))
    forecast = got["mine", "asymmetric", 4]
    assert float(forecast.recall) == pytest.approx(expected, abs=0.02)
    assert forecast.bytes_per_row == 8 + 8
    assert forecast.decoder_bytes == 4 * (64 * 64 + 64)


def test_default_tries_five_quantizers_in_every_way():
    diagnosis = diagnose(clusters(5, 240, 16), k=2, oversamples=(1, 3))
    ways = [
        ("sign", "hamming"),
        ("sign", "asymmetric"),
        ("threshold", "hamming"),
        ("threshold", "asymmetric"),
        ("itq", "hamming"),
        ("itq", "asymmetric"),
        ("rabitq", "hamming"),
        ("rabitq", "asymmetric"),
        ("local_search", "asymmetric"),
    ]
    assert list(by_way(diagnosis)) == [(*way, oversample) for way in ways for oversample in (1, 3)]
    sizes = {one.quantizer: (one.bytes_per_row, one.decoder_bytes) for one in diagnosis.forecasts}
    assert sizes["sign"] == (8, 0)
    assert sizes["threshold"] == (8, 2 * 4 * 16)
    assert sizes["itq"] == (8, 4 * (16 * 16 + 2 * 16))
    assert sizes["rabitq"] == sizes["local_search"] == (16, 4 * (16 * 16 + 16))


SEEN = []


class Seen(SignQuantizer):
    def __deepcopy__(self, memo):
        return self

    def _note(self, vectors):
        SEEN.append({tuple(row) for row in np.asarray(vectors).tolist()})

    def fit(self, vectors, **options):
        self._note(vectors)
        return super().fit(vectors, **options)

    def encode_rows(self, vectors, *args, **options):
        self._note(vectors)
        return super().encode_rows(vectors, *args, **options)

    def weights(self, queries):
        self._note(queries)
        return super().weights(queries)


def test_held_out_queries_are_neither_searched_nor_fitted_to():
    vectors = normal(5, 203, 70)
    SEEN.clear()
    diagnosis = diagnose(vectors, k=3, quantizers={"seen": Seen()})
    assert (diagnosis.n_sample_rows, diagnosis.n_queries, diagnosis.n_rows) == (163, 40, 163)
    fitted, searched, encoded_queries, asked = SEEN
    assert fitted <= searched
    assert not asked & searched
    assert asked == encoded_queries
    assert asked | searched == {tuple(row) for row in vectors.tolist()}


def test_rows_to_fit_are_as_many_as_balance():
    assert module._rows_to_fit(8000, 8000, 20_000) == 8000  # all, where all will be fitted to
    assert module._rows_to_fit(8000, 10**9, 10**9) == 4000  # where no fit is off, neither may this
    n = module._rows_to_fit(8000, 85_000, 20_000)
    # Gains and losses, as shares of rows fitted to and of others over the rows fitted to.
    assert (2 * n / 8000 - 1) / n == pytest.approx((2 * 20 / 85 - 1) / 20_000, rel=0.01)
    assert module._rows_to_fit(40_000, 40_000, 20_000) == 20_000
    assert module._rows_to_fit(100, 1000, 1) == 1


def test_copies_cost_no_recall():
    distinct = normal(6, 40, 32)
    rows = np.tile(distinct, (5, 1))
    diagnosis = diagnose(rows, distinct[:8], k=3, quantizers=["sign"], n_rows=400)
    assert by_way(diagnosis)["sign", "hamming", 1].recall.value == 1
    assert diagnosis.facts.n_duplicates == 160
    zeros = np.array([[0.0, 1], [-0.0, 1], [0, 2]], np.float32)
    assert small(zeros).facts.n_duplicates == 1


def test_a_seed_decides_everything():
    rows = clusters(7, 400)
    options = {"quantizers": ["itq"], "n_rows": 3000}
    first, again = (diagnose(rows, seed=3, threads=n, **options) for n in (1, 2))
    other = diagnose(rows, seed=4, **options)
    assert first.to_json() == again.to_json()
    assert first.to_json() != other.to_json()


# Against the truth


def truth_of(quantizers, rows, queries, oversamples):
    """Recall@10 of all rows, measured."""
    all_rows = diagnose(rows, queries, quantizers=quantizers, oversamples=oversamples)
    return {way: one.recall for way, one in by_way(all_rows).items()}


def test_an_eighth_of_clustered_vectors_tells_of_all():
    """Within 0.06, mean 0.02; of intervals of 95 % three of four at least hold the truth."""
    quantizers = {
        "sign": SignQuantizer(),
        "rabitq": RaBitQuantizer(n_iterations=5),
        "local_search": LocalSearchQuantizer(n_iterations=3),
    }
    errors, held, grew = [], [], []
    for seed in range(3):
        vectors = clusters(10 + seed, 17_600)
        rows, asked, others = np.split(vectors, [16_000, 16_800])
        truth = truth_of(quantizers, rows, others, (1, 2, 4))
        sample = rows[:2000]  # rows come in no order
        forecasts = by_way(
            diagnose(
                sample,
                asked,
                n_rows=16_000,
                quantizers=quantizers,
                oversamples=(1, 2, 4),
                seed=seed,
            )
        )
        for way, forecast in forecasts.items():
            errors.append(forecast.recall.value - truth[way].value)
            held.append(forecast.recall.low <= truth[way].value <= forecast.recall.high)
            grew.append(forecast.measured.value - truth[way].value)
    assert np.abs(errors).max() < 0.06
    assert np.abs(errors).mean() < 0.02
    assert np.mean(held) > 0.75
    assert np.abs(grew).mean() > 3 * np.abs(errors).mean()  # the sample's own recall is far off


def test_eight_thousand_real_rows_tell_of_all():
    """Within 0.03 of what 85,000 rows give with other queries."""
    docs, queries, _ = load("corpus-debian-wordnet", "minilm-l6-v2")
    quantizers = {
        "rabitq": RaBitQuantizer(n_iterations=5, sample_rows=10_000),
        "local_search": LocalSearchQuantizer(n_iterations=3, sample_rows=10_000),
    }
    chosen = np.random.default_rng(1).permutation(len(docs))[:8000]
    forecasts = by_way(
        diagnose(
            docs[chosen],
            queries[::2],
            n_rows=len(docs),
            quantizers=quantizers,
            oversamples=(1, 2, 4),
        )
    )
    truth = truth_of(quantizers, docs, queries[1::2][:300], (1, 2, 4))
    for way in truth:
        if way[1] == "asymmetric":
            assert float(forecasts[way].recall) == pytest.approx(float(truth[way]), abs=0.03), way
            assert forecasts[way].recall.low <= truth[way].high
            assert forecasts[way].recall.high >= truth[way].low


# What is recommended


def forecast(quantizer, method, oversample, low, bytes_per_row=48):
    estimate = Estimate((1 + low) / 2, low, 1.0, 0.95, np.ones(3))
    return Forecast(quantizer, method, oversample, estimate, estimate, bytes_per_row, 0)


def test_the_cheapest_that_surely_reaches_the_target():
    ways = [
        forecast("a", "asymmetric", 1, 0.999, 48),
        forecast("b", "hamming", 16, 0.99, 56),
        forecast("c", "hamming", 8, 0.989, 48),  # its value does, its lower end does not
        forecast("d", "hamming", 8, 0.995, 56),
        forecast("e", "hamming", 8, 0.999, 56),
        forecast("f", "hamming", 4, 0.995, 64),
    ]
    assert module._recommended(ways, 0.99) == (ways[3], True)
    assert module._recommended(ways[:3], 0.99) == (ways[1], True)
    assert module._recommended(ways[:1] + ways[2:3], 0.99) == (ways[0], True)
    assert module._recommended(ways, 0.9995) == (ways[4], False)  # the best, and the cheaper of two
    assert module._recommended(ways[1:4], 0.996) == (ways[3], False)


def test_a_target_out_of_reach_is_said_to_be():
    vectors = normal(8, 400, 16)
    options = {"quantizers": ["sign"], "oversamples": [1, 2]}
    out = diagnose(vectors, **options)
    assert not out.reaches_target
    assert out.recommended.recall.low == max(one.recall.low for one in out.forecasts)
    assert out.findings[-1].startswith(
        "Nothing tried, up to 2 candidates a result, surely reaches a recall of 0.99; the best is "
        "sign codes, asymmetric search, 2 candidates a result: recall@10 0."
    )
    reached = diagnose(vectors, target_recall=0.1, **options)
    assert reached.reaches_target
    assert reached.recommended == reached.forecasts[0]
    assert reached.findings[-1].startswith("Recommended: sign codes, hamming search, 1 candidates")
    assert reached.findings[-1].endswith("8 bytes a row.")


# Findings


def findings(vectors, **options):
    return " ".join(diagnose(vectors, quantizers=["sign"], **options).findings[:-1])


def test_vectors_with_nothing_to_say_of():
    assert findings(normal(9, 600, 128)) == ""


def test_what_is_wrong_is_said_with_numbers():
    good = normal(9, 600, 128)
    assert "64 dimensions are few" in findings(good[:, :64])
    off_centre = findings(good + 3)
    assert "not centred: their mean is 0.95 of" in off_centre
    assert "128 of 128 sign bits are nearly always the same" in off_centre
    assert "Plain signs waste" in off_centre
    copied = np.concatenate([good, good[:50]])
    assert "50 of 650 rows are copies of others" in findings(copied)
    shared = np.concatenate([good, 2 * good[:50]])
    assert "50 of 650 rows have the sign code of another whose floats differ" in findings(shared)
    zeros = good.copy()
    zeros[3] = 0
    assert "1 of 600 rows are all zeros" in findings(zeros)
    stretched = good * np.linspace(0.5, 2, 600, dtype=np.float32)[:, None]
    assert re.search(
        r"Lengths spread by 3\d % of their mean, which dot", findings(stretched, metric="dot")
    )
    assert findings(stretched) == ""  # the cosine does not count them
    assert "4 values become zero or infinity in float16" in findings(
        np.where(np.arange(600 * 128).reshape(600, 128) < 4, np.float32(1e-20), good)
    )
    assert re.search(
        r"The 128 sign bits are correlated \(0\.\d\d on average\) and tell as much as \d independent",
        findings(np.repeat(good[:, :4], 32, axis=1) + 0.1 * good),
    )


def test_an_extrapolation_is_called_one():
    vectors = normal(9, 600, 128)
    assert findings(vectors, n_rows=4000) == ("Recall of 4,000 rows is an extrapolation from 480.")
    assert "from 480, 208 times fewer: a larger sample would say more." in findings(
        vectors, n_rows=100_000
    )
    near, far = (
        by_way(diagnose(vectors, quantizers=["sign"], n_rows=n))["sign", "hamming", 4].recall
        for n in (480, 4000)
    )
    assert far.high - far.low > near.high - near.low


# Shown


def test_it_is_a_value_that_prints():
    diagnosis = diagnose(
        clusters(5, 240), k=2, quantizers={"a<b": SignQuantizer()}, oversamples=(1, 3), n_rows=1000
    )
    assert isinstance(diagnosis, Diagnosis)
    with pytest.raises(dataclasses.FrozenInstanceError):
        diagnosis.k = 3
    lines = str(diagnosis).split("\n")
    assert lines[0].startswith("recall@2 of 1,000 rows")
    assert lines[1].split() == ["quantizer", "method", "bytes/row", "decoder", "1x", "3x"]
    one = diagnosis.forecasts[0].recall
    assert lines[2].split()[:6] == ["a<b", "hamming", "8", "0", f"{one:.3f}", f"({one.low:.3f})"]
    assert str(diagnosis).count(")*") == 1
    assert [line[2:] for line in lines[5:]] == list(diagnosis.findings)
    html = diagnosis._repr_html_()
    assert html.count("<tr>") == 3
    assert html.count("<th>") == 6
    assert "a&lt;b" in html
    assert "a<b" not in html
    assert html.count("<li>") == len(diagnosis.findings)
    assert repr(diagnosis).startswith(
        "<Diagnosis of 192 rows for 1,000: a<b, hamming, 3x: recall@2"
    )

    stored = json.loads(json.dumps(diagnosis.to_json(), allow_nan=False))
    assert stored["facts"]["ones"] == diagnosis.facts.ones.tolist()
    assert stored["forecasts"][0] == {
        "quantizer": "a<b",
        "method": "hamming",
        "oversample": 1,
        "bytes_per_row": 8,
        "decoder_bytes": 0,
        "recall": {
            "value": one.value,
            "low": one.low,
            "high": one.high,
            "confidence": 0.95,
            "n_queries": 48,
        },
        "measured": stored["forecasts"][0]["measured"],
    }
    assert stored["recommended"] in stored["forecasts"]
    assert (stored["n_rows"], stored["n_sample_rows"], stored["n_queries"]) == (1000, 192, 48)


# Bad input

ROWS = normal(0, 60, 8)
NAN = np.where(np.arange(60)[:, None] == 7, np.float32("nan"), ROWS)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ROWS.astype(int),), {}, TypeError, "sample must be float16, float32 or float64, got int64"),
        ((ROWS[None],), {}, ValueError, "sample must have shape (n, dim) or (dim,), got (1, 60, 8)"),
        ((NAN,), {}, ValueError, "sample row 7 holds NaN or infinity"),
        ((ROWS * np.float64(1e60),), {}, ValueError, "sample row 0 holds values that do not fit into float32"),
        ((ROWS, NAN), {}, ValueError, "queries row 7 holds NaN or infinity"),
        ((ROWS, ROWS[:, :3]), {}, ValueError, "queries have 3 dimensions, 8 were expected"),
        ((ROWS, ROWS[:0]), {}, ValueError, "leave 60 rows to search for 0 queries, expected at least 20"),
        ((ROWS[:24],), {"k": 11}, ValueError, "leave 20 rows to search for 4 queries, expected at least 22"),
        ((ROWS[:3],), {"k": 1}, ValueError, "leave 3 rows to search for 0 queries"),
        ((ROWS,), {"k": 0}, ValueError, "k must be at least 1, got 0"),
        ((ROWS,), {"k": 2.0}, TypeError, "k must be an integer, got 2.0 of type float"),
        ((ROWS,), {"metric": "hamming"}, ValueError, "metric must be one of 'cosine', 'dot', 'l2', got 'hamming'"),
        ((ROWS,), {"n_rows": 47}, ValueError, "n_rows is 47, the sample alone has 48 rows to search"),
        ((ROWS,), {"n_rows": 1e6}, TypeError, "n_rows must be an integer, got 1000000.0"),
        ((ROWS,), {"target_recall": 1.0}, ValueError, "target_recall must lie between 0 and 1, got 1.0"),
        ((ROWS,), {"target_recall": math.nan}, ValueError, "target_recall must lie between 0 and 1, got nan"),
        ((ROWS,), {"target_recall": "0.9"}, TypeError, "target_recall must be a number, got '0.9'"),
        ((ROWS,), {"target_recall": True}, TypeError, "target_recall must be a number, got True"),
        ((ROWS,), {"quantizers": "sign"}, TypeError, "quantizers must be a sequence of names or a mapping, got 'sign'"),
        ((ROWS,), {"quantizers": []}, ValueError, "quantizers must name one at least"),
        ((ROWS,), {"quantizers": {}}, ValueError, "quantizers must name one at least"),
        ((ROWS,), {"quantizers": ["sign", "pq"]}, ValueError, "quantizer must be one of 'sign', 'threshold'"),
        ((ROWS,), {"quantizers": ["sign", "sign"]}, ValueError, "quantizers must be distinct, got ['sign', 'sign']"),
        ((ROWS,), {"quantizers": {"sign": "sign"}}, TypeError, "quantizers must map names to quantizers, got 'sign': 'sign'"),
        ((ROWS,), {"quantizers": {1: SignQuantizer()}}, TypeError, "quantizers must map names to quantizers, got 1: <Sign"),
        ((ROWS,), {"oversamples": 4}, TypeError, "oversamples must be a sequence of integers, got 4"),
        ((ROWS,), {"oversamples": ()}, ValueError, "oversamples must ascend, and be one at least, got []"),
        ((ROWS,), {"oversamples": (2, 1)}, ValueError, "oversamples must ascend, and be one at least, got [2, 1]"),
        ((ROWS,), {"oversamples": (1, 1)}, ValueError, "oversamples must ascend"),
        ((ROWS,), {"oversamples": (0, 1)}, ValueError, "oversamples must be at least 1, got 0"),
        ((ROWS,), {"oversamples": (1.5,)}, TypeError, "oversamples must be an integer, got 1.5"),
        ((ROWS,), {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ((ROWS,), {"threads": 0}, ValueError, "threads must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        diagnose(*arguments, **options)
