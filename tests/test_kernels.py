"""What holds for the compiled code itself."""

import os
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import llvmlite.binding
import numpy as np
import oracle
import pytest
from hypothesis import given

from hamming_engine.kernels.checksum import checksum_blocks
from hamming_engine.kernels.methods import METHODS
from hamming_engine.kernels.scores import COSINE, DOT, L2, code_cell, vector_cell
from hamming_engine.kernels.topk import MAX_BITS, MAX_ROWS, ROW_BITS, split_keys
from hamming_engine.quantize import Int8Scale, QueryWeights
from hamming_engine.rerank import CodeSource, Source, code_scores, exact_scores

METRICS = {"dot": DOT, "cosine": COSINE, "l2": L2}


def test_the_suite_passes_with_the_jit_off(root):
    """The plain-Python twins of the intrinsics mean what the compiled ones do."""
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("this is that run")
    files = [
        "test_codes.py",
        "test_search.py",
        "test_kernels.py",
        "test_asymmetric.py",
        "test_quantize.py",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0"]
        + [str(root / "tests" / name) for name in files],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "HYPOTHESIS_PROFILE": "interpreted"},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_each_kernel_compiles_once_whatever_comes_in(root):
    """Read-only, mapped, strided or masked: the doors make all inputs alike."""
    program = """
import tempfile
import numpy as np
import hamming_engine as he
from unittest.mock import patch
from hamming_engine.checks import frozen
from hamming_engine.held import HeldCodes, Piece
from hamming_engine.indexes.asymmetric import AsymmetricScan
from hamming_engine.indexes.where import Where
from hamming_engine.kernels import launch
from hamming_engine.kernels.methods import METHODS
from hamming_engine.kernels.pack import PACK
from hamming_engine.kernels.descend import DESCEND
from hamming_engine.kernels.project import CENTRE, HADAMARD, PROJECT
from hamming_engine.kernels.weighted import BEST_BLOCKS, BEST_ROWS, PREPARE, best_blocks, best_rows
from hamming_engine.quantize import LocalSearchQuantizer, RaBitQuantizer, RotationQuantizer
from hamming_engine.quantize import projections
from hamming_engine.kernels.blocks import TURN
from hamming_engine.kernels.scan import RADIUS_BLOCKS, RADIUS_ROWS, TOPK_BLOCKS, TOPK_ROWS
from hamming_engine.kernels.scan import topk_blocks, topk_rows

x = np.random.default_rng(0).standard_normal((20_000, 512)).astype(np.float32)
read_only = x[:100].copy()
read_only.flags.writeable = False
for vectors in (x, read_only, x[:100, ::2], np.asfortranarray(x[:100]), x[:100].astype(">f4")):
    he.pack_signs(vectors)
codes = he.pack_signs(x)
locked = codes.copy()
locked.flags.writeable = False
for rows in (codes, locked, codes[::2], codes[:7]):
    for queries in (rows[0], rows[:3], rows[:40]):
        for where in (None, [1, 2], np.ones(len(rows), bool)):
            for threads in (None, 1):
                he.search(queries, rows, 4, where=where, threads=threads)
for kernel in ("plain", "popcount", "table"):
    index = he.FlatIndex(512, kernel=kernel)
    for rows in (codes[:100], locked, codes[::2]):
        index.add(rows)
    for where in (None, [3], np.ones(index.n_rows, bool)):
        for threads in (None, 1):
            for queries in (locked[:3], codes[0]):
                index.search(queries, where=where, threads=threads)
                index.range_search(queries, 9, where=where, threads=threads)
    index.remove([1, 2])
    index.search(codes[:9])
with tempfile.TemporaryDirectory() as folder:
    with he.Collection.create(folder + "/c", 512, vectors=None) as docs:
        for _ in range(8):
            docs.append(np.tile(x, (8, 1)))
    for memory_bytes in (None, 8 << 20):
        docs = he.Collection.open(folder + "/c", memory_bytes=memory_bytes)
        for queries in (x[:1], x[:30]):
            for method in ("hamming", "asymmetric"):
                docs.search(queries, method=method, rerank=False, where=[1, 2])
                docs.search(queries, method=method, rerank=False, threads=1)
for rows in (x[:3_000, :24], read_only[:, :24], x[:900, :48:2].astype(np.float64)):
    for metric in ("cosine", "l2"):
        for make in (RotationQuantizer, RaBitQuantizer, LocalSearchQuantizer):
            with patch.object(projections, "_MAX_DENSE_DIM", 9):
                quantizer = make().fit(rows, metric=metric)
            for small, threads in ((0, 2), (launch.SMALL_WORK, 1)):
                with patch.object(launch, "SMALL_WORK", small):
                    encoded = quantizer.encode_rows(rows, threads=threads)
            weights = quantizer.weights(rows[:9]).weights
            for method in METHODS.values():
                held = HeldCodes(1, method, quantizer.n_factors)
                held.append(encoded.codes, encoded.factors if quantizer.n_factors else None)
                row_major = Piece(0, len(rows), frozen(encoded.codes), frozen(encoded.factors))
                pieces = [*held.pieces(len(rows)), row_major]
                for where in (None, Where(len(rows), np.arange(5))):
                    for n_queries in (1, 9):
                        for small in (0, launch.SMALL_WORK):
                            with patch.object(launch, "SMALL_WORK", small):
                                scan = AsymmetricScan(weights[:n_queries], 3, 10**9, method=method)
                                for piece in pieces:
                                    scan.scan(piece, where)
                                    scan.visit(0, piece, where)
for function in (topk_rows, topk_blocks, best_rows, best_blocks):
    assert len(function.signatures) == 1, (function, function.signatures)
scans = TOPK_ROWS, TOPK_BLOCKS, RADIUS_ROWS, RADIUS_BLOCKS, BEST_ROWS, BEST_BLOCKS
for launcher in (PACK, TURN, CENTRE, PROJECT, HADAMARD, DESCEND, PREPARE, *scans):
    for function in (launcher.cell, launcher.driver):
        assert len(function.signatures) == 1, (function, function.signatures)
"""
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("nothing is compiled")
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


