"""Codes of a store: kept in memory as far as a limit allows, the others read as they are needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import frozen
from ..forks import ForkSafeLock
from ..held import NO_FACTORS, HeldCodes, Piece
from ..kernels.columns import BLOCK_ROWS
from ..kernels.launch import for_each
from .segment import Segment
from .snapshot import Part

Codes = NDArray[np.uint64]
Visit = Callable[[int, Piece], None]

# Read at once: small enough to stay in a cache until it is scanned. Each one costs some ten
# microseconds beside, opening the file among them.
_BLOCK_BYTES = 2 << 20
_SHARE_FOR_BUFFERS = 2  # buffers take at most half of a limit


class _Run(NamedTuple):
    """Rows of one segment that are read at once."""

    segment: Segment
    sums: dict[str, NDArray[np.uint64]]  # of each array that is read
    base: int  # the segment's first row in the collection
    begin: int
    end: int


class CodeReader:
    """All codes of a store in row order: its first rows from memory, the others from disk.

    Codes are verified as they are read.

    Parameters
    ----------
    memory_bytes : int
        What kept codes and buffers may take together.
    with_factors : bool
        Whether the factors of rows are read, kept and passed on with their codes, where the store
        has some.
    """

    def __init__(self, memory_bytes: int, with_factors: bool = False) -> None:
        self._memory_bytes = memory_bytes
        self._with_factors = with_factors
        self._held: HeldCodes | None = None
        self._held_of: tuple[str, ...] = ()  # segments that the rows kept are the first rows of
        self._lock = ForkSafeLock()
        self._buffers: list[Codes] = []  # not in use

    @property
    def kept_bytes(self) -> int:
        """Bytes of codes and factors in memory."""
        return 0 if self._held is None else self._held.nbytes

    def _n_factors(self, segment: Segment) -> int:
        return segment.header.schema.factors if self._with_factors else 0

    def _row_bytes(self, segment: Segment) -> int:
        """Bytes of a row in all that is read."""
        return segment.row_bytes("codes") + 4 * self._n_factors(segment)

    def _step_bytes(self, parts: Sequence[Part]) -> int:
        """Bytes of rows that have a checksum of their own: the least that can be read."""
        return max(
            (
                self._row_bytes(part.segment) * part.segment.header.rows_per_checksum
                for part in parts
            ),
            default=1,
        )

    def n_readers(self, parts: Sequence[Part], at_most: int) -> int:
        """How many threads may read at once: so many that their buffers fit into the limit."""
        room = min(self._memory_bytes // _SHARE_FOR_BUFFERS, self._memory_bytes - self.kept_bytes)
        return max(1, min(at_most, room // max(1, self._step_bytes(parts))))

    def _buffer_bytes(self, parts: Sequence[Part], n_readers: int) -> int:
        share = self._memory_bytes // (_SHARE_FOR_BUFFERS * n_readers)
        return max(self._step_bytes(parts), min(_BLOCK_BYTES, share))

    def kept(self, parts: Sequence[Part], n_readers: int) -> list[Piece]:
        """The first rows of some segments, as many as the limit allows; read when first asked for.

        Parameters
        ----------
        parts : sequence of Part
            All of the store.
        n_readers : int
            Threads that may read.
        """
        if not parts:
            return []
        with self._lock:
            held = self._hold_rows_of(parts)
            n_held = len(held)
            row_bytes = self._row_bytes(parts[0].segment)
            room = self._memory_bytes - n_readers * self._buffer_bytes(parts, n_readers)
            # Room is made for whole blocks of rows.
            n_room = room // row_bytes // BLOCK_ROWS * BLOCK_ROWS - n_held
            runs = []
            for run in self._runs(parts, n_held, n_readers):
                if run.base + run.end - n_held > n_room:
                    break
                runs.append(run)
            if runs:
                n_new = runs[-1].base + runs[-1].end - n_held
                held.grow(n_new, at_most=n_room)
                self._visit(runs, n_readers, lambda _, new: _keep(held, new))
                held.publish(n_new)
            n_rows = parts[-1].first_row + parts[-1].segment.n_rows
            return list(held.pieces(min(n_rows, len(held))))

    def _hold_rows_of(self, parts: Sequence[Part]) -> HeldCodes:
        """What is kept, or nothing where that is not of the first of these segments."""
        names = tuple(part.segment.header.uuid for part in parts)
        n_same = min(len(names), len(self._held_of))
        if self._held is None or names[:n_same] != self._held_of[:n_same]:
            first = parts[0].segment
            self._held = HeldCodes(first.row_bytes("codes") // 8, n_factors=self._n_factors(first))
            self._held_of = names
        elif len(names) > n_same:
            self._held_of = names
        return self._held

    def _runs(self, parts: Sequence[Part], first_row: int, n_readers: int) -> Iterator[_Run]:
        """All rows from ``first_row`` on; it is where a run begins."""
        for base, segment in parts:
            if base + segment.n_rows <= first_row:
                continue
            names = ("codes", "factors") if self._n_factors(segment) else ("codes",)
            sums = {name: segment.sums(name) for name in names}
            step = segment.header.rows_per_checksum
            step_bytes = self._row_bytes(segment) * step
            rows = self._buffer_bytes(parts, n_readers) // step_bytes * step
            for begin in range(max(0, first_row - base), segment.n_rows, rows):
                yield _Run(segment, sums, base, begin, min(begin + rows, segment.n_rows))

    def visit(
        self, parts: Sequence[Part], kept: Sequence[Piece], n_readers: int, visit: Visit
    ) -> None:
        """Pass all codes to ``visit``, those that are not kept as they are read.

        Every reader is a thread that takes a part of what is kept, or reads a block and verifies
        it, and calls ``visit(reader, piece)``, while the others do the same: so a block is still in
        the cache of the core that scans it. The rows of each reader come in ascending order. A
        piece is valid during the call.

        Parameters
        ----------
        parts : sequence of Part
        kept : sequence of Piece
            What `kept` has returned.
        n_readers : int
        visit : callable
        """
        n_kept = sum(piece.n_rows for piece in kept)
        n_rows = max(BLOCK_ROWS, _BLOCK_BYTES // self._row_bytes(parts[0].segment))
        n_rows -= n_rows % BLOCK_ROWS
        in_memory = (part for piece in kept for part in piece.split(n_rows))
        self._visit(chain(in_memory, self._runs(parts, n_kept, n_readers)), n_readers, visit)

    def _visit(self, work: Iterable[_Run | Piece], n_readers: int, visit: Visit) -> None:
        buffers = [np.zeros(0, np.uint64)] * n_readers

        def read(reader: int, item: _Run | Piece) -> None:
            if isinstance(item, Piece):
                visit(reader, item)
                return
            n_words = (item.end - item.begin) * self._row_bytes(item.segment) // 8
            if buffers[reader].size < n_words:
                with contextlib.suppress(IndexError):
                    buffers[reader] = self._buffers.pop()
            if buffers[reader].size < n_words:
                buffers[reader] = np.empty(n_words, np.uint64)
            visit(reader, _read(item, buffers[reader]))

        for_each(work, n_readers, read)
        # Not where it failed: after a second Ctrl-C a thread may still be writing to its buffer.
        self._buffers += [buffer for buffer in buffers if buffer.size]
        del self._buffers[n_readers:]


def _read(run: _Run, buffer: Codes) -> Piece:
    """Read rows into a buffer and verify them: codes, and behind them factors."""
    n_rows, n_words = run.end - run.begin, run.segment.row_bytes("codes") // 8
    codes = buffer[: n_rows * n_words].reshape(n_rows, n_words)
    run.segment.read("codes", run.begin, run.end, run.sums["codes"], codes)
    factors = NO_FACTORS
    if "factors" in run.sums:
        n_factors = run.segment.header.schema.factors
        rest = buffer[codes.size :].view(np.float32)[: n_rows * n_factors]
        factors = rest.reshape(n_rows, n_factors)
        run.segment.read("factors", run.begin, run.end, run.sums["factors"], factors)
    return Piece(run.base + run.begin, n_rows, frozen(codes), frozen(factors))


def _keep(held: HeldCodes, new: Piece) -> None:
    held.write(new.first_row, new.codes, 1, new.factors if len(new.factors) else None)
