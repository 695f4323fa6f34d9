"""Kernels read and write nothing beyond their arrays: behind each lies memory nobody may touch."""

import ctypes
import mmap
import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
from test_bounds import guarded
import hamming_engine as he
import oracle

rng = np.random.default_rng(0)
for round in range(400):
    n_words = int(rng.integers(1, 34))
    n = int(rng.integers(1, 90)) if round % 8 else int(rng.integers(1, 3_000))
    n_queries = int(rng.integers(1, 12))
    codes = guarded(rng.integers(0, 2**64, (n, n_words), dtype=np.uint64))
    queries = guarded(rng.integers(0, 2**64, (n_queries, n_words), dtype=np.uint64))
    mask = guarded(rng.random(n) < 0.5)
    k, threads = int(rng.integers(1, n + 3)), int(rng.integers(1, 3))
    distances = oracle.hamming(queries, codes)
    for where in (None, mask):
        found = he.search(queries, codes, k, where=where, threads=threads)
        expected = oracle.nearest(distances, k, where)
        assert np.array_equal(found.rows, expected[1])
    index = he.FlatIndex(64 * n_words, kernel=("plain", "popcount", "table")[round % 3])
    cut = int(rng.integers(0, n + 1))
    index.add(guarded(codes[:cut]))
    index.add(guarded(codes[cut:]))
    assert np.array_equal(index.codes, codes)
    assert np.array_equal(index.search(queries, k, where=mask, threads=threads).rows, expected[1])
    dim = int(rng.integers(1, 200))
    for dtype in (np.float16, np.float32, np.float64):
        for before in (False, True):
            vectors = guarded(rng.standard_normal((n, dim)).astype(dtype), before)
            assert np.array_equal(he.pack_signs(vectors, threads=threads), oracle.pack(vectors))
print("in bounds")
"""


def guarded(array, before=False):
    """A copy that ends where a page begins that cannot be read; or begins where one ends."""
    page = mmap.PAGESIZE
    n_pages = -(-array.nbytes // page)
    room = mmap.mmap(-1, (n_pages + 2) * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for guard in (address, address + (n_pages + 1) * page):
        assert protect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    offset = page if before else (n_pages + 1) * page - array.nbytes
    copy = type(array)(array.shape, array.dtype, room, offset)
    copy[...] = array
    return copy


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
def test_kernels_stay_inside_their_arrays():
    program = PROGRAM.format(tests=os.path.dirname(__file__))  # noqa: PTH120
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "in bounds\n", (done.returncode, done.stderr)
