"""Trained heads: their quantiser, and what collections make of it without PyTorch."""

import functools
import json
import subprocess
import sys

import h5py
import numpy as np
import oracle
import pytest
import torch
from test_quantize import (
    DIM,
    JIT_OFF,
    METRICS,
    anisotropic,
    as_metric,
    bits_of,
    changed,
    every_metric,
    refusal,
)

import hamming_engine as he
from hamming_engine import quantize
from hamming_engine.quantize import (
    HeadQuantizer,
    ITQQuantizer,
    LocalSearchQuantizer,
    MatryoshkaQuantizer,
    NotFittedError,
    RaBitQuantizer,
    RotationQuantizer,
    SignQuantizer,
    SimHashQuantizer,
    ThresholdQuantizer,
    projections,
)
from hamming_engine.training import BinaryHead

N = 60 if JIT_OFF else 500
BITS = 70


def head_of(dim=DIM, n_bits=BITS, seed=0):
    """A frame and a bias of no structure, rows of different lengths."""
    rng = np.random.default_rng(seed)
    frame = rng.standard_normal((n_bits, dim)) * rng.uniform(0.1, 3, (n_bits, 1))
    return frame.astype(np.float32), (0.1 * rng.standard_normal(n_bits)).astype(np.float32)


@functools.cache
def exported(metric="cosine", n_bits=BITS):
    return HeadQuantizer.from_head(*head_of(n_bits=n_bits), anisotropic(N, DIM), metric=metric)


def coordinates(rows, metric, n_bits=BITS):
    frame, bias = head_of(n_bits=n_bits)
    return as_metric(rows, metric) @ frame.T.astype(np.float64) + bias


def signs_of(quantizer, rows):
    return 2.0 * bits_of(quantizer.encode(rows), quantizer.n_bits) - 1


# The quantiser.


@every_metric
@pytest.mark.parametrize("n_bits", [1, 37, BITS])
def test_bits_are_the_signs_of_the_linear_map(metric, n_bits):
    quantizer = exported(metric, n_bits)
    rows = anisotropic(200, DIM, seed=1)
    expected = coordinates(rows, metric, n_bits)
    near = np.abs(expected) < 1e-5
    assert near.mean() < 0.01
    found = bits_of(quantizer.encode(rows), n_bits)
    np.testing.assert_array_equal(found[~near], (expected > 0)[~near])
    np.testing.assert_array_equal(quantizer.encode(rows), oracle.pack(np.where(found, 1.0, -1.0)))
    assert (quantizer.dim, quantizer.n_bits, quantizer.metric) == (DIM, n_bits, metric)
    assert (quantizer.n_factors, quantizer.hamming) == (0, True)


def estimated(metric, rows, queries, n_bits=BITS):
    """Scores by codes but for their scale: values of the queries against signs of the rows."""
    return coordinates(queries, metric, n_bits) @ np.sign(coordinates(rows, metric, n_bits)).T


def found_scores(quantizer, rows, queries):
    weights, constants = quantizer.weights(queries)
    return weights @ signs_of(quantizer, rows).T + constants[:, None]


@every_metric
def test_queries_are_weighed_by_what_they_are_before_their_signs(metric):
    rows, queries = anisotropic(30, DIM, seed=1), 3 * anisotropic(9, DIM, seed=2)
    factor, constant = exported(metric).arrays()["scale"].astype(float)
    assert factor > 0
    expected = factor * estimated(metric, rows, queries) + constant
    if metric == "l2":
        expected -= (queries.astype(float) ** 2).sum(axis=1)[:, None]
    found = found_scores(exported(metric), rows, queries)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@every_metric
def test_scores_are_right_on_average(metric):
    """Of the rows that were fitted to, with themselves and with one another."""
    rows = anisotropic(N, DIM)
    found = found_scores(exported(metric), rows, rows)
    exact = oracle.scores(rows, rows, metric)
    size = np.abs(exact).max()
    np.testing.assert_allclose(found.mean(), exact.mean(), atol=1e-5 * size)
    np.testing.assert_allclose(np.diag(found).mean(), np.diag(exact).mean(), atol=1e-5 * size)


