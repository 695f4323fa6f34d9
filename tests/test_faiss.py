"""FAISS's own indexes and files, there and back: the same rows, cells and distances."""

import re
from types import SimpleNamespace

import numpy as np
import oracle
import pytest

import hamming_engine as he
from hamming_engine import interop

faiss = pytest.importorskip("faiss", reason="FAISS is not installed: hamming_engine[faiss]")

K = 10


def make(n, n_bits, seed=0, n_kinds=20):
    """Codes with neighbours and ties, some kinds with a tenth of the bits flipped; packed twice."""
    kinds = np.random.default_rng(0).random((n_kinds, n_bits)) < 0.5
    rng = np.random.default_rng(seed)
    bools = kinds[rng.integers(n_kinds, size=n)] ^ (rng.random((n, n_bits)) < 0.1)
    packed = np.packbits(bools, axis=1, bitorder="little")
    return SimpleNamespace(codes=oracle.pack(np.where(bools, 1.0, -1.0)), packed=packed)


def make_ivf(packed, n_lists, nprobe, ids=None):
    n_bits = 8 * packed.shape[1]
    made = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(n_bits), n_bits, n_lists)
    made.train(packed)
    if ids is None:
        made.add(packed)
    else:
        made.add_with_ids(packed, ids)
    made.nprobe = nprobe
    return made


def lists_of_faiss(ivf):
    """The centre of each list, as bytes, to the ids and codes in it."""
    lists, size = ivf.invlists, ivf.code_size
    held = {}
    for which in range(ivf.nlist):
        n = lists.list_size(which)
        ids = faiss.rev_swig_ptr(lists.get_ids(which), n).tolist() if n else []
        codes = faiss.rev_swig_ptr(lists.get_codes(which), n * size).reshape(n, size) if n else []
        held[which] = (
            ivf.quantizer.reconstruct(which).tobytes(),
            {label: code.tobytes() for label, code in zip(ids, codes, strict=True)},
        )
    return held


def check_found(ours, theirs, data, ids, **options):
    """Both find the same distances, and the rows they name are at them."""
    queries = make(9, 8 * data.packed.shape[1], seed=1)
    found = ours.search(queries.codes, K, **options)
    distances, labels = theirs.search(queries.packed, K)
    np.testing.assert_array_equal(found.distances, distances)
    all_distances = oracle.hamming(queries.codes, data.codes)
    place = {label: row for row, label in enumerate(ids)}
    rows = np.array([[place[label] for label in of_query] for of_query in labels.tolist()])
    np.testing.assert_array_equal(np.take_along_axis(all_distances, rows, 1), distances)
    return found


def check_untied(ours, theirs, nprobe):
    """With few cells probed both find the same, where no tie decides which cells these are."""
    queries = make(300, ours.n_bits, seed=2)
    centers = np.array([theirs.quantizer.reconstruct(which) for which in range(theirs.nlist)])
    xor = queries.packed[:, None] ^ centers
    nearest = np.sort(np.bitwise_count(xor).sum(axis=2, dtype=np.int64), axis=1)
    untied = nearest[:, nprobe - 1] < nearest[:, nprobe]
    distances, labels = theirs.search(queries.packed, K)
    untied &= (labels >= 0).all(axis=1)  # cells with less than k rows: ours probes more of them
    assert untied.sum() > 30
    found = ours.search(queries.codes, K)
    np.testing.assert_array_equal(found.distances[untied], distances[untied])


@pytest.mark.parametrize("n_bits", [8, 64, 72, 384])
@pytest.mark.parametrize("wrapped", [None, "IndexBinaryIDMap", "IndexBinaryIDMap2"])
def test_flat_from_faiss(tmp_path, n_bits, wrapped):
    data = make(500, n_bits)
    theirs, ids = faiss.IndexBinaryFlat(n_bits), np.arange(500)
    if wrapped:
        ids = np.random.default_rng(3).permutation(10_000)[:500]
        theirs = getattr(faiss, wrapped)(theirs)
        theirs.add_with_ids(data.packed, ids)
    else:
        theirs.add(data.packed)
    path = tmp_path / "flat.faiss"
    faiss.write_index_binary(theirs, str(path))
    for read in (interop.read_faiss(path), interop.from_faiss(theirs)):
        assert isinstance(read.index, he.FlatIndex)
        assert read.ids.dtype == np.int64
        np.testing.assert_array_equal(read.ids, ids)
        np.testing.assert_array_equal(read.index.codes, data.codes)
        found = check_found(read.index, theirs, data, ids.tolist())
        expected = oracle.nearest(oracle.hamming(make(9, n_bits, seed=1).codes, data.codes), K)
        np.testing.assert_array_equal(found.rows, expected[1])


