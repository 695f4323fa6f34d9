"""IVFIndex: exact with all cells, honest about fewer, the same for every way it came about."""

import functools
import os
import re

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import example, given, settings

import hamming_engine as he
from hamming_engine.held import HeldCodes
from hamming_engine.indexes import ivf, kmeans
from hamming_engine.indexes.cells import lists_for
from hamming_engine.indexes.distances import nearest_of_few
from hamming_engine.indexes.ivf import IVFIndex
from hamming_engine.kernels import launch

ALL = 1 << 40  # more cells than there ever are
JIT_OFF = os.environ.get("NUMBA_DISABLE_JIT") == "1"
N_EXAMPLES = 4 if JIT_OFF else 40


def clustered(n, n_bits, rng, n_clusters=20, duplicates=0):
    """Codes around some centres, of which some are alike."""
    centers = rng.standard_normal((n_clusters, n_bits))
    vectors = centers[rng.integers(0, n_clusters, n)] + rng.standard_normal((n, n_bits))
    if duplicates:
        vectors[rng.integers(0, n, duplicates)] = vectors[0]
    return oracle.pack(vectors)


@st.composite
def problems(draw):
    n_bits = draw(st.sampled_from([1, 7, 64, 65, 100, 384, 1000]))
    n = draw(st.integers(0, 300 if JIT_OFF else 2_500))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = clustered(n, n_bits, rng, duplicates=draw(st.sampled_from([0, n // 2])))
    queries = oracle.pack(rng.standard_normal((draw(st.integers(1, 9)), n_bits)))
    index = IVFIndex(n_bits, draw(st.sampled_from([None, 1, 13, 60])))
    begin = 0
    while begin < n:
        size = draw(st.integers(1, n))
        index.add(codes[begin : begin + size])
        begin += size
    removed = np.flatnonzero(rng.random(n) < draw(st.sampled_from([0, 0.2])))
    index.remove(removed)
    mask = rng.random(n) < draw(st.sampled_from([0.0, 0.02, 0.5]))
    where = draw(st.sampled_from([None, mask, np.flatnonzero(mask)]))
    allowed = np.ones(n, np.bool_) if where is None else mask.copy()
    allowed[removed] = False
    return index, codes, queries, where, allowed


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def small_work_in_parallel(monkeypatch):
    monkeypatch.setattr(launch, "SMALL_WORK", 0)
    monkeypatch.setattr(ivf, "SMALL_SCAN", 0)
    monkeypatch.setattr(ivf, "_LEAST_TAIL", 50)


@pytest.fixture(autouse=True)
def cells_come_early(monkeypatch):
    monkeypatch.setattr(ivf, "_LEAST_TAIL", 50)


@settings(max_examples=N_EXAMPLES)
@given(problems(), st.sampled_from([1, 3, 100]), st.sampled_from([1, 2]))
def test_with_all_cells_it_is_the_oracle(problem, k, threads):
    index, codes, queries, where, allowed = problem
    distances = oracle.hamming(queries, codes)
    found = index.search(queries, k, nprobe=ALL, where=where, threads=threads)
    same(found, oracle.nearest(distances, min(k, allowed.sum()), allowed))
    same(index.search(queries, k, target_recall=1, where=where), found)
    assert len(index) == len(codes) - (index.n_rows - len(index))
    np.testing.assert_array_equal(index.codes, codes)


@settings(max_examples=N_EXAMPLES)
@given(problems(), st.integers(0, 600))
def test_radius_search_is_exact(problem, radius):
    index, codes, queries, where, allowed = problem
    found = index.range_search(queries, radius, where=where)
    expected = oracle.within(oracle.hamming(queries, codes), radius, allowed)
    assert found.offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    pairs = zip(found.distances.tolist(), found.rows.tolist(), strict=True)
    assert list(pairs) == [pair for line in expected for pair in line]


@settings(max_examples=N_EXAMPLES)
@given(problems(), st.sampled_from([1, 5, 40]), st.integers(1, 20))
def test_with_few_cells_k_rows_come_and_they_are_what_they_seem(problem, k, nprobe):
    index, codes, queries, where, allowed = problem
    found = index.search(queries, k, nprobe=nprobe, where=where)
    assert found.rows.shape == (len(queries), min(k, allowed.sum()))
    assert allowed[found.rows].all()
    distances = oracle.hamming(queries, codes)
    for q in range(len(queries)):
        same([found.distances[q]], [distances[q, found.rows[q]]])
        keys = list(zip(found.distances[q], found.rows[q], strict=True))
        assert keys == sorted(set(keys))
    same(index.search(queries, k, nprobe=nprobe, where=where, threads=1), found)
    for q in range(len(queries)):
        alone = index.search(queries[q], k, nprobe=nprobe, where=where)
        if where is None and len(index) == index.n_rows:
            same(alone, (found.distances[q : q + 1], found.rows[q : q + 1]))


@pytest.mark.skipif(JIT_OFF, reason="thousands of rows, interpreted")
@pytest.mark.usefixtures("small_work_in_parallel")
@pytest.mark.parametrize("kernel", ["popcount", "table"])
def test_threads_slabs_and_kernels_find_the_same(kernel, monkeypatch):
    rng = np.random.default_rng(5)
    codes = clustered(6_000, 200, rng, duplicates=500)
    index = IVFIndex(200, kernel=kernel)
    index.add(codes)
    flat = he.FlatIndex(200)
    flat.add(codes)
    queries = codes[rng.integers(0, 6_000, 30)] ^ np.uint64(5)
    for n_queries in (1, 3, 30):
        some = queries[:n_queries]
        for nprobe in (1, 9, ALL):
            first = index.search(some, 20, nprobe=nprobe, threads=1)
            same(index.search(some, 20, nprobe=nprobe, threads=2), first)
            monkeypatch.setattr(ivf, "WORK_PER_LAUNCH", 1 << 8)
            same(index.search(some, 20, nprobe=nprobe, threads=2), first)
            monkeypatch.undo()
        same(first, flat.search(some, 20))


@pytest.mark.parametrize("factors", [False, True])
def test_by_weights_with_all_cells_it_is_the_flat_index(factors):
    rng = np.random.default_rng(7)
    n = 400 if JIT_OFF else 3_000
    codes = clustered(n, 100, rng)
    given = (np.abs(rng.standard_normal((n, 2))) * (1, 5)).astype(np.float32) if factors else None
    flat, index = he.FlatIndex(100, factors=factors), IVFIndex(100, 40, factors=factors)
    for each in (flat, index):
        each.add(codes[:-60], None if given is None else given[:-60])
        each.add(codes[-60:], None if given is None else given[-60:])
        each.remove([5, n - 3])
    weights = rng.standard_normal((9, 100)).astype(np.float32)
    where = rng.random(n) < 0.4
    for mask in (None, where):
        expected = flat.search(weights, 25, where=mask)
        same(index.search(weights, 25, nprobe=ALL, where=mask), expected)
    few = index.search(weights, 25, nprobe=8)
    assert few.rows.shape == (9, 25)
    assert (few.scores[:, -1] <= flat.search(weights, 25).scores[:, -1]).all()
    assert (np.diff(few.scores, axis=1) <= 0).all()


@pytest.mark.skipif(JIT_OFF, reason="thousands of rows, interpreted")
def test_the_recall_that_was_asked_for_comes():
    rng = np.random.default_rng(3)
    base = rng.standard_normal((300, 128)) * 1.5
    rows = base[rng.integers(0, 300, 30_000)] + rng.standard_normal((30_000, 128))
    queries = oracle.pack(base[rng.integers(0, 300, 400)] + rng.standard_normal((400, 128)))
    codes = oracle.pack(rows)
    index = IVFIndex(128)
    index.add(codes)
    exact = index.search(queries, 10, nprobe=ALL)

    def recall(**wanted):
        found = index.search(queries, 10, **wanted)
        return (found.distances <= exact.distances[:, -1:]).mean()

    assert recall(nprobe=1) < 0.9
    measured = index.calibrate()
    assert [n for n, _ in measured] == sorted({n for n, _ in measured})
    assert measured[-1] == (index.n_lists, 1.0)
    for wanted in (0.9, 0.95, 0.99):
        # Two samples, of 256 and 400 queries.
        assert recall(target_recall=wanted) > wanted - 0.03
    assert recall() == recall(target_recall=0.95)
    by_queries = dict(index.calibrate(queries))
    for nprobe, of_queries in by_queries.items():
        assert recall(nprobe=nprobe) == pytest.approx(of_queries, abs=1e-9)


def test_a_filter_keeps_the_recall():
    rng = np.random.default_rng(3)
    n = 500 if JIT_OFF else 20_000
    codes = clustered(n, 128, rng, 100)
    index = IVFIndex(128, n // 50)
    index.add(codes)
    queries = codes[:50] ^ np.uint64(1 << 20)
    for share in (0.5, 0.1, 0.01):
        mask = rng.random(n) < share
        exact = index.search(queries, 5, nprobe=ALL, where=mask)
        found = index.search(queries, 5, nprobe=5, where=mask)
        everywhere = index.search(queries, 5, nprobe=5)
        of_all = index.search(queries, 5, nprobe=ALL)
        filtered = (found.distances <= exact.distances[:, -1:]).mean()
        assert filtered >= (everywhere.distances <= of_all.distances[:, -1:]).mean() - 0.05


def test_cells_are_balanced_and_duplicates_do_no_harm():
    rng = np.random.default_rng(0)
    n = 600 if JIT_OFF else 8_000
    codes = clustered(n, 64, rng)
    codes[: n // 2] = codes[0]
    index = IVFIndex(64, 20)
    index.add(codes)
    sizes = index._contents.cells.lists.sizes
    assert sizes.sum() == n
    assert sizes.max() <= max(64, 4 * n // 20)
    found = index.search(codes[0], 100, nprobe=ALL)
    assert found.rows[0].tolist() == list(range(100))
    same(index.search(codes[0], 100, nprobe=1).distances, np.zeros((1, 100)))


def test_cells_know_how_far_their_rows_are():
    rng = np.random.default_rng(1)
    codes = clustered(500, 70, rng)
    index = IVFIndex(70, 30)
    for begin in (0, 300):
        index.add(codes[begin : begin + 300])
    cells = index._contents.cells
    for which in range(len(cells.lists)):
        rows = cells.lists.rows[cells.lists.places_of(which)]
        assert (np.diff(rows) > 0).all()
        distances = oracle.hamming(cells.centers[[which]], codes[rows])
        assert distances.max(initial=0) <= cells.radii[which]


def test_cells_are_made_anew_when_rows_have_become_many():
    rng = np.random.default_rng(1)
    codes = clustered(3_000 if not JIT_OFF else 900, 64, rng)
    index = IVFIndex(64)
    index.add(codes[:200])
    few = index.n_lists
    index.add(codes[200:])
    assert few == lists_for(200) < index.n_lists
    same(index.search(codes[:3], 5, nprobe=ALL), he.search(codes[:3], codes, 5))


def test_it_depends_on_rows_and_seed_alone():
    rng = np.random.default_rng(1)
    codes = clustered(2_000 if not JIT_OFF else 300, 100, rng)
    made = []
    for threads, seed in ((1, 0), (2, 0), (1, 1)):
        index = IVFIndex(100, 20, seed=seed)
        index.add(codes, threads=threads)
        made.append(index.state()[1])
    for name, array in made[0].items():
        np.testing.assert_array_equal(array, made[1][name], err_msg=name)
    assert not np.array_equal(made[0]["centers"], made[2]["centers"])


def test_cells_of_vectors():
    rng = np.random.default_rng(2)
    n = 300 if JIT_OFF else 4_000
    vectors = rng.standard_normal((30, 96))[rng.integers(0, 30, n)]
    vectors = (vectors + 0.5 * rng.standard_normal((n, 96))).astype(np.float16)
    index = IVFIndex(96, 30)
    index.add(oracle.pack(vectors), vectors=vectors)
    same(
        index.search(oracle.pack(vectors[:9]), 4, nprobe=ALL),
        he.search(oracle.pack(vectors[:9]), oracle.pack(vectors), 4),
    )
    # A cell of vectors that lie together: most of a row's nearest are in its own.
    near = index.search(oracle.pack(vectors), 2, nprobe=1)
    far = index.search(oracle.pack(vectors), 2, nprobe=ALL)
    assert (near.distances == far.distances).mean() > 0.9


@pytest.mark.parametrize("factors", [False, True])
def test_state_and_back(factors):
    rng = np.random.default_rng(4)
    codes = clustered(700, 100, rng)
    given = np.ones((700, 2), np.float32) if factors else None
    index = IVFIndex(100, 12, target_recall=0.9, factors=factors, seed=3)
    index.add(codes[:600], None if given is None else given[:600])
    index.add(codes[600:], None if given is None else given[600:])
    index.remove([5, 650])
    before = index.search(codes[:20], 7), index.search(codes[:20], 7, nprobe=ALL)
    stored, arrays = index.state()
    for array in arrays.values():
        assert array.ndim <= 2
        array.flags.writeable = False
    again = IVFIndex.from_state(stored, arrays)
    same(again.search(codes[:20], 7, nprobe=ALL), before[1])
    assert len(again) == len(index) == 698
    assert again.calibrate(codes[:50]) == index.calibrate(codes[:50])
    again.add(codes[:90], None if given is None else given[:90])
    assert len(again) == 788
    assert len(IVFIndex.from_state(*IVFIndex(64).state())) == 0


def test_a_damaged_state_is_refused():
    index = IVFIndex(100, 12)
    index.add(clustered(700, 100, np.random.default_rng(4)))
    stored, arrays = index.state()
    for name, array in arrays.items():
        for wrong in (array[:-1] if name != "strangers" else None, array.astype(np.float16), None):
            with pytest.raises(ValueError, match="must be"):
                IVFIndex.from_state(stored, {**arrays, name: wrong})
    for name, change in (
        ("begins", lambda a: a[::-1]),
        ("begins", lambda a: a + 1),
        ("filled", lambda a: a >> np.uint64(1)),
        ("strangers", lambda a: a + 700),
        ("centers", lambda a: a | np.uint64(1 << 40)),
        ("recalls", lambda a: a * 0.5),
    ):
        with pytest.raises(ValueError, match=name):
            IVFIndex.from_state(
                stored, {**arrays, name: np.ascontiguousarray(change(arrays[name]))}
            )
    for change, message in (
        ({"n_rows": 699}, "filled must have a bit for each of 699 rows, has 700"),
        ({"n_rows": -1}, "n_rows must be at least 0"),
        ({"n_bits": 300}, "centers must be uint64"),
    ):
        with pytest.raises(ValueError, match=message):
            IVFIndex.from_state({**stored, **change}, arrays)
    with pytest.raises(TypeError):
        IVFIndex.from_state({}, arrays)
    rows = arrays["rows"].copy()
    rows[rows >= 0] += 1 << 30
    wild = IVFIndex.from_state(stored, {**arrays, "rows": rows})
    for where in (None, np.ones(700, bool)):
        with pytest.raises(ValueError, match="damaged"):
            wild.search(np.zeros((1, 2), np.uint64), 3, where=where)


def bad(call, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_bad_input():
    index = IVFIndex(64)
    codes = np.zeros((3, 1), np.uint64)
    index.add(codes)
    search = functools.partial(index.search, codes)
    bad(lambda: IVFIndex(0), ValueError, "n_bits must be at least 1, got 0")
    bad(lambda: IVFIndex(65_473), ValueError, "n_bits must be at most 65,472, got 65473")
    bad(lambda: IVFIndex(64, 0), ValueError, "n_lists must be at least 1, got 0")
    bad(lambda: IVFIndex(64, nprobe=0), ValueError, "nprobe must be at least 1, got 0")
    bad(lambda: IVFIndex(64, seed=-1), ValueError, "seed must be at least 0, got -1")
    bad(lambda: IVFIndex(64, kernel="plain"), ValueError, "kernel must be one of")
    bad(lambda: IVFIndex(64, target_recall=1.5), ValueError, "target_recall must be above 0 and")
    bad(lambda: search(nprobe=0), ValueError, "nprobe must be at least 1, got 0")
    bad(lambda: search(target_recall=0), ValueError, "target_recall must be above 0")
    bad(lambda: search(target_recall="x"), TypeError, "target_recall must be a number")
    bad(lambda: search(nprobe=1, target_recall=0.5), ValueError, "must not be given both")
    bad(lambda: search(k=0), ValueError, "k must be at least 1")
    bad(lambda: search(where=[3]), ValueError, "where names row 3, there are 3")
    bad(lambda: index.search(np.zeros((1, 2), np.uint64)), ValueError, "2 words a code")
    bad(lambda: index.add(codes.astype(np.int64)), TypeError, "uint64")
    bad(lambda: index.add(codes, np.ones((3, 2))), ValueError, "factors must be None")
    bad(
        lambda: index.add(codes, vectors=np.ones((2, 64), np.float32)),
        ValueError,
        "vectors must be one a code: got shape (2, 64) for 3 codes",
    )
    bad(lambda: index.remove([3]), ValueError, "rows names row 3, there are 3")
    bad(lambda: index.calibrate(codes[:0]), ValueError, "query_codes must be at least one")
    assert len(index) == 3
    assert repr(index) == "IVFIndex(n_bits=64), 3 codes"


@settings(max_examples=N_EXAMPLES)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 2**32))
@example(1, 1, 0)
def test_the_majority_has_the_least_distances(n, n_lists, seed):
    rng = np.random.default_rng(seed)
    codes = oracle.pack(rng.standard_normal((n, 70)))
    assigned = rng.integers(0, n_lists, n)
    order, begins = kmeans.by_list(assigned, n_lists)
    centers = kmeans.majority(codes, order, begins, None)
    for which in range(n_lists):
        bits = np.unpackbits(codes[assigned == which].view(np.uint8), axis=1)
        expected = np.packbits(2 * bits.sum(axis=0) > len(bits))
        np.testing.assert_array_equal(centers[which].view(np.uint8), expected)


@given(
    st.integers(1, 300),
    st.integers(1, 12),
    st.sampled_from([1, 20, 64, 130]),
    st.sampled_from([1, 2]),
    st.integers(0, 2**32),
)
def test_nearest_of_few(n, n_queries, n_bits, threads, seed):
    """Few bits, so that many distances are the same."""
    rng = np.random.default_rng(seed)
    codes = oracle.pack(rng.standard_normal((n, n_bits)))
    queries = oracle.pack(rng.standard_normal((n_queries, n_bits)))
    held = HeldCodes(codes.shape[1])
    held.append(codes)
    k = int(rng.integers(1, n + 1))
    found = nearest_of_few(queries, held, k, threads)
    distances, rows = oracle.nearest(oracle.hamming(queries, codes), k)
    np.testing.assert_array_equal(found.distances, distances)
    np.testing.assert_array_equal(found.rows, rows)
