"""Columns of 64 bytes as one value: what scans of blocks compute with.

A *column* holds one byte of each of 64 rows, *sums* hold a uint16 for each of them. In compiled
code they are LLVM vectors, ``<64 x i8>`` and ``<64 x i16>``: one and two AVX-512 registers, two and
four with AVX2; LLVM cuts them to what the machine has.

With the JIT off the functions below run as written, on NumPy arrays of 64 values.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from .intrinsics import compile_as, element_address, popcount_each, splat

BLOCK_ROWS = 64
TABLE_BYTES = 16  # a table has an entry for each value of half a byte
WIDE_TABLE_BYTES = 64  # or for each value of six bits
FIND_WORDS = 2 + BLOCK_ROWS // 4
SIXTEEN = 16  # rows that are turned at once, so that a row's share of a column is a 128-bit lane

_BYTE, _INDEX, _WORD = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_COLUMN = ir.VectorType(_BYTE, BLOCK_ROWS)
_SUMS = ir.VectorType(ir.IntType(16), BLOCK_ROWS)
_HALF_SUMS = ir.VectorType(ir.IntType(16), BLOCK_ROWS // 2)
_TABLE = ir.VectorType(_BYTE, TABLE_BYTES)


class ColumnType(types.Type):
    def __init__(self):
        super().__init__(name="Column")


class SumsType(types.Type):
    def __init__(self):
        super().__init__(name="Sums")


@register_model(ColumnType)
class _ColumnModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, _COLUMN)


@register_model(SumsType)
class _SumsModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, _SUMS)


COLUMN, SUMS = ColumnType(), SumsType()


def no_column():
    """A column of zeros."""
    return np.zeros(BLOCK_ROWS, np.uint8)


def no_sums():
    """Sums of zero."""
    return np.zeros(BLOCK_ROWS, np.uint16)


def load_column(columns, first):
    """The column that begins at byte ``first`` of a flat uint8 array."""
    return columns[first : first + BLOCK_ROWS]


def add_differing(counts, column, repeated, index):
    """``counts`` plus, for each row, the number of bits in which it differs from a query's byte.

    ``repeated[index]`` is that byte, eight times in a uint64: what an XOR can repeat as it reads.
    """
    return counts + np.bitwise_count(column ^ np.uint8(repeated[index] & np.uint64(0xFF)))


def low_nibbles(column):
    """The low half of each byte."""
    return column & np.uint8(15)


def high_nibbles(column):
    """The high half of each byte."""
    return column >> np.uint8(4)


def add_entries(counts, tables, first, nibbles):
    """``counts`` plus what a table of 16 bytes, from ``first`` on, has for each row's nibble."""
    return counts + tables[first : first + TABLE_BYTES][nibbles]


def six_bits(a, b, c):
    """Four columns whose low six bits are the 24 of three columns, the lowest first.

    What the two bits above them are is not said; ``add_wide_entries`` does not look at them.
    """
    return a, a >> np.uint8(6) | b << np.uint8(2), b >> np.uint8(4) | c << np.uint8(4), c >> 2


def add_wide_entries(counts, tables, first, sixes):
    """``counts`` plus what a table of 64 bytes, from ``first`` on, has for each row's six bits."""
    return counts + tables[first : first + WIDE_TABLE_BYTES][sixes & np.uint8(63)]


def add_column(sums, counts):
    """``sums`` plus the counts of each row, in an order of its own until ``by_row``.

    In compiled code the sums of even rows come first: to tell even bytes from odd ones takes a mask
    and a shift, to put sixteen bits in the place of each byte takes shuffles, which look-ups wait
    for.
    """
    return sums + counts


def by_row(sums):
    """Sums in the order of rows, after the last ``add_column``."""
    return sums


def sums_below(sums, limit):
    """A mask with bit j set where row j's sum is below ``limit``, which is below 2**16."""
    return np.packbits(sums < limit, bitorder="little").view(np.uint64)[0]


def store_find(finds, first, mask, name, sums):
    """Write a mask, a number and sums, four to a word, into a flat int64 array."""
    finds[first] = np.uint64(mask).astype(np.int64)
    finds[first + 1] = name
    finds[first + 2 : first + FIND_WORDS] = sums.view(np.int64)


