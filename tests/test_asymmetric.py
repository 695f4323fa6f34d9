"""Search by the float query against the oracle: the same rows in the same order."""

import contextlib
import functools
import os

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import given

from hamming_engine.checks import frozen
from hamming_engine.held import HeldCodes, Piece
from hamming_engine.indexes import asymmetric, scan
from hamming_engine.indexes.asymmetric import AsymmetricScan, bytes_per_query
from hamming_engine.indexes.where import Where
from hamming_engine.kernels import launch
from hamming_engine.kernels.find import MAX_BLOCK_WORDS, SIXES
from hamming_engine.kernels.methods import METHODS, PLAIN, best_method
from hamming_engine.kernels.topk import (
    LIMIT,
    add_to_reservoir,
    keys_of_reservoirs,
    least_score_of,
    new_reservoirs,
    rank_of,
)

JIT_OFF = os.environ.get("NUMBA_DISABLE_JIT") == "1"
MAX_ROWS, MAX_BITS, MAX_QUERIES = (150, 130, 5) if JIT_OFF else (700, 600, 11)
NO_FACTORS = np.zeros((0, 2), np.float32)

METHODS_AND_SIXES = [*METHODS, "sixes"]


@contextlib.contextmanager
def tables_of(method):
    """The number of a method; with "sixes" tables of six bits, whatever the processor has."""
    with pytest.MonkeyPatch.context() as patch:
        if method == "sixes":
            patch.setattr(asymmetric, "weighted_tables", lambda _: SIXES)
        # Scores beyond float32 are infinite; with the JIT off NumPy would warn of it.
        with np.errstate(over="ignore"):
            yield METHODS.get(method, METHODS["popcount"])


@contextlib.contextmanager
def launches(parallel):
    """With ``parallel`` the smallest work goes through the parallel drivers."""
    with pytest.MonkeyPatch.context() as patch:
        if parallel:
            patch.setattr(launch, "SMALL_WORK", 0)
            patch.setattr(scan, "SMALL_SCAN", 0)
        yield


