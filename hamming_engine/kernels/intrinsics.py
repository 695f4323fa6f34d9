"""The LLVM instructions that numba has no name for, each with a plain-Python twin.

The twin is what the name means and what runs with the JIT off; ``compile_as`` replaces it by the
intrinsic in compiled code.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

ALL_ONES = np.uint64(0xFFFF_FFFF_FFFF_FFFF)

# Exponent bits of float16, float32 and float64, by item size: all ones means NaN or infinity.
_EXPONENT_MASK = {2: 0x7C00, 4: 0x7F80_0000, 8: 0x7FF0_0000_0000_0000}


def compile_as(twin, intrinsic_function):
    """Have compiled code call an intrinsic where it names the plain-Python function ``twin``."""

    @overload(twin)
    def choose(*arguments):
        return lambda *arguments: intrinsic_function(*arguments)


def splat(builder, value, n):
    """A vector of ``n`` times the same value."""
    vector = ir.VectorType(value.type, n)
    undefined = ir.Constant(vector, ir.Undefined)
    index = ir.IntType(32)
    in_first = builder.insert_element(undefined, value, ir.Constant(index, 0))
    return builder.shuffle_vector(
        in_first, undefined, ir.Constant(ir.VectorType(index, n), [0] * n)
    )


def popcount_each(builder, vector):
    """The number of ones in each item of a vector."""
    # Declared by name: llvmlite cannot spell the overloaded name for a vector type.
    name = f"llvm.ctpop.v{vector.type.count}i{vector.type.element.width}"
    kind = ir.FunctionType(vector.type, [vector.type])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [vector])


def popcount64(word):
    """Number of ones in a uint64."""
    return int(word).bit_count()


@intrinsic
def _ctpop(typing_context, word):
    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


compile_as(popcount64, _ctpop)


def first_bit(mask):
    """The index of the lowest one of a uint64 that is not zero."""
    return (int(mask) & -int(mask)).bit_length() - 1


@intrinsic
def _cttz(typing_context, mask):
    def generate(context, builder, signature, arguments):
        zero_is_undefined = ir.Constant(ir.IntType(1), 1)
        return builder.cttz(arguments[0], zero_is_undefined)

    return types.int64(types.uint64), generate


compile_as(first_bit, _cttz)


def positive_lanes(values, first):
    """Which of ``values[first : first + 64]`` are positive; bit j of the result is value j.

    ``values`` holds floats viewed as signed integers of the same size. A finite float is above zero
    exactly when those bits are above zero as an integer, for every float size, denormals included.
    """
    return _pack_64(values[first : first + 64] > 0)


def finite_lanes(values, first):
    """Which of ``values[first : first + 64]`` are finite; bit j of the result is value j."""
    mask = values.dtype.type(_EXPONENT_MASK[values.itemsize])
    return _pack_64((values[first : first + 64] & mask) != mask)


def _pack_64(lanes):
    return np.packbits(lanes, bitorder="little").view(np.uint64)[0]


def code_word(lanes):
    """Lanes in the order of ``np.packbits``: dimension j becomes bit ``j ^ 7`` of the word."""
    lanes_in_bytes = np.array([lanes]).view(np.uint8)
    return np.packbits(np.unpackbits(lanes_in_bytes, bitorder="little")).view(np.uint64)[0]


def element_address(context, builder, signature, arguments):
    """Where ``array[index]`` lies; these are the first two arguments of an intrinsic."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


def _compare_64(values, first, compare):
    """An intrinsic body: load 64 integers as one LLVM vector, compare them, return a bit each.

    LLVM cuts the vector to the width of the machine: four compares into mask registers with
    AVX-512, a few compare and movemask instructions with AVX2. Written as a loop over dimensions
    the same work stays scalar.
    """
    item = ir.IntType(values.dtype.bitwidth)

    def generate(context, builder, signature, arguments):
        address = element_address(context, builder, signature, arguments)
        vector = ir.VectorType(item, 64)
        lanes = builder.load(builder.bitcast(address, vector.as_pointer()))
        lanes.align = item.width // 8
        return builder.bitcast(compare(builder, lanes, vector), ir.IntType(64))

    return types.uint64(values, types.int64), generate


