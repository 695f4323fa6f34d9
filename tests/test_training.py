"""Training: gradients by hand, losses by a slow oracle, and that they can be learnt from."""

import copy
import functools
import io
import itertools
import math
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import hamming_engine as he
from hamming_engine.training import (
    Binarize,
    BinaryContrastiveLoss,
    BinaryDistillationLoss,
    BinaryHead,
    MatryoshkaBinaryLoss,
    SentenceTransformerLoss,
    bit_balance,
    decorrelation,
    sign_ste,
)

torch.set_num_threads(1)  # several test processes share the cores

VARIANTS = ["identity", "clipped", "tanh_ste", "tanh"]
HARD = ["identity", "clipped", "tanh_ste"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EDGES = [-math.inf, -3.0, -1.0, -0.5, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1.0, 3.0, math.inf]


def values(*shape, seed=0, dtype=torch.float32):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape), dtype=dtype)


# Signs that gradients pass.


@pytest.mark.parametrize("variant", HARD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_is_exactly_the_sign(variant, dtype):
    x = torch.tensor(EDGES, dtype=dtype)
    signs = sign_ste(x, variant, temperature=0.3)
    assert signs.dtype == dtype
    assert signs.tolist() == [1.0 if value > 0 else -1.0 for value in x.tolist()]
    assert sign_ste(values(3, 4, 5, dtype=dtype), variant).shape == (3, 4, 5)
    assert sign_ste(torch.tensor(2.0, dtype=dtype), variant).item() == 1
    assert sign_ste(torch.zeros(0, 3, dtype=dtype), variant).shape == (0, 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nan_is_not_hidden(variant):
    assert sign_ste(torch.tensor([1.0, math.nan]), variant).isnan().tolist() == [False, True]


def slope(x, variant, temperature):
    """What gradients are multiplied by, by hand, in float64."""
    if variant == "identity":
        return np.ones_like(x)
    if variant == "clipped":
        return (np.abs(x) <= 1).astype(float)
    return 1 / np.cosh(x / temperature) ** 2 / temperature


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_gradients_are_those_of_the_papers(variant, dtype, temperature):
    x = torch.tensor([-3, -1, -0.75, -0.0, 0.0, 0.5, 1, 1.5], dtype=dtype, requires_grad=True)
    outer = torch.linspace(-2, 2, 8, dtype=dtype)
    (found,) = torch.autograd.grad(sign_ste(x, variant, temperature=temperature), x, outer)
    assert found.dtype == dtype
    expected = outer.double().numpy() * slope(x.detach().double().numpy(), variant, temperature)
    eps = torch.finfo(dtype).eps
    np.testing.assert_allclose(found.double(), expected, rtol=8 * eps, atol=8 * eps / temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_tanh_is_differentiable_and_its_twin_has_the_same_gradient(temperature):
    x = values(4, 3, dtype=torch.float64).requires_grad_()
    soft = functools.partial(sign_ste, variant="tanh", temperature=temperature)
    assert torch.autograd.gradcheck(soft, x)
    assert torch.autograd.gradgradcheck(soft, x)
    np.testing.assert_allclose(soft(x).detach(), np.tanh(x.detach().numpy() / temperature))
    hard = sign_ste(x, "tanh_ste", temperature=temperature)
    outer = values(4, 3, seed=1, dtype=torch.float64)
    for a, b in itertools.pairwise(torch.autograd.grad(y, x, outer)[0] for y in (soft(x), hard)):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@given(st.sampled_from(HARD), st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=20))
def test_straight_through_gradients_are_those_of_a_function_that_has_them(variant, numbers):
    """Hand formulas differentiated by PyTorch: x, clamp(x), tanh(x)."""
    stand_in = {
        "identity": lambda x: x,
        "clipped": lambda x: x.clamp(-1, 1),
        "tanh_ste": torch.tanh,
    }
    x = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(sign_ste(x, variant).sum(), x)
    (expected,) = torch.autograd.grad(stand_in[variant](x).sum(), x)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda: sign_ste([1.0]), TypeError, r"x must be a tensor of floats, got \[1.0\] of type"),
        (lambda: sign_ste(np.ones(3)), TypeError, "x must be a tensor of floats, got array"),
        (lambda: sign_ste(torch.ones(3, dtype=int)), TypeError, r"got a tensor of torch.int64 and"),
        (lambda: sign_ste(torch.ones(3), "hard"), ValueError, "variant must be one of 'identity',"),
        (lambda: sign_ste(torch.ones(3), temperature=0), ValueError, "temperature must be above 0"),
        (lambda: sign_ste(torch.ones(3), temperature="1"), TypeError, "temperature must be a numb"),
        (lambda: sign_ste(torch.ones(3), temperature=math.inf), ValueError, "and finite, got inf"),
        (lambda: sign_ste(torch.ones(3), temperature=math.nan), ValueError, "and finite, got nan"),
        (lambda: Binarize("soft"), ValueError, "variant must be one of 'identity', 'clipped', "),
        (lambda: Binarize(temperature=-1), ValueError, "temperature must be above 0 and finite"),
        (lambda: Binarize(annealing=-0.1), ValueError, "annealing must be at least 0 and finite"),
        (lambda: Binarize(annealing=True), TypeError, "annealing must be a number, got True"),
        (lambda: BinaryHead(0), ValueError, "dim must be at least 1, got 0"),
        (lambda: BinaryHead(4, 2.0), TypeError, "n_bits must be an integer, got 2.0"),
        (lambda: BinaryHead(4, metric="ip"), ValueError, "metric must be one of 'cosine', 'dot'"),
        (lambda: BinaryHead(4, seed=-1), ValueError, "seed must be at least 0, got -1"),
        (lambda: BinaryHead(4)(np.ones(4)), TypeError, "x must be a tensor of floats, got array"),
        (lambda: BinaryHead(4)(torch.ones(3, 5)), ValueError, r"x must have shape \(..., 4\), got"),
        (lambda: BinaryHead(4)(torch.tensor(1.0)), ValueError, r"\(..., 4\), got \(\)"),
        (lambda: BinaryHead(4).codes(torch.ones(3, 5)), ValueError, "5 dimensions, 4 were expecte"),
        (lambda: BinaryHead(4).to_quantizer(np.ones((9, 5))), ValueError, "vectors have 5 dimensi"),
        (lambda: BinaryHead(4).truncated(0), ValueError, "n_bits must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input(use, error, message):
    with pytest.raises(error, match=message):
        use()


# Modules.


@pytest.mark.parametrize("variant", VARIANTS)
def test_binarize_is_exact_in_evaluation(variant):
    module, x = Binarize(variant, temperature=0.5), torch.tensor(EDGES, dtype=torch.float64)
    torch.testing.assert_close(module(x), sign_ste(x, variant, temperature=0.5), rtol=0, atol=0)
    module.eval()
    assert module(x).tolist() == [1.0 if value > 0 else -1.0 for value in EDGES]


def test_the_temperature_falls_and_is_resumed():
    module = Binarize("tanh", temperature=2.0, annealing=0.1)
    seen = []
    for _ in range(5):
        seen.append(module.temperature)
        module.step()
    np.testing.assert_allclose(seen, [2 / math.sqrt(1 + 0.1 * n) for n in range(5)])
    resumed = Binarize("tanh", temperature=2.0, annealing=0.1)
    resumed.load_state_dict(saved(module.state_dict()))
    assert resumed.temperature == module.temperature == 2 / math.sqrt(1.5)
    torch.testing.assert_close(resumed(values(3)), torch.tanh(values(3) / module.temperature))
    assert Binarize().temperature == 1
    assert module.half().n_steps.dtype == torch.int64


def saved(state):
    """Through a file, without pickled code."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_what_a_head_computes(metric):
    head = BinaryHead(6, 4, metric=metric, seed=1).double()
    with torch.no_grad():
        head.mean += values(6, seed=2, dtype=torch.float64)
        head.bias += values(4, seed=3, dtype=torch.float64)
    x = 5 * values(7, 6, dtype=torch.float64)
    u = x.numpy() / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x.numpy()
    z = (u - head.mean.numpy()) @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    expected = z / np.sqrt((z**2).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(head(x).detach(), expected, rtol=1e-12)
    np.testing.assert_allclose(head(x.reshape(7, 1, 6)).detach(), expected[:, None], rtol=1e-12)
    np.testing.assert_allclose(head(x[0]).detach(), expected[0], rtol=1e-12)
    assert torch.autograd.gradcheck(head, x.requires_grad_())


def test_where_a_head_begins():
    np.testing.assert_array_equal(BinaryHead(9).weight.detach(), np.eye(9))
    for n_bits in (4, 9, 20):
        weight = BinaryHead(9, n_bits, seed=5).weight.detach().double().numpy()
        first = weight[: min(n_bits, 9)]
        np.testing.assert_allclose(first @ first.T, np.eye(len(first)), atol=1e-6)
        np.testing.assert_allclose((weight**2).sum(axis=1), 1, atol=1e-6)
        again = BinaryHead(9, n_bits, seed=5).weight.detach()
        np.testing.assert_array_equal(weight, again.double())
    assert (BinaryHead(9, 4, seed=5).weight != BinaryHead(9, 4, seed=6).weight).any()
    x = values(50, 9)
    np.testing.assert_array_equal(BinaryHead(9).codes(x), he.pack_signs(x.numpy()))
    assert BinaryHead(9, bias=False).bias is None
    assert [*dict(BinaryHead(9).named_parameters())] == ["weight", "bias"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_a_head_of_all_zeros_is_all_zeros(dtype, metric):
    head = BinaryHead(5, metric=metric).to(dtype)
    x = torch.zeros(2, 5, dtype=dtype, requires_grad=True)
    out = head(x)
    assert out.dtype == dtype
    assert not out.any()
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_heads_take_other_types_than_their_own():
    head, x = BinaryHead(8, 5), values(3, 8)
    for dtype in DTYPES:
        torch.testing.assert_close(head(x.to(dtype)), head(x), rtol=0.02, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(head(x).float(), head(x).float(), rtol=0.05, atol=0.05)


def test_the_state_of_a_head_is_resumed():
    head = BinaryHead.from_quantizer(he.quantize.ITQQuantizer(5).fit(values(99, 8).numpy()))
    other = BinaryHead(8, 5, seed=9)
    other.load_state_dict(saved(head.state_dict()))
    torch.testing.assert_close(other(values(9, 8)), head(values(9, 8)), rtol=0, atol=0)


# Losses, against loops over Python's numbers.


def spread(row):
    size = math.sqrt(sum(v * v for v in row) / len(row))
    return [v / size for v in row]


def sign(value):
    return 1.0 if value > 0 else -1.0


def plain_scores(queries, documents, kind):
    """One by one; documents of each query are lists of their own."""
    out = []
    for i, query in enumerate(queries):
        row = []
        for document in documents[i] if documents.ndim == 3 else documents:
            left = [sign(v) for v in query] if kind == "hamming" else spread(query)
            row.append(sum(a * sign(b) for a, b in zip(left, document, strict=True)) / len(left))
        out.append(row)
    return out


def log_softmax(row):
    top = max(row)
    total = math.log(sum(math.exp(v - top) for v in row)) + top
    return [v - total for v in row]


def plain_contrastive(scores, own, counts, objective, temperature, margin):
    terms = []
    for i, row in enumerate(scores):
        kept = [j for j in range(len(row)) if counts[i][j] or j == own[i]]
        if objective == "infonce":
            logs = log_softmax([row[j] / temperature for j in kept])
            terms.append(-logs[kept.index(own[i])])
        else:
            terms += [max(0, margin - (row[own[i]] - row[j])) for j in kept if j != own[i]]
    return sum(terms) / max(1, len(terms))


def plain_distillation(scores, teacher, counts, objective, temperature, teacher_temperature):
    terms = []
    for i, row in enumerate(scores):
        kept = [j for j in range(len(row)) if counts[i][j]]
        ours = [row[j] / temperature for j in kept]
        theirs = [teacher[i][j] / teacher_temperature for j in kept]
        if not kept:
            terms.append(0)
        elif objective == "kl":
            pairs = zip(log_softmax(theirs), log_softmax(ours), strict=True)
            terms.append(sum(math.exp(p) * (p - q) for p, q in pairs))
        else:
            pairs = [*itertools.combinations(range(len(kept)), 2)]
            errors = [((ours[a] - ours[b]) - (theirs[a] - theirs[b])) ** 2 for a, b in pairs]
            terms.append(sum(errors) / max(1, len(errors)))
    return sum(terms) / len(terms)


def batch(own_documents, n=5, m=8, n_bits=11, seed=0):
    shape = (n, m, n_bits) if own_documents else (m, n_bits)
    queries = values(n, n_bits, seed=seed, dtype=torch.float64)
    documents = 3 * values(*shape, seed=seed + 1, dtype=torch.float64)
    mask = torch.tensor(np.random.default_rng(seed).random((n, m)) > 0.3)
    return queries, documents, mask


SETTINGS = [
    pytest.param(scores, own, masked, id=f"{scores}-{'own' if own else 'shared'}-{masked}")
    for scores in ("hamming", "asymmetric")
    for own in (False, True)
    for masked in ("all", "masked")
]


@pytest.mark.parametrize(("scores", "own", "masked"), SETTINGS)
@pytest.mark.parametrize("objective", ["infonce", "margin"])
def test_contrastive_loss(objective, scores, own, masked):
    queries, documents, mask = batch(own)
    loss = BinaryContrastiveLoss(objective, scores=scores, temperature=0.2, margin=0.3)
    counts = mask if masked == "masked" else torch.ones_like(mask)
    found = loss(queries, documents, mask=mask if masked == "masked" else None)
    positives = [0] * 5 if own else [*range(5)]
    expected = plain_contrastive(
        plain_scores(queries, documents, scores), positives, counts, objective, 0.2, 0.3
    )
    assert found.dtype == torch.float64
    assert expected > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    single = loss(queries.float(), documents.float(), mask=counts)
    np.testing.assert_allclose(single, expected, rtol=1e-5)


@pytest.mark.parametrize(("scores", "own", "masked"), SETTINGS)
@pytest.mark.parametrize("objective", ["kl", "margin_mse"])
def test_distillation_loss(objective, scores, own, masked):
    queries, documents, mask = batch(own)
    mask[1] = False  # a query without documents
    mask[2] = torch.arange(8) == 3  # and one with a single one
    loss = BinaryDistillationLoss(
        objective, scores=scores, temperature=0.2, teacher_temperature=0.1
    )
    teacher = values(5, 8, seed=7, dtype=torch.float64)
    counts = mask if masked == "masked" else torch.ones_like(mask)
    found = loss(queries, documents, teacher, mask=mask if masked == "masked" else None)
    expected = plain_distillation(
        plain_scores(queries, documents, scores), teacher, counts, objective, 0.2, 0.1
    )
    assert expected > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    embeddings = values(5, 6, seed=8), values(*documents.shape[:-1], 6, seed=9)
    left, right = (e / e.norm(dim=-1, keepdim=True) for e in embeddings)
    cosines = (left[:, None] * (right if own else right[None])).sum(dim=-1)
    np.testing.assert_allclose(
        loss(queries, documents, embeddings, mask=counts),
        loss(queries, documents, cosines, mask=counts),
        rtol=1e-5,
    )


def test_margin_mse_of_two_documents_is_that_of_the_paper():
    queries, documents, _ = batch(own_documents=True, m=2)
    teacher = values(5, 2, seed=3, dtype=torch.float64)
    scores = np.array(plain_scores(queries, documents, "hamming"))
    margins = scores[:, 0] - scores[:, 1]
    expected = nn.functional.mse_loss(torch.tensor(margins), teacher[:, 0] - teacher[:, 1])
    found = BinaryDistillationLoss("margin_mse")(queries, documents, teacher)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_perfect_student_loses_nothing():
    queries, documents, _ = batch(own_documents=False)
    for objective in ("kl", "margin_mse"):
        loss = BinaryDistillationLoss(objective)
        teacher = loss.similarities(queries, documents)
        np.testing.assert_allclose(loss(queries, documents, teacher), 0, atol=1e-12)
        # Levels of scores do not matter.
        np.testing.assert_allclose(loss(queries, documents, teacher + 3), 0, atol=1e-12)


@pytest.mark.parametrize("own", [False, True])
def test_scores_are_those_of_the_library(own):
    """1 - 2 * distance / n_bits, and float queries against codes."""
    queries, documents, _ = batch(own, n_bits=70)
    codes = [he.pack_signs(e.reshape(-1, 70).numpy()) for e in (queries, documents)]
    distances = np.bitwise_count(codes[0][:, None] ^ codes[1][None]).sum(axis=2, dtype=int)
    signs = 2.0 * he.unpack_codes(codes[1], 70) - 1
    unit = queries.numpy() / np.linalg.norm(queries, axis=1, keepdims=True)
    for kind, expected in (
        ("hamming", 1 - 2 * distances / 70),
        ("asymmetric", unit @ signs.T / np.sqrt(70)),
    ):
        found = BinaryContrastiveLoss(scores=kind).similarities(queries, documents).numpy()
        if own:
            expected = expected.reshape(5, 5, 8)[np.arange(5), np.arange(5)]
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert np.abs(found).max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_counts_of_bits_are_exact_in_half_precision(dtype):
    x, y = values(6, 1000).to(dtype), values(9, 1000, seed=1).to(dtype)
    loss = BinaryContrastiveLoss()
    exact = loss.similarities(x.double(), y.double()).float()
    torch.testing.assert_close(loss.similarities(x, y), exact, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss.similarities(x, y), exact, rtol=0, atol=0)
        found = decorrelation(x)
    torch.testing.assert_close(found, decorrelation(x.double()).float())


@settings(max_examples=60)
@given(
    st.sampled_from(["contrastive", "margin", "kl", "margin_mse"]),
    st.sampled_from(["hamming", "asymmetric"]),
    st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True),
    st.integers(0, 99),
)
def test_matryoshka_is_the_weighted_sum(name, scores, prefixes, seed):
    loss = {
        "contrastive": BinaryContrastiveLoss(scores=scores),
        "margin": BinaryContrastiveLoss("margin", scores=scores),
        "kl": BinaryDistillationLoss(scores=scores),
        "margin_mse": BinaryDistillationLoss("margin_mse", scores=scores),
    }[name]
    queries, documents, mask = batch(own_documents=bool(seed % 2), n_bits=12, seed=seed)
    more = [values(5, 8, seed=seed + 5)] if "contrast" not in name and name != "margin" else []
    weights = np.random.default_rng(seed).uniform(0.1, 2, len(prefixes)).tolist()
    parts = [loss(queries[:, :p], documents[..., :p], *more, mask=mask) for p in prefixes]
    found = MatryoshkaBinaryLoss(loss, prefixes, weights)(queries, documents, *more, mask=mask)
    expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    plain = MatryoshkaBinaryLoss(loss, prefixes)(queries, documents, *more, mask=mask)
    np.testing.assert_allclose(plain, sum(parts), rtol=1e-9)


def test_steps_are_counted_once_a_call_and_in_training_alone():
    binarize = Binarize("tanh", annealing=0.1)
    inner = BinaryContrastiveLoss(binarize=binarize)
    queries, documents, _ = batch(own_documents=False)
    for loss in (inner, MatryoshkaBinaryLoss(inner, [3, 5, 11])):
        before = int(binarize.n_steps)
        loss.train()
        soft = loss(queries, documents)
        assert int(binarize.n_steps) == before + 1
        loss.eval()
        hard = loss(queries, documents)
        assert int(binarize.n_steps) == before + 1
        assert soft != hard
    other = MatryoshkaBinaryLoss(
        BinaryContrastiveLoss(binarize=Binarize("tanh", annealing=0.1)), [3]
    )
    other.load_state_dict(saved(MatryoshkaBinaryLoss(inner, [3]).state_dict()))
    assert other.loss.binarize.temperature == binarize.temperature < 1
    assert BinaryContrastiveLoss(binarize="identity").binarize.variant == "identity"


@pytest.mark.parametrize("scores", ["hamming", "asymmetric"])
def test_losses_of_the_smooth_variant_are_differentiable(scores):
    """With tanh nothing is straight through, so that numerical gradients check all the rest."""
    queries, documents, mask = batch(own_documents=False, n=3, m=4, n_bits=5)
    queries.requires_grad_()
    documents.requires_grad_()
    teacher = values(3, 4, seed=5, dtype=torch.float64)
    mask = mask[:3, :4]
    smooth = {"scores": scores, "binarize": "tanh"}
    for loss, more in (
        (BinaryContrastiveLoss(temperature=0.5, **smooth), ()),
        (BinaryContrastiveLoss("margin", margin=0.4, **smooth), ()),
        (BinaryDistillationLoss(temperature=0.5, teacher_temperature=0.5, **smooth), (teacher,)),
        (BinaryDistillationLoss("margin_mse", **smooth), (teacher,)),
        (MatryoshkaBinaryLoss(BinaryContrastiveLoss(temperature=0.5, **smooth), [2, 5]), ()),
    ):
        call = functools.partial(loss, mask=mask)
        assert torch.autograd.gradcheck(
            lambda q, d, c=call, m=more: c(q, d, *m), (queries, documents)
        )
    for penalty in (bit_balance, decorrelation):
        assert torch.autograd.gradcheck(lambda x, p=penalty: p(x, "tanh"), (documents,))


def test_no_gradient_goes_to_the_teacher():
    queries, documents, _ = batch(own_documents=False)
    teacher = values(5, 8).requires_grad_()
    embeddings = [values(5, 4).requires_grad_(), values(8, 4).requires_grad_()]
    queries.requires_grad_()
    for known in (teacher, tuple(embeddings)):
        BinaryDistillationLoss()(queries, documents, known).backward()
    assert queries.grad.abs().sum() > 0
    assert teacher.grad is embeddings[0].grad is embeddings[1].grad is None


# Regularisers.


def test_bit_balance():
    x = torch.tensor([[1.0, 2, -1, 0], [3, -1, -2, 0], [1, 1, -1, 0], [2, -2, -1, 0]])
    np.testing.assert_allclose(bit_balance(x), (1 + 0 + 1 + 1) / 4)
    x = values(20, 7, dtype=torch.float64)
    expected = np.mean([np.mean([sign(v) for v in column]) ** 2 for column in x.T])
    np.testing.assert_allclose(bit_balance(x), expected)


def test_decorrelation():
    x = torch.tensor([[1.0, 2, -1], [3, 1, 2], [-1, -1, 4], [-2, -2, -3]])
    np.testing.assert_allclose(decorrelation(x), (1 + 0 + 0) / 3)
    np.testing.assert_allclose(decorrelation(torch.cat([x, -x], dim=1)), 7 / 15)
    assert decorrelation(values(5, 1)) == 0
    x = values(20, 7, dtype=torch.float64)
    signs = np.where(x > 0, 1.0, -1.0)
    pairs = [
        np.mean(signs[:, a] * signs[:, b]) ** 2 for a, b in itertools.combinations(range(7), 2)
    ]
    np.testing.assert_allclose(decorrelation(x), np.mean(pairs))


# They can be learnt from.


def clustered(n, seed):
    """Pairs of noisy copies of a point, in few of many directions, away from the origin."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(9).standard_normal((24, 24)))[0]
    points = rng.standard_normal((n, 24)) / (1 + np.arange(24)) + 0.3
    noisy = [(points + 0.05 * rng.standard_normal(points.shape)) @ turn for _ in range(2)]
    return [torch.tensor(each, dtype=torch.float32) for each in noisy]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scores", ["hamming", "asymmetric"])
@pytest.mark.parametrize("name", ["infonce", "margin", "kl", "margin_mse"])
def test_losses_fall(name, scores, variant):
    torch.manual_seed(0)
    head = BinaryHead(24, 64)
    binarize = Binarize(variant, annealing=1.0)
    distils = name in ("kl", "margin_mse")
    make = BinaryDistillationLoss if distils else BinaryContrastiveLoss
    loss = MatryoshkaBinaryLoss(make(name, scores=scores, binarize=binarize), [32, 64])
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    held_out = clustered(64, seed=100)

    def evaluated():
        loss.eval()
        with torch.no_grad():
            value = loss(*map(head, held_out), *([held_out] if distils else []))
        loss.train()
        return value.item()

    first = evaluated()
    for step in range(40):
        left, right = clustered(64, seed=step)
        optimizer.zero_grad()
        loss(head(left), head(right), *([(left, right)] if distils else [])).backward()
        optimizer.step()
    assert evaluated() < 0.8 * first


@pytest.mark.parametrize("penalty", [bit_balance, decorrelation])
@pytest.mark.parametrize("variant", VARIANTS)
def test_regularisers_fall(penalty, variant):
    head, (x, _) = BinaryHead(24, 16), clustered(256, seed=1)
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    first = penalty(head(x)).item()
    for _ in range(60):
        optimizer.zero_grad()
        penalty(head(x), variant).backward()
        optimizer.step()
    assert penalty(head(x)).item() < 0.5 * first


# Bad input of losses.

Q, D = torch.ones(3, 4), torch.ones(5, 4)
T = torch.ones(3, 5)
CONTRAST, DISTIL = BinaryContrastiveLoss(), BinaryDistillationLoss()


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda: BinaryContrastiveLoss("triplet"), ValueError, "objective must be one of 'infonce"),
        (lambda: BinaryContrastiveLoss(scores="float"), ValueError, "scores must be one of 'hamm"),
        (lambda: BinaryContrastiveLoss(temperature=0), ValueError, "temperature must be above 0"),
        (lambda: BinaryContrastiveLoss(margin=-1), ValueError, "margin must be above 0"),
        (lambda: BinaryContrastiveLoss(binarize="x"), ValueError, "variant must be one of 'ident"),
        (lambda: BinaryContrastiveLoss(binarize=3), TypeError, "binarize must be a variant's name"),
        (lambda: BinaryDistillationLoss("mse"), ValueError, "objective must be one of 'kl', 'marg"),
        (lambda: BinaryDistillationLoss(temperature=-1), ValueError, "temperature must be above 0"),
        (lambda: BinaryDistillationLoss(teacher_temperature=0), ValueError, "teacher_temperature"),
        (lambda: CONTRAST(Q.numpy(), D), TypeError, "queries must be a tensor of floats, got arra"),
        (lambda: CONTRAST(Q, D.int()), TypeError, "documents must be a tensor of floats, got a t"),
        (lambda: CONTRAST(Q[0], D), ValueError, r"queries must have shape \(n, n_bits\), got \(4,"),
        (lambda: CONTRAST(Q[:0], D), ValueError, r"queries must not be empty, got shape \(0, 4\)"),
        (lambda: CONTRAST(Q, D[:, :3]), ValueError, r"documents must have shape \(m, 4\) or \(3,"),
        (lambda: CONTRAST(Q, D[None]), ValueError, r"\(3, m, 4\), got \(1, 5, 4\)"),
        (lambda: CONTRAST(Q, D[0]), ValueError, r"\(3, m, 4\), got \(4,\)"),
        (lambda: CONTRAST(D, Q), ValueError, "documents must be at least as many as the 5 queries"),
        (lambda: CONTRAST(Q, D, mask=T), ValueError, r"mask must be a tensor of bools and shape"),
        (lambda: CONTRAST(Q, D, mask=T[:2].bool()), ValueError, r"shape \(3, 5\), got a tensor of"),
        (lambda: CONTRAST(Q, D, mask=[True]), ValueError, r"got \[True\] of type list"),
        (lambda: DISTIL(Q, D, T[:, :4]), ValueError, r"teacher has scores of shape \(3, 4\), expe"),
        (lambda: DISTIL(Q, D, T.int()), TypeError, "teacher must be a tensor of floats, got a ten"),
        (lambda: DISTIL(Q, D, "x"), TypeError, "teacher must be a tensor of floats, got 'x'"),
        (lambda: DISTIL(Q, D, (Q, "x")), TypeError, "teacher must be a tensor of floats, got 'x'"),
        (lambda: DISTIL(Q, D, (Q, D[:4])), ValueError, r"scores of shape \(3, 4\), expected \(3,"),
        (lambda: DISTIL(Q, D, (Q, D[:, :2])), ValueError, r"teacher's documents must have shape"),
        (lambda: DISTIL(Q, D, (Q, D, D)), TypeError, "teacher must be a tensor of floats, got"),
        (lambda: MatryoshkaBinaryLoss(nn.Identity(), [2]), TypeError, "loss must be a BinaryContr"),
        (lambda: MatryoshkaBinaryLoss(CONTRAST, []), ValueError, "prefixes must be distinct, and"),
        (lambda: MatryoshkaBinaryLoss(CONTRAST, [2, 2]), ValueError, r"distinct.*got \(2, 2\)"),
        (lambda: MatryoshkaBinaryLoss(CONTRAST, [0]), ValueError, "prefixes must be at least 1"),
        (lambda: MatryoshkaBinaryLoss(CONTRAST, [1.5]), TypeError, "prefixes must be an integer"),
        (lambda: MatryoshkaBinaryLoss(CONTRAST, 3), TypeError, "prefixes must be a sequence, got"),
        (lambda: MatryoshkaBinaryLoss(CONTRAST, [1], [-1]), ValueError, "weights must be above 0"),
        (lambda: MatryoshkaBinaryLoss(CONTRAST, [1], [1, 1]), ValueError, "as many as the 1 prefi"),
        (lambda: MatryoshkaBinaryLoss(CONTRAST, [9])(Q, D), ValueError, "4 bits, the longest pref"),
        (lambda: MatryoshkaBinaryLoss(CONTRAST, [2])(Q, D[0]), ValueError, "documents must have s"),
        (lambda: bit_balance(torch.ones(3)), ValueError, r"x must have shape \(n, n_bits\), not e"),
        (lambda: bit_balance(torch.ones(0, 3)), ValueError, "not empty, got a tensor of torch.flo"),
        (lambda: decorrelation([1.0]), TypeError, "x must be a tensor of floats, got"),
        (lambda: decorrelation(Q, "x"), ValueError, "variant must be one of 'identity'"),
    ],
)  # fmt: skip
def test_bad_input_of_losses(use, error, message):
    with pytest.raises(error, match=message):
        use()


