"""Codes in blocks: what is held in memory, and what batches scan.

A block holds 64 rows byte by byte: ``(n_bytes, 64)`` uint8, first the first byte of every row, then
the second of every row, and so on (the layout of PQ fast scan, André, Kermarrec, Le Scouarnec:
"Cache locality is not enough", VLDB 2015, and of PDX, Kuffo, Krippner, Boncz, SIGMOD 2025). A load
brings the same byte of 64 rows, so no sum runs across a register, and one comparison finds all rows
below a limit. Rows beyond the last one of a block are whatever they are: scans know the number of
rows.

Tried beside it on a Zen 5 core, batches of four queries in the second-level cache: blocks of eight
rows word by word came to 230 and 256 GB/s of codes at 256 and 1,024 bits, these to 229 and 246; but
to 106 and 174 at 64 and 128 bits, against 178 and 208; and without AVX-512 a table look-up, which
needs bytes, is what is fast.
"""

import numpy as np
from numba import prange

from .columns import BLOCK_ROWS, SIXTEEN, turn_sixteen
from .compiling import kernel, parallel_kernel
from .launch import Launcher, share

WORD_BYTES = 8
_WORDS_AT_ONCE = 8  # turn_sixteen takes 64 bytes of each row
TURN_SLACK = BLOCK_ROWS * WORD_BYTES  # what turning an odd number of words writes beyond a block


@kernel()
def _turn_block(words, first, n_words, columns, to):
    """Turn the 64 rows that begin at word ``first``, with words to read beyond the last of them.

    Where ``n_words`` is odd this writes columns beyond the block.
    """
    for word in range(0, n_words, _WORDS_AT_ONCE):
        n_columns = (n_words - word) * WORD_BYTES
        for row in range(0, BLOCK_ROWS, SIXTEEN):
            turn_sixteen(
                words,
                first + row * n_words + word,
                n_words,
                columns,
                to + word * WORD_BYTES * BLOCK_ROWS + row,
                n_columns,
            )


@kernel()
def turn_rows(codes, begin, end, columns, to):
    """Write rows ``begin`` to ``end`` as blocks; the last block's other rows become zero.

    codes : (n_rows, n_words) uint64
    columns : (n,) uint8, blocks written from ``to`` on; there must be ``TURN_SLACK`` beyond them
    """
    n_rows, n_words = codes.shape
    words = codes.reshape(-1)
    block_bytes = BLOCK_ROWS * n_words * WORD_BYTES
    # Vectors are loaded whole: that must not reach beyond the codes.
    overhang = -n_words % _WORDS_AT_ONCE
    safe_end = min(end, n_rows - (overhang + n_words - 1) // n_words)
    row = begin
    while row + BLOCK_ROWS <= safe_end:
        _turn_block(words, row * n_words, n_words, columns, to)
        row += BLOCK_ROWS
        to += block_bytes
    if row < end:
        copy = np.zeros(BLOCK_ROWS * n_words + _WORDS_AT_ONCE, np.uint64)
        while row < end:
            n_copied = min(BLOCK_ROWS, end - row) * n_words
            copy[:n_copied] = words[row * n_words : row * n_words + n_copied]
            copy[n_copied:] = 0
            _turn_block(copy, 0, n_words, columns, to)
            row += BLOCK_ROWS
            to += block_bytes


@kernel()
def turn_cell(cell, n_cells, codes, blocks):
    """Write a share of the rows as blocks.

    codes : (n_rows, n_words) uint64
    blocks : (ceil(n_rows / 64), 8 * n_words, 64) uint8, written
    """
    n_rows, n_words = codes.shape
    block_bytes = BLOCK_ROWS * n_words * WORD_BYTES
    columns = blocks.reshape(-1)
    begin, end = share(blocks.shape[0], cell, n_cells)
    # The last block of a share is turned beside it: what is written too much would lie in the next.
    beside_begin = max(begin, end - 1)
    end_row = min(end * BLOCK_ROWS, n_rows)
    turn_rows(codes, begin * BLOCK_ROWS, beside_begin * BLOCK_ROWS, columns, begin * block_bytes)
    beside = np.empty((end - beside_begin) * block_bytes + TURN_SLACK, np.uint8)
    turn_rows(codes, beside_begin * BLOCK_ROWS, end_row, beside, 0)
    columns[beside_begin * block_bytes : end * block_bytes] = beside[:-TURN_SLACK]


@parallel_kernel
def turn_cells(n_cells, done, codes, blocks):
    for cell in prange(n_cells):
        turn_cell(np.int64(cell), n_cells, codes, blocks)
        done[cell] = True


@kernel()
def put_rows(codes, blocks, first_row):
    """Write a few rows, fewer than a block, into blocks from ``first_row`` on."""
    for i in range(codes.shape[0]):
        row = first_row + i
        column = 0
        for word in codes[i]:
            for shift in range(0, 64, 8):
                byte = np.uint8((word >> np.uint64(shift)) & np.uint64(0xFF))
                blocks[row // BLOCK_ROWS, column, row % BLOCK_ROWS] = byte
                column += 1


@kernel()
def get_rows(blocks, first_row, codes):
    """Read rows from ``first_row`` on back into row-major codes, which are written."""
    for i in range(codes.shape[0]):
        row = first_row + i
        for word in range(codes.shape[1]):
            value = np.uint64(0)
            for j in range(WORD_BYTES):
                byte = blocks[row // BLOCK_ROWS, word * WORD_BYTES + j, row % BLOCK_ROWS]
                value |= np.uint64(byte) << np.uint64(8 * j)
            codes[i, word] = value


TURN = Launcher(turn_cell, turn_cells)
