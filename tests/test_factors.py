"""Numbers beside codes: kept, cut, read and counted as their rows are."""

import threading

import make_data
import numpy as np
import pytest

from hamming_engine.checks import frozen
from hamming_engine.held import HeldCodes, Piece
from hamming_engine.kernels.methods import PLAIN, best_method
from hamming_engine.store.errors import DamagedError
from hamming_engine.store.reader import CodeReader
from hamming_engine.store.segment import Content
from hamming_engine.store.store import Store

SIZES = (3_000, 5, 9_000, 700)


def random_rows(n, n_words, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << 64, (n, n_words), np.uint64)
    return codes, rng.standard_normal((n, 2)).astype(np.float32)


def codes_of(piece):
    """Row-major codes of a piece; in blocks byte j of row i is at [i // 64, j, i % 64]."""
    if piece.codes.ndim == 2:
        return piece.codes
    n_blocks, n_bytes, _ = piece.codes.shape
    rows = piece.codes.transpose(0, 2, 1).reshape(64 * n_blocks, n_bytes)[: piece.n_rows]
    return np.ascontiguousarray(rows).view(np.uint64)


@pytest.mark.parametrize("method", sorted({PLAIN, best_method()}))
@pytest.mark.parametrize("sizes", [(1,), (64, 64), (3, 100, 1, 500), (1_000, 129)])
def test_held_factors_go_with_their_codes(method, sizes):
    codes, factors = random_rows(sum(sizes), 3)
    held = HeldCodes(3, method, n_factors=2)
    without = HeldCodes(3, method)
    for begin, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        held.append(codes[begin : begin + size], factors[begin : begin + size])
        without.append(codes[begin : begin + size])
    np.testing.assert_array_equal(held.rows(), codes)
    found = list(held.pieces(len(codes) - 1))
    for piece in found:
        for part in (piece, *piece.split(64)):
            rows = slice(part.first_row, part.first_row + part.n_rows)
            np.testing.assert_array_equal(part.factors, factors[rows])
            assert part.factors.dtype == np.float32
            assert not part.factors.flags.writeable
    assert sum(piece.n_rows for piece in found) == len(codes) - 1
    assert sum(part.n_rows for piece in found for part in piece.split(64)) == len(codes) - 1
    capacity = len(held) + held.n_free
    assert held.nbytes == capacity * (3 * 8 + 2 * 4)
    for piece in without.pieces(len(codes)):
        assert piece.factors.shape == (0, 2)
        assert all(part.factors.shape == (0, 2) for part in piece.split(64))


