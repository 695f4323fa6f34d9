"""Codes of other systems: values worked out by hand, every format there and back, detection."""

import re
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import oracle
import pytest
from hypothesis import given

from hamming_engine import interop

# Above zero where the bits are 1: 1011 0001 0110 1000.
X16 = np.array([[3, -1, 2, 7, -4, -1, -9, 5, -2, 1, 8, -3, 6, -5, -7, -8]], np.float32)
X12 = X16[:, :12]

# name: of 16 dimensions, of 12, and of 12 with the opposite bits, 0100 1110 1001.
BY_HAND = {
    "packbits": ([[0xB1, 0x68]], [[0xB1, 0x60]], [[0x4E, 0x90]]),
    # From the other end: 1000 1101, 0001 0110, then of 12 dimensions 0000 0110.
    "packbits-little": ([[0x8D, 0x16]], [[0x8D, 0x06]], [[0x72, 0x09]]),
    "ubinary": ([[0xB1, 0x68]], [[0xB1, 0x60]], [[0x4E, 0x90]]),
    # 177 - 128, 104 - 128; 96 - 128; 78 - 128, 144 - 128.
    "binary": ([[49, -24]], [[49, -32]], [[-50, 16]]),
    "cohere": ([[49, -24]], [[49, -32]], [[-50, 16]]),
    "voyage": ([[49, -24]], [[49, -32]], [[-50, 16]]),
    # 177 - 256, 104; 96; 78, 144 - 256.
    "vespa": ([[-79, 104]], [[-79, 96]], [[78, -112]]),
    "pgvector": (["1011000101101000"], ["101100010110"], ["010011101001"]),
    "faiss": ([[0x8D, 0x16]], None, None),
    "usearch": ([[0xB1, 0x68]], [[0xB1, 0x60]], [[0x4E, 0x90]]),
    "sqlite-vec": ([b"\x8d\x16"], None, None),
    # Below zero are dimensions 1, 4, 5, 6, 8, 11, 13, 14, 15; above, of the first 12, 0, 2, 3, 7,
    # 9, 10.
    "weaviate": (
        [[2 + 16 + 32 + 64 + 256 + 2048 + 8192 + 16384 + 32768]],
        [[2 + 16 + 32 + 64 + 256 + 2048]],
        [[1 + 4 + 8 + 128 + 512 + 1024]],
    ),
    "hex": (["b168"], ["b160"], ["4e90"]),
}
DTYPES = {"binary": np.int8, "cohere": np.int8, "voyage": np.int8, "vespa": np.int8}
DTYPES |= dict.fromkeys(["packbits", "packbits-little", "ubinary", "faiss", "usearch"], np.uint8)
DTYPES |= {"weaviate": np.uint64}
WHOLE_BYTES = {"faiss", "sqlite-vec"}
NAMES = sorted(BY_HAND)


def held(rows, name):
    return np.array(rows, DTYPES[name]) if name in DTYPES else rows


