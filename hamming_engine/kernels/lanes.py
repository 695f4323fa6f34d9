"""Eight uint64 lanes as one value: what scans of row-major codes compute with.

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
from numba.extending import intrinsic, register_model

from .intrinsics import compile_as, element_address, popcount_each, splat

N_LANES = 8

_VECTOR = ir.VectorType(ir.IntType(64), N_LANES)


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


def add_differing_bits_where(counts, words, others, where):
    """``counts`` plus, lane by lane, the number of bits of ``where`` in which two words differ."""
    return counts + np.bitwise_count((words ^ others) & where)


def add_differing_bits(counts, words, others):
    """The same with all bits."""
    return counts + np.bitwise_count(words ^ others)


def sum_of_lanes(lanes):
    """The sum of all lanes."""
    return int(lanes.sum())


def add_neighbours(low, high):
    """Sums of neighbouring lanes: those of ``low`` in the first half, of ``high`` in the second.

    Applied as a binary tree to eight values it gives the sum of each value's lanes, in order.
    """
    return np.concatenate((low, high)).reshape(N_LANES, 2).sum(axis=1, dtype=np.uint64)


def lanes_below(lanes, limit):
    """A mask with bit j set where lane j is below ``limit``."""
    return np.packbits(lanes < np.uint64(limit), bitorder="little").astype(np.uint64)[0]


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
def _add_differing_bits_where(typing_context, counts, words, others, where):
    def generate(context, builder, signature, arguments):
        counts, words, others, where = arguments
        differing = builder.and_(builder.xor(words, others), where)
        return builder.add(counts, popcount_each(builder, differing))

    return LANES(LANES, LANES, LANES, LANES), generate


@intrinsic
def _add_differing_bits(typing_context, counts, words, others):
    def generate(context, builder, signature, arguments):
        counts, words, others = arguments
        return builder.add(counts, popcount_each(builder, builder.xor(words, others)))

    return LANES(LANES, LANES, LANES), generate


@intrinsic
def _sum_of_lanes(typing_context, lanes):
    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_VECTOR.element, [_VECTOR])
        name = f"llvm.vector.reduce.add.v{N_LANES}i64"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

    return types.int64(LANES), generate


@intrinsic
def _add_neighbours(typing_context, low, high):
    def generate(context, builder, signature, arguments):
        indices = ir.VectorType(ir.IntType(32), N_LANES)
        even, odd = (
            builder.shuffle_vector(
                *arguments, ir.Constant(indices, list(range(start, 2 * N_LANES, 2)))
            )
            for start in (0, 1)
        )
        return builder.add(even, odd)

    return LANES(LANES, LANES), generate


@intrinsic
def _lanes_below(typing_context, lanes, limit):
    def generate(context, builder, signature, arguments):
        lanes, limit = arguments
        mask = builder.icmp_unsigned("<", lanes, splat(builder, limit, N_LANES))
        return builder.zext(builder.bitcast(mask, ir.IntType(N_LANES)), ir.IntType(64))

    return types.uint64(LANES, types.int64), generate


for _twin, _compiled in (
    (no_lanes, _no_lanes),
    (load_lanes, _load_lanes),
    (add_differing_bits_where, _add_differing_bits_where),
    (add_differing_bits, _add_differing_bits),
    (sum_of_lanes, _sum_of_lanes),
    (add_neighbours, _add_neighbours),
    (lanes_below, _lanes_below),
):
    compile_as(_twin, _compiled)
