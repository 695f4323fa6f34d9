"""Bad input: the exception, its message, and that nothing stored has changed."""

import re

import numpy as np
import pytest

import hamming_engine as he
from hamming_engine.quantize import HeadQuantizer, ITQQuantizer, SignQuantizer
from hamming_engine.store.errors import FormatError, LockedError, StoreError

CODES = np.zeros((5, 2), np.uint64)
FACTORS = np.ones((5, 2), np.float32)
VECTOR = np.ones((2, 8), np.float32)
NAN = np.array([[1.0] * 8, [1.0] * 7 + [np.nan]], np.float32)


class Liar:
    """Says that it has more rows than it gives."""

    shape, dtype = (10, 8), np.dtype(np.float32)

    def __getitem__(self, rows):
        return VECTOR[rows]


def index():
    made = he.FlatIndex(100)
    made.add(CODES)
    return made


def index_with_factors():
    made = he.FlatIndex(100, factors=True)
    made.add(CODES, FACTORS)
    return made


FUNCTIONS = [
    # pack_signs
    (lambda: he.pack_signs(np.ones((2, 3), np.int32)), TypeError, "embeddings must be float16, float32 or float64, got int32"),
    (lambda: he.pack_signs(np.ones((2, 3), bool)), TypeError, "embeddings must be float16, float32 or float64, got bool"),
    (lambda: he.pack_signs(np.ones((2, 3), complex)), TypeError, "embeddings must be float16, float32 or float64, got complex128"),
    (lambda: he.pack_signs(np.ones((2, 3), object)), TypeError, "embeddings must be float16, float32 or float64, got object"),
    (lambda: he.pack_signs(np.ones((2, 3), np.longdouble)), TypeError, "embeddings must be float16, float32 or float64, got"),
    (lambda: he.pack_signs([[1.0], [1.0, 2.0]]), ValueError, "embeddings must be an array: setting an array element with a sequence"),
    (lambda: he.search([[1], [2, 3]], CODES), ValueError, "query_codes must be an array: setting an array element with a sequence"),
    (lambda: he.pack_signs("text"), TypeError, "embeddings must be float16, float32 or float64, got <U4"),
    (lambda: he.pack_signs(np.float32(1)), ValueError, "embeddings must have shape (n, dim) or (dim,), got ()"),
    (lambda: he.pack_signs(np.ones((2, 3, 4))), ValueError, "embeddings must have shape (n, dim) or (dim,), got (2, 3, 4)"),
    (lambda: he.pack_signs(np.ones((2, 0))), ValueError, "embeddings must have at least one dimension, got shape (2, 0)"),
    (lambda: he.pack_signs(NAN), ValueError, "embeddings row 1 holds NaN or infinity"),
    (lambda: he.pack_signs(np.array([np.inf])), ValueError, "embeddings row 0 holds NaN or infinity"),
    (lambda: he.pack_signs(VECTOR, threads=0), ValueError, "threads must be at least 1, got 0"),
    (lambda: he.pack_signs(VECTOR, threads=1.0), TypeError, "threads must be an integer, got 1.0 of type float"),
    (lambda: he.pack_signs(VECTOR, threads=True), TypeError, "threads must be an integer, got the bool True"),
    # unpack_codes
    (lambda: he.unpack_codes(CODES, 129), ValueError, "codes have 2 words a code, 129 bits take 3"),
    (lambda: he.unpack_codes(CODES, 0), ValueError, "n_bits must be at least 1, got 0"),
    (lambda: he.unpack_codes(CODES.view(np.uint8), 100), TypeError, "codes must be native uint64 words, as pack_signs returns them; got uint8"),
    (lambda: he.unpack_codes(~CODES, 100), ValueError, "codes row 0 has ones beyond bit 100"),
    # search
    (lambda: he.search(CODES, CODES.astype(np.int64)), TypeError, "codes must be native uint64 words, as pack_signs returns them; got int64"),
    (lambda: he.search(CODES.astype(">u8"), CODES), TypeError, "query_codes must be native uint64 words, as pack_signs returns them; got >u8"),
    (lambda: he.search(CODES > 0, CODES), TypeError, "query_codes must be native uint64 words, as pack_signs returns them; got bool"),
    (lambda: he.search(CODES[:, :1], CODES), ValueError, "query_codes have 1 words a code, codes have 2"),
    (lambda: he.search(np.uint64(1), CODES), ValueError, "query_codes must have shape (n, n_words) or (n_words,), got ()"),
    (lambda: he.search(CODES, CODES[None]), ValueError, "codes must have shape (n, n_words) or (n_words,), got (1, 5, 2)"),
    (lambda: he.search(CODES, CODES[:, :0]), ValueError, "codes must have at least one word a code, got shape (5, 0)"),
    (lambda: he.search(CODES, CODES, 0), ValueError, "k must be at least 1, got 0"),
    (lambda: he.search(CODES, CODES, -3), ValueError, "k must be at least 1, got -3"),
    (lambda: he.search(CODES, CODES, True), TypeError, "k must be an integer, got the bool True"),
    (lambda: he.search(CODES, CODES, 3.0), TypeError, "k must be an integer, got 3.0 of type float"),
    (lambda: he.search(CODES, CODES, "3"), TypeError, "k must be an integer, got '3' of type str"),
    (lambda: he.search(CODES, CODES, None), TypeError, "k must be an integer, got None of type NoneType"),
    (lambda: he.search(CODES, CODES, 1, threads=-1), ValueError, "threads must be at least 1, got -1"),
    (lambda: he.search(CODES, CODES, 1, where=np.ones(4, bool)), ValueError, "where is a mask of shape (4,), expected one bool a row: (5,)"),
    (lambda: he.search(CODES, CODES, 1, where=np.ones((5, 1), bool)), ValueError, "where is a mask of shape (5, 1), expected one bool a row: (5,)"),
    (lambda: he.search(CODES, CODES, 1, where=[1, 5]), ValueError, "where names row 5, there are 5"),
    (lambda: he.search(CODES, CODES, 1, where=[-1]), ValueError, "where names row -1, there are 5"),
    (lambda: he.search(CODES, CODES, 1, where=[0.5]), TypeError, "where must be a bool mask or a 1-d array of row numbers, got float64 of shape (1,)"),
    (lambda: he.search(CODES, CODES, 1, where=3), TypeError, "where must be a bool mask or a 1-d array of row numbers, got int64 of shape ()"),
    (lambda: he.search(CODES, CODES, 1, where=[[1], [2, 3]]), ValueError, "where must be an array: setting an array element with a sequence"),
    (lambda: he.search(CODES, CODES, 1, where=["a"]), TypeError, "where must be a bool mask or a 1-d array of row numbers, got <U1"),
    (lambda: he.search(np.zeros((1, 131_072), np.uint64), np.zeros((1, 131_072), np.uint64)), ValueError, "codes must have at most 131071 words a code, got 131072"),
    # FlatIndex
    (lambda: he.FlatIndex(0), ValueError, "n_bits must be at least 1, got 0"),
    (lambda: he.FlatIndex(64, kernel="fast"), ValueError, "kernel must be one of 'plain', 'popcount', 'table', None, got 'fast'"),
    (lambda: index().remove([5]), ValueError, "rows names row 5, there are 5"),
    (lambda: index().remove([0.5]), TypeError, "rows must be a bool mask or a 1-d array of row numbers, got float64 of shape (1,)"),
    (lambda: index().remove(np.ones(4, bool)), ValueError, "rows is a mask of shape (4,), expected one bool a row: (5,)"),
    (lambda: he.FlatIndex(64.0), TypeError, "n_bits must be an integer, got 64.0 of type float"),
    (lambda: he.FlatIndex(1 << 30), ValueError, "n_bits must be at most 8388544, got 1073741824"),
    (lambda: index().add(np.zeros((1, 3), np.uint64)), ValueError, "codes have 3 words a code, 100 bits take 2"),
    (lambda: index().add(~CODES), ValueError, "codes row 0 has ones beyond bit 100: pad bits must be zero, is n_bits right?"),
    (lambda: index().add(VECTOR), TypeError, "codes must be native uint64 words, as pack_signs returns them; got float32"),
    (lambda: index().search(np.zeros(3, np.uint64)), ValueError, "query_codes have 3 words a code, 100 bits take 2"),
    (lambda: index().search(~CODES), ValueError, "query_codes row 0 has ones beyond bit 100"),
    (lambda: index().range_search(CODES, -1), ValueError, "radius must be at least 0, got -1"),
    (lambda: index().range_search(CODES, 1.5), TypeError, "radius must be an integer, got 1.5 of type float"),
    (lambda: index().range_search(CODES, 1, where=np.ones(9, bool)), ValueError, "where is a mask of shape (9,), expected one bool a row: (5,)"),
    # FlatIndex with float queries and factors
    (lambda: index().search(np.ones((1, 99))), ValueError, "query_codes have 99 dimensions, 100 were expected"),
    (lambda: index().search(np.ones((1, 1, 100))), ValueError, "query_codes must have shape (n, dim) or (dim,), got (1, 1, 100)"),
    (lambda: index().search(np.float32(1)), ValueError, "query_codes must have shape (n, dim) or (dim,), got ()"),
    (lambda: index().search(np.ones(100, np.longdouble)), TypeError, "query_codes must be float16, float32 or float64, got"),
    (lambda: index().search(np.ones(100, int)), TypeError, "query_codes must be native uint64 words, as pack_signs returns them; got int64"),
    (lambda: index().search(np.full(100, np.nan)), ValueError, "query_codes must be finite in float32, got NaN, infinity or beyond it"),
    (lambda: index().search(np.full(100, -np.inf)), ValueError, "query_codes must be finite in float32, got NaN, infinity or beyond it"),
    (lambda: index().search(np.full(100, 1e300)), ValueError, "query_codes must be finite in float32, got NaN, infinity or beyond it"),
    (lambda: index().search(np.full(100, 3e38)), ValueError, "query_codes and factors are too large: scores do not fit into float32"),
    (lambda: index().search(np.ones(100), method="fast"), ValueError, "method must be one of 'hamming', 'asymmetric', None, got 'fast'"),
    (lambda: index().search(np.ones(100), method="hamming"), TypeError, "query_codes must be native uint64 words, as pack_signs returns them; got float64"),
    (lambda: index().search(CODES, method="asymmetric"), TypeError, "query_codes must be float16, float32 or float64, got uint64"),
    (lambda: index().search(np.ones(100), 0), ValueError, "k must be at least 1, got 0"),
    (lambda: index().search(np.ones(100), threads=0), ValueError, "threads must be at least 1, got 0"),
    (lambda: index().search(np.ones(100), where=np.ones(9, bool)), ValueError, "where is a mask of shape (9,), expected one bool a row: (5,)"),
    (lambda: index().search([[1.0], [1.0, 2.0]]), ValueError, "query_codes must be an array: setting an array element with a sequence"),
    (lambda: index().add(CODES, FACTORS), ValueError, "factors must be None: the index has none, see its factors=True"),
    (lambda: index_with_factors().add(CODES), ValueError, "factors must be given: the index has two for each row"),
    (lambda: index_with_factors().add(CODES, FACTORS[:4]), ValueError, "factors must be two a row: got 4 for 5 codes"),
    (lambda: index_with_factors().add(CODES, FACTORS[:, :1]), ValueError, "factors have 1 dimensions, 2 were expected"),
    (lambda: index_with_factors().add(CODES, FACTORS.astype(int)), TypeError, "factors must be float16, float32 or float64, got int64"),
    (lambda: index_with_factors().add(CODES, -FACTORS), ValueError, "factors must be finite, and the first of each row at least 0"),
    (lambda: index_with_factors().add(CODES, FACTORS * np.nan), ValueError, "factors must be finite, and the first of each row at least 0"),
    (lambda: index_with_factors().add(CODES, np.full((5, 2), 1e300)), ValueError, "factors must be finite, and the first of each row at least 0"),
    (lambda: index_with_factors().add(~CODES, FACTORS), ValueError, "codes row 0 has ones beyond bit 100"),
]  # fmt: skip


