"""Floats to codes and back."""

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import given

import hamming_engine as he

FLOATS = [np.float16, np.float32, np.float64]

# Where a comparison with zero, or one through integers, could go wrong.
EDGES = [0.0, -0.0, 1.0, -1.0, 6e-8, -6e-8, 65504.0, -65504.0]


@st.composite
def vectors(draw, max_dim=300):
    n, dim = draw(st.integers(0, 40)), draw(st.integers(1, max_dim))
    dtype = draw(st.sampled_from(FLOATS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.standard_normal((n, dim)).astype(dtype)
    edges = rng.random((n, dim)) < draw(st.sampled_from([0.0, 0.3]))
    values[edges] = rng.choice(np.array(EDGES, dtype), edges.sum())
    return values


@given(vectors(), st.sampled_from([None, 1, 2, 3]))
def test_packs_like_packbits(values, threads):
    codes = he.pack_signs(values, threads=threads)
    assert codes.dtype == np.uint64
    assert codes.flags.c_contiguous
    np.testing.assert_array_equal(codes, oracle.pack(values))


@pytest.mark.parametrize("dim", [1, 63, 64, 65, 127, 128, 384, 768, 1000, 4200])
@pytest.mark.parametrize("dtype", FLOATS)
def test_packs_every_width(dim, dtype):
    values = np.random.default_rng(dim).standard_normal((70, dim)).astype(dtype)
    np.testing.assert_array_equal(he.pack_signs(values), oracle.pack(values))


@given(vectors())
def test_unpacking_gives_the_bits(values):
    bits = he.unpack_codes(he.pack_signs(values), values.shape[1])
    np.testing.assert_array_equal(bits, (values > 0).astype(np.uint8))


def test_tiny_values_count_before_any_cast():
    tiny = np.array([[5e-324, -5e-324, 0.0]])
    np.testing.assert_array_equal(he.unpack_codes(he.pack_signs(tiny), 3), [[1, 0, 0]])


def layouts(values):
    yield "Fortran", np.asfortranarray(values)
    wide = np.zeros((len(values), 2 * values.shape[1]), values.dtype)
    wide[:, ::2] = values
    yield "strided", wide[:, ::2]
    yield "reversed", values[::-1][::-1]
    frozen = values.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen
    yield "big-endian", values.astype(values.dtype.newbyteorder(">"))
    shifted = np.zeros(values.nbytes + 1, np.uint8)[1:].view(values.dtype).reshape(values.shape)
    shifted[:] = values
    yield "unaligned", shifted
    yield "list", values.tolist()


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_layout(dtype, tmp_path):
    values = np.random.default_rng(0).standard_normal((50, 100)).astype(dtype)
    np.save(tmp_path / "x.npy", values)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for name, same in [*layouts(values), ("memory-mapped", mapped)]:
        np.testing.assert_array_equal(he.pack_signs(same), oracle.pack(values), err_msg=name)


def test_one_vector_is_one_row():
    vector = np.array([1.0, -1.0, 2.0], np.float32)
    np.testing.assert_array_equal(he.pack_signs(vector), oracle.pack(vector[None]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("place", [(0, 0), (17, 70), (17, 129), (39, 64)])
def test_names_the_row_that_is_not_finite(value, dtype, place):
    values = np.ones((40, 130), dtype)
    values[place] = value
    with pytest.raises(ValueError, match=rf"embeddings row {place[0]} holds NaN or infinity"):
        he.pack_signs(values)


def test_names_the_first_of_several_rows_over_blocks_and_threads():
    values = np.ones((30_000, 100), np.float32)
    values[[29_000, 12_345, 20_000], 99] = np.nan
    for threads in (1, 2):
        with pytest.raises(ValueError, match="row 12345 "):
            he.pack_signs(values, threads=threads)