# As sentence-transformers takes them.


class Words(nn.Module):
    """What sentence-transformers' models are to a loss: a dict of tensors in, and out."""

    def __init__(self, dim=12, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.EmbeddingBag(50, dim)
        self.dropout = nn.Dropout(0.5)

    def forward(self, features):
        features["sentence_embedding"] = self.dropout(self.words(features["input_ids"]))
        return features


def columns(n_columns, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {"input_ids": torch.randint(0, 50, (n, 5), generator=generator)} for _ in range(n_columns)
    ]


def embed(model, head, features):
    return head(model.words(features["input_ids"])).detach()


@pytest.mark.parametrize("n_columns", [2, 3, 4])
@pytest.mark.parametrize("prefixes", [None, [4, 16]])
def test_adapter_of_contrastive_losses(n_columns, prefixes):
    model, head, inner = Words().eval(), BinaryHead(12, 16), BinaryContrastiveLoss()
    loss = MatryoshkaBinaryLoss(inner, prefixes) if prefixes else inner
    adapter = SentenceTransformerLoss(model, loss, head=head)
    features = columns(n_columns)
    queries, *documents = (embed(model, head, column) for column in features)
    found = adapter(iter(features), torch.zeros(6))
    torch.testing.assert_close(found, loss(queries, torch.cat(documents)))
    assert all("sentence_embedding" not in column for column in features)
    found.backward()
    assert model.words.weight.grad.abs().sum() > 0
    assert head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("n_columns", [1, 2, 3])
@pytest.mark.parametrize("objective", ["kl", "margin_mse"])
def test_adapter_with_a_teacher(n_columns, objective):
    model, teacher, head = Words().eval(), Words(20, seed=1).train(), BinaryHead(12)
    loss = BinaryDistillationLoss(objective)
    adapter = SentenceTransformerLoss(model, loss, head=head, teacher=teacher)
    features = columns(n_columns)
    ours = [embed(model, head, column) for column in features]
    theirs = [embed(teacher, nn.Identity(), column) for column in features]
    if n_columns == 1:
        ours, theirs = 2 * ours, 2 * theirs
    mask = ~torch.eye(6, dtype=bool) if n_columns == 1 else None
    expected = loss(ours[0], torch.cat(ours[1:]), (theirs[0], torch.cat(theirs[1:])), mask=mask)
    torch.testing.assert_close(adapter(features), expected)
    adapter.train()
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("objective", ["kl", "margin_mse"])
def test_adapter_with_scores_as_labels(objective):
    model, loss = Words().eval(), BinaryDistillationLoss(objective)
    adapter = SentenceTransformerLoss(model, loss, balance=0.5, decorrelate=0.25)
    features, labels = columns(4), values(6, 3)
    queries, *documents = (embed(model, nn.Identity(), column) for column in features)
    stacked = torch.stack(documents, dim=1)
    expected = loss(queries, stacked, labels)
    flat = stacked.reshape(18, 12)
    expected += 0.5 * bit_balance(flat) + 0.25 * decorrelation(flat)
    torch.testing.assert_close(adapter(features, labels), expected)


def test_the_adapter_has_the_mode_of_the_model():
    """A trainer calls train and eval of the model, not of the loss."""
    binarize = Binarize("tanh", annealing=1.0)
    model = Words()
    adapter = SentenceTransformerLoss(model, BinaryContrastiveLoss(binarize=binarize))
    adapter(columns(2))
    assert int(binarize.n_steps) == 1
    model.eval()
    first = adapter(columns(2))
    assert int(binarize.n_steps) == 1
    assert not binarize.training
    model.train()
    adapter(columns(2))
    assert int(binarize.n_steps) == 2
    model.eval()
    assert adapter(columns(2)) == first


def test_an_adapter_is_trained_copied_and_resumed():
    adapter = SentenceTransformerLoss(
        Words(), BinaryContrastiveLoss(), head=BinaryHead(12, 16), balance=0.1
    )
    optimizer = torch.optim.Adam(adapter.parameters(), 0.02)
    losses = []
    for step in range(60):
        queries = columns(1, n=16, seed=step % 3)[0]
        optimizer.zero_grad()
        loss = adapter([queries, queries])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])
    again = SentenceTransformerLoss(
        Words(seed=5), BinaryContrastiveLoss(), head=BinaryHead(12, 16), balance=0.1
    )
    again.load_state_dict(saved(adapter.state_dict()))
    adapter.eval(), again.eval()
    expected = adapter(columns(2))
    assert again(columns(2)) == copy.deepcopy(adapter)(columns(2)) == expected


