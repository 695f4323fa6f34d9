"""Collections of every quantiser: the same hits however stored and read, and those of an oracle."""

import errno
import functools
import itertools
import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import pytest
from test_collection import meaning, same_hits

import hamming_engine as he
from hamming_engine import collection as collection_module
from hamming_engine.quantize import (
    ITQQuantizer,
    LocalSearchQuantizer,
    MatryoshkaQuantizer,
    NotFittedError,
    RaBitQuantizer,
    RotationQuantizer,
    SignQuantizer,
    ThresholdQuantizer,
    by_name,
)
from hamming_engine.store import files, manifest
from hamming_engine.store.errors import DamagedError, FormatError, StoreError
from hamming_engine.store.store import Store

NAMES = ["sign", "threshold", "rotation", "itq", "rabitq", "local_search", "simhash"]
LEARNING = ["threshold", "itq", "rabitq", "local_search"]
METRICS = ["cosine", "dot", "l2"]
KINDS = ["float16", "int8", None]
DIM = 40
SMALL = 4_000  # bytes of memory: three quarters hold few codes and the others are streamed


def data(n, seed=0, dim=DIM):
    """Vectors off the origin, with duplicates and one that is all zeros."""
    rng = np.random.default_rng(seed)
    vectors = (rng.standard_normal((n, dim)) + 0.4).astype(np.float32)
    if n > 5:
        vectors[n // 2 : n // 2 + 3] = vectors[0]
        vectors[5] = 0
    return vectors


ROWS, QUERIES = data(400), data(7, seed=1)
MASK = np.arange(len(ROWS)) % 3 != 1


@functools.cache
def fitted(name, metric="cosine"):
    quick = {
        "itq": ITQQuantizer(n_iterations=3),
        "rabitq": RaBitQuantizer(n_iterations=3),
        "local_search": LocalSearchQuantizer(n_iterations=2),
    }
    return quick.get(name, by_name(name)).fit(ROWS, metric=metric)


@functools.cache
def order_of(quantizer, method):
    """All rows in the order in which a search by codes takes them."""
    codes, factors = quantizer.encode_rows(ROWS)
    if method == "hamming":
        keys = oracle.hamming(quantizer.encode(QUERIES), codes)
    else:
        weights = quantizer.weights(QUERIES).weights
        keys = oracle.ranks(oracle.weighted_scores(weights, codes, factors))
    return oracle.nearest(keys, len(ROWS))[1].tolist()


@functools.cache
def exact_scores(kind, metric):
    return oracle.scores(QUERIES, meaning(ROWS, kind), metric)


@functools.cache
def code_scores(quantizer):
    """All scores by codes, in float64: f * (w . s) + g + constants."""
    codes, factors = quantizer.encode_rows(ROWS)
    weights, constants = quantizer.weights(QUERIES)
    bits = np.unpackbits(codes.view(np.uint8), axis=1, count=quantizer.n_bits)
    dots = weights.astype(np.float64) @ (2.0 * bits.T - 1)
    f, g = factors.astype(np.float64).T if len(factors) else (1.0, 0.0)
    return f * dots + g + constants[:, None]


@functools.cache
def distances(quantizer, method):
    """From the codes of the queries, or from the signs of their weights."""
    if method == "hamming":
        codes = quantizer.encode(QUERIES)
    else:
        codes = oracle.pack(quantizer.weights(QUERIES).weights)
    return oracle.hamming(codes, quantizer.encode(ROWS))


def check_hits(hits, quantizer, scores, method, n_candidates, allowed=None):
    """Hits are the best of the candidates, by (score descending, row)."""
    all_distances = distances(quantizer, method)
    rounded = scores.astype(np.float32)
    for q, order in enumerate(order_of(quantizer, method)):
        rows = [row for row in order if allowed is None or allowed[row]][:n_candidates]
        best = sorted(rows, key=lambda row, q=q: (-rounded[q, row], row))[: hits.ids.shape[1]]
        assert hits.ids[q].tolist() == best
        assert hits.distances[q].tolist() == all_distances[q, best].tolist()
        np.testing.assert_allclose(hits.scores[q], scores[q, best], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", NAMES)
def test_hits_are_those_of_the_oracle_wherever_the_codes_are(
    name, metric, kind, tmp_path, monkeypatch
):
    monkeypatch.setattr(collection_module, "MIN_MEMORY_BYTES", 1)
    quantizer = fitted(name, metric)
    path = tmp_path / "c"
    methods = ["asymmetric", "hamming"] if quantizer.hamming else ["asymmetric"]
    wanted = {}
    with he.Collection.create(path, DIM, vectors=kind, metric=metric, quantizer=quantizer) as docs:
        docs.append(ROWS)
        scores = code_scores(quantizer) if kind is None else exact_scores(kind, metric)
        for method in methods:
            wanted[method] = docs.search(QUERIES, 6, method=method, oversample=2.5)
            check_hits(wanted[method], quantizer, scores, method, 15)
            masked = docs.search(QUERIES, 6, method=method, oversample=2.5, where=MASK)
            check_hits(masked, quantizer, scores, method, 15, MASK)
            by_ids = np.flatnonzero(MASK)
            again = docs.search(QUERIES, 6, method=method, oversample=2.5, where=by_ids)
            same_hits(again, masked)
        same_hits(docs.search(QUERIES, 6, oversample=2.5), wanted["asymmetric"])
        if not quantizer.hamming:
            with pytest.raises(ValueError, match="method must be 'asymmetric' with the quantizer"):
                docs.search(QUERIES, method="hamming")
        docs.export(tmp_path / "one.h5")
    for source in (path, tmp_path / "one.h5"):
        for memory_bytes in (None, SMALL):
            with he.Collection.open(source, memory_bytes=memory_bytes) as docs:
                for method in methods:
                    for threads in (1, 2):
                        found = docs.search(
                            QUERIES, 6, method=method, oversample=2.5, threads=threads
                        )
                        same_hits(found, wanted[method])
                    found = docs.search(QUERIES, 6, method=method, oversample=2.5, where=MASK)
                    check_hits(found, quantizer, scores, method, 15, MASK)
                info = docs.info()
                streamed = info["memory_codes_bytes"] < info["codes_bytes"]
                assert streamed == (memory_bytes is not None)


@pytest.mark.parametrize("kind", ["float32", None])
@pytest.mark.parametrize("name", NAMES)
def test_hits_are_the_same_however_rows_were_appended(name, kind, tmp_path):
    quantizer = fitted(name)
    wanted = None
    for i, cuts in enumerate(([0, 400], [0, 150, 151, 400])):
        with he.Collection.create(
            tmp_path / str(i), DIM, vectors=kind, quantizer=quantizer
        ) as docs:
            for begin, end in itertools.pairwise(cuts):
                docs.append(ROWS[begin:end])
            hits = docs.search(QUERIES, 9)
            wanted = wanted or hits
            same_hits(hits, wanted)
    with he.Collection.create(tmp_path / "blocks", DIM, vectors=kind, quantizer=quantizer) as docs:
        docs.append(ROWS[begin : begin + 100] for begin in range(0, 400, 100))
        same_hits(docs.search(QUERIES, 9), wanted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["float16", None])
def test_without_rerank_the_codes_alone_order_them(name, kind, tmp_path):
    quantizer = fitted(name, "dot")
    with he.Collection.create(
        tmp_path / "c", DIM, vectors=kind, metric="dot", quantizer=quantizer
    ) as docs:
        docs.append(ROWS)
        hits = docs.search(QUERIES, 8, rerank=False)
        check_hits(hits, quantizer, code_scores(quantizer), "asymmetric", 8)
        if quantizer.hamming:
            hits = docs.search(QUERIES, 8, method="hamming", rerank=False)
            scores = 1 - 2 * distances(quantizer, "hamming") / quantizer.n_bits
            check_hits(hits, quantizer, scores, "hamming", 8)


def test_the_smallest_memory_streams(tmp_path):
    """For real: codes and factors of 420,000 rows take 6.7 MB, and 6 MiB are there for them."""
    rng = np.random.default_rng(0)
    rows = np.tile(rng.standard_normal((7_000, 64)).astype(np.float32), (60, 1))
    quantizer = RaBitQuantizer(n_iterations=2).fit(rows[:2_000])
    mask = rng.random(len(rows)) < 0.5
    queries = rows[:5] + 0.3
    with he.Collection.create(
        tmp_path / "c", 64, vectors=None, quantizer=quantizer, memory_bytes=64 << 20
    ) as docs:
        docs.append(rows)
        wanted = [docs.search(queries, 70, where=where) for where in (None, mask)]
        assert docs.info()["memory_codes_bytes"] >= docs.info()["codes_bytes"]
    with he.Collection.open(tmp_path / "c", memory_bytes=8 << 20) as docs:
        for threads in (1, 2):
            for where, hits in zip((None, mask), wanted, strict=True):
                same_hits(docs.search(queries, 70, where=where, threads=threads), hits)
        kept = docs.info()["memory_codes_bytes"]
        assert 0 < kept < 6 << 20 < docs.info()["codes_bytes"] + docs.info()["factors_bytes"]


@pytest.mark.parametrize("inner", [SignQuantizer(), ITQQuantizer(), RaBitQuantizer()])
def test_a_quantizer_of_the_first_dimensions(inner, tmp_path):
    with he.Collection.create(
        tmp_path / "c", DIM, quantizer=MatryoshkaQuantizer(inner, 24)
    ) as docs:
        docs.append(ROWS)
        hits = docs.search(QUERIES, 6, oversample=2.5)
        check_hits(
            hits,
            docs.quantizer,
            exact_scores("float16", "cosine"),
            "asymmetric",
            15,
        )
        docs.export(tmp_path / "c.h5")
    for path in (tmp_path / "c", tmp_path / "c.h5"):
        with he.Collection.open(path) as docs:
            same_hits(docs.search(QUERIES, 6, oversample=2.5), hits)


# Fitting at the first append.


def arrays_equal(one, other):
    assert one.to_json() == other.to_json()
    assert one.arrays().keys() == other.arrays().keys()
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, other.arrays()[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_first_append_fits(name, tmp_path):
    given = by_name(name)
    with he.Collection.create(tmp_path / "c", DIM, quantizer=given) as docs:
        assert docs.quantizer.is_fitted == (name == "sign")
        docs.append(ROWS[:300])
        arrays_equal(docs.quantizer, by_name(name).fit(ROWS[:300]))
        first = docs.quantizer
        docs.append(ROWS[300:] * 3 + 1)
        assert docs.quantizer is first
        hits = docs.search(QUERIES, 6)
        docs.export(tmp_path / "c.h5")
    assert not given.is_fitted
    assert not given.arrays()
    for path in (tmp_path / "c", tmp_path / "c.h5"):
        with he.Collection.open(path) as docs:
            arrays_equal(docs.quantizer, first)
            same_hits(docs.search(QUERIES, 6), hits)
    with he.Collection.create(tmp_path / "beforehand", DIM, quantizer=first) as docs:
        docs.append(ROWS[:300])
        docs.append(ROWS[300:] * 3 + 1)
        same_hits(docs.search(QUERIES, 6), hits)


@pytest.mark.parametrize("metric", METRICS)
def test_it_is_fitted_by_the_metric_of_the_collection(metric, tmp_path):
    with he.Collection.create(tmp_path / "c", DIM, metric=metric, quantizer="rabitq") as docs:
        docs.append(ROWS)
        assert docs.quantizer.metric == metric
        arrays_equal(docs.quantizer, by_name("rabitq").fit(ROWS, metric=metric))


@pytest.mark.parametrize("name", NAMES)
def test_without_rows_there_are_no_hits(name, tmp_path):
    with he.Collection.create(tmp_path / "c", DIM, quantizer=name) as docs:
        for found in (
            docs.search(QUERIES),
            docs.search(QUERIES, rerank=False),
            docs.search(QUERIES, where=[]),
            docs.search(QUERIES[:0]),
        ):
            assert {array.shape for array in found} <= {(7, 0), (0, 0)}
        docs.append(ROWS[:0])
        assert len(docs) == 0
        docs.export(tmp_path / "c.h5")
    for path in (tmp_path / "c", tmp_path / "c.h5"):
        with he.Collection.open(path) as docs:
            assert docs.search(QUERIES).ids.shape == (7, 0)
    with he.Collection.open(tmp_path / "c", "a") as docs:
        docs.append(ROWS)
        assert docs.search(ROWS[:3], 1).ids[:, 0].tolist() == [0, 1, 2]


def test_a_certified_search_without_rows(tmp_path):
    with he.Collection.create(tmp_path / "c", DIM, quantizer="rabitq") as docs:
        for options in ({"certify": True}, {"oversample": "auto"}):
            hits = docs.search(QUERIES, **options)
            assert hits.ids.shape == (7, 0)
            assert hits.confidence.tolist() == [1.0] * 7


@pytest.mark.parametrize("name", NAMES)
def test_few_rows_to_be_fitted_to_are_warned_of(name, tmp_path):
    with he.Collection.create(tmp_path / "c", DIM, quantizer=name) as docs:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            docs.append(ROWS[10:11])
            docs.append(ROWS[11:40])
        messages = [str(warning.message) for warning in caught]
        assert len(messages) == (name in LEARNING)
        if messages:
            assert messages[0].startswith(
                "the quantizer is fitted to 1 rows of 40 dimensions, which is few"
            )
            assert caught[0].category is UserWarning
            assert caught[0].filename == __file__
        assert docs.search(ROWS[10:40], 1, oversample=30).ids[:, 0].tolist() == [*range(30)]
    with (
        he.Collection.create(tmp_path / "enough", DIM, quantizer=name) as docs,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        docs.append(ROWS[:DIM])


def test_few_rows_by_pytest(tmp_path):
    with (
        he.Collection.create(tmp_path / "c", DIM, quantizer="itq") as docs,
        pytest.warns(UserWarning, match="append more at first, or fit it beforehand"),
    ):
        docs.append(iter([ROWS[:10], ROWS[10:20]]))


def no_space(*_arguments):
    raise OSError(errno.ENOSPC, "no space")


def test_a_first_append_that_fails_leaves_it_as_it_was(tmp_path, monkeypatch):
    """Empty, not fitted, and ready for another."""
    nan, large = ROWS.copy(), ROWS.copy()
    nan[77, 3] = np.nan
    large[77, 3] = 1e6

    def broken():
        yield ROWS[:100]
        raise RuntimeError("out of blocks")

    with he.Collection.create(
        tmp_path / "c", DIM, quantizer=ITQQuantizer(sample_rows=50, n_iterations=3)
    ) as docs:
        before = set(os.listdir(tmp_path / "c"))

        def unchanged():
            assert (len(docs), docs.quantizer.is_fitted) == (0, False)
            assert docs.search(QUERIES).ids.shape == (7, 0)
            assert set(os.listdir(tmp_path / "c")) == before

        for rows, error, message in (
            (nan, ValueError, "embeddings row 77 holds NaN or infinity"),
            (large, ValueError, "embeddings row 77 holds 1000000.0, which does not fit"),
            (broken(), RuntimeError, "out of blocks"),
            (iter([ROWS[:10], nan]), ValueError, "embeddings row 87 holds NaN or infinity"),
        ):
            with pytest.raises(error, match=message):
                docs.append(rows)
            unchanged()
        with pytest.raises(ValueError, match="ids must be distinct, 3 comes twice"):
            docs.append(ROWS, ids=[3] * 400)
        unchanged()
        for name in ("create", "reserve", "write_at", "sync"):
            with monkeypatch.context() as patch:
                patch.setattr(files, name, no_space)
                with pytest.raises(OSError, match="no space"):
                    docs.append(ROWS)
            unchanged()
        docs.append(ROWS)
        assert docs.quantizer.is_fitted
        assert docs.search(ROWS[9], 1).ids[0, 0] == 9


@pytest.mark.parametrize("row", [0, 77, 399])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_no_quantizer_can_be_fitted_to_is_named_as_it_came(row, kind, tmp_path):
    for name in NAMES:
        rows = ROWS.copy()
        rows[row, 3] = np.inf
        with he.Collection.create(tmp_path / name, DIM, vectors=kind, quantizer=name) as docs:
            with pytest.raises(ValueError, match=f"embeddings row {row} holds NaN or infinity"):
                docs.append(rows)
            assert docs.quantizer.is_fitted == (name == "sign")


def test_a_first_commit_that_fails(tmp_path, monkeypatch):
    with he.Collection.create(tmp_path / "c", DIM, quantizer="itq") as docs:
        with monkeypatch.context() as patch:
            patch.setattr(files, "publish", no_space)
            with pytest.raises(OSError, match="no space"):
                docs.append(ROWS)
        assert (len(docs), docs.quantizer.is_fitted) == (0, False)
        with pytest.raises(StoreError, match="an earlier commit failed"):
            docs.append(ROWS)
    with he.Collection.open(tmp_path / "c", "a") as docs:
        assert (len(docs), docs.quantizer.is_fitted) == (0, False)
        docs.append(ROWS)
        assert docs.search(ROWS[9], 1).ids[0, 0] == 9


def test_no_search_sees_the_first_rows_without_their_quantizer(tmp_path, monkeypatch):
    """Another thread may search between the commit and the end of the append."""
    append = Store.append
    found = []

    with he.Collection.create(tmp_path / "c", DIM, quantizer="itq") as docs:

        def slow(store, *change):
            append(store, *change)
            with ThreadPoolExecutor(1) as pool:
                found.append(pool.submit(docs.search, QUERIES, 6).result())

        monkeypatch.setattr(Store, "append", slow)
        docs.append(ROWS)
        assert found[0].ids.shape == (7, 0)
        assert docs.search(QUERIES, 6).ids.shape == (7, 6)


# What is refused.


def refused(tmp_path, error, message, **options):
    with pytest.raises(error, match=message):
        he.Collection.create(tmp_path / "c", **{"dim": DIM, **options})
    assert not os.listdir(tmp_path)


class Unknown(RotationQuantizer):
    kind = "unknown"


def test_quantizers_that_do_not_go_with_a_collection(tmp_path):
    for quantizer, options, error, message in (
        ("pq", {}, ValueError, "quantizer must be one of 'sign', 'threshold', .* got 'pq'"),
        (None, {}, TypeError, "quantizer must be a Quantizer or the name of one, got None"),
        (ITQQuantizer, {}, TypeError, "quantizer must be a Quantizer or the name of one, got <cl"),
        (fitted("itq"), {"dim": 41}, ValueError, "quantizer is fitted to 40 dimensions and metric"),
        (fitted("itq"), {"metric": "dot"}, ValueError, "the collection has 40 and 'dot'"),
        (SignQuantizer(41), {}, ValueError, "quantizer is fitted to 41 dimensions"),
        (ITQQuantizer(50), {}, ValueError, "n_bits must be at most the 40 dimensions, got 50"),
        (MatryoshkaQuantizer(ITQQuantizer(), 41), {}, ValueError, "kept_dim must be at most the 4"),
        (Unknown(), {}, ValueError, "no quantizer: its kind is 'unknown'"),
    ):
        refused(tmp_path, error, message, quantizer=quantizer, **options)


def test_a_sign_quantizer_of_any_kind_takes_every_metric(tmp_path):
    for i, given in enumerate((SignQuantizer(), SignQuantizer(DIM), "sign")):
        for metric in METRICS:
            with he.Collection.create(
                tmp_path / f"{i}{metric}", DIM, metric=metric, quantizer=given
            ) as docs:
                assert docs.quantizer.metric == metric
    assert SignQuantizer().metric == "cosine"


def test_what_a_quantizer_refuses_is_refused_by_name(tmp_path):
    with he.Collection.create(
        tmp_path / "c", DIM, metric="dot", vectors="float32", quantizer="rabitq"
    ) as docs:
        docs.append(ROWS)
        with pytest.raises(ValueError, match="queries row 1 holds NaN or infinity"):
            docs.search(np.stack([QUERIES[0], np.full(DIM, np.nan)]))
        with pytest.raises(ValueError, match=r"queries .*too large"):
            docs.search(np.full(DIM, 1e300))
        with pytest.raises(ValueError, match=r"embeddings row 1 .* too large"):
            docs.append(np.stack([ROWS[0], np.full(DIM, 3e38, np.float32)]))
        assert len(docs) == 400
    with pytest.raises(NotFittedError):
        by_name("rabitq").encode(ROWS)


@pytest.mark.parametrize("name", ["threshold", "itq", "rabitq"])
def test_queries_are_called_by_their_name(name, tmp_path):
    """Weights of the cosine have any size of query, codes are made of float32."""
    with he.Collection.create(tmp_path / "c", DIM, quantizer=fitted(name)) as docs:
        docs.append(ROWS)
        queries = QUERIES[:2].astype(np.float64) * [[1], [1e170]]
        np.testing.assert_array_equal(docs.search(queries).ids, docs.search(QUERIES[:2]).ids)
        with pytest.raises(ValueError, match="queries row 1 holds values that do not fit into fl"):
            docs.search(queries, method="hamming")


# Damage.


@pytest.mark.parametrize("kind", ["float16", None])
@pytest.mark.parametrize("method", ["asymmetric", "hamming"])
def test_damaged_factors_are_reported_by_every_search(kind, method, tmp_path, monkeypatch):
    monkeypatch.setattr(collection_module, "MIN_MEMORY_BYTES", 1)
    with he.Collection.create(
        tmp_path / "c", DIM, vectors=kind, quantizer=fitted("rabitq")
    ) as docs:
        docs.append(ROWS)
        segment = docs._store.snapshot.parts[0].segment
        docs.export(tmp_path / "c.h5")
    exported = he.Collection.open(tmp_path / "c.h5")._store.snapshot.parts[0].segment
    for path, damaged in ((tmp_path / "c", segment), (tmp_path / "c.h5", exported)):
        content = bytearray(damaged.path.read_bytes())
        content[damaged._arrays["factors"].offset + 8 * 50] ^= 1
        damaged.path.write_bytes(content)
        for memory_bytes in (None, SMALL):
            with (
                he.Collection.open(path, memory_bytes=memory_bytes) as docs,
                pytest.raises(DamagedError, match="/factors rows 0 to 399 do not match"),
            ):
                docs.search(QUERIES, method=method)


@pytest.mark.parametrize("name", ["threshold", "rotation", "itq", "rabitq", "local_search"])
def test_damaged_arrays_of_a_quantizer_are_reported_on_opening(name, tmp_path):
    with he.Collection.create(tmp_path / "c", DIM, quantizer=fitted(name)) as docs:
        docs.append(ROWS)
        quantizer = docs._store.snapshot.quantizer
        docs.export(tmp_path / "c.h5")
    exported = he.Collection.open(tmp_path / "c.h5")._store.snapshot.quantizer
    for path, file in ((tmp_path / "c", quantizer), (tmp_path / "c.h5", exported)):
        whole = file.path.read_bytes()
        names = [name for name in file.names if name.startswith("quantizer/")]
        assert len(names) == len(fitted(name).arrays())
        for name_ in names:
            content = bytearray(whole)
            content[file._arrays[name_].offset + 5] ^= 1
            file.path.write_bytes(content)
            with pytest.raises(DamagedError, match=f"/{name_} rows .* do not match"):
                he.Collection.open(path)
        file.path.write_bytes(whole)
        he.Collection.open(path).close()


def rewritten(path, **changes):
    """Another newest manifest, complete with its SHA-256."""
    file = manifest.path_of(path, max(manifest.generations(path)))
    body = json.loads(file.read_text()) | changes
    del body["sha256"]
    file.write_text(json.dumps(body | {"sha256": manifest._digest(body)}))


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrated") / "c"
    with he.Collection.create(path, DIM, quantizer=fitted("local_search")) as docs:
        docs.append(ROWS)
    return path


GOOD = {"method": "asymmetric", "oversample": 2.0}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (GOOD | {"oversample": "4"}, "search: oversample must be a number, got '4'"),
        (GOOD | {"oversample": "auto"}, "search: oversample must be a number, got 'auto'"),
        (GOOD | {"oversample": None}, "search: oversample must be a number, got None"),
        (GOOD | {"oversample": [4]}, r"search: oversample must be a number, got \[4\]"),
        (GOOD | {"oversample": True}, "search: oversample must be a number, got True"),
        (GOOD | {"oversample": -3}, "search: oversample must be at least 1 .* got -3"),
        (GOOD | {"oversample": 0.5}, "search: oversample must be at least 1 .* got 0.5"),
        (GOOD | {"oversample": 10**300}, "search: oversample must be at least 1 .* got 1000"),
        (GOOD | {"oversample": float("nan")}, "search is no JSON object"),
        (GOOD | {"oversample": float("inf")}, "search is no JSON object"),
        ({"method": "asymmetric"}, "search: oversample must be a number, got None"),
        (GOOD | {"method": "fast"}, "search: method must be one of .* got 'fast'"),
        (GOOD | {"method": ["hamming"]}, r"search: method must be one of .* got \['hamming'\]"),
        (GOOD | {"method": {}}, "search: method must be one of .* got {}"),
        (GOOD | {"method": "hamming"}, "search: method must be 'asymmetric' with the quantizer"),
        ([GOOD], "search is no JSON object"),
        ("asymmetric", "search is no JSON object"),
    ],
)
def test_hostile_settings_of_searches_are_not_used(search, message, calibrated):
    rewritten(calibrated, search=search)
    with pytest.raises(FormatError, match=f"{calibrated.name}.*{message}"):
        he.Collection.open(calibrated).search(QUERIES)


def test_settings_of_searches_that_say_nothing_are_none(calibrated):
    rewritten(calibrated, search=None)
    wanted = he.Collection.open(calibrated).search(QUERIES)
    for search in ({}, {"oversample": 3.5}, {"method": None, "oversample": 2}, {"later": [1]}):
        rewritten(calibrated, search=search)
        same_hits(he.Collection.open(calibrated).search(QUERIES), wanted)


def test_schemas_whose_quantizer_is_another_are_refused(tmp_path):
    with he.Collection.create(tmp_path / "c", DIM, quantizer=fitted("itq")) as docs:
        header = docs._store.snapshot.schema.to_json()
    stored = header["quantizer"]
    for changes, message in (
        ({"quantizer": stored | {"kind": "pq"}}, "quantizer: .*its kind is 'pq'"),
        ({"quantizer": stored | {"dim": 41}}, "quantizer: "),
        ({"quantizer": stored | {"metric": "dot"}}, "metric of the quantizer: dot, the schema"),
        ({"quantizer": stored | {"n_bits": 39}}, "quantizer: "),
        ({"quantizer": {"kind": "itq"}}, "quantizer: "),
        ({"factors": 2}, "factors of the quantizer: 0, the schema says 2"),
        ({"n_bits": 39}, "bits of the quantizer: 40, the schema says 39"),
    ):
        rewritten(tmp_path / "c", schema=header | changes)
        with pytest.raises(FormatError, match=message):
            he.Collection.open(tmp_path / "c")
    rewritten(tmp_path / "c", schema=header)
    he.Collection.open(tmp_path / "c").close()


def test_info_says_what_the_quantizer_takes(tmp_path):
    with he.Collection.create(tmp_path / "c", DIM, quantizer="rabitq") as docs:
        assert docs.info()["quantizer"] == "rabitq"
        assert (docs.info()["quantizer_bytes"], docs.info()["factors_bytes"]) == (0, 0)
        docs.append(ROWS)
        assert docs.info()["quantizer_bytes"] == 4 * (DIM + DIM * DIM)
        assert docs.info()["factors_bytes"] == 400 * 8
        assert docs.info()["search"] is None
    with he.Collection.create(tmp_path / "t", DIM, quantizer=ThresholdQuantizer("median")) as docs:
        docs.append(ROWS)
        assert docs.info()["quantizer_bytes"] == 4 * 2 * DIM
