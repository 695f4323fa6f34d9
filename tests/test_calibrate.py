"""Calibration finds the smallest oversample, forecasts recall, and certainty is what it says."""

import functools

import numpy as np
import oracle
import pytest
from test_collection import meaning, same_hits

import hamming_engine as he
from hamming_engine import view as view_module
from hamming_engine.calibrate import confidence_of, oversample_of, smallest_number
from hamming_engine.quantize import ITQQuantizer, LocalSearchQuantizer, RaBitQuantizer
from hamming_engine.store.errors import StoreError

DIM = 64
N_CLUSTERS = 50
CLUSTERED_ROWS = 5_000


def set_search(docs, settings):
    docs._store.set_search(settings)
    docs._show(docs._store.snapshot)


def clustered(n, seed, spread=0.6):
    """Vectors around centres that are the same for rows and queries."""
    centers = np.random.default_rng(1_000).standard_normal((N_CLUSTERS, DIM))
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n, DIM))
    return (centers[rng.integers(0, N_CLUSTERS, n)] + spread * noise).astype(np.float32)


def true_best(queries, vectors, k):
    """Rows with the highest cosines, best first."""
    units = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    best = np.zeros((len(queries), k), np.int64)
    for first in range(0, len(queries), 500):
        scores = queries[first : first + 500].astype(np.float64) @ units.T
        rows = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
        order = np.argsort(-np.take_along_axis(scores, rows, 1), axis=1, kind="stable")
        best[first : first + 500] = np.take_along_axis(rows, order, 1)
    return best


def recall(found, truth):
    shares = [len({*a} & {*b}) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]
    return sum(shares) / truth.size


# Small collections, where every number of candidates can be tried.

ROWS = clustered(150, 0)
ROWS[40:43] = ROWS[7]
QUERIES = clustered(30, 1)


@functools.cache
def quantizer():
    return ITQQuantizer(n_iterations=3).fit(ROWS)


def small(path, kind="float16", quantizer=None):
    docs = he.Collection.create(
        path, DIM, vectors=kind, quantizer=quantizer or globals()["quantizer"]()
    )
    docs.append(ROWS[:100])
    docs.append(ROWS[100:])
    return docs


def exactly(n, k):
    """An oversample with which n candidates are scored."""
    return max(1, (n - 0.5) / k)


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
@pytest.mark.parametrize("method", ["asymmetric", "hamming"])
def test_the_smallest_number_of_candidates_is_stored(method, kind, tmp_path):
    k = 7
    with small(tmp_path / "c", kind) as docs:
        everything = docs.search(QUERIES, k, method=method, oversample=len(ROWS)).ids
        recalls = {}
        for n in range(k, len(ROWS) + 1):
            hits = docs.search(QUERIES, k, method=method, oversample=exactly(n, k), threads=1)
            recalls[n] = recall(hits.ids, everything)
        if kind != "int8":
            stored = meaning(ROWS, kind)
            np.testing.assert_array_equal(
                np.sort(everything), np.sort(true_best(QUERIES, stored, k))
            )
        for target in (0.01, 0.5, 0.8, 0.9, 0.97, 1.0):
            found = docs.calibrate(target, QUERIES, k=k, method=method)
            n = min(n for n in recalls if recalls[n] >= target)
            assert int(np.ceil(k * found.oversample)) == n
            assert found.recall == pytest.approx(recalls[n])
            assert found.low <= found.recall <= found.high
            assert (found.method, found.k, found.target_recall) == (method, k, target)
            assert (found.n_queries, found.n_rows, found.queries) == (30, 150, "given")
            hits = docs.search(QUERIES, k)
            same_hits(hits, docs.search(QUERIES, k, method=method, oversample=exactly(n, k)))
            assert recall(hits.ids, everything) == pytest.approx(found.recall)


