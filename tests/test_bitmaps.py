"""Bitmaps against Python's sets."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from hamming_engine import bitmaps

ROWS = st.sets(st.integers(0, 400), max_size=60)


def words_of(rows, n_rows=401):
    return bitmaps.from_rows(np.array(sorted(rows), np.int64), n_rows)


@given(ROWS)
def test_there_and_back(rows):
    words = words_of(rows)
    assert words.dtype == np.uint64
    assert len(words) == 7
    assert bitmaps.to_rows(words).tolist() == sorted(rows)
    assert bitmaps.count(words) == len(rows)
    assert sum(int(word) << 64 * i for i, word in enumerate(words)) == sum(1 << r for r in rows)


@given(st.lists(st.booleans(), max_size=200))
def test_bools(bools):
    words = bitmaps.from_bools(np.array(bools, np.bool_))
    assert len(words) == -(-len(bools) // 64)
    assert bitmaps.to_rows(words).tolist() == [i for i, there in enumerate(bools) if there]


@given(ROWS, ROWS, st.integers(1, 500))
def test_union(a, b, n_rows):
    """Of bitmaps of different lengths; neither changes."""
    a = {row for row in a if row < n_rows}
    one, other = words_of(a, n_rows), words_of(b)
    for both in (bitmaps.union(one, other), bitmaps.union(other, one)):
        assert bitmaps.to_rows(both).tolist() == sorted(a | b)
        both[:] = 0
    assert bitmaps.to_rows(one).tolist() == sorted(a)
    assert bitmaps.to_rows(other).tolist() == sorted(b)


@given(ROWS, st.integers(0, 500), st.integers(0, 300))
def test_cut(rows, first, n):
    """Rows beyond the last word are zero, and so are bits beyond the last row."""
    inside = [row - first for row in sorted(rows) if first <= row < first + n]
    words = bitmaps.cut(words_of(rows), first, n)
    assert len(words) == -(-n // 64)
    assert bitmaps.to_rows(words).tolist() == inside
    bools = bitmaps.to_bools(words_of(rows), first, n)
    assert bools.dtype == np.bool_
    assert np.flatnonzero(bools).tolist() == inside
    assert len(bools) == n


@given(ROWS, st.lists(st.integers(0, 2_000), max_size=50), st.booleans())
def test_contains_and_rank(rows, asked, empty):
    rows = set() if empty else rows
    words = bitmaps.NO_BITS if empty else words_of(rows)
    asked_rows = np.array(asked, np.int64)
    assert bitmaps.contains(words, asked_rows).tolist() == [row in rows for row in asked]
    below = [sum(other < row for other in rows) for row in asked]
    assert bitmaps.Rank(words)(asked_rows).tolist() == below
