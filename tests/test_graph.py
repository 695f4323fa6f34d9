"""Walks through a graph against the oracle: a walk that keeps all nodes finds what a scan does."""

import contextlib
import itertools
import os
import threading

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import given, settings

import hamming_engine as he
from hamming_engine.indexes import graph, scan
from hamming_engine.kernels import launch
from hamming_engine.kernels.graph import stride_of

JIT_OFF = os.environ.get("NUMBA_DISABLE_JIT") == "1"
FEW = settings(max_examples=4 if JIT_OFF else 40)


def embeddings(n, n_bits, n_clusters=10, spread=0.6, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((n_clusters, n_bits))
    chosen = centers[rng.integers(0, n_clusters, n)]
    return chosen + spread * rng.standard_normal((n, n_bits))


def codes_of(*arguments, **options):
    return oracle.pack(embeddings(*arguments, **options))


@contextlib.contextmanager
def walks(always=True, parallel=False):
    """No search is a scan because that is faster; with ``parallel`` all work is on threads."""
    with pytest.MonkeyPatch.context() as patch:
        if always:
            patch.setattr(graph, "_WORK_PER_WORD", 1e9)
            patch.setattr(graph, "_WORK_PER_WORD_ALONE", 1e9)
        if parallel:
            patch.setattr(launch, "SMALL_WORK", 0)
            patch.setattr(scan, "SMALL_SCAN", 0)
        yield


def index_of(codes, n_bits, **options):
    index = he.GraphIndex(n_bits, **options)
    index.add(codes)
    return index


def same(found, expected):
    np.testing.assert_array_equal(found.distances, expected[0])
    np.testing.assert_array_equal(found.rows, expected[1])
    assert found.distances.dtype == np.int32
    assert found.rows.dtype == np.int64


def same_range(found, expected):
    assert found.offsets.tolist() == [0, *np.cumsum([len(hits) for hits in expected]).tolist()]
    flat = [hit for hits in expected for hit in hits]
    assert list(zip(found.distances.tolist(), found.rows.tolist(), strict=True)) == flat


def same_arrays(state, other):
    (settings, arrays), (other_settings, other_arrays) = state, other
    assert settings == other_settings
    assert arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, other_arrays[name], err_msg=name)


@st.composite
def problems(draw, max_rows=400):
    """Queries, codes, bits; with duplicates and ties; calls of add, a mask or None."""
    n_bits = draw(st.integers(1, 1_100) | st.integers(1, 70))
    n = draw(st.integers(1, 40 if JIT_OFF else max_rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    distinct = max(1, n // draw(st.sampled_from([1, 1, 3, 50])))
    base = embeddings(distinct, n_bits, 4, draw(st.sampled_from([0.3, 1.0, 9.0])), 1)
    vectors = base[rng.integers(0, distinct, n)]
    queries = embeddings(draw(st.integers(1, 9)), n_bits, 4, seed=1)
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=3)))
    allowed = rng.random(n) < draw(st.sampled_from([0.0, 0.02, 0.3, 0.9]))
    mask = allowed if draw(st.booleans()) else None
    return oracle.pack(queries), oracle.pack(vectors), n_bits, cuts, mask


@FEW
@given(problems(), st.data(), st.sampled_from([None, 1, 2, 3]), st.booleans())
def test_a_walk_that_keeps_all_nodes_is_exact(problem, data, threads, parallel):
    queries, codes, n_bits, cuts, mask = problem
    k = data.draw(st.integers(1, len(codes) + 5))
    index = he.GraphIndex(n_bits, data.draw(st.sampled_from([4, 32])))
    removed = data.draw(st.lists(st.integers(0, len(codes) - 1), max_size=5))
    with walks(parallel=parallel):
        for part in np.split(codes, cuts):
            index.add(part, threads=threads)
        np.testing.assert_array_equal(index.codes, codes)
        distances = oracle.hamming(queries, codes)
        expected = oracle.nearest(distances, k, mask)
        same(index.search(queries, k, ef=len(codes), where=mask, threads=threads), expected)
        index.remove(removed)
        there = np.ones(len(codes), np.bool_) if mask is None else mask.copy()
        there[removed] = False
        expected = oracle.nearest(distances, k, there)
        same(index.search(queries, k, ef=len(codes), where=mask, threads=threads), expected)
        radius = data.draw(st.integers(0, n_bits + 3))
        found = index.range_search(queries, radius, where=mask, threads=threads)
        same_range(found, oracle.within(distances, radius, there))