def turn_sixteen(words, first, n_words, columns, to, n_columns):
    """Write up to 64 bytes of sixteen rows as a share of so many columns.

    words : flat uint64, rows of ``n_words`` words each, the first at ``first``; 64 bytes are read
        of every row, whatever ``n_columns`` is
    columns : flat uint8, the share of these rows in the first column at ``to``
    n_columns : if it is no multiple of 16, up to 15 columns more are written
    """
    n_columns = min(64, -(-n_columns // SIXTEEN) * SIXTEEN)
    for row in range(SIXTEEN):
        row_bytes = words[first + row * n_words :][:8].view(np.uint8)
        columns[to + row :: BLOCK_ROWS][:n_columns] = row_bytes[:n_columns]


def _shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INDEX, len(lanes)), lanes))


def _undefined(vector):
    return ir.Constant(vector, ir.Undefined)


@intrinsic
def _no_column(typing_context):
    def generate(context, builder, signature, arguments):
        return ir.Constant(_COLUMN, None)

    return COLUMN(), generate


@intrinsic
def _no_sums(typing_context):
    def generate(context, builder, signature, arguments):
        return ir.Constant(_SUMS, None)

    return SUMS(), generate


@intrinsic
def _load_column(typing_context, columns, first):
    def generate(context, builder, signature, arguments):
        address = element_address(context, builder, signature, arguments)
        column = builder.load(builder.bitcast(address, _COLUMN.as_pointer()))
        column.align = 1
        return column

    return COLUMN(columns, types.int64), generate