def test_what_model_cards_say():
    config = SentenceTransformerLoss(
        Words(), MatryoshkaBinaryLoss(BinaryContrastiveLoss(), [4, 12]), head=BinaryHead(12)
    ).get_config_dict()
    assert config["loss"] == "BinaryContrastiveLoss"
    assert (config["prefixes"], config["weights"]) == ([4, 12], [1.0, 1.0])
    assert config["head"] == "BinaryHead(12, 12, metric='cosine', bias=True, coupled=False)"
    assert "prefixes" not in SentenceTransformerLoss(Words(), DISTIL).get_config_dict()
    assert str(Binarize("tanh")) == "Binarize('tanh', temperature=1.0, annealing=0.0)"


MODEL, adapted = Words(), SentenceTransformerLoss


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda: SentenceTransformerLoss("m", CONTRAST), TypeError, "model must be a torch module"),
        (lambda: adapted(MODEL, nn.L1Loss()), TypeError, "loss must be a BinaryCon"),
        (lambda: adapted(MODEL, CONTRAST, head=3), TypeError, "head must be a torc"),
        (lambda: adapted(MODEL, DISTIL, teacher=3), TypeError, "teacher must be a "),
        (lambda: adapted(MODEL, DISTIL, teacher=MODEL), ValueError, "another module"),
        (lambda: adapted(MODEL, CONTRAST, teacher=Words()), ValueError, "be None: a"),
        (lambda: adapted(MODEL, CONTRAST, balance=-1), ValueError, "balance must be"),
        (lambda: adapted(MODEL, CONTRAST, decorrelate="x"), TypeError, "decorrelat"),
        (lambda: adapted(MODEL, CONTRAST)(columns(1)), ValueError, "two columns at l"),
        (lambda: adapted(MODEL, DISTIL)(columns(3)), ValueError, "got None of type"),
        (lambda: adapted(MODEL, DISTIL)(columns(2), torch.ones(6)), ValueError, r"labels must be"),
        (lambda: adapted(MODEL, DISTIL)(columns(3), torch.ones(6)), ValueError, r"of shape \(6, 2"),
    ],
)  # fmt: skip
def test_bad_input_of_the_adapter(use, error, message):
    with pytest.raises(error, match=message):
        use()