@pytest.mark.parametrize("n_bits", [1, 64, 65, 128, 130, 256, 300, 512, 513, 1024, 2_000])
def test_every_stride(n_bits):
    n = 60 if JIT_OFF else 500
    codes, queries = codes_of(n, n_bits), codes_of(9, n_bits, seed=1)
    index = index_of(codes, n_bits)
    with walks():
        found = index.search(queries, 5, ef=n)
    same(found, oracle.nearest(oracle.hamming(queries, codes), 5))
    n_words = codes.shape[1]
    assert stride_of(n_words) >= n_words
    assert index.nbytes > codes.nbytes


N, N_BITS = 12_000, 192  # of what the tests below share


@pytest.fixture(scope="module")
def vectors():
    return embeddings(N + 200, N_BITS, 50, 1.0)


@pytest.fixture(scope="module")
def codes(vectors):
    return oracle.pack(vectors[200:])


@pytest.fixture(scope="module")
def queries(vectors):
    return oracle.pack(vectors[:200])


@pytest.fixture(scope="module")
def distances(queries, codes):
    return oracle.hamming(queries, codes)


@pytest.fixture(scope="module")
def index(codes):
    return index_of(codes, N_BITS)


def recall(found, distances, allowed=None):
    """Ties count as found."""
    if allowed is not None:
        assert allowed[found.rows].all()
        distances = np.where(allowed, distances, 1 << 20)
    k = found.distances.shape[1]
    farthest = np.partition(distances, k - 1, axis=1)[:, k - 1 : k]
    np.testing.assert_array_equal(
        found.distances, np.take_along_axis(distances, found.rows, axis=1)
    )
    keys = found.distances.astype(np.int64) << 32 | found.rows
    assert (np.diff(keys, axis=1) > 0).all()
    return (found.distances <= farthest).mean()


