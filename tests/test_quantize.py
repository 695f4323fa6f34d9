"""Quantisers: what NumPy says in float64, the same whatever comes along, and back from a file."""

import contextlib
import functools
import io
import json
import math
import os
import tracemalloc
import zipfile

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import given

from hamming_engine import quantize
from hamming_engine.kernels.launch import usable_threads
from hamming_engine.kernels.project import HADAMARD
from hamming_engine.quantize import (
    Int8Quantizer,
    ITQQuantizer,
    LocalSearchQuantizer,
    MatryoshkaQuantizer,
    NotFittedError,
    RaBitQuantizer,
    RotationQuantizer,
    SignQuantizer,
    ThresholdQuantizer,
    projections,
    truncate,
)
from hamming_engine.quantize.base import finite_sample
from hamming_engine.quantize.local_search import _Search

JIT_OFF = os.environ.get("NUMBA_DISABLE_JIT") == "1"
DIM, N = (20, 30) if JIT_OFF else (37, 400)
FEW = {"n_iterations": 1, "n_kicks": 1} if JIT_OFF else {"n_iterations": 3}
METRICS = ["cosine", "dot", "l2"]

MAKE = {
    "sign": SignQuantizer,
    "mean": ThresholdQuantizer,
    "median": lambda: ThresholdQuantizer("median"),
    "rotation": RotationQuantizer,
    "hadamard": RotationQuantizer,
    "itq": ITQQuantizer,
    "itq to 11 bits": lambda: ITQQuantizer(11),
    "rabitq": RaBitQuantizer,
    "rabitq, random": lambda: RaBitQuantizer("random"),
    "local search": lambda: LocalSearchQuantizer(**FEW),
    "local search to 70 bits": lambda: LocalSearchQuantizer(70, **FEW),
    "matryoshka sign": lambda: MatryoshkaQuantizer(SignQuantizer(), 13),
    "matryoshka mean": lambda: MatryoshkaQuantizer(ThresholdQuantizer(), 13),
    "matryoshka local search": lambda: MatryoshkaQuantizer(LocalSearchQuantizer(17, **FEW), 13),
    "matryoshka twice": lambda: MatryoshkaQuantizer(MatryoshkaQuantizer(ITQQuantizer(7), 9), 13),
}
every_kind = pytest.mark.parametrize("name", MAKE)
every_metric = pytest.mark.parametrize("metric", METRICS)


def anisotropic(n, dim, seed=0):
    """Clusters, away from zero, with a few wide directions and many narrow ones; float32."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(99).standard_normal((dim, dim)))[0]
    scale = 1 / np.sqrt(1 + np.arange(dim))
    middles = np.random.default_rng(98).standard_normal((20, dim)) * scale
    rows = middles[rng.integers(0, 20, n)] + 0.7 * rng.standard_normal((n, dim)) * scale
    return ((rows + scale.mean()) @ turn).astype(np.float32)


@contextlib.contextmanager
def dense_up_to(name):
    """With "hadamard" the fast transform is for all dimensions."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "hadamard":
            patch.setattr(projections, "_MAX_DENSE_DIM", 1)
        yield


@functools.cache
def fitted(name, metric="cosine"):
    with dense_up_to(name):
        return MAKE[name]().fit(anisotropic(N, DIM), metric=metric)


def bits_of(codes, n_bits):
    return np.unpackbits(codes.view(np.uint8), axis=1, count=n_bits)


def lengths_one(rows):
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def as_metric(rows, metric):
    rows = np.asarray(rows, np.float64)
    return lengths_one(rows) if metric == "cosine" else rows


def walsh_hadamard(n):
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(n)


def hadamard_frame(signs):
    """The rotation as a matrix: four rounds of signs and a transform of one end."""
    dim = signs.shape[1]
    width = 2 ** int(math.log2(dim))
    whole = np.eye(dim)
    for turn, row in enumerate(signs):
        step = np.eye(dim)
        part = slice(0, width) if turn % 2 == 0 else slice(dim - width, dim)
        step[part, part] = walsh_hadamard(width)
        whole = step @ np.diag(row) @ whole
    return whole


class Plain:
    """Coordinates, and what codes stand for, of a quantiser, in float64."""

    def __init__(self, quantizer, name, metric):
        self.metric = metric
        self.cuts = []
        while isinstance(quantizer, MatryoshkaQuantizer):
            self.cuts.append(quantizer._kept_dim)
            quantizer = quantizer._inner
        self.quantizer = quantizer
        arrays = {key: a.astype(np.float64) for key, a in quantizer.arrays().items()}
        self.center = arrays.get("center", np.zeros(quantizer.dim))
        self.spread = arrays.get("spread")
        self.frame = arrays.get("frame")
        if name == "hadamard":
            self.frame = hadamard_frame(quantizer._signs)
        self.decoder = arrays.get("decoder")

    def seen(self, rows):
        rows = np.asarray(rows, np.float64)
        for dim in self.cuts:
            rows = lengths_one(rows[:, :dim])
        return rows

    def scaled(self, rows):
        return as_metric(self.seen(rows), self.metric)

    def coordinates(self, rows):
        """Whose signs are the bits."""
        if isinstance(self.quantizer, SignQuantizer):
            return self.seen(rows)
        residuals = self.scaled(rows) - self.center
        return residuals if self.frame is None else lengths_one(residuals) @ self.frame.T

    def decoded(self, signs):
        """What is compared with queries, where a row has no factors."""
        if isinstance(self.quantizer, SignQuantizer):
            return signs / np.sqrt(signs.shape[1])
        decoded = signs * self.spread
        return self.center + (decoded if self.frame is None else decoded @ self.frame)

    def directions(self, signs):
        """The same of residuals, up to their length, where a row has factors."""
        return signs @ (self.frame if self.decoder is None else self.decoder)


WITHOUT_FACTORS = [name for name in MAKE if "local" not in name and "rabitq" not in name]
WITH_FACTORS = [name for name in MAKE if name not in WITHOUT_FACTORS]


