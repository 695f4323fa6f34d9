"""Checksums of stored blocks, at the speed of memory.

Each stripe of 1,024 words is hashed with NH (Black, Halevi, Krawczyk, Krovetz, Rogaway: "UMAC: fast
and secure message authentication", CRYPTO 1999, section 4), in the xor form: the sum over the words
``w`` of ``low(w ^ key) * high(w ^ key)``, 32-bit halves multiplied to 64 bits, which is one vector
multiplication for each eight bytes. Stripes are chained by a multiplication and a shift, so that
their order counts. Two different blocks agree with a probability of about 2**-32. It finds damage,
not malice: the keys are public.
"""

import numpy as np

from .compiling import kernel

STRIPE_WORDS = 1024
_LOW = np.uint64(0xFFFF_FFFF)
_32 = np.uint64(32)
_ODD = np.uint64(0x9E37_79B9_7F4A_7C15)


def _splitmix64(n):
    """The first ``n`` outputs of SplitMix64 from seed 0 (Steele, Lea, Flood, OOPSLA 2014)."""
    state = np.arange(1, n + 1, dtype=np.uint64) * _ODD
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return state ^ (state >> np.uint64(31))


_KEYS = _splitmix64(STRIPE_WORDS)


@kernel()
def _checksum_blocks(data, block_bytes, keys, sums):
    """Hash each block of ``data``, uint8, into its place in ``sums``, uint64."""
    for block in range(sums.shape[0]):
        begin = block * block_bytes
        n_bytes = min(block_bytes, data.shape[0] - begin)
        words = data[begin : begin + n_bytes // 8 * 8].view(np.uint64)
        state = np.uint64(n_bytes) * _ODD
        for first in range(0, words.shape[0], STRIPE_WORDS):
            stripe_words = words[first : first + STRIPE_WORDS]
            stripe = np.uint64(0)
            for i in range(stripe_words.shape[0]):
                mixed = stripe_words[i] ^ keys[i]
                stripe += (mixed & _LOW) * (mixed >> _32)
            state = (state ^ stripe) * _ODD
            state ^= state >> _32
        rest = np.uint64(0)
        for i in range(n_bytes // 8 * 8, n_bytes):
            rest |= np.uint64(data[begin + i]) << np.uint64(8 * (i % 8))
        state = (state ^ rest) * _ODD
        sums[block] = state ^ (state >> _32)


def checksum_blocks(data, block_bytes):
    """One checksum for each ``block_bytes`` bytes.

    Parameters
    ----------
    data : (n_bytes,) uint8
        Contiguous, beginning at an address that is a multiple of 8.
    block_bytes : int
        A multiple of 8.

    Returns
    -------
    sums : (ceil(n_bytes / block_bytes),) uint64
    """
    sums = np.empty(-(-data.shape[0] // block_bytes), np.uint64)
    if sums.size:
        with np.errstate(over="ignore"):  # sums wrap around; NumPy would warn with the JIT off
            _checksum_blocks(data, block_bytes, _KEYS, sums)
    return sums