@pytest.mark.skipif(JIT_OFF, reason="too slow")
class TestOfSomeSize:
    def test_recall(self, index, queries, distances):
        with walks():
            assert recall(index.search(queries), distances) > 0.93
            reached = [recall(index.search(queries, ef=ef), distances) for ef in (10, 40, 160, 640)]
            assert (np.diff(reached) >= 0).all()
            assert reached[-1] > 0.995
            for target in (0.9, 0.95, 0.99):
                found = index.search(queries, target_recall=target)
                assert recall(found, distances) > target - 0.03
            assert recall(index.search(queries, 100, ef=200), distances) > 0.93

    def test_one_query_finds_what_many_find(self, index, queries):
        with walks():
            together = index.search(queries[:20], 7, ef=30, threads=2)
            for query, line in zip(queries, together.rows, strict=False):
                assert index.search(query, 7, ef=30).rows[0].tolist() == line.tolist()

    @pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
    @pytest.mark.parametrize("how", ["at random", "far from the queries"])
    def test_filters_keep_their_recall(self, index, queries, distances, share, how):
        if how == "at random":
            allowed = np.random.default_rng(1).random(N) < share
        else:
            allowed = np.zeros(N, np.bool_)
            allowed[np.argsort(distances[0])[-int(share * N) :]] = True
        with walks():
            found = index.search(queries, where=allowed)
            assert recall(found, distances, allowed) > 0.92
            assert recall(index.search(queries[:1], where=allowed), distances[:1], allowed)
        same(index.search(queries, where=np.flatnonzero(allowed)), found) if share < 0.01 else None

    def test_every_node_is_reached(self, index):
        _, arrays = index.state()
        reached = np.zeros(N, np.bool_)
        waiting = arrays["entries"].tolist()
        reached[waiting] = True
        while waiting:
            for node in arrays["links"][waiting.pop()]:
                if node >= 0 and not reached[node]:
                    reached[node] = True
                    waiting.append(int(node))
        assert reached.all()

    def test_links(self, index, codes):
        """Nodes have no link twice, none to themselves, and most of the nearest node."""
        links = index.state()[1]["links"]
        n_links = (links >= 0).sum(axis=1)
        assert n_links.min() > 0
        for node in range(0, N, 37):
            mine = links[node, : n_links[node]]
            assert len(set(mine)) == len(mine)
            assert node not in mine
            assert (links[node, n_links[node] :] == -1).all()
        some = np.arange(0, N, 100)
        nearest = np.sort(oracle.hamming(codes[some], codes), axis=1)[:, 1]
        linked = [oracle.hamming(codes[[i]], codes[links[i, : n_links[i]]]).min() for i in some]
        assert (linked == nearest).mean() > 0.97

    @pytest.mark.parametrize("threads", [1, 3])
    def test_threads_and_what_is_done_before_change_nothing(self, index, codes, queries, threads):
        with walks(parallel=True):
            other = he.GraphIndex(N_BITS)
            other.add(codes, threads=threads)
            same_arrays(other.state(), index.state())
            expected = index.search(queries)
            same(other.search(queries, threads=threads), expected)

    def test_rows_added_to_a_graph_are_found(self, codes, queries, distances):
        index = index_of(codes[:8_000], N_BITS)
        built = index.state()[0]["n_built"]
        for part in np.split(codes[8_000:], [1, 1_000]):
            index.add(part)
        assert index.state()[0]["n_built"] == built
        with walks():
            assert recall(index.search(queries), distances) > 0.93
        again = index_of(codes[:8_000], N_BITS)
        for part in np.split(codes[8_000:], [1, 1_000]):
            again.add(part, threads=1)
        same_arrays(index.state(), again.state())
        index.add(codes_of(8_000, N_BITS, seed=5))
        assert index.state()[0]["n_built"] > built

    def test_removed_rows_are_walked_through(self, codes, queries, distances):
        index = index_of(codes, N_BITS)
        gone = np.unique(np.argsort(distances, axis=1)[:, :20])
        index.remove(gone)
        there = np.ones(N, np.bool_)
        there[gone] = False
        with walks():
            for _ in range(2):  # the second time their bits are known
                found = index.search(queries)
                assert recall(found, distances, there) > 0.93
        assert len(index) == N - len(gone)

    def test_kept_in_files(self, index, queries, tmp_path):
        settings, arrays = index.state()
        for name, array in arrays.items():
            assert array.flags.c_contiguous
            np.save(tmp_path / name, array)
        mapped = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in arrays}
        other = he.GraphIndex.from_state(settings, mapped)
        assert np.shares_memory(other.state()[1]["links"], mapped["links"])
        with walks():
            same(other.search(queries), index.search(queries))
            beside = {
                name: np.frombuffer(b" " + array.tobytes(), np.uint8)[1:]
                .view(array.dtype)
                .reshape(array.shape)
                for name, array in arrays.items()
            }
            same(he.GraphIndex.from_state(settings, beside).search(queries), index.search(queries))
            other.add(queries)
            index = he.GraphIndex.from_state(settings, arrays)
            index.add(queries)
            same_arrays(other.state(), index.state())
            assert (other.search(queries, 1).distances == 0).all()

    def test_calibrate(self, codes, queries, distances):
        index = index_of(codes, N_BITS)
        with walks():
            tried = index.calibrate(queries)
            for ef, reached in tried[::3]:
                found = recall(index.search(queries, ef=ef), distances)
                assert reached - 0.02 < found <= reached + 1e-9
            assert tried[-1][1] > 0.995

    def test_an_addition_that_is_interrupted_leaves_nothing(self, index, queries, monkeypatch):
        other = he.GraphIndex.from_state(*index.state())
        before = other.state()

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        for name in ("WALK", "LINK", "LINK_BACK", "attach", "reach"):
            with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
                patch.setattr(graph, name, interrupt)
                other.add(queries)
                assert name == "attach"  # nothing may have been out of reach
                other = he.GraphIndex.from_state(*before)
            same_arrays(other.state(), before)

    def test_searches_while_rows_are_added_and_removed(self, index, queries):
        index = he.GraphIndex.from_state(*index.state())
        errors = []
        stop = threading.Event()

        def search():
            try:
                while not stop.is_set():
                    n = index.n_rows
                    found = index.search(queries[:5], where=np.arange(0, n, 2))
                    assert found.rows.shape == (5, 10)
                    assert (found.rows % 2 == 0).all()
                    index.search(queries[:5])
                    index.range_search(queries[:2], 20)
            except Exception as error:
                errors.append(error)

        searchers = [threading.Thread(target=search) for _ in range(2)]
        for searcher in searchers:
            searcher.start()
        for part in np.split(queries, 4):
            index.add(part)
            index.remove([index.n_rows - 1])
        stop.set()
        for searcher in searchers:
            searcher.join()
        assert not errors


