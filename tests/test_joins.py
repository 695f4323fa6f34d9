"""Joins, clusters, nearest rows and all distances against the oracle: equality, order included."""

import contextlib
import os

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import given, settings

import hamming_engine as he
from hamming_engine.joins import near, source, within
from hamming_engine.joins.parts import cuts, key_bits_for, make_part, varying_bits
from hamming_engine.kernels import launch
from hamming_engine.kernels.methods import METHODS, VARIABLE, best_method

JIT_OFF = os.environ.get("NUMBA_DISABLE_JIT") == "1"
SIZE = 10 if JIT_OFF else 1
FEWER = min(30, settings().max_examples)  # where an example is many calls
METHOD_CHOICES = [None, "scan", 0, 1, 2, 9]


def near_codes(rng, n, n_bits, distinct, flips):
    """Codes of which many are the same or nearly so."""
    base = rng.random((max(1, distinct), n_bits)) < 0.5
    bits = base[rng.integers(0, len(base), n)]
    return oracle.pack(bits ^ (rng.random((n, n_bits)) < flips))


@st.composite
def problems(draw, max_rows=200):
    """(codes, other codes, radius)."""
    n_bits = draw(st.integers(1, 260))
    n, m = (draw(st.integers(0, max_rows // SIZE)) for _ in range(2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    distinct = draw(st.sampled_from([1, 3, 40, 300]))
    flips = draw(st.sampled_from([0.0, 0.5 / n_bits, 3 / n_bits, 0.5]))
    codes = near_codes(rng, n + m, n_bits, distinct, flips)
    radius = draw(st.sampled_from([0, 1, 2, 3, 5, 8, 17]) | st.integers(0, n_bits + 70))
    return codes[:n], codes[n:], radius


def pairs(distances, radius, only_later):
    """All (first, second, distance) within a radius, in order."""
    return [
        (i, j, int(d))
        for i, line in enumerate(distances)
        for j, d in enumerate(line)
        if d <= radius and (j > i or not only_later)
    ]


def clusters(n, found):
    """The smallest row that pairs lead to, of each row: breadth first."""
    neighbours = [[] for _ in range(n)]
    for i, j, _ in found:
        neighbours[i].append(j)
        neighbours[j].append(i)
    labels = [-1] * n
    for row in range(n):
        waiting = [row]
        for i in waiting:
            if labels[i] < 0:
                labels[i] = row
                waiting += neighbours[i]
    return labels


def as_tuples(result):
    assert [array.dtype for array in result] == [np.int64, np.int64, np.int32]
    return list(zip(*(array.tolist() for array in result), strict=True))


@contextlib.contextmanager
def ways(method=None, parallel=False, **limits):
    """With a method forced, the smallest work on all threads, and limits small."""

    def forced(queries, rows, n_queries, radius, symmetric):  # noqa: ARG001
        bits = varying_bits(queries, rows)
        options = list(cuts(len(bits), radius))
        if method == "scan" or not options or not len(queries) or not len(rows):
            return None
        cut = options[min(method, len(options) - 1)]
        most = key_bits_for(len(rows)) // 2  # also shorter than parts, so that codes collide
        return [make_part(bits[i:j], rows.shape[1], rest, most) for i, j, rest in cut]

    with pytest.MonkeyPatch.context() as patch:
        if method is not None:
            patch.setattr(near, "choose_parts", forced)
        if parallel:
            patch.setattr(launch, "SMALL_WORK", 0)
        for name, value in limits.items():
            home = next(m for m in (near, source, within) if hasattr(m, name))
            patch.setattr(home, name, value)
        yield


@settings(max_examples=FEWER)
@given(problems(), st.sampled_from(METHOD_CHOICES), st.sampled_from([1, 2, 3]), st.booleans())
def test_joins(problem, method, threads, parallel):
    codes, others, radius = problem
    own = pairs(oracle.hamming(codes, codes), radius, only_later=True)
    across = pairs(oracle.hamming(codes, others), radius, only_later=False)
    with ways(method, parallel):
        assert as_tuples(he.self_join(codes, radius, threads=threads)) == own
        assert as_tuples(he.join(codes, others, radius, threads=threads)) == across
        found = he.duplicates(codes, radius, threads=threads)
    assert found.labels.tolist() == clusters(len(codes), own)


@settings(max_examples=FEWER)
@given(
    problems(max_rows=120),
    st.sampled_from(METHOD_CHOICES),
    st.sampled_from([1, 30, 64, 150]),
    st.sampled_from([1, 20, 10_000]),
    st.sampled_from([1, 1 << 30]),
)
def test_any_cut_into_blocks_and_pieces_gives_the_same(problem, method, rows, piece, kept):
    codes, others, radius = problem
    own = pairs(oracle.hamming(codes, codes), radius, only_later=True)
    across = pairs(oracle.hamming(codes, others), radius, only_later=False)
    if rows == 1:
        codes, others = codes[:8], others[:8]
        own = [pair for pair in own if pair[1] < 8]
        across = [pair for pair in across if pair[0] < 8 and pair[1] < 8]
    limits = {"MAX_BLOCK_ROWS": rows, "_PIECE_PAIRS": piece, "_KEPT_BYTES": kept, "_ROOM": 1}
    with ways(method, **limits):
        assert as_tuples(he.self_join(codes, radius)) == own
        assert as_tuples(he.join(codes, others, radius)) == across
        assert he.duplicates(codes, radius).labels.tolist() == clusters(len(codes), own)
        for pieces, expected in (
            (he.iter_self_join(codes, radius), own),
            (he.iter_join(codes, others, radius), across),
        ):
            found = [as_tuples(result) for result in pieces]
            assert [pair for result in found for pair in result] == expected
            for result in found:
                rows_of_piece = {first for first, _, _ in result}
                assert 0 < len(result) <= piece or len(rows_of_piece) == 1


@pytest.mark.parametrize("method", [0, 1, 2, "scan"])
@pytest.mark.parametrize("n_bits", [64, 100, 192])
def test_large_buckets(n_bits, method):
    """Codes with few ones agree in many parts: buckets of hundreds of rows, and few pairs."""
    rng = np.random.default_rng(n_bits)
    codes = oracle.pack(rng.random((1_500 // SIZE, n_bits)) < 6 / n_bits)
    codes = np.concatenate([codes, codes[::7]])
    distances = oracle.hamming(codes, codes)
    with ways(method):
        assert as_tuples(he.self_join(codes, 3)) == pairs(distances, 3, only_later=True)
        some = codes[: len(codes) // 2]
        expected = pairs(distances[: len(some)], 3, only_later=False)
        assert as_tuples(he.join(some, codes, 3)) == expected
    with ways(method, _ROOM=64):
        assert as_tuples(he.self_join(codes, 3)) == pairs(distances, 3, only_later=True)


@pytest.mark.parametrize("kernel", sorted(METHODS))
def test_every_kernel(kernel, monkeypatch):
    monkeypatch.setenv(VARIABLE, kernel)
    best_method.cache_clear()
    try:
        rng = np.random.default_rng(0)
        codes = near_codes(rng, 700 // SIZE, 384, 60, 0.05)
        distances = oracle.hamming(codes, codes)
        for method in ("scan", 0):
            with ways(method):
                expected = pairs(distances, 30, only_later=True)
                assert as_tuples(he.self_join(codes, 30)) == expected
        np.testing.assert_array_equal(he.pairwise(codes), distances)
        graph = he.knn_graph(codes, 3)
    finally:
        best_method.cache_clear()
    assert (graph.rows.tolist(), graph.distances.tolist()) == nearest_others(distances, 3)


def test_codes_beyond_blocks_are_compared_too():
    rng = np.random.default_rng(0)
    codes = near_codes(rng, 12, 64 * 1_025, 3, 1e-4)
    distances = oracle.hamming(codes, codes)
    for method in ("scan", 0):
        with ways(method):
            assert as_tuples(he.self_join(codes, 20)) == pairs(distances, 20, only_later=True)
    found = he.pairwise(codes)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, distances)


@pytest.mark.parametrize("n_bits", [64, 384])
@pytest.mark.parametrize("radius", [0, 2, 20])
def test_the_choice_is_one_of_both(n_bits, radius):
    """Small radii by parts, large ones by a scan, and parts that all codes share never."""
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 2**64, (20_000, n_bits // 64), np.uint64)
    parts = near.choose_parts(codes, codes, len(codes), radius, True)
    assert (parts is not None) == (radius < 20 or n_bits > 64)
    skewed = oracle.pack(rng.random((2_000, n_bits)) < 2 / n_bits)
    if radius:
        assert near.choose_parts(skewed, skewed, len(skewed), 30, True) is None


def test_many_identical_codes():
    """What identical codes cost is what they give: here five thousand million pairs."""
    n = 100_000 // SIZE
    codes = np.full((n, 6), 12345, np.uint64)
    codes[n // 3] = 54321  # 10 bits away
    found = he.duplicates(codes, 2)
    assert (np.flatnonzero(found.labels) == [n // 3]).all()
    (group,) = found.groups
    assert len(group) == n - 1
    assert len(found.drop) == n - 2
    piece = next(he.iter_self_join(codes, 2))
    assert (piece.first[0], piece.second[0], piece.second[-1]) == (0, 1, n - 1)
    assert (np.diff(piece.first) >= 0).all()
    few = codes[: 2_000 // SIZE]
    assert len(he.self_join(few, 0).first) == len(few) * (len(few) - 1) // 2


def test_pad_bits_and_bits_that_never_vary_are_in_no_part():
    codes = oracle.pack(np.random.default_rng(0).random((50, 70)) < 0.5)
    codes[:, 0] |= np.uint64(1 << 63)
    bits = varying_bits(codes)
    assert 63 not in bits
    assert len(bits) == 69
    assert not len(varying_bits(codes[:1]))
    assert not len(varying_bits(codes[:0]))


@given(st.integers(1, 300), st.integers(0, 40))
def test_parts_leave_no_pair_out(n_bits, radius):
    """However the differing bits of a pair lie, some part has at most its rest of them."""
    for cut in cuts(n_bits, radius):
        assert [begin for begin, _, _ in cut] == [0, *(end for _, end, _ in cut[:-1])]
        assert cut[-1][1] == n_bits
        # To be missed a pair must have one more than the rest in every part.
        assert sum(rest + 1 for _, _, rest in cut) > radius


def nearest_others(distances, k):
    rows = [
        sorted((r for r in range(len(line)) if r != i), key=lambda r, line=line: (line[r], r))[:k]
        for i, line in enumerate(distances)
    ]
    return rows, [[int(line[r]) for r in some] for line, some in zip(distances, rows, strict=True)]


@given(problems(max_rows=150), st.integers(1, 160), st.sampled_from([None, 1, 3]))
def test_knn_graph(problem, k, threads):
    codes = problem[0]
    graph = he.knn_graph(codes, k, threads=threads)
    rows, distances = nearest_others(oracle.hamming(codes, codes), k)
    assert (graph.rows.dtype, graph.distances.dtype) == (np.int64, np.int32)
    assert graph.rows.shape == (len(codes), max(0, min(k, len(codes) - 1)))
    assert graph.rows.tolist() == rows
    assert graph.distances.tolist() == distances


@given(
    problems(),
    st.sampled_from([np.uint8, np.int32, np.int64]),  # each is compiled
    st.sampled_from([None, 1, 3]),
    st.booleans(),
)
def test_pairwise(problem, dtype, threads, parallel):
    a, b, _ = problem
    expected = oracle.hamming(a, b)
    with ways(parallel=parallel):
        found = he.pairwise(a, b, threads=threads)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(he.pairwise(a, threads=threads), oracle.hamming(a, a))
        if 64 * a.shape[1] <= np.iinfo(dtype).max:
            out = np.full(expected.shape, 77, dtype)
            assert he.pairwise(a, b, out=out, threads=threads) is out
            np.testing.assert_array_equal(out, expected)


def test_pairwise_into_a_file(tmp_path):
    codes = near_codes(np.random.default_rng(0), 100, 384, 30, 0.1)
    out = np.memmap(tmp_path / "distances", np.uint16, "w+", shape=(100, 100))
    he.pairwise(codes, out=out)
    out.flush()
    stored = np.fromfile(tmp_path / "distances", np.uint16).reshape(100, 100)
    np.testing.assert_array_equal(stored, oracle.hamming(codes, codes))


# Collections.


@pytest.fixture(params=["numbers", "text"])
def collection(request, tmp_path):
    """Three segments, some rows removed; with the ids and codes of the rows that are there."""
    rng = np.random.default_rng(5)
    vectors = np.where(rng.random((90, 70)) < 0.5, 1.0, -1.0)
    vectors = vectors[rng.integers(0, 90, 260)] * np.where(rng.random((260, 70)) < 0.02, -1, 1)
    ids = np.arange(1_000, 1_260)
    if request.param == "text":
        ids = np.array([f"row-{'x' * (i % 3)}{i}" for i in range(260)])
    removed = np.arange(0, 260, 9)
    with he.Collection.create(tmp_path / "c.hme", 70, vectors=None) as docs:
        for begin, end in ((0, 100), (100, 130), (130, 260)):
            docs.append(vectors[begin:end], ids=ids[begin:end])
        docs.delete(ids[removed])
        kept = np.delete(np.arange(260), removed)
        yield docs, ids[kept], oracle.pack(vectors[kept])


@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
def test_joins_of_a_collection(collection, memory_bytes):
    docs, ids, codes = collection
    n_blocks = len(docs.code_blocks(max(1, memory_bytes // 8)))
    assert n_blocks == (3 if memory_bytes == 1 else 1)
    own = pairs(oracle.hamming(codes, codes), 4, only_later=True)
    assert len(own) > 50
    expected = [(ids[i], ids[j], d) for i, j, d in own]
    some = codes[:40] ^ np.uint64(1)
    found = he.self_join(docs, 4, memory_bytes=memory_bytes)
    assert found.first.dtype.kind == ids.dtype.kind
    assert list(zip(*found, strict=True)) == expected
    with ways(_PIECE_PAIRS=20):
        pieces = list(he.iter_self_join(docs, 4, memory_bytes=memory_bytes))
    assert [pair for piece in pieces for pair in zip(*piece, strict=True)] == expected
    across = pairs(oracle.hamming(codes, some), 4, only_later=False)
    found = he.join(docs, some, 4, memory_bytes=memory_bytes)
    assert list(zip(*found, strict=True)) == [(ids[i], j, d) for i, j, d in across]
    found = he.join(some, docs, 4, memory_bytes=memory_bytes)
    expected = sorted((j, i, d) for i, j, d in across)
    assert list(zip(*found, strict=True)) == [(j, ids[i], d) for j, i, d in expected]


@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
def test_duplicates_of_a_collection(collection, memory_bytes):
    docs, ids, codes = collection
    found = he.duplicates(docs, 4, memory_bytes=memory_bytes)
    labels = clusters(len(ids), pairs(oracle.hamming(codes, codes), 4, only_later=True))
    assert found.labels.tolist() == labels
    expected = [ids[np.array(labels) == label].tolist() for label in sorted(set(labels))]
    assert [group.tolist() for group in found.groups] == [g for g in expected if len(g) > 1]
    n_before = len(docs)
    docs.delete(found.drop)
    assert len(docs) == n_before - len(found.drop) == len(set(labels))
    assert not len(he.duplicates(docs, 0).drop)


def test_code_blocks(collection):
    docs, ids, codes = collection
    blocks = docs.code_blocks(1)
    docs.delete(ids[:10])
    docs.append(np.ones((5, 70)), ids=ids[:5])  # blocks are of the generation they came from
    for _ in range(2):
        found = list(blocks)
        assert len(found) == len(blocks) == 3
        np.testing.assert_array_equal(np.concatenate([some for some, _ in found]), ids)
        np.testing.assert_array_equal(np.concatenate([some for _, some in found]), codes)
    with pytest.raises(IndexError):
        blocks[3]
    with pytest.raises(ValueError, match="max_bytes must be at least 1, got 0"):
        docs.code_blocks(0)


def test_an_empty_collection(tmp_path):
    with he.Collection.create(tmp_path / "c.hme", 70) as docs:
        assert not len(docs.code_blocks())
        assert not len(he.self_join(docs, 3).first)
        assert not len(he.join(docs, np.zeros((3, 2), np.uint64), 3).first)
        assert not len(he.duplicates(docs, 3).labels)
        assert list(he.iter_self_join(docs, 3)) == []


def test_progress_is_shown_to_its_end(monkeypatch):
    codes = near_codes(np.random.default_rng(0), 300, 64, 100, 0.02)
    bars = []

    class Bar:
        def __init__(self, show, total, unit):  # noqa: ARG002
            self.total, self.n = total, 0
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *exc_info):
            pass

        def update(self, n):
            self.n += n

    for module in ("within", "clusters", "neighbours"):
        monkeypatch.setattr(f"hamming_engine.joins.{module}.progress_bar", Bar)
    for method in ("scan", 0):
        for rows in (100, 1_000):
            with ways(method, MAX_BLOCK_ROWS=rows):
                he.self_join(codes, 3)
                list(he.iter_self_join(codes, 3))
                he.join(codes, codes[:100], 3)
                he.duplicates(codes, 3)
    he.knn_graph(codes, 3)
    assert len(bars) == 17
    assert all(bar.n == bar.total for bar in bars)


CODES = np.zeros((3, 2), np.uint64)
WIDER = np.zeros((3, 3), np.uint64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: he.self_join(CODES.astype(int), 1), TypeError, "codes must be native uint64"),
        (lambda: he.self_join(CODES, -1), ValueError, "radius must be at least 0, got -1"),
        (lambda: he.self_join(CODES, 1.5), TypeError, "radius must be an integer, got 1.5"),
        (lambda: he.self_join(CODES, 1, threads=0), ValueError, "threads must be at least 1"),
        (lambda: he.iter_self_join(CODES, -1), ValueError, "radius must be at least 0, got -1"),
        (lambda: he.join(CODES, WIDER, 1), ValueError, "b has 3 words a code, a has 2"),
        (lambda: he.iter_join(CODES, WIDER, 1), ValueError, "b has 3 words a code, a has 2"),
        (lambda: he.join(CODES, "b", 1), TypeError, "b must be native uint64 words"),
        (
            lambda: he.duplicates(CODES, 1, memory_bytes=0),
            ValueError,
            "memory_bytes must be at least 1, got 0",
        ),
        (lambda: he.duplicates(CODES, None), TypeError, "radius must be an integer, got None"),
        (lambda: he.knn_graph(CODES, 0), ValueError, "k must be at least 1, got 0"),
        (lambda: he.knn_graph(np.zeros((3, 0), np.uint64), 1), ValueError, "at least one word"),
        (lambda: he.pairwise(CODES, WIDER), ValueError, "b has 3 words a code, a has 2"),
        (
            lambda: he.pairwise(CODES, out=np.zeros((3, 3))),
            TypeError,
            "out must be an array of an integer type, got float64",
        ),
        (
            lambda: he.pairwise(CODES, out=[[0] * 3] * 3),
            TypeError,
            "out must be an array of an integer type, got list",
        ),
        (
            lambda: he.pairwise(CODES, out=np.zeros((3, 3), np.int8)),
            TypeError,
            "out must be of a native type that holds distances up to 128, got int8",
        ),
        (
            lambda: he.pairwise(CODES, out=np.zeros((3, 2), int)),
            ValueError,
            r"out must have shape \(3, 3\), a row for each code of a, got \(3, 2\)",
        ),
        (
            lambda: he.pairwise(CODES, out=np.zeros((3, 6), int)[:, ::2]),
            ValueError,
            "out must be writable, C-contiguous and aligned",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