@intrinsic
def _positive_64(typing_context, values, first):
    def compare(builder, lanes, vector):
        return builder.icmp_signed(">", lanes, ir.Constant(vector, None))

    return _compare_64(values, first, compare)


@intrinsic
def _finite_64(typing_context, values, first):
    def compare(builder, lanes, vector):
        mask = _EXPONENT_MASK[vector.element.width // 8]
        exponents = ir.Constant(vector, [mask] * 64)
        return builder.icmp_unsigned("!=", builder.and_(lanes, exponents), exponents)

    return _compare_64(values, first, compare)


@intrinsic
def _reverse_bits_in_bytes(typing_context, word):
    def generate(context, builder, signature, arguments):
        return builder.bswap(builder.bitreverse(arguments[0]))

    return types.uint64(types.uint64), generate


compile_as(positive_lanes, _positive_64)


compile_as(finite_lanes, _finite_64)


compile_as(code_word, _reverse_bits_in_bytes)


def prefetch(words, index):
    """Start bringing the cache line of ``words[index]`` closer; may lie beyond the array."""


@intrinsic
def _prefetch(typing_context, words, index):
    def generate(context, builder, signature, arguments):
        address = element_address(context, builder, signature, arguments)
        byte_pointer, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, keep_in_all_caches, data = (ir.Constant(i32, value) for value in (0, 3, 1))
        pointer = builder.bitcast(address, byte_pointer)
        builder.call(function, [pointer, read, keep_in_all_caches, data])
        return context.get_dummy_value()

    return types.void(words, types.int64), generate


compile_as(prefetch, _prefetch)


def move(array, source, target, n):
    """Copy ``array[source : source + n]`` to ``array[target : target + n]``; they may overlap."""
    array[target : target + n] = array[source : source + n].copy()


@intrinsic
def _move(typing_context, array, source, target, n):
    def generate(context, builder, signature, arguments):
        value, source, target, n = arguments
        data = context.make_array(signature.args[0])(context, builder, value).data
        pointers = (
            builder.bitcast(builder.gep(data, [index]), cgutils.voidptr_t)
            for index in (target, source)
        )
        item_bytes = signature.args[0].dtype.bitwidth // 8
        cgutils.raw_memmove(builder, *pointers, n, item_bytes)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, types.int64), generate


compile_as(move, _move)


def as_float64(value):
    """A stored vector component as a float64; float16 comes as uint16, which numba can hold."""
    return float(value.view(np.float16)) if value.dtype == np.uint16 else float(value)


@intrinsic
def _half_to_double(typing_context, bits):
    """A finite float16 from its bits: by F16C, or else by integer arithmetic.

    LLVM's own conversion calls a function that no library here has, and ends the process, where the
    processor lacks F16C; the few operations below are vectorised everywhere.
    """

    def generate(context, builder, signature, arguments):
        i32, f32 = ir.IntType(32), ir.FloatType()
        if "+f16c" in context.codegen().magic_tuple()[2].split(","):
            half = builder.bitcast(arguments[0], ir.HalfType())
            return builder.fpext(builder.fpext(half, f32), ir.DoubleType())

        def number(value):
            return ir.Constant(i32, value)

        bits = builder.zext(arguments[0], i32)
        magnitude = builder.shl(builder.and_(bits, number(0x7FFF)), number(13))
        # The exponent counts from 15 in float16 and from 127 in float32.
        normal = builder.bitcast(builder.add(magnitude, number(112 << 23)), f32)
        # Without an exponent the digits have no leading one: lend them one, and take it away.
        lent = builder.bitcast(builder.add(magnitude, number(113 << 23)), f32)
        one = builder.bitcast(number(113 << 23), f32)
        is_normal = builder.icmp_unsigned(">=", magnitude, number(1 << 23))
        unsigned = builder.select(is_normal, normal, builder.fsub(lent, one))
        sign = builder.shl(builder.and_(bits, number(0x8000)), number(16))
        signed = builder.or_(builder.bitcast(unsigned, i32), sign)
        return builder.fpext(builder.bitcast(signed, f32), ir.DoubleType())

    return types.float64(types.uint16), generate


@overload(as_float64)
def _compile_as_float64(value):
    if value == types.uint16:
        return lambda value: _half_to_double(value)
    return lambda value: types.float64(value)