@pytest.mark.skipif(JIT_OFF, reason="too slow")
def test_many_equal_codes_are_one_node():
    codes, queries = codes_of(2_000, 100), codes_of(20, 100, seed=3)
    many = np.concatenate([codes[:1_000], np.repeat(codes[[7]], 100_000, axis=0), codes[1_000:]])
    index = index_of(many, 100)
    assert len(index.state()[1]["words"]) == len(np.unique(codes, axis=0))
    queries = np.concatenate([queries, codes[[7]]])
    distances = np.bitwise_count(queries[:, None] ^ many).sum(axis=2, dtype=np.int64)
    keys = np.sort(distances << 20 | np.arange(len(many)), axis=1)[:, :50]
    with walks():
        same(index.search(queries, 50, ef=2_000), (keys >> 20, keys & 0xFFFFF))
        late = np.zeros(len(many), np.bool_)
        late[50_000:] = True
        found = index.search(codes[[7]], 3, ef=10, where=late)
        assert found.rows.tolist() == [[50_000, 50_001, 50_002]]
    index.add(codes[[7, 8]])
    assert len(index.state()[1]["words"]) == len(np.unique(codes, axis=0))
    assert index.search(codes[[8]], 2).rows.tolist() == [[8, len(many) + 1]]


@pytest.mark.skipif(JIT_OFF, reason="too slow")
def test_islands_are_reached():
    """Clusters without any link between them, each with less than an entry's share of nodes."""
    rng = np.random.default_rng(0)
    centers = rng.integers(0, 2**63, (60, 4), dtype=np.uint64)
    flips = np.zeros((60, 50, 4), np.uint64)
    flips[..., 0] = np.arange(50)
    codes = (centers[:, None] ^ flips).reshape(-1, 4)
    index = index_of(codes, 256, n_links=4)
    with walks():
        found = index.search(codes, 1)
    assert (found.distances == 0).mean() > 0.99


@pytest.mark.skipif(JIT_OFF, reason="too slow")
def test_a_walk_that_meets_too_few_is_followed_by_a_scan(monkeypatch):
    """Rows let through lie far away, and no walk has room to get there."""
    monkeypatch.setattr(graph, "_LARGEST_ROOM", 64)
    codes = codes_of(3_000, 128, 30, 0.5)
    distances = oracle.hamming(codes[:4], codes)
    allowed = np.zeros(3_000, np.bool_)
    allowed[np.argsort(distances[0])[-30:]] = True
    index = index_of(codes, 128)
    with walks():
        same(
            index.search(codes[:4], 20, ef=20, where=allowed),
            oracle.nearest(distances, 20, allowed),
        )


def test_few_codes_are_scanned():
    codes = codes_of(300, 90)
    found = index_of(codes, 90).search(codes[:50], 9)
    same(found, oracle.nearest(oracle.hamming(codes[:50], codes), 9))
    found = index_of(codes, 90).search(codes[:50], 9, target_recall=1)
    same(found, oracle.nearest(oracle.hamming(codes[:50], codes), 9))


