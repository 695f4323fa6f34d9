"""Exact search against the oracle: equality, ties included."""

import contextlib

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import example, given

import hamming_engine as he
from hamming_engine.indexes import scan
from hamming_engine.indexes.scan import RadiusScan, TopKScan
from hamming_engine.kernels import launch
from hamming_engine.kernels.topk import MAX_BITS


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
            patch.setattr(scan, "SMALL_WORK", 0)
        yield


def same(found, expected):
    np.testing.assert_array_equal(found.distances, expected[0])
    np.testing.assert_array_equal(found.rows, expected[1])
    assert found.distances.dtype == np.int32
    assert found.rows.dtype == np.int64


@given(problems(), st.data(), st.sampled_from([None, 1, 2, 3]), st.booleans())
def test_search(problem, data, threads, parallel):
    queries, codes, _, mask = problem
    k = data.draw(st.integers(1, len(codes) + 5))
    expected = oracle.nearest(oracle.hamming(queries, codes), k, mask)
    if not len(queries):
        n_allowed = len(codes) if mask is None else int(mask.sum())
        expected = tuple(np.zeros((0, min(k, n_allowed)), np.int64) for _ in range(2))
    with launches(parallel):
        same(he.search(queries, codes, k, where=mask, threads=threads), expected)


@given(problems(max_rows=800), st.data(), st.sampled_from([None, 1, 3]), st.booleans())
def test_range_search(problem, data, threads, parallel):
    queries, codes, n_bits, mask = problem
    radius = data.draw(st.integers(0, n_bits + 3))
    index = he.FlatIndex(n_bits)
    index.add(codes)
    with launches(parallel):
        found = index.range_search(queries, radius, where=mask, threads=threads)
    expected = oracle.within(oracle.hamming(queries, codes), radius, mask)
    assert found.offsets.tolist() == [0, *np.cumsum([len(hits) for hits in expected]).tolist()]
    flat = [hit for hits in expected for hit in hits]
    assert list(zip(found.distances.tolist(), found.rows.tolist(), strict=True)) == flat


@given(problems(max_rows=1_000), st.data())
def test_any_cut_into_blocks_gives_the_same(problem, data):
    queries, codes, n_bits, mask = problem
    k = data.draw(st.integers(0, len(codes) if mask is None else int(mask.sum())))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(codes)), max_size=5)))
    radius = n_bits // 2
    whole, cut = (TopKScan(queries, k, n, 2) for n in (len(codes), 10**9))
    whole_radius, cut_radius = (RadiusScan(queries, radius, 2) for _ in range(2))
    whole.scan(0, codes, mask)
    whole_radius.scan(0, codes, mask)
    for begin, end in zip([0, *cuts], [*cuts, len(codes)], strict=True):
        part = None if mask is None else mask[begin:end]
        cut.scan(begin, codes[begin:end], part)
        cut_radius.scan(begin, codes[begin:end], part)
    same(cut.result(), whole.result())
    for found, expected in zip(cut_radius.result(), whole_radius.result(), strict=True):
        np.testing.assert_array_equal(found, expected)


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


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 200))
@example([0, 0], 64)
def test_an_index_built_in_pieces_is_the_index(pieces, n_bits):
    rng = np.random.default_rng(n_bits)
    codes = oracle.pack(rng.standard_normal((sum(pieces), n_bits)))
    index = he.FlatIndex(n_bits)
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
    with pytest.raises(ValueError, match="read-only"):
        index.codes[0] = 0


def test_repr():
    index = he.FlatIndex(100)
    assert repr(index) == "FlatIndex(n_bits=100), 0 codes"