def test_factors_are_given_where_they_are_kept():
    codes, factors = random_rows(10, 1)
    assert Piece(0, 10, frozen(codes)).factors.shape == (0, 2)
    for held, given in ((HeldCodes(1, n_factors=2), None), (HeldCodes(1), factors)):
        with pytest.raises(ValueError, match="factors must be given where they are kept"):
            held.append(codes, given)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(store of segments of several sizes, its rows)."""
    rows, arrays = make_data.random_rows(sum(SIZES))
    store = Store.create(tmp_path_factory.mktemp("factors") / "c", make_data.unfitted())
    for i, (begin, size) in enumerate(zip(np.cumsum([0, *SIZES]), SIZES, strict=False)):
        fitted = None if i else make_data.fitted(arrays)
        make_data.append(store, rows, begin, begin + size, fitted)
    store.close()
    return Store.open(store.path, writable=False), rows


def visited(reader, parts, n_readers):
    """All that a reader passes on, by row; and how many bytes are kept."""
    n = sum(SIZES)
    codes, factors = np.zeros((n, 2), np.uint64), np.full((n, 2), np.nan, np.float32)
    times, lock = np.zeros(n, np.int64), threading.Lock()

    def visit(_reader, piece):
        rows = slice(piece.first_row, piece.first_row + piece.n_rows)
        with lock:
            codes[rows] = codes_of(piece)
            if len(piece.factors):
                factors[rows] = piece.factors
            times[rows] += 1

    reader.visit(parts, reader.kept(parts, n_readers), n_readers, visit)
    assert (times == 1).all()
    return codes, factors


@pytest.mark.parametrize("memory_bytes", [1, 200_000, 400_000, 100 << 20])
@pytest.mark.parametrize("n_readers", [1, 3])
def test_factors_are_read_with_their_codes(memory_bytes, n_readers, stored):
    store, rows = stored
    reader = CodeReader(memory_bytes, with_factors=True)
    for _ in range(2):
        codes, factors = visited(reader, store.snapshot.parts, n_readers)
        np.testing.assert_array_equal(codes, rows["codes"])
        np.testing.assert_array_equal(factors, rows["factors"])
    assert reader.kept_bytes % (64 * (16 + 8)) == 0
    if memory_bytes > 1:
        assert reader.kept_bytes <= memory_bytes
    alone = CodeReader(memory_bytes)
    codes, factors = visited(alone, store.snapshot.parts, n_readers)
    np.testing.assert_array_equal(codes, rows["codes"])
    assert np.isnan(factors).all()
    assert alone.kept_bytes % (64 * 16) == 0


def test_factors_count_against_the_limit(stored):
    store, _ = stored
    n = sum(SIZES)
    whole = 3 * n * 16  # half of it is a buffer: codes fit beside that, and with factors do not
    alone, both = CodeReader(whole), CodeReader(whole, with_factors=True)
    for reader in (alone, both):
        n_readers = reader.n_readers(store.snapshot.parts, 1)
        kept = sum(piece.n_rows for piece in reader.kept(store.snapshot.parts, n_readers))
        assert (kept == n) == (reader is alone)


def test_factors_cost_no_reads_unless_asked_for(stored, monkeypatch):
    store, _ = stored
    segment_type = type(store.snapshot.parts[0].segment)
    read, names = segment_type._read_raw, []

    def counted(self, name, *arguments):
        names.append(name)
        return read(self, name, *arguments)

    monkeypatch.setattr(segment_type, "_read_raw", counted)
    visited(CodeReader(1), store.snapshot.parts, 1)
    assert set(names) == {"codes", "sums/codes"}
    names.clear()
    visited(CodeReader(1, with_factors=True), store.snapshot.parts, 1)
    assert set(names) == {"codes", "sums/codes", "factors", "sums/factors"}


def test_a_store_without_factors_is_read_as_before(tmp_path):
    rows, _ = make_data.random_rows(sum(SIZES), n_bits=20)
    store = Store.create(tmp_path / "c", make_data.unfitted())
    with store.new_segment(Content.of_arrays(rows["ids"], None)) as writer:
        writer.write("codes", 0, rows["codes"])
        writer.write("vectors", 0, rows["vectors"])
    store.append(writer)
    for memory_bytes in (1, 100 << 20):
        reader = CodeReader(memory_bytes, with_factors=True)
        codes, factors = visited(reader, store.snapshot.parts, 2)
        np.testing.assert_array_equal(codes[:, :1], rows["codes"])
        assert np.isnan(factors).all()


def test_damaged_factors_are_reported_while_reading(tmp_path):
    rows, arrays = make_data.random_rows(9_000)
    store = Store.create(tmp_path / "c", make_data.unfitted())
    make_data.append(store, rows, 0, 9_000, make_data.fitted(arrays))
    parts = store.snapshot.parts
    segment = parts[0].segment
    offset = segment._arrays["factors"].offset + 8 * 8_500
    with segment.path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff")
    for memory_bytes in (1, 100 << 20):
        reader = CodeReader(memory_bytes, with_factors=True)
        with pytest.raises(DamagedError, match=rf"{segment.path.name}: /factors rows 8192 to 8999"):
            reader.visit(parts, reader.kept(parts, 1), 1, lambda *_: None)
        CodeReader(memory_bytes).visit(parts, [], 1, lambda *_: None)
