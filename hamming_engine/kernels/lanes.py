"""Eight uint64 lanes as one value: what the exact scan computes with.

In compiled code a ``Lanes`` value is an LLVM vector ``<8 x i64>``: one AVX-512 register, two with
AVX2, four with NEON or SSE2; LLVM picks the instructions, a popcount per lane included. Loops over
arrays are left to LLVM's vectoriser elsewhere; here it fails, because codes are short (4 to 16
words) and the accumulators have to stay in registers over the loop.

With the JIT off the functions below run as written, on NumPy arrays of eight uint64.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model

from .intrinsics import element_address

N_LANES = 8

_VECTOR = ir.VectorType(ir.IntType(64), N_LANES)
_INDEX = ir.IntType(32)
_UNDEFINED = ir.Constant(_VECTOR, ir.Undefined)


class LanesType(types.Type):
    def __init__(self):
        super().__init__(name="Lanes")


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, _VECTOR)


LANES = LanesType()


def no_lanes():
    """All lanes zero."""
    return np.zeros(N_LANES, np.uint64)


def load_lanes(words, first):
    """The eight words of a flat uint64 array that begin at ``first``."""
    return words[first : first + N_LANES]


def add_differing_bits(counts, words, word):
    """``counts`` plus, in each lane, the number of bits in which it differs from one word."""
    return counts + np.bitwise_count(words ^ word)


def add_differing_bits_where(counts, words, others, where):
    """``counts`` plus, lane by lane, the number of bits of ``where`` in which two words differ."""
    return counts + np.bitwise_count((words ^ others) & where)


def add_neighbours(low, high):
    """Sums of neighbouring lanes: those of ``low`` in the first half, of ``high`` in the second.

    Applied as a binary tree to eight values it gives the sum of each value's lanes, in order.
    """
    return np.concatenate((low, high)).reshape(N_LANES, 2).sum(axis=1, dtype=np.uint64)


def zip_low(a, b):
    """The first halves of two values, in turns: a0, b0, a1, b1, and so on."""
    return np.stack((a[: N_LANES // 2], b[: N_LANES // 2]), axis=1).reshape(N_LANES)


def zip_high(a, b):
    """The second halves of two values, in turns."""
    return np.stack((a[N_LANES // 2 :], b[N_LANES // 2 :]), axis=1).reshape(N_LANES)


def store_lanes(words, first, lanes):
    """Write eight words of a flat uint64 array from ``first`` on."""
    words[first : first + N_LANES] = lanes


def lanes_below(lanes, limit):
    """A mask with bit j set where lane j is below ``limit``."""
    return np.packbits(lanes < np.uint64(limit), bitorder="little").astype(np.uint64)[0]


def lane(lanes, j):
    """One lane as an int64."""
    return int(lanes[j])


def first_lane(mask):
    """The index of the lowest bit of a non-zero mask."""
    return (int(mask) & -int(mask)).bit_length() - 1


def _popcount(builder, lanes):
    # Declared by name: llvmlite cannot spell the overloaded name for a vector type.
    kind = ir.FunctionType(_VECTOR, [_VECTOR])
    name = f"llvm.ctpop.v{N_LANES}i64"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [lanes])


def _splat(builder, word):
    in_first = builder.insert_element(_UNDEFINED, word, ir.Constant(_INDEX, 0))
    everywhere = ir.Constant(ir.VectorType(_INDEX, N_LANES), [0] * N_LANES)
    return builder.shuffle_vector(in_first, _UNDEFINED, everywhere)


@intrinsic
def _no_lanes(typing_context):
    def generate(context, builder, signature, arguments):
        return ir.Constant(_VECTOR, [0] * N_LANES)

    return LANES(), generate


@intrinsic
def _load_lanes(typing_context, words, first):
    def generate(context, builder, signature, arguments):
        address = element_address(context, builder, signature, arguments)
        lanes = builder.load(builder.bitcast(address, _VECTOR.as_pointer()))
        lanes.align = 8
        return lanes

    return LANES(words, types.int64), generate


@intrinsic
def _add_differing_bits(typing_context, counts, words, word):
    def generate(context, builder, signature, arguments):
        counts, words, word = arguments
        differing = builder.xor(words, _splat(builder, word))
        return builder.add(counts, _popcount(builder, differing))

    return LANES(LANES, LANES, types.uint64), generate


@intrinsic
def _add_differing_bits_where(typing_context, counts, words, others, where):
    def generate(context, builder, signature, arguments):
        counts, words, others, where = arguments
        differing = builder.and_(builder.xor(words, others), where)
        return builder.add(counts, _popcount(builder, differing))

    return LANES(LANES, LANES, LANES, LANES), generate


def _pick(builder, pair, lanes):
    """Eight of the sixteen lanes of two values."""
    return builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(_INDEX, N_LANES), lanes))


@intrinsic
def _add_neighbours(typing_context, low, high):
    def generate(context, builder, signature, arguments):
        even, odd = (
            _pick(builder, arguments, list(range(start, 2 * N_LANES, 2))) for start in (0, 1)
        )
        return builder.add(even, odd)

    return LANES(LANES, LANES), generate


def _zip_from(start):
    turns = [lane for j in range(start, start + N_LANES // 2) for lane in (j, N_LANES + j)]

    def generate(context, builder, signature, arguments):
        return _pick(builder, arguments, turns)

    return LANES(LANES, LANES), generate


@intrinsic
def _zip_low(typing_context, a, b):
    return _zip_from(0)


@intrinsic
def _zip_high(typing_context, a, b):
    return _zip_from(N_LANES // 2)


@intrinsic
def _store_lanes(typing_context, words, first, lanes):
    def generate(context, builder, signature, arguments):
        address = element_address(context, builder, signature, arguments)
        builder.store(arguments[2], builder.bitcast(address, _VECTOR.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(words, types.int64, LANES), generate


@intrinsic
def _lanes_below(typing_context, lanes, limit):
    def generate(context, builder, signature, arguments):
        lanes, limit = arguments
        mask = builder.icmp_unsigned("<", lanes, _splat(builder, limit))
        return builder.zext(builder.bitcast(mask, ir.IntType(N_LANES)), ir.IntType(64))

    return types.uint64(LANES, types.int64), generate


@intrinsic
def _lane(typing_context, lanes, j):
    def generate(context, builder, signature, arguments):
        return builder.extract_element(arguments[0], builder.trunc(arguments[1], _INDEX))

    return types.int64(LANES, types.int64), generate


@intrinsic
def _first_lane(typing_context, mask):
    def generate(context, builder, signature, arguments):
        zero_is_undefined = ir.Constant(ir.IntType(1), 1)
        return builder.cttz(arguments[0], zero_is_undefined)

    return types.int64(types.uint64), generate


@overload(no_lanes)
def _compile_no_lanes():
    return lambda: _no_lanes()


@overload(load_lanes)
def _compile_load_lanes(words, first):
    return lambda words, first: _load_lanes(words, first)


@overload(add_differing_bits)
def _compile_add_differing_bits(counts, words, word):
    return lambda counts, words, word: _add_differing_bits(counts, words, word)


@overload(add_differing_bits_where)
def _compile_add_differing_bits_where(counts, words, others, where):
    return lambda counts, words, others, where: _add_differing_bits_where(
        counts, words, others, where
    )


@overload(add_neighbours)
def _compile_add_neighbours(low, high):
    return lambda low, high: _add_neighbours(low, high)


@overload(zip_low)
def _compile_zip_low(a, b):
    return lambda a, b: _zip_low(a, b)


@overload(zip_high)
def _compile_zip_high(a, b):
    return lambda a, b: _zip_high(a, b)


@overload(store_lanes)
def _compile_store_lanes(words, first, lanes):
    return lambda words, first, lanes: _store_lanes(words, first, lanes)


@overload(lanes_below)
def _compile_lanes_below(lanes, limit):
    return lambda lanes, limit: _lanes_below(lanes, limit)


@overload(lane)
def _compile_lane(lanes, j):
    return lambda lanes, j: _lane(lanes, j)


@overload(first_lane)
def _compile_first_lane(mask):
    return lambda mask: _first_lane(mask)
