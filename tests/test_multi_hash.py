"""MultiIndexHash against the oracle: equality, however rows came and whichever way was taken."""

import contextlib
import itertools
import os
import threading

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import given

import hamming_engine as he
from hamming_engine.checks import frozen
from hamming_engine.indexes import multi_hash, scan
from hamming_engine.kernels import hashing, launch, substrings
from hamming_engine.kernels.topk import ROW_BITS

JIT_OFF = os.environ.get("NUMBA_DISABLE_JIT") == "1"


@st.composite
def problems(draw, max_rows=400):
    """Queries, codes in clusters with duplicates, bits, and a mask or None."""
    n_bits = draw(st.sampled_from([32, 64, 128, 256]) | st.integers(1, 150))
    n = draw(st.integers(0, max_rows // (10 if JIT_OFF else 1)))
    n_queries = draw(st.sampled_from([0, *range(1, 9)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    centres = rng.random((max(1, n // draw(st.sampled_from([1, 20, 1_000]))), n_bits)) < 0.5
    flipped = draw(st.sampled_from([0.0, 0.03, 0.2]))
    bits = centres[rng.integers(0, len(centres), n + n_queries)]
    codes = oracle.pack(bits ^ (rng.random(bits.shape) < flipped))
    allowed = rng.random(n) < draw(st.sampled_from([0.0, 0.005, 0.3, 0.9]))
    mask = allowed if draw(st.booleans()) else None
    return codes[n:], codes[:n], n_bits, mask


@contextlib.contextmanager
def ways(draw):
    """Small tails, and costs with which scans are never taken, always, or now and then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multi_hash, "_TAIL_WORDS", draw(st.sampled_from([30, 300, 1 << 12])))
        patch.setattr(multi_hash, "_LEAST_WIDTH", draw(st.sampled_from([4, 8])))
        patch.setattr(multi_hash, "_ROOM_FOR_FOUND", draw(st.sampled_from([5, 100])))
        patch.setattr(multi_hash, "_LAUNCH_NS", draw(st.sampled_from([1.0, 25e6])))
        ns = draw(st.sampled_from([1e-9, 1.0, 100.0, 1e9]))
        patch.setattr(multi_hash, "_SCAN_NS", ns)
        patch.setattr(multi_hash, "_SCAN_NS_ALONE", ns)
        yield


@contextlib.contextmanager
def launches(parallel):
    """With ``parallel`` the smallest work goes through the parallel drivers."""
    with pytest.MonkeyPatch.context() as patch:
        if parallel:
            patch.setattr(launch, "SMALL_WORK", 0)
            patch.setattr(scan, "SMALL_SCAN", 0)
        yield


def index_of(codes, n_bits, cuts=(), n_substrings=None):
    index = he.MultiIndexHash(n_bits, n_substrings)
    for begin, end in zip([0, *cuts], [*cuts, len(codes)], strict=True):
        index.add(codes[begin:end])
    return index


def cuts_of(draw, n):
    return sorted(draw(st.lists(st.integers(0, n), max_size=3)))


def same(found, expected, n_queries, n_allowed, k):
    if not n_queries:
        expected = tuple(np.zeros((0, min(k, n_allowed)), np.int64) for _ in range(2))
    np.testing.assert_array_equal(found.distances, expected[0])
    np.testing.assert_array_equal(found.rows, expected[1])
    assert found.distances.dtype == np.int32
    assert found.rows.dtype == np.int64


def same_within(found, expected):
    assert found.offsets.tolist() == [0, *np.cumsum([len(hits) for hits in expected]).tolist()]
    flat = [hit for hits in expected for hit in hits]
    assert list(zip(found.distances.tolist(), found.rows.tolist(), strict=True)) == flat
    assert (found.distances.dtype, found.rows.dtype) == (np.int32, np.int64)


@given(problems(), st.data(), st.sampled_from([None, 1, 2, 3]))
def test_search(problem, data, threads):
    queries, codes, n_bits, mask = problem
    k = data.draw(st.sampled_from([1, 2, 10]) | st.integers(1, len(codes) + 5))
    n_substrings = data.draw(st.none() | st.integers(1, min(n_bits, 8)))
    expected = oracle.nearest(oracle.hamming(queries, codes), k, mask)
    with ways(data.draw):
        index = index_of(codes, n_bits, cuts_of(data.draw, len(codes)), n_substrings)
        with launches(data.draw(st.sampled_from([False, False, True]))):
            found = index.search(queries, k, where=mask, threads=threads)
    n_allowed = len(codes) if mask is None else int(mask.sum())
    same(found, expected, len(queries), n_allowed, k)


@given(problems(), st.data(), st.sampled_from([None, 1, 2, 3]))
def test_range_search(problem, data, threads):
    queries, codes, n_bits, mask = problem
    radius = data.draw(st.sampled_from([0, 1, 3, n_bits // 8]) | st.integers(0, n_bits + 3))
    n_substrings = data.draw(st.none() | st.integers(1, min(n_bits, 8)))
    expected = oracle.within(oracle.hamming(queries, codes), radius, mask)
    with ways(data.draw):
        index = index_of(codes, n_bits, cuts_of(data.draw, len(codes)), n_substrings)
        with launches(data.draw(st.sampled_from([False, False, True]))):
            found = index.range_search(queries, radius, where=mask, threads=threads)
    same_within(found, expected)


@given(problems(), st.data())
def test_removed_rows_and_kept_states(problem, data):
    queries, codes, n_bits, mask = problem
    n = len(codes)
    half = data.draw(st.integers(0, n))
    removed = np.zeros(n, np.bool_)
    share = data.draw(st.sampled_from([0.0, 0.1, 0.99]))
    removed[:half] = np.random.default_rng(n).random(half) < share
    with ways(data.draw):
        index = index_of(codes[:half], n_bits)
        index.remove(removed[:half] if data.draw(st.booleans()) else np.flatnonzero(removed))
        index.add(codes[half:])
        settings, arrays = index.state()
        kept = {name: frozen(array.copy()) for name, array in arrays.items()}
        again = he.MultiIndexHash.from_state(settings, kept)
        allowed = ~removed if mask is None else ~removed & mask
        expected = oracle.nearest(oracle.hamming(queries, codes), 9, allowed)
        within = oracle.within(oracle.hamming(queries, codes), n_bits // 8, allowed)
        for each in (index, again):
            assert (len(each), each.n_rows) == ((~removed).sum(), n)
            np.testing.assert_array_equal(each.codes, codes)
            found = each.search(queries, 9, where=mask)
            same(found, expected, len(queries), int(allowed.sum()), 9)
            same_within(each.range_search(queries, n_bits // 8, where=mask), within)
    assert repr(index) == f"MultiIndexHash(n_bits={n_bits}), {len(index):,} codes"


@pytest.mark.skipif(JIT_OFF, reason="too many rows")
def test_many_rows_with_the_costs_as_they_are():
    """Probing and scans take turns; equal to the flat index, row for row."""
    rng = np.random.default_rng(5)
    for n_bits in (64, 128):
        centres = rng.integers(0, 2**64, (400, n_bits // 64), dtype=np.uint64)
        noise = [rng.integers(0, 2**64, (60_000, n_bits // 64), dtype=np.uint64) for _ in range(4)]
        codes = centres[rng.integers(0, 400, 60_000)] ^ (noise[0] & noise[1] & noise[2] & noise[3])
        codes[::7] = noise[0][::7]
        codes[100:20_000] = codes[100]  # more duplicates than k
        queries = frozen(np.concatenate([codes[:64], noise[1][:16]]))
        index, flat = he.MultiIndexHash(n_bits), he.FlatIndex(n_bits)
        for part in np.array_split(codes, 11):
            index.add(part, progress=False)
            flat.add(part)
        assert index.n_substrings is not None
        assert index.nbytes > codes.nbytes
        for k in (1, 10, 300):
            for found, expected in zip(
                index.search(queries, k), flat.search(queries, k), strict=True
            ):
                np.testing.assert_array_equal(found, expected)
        for radius in (0, 3, 8, 20):
            for found, expected in zip(
                index.range_search(queries, radius), flat.range_search(queries, radius), strict=True
            ):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(JIT_OFF, reason="counts what kernels do")
def test_near_neighbours_take_few_buckets_and_far_ones_a_scan():
    rng = np.random.default_rng(6)
    codes = rng.integers(0, 2**64, (100_000, 1), dtype=np.uint64)
    index = index_of(codes, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multi_hash, "RadiusScan", _NoScan)
        patch.setattr(multi_hash._Search, "_scan_nearest", lambda *_: np.empty((50, 0), np.int64))
        queries = codes[:50] ^ np.uint64(5)
        found = index.search(queries, 1)
        assert found.rows[:, 0].tolist() == list(range(50))
        assert index.range_search(queries, 3).offsets[-1] == 50
        with pytest.raises(ValueError, match="scanned"):
            index.range_search(queries, 30)


class _NoScan(scan.RadiusScan):
    def scan(self, piece, _):
        raise ValueError(f"{piece.n_rows} rows scanned")


def test_adding_little_by_little_makes_few_tables():
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 2**64, (3_000, 2), dtype=np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multi_hash, "_TAIL_WORDS", 64)
        index = index_of(codes, 128, range(25, 3_000, 25))
    sizes = [len(part.codes) for part in index._held.parts]
    assert all(a >= 2 * b for a, b in itertools.pairwise(sizes))
    assert sum(sizes) + len(index._held.tail) == 3_000
    np.testing.assert_array_equal(index.codes, codes)


def test_searches_while_rows_are_added_and_removed():
    rng = np.random.default_rng(8)
    codes = rng.integers(0, 2**64, (4_000 if JIT_OFF else 40_000, 1), dtype=np.uint64)
    index = index_of(codes[:100], 64)
    failures = []
    done = threading.Event()

    def search():
        while not done.is_set():
            found = index.search(codes[:20], 1, threads=1)
            if found.rows[:, 0].tolist() != list(range(20)) or found.distances.any():
                failures.append(found)

    searcher = threading.Thread(target=search)
    searcher.start()
    for part in np.array_split(codes[100:], 60):
        index.add(part)
        index.remove([index.n_rows - 1])
    done.set()
    searcher.join()
    assert not failures
    assert len(index) == len(codes) - 60


@given(st.data(), st.integers(1, 300), st.sampled_from([None, 1, 3]))
def test_rows_in_the_order_of_a_substring(data, n_bits, threads):
    n = data.draw(st.integers(0, 300))
    width = data.draw(st.integers(1, min(n_bits, 12)))
    start = data.draw(st.integers(0, n_bits - width))
    rng = np.random.default_rng(n)
    bits = rng.random((n, n_bits)) < data.draw(st.sampled_from([0.1, 0.5]))
    codes = frozen(oracle.pack(bits))
    with (
        launches(data.draw(st.sampled_from([False, False, True]))),
        pytest.MonkeyPatch.context() as p,
    ):
        p.setattr(substrings, "_PAIRS_PER_LAUNCH", data.draw(st.sampled_from([40, 10**6])))
        pairs = substrings.sorted_pairs(codes, start, width, threads)
        offsets = substrings.bucket_offsets(pairs, width, threads)
    numbers = [sum(int(bit) << i for i, bit in enumerate(b[start : start + width])) for b in bits]
    expected = sorted((number, row) for row, number in enumerate(numbers))
    assert [(int(pair) >> 32, int(pair) & (2**32 - 1)) for pair in pairs] == expected
    below = np.searchsorted(np.sort(np.array(numbers, np.int64)), np.arange(2**width + 1))
    np.testing.assert_array_equal(offsets, below)


def test_bad_arguments():
    for arguments, message in (
        ({"n_bits": 0}, "n_bits must be at least 1, got 0"),
        ({"n_bits": 64, "n_substrings": 0}, "n_substrings must be at least 1, got 0"),
        ({"n_bits": 64, "n_substrings": 65}, "n_substrings must be at most n_bits, 64, got 65"),
    ):
        with pytest.raises(ValueError, match=message):
            he.MultiIndexHash(**arguments)
    index = index_of(np.zeros((5, 1), np.uint64), 64)
    queries = np.zeros(1, np.uint64)
    with pytest.raises(ValueError, match="codes have 2 words a code, 64 bits take 1"):
        index.add(np.zeros((3, 2), np.uint64))
    with pytest.raises(ValueError, match="query_codes have 2 words a code"):
        index.search(np.zeros(2, np.uint64))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        index.search(queries, 0)
    with pytest.raises(ValueError, match="radius must be at least 0, got -1"):
        index.range_search(queries, -1)
    with pytest.raises(ValueError, match=r"where is a mask of shape \(3,\)"):
        index.search(queries, where=np.ones(3, np.bool_))
    with pytest.raises(ValueError, match="threads must be at least 1"):
        index.search(queries, threads=0)
    assert len(index) == 5


def damaged(settings=None, **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multi_hash, "_TAIL_WORDS", 1)
        codes = np.random.default_rng(9).integers(0, 2**64, (100, 2), dtype=np.uint64)
        good, arrays = index_of(codes, 128).state()
    for name, change in changes.items():
        array = arrays[name].copy()
        arrays[name] = change(array)
    return {**good, **(settings or {})}, arrays


def put(place, value):
    def change(array):
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"more": 1}, {}, "settings must be a dict"),
        ({"n_bits": 64}, {}, "2 words a code, 64 bits take 1"),
        ({"n_bits": 120}, {}, "ones beyond bit 120"),
        ({"widths": 8}, {}, "settings widths must be a list"),
        ({"widths": [8, 8]}, {}, "arrays must be"),
        ({"widths": [9]}, {}, "substrings of 9 bits"),
        ({"widths": [7]}, {}, "offsets_0 must have 16 times 129 entries"),
        ({"widths": [0]}, {}, "at least 1"),
        ({}, {"offsets_0": put(257 + 7, 101)}, "offsets_0 must ascend from 0 to 100"),
        ({}, {"offsets_0": put(4 * 257 - 1, 99)}, "offsets_0 must ascend"),
        ({}, {"offsets_0": put(0, 1)}, "offsets_0 must ascend"),
        ({}, {"rows_0": put(250, 100)}, "rows_0 names row 100, there are 100"),
        ({}, {"rows_0": lambda a: a[:-1]}, "offsets_0 must have 15 times 257 entries, got 4112"),
        ({}, {"words_0": lambda a: a[:-1]}, "words_0 must have 16 times 100 entries"),
        ({}, {"words_0": lambda a: a.astype(np.int64)}, "words_0 must be an array of uint64"),
        ({}, {"codes_0": lambda a: a[:0]}, "codes_0 must have 1 to"),
        ({}, {"codes_0": lambda a: a[0]}, "codes_0 must have 2 dimensions"),
        ({}, {"tail": lambda a: a[:, :1]}, "tail has 1 words a code"),
        ({}, {"removed": lambda _: np.full(3, 1, np.uint64)}, "removed has bits beyond"),
        ({}, {"removed": lambda _: np.full(2, 2**63, np.uint64)}, "removed has bits beyond"),
    ],
)
def test_damaged_states(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        he.MultiIndexHash.from_state(*damaged(settings, **changes))


def test_one_signature_each():
    """Arrays from add, from a file, with and without filters: every kernel is compiled once."""
    if JIT_OFF:
        pytest.skip("counts what is compiled")
    settings, arrays = damaged()
    index = he.MultiIndexHash.from_state(settings, arrays)
    writable = np.zeros((3, 2), np.uint64)
    for where in (None, np.arange(60), np.ones(100, np.bool_)):
        index.search(writable, 3, where=where)
        index.range_search(writable, 3, where=where)
        index.remove([5])
    for cell in (hashing.nearest_cell, hashing.within_cell, hashing.split_cell):
        assert len(cell.signatures) == 1
    assert (index.search(writable, 1).rows >> ROW_BITS == 0).all()