# The package.


def test_without_torch_the_extra_is_named():
    program = """
import sys
sys.modules["torch"] = None
import hamming_engine as he
for load in (lambda: he.training, lambda: __import__("hamming_engine.training")):
    try:
        load()
    except ImportError as error:
        print(error)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    message = "torch is needed for this: pip install 'hamming_engine[train]'"
    assert out.stdout.splitlines() == [message, message], out.stderr


def test_it_is_loaded_when_it_is_used():
    program = """
import sys, hamming_engine as he
from hamming_engine import quantize
assert "torch" not in sys.modules
assert "training" in dir(he)
print(he.training.sign_ste.__name__, "torch" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert out.stdout.split() == ["sign_ste", "True"], out.stderr


@pytest.mark.parametrize("weighted", [False, True])
def test_correlations_are_those_of_numpy(weighted):
    rng = np.random.default_rng(4)
    queries, documents = rng.standard_normal((5, 16)), rng.standard_normal((9, 16))
    teacher, mask = rng.standard_normal((5, 9)), rng.random((5, 9)) < 0.7
    weights = rng.random((5, 9)) if weighted else np.ones((5, 9))
    scores = np.where(queries > 0, 1, -1) @ np.where(documents > 0, 1, -1).T / 16
    correlations = []
    for ours, theirs, weight, counts in zip(scores, teacher, weights, mask, strict=True):
        covariance = np.cov(ours[counts], theirs[counts], aweights=weight[counts], ddof=0)
        correlations.append(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))
    loss = BinaryDistillationLoss("correlation")
    found = loss(
        *(torch.from_numpy(x) for x in (queries, documents, teacher)),
        mask=torch.from_numpy(mask),
        weights=torch.from_numpy(weights) if weighted else None,
    )
    assert float(found) == pytest.approx(1 - np.mean(correlations), abs=1e-5)
    with pytest.raises(ValueError, match=r"weights must have shape \(5, 9\), got \(5, 8\)"):
        loss(
            *(torch.from_numpy(x) for x in (queries, documents, teacher)),
            weights=torch.ones(5, 8),
        )