def check(call, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert isinstance(caught.value, error)


@pytest.mark.parametrize(("call", "error", "message"), FUNCTIONS)
def test_functions_and_index(call, error, message):
    check(call, error, message)


# Calls of a collection with the 10 rows 0 to 9 and 8 dimensions.
ON_A_COLLECTION = [
    (lambda c: c.append(np.ones((2, 9))), ValueError, "embeddings have 9 dimensions, 8 were expected"),
    (lambda c: c.append(np.ones(7)), ValueError, "embeddings have 7 dimensions, 8 were expected"),
    (lambda c: c.append(np.ones((1, 2, 8))), ValueError, "embeddings must have shape (n, dim) or (dim,), got (1, 2, 8)"),
    (lambda c: c.append(np.float32(1)), ValueError, "embeddings must have shape (n, dim) or (dim,), got ()"),
    (lambda c: c.append(np.ones((2, 8), int)), TypeError, "embeddings must be float16, float32 or float64, got int64"),
    (lambda c: c.append(np.ones((2, 8), bool)), TypeError, "embeddings must be float16, float32 or float64, got bool"),
    (lambda c: c.append(np.ones((2, 8), complex)), TypeError, "embeddings must be float16, float32 or float64, got complex128"),
    (lambda c: c.append(np.ones((2, 8), object)), TypeError, "embeddings must be float16, float32 or float64, got object"),
    (lambda c: c.append(np.zeros((0, 9))), ValueError, "embeddings have 9 dimensions, 8 were expected"),
    (lambda c: c.append(NAN), ValueError, "embeddings row 1 holds NaN or infinity"),
    (lambda c: c.append(np.full((2, 8), -np.inf)), ValueError, "embeddings row 0 holds NaN or infinity"),
    (lambda c: c.append(np.full((1, 8), 1e6)), ValueError, "embeddings row 0 holds 1000000.0, which does not fit into float16"),
    (lambda c: c.append(np.full((2, 8), 1e-9)), ValueError, "embeddings row 0 is too small for float16, all of it becomes zero"),
    (lambda c: c.append([[1.0] * 8, [1.0] * 7]), ValueError, "embeddings must be an array: setting an array element with a sequence"),
    (lambda c: c.append(iter([(VECTOR, [50, 51], None, 3)])), ValueError, "embeddings block 0 must be (block, ids) or (block, ids, columns), got 4 items"),
    (lambda c: c.append(VECTOR, ids=[5, 1 << 70]), ValueError, "ids must fit into int64, got 1180591620717411303424"),
    (lambda c: c.append(VECTOR, ids=[[1], [1, 2]]), ValueError, "ids must be an array: setting an array element with a sequence"),
    (lambda c: c.search([[1.0], [1.0, 2.0]]), ValueError, "queries must be an array: setting an array element with a sequence"),
    (lambda c: c.append(VECTOR, ids=[1]), ValueError, "ids must be one a row: got 1 ids for 2 rows"),
    (lambda c: c.append(VECTOR[:0], ids=[77]), ValueError, "ids must be one a row: got 1 ids for 0 rows"),
    (lambda c: c.append(VECTOR, ids=[-1, 50]), ValueError, "ids must not be negative, got -1"),
    (lambda c: c.append(VECTOR, ids=[1.0, 50.0]), TypeError, "ids must be all integers or all text, got float64"),
    (lambda c: c.append(VECTOR, ids=[True, False]), TypeError, "ids must be all integers or all text, got bool"),
    (lambda c: c.append(VECTOR, ids=np.array([1 << 63, 5], np.uint64)), ValueError, "ids must fit into int64, got 9223372036854775808"),
    (lambda c: c.append(VECTOR, ids=[50, 50]), ValueError, "ids must be distinct, 50 comes twice"),
    (lambda c: c.append(VECTOR, ids=[50, 3]), ValueError, "ids must be new, 3 is stored already"),
    (lambda c: c.append(VECTOR, ids=["a", "b"]), TypeError, "ids must be int64 as in the collection, got utf8"),
    (lambda c: c.append(VECTOR, ids=["a", 1]), TypeError, "ids must be all integers or all text"),
    (lambda c: c.append(VECTOR, ids=[b"a", b"b"]), TypeError, "ids must be all integers or all text"),
    (lambda c: c.append(VECTOR, ids=[[50], [51]]), ValueError, "ids must have one dimension, got shape (2, 1)"),
    (lambda c: c.append(VECTOR, ids=50), ValueError, "ids must have one dimension, got shape ()"),
    (lambda c: c.append(VECTOR, threads=0), ValueError, "threads must be at least 1, got 0"),
    (lambda c: c.append(iter([VECTOR]), ids=[50, 51]), TypeError, "ids and columns must be None with an iterator: let it yield (block, ids, columns)"),
    (lambda c: c.append(iter([VECTOR, np.ones((2, 9), np.float32)])), ValueError, "embeddings block 1 have 9 dimensions, 8 were expected"),
    (lambda c: c.append(iter([VECTOR, NAN])), ValueError, "embeddings row 3 holds NaN or infinity"),
    (lambda c: c.append(iter([VECTOR, np.ones((2, 8))])), TypeError, "a block of float64 follows blocks of float32"),
    (lambda c: c.append(iter([(VECTOR, [50, 51]), VECTOR])), TypeError, "embeddings block 1 must come with ids, as all blocks or none do"),
    (lambda c: c.append(iter([(VECTOR, [50])])), ValueError, "ids of block 0 must be one a row: got 1 ids for 2 rows"),
    (lambda c: c.append(iter([(VECTOR, [50, 51]), (VECTOR, [51, 52])])), ValueError, "ids must be distinct, 51 comes twice"),
    (lambda c: c.append(iter([(VECTOR, [50, 51]), (VECTOR, ["a", "b"])])), TypeError, "ids of block 1 must be int64 as before, got utf8"),
    (lambda c: c.append(Liar()), ValueError, "embeddings gave rows 0 to 9 as float32 of shape (2, 8), expected float32 of shape (10, 8)"),
    (lambda c: c.search(np.ones(9)), ValueError, "queries have 9 dimensions, 8 were expected"),
    (lambda c: c.search(np.ones((1, 1, 8))), ValueError, "queries must have shape (n, dim) or (dim,), got (1, 1, 8)"),
    (lambda c: c.search(np.ones(8, int)), TypeError, "queries must be float16, float32 or float64, got int64"),
    (lambda c: c.search(NAN), ValueError, "queries row 1 holds NaN or infinity"),
    (lambda c: c.search(VECTOR, 0), ValueError, "k must be at least 1, got 0"),
    (lambda c: c.search(VECTOR, 1.0), TypeError, "k must be an integer, got 1.0 of type float"),
    (lambda c: c.search(VECTOR, 1, oversample=0.5), ValueError, "oversample must be at least 1 and at most 2**40, got 0.5"),
    (lambda c: c.search(VECTOR, 1, oversample=float("nan")), ValueError, "oversample must be at least 1 and at most 2**40, got nan"),
    (lambda c: c.search(VECTOR, 1, oversample=float("inf")), ValueError, "oversample must be at least 1 and at most 2**40, got inf"),
    (lambda c: c.search(VECTOR, 1, oversample=10**400), ValueError, "oversample must be at least 1 and at most 2**40, got 1000"),
    (lambda c: c.search(VECTOR, 1, oversample=True), TypeError, "oversample must be a number, got True"),
    (lambda c: c.search(VECTOR, 1, oversample="4"), TypeError, "oversample must be a number or 'auto', got '4'"),
    (lambda c: c.search(VECTOR, 1, where=np.ones(9, bool)), ValueError, "where is a mask of shape (9,), expected one bool a row: (10,)"),
    (lambda c: c.search(VECTOR, 1, where=["a"]), TypeError, "where must be a bool mask or int64 ids, got utf8"),
    (lambda c: c.search(VECTOR, 1, where=[0.5]), TypeError, "where must be all integers or all text, got float64"),
    (lambda c: c.search(VECTOR, 1, where=[-1]), ValueError, "where must not be negative, got -1"),
    (lambda c: c.search(VECTOR, 1, threads=0), ValueError, "threads must be at least 1, got 0"),
    (lambda c: c.search(VECTOR, 1, method="fast"), ValueError, "method must be one of 'hamming', 'asymmetric', got 'fast'"),
    (lambda c: c.search(VECTOR, 1, method=1), ValueError, "method must be one of 'hamming', 'asymmetric', got 1"),
    (lambda c: c.search(VECTOR, 1, oversample="fast"), TypeError, "oversample must be a number or 'auto', got 'fast'"),
    (lambda c: c.search(VECTOR, 1, oversample="Auto"), TypeError, "oversample must be a number or 'auto', got 'Auto'"),
    (lambda c: c.search(VECTOR, 1, oversample=[4]), TypeError, "oversample must be a number, got [4]"),
    (lambda c: c.search(VECTOR, 1, oversample="fast", rerank=False), TypeError, "oversample must be a number or 'auto', got 'fast'"),
    (lambda c: c.search(VECTOR, 1, certify=True), ValueError, "certify needs a quantizer that corrects scores, 'rabitq' or 'local_search', and method 'asymmetric'; got 'sign' and 'asymmetric'"),
    (lambda c: c.search(VECTOR, 1, oversample="auto"), ValueError, "certify needs a quantizer that corrects scores, 'rabitq' or 'local_search', and method 'asymmetric'; got 'sign' and 'asymmetric'"),
    (lambda c: c.search(VECTOR, 1, certify=True, rerank=False), ValueError, "certify needs stored vectors and rerank=True: exact scores tell it"),
    (lambda c: c.search(VECTOR, 1, where=lambda _: None), ValueError, "where must have one dimension, got shape ()"),
    (lambda c: c.search(VECTOR, 1, where=lambda _: np.ones(9, bool)), ValueError, "where is a mask of shape (9,), expected one bool a row: (10,)"),
    (lambda c: c.search(VECTOR, 1, columns=["year"]), KeyError, "no column 'year', the collection has []"),
    (lambda c: c.search(VECTOR, 1, columns="year"), KeyError, "no column 'year', the collection has []"),
    (lambda c: c.search(VECTOR, 1, columns=5), TypeError, "columns must be names of columns, got 5"),
    (lambda c: c.search(VECTOR, 1, columns=[[1]]), TypeError, "columns must be names of columns, got [[1]]"),
    (lambda c: c.columns["year"], KeyError, "no column 'year', the collection has []"),
    (lambda c: c.append(VECTOR, columns=[1, 2]), TypeError, "columns must map names to arrays, got list"),
    (lambda c: c.append(VECTOR, columns={"year": [1]}), ValueError, "columns['year'] must have one value a row: got 1 for 2 rows"),
    (lambda c: c.append(VECTOR, columns={"year": [1, 2]}), ValueError, "columns ['year'] are not in this collection, it has []: they are fixed with its first rows"),
    (lambda c: c.append(iter([VECTOR]), columns={"year": [1, 2]}), TypeError, "ids and columns must be None with an iterator: let it yield (block, ids, columns)"),
    (lambda c: c.append(iter([(VECTOR, None, {"year": [1]})])), ValueError, "columns['year'] must have one value a row: got 1 for 2 rows"),
    (lambda c: c.append(iter([(VECTOR,)])), ValueError, "embeddings block 0 must be (block, ids) or (block, ids, columns), got 1 items"),
    (lambda c: c.upsert(VECTOR), ValueError, "ids must be given: they say which rows are replaced"),
    (lambda c: c.upsert(VECTOR, [3, 3]), ValueError, "ids must be distinct, 3 comes twice"),
    (lambda c: c.upsert(VECTOR, ["a", "b"]), TypeError, "ids must be int64 as in the collection, got utf8"),
    (lambda c: c.upsert(NAN, [3, 50]), ValueError, "embeddings row 1 holds NaN or infinity"),
    (lambda c: c.upsert(VECTOR, [3, 50], threads=0), ValueError, "threads must be at least 1, got 0"),
    (lambda c: c.delete(["a"]), TypeError, "ids must be int64 ids, got utf8"),
    (lambda c: c.delete([3.0]), TypeError, "ids must be all integers or all text, got float64"),
    (lambda c: c.delete([True]), TypeError, "ids must be all integers or all text, got bool"),
    (lambda c: c.delete([-1]), ValueError, "ids must not be negative, got -1"),
    (lambda c: c.delete(None), ValueError, "ids must have one dimension, got shape ()"),
    (lambda c: c.get([3, 50, 51]), KeyError, "ids holds 2 that are not in the collection: 50"),
    (lambda c: c.get("a"), TypeError, "ids must be int64 ids, got utf8"),
    (lambda c: c.get([[3]]), ValueError, "ids must have one dimension, got shape (1, 1)"),
    (lambda c: c.contains([0.5]), TypeError, "ids must be all integers or all text, got float64"),
    (lambda c: c.compact(grace_seconds=-1), ValueError, "grace_seconds must be from 0 to 2592000, got -1"),
    (lambda c: c.compact(grace_seconds=float("nan")), ValueError, "grace_seconds must be from 0 to 2592000, got nan"),
    (lambda c: c.compact(grace_seconds=None), TypeError, "grace_seconds must be a number, got None"),
    (lambda c: c.requantize("pq"), ValueError, "quantizer must be one of"),
    (lambda c: c.requantize("head"), ValueError, "quantizer 'head' cannot be made from its name: a head is trained"),
    (lambda c: c.requantize(HeadQuantizer()), ValueError, "HeadQuantizer has no head: a head is trained"),
    (lambda c: c.requantize(HeadQuantizer.from_head(np.eye(9), np.zeros(9), np.eye(9))), ValueError, "quantizer is fitted to 9 dimensions"),
    (lambda c: c.requantize(None), TypeError, "quantizer must be a Quantizer or the name of one, got None"),
    (lambda c: c.requantize(SignQuantizer(9)), ValueError, "quantizer is fitted to 9 dimensions"),
    (lambda c: c.requantize("itq", grace_seconds=1e9), ValueError, "grace_seconds must be from 0 to 2592000, got 1000000000.0"),
    (lambda c: c.requantize("itq", threads=0), ValueError, "threads must be at least 1, got 0"),
    (lambda c: c.merge_from(5), TypeError, "other must be a Collection or a path, got 5 of type int"),
    (lambda c: c.merge_from(c, threads=0), ValueError, "threads must be at least 1, got 0"),
    (lambda c: c.merge_from(c), ValueError, "other has id 0, which is stored here already"),
    (lambda c: c.calibrate(2), ValueError, "target_recall must be above 0 and at most 1, got 2"),
    (lambda c: c.calibrate("high"), TypeError, "target_recall must be a number, got 'high'"),
    (lambda c: c.calibrate(k=10), ValueError, "k must be at most 9, the rows that a query may find; got 10"),
    (lambda c: c.calibrate(k=1, method="fast"), ValueError, "method must be one of 'hamming', 'asymmetric', got 'fast'"),
    (lambda c: c.calibrate(queries=NAN, k=1), ValueError, "queries row 1 holds NaN or infinity"),
    (lambda c: c.calibrate(queries=VECTOR[:0], k=1), ValueError, "queries must not be empty"),
    (lambda c: c.calibrate(seed=0.5, k=1), TypeError, "seed must be an integer, got 0.5 of type float"),
    (lambda c: c.calibrate(n_queries=0, k=1), ValueError, "n_queries must be at least 1, got 0"),
    (lambda c: c.calibrate(max_oversample=np.inf, k=1), ValueError, "max_oversample must be at least 1 and at most 2**40, got inf"),
]  # fmt: skip


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    with he.Collection.create(tmp_path_factory.mktemp("bad") / "c", 8) as made:
        made.append(np.random.default_rng(0).standard_normal((10, 8)))
        yield made


@pytest.mark.parametrize(("call", "error", "message"), ON_A_COLLECTION)
def test_collection(call, error, message, collection):
    folder = collection._store.path
    before = sorted((p.name, p.read_bytes()) for p in folder.iterdir())
    check(lambda: call(collection), error, message)
    assert sorted((p.name, p.read_bytes()) for p in folder.iterdir()) == before
    assert len(collection) == 10


CREATE = [
    (dict(dim=0), ValueError, "dim must be at least 1, got 0"),
    (dict(dim=8.0), TypeError, "dim must be an integer, got 8.0 of type float"),
    (dict(dim=True), TypeError, "dim must be an integer, got the bool True"),
    (dict(dim=1 << 30), ValueError, "dim must be at most 1048576, got 1073741824"),
    (dict(metric="manhattan"), ValueError, "metric must be one of 'cosine', 'dot', 'l2', got 'manhattan'"),
    (dict(metric=None), ValueError, "metric must be one of 'cosine', 'dot', 'l2', got None"),
    (dict(vectors="float64"), ValueError, "vectors must be one of 'float32', 'float16', 'int8', None, got 'float64'"),
    (dict(vectors=np.float16), ValueError, "vectors must be one of 'float32', 'float16', 'int8', None, got"),
    (dict(quantizer="pq"), ValueError, "quantizer must be one of 'sign', 'threshold', 'rotation', 'itq', 'rabitq', 'local_search', 'simhash', got 'pq'"),
    (dict(quantizer="head"), ValueError, "quantizer 'head' cannot be made from its name: a head is trained"),
    (dict(quantizer=HeadQuantizer()), ValueError, "HeadQuantizer has no head: a head is trained"),
    (dict(quantizer=None), TypeError, "quantizer must be a Quantizer or the name of one, got None"),
    (dict(quantizer=SignQuantizer(9)), ValueError, "quantizer is fitted to 9 dimensions and metric 'cosine', the collection has 8 and 'cosine'"),
    (dict(quantizer=ITQQuantizer(9)), ValueError, "n_bits must be at most the 8 dimensions, got 9"),
    (dict(memory_bytes=1000), ValueError, "memory_bytes must be at least 8388608, got 1000"),
    (dict(memory_bytes=1e9), TypeError, "memory_bytes must be an integer, got 1000000000.0 of type float"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), CREATE)
def test_create(arguments, error, message, tmp_path):
    check(lambda: he.Collection.create(tmp_path / "c", **{"dim": 8, **arguments}), error, message)
    assert not list(tmp_path.iterdir())


def test_paths(tmp_path):
    made = he.Collection.create(tmp_path / "c", 8)
    made.append(VECTOR)
    check(lambda: he.Collection.create(tmp_path / "c", 8), FileExistsError, "path exists already")
    made.export(tmp_path / "c.h5")
    check(
        lambda: he.Collection.create(tmp_path / "c.h5", 8), FileExistsError, "path exists already"
    )
    check(
        lambda: he.Collection.create(tmp_path / "no" / "c", 8),
        FileNotFoundError,
        "path has no parent folder",
    )
    check(lambda: he.Collection.open(tmp_path / "no"), FileNotFoundError, "it does not exist")
    check(lambda: he.Collection.open(tmp_path), FormatError, "the folder holds no manifest")
    check(lambda: he.Collection.open(tmp_path, "a"), FormatError, "the folder holds no manifest")
    check(
        lambda: he.Collection.open(7), TypeError, "path must be text or a path, got 7 of type int"
    )
    check(
        lambda: he.Collection.open(tmp_path / "c", "w"),
        ValueError,
        "mode must be one of 'r', 'a', got 'w'",
    )
    check(
        lambda: he.Collection.open(tmp_path / "c.h5", "a"),
        StoreError,
        "is a single file, which can only be read",
    )
    check(lambda: he.Collection.open(tmp_path / "c", "a"), LockedError, "open for writing already")
    (tmp_path / "text.h5").write_text("no HDF5 at all")
    check(lambda: he.Collection.open(tmp_path / "text.h5"), FormatError, "text.h5: no HDF5 file")
    (tmp_path / "empty.h5").write_text("")
    check(lambda: he.Collection.open(tmp_path / "empty.h5"), FormatError, "empty.h5: no HDF5 file")
    check(lambda: he.Collection.open("/dev/null"), FormatError, "/dev/null: no HDF5 file")
    check(
        lambda: made.export(tmp_path / "c" / "d.h5"),
        ValueError,
        "path must not lie inside the collection",
    )


def test_reading_only_and_closed(tmp_path):
    with he.Collection.create(tmp_path / "c", 8) as made:
        made.append(VECTOR)
        made.export(tmp_path / "c.h5")
    for path in (tmp_path / "c", tmp_path / "c.h5"):
        with he.Collection.open(path) as reader:
            check(
                lambda reader=reader: reader.append(VECTOR),
                StoreError,
                "is open for reading; open it with mode='a' to change it",
            )
    for use in (
        lambda: made.append(VECTOR),
        lambda: made.search(VECTOR),
        lambda: made.info(),
        lambda: made.export(tmp_path / "d.h5"),
        lambda: len(made),
        lambda: made.dim,
        lambda: made.metric,
    ):
        check(use, ValueError, "the collection is closed")


def test_text_ids(tmp_path):
    with he.Collection.create(tmp_path / "c", 8) as docs:
        docs.append(VECTOR, ids=["a", "b"])
        for ids, error, message in (
            (["c", "c"], ValueError, "ids must be distinct, 'c' comes twice"),
            (["c", "a"], ValueError, "ids must be new, 'a' is stored already"),
            (["c", "d\0"], ValueError, "ids must not contain NUL characters, got 'd\\x00'"),
            (["c", "\ud800"], ValueError, "cannot be written as UTF-8"),
            (["c", "x" * 5_000], ValueError, "ids must have at most 4096 bytes of UTF-8, got 5000"),
            ([1, 2], TypeError, "ids must be utf8 as in the collection, got int64"),
            (None, ValueError, "ids must be given: this collection has text ids"),
        ):
            check(lambda ids=ids: docs.append(VECTOR, ids=ids), error, message)
        assert len(docs) == 2
        check(
            lambda: docs.search(VECTOR, where=[1]),
            TypeError,
            "where must be a bool mask or utf8 ids, got int64",
        )