@given(st.integers(0, MAX_ROWS - 1), st.integers(0, MAX_BITS - 1))
def test_keys_hold_distance_and_row(row, distance):
    key = np.array([distance << ROW_BITS | row], np.int64)
    distances, rows = split_keys(key)
    assert (distances[0], rows[0]) == (distance, row)
    assert key[0] >= 0


@given(st.binary(max_size=3_000), st.sampled_from([8, 64, 1024]))
def test_checksums(data, block_bytes):
    padded = np.zeros(len(data) // 8 + 1, np.uint64).view(np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    found = checksum_blocks(padded[: len(data)], block_bytes)
    blocks = [data[i : i + block_bytes] for i in range(0, len(data), block_bytes)]
    assert found.tolist() == [oracle.checksum(block) for block in blocks]


def test_checksum_of_more_than_a_stripe():
    data = np.random.default_rng(0).integers(0, 256, 30_001, dtype=np.uint8)
    assert checksum_blocks(data, 1 << 20).tolist() == [oracle.checksum(data.tobytes())]


def test_checksums_find_every_flipped_bit_and_swapped_word():
    data = np.random.default_rng(0).integers(0, 256, 1_003, dtype=np.uint8)
    before = checksum_blocks(data, 2_048)[0]
    for bit in range(8 * len(data)):
        data[bit // 8] ^= np.uint8(1 << bit % 8)
        assert checksum_blocks(data, 2_048)[0] != before, bit
        data[bit // 8] ^= np.uint8(1 << bit % 8)
    words = data[:1_000].view(np.uint64)
    for i in range(len(words) - 1):
        words[[i, i + 1]] = words[[i + 1, i]]
        assert checksum_blocks(data, 2_048)[0] != before, i
        words[[i, i + 1]] = words[[i + 1, i]]
    for shorter in range(len(data)):
        assert checksum_blocks(data[:shorter], 2_048).tolist() != [before]


def test_checksum_of_zeros_knows_their_number():
    zeros = np.zeros(200, np.uint8)
    assert len({checksum_blocks(zeros[:n], 256)[0] for n in range(1, 200)}) == 199


@st.composite
def scored(draw):
    n, dim, n_queries = draw(st.integers(1, 30)), draw(st.integers(1, 150)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    vectors = rng.standard_normal((n, dim)).astype(draw(st.sampled_from([np.float16, np.float32])))
    queries = rng.standard_normal((n_queries, dim))
    if draw(st.booleans()):
        vectors[0] = 0
        queries[0] = 0
    candidates = rng.integers(0, n, (n_queries, draw(st.integers(1, 9))))
    return queries, vectors, candidates


@given(scored(), st.sampled_from(sorted(METRICS)), st.data())
def test_scores(problem, metric, data):
    queries, vectors, candidates = problem
    cut = data.draw(st.integers(0, len(vectors)))
    for rows, meaning, scales in (
        (vectors, vectors, (None, None)),
        int8_rows(vectors, cut),
    ):
        sources = [Source(0, rows[:cut], scales[0]), Source(cut, rows[cut:], scales[1])]
        found = exact_scores(queries, candidates, sources, metric, 2)
        expected = np.take_along_axis(oracle.scores(queries, meaning, metric), candidates, axis=1)
        np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-7)


@given(scored(), st.booleans(), st.data())
def test_scores_of_codes(problem, with_factors, data):
    weights, vectors, candidates = problem
    weights = weights.astype(np.float32)
    n = len(vectors)
    cut = data.draw(st.integers(0, n))
    codes, signs = oracle.pack(vectors), np.where(vectors > 0, 1.0, -1.0)
    rng = np.random.default_rng(0)
    factors = rng.random((n if with_factors else 0, 2)).astype(np.float32)
    constants = rng.standard_normal(len(weights))
    sources = [
        CodeSource(0, codes[:cut], factors[:cut]),
        CodeSource(cut, codes[cut:], factors[cut:]),
    ]
    found = code_scores(QueryWeights(weights, constants), candidates, sources, 2)
    expected = weights.astype(np.float64) @ signs.T
    if with_factors:
        expected = expected * factors[:, 0] + factors[:, 1]
    expected = np.take_along_axis(expected, candidates, axis=1) + constants[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def int8_rows(vectors, cut):
    """Rows as int8 in two runs with scales of their own, and what they mean."""
    scales, rows, meaning = [], [], []
    for run in (vectors[:cut], vectors[cut:]):
        scale = Int8Scale.fit([run]) if len(run) else None
        values = scale.encode(run) if scale else np.zeros(run.shape, np.int8)
        rows.append(values)
        scales.append(scale)
        if scale:
            step = scale.scale.astype(np.float64)
            meaning.append(scale.offset.astype(np.float64) + step * values)
            within = np.abs(meaning[-1] - run) <= 0.5001 * step + 1e-6 * np.abs(run) + 1e-7
            assert within.all()
    return np.concatenate(rows), np.concatenate(meaning), scales


def test_scores_do_not_depend_on_where_a_row_lies():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((9, 333)).astype(np.float16)
    vectors[:] = vectors[0]
    query = rng.standard_normal((1, 333))
    found = exact_scores(query, np.arange(9)[None], [Source(0, vectors)], "cosine", 1)
    assert len(set(found[0].tolist())) == 1


@pytest.mark.parametrize("cell", [vector_cell, code_cell])
def test_sums_are_vectorised(cell):
    """A scalar loop over float16 or bits would cost ten times as much, and no test would see it."""
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("nothing is compiled")
    if not llvmlite.binding.get_host_cpu_features().get("fma") or "NUMBA_CPU_NAME" in os.environ:
        pytest.skip("looks for x86-64's fused multiply and add")
    query, rows = np.ones((1, 64)), np.zeros(1, np.int64)
    out = np.zeros(1, np.float32)
    if cell is vector_cell:
        scale = np.ones(64, np.float32)
        arguments = (query, np.ones((1, 64), np.uint16), scale, scale, 0, rows, rows, DOT, out)
    else:
        codes, factors = np.ones((1, 8), np.uint8), np.zeros((0, 2), np.float32)
        weights, constants = np.ones((1, 64), np.float32), np.zeros(1)
        arguments = (weights, constants, codes, factors, 0, rows, rows, out)
    fresh = type(cell)(cell.py_func, targetoptions=cell.targetoptions)  # not read from the cache
    fresh(0, 1, *arguments)
    assembly = next(iter(fresh.inspect_asm().values()))
    # Products become multiply-and-adds; with signs they become sign flips and additions.
    operation = "fmadd" if cell is vector_cell else "vadd"
    assert [line for line in assembly.splitlines() if operation in line and "pd" in line]


def test_half_floats_mean_what_numpy_says():
    bits = np.arange(1 << 16, dtype=np.uint16)
    halves = bits.view(np.float16)
    finite = np.isfinite(halves)
    found = exact_scores(
        np.ones((1, 1)),
        np.arange(finite.sum())[None],
        [Source(0, halves[finite][:, None])],
        "dot",
        1,
    )
    np.testing.assert_array_equal(found[0], halves[finite].astype(np.float32))


@pytest.mark.parametrize(
    ("processor", "features", "method"),
    [
        ("x86-64", "", "popcount"),
        ("haswell", "+avx2,+ssse3", "table"),
        ("x86-64-v2", "+ssse3", "table"),
        ("skylake-avx512", "+avx512bw,+avx2,+ssse3", "table"),
        ("znver4", "+avx512bw,+avx512bitalg,+avx2,+ssse3", "popcount"),
    ],
)
def test_other_processors(processor, features, method, tmp_path):
    """Without AVX-512, and without AVX2, F16C, a byte shuffle or popcount: the same results."""
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("nothing is compiled")
    if os.uname().machine != "x86_64":
        pytest.skip("names x86-64 processors")
    if not set(features.replace("+", "").split(",")) <= {"", *processor_flags()}:
        pytest.skip(f"this processor lacks some of {features}")
    program = """
import sys
import numpy as np, hamming_engine as he
sys.path.insert(0, sys.argv[2])
import oracle
rng = np.random.default_rng(0)
vectors = rng.standard_normal((300, 200)).astype(np.float32)
codes = he.pack_signs(vectors)
assert np.array_equal(codes, oracle.pack(vectors))
expected = oracle.nearest(oracle.hamming(codes[:5], codes), 9)[1]
assert np.array_equal(he.search(codes[:5], codes, 9, threads=1).rows, expected)
for kernel in (None, "popcount", "table"):
    index = he.FlatIndex(200, kernel=kernel)
    index.add(codes)
    assert np.array_equal(index.search(codes[:5], 9, threads=1).rows, expected)
from hamming_engine.checks import frozen
from hamming_engine.held import HeldCodes
from hamming_engine.indexes import asymmetric
from hamming_engine.kernels.find import NIBBLES, SIXES
from hamming_engine.kernels.methods import METHODS, best_method
assert best_method() == METHODS[sys.argv[3]]
weights = rng.standard_normal((5, 200)).astype(np.float32)
factors = rng.random((300, 2), np.float32)
ranks = oracle.ranks(oracle.weighted_scores(weights, codes, factors))
for tables in (NIBBLES, SIXES):
    asymmetric.weighted_tables = lambda method: tables
    held = HeldCodes(4, METHODS["table"], 2)
    held.append(codes, factors)
    search = asymmetric.AsymmetricScan(weights, 9, 300, 1)
    for piece in held.pieces(300):
        search.scan(piece)
    assert np.array_equal(search.result(), oracle.nearest(ranks, 9)[1]), tables
with he.Collection.create(sys.argv[1] + "/c", 200) as docs:
    docs.append(vectors)
    assert docs.search(vectors[:5], 1).ids[:, 0].tolist() == [0, 1, 2, 3, 4]
"""
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent), method],
        env={
            **os.environ,
            "NUMBA_CPU_NAME": processor,
            "NUMBA_CPU_FEATURES": features,
            "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
        },
        check=True,
    )


def processor_flags():
    """What this processor has, in LLVM's words."""
    return {name for name, has in llvmlite.binding.get_host_cpu_features().items() if has}


def test_the_method_is_named_by_the_environment():
    program = "from hamming_engine.kernels.methods import best_method; print(best_method())"

    def run(name):
        return subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "HAMMING_ENGINE_KERNEL": name},
            capture_output=True,
            text=True,
            check=False,
        )

    for name, method in METHODS.items():
        assert run(name).stdout == f"{method}\n"
    assert "HAMMING_ENGINE_KERNEL must be one of plain, popcount, table" in run("fast").stderr
