"""Sketches: the bits that the definitions give, and estimates as good as the formulas say."""

import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import given, settings

import hamming_engine as he
from hamming_engine import sketch
from hamming_engine.kernels.minhash import MINIMA, ODD, mix
from hamming_engine.sketch import MinHash, SimHash, shingles

MASK = 2**64 - 1
SEEDS = st.integers(0, MASK)
FEW = settings(max_examples=30)


# The definitions, with Python's own integers and floats.


def mixed(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def blake2b(person, seed, data=b""):
    salt = seed.to_bytes(16, "little")
    digest = hashlib.blake2b(data, digest_size=8, person=person, salt=salt).digest()
    return int.from_bytes(digest, "little")


def keys(person, seed, n):
    start = blake2b(person, seed)
    return [mixed((start + i * 0x9E3779B97F4A7C15) & MASK) for i in range(1, n + 1)]


def hashed(token, person, seed):
    if isinstance(token, int):
        return mixed(token ^ blake2b(person, seed))
    return blake2b(person, seed, token.encode() if isinstance(token, str) else token)


def gaussian(row_key, column_key):
    state = mixed(row_key ^ column_key)
    while True:
        fractions = []
        for _ in range(2):
            state = (state + 0x9E3779B97F4A7C15) & MASK
            fractions.append(((mixed(state) >> 12) + 0.5) / 2**52)
        u, v = fractions
        value = math.sqrt(8 / math.e) * (v - 0.5) / u
        if value * value <= -4 * math.log(u):
            return value


def simhash(vectors, n_bits, seed):
    rows = keys(b"he.simhash.rows", seed, len(vectors[0]))
    columns = keys(b"he.simhash.plane", seed, n_bits)
    planes = [[gaussian(row, column) for row in rows] for column in columns]
    bits = np.zeros((len(vectors), n_bits))
    for r, vector in enumerate(vectors):
        for j, plane in enumerate(planes):
            total = 0.0
            for value, normal in zip(vector, plane, strict=True):
                total += float(value) * normal
            bits[r, j] = total > 0
    return oracle.pack(bits)


def simhash_of_features(documents, n_bits, seed):
    """Of documents as lists of (token, weight)."""
    words = keys(b"he.simhash.keys", seed, -(-n_bits // 64))
    bits = np.zeros((len(documents), n_bits))
    for r, document in enumerate(documents):
        for j in range(n_bits):
            total = 0.0
            for token, weight in document:
                signs = mixed(hashed(token, b"he.simhash.token", seed) ^ words[j // 64])
                total += weight if signs >> (j % 64) & 1 else -weight
            bits[r, j] = total > 0
    return oracle.pack(bits)


def minima(sets, n_hashes, seed):
    made = keys(b"he.minhash.keys", seed, n_hashes)
    return [
        [
            min(mixed(hashed(token, b"he.minhash.token", seed) ^ key) for token in some)
            for key in made
        ]
        for some in sets
    ]


def minhash(sets, n_hashes, bits, seed):
    codes = []
    for row in minima(sets, n_hashes, seed):
        code = []
        for value in row:
            low = value % 2**bits
            code += [(low & i).bit_count() % 2 for i in range(1, 2**bits)]
        codes.append(code)
    return oracle.pack(np.array(codes).reshape(len(sets), n_hashes * (2**bits - 1)))


TOKENS = st.one_of(st.text(max_size=4), st.binary(max_size=4), st.integers(0, MASK))
SETS = st.lists(st.lists(TOKENS, min_size=1, max_size=12), min_size=1, max_size=8)


# Bits.


def test_mixes_like_splitmix64():
    """The first outputs from seed 0, as its authors' C program prints them."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix(np.arange(1, 4, dtype=np.uint64) * ODD).tolist() == expected


@FEW
@given(st.integers(1, 6), st.integers(1, 20), st.integers(1, 140), SEEDS, st.sampled_from([1, 2]))
def test_simhash_of_vectors(n, dim, n_bits, seed, threads):
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    vectors[:, 0] = 0
    found = SimHash(n_bits, seed).encode(vectors, threads=threads)
    np.testing.assert_array_equal(found, simhash(vectors.tolist(), n_bits, seed))


@FEW
@given(
    st.lists(st.lists(st.tuples(TOKENS, st.floats(-9, 9)), max_size=9), min_size=1, max_size=6),
    st.integers(1, 140),
    SEEDS,
    st.sampled_from([1, 2]),
)
def test_simhash_of_features(documents, n_bits, seed, threads):
    tokens = [[token for token, _ in document] for document in documents]
    weights = [[weight for _, weight in document] for document in documents]
    made = SimHash(n_bits, seed)
    np.testing.assert_array_equal(
        made.encode_features(tokens, weights, threads=threads),
        simhash_of_features(documents, n_bits, seed),
    )
    np.testing.assert_array_equal(
        made.encode_features(map(dict, documents), threads=threads),
        simhash_of_features([list(dict(document).items()) for document in documents], n_bits, seed),
    )
    np.testing.assert_array_equal(
        made.encode_features(tokens),
        simhash_of_features([[(token, 1.0) for token in some] for some in tokens], n_bits, seed),
    )


@FEW
@given(SETS, st.integers(1, 70), st.sampled_from([1, 2, 3, 4]), SEEDS, st.sampled_from([1, 2, 3]))
def test_minhash(sets, n_hashes, bits, seed, threads):
    made = MinHash(n_hashes, bits, seed)
    np.testing.assert_array_equal(
        made.signatures(sets, threads=threads),
        np.array(minima(sets, n_hashes, seed), np.uint64),
    )
    found = made.encode(sets, threads=threads)
    np.testing.assert_array_equal(found, minhash(sets, n_hashes, bits, seed))
    assert found.shape == (len(sets), -(-made.n_bits // 64))


@FEW
@given(
    st.lists(st.lists(st.integers(0, MASK), min_size=1, max_size=9), max_size=9),
    st.sampled_from([1, 2]),
)
def test_arrays_are_sets_of_integers(sets, threads):
    made = MinHash(20, 2)
    values = np.array([value for some in sets for value in some], np.uint64)
    offsets = np.cumsum([0, *map(len, sets)])
    expected = minhash(sets, 20, 2, 0)
    arrays = [np.array(some, np.uint64) for some in sets]
    for found in (
        made.encode_arrays(values, offsets, threads=threads),
        made.encode_arrays(values.astype(">u8"), offsets.astype(np.uint16)),
        made.encode(arrays, threads=threads),
    ):
        np.testing.assert_array_equal(found, expected)


def test_bits_never_change():
    """Codes that are stored somewhere: these literals must stay what they are."""
    vectors = [[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]]
    documents = [["to", "be", "or", "not", "to", "be"], [1, 2**64 - 1], [b"\xff", "héllo"]]
    assert words(SimHash(100, 7).encode(vectors)) == DENSE
    assert words(SimHash(100, 7).encode_features(documents)) == FEATURES
    assert words(MinHash(100, 1, 7).encode(documents)) == ONE_BIT
    assert words(MinHash(9, 4, 7).encode(documents)) == FOUR_BITS
    assert words(MinHash(2, 1, 7).signatures(documents)) == SIGNATURES


def words(codes):
    return [" ".join(f"{word:016x}" for word in row) for row in codes.tolist()]


DENSE = ["340cf59f1172b889 0000004097f0bdbe", "ca721b60e68fc446 00000080f3cf40c1"]
FEATURES = [
    "1a8ec22301a0c2da 000000603181e647",
    "4063511034067042 00000010ca088004",
    "84b81a2033018402 00000010bd000084",
]
ONE_BIT = [
    "3800a26dab333f04 000000f0be3242f5",
    "5ab763f636f34490 000000e07b77478f",
    "7a8ecff8ed5eee7a 00000090f6a24938",
]
FOUR_BITS = [
    "37ccfb07cccc6666 1f0f8f87475a9a87 00000000000000e0",
    "6099867fc03fd2d2 78ff001ede300f00 0000000000000078",
    "9c692ed55aa69967 abff00d5ea3fc0cc 0000000000000054",
]
SIGNATURES = [
    "1d828c110a35c492 2015452941f02d02",
    "96d11b7b5b40afb7 2b870a28d8c7ef4c",
    "363ff39c371191ba 22303f2522af1f9f",
]


def test_two_bits_by_hand():
    """0 is 000, 1 is 101, 2 is 011 and 3 is 110: bit i is the parity of v & (i + 1)."""
    made = MinHash(40, 2)
    sets = [[i] for i in range(50)]
    low = made.signatures(sets) & np.uint64(3)
    bits = he.unpack_codes(made.encode(sets), 120).reshape(50, 40, 3)
    expected = np.array([[0, 0, 0], [1, 0, 1], [0, 1, 1], [1, 1, 0]])
    np.testing.assert_array_equal(bits, expected[low.astype(int)])


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_distance_counts_the_hashes_whose_values_differ(bits):
    made = MinHash(50, bits)
    sets = [[i] for i in range(30)]
    low = made.signatures(sets) % np.uint64(2**bits)
    codes = made.encode(sets)
    differ = (low[:, None] != low[None]).sum(axis=2)
    np.testing.assert_array_equal(oracle.hamming(codes, codes), differ * 2 ** (bits - 1))


def test_tokens_count_as_often_as_they_come():
    made = SimHash(64)
    np.testing.assert_array_equal(
        made.encode_features([["a", "b", "a"], ["b", "a", "a"]]),
        made.encode_features([{"a": 2, "b": 1}] * 2),
    )
    sets = MinHash()
    np.testing.assert_array_equal(sets.encode([["a", "b", "a"]]), sets.encode([{"b", "a"}]))


def test_text_is_its_bytes_and_not_its_number():
    for encode in (SimHash().encode_features, MinHash().encode):
        text, raw, number = encode([["1"], [b"1"], [1]])
        np.testing.assert_array_equal(text, raw)
        assert (text != number).any()
        encode([["\ud800"]])  # no Unicode, but a name that a file can have


def test_a_product_of_zero_gives_a_zero():
    made = SimHash(70)
    assert not made.encode(np.zeros((3, 4))).any()
    assert not made.encode(np.full((3, 4), -0.0)).any()
    assert not made.encode_features([[], {}, {"a": 0.0}]).any()
    assert not made.encode_features([["a", "a"]], [[1, -1]]).any()


@pytest.mark.parametrize("n_bits", [1, 63, 64, 65, 100])
def test_the_first_bits_are_those_of_a_shorter_code(n_bits):
    vectors = np.random.default_rng(0).standard_normal((20, 30))
    documents = [[f"{i} {j}" for j in range(9)] for i in range(20)]
    for short, long, things in (
        (SimHash(n_bits).encode, SimHash(200).encode, vectors),
        (SimHash(n_bits).encode_features, SimHash(200).encode_features, documents),
        (MinHash(n_bits).encode, MinHash(200).encode, documents),
    ):
        np.testing.assert_array_equal(
            he.unpack_codes(short(things), n_bits), he.unpack_codes(long(things), 200)[:, :n_bits]
        )


def test_seeds_and_kinds_have_nothing_in_common():
    """Distances between codes of one thing by two hashes: binomial around a half of 4096 bits."""
    vector, document = np.ones((1, 50)), [list(range(99))]
    codes = np.concatenate(
        [
            *(SimHash(4096, seed).encode(vector) for seed in (0, 1, MASK)),
            *(SimHash(4096, seed).encode_features(document) for seed in (0, 1, MASK)),
            *(MinHash(4096, 1, seed).encode(document) for seed in (0, 1, MASK)),
        ]
    )
    apart = oracle.hamming(codes, codes)[~np.eye(9, dtype=bool)]
    assert np.abs(apart - 2048).max() < 5 * math.sqrt(4096 / 4)


# Batches, threads, layouts.


@pytest.mark.parametrize("threads", [1, 2, None])
@pytest.mark.parametrize("launch", [1, 5_000, None])
def test_neither_batches_nor_threads_count(threads, launch, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((90, 33)).astype(np.float16)
    sizes = rng.integers(1, 30, 60)
    sizes[20] = 2_000  # over several launches and all cells
    offsets = np.cumsum([0, *sizes])
    values = rng.integers(0, 10**6, offsets[-1])
    sets = np.split(values, offsets[1:-1])
    weights = [rng.random(len(some)) for some in sets]
    simple, sets_of = SimHash(100), MinHash(70, 2)
    expected = (
        simple.encode(vectors, threads=1),
        simple.encode_features(sets, weights, threads=1),
        sets_of.encode(sets, threads=1),
        sets_of.signatures(sets, threads=1),
    )
    if launch is not None:
        monkeypatch.setattr(sketch, "WORK_PER_LAUNCH", launch)
        monkeypatch.setattr(sketch, "_BLOCK_BYTES", 10 * launch)
    cuts = [0, 1, 20, 21, 22, 60]
    pieces = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    for parts in ([slice(None)], [*pieces, slice(60, None)]):
        found = (
            [simple.encode(vectors[part], threads=threads) for part in parts],
            [simple.encode_features(sets[p], weights[p], threads=threads) for p in parts],
            [sets_of.encode(sets[part], threads=threads) for part in parts],
            [sets_of.signatures(sets[part], threads=threads) for part in parts],
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(np.concatenate(one), other)
    np.testing.assert_array_equal(
        sets_of.encode_arrays(values, offsets, threads=threads), expected[2]
    )


@pytest.mark.parametrize("n_cells", [1, 2, 3, 7])
def test_no_two_cells_write_one_set(n_cells):
    """Or one thread would undo what another does, too seldom for a test to see."""
    tokens = np.arange(100, 200, dtype=np.uint64)
    offsets = np.array([0, 1, 3, 60, 61, 80, 100])
    top = np.uint64(MASK)
    writers = np.zeros(6, int)
    for cell in range(n_cells):
        signatures, edges = np.full((6, 4), top), np.full((n_cells, 4), top)
        edge_rows = np.full(n_cells, -1)
        row_keys = np.arange(4, dtype=np.uint64)
        given = (tokens, 0, 100, offsets, row_keys, signatures, edges, edge_rows)
        with np.errstate(over="ignore"):
            MINIMA.cell(cell, n_cells, *given)
        writers += (signatures < top).any(axis=1)
        others = np.arange(n_cells) != cell
        assert (edges[others] == top).all()
        assert (edge_rows[others] == -1).all()
    assert writers.tolist() == [1] * 6


def test_errors_name_rows_over_blocks(monkeypatch):
    monkeypatch.setattr(sketch, "_BLOCK_BYTES", 64 * 8 * 3)
    vectors = np.ones((20, 5))
    vectors[[13, 16]] = np.nan
    with pytest.raises(ValueError, match="vectors row 13 holds NaN or infinity"):
        SimHash().encode(vectors)
    documents = [["a", "a"] for _ in range(20)]
    weights = [[1.0, 1.0] for _ in range(20)]
    weights[13] = [1.7e308, 1.7e308]
    with pytest.raises(ValueError, match="weights row 13 holds NaN or infinity"):
        SimHash().encode_features(documents, weights)


def test_work_for_many_threads():
    """So much that it is launched over threads, with one set that is most of it."""
    values = np.arange(300_000)
    offsets = [0, 7, 290_000, *range(290_001, 300_001)]
    made = MinHash(64)
    assert len(values) * 64 * sketch._HASH_WORK > 1 << 17
    found = [made.encode_arrays(values, offsets, threads=threads) for threads in (1, 2)]
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(found[0][[0]], made.encode([range(7)]))
    vectors = np.random.default_rng(0).standard_normal((3_000, 100))
    found = [SimHash(128).encode(vectors, threads=threads) for threads in (1, 2)]
    np.testing.assert_array_equal(*found)


def test_any_layout():
    values = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    locked = values.copy()
    locked.flags.writeable = False
    wide = np.zeros((50, 80), np.float32)
    wide[:, ::2] = values
    expected = SimHash(70).encode(values)
    for same in (
        np.asfortranarray(values),
        locked,
        wide[:, ::2],
        values.astype(">f4"),
        values.astype(np.float64),
        values.tolist(),
    ):
        np.testing.assert_array_equal(SimHash(70).encode(same), expected)
    np.testing.assert_array_equal(SimHash(70).encode(values[0]), expected[:1])


def test_nothing_gives_no_codes():
    assert SimHash(65).encode(np.zeros((0, 3))).shape == (0, 2)
    assert SimHash(65).encode_features([]).shape == (0, 2)
    assert SimHash(65).encode_features([], []).shape == (0, 2)
    assert MinHash(65).encode(iter([])).shape == (0, 2)
    assert MinHash(65).encode_arrays(np.zeros(0, int), [0]).shape == (0, 2)
    assert MinHash(65).signatures([]).shape == (0, 65)


def test_iterators_are_read_in_blocks(monkeypatch):
    """Rows already hashed are gone before the last document is asked for."""
    monkeypatch.setattr(sketch, "_BLOCK_BYTES", 8 * 128 * 10)
    blocks = []
    minima_of = MinHash._minima
    monkeypatch.setattr(
        MinHash, "_minima", lambda *given: blocks.append(asked[-1]) or minima_of(*given)
    )
    asked = []

    def documents():
        for i in range(25):
            asked.append(i)
            yield iter([i, "x"])

    assert len(MinHash().encode(documents())) == 25
    assert blocks == [9, 19, 24]


def test_each_kernel_compiles_once_whatever_comes_in(root):
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("nothing is compiled")
    program = """
import numpy as np
from hamming_engine.kernels.minhash import MINIMA, PROJECT, SIGN_SUMS
from hamming_engine.sketch import MinHash, SimHash
x = np.random.default_rng(0).standard_normal((2_000, 64)).astype(np.float32)
locked = x.astype(float)
locked.flags.writeable = False
for threads in (1, 2):
    for vectors in (x, locked, x[:, ::2], x[0]):
        SimHash().encode(vectors, threads=threads)
    for sets in ([["a"]], [[1], ["a"]], [np.arange(9, dtype=np.int8)], [range(9_000)] * 2):
        SimHash().encode_features(sets, threads=threads)
        MinHash().encode(sets, threads=threads)
    MinHash().encode_arrays(np.arange(9_000), [0, 5, 9_000], threads=threads)
for launcher in (MINIMA, PROJECT, SIGN_SUMS):
    for function in (launcher.cell, launcher.driver):
        assert len(function.signatures) == 1, (function, function.signatures)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


def test_the_same_with_the_jit_off(root):
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("this is that run")
    chosen = "test_bits_never_change or test_simhash or test_minhash or test_a_product"
    options = ["-q", "-p", "no:cacheprovider", "-n", "0", "-W", "error", "-k", chosen]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(root / "tests" / "test_sketch.py")],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "HYPOTHESIS_PROFILE": "interpreted"},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


# Estimates. Seeds are fixed; a tolerance is five standard errors by the formula in the docstring.


@pytest.mark.parametrize("angle", [0.0, 0.1, 1.0, math.pi / 2, 2.5, math.pi])
@pytest.mark.parametrize("dim", [2, 50])
def test_angles(angle, dim):
    n_pairs, n_bits = 2_000, 96
    rng = np.random.default_rng(int(1000 * angle) + dim)
    ends = [np.linalg.qr(rng.standard_normal((dim, 2)))[0].T for _ in range(n_pairs)]
    first = np.array([a for a, _ in ends])
    second = np.array([math.cos(angle) * a + math.sin(angle) * b for a, b in ends])
    if angle in (0.0, math.pi):
        second = math.cos(angle) * first
    scales = rng.uniform(0.1, 10, (n_pairs, 1))
    made = SimHash(n_bits, seed=dim)
    distances = apart(made.encode(first), made.encode(scales * second))
    error = math.sqrt(angle * (math.pi - angle) / n_bits)
    estimates = made.estimate_angle(distances)
    assert abs(estimates.mean() - angle) <= 5 * error / math.sqrt(n_pairs) + 1e-12
    np.testing.assert_allclose(made.estimate_cosine(distances), np.cos(estimates))


def apart(a, b):
    return np.bitwise_count(a ^ b).sum(axis=1, dtype=np.int64)


def test_angles_scatter_as_the_formula_says():
    """One pair of vectors under many seeds: planes are independent only from seed to seed."""
    n_seeds, n_bits, angle = 1_000, 64, 1.0
    pair = np.array([[1.0, 0.0, 0.0], [math.cos(angle), math.sin(angle), 0.0]])
    made = [SimHash(n_bits, seed) for seed in range(n_seeds)]
    distances = [int(apart(*one.encode(pair)[:, None])[0]) for one in made]
    estimates = made[0].estimate_angle(distances)
    error = math.sqrt(angle * (math.pi - angle) / n_bits)
    assert abs(estimates.mean() - angle) < 5 * error / math.sqrt(n_seeds)
    assert abs(estimates.std() / error - 1) < 5 / math.sqrt(2 * n_seeds)


def test_normals_are_what_the_definition_says():
    rows, columns = keys(b"he.simhash.rows", 9, 7), keys(b"he.simhash.plane", 9, 128)
    expected = [[[gaussian(r, c) for c in columns[w : w + 64]] for r in rows] for w in (0, 64)]
    np.testing.assert_array_equal(sketch._planes(7, 2, 9), expected)


def test_normals_are_gaussian():
    values = sketch._planes(300, 2, 5).reshape(-1)
    n = values.size
    assert abs(values.mean()) < 5 / math.sqrt(n)
    assert abs((values**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / n)  # var(x**4) = 105 - 9
    for limit in (0.5, 1.0, 2.0, 3.0):
        share = math.erf(limit / math.sqrt(2))
        found = (np.abs(values) < limit).mean()
        assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / n), limit


@pytest.mark.parametrize(("n_only", "n_both"), [(200, 200), (1, 1), (2, 0), (3, 2), (0, 4)])
def test_distances_between_documents(n_only, n_both):
    """Against the probability that two sums of signs, some of them shared, are not both above 0."""
    n_pairs, made = 1_000, SimHash(128)
    differ = 0.0
    for i in range(n_both + 1):
        shared = 2 * i - n_both
        above = sum(math.comb(n_only, j) for j in range(n_only + 1) if shared + 2 * j > n_only)
        share = above / 2**n_only
        differ += math.comb(n_both, i) / 2**n_both * 2 * share * (1 - share)
    a, b = pairs_of_sets(n_pairs, n_only, n_both)
    distances = apart(made.encode_features(a), made.encode_features(b))
    error = math.sqrt(differ * (1 - differ) / 128 / n_pairs)
    assert abs((distances / 128).mean() - differ) <= 5 * error
    if n_both == 200:  # at a cosine of 1/2, sums of many signs are as Gaussian ones
        assert abs(made.estimate_angle(distances).mean() / math.acos(0.5) - 1) < 0.01


def pairs_of_sets(n_pairs, n_only, n_both):
    """Sets of consecutive integers, none twice: ``n_both`` in both, ``n_only`` in one alone."""
    size = 2 * n_only + n_both
    starts = np.arange(n_pairs)[:, None] * size
    return starts + np.arange(n_only + n_both), starts + np.arange(n_only, size)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(("n_only", "n_both"), [(5, 0), (20, 5), (1, 2), (1, 18), (0, 3)])
def test_jaccard(bits, n_only, n_both):
    n_pairs, n_hashes = 2_000, 80
    jaccard = n_both / (2 * n_only + n_both)
    made = MinHash(n_hashes, bits, seed=3)
    a, b = pairs_of_sets(n_pairs, n_only, n_both)
    estimates = made.estimate_jaccard(apart(made.encode(a), made.encode(b)))
    error = math.sqrt((1 - jaccard) * (jaccard + 1 / (2**bits - 1)) / n_hashes)
    assert abs(estimates.mean() - jaccard) <= 5 * error / math.sqrt(n_pairs)
    assert abs(estimates.std() - error) <= 5 * error / math.sqrt(2 * n_pairs)


@pytest.mark.parametrize(("n_only", "n_both"), [(5, 0), (20, 5), (1, 18), (0, 3)])
def test_jaccard_of_signatures(n_only, n_both):
    n_pairs, n_hashes = 1_000, 80
    jaccard = n_both / (2 * n_only + n_both)
    made = MinHash(n_hashes)
    a, b = (made.signatures(sets) for sets in pairs_of_sets(n_pairs, n_only, n_both))
    estimates = made.estimate_jaccard_of_signatures(a, b)
    error = math.sqrt(jaccard * (1 - jaccard) / n_hashes)
    assert abs(estimates.mean() - jaccard) <= 5 * error / math.sqrt(n_pairs)
    assert abs(estimates.std() - error) <= 5 * error / math.sqrt(2 * n_pairs)
    np.testing.assert_array_equal(
        made.estimate_jaccard_of_signatures(a[0], b), (a[0] == b).mean(axis=1)
    )


def test_estimates_by_hand():
    distances = np.array([[0, 16], [32, 64]], np.int32)
    np.testing.assert_array_equal(
        SimHash(64).estimate_angle(distances), np.pi * np.array([[0, 0.25], [0.5, 1]])
    )
    np.testing.assert_allclose(
        SimHash(64).estimate_cosine(distances), [[1, math.sqrt(0.5)], [0, -1]], atol=1e-15
    )
    np.testing.assert_array_equal(MinHash(64).estimate_jaccard(distances), [[1, 0.5], [0, -1]])
    assert MinHash(21, 2).n_bits == 63
    assert MinHash(21, 2).estimate_jaccard(21) == 1 - 2 / 3


def test_near_duplicates_are_found_by_search():
    texts = [f"the {i} brown foxes jump over {i * i} lazy dogs" for i in range(300)]
    made = MinHash(256)
    codes = made.encode(shingles(text) for text in texts)
    changed = [text.replace("brown", "brawn") for text in texts[::50]]
    index = he.FlatIndex(made.n_bits)
    index.add(codes)
    found = index.search(made.encode(shingles(text) for text in changed), k=1)
    assert found.rows[:, 0].tolist() == list(range(0, 300, 50))


def test_shingles():
    assert shingles("abcdef", 3) == {"abc", "bcd", "cde", "def"}
    assert shingles("aaaa", 2) == {"aa"}
    assert shingles("ab") == {"ab"}
    assert shingles("") == set()


# What is stored, and what is refused.


@pytest.mark.parametrize("made", [SimHash(), SimHash(100, MASK), MinHash(), MinHash(9, 4, 2)])
def test_stored_and_made_again(made):
    stored = json.loads(json.dumps(made.to_json()))
    assert type(made).from_json(stored) == made


def test_stored_as():
    assert SimHash(np.int64(9), 2).to_json() == {
        "kind": "simhash",
        "version": 1,
        "n_bits": 9,
        "seed": 2,
    }
    assert MinHash(9, 2, 3).to_json() == {
        "kind": "minhash",
        "version": 1,
        "n_hashes": 9,
        "bits": 2,
        "seed": 3,
    }


NAN = np.array([[1.0, 2.0], [np.nan, 1.0]])
BIG = np.array([[1.0, 2.0], [1.7e308, 1.7e308]])
SIM, MIN = SimHash(), MinHash()
STORED = SIM.to_json()
ONES = np.ones(3, int)

BAD = [
    (lambda: SimHash(0), ValueError, "n_bits must be at least 1, got 0"),
    (lambda: SimHash(64.0), TypeError, "n_bits must be an integer, got 64.0 of type float"),
    (lambda: SimHash(1 << 40), ValueError, "n_bits must be at most 8388544, got 1099511627776"),
    (lambda: SimHash(seed=-1), ValueError, "seed must be at least 0, got -1"),
    (lambda: SimHash(seed=2**64), ValueError, "seed must be at most 2**64 - 1, got 1844674"),
    (lambda: MinHash(0), ValueError, "n_hashes must be at least 1, got 0"),
    (lambda: MinHash(bits=0), ValueError, "bits must be at least 1, got 0"),
    (lambda: MinHash(bits=5), ValueError, "bits must be 1, 2, 3 or 4, got 5"),
    (lambda: MinHash(bits=True), TypeError, "bits must be an integer, got the bool True"),
    (lambda: MinHash(10**6, 4), ValueError, "n_hashes of 4 bits must give codes of at most"),
    (lambda: MinHash(seed="a"), TypeError, "seed must be an integer, got 'a' of type str"),
    (lambda: SIM.encode(NAN), ValueError, "vectors row 1 holds NaN or infinity"),
    (lambda: SIM.encode(BIG), ValueError, "vectors row 1 holds NaN or infinity"),
    (lambda: SIM.encode(np.ones((2, 3), int)), TypeError, "vectors must be float16, float32 or"),
    (lambda: SIM.encode(np.ones((2, 0))), ValueError, "vectors must have at least one dimension"),
    (lambda: SIM.encode(BIG, threads=0), ValueError, "threads must be at least 1, got 0"),
    (lambda: SIM.encode_features("text"), TypeError, "features must be an iterable of documents"),
    (lambda: SIM.encode_features({"a": 1}), TypeError, "features must be an iterable of documents"),
    (lambda: SIM.encode_features(["text"]), TypeError, "features document 0 must be a collection"),
    (lambda: SIM.encode_features([[], [1.5]]), TypeError, "features document 1: a token that is"),
    (lambda: SIM.encode_features([["a"]], [[1], [2]]), ValueError, "document: 1, got more"),
    (lambda: SIM.encode_features([["a"]] * 2, [[1]]), ValueError, "one array a document, got 1"),
    (
        lambda: SIM.encode_features([["a"]], [[1, 2]]),
        ValueError,
        "weights document 0 must have one",
    ),
    (
        lambda: SIM.encode_features([["a"]], [["1"]]),
        TypeError,
        "weights document 0 must be ints or",
    ),
    (lambda: SIM.encode_features([["a"]], 3), TypeError, "weights must be an iterable"),
    (
        lambda: SIM.encode_features([{"a": 1}], [[1]]),
        ValueError,
        "features document 0 is a mapping",
    ),
    (lambda: SIM.encode_features([{"a": "1"}]), TypeError, "weights document 0 must be ints or"),
    (lambda: SIM.encode_features([[], {"a": np.nan}]), ValueError, "weights document 1 holds NaN"),
    (lambda: SIM.encode_features([[], ["a"] * 2], [[], [1.7e308] * 2]), ValueError, "row 1 holds"),
    (lambda: MIN.encode("text"), TypeError, "sets must be an iterable of documents, got 'text'"),
    (lambda: MIN.encode(3), TypeError, "sets must be an iterable of documents, got 3 of type int"),
    (lambda: MIN.encode(["text"]), TypeError, "sets document 0 must be a collection of tokens"),
    (
        lambda: MIN.encode([1, 2]),
        TypeError,
        "sets document 0 must be a collection of tokens, got 1",
    ),
    (lambda: MIN.encode([["a"], []]), ValueError, "sets document 1 is empty"),
    (lambda: MIN.encode([[None]]), TypeError, "sets document 0: a token that is not str or bytes"),
    (lambda: MIN.encode([[True]]), TypeError, "must be an integer, got the bool True"),
    (lambda: MIN.encode([[-1]]), ValueError, "must be at least 0, got -1"),
    (lambda: MIN.encode([[2**64]]), ValueError, "must be 0 to 2**64 - 1, got 18446744073709551616"),
    (lambda: MIN.encode([-ONES]), ValueError, "sets document 0: an integer token must be 0 to"),
    (lambda: MIN.encode([NAN[0]]), TypeError, "sets document 0: a token that is not str or bytes"),
    (lambda: MIN.signatures([["a"], []]), ValueError, "sets document 1 is empty"),
    (lambda: MIN.encode_arrays(NAN[0], [0, 2]), TypeError, "values must be integers, got float64"),
    (lambda: MIN.encode_arrays(ONES, [0, 3.0]), TypeError, "offsets must be integers, got float64"),
    (lambda: MIN.encode_arrays([ONES], [0, 1]), ValueError, "values must have one dimension, got"),
    (lambda: MIN.encode_arrays(-ONES, [0, 3]), ValueError, "values: an integer token must be 0 to"),
    (
        lambda: MIN.encode_arrays(ONES, [0, 2]),
        ValueError,
        "offsets must go from 0 to 3, got 0 to 2",
    ),
    (
        lambda: MIN.encode_arrays(ONES, ONES[:0]),
        ValueError,
        "offsets must go from 0 to 3, got none",
    ),
    (lambda: MIN.encode_arrays(ONES, [0, 2, 2, 3]), ValueError, "set 1 goes from 2 to 2"),
    (lambda: MIN.encode_arrays(ONES, [0, 2, 1, 3]), ValueError, "set 1 goes from 2 to 1"),
    (lambda: SIM.estimate_angle([1.0]), TypeError, "distances must be integers, got float64"),
    (lambda: SIM.estimate_angle([1, 65]), ValueError, "distances must be 0 to 64, got 65"),
    (lambda: SIM.estimate_cosine(-1), ValueError, "distances must be 0 to 64, got -1"),
    (lambda: MIN.estimate_jaccard(129), ValueError, "distances must be 0 to 128, got 129"),
    (lambda: MIN.estimate_jaccard_of_signatures(ONES, ONES), TypeError, "a must be uint64 sign"),
    (
        lambda: MIN.estimate_jaccard_of_signatures(SIGNED[0], SIGNED[0, :5]),
        ValueError,
        "b must have",
    ),
    (lambda: MIN.estimate_jaccard_of_signatures(SIGNED, SIGNED[:2]), ValueError, "must broadcast"),
    (
        lambda: SimHash.from_json(MIN.to_json()),
        ValueError,
        "stored must be like {'kind': 'simhash'",
    ),
    (lambda: MinHash.from_json(STORED), ValueError, "stored must be like {'kind': 'minhash'"),
    (lambda: SimHash.from_json({**STORED, "version": 2}), ValueError, "stored must be like"),
    (lambda: SimHash.from_json({**STORED, "more": 2}), ValueError, "stored must be like"),
    (lambda: SimHash.from_json({**STORED, "n_bits": 0}), ValueError, "n_bits must be at least 1"),
    (lambda: SimHash.from_json("x"), TypeError, "stored must be a mapping, got 'x' of type str"),
    (lambda: shingles(3), TypeError, "text must be a str, got 3 of type int"),
    (lambda: shingles("a", 0), ValueError, "size must be at least 1, got 0"),
]
SIGNED = np.zeros((3, 128), np.uint64)


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