@intrinsic
def _add_differing(typing_context, counts, column, repeated, index):
    # The load is part of it, because indexing in compiled code looks for a negative index first,
    # which took as many instructions as all the rest.
    def generate(context, builder, signature, arguments):
        counts, column, repeated, index = arguments
        array = context.make_array(signature.args[2])(context, builder, repeated)
        # Eight bytes and not one or four: LLVM computes the XOR of all vectors with words, and only
        # if the types agree, it lets the XOR itself read and repeat them.
        word = builder.load(builder.gep(array.data, [index]))
        query = builder.bitcast(splat(builder, word, BLOCK_ROWS // 8), _COLUMN)
        return builder.add(counts, popcount_each(builder, builder.xor(column, query)))

    return COLUMN(COLUMN, COLUMN, repeated, types.int64), generate


@intrinsic
def _low_nibbles(typing_context, column):
    def generate(context, builder, signature, arguments):
        return builder.and_(arguments[0], ir.Constant(_COLUMN, [15] * BLOCK_ROWS))

    return COLUMN(COLUMN), generate


@intrinsic
def _high_nibbles(typing_context, column):
    def generate(context, builder, signature, arguments):
        return builder.lshr(arguments[0], ir.Constant(_COLUMN, [4] * BLOCK_ROWS))

    return COLUMN(COLUMN), generate


# The byte shuffle of each x86 extension and its width in bytes, the best first.
_BYTE_SHUFFLES = {
    "+avx512bw": ("llvm.x86.avx512.pshuf.b.512", 64),
    "+avx2": ("llvm.x86.avx2.pshuf.b", 32),
    "+ssse3": ("llvm.x86.ssse3.pshuf.b.128", 16),
}


def _entries(builder, features, table, nibbles):
    """The entry of a 16-byte table for each of 64 nibbles."""
    known = [shuffle for feature, shuffle in _BYTE_SHUFFLES.items() if feature in features]
    if not known:  # right everywhere and slow: nobody chooses tables on such a machine
        found = ir.Constant(_COLUMN, None)
        for value in range(TABLE_BYTES):
            entry = _shuffle(builder, table, table, [value] * BLOCK_ROWS)
            values = ir.Constant(_COLUMN, [value] * BLOCK_ROWS)
            here = builder.icmp_unsigned("==", nibbles, values)
            found = builder.select(here, entry, found)
        return found
    name, width = known[0]
    vector = ir.VectorType(_BYTE, width)
    kind = ir.FunctionType(vector, [vector, vector])
    shuffle = cgutils.get_or_insert_function(builder.module, kind, name)
    tables = _shuffle(builder, table, table, [i % TABLE_BYTES for i in range(width)])
    parts = []
    for first in range(0, BLOCK_ROWS, width):
        part = _shuffle(builder, nibbles, _undefined(_COLUMN), list(range(first, first + width)))
        parts.append(builder.call(shuffle, [tables, part]))
    while len(parts) > 1:
        width *= 2
        parts = [
            _shuffle(builder, parts[i], parts[i + 1], list(range(width)))
            for i in range(0, len(parts), 2)
        ]
    return parts[0]


def _adding_entries(vector, entries, counts, tables, first, indices):
    """An intrinsic body: load a table and add its ``entries`` for a column of indices."""

    def generate(context, builder, signature, arguments):
        counts, tables, first, indices = arguments
        array = context.make_array(signature.args[1])(context, builder, tables)
        address = builder.gep(array.data, [first])
        table = builder.load(builder.bitcast(address, vector.as_pointer()))
        table.align = 1
        features = context.codegen().magic_tuple()[2].split(",")
        return builder.add(counts, entries(builder, features, table, indices))

    return COLUMN(COLUMN, tables, types.int64, COLUMN), generate


@intrinsic
def _add_entries(typing_context, counts, tables, first, nibbles):
    return _adding_entries(_TABLE, _entries, counts, tables, first, nibbles)


@intrinsic
def _six_bits(typing_context, a, b, c):
    # In lanes of 16 bits, as there are no shifts of bytes; masks keep what belongs to a byte.
    def generate(context, builder, signature, arguments):
        a, b, c = (builder.bitcast(column, _HALF_SUMS) for column in arguments)

        def each(value):
            return ir.Constant(_HALF_SUMS, [value] * (BLOCK_ROWS // 2))

        def joined(low, high, n_low):
            mask = (1 << n_low) - 1
            low_bits = builder.and_(builder.lshr(low, each(8 - n_low)), each(0x0101 * mask))
            high_bits = builder.and_(builder.shl(high, each(n_low)), each(0x0101 * (0xFF ^ mask)))
            return builder.or_(low_bits, high_bits)

        sixes = a, joined(a, b, 2), joined(b, c, 4), builder.lshr(c, each(2))
        columns = [builder.bitcast(six, _COLUMN) for six in sixes]
        return context.make_tuple(builder, signature.return_type, columns)

    return types.UniTuple(COLUMN, 4)(COLUMN, COLUMN, COLUMN), generate


def _wide_entries(builder, features, table, sixes):
    """The entry of a 64-byte table for each of 64 times six bits."""
    if "+avx512vbmi" in features:
        kind = ir.FunctionType(_COLUMN, [_COLUMN, _COLUMN])
        name = "llvm.x86.avx512.permvar.qi.512"
        permute = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(permute, [table, sixes])
    # Right everywhere and slow: nobody chooses such tables on such a machine.
    nibbles = builder.and_(sixes, ir.Constant(_COLUMN, [15] * BLOCK_ROWS))
    found = []
    for first in range(0, WIDE_TABLE_BYTES, TABLE_BYTES):
        quarter = _shuffle(builder, table, table, list(range(first, first + TABLE_BYTES)))
        found.append(_entries(builder, features, quarter, nibbles))
    for bit in (16, 32):
        bits = ir.Constant(_COLUMN, [bit] * BLOCK_ROWS)
        is_set = builder.icmp_unsigned("==", builder.and_(sixes, bits), bits)
        found = [builder.select(is_set, found[i + 1], found[i]) for i in range(0, len(found), 2)]
    return found[0]


@intrinsic
def _add_wide_entries(typing_context, counts, tables, first, sixes):
    return _adding_entries(_COLUMN, _wide_entries, counts, tables, first, sixes)


@intrinsic
def _add_column(typing_context, sums, counts):
    def generate(context, builder, signature, arguments):
        sums, counts = arguments
        pairs = builder.bitcast(counts, _HALF_SUMS)
        n = BLOCK_ROWS // 2
        even = builder.and_(pairs, ir.Constant(_HALF_SUMS, [0xFF] * n))
        odd = builder.lshr(pairs, ir.Constant(_HALF_SUMS, [8] * n))
        return builder.add(sums, _shuffle(builder, even, odd, list(range(BLOCK_ROWS))))

    return SUMS(SUMS, COLUMN), generate


@intrinsic
def _by_row(typing_context, sums):
    def generate(context, builder, signature, arguments):
        n = BLOCK_ROWS // 2
        order = [place for row in range(n) for place in (row, n + row)]
        return _shuffle(builder, arguments[0], _undefined(_SUMS), order)

    return SUMS(SUMS), generate


@intrinsic
def _sums_below(typing_context, sums, limit):
    def generate(context, builder, signature, arguments):
        limit = splat(builder, builder.trunc(arguments[1], ir.IntType(16)), BLOCK_ROWS)
        return builder.bitcast(builder.icmp_unsigned("<", arguments[0], limit), _WORD)

    return types.uint64(SUMS, types.int64), generate


@intrinsic
def _store_find(typing_context, finds, first, mask, name, sums):
    def generate(context, builder, signature, arguments):
        address = element_address(context, builder, signature, arguments)
        mask, name, sums = arguments[2:]
        one, two = (builder.gep(address, [ir.Constant(_INDEX, i)]) for i in (1, 2))
        builder.store(mask, address)
        builder.store(name, one)
        builder.store(sums, builder.bitcast(two, _SUMS.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(finds, types.int64, types.uint64, types.int64, SUMS), generate


@intrinsic
def _turn_sixteen(typing_context, words, first, n_words, columns, to, n_columns):
    # Sixteen vectors, one row in each, dealt like a pack of cards cut in half: vectors i and i + 8
    # byte by byte in turns become vectors 2 i and 2 i + 1. Every deal moves the highest bit of the
    # vector's number to the end of the byte's number, so after four of them the two have changed
    # places. It stays within 128-bit lanes, which is what processors do fastest.
    lane, half = SIXTEEN, SIXTEEN // 2
    turns = [
        [
            byte
            for start in range(0, BLOCK_ROWS, lane)
            for i in range(start + from_byte, start + from_byte + half)
            for byte in (i, BLOCK_ROWS + i)
        ]
        for from_byte in (0, half)
    ]

    def generate(context, builder, signature, arguments):
        words, first, n_words, columns, to, n_columns = arguments
        source = context.make_array(signature.args[0])(context, builder, words).data
        target = context.make_array(signature.args[3])(context, builder, columns).data
        vectors = []
        address = builder.gep(source, [first])
        for _ in range(SIXTEEN):
            vector = builder.load(builder.bitcast(address, _COLUMN.as_pointer()))
            vector.align = 8
            vectors.append(vector)
            address = builder.gep(address, [n_words])
        for _ in range(4):
            vectors = [
                _shuffle(builder, vectors[i], vectors[i + half], turn)
                for i in range(half)
                for turn in turns
            ]
        address = builder.gep(target, [to])
        for start in range(0, BLOCK_ROWS, lane):
            wanted = builder.icmp_signed(">", n_columns, ir.Constant(_WORD, start))
            with builder.if_then(wanted, likely=True):
                for j, vector in enumerate(vectors):
                    part = _shuffle(
                        builder, vector, _undefined(_COLUMN), list(range(start, start + lane))
                    )
                    place = builder.gep(address, [ir.Constant(_WORD, (start + j) * BLOCK_ROWS)])
                    builder.store(part, builder.bitcast(place, part.type.as_pointer()), align=1)
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(words, int64, int64, columns, int64, int64), generate


for _twin, _compiled in (
    (no_column, _no_column),
    (no_sums, _no_sums),
    (load_column, _load_column),
    (add_differing, _add_differing),
    (low_nibbles, _low_nibbles),
    (high_nibbles, _high_nibbles),
    (add_entries, _add_entries),
    (six_bits, _six_bits),
    (add_wide_entries, _add_wide_entries),
    (add_column, _add_column),
    (by_row, _by_row),
    (sums_below, _sums_below),
    (store_find, _store_find),
    (turn_sixteen, _turn_sixteen),
):
    compile_as(_twin, _compiled)