def weights_of(kind, shape, rng):
    normal = rng.standard_normal(shape)
    return {
        "normal": normal,
        "whole": rng.integers(-5, 6, shape),  # ties
        "few": normal * (rng.random(shape) < 0.05),
        "one large": normal * np.where(np.arange(shape[1]) == shape[1] // 2, 1000, 1),
        "huge": 3e38 * np.tanh(normal),
        "tiny": 1e-43 * normal,
        "zero": np.zeros(shape),
    }[kind].astype(np.float32)


def factors_of(kind, n, rng):
    """f >= 0 and g of each row."""
    if kind == "none":
        return NO_FACTORS
    f, g = {
        "like RaBitQ's": (rng.lognormal(0, 0.3, n), rng.standard_normal(n)),
        "ties": (rng.choice([0, 0.5, 1, 2], n), rng.integers(-9, 9, n)),
        "zeros": (np.zeros(n), np.zeros(n)),
        "large g": (rng.random(n), -1e6 - rng.integers(0, 3, n)),
        "of all sizes": (10.0 ** rng.uniform(-45, 38, n), rng.standard_normal(n) * 1e20),
        "huge": (rng.choice([0, 1, 3e38], n), rng.choice([-3e38, 0, 3e38], n)),
        "tiny": (rng.choice([0, 1e-45, 1e-38], n), rng.choice([-1e-45, -0.0, 1e-40], n)),
    }[kind]
    return np.stack([f, g], axis=1).astype(np.float32)


WEIGHTS = ["normal", "whole", "few", "one large", "huge", "tiny", "zero"]
FACTORS = ["none", "like RaBitQ's", "ties", "zeros", "large g", "of all sizes", "huge", "tiny"]


@st.composite
def problems(draw):
    """(weights, codes, factors, mask or None, k)"""
    n = draw(st.integers(1, MAX_ROWS))
    n_bits = draw(st.integers(1, MAX_BITS) | st.sampled_from([32, 48, 64, 128]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    distinct = max(1, n // draw(st.sampled_from([1, 3, 50])))
    codes = oracle.pack(rng.standard_normal((distinct, n_bits))[rng.integers(0, distinct, n)])
    n_queries = draw(st.integers(1, MAX_QUERIES))
    weights = weights_of(draw(st.sampled_from(WEIGHTS)), (n_queries, n_bits), rng)
    weights[0] *= draw(st.sampled_from([0, 1]))
    factors = factors_of(draw(st.sampled_from(FACTORS)), n, rng)
    mask = None
    if draw(st.booleans()):
        mask = rng.random(n) < draw(st.sampled_from([0.02, 0.5, 0.98]))
    k = draw(st.integers(0, n if mask is None else int(mask.sum())) | st.just(1))
    return weights, codes, factors, mask, k if mask is None else min(k, int(mask.sum()))


def expected_rows(weights, codes, factors, mask, k):
    return oracle.nearest(oracle.ranks(oracle.weighted_scores(weights, codes, factors)), k, mask)[1]


def where_of(mask, rows=False):
    if mask is None:
        return None
    return Where(len(mask), np.flatnonzero(mask) if rows else frozen(mask))


def blocks_of(codes, factors, method, sizes):
    """Pieces as codes held in memory lie, appended in some sizes."""
    held = HeldCodes(codes.shape[1], method, n_factors=2 if len(factors) else 0)
    begin = 0
    for size in [*sizes, len(codes)]:
        part = slice(begin, min(begin + size, len(codes)))
        held.append(codes[part], factors[part] if len(factors) else None)
        begin = part.stop
    return list(held.pieces(len(codes)))


def rows_of(codes, factors, cuts):
    """Row-major pieces."""
    for begin, end in zip([0, *cuts], [*cuts, len(codes)], strict=True):
        yield Piece(
            begin, end - begin, frozen(codes[begin:end]), frozen(factors[begin:end].reshape(-1, 2))
        )


def check(found, expected):
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


@given(problems(), st.data(), st.sampled_from([None, 1, 2, 3]), st.booleans())
def test_search(problem, data, threads, parallel):
    weights, codes, factors, mask, k = problem
    expected = expected_rows(*problem)
    where = where_of(mask, rows=data.draw(st.booleans()))
    n_cuts = st.lists(st.integers(0, len(codes)), max_size=3)
    with tables_of(data.draw(st.sampled_from(METHODS_AND_SIXES))) as method, launches(parallel):
        for pieces in (
            blocks_of(codes, factors, method, data.draw(n_cuts)),
            rows_of(codes, factors, sorted(data.draw(n_cuts))),
        ):
            search = AsymmetricScan(weights, k, 10**9, threads, method=method)
            for piece in pieces:
                search.scan(piece, where)
            check(search.result(), expected)


@given(problems(), st.data(), st.integers(1, 3))
def test_visitors(problem, data, n_visitors):
    weights, codes, factors, mask, k = problem
    expected = expected_rows(*problem)
    step = 64 * data.draw(st.integers(1, 3))
    with tables_of(data.draw(st.sampled_from(METHODS_AND_SIXES))) as method:
        for pieces in (
            blocks_of(codes, factors, method, [100]),
            rows_of(codes, factors, [len(codes) // 2 // 64 * 64]),
        ):
            search = AsymmetricScan(weights, k, 10, 2, method=method, n_visitors=n_visitors)
            parts = [part for piece in pieces for part in piece.split(step)]
            visitors = data.draw(
                st.lists(st.integers(0, n_visitors - 1), min_size=len(parts), max_size=len(parts))
            )
            # Each visitor at its own pace: nothing is promised about the order among them.
            order = sorted(range(len(parts)), key=lambda i: (visitors[i] % 2, i))
            for i in order:
                search.visit(visitors[i], parts[i], where_of(mask))
            check(search.result(), expected)


@functools.cache
def problem_of_bits(n_bits):
    """(weights, codes, k, expected)"""
    rng = np.random.default_rng(n_bits)
    n = 1 + n_bits % 131
    codes = oracle.pack(rng.standard_normal((n, n_bits)))
    weights = rng.standard_normal((1 + n_bits % 6, n_bits)).astype(np.float32)
    return weights, codes, min(n, 7), expected_rows(weights, codes, NO_FACTORS, None, 7)


@pytest.mark.parametrize("method", METHODS_AND_SIXES)
def test_every_number_of_bits(method):
    with tables_of(method) as number:
        for n_bits in range(1, 601, 61 if JIT_OFF else 1):
            weights, codes, k, expected = problem_of_bits(n_bits)
            search = AsymmetricScan(weights, k, len(codes), 1, method=number)
            for piece in blocks_of(codes, NO_FACTORS, number, []):
                search.scan(piece)
            check(search.result(), expected)


@functools.cache
def long_problem(n_words):
    """The same, where the sum of all costs decides on the step."""
    rng = np.random.default_rng(n_words)
    codes = rng.integers(0, 2**64, (70, n_words), dtype=np.uint64)
    weights = rng.choice([-1, 1], (2, 64 * n_words)).astype(np.float32)
    codes[[3, 67]] = oracle.pack(-weights[:1])  # costs as much as can be
    return weights, codes, 70, expected_rows(weights, codes, NO_FACTORS, None, 70)


# Beyond 1,023 words nothing is held in blocks.
@pytest.mark.parametrize("n_words", [1, 2] if JIT_OFF else [150, MAX_BLOCK_WORDS + 1])
@pytest.mark.parametrize("method", METHODS_AND_SIXES)
def test_long_codes(n_words, method):
    weights, codes, k, expected = long_problem(n_words)
    with tables_of(method) as number:
        search = AsymmetricScan(weights, k, k, 1, method=number)
        for piece in blocks_of(codes, NO_FACTORS, number, []):
            search.scan(piece)
    check(search.result(), expected)


@pytest.mark.parametrize("method", METHODS_AND_SIXES)
def test_rows_that_come_nearer_and_nearer(method):
    """Every row enters, so that reservoirs run full, over several runs of blocks and launches."""
    n, n_bits = (200, 40) if JIT_OFF else (20_000, 256)
    steps = np.minimum(np.arange(n) // 3, n_bits)
    codes = oracle.pack(np.arange(n_bits) < steps[:, None])
    weights = np.ones((5, n_bits), np.float32)
    weights[1:] *= np.random.default_rng(0).random((4, n_bits), np.float32)
    factors = np.stack([np.linspace(0.5, 2, n), np.linspace(0, 9, n)], axis=1).astype(np.float32)
    rank = {}
    for pair in (NO_FACTORS, factors):
        rank[len(pair)] = oracle.ranks(oracle.weighted_scores(weights, codes, pair))
    with tables_of(method) as number, launches(parallel=True):
        for order in (slice(None), slice(None, None, -1)):
            for k in (1, 100):
                for pair in (NO_FACTORS, factors):
                    mine = pair[order] if len(pair) else pair
                    for pieces in (
                        blocks_of(codes[order], mine, number, []),
                        rows_of(codes[order], mine, []),
                    ):
                        search = AsymmetricScan(weights, k, n, 2, method=number)
                        for piece in pieces:
                            search.scan(piece)
                        keys = rank[len(pair)][:, order] << 40 | np.arange(n)
                        expected = np.sort(keys, axis=1)[:, :k] & (1 << 40) - 1
                        check(search.result(), expected)


def test_more_queries_than_a_launch_takes():
    n_queries = 600
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 4, (4 if JIT_OFF else 30, 1), dtype=np.uint64)
    weights = rng.standard_normal((n_queries, 64)).astype(np.float32)
    expected = expected_rows(weights, codes, NO_FACTORS, None, 2)
    for threads in (1, 2):
        search = AsymmetricScan(weights, 2, 10**9, threads)
        for piece in blocks_of(codes, NO_FACTORS, best_method(), []):
            search.scan(piece)
        check(search.result(), expected)


@pytest.mark.parametrize("method", METHODS_AND_SIXES)
def test_by_hand(method):
    """Steps of 1 exactly: weights 64, 32, ..., 1/2 order the bytes as numbers."""
    weights = np.array([[64, 32, 16, 8, 4, 2, 1, 0.5], [-64, 32, 0, 0, 0, 0, 0, 31.5]], np.float32)
    codes = np.zeros((256, 8), np.uint8)
    codes[:, 0] = np.random.default_rng(0).permutation(256)
    with tables_of(method) as number:
        search = AsymmetricScan(weights, 256, 256, method=number)
        search.scan(Piece(0, 256, frozen(codes.view(np.uint64)), NO_FACTORS))
    found = codes[search.result(), 0]
    assert found[0].tolist() == list(range(255, -1, -1))
    # The second: -64 wants a zero, then 32 and 31.5, which are 64 and 63 steps of 1, want ones.
    high = np.unpackbits(found[1][:, None], axis=1)[:, [0, 1, 7]]
    wanted = [
        (0, 1, 1),
        (0, 1, 0),
        (0, 0, 1),
        (0, 0, 0),
        (1, 1, 1),
        (1, 1, 0),
        (1, 0, 1),
        (1, 0, 0),
    ]
    assert [tuple(bits) for bits in high] == [bits for bits in wanted for _ in range(32)]
    ties = search.result()[1].reshape(8, 32)
    np.testing.assert_array_equal(ties, np.sort(ties, axis=1))


@pytest.mark.parametrize("method", METHODS_AND_SIXES)
def test_rounding_hides_no_tie(method):
    """Steps of 49, and 3 * 49 * (1 / 49) comes out below 3; scores that cancel to nothing."""
    weights = 49 * np.array([[64, 32, 16, 8, 4, 2, 1, 0.5]], np.float32)
    codes = np.zeros((192, 8), np.uint8)
    codes[:, 0] = 0b1111_1100  # costs three steps: scores 49 * (127.5 - 3)
    factors = np.tile(np.array([1, -49 * 124.5], np.float32), (192, 1))
    with tables_of(method) as number:
        search = AsymmetricScan(weights, 1, 192, method=number, n_visitors=2)
        first, second = rows_of(codes.view(np.uint64), factors, [64])
        search.visit(1, second)
        search.visit(0, first)
    assert search.result().tolist() == [[0]]


@pytest.mark.parametrize("method", METHODS_AND_SIXES)
def test_a_small_factor_among_large_ones(method):
    """All rows are opposed to the query: the one that counts least is the best."""
    weights = np.ones((1, 64), np.float32)
    codes = np.zeros((256, 1), np.uint64)
    factors = np.tile(np.array([4, 0], np.float32), (256, 1))
    factors[:128, 0] = 2  # more than are taken before there is a limit
    factors[200, 0] = 0.1
    with tables_of(method) as number:
        search = AsymmetricScan(weights, 1, 256, 1, method=number)
        for piece in blocks_of(codes, factors, number, []):
            search.scan(piece)
    assert search.result().tolist() == [[200]]


def test_nothing_asked_for():
    weights = np.ones((3, 70), np.float32)
    piece = Piece(0, 5, frozen(np.zeros((5, 2), np.uint64)), NO_FACTORS)
    for given_weights, k in ((weights, 0), (weights[:0], 4)):
        search = AsymmetricScan(given_weights, k, 5, n_visitors=1)
        search.scan(piece)
        search.visit(0, piece)
        assert search.result().shape == (len(given_weights), k)


def test_bytes_per_query_is_what_is_allocated():
    rng = np.random.default_rng(0)
    for n_words, k in ((1, 1), (6, 100), (33, 7)):
        weights = rng.standard_normal((8, 64 * n_words)).astype(np.float32)
        search = AsymmetricScan(weights, k, 10**9, 1)
        _, tables, units, parameters = search._prepared
        kept = search._kept.nbytes + tables.nbytes + units.nbytes + parameters.nbytes
        assert kept / 8 <= bytes_per_query(n_words, k, len(search._kept))


# Ranks and reservoirs.

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 3.4028235e38, -3.4028235e38, np.inf, -np.inf]
FLOATS = st.floats(width=32, allow_nan=False) | st.sampled_from(SPECIAL)


@given(FLOATS, FLOATS)
def test_ranks_descend_as_scores_do(a, b):
    a, b = np.float32(a), np.float32(b)
    ranks = int(rank_of(a)), int(rank_of(b))
    np.testing.assert_array_equal(ranks, oracle.ranks([a, b]))
    assert 0 <= ranks[0] < 1 << 23
    if a > b:
        assert ranks[0] <= ranks[1]
    # Scores that agree in fifteen binary digits tie, others do not.
    if 1e-37 < a < 1e38:
        assert int(rank_of(np.float32(a * np.float32(1 + 2**-13)))) < ranks[0]


@given(FLOATS)
def test_the_least_score_of_a_rank(score):
    score = np.float32(score)
    rank = int(rank_of(score))
    least = np.float32(least_score_of(rank))
    assert least <= score
    assert int(rank_of(least)) == rank
    if least > -3e38 and least != 0:
        below = np.nextafter(least, np.float32(-np.inf))
        assert int(rank_of(below)) == rank + 1


@given(st.integers(1, 150), st.integers(0, 2_000), st.integers(1, 3), st.integers(0, 2**32))
def test_reservoirs_keep_the_smallest_keys(k, n_more, n_slabs, seed):
    rng = np.random.default_rng(seed)
    n = k + n_more // (10 if JIT_OFF else 1)
    shape = rng.choice(["random", "ascending", "descending", "ties"])
    ranks = rng.integers(0, 3 if shape == "ties" else 1 << 23, n)
    if shape in ("ascending", "descending"):
        ranks = np.sort(ranks)[:: 1 if shape == "ascending" else -1]
    keys = ranks << 40 | np.arange(n)
    reservoirs = new_reservoirs(n_slabs, 1, k)
    lists = reservoirs.reshape(-1)
    for i, key in enumerate(keys):
        at = i % n_slabs * reservoirs.shape[2]
        if key < lists[at + LIMIT]:
            add_to_reservoir(lists, at, key)
    expected = np.sort(keys)[:k]
    np.testing.assert_array_equal(keys_of_reservoirs(reservoirs), expected[None])


def test_plain_scans_take_no_tables():
    assert asymmetric.weighted_tables(PLAIN) == -1