@pytest.mark.parametrize("method", ["asymmetric", "hamming"])
def test_rows_that_stand_for_queries_are_not_among_their_own_results(method, tmp_path):
    """All rows, so that it is known which; some of them have duplicates."""
    k = 5
    with small(tmp_path / "c") as docs:
        found = docs.calibrate(0.9, k=k, method=method, n_queries=10_000)
    stored = ROWS.astype(np.float16).astype(np.float32)
    codes, _ = quantizer().encode_rows(ROWS)
    if method == "hamming":
        keys = oracle.hamming(quantizer().encode(stored), codes)
    else:
        weights = quantizer().weights(stored).weights
        keys = oracle.ranks(oracle.weighted_scores(weights, codes, np.zeros((0, 2))))
    scores = oracle.scores(stored, stored, "cosine")
    hits = np.zeros(len(ROWS), np.int64)
    for row in range(len(ROWS)):
        others = [other for other in range(len(ROWS)) if other != row]
        truth = sorted(others, key=lambda other: (-scores[row, other], other))[:k]
        order = sorted(others, key=lambda other: (keys[row, other], other))
        for other in truth:
            hits[order.index(other) :] += 1
    n = int(np.argmax(hits / (k * len(ROWS)) >= 0.9)) + 1
    assert int(np.ceil(k * found.oversample)) == n
    assert found.recall == pytest.approx(hits[n - 1] / (k * len(ROWS)))
    assert (found.n_queries, found.queries) == (150, "rows")


def test_truth_is_found_in_parts(tmp_path, monkeypatch):
    with small(tmp_path / "c") as docs:
        wanted = docs.calibrate(0.9, QUERIES, k=7)
        monkeypatch.setattr(view_module, "_TRUTH_BYTES", 4 * DIM * 11)
        assert docs.calibrate(0.9, QUERIES, k=7) == wanted
        monkeypatch.setattr(view_module, "_TRUTH_BYTES", 1)
        assert docs.calibrate(0.9, QUERIES, k=7) == wanted


def test_a_duplicate_is_a_result_like_others(tmp_path):
    rows = np.repeat(ROWS[:20], 3, axis=0)
    with he.Collection.create(tmp_path / "c", DIM, quantizer=quantizer()) as docs:
        docs.append(rows)
        found = docs.calibrate(1.0, k=2)
    assert (found.oversample, found.recall) == (1.0, 1.0)


