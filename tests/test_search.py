"""Exact search against the oracle: equality, ties included."""

import contextlib
import os

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import example, given

import hamming_engine as he
from hamming_engine.checks import frozen
from hamming_engine.held import HeldCodes, Piece
from hamming_engine.indexes import scan
from hamming_engine.indexes.scan import RadiusScan, TopKScan
from hamming_engine.indexes.where import Where
from hamming_engine.kernels import launch
from hamming_engine.kernels.methods import METHODS
from hamming_engine.kernels.topk import MAX_BITS

KERNELS = sorted(METHODS)
JIT_OFF = os.environ.get("NUMBA_DISABLE_JIT") == "1"


@st.composite
def problems(draw, max_bits=4_200, max_rows=3_000):
    """Queries, codes, bits, with duplicates and ties, and a mask or None."""
    n_bits = draw(st.integers(1, max_bits) | st.integers(1, 320))
    n = draw(st.integers(0, max_rows // (1 + n_bits // 400)))
    n_queries = draw(st.sampled_from([0, *range(1, 14)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    distinct = max(1, n // draw(st.sampled_from([1, 3, 50])))
    base = rng.standard_normal((distinct, n_bits), dtype=np.float32)
    vectors = base[rng.integers(0, distinct, n)]
    queries = rng.standard_normal((n_queries, n_bits))
    if draw(st.booleans()):
        vectors[: n // 2] = 0
        queries[::2] = 0
    allowed = rng.random(n) < draw(st.sampled_from([0.0, 0.1, 0.9]))
    mask = allowed if draw(st.booleans()) else None
    return oracle.pack(queries), oracle.pack(vectors), n_bits, mask


@contextlib.contextmanager
def launches(parallel):
    """With ``parallel`` the smallest work goes through the parallel drivers."""
    with pytest.MonkeyPatch.context() as patch:
        if parallel:
            patch.setattr(launch, "SMALL_WORK", 0)
            patch.setattr(scan, "SMALL_SCAN", 0)
        yield


def index_of(codes, n_bits, kernel=None):
    index = he.FlatIndex(n_bits, kernel=kernel)
    index.add(codes)
    return index


def same(found, expected):
    np.testing.assert_array_equal(found.distances, expected[0])
    np.testing.assert_array_equal(found.rows, expected[1])
    assert found.distances.dtype == np.int32
    assert found.rows.dtype == np.int64


@given(problems(), st.data(), st.sampled_from([None, 1, 2, 3]), st.booleans())
def test_search(problem, data, threads, parallel):
    queries, codes, n_bits, mask = problem
    k = data.draw(st.integers(1, len(codes) + 5))
    expected = oracle.nearest(oracle.hamming(queries, codes), k, mask)
    if not len(queries):
        n_allowed = len(codes) if mask is None else int(mask.sum())
        expected = tuple(np.zeros((0, min(k, n_allowed)), np.int64) for _ in range(2))
    index = index_of(codes, n_bits, data.draw(st.sampled_from(KERNELS)))
    with launches(parallel):
        same(he.search(queries, codes, k, where=mask, threads=threads), expected)
        same(index.search(queries, k, where=mask, threads=threads), expected)


@given(problems(max_rows=800), st.data(), st.sampled_from([None, 1, 3]), st.booleans())
def test_range_search(problem, data, threads, parallel):
    queries, codes, n_bits, mask = problem
    radius = data.draw(st.integers(0, n_bits + 3))
    index = index_of(codes, n_bits, data.draw(st.sampled_from(KERNELS)))
    with launches(parallel):
        found = index.range_search(queries, radius, where=mask, threads=threads)
    expected = oracle.within(oracle.hamming(queries, codes), radius, mask)
    assert found.offsets.tolist() == [0, *np.cumsum([len(hits) for hits in expected]).tolist()]
    flat = [hit for hits in expected for hit in hits]
    assert list(zip(found.distances.tolist(), found.rows.tolist(), strict=True)) == flat


@given(problems(max_rows=1_000), st.data(), st.sampled_from(KERNELS))
def test_any_cut_into_pieces_gives_the_same(problem, data, kernel):
    queries, codes, n_bits, mask = problem
    n_allowed = len(codes) if mask is None else int(mask.sum())
    k = data.draw(st.integers(0, n_allowed))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(codes)), max_size=5)))
    method = METHODS[kernel]
    chosen = None if mask is None else frozen(mask)
    where = Where(len(codes), chosen)
    cut = TopKScan(queries, k, 10**9, 2, method=method)
    cut_radius = RadiusScan(queries, n_bits // 2, 2, method=method)
    visited = TopKScan(queries, k, 10**9, 2, method=method, n_visitors=3)
    held = HeldCodes(codes.shape[1], method)
    for i, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(codes)], strict=True)):
        part = Piece(begin, end - begin, frozen(codes[begin:end]))
        cut.scan(part, where)
        cut_radius.scan(part, where)
        visited.visit(i % 3, part, where)
        held.append(codes[begin:end])
    expected = oracle.nearest(oracle.hamming(queries, codes), k, mask)
    if len(queries):
        same(cut.result(), expected)
        same(visited.result(), expected)
        blocks = TopKScan(queries, k, 10**9, 2, method=method, n_visitors=2)
        for i, piece in enumerate(held.pieces(len(codes))):
            for j, part in enumerate(piece.split(64)):
                blocks.visit((i + j) % 2, part, where)
        same(blocks.result(), expected)
    index = index_of(codes, n_bits, kernel)
    for found, wanted in zip(
        cut_radius.result(), index.range_search(queries, n_bits // 2, where=mask), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_number_of_bits(kernel):
    """Bits 1 to 4,200 and, with it, every remainder of a block."""
    rng = np.random.default_rng(0)
    step = 97 if JIT_OFF else 1
    for n_bits in [*range(1, 4_200, step), 4_200]:
        n, n_queries = 1 + n_bits % 131, 1 + n_bits % 6
        codes = oracle.pack(rng.random((n + n_queries, n_bits), dtype=np.float32) - 0.5)
        codes[n // 2] = codes[0]
        queries, codes = codes[n:], codes[:n]
        distances = np.bitwise_count(queries[:, None] ^ codes).sum(axis=2, dtype=np.int64)
        keys = np.sort(distances << 20 | np.arange(n), axis=1)[:, :7]
        index = index_of(codes, n_bits, kernel)
        same(index.search(queries, 7), (keys >> 20, keys & 0xFFFFF))
        found = index.range_search(queries, n_bits // 2)
        assert found.offsets[-1] == (distances <= n_bits // 2).sum()


@pytest.mark.parametrize("n_words", [1_022, 1_023, 1_024])
def test_around_the_longest_codes_that_are_held_in_blocks(n_words):
    rng = np.random.default_rng(n_words)
    codes = rng.integers(0, 2**64, (70, n_words), dtype=np.uint64)
    queries = ~codes[:5]  # as far away as can be
    distances = oracle.hamming(queries, codes)
    for kernel in KERNELS:
        index = index_of(codes, 64 * n_words, kernel)
        same(index.search(queries, 70), oracle.nearest(distances, 70))
        same(index.search(queries[:1], 3), oracle.nearest(distances[:1], 3))
        assert index.range_search(queries[0], 64 * n_words).offsets[-1] == 70
    same(he.search(queries, codes, 70), oracle.nearest(distances, 70))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_that_come_nearer_and_nearer(kernel, threads):
    """Every row enters, so that shortlists run full; and as many ties as there can be."""
    n, n_bits = 2_000, 512
    steps = np.minimum(np.arange(n) // 3, n_bits)
    codes = oracle.pack(np.arange(n_bits) >= steps[:, None])
    queries = np.zeros((5, 8), np.uint64)
    distances = oracle.hamming(queries, codes)
    index = index_of(codes, n_bits, kernel)
    for order in (slice(None), slice(None, None, -1)):
        for k in (1, 2, 50, n):
            with launches(parallel=True):
                found = he.search(queries, codes[order], k, threads=threads)
            same(found, oracle.nearest(distances[:, order], k))
    with launches(parallel=True):
        same(index.search(queries, 100, threads=threads), oracle.nearest(distances, 100))


@given(problems(max_rows=400), st.data(), st.sampled_from(KERNELS))
def test_removed_rows_are_not_found(problem, data, kernel):
    queries, codes, n_bits, mask = problem
    n = len(codes)
    half = data.draw(st.integers(0, n))
    removed = np.zeros(n, np.bool_)
    index = index_of(codes[:half], n_bits, kernel)
    for _ in range(2):
        rows = np.array(data.draw(st.lists(st.integers(0, max(half - 1, 0)), max_size=9)), int)
        rows = rows[rows < half]
        removed[rows] = True
        as_mask = np.isin(np.arange(len(codes[:half])), rows)
        index.remove(as_mask if data.draw(st.booleans()) else rows)
    index.add(codes[half:])
    left = ~removed
    assert len(index) == left.sum()
    assert index.n_rows == n
    np.testing.assert_array_equal(index.codes, codes)
    allowed = left if mask is None else left & mask
    expected = oracle.nearest(oracle.hamming(queries, codes), 9, allowed)
    if len(queries):
        same(index.search(queries, 9, where=mask), expected)
        if mask is not None:
            same(index.search(queries, 9, where=np.flatnonzero(mask)[::-1]), expected)
    within = oracle.within(oracle.hamming(queries, codes), n_bits // 2, allowed)
    found = index.range_search(queries, n_bits // 2, where=mask)
    flat = [hit for hits in within for hit in hits]
    assert list(zip(found.distances.tolist(), found.rows.tolist(), strict=True)) == flat


@pytest.mark.parametrize("n_words", [1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 23, 24, 66])
@pytest.mark.parametrize("n_queries", [1, 2, 3, 4, 5, 8])
def test_every_width_around_the_vectors(n_words, n_queries):
    rng = np.random.default_rng(n_words)
    codes = rng.integers(0, 2**64, (61, n_words), dtype=np.uint64)
    codes[30:40] = codes[3]
    queries = np.concatenate([codes[:1], rng.integers(0, 2**64, (7, n_words), dtype=np.uint64)])
    distances = oracle.hamming(queries[:n_queries], codes)
    for n in (0, 1, 7, 8, 9, 15, 16, 61):
        for threads in (1, 2):
            found = he.search(queries[:n_queries], codes[:n], 5, threads=threads)
            same(found, oracle.nearest(distances[:, :n], 5))


def test_a_tile_that_is_no_whole_number_of_blocks():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**64, (4_000, 5), dtype=np.uint64)
    mask = rng.random(4_000) < 0.5
    distances = oracle.hamming(codes[:8], codes)
    for threads in (1, 2):
        found = he.search(codes[:8], codes, 50, where=mask, threads=threads)
        same(found, oracle.nearest(distances, 50, mask))


def test_the_longest_codes():
    n_bits = MAX_BITS
    ones = np.full((1, n_bits // 64), 2**64 - 1, np.uint64)
    index = he.FlatIndex(n_bits)
    index.add(ones)
    same(index.search(~ones, 1), ([[n_bits]], [[0]]))
    same(he.search(~ones, ones, 1), ([[n_bits]], [[0]]))


@pytest.mark.parametrize("threads", [1, 2])
def test_long_codes_over_several_tiles_and_launches(threads):
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((3_000, 4_200)).astype(np.float32)
    codes = he.pack_signs(vectors)
    queries = codes[rng.integers(0, 3_000, 9)]
    distances = np.bitwise_count(queries[:, None] ^ codes[None]).sum(axis=2, dtype=np.int64)
    same(he.search(queries, codes, 100, threads=threads), oracle.nearest(distances, 100))


def test_more_queries_than_a_launch_takes():
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 4, (50, 1), dtype=np.uint64)
    queries = rng.integers(0, 4, (9_001, 1), dtype=np.uint64)
    distances = np.bitwise_count(queries ^ codes.T).astype(np.int64)
    same(he.search(queries, codes, 3), oracle.nearest(distances, 3))
    index = he.FlatIndex(64)
    index.add(codes)
    found = index.range_search(queries, 0)
    assert found.offsets[-1] == (distances == 0).sum()


@given(problems(max_rows=60), st.data())
def test_permuted_rows_give_permuted_results(problem, data):
    queries, codes, _, _ = problem
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(len(codes))
    k = max(1, len(codes))
    there, back = he.search(queries, codes, k), he.search(queries, codes[order], k)
    np.testing.assert_array_equal(there.distances, back.distances)
    for i in range(len(queries)):
        pairs = sorted(zip(back.distances[i], order[back.rows[i]], strict=True))
        assert [row for _, row in pairs] == there.rows[i].tolist()


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=6),
    st.integers(1, 200),
    st.sampled_from(KERNELS),
)
@example([0, 0], 64, "popcount")
def test_an_index_built_in_pieces_is_the_index(pieces, n_bits, kernel):
    rng = np.random.default_rng(n_bits)
    codes = oracle.pack(rng.standard_normal((sum(pieces), n_bits)))
    index = he.FlatIndex(n_bits, kernel=kernel)
    begin = 0
    for size in pieces:
        index.add(codes[begin : begin + size])
        begin += size
    assert len(index) == sum(pieces)
    np.testing.assert_array_equal(index.codes, codes)
    if len(codes):
        same(index.search(codes[0], 3), he.search(codes[0], codes, 3))


def test_where_takes_row_numbers():
    codes = np.arange(20, dtype=np.uint64)[:, None]
    rows = np.array([7, 3, 3, 19])
    mask = np.isin(np.arange(20), rows)
    same(he.search(codes[:2], codes, 9, where=rows), he.search(codes[:2], codes, 9, where=mask))
    assert he.search(codes[:2], codes, 9, where=[]).rows.shape == (2, 0)


def test_what_the_index_holds_cannot_be_changed_from_outside():
    index = he.FlatIndex(64)
    codes = np.ones((3, 1), np.uint64)
    index.add(codes)
    codes[:] = 0
    assert index.codes.all()
    index.codes[:] = 0
    assert index.codes.all()


def test_repr():
    index = he.FlatIndex(100)
    assert repr(index) == "FlatIndex(n_bits=100), 0 codes"


# By float queries.


def scored(weights, codes, n_bits, factors=None):
    """All scores by the definition, ``f * (w . signs) + g`` in float64, as float32."""
    bits = np.unpackbits(codes.view(np.uint8), axis=1, count=n_bits)
    scores = weights.astype(np.float64) @ (2.0 * bits.T - 1)
    if factors is not None:
        scores = factors[:, 0].astype(np.float64) * scores + factors[:, 1]
    return scores.astype(np.float32)


def best_by_floats(weights, codes, n_bits, k, factors=None, allowed=None):
    """(scores, rows): found by rounded weights, then ordered by true scores and row."""
    no_factors = np.zeros((0, 2), np.float32)
    given = no_factors if factors is None else factors
    keys = oracle.ranks(oracle.weighted_scores(weights, codes, given))
    _, found = oracle.nearest(keys, k, allowed)
    scores = scored(weights, codes, n_bits, factors)
    rows = [
        sorted(line, key=lambda row, q=q: (-scores[q, row], row))
        for q, line in enumerate(found.tolist())
    ]
    rows = np.array(rows, np.int64).reshape(found.shape)
    return np.take_along_axis(scores, rows, axis=1), rows


def same_scored(found, expected):
    np.testing.assert_array_equal(found.rows, expected[1])
    np.testing.assert_allclose(found.scores, expected[0], rtol=1e-6, atol=1e-6)
    assert found.scores.dtype == np.float32
    assert found.rows.dtype == np.int64


@pytest.mark.parametrize("with_factors", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("n_bits", "n"),
    [(1, 5), (70, 40)] if JIT_OFF else [(1, 5), (64, 300), (100, 700), (200, 1), (520, 200)],
)
def test_float_queries(n_bits, n, whole, with_factors):
    """Whole weights make ties; kernels agree, after removals and with filters too."""
    rng = np.random.default_rng(n_bits)
    codes = oracle.pack(rng.random((n, n_bits)) - 0.5)
    codes[n // 2] = codes[0]
    weights = rng.standard_normal((6, n_bits)).astype(np.float32)
    if whole:
        weights = rng.integers(-2, 3, (6, n_bits)).astype(np.float32)
        weights[5] = 0
    factors = None
    if with_factors:
        factors = rng.random((n, 2)).astype(np.float32)
        factors[n // 2] = factors[0]
        factors[::7, 0] = 0
    mask = rng.random(n) < 0.6
    removed = np.unique(rng.integers(0, n, n // 4))
    left = ~np.isin(np.arange(n), removed)
    half = n // 3
    for kernel in KERNELS:
        index = he.FlatIndex(n_bits, factors=with_factors, kernel=kernel)
        for part in (slice(0, half), slice(half, n)):
            index.add(codes[part], None if factors is None else factors[part])
        for k in (1, 9, n + 3):
            expected = best_by_floats(weights, codes, n_bits, k, factors)
            same_scored(index.search(weights, k), expected)
            same_scored(index.search(weights, k, method="asymmetric", threads=1), expected)
            same_scored(index.search(weights[2], k), [array[2:3] for array in expected])
        expected = best_by_floats(weights, codes, n_bits, 9, factors, mask)
        same_scored(index.search(weights, 9, where=mask), expected)
        same_scored(index.search(weights, 9, where=np.flatnonzero(mask)[::-1]), expected)
        index.remove(removed)
        expected = best_by_floats(weights, codes, n_bits, 9, factors, left)
        same_scored(index.search(weights, 9), expected)
        expected = best_by_floats(weights, codes, n_bits, 9, factors, left & mask)
        same_scored(index.search(weights, 9, where=mask), expected)
        by_codes = index.search(codes[:3], 9)
        assert isinstance(by_codes, scan.SearchResult)
        for one, other in zip(by_codes, index.search(codes[:3], 9, method="hamming"), strict=True):
            np.testing.assert_array_equal(one, other)


def test_whole_weights_are_not_rounded():
    """Then the rows found are the best by NumPy, ties by row; and equal rows score alike."""
    rng = np.random.default_rng(3)
    n_bits, n = 96, 100 if JIT_OFF else 2_000
    codes = oracle.pack(rng.random((n, n_bits)) - 0.5)
    weights = np.where(rng.random((4, n_bits)) < 0.5, np.float32(1), np.float32(-1))
    scores = scored(weights, codes, n_bits)
    order = np.lexsort((np.broadcast_to(np.arange(n), scores.shape), -scores), axis=1)[:, :50]
    for kernel in KERNELS:
        found = index_of(codes, n_bits, kernel).search(weights, 50)
        np.testing.assert_array_equal(found.rows, order)
        np.testing.assert_array_equal(found.scores, np.take_along_axis(scores, order, axis=1))


def test_float_queries_of_signs_agree_with_hamming_search():
    rng = np.random.default_rng(4)
    codes = oracle.pack(rng.random((400, 130)) - 0.5)
    index = index_of(codes, 130)
    queries = rng.standard_normal((5, 130))
    by_floats = index.search(np.sign(queries), 20)
    by_codes = index.search(oracle.pack(queries), 20)
    np.testing.assert_array_equal(by_floats.rows, by_codes.rows)
    np.testing.assert_array_equal(by_floats.scores, 130 - 2 * by_codes.distances)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, list])
def test_float_queries_of_every_type(dtype):
    rng = np.random.default_rng(5)
    codes = oracle.pack(rng.random((90, 40)) - 0.5)
    weights = rng.standard_normal((3, 40)).astype(np.float16).astype(np.float64)
    given = weights.tolist() if dtype is list else weights.astype(dtype)
    found = index_of(codes, 40).search(given, 7)
    same_scored(found, best_by_floats(weights.astype(np.float32), codes, 40, 7))


def test_without_queries_or_rows():
    index = he.FlatIndex(70, factors=True)
    assert [a.shape for a in index.search(np.ones((3, 70)), 5)] == [(3, 0)] * 2
    index.add(np.zeros((0, 2), np.uint64), np.zeros((0, 2), np.float32))
    index.add(np.zeros((4, 2), np.uint64), np.ones((4, 2), np.float32))
    assert [a.shape for a in index.search(np.ones((0, 70)), 5)] == [(0, 4)] * 2
    assert [a.shape for a in index.search(np.ones((2, 70)), 5, where=[])] == [(2, 0)] * 2
    assert index.search(np.ones(70), 1).scores.tolist() == [[-69.0]]
    index.remove(np.ones(4, np.bool_))
    assert [a.shape for a in index.search(np.ones((3, 70)), 5)] == [(3, 0)] * 2


def test_equal_rows_score_alike_in_any_company():
    rng = np.random.default_rng(6)
    n_bits = 90 if JIT_OFF else 9_000
    codes = np.repeat(oracle.pack(rng.random((1, n_bits)) - 0.5), 50, axis=0)
    index = index_of(codes, n_bits)
    weights = rng.standard_normal((2, n_bits)).astype(np.float32)
    wanted = index.search(weights, 1).scores
    for k in (2, 3, 50):
        found = index.search(weights, k)
        assert found.rows.tolist() == [[*range(k)]] * 2
        assert (found.scores == wanted).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_float_queries_at_codes_too_long_for_blocks(kernel):
    rng = np.random.default_rng(7)
    for n_words in (1, 2) if JIT_OFF else (1_022, 1_023, 1_024):
        codes = rng.integers(0, 2**64, (70, n_words), dtype=np.uint64)
        factors = rng.random((70, 2)).astype(np.float32)
        weights = rng.standard_normal((2, 64 * n_words)).astype(np.float32)
        index = he.FlatIndex(64 * n_words, factors=True, kernel=kernel)
        index.add(codes, factors)
        scores = scored(weights, codes, 64 * n_words, factors)
        found = index.search(weights, 70)
        np.testing.assert_array_equal(np.sort(found.rows, axis=1), [[*range(70)]] * 2)
        np.testing.assert_allclose(
            found.scores, np.take_along_axis(scores, found.rows, axis=1), rtol=1e-5, atol=1e-3
        )
        assert (np.diff(found.scores) <= 0).all()