@every_metric
def test_rows_that_are_all_alike_have_no_scale(metric):
    rows = np.repeat(anisotropic(1, DIM), 5, axis=0)
    quantizer = HeadQuantizer.from_head(*head_of(), rows, metric=metric)
    assert quantizer.arrays()["scale"][0] == 1
    found, exact = found_scores(quantizer, rows, rows), oracle.scores(rows, rows, metric)
    np.testing.assert_allclose(found, exact, atol=1e-4)
    dead = HeadQuantizer.from_head(np.zeros((3, DIM)), -np.ones(3), anisotropic(9, DIM))
    assert dead.arrays()["scale"][0] == 1
    assert not dead.encode(rows).any()
    assert np.isfinite(dead.truncated(2).weights(rows).weights).all()


@pytest.mark.skipif(JIT_OFF, reason="there are few rows then")
def test_floats_as_queries_find_more_than_codes():
    rows, queries = anisotropic(400, DIM, seed=3), anisotropic(50, DIM, seed=4)
    quantizer = exported()
    exact = oracle.scores(queries, rows, "cosine")
    best = np.argsort(-exact, axis=1)[:, :10]
    signs = signs_of(quantizer, rows)
    share = {}
    for name, scores in (
        ("hamming", signs_of(quantizer, queries) @ signs.T),
        ("asymmetric", quantizer.weights(queries).weights @ signs.T),
    ):
        found = np.argsort(-scores, axis=1)[:, :10]
        share[name] = np.mean([len({*a} & {*b}) for a, b in zip(found, best, strict=True)]) / 10
    assert share["asymmetric"] > share["hamming"] + 0.02


def test_a_row_has_the_same_code_whatever_comes_with_it():
    rows = anisotropic(150, DIM, seed=3).astype(np.float16)
    for metric in METRICS:
        whole = exported(metric).encode(rows)
        for begin, end in ((0, 1), (7, 8), (3, 50), (149, 150)):
            for part in (rows[begin:end], np.asfortranarray(rows[begin:end].astype(np.float64))):
                found = exported(metric).encode(part, threads=1)
                np.testing.assert_array_equal(found, whole[begin:end])


def test_fitting_again_changes_the_scale_alone():
    quantizer = HeadQuantizer.from_head(*head_of(), anisotropic(N, DIM))
    before, rows = quantizer.arrays(), anisotropic(20, DIM, seed=1)
    codes = quantizer.encode(rows)
    assert quantizer.fit(iter([anisotropic(200, DIM, seed=5)])) is quantizer
    after = quantizer.arrays()
    np.testing.assert_array_equal(quantizer.encode(rows), codes)
    for name in ("frame", "bias"):
        np.testing.assert_array_equal(after[name], before[name])
    assert (after["scale"] != before["scale"]).all()
    quantizer.fit(anisotropic(N, DIM))
    for name, array in before.items():
        np.testing.assert_array_equal(quantizer.arrays()[name], array)


def test_the_sample_has_a_size_and_a_seed():
    made = [
        HeadQuantizer.from_head(*head_of(), anisotropic(N, DIM), sample_rows=40, seed=seed)
        for seed in (0, 0, 1)
    ]
    scales = [quantizer.arrays()["scale"] for quantizer in made]
    np.testing.assert_array_equal(scales[0], scales[1])
    assert (scales[0] != scales[2]).all()
    assert repr(made[2]).startswith("<HeadQuantizer(sample_rows=40, seed=1), ")


