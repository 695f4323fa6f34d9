"""Heads whose bits are settled against each other, against a loop over single bits."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quantize import DIM, JIT_OFF, METRICS, anisotropic, as_metric, bits_of

import hamming_engine as he
from hamming_engine import quantize
from hamming_engine.quantize import HeadQuantizer
from hamming_engine.quantize.descent import Descent
from hamming_engine.training import BinaryHead

N = 60 if JIT_OFF else 400
BITS = 40


def settled(values, coupling, n_sweeps=4):
    """Bits of one row, turned one after another, and what is left of the values."""
    bits = [1.0 if value > 0 else -1.0 for value in values]
    n = len(bits)

    def rest(i):
        return values[i] - sum(coupling[i][j] * bits[j] for j in range(n))

    for _ in range(n_sweeps):
        for i in range(n):
            if rest(i) * bits[i] + coupling[i][i] < 0:
                bits[i] = -bits[i]
    return bits, [rest(i) for i in range(n)]


def symmetric(n_bits, seed, scale=0.3):
    coupling = scale * np.random.default_rng(seed).standard_normal((n_bits, n_bits))
    coupling = np.round(coupling + coupling.T, 2)
    np.fill_diagonal(coupling, 0)
    return coupling.astype(np.float32)


@given(st.integers(1, 40), st.integers(1, 4), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=5 if JIT_OFF else 60)
def test_bits_are_turned_one_after_another(n_bits, n_sweeps, given_bits, seed):
    rng = np.random.default_rng(seed)
    coupling = symmetric(n_bits, seed)
    targets = rng.standard_normal((5, n_bits)).astype(np.float32)
    begin = np.where(rng.standard_normal((5, n_bits)) > 0, np.float32(1), np.float32(-1))
    bits, rest = Descent(coupling, n_sweeps).improve(targets, begin if given_bits else None, 2)
    for row in range(5):
        # From given bits on the loop begins with targets that have their signs.
        values = targets[row].astype(np.float64)
        expected = list(begin[row]) if given_bits else [1.0 if v > 0 else -1.0 for v in values]
        for _ in range(n_sweeps):
            for i in range(n_bits):
                left = values[i] - coupling[i].astype(np.float64) @ expected
                if left * expected[i] < -1e-5:
                    expected[i] = -expected[i]
                elif left * expected[i] < 1e-5:
                    return  # too close to call in float32
        np.testing.assert_array_equal(bits[row], expected)
        np.testing.assert_allclose(rest[row], values - coupling @ expected, atol=1e-4)


def quantizer_of(metric="cosine"):
    rng = np.random.default_rng(3)
    frame = rng.standard_normal((BITS, DIM)).astype(np.float32)
    bias = (0.1 * rng.standard_normal(BITS)).astype(np.float32)
    coupling = symmetric(BITS, 4)
    made = HeadQuantizer.from_head(
        frame, bias, anisotropic(N, DIM), coupling=coupling, metric=metric
    )
    return made, frame, bias, coupling


@pytest.mark.parametrize("metric", METRICS)
def test_codes_are_the_signs_of_what_is_left(metric):
    quantizer, frame, bias, coupling = quantizer_of(metric)
    rows = anisotropic(30, DIM, seed=5)
    values = as_metric(rows, metric) @ frame.T.astype(np.float64) + bias
    weights = quantizer.weights(rows).weights
    turned, factors = 0, []
    for row, bits, weight in zip(
        values, bits_of(quantizer.encode(rows), BITS), weights, strict=True
    ):
        _, rest = settled(row, coupling.astype(np.float64))
        sure = np.abs(rest) > 1e-4
        if not (np.abs(row) > 1e-4).all():
            continue
        np.testing.assert_array_equal(bits[sure], np.array(rest)[sure] > 0)
        turned += (bits[sure] != (row > 0)[sure]).sum()
        factors.append(weight @ rest / np.dot(rest, rest))
        np.testing.assert_allclose(weight, factors[0] * np.array(rest), rtol=1e-3, atol=1e-4)
    assert turned > 30  # the coupling does something
    np.testing.assert_array_equal(
        quantizer.encode(rows), np.concatenate([quantizer.encode(row) for row in rows])
    )


def test_kept_cut_and_read_again(tmp_path):
    quantizer, *_ = quantizer_of()
    rows = anisotropic(50, DIM, seed=6)
    cut = quantizer.truncated(17)
    assert (cut.n_bits, cut.dim) == (17, DIM)
    np.testing.assert_array_equal(
        bits_of(cut.encode(rows), 17), bits_of(quantizer.encode(rows), BITS)[:, :17]
    )
    full = quantizer.weights(rows).weights[:, :17]
    short = cut.weights(rows).weights
    np.testing.assert_allclose(short / short[0, 0], full / full[0, 0], rtol=1e-4)
    for one in (quantizer, cut, cut.truncated(5)):
        one.save(tmp_path / "q.npz")
        again = quantize.load(tmp_path / "q.npz")
        np.testing.assert_array_equal(again.encode(rows), one.encode(rows))
        np.testing.assert_array_equal(again.weights(rows).weights, one.weights(rows).weights)
    with he.Collection.create(tmp_path / "c", DIM, quantizer=cut) as docs:
        docs.append(rows)
        found = docs.search(rows[:5], 3, method="hamming")
    with he.Collection.open(tmp_path / "c") as docs:
        np.testing.assert_array_equal(docs.search(rows[:5], 3, method="hamming").ids, found.ids)
        np.testing.assert_array_equal(found.ids[:, 0], np.arange(5))


def trained(n_bits=BITS):
    head = BinaryHead.coupled(anisotropic(N, DIM), n_bits, seed=1)
    with torch.no_grad():
        head.bias.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.3)
        noise = torch.randn(n_bits, n_bits, generator=torch.Generator().manual_seed(1))
        head.coupling.add_(0.05 * noise)  # neither symmetric nor without a diagonal
    return head


@pytest.mark.parametrize("n_bits", [DIM, 3 * DIM // 2, 7])
def test_a_frame_for_fewer_dimensions_to_begin_with(n_bits):
    head = BinaryHead.coupled(anisotropic(N, DIM), n_bits)
    k = min(n_bits, DIM) // 2
    frame = head.weight.detach().numpy()
    assert np.linalg.matrix_rank(frame, tol=1e-3 * np.abs(frame).max()) == k
    gram = head.coupling.detach().numpy()
    assert not np.diag(gram).any()
    # The whole of it is the projection on what the frame spans.
    left, _, _ = np.linalg.svd(frame)
    projection = left[:, :k] @ left[:, :k].T
    np.fill_diagonal(projection, 0)
    np.testing.assert_allclose(gram, projection, atol=1e-4)
    mean = anisotropic(N, DIM)
    mean = (mean / np.linalg.norm(mean, axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(head.mean.numpy(), mean, atol=1e-5)


def test_the_head_and_its_quantizer_agree():
    head = trained()
    rows = anisotropic(200, DIM, seed=7)
    values = head(torch.from_numpy(rows)).detach().numpy()
    quantizer = head.to_quantizer(rows)
    sure = np.abs(values) > 1e-4
    assert sure.mean() > 0.99
    np.testing.assert_array_equal((values > 0)[sure], (bits_of(head.codes(rows), BITS) > 0)[sure])
    np.testing.assert_array_equal(head.codes(rows), quantizer.encode(rows))
    again = BinaryHead.from_quantizer(quantizer)
    np.testing.assert_array_equal(again.codes(rows), head.codes(rows))
    np.testing.assert_allclose(
        head(torch.from_numpy(rows[:4]).reshape(2, 2, DIM)).detach().reshape(4, -1), values[:4]
    )


def test_gradients_take_the_settled_bits_for_given():
    head = trained()
    x = torch.from_numpy(anisotropic(6, DIM, seed=8))
    head(x).pow(3).sum().backward()
    bits = 2.0 * bits_of(head.codes(x), BITS) - 1
    with torch.no_grad():
        gram = ((head.coupling + head.coupling.T) / 2).fill_diagonal_(0)
    weight, bias, coupling = (
        p.detach().clone().requires_grad_() for p in (head.weight, head.bias, gram)
    )
    u = x / x.norm(dim=1, keepdim=True) - head.mean
    values = u @ weight.T + bias - torch.from_numpy(bits).float() @ coupling
    scaled = values / values.square().mean(dim=1, keepdim=True).sqrt()
    scaled.pow(3).sum().backward()
    torch.testing.assert_close(head.weight.grad, weight.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(head.bias.grad, bias.grad, rtol=1e-3, atol=1e-4)
    expected = ((coupling.grad + coupling.grad.T) / 2).fill_diagonal_(0)
    torch.testing.assert_close(head.coupling.grad, expected, rtol=1e-3, atol=1e-4)


def test_a_state_brings_its_coupling():
    head, file = trained(), io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    other = BinaryHead(DIM, BITS)
    other.load_state_dict(torch.load(file, weights_only=True))
    rows = anisotropic(20, DIM)
    np.testing.assert_array_equal(other.codes(rows), head.codes(rows))
    assert "coupled=True" in repr(other)


def test_bad_input():
    rows = anisotropic(20, DIM)
    frame, bias = np.ones((4, DIM)), np.zeros(4)
    for coupling in (np.ones((4, 4)), np.triu(np.ones((4, 4)), 1), np.zeros((3, 4))):
        with pytest.raises(ValueError, match=r"coupling must be symmetric, \(4, 4\)"):
            HeadQuantizer.from_head(frame, bias, rows, coupling=coupling)
    with pytest.raises(ValueError, match="coupling have 5 dimensions, 4 were expected"):
        HeadQuantizer.from_head(frame, bias, rows, coupling=np.zeros((4, 5)))
    with pytest.raises(ValueError, match="n_components must be at most the"):
        BinaryHead.coupled(rows, 10, n_components=11)
    with pytest.raises(ValueError, match="cannot be cut, but its quantizer can"):
        trained().truncated(3)
    with pytest.raises(ValueError, match="take the one it was cut of"):
        BinaryHead.from_quantizer(quantizer_of()[0].truncated(9))
    header, arrays = quantizer_of()[0].to_json(), quantizer_of()[0].arrays()
    for coupling in (arrays["coupling"][:-1], arrays["coupling"] + 1, np.float32(1)):
        with pytest.raises(ValueError, match="no quantizer"):
            quantize.from_stored(header, {**arrays, "coupling": coupling})


def test_prefixes_begin_with_the_first_components():
    rows = anisotropic(N, DIM)
    head = BinaryHead.coupled(rows, 20, prefixes=(11, 5, 20), n_components=15)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    residuals = unit - unit.mean(axis=0)
    length = np.linalg.norm(residuals, axis=1).mean()
    residuals /= np.linalg.norm(residuals, axis=1, keepdims=True)
    _, _, components = np.linalg.svd(residuals.astype(np.float64), full_matrices=False)
    frame = head.weight.detach().numpy() * length / (2 * np.sqrt(20))
    coupling = head.coupling.detach().numpy()
    np.testing.assert_allclose(coupling, 0.5 * (frame @ frame.T) * (1 - np.eye(20)), atol=1e-4)
    for begin, end, first, last in (
        (0, 5, 0, 5),
        (5, 11, 5, 11),
        (11, 15, 11, 15),
        (15, 20, 0, 15),
    ):
        inside = np.sqrt(20 / 15) * frame[begin:end] @ components[first:last].T
        np.testing.assert_allclose(inside @ inside.T, np.eye(end - begin), atol=2e-2)
    with pytest.raises(ValueError, match="prefixes must be at most the 20 bits, got 21"):
        BinaryHead.coupled(rows, 20, prefixes=(21,))