def test_nothing_in_it():
    index = he.GraphIndex(70)
    queries = codes_of(3, 70)
    assert index.search(queries, 5).rows.shape == (3, 0)
    assert index.range_search(queries, 70).offsets.tolist() == [0, 0, 0, 0]
    assert index.codes.shape == (0, 2)
    assert index.calibrate(queries) == []
    assert he.GraphIndex.from_state(*index.state()).n_rows == 0
    index.add(queries[:0])
    assert repr(index) == "GraphIndex(n_bits=70), 0 codes"
    index.add(queries)
    assert index.search(queries[:0], 2).rows.shape == (0, 2)
    assert index.search(queries, 2, where=np.zeros(3, np.bool_)).rows.shape == (3, 0)
    index.remove([0, 1, 2])
    assert index.search(queries, 2).rows.shape == (3, 0)
    assert len(index) == 0


def test_bad_input():
    index = index_of(codes_of(20, 70), 70)
    query = codes_of(1, 70)
    for call, error, message in [
        (lambda: he.GraphIndex(0), ValueError, "n_bits must be at least 1, got 0"),
        (lambda: he.GraphIndex(70_000), ValueError, "n_bits must be at most 65,472"),
        (lambda: he.GraphIndex(64, 1), ValueError, "n_links must be at least 2, got 1"),
        (lambda: he.GraphIndex(64, ef=0), ValueError, "ef must be at least 1, got 0"),
        (lambda: he.GraphIndex(64, seed=-1), ValueError, "seed must be at least 0, got -1"),
        (lambda: he.GraphIndex(64, target_recall=2), ValueError, "target_recall must be above 0"),
        (lambda: index.add(np.zeros((1, 3), np.uint64)), ValueError, "3 words a code, 70 bits"),
        (lambda: index.add(query, threads=0), ValueError, "threads must be at least 1"),
        (lambda: index.search(query, 0), ValueError, "k must be at least 1, got 0"),
        (lambda: index.search(query, ef=1.5), TypeError, "ef must be an integer, got 1.5"),
        (lambda: index.search(query, ef=5, target_recall=0.9), ValueError, "not be given both"),
        (lambda: index.search(query, target_recall=0), ValueError, "target_recall must be above"),
        (lambda: index.search(query[:, :1]), ValueError, "query_codes have 1 words a code"),
        (lambda: index.search(query, where=[20]), ValueError, "where names row 20, there are 20"),
        (lambda: index.range_search(query, -1), ValueError, "radius must be at least 0"),
        (lambda: index.calibrate(query[:0]), ValueError, "query_codes must be at least one"),
        (lambda: index.calibrate(query, 0), ValueError, "k must be at least 1"),
    ]:
        with pytest.raises(error, match=message):
            call()
    assert len(index) == 20


def test_damaged_states_are_refused():
    settings, arrays = index_of(codes_of(200, 70), 70).state()
    assert he.GraphIndex.from_state(settings, arrays).n_rows == 200

    def changed(name, change):
        array = arrays[name].copy()
        change(array)
        return settings, {**arrays, name: array}

    def put(place, value):
        return lambda array: array.__setitem__(place, value)

    for name in arrays:
        for array in (arrays[name].astype(np.float32), arrays[name][None], None):
            with pytest.raises(ValueError, match=name):
                he.GraphIndex.from_state(settings, {**arrays, name: array})
        with pytest.raises(ValueError, match=name):
            he.GraphIndex.from_state(
                settings, {other: arrays[other] for other in arrays if other != name}
            )
    for name, place, value in [
        ("links", (3, 0), 200),
        ("links", (199, 1), -2),
        ("entries", 0, 200),
        ("entries", 0, -1),
        ("row_begins", 0, -1),
        ("row_begins", 5, 0),
        ("row_begins", -1, 201),
        ("rows", 0, 200),
        ("rows", 0, -1),
        ("rows", 0, 1),
    ]:
        with pytest.raises(ValueError, match=name):
            he.GraphIndex.from_state(*changed(name, put(place, value)))
    for name, length in itertools.product(("words", "links", "rows", "row_begins"), (0, 199)):
        with pytest.raises(ValueError, match="must"):
            he.GraphIndex.from_state(settings, {**arrays, name: arrays[name][:length]})
    with pytest.raises(ValueError, match="settings lack"):
        he.GraphIndex.from_state({"n_bits": 70}, arrays)