@pytest.mark.parametrize("n_bits", [64, 256])
@pytest.mark.parametrize("kind", ["numbered", "own ids", "in an id map"])
def test_ivf_from_faiss(tmp_path, n_bits, kind):
    data, ids = make(2_000, n_bits), np.arange(2_000)
    if kind != "numbered":
        ids = np.random.default_rng(3).permutation(5_000)[:2_000]
    ivf = theirs = make_ivf(data.packed, 25, 4, ids if kind == "own ids" else None)
    if kind == "in an id map":
        ivf.reset()
        theirs = faiss.IndexBinaryIDMap(ivf)
        theirs.add_with_ids(data.packed, ids)
    path = tmp_path / "ivf.faiss"
    faiss.write_index_binary(theirs, str(path))
    place = {label: row for row, label in enumerate(ids.tolist())}
    for nprobe, read in ((4, interop.read_faiss(str(path))), (25, None)):
        ivf.nprobe = nprobe
        read = read or interop.from_faiss(theirs)
        assert isinstance(read.index, he.IVFIndex)
        assert (read.index.n_lists, read.index.nprobe) == (25, nprobe)
        held = SimpleNamespace(
            codes=data.codes[[place[label] for label in read.ids.tolist()]], packed=data.packed
        )
        np.testing.assert_array_equal(read.index.codes, held.codes)
        if kind == "own ids":
            np.testing.assert_array_equal(read.ids, np.sort(ids))
        elif kind == "in an id map":
            np.testing.assert_array_equal(read.ids, ids)
        if nprobe == 4:
            check_untied(read.index, theirs if kind != "in an id map" else ivf, 4)
        else:
            check_found(read.index, theirs, held, read.ids.tolist())
        back = interop.to_faiss(read.index, ids=read.ids)
        expected = lists_of_faiss(ivf)
        if kind == "in an id map":
            expected = {
                which: (center, {int(ids[row]): code for row, code in rows.items()})
                for which, (center, rows) in expected.items()
            }
        assert lists_of_faiss(back) == expected
        assert back.nprobe == nprobe


def test_cells_of_faiss_are_kept_whatever_they_are():
    """Empty lists, one with nearly all rows, and rows whose nearest centre is another."""
    data = make(1_000, 64)
    centers = faiss.IndexBinaryFlat(64)
    centers.add(make(30, 64, seed=4).packed)
    theirs = faiss.IndexBinaryIVF(centers, 64, 30)
    assigned = np.where(np.arange(1_000) < 950, 7, np.arange(1_000) % 5)
    arrays = data.packed, np.arange(1_000), assigned
    theirs.add_core(1_000, *map(faiss.swig_ptr, arrays))
    theirs.nprobe = 30
    read = interop.from_faiss(theirs).index
    assert lists_of_faiss(interop.to_faiss(read)) == lists_of_faiss(theirs)
    check_found(read, theirs, data, range(1_000))
    settings, arrays = read.state()
    again = he.IVFIndex.from_state(settings, arrays)
    assert lists_of_faiss(interop.to_faiss(again)) == lists_of_faiss(theirs)
    more = make(3_000, 64, seed=5)
    read.add(more.codes)
    both = SimpleNamespace(codes=np.concatenate([data.codes, more.codes]), packed=data.packed)
    np.testing.assert_array_equal(read.codes, both.codes)
    check_found(read, interop.to_faiss(read), both, range(4_000), nprobe=read.n_lists)


def test_an_ivf_without_rows():
    theirs = make_ivf(make(100, 64).packed, 3, 1)
    theirs.reset()
    read = interop.from_faiss(theirs)
    assert (len(read.index), read.index.n_lists, read.ids.shape) == (0, 3, (0,))
    data = make(3_000, 64, seed=1)
    assert read.index.search(data.codes[:2], 5).rows.shape == (2, 0)
    assert read.index.range_search(data.codes[:2], 64).rows.shape == (0,)
    read.index.add(data.codes)
    found = read.index.search(data.codes[:20], 1, nprobe=read.index.n_lists)
    np.testing.assert_array_equal(found.distances, 0)


@pytest.mark.parametrize("n_bits", [8, 200])
@pytest.mark.parametrize("kind", ["all", "removed", "ids"])
def test_flat_to_faiss(tmp_path, n_bits, kind):
    data = make(600, n_bits)
    index = he.FlatIndex(n_bits)
    index.add(data.codes)
    kept, ids = np.arange(600), np.arange(600)
    if kind == "removed":
        index.remove(np.arange(0, 600, 3))
        kept = np.flatnonzero(kept % 3)
    if kind == "ids":
        ids = 7 * ids[::-1] + (1 << 40)
    path = tmp_path / "flat.faiss"
    interop.write_faiss(index, path, ids=ids if kind == "ids" else None)
    theirs = faiss.read_index_binary(str(path))
    assert type(theirs) is (faiss.IndexBinaryFlat if kind == "all" else faiss.IndexBinaryIDMap)
    assert (theirs.d, theirs.ntotal) == (n_bits, len(kept))
    check_found(index, theirs, data, ids.tolist())
    read = interop.read_faiss(path)
    np.testing.assert_array_equal(read.index.codes, data.codes[kept])
    np.testing.assert_array_equal(read.ids, ids[kept])


