"""Which scan a processor runs best; the one place where that is decided."""

from __future__ import annotations

import functools
import os

import numba
from numba.core.registry import cpu_target

from .find import NIBBLES, SIXES

PLAIN, POPCOUNT, TABLE = range(3)
METHODS = {"plain": PLAIN, "popcount": POPCOUNT, "table": TABLE}

VARIABLE = "HAMMING_ENGINE_KERNEL"


def processor_features() -> set[str]:
    """What kernels are compiled for, in LLVM's words, such as ``"+avx2"``."""
    return set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))


@functools.cache
def best_method() -> int:
    """The method for this processor, or the one that the environment variable names.

    A table look-up by byte shuffle is the fastest where there is one and bytes cannot be counted:
    with AVX2 it scans 1.5 times as fast as counting by shifts and masks, while with AVX-512 BITALG
    counting is 2.3 times as fast as looking up (four queries, 384 and 1,024 bits, Zen 5). NEON
    counts bytes. With the JIT off the plain scan has the least work for the interpreter.
    """
    name = os.environ.get(VARIABLE)
    if name:
        if name not in METHODS:
            raise ValueError(f"{VARIABLE} must be one of {', '.join(METHODS)}, got {name!r}")
        return METHODS[name]
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return PLAIN
    features = processor_features()
    return TABLE if "+ssse3" in features and "+avx512bitalg" not in features else POPCOUNT


@functools.cache
def weighted_tables(method: int) -> int:
    """The tables for a scan by weights, one of ``kernels.find``, or -1 for the plain scan.

    Bits that cost different amounts cannot be counted. Where a processor permutes 64 bytes, tables
    of six bits take 0.6 of the time that tables of four take.
    """
    if method == PLAIN:
        return -1
    return SIXES if method == POPCOUNT and "+avx512vbmi" in processor_features() else NIBBLES