@pytest.mark.parametrize("name", [name for name in MAKE if "local" not in name])
@every_metric
def test_bits_are_the_signs_of_coordinates(name, metric):
    quantizer = fitted(name, metric)
    rows = anisotropic(200, DIM, seed=1)
    found = bits_of(quantizer.encode(rows), quantizer.n_bits)
    coordinates = Plain(quantizer, name, metric).coordinates(rows)
    near = np.abs(coordinates) < 1e-5
    assert near.mean() < 0.01
    np.testing.assert_array_equal(found[~near], (coordinates > 0)[~near])
    assert quantizer.encode(rows).shape == (200, -(-quantizer.n_bits // 64))
    words = oracle.pack(np.where(found, 1.0, -1.0))
    np.testing.assert_array_equal(quantizer.encode(rows), words)  # pad bits are zero


@pytest.mark.parametrize("name", WITHOUT_FACTORS)
@every_metric
def test_weights_score_what_codes_stand_for(name, metric):
    """f * (w . s) + g + constants is the score of the query and the decoded row."""
    quantizer = fitted(name, metric)
    rows, queries = anisotropic(30, DIM, seed=1), 3 * anisotropic(9, DIM, seed=2)
    encoded = quantizer.encode_rows(rows)
    assert encoded.factors.shape == (0, 2)
    plain = Plain(quantizer, name, metric)
    signs = 2.0 * bits_of(encoded.codes, quantizer.n_bits) - 1
    weights, constants = quantizer.weights(queries)
    found = weights @ signs.T + constants[:, None]
    scaled = plain.scaled(queries)
    decoded = plain.decoded(signs)
    if metric == "l2":
        expected = -np.square(scaled[:, None] - decoded).sum(axis=2)
        # Decoded residuals count with their own length alone; those of a random rotation have one.
    else:
        expected = scaled @ decoded.T
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", WITH_FACTORS)
@every_metric
def test_factors_correct_scores(name, metric):
    """The decoded residual has the right product with the residual, and what is left goes to g."""
    quantizer = fitted(name, metric)
    rows, queries = anisotropic(30, DIM, seed=1), 3 * anisotropic(9, DIM, seed=2)
    codes, factors = quantizer.encode_rows(rows)
    plain = Plain(quantizer, name, metric)
    signs = 2.0 * bits_of(codes, quantizer.n_bits) - 1
    x, q = plain.scaled(rows), plain.scaled(queries)
    residuals, directions = x - plain.center, plain.directions(signs)
    f = (residuals**2).sum(axis=1) / (residuals * directions).sum(axis=1)
    np.testing.assert_allclose(factors[:, 0], f, rtol=1e-4)
    assert (f > 0).all()
    decoded = plain.center + f[:, None] * directions
    left = (x - decoded) @ plain.center
    products = q @ decoded.T + left
    if metric == "l2":
        expected = 2 * products - (x**2).sum(axis=1) - (q**2).sum(axis=1)[:, None]
    else:
        expected = products
    weights, constants = quantizer.weights(queries)
    found = factors[:, 0] * (weights @ signs.T) + factors[:, 1] + constants[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["rabitq", "rabitq, random", "local search"])
@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_a_query_at_the_centre_is_scored_exactly(name, metric):
    quantizer = fitted(name, metric)
    rows = anisotropic(50, DIM, seed=1)
    center = quantizer.arrays()["center"]
    codes, factors = quantizer.encode_rows(rows)
    weights, constants = quantizer.weights(center)
    signs = 2.0 * bits_of(codes, quantizer.n_bits) - 1
    found = factors[:, 0] * (signs @ weights[0]) + factors[:, 1] + constants[0]
    expected = oracle.scores(center[None], rows, metric)[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


# Codes depend on nothing but the row.


@given(st.sampled_from(sorted(MAKE)), st.data())
def test_a_row_has_the_same_code_whatever_comes_with_it(name, data):
    n = 12 if JIT_OFF else 150
    rows = anisotropic(n, DIM, seed=3).astype(np.float16)
    metric = data.draw(st.sampled_from(METRICS))
    expected = whole_of(name, metric, n)
    begin = data.draw(st.integers(0, n - 1))
    end = data.draw(st.integers(begin, min(n, begin + 40)))
    part = rows[begin:end].astype(data.draw(st.sampled_from([np.float16, np.float32, np.float64])))
    part = data.draw(st.sampled_from(LAYOUTS))(part)
    found = fitted(name, metric).encode_rows(part, threads=data.draw(st.sampled_from([1, 2])))
    np.testing.assert_array_equal(found.codes, expected.codes[begin:end])
    np.testing.assert_array_equal(found.factors, expected.factors[begin:end])


def spread_out(rows):
    wide = np.zeros((2 * len(rows), 3 * rows.shape[1]), rows.dtype)
    wide[::2, ::3] = rows
    return wide[::2, ::3]


LAYOUTS = [
    np.asarray,
    np.asfortranarray,
    spread_out,
    lambda rows: rows[::-1].copy()[::-1],
    lambda rows: rows.astype(rows.dtype.newbyteorder(">")),
]


@functools.cache
def whole_of(name, metric, n):
    rows = anisotropic(n, DIM, seed=3).astype(np.float16)
    return fitted(name, metric).encode_rows(rows, threads=2)


@pytest.mark.skipif(JIT_OFF, reason="there are no threads then")
@pytest.mark.parametrize("name", ["mean", "rotation", "hadamard", "rabitq, random", "local search"])
@pytest.mark.parametrize("dim", [64, 133])
def test_threads_and_blocks_change_no_bit(name, dim):
    """So many rows that they go to several threads, and to several blocks."""
    n = 1_200_000 // dim
    with dense_up_to(name):
        make = {"local search": lambda: LocalSearchQuantizer(n_iterations=1, n_kicks=0)}
        quantizer = make.get(name, MAKE[name])().fit(anisotropic(400, dim))
    rows = anisotropic(400, dim, seed=4)
    few = quantizer.encode_rows(rows, threads=1)
    rows = np.tile(rows, (-(-n // 400), 1))[: n + 7]
    for threads in (1, 2):
        many = quantizer.encode_rows(rows, threads=threads)
        for begin in range(0, len(rows), 400):
            end = min(begin + 400, len(rows))
            np.testing.assert_array_equal(many.codes[begin:end], few.codes[: end - begin])
            if quantizer.n_factors:
                np.testing.assert_array_equal(many.factors[begin:end], few.factors[: end - begin])


@every_kind
def test_one_vector_is_one_row(name):
    quantizer = fitted(name)
    rows = anisotropic(3, DIM, seed=5)
    np.testing.assert_array_equal(quantizer.encode(rows[1]), quantizer.encode(rows)[1:2])
    weights, constants = quantizer.weights(rows[1])
    assert weights.shape == (1, quantizer.n_bits)
    assert weights.dtype == np.float32
    assert constants.dtype == np.float64
    together = quantizer.weights(rows)
    np.testing.assert_allclose(weights[0], together.weights[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(constants[0], together.constants[1], rtol=1e-6, atol=1e-9)
    assert quantizer.encode(rows[:0]).shape == (0, -(-quantizer.n_bits // 64))
    assert quantizer.weights(rows[:0]).weights.shape == (0, quantizer.n_bits)


@every_kind
def test_fitting_again_gives_the_same(name):
    with dense_up_to(name):
        again = MAKE[name]().fit(anisotropic(N, DIM), threads=1)
    assert again.to_json() == fitted(name).to_json()
    for key, array in fitted(name).arrays().items():
        np.testing.assert_array_equal(again.arrays()[key], array)


def test_seeds_count():
    rows = anisotropic(60, 12)
    for make in (
        lambda seed: RotationQuantizer(seed=seed),
        lambda seed: ITQQuantizer(seed=seed, n_iterations=1),
        lambda seed: RaBitQuantizer("random", seed=seed),
        lambda seed: LocalSearchQuantizer(seed=seed, n_iterations=1, n_kicks=0),
        lambda seed: ThresholdQuantizer(seed=seed, sample_rows=20),
    ):
        codes = [make(seed).fit(rows).encode(rows) for seed in (1, 2)]
        assert (codes[0] != codes[1]).any()


@every_kind
def test_cosine_knows_no_lengths(name):
    quantizer = fitted(name)
    rows = anisotropic(20, DIM, seed=1)
    for factor in (2.0**-60, 2.0**60):
        np.testing.assert_array_equal(quantizer.encode(factor * rows), quantizer.encode(rows))
        for a, b in zip(quantizer.weights(factor * rows), quantizer.weights(rows), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


# Files.


@every_kind
@every_metric
def test_stored_and_back(name, metric, tmp_path):
    quantizer = fitted(name, metric)
    rows = anisotropic(20, DIM, seed=1)
    quantizer.save(tmp_path / "q")
    with dense_up_to(name):
        header = json.loads(json.dumps(quantizer.to_json()))
        stored = quantize.from_stored(header, quantizer.arrays())
        loaded = quantize.load(tmp_path / "q")
    for other in (stored, loaded, quantize.load(str(tmp_path / "q")) if name == "sign" else loaded):
        assert repr(other) == repr(quantizer)
        assert other.to_json() == quantizer.to_json()
        for attribute in ("metric", "n_factors", "hamming", "is_fitted"):
            assert getattr(other, attribute) == getattr(quantizer, attribute)
        for a, b in zip(other.encode_rows(rows), quantizer.encode_rows(rows), strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(other.weights(rows), quantizer.weights(rows), strict=True):
            np.testing.assert_array_equal(a, b)


@every_kind
def test_stored_before_fitting(name):
    header = MAKE[name]().to_json()
    other = quantize.from_stored(json.loads(json.dumps(header)), {})
    assert not other.is_fitted
    assert repr(other) == repr(MAKE[name]())
    assert repr(other).endswith("not fitted>")


def test_stored_arrays_are_few_small_and_named_as_files_want():
    for name in MAKE:
        arrays = fitted(name).arrays()
        assert len(arrays) <= 16
        for key, array in arrays.items():
            assert key.isalpha()
            assert array.dtype == np.float32
            assert array.ndim in (1, 2)


def changed(header, arrays):
    """Headers and arrays that describe no quantiser."""
    for key in ("kind", "dim", "n_bits", "metric"):
        yield {k: v for k, v in header.items() if k != key}, arrays
        for value in (None, 0, -1, 1.5, True, "x", [], {}):
            yield {**header, key: value}, arrays
    yield {**header, "n_bits": header["n_bits"] + 1}, arrays
    if header["kind"] != "matryoshka":  # which keeps of all dimensions only the first
        yield {**header, "dim": header["dim"] + 1}, arrays
    yield {**header, "parameters": {**header.get("parameters", {}), "unknown": 1}}, arrays
    yield {**header, "parameters": []}, {}
    yield {**header, "parameters": None}, arrays
    for key in header.get("parameters", {}):
        for value in ([], {}, -1, 0.5, "x", True):
            parameters = {**header["parameters"], key: value}
            yield {**header, "parameters": parameters}, arrays
    yield {**header, "unknown": 1}, arrays
    yield header, {**arrays, "unknown": np.zeros(3, np.float32)}
    for key, array in arrays.items():
        yield header, {k: v for k, v in arrays.items() if k != key}
        for bad in (
            array[:-1],
            array[None],
            array.astype(np.float64),
            np.full_like(array, np.nan),
            np.where(np.arange(array.size).reshape(array.shape), array, np.float32(np.inf)),
            array.astype(object),
            "text",
            None,
        ):
            yield header, {**arrays, key: bad}


def refusal(use, *arguments):
    """What its ``ValueError`` says; empty where all is well."""
    try:
        use(*arguments)
    except ValueError as error:
        return str(error)
    return ""


@every_kind
def test_what_describes_none_is_refused(name):
    quantizer = fitted(name)
    with dense_up_to(name):
        for header, arrays in changed(quantizer.to_json(), quantizer.arrays()):
            message = refusal(quantize.from_stored, header, arrays)
            assert message.startswith("no quantizer: "), (header, [*arrays])


def test_other_things_are_no_quantizers():
    deep = {"kind": "sign"}
    for _ in range(100_000):
        deep = {"kind": "matryoshka", "parameters": {"inner": deep, "kept_dim": 1}}
    hostile = {"kind": "local_search", "parameters": {"n_kicks": 10**12}}
    wide = {**fitted("local search").to_json(), "dim": 1, "n_bits": 9000}
    wide["parameters"] = {**wide["parameters"], "n_bits": 9000}
    ones = {"center": np.ones(1, np.float32), "decoder": np.ones((9000, 1), np.float32)}
    for header, arrays in (
        (None, {}),
        ([], {}),
        ({}, {}),
        ({"kind": "nothing"}, {}),
        ({"kind": "sign"}, ones),
        ({"kind": "matryoshka", "parameters": {"inner": None, "kept_dim": 3}}, {}),
        (deep, {}),
        (hostile, {}),
        (wide, ones),
    ):
        with pytest.raises(ValueError, match="no quantizer"):
            quantize.from_stored(header, arrays)


def test_files_that_hold_none(tmp_path):
    path = tmp_path / "q"
    header = np.frombuffer(json.dumps({"kind": "sign"}).encode(), np.uint8)
    deep = np.frombuffer(b"[" * 100_000 + b"]" * 100_000, np.uint8)

    def npz(**arrays):
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    def npy(array):
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    def large():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            claimed = npy(np.zeros(1)).replace(b"(1,), ", b"(%d,)" % 10**15)[:128]
            file.writestr("header.npy", claimed)
        return buffer.getvalue()

    good = io.BytesIO()
    fitted("itq").save(path)
    good = path.read_bytes()
    for content in (
        b"",
        b"nothing",
        good[: len(good) // 2],
        npy(np.zeros(3)),
        npz(),
        npz(header=header),  # of one that is not fitted
        npz(header=np.zeros(3)),
        npz(header=deep),
        npz(header=header, other=np.array([print], object)),
        npz(header=np.array([{"kind": "sign"}], object)),
        npz(header=np.frombuffer(b"[1]", np.uint8)),
        npz(header=np.frombuffer(b"\xff", np.uint8)),
        large(),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no quantizer"):
            quantize.load(path)
    with pytest.raises(FileNotFoundError):
        quantize.load(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="path must be text or a path"):
        quantize.load(7)


def test_damaged_files_are_refused_or_the_same(tmp_path):
    path = tmp_path / "q"
    fitted("itq to 11 bits").save(path)
    good = bytearray(path.read_bytes())
    rows = anisotropic(5, DIM)
    expected = fitted("itq to 11 bits").encode(rows)
    rng = np.random.default_rng(0)
    for _ in range(40 if JIT_OFF else 400):
        bad = good.copy()
        for place in rng.integers(0, len(bad), rng.integers(1, 4)):
            bad[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(bad)
        try:
            found = quantize.load(path)
        except ValueError:
            continue
        np.testing.assert_array_equal(found.encode(rows), expected)


def test_names():
    for name in ("sign", "threshold", "rotation", "itq", "rabitq", "local_search"):
        quantizer = quantize.by_name(name)
        assert quantizer.kind == name
        assert not quantizer.is_fitted
    with pytest.raises(ValueError, match=r"quantizer must be one of 'sign', .*, got 'pq'"):
        quantize.by_name("pq")
    assert SignQuantizer(9).is_fitted
    assert repr(SignQuantizer(9)) == "<SignQuantizer(), 9 dimensions to 9 bits>"
    assert repr(ITQQuantizer(3, seed=5)).startswith("<ITQQuantizer(n_bits=3, ")


# Bad input.


@every_kind
def test_not_fitted(name, tmp_path):
    quantizer = MAKE[name]()
    for use in (
        lambda: quantizer.encode(np.ones((1, DIM))),
        lambda: quantizer.weights(np.ones((1, DIM))),
        lambda: quantizer.save(tmp_path / "q"),
    ):
        with pytest.raises(NotFittedError, match=f"{type(quantizer).__name__} must be fitted"):
            use()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SignQuantizer(0), ValueError, "dim must be at least 1, got 0"),
        (lambda: SignQuantizer(2.5), TypeError, "dim must be an integer, got 2.5"),
        (lambda: ThresholdQuantizer("mode"), ValueError, "threshold must be one of 'mean', 'med"),
        (lambda: ThresholdQuantizer(sample_rows=0), ValueError, "sample_rows must be at least 1"),
        (lambda: ThresholdQuantizer(seed=-1), ValueError, "seed must be at least 0, got -1"),
        (lambda: RotationQuantizer(seed=True), TypeError, "seed must be an integer, got the bool"),
        (lambda: ITQQuantizer(0), ValueError, "n_bits must be at least 1, got 0"),
        (lambda: ITQQuantizer(n_iterations=0), ValueError, "n_iterations must be at least 1"),
        (lambda: ITQQuantizer(sample_rows=1), ValueError, "sample_rows must be at least 2, got 1"),
        (lambda: RaBitQuantizer("pca"), ValueError, "rotation must be one of 'itq', 'random'"),
        (lambda: RaBitQuantizer(n_iterations="x"), TypeError, "n_iterations must be an integer"),
        (lambda: LocalSearchQuantizer(-3), ValueError, "n_bits must be at least 1, got -3"),
        (lambda: LocalSearchQuantizer(n_sweeps=0), ValueError, "n_sweeps must be at least 1"),
        (lambda: LocalSearchQuantizer(n_kicks=-1), ValueError, "n_kicks must be at least 0"),
        (lambda: LocalSearchQuantizer(n_kicks=5000), ValueError, "n_kicks must be at most 4096"),
        (lambda: LocalSearchQuantizer(9000).bits_of(3), ValueError, "n_bits must be at most 8192"),
        (lambda: MatryoshkaQuantizer("sign", 3), TypeError, "inner must be a quantizer, got 'sig"),
        (lambda: MatryoshkaQuantizer(SignQuantizer(), 0), ValueError, "kept_dim must be at least"),
        (lambda: Int8Quantizer("minmax"), ValueError, "calibration must be one of 'range', 'qua"),
        (lambda: Int8Quantizer(quantile=0.5), ValueError, "quantile must be a float above 0.5 and"),
        (lambda: Int8Quantizer(quantile="x"), ValueError, "below 1, got 'x'"),
        (lambda: Int8Quantizer(sample_rows=0), ValueError, "sample_rows must be at least 1"),
    ],
)
def test_bad_parameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


@every_kind
def test_rows_that_are_no_vectors(name):
    quantizer = fitted(name)
    rows = anisotropic(20, DIM, seed=1)
    for use, argument in ((quantizer.encode, "vectors"), (quantizer.weights, "queries")):
        for value in (np.nan, np.inf, -np.inf):
            for place in ((7, 0), (7, DIM - 1)):
                bad = rows.copy()
                bad[place] = value
                bad[9] = np.nan
                with pytest.raises(ValueError, match=f"{argument} row 7 holds NaN or infinity"):
                    use(bad)
        with pytest.raises(ValueError, match=f"{argument} have 3 dimensions, {DIM} were expected"):
            use(rows[:, :3])
        with pytest.raises(TypeError, match=f"{argument} must be float16, float32 or float64"):
            use(rows.astype(np.int32))
        with pytest.raises(ValueError, match=rf"{argument} must have shape \(n, dim\)"):
            use(rows[None])
    with pytest.raises(ValueError, match="embeddings row 1007 holds NaN or infinity"):
        quantizer.encode_rows(bad, "embeddings", first_row=1000)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        quantizer.encode(rows, threads=0)


@every_kind
@every_metric
def test_rows_that_are_too_large(name, metric):
    """Whatever comes, it is encoded or refused, with the number of the row."""
    quantizer = fitted(name, metric)
    for size in (1e19, 1e38, 1e150, 1e300):
        rows = np.asarray(anisotropic(20, DIM, seed=1), np.float64)
        rows[7] *= size / np.abs(rows[7]).max()
        for use, argument in ((quantizer.encode_rows, "vectors"), (quantizer.weights, "queries")):
            message = refusal(use, rows)
            if message:
                assert f"{argument} row 7 " in message
                assert "float32" in message
                assert "NaN" not in message
            else:
                assert all(np.isfinite(array).all() for array in use(rows))
                assert size < 1e39 or metric == "cosine" or "matryoshka" in name or name == "sign"


@pytest.mark.parametrize("name", ["rabitq", "local search"])
def test_factors_beyond_float32(name):
    rows = np.ones((3, DIM), np.float32)
    rows[1] = 1e30
    with pytest.raises(ValueError, match="vectors row 1 is too large: its factors do not fit into"):
        fitted(name, "l2").encode_rows(rows)


@every_kind
def test_fitting_to_what_is_nothing(name):
    quantizer = MAKE[name]()
    rows = anisotropic(20, DIM)
    bad = rows.copy()
    bad[:] = np.inf
    for vectors, error, message in (
        (rows[:0], ValueError, "vectors must not be empty"),
        (iter([]), ValueError, "vectors must not be empty"),
        (bad, ValueError, "vectors row 0 holds NaN or infinity"),
        (rows[0], ValueError, r"vectors must have shape \(n, dim\), got"),
        (rows[None], ValueError, r"vectors must have shape \(n, dim\), got"),
        (rows.astype(int), TypeError, "vectors must be float16, float32 or float64"),
        (iter([rows, rows[:, :3]]), ValueError, f"vectors block 1 have 3 dimensions, {DIM}"),
        (iter([rows, "x"]), TypeError, "vectors block 1 must be float16"),
        (7, TypeError, "vectors must be float16"),
        (np.float32(7), ValueError, "vectors must have shape"),
        (None, TypeError, "vectors must be float16"),
        (rows[:, :0], ValueError, "vectors must have at least one dimension"),
    ):
        with pytest.raises(error, match=message):
            quantizer.fit(vectors)
    with pytest.raises(ValueError, match="metric must be one of 'cosine', 'dot', 'l2', got 'ip'"):
        quantizer.fit(rows, metric="ip")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        quantizer.fit(rows, threads=0)
    assert not quantizer.is_fitted


def test_too_many_bits_or_dimensions():
    rows = anisotropic(20, 8)
    with pytest.raises(ValueError, match="n_bits must be at most the 8 dimensions, got 9"):
        ITQQuantizer(9).fit(rows)
    for make in (SignQuantizer, LocalSearchQuantizer):
        with pytest.raises(ValueError, match="kept_dim must be at most the 8 dimensions there are"):
            MatryoshkaQuantizer(make(), 9).fit(rows)


# Rows that are special.


@every_kind
@every_metric
def test_special_rows(name, metric):
    quantizer = fitted(name, metric)
    plain = Plain(quantizer, name, metric)
    rows = np.zeros((3, DIM), np.float32)
    rows[1, : len(plain.center)] = plain.center
    rows[2, 0] = 1
    codes, factors = quantizer.encode_rows(rows)
    assert np.isfinite(factors).all()
    bits = bits_of(codes, quantizer.n_bits)
    if quantizer.n_factors and metric != "cosine" and "matryoshka" not in name:
        assert factors[1, 0] == 0  # nothing is left of the centre
    if isinstance(quantizer, SignQuantizer):
        assert not bits[0].any()
        assert bits[2].tolist() == [1] + [0] * (DIM - 1)
    weights, constants = quantizer.weights(rows)
    assert np.isfinite(constants).all()
    if metric != "l2":
        assert not weights[0].any()
        assert constants[0] == 0


@pytest.mark.parametrize("name", [name for name in MAKE if not any(c.isdigit() for c in name)])
@every_metric
@pytest.mark.parametrize("dim", [1, 2, 15])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_data_without_anything_to_learn(name, metric, dim, n):
    """One dimension, one row, rows that are all the same."""
    if "matryoshka" in name:
        return
    row = np.random.default_rng(dim).standard_normal(dim).astype(np.float32)
    for rows in (np.zeros((n, dim), np.float32), np.tile(row, (n, 1))):
        with dense_up_to(name):
            quantizer = MAKE[name]().fit(rows, metric=metric)
        codes, factors = quantizer.encode_rows(rows)
        assert (codes == codes[0]).all()
        assert np.isfinite(factors).all()
        weights, constants = quantizer.weights(rows)
        signs = 2.0 * bits_of(codes, quantizer.n_bits) - 1
        found = weights @ signs.T
        if quantizer.n_factors:
            found = found * factors[:, 0] + factors[:, 1]
            expected = oracle.scores(rows, rows, metric)
            np.testing.assert_allclose(found + constants[:, None], expected, atol=1e-5)


# How good they are.


@functools.cache
def large():
    rows, queries = anisotropic(3_000, 64, seed=11), anisotropic(150, 64, seed=12)
    return rows, queries


@functools.cache
def measured(name, metric):
    """(estimates, true scores, codes, codes of queries) on rows that nothing was fitted to."""
    make = {"local search": LocalSearchQuantizer}
    quantizer = make.get(name, MAKE[name])().fit(anisotropic(3_000, 64, seed=10), metric=metric)
    rows, queries = large()
    codes, factors = quantizer.encode_rows(rows)
    signs = 2.0 * bits_of(codes, quantizer.n_bits) - 1
    weights, constants = quantizer.weights(queries)
    found = weights @ signs.T
    if quantizer.n_factors:
        found = found * factors[:, 0] + factors[:, 1]
    x, q = as_metric(rows, metric), as_metric(queries, metric)
    true = -np.square(q[:, None] - x).sum(axis=2) if metric == "l2" else q @ x.T
    query_bits = bits_of(quantizer.encode(queries), quantizer.n_bits)
    return found + constants[:, None], true, signs > 0, query_bits == 1


def recall(estimates, true):
    found, expected = (np.argsort(-scores, axis=1)[:, :10] for scores in (estimates, true))
    return np.mean([len({*a} & {*b}) / 10 for a, b in zip(found.tolist(), expected, strict=True)])


needs_speed = pytest.mark.skipif(JIT_OFF, reason="takes too long without compiled code")


@needs_speed
@pytest.mark.parametrize(
    ("name", "correlation", "error"),
    [
        ("mean", 0.70, 0.55),
        ("itq", 0.72, 0.50),
        ("rabitq, random", 0.94, 0.25),
        ("rabitq", 0.95, 0.23),
        ("local search", 0.98, 0.15),
    ],
)
@every_metric
def test_estimates_are_near(name, correlation, error, metric):
    """Correlation with true scores of a query, and the mean error in their standard deviations."""
    found, true, _, _ = measured(name, metric)
    within = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(found, true, strict=True)])
    assert within > correlation
    assert np.abs(found - true).mean() < error * true.std()
    if error < 0.3:
        assert np.abs((found - true).mean()) < 0.01 * true.std()


@needs_speed
@every_metric
def test_what_costs_more_finds_more(metric):
    """Measured .58, .45 (.38), .39, .29 with the cosine, and alike."""
    found, true, signs, query_signs = measured("sign", metric)
    by_hamming = recall((2.0 * query_signs - 1) @ (2.0 * signs - 1).T, true)
    by_sign = recall(found, true)
    by_rabitq = max(recall(*measured(name, metric)[:2]) for name in ("rabitq", "rabitq, random"))
    by_search = recall(*measured("local search", metric)[:2])
    assert by_search > by_rabitq + 0.1
    assert by_rabitq > by_sign + 0.03
    assert by_sign > by_hamming + 0.02


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_rabitq_is_unbiased_over_rotations(metric):
    """Gao and Long 2024, theorem 3.2: the mean error is zero within its own standard error."""
    rows, queries = anisotropic(12, 16, seed=1), anisotropic(8, 16, seed=2)
    n_seeds = 40 if JIT_OFF else 400
    errors = []
    x, q = as_metric(rows, metric), as_metric(queries, metric)
    true = -np.square(q[:, None] - x).sum(axis=2) if metric == "l2" else q @ x.T
    for seed in range(n_seeds):
        quantizer = RaBitQuantizer("random", seed=seed).fit(rows, metric=metric)
        codes, factors = quantizer.encode_rows(rows)
        weights, constants = quantizer.weights(queries)
        signs = 2.0 * bits_of(codes, 16) - 1
        found = factors[:, 0] * (weights @ signs.T) + factors[:, 1] + constants[:, None]
        errors.append(found - true)
    z = np.mean(errors, axis=0) / (np.std(errors, axis=0) / np.sqrt(n_seeds))
    assert np.abs(z).max() < 4.5
    assert np.square(z).mean() < 2
    assert np.std(errors) > 0.01 * true.std()  # there is something to be unbiased


# Rotations.


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 8, 16, 37, 64, 100])
def test_the_fast_rotation(dim):
    rows = np.random.default_rng(dim).standard_normal((11, dim)).astype(np.float32)
    signs = np.random.default_rng(1).choice(np.array([-1, 1], np.float32), (4, dim))
    frame = hadamard_frame(signs.astype(np.float64))
    np.testing.assert_allclose(frame @ frame.T, np.eye(dim), atol=1e-12)
    for n_cells in (1, 3):
        turned = rows.copy()
        HADAMARD(n_cells, turned, quantize.base.checks.frozen(signs), work=1)
        np.testing.assert_allclose(turned, rows @ frame.T, atol=1e-5)


@pytest.mark.parametrize("dim", [3, 37, 64])
def test_rotations_keep_lengths_and_spread_what_there_is(dim):
    for name in ("rotation", "hadamard"):
        with dense_up_to(name):
            quantizer = RotationQuantizer(seed=3).fit(np.ones((2, dim)))
        frame = quantizer._coordinates(np.eye(dim, dtype=np.float32), 1)
        np.testing.assert_allclose(frame @ frame.T, np.eye(dim), atol=1e-5)
        assert np.abs(frame).max() < 1


def test_a_dimension_beyond_matrices():
    """Without a matrix, and with the arrays of files that are small."""
    dim = projections._MAX_DENSE_DIM + (1 if JIT_OFF else 700)
    quantizer = RotationQuantizer().fit(np.ones((2, dim)))
    assert sorted(quantizer.arrays()) == ["center", "spread"]
    rows = np.random.default_rng(0).standard_normal((2, dim))
    loaded = quantize.from_stored(quantizer.to_json(), quantizer.arrays())
    np.testing.assert_array_equal(loaded.encode(rows), quantizer.encode(rows))
    bits = bits_of(quantizer.encode(rows), dim) * 2.0 - 1
    # A row agrees with its own signs: sqrt(2 / pi) of its length is found again.
    found = (quantizer.weights(rows).weights * bits).sum(axis=1)
    np.testing.assert_allclose(found, 2 / np.pi, rtol=0.1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 2, 3), (9, 13, 5), (30, 40, 33)])
def test_projections(shape):
    n, dim, m = shape
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, dim)).astype(np.float32)
    matrix = rng.standard_normal((m, dim)).astype(np.float32)
    for n_cells in (1, 3):
        found = projections.Frame(matrix).project(rows, n_cells)
        np.testing.assert_allclose(found, rows.astype(np.float64) @ matrix.T, atol=1e-4)


def test_itq_brings_rows_nearer_to_corners():
    rows = lengths_one(anisotropic(N, DIM))

    def loss(n_iterations):
        quantizer = ITQQuantizer(n_iterations=n_iterations).fit(rows, metric="dot")
        arrays = quantizer.arrays()
        frame = arrays["frame"].astype(np.float64)
        np.testing.assert_allclose(frame @ frame.T, np.eye(DIM), atol=1e-5)
        units = lengths_one(rows - arrays["center"])
        return -np.abs(units @ frame.T).sum()

    losses = [loss(n) for n in (1, 3, 10, 30)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


# Local search.


def squared_errors(bits, decoder, units):
    return np.square(units - bits.astype(np.float64) @ decoder.astype(np.float64)).sum(axis=1)


def search_problem(m, dim, n, seed):
    rng = np.random.default_rng(seed)
    decoder = (rng.standard_normal((m, dim)) / np.sqrt(m * dim)).astype(np.float32)
    units = lengths_one(rng.standard_normal((n, dim))).astype(np.float32)
    return decoder, units, rng.choice(np.array([-1, 1], np.float32), (n, m))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32), st.sampled_from([0, 3]))
def test_descents_end_where_no_bit_helps(m, dim, seed, n_kicks):
    decoder, units, bits = search_problem(m, dim, 4 if JIT_OFF else 12, seed)
    search = _Search(projections.Frame(decoder), 1000, n_kicks, 0)
    signs = np.where(units @ decoder.T > 0, 1.0, -1.0)
    for begin, before in ((bits, bits), (None, signs)):
        found, products = search.improve(units, begin, 1)
        assert set(np.unique(found)) <= {-1.0, 1.0}
        after = squared_errors(found, decoder, units)
        assert (after <= squared_errors(before, decoder, units) + 1e-5).all()
        for i in range(m):
            turned = found.copy()
            turned[:, i] *= -1
            assert (squared_errors(turned, decoder, units) >= after - 1e-5).all()
        expected = (units * (found.astype(np.float64) @ decoder)).sum(axis=1)
        np.testing.assert_allclose(products, expected, atol=1e-5)


@given(st.integers(1, 60), st.integers(1, 3), st.integers(0, 6), st.integers(0, 2**32))
def test_a_search_cut_short_makes_nothing_worse(m, n_sweeps, n_kicks, seed):
    decoder, units, bits = search_problem(m, 9, 4 if JIT_OFF else 30, seed)
    search = _Search(projections.Frame(decoder), n_sweeps, n_kicks, seed)
    found, _ = search.improve(units, bits, usable_threads(2))
    before = squared_errors(bits, decoder, units)
    assert (squared_errors(found, decoder, units) <= before + 1e-5).all()


@pytest.mark.parametrize("m", [1, 4, 10])
def test_kicks_come_near_the_best_of_all_patterns(m):
    decoder, units, _ = search_problem(m, 8, 5 if JIT_OFF else 300, seed=m)
    patterns = 1.0 - 2 * ((np.arange(2**m)[:, None] >> np.arange(m)) & 1)
    every = np.array([squared_errors(patterns, decoder, unit) for unit in units])
    best = every.min(axis=1)
    share = []
    for n_kicks in (0, 8, 100):
        found, _ = _Search(projections.Frame(decoder), 100, n_kicks, 0).improve(units, None, 1)
        errors = squared_errors(found, decoder, units)
        assert (errors >= best - 1e-6).all()
        share.append(np.mean(errors < best + 1e-5))
    assert share == sorted(share)
    if m == 10 and not JIT_OFF:
        assert share[0] < 0.8
        assert share[1] > share[0] + 0.05
        assert share[2] > 0.9


@needs_speed
def test_more_bits_and_kicks_reconstruct_better():
    rows = anisotropic(1_000, 24)

    def error(**parameters):
        quantizer = LocalSearchQuantizer(**parameters).fit(rows, metric="dot")
        arrays = quantizer.arrays()
        units = lengths_one(rows - arrays["center"])
        bits = bits_of(quantizer.encode(rows), quantizer.n_bits) * 2.0 - 1
        return squared_errors(bits, arrays["decoder"], units).mean()

    rabitq = RaBitQuantizer().fit(rows, metric="dot")
    arrays = rabitq.arrays()
    units = lengths_one(rows - arrays["center"])
    coordinates = np.abs(units @ arrays["frame"].T)
    of_signs = np.square(coordinates - coordinates.mean()).sum(axis=1).mean()
    errors = [error(n_bits=12), error(n_kicks=0), error(), error(n_bits=50)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.7 * of_signs


# Samples.


class Sliced:
    """A shape and slices of rows, as an HDF5 data set has, and no more."""

    def __init__(self, rows):
        self.shape, self._rows, self.largest = rows.shape, rows, 0

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.largest = max(self.largest, len(self._rows[rows]))
        return self._rows[rows]


def blocks(rows, sizes):
    begin = 0
    for size in sizes:
        yield rows[begin : begin + size]
        begin += size


def test_samples_of_arrays_maps_and_data_sets_are_the_same(tmp_path):
    rows = anisotropic(9_000, 3)
    np.save(tmp_path / "x.npy", rows)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for n in (1, 50, 8_999, 9_000, 10_000):
        expected = finite_sample(rows, n, 7)
        assert expected.shape == (min(n, 9_000), 3)
        assert len(np.unique(expected, axis=0)) == len(expected)
        sliced = Sliced(rows)
        for vectors in (mapped, sliced, rows.astype(np.float64)):
            np.testing.assert_array_equal(finite_sample(vectors, n, 7), expected)
        if n < 9_000:
            assert sliced.largest <= 4_096
    np.testing.assert_array_equal(finite_sample(rows, 9_000, 7), rows)
    np.testing.assert_array_equal(finite_sample(rows[:5].tolist(), 9, 7), rows[:5])


@pytest.mark.parametrize("make", ["array", "blocks"])
def test_each_row_is_as_likely_to_be_sampled(make):
    n, n_taken, n_seeds = 60, 10, 200 if JIT_OFF else 2_000
    rows = np.arange(n, dtype=np.float32)[:, None]
    counts = np.zeros(n)
    for seed in range(n_seeds):
        vectors = rows if make == "array" else blocks(rows, (1, 4, 0, 17, 3, 35))
        taken = finite_sample(vectors, n_taken, seed)[:, 0].astype(int)
        assert len(set(taken)) == n_taken
        counts[taken] += 1
    expected = n_seeds * n_taken / n
    # Variances are less than Poisson's by a factor of 1 - 10 / 60.
    chi_square = np.square(counts - expected).sum() / expected / (1 - n_taken / n)
    assert abs(chi_square - (n - 1)) < 4 * np.sqrt(2 * (n - 1))


def test_fewer_rows_than_asked_for_come_in_order():
    rows = anisotropic(30, 4)
    for n in (30, 31, 1_000):
        np.testing.assert_array_equal(finite_sample(blocks(rows, (7, 20, 3)), n, 0), rows)


def test_blocks_may_be_of_several_types():
    rows = np.array([[1.0], [1e30], [1 / 3]])
    mixed = iter([rows[:1].astype(np.float16), rows[1:]])
    np.testing.assert_array_equal(finite_sample(mixed, 9, 0), rows.astype(np.float32))


def test_sampling_blocks_takes_little_memory():
    def many():
        for i in range(200):
            yield np.full((1_000, 50), i, np.float32)  # 200 kB each, 40 MB all

    tracemalloc.start()
    try:
        sample = finite_sample(many(), 500, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sample.shape == (500, 50)
    assert len(np.unique(sample[:, 0])) > 100
    assert peak < 3 << 20


@every_kind
def test_fitting_to_blocks(name):
    """All rows fit into the sample, so it does not matter how they come."""
    rows = anisotropic(N, DIM)
    with dense_up_to(name):
        quantizer = MAKE[name]().fit(blocks(rows, (N // 3, N)))
    np.testing.assert_array_equal(quantizer.encode(rows[:9]), fitted(name).encode(rows[:9]))


# int8.


def test_int8_by_range():
    rows = anisotropic(500, 7) * 10.0 ** np.arange(-3, 4)
    rows[:, 2] = 5
    quantizer = Int8Quantizer().fit(rows)
    values = quantizer.encode(rows)
    assert values.dtype == np.int8
    varied = [0, 1, 3, 4, 5, 6]
    assert (values.min(axis=0)[varied] == -128).all()
    assert (values.max(axis=0)[varied] == 127).all()
    step = (rows.max(axis=0) - rows.min(axis=0)) / 255
    decoded = quantizer.decode(values)
    assert decoded.dtype == np.float32
    assert (np.abs(decoded - rows) <= 0.5001 * step + 1e-6 * np.abs(rows)).all()
    far = quantizer.encode(np.stack([rows[0] + 1e6, rows[0] - 1e6]))
    assert (far[0, varied] == 127).all()
    assert (far[1, varied] == -128).all()


def test_int8_by_quantiles():
    rng = np.random.default_rng(0)
    rows = rng.random((10_001, 3))
    rows[0] = 1_000  # one value far out
    by_range, by_quantile = (
        Int8Quantizer().fit(rows),
        Int8Quantizer("quantile", quantile=0.999).fit(rows),
    )
    errors = [
        np.abs(q.decode(q.encode(rows[1:])) - rows[1:]).mean() for q in (by_range, by_quantile)
    ]
    assert errors[1] < errors[0] / 400
    wide = Int8Quantizer("quantile", quantile=0.9).fit(rows)
    low, high = np.quantile(rows.astype(np.float32), [0.05, 0.95], axis=0)
    for value, expected in ((np.zeros((1, 3)), low), (np.full((1, 3), 2.0), high)):
        found = wide.decode(wide.encode(value))
        np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_int8_samples():
    rows = anisotropic(300, 4)
    whole, same = Int8Quantizer().fit(rows), Int8Quantizer().fit(blocks(rows, (100, 200)))
    np.testing.assert_array_equal(whole.scale.scale, same.scale.scale)
    np.testing.assert_array_equal(whole.scale.offset, same.scale.offset)
    few = [Int8Quantizer(sample_rows=20, seed=seed).fit(rows).scale.scale for seed in (0, 0, 1)]
    np.testing.assert_array_equal(few[0], few[1])
    assert (few[0] != few[2]).any()
    assert (few[0] < whole.scale.scale).all()


def test_int8_bad_input():
    quantizer = Int8Quantizer()
    for use in (quantizer.encode, quantizer.decode):
        with pytest.raises(NotFittedError, match="Int8Quantizer must be fitted before it is used"):
            use(np.ones((1, 3)))
    rows = anisotropic(9, 3)
    with pytest.raises(ValueError, match="vectors row 4 holds NaN or infinity"):
        quantizer.fit(np.where(np.arange(9)[:, None] == 4, np.nan, rows))
    with pytest.raises(ValueError, match="vectors must not be empty"):
        quantizer.fit(rows[:0])
    quantizer.fit(rows)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="vectors row 2 holds NaN or infinity"):
            quantizer.encode(np.where(np.arange(9)[:, None] == 2, bad, rows))
    with pytest.raises(ValueError, match="vectors have 2 dimensions, 3 were expected"):
        quantizer.encode(rows[:, :2])
    for bad in (rows, np.zeros((2, 4), np.int8), np.zeros(3, np.int8)):
        with pytest.raises(ValueError, match=r"values must be int8 of shape \(n, 3\), got"):
            quantizer.decode(bad)


# Matryoshka.


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_truncate(dtype):
    rows = anisotropic(20, 10).astype(dtype)
    rows[3, :4] = 0
    found = truncate(rows, 4)
    assert found.dtype == dtype
    expected = lengths_one(rows[:, :4].astype(np.float64))
    np.testing.assert_allclose(found, expected, atol=2 * np.finfo(dtype).eps)
    assert not found[3].any()
    np.testing.assert_array_equal(truncate(rows[5], 4), found[5:6])
    assert truncate(rows, 10).shape == (20, 10)
    assert truncate(rows[:0], 3).shape == (0, 3)


def test_truncate_at_the_ends_of_floats():
    rows = np.array([[3e-320, 4e-320, 1.0], [3e300, 4e300, 1.0], [-1e308, 0.0, 0.0]])
    np.testing.assert_allclose(truncate(rows, 2), [[0.6, 0.8], [0.6, 0.8], [-1, 0]], rtol=1e-3)


@pytest.mark.parametrize(
    ("vectors", "dim", "error", "message"),
    [
        (np.ones((2, 3)), 4, ValueError, "dim must be at most the 3 dimensions there are, got 4"),
        (np.ones((2, 3)), 0, ValueError, "dim must be at least 1, got 0"),
        (np.ones((2, 3)), 1.5, TypeError, "dim must be an integer, got 1.5"),
        (np.ones((2, 3), int), 2, TypeError, "vectors must be float16, float32 or float64"),
        (np.ones((2, 3, 1)), 2, ValueError, "vectors must have shape"),
        ([[1.0, 2.0], [np.nan, 1.0]], 1, ValueError, "vectors row 1 holds NaN or infinity"),
        ([[1.0, 2.0], [1.0, np.inf]], 1, ValueError, "vectors row 1 holds NaN or infinity"),
    ],
)
def test_truncate_bad_input(vectors, dim, error, message):
    with pytest.raises(error, match=message):
        truncate(vectors, dim)


def test_matryoshka_is_the_inner_one_on_what_is_kept():
    rows = anisotropic(N, DIM)
    for make in (SignQuantizer, ITQQuantizer, lambda: RaBitQuantizer("random")):
        outer = MatryoshkaQuantizer(make(), 13).fit(rows)
        inner = make().fit(truncate(rows, 13))
        cut = truncate(rows.astype(np.float64), 13)
        np.testing.assert_array_equal(outer.encode(rows), inner.encode(cut))
        np.testing.assert_allclose(outer.weights(rows).weights, inner.weights(cut).weights)
        assert (outer.dim, outer.n_bits, outer.n_factors) == (DIM, 13, inner.n_factors)
        assert outer.hamming == inner.hamming


def test_tiny_values_of_float16_keep_their_bits():
    row = np.array([[65504.0, 6e-8, -6e-8]], np.float16)
    quantizer = MatryoshkaQuantizer(SignQuantizer(), 3).fit(row)
    assert bits_of(quantizer.encode(row), 3).tolist() == [[1, 1, 0]]


def test_int8_is_saved_and_loaded(tmp_path):
    rows = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    quantizer = Int8Quantizer("quantile", quantile=0.9).fit(rows)
    quantizer.save(tmp_path / "int8.npz")
    loaded = Int8Quantizer.load(tmp_path / "int8.npz")
    np.testing.assert_array_equal(loaded.encode(rows), quantizer.encode(rows))
    np.testing.assert_array_equal(
        loaded.decode(loaded.encode(rows)), quantizer.decode(quantizer.encode(rows))
    )
    with pytest.raises(NotFittedError):
        Int8Quantizer().save(tmp_path / "none.npz")
    assert not (tmp_path / "none.npz").exists()
    with pytest.raises(FileNotFoundError):
        Int8Quantizer.load(tmp_path / "none.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "int8.npz").read_bytes()[:100])
    np.savez(tmp_path / "other.npz", scale=np.ones(3), offset=np.ones(3, np.float32))
    for name in ("cut.npz", "other.npz"):
        with pytest.raises(ValueError, match="holds no Int8Quantizer"):
            Int8Quantizer.load(tmp_path / name)