def check_same(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype
        assert actual.flags.c_contiguous
        np.testing.assert_array_equal(actual, expected)
    else:
        assert actual == expected


def test_every_format_is_worked_out_by_hand():
    assert set(BY_HAND) == set(interop.FORMATS)
    assert all(name == form.name and form.source for name, form in interop.FORMATS.items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", range(3))
def test_by_hand(name, case):
    vectors = (X16, X12, X12)[case]
    n_bits, inverted, rows = vectors.shape[1], case == 2, BY_HAND[name][case]
    if rows is None:
        with pytest.raises(ValueError, match=f"n_bits must be a multiple of 8 for {name}, got 12"):
            interop.to_format(oracle.pack(vectors), name, n_bits, inverted=inverted)
        return
    data = held(rows, name)
    codes = interop.from_format(data, name, n_bits, inverted=inverted)
    assert codes.dtype == np.uint64
    np.testing.assert_array_equal(codes, oracle.pack(vectors))
    check_same(interop.to_format(oracle.pack(vectors), name, n_bits, inverted=inverted), data)


def test_what_the_documentation_of_vespa_shows():
    vectors = np.array([[1] * 8, [0] * 8, [-1] * 8, [1] + [0] * 7, [2] + [0] * 6 + [1]], np.float32)
    data = np.array([[-1], [0], [0], [-128], [-127]], np.int8)
    check_same(interop.to_format(oracle.pack(vectors), "vespa", 8), data)


def test_what_the_documentation_of_sqlite_vec_shows():
    vectors = np.array([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, -5, -6, -7, -8]], np.float32)
    check_same(interop.to_format(oracle.pack(vectors), "sqlite-vec", 8), [b"\xff", b"\x0f"])


def test_what_sentence_transformers_computes():
    vectors = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    packed = np.packbits(vectors > 0).reshape(40, -1)
    check_same(interop.to_format(oracle.pack(vectors), "ubinary", 64), packed)
    signed = (packed - 128).astype(np.int8)
    check_same(interop.to_format(oracle.pack(vectors), "binary", 64), signed)


def test_second_words_of_weaviate():
    vectors = np.ones((1, 70), np.float32)
    vectors[0, [0, 63, 64, 69]] = -1
    data = np.array([[1 + (1 << 63), 1 + (1 << 5)]], np.uint64)
    check_same(interop.to_format(oracle.pack(vectors), "weaviate", 70), data)
    np.testing.assert_array_equal(interop.from_format(data, "weaviate", 70), oracle.pack(vectors))


def numbers_of(bits, size, first_is_highest):
    """Numbers of ``size`` bits each, by Python's own reading of binary digits."""
    digits = "".join(map(str, bits)) + "0" * (-len(bits) % size)
    pieces = [digits[i : i + size] for i in range(0, len(digits), size)]
    return [int(piece if first_is_highest else piece[::-1], 2) for piece in pieces]


def row_of(vector, name, inverted):
    """A row as a system would make it, one dimension at a time."""
    bits = [int((value > 0) != inverted) for value in vector.tolist()]
    if name == "pgvector":
        return "".join(map(str, bits))
    if name == "weaviate":
        return numbers_of([1 - bit for bit in bits], 64, False)
    little = name in ("packbits-little", "faiss", "sqlite-vec")
    numbers = numbers_of(bits, 8, not little)
    if name == "hex":
        return "".join(f"{number:02x}" for number in numbers)
    if name == "sqlite-vec":
        return bytes(numbers)
    if name in ("binary", "cohere", "voyage"):
        return [number - 128 for number in numbers]
    if name == "vespa":
        return [number - 256 if number > 127 else number for number in numbers]
    return numbers


@st.composite
def cases(draw, max_rows=20, min_bits=1):
    name = draw(st.sampled_from(NAMES))
    n, n_bits = draw(st.integers(1, max_rows)), draw(st.integers(min_bits, 200))
    n_bits = 8 * -(-n_bits // 8) if name in WHOLE_BYTES else n_bits
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return name, rng.standard_normal((n, n_bits)).astype(np.float32), draw(st.booleans())


@given(cases(), st.sampled_from([1, 24, 1 << 20]))
def test_there_and_back(case, block_bytes):
    name, vectors, inverted = case
    n_bits = vectors.shape[1]
    data = held([row_of(vector, name, inverted) for vector in vectors], name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interop.formats, "_BLOCK_BYTES", block_bytes)
        check_same(interop.to_format(oracle.pack(vectors), name, n_bits, inverted=inverted), data)
        codes = interop.from_format(data, name, n_bits, inverted=inverted)
        np.testing.assert_array_equal(codes, oracle.pack(vectors))


@pytest.mark.parametrize("name", NAMES)
def test_no_rows(name):
    none = interop.to_format(np.zeros((0, 2), np.uint64), name, 128)
    assert interop.from_format(none, name, 128).shape == (0, 2)
    assert interop.from_format([], name, 128).shape == (0, 2) or name == "weaviate"


@pytest.mark.parametrize("name", NAMES)
def test_other_ways_to_hold_the_same(name):
    codes = oracle.pack(np.random.default_rng(1).standard_normal((30, 128)))
    data = interop.to_format(codes, name, 128)
    if isinstance(data, np.ndarray):
        wide = np.zeros((30, 2 * data.shape[1]), data.dtype)
        wide[:, ::2] = data
        same = [np.asfortranarray(data), wide[:, ::2], data[::-1][::-1]]
        same += [data.tolist(), tuple(data.tolist())] if data.itemsize == 1 else []
        same += [[row.tobytes() for row in data]] if data.dtype == np.uint8 else []
    else:
        same = [tuple(data), np.array(data, object)]
        if name == "sqlite-vec":
            same += [np.array([list(row) for row in data], np.uint8)]
        else:
            same += [np.array(data), np.array(data, "S"), np.array(data, ">U200")]
    same += [[row.upper() for row in data]] if name == "hex" else []
    for held_otherwise in same:
        np.testing.assert_array_equal(interop.from_format(held_otherwise, name, 128), codes)
    np.testing.assert_array_equal(interop.from_format(data[0], name, 128), codes[:1])


@pytest.mark.parametrize("pad", [0x00, 0x0F, 0x05])
def test_bits_beyond_the_last_of_inverted_codes_may_be_anything(pad):
    data = np.array([[0x4E, 0x90 | pad]], np.uint8)
    codes = interop.from_format(data, "packbits", 12, inverted=True)
    np.testing.assert_array_equal(codes, oracle.pack(X12))
    words = np.array([[2418 | pad << 12]], np.uint64)
    np.testing.assert_array_equal(interop.from_format(words, "weaviate", 12), oracle.pack(X12))


@pytest.mark.parametrize("name", NAMES)
def test_memory_stays_near_what_goes_in_and_out(name):
    codes = np.random.default_rng(0).integers(0, 2**64, (20_000, 16), np.uint64)
    tracemalloc.start()
    try:
        data = interop.to_format(codes, name, 1024)
        out_bytes, peak = tracemalloc.get_traced_memory()
        assert peak < out_bytes + 6_000_000
        tracemalloc.reset_peak()
        interop.from_format(data, name, 1024)
        assert tracemalloc.get_traced_memory()[1] < out_bytes + codes.nbytes + 14_000_000
    finally:
        tracemalloc.stop()


# Detection.

EQUAL = [
    {"packbits", "ubinary", "usearch"},
    {"packbits-little", "faiss", "sqlite-vec"},
    {"binary", "cohere", "voyage"},
    {"vespa"},
    {"pgvector"},
    {"weaviate"},
    {"hex"},
]


@given(cases(max_rows=4, min_bits=9), st.sampled_from([0.0, 0.03, 0.1]))
def test_finds_every_format(case, noise):
    name, vectors, inverted = case
    rng = np.random.default_rng(vectors.size)
    vectors = rng.standard_normal((len(vectors) + 100, vectors.shape[1]))
    coded = np.where(rng.random(vectors.shape) < noise, -vectors, vectors)
    data = held([row_of(vector, name, inverted) for vector in coded], name)
    found = interop.detect_format(data, vectors)
    assert {found.format, *found.same_as} == next(names for names in EQUAL if name in names)
    assert found.inverted == inverted
    assert found.agreement == ((coded > 0) == (vectors > 0)).mean()
    assert found.agreement > found.runner_up_agreement
    assert found.confidence > 0.999
    codes = interop.from_format(data, found.format, vectors.shape[1], inverted=found.inverted)
    np.testing.assert_array_equal(codes, oracle.pack(coded))


def test_tells_the_two_kinds_of_int8_apart():
    vectors = np.random.default_rng(3).standard_normal((2, 256)).astype(np.float32)
    for name, other in [("binary", "vespa"), ("vespa", "binary")]:
        data = held([row_of(vector, name, False) for vector in vectors], name)
        found = interop.detect_format(data, vectors)
        assert (found.format, found.agreement) == (name, 1.0)
        assert (found.runner_up, found.runner_up_inverted) == (other, False)
        assert found.runner_up_agreement == 0.875
        assert found.confidence > 0.999
        assert interop.detect_format(data, vectors, formats=[other]).agreement == 0.875


def test_lists_of_integers_may_be_of_several_dtypes():
    vectors = np.random.default_rng(4).standard_normal((4, 64))
    vectors[:, ::8] = -1  # no byte above 127
    data = np.packbits(vectors > 0, axis=1).tolist()
    found = interop.detect_format(data, vectors)
    assert found.format == "packbits"
    assert set(found.same_as) == {"ubinary", "usearch", "vespa"}


def test_two_characters_may_be_bits_or_a_byte():
    vectors = np.array([[1.0, -1], [-1, -1], [1, 1], [-1, 1]] * 10)
    found = interop.detect_format(["10", "00", "11", "01"] * 10, vectors)
    assert (found.format, found.same_as, found.agreement) == ("pgvector", (), 1.0)
    assert found.confidence > 0.99
    found = interop.detect_format(["80", "00", "c0", "40"] * 10, vectors)
    assert (found.format, found.same_as, found.agreement) == ("hex", (), 1.0)


def test_zeros_say_nothing():
    vectors = np.random.default_rng(5).standard_normal((2, 100))
    vectors[:, ::3] = 0.0
    vectors[:, 3::6] = -0.0
    for data in (np.packbits(vectors > 0, axis=1), np.packbits(vectors >= 0, axis=1)):
        found = interop.detect_format(data, vectors)
        assert (found.format, found.agreement) == ("packbits", 1.0)


def test_confidence_by_hand():
    # One byte, the same from both ends, of int8 kinds that differ in the first dimension. Error
    # rate: (0 + 1) / (8 + 2). The right reading has 8 bits right, the other kind 7, their
    # inversions 0 and 1, and chance is 2 ** -8.
    signs = np.array([1.0, -1, -1, 1, 1, -1, -1, 1])
    found = interop.detect_format(np.array([0b10011001 - 128], np.int8), signs)
    likelihoods = [0.9**right * 0.1 ** (8 - right) for right in (8, 7, 0, 1)]
    expected = likelihoods[0] / (sum(likelihoods) + 2**-8)
    assert found.format == "binary"
    assert found.confidence == pytest.approx(expected, rel=1e-12)
    assert 0.8 < expected < 0.9


@pytest.mark.parametrize(
    ("byte", "signs"),
    [
        (0b10011001, [1, -1, -1, 1, 1, -1, -1, 1]),  # the same from both ends
        (0b11111111, [1] * 8),
        (0b00000000, [-1] * 8),
    ],
)
@pytest.mark.parametrize("n_rows", [1, 50])
def test_says_so_where_the_pairs_cannot_tell(byte, signs, n_rows):
    data, vectors = np.full((n_rows, 4), byte, np.uint8), np.array([signs * 4] * n_rows, np.float32)
    found = interop.detect_format(data, vectors)
    assert found.format == "packbits"
    assert found.runner_up == "packbits-little"
    assert found.agreement == found.runner_up_agreement == 1.0
    assert 0.4 < found.confidence <= 0.5
    assert not {"faiss", "packbits-little"} & set(found.same_as)


def test_a_single_bit_is_not_enough():
    found = interop.detect_format(["1"], np.array([[0.5]]))
    assert found.format == "pgvector"
    assert found.confidence < 0.6


def test_there_may_be_one_reading_only():
    # Ones beyond the last bit: only inverted codes may have them.
    data = np.array([[0x4E, 0x9F]], np.uint8)
    found = interop.detect_format(data, X12, formats=["packbits"])
    assert (found.format, found.inverted, found.agreement) == ("packbits", True, 1.0)
    assert (found.runner_up, found.runner_up_agreement) == (None, 0.0)


def test_confidence_is_honest():
    """Over small random cases, answers given with confidence are as often right as they say."""
    rng = np.random.default_rng(6)
    sure, right = [], []
    for _ in range(600):
        name = str(rng.choice(["packbits", "packbits-little", "binary", "vespa"]))
        inverted = bool(rng.integers(2))
        vectors = rng.standard_normal((1, rng.choice([8, 16, 32])))
        coded = np.where(rng.random(vectors.shape) < 0.1, -vectors, vectors)
        data = held([row_of(coded[0], name, inverted)], name)
        try:
            found = interop.detect_format(data, vectors)
        except ValueError:
            continue
        sure.append(found.confidence)
        right.append((found.format, found.inverted) == (name, inverted))
    sure, right = np.array(sure), np.array(right)
    assert len(sure) > 500
    assert abs(sure.mean() - right.mean()) < 0.05
    assert right[sure > 0.99].mean() > 0.98
    assert (sure > 0.99).sum() > 100


@pytest.mark.parametrize("name", NAMES)
def test_unrelated_vectors_fit_nothing(name):
    rng = np.random.default_rng(7)
    data = interop.to_format(oracle.pack(rng.standard_normal((5, 512))), name, 512)
    with pytest.raises(ValueError, match=r"data fit no format: the best, .* of 2560 signs"):
        interop.detect_format(data, rng.standard_normal((5, 512)))


# Bad input.

PACKED = np.array([[0xB1, 0x60], [0xB1, 0x61]], np.uint8)
WORDS = np.array([[5], [1 << 12]], np.uint64)


def reads(data, name="packbits", n_bits=12, **options):
    return lambda: interop.from_format(data, name, n_bits, **options)


def writes(codes, name="packbits", n_bits=12, **options):
    return lambda: interop.to_format(codes, name, n_bits, **options)


def detects(data, vectors, **options):
    return lambda: interop.detect_format(data, vectors, **options)


BAD = [
    (reads(PACKED, "zip"), ValueError, "format must be one of 'packbits', "),
    (reads(PACKED, None), ValueError, "'hex', got None"),
    (reads(PACKED, n_bits=0), ValueError, "n_bits must be at least 1, got 0"),
    (reads(PACKED, n_bits=12.0), TypeError, "n_bits must be an integer, got 12.0 of type float"),
    (reads(PACKED, inverted=1), TypeError, "inverted must be True or False, got 1"),
    # dtypes
    (reads(PACKED, "vespa"), TypeError, "data must be int8 for vespa, got uint8"),
    (reads(PACKED.view(np.int8)), TypeError, "data must be uint8 for packbits, got int8"),
    (reads(PACKED.astype(int)), TypeError, "data must be uint8 for packbits, got int64"),
    (reads(PACKED > 0), TypeError, "data must be uint8 for packbits, got bool"),
    (reads(PACKED, "weaviate"), TypeError, "data must be uint64 for weaviate, got uint8"),
    (reads([[5]], "weaviate"), TypeError, "data must be uint64 for weaviate, got int64"),
    (reads(WORDS.astype(">u8"), "weaviate"), TypeError, "for weaviate, got >u8"),
    (reads([[1.0, 2.0]]), TypeError, "data must be uint8 for packbits, got float64"),
    (reads(["0101"]), TypeError, "data must be uint8 for packbits, got <U4"),
    (reads([b"ab"], "vespa"), TypeError, "data must be int8 for vespa, got |S2"),
    (reads(np.array([b"ab"]), "sqlite-vec"), TypeError, "for sqlite-vec, got |S2"),
    (reads([[1, None]]), TypeError, "data must be uint8 for packbits, got object"),
    (reads(None), TypeError, "data must be uint8 for packbits, got object"),
    # widths
    (reads(PACKED, n_bits=17), ValueError, "(n, 3) or (3,) for 17 bits as packbits, got (2, 2)"),
    (reads(PACKED[None]), ValueError, "(n, 2) or (2,) for 12 bits as packbits, got (1, 2, 2)"),
    (reads(WORDS, "weaviate", 65), ValueError, "for 65 bits as weaviate, got (2, 1)"),
    (reads([[1, 2], [3]]), ValueError, "data row 1 has 1 values, 12 bits take 2 as packbits"),
    (reads([b"ab", b"a"]), ValueError, "data row 1 has 1 values, 12 bits take 2 as packbits"),
    (reads([[[1], [2, 3]]]), ValueError, "data must be an array: "),
    (reads([b"ab", [1, 2]]), ValueError, "data must be an array: "),
    # values
    (reads([[1, 2], [3, 256]]), ValueError, "data row 1 holds 256, packbits takes 0 to 255"),
    (reads([1, -1]), ValueError, "data row 0 holds -1, packbits takes 0 to 255"),
    (reads([[0, 128]], "binary"), ValueError, "data row 0 holds 128, binary takes -128 to 127"),
    # bits beyond the last
    (reads(PACKED), ValueError, "data row 1 has ones beyond bit 12"),
    (reads([b"\x01\x00", b"\x01\x10"], "sqlite-vec"), ValueError, "row 1 has ones beyond"),
    (reads(np.array([[0, 1]], np.int8), "binary"), ValueError, "data row 0 has ones beyond"),
    (reads(WORDS, "weaviate", inverted=True), ValueError, "data row 1 has ones beyond bit 12"),
    (reads(["b160", "b16f"], "hex"), ValueError, "data row 1 has ones beyond bit 12"),
    # text
    (reads(["01"] * 2, "pgvector", 3), ValueError, "row 0 has 2 characters, 3 bits take 3"),
    (reads(["011", "0111"], "pgvector", 3), ValueError, "row 1 has 4 characters, 3 bits take 3"),
    (reads(np.array(["011", "01"]), "pgvector", 3), ValueError, "row 1 has 2 characters, 3 bits"),
    (reads(["011", "012"], "pgvector", 3), ValueError, "row 1 has '2' at character 2, expected"),
    (reads(["0 1"], "pgvector", 3), ValueError, "data row 0 has ' ' at character 1"),
    (reads(["01\u0661"], "pgvector", 3), ValueError, "data row 0 has '\u0661' at character 2"),
    (reads(["01\ud800"], "pgvector", 3), ValueError, "data row 0 has '\\ud800' at character 2"),
    (reads([b"011"], "pgvector", 3), TypeError, "data row 0 must be text for pgvector, got b'011'"),
    (reads(["011", None], "pgvector", 3), TypeError, "data row 1 must be text"),
    (reads(b"011", "pgvector", 3), TypeError, "data row 0 must be text for pgvector, got b'011'"),
    (reads(np.zeros(3), "pgvector", 3), TypeError, "data must be text for pgvector"),
    (reads(np.array([["0"]]), "pgvector", 1), TypeError, "got <U1 of shape (1, 1)"),
    (reads(["b160", "b16"], "hex"), ValueError, "row 1 has 3 characters, 12 bits take 4"),
    (reads(["b16g"], "hex"), ValueError, "row 0 has 'g' at character 3, expected digits of base"),
    (reads(["0xb1"], "hex"), ValueError, "data row 0 has 'x' at character 1"),
    # out
    (writes(WORDS << np.uint64(4)), ValueError, "codes row 1 has ones beyond bit 12"),
    (writes(WORDS, n_bits=65), ValueError, "codes have 1 words a code, 65 bits take 2"),
    (writes(PACKED), TypeError, "codes must be native uint64 words"),
    (writes(WORDS, "zip"), ValueError, "format must be one of 'packbits', "),
    (writes(WORDS, inverted=None), TypeError, "inverted must be True or False, got None"),
    (writes(WORDS, "faiss"), ValueError, "n_bits must be a multiple of 8 for faiss, got 12"),
    # detection
    (detects(PACKED, X12), ValueError, "data have 2 rows, vectors 1"),
    (detects(PACKED[:1], X12.astype(int)), TypeError, "vectors must be float16, float32"),
    (detects(PACKED[:1], X12 * np.nan), ValueError, "vectors row 0 holds NaN or infinity"),
    (detects(PACKED[:1], X12 * 0), ValueError, "vectors of shape (1, 12) hold no value but zero"),
    (detects(PACKED[:0], X12[:0]), ValueError, "vectors of shape (0, 12) hold no value but zero"),
    (detects(PACKED[:1], X12, formats=[]), ValueError, "formats must name one format at least"),
    (detects(PACKED[:1], X12, formats=["zip"]), ValueError, "format must be one of 'packbits', "),
    (detects(PACKED[:1], X16[:, :4]), ValueError, "packbits: data must have shape (n, 1)"),
    (detects(PACKED[:1], X12, formats=["hex"]), ValueError, "no format: hex: data must be text"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_rows_are_counted_over_blocks(monkeypatch):
    monkeypatch.setattr(interop.formats, "_BLOCK_BYTES", 8)
    packed = np.zeros((100, 2), np.uint8)
    packed[77] = 1
    with pytest.raises(ValueError, match="data row 77 has ones beyond bit 12"):
        interop.from_format(packed, "packbits", 12)
    with pytest.raises(ValueError, match="data row 60 has 'x' at character 1"):
        interop.from_format(["01"] * 60 + ["0x"], "pgvector", 2)
    with pytest.raises(ValueError, match="data row 50 has 1 characters"):
        interop.from_format(np.array(["01"] * 50 + ["0"]), "pgvector", 2)