@pytest.mark.parametrize("removed", [False, True])
def test_ivf_to_faiss(tmp_path, removed):
    data = make(3_000, 128)
    index = he.IVFIndex(128, n_lists=20, nprobe=3)
    index.add(data.codes[:2_900])
    index.add(data.codes[2_900:])  # these wait to be sorted into lists
    if removed:
        index.remove(np.arange(0, 3_000, 3))
    path = tmp_path / "ivf.faiss"
    interop.write_faiss(index, path)
    theirs = faiss.read_index_binary(str(path))
    assert isinstance(theirs, faiss.IndexBinaryIVF)
    assert theirs.is_trained
    assert (theirs.nprobe, theirs.nlist, theirs.ntotal) == (3, index.n_lists, len(index))
    if not removed:
        check_untied(index, theirs, 3)
    theirs.nprobe = theirs.nlist
    check_found(index, theirs, data, range(3_000), nprobe=index.n_lists)
    read = interop.read_faiss(path)
    np.testing.assert_array_equal(read.ids, index.rows)
    np.testing.assert_array_equal(read.index.codes, data.codes[index.rows])
    assert lists_of_faiss(interop.to_faiss(read.index, ids=read.ids)) == lists_of_faiss(theirs)


def test_nprobe_is_the_one_that_recall_asks_for():
    index = he.IVFIndex(128, n_lists=20, target_recall=0.9)
    index.add(make(3_000, 128).codes)
    assert interop.to_faiss(index).nprobe == index.nprobe > 0


def test_rows_are_those_not_removed():
    index = he.FlatIndex(8)
    index.add(make(200, 8).codes)
    np.testing.assert_array_equal(index.rows, np.arange(200))
    index.remove([3, 199])
    index.add(make(70, 8).codes)
    expected = np.delete(np.arange(270), [3, 199])
    np.testing.assert_array_equal(index.rows, expected)


def flat(n_bits=64, n=5):
    index = he.FlatIndex(n_bits)
    index.add(oracle.pack(np.ones((n, n_bits))))
    return index


CODES = oracle.pack(np.ones((5, 64)))
BAD = [
    (lambda: interop.to_faiss(flat(100)), ValueError, "n_bits must be a multiple of 8 for faiss"),
    (lambda: interop.to_faiss(CODES), TypeError, "must be a FlatIndex or IVFIndex, got ndarray"),
    (lambda: interop.to_faiss(he.IVFIndex(64)), ValueError, "IVFIndex has no cells yet"),
    (lambda: interop.to_faiss(flat(), ids=[1]), ValueError, "ids must be 5 integers, one a row"),
    (lambda: interop.to_faiss(flat(), ids=np.ones(5)), ValueError, "got float64 of shape (5,)"),
    (lambda: interop.to_faiss(flat(), ids=[0, 1, -1, 2, 3]), ValueError, "row 2 has another"),
    (
        lambda: interop.to_faiss(flat(), ids=np.full(5, 1 << 63, np.uint64)),
        ValueError,
        "ids must be from 0 to 2 ** 63 - 1, row 0 has another",
    ),
    (lambda: interop.write_faiss(flat(), 5), TypeError, "path must be text or a path, got 5"),
    (lambda: interop.write_faiss(flat(), "no/such/folder"), OSError, "cannot be written: "),
    (lambda: interop.read_faiss("no-such-file"), FileNotFoundError, "no-such-file"),
    (lambda: interop.read_faiss(__file__), ValueError, "holds no binary index of FAISS: "),
    (lambda: interop.from_faiss(flat()), TypeError, "must be a faiss.IndexBinary, got FlatIndex"),
    (
        lambda: interop.from_faiss(faiss.IndexBinaryHNSW(64, 8)),
        ValueError,
        "in an IndexBinaryIDMap, got IndexBinaryHNSW",
    ),
    (
        lambda: interop.from_faiss(faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(64), 64, 4)),
        ValueError,
        "index must be trained",
    ),
    (
        lambda: he.IVFIndex.from_lists(64, CODES[:2], CODES, [0, 1, 2, 0, 0]),
        ValueError,
        "assigned names row 2, there are 2",
    ),
    (
        lambda: he.IVFIndex.from_lists(64, CODES[:2], CODES, [0, 1]),
        ValueError,
        "assigned must be a list a code: got 2 for 5",
    ),
    (lambda: he.IVFIndex.from_lists(64, CODES[:0], CODES[:0], []), ValueError, "must be at least"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