def test_chosen_rows_depend_on_the_seed_alone(tmp_path):
    with small(tmp_path / "c") as docs:
        one, same, other = (docs.calibrate(0.9, n_queries=20, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert (one.recall, one.low) != (other.recall, other.low)
    assert one.n_queries == 20


def test_a_calibration_is_kept_and_used(tmp_path):
    with small(tmp_path / "c") as docs:
        plain = docs.search(QUERIES, 5)
        same_hits(plain, docs.search(QUERIES, 5, oversample=4))
        found = docs.calibrate(0.7, QUERIES, k=5)
        assert found.oversample != 4
        assert docs.info()["search"] == found.to_json()
        wanted = docs.search(QUERIES, 5, oversample=found.oversample)
        by_hamming = docs.search(QUERIES, 5, method="hamming", oversample=4)
        docs.export(tmp_path / "c.h5")
    for path in (tmp_path / "c", tmp_path / "c.h5"):
        with he.Collection.open(path) as docs:
            assert docs.info()["search"] == found.to_json()
            same_hits(docs.search(QUERIES, 5), wanted)
            same_hits(docs.search(QUERIES, 5, method="asymmetric"), wanted)
            same_hits(docs.search(QUERIES, 5, method="hamming"), by_hamming)
            same_hits(docs.search(QUERIES, 5, oversample=4), plain)
    with he.Collection.open(tmp_path / "c", "a") as docs:
        docs.append(ROWS[:3])
        assert docs.info()["search"] == found.to_json()
        other = docs.calibrate(0.7, QUERIES, k=5, method="hamming")
        same_hits(
            docs.search(QUERIES, 5),
            docs.search(QUERIES, 5, method="hamming", oversample=other.oversample),
        )
        same_hits(
            docs.search(QUERIES, 5, method="asymmetric"),
            docs.search(QUERIES, 5, method="asymmetric", oversample=4),
        )


def test_what_cannot_be_calibrated(tmp_path):
    with small(tmp_path / "c") as docs:
        for options, error, message in (
            ({"target_recall": 0}, ValueError, "target_recall must be above 0 and at most 1, got"),
            ({"target_recall": 1.5}, ValueError, "target_recall must be above 0 and at most 1"),
            ({"target_recall": np.nan}, ValueError, "target_recall must be above 0 and at most"),
            ({"target_recall": "all"}, TypeError, "target_recall must be a number, got 'all'"),
            ({"target_recall": True}, TypeError, "target_recall must be a number, got True"),
            ({"k": 0}, ValueError, "k must be at least 1, got 0"),
            ({"k": 150}, ValueError, "k must be at most 149, the rows that a query may find"),
            ({"k": 151, "queries": QUERIES}, ValueError, "k must be at most 150, the rows that a"),
            ({"method": "fast"}, ValueError, "method must be one of 'hamming', 'asymmetric', got"),
            ({"n_queries": 0}, ValueError, "n_queries must be at least 1, got 0"),
            ({"max_oversample": 0}, ValueError, "max_oversample must be at least 1 and at most"),
            ({"max_oversample": "4"}, TypeError, "max_oversample must be a number, got '4'"),
            ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
            ({"seed": None}, TypeError, "seed must be an integer, got None"),
            ({"threads": 0}, ValueError, "threads must be at least 1, got 0"),
            ({"queries": QUERIES[:, :5]}, ValueError, "queries have 5 dimensions, 64 were"),
            ({"queries": QUERIES[:0]}, ValueError, "queries must not be empty"),
            ({"queries": np.full((1, DIM), np.nan)}, ValueError, "queries row 0 holds NaN or inf"),
            (
                {"target_recall": 1.0, "max_oversample": 1, "queries": QUERIES},
                ValueError,
                r"target_recall must be at most what can be reached: 0\.\d+ with 1 candidates a",
            ),
        ):
            with pytest.raises(error, match=message):
                docs.calibrate(**options)
            assert docs.info()["search"] is None
            assert docs.info()["generation"] == 3
        assert docs.calibrate(0.9, QUERIES[0]).n_queries == 1
        assert docs.calibrate(1, QUERIES, k=150).oversample == 1
        docs.export(tmp_path / "c.h5")
    for path in (tmp_path / "c", tmp_path / "c.h5"):
        with (
            he.Collection.open(path) as docs,
            pytest.raises(StoreError, match="is open for reading"),
        ):
            docs.calibrate()
    with he.Collection.create(tmp_path / "codes", DIM, vectors=None) as docs:
        docs.append(ROWS)
        with pytest.raises(ValueError, match="calibrate needs stored vectors"):
            docs.calibrate()
    with he.Collection.create(tmp_path / "local", DIM, quantizer="local_search") as docs:
        with pytest.raises(ValueError, match="k must be at most 0"):
            docs.calibrate(k=1)
        with pytest.raises(ValueError, match="k must be at most 0"):
            docs.calibrate(queries=QUERIES, k=1)
        docs.append(ROWS)
        with pytest.raises(ValueError, match="method must be 'asymmetric' with the quantizer"):
            docs.calibrate(method="hamming")


def test_smallest_number_by_hand():
    candidates = np.array([[3, 1, 2, 0], [0, 1, 2, 3]])
    truth = np.array([[1, 3], [3, 0]])
    for target, n, value in ((0.1, 2, 0.75), (0.75, 2, 0.75), (0.76, 4, 1.0), (1.0, 4, 1.0)):
        found, estimate = smallest_number(candidates, truth, target)
        assert (found, estimate.value) == (n, value)
    with pytest.raises(
        ValueError, match=r"at most what can be reached: 0.7500 with 1.5 candidates a result"
    ):
        smallest_number(candidates[:, :3], truth, 0.8)


def test_every_number_of_candidates_has_an_oversample():
    """29 / 7 * 7 is above 29 in floating point."""
    for k in (1, 3, 7, 10, 49, 100):
        for n in range(k, 40 * k):
            oversample = oversample_of(n, k)
            assert oversample >= 1
            assert int(np.ceil(k * oversample)) == n


# Forecasts, on queries that nothing was calibrated on.


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """5,000 rows in clusters, by name of their quantiser."""
    folder = tmp_path_factory.mktemp("clustered")
    rows = clustered(CLUSTERED_ROWS, 0)
    made = {}
    for quantizer in (
        ITQQuantizer(n_iterations=5),
        RaBitQuantizer(n_iterations=5),
        LocalSearchQuantizer(n_iterations=2, n_kicks=2),
    ):
        made[quantizer.kind] = he.Collection.create(
            folder / quantizer.kind, DIM, vectors="float32", quantizer=quantizer
        )
        made[quantizer.kind].append(rows)
    yield made, rows
    for docs in made.values():
        docs.close()


@pytest.mark.parametrize("name", ["itq", "rabitq"])
def test_the_recall_that_is_stated_is_the_recall_of_other_queries(name, large):
    made, rows = large
    docs = made[name]
    stated = docs.calibrate(0.95, clustered(1_000, 1), k=10)
    queries = clustered(20 * 500, 2)
    hits = docs.search(queries, 10)
    truth = true_best(queries, rows, 10)
    measured = [
        recall(hits.ids[first : first + 500], truth[first : first + 500])
        for first in range(0, len(queries), 500)
    ]
    errors = np.abs(np.array(measured) - stated.recall)
    assert (errors <= 0.01).mean() >= 0.9, errors
    assert abs(np.mean(measured) - stated.recall) < 0.01
    assert stated.low < np.mean(measured) < stated.high


# How sure a search is.


@pytest.mark.parametrize("name", ["rabitq", "local_search"])
def test_certainty(name, large):
    """The more candidates the surer, and who is sure is right."""
    made, rows = large
    queries = clustered(300, 3)
    truth = true_best(queries, rows, 10)
    means, n_sure, n_right = [], 0, 0
    for oversample in (1, 4, 12, 20, 24, 32, 64, 500):
        hits = made[name].search(queries, 10, oversample=oversample, certify=True)
        assert hits.confidence.shape == (300,)
        assert hits.confidence.dtype == np.float64
        assert ((hits.confidence >= 0) & (hits.confidence <= 1)).all()
        means.append(hits.confidence.mean())
        sure = hits.confidence >= 0.99
        complete = np.array(
            [{*a} == {*b} for a, b in zip(hits.ids.tolist(), truth.tolist(), strict=True)]
        )
        n_sure += sure.sum()
        n_right += complete[sure].sum()
    assert np.all(np.diff(means) >= 0), means
    assert means[0] < 0.5
    assert means[-1] == 1
    assert n_sure > 600  # beside those for which everything was a candidate
    assert n_right / n_sure >= 0.99


@pytest.mark.parametrize("name", ["rabitq", "local_search"])
def test_until_it_is_certain(name, large):
    docs = large[0][name]
    calibrated = docs.info()["search"]
    begin = calibrated["oversample"] if calibrated else 4.0
    queries = clustered(60, 4)
    queries[0] = -1  # far from everything
    hits = docs.search(queries, 3, oversample="auto")
    remaining = np.ones(60, np.bool_)
    oversample = begin
    while remaining.any():
        oversample = min(oversample, 256)
        again = docs.search(queries, 3, oversample=oversample, certify=True)
        done = remaining & ((again.confidence >= 0.99) | (oversample == 256))
        for found, wanted in zip((*hits, hits.confidence), (*again, again.confidence), strict=True):
            np.testing.assert_array_equal(found[done], wanted[done])
        remaining &= ~done
        oversample *= 2
    assert oversample > 4 * begin
    ids, scores, distances = hits
    assert ids.shape == scores.shape == distances.shape == (60, 3)


def test_auto_begins_with_what_was_calibrated(large, monkeypatch):
    docs = large[0]["rabitq"]
    used = []
    search = view_module.View._search

    def counted(self, task, queries, oversample, *rest, **named):
        used.append((len(queries), oversample))
        return search(self, task, queries, oversample, *rest, **named)

    monkeypatch.setattr(view_module.View, "_search", counted)
    set_search(docs, None)
    docs.search(clustered(20, 5), 10, oversample="auto")
    assert [oversample for _, oversample in used] == [4 * 2**i for i in range(len(used))]
    assert [n for n, _ in used] == sorted((n for n, _ in used), reverse=True)
    used.clear()
    found = docs.calibrate(0.95, clustered(200, 1), k=10, max_oversample=256)
    docs.search(clustered(20, 5), 10, oversample="auto")
    assert used[0] == (20, found.oversample)
    set_search(docs, None)


def test_all_rows_are_certain(tmp_path):
    for name in ("rabitq", "local_search"):
        with small(tmp_path / name, quantizer=name) as docs:
            for options in ({"oversample": 150}, {"oversample": 1, "where": np.arange(10)}):
                hits = docs.search(QUERIES, 10, certify=True, **options)
                assert (hits.confidence == 1).all()
            hits = docs.search(QUERIES, 10, oversample=2, certify=True)
            assert (hits.confidence < 1).any()
            nothing = docs.search(QUERIES[:0], 10, certify=True)
            assert (nothing.ids.shape, nothing.confidence.shape) == ((0, 10), (0,))
            nobody = docs.search(QUERIES, 10, certify=True, where=[])
            assert (nobody.ids.shape, nobody.confidence.tolist()) == ((30, 0), [1.0] * 30)


def test_confidence_comes_only_where_it_is_asked_for(tmp_path):
    with small(tmp_path / "c", quantizer="rabitq") as docs:
        assert docs.search(QUERIES, 3).confidence is None
        assert docs.search(QUERIES, 3, rerank=False).confidence is None
        hits = docs.search(QUERIES, 3, certify=True)
        same_hits(hits, docs.search(QUERIES, 3))
        assert len(hits) == 3
        ids, scores, distances = hits
        assert ids is hits.ids
        assert scores is hits.scores
        assert distances is hits.distances
        auto = docs.search(QUERIES, 3, oversample="auto")
        assert auto.confidence.shape == (30,)
        assert docs.search(QUERIES, 3).confidence is None


def test_long_text_ids_stay_whole_while_searching_again(tmp_path):
    quantizer = RaBitQuantizer(n_iterations=3).fit(ROWS)
    found, names = [], None
    for i in range(2):
        with he.Collection.create(tmp_path / str(i), DIM, quantizer=quantizer) as docs:
            docs.append(ROWS, ids=names)
            set_search(docs, {"method": "asymmetric", "oversample": 1.0})
            found.append((docs.search(QUERIES, 1), docs.search(QUERIES, 1, oversample="auto")))
        at_first = np.isin(np.arange(150), found[0][0].ids)
        names = [f"{row}" if short else f"{row}" + 30 * "é" for row, short in enumerate(at_first)]
    (_, rows), (first, auto) = found
    assert np.char.str_len(first.ids).max() <= 3
    np.testing.assert_array_equal(auto.ids, np.array(names)[rows.ids])
    assert np.char.str_len(auto.ids).max() > 30


@pytest.mark.parametrize("options", [{"certify": True}, {"oversample": "auto"}])
def test_what_cannot_be_certified(options, tmp_path):
    needs_vectors = "certify needs stored vectors and rerank=True"
    needs_factors = "certify needs a quantizer that corrects scores, 'rabitq' or 'local_search'"
    for i, (created, searched, message) in enumerate(
        (
            ({"quantizer": "rabitq", "vectors": None}, {}, needs_vectors),
            ({"quantizer": "rabitq"}, {"rerank": False}, needs_vectors),
            ({"quantizer": "rabitq"}, {"method": "hamming"}, needs_factors),
            ({"quantizer": "itq"}, {}, needs_factors),
            ({"quantizer": "sign"}, {}, needs_factors),
        )
    ):
        with he.Collection.create(tmp_path / str(i), DIM, **created) as docs:
            docs.append(ROWS)
            with pytest.raises(ValueError, match=message):
                docs.search(QUERIES, **options, **searched)


def test_confidence_by_hand():
    """Ten candidates whose estimates are .1 off, to and fro; the 2nd best is .3 above the last."""
    scores = np.linspace(0.9, 0.0, 10, dtype=np.float32)[None]
    estimates = scores + np.tile([0.1, -0.1], 5).astype(np.float32)
    gap = 0.8 - estimates.min()
    shrunk = (1 - 2 / 90 - 2.326 * np.sqrt(2 / 90)) ** 3
    wanted = 1 - 50 * np.exp(-(gap**2) / (2 * 0.01 / shrunk))
    np.testing.assert_allclose(confidence_of(scores, estimates, 2, 50), [wanted], rtol=1e-5)
    assert confidence_of(scores, estimates, 2, 0) == 1
    assert confidence_of(scores, estimates, 2, 10**9) == 0
    assert confidence_of(scores, estimates + 1, 2, 5) == 0
    fewer = [confidence_of(scores, estimates, k, 50)[0] for k in (1, 2, 3, 4)]
    assert fewer == sorted(fewer, reverse=True)
    exact = confidence_of(scores, scores, 2, 10**6)  # estimates without an error
    assert exact == 1