@every_metric
def test_truncated_is_the_head_of_the_first_bits(metric):
    vectors, rows = anisotropic(N, DIM), anisotropic(20, DIM, seed=1)
    for n_bits in (1, BITS // 2, BITS):
        frame, bias = (array[:n_bits] for array in head_of())
        short = exported(metric).truncated(n_bits)
        alone = HeadQuantizer.from_head(frame, bias, vectors, metric=metric)
        np.testing.assert_array_equal(short.encode(rows), alone.encode(rows))
        long = bits_of(exported(metric).encode(rows), BITS)
        np.testing.assert_array_equal(bits_of(short.encode(rows), n_bits), long[:, :n_bits])
        guess, measured = short.arrays()["scale"][0], alone.arrays()["scale"][0]
        assert n_bits == 1 or 0.8 < guess / measured < 1.25
        found, expected = short.weights(rows).weights / guess, alone.weights(rows).weights
        np.testing.assert_allclose(found, expected / measured, rtol=1e-4, atol=1e-5)
        short.fit(vectors, metric=metric)
        for name, array in alone.arrays().items():
            np.testing.assert_array_equal(short.arrays()[name], array)


@every_metric
def test_special_rows(metric):
    """All zeros have the signs of the bias."""
    rows = np.zeros((2, DIM), np.float32)
    rows[1, 0] = 1e-30
    expected = coordinates(rows, metric) > 0
    np.testing.assert_array_equal(bits_of(exported(metric).encode(rows), BITS), expected)
    assert np.isfinite(exported(metric).weights(rows).weights).all()


# Files.


@every_metric
def test_stored_and_back(metric, tmp_path):
    quantizer = exported(metric)
    rows = anisotropic(20, DIM, seed=1)
    quantizer.save(tmp_path / "q")
    header = json.loads(json.dumps(quantizer.to_json()))
    assert header["kind"] == "head"
    for other in (
        quantize.from_stored(header, quantizer.arrays()),
        quantize.load(tmp_path / "q"),
    ):
        assert isinstance(other, HeadQuantizer)
        assert other.to_json() == quantizer.to_json()
        np.testing.assert_array_equal(other.encode(rows), quantizer.encode(rows))
        for a, b in zip(other.weights(rows), quantizer.weights(rows), strict=True):
            np.testing.assert_array_equal(a, b)


@every_metric
def test_what_describes_none_is_refused(metric):
    quantizer = exported(metric)
    for header, arrays in changed(quantizer.to_json(), quantizer.arrays()):
        message = refusal(quantize.from_stored, header, arrays)
        assert message.startswith("no quantizer: "), (header, [*arrays])


FROM_ANYWHERE = """
import sys
sys.modules["torch"] = None  # importing it raises ImportError
import json, numpy as np, hamming_engine as he
from hamming_engine import quantize
docs = he.Collection.open({path!r})
queries = np.load({queries!r})
found = {{}}
for method in ("hamming", "asymmetric"):
    for rerank in (True, False):
        hits = docs.search(queries, 7, method=method, rerank=rerank)
        found[f"{{method}} {{rerank}}"] = [hits.ids.tolist(), hits.scores.tolist()]
assert docs.quantizer.kind == "head"
assert (quantize.load({saved!r}).encode(queries) == docs.quantizer.encode(queries)).all()
assert not any(name.startswith("hamming_engine.training") for name in sys.modules)
print(json.dumps(found))
"""


@every_metric
def test_a_collection_answers_the_same_without_torch(metric, tmp_path):
    rows, queries = anisotropic(N, DIM), anisotropic(6, DIM, seed=2)
    quantizer = exported(metric)
    path = tmp_path / "c.hme"
    with he.Collection.create(path, dim=DIM, metric=metric, quantizer=quantizer) as docs:
        docs.append(rows[: N // 2])
        docs.append(rows[N // 2 :])
        assert docs.quantizer.to_json() == quantizer.to_json()
        expected = {}
        for method in ("hamming", "asymmetric"):
            for rerank in (True, False):
                hits = docs.search(queries, 7, method=method, rerank=rerank)
                expected[f"{method} {rerank}"] = [hits.ids.tolist(), hits.scores.tolist()]
    distances = oracle.hamming(quantizer.encode(queries), quantizer.encode(rows))
    assert expected["hamming False"][0] == oracle.nearest(distances, 7)[1].tolist()
    np.save(tmp_path / "queries.npy", queries)
    quantizer.save(tmp_path / "q.npz")
    program = FROM_ANYWHERE.format(
        path=str(path), queries=str(tmp_path / "queries.npy"), saved=str(tmp_path / "q.npz")
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout) == expected


def test_requantize_merge_and_export(tmp_path):
    rows, quantizer = anisotropic(N, DIM).astype(np.float16), exported()
    queries = anisotropic(5, DIM, seed=2)
    expected = oracle.hamming(quantizer.encode(queries), quantizer.encode(rows))
    nearest = oracle.nearest(expected, 5)[1].tolist()

    def found(docs):
        return docs.search(queries, 5, method="hamming", rerank=False).ids.tolist()

    with he.Collection.create(tmp_path / "a", dim=DIM) as docs:
        docs.append(rows)
        docs.requantize(quantizer)
        assert found(docs) == nearest
        docs.export(tmp_path / "a.h5")
        with he.Collection.create(tmp_path / "b", dim=DIM, quantizer=quantizer) as others:
            others.merge_from(docs)
            assert found(others) == nearest
    assert found(he.Collection.open(tmp_path / "a.h5")) == nearest


@every_metric
def test_a_reader_made_from_the_description(metric, tmp_path):
    """The code of each row, and its score, by what FORMAT.md says of an exported file."""
    rows, queries = anisotropic(N, DIM), anisotropic(6, DIM, seed=2)
    with he.Collection.create(
        tmp_path / "c", dim=DIM, metric=metric, vectors="float32", quantizer=exported(metric)
    ) as docs:
        docs.append(rows)
        docs.export(tmp_path / "c.h5")
        hits = docs.search(queries, N, method="asymmetric", rerank=False)
    with h5py.File(tmp_path / "c.h5") as file:
        learnt = {name: array[:].astype(float) for name, array in file["quantizer"].items()}
        codes, vectors = file["codes"][:], file["vectors"][:]
    at = as_metric(vectors, metric) @ learnt["frame"].T + learnt["bias"]
    near = np.abs(at) < 1e-5
    bits = bits_of(codes, BITS)
    np.testing.assert_array_equal((at > 0)[~near], bits[~near])
    signs, q = 2.0 * bits - 1, as_metric(queries, metric)
    scores = learnt["scale"][0] * (q @ learnt["frame"].T + learnt["bias"]) @ signs.T
    scores += learnt["scale"][1]
    if metric == "l2":
        scores -= (q**2).sum(axis=1)[:, None]
    expected = np.take_along_axis(scores, hits.ids, axis=1)
    np.testing.assert_allclose(hits.scores, expected, atol=1e-4 * np.abs(scores).max())


# Bad input.


def test_there_is_none_without_a_head(tmp_path):
    how = r"a head is trained: take BinaryHead.to_quantizer of hamming_engine.training, or Head"
    empty = HeadQuantizer()
    for use in (
        lambda: empty.fit(anisotropic(9, DIM)),
        lambda: empty.encode(np.ones((1, DIM))),
        lambda: empty.weights(np.ones((1, DIM))),
        lambda: empty.save(tmp_path / "q"),
        lambda: empty.truncated(3),
        lambda: BinaryHead.from_quantizer(empty),
        lambda: he.Collection.create(tmp_path / "c", dim=DIM, quantizer=empty),
    ):
        with pytest.raises(NotFittedError, match=rf"HeadQuantizer has no head: {how}"):
            use()
    for use in (
        lambda: quantize.by_name("head"),
        lambda: he.Collection.create(tmp_path / "c", dim=DIM, quantizer="head"),
    ):
        with pytest.raises(ValueError, match=f"'head' cannot be made from its name: {how}"):
            use()
    assert not (tmp_path / "c").exists()
    assert repr(empty) == "<HeadQuantizer(sample_rows=20000, seed=0), not fitted>"
    header = json.loads(json.dumps(empty.to_json()))
    assert not quantize.from_stored(header, {}).is_fitted


def test_matryoshka_takes_no_head():
    with pytest.raises(TypeError, match="a head's bits may leave dimensions out"):
        MatryoshkaQuantizer(exported(), 13)
    header = {"kind": "matryoshka", "parameters": {"inner": {"kind": "head"}, "kept_dim": 3}}
    with pytest.raises(ValueError, match="no quantizer: inner must be a quantizer that is fitted"):
        quantize.from_stored(header, {})


def head_from(change, **parameters):
    """One of a frame, a bias and vectors after a change to one of them."""
    frame, bias = head_of()
    given = {"frame": frame, "bias": bias, "vectors": anisotropic(50, DIM)}
    for name, changed_to in change.items():
        given[name] = changed_to(given[name])
    return HeadQuantizer.from_head(**given, **parameters)


@pytest.mark.parametrize(
    ("change", "parameters", "error", "message"),
    [
        ({"frame": lambda f: f.astype(int)}, {}, TypeError, "frame must be float16, float32 or"),
        ({"frame": lambda f: f[None]}, {}, ValueError, "frame must have shape"),
        ({"frame": lambda f: f * np.nan}, {}, ValueError, "frame row 0 holds NaN or infinity"),
        ({"frame": lambda f: 1e40 * f.astype(float)}, {}, ValueError, "do not fit into float32"),
        ({"bias": lambda b: b[1:]}, {}, ValueError, "bias have 69 dimensions, 70 were expected"),
        (
            {"bias": lambda b: np.stack([b, b])},
            {},
            ValueError,
            r"bias must have shape \(70,\), got",
        ),
        ({"bias": lambda b: b + np.inf}, {}, ValueError, "bias row 0 holds NaN or infinity"),
        ({"vectors": lambda v: v[:, 1:]}, {}, ValueError, f"{DIM - 1} dimensions, {DIM} were exp"),
        ({"vectors": lambda v: v[:0]}, {}, ValueError, "vectors must not be empty"),
        ({"vectors": lambda v: v * np.nan}, {}, ValueError, "vectors row 0 holds NaN or infinity"),
        ({}, {"metric": "ip"}, ValueError, "metric must be one of 'cosine', 'dot', 'l2', got 'ip'"),
        ({}, {"sample_rows": 0}, ValueError, "sample_rows must be at least 1, got 0"),
        ({}, {"threads": 0}, ValueError, "threads must be at least 1, got 0"),
        (
            {"vectors": lambda v: v * np.float32(1e30)},
            {"metric": "l2"},
            ValueError,
            "vectors are too large: the scale of scores does not fit into float32",
        ),
    ],
)
def test_bad_heads(change, parameters, error, message):
    with pytest.raises(error, match=message):
        head_from(change, **parameters)


def test_what_a_head_does_not_do():
    vectors = anisotropic(50, DIM)
    for use, message in (
        (lambda: exported("dot").fit(vectors), "metric must be 'dot', the head's own, got 'cosi"),
        (lambda: exported().fit(vectors, metric="ip"), "metric must be one of 'cosine', 'dot'"),
        (lambda: exported().truncated(71), "n_bits must be at most the head's 70, got 71"),
        (lambda: exported().truncated(0), "n_bits must be at least 1, got 0"),
        (lambda: exported().bits_of(9), f"the head takes vectors of {DIM} dimensions, got 9"),
    ):
        with pytest.raises(ValueError, match=message):
            use()


@every_metric
def test_rows_that_are_too_large(metric):
    """Whatever comes, it is encoded or refused, with the number of the row."""
    for size in (1e19, 1e38, 1e150, 1e300):
        rows = np.asarray(anisotropic(20, DIM, seed=1), np.float64)
        rows[7] *= size / np.abs(rows[7]).max()
        for use, argument in (
            (exported(metric).encode, "vectors"),
            (exported(metric).weights, "queries"),
        ):
            message = refusal(use, rows)
            if message:
                assert f"{argument} row 7 " in message
                assert "float32" in message
            else:
                assert size < 1e39 or metric == "cosine"


def test_a_head_for_other_vectors_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"is fitted to {DIM} dimensions and metric 'dot'"):
        he.Collection.create(tmp_path / "c", dim=DIM, quantizer=exported("dot"))


# Heads of PyTorch.

LINEAR = {
    "sign": SignQuantizer,
    "mean": ThresholdQuantizer,
    "median": lambda: ThresholdQuantizer("median"),
    "rotation": RotationQuantizer,
    "hadamard": RotationQuantizer,
    "itq": ITQQuantizer,
    "itq to 11 bits": lambda: ITQQuantizer(11),
    "rabitq": RaBitQuantizer,
}


@every_metric
@pytest.mark.parametrize("name", LINEAR)
def test_a_head_begins_with_the_codes_of_a_quantizer(name, metric, monkeypatch):
    if name == "hadamard":
        monkeypatch.setattr(projections, "_MAX_DENSE_DIM", 1)
    quantizer = LINEAR[name]().fit(anisotropic(N, DIM), metric=metric)
    head = BinaryHead.from_quantizer(quantizer)
    assert (head.dim, head.n_bits, head.metric) == (DIM, quantizer.n_bits, metric)
    rows = anisotropic(200, DIM, seed=1)
    values = head(torch.tensor(rows)).detach().numpy()
    bits = bits_of(quantizer.encode(rows), quantizer.n_bits)
    near = np.abs(values) < 1e-5
    assert near.mean() < 0.01
    np.testing.assert_array_equal((values > 0)[~near], bits.astype(bool)[~near])
    assert (head.codes(rows) != quantizer.encode(rows)).mean() < 0.01


def test_a_head_begins_with_another_head():
    for metric in METRICS:
        head = BinaryHead.from_quantizer(exported(metric))
        rows = anisotropic(50, DIM, seed=1)
        np.testing.assert_array_equal(head.codes(rows), exported(metric).encode(rows))


@pytest.mark.parametrize(
    "quantizer",
    [SimHashQuantizer(16), LocalSearchQuantizer(), MatryoshkaQuantizer(SignQuantizer(), 3), "itq"],
)
def test_other_quantizers_are_no_linear_map(quantizer):
    with pytest.raises(TypeError, match="quantizer must be one of the kinds 'sign', 'threshold'"):
        BinaryHead.from_quantizer(quantizer)


def test_a_quantizer_that_is_not_fitted_has_no_map():
    with pytest.raises(NotFittedError, match="ITQQuantizer must be fitted"):
        BinaryHead.from_quantizer(ITQQuantizer())


def trained(metric="cosine", n_bits=48, bias=True):
    """A head whose every part is away from where it began."""
    head = BinaryHead(DIM, n_bits, metric=metric, bias=bias, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*head.parameters(), head.mean):
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    return head


@every_metric
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_codes_are_the_signs_of_the_head(metric, bias, dtype):
    head = trained(metric, bias=bias).to(dtype)
    rows = torch.tensor(anisotropic(300, DIM, seed=1)).to(dtype)
    quantizer = head.to_quantizer(rows)
    codes = head.codes(rows)
    np.testing.assert_array_equal(codes, quantizer.encode(rows.to(torch.float64).numpy()))
    exact = head.double()  # the head's own weights, without the rounding of its type
    values = exact(rows.double()).detach().numpy()
    near = np.abs(values) < 1e-5
    assert near.mean() < 0.01
    np.testing.assert_array_equal((values > 0)[~near], bits_of(codes, 48).astype(bool)[~near])
    np.testing.assert_array_equal(head.codes(rows[3]), codes[3:4])


def test_a_head_is_exported_truncated():
    head = trained()
    vectors, rows = anisotropic(N, DIM), anisotropic(30, DIM, seed=1)
    for n_bits in (1, 17, 48):
        short = head.truncated(n_bits)
        np.testing.assert_array_equal(
            bits_of(short.codes(rows), n_bits), bits_of(head.codes(rows), 48)[:, :n_bits]
        )
        a, b = short.to_quantizer(vectors), head.to_quantizer(vectors).truncated(n_bits)
        b.fit(vectors)
        assert a.to_json() == b.to_json()
        for name, array in a.arrays().items():
            np.testing.assert_allclose(array, b.arrays()[name], atol=1e-6)
        assert short.weight is not head.weight
    assert trained(bias=False).double().truncated(3).weight.dtype == torch.float64
    with pytest.raises(ValueError, match="n_bits must be at most the head's 48, got 49"):
        head.truncated(49)


def test_a_head_that_learnt_nonsense_is_not_exported():
    head = trained()
    with torch.no_grad():
        head.weight[5, 3] = float("nan")
    with pytest.raises(ValueError, match="frame row 5 holds NaN or infinity"):
        head.to_quantizer(anisotropic(N, DIM))
